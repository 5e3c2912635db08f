"""`azure-imds serve` in front of the emulator: what it spares IMDS, and what it costs.

python -m benchmarks serve                      # the rows of the table
python -m benchmarks.serve constant             # aiohttp's server with a constant answer, for comparison
python -m benchmarks.serve load URL             # 50 connections for some seconds: requests a second
python -m benchmarks.serve memory 1000000       # the size of serve after 1,000 and after so many requests
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from .children import environment
from .herd import herd, own_memory
from .peers import IDENTITY, OURS, RESOURCE
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

PROCESSES = 32
CONNECTIONS = 50
TARGET = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={RESOURCE}"
_NOWHERE = "http://127.0.0.1:1"  # in the variable, which serve does not read


@contextmanager
def serve(upstream: str, *arguments: str, memory: str | None = None) -> Iterator[tuple[str, int]]:
    """Run serve before an endpoint; give its URL and process ID.

    Args:
        upstream: Base URL of IMDS.
        arguments: More options.
        memory: The runtime directory, where shared tokens are.
    """
    command = [
        sys.executable,
        "-m",
        "azure_imds_credential",
        "serve",
        "--port",
        "0",
        "--endpoint",
        upstream,
        *arguments,
    ]
    with _server(command, {"XDG_RUNTIME_DIR": memory} if memory else {}) as found:
        yield found


@contextmanager
def _server(command: list[str], variables: dict[str, str]) -> Iterator[tuple[str, int]]:
    running = subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env={**environment(_NOWHERE), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert running.stdout is not None
        yield running.stdout.readline().strip().partition("=")[2], running.pid
    finally:
        running.terminate()
        running.communicate()


def crowd(emulator: EmulatorProcess, count: int) -> list[Row]:
    """Let cold azure-identity processes ask at once, direct and through serve."""
    found: dict[str, dict[str, Any]] = {}
    for name, front in ((IDENTITY, None), (OURS, serve)):
        found[name] = herd(emulator, IDENTITY, count, front=front).row()
    ours, direct = found[OURS], found[IDENTITY]
    who = f"{count} cold azure-identity processes at once, through `azure-imds serve` and direct"
    met = ours["requests"] == 1 and ours["failures"] == 0
    return [
        Row(f"{who}: IMDS requests", {name: each["requests"] for name, each in found.items()}, "1", met, found),
        Row(
            f"{who}: of these 429",
            {name: each["throttled"] for name, each in found.items()},
            "0",
            not ours["throttled"],
        ),
        Row(
            f"{who}: tokens",
            {OURS: f"{count - ours['failures']} of {count}", IDENTITY: f"{count - direct['failures']} of {count}"},
            "all",
            not ours["failures"],
        ),
        Row(
            f"{who}: slowest, s",
            {name: float(each["slowest"]) for name, each in found.items()},
            "at most 1.0",
            ours["slowest"] <= 1.0,
        ),
    ]


def latency(emulator: EmulatorProcess, count: int) -> list[Row]:
    """Time warm requests one after the other, in turns at the emulator and at serve, on kept connections."""
    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    spent: dict[str, list[float]] = {OURS: [], IDENTITY: []}
    with serve(machine.endpoint()) as (url, _):
        connections = {OURS: HTTPConnection(_place(url)), IDENTITY: HTTPConnection(_place(machine.endpoint()))}
        for turn in range(count + 10):
            for name, connection in connections.items():
                begun = time.perf_counter()
                connection.request("GET", TARGET, headers={"Metadata": "true"})
                connection.getresponse().read()
                if turn >= 10:
                    spent[name].append((time.perf_counter() - begun) * 1000)
        for connection in connections.values():
            connection.close()
    machine.close()
    p50 = {name: median(times) for name, times in spent.items()}
    p99 = {name: quantiles(times, n=100)[98] for name, times in spent.items()}
    who = "ms of a warm token request at `azure-imds serve`, and at the emulator itself"
    return [Row(f"{who}: p50", p50), Row(f"{who}: p99", p99)]


def throughput(emulator: EmulatorProcess, seconds: float, rounds: int) -> Row:
    """Count requests a second of serve and of the same server with a constant answer, in turns."""
    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    rates: dict[str, list[float]] = {OURS: [], "constant": []}
    constant = _server([sys.executable, "-m", "benchmarks.serve", "constant"], {})
    with serve(machine.endpoint()) as (url, _), constant as (constant_url, _):
        for _ in range(rounds):
            for name, where in ((OURS, url), ("constant", constant_url)):
                command = [sys.executable, "-m", "benchmarks.serve", "load", where, str(seconds)]
                root = Path(__file__).parent.parent
                done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=True)
                rates[name].append(float(json.loads(done.stdout)))
    machine.close()
    ours, theirs = median(rates[OURS]), median(rates["constant"])
    name = f"requests a second of `azure-imds serve` on {CONNECTIONS} connections, and that in % of a constant answer's"
    return Row(name, {OURS: f"{ours:.0f}, {100 * ours / theirs:.0f} %"}, "50 %", ours >= theirs / 2, rates)


def restart(emulator: EmulatorProcess, rounds: int) -> Row:
    """Time from the start of the process to its first token, which the serve before it left in the shared cache."""
    machine = emulator.Machine()  # type: ignore[attr-defined] # registered
    spent = []
    with own_memory() as memory:
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            with serve(machine.endpoint(), "--shared-cache", memory=memory) as (url, _):
                assert ask_once(url) == 200
                spent.append(time.perf_counter() - begun)
    requests = len(machine.arrivals())
    machine.close()
    seconds = median(spent[1:])
    met = seconds < 0.5 and requests == 1
    name = "s from a restart of `azure-imds serve --shared-cache` to a token, with no IMDS request"
    return Row(name, {OURS: seconds}, "under 0.5", met, {"requests": requests, "seconds": spent})


def ask_once(url: str) -> int:
    """Ask for the token on a connection of its own, and return the status."""
    connection = HTTPConnection(_place(url))
    connection.request("GET", TARGET, headers={"Metadata": "true", "Connection": "close"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Measure all of it; in the quick form with fewer processes, requests and rounds."""
    return [
        *crowd(emulator, 4 if quick else PROCESSES),
        *latency(emulator, 50 if quick else 5_000),
        throughput(emulator, 0.3 if quick else 4.0, 1 if quick else 5),
        restart(emulator, 1 if quick else 7),
    ]


# Processes


async def constant() -> None:
    """Answer everything with the same 200, as long as a token's."""
    body = b"x" * 1_813

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body)

    http = web.Server(handler, access_log=None)
    server = await asyncio.get_running_loop().create_server(http, "127.0.0.1", 0)
    print(f"URL=http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


class _Client(asyncio.Protocol):
    """A connection that asks again as soon as it has its answer."""

    def __init__(self, request: bytes, counted: list[int]) -> None:
        self._request, self._counted = request, counted
        self._missing, self._begun = 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            data = self._begun + data
            head, ends, rest = data.partition(b"\r\n\r\n")
            if not ends:
                self._begun = data
                return
            assert head.startswith(b"HTTP/1.1 200 "), head
            self._begun, data = b"", rest
            self._missing = int(head.lower().partition(b"content-length: ")[2].split()[0])
        self._missing -= len(data)
        if not self._missing:
            self._counted[0] += 1
            self._transport.write(self._request)


async def load(url: str, seconds: float) -> float:
    """Ask on many connections for some seconds, and return the answers a second."""
    (host, _, port), counted = _place(url).rpartition(":"), [0]
    request = f"GET {TARGET} HTTP/1.1\r\nHost: {host}:{port}\r\nMetadata: true\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: _Client(request, counted), host, int(port)) for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(0.2)
    before, begun = counted[0], time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (counted[0] - before) / (time.perf_counter() - begun)
    for transport, _ in opened:
        transport.abort()
    return rate


def memory(count: int) -> None:
    """Print the size of serve after 1,000 requests and after so many, on a new connection for each thousand."""
    from .emulator import EmulatorProcess

    with EmulatorProcess() as emulator:
        machine = emulator.Machine()  # type: ignore[attr-defined] # registered
        with serve(machine.endpoint()) as (url, process):
            sizes, begun = {}, time.perf_counter()
            for done in range(1, count // 1_000 + 1):
                asyncio.run(a_thousand(url))
                if done == 1 or done % 50 == 0 or done == count // 1_000:
                    sizes[done * 1_000] = _resident(process)
            seconds = round(time.perf_counter() - begun)
        found = {"KiB": sizes, "ratio": sizes[count] / sizes[1_000], "seconds": seconds}
        print(json.dumps({**found, "at IMDS": len(machine.arrivals())}))
        machine.close()


async def a_thousand(url: str) -> None:
    """Ask a thousand times on one connection, in batches, so that the time is serve's."""
    place, batch = _place(url), 25
    reader, writer = await asyncio.open_connection(*place.rsplit(":", 1), limit=1 << 20)
    request = f"GET {TARGET} HTTP/1.1\r\nHost: {place}\r\nMetadata: true\r\n\r\n".encode()
    for _ in range(1_000 // batch):
        writer.write(request * batch)
        for _ in range(batch):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    writer.close()
    await writer.wait_closed()


def _resident(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no size is told here")


def _place(url: str) -> str:
    return urlsplit(url).netloc


if __name__ == "__main__":
    if sys.argv[1] == "constant":
        asyncio.run(constant())
    elif sys.argv[1] == "load":
        print(asyncio.run(load(sys.argv[2], float(sys.argv[3]))))
    else:
        memory(int(sys.argv[2]))
