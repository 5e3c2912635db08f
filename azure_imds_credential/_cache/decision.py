"""What a call of `get_token` does next. Pure: an entry, a call and the time in, a decision out."""

from __future__ import annotations

import math
from typing import TypeAlias

from .._errors import local_error, remembered, timeout_error
from .._request import GRACE, TokenRequest
from ..exceptions import IdentityUnavailableError
from .token_entry import FORCE_INTERVAL, CachedToken, TokenEntry, TokenState

# Seconds.
IDENTITY_INTERVAL = 5.0  # between two requests while a caller waits for an identity
DEAD_TOKEN_PAUSE = 0.5  # after a token that had expired on arrival, in case they always have
REFRESH_TIMEOUT = 90.0  # of a refresh in the background: what a call has by default
LAST_REQUEST_TIME = 1.0  # before its deadline a caller that waits for an identity asks for the last time
MIN_EXTRA_TIME = 0.5  # a call starts another request if it has this much more than one that ran out of time
REFRESH_WAIT = 2.0  # for which a caller with a usable token waits for a refresh in the last minutes


class TokenCall:
    """One call of `get_token`: what it wants, and what it has been through.

    Args:
        now: Time of `Clock.now` at which it began.
        timeout: Seconds that it has.
        wait_for_identity: Seconds for which "no such identity" is not the last word.
        force_refresh: A newer token is wanted than the one that is cached.
    """

    def __init__(
        self, now: float, *, timeout: float, wait_for_identity: float = 0.0, force_refresh: bool = False
    ) -> None:
        self.timeout, self.force_refresh = timeout, force_refresh
        self.deadline = now + timeout
        # The last request needs time for its response. A quarter of a short timeout is for it.
        self.identity_deadline = min(now + wait_for_identity, self.deadline - min(LAST_REQUEST_TIME, timeout / 4))
        self.uses_known_absence = not force_refresh and wait_for_identity == 0
        self.has_waited = False  # for a request, or it has looked at one that goes on in the background
        self.has_paused = False  # it has paused for an identity: what others were told before is old
        self.identity_error: BaseException | None = None  # the last "no such identity" that it was told
        self.request: TokenRequest | None = None  # that it waits for

    def note_wait(self, request: TokenRequest) -> None:
        """Remember a wait for a request, and whether it said that there is no such identity."""
        self.has_waited = True
        error = request.result.error if request.result is not None else None
        if isinstance(error, IdentityUnavailableError):
            self.identity_error = error


class Return:
    """Hand out this token."""

    def __init__(self, cached: CachedToken) -> None:
        self.cached = cached


class Fail:
    """Raise a copy of this error: another caller may raise it too."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Pause:
    """Look again at this time."""

    def __init__(self, until: float) -> None:
        self.until = until


class Fetch:
    """Wait for a request.

    Args:
        join: The request; None to start one.
        deadline: Of a new one.
        wait_until: Time of `Clock.now` at which the caller goes on without it.
        forced: A newer token is wanted than the one that is cached.
        cached_serves: A cached token serves, also when the request has not ended by `wait_until`.
        inline: The caller's thread has what a request on another thread may wait for: it is to run a new one itself.
    """

    def __init__(
        self,
        join: TokenRequest | None,
        deadline: float,
        wait_until: float,
        *,
        forced: bool,
        cached_serves: bool = False,
        inline: bool = False,
    ) -> None:
        self.join, self.deadline, self.wait_until = join, deadline, wait_until
        self.forced, self.cached_serves, self.inline = forced, cached_serves, inline


Decision: TypeAlias = Return | Fail | Pause | Fetch


def before_fetch(entry: TokenEntry, call: TokenCall, now: float, inside: TokenRequest | None) -> Decision:
    """Return the next step of a call that is not waiting for a request.

    Args:
        entry: What is cached.
        call: The call.
        now: Time of `Clock.now`.
        inside: The request whose hook, policy or log handler makes the call.
    """
    forced = call.force_refresh
    if forced and not call.has_waited and now < entry.forced_at + FORCE_INTERVAL:
        if entry.forced_error is None:
            forced = False  # what was forced a moment ago serves this caller too
        elif not (call.has_paused or _may_still_come(entry.forced_error, call, now)):
            return Fail(entry.forced_error)
    cached = entry.usable(now)
    if cached is None or forced:
        return _fetch(entry, call, now, inside, forced=forced)
    return _refresh(entry, call, now, inside, cached)


def _fetch(entry: TokenEntry, call: TokenCall, now: float, inside: TokenRequest | None, *, forced: bool) -> Decision:
    """Decide for a call that no cached token serves."""
    if (absence := _known_absence(entry, call, now)) is not None:
        return Fail(absence)
    request = entry.request(forced=forced)
    pause = _identity_pause(entry, call, now)
    if request is None and pause > 0:
        return Pause(now + pause)
    if request is not None and request.includes(inside):
        reason = "A hook or a log handler of the request itself asked for its token"
        hint = "Ask for it somewhere else, before or after that request."
        return Fail(local_error(entry.key, reason, hint))
    if request is not None and request.has_overrun(now):
        request = None
    deadline = call.deadline if request is None else min(call.deadline, request.deadline)
    return Fetch(request, call.deadline, deadline + GRACE, forced=forced)


def _refresh(
    entry: TokenEntry, call: TokenCall, now: float, inside: TokenRequest | None, cached: CachedToken
) -> Decision:
    """Decide for a call that a cached token serves."""
    state, request = cached.state(now), entry.plain_request
    if state is TokenState.FRESH or (request is not None and request.includes(inside)):
        return Return(cached)
    if request is not None and request.has_overrun(now):
        request = None
    if request is None and now < entry.retry_at:
        return Return(cached)
    started = now if request is None else request.started
    wait_until = min(started + REFRESH_WAIT, call.deadline) if state is TokenState.EXPIRING else now
    if request is not None and wait_until <= now:
        return Return(cached)
    return Fetch(request, now + REFRESH_TIMEOUT, wait_until, forced=False, cached_serves=True)


def in_an_interrupt(entry: TokenEntry, now: float, decision: Decision, *, has_lock: bool) -> Decision:
    """Return what a call does instead that interrupted its own thread inside the cache, as a signal handler does.

    Args:
        entry: What is cached.
        now: Time of `Clock.now`.
        decision: What it would do otherwise.
        has_lock: The thread has a lock that every request needs, so no wait would end.
    """
    cached = entry.usable(now)
    if isinstance(decision, Fetch) and decision.cached_serves and cached is not None:
        return Return(cached)
    if has_lock and isinstance(decision, (Fetch, Pause)):
        reason = "A signal handler or a finalizer asked while its thread was looking for a token, and holds a lock"
        hint = "Ask again after the handler: have it set a flag, or get the token before."
        return Fail(local_error(entry.key, reason, hint))
    return decision


def without_waiting(call: TokenCall, now: float, decision: Decision) -> Decision:
    """Return what a call does instead whose thread has what a request on another thread may wait for.

    It waits for none: a cached token serves, or it runs a request of its own. One that is under way goes on for those
    who wait for it already.

    Args:
        call: The call.
        now: Time of `Clock.now`.
        decision: What it would do otherwise.
    """
    if not isinstance(decision, Fetch):
        return decision
    if decision.cached_serves:
        return Fetch(decision.join, decision.deadline, now, forced=False, cached_serves=True)
    return Fetch(None, call.deadline, call.deadline + GRACE, forced=decision.forced, inline=True)


def after_fetch(entry: TokenEntry, call: TokenCall, request: TokenRequest, now: float) -> Decision:
    """Return the next step of a call that has waited for a request.

    Args:
        entry: What is cached.
        call: The call.
        request: The request; it may have ended or not.
        now: Time of `Clock.now`.
    """
    result, cached = request.result, entry.usable(now)
    brought_token = result is not None and result.error is None
    if cached is not None and (brought_token or not request.forced):
        return Return(cached)
    error, until = _failure(entry, call, request, now)
    if until < call.deadline:
        return Pause(until)
    if request.unsent_because is not None and (absence := _known_absence(entry, call, now)) is not None:
        return Fail(absence)  # found out by another request meanwhile
    # That there is no such identity tells more than that the time was up for asking again.
    is_answer = result is not None and result.error is error and not result.timed_out
    if call.identity_error is not None and not is_answer:
        error = call.identity_error
    return Fail(error)


def _failure(entry: TokenEntry, call: TokenCall, request: TokenRequest, now: float) -> tuple[BaseException, float]:
    """Return the error of a request that brought this call no token, and when to ask again; infinite for never."""
    result, errors = request.result, tuple(request.attempt_errors)
    if result is None:  # it overran its deadline, or was abandoned before it was sent
        return errors[-1] if errors else _timeout(entry, call, request), now
    if result.error is None:
        if request.generation != entry.generation:
            return _timeout(entry, call, request), now  # its token was forgotten: ask for another
        return _timeout(entry, call, request), now + DEAD_TOKEN_PAUSE
    if _may_still_come(result.error, call, now):
        return result.error, now + _identity_pause(entry, call, now)
    if result.timed_out and call.deadline > request.deadline + MIN_EXTRA_TIME:
        return result.error, now + result.retry_after  # it had less time than this call
    return result.error, math.inf


def _known_absence(entry: TokenEntry, call: TokenCall, now: float) -> BaseException | None:
    """Return the error that tells a call of the absence of IMDS that is remembered, if it is and the call heeds it."""
    absence = entry.endpoint.known_absence(now) if call.uses_known_absence else None
    if absence is None:
        return None
    identity, resource = str(entry.key.identity), entry.key.resource
    return remembered(absence.error, now - absence.noted_at, identity=identity, resource=resource)


def _timeout(entry: TokenEntry, call: TokenCall, request: TokenRequest) -> BaseException:
    return timeout_error(entry.key, call.timeout, seen=entry.endpoint.seen, unsent_because=request.unsent_because)


def _may_still_come(error: BaseException, call: TokenCall, now: float) -> bool:
    """Return whether the error says that there is no such identity, and the caller waits for one."""
    return isinstance(error, IdentityUnavailableError) and now < call.identity_deadline


def _identity_pause(entry: TokenEntry, call: TokenCall, now: float) -> float:
    """Return for how many seconds IMDS need not be asked again, after it said that there is no such identity."""
    if now >= call.identity_deadline:
        return 0.0
    return max(0.0, min(entry.no_identity_at + IDENTITY_INTERVAL, call.identity_deadline) - now)
