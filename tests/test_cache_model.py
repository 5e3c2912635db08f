"""The cache against a simple model: whatever happens in whatever order, its promises hold."""

from __future__ import annotations

import itertools

from cache_machine import TIMEOUT, CacheMachine, Caller
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from azure_imds_credential import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential._jwt import EXPIRY_MARGIN
from azure_imds_credential._request import GRACE

RESOURCES = ("https://a", "https://b")


class CacheModel(RuleBasedStateMachine):
    """Callers come, time passes, clocks are set, requests end with tokens or errors, all is forgotten, it forks."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = CacheMachine()
        self.callers: list[Caller] = []
        self.numbers = itertools.count()
        self.cleared = False

    def teardown(self) -> None:
        self.machine.close()

    def ended(self, caller: Caller) -> None:
        """A call that ends with a token got one that is good now; one that found a token loses nothing."""
        machine = self.machine
        if caller.error is None:
            assert caller.token is not None
            assert caller.token.startswith(caller.resource), "a token for another resource"
            assert machine.now < machine.ends[caller.token], "an expired token"
        elif not caller.forced:
            usable = machine.entry(caller.resource).usable(machine.now)
            assert caller.cached_at_start is None or usable is None, "a live token was lost"

    @rule(resource=st.sampled_from(RESOURCES), forced=st.booleans())
    def call(self, resource: str, forced: bool) -> None:
        machine = self.machine
        before, cached = machine.started, machine.entry(resource).usable(machine.now)
        caller = Caller(machine, resource, forced=forced)
        assert machine.started - before <= 1
        if cached is not None and not forced:
            is_expiring = cached.expires_at - machine.now <= EXPIRY_MARGIN
            assert caller.done or is_expiring, "a caller waits though a usable token is cached"
            assert caller.until - machine.now <= 2.0 or caller.done
        if caller.done:
            self.ended(caller)
        else:
            self.callers.append(caller)
            under_way = any(entry.key.resource == resource for entry, _ in machine.under_way)
            assert under_way, "a caller waits for a request that is not under way"

    @rule(seconds=st.sampled_from([0.5, 3.0, 40.0, 100.0, 1000.0, 30000.0, 90000.0]))
    def time_passes(self, seconds: float) -> None:
        self.machine.skip(seconds)
        self._wake()

    @rule(seconds=st.sampled_from([-5000.0, -10.0, 10.0, 5000.0]))
    def the_wall_clock_is_set(self, seconds: float) -> None:
        self.machine.clock.wall_at += seconds

    @precondition(lambda self: self.machine.under_way)
    @rule(data=st.data(), life=st.sampled_from([1.0, 60.0, 400.0, 5000.0, 86000.0]))
    def a_token_comes(self, data: st.DataObject, life: float) -> None:
        index = data.draw(st.integers(0, len(self.machine.under_way) - 1))
        resource = self.machine.under_way[index][0].key.resource
        entry = self.machine.bring(f"{resource}#{next(self.numbers)}", life, index=index)
        entry.endpoint._seen_by.seen = True
        self._wake()

    @precondition(lambda self: self.machine.under_way)
    @rule(
        data=st.data(),
        error=st.sampled_from([ImdsServiceError, ImdsUnavailableError, IdentityUnavailableError]),
        timed_out=st.booleans(),
    )
    def a_request_fails(self, data: st.DataObject, error: type[ImdsError], timed_out: bool) -> None:
        index = data.draw(st.integers(0, len(self.machine.under_way) - 1))
        is_absent = error is ImdsUnavailableError and not timed_out
        self.machine.fail(error("no"), index=index, is_absent=is_absent, timed_out=timed_out)
        self._wake()

    @precondition(lambda self: self.machine.under_way)
    @rule(data=st.data())
    def a_request_is_abandoned(self, data: st.DataObject) -> None:
        self.machine.end(None, index=data.draw(st.integers(0, len(self.machine.under_way) - 1)))
        self._wake()

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def a_caller_leaves(self, data: st.DataObject) -> None:
        self.callers.pop(data.draw(st.integers(0, len(self.callers) - 1))).leave()

    @rule()
    def all_is_forgotten(self) -> None:
        self.machine.cache.clear()

    @rule()
    def the_process_forks(self) -> None:
        """In the child only tokens remain: requests and waiting callers stayed with the parent."""
        self.machine.cache.reset_after_fork()
        self.machine.under_way.clear()
        self.callers.clear()

    def _wake(self) -> None:
        for caller in self.callers:
            if caller.is_due():
                caller.go_on()
                if caller.done:
                    self.ended(caller)
        self.callers = [caller for caller in self.callers if not caller.done]

    @invariant()
    def one_request_per_key(self) -> None:
        """At most one request of each kind that has not overrun its deadline, but for those that were forgotten."""
        for resource, forced in itertools.product(RESOURCES, (False, True)):
            entry = self.machine.entry(resource)
            alive = [
                request
                for owner, request in self.machine.under_way
                if owner is entry and request.forced == forced and self.machine.now < request.deadline
                if request.generation == entry.generation
            ]
            assert len(alive) <= 1

    @invariant()
    def what_is_fresh_is_good(self) -> None:
        """What the lock-free path would hand out has life left, by both clocks."""
        machine = self.machine
        for resource in RESOURCES:
            cached = machine.entry(resource).cached
            if cached is not None and machine.now < cached.fresh_until:
                assert cached.token.token == cached.info.token
                assert machine.now < machine.ends[cached.token.token]

    @invariant()
    def no_call_outlives_its_time(self) -> None:
        """A caller that still waits has time left, and something or some time to wait for."""
        for caller in self.callers:
            assert self.machine.now <= caller.begun + TIMEOUT + GRACE
            assert not caller.is_due()


TestCacheModel = CacheModel.TestCase
TestCacheModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
