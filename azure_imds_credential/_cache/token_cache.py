"""The tokens of this process, and the requests under way for more.

One entry per (endpoint, identity, resource), one request per entry, for threads and tasks together. A request runs on a
thread of its own, so that a caller can leave at its deadline whatever the server does.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from .._calling_thread import (
    depth_of,
    has_stopping_hub,
    is_importing,
    owns,
    owns_logging_lock,
    release_to,
    runs_event_loop,
)
from .._clock import Clock
from .._endpoint import PROBE_INTERVAL, Absence, Endpoint, UrlState
from .._errors import copy_of, place_of, reporting
from .._fork import caches, import_lock, is_forking, register, reset_in_child
from .._observers import notify
from .._request import NEVER, TokenKey, TokenRequest, TokenResult, Wait, current_request
from ..exceptions import ImdsError
from .decision import (
    Decision,
    Fail,
    Fetch,
    Pause,
    Return,
    TokenCall,
    after_fetch,
    before_fetch,
    in_an_interrupt,
    without_waiting,
)
from .token_entry import FORCE_INTERVAL, CachedToken, TokenEntry

THREAD_NAME = "azure-imds-credential"
# Bytes. A request that overflows the stack of its thread ends the process. With 32 KiB it does, with 64 KiB it did not
# when this was tried; a user's transport may need more. (A stack_size of 0 is the system's default, which is larger.)
MIN_STACK = 256 * 1024
MIN_SWEEP = 64  # entries; below this number none are dropped
SWEEP_INTERVAL = 600.0  # seconds; so long an idle entry may stay where requests are made, but for no new key

# The one line that a request logs.
REQUEST_LINE = (
    "IMDS: identity=%(imds_identity)s resource=%(imds_resource)s outcome=%(imds_outcome)s "
    "attempts=%(imds_attempts)d milliseconds=%(imds_milliseconds)d expires_in=%(imds_expires_in)s "
    "client_id=%(imds_client_id)s match=%(imds_match)s"
)
DISCARDED = "discarded token"  # the outcome of a refresh that brought a worse token than the cached one
SHORT_LIVED = "the new token expires within minutes, before the cached one"
REFRESH_FAILED = "refreshing a token failed, the cached one serves for %d s more; next try in %d s: %s"

_logger = logging.getLogger("azure_imds_credential")

# The request that the running code is about to start. A signal handler or a finalizer that interrupts it sees it too.
_starting: ContextVar[TokenRequest | None] = ContextVar("_starting", default=None)


class CallOptions(Protocol):
    """What the cache needs of a credential: how long a call may take, and the functions that reach IMDS.

    `_options.CredentialOptions` has it.
    """

    timeout: float
    wait_for_identity: float
    runs_hooks: bool  # hooks or policies of the user's run in a request

    def fetch(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        """Get a token, on the thread of the request."""
        ...

    def has_listener(self, url: str) -> bool:
        """Return whether something accepts connections at a base URL."""
        ...


class Filling(Iterator[Wait]):
    """The waits of one call. When they are over, `cached` is the token that it gets.

    Args:
        waits: Yields them, and returns the token.
        *locks: Reentrant locks that each step takes and gives back. After an interrupt they are as they were before it.
    """

    cached: CachedToken

    def __init__(self, waits: Generator[Wait, None, CachedToken], *locks: Any) -> None:
        self._waits, self._locks = waits, locks

    def __next__(self) -> Wait:
        depths = self._depths()
        try:
            return next(self._waits)
        except StopIteration as end:
            self.cached = end.value
            raise
        except ImdsError:  # how a call without a token ends; it leaves nothing locked
            raise
        except BaseException:  # an interrupt, or what a signal handler raised
            self._release_to(depths)
            raise

    def close(self) -> None:
        """End the call before it has a token."""
        depths = self._depths()
        try:
            self._waits.close()
        except BaseException:
            self._release_to(depths)
            raise

    def _depths(self) -> list[int]:
        return [depth_of(lock) for lock in self._locks]

    def _release_to(self, depths: list[int]) -> None:
        for depth, lock in zip(depths, self._locks, strict=True):
            release_to(depth, lock)


class TokenCache:
    """Entries, and the one way to fill them.

    Args:
        clock: The clocks that tokens are measured by.
        urls: What is shared with other caches of the process about base URLs.
        custom_pipeline: Requests go through a transport, a policy or a hook of the user's.
    """

    def __init__(
        self, clock: Clock | None = None, urls: dict[str, UrlState] | None = None, *, custom_pipeline: bool = False
    ) -> None:
        self.clock = clock or Clock()
        self._urls: dict[str, UrlState] = {} if urls is None else urls
        self._custom_pipeline = custom_pipeline
        self._entries: dict[TokenKey, TokenEntry] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._sweep_at, self._swept_at = MIN_SWEEP, NEVER
        self._lock = threading.RLock()  # a signal handler may look for a token while this thread has it
        register(self)

    def private_copy(self, *, custom_pipeline: bool = False) -> TokenCache:
        """Return an empty cache for a credential whose options shape the request.

        The rate limit stays the process's, and so does the knowledge that an endpoint is IMDS, unless the credential
        reaches it in a way of its own.
        """
        return TokenCache(self.clock, self._urls, custom_pipeline=custom_pipeline)

    def reset_after_fork(self) -> None:
        """Keep the tokens in a forked child, and nothing of a machine that still boots."""
        self._keep_tokens()
        now = self.clock.now()
        for endpoint in tuple(self._endpoints.values()):
            endpoint.forget_boot(now)

    def _keep_tokens(self) -> None:
        """Keep the tokens where only this thread is left: in a forked child, and while the interpreter ends.

        Locks that other threads held stay locked for good, and their requests never end.
        """
        self._lock = threading.RLock()
        for entry in tuple(self._entries.values()):
            entry.plain_request = entry.forced_request = None
            entry.bypassed_at = NEVER
            entry.calls.clear()
        for endpoint in tuple(self._endpoints.values()):
            endpoint.stop_probing()
        for url in tuple(self._urls.values()):
            url.limiter.reset()

    def entry(self, key: TokenKey) -> TokenEntry:
        """Return the one entry of this key."""
        reset_in_child()
        if sys.is_finalizing():
            self._keep_tokens()
        # Without the lock: the entry that counts is the one that `_waits` finds.
        entry = self._entries.get(key)
        return entry or self._entries.setdefault(key, TokenEntry(key, self._endpoint(key.url)))

    def _endpoint(self, url: str) -> Endpoint:
        endpoint = self._endpoints.get(url)
        if endpoint is None:
            state = self._urls.setdefault(url, UrlState())
            endpoint = self._endpoints.setdefault(url, Endpoint(url, state, custom_pipeline=self._custom_pipeline))
        return endpoint

    def _sweep(self, now: float) -> None:
        """Drop idle entries, when the number of entries has doubled and every ten minutes."""
        count = len(self._entries)
        if count >= self._sweep_at or (count >= MIN_SWEEP and now >= self._swept_at + SWEEP_INTERVAL):
            self._swept_at = now
            self._entries = {key: entry for key, entry in self._entries.copy().items() if not entry.is_idle(now)}
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._entries))

    def clear(self) -> None:
        """Cache no token, and know nothing of any endpoint."""
        with self._lock:
            # Copies: a finalizer that asks for a token may run in between, on this thread.
            for entry in tuple(self._entries.values()):
                entry.clear()
            for endpoint in tuple(self._endpoints.values()):
                endpoint.clear()
            for url in tuple(self._urls.values()):  # also those that only caches of the past asked
                url.clear()

    def fill(self, entry: TokenEntry, options: CallOptions, *, force_refresh: bool) -> Filling:
        """Return what a call has to wait for until there is a token for it.

        The caller does the waiting, on a thread or in an event loop, and nothing else.

        Raises:
            ImdsError: While iterating: there is no token to be had in time.
        """
        call = TokenCall(
            self.clock.now(),
            timeout=options.timeout,
            wait_for_identity=options.wait_for_identity,
            force_refresh=force_refresh,
        )
        return Filling(self._waits(entry, options, call), self._lock, entry.endpoint.limiter.lock, import_lock)

    def _waits(self, entry: TokenEntry, options: CallOptions, call: TokenCall) -> Generator[Wait, None, CachedToken]:
        try:
            with self._lock:
                # It may have been dropped, and made anew by another caller, before it was known that this one waits.
                entry = self._entries.setdefault(entry.key, entry)
                entry.calls.add(id(call))  # no reference: a call that is abandoned must be collected, and so end
                self._sweep(self.clock.now())
            while True:
                decision = self._decide(entry, options, call)
                if isinstance(decision, Fetch) and call.request is not None:
                    seconds = decision.wait_until - self.clock.now()
                    if seconds > 0 and not call.request.done():
                        yield Wait(call.request, seconds)
                    decision = self._conclude(entry, call, call.request)
                if isinstance(decision, Return):
                    return decision.cached
                if isinstance(decision, Fail):
                    raise copy_of(decision.error)  # without the lock: to copy it may run code of the user's
                if isinstance(decision, Pause):
                    yield Wait(None, decision.until - self.clock.now())
        finally:
            with self._lock:
                entry.calls.discard(id(call))
                log = _leave(call)
            if log is not None:
                log()

    def _decide(self, entry: TokenEntry, options: CallOptions, call: TokenCall) -> Decision:
        """Decide, and act on it: after a `Fetch` the call has a request to wait for.

        A signal handler or a finalizer may call while its own thread is in here. Where it interrupted the start of a
        request, the handler's call runs that request. Where it interrupted its thread under a lock, the handler's call
        cannot wait for any request.
        """
        new = probe = None
        inside, starting = current_request.get(), _starting.get()
        has_lock, is_starting = self._has_lock(entry), starting is not None and not starting.has_begun
        try:
            with self._lock:
                now = self.clock.now()
                interrupts = has_lock or is_starting
                decision = self._next_step(entry, options, call, now, inside, interrupts=interrupts, has_lock=has_lock)
                if isinstance(decision, Fetch):
                    request = decision.join
                    if request is None:
                        request = new = _new_request(entry, decision, now, inside)
                        _starting.set(new)  # first: from the next line on other calls may join it
                        entry.set_request(new)
                    request.waiting += 1  # first: counted once too often it costs a log line, once too few a deadlock
                    call.request = request
                    request.callers += decision.wait_until > now
                elif isinstance(decision, Fail):
                    probe = entry.endpoint.absence_to_probe(now)
                elif isinstance(decision, Pause):
                    call.has_paused = True
            runs_here = is_starting or (new is not None and new.inline)
            if runs_here and call.request is not None:
                self._run(entry, options, call.request, on_own_thread=False)
            elif new is not None:
                self._start(entry, options, new)
        except BaseException:  # an interrupt: no other caller may wait for a request that never starts
            if new is not None and not new.has_begun:
                self._finish(entry, new, None)
            raise
        finally:
            if new is not None:
                _starting.set(starting)
        if probe is not None:
            self._start_probe(entry.endpoint, probe, options, max(0.0, probe.noted_at + PROBE_INTERVAL - now))
        return decision

    def _next_step(
        self,
        entry: TokenEntry,
        options: CallOptions,
        call: TokenCall,
        now: float,
        inside: TokenRequest | None,
        *,
        interrupts: bool,
        has_lock: bool,
    ) -> Decision:
        """Return what a call does next, given what its thread is in the middle of."""
        entry.check_wall_clock(now, self.clock)
        decision = before_fetch(entry, call, now, inside)
        if interrupts:
            decision = in_an_interrupt(entry, now, decision, has_lock=has_lock)
        if isinstance(decision, Fetch) and must_not_wait(runs_hooks=options.runs_hooks):
            decision = without_waiting(call, now, decision)
        return decision

    def _has_lock(self, entry: TokenEntry) -> bool:
        """Return whether this thread has a lock that a request needs: the call interrupted it there."""
        # A thread that forks has the import lock without importing anything.
        return any(owns(lock) for lock in (self._lock, entry.endpoint.limiter.lock)) or (
            owns(import_lock) and not is_forking()
        )

    def _conclude(self, entry: TokenEntry, call: TokenCall, request: TokenRequest) -> Decision:
        """Decide after a wait for a request, or without one where a cached token serves."""
        with self._lock:
            call.note_wait(request)
            now = self.clock.now()
            entry.check_wall_clock(now, self.clock)  # the VM may have been paused meanwhile
            decision = after_fetch(entry, call, request, now)
            log = _leave(call)
        if log is not None:
            log()
        return decision

    def _start(self, entry: TokenEntry, options: CallOptions, request: TokenRequest) -> None:
        """Run a new request on a thread of its own.

        Where no thread can start, it runs here, unless a cached token serves meanwhile.
        """
        if _start_thread(self._run, entry, options, request):
            return
        if request.forced or request.held_until <= request.started:
            self._run(entry, options, request, on_own_thread=False)
            return
        self._finish(entry, request, None)
        with self._lock:
            entry.postpone_refresh(self.clock.now())

    def _run(
        self, entry: TokenEntry, options: CallOptions, request: TokenRequest, *, on_own_thread: bool = True
    ) -> None:
        """Fetch a token and keep what comes. Do nothing if the request has begun elsewhere, or has ended."""
        token, place = current_request.set(request), ""
        try:
            with self._lock:
                if request.has_begun:
                    return  # its caller was interrupted while it started
                request.has_begun = True
            try:
                result = options.fetch(request, entry.endpoint, self.clock)
            except BaseException as error:  # a user's hook may raise anything, and callers are waiting
                if not (on_own_thread or isinstance(error, Exception)):
                    self._finish(entry, request, None)  # an interrupt is this caller's: others ask again
                    raise
                place = place_of(error)
                _forget_frames(error)
                result = TokenResult(error=error, timed_out=self.clock.now() >= request.deadline)
            self._finish(entry, request, result, place)
        finally:
            current_request.reset(token)  # last: a finalizer may run at any moment, on this thread

    def _finish(self, entry: TokenEntry, request: TokenRequest, result: TokenResult | None, place: str = "") -> None:
        """End a request: keep what it brought, wake the callers, and see to it that it is logged once.

        A call that waits writes the log records, on its own thread and outside the lock. The thread of the request
        would wait for the lock of a log handler that asks for the token, which waits for this request.
        """
        fields = None
        with self._lock:
            now = self.clock.now()
            try:
                serves = entry.finish(request, result, now, self.clock)
            except Exception as error:  # a wall clock that tests replaced; callers are waiting all the same
                _forget_frames(error)
                serves, result = None, TokenResult(error=error)
            pause = max(0.0, entry.retry_at - now)
            if request.done():
                return  # it was abandoned, and no caller waits any more
            if result is not None and result.log_fields is not None:
                fields = {
                    **result.log_fields,
                    "imds_callers": request.callers,
                    "imds_refresh": request.held_until > request.started,
                }
                if serves is not None and result.error is None:
                    fields |= {"imds_outcome": DISCARDED, "imds_expires_in": None}
            request.log = partial(_log, fields, result, serves, pause, place)
            request.set_result(result)
            log = None if request.waiting else _taken_log(request)
        try:
            if fields is not None:
                with reporting():
                    notify(fields)
        finally:
            request.run_callbacks()
        if log is not None:
            log()

    def _start_probe(self, endpoint: Endpoint, absence: Absence, options: CallOptions, delay: float) -> None:
        # In no context: probes may go on for long, and would keep alive what the caller's context holds.
        if not contextvars.Context().run(_start_thread, self._probe, endpoint, absence, options, delay):
            endpoint.stop_probing()

    def _probe(self, endpoint: Endpoint, absence: Absence, options: CallOptions, delay: float) -> None:
        """Look whether something accepts connections now where nothing did before, and go on once a second."""
        Wait(None, delay).block()
        try:
            found = options.has_listener(endpoint.url)
        except Exception:  # what keeps this process from connecting, such as a test's guard; the next probe may succeed
            found = False
        with self._lock:
            remembered = endpoint.record_probe(absence, found=found, now=self.clock.now())
        if remembered is not None:
            self._start_probe(endpoint, remembered, options, PROBE_INTERVAL)


def _forget_frames(error: BaseException) -> None:
    """Keep no frames of the request with an error: they hold responses, and responses hold tokens."""
    for name in ("__traceback__", "__context__", "__cause__"):
        BaseException.__setattr__(error, name, None)  # an error of the user's may refuse to be changed


def _leave(call: TokenCall) -> Callable[[], None] | None:
    """Count a call out that waits for a request no more; return what it is to log."""
    request, call.request = call.request, None
    if request is None:
        return None
    request.waiting -= 1
    return _taken_log(request)


def _taken_log(request: TokenRequest) -> Callable[[], None] | None:
    """Return what writes the log records of a request, once; None before its end."""
    log, request.log = request.log, None
    return log


def _log(
    fields: Mapping[str, object] | None, result: TokenResult | None, serves: float | None, pause: float, place: str
) -> None:
    """Write the log records of a request.

    Args:
        fields: What its one line holds.
        result: What it brought.
        serves: Where a refresh failed: the seconds for which the cached token still serves.
        pause: The seconds until the next try.
        place: Where an error of a user's hook was raised.
    """
    with reporting():
        if place and result is not None:
            _logger.debug("%s raised in %s", type(result.error).__name__, place)
        if fields is not None:
            _logger.info(REQUEST_LINE, fields, extra=fields)
        if result is not None and serves is not None:
            _logger.warning(REFRESH_FAILED, serves, pause, result.error or SHORT_LIVED)


def must_not_wait(*, runs_hooks: bool) -> bool:
    """Return whether this thread has what a request on another thread may wait for.

    Args:
        runs_hooks: Hooks or policies of the user's run in the request. They may import from the package that this
            thread imports. Where it runs an event loop, other tasks must go on all the same.
    """
    return owns_logging_lock() or is_forking() or (runs_hooks and not runs_event_loop() and is_importing())


def _new_request(entry: TokenEntry, fetch: Fetch, now: float, inside: TokenRequest | None) -> TokenRequest:
    cached = entry.usable(now)
    return TokenRequest(
        entry.key,
        now,
        fetch.deadline,
        forced=fetch.forced,
        bypass_cache=fetch.forced and now >= entry.bypassed_at + FORCE_INTERVAL,
        generation=entry.generation,
        endpoint_generation=entry.endpoint.generation,
        parent=inside,
        inline=fetch.inline,
        held_since=entry.stored_at if cached else NEVER,
        held_until=cached.expires_at if cached else NEVER,
    )


def _start_thread(function: Callable[..., None], *args: object) -> bool:
    """Run a function on a daemon thread, in a copy of the caller's context; return whether one could start."""
    # CPython 3.10 and 3.11 would wait here for a thread that never runs while the interpreter ends. While this thread
    # forks, one that starts would be lost, or be taken for one of the parent.
    if sys.is_finalizing() or is_forking() or has_stopping_hub():
        return False
    try:
        if 0 < threading.stack_size() < MIN_STACK:
            return False
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(function, *args), name=THREAD_NAME, daemon=True)
        thread.start()
        return isinstance(getattr(thread, "ident", None), int)  # a mock has begun nothing
    except Exception:  # a limit of the system, an isolated sub-interpreter or one that shuts down, a mock of a test
        return False


process_cache = TokenCache()


def forget_tokens() -> None:
    """Empty the caches of this process, for tests that must not see each other's tokens."""
    for cache in caches():
        cache.clear()
