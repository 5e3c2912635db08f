"""How long a token serves and when to ask for the next one. Pure; all numbers are seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from functools import partial

LAST_MINUTES = 300.0  # azure-core and msal treat a token with less as expired
HALF_LIFE_FROM = 7200.0  # from this life on a token is refreshed at half of it, as msal does
HALF_LIFE_JITTER = 0.1  # so that machines which started together drift apart
SOONEST_REFRESH = 30.0
LONGEST_WAIT = 2.0  # what a caller with a usable token waits for a refresh in the last minutes
FIRST_BACK_OFF = 30.0
LONGEST_BACK_OFF = 600.0

# A clock that no one sets and that goes on while a VM hibernates; where there is none, one that no one sets.
boot_clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Phase(Enum):
    """What a held token is good for."""

    FRESH = "hand it out"
    AGING = "hand it out and refresh behind the caller's back"
    CLOSING = "hand it out, but let the refresh have a moment first"
    EXPIRED = "ask"


def phase(now: float, refresh_at: float, expires_at: float) -> Phase:
    """Say what a token that is to be refreshed and expires at the given times is good for now."""
    if now >= expires_at:
        return Phase.EXPIRED
    if now < refresh_at:
        return Phase.FRESH
    return Phase.CLOSING if expires_at - now <= LAST_MINUTES else Phase.AGING


def refresh_delay(life: float, *, same_again: bool, random: Callable[[], float]) -> float:
    """Say after how long a token with this much life left is refreshed.

    Args:
        life: What is left of it.
        same_again: IMDS handed back the token that was held already (it has a cache of its own): ask later, but sooner
            each time.
        random: Uniform in [0, 1).
    """
    if life >= HALF_LIFE_FROM or same_again:
        delay = life / 2 * (1 + HALF_LIFE_JITTER * (2 * random() - 1))
    else:
        delay = life - LAST_MINUTES
    return max(SOONEST_REFRESH, delay)


def next_refresh_after(failures: int, now: float, expires_at: float) -> float:
    """Say when to try again after this many failed refreshes: backing off, but not past the last five minutes."""
    back_off: float = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2 ** min(failures - 1, 10))
    return now + min(back_off, max(FIRST_BACK_OFF, expires_at - LAST_MINUTES - now))
