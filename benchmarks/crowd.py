"""Many at once: how often is IMDS asked?

    python -m benchmarks.crowd LIBRARY SHAPE

starts one crowd in this process and prints how many callers got a token and how many an error.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from .children import run
from .peers import ASYNC_PEERS, OURS, PEERS, RESOURCE, async_client, client
from .report import Cell, Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

THREADS = 64
TASKS = 1000
LATENCY = 0.1  # seconds: so that all callers come while the first request is under way


class Crowd:
    """Callers that start together."""

    def __init__(self) -> None:
        self.tokens = 0
        self.errors: dict[str, int] = {}
        self._lock = threading.Lock()

    def call(self, get: Callable[[], str]) -> None:
        """Note how one call ends."""
        try:
            get()
        except Exception as error:
            self.note(error)
        else:
            self.note(None)

    def note(self, error: Exception | None) -> None:
        """Count one end."""
        with self._lock:
            if error is None:
                self.tokens += 1
            else:
                self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1

    def on_threads(self, calls: list[Callable[[], str]]) -> list[threading.Thread]:
        """Start a thread for each call; all of them call at the same moment."""
        together = threading.Barrier(len(calls))

        def one(get: Callable[[], str]) -> None:
            together.wait()
            self.call(get)

        threads = [threading.Thread(target=one, args=(get,)) for get in calls]
        for thread in threads:
            thread.start()
        return threads

    async def on_tasks(self, peer: str, count: int) -> None:
        """Run so many tasks of one event loop on one async credential."""
        get, close = async_client(peer)

        async def one() -> None:
            try:
                await get(RESOURCE)
            except Exception as error:
                self.note(error)
            else:
                self.note(None)

        await asyncio.gather(*(one() for _ in range(count)))
        await close()


def _started(crowd: Crowd, peer: str, shape: str) -> list[threading.Thread]:
    if shape == "one for all":
        get = client(peer)
        return crowd.on_threads([partial(get, RESOURCE)] * THREADS)
    if shape == "one each":
        return crowd.on_threads([partial(client(peer), RESOURCE) for _ in range(THREADS)])
    if shape == "resources":
        get = client(peer)
        return crowd.on_threads([partial(get, f"https://resource-{n}.example") for n in range(THREADS)])
    get = client(peer)
    threads = crowd.on_threads([partial(get, RESOURCE)] * THREADS)
    asyncio.run(crowd.on_tasks(peer, TASKS))
    return threads


def main(peer: str, shape: str) -> None:
    """Run one crowd."""
    crowd, begun = Crowd(), time.perf_counter()
    for thread in _started(crowd, peer, shape):
        thread.join()
    print(json.dumps({"tokens": crowd.tokens, "errors": crowd.errors, "seconds": time.perf_counter() - begun}))


def _crowd(emulator: EmulatorProcess, peer: str, shape: str, latency: float, *, throttle: bool) -> dict[str, Any]:
    from .emulator import most_at_once

    machine = emulator.Machine(throttle, latency)  # type: ignore[attr-defined] # registered
    found: dict[str, Any] = run("crowd", peer, shape, endpoint=machine.endpoint())
    arrivals = machine.arrivals()
    machine.close()
    found["requests"] = len(arrivals)
    found["at once"] = most_at_once(arrivals, latency)
    found["throttled"] = sum(arrival.throttled for arrival in arrivals)
    return found


def _asked_once(name: str, found: dict[str, Any]) -> Row:
    cells: dict[str, Cell] = {peer: each["requests"] for peer, each in found.items()}
    return Row(name, cells, "1", cells[OURS] == 1 and not found[OURS]["errors"], found)


def _limited(latency: float, found: dict[str, Any]) -> Row:
    cells: dict[str, Cell] = {
        peer: f"{each['at once']} at once, {each['throttled']} x 429, {sum(each['errors'].values())} without a token"
        for peer, each in found.items()
    }
    ours = found[OURS]
    met = ours["at once"] <= 5 and not ours["throttled"] and not ours["errors"]
    name = f"{THREADS} different resources at once, each answer takes {latency:g} s"
    return Row(name, cells, "5 at once, 0 x 429, 0 without", met, found)


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Run every crowd for every library; in the quick form the peers form only the first."""

    def each(shape: str, peers: Iterable[str], latency: float, *, throttle: bool = False) -> dict[str, Any]:
        with ThreadPoolExecutor(3 if quick else 1) as pool:
            ask = partial(_crowd, emulator, shape=shape, latency=latency, throttle=throttle)
            return dict(zip(peers, pool.map(ask, peers), strict=True))

    all_alike = f"IMDS requests of {THREADS} threads, one credential"
    mixed = f"IMDS requests of {TASKS} tasks and {THREADS} threads, sync and aio mixed"
    rows = [
        _asked_once(all_alike, each("one for all", PEERS, LATENCY)),
        _asked_once(f"{all_alike} each", each("one each", (OURS,) if quick else PEERS, LATENCY)),
        _asked_once(mixed, each("mixed", (OURS,) if quick else ASYNC_PEERS, LATENCY)),
    ]
    for latency in (0.02,) if quick else (0.02, 0.3):
        rows.append(_limited(latency, each("resources", (OURS,) if quick else PEERS, latency, throttle=True)))
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
