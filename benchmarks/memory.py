"""Peak memory that a library adds to a process that has azure.keyvault.secrets loaded.

    python -m benchmarks.memory LIBRARY CREDENTIALS

makes so many credentials, gets a token with each, and prints by how many MiB the peak rose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .children import run
from .peers import IDENTITY, OURS, PEERS, RESOURCE, client
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess


def peak() -> float:
    """Return the most memory that this process ever held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one held before `exec`
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1024 / (1024 if sys.platform == "darwin" else 1)


def main(peer: str, credentials: str) -> None:
    """Print the rise."""
    import azure.keyvault.secrets  # noqa: F401 # what the process had before

    before = peak()
    kept = [client(peer) for _ in range(int(credentials))]
    for get in kept:
        get(RESOURCE)
    print(json.dumps(peak() - before))


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Measure one credential, and many."""
    rows = []
    for count in (1,) if quick else (1, 100):
        machine = emulator.Machine()  # type: ignore[attr-defined] # registered
        cells = {peer: float(run("memory", peer, str(count), endpoint=machine.endpoint())) for peer in PEERS}
        machine.close()
        name = f"peak memory added by {'one credential' if count == 1 else f'{count} credentials'} with a token, MiB"
        rows.append(Row(name, cells, "no more than azure-identity", cells[OURS] <= cells[IDENTITY]))
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
