"""A token that is due for a refresh and has hours left: who waits, and is it lost when the refresh fails?

    python -m benchmarks.refresh LIBRARY sync|aio slow|failing

The token ages because this process's clock is put forward, before any library is loaded: `time.time` and
`time.clock_gettime` (and, where there is no CLOCK_BOOTTIME, `time.monotonic`) then show 13 hours more. Whether and
when to refresh stays every library's own decision.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .children import run
from .peers import ASYNC_PEERS, OURS, PEERS, RESOURCE, async_client, client
from .report import Row

if TYPE_CHECKING:
    from .emulator import EmulatorProcess

HOUR = 3600.0
AGES = (13, 16, 19, 22)  # hours of the token's 24
CALLERS = 4
PAUSE = 0.002  # seconds between two calls of a caller, so that none waits for another's turn of the interpreter
SLOW = 2.0  # seconds that IMDS takes

real_sleep, real_async_sleep = time.sleep, asyncio.sleep


class Clock:
    """This process's clock, put forward by `ahead` seconds. Made before any library is loaded.

    Args:
        pauses: Whether pauses take time; if not, they put the clock forward instead, so that no test waits for the
            retries of a request that fails.
    """

    def __init__(self, *, pauses: bool) -> None:
        self.ahead = 0.0
        self._slept = threading.local()
        wall, any_clock, monotonic = time.time, getattr(time, "clock_gettime", None), time.monotonic
        time.time = lambda: wall() + self.ahead
        if any_clock is not None:
            time.clock_gettime = lambda which: any_clock(which) + self.ahead
        if not hasattr(time, "CLOCK_BOOTTIME"):
            time.monotonic = lambda: monotonic() + self.ahead
        if not pauses:
            time.sleep = self._sleep  # type: ignore[assignment] # its own takes any number
            asyncio.sleep = self._async_sleep

    @property
    def slept(self) -> float:
        """Seconds that this thread would have slept."""
        return getattr(self._slept, "seconds", 0.0)

    def _sleep(self, seconds: float) -> None:
        self.ahead += seconds
        self._slept.seconds = self.slept + seconds
        real_sleep(0.001)

    async def _async_sleep(self, delay: float, result: Any = None) -> Any:
        self.ahead += delay
        self._slept.seconds = self.slept + delay
        return await real_async_sleep(0, result)


def slowest_call(peer: str, clock: Clock, seconds: float) -> float:
    """Let threads call for a while, and return how long the slowest call took."""
    get = client(peer)
    get(RESOURCE)
    clock.ahead = AGES[0] * HOUR
    slowest = [0.0] * CALLERS
    until = time.perf_counter() + seconds

    def call(caller: int) -> None:
        while time.perf_counter() < until:
            begun = time.perf_counter()
            get(RESOURCE)
            slowest[caller] = max(slowest[caller], time.perf_counter() - begun)
            real_sleep(PAUSE)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(slowest)


async def slowest_await(peer: str, clock: Clock, seconds: float) -> float:
    """Let tasks call for a while, and return how long the slowest call took."""
    get, close = async_client(peer)
    await get(RESOURCE)
    clock.ahead = AGES[0] * HOUR
    until = time.perf_counter() + seconds

    async def call() -> float:
        slowest = 0.0
        while time.perf_counter() < until:
            begun = time.perf_counter()
            await get(RESOURCE)
            slowest = max(slowest, time.perf_counter() - begun)
            await real_async_sleep(PAUSE)
        return slowest

    slowest = max(await asyncio.gather(*(call() for _ in range(CALLERS))))
    await close()
    return slowest


async def lost(get: Callable[[str], Awaitable[str]], clock: Clock) -> dict[str, float]:
    """Ask while every refresh fails; count the calls that end without the token although it has hours left."""
    held = await get(RESOURCE)
    count, longest = 0, 0.0
    for age in AGES:
        clock.ahead = age * HOUR
        slept, begun = clock.slept, time.perf_counter()
        try:
            count += await get(RESOURCE) != held
        except Exception:
            count += 1
        longest = max(longest, time.perf_counter() - begun + clock.slept - slept)
        await real_async_sleep(0.3)  # a refresh behind the caller's back fails meanwhile
    return {"calls": len(AGES), "lost": count, "slowest": longest}


async def _lost(peer: str, flavor: str, clock: Clock) -> dict[str, float]:
    if flavor == "aio":
        get, close = async_client(peer)
        found = await lost(get, clock)
        await close()
        return found
    blocking = client(peer)

    async def call(resource: str) -> str:
        return blocking(resource)

    return await lost(call, clock)


def main(peer: str, flavor: str, trouble: str) -> None:
    """Be a process whose token is due for a refresh."""
    clock = Clock(pauses=trouble == "slow")
    if trouble == "failing":
        print(json.dumps(asyncio.run(_lost(peer, flavor, clock))))
    elif flavor == "aio":
        print(asyncio.run(slowest_await(peer, clock, SLOW + 1)))
    else:
        print(slowest_call(peer, clock, SLOW + 1))


def measure(emulator: EmulatorProcess, *, quick: bool) -> list[Row]:
    """Run each trouble for each library and flavor, side by side in the quick form."""
    subjects = [(peer, "sync") for peer in PEERS] + [(peer, "aio") for peer in ASYNC_PEERS]
    cases = [(trouble, peer, flavor) for trouble in ("slow", "failing") for peer, flavor in subjects]

    def one(case: tuple[str, str, str]) -> Any:
        trouble, peer, flavor = case
        machine = emulator.Machine()  # type: ignore[attr-defined] # registered
        if trouble == "slow":
            machine.slow_after_the_first(SLOW)
        else:
            machine.fail_after_the_first()
        found = run("refresh", peer, flavor, trouble, endpoint=machine.endpoint())
        machine.close()
        return found

    with ThreadPoolExecutor(len(cases) if quick else 1) as pool:
        found = dict(zip(cases, pool.map(one, cases), strict=True))

    rows = []
    for flavor, peers in (("sync", PEERS), ("aio", ASYNC_PEERS)):
        slowest = {peer: 1000 * found["slow", peer, flavor] for peer in peers}
        name = f"slowest {flavor} caller while a refresh takes {SLOW:g} s, ms"
        rows.append(Row(name, slowest, "under 10", slowest[OURS] < 10))
    for flavor, peers in (("sync", PEERS), ("aio", ASYNC_PEERS)):
        ends = {peer: found["failing", peer, flavor] for peer in peers}
        cells = {peer: f"{end['lost']} of {end['calls']}, waited {end['slowest']:.1f} s" for peer, end in ends.items()}
        name = f"live token lost to {flavor} callers because its refresh failed"
        rows.append(Row(name, cells, "never", not ends[OURS]["lost"], ends))
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
