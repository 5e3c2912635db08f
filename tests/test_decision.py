"""What a call does next, as tables: an entry, a call and the time in, a decision out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from azure_imds_credential import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential._cache.decision import (
    MIN_EXTRA_TIME,
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
from azure_imds_credential._cache.token_entry import CachedToken, TokenEntry, cached_token
from azure_imds_credential._endpoint import Absence, Endpoint, UrlState
from azure_imds_credential._identity import Identity
from azure_imds_credential._request import GRACE, TokenKey, TokenRequest, TokenResult

KEY = TokenKey("http://127.0.0.1", Identity(), "https://a")
NOW = 1000.0
TIMEOUT = 50.0
NO_IDENTITY = IdentityUnavailableError("none")
SERVICE = ImdsServiceError("no")
# Each state of a token, by when it is refreshed and when it expires.
FRESH, STALE, EXPIRING, EXPIRED = (2000.0, 3000.0), (900.0, 3000.0), (900.0, 1300.0), (900.0, 1000.0)


@pytest.fixture
def entry() -> TokenEntry:
    """An entry without a token."""
    return TokenEntry(KEY, Endpoint(KEY.url, UrlState()))


def _call(begun: float = NOW, **members: Any) -> TokenCall:
    return TokenCall(begun, **({"timeout": TIMEOUT} | members))


def _request(started: float = NOW, deadline: float = NOW + 90.0, **members: Any) -> TokenRequest:
    return TokenRequest(KEY, started, deadline, **members)


def _members(decision: Decision) -> tuple[type[Decision], dict[str, Any]]:
    return type(decision), vars(decision)


def _hold(entry: TokenEntry, times: tuple[float, float]) -> CachedToken:
    entry.cached = cached_token("dummy", *times, 0.0, 0.0)
    return entry.cached


def _failed(error: BaseException, request: TokenRequest | None = None, **members: Any) -> TokenRequest:
    request = request or _request()
    request.set_result(TokenResult(error=error, **members))
    return request


def test_a_call_begins() -> None:
    """The deadlines of a call count from its beginning, and a new call has joined no request and not paused."""
    call = TokenCall(NOW, timeout=50.0, wait_for_identity=20.0, force_refresh=True)
    assert vars(call) == {
        "timeout": 50.0,
        "force_refresh": True,
        "deadline": 1050.0,
        "identity_deadline": 1020.0,
        "uses_known_absence": False,
        "has_waited": False,
        "has_paused": False,
        "identity_error": None,
        "request": None,
    }
    plain = TokenCall(NOW, timeout=50.0)
    assert (plain.force_refresh, plain.identity_deadline) == (False, NOW)


@pytest.mark.parametrize(
    ("members", "uses"),
    [({}, True), ({"force_refresh": True}, False), ({"wait_for_identity": 1.0}, False)],
    ids=str,
)
def test_which_calls_use_remembered_absence(members: dict[str, Any], uses: bool) -> None:
    """A call uses remembered absence unless it forces a refresh or waits for an identity."""
    assert _call(**members).uses_known_absence is uses


@pytest.mark.parametrize(
    ("result", "remembered"),
    [
        (TokenResult(error=NO_IDENTITY), NO_IDENTITY),
        (TokenResult(error=SERVICE), None),
        (TokenResult("dummy"), None),
        (None, None),
    ],
    ids=["no identity", "error", "token", "none"],
)
def test_a_wait_is_noted(result: TokenResult | None, remembered: BaseException | None) -> None:
    """That there is no such identity is remembered by the call."""
    call, request = _call(), _request()
    request.set_result(result)
    call.note_wait(request)
    assert call.has_waited is True
    assert call.identity_error is remembered


# A call that no token serves.


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("times", [None, EXPIRED], ids=str)
def test_a_first_request(entry: TokenEntry, times: tuple[float, float] | None, forced: bool) -> None:
    """Without a token one is started, which has what time the call has; the caller waits for it a moment longer."""
    if times:
        _hold(entry, times)
    entry.set_request(_request(forced=not forced))
    decision = before_fetch(entry, _call(force_refresh=forced), NOW, None)
    assert _members(decision) == _members(Fetch(None, 1050.0, 1050.0 + GRACE, forced=forced))
    assert isinstance(decision, Fetch)
    assert decision.cached_serves is False


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("deadline", "joins", "wait_until"),
    [
        (1040.0, True, 1040.0 + GRACE),  # for as long as it may take
        (1090.0, True, 1050.0 + GRACE),  # but not longer than the call has
        (NOW - GRACE / 2, True, NOW + GRACE / 2),  # it is about to say why it failed
        (NOW - GRACE, False, 1050.0 + GRACE),  # it overran its deadline
        (NOW - 50.0, False, 1050.0 + GRACE),
    ],
)
def test_a_request_is_joined(entry: TokenEntry, forced: bool, deadline: float, joins: bool, wait_until: float) -> None:
    """A call joins a request of the same kind (forced or not) that is under way, unless it overran its deadline."""
    request = _request(deadline=deadline, forced=forced)
    entry.set_request(request)
    decision = before_fetch(entry, _call(force_refresh=forced), NOW, None)
    assert isinstance(decision, Fetch)
    assert decision.join is (request if joins else None)
    assert decision.wait_until == pytest.approx(wait_until)
    assert (decision.deadline, decision.forced, decision.cached_serves) == (1050.0, forced, False)


@pytest.mark.parametrize("seen", [False, True])
def test_a_request_cannot_wait_for_itself(entry: TokenEntry, seen: bool) -> None:
    """A hook that asks for the token of its own request is told so at once; for another one it waits."""
    request = _request()
    entry.plain_request, entry.endpoint._seen_by.seen = request, seen
    for inside in (request, _request(parent=request)):
        decision = before_fetch(entry, _call(), NOW, inside)
        assert isinstance(decision, Fail)
        assert type(decision.error) is ImdsServiceError, "which says nothing of the endpoint: a chain ends here"
        assert "asked for its token" in str(decision.error)
        assert isinstance(decision.error, ImdsError)
        assert (decision.error.elapsed, decision.error.resource) == (0.0, "https://a")
        assert "somewhere else" in (decision.error.hint or "")
    assert _members(before_fetch(entry, _call(), NOW, _request())) == _members(
        Fetch(request, 1050.0, 1050.0 + GRACE, forced=False)
    )


@pytest.mark.parametrize(
    ("members", "now", "is_told"),
    [({}, 1007.0, True), ({}, 1020.0, False), ({"force_refresh": True}, 1007.0, False)],
    ids=str,
)
def test_remembered_absence(entry: TokenEntry, members: dict[str, Any], now: float, is_told: bool) -> None:
    """A call that believes it is told how old it is, and asks when it is forgotten."""
    error = ImdsUnavailableError("nothing answers")
    entry.endpoint.absence = Absence(error, 1000.0, 1020.0, can_probe=True)
    decision = before_fetch(entry, _call(**members), now, None)
    assert isinstance(decision, Fail) is is_told
    if isinstance(decision, Fail):
        assert str(decision.error) == "nothing answers (This is remembered: it was found out 7 s ago.)"
        assert isinstance(decision.error, ImdsUnavailableError)
        assert (decision.error.identity, decision.error.resource) == (str(KEY.identity), KEY.resource)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("wait_for", "no_identity_at", "timeout", "until"),
    [
        (60.0, NOW - 1.0, 90.0, NOW + 4.0),  # five seconds after IMDS said so
        (60.0, NOW - 5.0, 90.0, None),
        (60.0, NOW - 4.5, 90.0, NOW + 0.5),
        (2.0, NOW - 1.0, 90.0, NOW + 2.0),  # or when it stops waiting for the identity
        (0.0, NOW - 1.0, 90.0, None),
        (4.0, NOW - 1.0, 4.0, NOW + 3.0),  # the last request has a second, or a quarter of a shorter timeout
        (4.0, NOW - 1.0, 4.5, NOW + 3.5),
        (2.0, NOW - 1.0, 2.0, NOW + 1.5),
        (60.0, -math.inf, 90.0, None),
    ],
)
def test_a_pause_for_an_identity(
    entry: TokenEntry, forced: bool, wait_for: float, no_identity_at: float, timeout: float, until: float | None
) -> None:
    """A patient call does not ask again within five seconds, but joins a request under way."""
    entry.no_identity_at = no_identity_at
    call = _call(wait_for_identity=wait_for, timeout=timeout, force_refresh=forced)
    decision = before_fetch(entry, call, NOW, None)
    if until is None:
        assert isinstance(decision, Fetch)
    else:
        assert _members(decision) == _members(Pause(until))
    request = _request(forced=forced)
    entry.set_request(request)
    decision = before_fetch(entry, call, NOW, None)
    assert isinstance(decision, Fetch)
    assert decision.join is request


# A call that a token serves.


@pytest.mark.parametrize("retry_at", [-math.inf, 0.0])
def test_a_fresh_token(entry: TokenEntry, retry_at: float) -> None:
    """A call gets a fresh token from the cache and starts no request."""
    cached = _hold(entry, FRESH)
    assert _members(before_fetch(entry, _call(), NOW, None)) == _members(Return(cached))


def test_a_stale_token(entry: TokenEntry) -> None:
    """A call that finds a stale token starts a refresh of 90 s, whatever its own timeout, and does not wait for it."""
    _hold(entry, STALE)
    assert _members(before_fetch(entry, _call(), NOW, None)) == _members(
        Fetch(None, NOW + 90.0, NOW, forced=False, cached_serves=True)
    )


@pytest.mark.parametrize(("timeout", "waits"), [(50.0, 2.0), (1.5, 1.5)])
def test_an_expiring_token(entry: TokenEntry, timeout: float, waits: float) -> None:
    """The caller that starts the refresh waits for it for two seconds, if it has them."""
    _hold(entry, EXPIRING)
    decision = before_fetch(entry, _call(timeout=timeout), NOW, None)
    assert _members(decision) == _members(Fetch(None, NOW + 90.0, NOW + waits, forced=False, cached_serves=True))


@pytest.mark.parametrize(
    ("times", "started", "wait_until"),
    [
        (STALE, NOW, None),
        (EXPIRING, NOW - 0.5, NOW + 1.5),  # two seconds of the refresh, not of each call
        (EXPIRING, NOW - 2.0, None),
        (EXPIRING, NOW - 3.0, None),
        (EXPIRING, NOW, NOW + 2.0),
    ],
)
def test_a_refresh_under_way(
    entry: TokenEntry, times: tuple[float, float], started: float, wait_until: float | None
) -> None:
    """Another caller gets the token, and waits only in its last minutes and for what is left of two seconds."""
    cached = _hold(entry, times)
    entry.plain_request = _request(started)
    decision = before_fetch(entry, _call(), NOW, None)
    if wait_until is None:
        assert _members(decision) == _members(Return(cached))
    else:
        assert _members(decision) == _members(
            Fetch(entry.plain_request, NOW + 90.0, wait_until, forced=False, cached_serves=True)
        )


@pytest.mark.parametrize("times", [STALE, EXPIRING], ids=str)
@pytest.mark.parametrize(("retry_at", "refreshes"), [(NOW + 0.1, False), (NOW, True), (NOW - 1.0, True)])
def test_backing_off(entry: TokenEntry, times: tuple[float, float], retry_at: float, refreshes: bool) -> None:
    """After a failed refresh a call gets the cached token, and starts no other refresh before the next try is due."""
    cached = _hold(entry, times)
    entry.retry_at = retry_at
    decision = before_fetch(entry, _call(), NOW, None)
    assert (_members(decision) == _members(Return(cached))) is not refreshes
    entry.plain_request = _request(NOW)
    assert isinstance(before_fetch(entry, _call(), NOW, None), Fetch if times == EXPIRING else Return)


@pytest.mark.parametrize(("overrun_by", "is_replaced"), [(GRACE / 2, False), (GRACE, True), (5.0, True)])
@pytest.mark.parametrize("times", [STALE, EXPIRING], ids=str)
def test_a_refresh_that_overran(
    entry: TokenEntry, times: tuple[float, float], overrun_by: float, is_replaced: bool
) -> None:
    """A refresh that overran its deadline may hang for good, so the next call starts another."""
    cached = _hold(entry, times)
    entry.plain_request = _request(NOW - 90.0, NOW - overrun_by)
    decision = before_fetch(entry, _call(), NOW, None)
    if is_replaced:
        assert isinstance(decision, Fetch)
        assert decision.join is None
        assert decision.wait_until == (NOW if times == STALE else NOW + 2.0)
    else:
        assert _members(decision) == _members(Return(cached))


@pytest.mark.parametrize("times", [STALE, EXPIRING], ids=str)
def test_a_refresh_that_asks_for_its_own_token(entry: TokenEntry, times: tuple[float, float]) -> None:
    """A hook of a refresh that asks gets the cached token; a hook of another request is treated as any call."""
    cached = _hold(entry, times)
    entry.plain_request = _request(NOW)
    assert _members(before_fetch(entry, _call(), NOW, entry.plain_request)) == _members(Return(cached))
    decision = before_fetch(entry, _call(), NOW, _request())
    assert isinstance(decision, Return if times == STALE else Fetch)


def test_a_request_without_a_refresh_gets_no_refresh_of_its_own(entry: TokenEntry) -> None:
    """A hook inside another request starts a refresh that is due."""
    _hold(entry, STALE)
    assert isinstance(before_fetch(entry, _call(), NOW, _request()), Fetch)


# A forced call.


@pytest.mark.parametrize(
    ("forced_at", "has_waited", "is_shared"),
    [
        (NOW - 29.0, False, True),
        (NOW - 30.0, False, False),
        (NOW - 29.0, True, False),  # a call that has asked already asks again
        (-math.inf, False, False),
    ],
)
def test_a_forced_token_serves_for_30_seconds(
    entry: TokenEntry, forced_at: float, has_waited: bool, is_shared: bool
) -> None:
    """For 30 s after a forced request a forced call takes the cached token or starts an ordinary request."""
    entry.forced_at = forced_at
    call = _call(force_refresh=True)
    call.has_waited = has_waited
    decision = before_fetch(entry, call, NOW, None)
    assert isinstance(decision, Fetch)
    assert decision.forced is (not is_shared)
    cached = _hold(entry, FRESH)
    decision = before_fetch(entry, call, NOW, None)
    assert (_members(decision) == _members(Return(cached))) is is_shared


@pytest.mark.parametrize(
    ("error", "wait_for", "has_paused", "is_told"),
    [
        (SERVICE, 0.0, False, True),
        (SERVICE, 60.0, False, True),
        (SERVICE, 0.0, True, False),  # it has paused since: what others were told is old
        (NO_IDENTITY, 0.0, False, True),
        (NO_IDENTITY, 60.0, False, False),  # it waits for the identity
    ],
)
def test_a_forced_failure_is_shared(
    entry: TokenEntry, error: BaseException, wait_for: float, has_paused: bool, is_told: bool
) -> None:
    """What IMDS said to the forced request of a moment ago is told to the next caller, in an error of its own."""
    _hold(entry, FRESH)
    entry.forced_at, entry.forced_error = NOW - 29.0, error
    call = _call(force_refresh=True, wait_for_identity=wait_for)
    call.has_paused = has_paused
    decision = before_fetch(entry, call, NOW, None)
    if is_told:
        assert isinstance(decision, Fail)
        assert decision.error is error
    else:
        assert _members(decision) == _members(Fetch(None, 1050.0, 1050.0 + GRACE, forced=True))


# After a wait.


@pytest.mark.parametrize("times", [FRESH, STALE, EXPIRING], ids=str)
@pytest.mark.parametrize(
    ("result", "forced", "is_returned"),
    [
        (TokenResult("dummy", 3000.0), False, True),
        (TokenResult("dummy", 3000.0), True, True),
        (TokenResult(error=SERVICE), False, True),  # the token serves, whatever became of the request
        (TokenResult(error=SERVICE), True, False),  # but not a caller that wanted another
        (None, False, True),
        (None, True, False),
    ],
)
def test_a_token_after_a_wait(
    entry: TokenEntry, times: tuple[float, float], result: TokenResult | None, forced: bool, is_returned: bool
) -> None:
    """A usable token is handed out, but to a forced call only one that its request brought."""
    cached = _hold(entry, times)
    request = _request(forced=forced)
    if result is not None:
        request.set_result(result)
    call = _call(begun=NOW - TIMEOUT, force_refresh=forced)
    decision = after_fetch(entry, call, request, NOW)
    assert (_members(decision) == _members(Return(cached))) is is_returned
    assert isinstance(decision, (Return, Fail))


@pytest.mark.parametrize(
    ("seen", "unsent_because", "cls", "told"),
    [
        (False, None, ImdsUnavailableError, "within 50 s"),
        (True, None, ImdsServiceError, "within 50 s"),
        (False, "too many", ImdsServiceError, "No request could be sent in time: too many. Raise timeout"),
        (True, "too many", ImdsServiceError, "No request could be sent in time: too many. Raise timeout"),
    ],
)
def test_a_request_without_a_result(
    entry: TokenEntry, seen: bool, unsent_because: str | None, cls: type[ImdsError], told: str
) -> None:
    """After a request that overran its deadline or was never sent a call starts another; at its deadline it fails."""
    entry.endpoint._seen_by.seen = seen
    request = _request()
    request.unsent_because = unsent_because
    assert _members(after_fetch(entry, _call(), request, 1049.0)) == _members(Pause(1049.0))
    decision = after_fetch(entry, _call(), request, 1050.0)
    assert isinstance(decision, Fail)
    assert type(decision.error) is cls
    assert isinstance(decision.error, ImdsError)
    assert decision.error.elapsed == TIMEOUT
    assert told in str(decision.error)
    assert decision.error.endpoint == KEY.url


@pytest.mark.parametrize("unsent_because", [None, "too many"])
@pytest.mark.parametrize(("members", "heeds"), [({}, True), ({"force_refresh": True}, False)], ids=str)
def test_absence_that_another_request_found(
    entry: TokenEntry, unsent_because: str | None, members: dict[str, Any], heeds: bool
) -> None:
    """A call for which nothing could be sent is told of it, so that a chain goes on; unless it never heeds it."""
    request = _failed(SERVICE)
    request.unsent_because = unsent_because
    entry.endpoint.absence = Absence(ImdsUnavailableError("nothing answers"), NOW - 1.0, NOW + 29.0, can_probe=True)
    decision = after_fetch(entry, _call(**members), request, NOW)
    assert isinstance(decision, Fail)
    is_told = heeds and unsent_because is not None
    assert type(decision.error) is (ImdsUnavailableError if is_told else ImdsServiceError)


def test_the_latest_attempt_is_told(entry: TokenEntry) -> None:
    """A call whose deadline comes while its request goes on raises the error of the latest attempt."""
    request = _request()
    request.attempt_errors += [ImdsServiceError("first"), ImdsServiceError("second"), ImdsServiceError("last")]
    decision = after_fetch(entry, _call(), request, 1050.0)
    assert isinstance(decision, Fail)
    assert decision.error is request.attempt_errors[-1]


@pytest.mark.parametrize(("generation", "pause"), [(0, 0.5), (1, 0.0)])
def test_a_dead_token(entry: TokenEntry, generation: int, pause: float) -> None:
    """A call asks again half a second after a token that had expired on arrival, at once after a forgotten one."""
    entry.generation = generation
    request = _request()
    request.unsent_because = None
    request.set_result(TokenResult("dead", NOW - 1.0))
    assert _members(after_fetch(entry, _call(), request, NOW)) == _members(Pause(NOW + pause))
    decision = after_fetch(entry, _call(), request, 1050.0)
    assert isinstance(decision, Fail)
    assert type(decision.error) is ImdsUnavailableError


@pytest.mark.parametrize("request_deadline", [NOW + 1.0, NOW + 90.0])
def test_a_refusal_is_final(entry: TokenEntry, request_deadline: float) -> None:
    """A call that IMDS refuses raises the error, however much time is left."""
    decision = after_fetch(entry, _call(), _failed(SERVICE, _request(deadline=request_deadline)), NOW)
    assert isinstance(decision, Fail)
    assert decision.error is SERVICE


@pytest.mark.parametrize(
    ("wait_for", "no_identity_at", "until"),
    [
        (60.0, NOW, NOW + 5.0),
        (3.0, NOW, NOW + 3.0),
        (60.0, NOW - 9.0, NOW),
        (0.0, NOW, None),
        (50.0, NOW + 46.0, 1049.0),  # the last request has time for its response
    ],
)
def test_waiting_for_an_identity(
    entry: TokenEntry, wait_for: float, no_identity_at: float, until: float | None
) -> None:
    """A call that waits for an identity asks again every five seconds, and once more before it stops waiting."""
    entry.no_identity_at = no_identity_at
    decision = after_fetch(entry, _call(wait_for_identity=wait_for), _failed(NO_IDENTITY), NOW)
    if until is not None:
        assert _members(decision) == _members(Pause(until))
    else:
        assert isinstance(decision, Fail)
        assert decision.error is NO_IDENTITY


def test_only_a_missing_identity_is_waited_for(entry: TokenEntry) -> None:
    """A call that waits for an identity ends at once with any error other than that of a missing identity."""
    decision = after_fetch(entry, _call(wait_for_identity=60.0), _failed(SERVICE), NOW)
    assert isinstance(decision, Fail)
    assert decision.error is SERVICE


@pytest.mark.parametrize(
    ("request_deadline", "timed_out", "retry_after", "until"),
    [
        (1010.0, True, 0.0, NOW),  # it had less time than this call
        (1010.0, True, 20.0, NOW + 20.0),  # and the server asked to wait
        (1010.0, True, 49.9, NOW + 49.9),
        (1010.0, True, 50.0, None),
        (1010.0, False, 0.0, None),
        (1050.0, True, 0.0, None),
        (1050.0 - MIN_EXTRA_TIME, True, 0.0, None),  # as much time, give or take
        (1050.0 - MIN_EXTRA_TIME - 0.01, True, 0.0, NOW),
    ],
)
def test_a_request_with_less_time(
    entry: TokenEntry, request_deadline: float, timed_out: bool, retry_after: float, until: float | None
) -> None:
    """A call that has more time asks again, when the server allows it."""
    request = _failed(SERVICE, _request(deadline=request_deadline), timed_out=timed_out, retry_after=retry_after)
    decision = after_fetch(entry, _call(), request, NOW)
    if until is not None:
        assert _members(decision) == _members(Pause(until))
    else:
        assert isinstance(decision, Fail)
        assert decision.error is SERVICE


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (TokenResult(error=SERVICE, timed_out=True), NO_IDENTITY),
        (None, NO_IDENTITY),
        (TokenResult("dead", NOW), NO_IDENTITY),
        (TokenResult(error=SERVICE), SERVICE),
    ],
    ids=["timed out", "no result", "dead token", "another answer"],
)
def test_waiting_in_vain(entry: TokenEntry, result: TokenResult | None, told: BaseException) -> None:
    """That there is no such identity tells more than that the time is up; what IMDS says last counts most."""
    call, request = _call(begun=NOW - TIMEOUT, wait_for_identity=TIMEOUT), _request()
    call.identity_error = NO_IDENTITY
    request.set_result(result)
    decision = after_fetch(entry, call, request, NOW)
    assert isinstance(decision, Fail)
    assert decision.error is told


def test_decisions_change_nothing(entry: TokenEntry) -> None:
    """The functions that decide leave entry and call as they were."""
    _hold(entry, EXPIRING)
    entry.plain_request = _request()
    call = _call()
    before = dict(vars(entry)), dict(vars(call))
    before_fetch(entry, call, NOW, None)
    after_fetch(entry, call, entry.plain_request, NOW)
    assert (vars(entry), vars(call)) == before


def test_a_decision_holds_what_it_was_given(entry: TokenEntry) -> None:
    """The other tests compare decisions with each other."""
    cached, request = _hold(entry, FRESH), _request()
    assert vars(Return(cached)) == {"cached": cached}
    assert vars(Fail(SERVICE)) == {"error": SERVICE}
    assert vars(Pause(1.0)) == {"until": 1.0}
    members = {"join": request, "deadline": 1.0, "wait_until": 2.0, "forced": True}
    flags = {"cached_serves": False, "inline": False}
    assert vars(Fetch(request, 1.0, 2.0, forced=True)) == members | flags
    for flag in flags:
        assert vars(Fetch(request, 1.0, 2.0, forced=True, **{flag: True})) == members | flags | {flag: True}


_PAUSE, _FAIL = Pause(NOW + 1.0), Fail(SERVICE)
_FOREGROUND = Fetch(None, NOW + TIMEOUT, NOW + TIMEOUT, forced=False)
_FORCED = Fetch(None, NOW + TIMEOUT, NOW + TIMEOUT, forced=True)
_BACKGROUND = Fetch(None, NOW + TIMEOUT, NOW + 2.0, forced=False, cached_serves=True)


@pytest.mark.parametrize(
    ("decision", "times", "under_lock", "at_start"),
    [
        (_FAIL, None, "as it is", "as it is"),
        (_PAUSE, None, "an error", "as it is"),
        (_FOREGROUND, None, "an error", "as it is"),
        (_FORCED, FRESH, "an error", "as it is"),
        (_BACKGROUND, STALE, "the token", "the token"),
        (_BACKGROUND, EXPIRING, "the token", "the token"),
    ],
)
def test_a_call_that_interrupts_its_own_thread(
    entry: TokenEntry, decision: Any, times: tuple[float, float] | None, under_lock: str, at_start: str
) -> None:
    """It waits for no request that needs a lock of its thread, and no longer than it must where a token serves."""
    cached = None if times is None else _hold(entry, times)
    for has_lock, expected in ((True, under_lock), (False, at_start)):
        found = in_an_interrupt(entry, NOW, decision, has_lock=has_lock)
        if expected == "as it is":
            assert found is decision
        elif expected == "the token":
            assert cached is not None
            assert _members(found) == _members(Return(cached))
        else:
            assert isinstance(found, Fail)
            assert type(found.error) is ImdsServiceError  # it says nothing of the endpoint, so a chain ends here
            assert "signal handler" in str(found.error)
            assert "set a flag" in (found.error.hint or "")
    fresh = Return(_hold(entry, FRESH))
    assert in_an_interrupt(entry, NOW, fresh, has_lock=True) is fresh


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("joins", [False, True])
def test_a_call_that_must_not_wait(forced: bool, joins: bool) -> None:
    """It runs a request of its own, with its own deadline; what needs no other thread is as it was."""
    call, request = _call(), _request(deadline=NOW + 5.0) if joins else None
    found = without_waiting(call, NOW, Fetch(request, NOW + 5.0, NOW + 5.0, forced=forced))
    end = NOW + TIMEOUT
    assert _members(found) == _members(Fetch(None, end, end + GRACE, forced=forced, inline=True))
    background = Fetch(request, NOW + 90.0, NOW + 2.0, forced=False, cached_serves=True)
    at_once = Fetch(request, NOW + 90.0, NOW, forced=False, cached_serves=True)
    assert _members(without_waiting(call, NOW, background)) == _members(at_once)
    for decision in (_PAUSE, _FAIL):
        assert without_waiting(call, NOW, decision) is decision
