"""The samples that read a token and a secret: on recordings, and against the emulator and a vault double."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import pytest

from azure_imds_credential.testing import (
    ImdsEmulator,
    SystemAssigned,
    UserAssigned,
    VaultDouble,
    forget_tokens,
    imds_vcr,
)

ROOT = Path(__file__).parent.parent
SAMPLES, RECORDINGS = ROOT / "samples", ROOT / "recordings"
EXPIRY = re.compile(r"^ *token expire at :  (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00)$", re.MULTILINE)
TOKEN_LIFE = timedelta(hours=24)  # of the emulator's tokens
MOST_LINES = 30

# The identity in the recordings, as recordings/README.md names it.
CLIENT_ID = "facade00-0000-4000-8000-00000000c11e"
OBJECT_ID = "facade00-0000-4000-8000-0000000000b1"
RESOURCE_ID = (
    "/subscriptions/22222222-2222-2222-2222-222222222222/resourcegroups/recorded-group"
    "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/recorded-app"
)
APP = UserAssigned("recorded-app", client_id=CLIENT_ID, object_id=OBJECT_ID, resource_id=RESOURCE_ID)


class Ended(NamedTuple):
    """How a sample ended.

    Attributes:
        output: What it printed.
        message: What it exited with; "" when it succeeded.
    """

    output: str
    message: str


Run = Callable[..., Ended]
Machine = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _no_cached_tokens() -> None:
    forget_tokens()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a sample, on a recording if one is named."""

    def run(sample: str, *arguments: str, recording: str = "") -> Ended:
        message = ""
        with imds_vcr(RECORDINGS / f"{recording}.yaml") if recording else nullcontext():
            try:
                runpy.run_path(str(SAMPLES / sample))["main"](list(arguments))
            except SystemExit as end:
                message = str(end.code)
        return Ended(capsys.readouterr().out, message)

    return run


@pytest.fixture(params=["recorded", "live"])
def read_secret(request: pytest.FixtureRequest, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Return a function that runs `read_secret.py` on a machine: its recording, or an emulator with its identities."""
    if request.param == "recorded":

        def on_recording(recording: str, *_: SystemAssigned | UserAssigned, options: tuple[str, ...] = ()) -> Ended:
            vault = f"https://demo-{recording.removeprefix('user-assigned-')}.vault.azure.net"
            address = ("--vault-url", vault, "--secret", "greeting")
            return run("read_secret.py", *address, *options, recording=recording)

        yield on_recording
        return
    # Key Vault's client remembers challenges by host, and here it must meet one: so each vault has its own name.
    with ImdsEmulator([]) as imds, VaultDouble(f"live-{time.time_ns() % 10**9}", {"greeting": "hello"}) as vault:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)

        def on_emulator(_: str, *identities: SystemAssigned | UserAssigned, options: tuple[str, ...] = ()) -> Ended:
            for identity in identities:
                imds.assign(identity)
            return run("read_secret.py", "--vault-url", vault.url, "--secret", "greeting", *options)

        yield on_emulator
        assert [line[-3:] for line in vault.requests] in ([], ["401", "200"])


def assert_expiry(shown: str) -> None:
    left = datetime.fromisoformat(shown) - datetime.now(timezone.utc)
    assert TOKEN_LIFE - timedelta(minutes=5) < left <= TOKEN_LIFE


def assert_secret(ended: Ended) -> None:
    assert ended.message == ""
    first, second = ended.output.splitlines()
    shown = EXPIRY.fullmatch(first)
    assert shown, ended.output
    assert_expiry(shown[1])
    assert re.fullmatch(r"secret greeting :  (hello|fake[fake])", second)


def test_no_identity(read_secret: Machine) -> None:
    """A machine without an identity gets the command that assigns one, and no traceback."""
    ended = read_secret("identity-not-found")
    assert ended.output == ""
    assert ended.message.startswith("IdentityUnavailableError: ")
    assert "Identity not found" in ended.message
    assert "az vm identity assign" in ended.message


def test_system_assigned(read_secret: Machine) -> None:
    """The system-assigned identity reads the secret."""
    assert_secret(read_secret("system-assigned", SystemAssigned()))


@pytest.mark.parametrize(
    ("selector", "value"), [("client-id", CLIENT_ID), ("object-id", OBJECT_ID), ("resource-id", RESOURCE_ID)]
)
def test_user_assigned(read_secret: Machine, selector: str, value: str) -> None:
    """A user-assigned identity reads the secret, whichever of its IDs names it."""
    identities = (SystemAssigned(), APP, UserAssigned("other"))
    assert_secret(read_secret(f"user-assigned-{selector}", *identities, options=(f"--{selector}", value)))


def test_several_identities(read_secret: Machine) -> None:
    """Several user-assigned identities without a selector are an error that says so."""
    ended = read_secret("several-identities", APP, UserAssigned("other"))
    assert ended.message.startswith("IdentityUnavailableError: ")
    assert "Multiple user assigned identities" in ended.message


def test_throttled_once(run: Run) -> None:
    """One 429 is retried, and the sample succeeds."""
    vault = "https://demo-throttled-then-fine.vault.azure.net"
    assert_secret(run("read_secret.py", "--vault-url", vault, "--secret", "greeting", recording="throttled-then-fine"))


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
@pytest.mark.parametrize(
    ("sample", "arguments"),
    [
        ("read_secret.py", ("--vault-url", "https://unused.vault.azure.net", "--secret", "x")),
        ("token_expiry.py", ()),
    ],
)
def test_other_source(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    sample: str,
    arguments: tuple[str, ...],
    source: str,
    variables: tuple[str, ...],
) -> None:
    """Where another token source is configured, the error names its variables and nothing is sent."""
    with ImdsEmulator() as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        for name in variables:
            monkeypatch.setenv(name, "cloud-shell/1.0" if "HOST" in name else "http://127.0.0.1:9")
        ended = run(sample, *arguments)
    assert ended.output == ""
    assert ended.message.startswith("ImdsUnavailableError: ")
    assert source in ended.message
    assert all(name in ended.message for name in variables)
    assert imds.requests == []


def test_expiry_alone(run: Run) -> None:
    """`token_expiry.py` prints one line."""
    ended = run("token_expiry.py", recording="system-assigned")
    assert ended.message == ""
    shown = EXPIRY.fullmatch(ended.output.rstrip("\n"))
    assert shown
    assert_expiry(shown[1])


def test_empty_client_id(run: Run) -> None:
    """An empty option is an error that names it, not the system-assigned identity."""
    ended = run("token_expiry.py", "--client-id", "")
    assert ended.output == ""
    assert ended.message.startswith("ValueError: client_id")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/such.yaml",), "FileNotFoundError: no recording no/such.yaml"),
        (("recordings/system-assigned.yaml", "--client-id", CLIENT_ID), "ReplayError: "),
        (("recordings/system-assigned.yaml",), ""),
    ],
)
def test_replay(arguments: tuple[str, ...], message: str) -> None:
    """`replay.py` runs a sample on a recording; what a recording cannot answer ends without a traceback."""
    recording, *options = arguments
    done = subprocess.run(
        [sys.executable, "-W", "error", "samples/replay.py", recording, "samples/token_expiry.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == (1 if message else 0), done.stderr
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert bool(EXPIRY.search(done.stdout)) is not bool(message)


@pytest.mark.parametrize("sample", sorted(path.name for path in SAMPLES.glob("*.py") if path.name != "demo.py"))
def test_sample_is_short(sample: str) -> None:
    """A sample is short enough to be copied."""
    assert len((SAMPLES / sample).read_text().splitlines()) <= MOST_LINES


def test_demo() -> None:
    """`make demo` reads a secret from a recording and live, and shows the error of a machine without an identity."""
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
    assert re.search(r"^ *secret greeting :  fake[fake]$", done.stdout, re.MULTILINE)
    assert "secret greeting :  hello" in done.stdout
    assert "Identity not found" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
