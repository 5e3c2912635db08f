"""Real processes that all need a token at once, against the emulator with the documented limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

from .children import environment, run_code
from .peers import IDENTITY, MSAL, OURS, RESOURCE

if TYPE_CHECKING:
    from .emulator import Arrival, EmulatorProcess

SHARED = f"{OURS}, shared_cache=True"
WAYS = (SHARED, OURS, IDENTITY, MSAL)
Front = Callable[[str], AbstractContextManager[tuple[str, int]]]  # from IMDS's URL to its own, and its process ID
LATENCY = 0.02  # seconds for an answer

# What a process does before the start is given: everything that it would import, so that the herd is as dense as two
# processors allow; except for the first row, whose time is that of everything after `import azure_imds_credential`.
_PREPARE = {
    SHARED: "from azure_imds_credential import ImdsCredential\ncredential = ImdsCredential(shared_cache=True)",
    OURS: (
        "from azure_imds_credential import ImdsCredential\n"
        "from azure_imds_credential._imds import client\n"
        "credential = ImdsCredential()"
    ),
    IDENTITY: "from azure.identity import ManagedIdentityCredential\ncredential = ManagedIdentityCredential()",
    MSAL: (
        "import msal, requests\n"
        "credential = msal.ManagedIdentityClient(\n"
        "    msal.SystemAssignedManagedIdentity(), http_client=requests.Session()\n"
        ")"
    ),
}
_GET = {
    MSAL: f"got = 'access_token' in credential.acquire_token_for_client(resource='{RESOURCE}')",
}
_CHILD = """
import azure.keyvault.secrets, json, sys, time
{prepare}
print("ready", flush=True)
sys.stdin.readline()
begun, got = time.time(), False
try:
    {get}
except Exception as error:
    print(error, file=sys.stderr)
print(json.dumps([begun, time.time(), got]))
"""


class Outcome(NamedTuple):
    """What a herd cost. Times are epoch seconds."""

    started: float  # when the first process was let go
    ends: list[float]  # of the processes that got a token
    failures: int
    arrivals: list[Arrival]

    def row(self) -> dict[str, Any]:
        """Put it in the terms of the table."""
        first = min((each.time for each in self.arrivals), default=self.started)
        return {
            "processes": len(self.ends) + self.failures,
            "requests": len(self.arrivals),
            "throttled": sum(each.throttled for each in self.arrivals),
            "failures": self.failures,
            "slowest": max(self.ends, default=float("nan")) - self.started,
            "slowest_from_first_request": max(self.ends, default=float("nan")) - first,
            "requests_at": [round(each.time - first, 3) for each in self.arrivals],
        }


def herd(emulator: EmulatorProcess, way: str, count: int, *, front: Front | None = None) -> Outcome:
    """Start processes, let them go together, and see.

    Args:
        emulator: Where machines are made.
        way: How a process asks.
        count: How many processes.
        front: Puts something before IMDS that the processes ask instead.
    """
    machine = emulator.Machine(True, LATENCY)  # type: ignore[attr-defined] # registered
    get = _GET.get(way, f"got = bool(credential.get_token('{RESOURCE}/.default').token)")
    code = _CHILD.format(prepare=_PREPARE[way], get=get)
    with own_memory() as memory, ExitStack() as before:
        asked = machine.endpoint() if front is None else before.enter_context(front(machine.endpoint()))[0]
        env = {**environment(asked), "XDG_RUNTIME_DIR": memory}
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(count)
        ]
        try:
            for each in running:
                assert each.stdout is not None
                assert each.stdout.readline() == "ready\n", "a process did not come up"
            started = time.time()
            for each in running:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            told = [json.loads(each.communicate(timeout=240)[0]) for each in running]
        finally:
            for each in running:
                each.kill()
                each.wait()
    arrivals = machine.arrivals()
    machine.close()
    ends = [end for _, end, got in told if got]
    return Outcome(started, ends, count - len(ends), arrivals)


def start_with_a_token_there(emulator: EmulatorProcess, rounds: int) -> dict[str, float]:
    """Time import and token where another process has one, in turns with bare msal.

    Returns:
        Median milliseconds of both, and their ratio.
    """
    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    statements = {
        SHARED: "from azure_imds_credential import ImdsCredential; "
        f"ImdsCredential(shared_cache=True).get_token('{RESOURCE}/.default').token",
        MSAL: "import msal, requests; msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), "
        f"http_client=requests.Session()).acquire_token_for_client(resource='{RESOURCE}')['access_token']",
    }
    spent: dict[str, list[float]] = {SHARED: [], MSAL: []}
    with own_memory() as memory:
        for turn in range(rounds + 1):
            for way, statement in statements.items():
                code = (
                    f"import os; os.environ['XDG_RUNTIME_DIR'] = {memory!r}\n"
                    "import azure.keyvault.secrets, time; begun = time.perf_counter(); "
                    f"{statement}; print((time.perf_counter() - begun) * 1000)"
                )
                milliseconds = float(run_code(code, endpoint=machine.endpoint()))
                if turn:  # the first one asks IMDS, stores the token and writes bytecode
                    spent[way].append(milliseconds)
    machine.close()
    ours, msal = median(spent[SHARED]), median(spent[MSAL])
    return {"ours_milliseconds": ours, "msal_milliseconds": msal, "ratio": ours / msal}


@contextmanager
def own_memory() -> Iterator[str]:
    """Give the processes a runtime directory of their own, so that they meet each other and no other process."""
    made = mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    yield made
    rmtree(made, ignore_errors=True)
