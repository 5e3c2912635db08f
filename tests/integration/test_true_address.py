"""At the true address, port 80: our samples with no setting at all, and the Go program that they are a port of."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from environment import MACHINE
from proving import CACHE, HERE, lacking, run, tool

# What an HTTP stack or a library says about itself; no part of the question.
TELEMETRY = {"user-agent", "x-client-sku", "x-client-ver", "x-ms-client-request-id"}
STACK = {"accept", "accept-encoding", "connection"}
NAMES = ["no identity", "system-assigned", "several, none named", "by client_id", "by object_id", "by resource_id"]
NAMES += ["by an unknown client_id"]
OWN_ADDRESS = 'ip link set lo up && ip address add 169.254.169.254/32 dev lo && exec "$@"'


@pytest.fixture(scope="session")
def told() -> dict[str, Any]:
    """What `inside.py` told from within its namespace."""
    unshare, _ = tool("unshare"), tool("ip")
    namespace = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        lacking("this machine does not let us make a network namespace")
    CACHE.mkdir(exist_ok=True)
    original = CACHE / "original"
    run(tool("go"), "build", "-o", original, ".", cwd=HERE / "original", env=MACHINE)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["TZ"] = "UTC"
    inside = [sys.executable, str(HERE / "inside.py"), str(original)]
    told: dict[str, Any] = json.loads(run(*namespace, "sh", "-c", OWN_ADDRESS, "sh", *inside, env=environment))
    return told


def _question(request: dict[str, Any]) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in request["headers"]}
    return {**request, "headers": {k: v for k, v in headers.items() if k not in TELEMETRY | STACK}}


@pytest.mark.parametrize("name", NAMES)
def test_the_original_and_ours_ask_the_same(told: dict[str, Any], name: str) -> None:
    """MSAL for Go and token_expiry.py make the same requests, apart from telemetry and what an HTTP stack adds."""
    machine = told["both"][name]
    theirs, ours = ([_question(one) for one in machine[who]["requests"]] for who in ("original", "sample"))
    assert len(theirs) == 1
    assert theirs[0]["headers"] == {"host": "169.254.169.254", "metadata": "true"}
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_the_original_and_ours_come_to_the_same(told: dict[str, Any], name: str) -> None:
    """Both print the expiry of the same token, within the seconds that each rounds to; or both fail in IMDS's words."""
    machine = told["both"][name]
    theirs, ours = machine["original"], machine["sample"]
    if name in ("no identity", "several, none named", "by an unknown client_id"):
        words = "Multiple user assigned identities exist" if "several" in name else "Identity not found"
        assert theirs["code"] == ours["code"] == 1
        assert words in theirs["said"], theirs
        assert "IdentityUnavailableError" in ours["said"]
        assert words in ours["said"], ours
        assert machine["tokens"] == 0
        return
    assert theirs["code"] == ours["code"] == 0, machine
    assert machine["tokens"] == 1
    expires = [datetime.fromisoformat(who["expires"]) for who in (theirs, ours)]
    # The original prints the answer's expires_on. Ours adds what the answer says is left, which real IMDS and so the
    # emulator give one second too low, to its own clock.
    assert abs((expires[0] - expires[1]).total_seconds()) <= 3, (theirs, ours)


def test_a_secret_is_read_with_no_setting_at_all(told: dict[str, Any]) -> None:
    """`ImdsCredential()` finds IMDS where it is, on port 80 of the link-local address, and the secret is read."""
    sample = told["secret"]["sample"]
    assert sample["code"] == 0, sample
    assert "secret greeting :  hello" in sample["said"]
    assert [one["path"] for one in sample["requests"]] == ["/metadata/identity/oauth2/token"]
    assert dict(sample["requests"][0]["headers"])["Host"] == "169.254.169.254"
    assert "endpoint='http://169.254.169.254'" in told["secret"]["repr"]


def test_the_async_class_finds_the_same_address(told: dict[str, Any]) -> None:
    """The async `ImdsCredential()` with no setting asks the same address, once."""
    assert told["aio"] == ["https://management.azure.com", "/metadata/identity/oauth2/token"]


def test_the_original_works_against_the_emulator_as_it_was(told: dict[str, Any]) -> None:
    """With no argument the Go program gets its token for Resource Manager from the emulator."""
    assert told["alone"]["code"] == 0, told["alone"]
    assert told["alone"]["requests"][0]["query"]["resource"] == ["https://management.azure.com"]


def test_the_guard_of_the_namespace_refuses_this_network() -> None:
    """`inside.py` does nothing in a network that has more than a loopback."""
    if [name for _, name in socket.if_nameindex()] == ["lo"]:
        pytest.skip("this machine has nothing but a loopback itself")
    done = subprocess.run([sys.executable, HERE / "inside.py", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no namespace of its own" in done.stderr
