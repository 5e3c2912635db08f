"""A token that is cached already, handed out again.

    python -m benchmarks.warm LIBRARY [pyperf's options]

is a pyperf benchmark; `measure` runs it for all in turns, joins the runs, and compares the best of each: whatever else
the machine does can only add to it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .children import environment
from .peers import IDENTITY, MSAL, OURS, PEERS, RESOURCE
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

SCOPE = f"{RESOURCE}/.default"

Timed = Callable[[int], float]  # runs so many calls, returns seconds


def _calls(call: Callable[[str], Any]) -> Timed:
    def timed(loops: int) -> float:
        turns, scope = range(loops), SCOPE
        begun = time.perf_counter()
        for _ in turns:
            call(scope)
        return time.perf_counter() - begun

    return timed


def _awaits(call: Callable[[str], Coroutine[Any, Any, Any]], close: Callable[[], Any] | None = None) -> Timed:
    def timed(loops: int) -> float:
        async def run() -> float:
            turns, scope = range(loops), SCOPE
            await call(scope)
            begun = time.perf_counter()
            for _ in turns:
                await call(scope)
            spent = time.perf_counter() - begun
            if close is not None:
                await close()
            return spent

        return asyncio.run(run())

    return timed


def _ours() -> dict[str, Timed]:
    from azure_imds_credential import ImdsCredential, aio

    credential, async_credential = ImdsCredential(), aio.ImdsCredential()
    credential.get_token(SCOPE)
    return {
        "get_token": _calls(credential.get_token),
        "get_token_info": _calls(credential.get_token_info),
        "aio": _awaits(async_credential.get_token),
    }


def _identity() -> dict[str, Timed]:
    from azure.identity import ManagedIdentityCredential, aio

    credential, async_credential = ManagedIdentityCredential(), aio.ManagedIdentityCredential()
    credential.get_token(SCOPE)
    return {
        "get_token": _calls(credential.get_token),
        "get_token_info": _calls(credential.get_token_info),
        "aio": _awaits(async_credential.get_token, async_credential.close),
    }


def _msal() -> dict[str, Timed]:
    import msal
    import requests

    client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=requests.Session())
    client.acquire_token_for_client(resource=RESOURCE)

    def timed(loops: int) -> float:
        turns, resource, call = range(loops), RESOURCE, client.acquire_token_for_client
        begun = time.perf_counter()
        for _ in turns:
            call(resource=resource)
        return time.perf_counter() - begun

    return {"get_token": timed}


# By name: what is timed, and how it is made. pyperf's workers find a benchmark by its number in this list.
SUBJECTS: dict[str, tuple[tuple[str, ...], Callable[[], dict[str, Timed]]]] = {
    OURS: (("get_token", "get_token_info", "aio"), _ours),
    IDENTITY: (("get_token", "get_token_info", "aio"), _identity),
    MSAL: (("get_token",), _msal),
}


def main() -> None:
    """Be a pyperf benchmark of one library."""
    import pyperf

    name = sys.argv.pop(1)
    runner = pyperf.Runner(program_args=("-m", "benchmarks.warm", name))
    names, make = SUBJECTS[name]
    subject = make() if runner.parse_args().worker else {}  # the process that starts the workers measures nothing
    for what in names:
        runner.bench_time_func(f"{name}: {what}", subject.get(what, float))


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Run pyperf for each library in turns, and compare the best values."""
    import pyperf

    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    environ = environment(machine.endpoint())
    values: dict[str, list[float]] = {}
    effort = ("-p1", "-n3", "-w1", "-l5000") if quick else ("-p1", "-n5", "-w1", "--min-time=0.1")
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if quick else 5):
            for name in SUBJECTS:
                output = Path(folder) / f"{turn}-{name}.json".replace(" ", "-")
                command = [sys.executable, "-m", "benchmarks.warm", name, *effort, "-q", "-o", str(output)]
                command += ["--inherit-environ", ",".join(environ)]
                subprocess.run(
                    command, cwd=Path(__file__).parent.parent, env=environ, check=True, stdout=subprocess.DEVNULL
                )
                for benchmark in pyperf.BenchmarkSuite.load(str(output)).get_benchmarks():
                    values.setdefault(benchmark.get_name(), []).extend(benchmark.get_values())
    machine.close()
    return _rows({name: min(each) for name, each in values.items()})


def _rows(seconds: dict[str, float]) -> list[Row]:
    def times_ours(what: str) -> dict[str, float]:
        ours = seconds[f"{OURS}: {what}"]
        return {peer: seconds[f"{peer}: {what}"] / ours for peer in PEERS if f"{peer}: {what}" in seconds}

    sync = times_ours("get_token")
    return [
        Row("warm get_token, µs", {peer: seconds[f"{peer}: get_token"] * 1e6 for peer in PEERS}),
        Row(
            "warm get_token, times this library's",
            sync,
            "azure-identity 30 or more",
            sync[IDENTITY] >= 30,
            {"nanoseconds": {name: each * 1e9 for name, each in seconds.items()}},
        ),
        Row("warm get_token_info, times this library's", times_ours("get_token_info")),
        Row("warm aio get_token, times this library's", times_ours("aio")),
    ]


if __name__ == "__main__":
    os.environ.setdefault("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")  # never the real one
    main()
