"""When to repeat a request: the numbers, and pure functions over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from .._endpoint import BOOT_WINDOW

MIN_ATTEMPT = 0.3  # seconds that an attempt is given before the deadline; a healthy IMDS answers well within


class Schedule:
    """Waits of U(floor, 1) * min(cap, base * 2**n) seconds before retry n+1: full jitter unless there is a floor.

    Jitter because machines and processes that start together must not ask together again:
    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/

    Args:
        retries: How many at most.
        until: Seconds after the first such response within which one may start.
        base: Seconds; its default is the least that the documentation asks for:
            https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance
        cap: Seconds.
        lead: Fixed seconds added to the first wait, which then has no floor.
        floor: The share of each wait that is fixed.
    """

    def __init__(
        self,
        *,
        retries: float,
        until: float,
        base: float = 1.0,
        cap: float = 16.0,
        lead: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        self.retries, self.until = retries, until
        self.base, self.cap, self.lead, self.floor = base, cap, lead, floor


class Retry(Enum):
    """What a failed attempt deserves."""

    NEVER = Schedule(retries=0, until=0)
    # A malformed response: a second one tells a passing fault from a standing one.
    ONCE = Schedule(retries=1, until=math.inf)
    # Refused or unreachable on a machine that started moments ago. Short waits, because its network comes up in
    # seconds; half of each is fixed, so that they grow.
    BOOTING = Schedule(retries=math.inf, until=BOOT_WINDOW, base=0.2, floor=0.5)
    # 500 and the like by a server that never was IMDS. While IMDS restarts the host's WireServer answers in its place.
    UNKNOWN_SERVER = Schedule(retries=3, until=7)
    # 404, 408, 5xx, and no response from an IMDS that was seen. "At least 1 second", five retries:
    # https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#retry-guidance
    TRANSIENT = Schedule(retries=5, until=math.inf)
    # 410: "IMDS will be available within 70 seconds" (same page); 5 s more for the clock of the host.
    GONE = Schedule(retries=math.inf, until=75)
    # 429: 20 requests a second and 5 at once for a whole VM, and no Retry-After:
    # https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting
    # From a simulation of 250 pods against those limits (benchmarks/fleet.py). Whether refused requests count is not
    # documented. If they do, no request is served while 20 a second arrive, so the first wait lets the second pass, and
    # 250 pods that wait 0.7 * 24 s on average ask 15 times a second. Waits of U(0, 16) mean 31: none gets through.
    THROTTLED = Schedule(retries=math.inf, until=math.inf, base=2.0, cap=24.0, lead=1.0, floor=0.4)


def next_delay(
    retry: Retry, done: int, elapsed: float, retry_after: float | None, random: Callable[[], float]
) -> float | None:
    """Return the seconds to wait before the next attempt, None to stop.

    Args:
        retry: What the last attempt deserves.
        done: Retries already made for this kind of failure.
        elapsed: Seconds since this kind of failure began.
        retry_after: Seconds that the server asked for, if it did. They are a floor, so that the jitter stays.
        random: Returns a number in [0, 1), from a uniform distribution.
    """
    schedule = retry.value
    if done >= schedule.retries or elapsed >= schedule.until:
        return None
    # With a lead the first two waits have the same spread, and doubling begins at the third.
    doublings = max(0, done - 1) if schedule.lead else done
    longest: float = min(schedule.cap, schedule.base * 2 ** min(doublings, 30))
    if schedule.lead and done == 0:
        wait = schedule.lead + longest * random()
    else:
        wait = longest * (schedule.floor + (1 - schedule.floor) * random())
    left = schedule.until - elapsed
    if retry_after is None:
        return min(wait, left)
    return min(max(wait, retry_after), left) if retry_after <= left else None


def last_chance(delay: float, left: float, random: Callable[[], float]) -> float:
    """Return a wait that leaves time for a last attempt before the deadline.

    Args:
        delay: What `next_delay` returned, without a `Retry-After` that asked for more.
        left: Seconds until the deadline.
        random: Returns a number in [0, 1), from a uniform distribution.

    Returns:
        The delay, if an attempt fits behind it or none fits at all; else one in the second half of what is left.
    """
    room = left - MIN_ATTEMPT
    if delay < room or room < MIN_ATTEMPT:
        return delay
    return room * (0.5 + 0.5 * random())
