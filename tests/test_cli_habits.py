"""What people expect of a command: help, version, options anywhere, the right word for a misspelt one, completion."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import azure_imds_credential
from azure_imds_credential._cli import main
from azure_imds_credential._cli.parser import make_parser
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, faults, forget_tokens

VAULT = "https://vault.azure.net/.default"
COMMANDS = list(make_parser().commands)


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *argv: Run(main(argv), *capsys.readouterr())


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


# Help and version


def test_no_arguments_are_help(run: Callable[..., Run]) -> None:
    """Without arguments the help is printed, as with `help`, `-h` and `--help`; that is no error."""
    assert run() == run("help") == run("-h") == run("--help") == run("help", "help") == run("help", "--json")
    assert (run().code, run().err) == (0, "")
    assert run().out.startswith("usage: azure-imds ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Callable[..., Run], command: str) -> None:
    """`help CMD`, `CMD --help` and `--help CMD` are the same."""
    assert run("help", command) == run(command, "--help") == run("--help", command) == run("help", "-v", command)
    assert run("help", command).out.startswith(f"usage: azure-imds {command} ")


@pytest.mark.parametrize("argv", [["-V"], ["--version"], ["-V", "whoami"], ["-v", "-V"]], ids=" ".join)
def test_version(run: Callable[..., Run], argv: list[str]) -> None:
    """The version is told wherever it is asked for before a command."""
    assert run(*argv) == (0, f"{azure_imds_credential.__version__}\n", "")


# Options anywhere


@pytest.mark.parametrize(
    "argv",
    [
        ["whoami", "--json", "--client-id", "ID", "--timeout", "5"],
        ["--json", "--client-id", "ID", "--timeout", "5", "whoami"],
        ["--client-id", "ID", "whoami", "--timeout=5", "--json"],
        ["--client-id=ID", "--timeout=5", "--json", "whoami"],
    ],
    ids=" ".join,
)
def test_options_stand_on_either_side(run: Callable[..., Run], imds: ImdsEmulator, argv: list[str]) -> None:
    """Options may stand before or after the command, with their values."""
    ran = run(*[each.replace("ID", SystemAssigned().client_id) for each in argv])
    assert json.loads(ran.out)["client_id"] == SystemAssigned().client_id
    imds.assert_requests(1, client_id=SystemAssigned().client_id)


def test_options_that_take_values_agree() -> None:
    """An option takes a value in each command or in none: else its value before a command could be taken for one."""
    kinds: dict[str, set[bool]] = {}
    for command in make_parser().commands.values():
        for name, action in command.options.items():
            kinds.setdefault(name, set()).add(action.nargs is None)
    assert [name for name, found in kinds.items() if len(found) > 1] == []


def test_json_behind_two_dashes_is_no_option(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """Behind `--` stands no option: `--json` is a scope there, and the error is told as text."""
    ran = run("token", "--", "--json")
    assert (ran.code, ran.out) == (6, "")
    assert "No token for --json" in ran.err


# The right word


@pytest.mark.parametrize(
    ("argv", "said", "usage"),
    [
        (["tokne", VAULT], "there is no command 'tokne'; did you mean token?", "azure-imds "),
        (["hlep"], "there is no command 'hlep'; did you mean help?", "azure-imds "),
        (["help", "docter"], "there is no command 'docter'; did you mean doctor?", "azure-imds "),
        (["xyzzy"], "there is no command 'xyzzy'\n", "azure-imds "),
        (["token", VAULT, "--shwo-token"], "--shwo-token; did you mean --show-token?", "azure-imds token "),
        (["whoami", "--clientid", "x"], "--clientid x; did you mean --client-id?", "azure-imds whoami "),
        (["--clientid=x", "whoami"], "--clientid=x; did you mean --client-id?", "azure-imds whoami "),
        (["wait", "--timout=5"], "--timout=5; did you mean --timeout?", "azure-imds wait "),
        (["scan", "x", "--jsno"], "--jsno; did you mean --json?", "azure-imds scan "),
        (["--verison"], "--verison; did you mean --version?", "azure-imds "),
        (["--hlep"], "--hlep; did you mean --help?", "azure-imds "),
        (["--jsno", "--client-id", "x"], "--jsno; did you mean --json?", "azure-imds "),
        (["--", "whoami"], "a command must stand before --\n", "azure-imds "),
        (["--"], "required: COMMAND\n", "azure-imds "),
        (["wait", "--xyzzy"], "unrecognized arguments: --xyzzy\n", "azure-imds wait "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misspelt_words(run: Callable[..., Run], argv: list[str], said: str, usage: str) -> None:
    """A misspelt command or option is told with the nearest one, if any, and with the usage of its own command."""
    ran = run(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert f"\nusage: {usage}" in ran.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["token", VAULT, "--raw", "--json"], "--raw cannot be combined with --json"),
        (["token", VAULT, "--raw", "--show-token"], "--raw cannot be combined with --show-token"),
        (["token", "--for", "kubectl", "--raw"], "--for kubectl cannot be combined with --raw"),
        (["token", VAULT, "--force"], "--force has no effect without --raw or --for"),
        (["token", "--for", "helm"], "argument --for: invalid choice: 'helm'"),
        (["whoami", "--token", "-", "--client-id", "x"], "--token cannot be combined with --client-id"),
        (["whoami", "--token", "-", "--shared-cache"], "--token cannot be combined with --shared-cache"),
        (["whoami", "--token", "-", "--scope", VAULT], "--token cannot be combined with --scope"),
        (["git-credential", "get", "--json"], "cannot be combined with --json"),
        (["completion", "bash", "--json"], "cannot be combined with --json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_refused(run: Callable[..., Run], argv: list[str], said: str) -> None:
    """An option that would have no effect beside another is refused, with the name of both."""
    ran = run(*argv)
    assert ran.code == 2
    assert said in ran.err


# More and less of it


def test_verbose_logs_to_standard_error(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`-v` prints what the library logs on standard error, without a token, and leaves logging as it was."""
    before = logging.getLogger().handlers[:], logging.getLogger("azure_imds_credential").level
    ran, quiet = run("-v", "whoami", "--json"), run("whoami", "--json")
    assert json.loads(ran.out)["client_id"] == SystemAssigned().client_id
    assert "azure-imds: info: " in ran.err
    assert all(line.startswith("azure-imds: ") for line in ran.err.splitlines())
    assert not [token for token in imds.tokens if token in ran.err]
    assert quiet.err == ""
    assert (logging.getLogger().handlers[:], logging.getLogger("azure_imds_credential").level) == before


def test_quiet_keeps_errors(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`-q` leaves out progress, and keeps results and errors."""
    imds.script(faults.status(500))
    assert run("wait", "-q", "--json").err == ""
    imds.remove(SystemAssigned())
    forget_tokens()
    ran = run("whoami", "-q")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("azure-imds: No token for ")


# Completion


def completed(words: list[str], run: Callable[..., Run]) -> list[str]:
    """What bash offers for the last of the words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash on this machine")
    script = run("completion", "bash").out + (
        '\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_azure_imds; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script, "bash", *words], capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["azure-imds", ""], set(COMMANDS)),
        (["azure-imds", "wh"], {"whoami"}),
        (["azure-imds", "token", "--sh"], {"--show-token", "--shared-cache"}),
        (["azure-imds", "token", "--for", ""], {"kubectl"}),
        (["azure-imds", "completion", ""], {"bash", "fish", "zsh"}),
        (["azure-imds", "emulate", "--profile", "a"], {"aci", "aks"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(run: Callable[..., Run], words: list[str], offered: set[str]) -> None:
    """With the script of `completion bash`, bash offers commands, options and the values of options."""
    assert set(completed(words, run)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(run: Callable[..., Run], shell: str) -> None:
    """The script for each shell names every command, and the shell itself, where there is one, can read it."""
    script = run("completion", shell)
    assert (script.code, script.err) == (0, "")
    assert [command for command in COMMANDS if command not in script.out] == []
    found = shutil.which(shell)
    if found is not None:
        subprocess.run([found, "-n"], input=script.out, text=True, timeout=600, check=True)


def test_completion_needs_its_extra(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shtab the extra is named."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = run("completion", "bash")
    assert (ran.code, ran.out) == (2, "")
    assert "needs the extra [completion]" in ran.err


def test_each_command_explains_itself() -> None:
    """Every command and every option has a line of help."""
    for name, command in make_parser().commands.items():
        assert command.description, name
        actions: list[Any] = list(command.options.values())
        assert not [action.option_strings for action in actions if not action.help], name
