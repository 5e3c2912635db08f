"""`make demo`: runs `read_secret.py`, first on a recording, then against an IMDS and a vault on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, VaultDouble

ROOT = Path(__file__).parent.parent
RECORDING = "recordings/system-assigned.yaml"
# What the demo must not depend on: other token sources, settings of the SDK, certificates of this machine.
LEFT_OUT = ("AZURE", "CURL_CA_BUNDLE", "IDENTITY_", "IMDS_", "MSI_", "REQUESTS_CA_BUNDLE", "SSL_CERT_")
CLOSED = "http://127.0.0.1:9"  # nothing listens there: a replay that sent its request would fail, on this machine


def run(*command: str, **variables: str) -> int:
    """Run a sample in a process of its own, with its output on ours."""
    print("   $ python", *command, flush=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    done = subprocess.run(  # noqa: S603 - our own sample, with our own arguments
        [sys.executable, *command],
        cwd=ROOT,
        env={**inherited, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print("".join(f"   {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
    return done.returncode


def read_secret(vault_url: str) -> list[str]:
    return ["samples/read_secret.py", "--vault-url", vault_url, "--secret", "greeting"]


def main() -> bool:
    print("1. From a recording. Nothing is sent:")
    replay = ["samples/replay.py", RECORDING, *read_secret("https://demo-system-assigned.vault.azure.net")]
    codes = [run(*replay, AZURE_POD_IDENTITY_AUTHORITY_HOST=CLOSED)]

    identity = SystemAssigned()
    with ImdsEmulator([identity]) as imds, VaultDouble("demo", {"greeting": "hello"}) as vault:
        variables = {"AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint, **vault.environment()}
        print("\n2. Live, from the IMDS emulator and a vault double on this machine:")
        codes.append(run(*read_secret(vault.url), **variables))
        print(f"   {len(imds.requests)} request to IMDS, {len(vault.requests)} to the vault (the first is a challenge)")

        print("\n3. The same machine after its identity was removed. This must fail:")
        imds.remove(identity)
        codes.append(run(*read_secret(vault.url), **variables))
    return codes == [0, 0, 1]


if __name__ == "__main__":
    if not main():
        sys.exit("\nThe demo did not do what it says.")
    print("\nOn an Azure VM with a managed identity, read_secret.py runs unchanged.")
