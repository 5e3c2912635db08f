#!/usr/bin/env bash
# The scenario's resources, from an empty subscription to a secret that a VM may read, and back to nothing.
# Written for bash 3.2 (macOS) and newer, tested with 5. README.md beside this file says what each step is for.
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

say() { # MESSAGE
  printf 'deploy.sh: %s\n' "$1" >&2
}

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
must --role-wait "$role_wait" '0|[1-9][0-9]{0,4}' 'a number of seconds'

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
  # az stores the file as it is, and `echo` ends it with a line break.
  [[ -n $dry_run || -n $(tail -c 1 "$secret_file") ]] || say "the secret's value ends with a line break, which becomes part of it"
  [[ -f $ssh_key && -r $ssh_key ]] || wrong --ssh-key "'$ssh_key' cannot be read"
  # A private key given by mistake would be sent to Azure.
  grep -qE '^(ssh-(rsa|ed25519)) ' "$ssh_key" || wrong --ssh-key "'$ssh_key' is not a public key of type RSA or Ed25519"
fi
[[ -n $dry_run ]] || command -v az >/dev/null || wrong az 'the Azure CLI is not on PATH'

# --- how az is called --------------------------------------------------------------------------------------------

patient='' # set for calls that need a role assigned moments ago

quoted() { # ARGUMENTS...: as they can be pasted into a shell; printf %q differs between versions of bash
  local argument escaped="'\\''"
  for argument; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="'${argument//\'/$escaped}'"
    printf ' %s' "$argument"
  done
}

# A role assignment takes up to 10 minutes to work: https://learn.microsoft.com/azure/role-based-access-control/troubleshooting
# Until then Key Vault answers "Forbidden", which is waited for within --role-wait. Any other failure ends the run.
call() { # ARGUMENTS...: the answer lands in $work/out
  local line waited=0
  # `az ad` asks the directory, which has no subscriptions, and refuses the option.
  [[ -z $subscription || $1 == ad ]] || set -- "$@" --subscription "$subscription"
  line=az$(quoted "$@")
  if [[ -n $dry_run ]]; then
    printf '%s\n' "$line"
    return
  fi
  printf '+ %s\n' "$line" >&2
  until az "$@" </dev/null >"$work/out" 2>"$work/err"; do
    if [[ -z $patient ]] || ! grep -q Forbidden "$work/err"; then
      cat "$work/err" >&2
      stop "'az $1 $2' failed"
    elif ((waited + ROLE_PAUSE > role_wait)); then
      cat "$work/err" >&2
      stop "'az $1 $2' failed, and $waited s of waiting for the role did not help (--role-wait $role_wait)"
    fi
    say "the role does not work yet, asking again in $ROLE_PAUSE s"
    sleep "$ROLE_PAUSE"
    waited=$((waited + ROLE_PAUSE))
  done
  [[ ! -s $work/err ]] || cat "$work/err" >&2
}

make() { # ARGUMENTS...: a call that changes something; what az would print (a secret, even) is not wanted
  call "$@" --output none --only-show-errors
}

ask() { # VARIABLE STAND-IN ARGUMENTS...: a call that only reads; in a dry run its answer is the stand-in
  local variable=$1 answer=$2
  shift 2
  call "$@" --output tsv --only-show-errors
  [[ -n $dry_run ]] || answer=$(<"$work/out")
  [[ $answer != None ]] || answer='' # how az writes null as text
  printf -v "$variable" '%s' "$answer"
}

need() { # like ask, where no answer is an error
  ask "$@"
  [[ -n ${!1} ]] || stop "'az $3 $4' has no answer"
}

# --- what is made ------------------------------------------------------------------------------------------------

deleted_vault() { # VARIABLE STAND-IN: the vault's name while it is deleted but not purged; only one of this group counts
  ask "$1" "$2" keyvault list-deleted --resource-type vault \
    --query "[?name=='$vault' && contains(properties.vaultId, '/resourceGroups/$group/')].name"
}

find_deployer() { # who writes the secret: a person, or the service principal of a pipeline
  local kind name
  need kind user account show --query user.type
  deployer_type=User
  if [[ $kind == user ]]; then
    need deployer DEPLOYER_OBJECT_ID ad signed-in-user show --query id
  else
    deployer_type=ServicePrincipal
    need name '' account show --query user.name
    need deployer '' ad sp show --id "$name" --query id
  fi
}

make_group() {
  local exists
  ask exists false group exists --name "$group"
  # Not made again where it exists: that would replace the tags of a group that has another owner.
  [[ $exists == true ]] || make group create --name "$group" --location "$location" --tags "$TAG=$TAG_VALUE"
}

make_vm() {
  local existing
  make identity create --resource-group "$group" --name "$identity" --location "$location"
  need identity_id IDENTITY_RESOURCE_ID identity show --resource-group "$group" --name "$identity" --query id
  ask existing '' vm list --resource-group "$group" --query "[?name=='$vm'].id"
  [[ -n $existing ]] || make vm create --resource-group "$group" --name "$vm" --location "$location" \
    --image "$IMAGE" --size "$vm_size" --storage-sku StandardSSD_LRS --security-type TrustedLaunch \
    --authentication-type ssh --admin-username "$admin" --ssh-key-values "$ssh_key" \
    --public-ip-sku Standard --nsg "$vm-nsg" --nsg-rule NONE --assign-identity '[system]'
  make network nsg rule create --resource-group "$group" --nsg-name "$vm-nsg" --name ssh --priority 1000 \
    --direction Inbound --access Allow --protocol Tcp --source-address-prefixes "$ssh_from" --destination-port-ranges 22
  # Adds what is missing, so it also repairs a VM that lost an identity.
  make vm identity assign --resource-group "$group" --name "$vm" --identities '[system]' "$identity_id"
  need system_principal SYSTEM_OBJECT_ID \
    vm show --resource-group "$group" --name "$vm" --query identity.principalId
  need user_principal IDENTITY_OBJECT_ID \
    identity show --resource-group "$group" --name "$identity" --query principalId
}

make_vault() {
  local existing deleted
  ask existing '' keyvault list --resource-group "$group" --query "[?name=='$vault'].id"
  if [[ -z $existing ]]; then
    deleted_vault deleted ''
    # A deleted vault keeps its name, and its secrets, until it is purged or its retention ends.
    if [[ -n $deleted ]]; then
      make keyvault recover --name "$vault"
    else
      make keyvault create --resource-group "$group" --name "$vault" --location "$location" \
        --enable-rbac-authorization true --retention-days 7
    fi
  fi
  need vault_id VAULT_RESOURCE_ID keyvault show --resource-group "$group" --name "$vault" --query id
}

give_role() { # ROLE OBJECT-ID TYPE: on this vault alone; az answers with the assignment where it exists
  # With the type named, a principal that is not replicated yet is no error:
  # https://learn.microsoft.com/azure/role-based-access-control/role-assignments-cli
  make role assignment create --role "$1" --scope "$vault_id" --assignee-object-id "$2" --assignee-principal-type "$3"
}

write_secret() {
  local existing
  patient=yes
  ask existing '' keyvault secret list --vault-name "$vault" --query "[?name=='$secret'].id"
  # Written once: each write makes a new version.
  if [[ -z $existing || $replace == yes ]]; then
    make keyvault secret set --vault-name "$vault" --name "$secret" --file "$secret_file" --encoding utf-8
  else
    say "the secret '$secret' exists and stays (--replace yes writes it again)"
  fi
  patient=''
}

up() {
  local deployer deployer_type identity_id system_principal user_principal vault_id
  local address uri client_id
  find_deployer
  make_group
  make_vm
  make_vault
  give_role "$SECRETS_OFFICER" "$deployer" "$deployer_type"
  give_role "$SECRETS_USER" "$system_principal" ServicePrincipal
  give_role "$SECRETS_USER" "$user_principal" ServicePrincipal
  write_secret
  need address VM_ADDRESS vm show --show-details --resource-group "$group" --name "$vm" --query publicIps
  need uri VAULT_URL keyvault show --resource-group "$group" --name "$vault" --query properties.vaultUri
  need client_id IDENTITY_CLIENT_ID identity show --resource-group "$group" --name "$identity" --query clientId
  [[ -n $dry_run ]] || cat <<VALUES
IMDS_DEMO_HOST=$address
IMDS_DEMO_ADMIN=$admin
IMDS_DEMO_VAULT_URL=$uri
IMDS_DEMO_SECRET=$secret
IMDS_DEMO_CLIENT_ID=$client_id
IMDS_DEMO_OBJECT_ID=$user_principal
IMDS_DEMO_RESOURCE_ID=$identity_id
VALUES
}

down() {
  local exists tag deleted
  ask exists true group exists --name "$group"
  if [[ $exists == true ]]; then
    ask tag "$TAG_VALUE" group show --name "$group" --query "tags.\"$TAG\""
    [[ $tag == "$TAG_VALUE" ]] || wrong --group "'$group' was not made by this script: delete its resources yourself"
    # With the group go the VM, the identities, the vault and the role assignments on it.
    make group delete --name "$group" --yes
  fi
  deleted_vault deleted "$vault"
  [[ -z $deleted ]] || make keyvault purge --name "$vault"
}

"$action"
