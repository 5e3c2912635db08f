"""samples/azure/deploy.sh against a stand-in for `az` that keeps a small Azure in files: order, arguments, reruns."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
AZURE = REPOSITORY / "samples" / "azure"
DEPLOY = AZURE / "deploy.sh"
SURFACE: dict[str, Any] = json.loads((Path(__file__).parent / "azure_cli" / "surface.json").read_text())["commands"]
# Words that no other part of a run contains, so that finding one anywhere is a leak.
SECRET = "swordfish-7c1f with 'quotes'"

# Each answer is what `az ... --output tsv` prints; what does not exist fails as it does in Azure.
AZ = r"""#!/usr/bin/env bash
printf '%s\0' "$@" $'\x1e' >>"$AZURE_STATE/calls"
cd "$AZURE_STATE" || exit 9
[[ ! -e fail_on || $* != "$(<fail_on)"* ]] || { echo 'ERROR: the network went away' >&2; exit 1; }
needs() { [[ -e $1 ]] || { echo "ERROR: (ResourceNotFound) no $1" >&2; exit 3; }; }
taken() { [[ ! -e $1 ]] || { echo "ERROR: $1 exists already" >&2; exit 1; }; }
previous=''
for word; do
  case $previous in --query) query=$word ;; --tags) tag=${word#*=} ;; --file) file=$word ;; esac
  previous=$word
done
may_write() { # for the deployer's role, and `forbidden` times not even then
  local left=0
  [[ ! -e forbidden ]] || left=$(<forbidden)
  [[ ! -e roles || $(<roles) != *b86a8fe4* || $left != 0 ]] || return 0
  echo $((left - 1)) >forbidden
  echo 'ERROR: (Forbidden) Caller is not authorized. Inner error: { "code": "ForbiddenByRbac" }' >&2; exit 1
}
case "$*" in
  'account show'*) if [[ $query == user.name ]]; then echo the-app-id
    elif [[ -e account ]]; then echo "$(<account)"; else echo user; fi ;;
  'ad signed-in-user show'*) echo deployer-object-id ;;
  'ad sp show'*) echo pipeline-object-id ;;
  'group exists'*) if [[ -e group ]]; then echo true; else echo false; fi ;;
  'group create'*) taken group; echo "$tag" >group ;;
  'group show'*) needs group; echo "$(<group)" ;;
  'group delete'*) needs group; [[ ! -e vault ]] || mv vault deleted; rm -rf group vm identity assigned roles ;;
  'identity create'*) needs group; : >identity ;;
  'identity show'*) needs identity; echo "identity-$query" ;;
  'vm list'*) needs group; [[ ! -e vm ]] || echo vm-id ;;
  'vm create'*) needs group; taken vm; : >vm ;;
  'vm identity assign'*) needs vm; needs identity; : >assigned ;;
  'vm show --show-details'*) needs vm; echo 203.0.113.9 ;;
  'vm show'*) needs assigned; if [[ -e null ]]; then echo "$(<null)"; else echo system-object-id; fi ;;
  'network nsg rule create'*) needs vm ;;
  'keyvault list-deleted'*) [[ ! -e deleted ]] || echo the-vault ;;
  'keyvault list'*) needs group; [[ ! -e vault ]] || echo vault-id ;;
  'keyvault create'*) needs group; taken vault; taken deleted; : >vault ;;
  'keyvault recover'*) needs deleted; mv deleted vault ;;
  'keyvault purge'*) needs deleted; rm -f deleted secret ;;
  'keyvault show'*) needs vault
    if [[ $query == id ]]; then echo /the/vault; else echo https://kv.vault.azure.net/; fi ;;
  'role assignment create'*) needs vault; echo "$*" >>roles ;;
  'keyvault secret list'*) needs vault; may_write; [[ ! -e secret ]] || echo secret-id ;;
  'keyvault secret set'*) needs vault; may_write; [[ $file == /* ]] || file=$OLDPWD/$file
    cp "$file" secret; cat secret ;;
  'login'* | 'account set'*) : ;;
  'vm identity remove'*) needs vm; rm assigned ;;
  'deployment group create'*) needs group; : >vm; : >identity; : >assigned; : >vault; : >secret ;;
  *) echo "ERROR: '$*' is misspelled or not recognized by the system" >&2; exit 2 ;;
esac
"""
SLEEP = '#!/bin/sh\necho "$1" >>"$AZURE_STATE/sleeps"\n'


@dataclass
class Run:
    returncode: int
    stdout: str
    stderr: str
    calls: list[list[str]]

    def commands(self) -> list[str]:
        return [command_of(call) for call in self.calls]


def command_of(call: list[str]) -> str:
    """The words before the first option: `vm identity assign`."""
    return " ".join(call[: next((i for i, word in enumerate(call) if word.startswith("-")), len(call))])


@dataclass
class Azure:
    state: Path
    environment: dict[str, str]
    secret_file: Path

    def run(self, *arguments: str, stdin: str = "", **variables: str) -> Run:
        calls = self.state / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", DEPLOY, *arguments],
            env=self.environment | variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        recorded = calls.read_text().split("\x1e\0") if calls.exists() else []
        return Run(done.returncode, done.stdout, done.stderr, [call.split("\0")[:-1] for call in recorded if call])

    def up(self, *more: str, stdin: str = "", **variables: str) -> Run:
        given = ("--vault", "the-vault", "--secret-file", str(self.secret_file))
        return self.run("up", *given, *more, stdin=stdin, **variables)

    def down(self, *more: str) -> Run:
        return self.run("down", "--vault", "the-vault", *more)

    def has(self) -> set[str]:
        return {path.name for path in self.state.iterdir()} & {"group", "vm", "identity", "vault", "deleted", "secret"}


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Azure]:
    state, tools, home = (tmp_path / name for name in ("state", "tools", "home"))
    for folder in (state, tools, home / ".ssh"):
        folder.mkdir(parents=True)
    for name, text in (("az", AZ), ("sleep", SLEEP)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (home / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAADUMMY admin\n")
    secret_file = tmp_path / "the value"
    secret_file.write_text(SECRET)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "AZURE_STATE": str(state),
    }
    yield Azure(state, environment, secret_file)
    assert list(scratch.iterdir()) == [], "a temporary file was left behind"


WHOLE_UP = [
    "account show",
    "ad signed-in-user show",
    "group exists",
    "group create",
    "identity create",
    "identity show",
    "vm list",
    "vm create",
    "network nsg rule create",
    "vm identity assign",
    "vm show",
    "identity show",
    "keyvault list",
    "keyvault list-deleted",
    "keyvault create",
    "keyvault show",
    "role assignment create",
    "role assignment create",
    "role assignment create",
    "keyvault secret list",
    "keyvault secret set",
    "vm show",
    "keyvault show",
    "identity show",
]


def test_up_makes_everything_in_order(azure: Azure) -> None:
    """From an empty subscription: each call once, what is needed before what needs it, and the values at the end."""
    run = azure.up()
    assert (run.returncode, run.commands()) == (0, WHOLE_UP), run.stderr
    assert azure.has() == {"group", "vm", "identity", "vault", "secret"}
    assert (azure.state / "secret").read_text() == SECRET
    assert dict(line.split("=", 1) for line in run.stdout.splitlines()) == {
        "IMDS_DEMO_HOST": "203.0.113.9",
        "IMDS_DEMO_ADMIN": "azureuser",
        "IMDS_DEMO_VAULT_URL": "https://kv.vault.azure.net/",
        "IMDS_DEMO_SECRET": "demo-secret",
        "IMDS_DEMO_CLIENT_ID": "identity-clientId",
        "IMDS_DEMO_OBJECT_ID": "identity-principalId",
        "IMDS_DEMO_RESOURCE_ID": "identity-id",
    }


def test_up_gives_least_privilege(azure: Azure) -> None:
    """Identities may read secrets of this vault, the deployer may write them, and no other role is given."""
    given = [call for call in azure.up().calls if call[:2] == ["role", "assignment"]]
    officer, user = "b86a8fe4-44ce-4948-aee5-eccb2c155cd7", "4633458b-17de-408a-b874-0445c86b69e6"
    assert [dict(zip(call[3:11:2], call[4:11:2], strict=True)) for call in given] == [
        {
            "--role": role,
            "--scope": "/the/vault",
            "--assignee-object-id": principal,
            "--assignee-principal-type": kind,
        }
        for role, principal, kind in (
            (officer, "deployer-object-id", "User"),
            (user, "system-object-id", "ServicePrincipal"),
            (user, "identity-principalId", "ServicePrincipal"),
        )
    ]


def test_a_second_up_makes_nothing_twice(azure: Azure) -> None:
    """What exists is kept: no group, VM, vault or secret is created again, and the values are printed as before."""
    first, second = azure.up(), azure.up()
    assert (second.returncode, second.stdout) == (0, first.stdout), second.stderr
    not_again = {"group create", "vm create", "keyvault list-deleted", "keyvault create", "keyvault secret set"}
    assert second.commands() == [command for command in WHOLE_UP if command not in not_again]
    assert "--replace yes" in second.stderr


@pytest.mark.parametrize("command", ["account show", "vm create", "keyvault create", "keyvault secret set"])
def test_a_failure_stops_the_run_and_the_next_run_completes_it(azure: Azure, command: str) -> None:
    """Whichever call fails, nothing is called after it, its error is shown, and running again finishes the work."""
    (azure.state / "fail_on").write_text(command)
    broken = azure.up()
    assert broken.returncode == 1
    assert broken.commands() == WHOLE_UP[: WHOLE_UP.index(command) + 1]
    assert "the network went away" in broken.stderr
    assert f"'az {' '.join(command.split()[:2])}' failed" in broken.stderr
    assert broken.stdout == ""
    (azure.state / "fail_on").unlink()
    again = azure.up()
    assert again.returncode == 0, again.stderr
    assert azure.has() == {"group", "vm", "identity", "vault", "secret"}
    made_twice = [c for c in again.commands() if c in broken.commands()[:-1] and c in ("group create", "vm create")]
    assert made_twice == []


@pytest.mark.parametrize("null", ["", "None"])
def test_an_answer_without_a_value_stops_the_run(azure: Azure, null: str) -> None:
    """No role is assigned without a principal: null, which az writes as `None` or as nothing, ends the run."""
    (azure.state / "null").write_text(null + "\n")
    run = azure.up()
    assert (run.returncode, run.commands()[-1]) == (1, "vm show")
    assert "'az vm show' has no answer" in run.stderr


@pytest.mark.parametrize("kind", ["user", "servicePrincipal"])
def test_the_deployer_is_who_is_signed_in(azure: Azure, kind: str) -> None:
    """A person is looked up as the signed-in user, a pipeline as the service principal of its application."""
    (azure.state / "account").write_text(kind + "\n")
    run = azure.up()
    officer = next(call for call in run.calls if call[:2] == ["role", "assignment"])
    expected = {"user": ("deployer-object-id", "User"), "servicePrincipal": ("pipeline-object-id", "ServicePrincipal")}
    values = dict(zip(officer[3::2], officer[4::2], strict=False))
    assert (values["--assignee-object-id"], values["--assignee-principal-type"]) == expected[kind]
    if kind == "servicePrincipal":
        assert next(call for call in run.calls if call[:2] == ["ad", "sp"])[3:5] == ["--id", "the-app-id"]


@pytest.mark.parametrize(
    ("refusals", "wait", "pauses", "code"),
    [(2, "30", 2, 0), (3, "30", 2, 1), (1, "0", 0, 1), (41, "600", 40, 1)],
)
def test_a_new_role_is_waited_for_within_its_bound(
    azure: Azure, refusals: int, wait: str, pauses: int, code: int
) -> None:
    """`Forbidden` is asked again every 15 s, at most `--role-wait` seconds in all, and then reported."""
    (azure.state / "forbidden").write_text(str(refusals))
    run = azure.up("--role-wait", wait)
    sleeps = azure.state / "sleeps"
    assert (run.returncode, sleeps.read_text().split() if sleeps.exists() else []) == (code, ["15"] * pauses)
    assert run.commands().count("keyvault secret list") == pauses + 1
    if code:
        assert "ForbiddenByRbac" in run.stderr
        assert f"--role-wait {wait}" in run.stderr


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_the_secret_reaches_azure_and_nothing_else(azure: Azure, by: str) -> None:
    """The value is in no argument of any process and in no output, though az itself prints it; only `--file` has it."""
    run = azure.up() if by == "file" else azure.up("--secret-file", "-", stdin=SECRET)
    assert run.returncode == 0, run.stderr
    assert (azure.state / "secret").read_text() == SECRET
    assert "swordfish" not in run.stdout + run.stderr + repr(run.calls)
    written = next(call for call in run.calls if call[:3] == ["keyvault", "secret", "set"])
    assert written[written.index("--output") + 1] == "none"


def test_a_trailing_line_break_is_said(azure: Azure) -> None:
    """The usual slip, a value written by `echo`, is pointed out, since az stores the file as it is."""
    azure.secret_file.write_text(SECRET + "\n")
    assert "ends with a line break" in azure.up().stderr
    azure.secret_file.write_text(SECRET)
    assert "ends with a line break" not in azure.up().stderr


def test_replace_writes_the_secret_again(azure: Azure) -> None:
    """`--replace yes` makes a new version of a secret that exists."""
    azure.up()
    azure.secret_file.write_text("another")
    assert azure.up("--replace", "yes").commands().count("keyvault secret set") == 1
    assert (azure.state / "secret").read_text() == "another"


def test_dry_run_prints_every_call_and_makes_none(azure: Azure) -> None:
    """A dry run needs no az, prints lines that a shell reads back as the real calls, and touches nothing."""
    for action, real in (("up", azure.up), ("down", azure.down)):
        dry = real("--dry-run")
        assert (dry.returncode, dry.calls, dry.stderr) == (0, [], "")
        printed = [shlex.split(line)[1:] for line in dry.stdout.splitlines()]
        assert azure.has() == (set() if action == "up" else {"group", "vm", "identity", "vault", "secret"})
        done = real()
        assert [command_of(call) for call in printed] == done.commands(), done.stderr
        assert [len(call) for call in printed] == [len(call) for call in done.calls]


def test_a_printed_call_can_be_pasted(azure: Azure) -> None:
    """What a dry run prints is, but for what Azure answers, argument for argument what is called."""
    shown = [shlex.split(line)[1:] for line in azure.up("--dry-run").stdout.splitlines()]
    answers = {
        "DEPLOYER_OBJECT_ID": "deployer-object-id",
        "SYSTEM_OBJECT_ID": "system-object-id",
        "IDENTITY_OBJECT_ID": "identity-principalId",
        "IDENTITY_RESOURCE_ID": "identity-id",
        "VAULT_RESOURCE_ID": "/the/vault",
    }
    assert [[answers.get(word, word) for word in call] for call in shown] == azure.up().calls


def test_down_removes_everything(azure: Azure) -> None:
    """The group goes first, with all that is in it, then the name of the vault is set free."""
    azure.up()
    run = azure.down()
    assert run.commands() == ["group exists", "group show", "group delete", "keyvault list-deleted", "keyvault purge"]
    assert (run.returncode, azure.has()) == (0, set()), run.stderr


def test_a_second_down_does_nothing(azure: Azure) -> None:
    """Where nothing is left, clean-up looks and changes nothing; after a half-done one it finishes."""
    azure.up()
    (azure.state / "fail_on").write_text("keyvault purge")
    assert azure.down().returncode == 1
    assert azure.has() == {"deleted", "secret"}
    (azure.state / "fail_on").unlink()
    assert azure.down().commands() == ["group exists", "keyvault list-deleted", "keyvault purge"]
    last = azure.down()
    assert (last.returncode, last.commands()) == (0, ["group exists", "keyvault list-deleted"])


@pytest.mark.parametrize("tag", ["", "another"])
def test_down_refuses_a_group_that_up_did_not_make(azure: Azure, tag: str) -> None:
    """A group without this script's tag is never deleted, and `up` never tags one that was there before."""
    (azure.state / "group").write_text(tag + "\n")
    if tag:
        assert "group create" not in azure.up().commands()
    run = azure.down()
    assert (run.returncode, run.commands()) == (2, ["group exists", "group show"])
    assert "--group" in run.stderr


def test_up_after_down_without_purge_recovers_the_vault(azure: Azure) -> None:
    """A vault that is deleted but not purged keeps its name: it is recovered rather than created."""
    azure.up()
    (azure.state / "vault").rename(azure.state / "deleted")
    run = azure.up()
    assert run.returncode == 0, run.stderr
    assert "keyvault recover" in run.commands()
    assert "keyvault create" not in run.commands()


def test_only_a_deleted_vault_of_this_group_counts(azure: Azure) -> None:
    """Purging cannot be undone, so the query names the vault and the group it was in."""
    query = next(call for call in azure.up().calls if call[1] == "list-deleted")
    expected = "[?name=='the-vault' && contains(properties.vaultId, '/resourceGroups/rg-imds-demo/')].name"
    assert query[query.index("--query") + 1] == expected


OPTIONS = {
    "--secret": "another-secret",
    "--group": "another-group",
    "--location": "northeurope",
    "--vm": "another-vm",
    "--vm-size": "Standard_D4s_v5",
    "--admin": "admin-user",
    "--ssh-from": "203.0.113.0/24",
    "--identity": "another-identity",
    "--subscription": "My Subscription",
}


@pytest.mark.parametrize("way", ["option", "variable"])
def test_each_value_can_be_given_as_option_or_variable(azure: Azure, way: str) -> None:
    """An option and its variable do the same, and both reach the calls; an option wins over a variable."""
    arguments = [word for pair in OPTIONS.items() for word in pair]
    variables = {f"IMDS_DEMO_{name[2:].upper().replace('-', '_')}": value for name, value in OPTIONS.items()}
    run = azure.up("--dry-run", *arguments) if way == "option" else azure.up("--dry-run", **variables)
    calls = [shlex.split(line) for line in run.stdout.splitlines()]
    for value in OPTIONS.values():
        assert any(value == word or f"'{value}'" in word for call in calls for word in call), value
    for call in calls:
        assert ("--subscription" in call) is (call[1] != "ad"), call
    both = azure.up("--dry-run", "--location", "eastus", IMDS_DEMO_LOCATION="westus")
    assert ("eastus" in both.stdout, "westus" in both.stdout) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "up|down"),
        (["up", "--vault", ""], "--vault"),
        (["up"], "--vault"),
        (["down"], "--vault"),
        (["up", "--vault", "kv"], "--vault"),
        (["up", "--vault", "k" * 25], "--vault"),
        (["up", "--vault", "kv--x"], "--vault"),
        (["up", "--vault", "1kv"], "--vault"),
        (["up", "--vault", "kv-"], "--vault"),
        (["up", "--vault", "kv-x"], "--secret-file"),
        (["up", "--vault", "kv-x", "--secret-file", "/nowhere"], "--secret-file"),
        (["up", "--vault", "kv-x", "--secret-file", "-"], "--secret-file"),
        (["up", "--vault", "kv-x", "--secret-file", "FILE", "--ssh-key", "/nowhere"], "--ssh-key"),
        (["up", "--vault", "kv-x", "--secret-file", "FILE", "--ssh-key", "FILE"], "--ssh-key"),
        (["down", "--vault", "kv-x", "--group", "a'b"], "--group"),
        (["down", "--vault", "kv-x", "--group", "ends."], "--group"),
        (["down", "--vault", "kv-x", "--location", "West Europe"], "--location"),
        (["down", "--vault", "kv-x", "--vm", "a_b"], "--vm"),
        (["down", "--vault", "kv-x", "--vm-size", "big"], "--vm-size"),
        (["down", "--vault", "kv-x", "--admin", "Root User"], "--admin"),
        (["down", "--vault", "kv-x", "--identity", "x"], "--identity"),
        (["down", "--vault", "kv-x", "--secret", "a_b"], "--secret"),
        (["down", "--vault", "kv-x", "--replace", "maybe"], "--replace"),
        (["down", "--vault", "kv-x", "--ssh-from", "here"], "--ssh-from"),
        (["down", "--vault", "kv-x", "--role-wait", "08"], "--role-wait"),
        (["down", "--vault"], "--vault"),
        (["down", "--vaults", "kv-x"], "--vaults"),
    ],
)
def test_a_wrong_value_names_its_option(azure: Azure, arguments: list[str], names: str) -> None:
    """The caller's mistakes end with code 2 before anything is called, and the message begins with the option."""
    run = azure.run(*(str(azure.secret_file) if word == "FILE" else word for word in arguments))
    assert (run.returncode, run.calls) == (2, [])
    assert run.stderr.startswith(f"deploy.sh: {names}: ")


def test_a_missing_az_is_said(azure: Azure) -> None:
    """Without the Azure CLI the message says so, and a dry run works all the same."""
    Path(azure.environment["PATH"].split(os.pathsep)[0], "az").unlink()
    tools = azure.environment["PATH"].split(os.pathsep)[0]
    bare = {"PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    assert "az: the Azure CLI is not on PATH" in azure.up(**bare).stderr
    assert azure.up("--dry-run", **bare).returncode == 0


def test_help_names_every_option(azure: Azure) -> None:
    """`--help` lists each option the script takes, with its default."""
    shown = azure.run("--help")
    assert shown.returncode == 0
    for option in (*OPTIONS, "--vault", "--secret-file", "--ssh-key", "--replace", "--role-wait", "--dry-run"):
        assert f"\n{option} " in shown.stdout, option


def documented_blocks() -> list[str]:
    """The shell blocks of README.md."""
    blocks = (AZURE / "README.md").read_text().split("```")[1::2]
    return [block.removeprefix("sh\n") for block in blocks if block.startswith("sh\n")]


def test_the_readme_runs_as_it_stands(azure: Azure, tmp_path: Path) -> None:
    """All shell blocks of README.md, one after the other, work and leave what the text says: a vault to purge."""
    tree = tmp_path / "tree"
    shutil.copytree(AZURE, tree / "samples" / "azure")
    for name in ("ssh", "rsync"):
        (tmp_path / "tools" / name).write_text(
            '#!/bin/sh\necho "$0" "$@" | tr "\\n" " " >>"$AZURE_STATE/pushes"; echo >>"$AZURE_STATE/pushes"\n'
        )
        (tmp_path / "tools" / name).chmod(0o755)
    script = "set -euo pipefail\n" + "\n".join(documented_blocks())
    given = {"env": azure.environment, "cwd": tree, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(["bash", "-c", script], check=False, **given)
    assert done.returncode == 0, done.stderr
    assert azure.has() == {"deleted", "secret"}
    assert {path.name for path in tree.iterdir()} == {"samples"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == {".ssh"}, "a secret is still there"
    commands = [line for line in (azure.state / "pushes").read_text().splitlines() if "exec env" in line]
    assert ["-m venv" in line for line in commands] == [True, False, False, False]
    assert all("azureuser@203.0.113.9" in line for line in commands)
    assert "'--vault-url' 'https://kv.vault.azure.net/' '--secret' 'demo-secret'" in commands[1]
    assert commands[2].rstrip().endswith("'--client-id' 'identity-clientId'")
    for sample in {word for line in commands for word in re.findall(r"samples/\w+\.py", line)}:
        assert (REPOSITORY / sample).exists(), sample


def documented_calls() -> list[str]:
    """The az lines of README.md's shell blocks, continued lines joined."""
    lines = "\n".join(documented_blocks()).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("az ")]


def known_to_the_azure_cli(call: list[str]) -> list[str]:
    """What the real Azure CLI would not take of a call, by the recording of its parser."""
    command = command_of(call)
    if command not in SURFACE:
        return [f"{command}: not recorded"]
    declared, used = SURFACE[command], {word.split("=")[0] for word in call if word.startswith("-")}
    wrong = [f"{command} {option}: unknown" for option in used - set(declared["options"])]
    wrong += [f"{command} {names[0]}: missing" for names in declared["required"] if not used & set(names)]
    for option, value in itertools.pairwise(call):
        if option in declared["choices"] and value.lower() not in {c.lower() for c in declared["choices"][option]}:
            wrong.append(f"{command} {option} {value}: no choice")
    return wrong


def test_every_call_is_one_that_the_azure_cli_takes(azure: Azure) -> None:
    """Commands, options, required options and choices are those that the real CLI's parser declares."""
    calls = azure.up("--subscription", "x", "--replace", "yes").calls + azure.down("--subscription", "x").calls
    (azure.state / "account").write_text("servicePrincipal\n")
    (azure.state / "deleted").touch()
    calls += azure.up("--subscription", "x").calls
    assert {"keyvault recover", "keyvault purge", "ad sp show", "vm create"} <= {command_of(call) for call in calls}
    documented = [shlex.split(line, comments=True)[1:] for line in documented_calls()]
    assert documented
    assert [wrong for call in calls + documented for wrong in known_to_the_azure_cli(call)] == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ad signed-in-user show --subscription x", "--subscription: unknown"),
        ("vm make --name x", "vm make: not recorded"),
        ("group create --name x", "missing"),
        ("vm create -g x -n y --nsg-rule HTTP", "no choice"),
    ],
)
def test_a_call_that_the_azure_cli_refuses_is_noticed(line: str, complaint: str) -> None:
    """The check above sees unknown commands, unknown and missing options, and values that are no choice."""
    assert complaint in " ".join(known_to_the_azure_cli(line.split()))
