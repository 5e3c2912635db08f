"""The cache against a simple model: whatever happens in whatever order, its promises hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from azure_imds_credential import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential import _token_cache as cache_module
from azure_imds_credential._flight import Flight, Outcome
from azure_imds_credential._freshness import LAST_MINUTES, World
from azure_imds_credential._identity import Identity
from azure_imds_credential._token_cache import TokenCache

KEYS = ("https://a", "https://b")
TIMEOUT = 90.0


class Caller:
    """One `get_token` under way, advanced by hand."""

    def __init__(self, machine: CacheMachine, key: str, *, forced: bool) -> None:
        self.machine, self.key, self.forced = machine, key, forced
        self.slot = machine.cache.slot("http://127.0.0.1", Identity("system-assigned"), key)
        self.begun = machine.now
        self.held_at_start = machine.usable(key)
        wish: Any = SimpleNamespace(timeout=TIMEOUT, wait_for_identity=0.0, options={})
        self.steps = machine.cache.steps(self.slot, wish, forced=forced)
        self.waiting: Any = None
        self.until = 0.0
        self.done = False
        self.error: BaseException | None = None
        self.go_on()

    def go_on(self) -> None:
        """Run until it waits for a future that is not done, or ends."""
        try:
            while True:
                self.waiting, seconds = next(self.steps)
                self.until = self.machine.now + seconds
                if not self.waiting.done() and seconds > 0:
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

    def usable(self, key: str) -> bool:
        slot = self.cache.slot("http://127.0.0.1", Identity("system-assigned"), key)
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
            if caller.waiting.done() or self.now >= caller.until:
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
            slot = self.cache.slot("http://127.0.0.1", Identity("system-assigned"), key)
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
            assert caller.until > self.now or caller.waiting.done()


TestCacheModel = CacheMachine.TestCase
TestCacheModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
