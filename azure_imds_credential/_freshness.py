"""What is held for one (endpoint, identity, resource), how long it serves, and when to ask for the next."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from azure.core.credentials import AccessToken, AccessTokenInfo

from .exceptions import IdentityUnavailableError, ImdsUnavailableError

if TYPE_CHECKING:
    from ._endpoint import Endpoint
    from ._flight import Flight, Outcome
    from ._identity import Identity

# Seconds.
LAST_MINUTES = 300.0  # azure-core and msal treat a token with less as expired
HALF_LIFE_FROM = 7200.0  # from this life on a token is refreshed at half of it, as msal does
HALF_LIFE_JITTER = 0.1  # so that machines which started together drift apart
SOONEST_REFRESH = 30.0
LONGEST_WAIT = 2.0  # what a caller with a usable token waits for a refresh in the last minutes
FIRST_BACK_OFF = 30.0
LONGEST_BACK_OFF = 600.0
LONGEST_LIFE = 366 * 86400.0  # managed identity tokens live 24 h today, so this only excludes nonsense
REANCHOR_EVERY = 60.0  # after which `expires_on` follows a wall clock that was set

NEVER = float("-inf")

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


class RedactedToken(AccessToken):
    """An `AccessToken` that can be logged."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"AccessToken(token='[redacted]', expires_on={self.expires_on})"


class RedactedTokenInfo(AccessTokenInfo):
    """An `AccessTokenInfo` that can be logged."""

    def __repr__(self) -> str:
        return (
            f"AccessTokenInfo(token='[redacted]', expires_on={self.expires_on}, "
            f"token_type={self.token_type!r}, refresh_on={self.refresh_on})"
        )


class World:
    """What is not ours to decide. Tests pass their own.

    Args:
        clock: Seconds since the machine started.
        wall_clock: Epoch seconds.
        random: Uniform in [0, 1).
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.wall_clock, self.random, self.sleep = clock, wall_clock, random, sleep


class Slot:
    """What is held for one key. Times are of `World.clock`.

    Read without a lock: `fresh_until` is written after what it vouches for.
    """

    endpoint: Endpoint
    identity: Identity
    resource: str

    # Flights under way, an ordinary one and one that was forced.
    plain: Flight | None = None
    forced: Flight | None = None

    token: RedactedToken | None = None
    info: RedactedTokenInfo | None = None
    fresh_until = refresh_at = expires_at = stored_at = cleared_at = forced_at = retry_at = no_identity_at = NEVER
    forced_error: BaseException | None = None  # how the forced flight at `forced_at` failed, if no token came since
    failures = 0
    news = 0  # how often a flight ended or all was forgotten: whoever finds it as it was has missed nothing

    def hold(self, access_token: str, expires_at: float, now: float, world: World) -> None:
        """Keep a token."""
        again = self.token is not None and self.token.token == access_token
        if not again:
            self.forced_error = None
        refresh_at = now + refresh_delay(expires_at - now, same_again=again, random=world.random)
        self.stored_at, self.failures, self.retry_at, self.no_identity_at = now, 0, NEVER, NEVER
        self.publish(access_token, refresh_at, expires_at, now, world.wall_clock())

    def lack(self, outcome: Outcome, now: float, *, forced: bool) -> None:
        """Remember how asking for a token failed. One that is held goes on to serve."""
        if isinstance(outcome.error, IdentityUnavailableError):
            self.no_identity_at = now
        if not (forced and outcome.out_of_time):  # who had no time for it must not put off the ordinary refresh
            self.failures += 1
            self.retry_at = next_refresh_after(self.failures, now, self.expires_at)
        if outcome.absent and isinstance(outcome.error, ImdsUnavailableError):
            self.endpoint.note_absence(outcome.error, now)

    def publish(self, access_token: str, refresh_at: float, expires_at: float, now: float, wall_now: float) -> None:
        """Make what callers get, with an expiry by the wall clock as it is set now."""
        expires_on = int(wall_now + expires_at - now)
        refresh_on = int(wall_now + min(refresh_at, expires_at) - now)
        # In this order: a fork may leave the child with the first few of these, and no time may outlast its token.
        self.info = RedactedTokenInfo(access_token, expires_on, refresh_on=refresh_on)
        self.token = RedactedToken(access_token, expires_on)
        self.refresh_at = refresh_at
        self.expires_at = expires_at
        self.fresh_until = min(max(refresh_at, self.retry_at), expires_at, now + REANCHOR_EVERY)

    def clear(self, now: float) -> None:
        """Hold nothing, and keep nothing of what flights under way will bring."""
        self.fresh_until = self.refresh_at = self.expires_at = self.forced_at = self.retry_at = NEVER
        self.no_identity_at = NEVER
        self.news += 1
        self.plain = self.forced = self.token = self.info = self.forced_error = None
        self.stored_at = self.cleared_at = now
        self.failures = 0

    def __repr__(self) -> str:
        return f"<Slot {self.endpoint.url} {self.identity} {self.resource}>"
