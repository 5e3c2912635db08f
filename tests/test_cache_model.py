"""The cache against a simple model: whatever happens in whatever order, its promises hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from azure_imds_credential import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential import _token_cache as cache_module
from azure_imds_credential._endpoint import AT_ONCE
from azure_imds_credential._flight import Flight, Outcome
from azure_imds_credential._freshness import LAST_MINUTES, Slot, World
from azure_imds_credential._identity import Identity
from azure_imds_credential._token_cache import TokenCache

KEYS = ("https://a", "https://b")
TIMEOUT = 90.0


class Caller:
    """One `get_token` under way, advanced by hand."""

    def __init__(
        self, machine: CacheMachine, key: str, *, forced: bool, timeout: float = TIMEOUT, patience: float = 0.0
    ) -> None:
        self.machine, self.key, self.forced = machine, key, forced
        self.slot = machine.slot(key)
        self.begun = machine.now
        self.held_at_start = machine.usable(key)
        wish: Any = SimpleNamespace(timeout=timeout, wait_for_identity=patience, options={})
        self.steps = machine.cache.steps(self.slot, wish, forced=forced)
        self.waiting: Any = None
        self.until = 0.0
        self.done = False
        self.error: BaseException | None = None
        self.go_on()

    def go_on(self) -> None:
        """Run until it waits for a flight that has not landed, or ends."""
        try:
            while True:
                self.waiting, seconds = next(self.steps)
                self.until = self.machine.now + seconds
                if not (self.waiting and self.waiting.landed) and seconds > 0:
                    return
        except StopIteration:
            self.done = True
            self.machine.ended(self)
        except ImdsError as error:
            self.done, self.error = True, error
            self.machine.ended(self)


class CacheMachine(RuleBasedStateMachine):
    """Callers come, time passes, flights land with tokens or errors; no thread runs but the test's own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.cache = TokenCache(World(lambda: self.now, lambda: 1e9 + self.now, lambda: 0.5, lambda _: None))
        self.flying: list[tuple[Any, Flight]] = []
        self.callers: list[Caller] = []
        self.numbers = itertools.count()
        self.ends: dict[str, float] = {}  # when each token that was brought expires
        self.launched = 0
        self.patch = pytest.MonkeyPatch()
        machine = self

        class Thread:
            """Instead of a thread: the flight waits in a list until the test lets it land."""

            def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], name: str, daemon: bool) -> None:
                _, self.slot, _, self.flight = args

            def start(self) -> None:
                machine.flying.append((self.slot, self.flight))
                machine.launched += 1

        self.patch.setattr(cache_module.threading, "Thread", Thread)

    def teardown(self) -> None:
        self.patch.undo()

    def slot(self, key: str) -> Slot:
        return self.cache.slot("http://127.0.0.1", Identity("system-assigned"), key)

    def usable(self, key: str) -> bool:
        slot = self.slot(key)
        return slot.token is not None and self.now < slot.expires_at

    def ended(self, caller: Caller) -> None:
        """Whoever ends with a token got one that is good now; whoever had one when he came loses nothing."""
        if caller.error is None:
            token = caller.slot.token
            assert token is not None
            assert token.token.startswith(caller.key), "a token for another key"
            assert self.now < self.ends[token.token], "an expired token"
        elif not caller.forced:
            assert not caller.held_at_start or not self.usable(caller.key), "a live token was lost"

    @rule(key=st.sampled_from(KEYS), forced=st.booleans())
    def call(self, key: str, forced: bool) -> None:
        before, held = self.launched, self.usable(key)
        caller = Caller(self, key, forced=forced)
        assert self.launched - before <= 1
        if held and not forced:
            closing = caller.slot.expires_at - self.now <= LAST_MINUTES
            assert caller.done or closing, "a caller waits though a usable token is held"
            assert caller.until - self.now <= 2.0 or caller.done
        if not held:
            asked = any(slot.resource == key for slot, _ in self.flying)
            assert asked or caller.done, "a caller waits for a flight that nobody flies"
        if not caller.done:
            self.callers.append(caller)

    @rule(seconds=st.sampled_from([0.5, 3.0, 40.0, 100.0, 1000.0, 30000.0, 90000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self._wake()

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), life=st.sampled_from([1.0, 60.0, 400.0, 5000.0, 86000.0]))
    def a_flight_brings_a_token(self, data: st.DataObject, life: float) -> None:
        slot, flight = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        token = f"{slot.resource}#{next(self.numbers)}"
        self.ends[token] = self.now + life
        slot.endpoint.seen = True
        self.cache._settle(slot, flight, Outcome(token, self.now + life))
        self._wake()

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        error=st.sampled_from([ImdsServiceError, ImdsUnavailableError, IdentityUnavailableError]),
        out_of_time=st.booleans(),
    )
    def a_flight_fails(self, data: st.DataObject, error: type[ImdsError], out_of_time: bool) -> None:
        slot, flight = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        absent = error is ImdsUnavailableError and not out_of_time
        self.cache._settle(slot, flight, Outcome(error=error("no"), absent=absent, out_of_time=out_of_time))
        self._wake()

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def a_leader_is_interrupted(self, data: st.DataObject) -> None:
        slot, flight = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.cache._settle(slot, flight, None)
        self._wake()

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def a_caller_leaves(self, data: st.DataObject) -> None:
        self.callers.pop(data.draw(st.integers(0, len(self.callers) - 1))).steps.close()

    @rule()
    def the_process_forks(self) -> None:
        """In the child only tokens remain: flights and waiting callers stayed with the parent."""
        self.cache.begin_anew()
        self.flying.clear()
        self.callers.clear()

    def _wake(self) -> None:
        for caller in tuple(self.callers):
            if (caller.waiting and caller.waiting.landed) or self.now >= caller.until:
                caller.go_on()
        self.callers = [caller for caller in self.callers if not caller.done]

    @invariant()
    def one_flight_per_key(self) -> None:
        """At most one flight of each kind that has not overrun its time."""
        for key, forced in itertools.product(KEYS, (False, True)):
            alive = [
                flight
                for slot, flight in self.flying
                if slot.resource == key and flight.forced == forced and self.now < flight.deadline
            ]
            assert len(alive) <= 1

    @invariant()
    def what_is_warm_is_good(self) -> None:
        """Whatever the lock-free path would hand out has life left."""
        for key in KEYS:
            slot = self.slot(key)
            if self.now < slot.fresh_until:
                assert slot.token is not None
                assert slot.info is not None
                assert slot.token.token == slot.info.token
                assert self.now < self.ends[slot.token.token]
                assert slot.token.expires_on == int(1e9 + self.ends[slot.token.token])

    @invariant()
    def nobody_waits_beyond_his_time(self) -> None:
        """A caller that still waits has time left, and something or some time to wait for."""
        for caller in self.callers:
            assert self.now <= caller.begun + TIMEOUT + 1
            assert caller.until > self.now or caller.waiting.landed


TestCacheModel = CacheMachine.TestCase
TestCacheModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.fixture
def machine() -> Iterator[CacheMachine]:
    """The same world without dice: the test says what happens."""
    machine = CacheMachine()
    yield machine
    machine.teardown()


def _lands(machine: CacheMachine, outcome: Outcome | None, *callers: Caller) -> None:
    slot, flight = machine.flying.pop(0)
    machine.cache._settle(slot, flight, outcome)
    for caller in callers:
        caller.go_on()


def _brings(machine: CacheMachine, token: str, life: float, *callers: Caller) -> None:
    machine.ends[token] = machine.now + life
    _lands(machine, Outcome(token, machine.now + life), *callers)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome(error=ImdsServiceError("late"), out_of_time=True), IdentityUnavailableError),
        (None, IdentityUnavailableError),
        (Outcome(error=ImdsServiceError("ill")), ImdsServiceError),
    ],
    ids=["out of time", "interrupted", "another answer"],
)
def test_who_waited_for_an_identity_in_vain_is_told_that(
    machine: CacheMachine, outcome: Outcome | None, told: type[ImdsError]
) -> None:
    """When the time is up the error is that there is no identity; an answer that says something else counts more."""
    caller = Caller(machine, KEYS[0], forced=False, patience=TIMEOUT)
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), caller)
    machine.now += 5.0
    caller.go_on()
    machine.now += TIMEOUT - 5.0
    _lands(machine, outcome, caller)
    assert type(caller.error) is told


def test_who_waits_for_the_same_identity_asks_together(machine: CacheMachine) -> None:
    """Callers who come at different times share one question in five seconds; who cannot wait asks at once."""
    first = Caller(machine, KEYS[0], forced=False, patience=60.0)
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), first)
    callers = [first]
    for _ in range(4):
        machine.now += 1.0
        callers.append(Caller(machine, KEYS[0], forced=False, patience=60.0))
    assert machine.launched == 1
    assert {caller.until for caller in callers} == {1005.0}
    hasty = Caller(machine, KEYS[0], forced=False)
    assert machine.launched == 2
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), hasty)
    assert isinstance(hasty.error, IdentityUnavailableError)
    machine.now = 1005.0
    for caller in callers:
        caller.go_on()
    assert machine.launched == 2
    assert {caller.until for caller in callers} == {1009.0}
    machine.now = 1009.0
    for caller in callers:
        caller.go_on()
    assert machine.launched == 3
    _brings(machine, "https://a#it", 86400.0, *callers)
    assert all(caller.done and caller.error is None for caller in callers)


@pytest.mark.parametrize("forced", [False, True])
def test_a_last_question_is_asked_when_patience_ends(machine: CacheMachine, forced: bool) -> None:
    """Who comes while others pause and has less patience than their pause asks when it ends, and is told then."""
    others = Caller(machine, KEYS[0], forced=forced, patience=60.0)
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), others)
    machine.now += 1.0
    caller = Caller(machine, KEYS[0], forced=forced, patience=2.0)
    assert caller.until - machine.now == 2.0
    machine.now += 2.0
    caller.go_on()
    assert machine.launched == 2
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), caller)
    assert isinstance(caller.error, IdentityUnavailableError)


def test_who_would_wait_joins_a_request_that_is_under_way(machine: CacheMachine) -> None:
    """The answer to it is newer than the one after which the others pause."""
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), Caller(machine, KEYS[0], forced=False))
    machine.now += 1.0
    Caller(machine, KEYS[0], forced=False)
    newcomer = Caller(machine, KEYS[0], forced=False, patience=60.0)
    assert newcomer.waiting is machine.flying[0][1]


def test_a_token_ends_the_pause_for_an_identity(machine: CacheMachine) -> None:
    """Whoever forces a refresh just after it came asks at once."""
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), Caller(machine, KEYS[0], forced=False))
    _first(machine)
    Caller(machine, KEYS[0], forced=True, patience=60.0)
    assert len(machine.flying) == 1


def test_who_paused_takes_what_another_forced_meanwhile(machine: CacheMachine) -> None:
    """Forced callers who wait for an identity share the refresh that brought it."""
    _lands(machine, Outcome(error=IdentityUnavailableError("none")), Caller(machine, KEYS[0], forced=False))
    patient = [Caller(machine, KEYS[0], forced=True, patience=60.0) for _ in range(8)]
    assert not machine.flying
    machine.now += 1.0
    hasty = Caller(machine, KEYS[0], forced=True)
    _brings(machine, "https://a#it", 86400.0, hasty)
    machine.now += 4.0
    for caller in patient:
        caller.go_on()
    assert all(caller.done and caller.error is None for caller in patient)
    assert machine.launched == 2


def test_who_waits_for_an_identity_does_not_share_a_forced_failure(machine: CacheMachine) -> None:
    """The remembered answer that there is no identity is for who cannot wait; nobody bypasses IMDS's cache for it."""
    _lands_forced_in_vain(machine, IdentityUnavailableError("none"))
    assert isinstance(Caller(machine, KEYS[0], forced=True).error, IdentityUnavailableError)
    patient = Caller(machine, KEYS[0], forced=True, patience=60.0)
    assert (patient.done, patient.until - machine.now) == (False, 5.0)
    machine.now += 5.0
    patient.go_on()
    (_, flight) = machine.flying[0]
    assert (flight.forced, flight.bypass) == (True, False)
    _brings(machine, "https://a#it", 86400.0, patient)
    assert patient.done
    assert patient.error is None


@pytest.mark.parametrize(("token", "told"), [("https://a#newer", None), ("https://a#first", ImdsServiceError)])
def test_a_forced_failure_is_remembered_until_a_newer_token_comes(
    machine: CacheMachine, token: str, told: type[ImdsError] | None
) -> None:
    """Within its 30 s a forced call gets a token that came since, though not the one that was to be replaced."""
    _first(machine)
    machine.now += 43_000.0 + 5_000.0
    _lands_forced_in_vain(machine, ImdsServiceError("no"))
    machine.now += 1.0
    slot = machine.slot(KEYS[0])
    slot.retry_at = machine.now
    Caller(machine, KEYS[0], forced=False)
    _brings(machine, token, 30_000.0)
    again = Caller(machine, KEYS[0], forced=True)
    assert again.done
    assert (type(again.error) if again.error else None) == told


def _lands_forced_in_vain(machine: CacheMachine, error: ImdsError) -> None:
    caller = Caller(machine, KEYS[0], forced=True)
    _lands(machine, Outcome(error=error), caller)
    assert type(caller.error) is type(error)


class JustBefore:
    """A lock that lets something happen just before it is taken for the first time."""

    def __init__(self, machine: CacheMachine, what: Callable[[], None]) -> None:
        self.machine, self.what = machine, what
        self.lock = machine.cache._lock

    def __enter__(self) -> None:
        self.machine.cache._lock = self.lock
        self.what()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.mark.parametrize("forced", [False, True])
def test_a_failure_between_a_look_and_the_lock_is_seen(machine: CacheMachine, forced: bool) -> None:
    """Whoever looked before another's refresh failed keeps to the pause that follows it, and to what it said."""
    _first(machine)
    machine.now += 50_000.0

    def another_fails() -> None:
        Caller(machine, KEYS[0], forced=forced)
        _lands(machine, Outcome(error=ImdsServiceError("no")))

    slot = machine.slot(KEYS[0])
    machine.cache._lock = JustBefore(machine, another_fails)  # type: ignore[assignment] # as far as it is used
    wish: Any = SimpleNamespace(timeout=TIMEOUT, wait_for_identity=0.0, options={})
    if forced:
        with pytest.raises(ImdsServiceError):
            next(machine.cache.steps(slot, wish, forced=True))
    else:
        assert list(machine.cache.steps(slot, wish, forced=False)) == []
    assert machine.launched == 2


def test_between_failed_refreshes_the_held_token_is_as_warm_as_a_fresh_one(machine: CacheMachine) -> None:
    """The fast path serves it until the next try, for a minute at a time, and never past its end."""
    _first(machine)
    slot = machine.slot(KEYS[0])
    machine.now += 86_350.0
    Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("no")))
    assert slot.retry_at == machine.now + 30.0
    assert Caller(machine, KEYS[0], forced=False).done
    assert slot.fresh_until == slot.retry_at
    machine.now += 30.0
    Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("no")))
    assert Caller(machine, KEYS[0], forced=False).done
    assert slot.fresh_until == slot.expires_at == machine.now + 20.0


def test_callers_during_a_refresh_write_nothing(machine: CacheMachine) -> None:
    """Each gets the very token that is held, without taking the lock to make it anew."""
    _first(machine)
    machine.now += 50_000.0
    told = set[int]()
    for _ in range(3):
        caller = Caller(machine, KEYS[0], forced=False)
        assert caller.done
        told.add(id(caller.slot.token))
    assert len(told) == 1
    assert len(machine.flying) == 1


def test_of_several_troubles_the_last_is_told_to_each_caller(machine: CacheMachine) -> None:
    """Who leaves at the deadline hears of the latest attempt, in an error of his own."""
    callers = [Caller(machine, KEYS[0], forced=False) for _ in range(2)]
    (_, flight) = machine.flying[0]
    flight.troubles.extend([ImdsServiceError("first"), ImdsServiceError("last")])
    machine.now += TIMEOUT
    for caller in callers:
        caller.go_on()
    assert [str(caller.error) for caller in callers] == ["last", "last"]
    assert len({id(caller.error) for caller in callers} | {id(flight.troubles[-1])}) == 3


def test_a_refusal_is_final_for_who_has_more_time_too(machine: CacheMachine) -> None:
    """Only a flight that failed for lack of time is tried again by a waiter that has some."""
    Caller(machine, KEYS[0], forced=False, timeout=10.0)
    patient = Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("no")), patient)
    assert isinstance(patient.error, ImdsServiceError)
    assert machine.launched == 1


@pytest.mark.parametrize(("asked", "waits"), [(20.0, 20.0), (2 * TIMEOUT, None)])
def test_who_has_more_time_waits_as_long_as_the_server_asked(
    machine: CacheMachine, asked: float, waits: float | None
) -> None:
    """A Retry-After that was too long for the leader holds for the next; one beyond his time too ends his call."""
    Caller(machine, KEYS[0], forced=False, timeout=10.0)
    patient = Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("later"), out_of_time=True, retry_after=asked), patient)
    assert machine.launched == 1
    assert (None if patient.done else patient.until - machine.now) == waits


def test_a_token_that_was_dead_on_arrival_is_not_asked_for_again_at_once(machine: CacheMachine) -> None:
    """In case the tokens of this IMDS are always dead: half a second lies between two questions."""
    caller = Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome("dead", machine.now - 1.0), caller)
    assert machine.launched == 1
    assert caller.until - machine.now == 0.5


def test_a_flight_is_joined_until_its_time_and_a_moment_is_over(machine: CacheMachine) -> None:
    """A flight about to say why it failed is waited for; one that says nothing is replaced and left alone."""
    Caller(machine, KEYS[0], forced=False, timeout=10.0)
    machine.now += 10.05
    joined = Caller(machine, KEYS[0], forced=False)
    assert machine.launched == 1
    assert joined.until - machine.now == pytest.approx(0.05)
    machine.now += 0.06
    joined.go_on()
    assert machine.launched == 2


def test_an_ordinary_call_does_not_join_a_forced_flight(machine: CacheMachine) -> None:
    """A forced flight is its own: who forces nothing sets out on an ordinary one."""
    Caller(machine, KEYS[0], forced=True)
    Caller(machine, KEYS[0], forced=False)
    assert [flight.forced for _, flight in machine.flying] == [True, False]


@pytest.mark.parametrize("forced", [False, True])
def test_a_flight_that_overran_ends_nothing_but_itself(machine: CacheMachine, forced: bool) -> None:
    """What comes of it at last leaves its replacement under way: a third caller joins that."""
    Caller(machine, KEYS[0], forced=forced, timeout=10.0)
    machine.now += 11.0
    Caller(machine, KEYS[0], forced=forced)
    _lands(machine, Outcome(error=ImdsServiceError("late"), out_of_time=True))
    Caller(machine, KEYS[0], forced=forced)
    assert machine.launched == 2


def test_a_forced_refresh_for_which_there_was_no_time_limits_nobody(machine: CacheMachine) -> None:
    """IMDS said nothing, so the next caller may force again at once, and is not told the other's error."""
    hasty = Caller(machine, KEYS[0], forced=True, timeout=1.0)
    machine.now += 1.0
    _lands(machine, Outcome(error=ImdsServiceError("late"), out_of_time=True), hasty)
    assert hasty.error is not None
    assert not Caller(machine, KEYS[0], forced=True).done
    assert machine.launched == 2


def test_a_forced_refresh_for_which_there_was_no_time_puts_no_other_off(machine: CacheMachine) -> None:
    """The ordinary refresh that is due sets out all the same."""
    _first(machine)
    machine.now += 50_000.0
    hasty = Caller(machine, KEYS[0], forced=True, timeout=1.0)
    machine.now += 1.0
    _lands(machine, Outcome(error=ImdsServiceError("late"), out_of_time=True), hasty)
    assert not machine.flying
    Caller(machine, KEYS[0], forced=False)
    assert len(machine.flying) == 1


def test_a_forced_refresh_that_hangs_is_no_success(machine: CacheMachine) -> None:
    """Who forced it gets the error when the time is up, and never the token that he would not have."""
    _first(machine)
    machine.now += 100.0
    caller = Caller(machine, KEYS[0], forced=True, timeout=10.0)
    machine.now += 10.1
    caller.go_on()
    assert isinstance(caller.error, ImdsError)


def test_a_slot_changes_under_the_lock_alone(machine: CacheMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, asked for, filled, told anew by another wall clock, refreshed and failed: no step without the lock."""
    changed: list[str] = []

    def change(slot: Slot, name: str, value: object) -> None:
        assert machine.cache._lock._is_owned(), name  # type: ignore[attr-defined] # as Condition asks it
        changed.append(name)
        object.__setattr__(slot, name, value)

    monkeypatch.setattr(Slot, "__setattr__", change, raising=False)
    _first(machine)
    machine.now += 100.0
    assert Caller(machine, KEYS[0], forced=False).done
    machine.now += 50_000.0
    assert Caller(machine, KEYS[0], forced=False).done
    _lands(machine, Outcome(error=ImdsServiceError("no")))
    Caller(machine, KEYS[0], forced=True)
    _lands(machine, Outcome("newer", machine.now + 86400.0))
    machine.cache.forget()
    assert {"endpoint", "plain", "forced", "token", "fresh_until", "failures", "forced_at"} <= set(changed)


def test_a_slot_that_can_be_found_is_whole(machine: CacheMachine) -> None:
    """A fork may come between any two steps: the child must not find a slot without an endpoint."""

    class Watched(dict[Any, Slot]):
        def __setitem__(self, key: Any, slot: Slot) -> None:
            assert (slot.endpoint.url, slot.identity, slot.resource) == key
            super().__setitem__(key, slot)

    machine.cache._slots = Watched()
    assert machine.slot(KEYS[0])


def test_a_forced_token_replaces_one_that_came_while_it_was_fetched(machine: CacheMachine) -> None:
    """A forced flight went past IMDS's cache: what it brings is the newer token, whenever it set out."""
    Caller(machine, KEYS[0], forced=True)
    ordinary = Caller(machine, KEYS[0], forced=False)
    machine.now += 1.0
    forced = machine.flying.pop(0)
    machine.ends |= {"https://a#plain": machine.now + 86400.0}
    _lands(machine, Outcome("https://a#plain", machine.now + 86400.0), ordinary)
    machine.flying.append(forced)
    _lands(machine, Outcome("https://a#forced", machine.now + 86400.0))
    assert forced[0].token.token == "https://a#forced"


def test_a_place_at_the_gate_is_given_back_once(machine: CacheMachine) -> None:
    """Whoever saw a flight overrun gave its place away: when it ends after all, no sixth place opens."""
    caller = Caller(machine, KEYS[0], forced=False)
    slot, flight = machine.flying[0]
    assert slot.endpoint.gate.enter(flight, lambda: machine.now)
    machine.now += TIMEOUT
    caller.go_on()
    _lands(machine, Outcome(error=ImdsServiceError("late"), out_of_time=True))
    places = [slot.endpoint.gate.places.acquire(blocking=False) for _ in range(AT_ONCE + 1)]
    assert places == [True] * AT_ONCE + [False]


@pytest.mark.parametrize("forced", [False, True])
def test_what_set_out_before_all_was_forgotten_is_not_kept(machine: CacheMachine, forced: bool) -> None:
    """The next caller asks for himself, and the older answer goes to nobody."""
    Caller(machine, KEYS[0], forced=forced)
    machine.now += 1.0
    machine.cache.forget()
    Caller(machine, KEYS[0], forced=forced)
    assert machine.launched == 2
    slot, _ = machine.flying[0]
    _lands(machine, Outcome("https://a#old", machine.now + 86400.0))
    assert slot.token is None


def test_a_token_ends_the_backing_off(machine: CacheMachine) -> None:
    """After it the next refresh comes when it is due, and the first failure counts as the first."""
    _first(machine)
    machine.now += 80_000.0
    slot = machine.slot(KEYS[0])
    for pause in (30.0, 60.0, 120.0, 240.0):
        Caller(machine, KEYS[0], forced=False)
        _lands(machine, Outcome(error=ImdsServiceError("no")))
        assert slot.retry_at - machine.now == pause
        machine.now += pause
    Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("no")))  # the next try would come in 480 s
    machine.ends |= {"https://a#short": machine.now + 350.0, "https://a#long": machine.now + 86400.0}
    Caller(machine, KEYS[0], forced=True)
    _lands(machine, Outcome("https://a#short", machine.now + 350.0))
    machine.now += 60.0
    Caller(machine, KEYS[0], forced=False)
    assert len(machine.flying) == 1, "the back-off of an older token goes on"
    _lands(machine, Outcome("https://a#long", machine.now + 86400.0))
    machine.now += 50_000.0
    Caller(machine, KEYS[0], forced=False)
    _lands(machine, Outcome(error=ImdsServiceError("no")))
    assert slot.retry_at - machine.now == 30.0


def _first(machine: CacheMachine) -> None:
    caller = Caller(machine, KEYS[0], forced=False)
    _brings(machine, "https://a#first", 86400.0, caller)
    assert caller.done
