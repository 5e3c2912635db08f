"""What the cache and the client say to each other: a request under way, its result, and a wait for it."""

# Without `from __future__ import annotations`: it makes each field of a named tuple a string to be compiled.
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import NamedTuple, Optional

from ._identity import Identity
from .exceptions import ImdsError

NEVER = -math.inf
GRACE = 0.1  # seconds beyond its deadline in which a request may still say why it failed


class TokenKey(NamedTuple):
    """What a token is cached by."""

    url: str
    identity: Identity
    resource: str


class TokenResult:
    """How a request ended: with a token, or with an error. It is not changed once callers can see it.

    Args:
        access_token: The token.
        expires_at: Time of `Clock.now` at which it expires.
        error: Why there is none.
        is_absent: Nothing answers there; that is worth remembering.
        has_listener: Something accepts connections there.
        timed_out: The time was up: a caller with more may succeed.
        retry_after: Seconds that the server asked the next caller to wait.
        log_fields: What the one log line of the request holds.
    """

    def __init__(
        self,
        access_token: str = "",
        expires_at: float = NEVER,
        *,
        error: BaseException | None = None,
        is_absent: bool = False,
        has_listener: bool = False,
        timed_out: bool = False,
        retry_after: float = 0.0,
        log_fields: Mapping[str, object] | None = None,
    ) -> None:
        self.access_token, self.expires_at, self.error = access_token, expires_at, error
        self.is_absent, self.has_listener = is_absent, has_listener
        self.timed_out, self.retry_after, self.log_fields = timed_out, retry_after, log_fields

    def __repr__(self) -> str:
        return f"TokenResult(error={self.error!r})"  # never the token


class TokenRequest:
    """A request for a token, under way and shared by all callers that wait for it.

    Callers may leave; it goes on. Waiting takes no lock that others need, because a KeyboardInterrupt can come between
    any two bytecodes. Hence no `concurrent.futures.Future`: its condition would stay locked.

    Args:
        key: What is asked for.
        started: Time of `Clock.now`.
        deadline: Time of `Clock.now` at which the request ends, whatever the server does. The shared cache brings it
            forward where a token of another process serves.
        forced: A newer token is wanted than the one that is cached.
        bypass_cache: IMDS is asked to bypass its own cache.
        generation: How often the cache entry was cleared before.
        endpoint_generation: How often the endpoint was cleared before.
        parent: The request whose hook, policy or log handler asks for this one.
        inline: It must run on the thread of its caller, which may have what other requests wait for. Others do so
            where no thread can start.
        held_since: When the usable token that this process holds was stored; `NEVER` without one.
        held_until: When it expires.
    """

    def __init__(
        self,
        key: TokenKey,
        started: float,
        deadline: float,
        *,
        forced: bool = False,
        bypass_cache: bool = False,
        generation: int = 0,
        endpoint_generation: int = 0,
        parent: Optional["TokenRequest"] = None,
        inline: bool = False,
        held_since: float = NEVER,
        held_until: float = NEVER,
    ) -> None:
        self.key, self.started, self.deadline = key, started, deadline
        self.forced, self.bypass_cache, self.parent, self.inline = forced, bypass_cache, parent, inline
        self.generation, self.endpoint_generation = generation, endpoint_generation
        self.held_since, self.held_until = held_since, held_until
        self.attempt_errors: list[ImdsError] = []  # for callers that leave before it ends
        self.result: TokenResult | None = None  # None after the end: it was abandoned before it was sent
        self.has_begun = False  # a thread has begun to run it, or it has ended
        self.unsent_because: str | None = "its thread had not begun"  # why no attempt was sent yet; None once one was
        self.waiting = 0  # calls that wait for it
        self.callers = 0  # calls that waited for it; those that took the cached token at once do not count
        self.log: Callable[[], None] | None = None  # writes its log records, once it has ended
        self._done = False
        self._callbacks: list[Callable[[], object]] = []

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._done

    def has_overrun(self, now: float) -> bool:
        """Return whether it is so late that it may hang for good."""
        return now >= self.deadline + GRACE

    def set_result(self, result: TokenResult | None) -> None:
        """End the request; None when it was never sent."""
        self.result = result
        self.has_begun = self._done = True

    def add_done_callback(self, callback: Callable[[], object]) -> bool:
        """Have a function called at the end; return False when the request has ended already."""
        self._callbacks.append(callback)
        return not self._done  # after the append: an end in between has called it, or is seen here

    def run_callbacks(self) -> None:
        """Wake the callers that wait."""
        for callback in tuple(self._callbacks):
            with suppress(RuntimeError):  # an event loop that was closed meanwhile, where no caller waits any more
                callback()

    def includes(self, other: Optional["TokenRequest"]) -> bool:
        """Return whether `other` is this request, or was asked for by its hooks, directly or not."""
        while other is not None and other is not self:
            other = other.parent
        return other is self

    def __repr__(self) -> str:
        return f"<TokenRequest {self.key.url} {self.key.identity} {self.key.resource}>"


# The request that the running code belongs to. A user's hooks, policies and log handlers run in one too.
current_request: ContextVar[TokenRequest | None] = ContextVar("current_request", default=None)


class Wait(NamedTuple):
    """What a caller waits for: the end of a request or, without one, just the time."""

    request: TokenRequest | None
    seconds: float  # at most

    def block(self) -> None:
        """Wait on this thread."""
        lock = threading.Lock()  # looked up here: gevent and eventlet may have replaced it after the import
        lock.acquire()
        if self.request is None or self.request.add_done_callback(lock.release):
            lock.acquire(timeout=max(0.0, self.seconds))

    async def block_async(self) -> None:
        """Wait in the running event loop."""
        import asyncio  # here: a program that only uses the sync class does not pay for it

        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        # Cancelling ends the wait below without a result to look at.
        if self.request is None or self.request.add_done_callback(lambda: loop.call_soon_threadsafe(ended.cancel)):
            try:
                await asyncio.wait((ended,), timeout=max(0.0, self.seconds))
            finally:
                ended.cancel()
