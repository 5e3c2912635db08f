"""@azure/identity from npm against the emulator, unchanged: by every selector, and at IMDS's own address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest
from proving import HERE, lacking, run, tool

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned

SYSTEM, A, B = SystemAssigned(), UserAssigned("a"), UserAssigned("b")
JAVASCRIPT = """
import { ManagedIdentityCredential } from "@azure/identity";
const credential = new ManagedIdentityCredential(JSON.parse(process.argv[1]));
try {
  const token = await credential.getToken("https://vault.azure.net/.default");
  console.log(JSON.stringify({ token: token.token, expires: token.expiresOnTimestamp }));
} catch (error) {
  console.log(JSON.stringify({ name: error.name, message: error.message }));
}
"""


@pytest.mark.parametrize(
    ("options", "means"),
    [
        ({}, SYSTEM),
        ({"clientId": A.client_id}, A),
        ({"objectId": B.object_id}, B),
        ({"resourceId": A.resource_id}, A),
        ({"clientId": "99999999-9999-9999-9999-999999999999"}, None),
    ],
)
def test_javascript(
    monkeypatch: pytest.MonkeyPatch, peers: Path, options: dict[str, str], means: SystemAssigned | UserAssigned | None
) -> None:
    """A token comes by every selector, and an unknown identity is said not to be there."""
    with ImdsEmulator([SYSTEM, A, B]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        command = [tool("node"), "--input-type=module", "-e", JAVASCRIPT, json.dumps(options)]
        answer: dict[str, Any] = json.loads(run(*command, cwd=peers.parent, seconds=60))
    if means is None:
        assert answer["name"] == "CredentialUnavailableError", answer
        assert imds.tokens == []
    else:
        assert imds.tokens == [answer["token"]]
        assert jwt.decode(answer["token"], options={"verify_signature": False})["appid"] == means.client_id
        assert abs(answer["expires"] / 1000 - imds.now() - 86399) < 60


def test_its_chain_probes_at_the_real_address(peers: Path) -> None:
    """DefaultAzureCredential first sends a probe with neither header nor query, is content, and then asks properly."""
    unshare, _ = tool("unshare"), tool("ip")
    steps = 'ip link set lo up && ip addr add 169.254.169.254/32 dev lo && exec "$0" "$@"'
    program = [sys.executable, str(HERE.parent / "at_real_address.py"), str(peers.parent)]
    environment = {k: v for k, v in os.environ.items() if k != "AZURE_POD_IDENTITY_AUTHORITY_HOST"}
    command = [unshare, "--net", "--map-root-user", "sh", "-c", steps, *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode and "ermitted" in done.stderr:
        lacking(f"no network namespace to be had: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["javascript"] == [True, [[False, None], [True, "true"]]]
