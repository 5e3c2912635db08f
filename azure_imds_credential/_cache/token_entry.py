"""What is cached for one key, how long it serves, and when it is refreshed."""

# Without `from __future__ import annotations`: it makes each field of a named tuple a string to be compiled.
import math
from enum import Enum
from typing import NamedTuple

from azure.core.credentials import AccessToken, AccessTokenInfo

from .._clock import MAX_DRIFT, Clock
from .._endpoint import Endpoint
from .._jwt import EXPIRY_MARGIN
from .._request import NEVER, TokenKey, TokenRequest, TokenResult
from ..exceptions import IdentityUnavailableError, ImdsUnavailableError

# Seconds.
HALF_LIFE_FROM = 7200.0  # a token with this life or more is refreshed at half of it, as msal does
HALF_LIFE_JITTER = 0.1  # so that machines which started together drift apart
MIN_REFRESH_DELAY = 30.0
MIN_BACK_OFF = 30.0
MAX_BACK_OFF = 600.0
CLOCK_CHECK_INTERVAL = 10.0  # between two comparisons of the wall clock with the boot clock
FORCE_INTERVAL = 30.0  # callers that force a refresh within it share one


class TokenState(Enum):
    """What a cached token is good for."""

    FRESH = "hand it out"
    STALE = "hand it out, and refresh it in the background"
    EXPIRING = "hand it out, but give the refresh a moment first"
    EXPIRED = "ask for another"


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


class CachedToken(NamedTuple):
    """A token as callers get it, and how long it serves. It is replaced as a whole, so it can be read without a lock.

    Times are of `Clock.now`; `expires_on` and `refresh_on` inside the tokens are epoch seconds.
    """

    token: RedactedToken
    info: RedactedTokenInfo
    fresh_until: float  # until then it is handed out without another look
    refresh_at: float
    expires_at: float
    checked_at: float  # when the wall clock was last compared with the boot clock
    wall_offset: float  # wall clock minus boot clock, then

    def state(self, now: float) -> TokenState:
        """Return what it is good for."""
        if now >= self.expires_at:
            return TokenState.EXPIRED
        if now < self.refresh_at:
            return TokenState.FRESH
        return TokenState.EXPIRING if self.expires_at - now <= EXPIRY_MARGIN else TokenState.STALE


def refresh_delay(life: float, *, is_same_token: bool, random: float) -> float:
    """Return after how many seconds a token is refreshed.

    Args:
        life: Seconds it has left.
        is_same_token: IMDS handed out the token that was cached already, from a cache of its own: ask later, but
            sooner each time.
        random: A number in [0, 1).
    """
    if life >= HALF_LIFE_FROM or is_same_token:
        delay = life / 2 * (1 + HALF_LIFE_JITTER * (2 * random - 1))
    else:
        delay = life - EXPIRY_MARGIN
    return max(MIN_REFRESH_DELAY, delay)


def next_refresh_after(failures: int, now: float, expires_at: float) -> float:
    """Return when to try again after this many failed refreshes.

    The pauses double, but the last five minutes begin with a try.
    """
    back_off: float = min(MAX_BACK_OFF, MIN_BACK_OFF * 2 ** min(failures - 1, 10))
    return now + min(back_off, max(MIN_BACK_OFF, expires_at - EXPIRY_MARGIN - now))


def cached_token(
    access_token: str,
    refresh_at: float,
    expires_at: float,
    now: float,
    wall: float,
    *,
    retry_at: float = NEVER,
    latest: float = math.inf,
) -> CachedToken:
    """Return a token for callers.

    Args:
        access_token: The token.
        refresh_at: Time of `Clock.now` at which it is to be refreshed.
        expires_at: Time of `Clock.now` at which it expires.
        now: Time of `Clock.now`.
        wall: Epoch seconds, as the machine's clock is set.
        retry_at: Time of `Clock.now` before which a failed refresh is not repeated.
        latest: The latest `expires_on` to tell, in epoch seconds.
    """
    expires_on = int(min(wall + expires_at - now, latest))
    refresh_on = min(int(wall + min(refresh_at, expires_at) - now), expires_on)
    return CachedToken(
        token=RedactedToken(access_token, expires_on),
        info=RedactedTokenInfo(access_token, expires_on, refresh_on=refresh_on),
        fresh_until=min(max(refresh_at, retry_at), expires_at, now + CLOCK_CHECK_INTERVAL),
        refresh_at=refresh_at,
        expires_at=expires_at,
        checked_at=now,
        wall_offset=wall - now,
    )


def compared_with_wall_clock(cached: CachedToken, retry_at: float, now: float, wall: float) -> CachedToken:
    """Return a cached token with the times that a comparison of the clocks leads to.

    A small difference comes from a clock that is kept in step: `expires_on` follows it. A large one comes from a clock
    that was set, or from a VM that its host paused, which stops the boot clock too. Which of the two it was cannot be
    told, so the earlier expiry counts and a refresh is due.

    Args:
        cached: The token.
        retry_at: Time of `Clock.now` before which a failed refresh is not repeated.
        now: Time of `Clock.now`.
        wall: Epoch seconds, as the machine's clock is set now.
    """
    refresh_at, expires_at, latest = cached.refresh_at, cached.expires_at, math.inf
    if abs(wall - now - cached.wall_offset) > MAX_DRIFT:
        latest = cached.token.expires_on
        expires_at = min(expires_at, now + latest - wall)
        refresh_at = min(refresh_at, now)
    return cached_token(cached.token.token, refresh_at, expires_at, now, wall, retry_at=retry_at, latest=latest)


class TokenEntry:
    """What is cached for one key. Changed only under the cache's lock; `cached` is also read without it.

    Args:
        key: What a token is cached by.
        endpoint: The endpoint that is asked.
    """

    def __init__(self, key: TokenKey, endpoint: Endpoint) -> None:
        self.key, self.endpoint = key, endpoint
        self.cached: CachedToken | None = None
        # The requests under way: an ordinary one, and one that a caller forced.
        self.plain_request: TokenRequest | None = None
        self.forced_request: TokenRequest | None = None
        self.calls: set[int] = set()  # the IDs of those that have not ended
        self.generation = 0  # how often it was cleared: the token of an older request is not kept
        self.stored_at = NEVER
        self._forget_failures()

    def _forget_failures(self) -> None:
        self.failures = 0
        self.retry_at = NEVER  # no refresh before
        self.forced_at = NEVER  # when a forced request ended
        self.forced_error: BaseException | None = None  # how it failed, if no other token came since
        self.bypassed_at = NEVER  # when a request began that asked IMDS to bypass its own cache
        self.no_identity_at = NEVER  # when IMDS said that it has no such identity

    def usable(self, now: float) -> CachedToken | None:
        """Return the cached token if it has life left."""
        return self.cached if self.cached is not None and now < self.cached.expires_at else None

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is lost when the entry is dropped."""
        under_way = self.plain_request or self.forced_request or self.calls
        needed_until = max(self.retry_at, self.forced_at + FORCE_INTERVAL, self.bypassed_at + FORCE_INTERVAL)
        return not under_way and self.usable(now) is None and now >= needed_until

    def request(self, *, forced: bool) -> TokenRequest | None:
        """Return the request of this kind that is under way."""
        return self.forced_request if forced else self.plain_request

    def set_request(self, request: TokenRequest) -> None:
        """Put a request under way."""
        if request.bypass_cache:
            self.bypassed_at = request.started
        if request.forced:
            self.forced_request = request
        else:
            self.plain_request = request

    def finish(self, request: TokenRequest, result: TokenResult | None, now: float, clock: Clock) -> float | None:
        """Keep what a request brought; None for one that was never sent.

        Returns:
            The seconds for which the cached token still serves; None unless a refresh failed, or brought a worse one.
        """
        if self.forced_request is request:
            self.forced_request = None
        if self.plain_request is request:
            self.plain_request = None
        # A token that arrived after this request started is the newer one, unless this one bypassed IMDS's cache.
        is_outdated = not request.forced and request.started < self.stored_at
        if result is None or is_outdated or request.generation != self.generation:
            return None
        is_kept = result.error is None and (request.forced or not self._holds_better(result, now))
        if is_kept:
            self.store(result, now, clock)
        else:
            self.note_failure(result, now, forced=request.forced)
        if request.forced and not result.timed_out:
            self.forced_at, self.forced_error = now, result.error
        cached = self.usable(now)
        return None if is_kept or cached is None else cached.expires_at - now

    def _holds_better(self, result: TokenResult, now: float) -> bool:
        """Return whether the cached token outlives another that comes with minutes to live, or with none."""
        cached = self.usable(now)
        if cached is None or result.access_token == cached.token.token:
            return False
        return result.expires_at < min(cached.expires_at, now + EXPIRY_MARGIN)

    def store(self, result: TokenResult, now: float, clock: Clock) -> None:
        """Keep a token."""
        is_same_token = self.cached is not None and self.cached.token.token == result.access_token
        delay = refresh_delay(result.expires_at - now, is_same_token=is_same_token, random=clock.random())
        self.cached = cached_token(result.access_token, now + delay, result.expires_at, now, clock.wall())
        self.stored_at, self.failures, self.retry_at, self.no_identity_at = now, 0, NEVER, NEVER
        if not is_same_token:
            self.forced_error = None

    def note_failure(self, result: TokenResult, now: float, *, forced: bool) -> None:
        """Remember that a request failed, or brought a worse token. A cached one goes on to serve."""
        if isinstance(result.error, IdentityUnavailableError):
            self.no_identity_at = now
        if not (forced and result.timed_out):  # a caller in a hurry must not put off the ordinary refresh
            self.failures += 1
            self.retry_at = next_refresh_after(self.failures, now, self.cached.expires_at if self.cached else NEVER)
            self._keep_until_retry()
        if isinstance(result.error, ImdsUnavailableError):
            self.endpoint.note_unavailable(
                result.error, now, is_absent=result.is_absent, has_listener=result.has_listener
            )

    def postpone_refresh(self, now: float) -> None:
        """Put off a refresh that could not be started."""
        self.retry_at = max(self.retry_at, now + MIN_BACK_OFF)
        self._keep_until_retry()

    def _keep_until_retry(self) -> None:
        """Hand the cached token out without another look until the next refresh may start."""
        cached = self.cached
        if cached is not None:
            until = min(
                max(cached.refresh_at, self.retry_at), cached.expires_at, cached.checked_at + CLOCK_CHECK_INTERVAL
            )
            self.cached = cached._replace(fresh_until=until)

    def check_wall_clock(self, now: float, clock: Clock) -> None:
        """Compare the clocks when that is due, and correct the times of the cached token."""
        if self.cached is not None and now >= self.cached.checked_at + CLOCK_CHECK_INTERVAL:
            self.cached = compared_with_wall_clock(self.cached, self.retry_at, now, clock.wall())

    def clear(self) -> None:
        """Cache nothing, and keep nothing of what the requests under way will bring."""
        self.cached = self.plain_request = self.forced_request = None
        self._forget_failures()
        self.stored_at = NEVER
        self.generation += 1

    def __repr__(self) -> str:
        return f"<TokenEntry {self.key.url} {self.key.identity} {self.key.resource}>"
