"""Single calls and requests of the cache, one after the other as the test says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cache_machine import DAY, TIMEOUT, URL, CacheMachine, Caller

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsError,
    ImdsServiceError,
    ImdsUnavailableError,
    _observers,
)
from azure_imds_credential._cache import token_cache
from azure_imds_credential._cache.token_cache import MIN_SWEEP, SWEEP_INTERVAL, Filling
from azure_imds_credential._cache.token_entry import CLOCK_CHECK_INTERVAL, TokenEntry
from azure_imds_credential._endpoint import MAX_CONCURRENT, RateLimiter
from azure_imds_credential._request import TokenRequest, TokenResult

NO_IDENTITY = IdentityUnavailableError("none")
REFUSED = ImdsServiceError("no")


@pytest.fixture
def machine() -> Iterator[CacheMachine]:
    """A cache in which nothing happens that the test does not do."""
    machine = CacheMachine()
    yield machine
    machine.close()


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (TokenResult(error=ImdsServiceError("late"), timed_out=True), IdentityUnavailableError),
        (None, IdentityUnavailableError),
        (TokenResult(error=ImdsServiceError("ill")), ImdsServiceError),
    ],
    ids=["timed out", "abandoned", "another answer"],
)
def test_waiting_in_vain_is_told(machine: CacheMachine, result: TokenResult | None, told: type[ImdsError]) -> None:
    """When the time is up the error is that there is no identity; an answer that says something else counts more."""
    caller = Caller(machine, patience=TIMEOUT)
    machine.fail(NO_IDENTITY, caller)
    machine.skip(5.0)
    caller.go_on()
    machine.skip(TIMEOUT - 5.0)
    machine.end(result, caller)
    assert type(caller.error) is told


def test_waits_for_an_identity_are_shared(machine: CacheMachine) -> None:
    """Callers that come at different times share one request in five seconds; one that cannot wait asks at once."""
    start = machine.now
    first = Caller(machine, patience=60.0)
    machine.fail(NO_IDENTITY, first)
    callers = [first]
    for _ in range(4):
        machine.skip(1.0)
        callers.append(Caller(machine, patience=60.0))
    assert machine.started == 1
    assert {caller.until for caller in callers} == {start + 5.0}
    hasty = Caller(machine)
    assert machine.started == 2
    machine.fail(NO_IDENTITY, hasty)
    assert isinstance(hasty.error, IdentityUnavailableError)
    machine.skip(1.0)
    for caller in callers:
        caller.go_on()
    assert machine.started == 2
    assert {caller.until for caller in callers} == {start + 9.0}
    machine.skip(4.0)
    for caller in callers:
        caller.go_on()
    assert machine.started == 3
    machine.bring("https://a#it", DAY, *callers)
    assert all(caller.token == "https://a#it" for caller in callers)


@pytest.mark.parametrize("forced", [False, True])
def test_patience_ends_with_a_request(machine: CacheMachine, forced: bool) -> None:
    """A caller with less patience than the pause of the others asks when its patience ends, and is told then."""
    others = Caller(machine, forced=forced, patience=60.0)
    machine.fail(NO_IDENTITY, others)
    machine.skip(1.0)
    caller = Caller(machine, forced=forced, patience=2.0)
    assert caller.until - machine.now == 2.0
    machine.skip(2.0)
    caller.go_on()
    assert machine.started == 2
    machine.fail(NO_IDENTITY, caller)
    assert isinstance(caller.error, IdentityUnavailableError)


def test_a_wait_joins_a_request_under_way(machine: CacheMachine) -> None:
    """Its answer is newer than the one after which the others pause."""
    machine.fail(NO_IDENTITY, Caller(machine))
    machine.skip(1.0)
    Caller(machine)
    newcomer = Caller(machine, patience=60.0)
    assert newcomer.waiting is machine.under_way[0][1]


def test_a_token_ends_the_pause_for_an_identity(machine: CacheMachine) -> None:
    """A refresh that is forced just after it came is sent at once."""
    machine.fail(NO_IDENTITY, Caller(machine))
    machine.first_token()
    Caller(machine, forced=True, patience=60.0)
    assert len(machine.under_way) == 1


def test_a_paused_caller_takes_what_another_forced(machine: CacheMachine) -> None:
    """Forced callers that wait for an identity share the refresh that brought it."""
    machine.fail(NO_IDENTITY, Caller(machine))
    patient = [Caller(machine, forced=True, patience=60.0) for _ in range(8)]
    assert not machine.under_way
    machine.skip(1.0)
    machine.bring("https://a#it", DAY, Caller(machine, forced=True))
    machine.skip(4.0)
    for caller in patient:
        caller.go_on()
    assert [caller.token for caller in patient] == ["https://a#it"] * 8
    assert machine.started == 2


def _force_in_vain(machine: CacheMachine, error: ImdsError) -> None:
    caller = Caller(machine, forced=True)
    machine.fail(error, caller)
    assert type(caller.error) is type(error)


def test_waiting_for_an_identity_ignores_a_forced_failure(machine: CacheMachine) -> None:
    """The remembered "no such identity" is for callers that cannot wait; no other bypass of IMDS's cache is sent."""
    _force_in_vain(machine, NO_IDENTITY)
    assert isinstance(Caller(machine, forced=True).error, IdentityUnavailableError)
    patient = Caller(machine, forced=True, patience=60.0)
    assert (patient.done, patient.until - machine.now) == (False, 5.0)
    machine.skip(5.0)
    patient.go_on()
    (_, request) = machine.under_way[0]
    assert (request.forced, request.bypass_cache) == (True, False)
    machine.bring("https://a#it", DAY, patient)
    assert patient.token == "https://a#it"


@pytest.mark.parametrize(("token", "told"), [("https://a#newer", None), ("https://a#first", ImdsServiceError)])
def test_a_newer_token_ends_a_forced_failure(machine: CacheMachine, token: str, told: type[ImdsError] | None) -> None:
    """Within its 30 s a forced call gets a token that came since, though not the one that was to be replaced."""
    entry = machine.first_token()
    machine.skip(48_000.0)
    _force_in_vain(machine, REFUSED)
    machine.skip(1.0)
    entry.retry_at = machine.now
    entry.cached = entry.cached and entry.cached._replace(fresh_until=machine.now)
    Caller(machine)
    machine.bring(token, 30_000.0)
    again = Caller(machine, forced=True)
    assert again.done
    assert (type(again.error) if again.error else None) == told


def test_a_forced_refresh_serves_for_30_seconds(machine: CacheMachine) -> None:
    """Later callers that force one get its token; after 30 s another is sent, past IMDS's cache."""
    caller = Caller(machine, forced=True)
    machine.bring("https://a#one", DAY, caller)
    machine.skip(29.0)
    assert Caller(machine, forced=True).token == "https://a#one"
    machine.skip(1.0)
    assert not Caller(machine, forced=True).done
    assert machine.under_way[0][1].bypass_cache


def test_between_failed_refreshes_a_token_is_warm(machine: CacheMachine) -> None:
    """The fast path serves it until the next try, for a few seconds at a time, and never past its end."""
    entry = machine.first_token()
    machine.skip(DAY - 50.0)
    Caller(machine)
    machine.fail(REFUSED)
    assert entry.retry_at == machine.now + 30.0
    cached = entry.cached
    assert cached is not None
    assert cached.fresh_until == machine.now + CLOCK_CHECK_INTERVAL
    assert Caller(machine).done
    machine.skip(30.0)
    Caller(machine)
    machine.fail(REFUSED)
    machine.skip(CLOCK_CHECK_INTERVAL)
    assert Caller(machine).done
    assert entry.cached is not None
    assert entry.cached.fresh_until == entry.cached.expires_at == machine.now + 10.0


def test_callers_during_a_refresh_write_nothing(machine: CacheMachine) -> None:
    """Each gets the very token that is cached, and one refresh is under way."""
    machine.first_token()
    machine.skip(50_000.0)
    assert len({id(Caller(machine).cached) for _ in range(3)}) == 1
    assert len(machine.under_way) == 1


def test_the_last_attempt_is_told_to_each_caller(machine: CacheMachine) -> None:
    """A caller that leaves at its deadline hears of the latest attempt, in an error of its own."""
    callers = [Caller(machine) for _ in range(2)]
    (_, request) = machine.under_way[0]
    request.attempt_errors.extend([ImdsServiceError("first"), ImdsServiceError("last")])
    machine.skip(TIMEOUT)
    for caller in callers:
        caller.go_on()
    assert [str(caller.error) for caller in callers] == ["last", "last"]
    assert len({id(caller.error) for caller in callers} | {id(request.attempt_errors[-1])}) == 3


def test_a_refusal_is_final(machine: CacheMachine) -> None:
    """Only a request that failed for lack of time is repeated by a caller that has more."""
    Caller(machine, timeout=10.0)
    patient = Caller(machine)
    machine.fail(REFUSED, patient)
    assert isinstance(patient.error, ImdsServiceError)
    assert machine.started == 1


@pytest.mark.parametrize(("asked", "waits"), [(20.0, 20.0), (2 * TIMEOUT, None)])
def test_retry_after_holds_for_the_next(machine: CacheMachine, asked: float, waits: float | None) -> None:
    """A Retry-After that was too long for the request holds for the next; one beyond its time ends the call."""
    Caller(machine, timeout=10.0)
    patient = Caller(machine)
    machine.fail(ImdsServiceError("later"), patient, timed_out=True, retry_after=asked)
    assert machine.started == 1
    assert (None if patient.done else patient.until - machine.now) == waits


def test_a_dead_token_is_not_asked_for_again_at_once(machine: CacheMachine) -> None:
    """In case the tokens of this IMDS are always dead: half a second lies between two requests."""
    caller = Caller(machine)
    machine.end(TokenResult("dead", machine.now - 1.0), caller)
    assert machine.started == 1
    assert caller.until - machine.now == 0.5


def test_an_overrun_request_is_replaced(machine: CacheMachine) -> None:
    """A request about to say why it failed is waited for; one that says nothing is replaced and left alone."""
    Caller(machine, timeout=10.0)
    machine.skip(10.05)
    joined = Caller(machine)
    assert machine.started == 1
    assert joined.until - machine.now == pytest.approx(0.05)
    machine.skip(0.06)
    joined.go_on()
    assert machine.started == 2


def test_a_refresh_that_overran_is_replaced(machine: CacheMachine) -> None:
    """A refresh in the background that never ends does not keep later ones away."""
    machine.first_token()
    machine.skip(50_000.0)
    Caller(machine)
    machine.skip(91.0)
    assert Caller(machine).token == "https://a#first"
    assert machine.started == 3


def test_an_ordinary_call_joins_no_forced_request(machine: CacheMachine) -> None:
    """A forced request is its own: a call that forces nothing starts an ordinary one."""
    Caller(machine, forced=True)
    Caller(machine)
    assert [request.forced for _, request in machine.under_way] == [True, False]


@pytest.mark.parametrize("forced", [False, True])
def test_an_overrun_request_ends_alone(machine: CacheMachine, forced: bool) -> None:
    """What comes of it at last leaves its replacement under way: a third caller joins that."""
    Caller(machine, forced=forced, timeout=10.0)
    machine.skip(11.0)
    Caller(machine, forced=forced)
    machine.fail(ImdsServiceError("late"), timed_out=True)
    Caller(machine, forced=forced)
    assert machine.started == 2


def test_a_forced_request_without_time_limits_no_other(machine: CacheMachine) -> None:
    """IMDS said nothing, so the next caller may force again at once, and is not told the other's error."""
    hasty = Caller(machine, forced=True, timeout=1.0)
    machine.skip(1.0)
    machine.fail(ImdsServiceError("late"), hasty, timed_out=True)
    assert hasty.error is not None
    assert not Caller(machine, forced=True).done
    assert machine.started == 2


def test_a_forced_request_without_time_delays_no_refresh(machine: CacheMachine) -> None:
    """The ordinary refresh that is due starts all the same."""
    machine.first_token()
    machine.skip(50_000.0)
    hasty = Caller(machine, forced=True, timeout=1.0)
    machine.skip(1.0)
    machine.fail(ImdsServiceError("late"), hasty, timed_out=True)
    assert not machine.under_way
    Caller(machine)
    assert len(machine.under_way) == 1


def test_a_forced_request_that_hangs_is_no_success(machine: CacheMachine) -> None:
    """Its caller gets the error when the time is up, and never the token that it wanted replaced."""
    machine.first_token()
    machine.skip(100.0)
    caller = Caller(machine, forced=True, timeout=10.0)
    machine.skip(10.1)
    caller.go_on()
    assert isinstance(caller.error, ImdsError)


def test_an_entry_changes_under_the_lock_alone(machine: CacheMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, filled, told anew by another wall clock, refreshed and failed: no step without the lock."""
    changed: list[str] = []

    def change(entry: TokenEntry, name: str, value: object) -> None:
        if entry in machine.cache._entries.values():  # others cannot find one that is being made
            assert machine.cache._lock._is_owned(), name  # type: ignore[attr-defined] # as Condition asks it
        changed.append(name)
        object.__setattr__(entry, name, value)

    monkeypatch.setattr(TokenEntry, "__setattr__", change, raising=False)
    machine.first_token()
    machine.skip(100.0)
    assert Caller(machine).done
    machine.skip(50_000.0)
    assert Caller(machine).done
    machine.fail(REFUSED)
    Caller(machine, forced=True)
    machine.bring("newer", DAY)
    machine.cache.clear()
    assert {"endpoint", "plain_request", "forced_request", "cached", "failures", "forced_at", "bypassed_at"} <= set(
        changed
    )


def test_an_entry_that_can_be_found_is_complete(machine: CacheMachine) -> None:
    """A fork may come between any two steps: the child must not find an entry without an endpoint."""

    class Watched(dict[Any, TokenEntry]):
        def __setitem__(self, key: Any, entry: TokenEntry) -> None:
            assert (entry.endpoint.url, entry.key) == (URL, key)
            super().__setitem__(key, entry)

    machine.cache._entries = Watched()
    assert machine.entry()


def test_a_forced_token_replaces_an_ordinary_one(machine: CacheMachine) -> None:
    """A forced request bypassed IMDS's cache: what it brings is the newer token, whenever it started."""
    Caller(machine, forced=True)
    ordinary = Caller(machine)
    machine.skip(1.0)
    entry = machine.bring("https://a#plain", DAY, ordinary, index=1)
    machine.bring("https://a#forced", DAY)
    assert entry.cached is not None
    assert entry.cached.token.token == "https://a#forced"


def test_a_slot_is_given_back_once(machine: CacheMachine) -> None:
    """The slot of a request that overran is free; when the request ends after all, no sixth one opens."""
    limiter = RateLimiter()
    key, now = machine.entry().key, machine.now
    late = TokenRequest(key, now, now + 10)
    assert limiter.acquire(late, machine.clock)
    machine.skip(11)
    others = [TokenRequest(key, machine.now, machine.now + 10) for _ in range(MAX_CONCURRENT)]
    assert all(limiter.acquire(request, machine.clock) for request in others)
    limiter.release(late, machine.clock)
    assert set(limiter.active) == set(others)


@pytest.mark.parametrize("forced", [False, True])
def test_a_forgotten_request_keeps_nothing(machine: CacheMachine, forced: bool) -> None:
    """The next caller asks for itself, and the older token goes to no caller."""
    older = Caller(machine, forced=forced)
    machine.skip(1.0)
    machine.cache.clear()
    Caller(machine, forced=forced)
    assert machine.started == 2
    entry = machine.bring("https://a#old", DAY, older)
    assert entry.cached is None
    assert not older.done
    machine.bring("https://a#new", DAY, older)
    assert older.token == "https://a#new"


def test_a_token_ends_the_backing_off(machine: CacheMachine) -> None:
    """After it the next refresh comes when it is due, and the first failure counts as the first."""
    entry = machine.first_token()
    machine.skip(80_000.0)
    for pause in (30.0, 60.0, 120.0, 240.0):
        Caller(machine)
        machine.fail(REFUSED)
        assert entry.retry_at - machine.now == pause
        machine.skip(pause)
    Caller(machine)
    machine.fail(REFUSED)  # the next try would come in 480 s
    Caller(machine, forced=True)
    machine.bring("https://a#short", 350.0)
    machine.skip(60.0)
    Caller(machine)
    assert len(machine.under_way) == 1, "the back-off of an older token goes on"
    machine.bring("https://a#long", DAY)
    machine.skip(50_000.0)
    Caller(machine)
    machine.fail(REFUSED)
    assert entry.retry_at - machine.now == 30.0


@pytest.mark.parametrize("paused_for", [31.0, 3 * DAY])
def test_a_paused_machine_does_not_hand_out_what_expired(machine: CacheMachine, paused_for: float) -> None:
    """The host stops both monotonic clocks of a VM: the wall clock ends the token, and one refresh is started."""
    machine.first_token()
    machine.clock.wall_at += paused_for
    machine.skip(CLOCK_CHECK_INTERVAL)
    caller, entry = Caller(machine), machine.entry()
    assert entry.cached is not None
    assert machine.started == 2
    if paused_for < DAY:
        assert caller.token == "https://a#first"
        assert entry.cached.expires_at == pytest.approx(1e6 + DAY - paused_for, abs=1)
        assert caller.cached is not None
        assert caller.cached.token.expires_on == int(1e9 + DAY), "relabelled"
        Caller(machine)
        assert machine.started == 2, "a second refresh"
    else:
        assert not caller.done


def test_a_small_drift_is_followed(machine: CacheMachine) -> None:
    """A clock that is kept in step moves `expires_on`, and nothing else."""
    machine.first_token()
    machine.clock.wall_at += 29.0
    machine.skip(CLOCK_CHECK_INTERVAL)
    caller = Caller(machine)
    assert caller.cached is not None
    assert caller.cached.token.expires_on == int(1e9 + 29 + DAY)
    assert machine.started == 1


def test_a_wall_clock_that_was_set_back_shortens_nothing(machine: CacheMachine) -> None:
    """The boot clock's expiry is the earlier one then, and `expires_on` tells it."""
    machine.first_token()
    machine.clock.wall_at -= 5 * 3600.0
    machine.skip(CLOCK_CHECK_INTERVAL)
    caller, entry = Caller(machine), machine.entry()
    assert entry.cached is not None
    assert caller.cached is not None
    assert entry.cached.expires_at == 1e6 + DAY
    assert caller.cached.token.expires_on == int(1e9 + DAY - 5 * 3600)
    assert machine.started == 2


def test_absence_is_remembered_and_told_as_remembered(machine: CacheMachine) -> None:
    """Later calls fail at once, in errors of their own that say how old the finding is."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    machine.skip(7.0)
    one, two = Caller(machine), Caller(machine, "https://b")
    assert str(one.error) == str(two.error) == "nothing answers (This is remembered: it was found out 7 s ago.)"
    assert one.error is not two.error
    assert machine.started == 1


@pytest.mark.parametrize("arguments", [{"forced": True}, {"patience": 60.0}], ids=str)
def test_urgent_calls_ignore_remembered_absence(machine: CacheMachine, arguments: dict[str, Any]) -> None:
    """`force_refresh` and `wait_for_identity` ask for real."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    assert not Caller(machine, **arguments).done
    assert machine.started == 2


def test_absence_is_looked_at_once_a_second_while_callers_ask(machine: CacheMachine) -> None:
    """A look that finds nothing renews the memory, so that no later call waits; one that finds a listener ends it."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    for _ in range(40):
        machine.skip(1.0)
        assert Caller(machine).done
        assert Caller(machine).done
        assert len(machine.looks) == 1
        machine.look()
    machine.listens = True
    machine.skip(1.0)
    assert Caller(machine).done
    machine.look()
    assert not Caller(machine).done
    assert machine.started == 2


def test_looks_end_after_the_last_caller(machine: CacheMachine) -> None:
    """Thirty seconds after it no look is made any more; later the next call asks for real."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    assert Caller(machine).done
    for _ in range(30):
        assert len(machine.looks) == 1
        machine.skip(1.0)
        machine.look()
    assert not machine.looks
    machine.skip(30.0)
    assert not Caller(machine).done


def test_without_a_thread_there_is_no_look(machine: CacheMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory ends after its thirty seconds, and the next caller that finds a thread looks."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_start_thread", lambda *_: False)
        assert Caller(machine).done
    assert not machine.looks
    assert Caller(machine).done
    assert len(machine.looks) == 1


def test_a_stranger_behind_a_look_is_remembered_without_looks(machine: CacheMachine) -> None:
    """A listener that turns out not to be IMDS would be found by each look, and cost a request each time."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    machine.listens = True
    machine.skip(1.0)
    Caller(machine)
    machine.look()
    machine.fail(ImdsUnavailableError("a portal"), Caller(machine), has_listener=True)
    for _ in range(29):
        machine.skip(1.0)
        assert Caller(machine).done
    assert not machine.looks
    machine.skip(1.0)
    assert not Caller(machine).done


def test_a_stranger_is_not_remembered_at_first(machine: CacheMachine) -> None:
    """The next call may find IMDS in its place."""
    machine.fail(ImdsUnavailableError("a portal"), Caller(machine), has_listener=True)
    assert not Caller(machine).done


def test_forgetting_ends_a_look(machine: CacheMachine) -> None:
    """What a look finds after that is not kept."""
    machine.fail(ImdsUnavailableError("nothing answers"), Caller(machine), is_absent=True)
    machine.skip(1.0)
    Caller(machine)
    machine.cache.clear()
    machine.look()
    assert machine.entry().endpoint.absence is None
    assert not Caller(machine).done


def test_the_cache_is_bounded(machine: CacheMachine) -> None:
    """Entries whose token expired and that no call waits for are dropped."""
    for number in range(20 * MIN_SWEEP):
        machine.bring(f"https://{number}#it", 60.0, Caller(machine, f"https://{number}"))
        machine.skip(100.0)
    assert len(machine.cache._entries) <= 2 * MIN_SWEEP


def test_the_cache_shrinks_without_new_keys(machine: CacheMachine) -> None:
    """Entries whose token expired are dropped within ten minutes of requests, also where no new key comes."""
    for number in range(20 * MIN_SWEEP):
        machine.bring(f"https://{number}#it", 60.0, Caller(machine, f"https://{number}"))
    machine.skip(SWEEP_INTERVAL)
    Caller(machine, "https://0")
    assert len(machine.cache._entries) == 1
    assert machine.cache._sweep_at == MIN_SWEEP


def test_an_entry_in_use_is_not_dropped(machine: CacheMachine) -> None:
    """One with a usable token, with a request under way, or with a call that pauses stays the one of its key."""
    machine.bring("https://a#it", 1e6, Caller(machine))
    under_way = Caller(machine, "https://b")
    paused = Caller(machine, "https://c", patience=60.0)
    machine.fail(NO_IDENTITY, paused, index=1)
    kept = {resource: machine.entry(resource) for resource in ("https://a", "https://b", "https://c")}
    for number in range(3 * MIN_SWEEP):
        machine.entry(f"https://{number}")
    Caller(machine, "https://another").leave()
    assert len(machine.cache._entries) == 4
    assert {resource: machine.entry(resource) for resource in kept} == kept
    assert not under_way.done


def fill_of_a_dropped_entry(machine: CacheMachine) -> tuple[TokenEntry, Filling]:
    """Return an entry that was dropped before its caller was counted, and the call of that caller."""
    options: Any = SimpleNamespace(timeout=TIMEOUT, wait_for_identity=0.0, runs_hooks=False)
    dropped = machine.entry()
    filling = machine.cache.fill(dropped, options, force_refresh=False)
    for number in range(2 * MIN_SWEEP):
        machine.entry(f"https://{number}")
    machine.bring("https://another#it", DAY, Caller(machine, "https://another"))
    machine.started = 0
    return dropped, filling


def test_an_entry_that_is_dropped_before_its_caller_is_counted(machine: CacheMachine) -> None:
    """The caller and the next one share the entry that stands in its place, and so one request."""
    dropped, filling = fill_of_a_dropped_entry(machine)
    other = Caller(machine)
    assert other.entry is not dropped
    request, _ = next(filling)
    assert request is other.waiting
    assert machine.started == 1
    machine.bring("https://a#it", DAY, other)
    assert next(filling, None) is None
    assert filling.cached.token.token == other.token == "https://a#it"
    assert (len(other.entry.calls), len(dropped.calls)) == (0, 0)


def test_an_entry_that_is_dropped_comes_back_with_its_caller(machine: CacheMachine) -> None:
    """Where no other stands in its place, later callers find it."""
    dropped, filling = fill_of_a_dropped_entry(machine)
    next(filling)
    assert machine.entry() is dropped
    assert len(dropped.calls) == 1
    filling.close()
    assert len(dropped.calls) == 0


def test_a_caller_counts_from_the_moment_it_joins(machine: CacheMachine) -> None:
    """Also one whose request ends before it begins to wait; but not one that gets its old token at once."""
    caller, other = Caller(machine), Caller(machine)
    (_, request), *_ = machine.under_way
    assert (request.callers, request.waiting) == (2, 2)
    machine.bring("one", 8000.0, caller, other)
    machine.skip(5000.0)
    assert Caller(machine).token == "one"
    ((_, refresh),) = machine.under_way
    assert (refresh.callers, refresh.waiting) == (0, 0)


def test_bypassing_once_in_30_seconds(machine: CacheMachine) -> None:
    """A forced request that ran out of time is not shared, but the next one asks IMDS to bypass its cache only then."""
    bypasses = []
    for _ in range(4):
        caller = Caller(machine, forced=True, timeout=10.0)
        bypasses.append(machine.under_way[0][1].bypass_cache)
        machine.skip(10.0)
        machine.fail(ImdsServiceError("slow"), caller, timed_out=True)
        assert caller.done
    assert bypasses == [True, False, False, True]


def test_a_refresh_that_brings_a_worse_token(
    machine: CacheMachine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held token serves until its end, and log and metrics say that the new one is discarded."""
    observed: list[Any] = []
    monkeypatch.setattr(_observers, "observers", [observed.append])
    machine.first_token("https://a#first", DAY)
    machine.skip(50_000.0)
    assert Caller(machine).token == "https://a#first"
    fields = dict.fromkeys(re.findall(r"\((\w+)\)", token_cache.REQUEST_LINE), 1)
    machine.end(TokenResult("https://a#second", machine.now + 1.0, log_fields=fields))
    (told,) = observed
    assert (told["imds_outcome"], told["imds_expires_in"]) == ("discarded token", None)
    machine.skip(2.0)
    assert Caller(machine).token == "https://a#first"
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "the new token expires within minutes" in record.getMessage()
    assert not machine.under_way, "the next try comes after a pause"
    machine.skip(30.0)
    assert Caller(machine).token == "https://a#first"
    machine.bring("https://a#third", DAY)
    assert Caller(machine).token == "https://a#third"


def test_a_call_that_ends_under_the_lock(machine: CacheMachine) -> None:
    """A call that is collected while its thread has the lock, in the middle of another, leaves that one its lock."""
    machine.fail(NO_IDENTITY, caller := Caller(machine, patience=60.0))
    with machine.cache._lock:
        caller.leave()
        assert machine.cache._lock._is_owned()  # type: ignore[attr-defined] # as Condition asks it
    assert not machine.entry().calls
