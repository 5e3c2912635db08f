#!/usr/bin/env bash
# The development loop: copy the working tree to the VM, run a command there, stream its output, end with its exit code.
# Written for bash 3.2 (macOS) and newer, tested with 5.
set -euo pipefail

usage() {
  cat <<USAGE
Usage: push_and_run.sh [OPTION VALUE]... [--install] -- COMMAND [ARGUMENT]...

Copies the tree this script stands in, without .git and what .gitignore names, and removes on the VM what is gone
here. Then runs the command in that directory, its virtual environment's programs first on PATH.

Ends with the command's exit code, or with 255 where the VM could not be reached or the tree not be copied.

Each option can be given as an environment variable too: --host is IMDS_DEMO_HOST, which deploy.sh prints.
--host         name or address of the VM (required)
--admin        user on the VM                           [azureuser]
--port         port of its SSH server                   [22]
--key          private key file                         [what ssh finds]
--ssh-config   configuration file for ssh               [the user's own]
--directory    directory on the VM, below the home      [azure-imds-credential]
--source       directory to copy                        [the repository]
--install      first make .venv on the VM and install the package into it, with what the samples need
USAGE
}

wrong() { # OPTION MESSAGE: the caller's mistake
  printf 'push_and_run.sh: %s: %s\n' "$1" "$2" >&2
  exit 2
}

install=''
while (($#)); do
  case $1 in
    --)
      shift
      break
      ;;
    -h | --help) usage && exit 0 ;;
    --install) install=yes ;;
    --host | --admin | --port | --key | --ssh-config | --directory | --source)
      [[ $# -ge 2 && -n $2 ]] || wrong "$1" 'a value must follow'
      printf -v "IMDS_DEMO_$(tr 'a-z-' 'A-Z_' <<<"${1#--}")" '%s' "$2"
      shift
      ;;
    *) wrong "$1" 'unknown, see --help; the command stands after --' ;;
  esac
  shift
done

host=${IMDS_DEMO_HOST:-} admin=${IMDS_DEMO_ADMIN:-azureuser} port=${IMDS_DEMO_PORT:-22} key=${IMDS_DEMO_KEY:-}
ssh_config=${IMDS_DEMO_SSH_CONFIG:-} directory=${IMDS_DEMO_DIRECTORY:-azure-imds-credential}
source=${IMDS_DEMO_SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}

[[ -n $host ]] || wrong --host 'required: the address that deploy.sh printed (or set IMDS_DEMO_HOST)'
[[ $host =~ ^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]] || wrong --host "'$host' is not a name or an address"
[[ $admin =~ ^[a-z_][a-z0-9_-]*$ ]] || wrong --admin "'$admin' is not a user name"
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] || wrong --port "'$port' is not a port"
[[ -z $key || -r $key ]] || wrong --key "'$key' cannot be read"
[[ -z $ssh_config || -r $ssh_config ]] || wrong --ssh-config "'$ssh_config' cannot be read"
[[ -d $source ]] || wrong --source "'$source' is not a directory"
# rsync --delete empties the directory of all else: never the home itself, nor anything outside of it.
[[ $directory =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$ ]] ||
  wrong --directory "'$directory' is not a path below the home, of letters, digits and ._-"
(($#)) || wrong -- 'a command must follow'
command -v rsync >/dev/null || wrong rsync 'not on PATH'

work=$(mktemp -d)
trap 'bash "$work/ssh" -O exit "$host" 2>/dev/null || true; rm -rf "$work"' EXIT

# A host key is stored at first sight, since the VM is minutes old; a changed one is refused.
options=(-p "$port" -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15
  -o StrictHostKeyChecking=accept-new)
# The copy and the command share one connection, which ends with this script.
options+=(-o ControlMaster=auto -o "ControlPath=$work/s" -o ControlPersist=60)
[[ -z $key ]] || options+=(-i "$key" -o IdentitiesOnly=yes)
[[ -z $ssh_config ]] || options+=(-F "$ssh_config")
# rsync splits its --rsh at spaces, which paths may contain: the options go into a file that both connections run.
{
  printf 'exec ssh'
  printf ' %q' "${options[@]}"
  printf ' "$@"\n'
} >"$work/ssh"

quoted() { # ARGUMENTS...: for any POSIX shell, whatever they contain
  local argument escaped="'\\''"
  for argument; do printf " '%s'" "${argument//\'/$escaped}"; done
}

# What .gitignore names is not copied and, so that .venv lives on, not deleted either.
rsync --archive --compress --delete --exclude=/.git --exclude=/.venv --filter=':- .gitignore' \
  --rsh="bash '$work/ssh'" --rsync-path="mkdir -p $directory && rsync" "$source/" "$admin@$host:$directory/" || {
  printf 'push_and_run.sh: the tree could not be copied to %s@%s:%s (rsync ended with %d)\n' \
    "$admin" "$host" "$directory" "$?" >&2
  exit 255
}

# Ubuntu's images come without ensurepip, which venv needs.
setup='{ python3 -c "import ensurepip" 2>/dev/null ||
  { sudo apt-get update -qq && sudo apt-get install -qq python3-venv; }; } >&2 &&
  python3 -m venv .venv && .venv/bin/python -m pip install --quiet --editable ".[keyvault]" >&2 &&'
# Python writes line by line into a pipe only when told to.
# shellcheck disable=SC2016 # these expand on the VM
run='exec env PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1'
remote="cd $directory && ${install:+$setup} $run$(quoted "$@")"
terminal=-T
# With a terminal on both ends, Ctrl-C here stops the command there.
[[ ! -t 0 || ! -t 1 ]] || terminal=-t
status=0
bash "$work/ssh" "$terminal" "$admin@$host" "$remote" || status=$?
exit "$status"
