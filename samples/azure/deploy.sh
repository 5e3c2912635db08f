#!/usr/bin/env bash
# The scenario's resources, from an empty subscription to a secret that a VM may read, and back to nothing.
# Runs with bash 3.2 (macOS) and newer; README.md beside this file says what each step is for.
set -euo pipefail

# Every GUID, name and limit below has its source beside it; nothing here was guessed.
# Built-in roles: https://learn.microsoft.com/azure/key-vault/general/rbac-guide
readonly SECRETS_USER=4633458b-17de-408a-b874-0445c86b69e6    # Key Vault Secrets User: read the contents of secrets
readonly SECRETS_OFFICER=b86a8fe4-44ce-4948-aee5-eccb2c155cd7 # Key Vault Secrets Officer: also write them
# Canonical's image, generation 2: https://documentation.ubuntu.com/azure/azure-how-to/instances/find-ubuntu-images/
readonly IMAGE=Canonical:ubuntu-24_04-lts:server:latest
# Marks the groups that `up` made, so that `down` never deletes another one.
readonly TAG=created-by TAG_VALUE=azure-imds-credential-sample
# One look every 15 s while a role assignment spreads.
readonly ROLE_PAUSE=15

usage() {
  cat <<USAGE
Usage: deploy.sh up|down [--dry-run] [OPTION VALUE]...

up     makes what is missing, keeps what is there, and prints NAME=value lines on standard output
down   deletes the resource group if \`up\` made it, then purges the vault, whose name is taken until then

--dry-run       print every az call and run none; \`up\` then assumes an empty subscription

Each option can be given as an environment variable too: --ssh-key is IMDS_DEMO_SSH_KEY.
--vault         name of the Key Vault, unique in all of Azure (required)
--secret-file   file with the secret's value, or - for standard input (required by up)
--secret        name of the secret                               [demo-secret]
--replace       yes = write the secret although it exists        [no]
--subscription  subscription to work in                          [the one az has selected]
--group         resource group                                   [rg-imds-demo]
--location      region                                           [westeurope]
--vm            name of the VM                                   [vm-imds-demo]
--vm-size       size of the VM                                   [Standard_D2s_v3]
--admin         user on the VM                                   [azureuser]
--ssh-key       public key file for that user                    [~/.ssh/id_ed25519.pub]
--ssh-from      address range that may reach port 22             [*, any address]
--identity      name of the user-assigned identity               [id-imds-demo]
--role-wait     seconds that a new role may take to work         [600]
USAGE
}

wrong() { # OPTION MESSAGE: the caller's mistake
  printf 'deploy.sh: %s: %s\n' "$1" "$2" >&2
  exit 2
}

stop() { # MESSAGE: az failed; what it said stands above
  printf 'deploy.sh: %s. What was made so far stays: run the same command again, or "deploy.sh down".\n' "$1" >&2
  exit 1
}

say() { printf 'deploy.sh: %s\n' "$1" >&2; }

# --- options -----------------------------------------------------------------------------------------------------

action='' dry_run=''
while (($#)); do
  case $1 in
    up | down) action=$1 ;;
    --dry-run) dry_run=yes ;;
    -h | --help) usage && exit 0 ;;
    --vault | --secret-file | --secret | --replace | --subscription | --group | --location | --vm | --vm-size | \
      --admin | --ssh-key | --ssh-from | --identity | --role-wait)
      [[ $# -ge 2 && -n $2 ]] || wrong "$1" 'a value must follow'
      printf -v "IMDS_DEMO_$(tr 'a-z-' 'A-Z_' <<<"${1#--}")" '%s' "$2"
      shift
      ;;
    *) wrong "$1" 'unknown, see --help' ;;
  esac
  shift
done

vault=${IMDS_DEMO_VAULT:-} secret_file=${IMDS_DEMO_SECRET_FILE:-} secret=${IMDS_DEMO_SECRET:-demo-secret}
replace=${IMDS_DEMO_REPLACE:-no} subscription=${IMDS_DEMO_SUBSCRIPTION:-} group=${IMDS_DEMO_GROUP:-rg-imds-demo}
location=${IMDS_DEMO_LOCATION:-westeurope} vm=${IMDS_DEMO_VM:-vm-imds-demo}
vm_size=${IMDS_DEMO_VM_SIZE:-Standard_D2s_v3} admin=${IMDS_DEMO_ADMIN:-azureuser}
ssh_key=${IMDS_DEMO_SSH_KEY:-$HOME/.ssh/id_ed25519.pub} ssh_from=${IMDS_DEMO_SSH_FROM:-*}
identity=${IMDS_DEMO_IDENTITY:-id-imds-demo} role_wait=${IMDS_DEMO_ROLE_WAIT:-600}

must() { # OPTION VALUE PATTERN MEANING
  local LC_ALL=C
  [[ $2 =~ ^($3)$ ]] || wrong "$1" "'$2' is not $4 (or set IMDS_DEMO_$(tr 'a-z-' 'A-Z_' <<<"${1#--}"))"
}

# Lengths and characters: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
[[ -n $action ]] || wrong 'up|down' 'say which, see --help'
[[ -n $vault ]] || wrong --vault 'required, and there is no default: the name must be unique in all of Azure'
must --vault "$vault" '[A-Za-z](-?[A-Za-z0-9])+' 'letters, digits and single hyphens, with a letter first'
must --vault "$vault" '.{3,24}' '3 to 24 characters long'
must --group "$group" '[A-Za-z0-9_().-]{0,89}[A-Za-z0-9_()-]' 'a name of at most 90 letters, digits and _-.()'
must --location "$location" '[a-z0-9]+' 'a region such as westeurope'
must --vm "$vm" '[A-Za-z0-9][A-Za-z0-9-]{0,62}[A-Za-z0-9]' 'a host name of 2 to 64 letters, digits and hyphens'
must --vm-size "$vm_size" '[A-Za-z]+_[A-Za-z0-9_-]+' 'a size such as Standard_D2s_v3'
must --admin "$admin" '[a-z_][a-z0-9_-]{0,31}' 'a Linux user name'
must --identity "$identity" '[A-Za-z0-9][A-Za-z0-9_-]{2,127}' 'a name of 3 to 128 letters, digits, - and _'
must --secret "$secret" '[A-Za-z0-9-]{1,127}' 'a name of at most 127 letters, digits and hyphens'
must --replace "$replace" 'yes|no' 'yes or no'
must --ssh-from "$ssh_from" '\*|[0-9a-fA-F.:]+(/[0-9]{1,3})?' 'an address, an address range such as 203.0.113.7/32, or *'
must --role-wait "$role_wait" '[0-9]{1,5}' 'a number of seconds'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ $action == up ]]; then
  [[ -n $secret_file ]] || wrong --secret-file 'required: a file with the value, or - to read it from standard input'
  if [[ $secret_file == - ]]; then
    # mktemp -d made the directory for this user alone; the value never becomes an argument of any process.
    [[ -n $dry_run ]] || cat >"$work/secret"
    secret_file=$work/secret
    [[ -n $dry_run || -s $secret_file ]] || wrong --secret-file 'nothing came from standard input'
  else
    [[ -f $secret_file && -r $secret_file && -s $secret_file ]] || wrong --secret-file "'$secret_file' is missing or empty"
  fi
  [[ -f $ssh_key && -r $ssh_key ]] || wrong --ssh-key "'$ssh_key' cannot be read"
  # A private key given by mistake would be sent to Azure.
  grep -qE '^(ssh-(rsa|ed25519)) ' "$ssh_key" || wrong --ssh-key "'$ssh_key' is not a public key of type RSA or Ed25519"
fi
[[ -n $dry_run ]] || command -v az >/dev/null || wrong az 'the Azure CLI is not on PATH'

# --- how az is called --------------------------------------------------------------------------------------------

show() { # the call as it can be pasted into a shell; on standard output when it is all there is
  local line
  line=az$(printf ' %q' "$@")
  if [[ -n $dry_run ]]; then printf '%s\n' "$line"; else printf '+ %s\n' "$line" >&2; fi
}

run_az() { az "$@" </dev/null; }

make() { # a call that changes something
  [[ -z $subscription ]] || set -- "$@" --subscription "$subscription"
  set -- "$@" --output none --only-show-errors
  show "$@"
  [[ -n $dry_run ]] || run_az "$@" || stop "'az $1 $2' failed"
}

ask() { # VARIABLE STAND-IN CALL...: a call that only reads; in a dry run the answer is the stand-in
  local variable=$1 answer=$2
  shift 2
  [[ -z $subscription ]] || set -- "$@" --subscription "$subscription"
  set -- "$@" --output tsv --only-show-errors
  show "$@"
  [[ -n $dry_run ]] || answer=$(run_az "$@") || stop "'az $1 $2' failed"
  printf -v "$variable" '%s' "$answer"
}

ask_for() { # like ask, where no answer is an error
  ask "$@"
  [[ -n ${!1} ]] || stop "'az $3 $4' has no answer"
}

# A role assignment takes up to 10 minutes to work: https://learn.microsoft.com/azure/role-based-access-control/troubleshooting
# Until then Key Vault answers "Forbidden", which is waited for within --role-wait; any other failure ends the run.
patiently() { # make|ask ARGUMENTS...
  local waited=0
  # A failing `stop` leaves only the subshell. Its variables would be lost too, so `ask` is repeated once it can work.
  while [[ -z $dry_run ]]; do
    ("$@") >"$work/out" 2>"$work/err" && break
    if ! grep -q Forbidden "$work/err" || ((waited + ROLE_PAUSE > role_wait)); then
      cat "$work/err" >&2
      say "gave up after waiting ${waited} s for the role (--role-wait $role_wait)"
      exit 1
    fi
    say "the role does not work yet, asked again in $ROLE_PAUSE s"
    sleep "$ROLE_PAUSE"
    waited=$((waited + ROLE_PAUSE))
  done
}
