"""What is cached for one key: when it is refreshed, what is told of it, and what a failure leaves. Design section 4."""

from __future__ import annotations

import errno
import math
import os
import time
from typing import Any

import pytest
from flavors import StillTime

from azure_imds_credential import IdentityUnavailableError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential._cache.token_entry import (
    CLOCK_CHECK_INTERVAL,
    CachedToken,
    RedactedToken,
    RedactedTokenInfo,
    TokenEntry,
    TokenState,
    cached_token,
    compared_with_wall_clock,
    next_refresh_after,
    refresh_delay,
)
from azure_imds_credential._clock import Clock, _boot_clock, boot_clock
from azure_imds_credential._endpoint import Absence, Endpoint, UrlState
from azure_imds_credential._identity import Identity
from azure_imds_credential._request import NEVER, TokenKey, TokenRequest, TokenResult

DAY = 86400.0
KEY = TokenKey("http://127.0.0.1", Identity(), "https://a")
SERVICE = ImdsServiceError("no")


@pytest.fixture
def clock() -> StillTime:
    """At 0, with the wall clock at 10,000."""
    return StillTime(now=0.0, wall=10_000.0)


@pytest.fixture
def entry() -> TokenEntry:
    """An entry without a token."""
    return TokenEntry(KEY, Endpoint(KEY.url, UrlState()))


def _request(started: float = 0.0, **members: Any) -> TokenRequest:
    return TokenRequest(KEY, started, started + 90.0, **members)


def _cached(entry: TokenEntry) -> CachedToken:
    assert entry.cached is not None
    return entry.cached


@pytest.mark.parametrize(
    ("life", "same_again", "random", "delay"),
    [
        (DAY, False, 0.5, DAY / 2),  # half of a long life
        (DAY, False, 0.0, DAY / 2 * 0.9),  # 10 % earlier at most
        (DAY, False, 1.0, DAY / 2 * 1.1),  # 10 % later at most
        (7200.0, False, 0.5, 3600.0),  # two hours is the first long life
        (7199.0, False, 0.5, 6899.0),  # below: five minutes before the end
        (600.0, False, 0.0, 300.0),  # no jitter there
        (320.0, False, 0.5, 30.0),  # never sooner than 30 s
        (10.0, False, 0.5, 30.0),  # however short: it then simply expires first
        (40000.0, True, 0.5, 20000.0),  # IMDS's own cache: half of what is left
        (1000.0, True, 0.5, 500.0),  # also of a short life
        (40.0, True, 0.5, 30.0),  # but never under 30 s
    ],
)
def test_refresh_delay(life: float, same_again: bool, random: float, delay: float) -> None:
    """Half of two hours or more with 10 % jitter, else five minutes before the end, never under 30 s."""
    assert refresh_delay(life, is_same_token=same_again, random=random) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, TokenState.FRESH),
        (999.9, TokenState.FRESH),
        (1000.0, TokenState.STALE),
        (1699.9, TokenState.STALE),
        (1700.0, TokenState.EXPIRING),
        (1999.9, TokenState.EXPIRING),
        (2000.0, TokenState.EXPIRED),
        (1e9, TokenState.EXPIRED),
    ],
)
def test_states(now: float, expected: TokenState) -> None:
    """Fresh until its refresh is due, stale after, expiring in the last five minutes, expired at its end."""
    assert cached_token("dummy", 1000.0, 2000.0, 0.0, 0.0).state(now) is expected


def test_a_fresh_token_may_be_in_its_last_minutes() -> None:
    """A token that came with little life is not asked for again at every call."""
    assert cached_token("dummy", 30.0, 200.0, 0.0, 0.0).state(0.0) is TokenState.FRESH


@pytest.mark.parametrize(
    ("failures", "left", "wait"),
    [
        (1, DAY, 30.0),
        (2, DAY, 60.0),
        (3, DAY, 120.0),
        (5, DAY, 480.0),
        (6, DAY, 600.0),  # the longest back-off
        (1000, DAY, 600.0),
        (6, 500.0, 200.0),  # but not past the beginning of the last five minutes
        (6, 310.0, 30.0),
        (6, 100.0, 30.0),  # where it is 30 s
        (6, -5.0, 30.0),
    ],
)
def test_back_off(failures: int, left: float, wait: float) -> None:
    """30 s doubling to 10 min, with a try at the beginning of the last five minutes and every 30 s in them."""
    assert next_refresh_after(failures, 1000.0, 1000.0 + left) == pytest.approx(1000.0 + wait)


def test_the_clock_is_the_boot_clock() -> None:
    """CLOCK_BOOTTIME where there is one: a monotonic clock stands still while a VM hibernates."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("no CLOCK_BOOTTIME here")
    assert Clock().now is boot_clock
    assert boot_clock.args == (time.CLOCK_BOOTTIME,)  # type: ignore[attr-defined] # a partial, where the clock exists


def test_the_clock_where_the_kernel_knows_no_boot_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python may have the name of a clock that the kernel or a sandbox refuses; a monotonic one takes its place."""

    def refuse(clock: int) -> float:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(time, "clock_gettime", refuse, raising=False)
    assert _boot_clock() is time.monotonic
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert _boot_clock() is time.monotonic


@pytest.mark.parametrize(
    ("times", "told"),
    [
        # refresh_at, expires_at, retry_at, latest; fresh_until, expires_on, refresh_on
        ((500.0, 1000.0, NEVER, math.inf), (110.0, 10_900, 10_400)),  # for as long as the clocks are not compared
        ((105.0, 1000.0, NEVER, math.inf), (105.0, 10_900, 10_005)),  # or until the refresh
        ((105.0, 1000.0, 108.0, math.inf), (108.0, 10_900, 10_005)),  # or until the next try
        ((105.0, 106.0, 108.0, math.inf), (106.0, 10_006, 10_005)),  # never past its end
        ((130.0, 104.5, NEVER, math.inf), (104.5, 10_004, 10_004)),  # and no refresh is told after it
        ((500.0, 1000.0, NEVER, 10_700.0), (110.0, 10_700, 10_400)),  # not later than was told before
        ((900.0, 1000.0, NEVER, 10_700.0), (110.0, 10_700, 10_700)),
        ((500.9, 1000.9, NEVER, math.inf), (110.0, 10_900, 10_400)),  # whole seconds, the earlier ones
    ],
    ids=str,
)
def test_what_callers_are_told(times: tuple[float, ...], told: tuple[float, int, int]) -> None:
    """`expires_on` and `refresh_on` are of the wall clock; the fast path looks again after ten seconds at most."""
    refresh_at, expires_at, retry_at, latest = times
    cached = cached_token("dummy", refresh_at, expires_at, 100.0, 10_000.0, retry_at=retry_at, latest=latest)
    assert (cached.fresh_until, cached.token.expires_on, cached.info.refresh_on) == told
    assert cached.info.expires_on == cached.token.expires_on
    assert cached.token.token == cached.info.token == "dummy"
    assert cached.info.token_type == "Bearer"
    assert cached[3:] == (refresh_at, expires_at, 100.0, 9_900.0)


def test_a_token_is_due_at_once_by_default() -> None:
    """No try is put off, and no expiry is told that is earlier than the token's."""
    cached = cached_token("dummy", -5.0, 1000.0, 0.0, 0.0)
    assert (cached.fresh_until, cached.token.expires_on) == (-5.0, 1000)


def test_tokens_can_be_logged() -> None:
    """Their reprs hold the times and never the token."""
    assert repr(RedactedToken("dummy", 7)) == "AccessToken(token='[redacted]', expires_on=7)"
    info = repr(RedactedTokenInfo("dummy", 7, refresh_on=5))
    assert info == "AccessTokenInfo(token='[redacted]', expires_on=7, token_type='Bearer', refresh_on=5)"


@pytest.mark.parametrize(
    ("drift", "refresh_at", "expires_at", "expires_on"),
    [
        (0.0, 500.0, 1000.0, 11_000),
        (30.0, 500.0, 1000.0, 11_030),  # a clock that is kept in step: what is told follows it
        (-30.0, 500.0, 1000.0, 10_970),
        (31.0, 200.0, 969.0, 11_000),  # paused, or set: the earlier expiry counts, and a refresh is due
        (-31.0, 200.0, 1000.0, 10_969),
        (900.0, 200.0, 100.0, 11_000),
    ],
)
def test_clocks_that_drift_apart(drift: float, refresh_at: float, expires_at: float, expires_on: int) -> None:
    """Up to 30 s `expires_on` follows the wall clock; beyond, the earlier of the two expiries counts."""
    before = cached_token("dummy", 500.0, 1000.0, 0.0, 10_000.0)
    after = compared_with_wall_clock(before, 203.0, 200.0, 10_200.0 + drift)
    assert (after.refresh_at, after.expires_at, after.token.expires_on) == (refresh_at, expires_at, expires_on)
    assert after.token.token == "dummy"
    assert after.checked_at == 200.0
    assert after.wall_offset == 10_000.0 + drift
    assert after.fresh_until == min(max(refresh_at, 203.0), expires_at, 210.0)


def test_a_drift_leaves_a_refresh_that_is_due(entry: TokenEntry) -> None:
    """One that was due before stays due from then."""
    before = cached_token("dummy", 100.0, 1000.0, 0.0, 10_000.0)
    assert compared_with_wall_clock(before, NEVER, 200.0, 10_500.0).refresh_at == 100.0


@pytest.mark.parametrize(("now", "is_looked_at"), [(9.9, False), (10.0, True), (11.0, True)])
def test_clocks_are_compared_every_ten_seconds(
    entry: TokenEntry, clock: StillTime, now: float, is_looked_at: bool
) -> None:
    """Not sooner; and without a token there is nothing to compare."""
    entry.check_wall_clock(now, clock)
    entry.store(TokenResult("dummy", 1000.0), 0.0, clock)
    before = _cached(entry)
    entry.retry_at = 800.0
    clock.wall_at += now
    entry.check_wall_clock(now, clock)
    assert (entry.cached is not before) == is_looked_at
    if is_looked_at:
        assert _cached(entry).checked_at == now
        assert _cached(entry).wall_offset == 10_000.0
        assert _cached(entry).fresh_until == now + CLOCK_CHECK_INTERVAL


def test_a_check_keeps_the_back_off(entry: TokenEntry, clock: StillTime) -> None:
    """Until the next try the fast path serves."""
    entry.store(TokenResult("dummy", 1000.0), 0.0, clock)
    entry.retry_at = 805.0
    entry.check_wall_clock(800.0, clock)
    assert _cached(entry).fresh_until == 805.0


def test_a_stored_token(entry: TokenEntry, clock: StillTime) -> None:
    """It ends the back-off and the wait for an identity, and is refreshed when that is due."""
    entry.failures, entry.retry_at, entry.no_identity_at = 3, 900.0, 50.0
    entry.forced_at, entry.forced_error = 40.0, SERVICE
    clock.dice = 1.0
    entry.store(TokenResult("dummy", DAY), 100.0, clock)
    assert (entry.failures, entry.retry_at, entry.no_identity_at, entry.stored_at) == (0, NEVER, NEVER, 100.0)
    assert entry.forced_at == 40.0
    assert vars(entry)["forced_error"] is None
    cached = _cached(entry)
    expected = cached_token("dummy", 100.0 + (DAY - 100.0) / 2 * 1.1, DAY, 100.0, 10_000.0)
    assert cached == expected._replace(info=cached.info)
    assert repr(cached.info) == repr(expected.info)
    assert entry.usable(DAY - 1.0) is cached
    assert entry.usable(DAY) is None


def test_the_same_token_again(entry: TokenEntry, clock: StillTime) -> None:
    """It is asked for again at half of its life, and does not end the error of a caller that wanted another."""
    entry.store(TokenResult("one", 3600.0), 0.0, clock)
    assert _cached(entry).refresh_at == 3300.0
    entry.store(TokenResult("two", 3700.0), 100.0, clock)
    assert _cached(entry).refresh_at == 3400.0
    entry.forced_error = SERVICE
    entry.store(TokenResult("two", 3700.0), 200.0, clock)
    assert _cached(entry).refresh_at == 1950.0
    assert entry.forced_error is SERVICE
    entry.store(TokenResult("three", 3900.0), 300.0, clock)
    assert entry.forced_error is None


@pytest.mark.parametrize(
    ("error", "forced", "timed_out", "failures", "no_identity_at"),
    [
        (SERVICE, False, False, 1, NEVER),
        (SERVICE, False, True, 1, NEVER),
        (SERVICE, True, False, 1, NEVER),
        (SERVICE, True, True, 0, NEVER),  # a caller in a hurry puts off nothing
        (IdentityUnavailableError("none"), False, False, 1, 100.0),
        (IdentityUnavailableError("none"), True, True, 0, 100.0),
    ],
    ids=str,
)
def test_a_failure(
    entry: TokenEntry, error: BaseException, forced: bool, timed_out: bool, failures: int, no_identity_at: float
) -> None:
    """It backs off, unless a forced request had too little time; the token stays."""
    entry.note_failure(TokenResult(error=error, timed_out=timed_out), 100.0, forced=forced)
    assert (entry.failures, entry.no_identity_at) == (failures, no_identity_at)
    assert entry.retry_at == (130.0 if failures else NEVER)
    assert entry.endpoint.absence is None


def test_failures_back_off_by_what_the_token_has_left(entry: TokenEntry, clock: StillTime) -> None:
    """The pauses double, and the fast path serves until the next try."""
    entry.store(TokenResult("dummy", 1000.0), 0.0, clock)
    entry.check_wall_clock(600.0, clock)
    entry.failures = 1
    entry.note_failure(TokenResult(error=SERVICE), 605.0, forced=False)
    assert (entry.failures, entry.retry_at) == (2, 665.0)
    assert _cached(entry).fresh_until == 610.0  # the clocks are compared then
    entry.failures = 9
    entry.note_failure(TokenResult(error=SERVICE), 660.0, forced=False)
    assert entry.retry_at == 700.0  # the last five minutes begin with a try
    entry.check_wall_clock(995.0, clock)
    entry.note_failure(TokenResult(error=SERVICE), 996.0, forced=False)
    assert _cached(entry).fresh_until == 1000.0


def test_a_failure_leaves_a_fresh_token_fresh(entry: TokenEntry, clock: StillTime) -> None:
    """One that a caller forced, for example: the refresh is due no sooner."""
    entry.store(TokenResult("dummy", 306.0), 0.0, clock)
    entry.cached = _cached(entry)._replace(refresh_at=8.0, fresh_until=8.0)
    entry.note_failure(TokenResult(error=SERVICE), -25.0, forced=False)  # the next try at 5
    assert (entry.retry_at, _cached(entry).fresh_until) == (5.0, 8.0)


@pytest.mark.parametrize(("is_absent", "has_listener"), [(True, False), (True, True), (False, True)])
def test_absence_is_noted(entry: TokenEntry, is_absent: bool, has_listener: bool) -> None:
    """The endpoint remembers that nothing answers, whether something listens there, and when that was."""
    error = ImdsUnavailableError("nothing")
    entry.note_failure(TokenResult(error=error, is_absent=is_absent, has_listener=has_listener), 100.0, forced=True)
    absence = entry.endpoint.absence
    assert (absence is not None) is is_absent
    if absence is not None:
        assert vars(absence) == vars(Absence(error, 100.0, 130.0, can_probe=not has_listener))


def test_a_refresh_that_cannot_start(entry: TokenEntry, clock: StillTime) -> None:
    """It is put off by 30 s, and never brought forward."""
    entry.postpone_refresh(100.0)
    assert entry.retry_at == 130.0
    entry.retry_at = 500.0
    entry.postpone_refresh(100.0)
    assert entry.retry_at == 500.0
    entry.store(TokenResult("dummy", 400.0), 0.0, clock)
    entry.check_wall_clock(200.0, clock)
    entry.postpone_refresh(201.0)
    assert (entry.retry_at, _cached(entry).fresh_until) == (231.0, 210.0)


@pytest.mark.parametrize("forced", [False, True])
def test_a_request_under_way(entry: TokenEntry, clock: StillTime, forced: bool) -> None:
    """There is one of each kind; an end takes away that one only."""
    request, other = _request(forced=forced), _request(forced=not forced)
    entry.set_request(request)
    assert entry.request(forced=forced) is request
    assert entry.request(forced=not forced) is None
    entry.set_request(other)
    entry.finish(_request(forced=forced), None, 1.0, clock)
    assert entry.request(forced=forced) is request, "another one ended"
    entry.finish(request, None, 1.0, clock)
    assert entry.request(forced=forced) is None
    assert entry.request(forced=not forced) is other
    assert entry.stored_at == entry.forced_at == NEVER
    assert entry.failures == 0


@pytest.mark.parametrize(
    ("started", "forced", "generation", "is_kept"),
    [
        (0.0, False, 0, False),  # the token that came meanwhile is the newer one
        (0.0, True, 0, True),  # unless this one bypassed IMDS's cache
        (50.0, False, 0, True),
        (60.0, False, 0, True),
        (60.0, False, -1, False),  # it was forgotten
        (60.0, True, 1, False),
    ],
)
def test_which_token_is_kept(
    entry: TokenEntry, clock: StillTime, started: float, forced: bool, generation: int, is_kept: bool
) -> None:
    """The newer one, and none whose request was forgotten."""
    entry.store(TokenResult("old", 5000.0), 50.0, clock)
    request = _request(started, forced=forced, generation=generation)
    assert entry.finish(request, TokenResult("new", 6000.0), 100.0, clock) is None
    assert _cached(entry).token.token == ("new" if is_kept else "old")
    assert entry.stored_at == (100.0 if is_kept else 50.0)
    assert entry.forced_at == (100.0 if is_kept and forced else NEVER)
    assert entry.forced_error is None


@pytest.mark.parametrize(
    ("token", "expires_at", "forced", "is_kept"),
    [
        ("new", 399.0, False, False),  # less than the last five minutes
        ("new", 400.0, False, True),
        ("new", 99.0, False, False),  # it had expired on arrival
        ("old", 399.0, False, True),  # the same token, of which IMDS knows better
        ("new", 399.0, True, True),  # a caller wants another token than the one that is held
        ("new", 5001.0, False, True),
    ],
)
def test_a_worse_token_is_a_failed_refresh(
    entry: TokenEntry, clock: StillTime, token: str, expires_at: float, forced: bool, is_kept: bool
) -> None:
    """A token with minutes to live replaces none that lives longer: that one serves, and IMDS is asked again later."""
    entry.store(TokenResult("old", 5000.0), 0.0, clock)
    serves = entry.finish(_request(50.0, forced=forced), TokenResult(token, expires_at), 100.0, clock)
    assert _cached(entry).expires_at == (expires_at if is_kept else 5000.0)
    assert (serves, entry.failures) == ((None, 0) if is_kept else (4900.0, 1))


@pytest.mark.parametrize("expires_at", [80.0, 350.0])
def test_a_short_lived_token_beside_one_that_expires_first(
    entry: TokenEntry, clock: StillTime, expires_at: float
) -> None:
    """Where the held token ends sooner, or has ended, the new one is kept however short its life."""
    entry.store(TokenResult("old", expires_at), 0.0, clock)
    entry.finish(_request(50.0), TokenResult("new", 360.0), 100.0, clock)
    assert _cached(entry).token.token == "new"


def test_bypassing_is_remembered(entry: TokenEntry) -> None:
    """From the start of a request that bypasses IMDS's cache, because its failure may come late or not at all."""
    entry.set_request(TokenRequest(KEY, 100.0, 190.0, forced=True))
    assert entry.bypassed_at == NEVER
    entry.set_request(TokenRequest(KEY, 200.0, 290.0, forced=True, bypass_cache=True))
    assert entry.bypassed_at == 200.0


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_request_fails(entry: TokenEntry, clock: StillTime, forced: bool, timed_out: bool) -> None:
    """It is told for how long the token serves; what IMDS said to a forced request is kept for later ones."""
    entry.store(TokenResult("dummy", 5000.0), 0.0, clock)
    result = TokenResult(error=SERVICE, timed_out=timed_out)
    assert entry.finish(_request(forced=forced), result, 100.0, clock) == 4900.0
    is_kept = forced and not timed_out
    assert (entry.forced_at, entry.forced_error) == ((100.0, SERVICE) if is_kept else (NEVER, None))
    assert entry.failures == (0 if forced and timed_out else 1)
    assert entry.finish(_request(5000.0), TokenResult(error=SERVICE), 5000.0, clock) is None, "it serves no more"


def test_an_outdated_failure_changes_nothing(entry: TokenEntry, clock: StillTime) -> None:
    """A token came since its request started."""
    entry.store(TokenResult("dummy", 5000.0), 50.0, clock)
    assert entry.finish(_request(0.0), TokenResult(error=SERVICE), 100.0, clock) is None
    assert entry.failures == 0


@pytest.mark.parametrize(
    ("member", "value", "now", "is_idle"),
    [
        ("failures", 0, 0.0, True),
        ("plain_request", _request(), 1e9, False),
        ("forced_request", _request(), 1e9, False),
        ("calls", {"one"}, 1e9, False),
        ("retry_at", 100.0, 99.0, False),
        ("retry_at", 100.0, 100.0, True),
        ("forced_at", 100.0, 129.0, False),
        ("forced_at", 100.0, 130.0, True),
        ("bypassed_at", 100.0, 129.0, False),
        ("bypassed_at", 100.0, 130.0, True),
        ("cached", cached_token("dummy", 50.0, 100.0, 0.0, 0.0), 99.0, False),
        ("cached", cached_token("dummy", 50.0, 100.0, 0.0, 0.0), 100.0, True),
    ],
    ids=str,
)
def test_idle(entry: TokenEntry, member: str, value: object, now: float, is_idle: bool) -> None:
    """An entry may be dropped when no token, request, call, back-off or forced result is lost with it."""
    setattr(entry, member, value)
    assert entry.is_idle(now) == is_idle


def test_a_forgotten_entry_is_a_new_one(clock: StillTime) -> None:
    """But for its generation, by which what is under way is known to be older, and the calls that wait."""
    entry, new = (TokenEntry(KEY, Endpoint(KEY.url, UrlState())) for _ in range(2))
    names = vars(new).keys() - {"key", "endpoint", "generation", "calls"}
    assert {name: getattr(new, name) for name in names} == {
        "cached": None,
        "plain_request": None,
        "forced_request": None,
        "stored_at": NEVER,
        "failures": 0,
        "retry_at": NEVER,
        "forced_at": NEVER,
        "forced_error": None,
        "bypassed_at": NEVER,
        "no_identity_at": NEVER,
    }
    assert (new.generation, new.calls, new.key) == (0, set(), KEY)
    entry.store(TokenResult("dummy", DAY), 0.0, clock)
    entry.failures, entry.retry_at, entry.forced_at, entry.forced_error = 3, 900.0, 800.0, SERVICE
    entry.no_identity_at, entry.bypassed_at, entry.calls = 700.0, 600.0, {1, 2}
    entry.plain_request = entry.forced_request = _request()
    entry.clear()
    assert {name: getattr(entry, name) for name in names} == {name: getattr(new, name) for name in names}
    assert (entry.generation, entry.calls) == (1, {1, 2})
    entry.clear()
    assert entry.generation == 2


def test_an_entry_tells_what_it_is_for(entry: TokenEntry) -> None:
    """Its repr names endpoint, identity and resource."""
    assert repr(entry) == f"<TokenEntry http://127.0.0.1 {Identity()} https://a>"
