"""Runs in a network namespace of its own that has nothing but a loopback, on which 169.254.169.254 is this machine.

Argument: the original Go program, built. Prints JSON: what each program answered and which requests it made.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trustme
from cloud import Cloud
from vault import Vault

from azure_imds_credential import ImdsCredential
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned

ADDRESS = "169.254.169.254"
SAMPLES = Path(__file__).parent.parent.parent / "samples"
RESOURCE = "https://vault.azure.net"  # what the sample asks for
APP, OTHER = UserAssigned("app"), UserAssigned("other")
MACHINES: dict[str, tuple[tuple[SystemAssigned | UserAssigned, ...], dict[str, str]]] = {
    "no identity": ((), {}),
    "system-assigned": ((SystemAssigned(),), {}),
    "several, none named": ((APP, OTHER), {}),
    "by client_id": ((SystemAssigned(), APP, OTHER), {"client_id": APP.client_id}),
    "by object_id": ((SystemAssigned(), APP, OTHER), {"object_id": APP.object_id}),
    "by resource_id": ((SystemAssigned(), APP, OTHER), {"resource_id": APP.resource_id}),
    "by an unknown client_id": ((SystemAssigned(), APP), {"client_id": OTHER.client_id}),
}


def program(imds: ImdsEmulator, *command: str | Path, **environment: str) -> dict[str, Any]:
    """Run one program; what it said, how it ended, and its requests."""
    imds.clear_requests()
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    requests = [
        {
            "method": one.method,
            "path": one.path,
            "query": {k: list(v) for k, v in one.query.items()},
            "headers": one.headers,
        }
        for one in imds.requests
    ]
    found = re.search(r"token expire at :\s+(\S+ \S{8})", done.stdout)
    said = (done.stdout + done.stderr).strip()
    return {"code": done.returncode, "said": said, "expires": found and found[1], "requests": requests}


def both(original: str) -> dict[str, Any]:
    """Run the original and the sample one after the other on each kind of machine."""
    results: dict[str, Any] = {}
    for name, (identities, selector) in MACHINES.items():
        with ImdsEmulator(identities, host=ADDRESS, port=80) as imds:
            kind, value = next(iter(selector.items()), ("", ""))
            option = [f"--{kind.replace('_', '-')}", value] if kind else []
            results[name] = {
                "original": program(imds, original, RESOURCE, kind, value),
                "sample": program(imds, sys.executable, SAMPLES / "token_expiry.py", *option),
                "tokens": len(imds.tokens),
            }
    return results


def secret() -> dict[str, Any]:
    """Read a secret with `ImdsCredential()` and no setting at all."""
    authority, vault = trustme.CA(), Vault("demo.vault.azure.net")
    vault.secrets["greeting"] = [{"id": f"https://{vault.host}/secrets/greeting/1", "value": "hello", "attributes": {}}]
    with (
        TemporaryDirectory() as folder,
        ImdsEmulator(host=ADDRESS, port=80) as imds,
        Cloud(imds, authority, {vault.host: vault.service}) as cloud,
    ):
        ca_file = str(Path(folder) / "ca.pem")
        authority.cert_pem.write_to_path(ca_file)
        way = {"HTTPS_PROXY": cloud.proxies["https"], "REQUESTS_CA_BUNDLE": ca_file}
        address = ("--vault-url", f"https://{vault.host}", "--secret", "greeting")
        sample = program(imds, sys.executable, SAMPLES / "read_secret.py", *address, **way)
        return {"sample": sample, "repr": repr(ImdsCredential())}


def async_class() -> list[str]:
    """The same for the async class; the token's audience, and the requests it took."""
    with ImdsEmulator(host=ADDRESS, port=80) as imds:
        info = asyncio.run(AsyncImdsCredential().whoami())
        return [str(info.audience), *(one.path for one in imds.requests)]


def original_as_it_was(original: str) -> dict[str, Any]:
    """The original with no argument: a token for Resource Manager, as the program in its documentation."""
    with ImdsEmulator(host=ADDRESS, port=80) as imds:
        return program(imds, original)


if __name__ == "__main__":
    # Nothing is asked anywhere but here: a namespace without any interface to the world.
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this is no namespace of its own")
    os.environ.pop("AZURE_POD_IDENTITY_AUTHORITY_HOST", None)
    told = {
        "both": both(sys.argv[1]),
        "alone": original_as_it_was(sys.argv[1]),
        "secret": secret(),
        "aio": async_class(),
    }
    print(json.dumps(told))
