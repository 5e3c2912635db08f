"""The scenario that the project exists for, through the samples: from recordings, and from an emulator."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, VaultDouble, forget_tokens

ROOT = Path(__file__).parent.parent
SAMPLES, RECORDINGS = ROOT / "samples", ROOT / "recordings"
EXPIRY = re.compile(r"^token expire at :  (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00)$", re.MULTILINE)
TOKEN_LIFE = timedelta(hours=24)  # of the emulator's tokens; a recorded one had a moment less left

# The identity in the recordings; recordings/README.md tells readers the same.
CLIENT_ID = "facade00-0000-4000-8000-00000000c11e"
OBJECT_ID = "facade00-0000-4000-8000-0000000000b1"
RESOURCE_ID = (
    "/subscriptions/22222222-2222-2222-2222-222222222222/resourcegroups/recorded-group"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/recorded-app"
)
APP = UserAssigned("recorded-app", client_id=CLIENT_ID, object_id=OBJECT_ID, resource_id=RESOURCE_ID)

Run = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def _no_tokens_held() -> None:
    forget_tokens()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a sample; gives what it printed, and the message with which it ended (empty: well)."""

    def run(sample: str, *arguments: str) -> tuple[str, str]:
        ended = ""
        try:
            runpy.run_path(str(SAMPLES / sample))["main"](list(arguments))
        except SystemExit as end:
            ended = str(end.code)
        return capsys.readouterr().out, ended

    return run


@pytest.fixture(params=["replayed", "live"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Makes a machine as the recording of that name had it: gives the arguments for `read_secret.py`."""
    if request.param == "replayed":
        yield lambda recording, *_: [
            *("--vault-url", f"https://demo-{recording.removeprefix('user-assigned-')}.vault.azure.net"),
            *("--secret", "greeting", "--replay", str(RECORDINGS / f"{recording}.yaml")),
        ]
        return
    # A name of its own: Key Vault's client remembers challenges by host, and here it must meet one.
    vault_name = f"live-{time.time_ns() % 10**9}"
    with ImdsEmulator([]) as imds, VaultDouble(vault_name, {"greeting": "hello"}) as vault:

        def with_identities(_: str, *identities: SystemAssigned | UserAssigned) -> list[str]:
            for identity in identities:
                imds.assign(identity)
            return ["--vault-url", vault.url, "--secret", "greeting"]

        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        yield with_identities
        assert [line[-3:] for line in vault.requests] in ([], ["401", "200"])


def check_secret_was_read(output: str) -> None:
    told = EXPIRY.search(output)
    assert told, output
    expires = datetime.fromisoformat(told[1])
    assert timedelta() <= datetime.now(timezone.utc) + TOKEN_LIFE - expires < timedelta(minutes=5)
    assert re.search(r"^secret greeting :  (hello|scrubbed value of greeting)$", output, re.MULTILINE)
    assert output.index("token expire") < output.index("secret greeting")


def test_a_vm_without_an_identity_is_told_how_to_assign_one(run: Run, machine: Callable[..., list[str]]) -> None:
    """Scenario 1: "Identity not found", with the command that mends it, and no traceback."""
    output, ended = run("read_secret.py", *machine("identity-not-found"))
    assert output == ""
    assert ended.startswith("IdentityUnavailableError: ")
    assert "Identity not found" in ended
    assert "az vm identity assign" in ended


def test_the_system_assigned_identity_reads_the_secret(run: Run, machine: Callable[..., list[str]]) -> None:
    """Scenario 2: the expiry of the token is printed, a real instant, then the secret is read."""
    output, ended = run("read_secret.py", *machine("system-assigned", SystemAssigned()))
    assert ended == ""
    check_secret_was_read(output)


@pytest.mark.parametrize(
    ("selector", "value"), [("client-id", CLIENT_ID), ("object-id", OBJECT_ID), ("resource-id", RESOURCE_ID)]
)
def test_a_user_assigned_identity_reads_the_secret(
    run: Run, machine: Callable[..., list[str]], selector: str, value: str
) -> None:
    """Scenario 3: the same with a user-assigned identity, however it is named."""
    arguments = machine(f"user-assigned-{selector}", SystemAssigned(), APP, UserAssigned("other"))
    output, ended = run("read_secret.py", *arguments, f"--{selector}", value)
    assert ended == ""
    check_secret_was_read(output)


def test_several_identities_and_none_named_is_told(run: Run, machine: Callable[..., list[str]]) -> None:
    """Two user-assigned identities and no selector: the error says so."""
    _, ended = run("read_secret.py", *machine("several-identities", APP, UserAssigned("other")))
    assert ended.startswith("IdentityUnavailableError: ")
    assert "Multiple user assigned identities" in ended


def test_a_throttled_machine_gets_its_secret_in_the_end(run: Run) -> None:
    """429 first, then a token: the program does not notice."""
    output, ended = run(
        *("read_secret.py", "--vault-url", "https://demo-throttled-then-fine.vault.azure.net", "--secret", "greeting"),
        *("--replay", str(RECORDINGS / "throttled-then-fine.yaml")),
    )
    assert ended == ""
    check_secret_was_read(output)


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("App Service", ("IDENTITY_ENDPOINT", "IDENTITY_HEADER")),
        ("Azure Arc", ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT")),
        ("Service Fabric", ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT")),
        ("Machine Learning", ("MSI_ENDPOINT", "MSI_SECRET")),
        ("Cloud Shell", ("AZUREPS_HOST_ENVIRONMENT",)),
    ],
)
@pytest.mark.parametrize("sample", ["read_secret.py", "token_expiry.py"])
def test_another_source_is_named_and_nothing_is_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, sample: str, source: str, variables: tuple[str, ...]
) -> None:
    """Scenario 4: an environment that points elsewhere is said plainly, with its variables."""
    with ImdsEmulator() as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name in variables:
            monkeypatch.setenv(name, "cloud-shell/1.0" if "HOST" in name else "http://127.0.0.1:9")
        vault = ["--vault-url", "https://unused.vault.azure.net", "--secret", "x"] if sample == "read_secret.py" else []
        output, ended = run(sample, *vault)
    assert output == ""
    assert ended.startswith("ImdsUnavailableError: ")
    assert source in ended
    assert all(name in ended for name in variables)
    assert imds.requests == []


def test_the_expiry_is_printed_alone(run: Run) -> None:
    """`token_expiry.py` prints one line: an instant a token's life from now."""
    output, ended = run("token_expiry.py", "--replay", str(RECORDINGS / "system-assigned.yaml"))
    assert ended == ""
    told = EXPIRY.fullmatch(output.rstrip("\n"))
    assert told
    assert (
        timedelta() <= datetime.now(timezone.utc) + TOKEN_LIFE - datetime.fromisoformat(told[1]) < timedelta(minutes=5)
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replay", "no/such.yaml"], "FileNotFoundError: no recording no/such.yaml"),
        (["--replay", str(RECORDINGS / "system-assigned.yaml"), "--client-id", CLIENT_ID], "ReplayError: "),
        (["--client-id", ""], "ValueError: client_id"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_without_a_traceback(run: Run, arguments: list[str], told: str) -> None:
    """What cannot work ends with one line that says why."""
    output, ended = run("token_expiry.py", *arguments)
    assert output == ""
    assert ended.startswith(told)


@pytest.mark.parametrize("sample", ["read_secret.py", "token_expiry.py"])
def test_a_sample_is_short(sample: str) -> None:
    """A sample is read in one go: at most 40 lines."""
    assert len((SAMPLES / sample).read_text().splitlines()) <= 40


def test_the_demo_shows_what_it_says() -> None:
    """`make demo` runs the sample as a program of its own: from the recording, live, and without an identity."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SAMPLES / "demo.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "AZURE_POD_IDENTITY_AUTHORITY_HOST"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(EXPIRY.findall(done.stdout)) == 2
    assert "secret greeting :  scrubbed value of greeting" in done.stdout
    assert "secret greeting :  hello from the vault double" in done.stdout
    assert "Identity not found" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
