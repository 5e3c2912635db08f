"""`make demo`: runs `read_secret.py` as it stands, first from a recording, then against doubles on this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, VaultDouble

SAMPLES = Path(__file__).parent
RECORDING = SAMPLES.parent / "recordings" / "system-assigned.yaml"
OTHER_SOURCES = {"IDENTITY_ENDPOINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "AZUREPS_HOST_ENVIRONMENT"}
# A port on which nothing listens: were the replay ever to send its request to IMDS, it would not leave this machine.
NOWHERE = "http://127.0.0.1:9"


def read_secret(variables: dict[str, str], vault_url: str, *options: str) -> int:
    """Run the sample as any user would, with its output on ours."""
    command = ["samples/read_secret.py", "--vault-url", vault_url, "--secret", "greeting", *options]
    print("  $ python", shlex.join(command), flush=True)
    inherited = {name: value for name, value in os.environ.items() if name not in OTHER_SOURCES}
    return subprocess.run(  # noqa: S603 - our own sample, with our own arguments
        [sys.executable, *command],
        cwd=SAMPLES.parent,
        env={**inherited, **variables},
        stderr=subprocess.STDOUT,
        check=False,
    ).returncode


def from_the_recording() -> bool:
    print(f"\n1. From {RECORDING.parent.name}/{RECORDING.name}; nothing is sent to anyone:")
    recorded = yaml.safe_load(RECORDING.read_text())["interactions"]
    vault_url = recorded[-1]["request"]["uri"].partition("/secrets/")[0]
    options = ("--replay", str(RECORDING.relative_to(SAMPLES.parent)))
    code = read_secret({"AZURE_POD_IDENTITY_AUTHORITY_HOST": NOWHERE}, vault_url, *options)
    for exchange in recorded:
        print(f"  the recording holds: GET {exchange['request']['uri']} -> {exchange['response']['status']['code']}")
    return code == 0


def from_doubles() -> bool:
    print("\n2. Once more, from an IMDS emulator and a double of Key Vault on loopback ports:")
    identity = SystemAssigned()
    with ImdsEmulator([identity]) as imds, VaultDouble("demo", {"greeting": "hello from the vault double"}) as vault:
        variables = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint, **vault.environment()}
        first = read_secret(variables, vault.url)
        for request in imds.requests:
            print(f"  IMDS got:      {request}")
        for line in vault.requests:
            print(f"  the vault got: {line}")
        print("\n3. The same machine when its identity has been taken away (this is meant to fail):", flush=True)
        imds.remove(identity)
        second = read_secret(variables, vault.url)
    return first == 0 and second == 1


if __name__ == "__main__":
    if not (from_the_recording() and from_doubles()):
        sys.exit("\nthe demo did not do what it says")
    print("\nOn an Azure VM with a managed identity the same program runs unchanged: no --replay, no variables.")
