"""What is held for one (endpoint, identity, resource), and the flight under way to fetch it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from azure.core.credentials import AccessToken, AccessTokenInfo

from . import _fork
from ._endpoint import Endpoint
from ._freshness import refresh_delay

if TYPE_CHECKING:
    from concurrent.futures import Future

REANCHOR_EVERY = 60.0  # seconds after which `expires_on` follows a wall clock that was set


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


class Outcome(NamedTuple):
    """How a flight ended: with a token and the clock's reading at its expiry, or with an error."""

    access_token: str = ""
    expires_at: float = 0.0
    error: BaseException | None = None
    absent: bool = False  # nothing listens there: worth remembering
    out_of_time: bool = False  # somebody with more time might have succeeded

    def __repr__(self) -> str:
        return f"Outcome(error={self.error!r})"


class Flight:
    """An exchange under way. Its future never fails and cannot be cancelled: whoever waits may leave, it goes on."""

    def __init__(self, now: float, deadline: float, *, forced: bool) -> None:
        with _fork.imports:
            from concurrent.futures import Future

        self.started, self.deadline, self.forced = now, deadline, forced
        self.last_error: BaseException | None = None
        self.future: Future[Outcome | None] = Future()
        # A pending future could be cancelled by one timed-out task, for all others.
        self.future.set_running_or_notify_cancel()

    def note(self, error: BaseException) -> None:
        """Keep the error of the last attempt for callers who leave before the flight ends."""
        self.last_error = error


class Slot:
    """What is held for one key. Read without a lock: `fresh_until` is written after what it vouches for."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.plain: Flight | None = None
        self.forced: Flight | None = None
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self.fresh_until = self.refresh_at = self.expires_at = self.forced_at = self.retry_at = float("-inf")
        self.stored_at = float("-inf")
        self.token: RedactedToken | None = None
        self.info: RedactedTokenInfo | None = None
        self.secret = ""
        self.failures = 0

    def hold(self, outcome: Outcome, now: float, wall_clock: Callable[[], float], rand: Callable[[], float]) -> None:
        """Keep a token."""
        again = outcome.access_token == self.secret
        self.secret, self.expires_at, self.stored_at = outcome.access_token, outcome.expires_at, now
        self.refresh_at = now + refresh_delay(outcome.expires_at - now, same_again=again, random=rand)
        self.failures, self.retry_at = 0, float("-inf")
        self.publish(now, wall_clock())

    def publish(self, now: float, wall_now: float) -> None:
        """Make what callers get, with an expiry by the wall clock as it is set now."""
        expires_on = int(wall_now + self.expires_at - now)
        refresh_on = int(wall_now + min(self.refresh_at, self.expires_at) - now)
        self.token = RedactedToken(self.secret, expires_on)
        self.info = RedactedTokenInfo(self.secret, expires_on, refresh_on=refresh_on)
        self.fresh_until = min(self.refresh_at, self.expires_at, now + REANCHOR_EVERY)

    def __repr__(self) -> str:
        return f"<Slot {self.endpoint.url} fresh_until={self.fresh_until}>"
