"""`azure-imds`, in process against the emulator, and once as a process."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from in_memory import needs_shared_memory

from azure_imds_credential import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsCredential,
    ImdsRequestError,
    ImdsServiceError,
    ImdsThrottledError,
    ImdsUnavailableError,
)
from azure_imds_credential._cli import commands, main
from azure_imds_credential._cli.commands import Clocks
from azure_imds_credential._cli.output import EXIT_CODES, FAULT, FOUND, INTERRUPTED, OUTPUT, READER_GONE, USAGE
from azure_imds_credential._cli.output import VAULT as VAULT_REFUSED
from azure_imds_credential.exceptions import ImdsError
from azure_imds_credential.testing import (
    ImdsEmulator,
    SystemAssigned,
    UserAssigned,
    VaultDouble,
    faults,
    forget_tokens,
)

VAULT = "https://vault.azure.net/.default"
SHARING = "--shared-cache"
UNASSIGNED = "99999999-9999-9999-9999-999999999999"
USER = UserAssigned("app")
SYSTEM = SystemAssigned()
MACHINE_ID = "/subscriptions/22222222-2222-2222-2222-222222222222/resourcegroups/imds-emulator/providers/Microsoft.Compute/virtualMachines/vm-1"  # noqa: E501


class Run(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*argv: str) -> Run:
        try:
            code = main(argv)
        except SystemExit as end:  # argparse ends the process for wrong arguments
            code = int(end.code or 0)
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[VaultDouble]:
    # A name of its own: Key Vault's client remembers the challenges of a host for the whole process.
    with VaultDouble(f"cli-{time.time_ns() % 10**9}", {"greeting": "hello"}) as vault:
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        yield vault


# The scenario


def normalized(text: str) -> str:
    """Return output with ports and times replaced, which differ from run to run."""
    text = re.sub(r"http://127\.0\.0\.1:\d+", "ENDPOINT", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", "INSTANT", text)


def described(identity: SystemAssigned | UserAssigned) -> str:
    return (
        f"client ID    {identity.client_id}\n"
        f"object ID    {identity.object_id}\n"
        f"tenant ID    11111111-1111-1111-1111-111111111111\n"
        f"resource ID  {identity.resource_id or MACHINE_ID}\n"
        f"audience     https://vault.azure.net\n"
        f"issued on    INSTANT\n"
        f"expires on   INSTANT\n"
    )


@pytest.mark.parametrize(
    ("has", "selector", "identity"),
    [
        pytest.param([SYSTEM], (), SYSTEM, id="system-assigned"),
        pytest.param([SYSTEM, USER], ("--client-id", USER.client_id), USER, id="client-id"),
        pytest.param([SYSTEM, USER], ("--object-id", USER.object_id), USER, id="object-id"),
        pytest.param([SYSTEM, USER], ("--resource-id", USER.resource_id), USER, id="resource-id"),
    ],
)
def test_scenario_with_identity(
    run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble, has: Any, selector: Any, identity: Any
) -> None:
    """With an identity, system-assigned or named in any way, the commands name it and read the secret."""
    for one in imds.identities:
        imds.remove(one)
    for one in has:
        imds.assign(one)
    who = run("whoami", "--scope", VAULT, *selector)
    assert (who.code, normalized(who.out), who.err) == (0, described(identity), "")
    token = run("token", VAULT, *selector)
    assert token.code == 0
    assert normalized(token.out).splitlines()[0].split(maxsplit=2) == ["expires", "on", "INSTANT"]
    read = run("secret", vault.url, "greeting", *selector)
    assert (read.code, read.out, read.err) == (0, "hello\n", "")


def test_scenario_without_identity(run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble) -> None:
    """Without an identity the commands say so, and how to assign one; the vault gets no token."""
    imds.remove(SYSTEM)
    said = (
        "azure-imds: No token for https://vault.azure.net, asked of ENDPOINT as the machine's default identity: "
        "400 invalid_request: Identity not found. Assign one: `az vm identity assign -g GROUP -n VM`. "
        "A new assignment may take minutes to arrive (`azure-imds wait` waits for it).\n"
    )
    for command in (["token", VAULT], ["whoami", "--scope", VAULT], ["secret", vault.url, "greeting"]):
        ended = run(*command)
        assert (ended.code, ended.out, normalized(ended.err)) == (4, "", said)


def test_scenario_with_other_source(
    run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the environment names another source, the commands say which and why, and send nothing."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("IDENTITY_HEADER", "secret")
    ended = run("token", VAULT)
    said = (
        "azure-imds: No token for https://vault.azure.net: IDENTITY_ENDPOINT, IDENTITY_HEADER says that managed "
        "identity tokens come from App Service here, not from IMDS. Nothing was sent. Use "
        "azure.identity.ManagedIdentityCredential there, or unset the variables.\n"
    )
    assert (ended.code, ended.out, ended.err) == (3, "", said)
    imds.assert_requests(0)


# Results


def test_tokens_are_hidden(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """No command prints a token, in text or as JSON, except `token --show-token`."""
    asking = (["token", VAULT], ["whoami"], ["wait"], ["doctor"])
    silent = [run(*command, *form) for command in asking for form in ([], ["--json"])]
    shown = run("token", VAULT, "--show-token")
    shown_json = run("token", VAULT, "--show-token", "--json")
    assert imds.tokens
    assert not [ran for ran in silent if any(token in ran.out + ran.err for token in imds.tokens)]
    assert any(token in shown.out for token in imds.tokens)
    assert shown_json.facts["token"] in imds.tokens


def test_token_shows_expiry_and_claims(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`token` tells when the token expires and is refreshed, and what it claims."""
    facts = run("token", VAULT, "--json").facts
    assert 86000 < facts["expires_on"] - time.time() < 86400
    assert time.time() < facts["refresh_on"] < facts["expires_on"]
    assert (facts["claims"]["aud"], facts["claims"]["oid"]) == ("https://vault.azure.net", SYSTEM.object_id)


def test_force_refresh(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`token --force-refresh` sends bypass_cache."""
    assert run("token", VAULT, "--force-refresh").code == 0
    imds.assert_requests(1, bypass_cache="true")


def test_endpoint_option(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`--endpoint` wins over the variable."""
    with ImdsEmulator([USER]) as other:
        facts = run("whoami", "--json", "--endpoint", other.endpoint).facts
    assert facts["client_id"] == USER.client_id
    imds.assert_requests(0)


ASKING = {
    "token": [VAULT],
    "whoami": [],
    "wait": [],
    "doctor": [],
    "secret": ["VAULT", "greeting"],
    "git-credential": ["get"],
}


@pytest.mark.parametrize("command", ASKING)
def test_require_system_assigned(
    run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With `--require-system-assigned` the token of a user-assigned identity, which IMDS chose, is refused."""
    imds.remove(SYSTEM)
    imds.assign(USER)
    asked = b"protocol=https\nhost=dev.azure.com\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(asked)))
    arguments = [vault.url if each == "VAULT" else each for each in ASKING[command]]
    ended = run(command, *arguments, "--require-system-assigned")
    assert ended.code == EXIT_CODES[IdentityMismatchError]
    assert "leave --require-system-assigned out" in " ".join((ended.out + ended.err).split())
    assert not [token for token in imds.tokens if token in ended.out + ended.err]
    imds.assert_requests(1)


@pytest.mark.parametrize("argv", [["token", VAULT], ["whoami"], ["wait"], ["doctor"]], ids=lambda argv: argv[0])
def test_system_assigned(run: Callable[..., Run], imds: ImdsEmulator, argv: list[str]) -> None:
    """`--require-system-assigned` takes the token of the system-assigned identity, on either side of the command."""
    imds.assign(USER)
    assert run(*argv, "--require-system-assigned").code == 0
    assert run("--require-system-assigned", *argv).code == 0


# Errors

MISMATCH = faults.members(resource="https://else.where")
ENDINGS: list[tuple[str, dict[str, Any], type[ImdsError]]] = [
    ("no answer", {"down": True}, ImdsUnavailableError),
    ("no identity", {"argv": ["--client-id", UNASSIGNED]}, IdentityUnavailableError),
    ("other resource", {"faults": [MISMATCH]}, IdentityMismatchError),
    ("refused", {"scope": "nonsense/.default"}, ImdsRequestError),
    ("throttled", {"faults": [faults.throttled(retry_after=90)]}, ImdsThrottledError),
    ("service error", {"faults": [faults.status(503, retry_after=90)]}, ImdsServiceError),
]


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("what", "error"), [ending[1:] for ending in ENDINGS], ids=[ending[0] for ending in ENDINGS])
def test_error_exit_codes(
    run: Callable[..., Run], imds: ImdsEmulator, what: dict[str, Any], error: type[ImdsError], as_json: bool
) -> None:
    """Every class of error has an exit code of its own, is told on standard error, and as JSON on standard output."""
    if "faults" in what:
        imds.script(*what["faults"])
    argv = ["token", what.get("scope", VAULT), "--timeout", "5", *what.get("argv", []), *["--json"] * as_json]
    if "down" in what:
        with imds.down():
            ended = run(*argv)
    else:
        ended = run(*argv)
    assert ended.code == EXIT_CODES[error]
    assert ended.err.startswith("azure-imds: No token for ")
    if as_json:
        assert (ended.facts["error"], ended.facts["hint"] in ended.err) == (error.__name__, True)
    else:
        assert ended.out == ""


def test_exit_codes_differ() -> None:
    """Every class of error that can be raised is in the table, and no two share a code with each other or the rest."""
    classes = {cls for cls in ImdsError.__subclasses__() if cls.__module__ == ImdsError.__module__}
    assert set(EXIT_CODES) == classes
    codes = [*EXIT_CODES.values(), 0, FOUND, USAGE, VAULT_REFUSED, OUTPUT, FAULT, INTERRUPTED, READER_GONE]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-v"], "required: COMMAND"),
        (["token"], "required: SCOPE"),
        (
            ["token", VAULT, "--client-id", "a", "--object-id", "b"],
            "one of --client-id, --object-id and --resource-id, got --client-id, --object-id\n",
        ),
        (["token", VAULT, "--client-id", ""], "azure-imds: --client-id must name an identity"),
        (
            ["whoami", "--require-system-assigned", "--object-id", "b"],
            "azure-imds: --require-system-assigned and --object-id exclude each other",
        ),
        (["token", "two scopes"], "names no resource"),
        (["whoami", "--endpoint", "localhost"], "azure-imds: --endpoint must be a base URL"),
        (["doctor", "--endpoint", "localhost"], "azure-imds: --endpoint must be a base URL"),
        (["wait", "--timeout", "-1"], "argument --timeout: must be a number of seconds above 0, got '-1'"),
        (["scan", "/no/such/recording"], "nothing to scan"),
    ],
)
def test_wrong_arguments(run: Callable[..., Run], argv: list[str], said: str) -> None:
    """Wrong arguments are told in a sentence, without a traceback."""
    ended = run(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_interrupt(run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command with 130 and without a traceback."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("azure_imds_credential.ImdsCredential.get_token_info", interrupt)
    assert run("token", VAULT) == (130, "", "")


@pytest.mark.parametrize("command", ["token", "doctor"])
@pytest.mark.parametrize(
    ("has", "named", "options"),
    [
        ([], [], ["`azure-imds wait`"]),
        ([USER], ["--object-id", UNASSIGNED], ["--object-id", "`azure-imds wait`"]),
        ([USER, UserAssigned("b")], [], ["--client-id, --object-id or --resource-id"]),
    ],
)
def test_hints_name_options(
    run: Callable[..., Run], imds: ImdsEmulator, command: str, has: Any, named: list[str], options: list[str]
) -> None:
    """A hint names the options of the command, not the arguments of the constructor, as text and as JSON."""
    imds.remove(SYSTEM)
    for one in has:
        imds.assign(one)
    argv = [command, *[VAULT] * (command == "token"), *named]
    plain, as_json = run(*argv), run(*argv, "--json")
    facts = as_json.facts if command == "token" else as_json.facts["error"]
    problems = plain.err if command == "token" else plain.out
    assert plain.code == EXIT_CODES[IdentityUnavailableError]
    for told in (problems, facts["hint"], facts["message"]):
        assert [option for option in options if option not in told] == []
        assert "wait_for_identity" not in told
    assert not re.search("(client|object|resource)_id", facts["hint"])


@pytest.mark.parametrize("command", ["token", "whoami", "wait", "doctor", "secret"])
def test_throttling_hint(run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble, command: str) -> None:
    """`--shared-cache` is said with the commands that take it, whichever command was typed, and with its argument."""
    takers = [name for name in ("token", "whoami", "wait", "doctor", "secret") if SHARING in run(name, "--help").out]
    first, *others = [f"`{name}`" for name in takers]
    said = f"shared_cache=True, or {SHARING} of `azure-imds {first[1:]}, {', '.join(others[:-1])} and {others[-1]}."
    imds.script(faults.throttled(retry_after=90), seconds=600)
    arguments = {"token": [VAULT], "wait": ["--timeout", "1"], "secret": [vault.url, "greeting"]}.get(command, [])
    plain, as_json = run(command, *arguments), run(command, *arguments, "--json")
    facts = as_json.facts["error"] if command == "doctor" else as_json.facts
    assert plain.code == EXIT_CODES[ImdsThrottledError]
    for told in (plain.out + plain.err, facts["hint"], facts["message"]):
        assert said in " ".join(told.split())


# wait


class FakeClocks:
    """A clock that only sleeping moves, and that tells what happened in each pause."""

    def __init__(self, *in_pauses: Callable[[], object]) -> None:
        self.time, self.pauses, self.in_pauses = 0.0, list[float](), list(in_pauses)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.pauses.append(seconds)
        if self.in_pauses:
            self.in_pauses.pop(0)()

    def clocks(self) -> Clocks:
        return Clocks(now=lambda: self.time, sleep=self.sleep, random=lambda: 0.5)


def waiting(**changes: Any) -> argparse.Namespace:
    usual = dict.fromkeys(("client_id", "object_id", "resource_id", "endpoint"))
    return argparse.Namespace(
        **{**usual, "scope": VAULT, "timeout": 60.0, "quiet": False, "require_system_assigned": False, **changes}
    )


def test_wait_until_identity(imds: ImdsEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """`wait` asks every 5 s, once each time, tells its progress, and ends when there is a token."""
    imds.remove(SYSTEM)
    fake = FakeClocks(lambda: None, lambda: None, lambda: imds.assign(SYSTEM))
    result = commands.wait(waiting(), fake.clocks())
    assert (result.code, result.facts["attempts"], result.facts["elapsed"]) == (0, 4, 15.0)
    assert fake.pauses == [5.0] * 3
    progress = capsys.readouterr().err.splitlines()
    assert progress == [
        "azure-imds: waiting: IMDS is asked",
        "azure-imds: waiting: 400 invalid_request: Identity not found",
    ]
    imds.assert_requests(4)


def test_wait_tells_each_change_once(imds: ImdsEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no terminal reads, `wait` prints a line when the reason changes, and nothing with `--quiet`."""
    imds.script(*[faults.status(500)] * 2, *[faults.throttled()] * 2)
    commands.wait(waiting(), FakeClocks().clocks())
    reasons = [line.removeprefix("azure-imds: waiting: ")[:3] for line in capsys.readouterr().err.splitlines()]
    assert reasons == ["IMD", "500", "429"]
    imds.script(faults.status(500))
    commands.wait(waiting(quiet=True), FakeClocks().clocks())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", [faults.status(410), faults.throttled(), faults.wireserver(), faults.status(500)])
def test_wait_outlasts_transient_errors(imds: ImdsEmulator, fault: Any) -> None:
    """`wait` goes on through throttling, restarts and errors of the service."""
    imds.script(fault, fault)
    assert commands.wait(waiting(), FakeClocks().clocks()).facts["attempts"] == 3


def test_wait_outlasts_absence(imds: ImdsEmulator) -> None:
    """`wait` asks again where nothing answered: for it, absence is not remembered."""
    with imds.down():
        fake = FakeClocks()
        with pytest.raises(ImdsUnavailableError):
            commands.wait(waiting(timeout=12.0), fake.clocks())
    assert len(fake.pauses) == 2
    assert commands.wait(waiting(), FakeClocks().clocks()).facts["attempts"] == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (MISMATCH, IdentityMismatchError),
        (faults.status(403, {"error": "a", "error_description": "b"}), ImdsRequestError),
    ],
)
def test_wait_ends_at_lasting_errors(imds: ImdsEmulator, fault: Any, error: type[ImdsError]) -> None:
    """`wait` ends at once at an error that waiting does not end."""
    imds.script(fault)
    fake = FakeClocks()
    with pytest.raises(error):
        commands.wait(waiting(), fake.clocks())
    assert fake.pauses == []


def test_wait_ends_at_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wait` ends at once where variables name another token source."""
    monkeypatch.setenv("MSI_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MSI_SECRET", "x")
    fake = FakeClocks()
    with pytest.raises(ImdsUnavailableError, match="Machine Learning"):
        commands.wait(waiting(), fake.clocks())
    assert fake.pauses == []


def test_wait_gives_up(imds: ImdsEmulator) -> None:
    """`wait` ends with the last error when its time is up, not later."""
    imds.remove(SYSTEM)
    fake = FakeClocks()
    with pytest.raises(IdentityUnavailableError):
        commands.wait(waiting(timeout=11.0), fake.clocks())
    assert fake.time <= 11.0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["token", VAULT, "--timeout", "abc"], "must be a number of seconds above 0, got 'abc'"),
        (["token"], "required: SCOPE"),
        (["nonsense"], "there is no command 'nonsense'"),
        (["whoami", "--client", "x"], "unrecognized arguments: --client x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage_errors(run: Callable[..., Run], argv: list[str], said: str) -> None:
    """Exit code 2, a sentence and the usage on standard error, and with `--json` one object on standard output."""
    plain, as_json = run(*argv), run(*argv, "--json")
    assert (plain.code, as_json.code, plain.out) == (2, 2, "")
    assert plain.err == as_json.err
    assert said in plain.err
    assert "usage: azure-imds" in plain.err
    assert said in as_json.facts["message"]


# secret, scan


def test_secret_as_json(run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble) -> None:
    """`secret --json` tells name, identifier and value."""
    facts = run("secret", vault.url, "greeting", "--json").facts
    assert (facts["name"], facts["value"]) == ("greeting", "hello")
    assert facts["id"].startswith(f"{vault.url}/secrets/greeting/")


def test_missing_secret(run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble) -> None:
    """A secret that the vault does not have is told in the words of the vault, with an exit code of its own."""
    ended = run("secret", vault.url, "missing")
    assert (ended.code, ended.out) == (9, "")
    assert "SecretNotFound" in ended.err


@pytest.mark.parametrize("url", ["", "myvault", "http://127.0.0.1:9", "https://", "https://[1"])
def test_invalid_vault_url(run: Callable[..., Run], imds: ImdsEmulator, url: str) -> None:
    """A URL that is no vault's is a wrong argument: exit code 2, and no token is sent to it."""
    ended = run("secret", url, "greeting")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("azure-imds: VAULT_URL must be the URL of a Key Vault, such as https://")
    assert ended.err.endswith(f"got {url!r}\n")
    imds.assert_requests(0)


class RefusingVault(VaultDouble):
    """A vault that answers every token with one refusal."""

    refusal: tuple[int, Any] = (403, {})

    def _found(self, request: Any) -> tuple[int, dict[str, Any]]:
        found = super()._found(request)
        return found if found[0] == 401 else self.refusal


def refused(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((403, refused("Forbidden", "Caller is not authorized.")), "403 Forbidden: Caller is not authorized. Give the"),
        ((404, refused("SecretNotFound", "there is none")), "404 SecretNotFound: there is none"),
        ((499, refused("Odd", "no reason phrase")), "499 Odd: no reason phrase"),  # http.server knows no phrase for it
        ((499, {"told": "otherwise"}), '499 {"told":"otherwise"}'),
        ((400, refused("BadParameter", "the api-version '9.9' is not known")), "400 BadParameter: the api-version"),
    ],
    ids=["forbidden", "missing", "no-phrase", "no-error-object", "api-version"],
)
def test_vault_refusal(
    run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, refusal: Any, said: str
) -> None:
    """Status, code and message of the vault are in the error, with or without a reason phrase; a 403 names the role."""
    with RefusingVault(f"refusing-{time.time_ns() % 10**9}", {}) as vault:
        vault.refusal = refusal
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        ended = run("secret", vault.url, "greeting")
    assert (ended.code, ended.out) == (VAULT_REFUSED, "")
    assert ended.err.startswith(f"azure-imds: the vault answered {said}")
    assert ("Key Vault Secrets User" in ended.err) is (refusal[0] == 403)


def test_vault_challenge(run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose challenge does not match its name gets no token; the message names the option that allows it."""
    vault = VaultDouble("emulated", {"greeting": "hello"})
    vault.host = f"vault-{time.time_ns() % 10**9}.test"
    vault.url = f"https://{vault.host}"
    with vault:
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        ended = run("secret", vault.url, "greeting")
        trusting = run("secret", vault.url, "greeting", "--no-verify-challenge-resource")
    assert (ended.code, ended.out) == (VAULT_REFUSED, "")
    assert "--no-verify-challenge-resource" in ended.err
    assert (trusting.code, trusting.out) == (0, "hello\n")


def test_api_version(run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble) -> None:
    """`secret --api-version` asks with that version; without it the client's own is used."""
    assert run("secret", vault.url, "greeting", "--api-version", "7.0").code == 0
    assert "api-version=7.0 -> 200" in vault.requests[-1]
    assert run("secret", vault.url, "greeting").code == 0
    assert "api-version=7.0" not in vault.requests[-1]


@pytest.mark.parametrize(
    ("module", "argv", "extra"),
    [
        ("azure.keyvault.secrets", ["secret", "https://x.vault.azure.net", "y"], "keyvault"),
        ("azure_imds_credential.testing._recording.scan", ["scan", "."], "testing"),
    ],
)
def test_missing_extra(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, module: str, argv: list[str], extra: str
) -> None:
    """A command that needs an extra names it."""
    monkeypatch.setitem(sys.modules, module, None)
    ended = run(*argv)
    assert ended.code == 2
    assert f"needs the extra [{extra}]" in ended.err


def test_scan_finds_live_tokens(run: Callable[..., Run], imds: ImdsEmulator, tmp_path: Path) -> None:
    """`scan` ends with 1 where it finds a live-looking token, and does not print it."""
    token = imds.issue_token("https://vault.azure.net")
    recording = tmp_path / "recording.yaml"
    recording.write_text(f"access_token: {token}\n")
    found = run("scan", str(tmp_path))
    assert (found.code, found.err) == (1, "")
    assert f"{recording}:1: token" in found.out
    assert token not in found.out
    assert run("scan", str(tmp_path), "--json").facts["findings"][0]["what"] == "token"


def test_scan_passes_clean_files(run: Callable[..., Run], tmp_path: Path) -> None:
    """`scan` ends with 0 where it finds nothing."""
    (tmp_path / "recording.yaml").write_text("access_token: scrubbed\n")
    assert run("scan", str(tmp_path)) == (0, "Nothing that looks live.\n", "")


def test_scan_unreadable_file(run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened ends the scan with a message and exit code 2."""
    (tmp_path / "recording.yaml").write_text("a: b")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    ended = run("scan", str(tmp_path))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("azure-imds: ")
    assert "recording.yaml" in ended.err


# forget


@needs_shared_memory
def test_forget(run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forget` removes what processes share, says how many tokens that were, and the next process asks IMDS again."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        ImdsCredential(shared_cache=True).get_token(VAULT)
        forget_tokens()  # of this process, as in another one
        ImdsCredential(shared_cache=True).get_token(VAULT)
        imds.assert_requests(1)
        assert run("forget", "--json").facts["forgotten"] >= 1  # there may be more: of this user, not of this test
        forget_tokens()
        ImdsCredential(shared_cache=True).get_token(VAULT)
        imds.assert_requests(2)
        assert re.fullmatch(r"[1-9]\d* shared tokens? of this user removed.\n", run("forget").out)


@needs_shared_memory
@pytest.mark.parametrize(
    "argv",
    [["token", VAULT], ["whoami", "--scope", VAULT], ["secret", "VAULT_URL", "greeting"]],
    ids=lambda argv: argv[0],
)
def test_shared_cache(
    run: Callable[..., Run], imds: ImdsEmulator, vault: VaultDouble, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    """With `--shared-cache` the next command, a process of its own, does not ask IMDS again; without it does."""
    argv = [vault.url if each == "VAULT_URL" else each for each in argv]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        for _ in range(3):
            forget_tokens()  # of this process, as in another one
            assert run(*argv, "--shared-cache").code == 0
        imds.assert_requests(1)
        forget_tokens()
        assert run(*argv).code == 0
        imds.assert_requests(2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is shared elsewhere")
def test_shared_cache_extra(run: Callable[..., Run], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--shared-cache` without filelock is told in a sentence with the extra to install, in terms of the option."""
    monkeypatch.setitem(sys.modules, "filelock", None)  # as good as not installed
    ended = run("token", VAULT, "--shared-cache")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("azure-imds: --shared-cache needs the extra [shared] of azure-imds-credential: ")


# doctor


def test_doctor_results(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`doctor` ends with 0 where the identity can be used, whatever else is unusual; JSON has all findings."""
    healthy = run("doctor", "--json", "--scope", VAULT)
    assert (healthy.code, healthy.facts["usable"], healthy.facts["error"]) == (0, True, None)
    assert healthy.facts["identity"]["client_id"] == SYSTEM.client_id
    assert {"check", "level", "says", "next"} == set(healthy.facts["findings"][0])
    assert run("doctor").out.endswith("The identity can be used.\n")


def test_doctor_exit_code(run: Callable[..., Run], imds: ImdsEmulator) -> None:
    """`doctor` ends with the code of the error that keeps the identity from use."""
    ill = run("doctor", "--client-id", UNASSIGNED)
    assert ill.code == EXIT_CODES[IdentityUnavailableError]
    assert ill.out.endswith("The identity cannot be used.\n")
    assert run("doctor", "--client-id", UNASSIGNED, "--json").facts["error"]["error"] == "IdentityUnavailableError"


# As a process


@pytest.mark.parametrize("command", [[sys.executable, "-m", "azure_imds_credential"], ["azure-imds"]])
def test_as_a_process(command: list[str], imds: ImdsEmulator) -> None:
    """`azure-imds` and `python -m azure_imds_credential` are the same program."""
    if command == ["azure-imds"]:
        command = [str(Path(sys.executable).parent / "azure-imds")]
    done = subprocess.run([*command, "whoami", "--json"], capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout)["client_id"] == SYSTEM.client_id


COMMAND = [sys.executable, "-W", "error", "-m", "azure_imds_credential"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["token", "--help"],
        ["whoami"],
        ["whoami", "--json"],
        ["token", "two scopes", "--json"],
        ["emulate"],
        ["scan", "/dev/null"],
    ],
    ids=" ".join,
)
def test_full_output(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, argv: list[str], unbuffered: str) -> None:
    """Where standard output cannot be written, one sentence says so, with an exit code of its own."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)  # each write fails by itself, as it does in many an image
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *argv], stdout=full, stderr=subprocess.PIPE, text=True, timeout=600, check=False
        )
    said = "azure-imds: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (OUTPUT, said)


def test_ended_reader(imds: ImdsEmulator) -> None:
    """Where the reader of a pipe has ended, as `head -1` does, the command says nothing and ends as shells have it."""
    with subprocess.Popen([*COMMAND, "whoami"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None  # communicate() would read it
        _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (READER_GONE, "")


def test_library_logs(imds: ImdsEmulator) -> None:
    """What azure-core logs of an answer that broke off is not printed: the command's own message says it."""
    imds.script(faults.wrong_length(), faults.wrong_length())
    done = subprocess.run(
        [*COMMAND, "whoami", "--timeout", "30"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == EXIT_CODES[ImdsServiceError]
    assert [line[:11] for line in done.stderr.splitlines()] == ["azure-imds:"]
    assert "the body broke off" in done.stderr


# emulate


@pytest.mark.parametrize(
    ("argv", "has"),
    [
        ([], [SYSTEM]),
        (["--no-identity"], []),
        (["--user-assigned", "a", "--user-assigned", "b"], [UserAssigned("a"), UserAssigned("b")]),
        (["--system-assigned", "--user-assigned", "app"], [SYSTEM, USER]),
        (["--host", "localhost"], [SYSTEM]),
    ],
)
def test_emulate_options(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, argv: Any, has: Any) -> None:
    """`emulate` is `run_emulator`: the options name the identities. It tells them, where it is and how to end it."""
    made: list[Any] = []

    def run_emulator(identities: Any, *, started: Callable[[Any], None], **options: Any) -> None:
        with ImdsEmulator(
            identities, **{name: options[name] for name in ("host", "port", "profile", "throttle")}
        ) as imds:
            started(imds)
            made.extend(imds.identities)

    monkeypatch.setattr("azure_imds_credential.testing._run_emulator.run_emulator", run_emulator)
    ended = run("emulate", *argv)
    assert (ended.code, made) == (0, has)
    assert re.fullmatch(r"export AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127\.0\.0\.1:\d+\n", ended.out)
    assert ended.out.strip() in ended.err
    assert "Ctrl+C ends it" in ended.err
    assert [one.client_id for one in has if one.client_id not in ended.err] == []
    assert ("the machine has no identity" in ended.err) is (has == [])
    assert run("emulate", *argv, "--quiet").err == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--no-identity", "--system-assigned"], "--no-identity"),
        (["--bridge", "docker0"], "azure-imds: --bridge needs --from azure-cli"),
        (["--host", "nowhere"], "--host: must be an IP address such as 127.0.0.1, or localhost, got 'nowhere'"),
        (["--from", "azure-cli", "--host", "nowhere"], "--host: must be an IP address"),
        (["--port", "99999"], "--port: must be a number from 0 to 65535, got '99999'"),
        (["--port=-1"], "--port: must be a number from 0 to 65535"),
        (["--port", "x"], "--port: must be a number from 0 to 65535"),
        (["--from", "azure-cli", "--host", "192.0.2.1"], "192.0.2.1"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1: "),  # an address that this machine does not have
        (["--from", "azure-cli", "--throttle"], "--throttle has no effect with --from azure-cli"),
        (["--from", "azure-cli", "--profile", "aks"], "--profile has no effect with --from azure-cli"),
        (["--from", "azure-cli", "--user-assigned", "a"], "--user-assigned has no effect with --from azure-cli"),
        (["--from", "azure-cli", "--bridge", "b", "--host", "127.0.0.2"], "--bridge cannot be combined with --host"),
    ],
)
def test_emulate_wrong_options(run: Callable[..., Run], argv: list[str], said: str) -> None:
    """Options of `emulate` that are wrong, or have no effect, are refused in a sentence."""
    ended = run("emulate", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_emulate_taken_port(run: Callable[..., Run]) -> None:
    """A port that is taken is told with the program that listens there, where that is known, and how to go on."""
    with ImdsEmulator() as taken:
        port = taken.port
        ended = run("emulate", "--port", str(port))
    assert (ended.code, ended.out) == (USAGE, "")
    assert f"port {port} of 127.0.0.1 is taken: " in ended.err
    assert "--port, or 0 for a free one" in ended.err
    if Path("/proc/net/tcp").exists():
        assert f"(process {os.getpid()})" in ended.err


@pytest.fixture
def emulating(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start `azure-imds emulate` and return the process and the first line of its standard output."""
    with ExitStack() as stack:

        def start(*argv: str, environ: dict[str, str] | None = None) -> tuple[subprocess.Popen[str], str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, "emulate", *argv],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **(environ or {})},
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline()

        yield start


def ended_by(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def az_that_says(tmp_path: Path, script: str) -> dict[str, str]:
    """The environment in which `az` is a shell script."""
    az = tmp_path / "az"
    az.write_text(f"#!/bin/sh\n{script}\n")
    az.chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def test_emulate_without_login(emulating: Any, tmp_path: Path) -> None:
    """`emulate --from azure-cli` says at the start that there is no login, and clients are told to log in."""
    environ = az_that_says(tmp_path, "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1")
    process, line = emulating("--from", "azure-cli", environ=environ)
    endpoint = line.strip().partition("=")[2]
    said = [process.stderr.readline() for _ in range(4)]
    assert said[0].startswith("azure-imds: REAL access tokens of ")
    assert "there are no tokens yet: az ended with 1: ERROR: Please run 'az login' to setup account" in said[2]
    assert "`az login`" in said[2]
    asked = subprocess.run(
        [*COMMAND, "whoami", "--endpoint", endpoint], capture_output=True, text=True, timeout=600, check=False
    )
    assert asked.returncode == EXIT_CODES[IdentityUnavailableError]
    assert "Please run 'az login'" in asked.stderr
    assert "az vm identity assign" not in asked.stderr
    assert ended_by(process, signal.SIGTERM)[0] == 0


def test_emulate_with_login(emulating: Any, tmp_path: Path) -> None:
    """With a login `emulate --from azure-cli` warns of the tokens and says where it is, and nothing else."""
    process, line = emulating(
        "--from",
        "azure-cli",
        environ=az_that_says(tmp_path, """echo '{"accessToken": "x", "expires_on": 9999999999}'"""),
    )
    said = [process.stderr.readline() for _ in range(3)]
    assert line.startswith("export ")
    assert "no tokens" not in "".join(said)
    assert said[2] == f"azure-imds: in the shell of a program: {line}"
    assert ended_by(process, signal.SIGINT) == (0, "")


def test_emulate_request_log(emulating: Any) -> None:
    """`emulate` tells where it is as JSON, logs each request with what became of it, and ends well when asked to."""
    process, line = emulating("--json", "--user-assigned", "app")
    endpoint = json.loads(line)["AZURE_POD_IDENTITY_AUTHORITY_HOST"]
    assert main(["whoami", "--endpoint", endpoint, "--client-id", USER.client_id]) == 0
    assert main(["whoami", "--endpoint", endpoint, "--client-id", UNASSIGNED]) == EXIT_CODES[IdentityUnavailableError]
    said = [process.stderr.readline() for _ in range(5)]
    assert [line.split("->")[-1].strip() for line in said[-2:]] == ["200", "400"]
    assert f"client_id={USER.client_id}" in said[-2]
    assert ended_by(process, signal.SIGTERM) == (0, "")
