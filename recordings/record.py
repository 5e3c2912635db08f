"""Records sessions of `samples/read_secret.py`; what is written down is scrubbed and scanned first.

On a VM, against a real vault, one session into one file:

    python recordings/record.py my-session.yaml --vault-url https://NAME.vault.azure.net --secret NAME [--client-id ...]

Without arguments: makes all recordings of this folder anew, from the project's own emulator and vault double.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

from azure_imds_credential.testing import (
    ImdsEmulator,
    SystemAssigned,
    UserAssigned,
    VaultDouble,
    faults,
    forget_tokens,
    imds_vcr,
)

HERE = Path(__file__).parent
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
# These IDs are fakes already, in the form that imds_vcr leaves alone, so that a replay can name them.
APP = UserAssigned(
    "recorded-app",
    client_id="facade00-0000-4000-8000-00000000c11e",
    object_id="facade00-0000-4000-8000-0000000000b1",
    resource_id=f"/subscriptions/{SUBSCRIPTION}/resourcegroups/recorded-group/providers/"
    "Microsoft.ManagedIdentity/userAssignedIdentities/recorded-app",
)
OTHER = UserAssigned("recorded-other")
SYSTEM = SystemAssigned()

# File: what the machine has, what the program says, what goes wrong.
SESSIONS: dict[str, tuple[list[SystemAssigned | UserAssigned], list[str], list[faults.Fault]]] = {
    "system-assigned": ([SYSTEM], [], []),
    "user-assigned-client-id": ([SYSTEM, APP, OTHER], ["--client-id", APP.client_id], []),
    "user-assigned-object-id": ([SYSTEM, APP, OTHER], ["--object-id", APP.object_id], []),
    "user-assigned-resource-id": ([SYSTEM, APP, OTHER], ["--resource-id", APP.resource_id], []),
    "identity-not-found": ([], [], []),
    "several-identities": ([APP, OTHER], [], []),
    "throttled-then-fine": ([SYSTEM], [], [faults.throttled()]),
}


def record(recording: Path, arguments: list[str]) -> None:
    """Runs the sample once and writes down what it sent and got."""
    read_secret: Callable[[list[str]], None] = runpy.run_path(str(HERE.parent / "samples" / "read_secret.py"))["main"]
    forget_tokens()
    with imds_vcr(recording, record_mode="all"):
        read_secret(arguments)


def record_all() -> None:
    """Makes every recording of this folder anew. One vault per recording: challenges are remembered by host."""
    for name, (identities, selector, going_wrong) in SESSIONS.items():
        short = name.removeprefix("user-assigned-")  # vault names have at most 24 characters
        with ImdsEmulator(identities) as imds, VaultDouble(f"demo-{short}", {"greeting": "hello"}) as vault:
            if going_wrong:
                imds.script(*going_wrong)
            there = {**vault.environment(), "AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint}
            (HERE / f"{name}.yaml").unlink(missing_ok=True)
            with mock.patch.dict(os.environ, there), suppress(SystemExit):  # the sample's way to end without a secret
                record(HERE / f"{name}.yaml", ["--vault-url", vault.url, "--secret", "greeting", *selector])


if __name__ == "__main__":
    if sys.argv[1:]:
        record(Path(sys.argv[1]), sys.argv[2:])
    else:
        record_all()
