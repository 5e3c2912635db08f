"""A cache in still time, the promises that are checked after each event, and a way to try every order of events."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from cache_machine import DAY, TIMEOUT, CacheMachine, Caller

from azure_imds_credential import IdentityUnavailableError, ImdsServiceError, ImdsUnavailableError
from azure_imds_credential._cache import token_cache
from azure_imds_credential._cache.decision import REFRESH_WAIT
from azure_imds_credential._cache.token_entry import (
    CLOCK_CHECK_INTERVAL,
    FORCE_INTERVAL,
    MIN_BACK_OFF,
    TokenEntry,
    TokenState,
)
from azure_imds_credential._request import GRACE, NEVER, TokenRequest, TokenResult

A, B = "https://a", "https://b"
ROUNDING = 1e-6  # seconds that adding and subtracting of large numbers may lose
MOST_CALLS = 3  # open at the same time
MOST_REQUESTS = 3  # started so far, after which no other call comes


class Call(Caller):
    """A call whose end is checked against the promises."""

    machine: Simulation

    def __init__(
        self,
        machine: Simulation,
        resource: str = A,
        *,
        forced: bool = False,
        timeout: float = TIMEOUT,
        patience: float = 0.0,
    ) -> None:
        self.ends_by = machine.now + timeout + GRACE
        self.clears = machine.clears
        self.patience = patience
        self.running = False
        machine.calls.append(self)
        super().__init__(machine, resource, forced=forced, timeout=timeout, patience=patience)

    def go_on(self) -> None:
        self.running = True
        super().go_on()
        self.running = False
        if self.done:
            self.machine.ended(self)

    def has_what_it_came_for(self) -> bool:
        """Return whether the token that was cached when it came would still serve it."""
        cached, now = self.entry.usable(self.machine.now), self.machine.now
        return (
            not self.forced
            and cached is not None
            and self.cached_at_start is not None
            and cached.token.token == self.cached_at_start.token.token
            and now < self.cached_at_start.expires_at
        )


class Simulation(CacheMachine):
    """Events over a cache. Time stands still but for the events that move it.

    Args:
        precise: Each call runs at once, so it gets nothing that was forgotten before it ends. Otherwise other events
            come between its steps, and it gets nothing that was forgotten before it began.
    """

    def __init__(self, *, precise: bool = True) -> None:
        super().__init__()
        self.precise = precise
        self.calls: list[Call] = []  # that have not ended
        self.gone: list[Call] = []  # of the parent process: a child never runs them
        self.clears = 0
        self.request_clears: dict[int, int] = {}  # for each request: the clears before it
        self.token_clears: dict[str, int] = {}  # for each token: the clears before its request
        self.elapsed = 0.0  # in the world outside, while the VM was paused too
        self.arrived: dict[str, float] = {}  # when each token came last
        self.true_ends: dict[str, float] = {}  # when each token expires, in that time
        self.paused_at = NEVER
        self.failed_at = NEVER  # when the latest ordinary request failed
        self.can_start = True  # a thread
        self.inline_fetches = 0  # requests that ran on the threads of their callers
        self.replaced: set[TokenRequest] = set()  # requests under way when such a one took their place
        self.overslept = False  # the process was stopped for a while: calls may end late
        self.raised: list[BaseException] = []
        self.brought: list[BaseException] = []
        self.found: dict[str, str] = {}  # the latest token of each resource

    # Events.

    def inline_call(self, *, forced: bool = False) -> None:
        """A call of a thread that a request on another may wait for: it never waits for one."""
        before, under_way = self.inline_fetches, [request for _, request in self.under_way]
        self.patch.setattr(token_cache, "must_not_wait", lambda **_: True)
        count = len(self.calls)
        self.call(forced=forced)
        self.patch.setattr(token_cache, "must_not_wait", lambda **_: False)
        assert len(self.calls) == count, "it waits"
        if self.inline_fetches > before:
            self.replaced.update(under_way)

    def call(self, resource: str = A, *, forced: bool = False, timeout: float = TIMEOUT, patience: float = 0.0) -> None:
        before = self.started
        usable = self.entry(resource).usable(self.now)
        call = Call(self, resource, forced=forced, timeout=timeout, patience=patience)
        if not self.precise:
            return
        assert self.started - before <= 1
        if usable is None or forced:
            return
        usable = call.entry.usable(self.now)  # as it is told after a look at the clocks
        if usable is not None and not call.done:
            assert usable.state(self.now) is TokenState.EXPIRING, "a usable token is cached, and a call waits"
            assert self.now >= self.failed_at + MIN_BACK_OFF, "calls wait more than once per back-off"

    def token(self, index: int, life: float = DAY, *, again: bool = False) -> None:
        entry, request = self.under_way[index]
        resource = entry.key.resource
        name = self.found.get(resource) if again else None
        name = name or f"{resource}#{next(self.numbers)}"
        self.found[resource] = name
        self.token_clears[name] = max(self.token_clears.get(name, 0), self.request_clears[id(request)])
        self.true_ends[name] = self.elapsed + life
        self.arrived[name] = self.now
        entry.endpoint.note_seen(request)
        self.bring(name, life, index=index)

    def dead_token(self, index: int) -> None:
        self.end(TokenResult("dead", self.now - 1.0), index=index)

    def failure(self, index: int, cls: Callable[[str], BaseException] = ImdsServiceError, **members: Any) -> None:
        _, request = self.under_way[index]
        error = cls("no")
        self.brought.append(error)
        if not request.forced:
            self.failed_at = self.now
        self.end(TokenResult(error=error, **members), index=index)

    def abandon(self, index: int) -> None:
        """A request ends that was never sent."""
        self.end(None, index=index)

    def attempt(self, index: int) -> None:
        """An attempt fails, and the request goes on."""
        error = ImdsServiceError("not yet")
        self.brought.append(error)
        self.under_way[index][1].attempt_errors.append(error)

    def clear(self) -> None:
        self.cache.clear()
        self.clears += 1
        self.failed_at = NEVER
        assert not any(entry.cached or entry.plain_request or entry.forced_request for entry in self.entries())

    def fork(self) -> None:
        """Only the tokens remain: calls and requests stayed with the parent."""
        tokens = [entry.cached for entry in self.entries()]
        self.cache.reset_after_fork()
        self.gone += self.calls
        self.calls.clear()
        self.under_way.clear()
        for entry, cached in zip(self.entries(), tokens, strict=True):
            assert entry.cached is cached, "a token was lost"
            assert not entry.plain_request, "a request of the parent"
            assert not entry.forced_request, "a request of the parent"
            assert not entry.calls
            assert not entry.endpoint.limiter.active

    def time(self, seconds: float = math.inf) -> None:
        """Time passes, up to the moment at which the first call looks again."""
        seconds = min([seconds, *(call.until - self.now for call in self.calls)])
        seconds = TIMEOUT + 1 if math.isinf(seconds) else max(0.0, seconds)
        self.elapsed += seconds
        self.skip(seconds)

    def oversleep(self, seconds: float) -> None:
        self.overslept = True
        self.elapsed += seconds
        self.skip(seconds)

    def paused(self, seconds: float) -> None:
        """The host pauses the VM: only the wall clock, which is set afterwards, knows of it."""
        self.paused_at = self.now
        self.elapsed += seconds
        self.clock.wall_at += seconds

    def set_wall_clock(self, seconds: float) -> None:
        self.clock.wall_at += seconds

    def use_no_threads(self) -> None:
        """No thread can start from now on."""
        self.can_start = False

    def look_finds(self, found: bool) -> None:
        self.listens = found
        self.look()

    # Promises.

    def fetch(self, *_: object) -> TokenResult:
        """Get a token where no thread can start, or none is waited for."""
        self.inline_fetches += 1
        name = f"{A}#{next(self.numbers)}"
        self.token_clears[name] = self.clears
        self.ends[name] = self.now + 400.0
        self.true_ends[name] = self.elapsed + 400.0
        self.arrived[name] = self.now
        return TokenResult(name, self.now + 400.0)

    def _start_thread(self, function: Callable[..., None], *args: object) -> bool:
        if not self.can_start:
            return False
        if function.__name__ == "_run":
            self.request_clears[id(args[2])] = self.clears
        return super()._start_thread(function, *args)

    def entries(self) -> Sequence[TokenEntry]:
        return tuple(self.cache._entries.values())

    def ended(self, call: Call) -> None:
        """Check what a call got."""
        self.calls.remove(call)
        assert self.overslept or self.now <= call.ends_by + ROUNDING, "too late"
        if call.error is not None:
            assert not any(call.error is other for other in self.raised + self.brought), "not an error of its own"
            self.raised.append(call.error)
            assert call.clears != self.clears or not call.has_what_it_came_for(), "a usable token was lost"
            if self.precise:
                assert call.forced or call.entry.usable(self.now) is None, "a usable token is cached, and a call fails"
            return
        assert call.token is not None
        assert call.cached is not None
        assert call.cached.info.token == call.token
        if call.forced:
            assert self.arrived[call.token] >= call.begun - FORCE_INTERVAL, "the token that was to be replaced"
        self.good(call.token, call.resource, self.clears if self.precise else call.clears)

    def good(self, token: str, resource: str, clears: int) -> None:
        """Check that a token may be handed out."""
        assert token.startswith(resource), "a token for another resource"
        assert self.now < self.ends[token], "an expired token"
        assert self.token_clears[token] >= clears, "a forgotten token"
        unnoticed = self.now < self.paused_at + CLOCK_CHECK_INTERVAL + REFRESH_WAIT
        assert unnoticed or self.elapsed < self.true_ends[token], "a token that expired during a pause"

    def check(self) -> None:
        """Check what holds in every state."""
        for entry in self.entries():
            alive = [
                request
                for owner, request in self.under_way
                if owner is entry and self.now < request.deadline and request.generation == entry.generation
                if request not in self.replaced
            ]
            assert len({request.forced for request in alive}) == len(alive), "two requests of a kind"
            assert not any(request and request.done() for request in (entry.plain_request, entry.forced_request))
            assert len(entry.calls) == sum(call.entry is entry for call in self.calls)
            cached = entry.cached
            if cached is not None and self.now < cached.fresh_until:  # as the lock-free path has it
                assert cached.token.token == cached.info.token
                self.good(cached.token.token, entry.key.resource, self.clears)
        for call in self.calls:
            assert call.until <= call.ends_by + ROUNDING, "a wait beyond the deadline"
            under_way = any(request is call.waiting for _, request in self.under_way)
            assert under_way or call.waiting is None or call.is_due(), "a wait for nothing"
            if call.has_what_it_came_for():
                assert call.until <= call.begun + REFRESH_WAIT + ROUNDING, "a usable token is cached, and a call waits"

    def due(self) -> list[Call]:
        """Return the calls whose wait is over."""
        return [call for call in self.calls if not call.running and call.is_due()]

    def drain(self) -> None:
        """Let the calls end with time alone, then the requests with tokens: neither lasts, and neither does harm."""
        for _ in range(200):
            if not self.calls:
                break
            for call in self.due():
                call.go_on()
            self.time()
            self.check()
        assert not self.calls, "a call without an end"
        while self.under_way:
            self.token(0)
            self.check()


Event = Callable[[Simulation], object]
PerRequest = Callable[[Simulation, int], object]


class Alphabet:
    """What may happen, in any order.

    Args:
        start: What happens first.
        calls: Kinds of calls.
        ends: What may happen to each request under way.
        others: Further events.
        steps: Events that move a clock. A call whose wait is over runs before.
    """

    def __init__(
        self,
        *,
        start: Sequence[Event] = (),
        calls: dict[str, Event],
        ends: dict[str, PerRequest],
        others: dict[str, Event] | None = None,
        steps: dict[str, Event] | None = None,
    ) -> None:
        self.start, self.calls, self.ends = start, calls, ends
        self.others, self.steps = others or {}, steps or {}

    def enabled(self, simulation: Simulation) -> list[tuple[str, Callable[[], object]]]:
        """Return what can happen now."""
        due = simulation.due()
        events: list[tuple[str, Callable[[], object]]] = [(f"go on {call.resource}", call.go_on) for call in due]
        if len(simulation.calls) < MOST_CALLS and len(simulation.under_way) < MOST_REQUESTS:
            events += [(name, partial(call, simulation)) for name, call in self.calls.items()]
        for index, name in itertools.product(range(len(simulation.under_way)), self.ends):
            events.append((f"{name} {index}", partial(self.ends[name], simulation, index)))
        events += [(name, partial(event, simulation)) for name, event in self.others.items()]
        if not due:
            events += [(name, partial(event, simulation)) for name, event in self.steps.items()]
        return events


class Schedule:
    """One way through the choices, and the next one after it."""

    def __init__(self) -> None:
        self._chosen: list[int] = []
        self._of: list[int] = []
        self._changed = 0  # before this position all is as it was in the schedule before
        self.names: list[str] = []

    def choose(self, names: Sequence[str]) -> int:
        """Return which of these comes next."""
        position = len(self.names)
        if position == len(self._chosen):
            self._chosen.append(0)
            self._of.append(len(names))
        assert self._of[position] == len(names), "not the same again"
        self.names.append(names[self._chosen[position]])
        return self._chosen[position]

    def is_new(self) -> bool:
        """Return whether the last choice leads to a state that no schedule reached so far."""
        return len(self.names) > self._changed

    def advance(self) -> bool:
        """Go to the next schedule; return whether there is one."""
        while self._chosen and self._chosen[-1] + 1 == self._of[-1]:
            self._chosen.pop()
            self._of.pop()
        if self._chosen:
            self._chosen[-1] += 1
            self._changed = len(self._chosen) - 1
        self.names.clear()
        return bool(self._chosen)


def explore(run: Callable[[Schedule], None]) -> int:
    """Run every schedule, depth first; return how many there were."""
    schedule = Schedule()
    for count in itertools.count(1):
        try:
            run(schedule)
        except BaseException as error:
            raise AssertionError(f"after {', '.join(schedule.names)}: {error!r}") from error
        if not schedule.advance():
            return count
    raise AssertionError


def run_events(alphabet: Alphabet, depth: int, schedule: Schedule) -> None:
    """Run one sequence of events."""
    simulation = Simulation()
    try:
        for event in alphabet.start:
            event(simulation)
            simulation.check()
        for _ in range(depth):
            events = alphabet.enabled(simulation)
            if not events:
                break
            events[schedule.choose([name for name, _ in events])][1]()
            if schedule.is_new():
                simulation.check()
        simulation.drain()
    finally:
        simulation.close()


class Task:
    """A call on a thread of its own, which stops before each step under the cache's lock until it is its turn."""

    def __init__(self, simulation: Interleaved, function: Callable[[], object]) -> None:
        self._simulation, self._function = simulation, function
        self._turn, self._stopped = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._stopped.acquire()
        self._error: BaseException | None = None
        self.done = self.cancelled = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.step()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._function()
        except Cancelled:
            pass
        except BaseException as error:
            self._error = error
        self.done = True
        self._stopped.release()

    def step(self) -> None:
        """Go on to before the next step, or to the end."""
        self._simulation.running = self
        self._turn.release()
        self._stopped.acquire()
        self._simulation.running = None
        if self.done:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Stop before a step. Called on the thread of the task."""
        if not self.cancelled:
            self._stopped.release()
            self._turn.acquire()
        if self.cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """End it where it is."""
        self.cancelled = True
        while not self.done:
            self.step()


class Cancelled(BaseException):
    """A task ends where it is."""


class StepLock:
    """The lock of a cache: who takes it may have to wait for other tasks first."""

    def __init__(self, simulation: Interleaved) -> None:
        self.lock = threading.RLock()
        self._simulation = simulation

    def __enter__(self) -> None:
        task = self._simulation.running
        # Calls are counted under the lock too. That commutes with all else, so no other order of it is tried.
        is_step = sys._getframe(1).f_code.co_name in STEPS
        if task is not None and is_step and not self.lock._is_owned():  # type: ignore[attr-defined] # as Condition asks
            task.stop()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _is_owned(self) -> bool:
        return bool(self.lock._is_owned())  # type: ignore[attr-defined] # as above


STEPS = ("_decide", "_conclude", "_start", "_run", "_finish")


class Interleaved(Simulation):
    """A simulation in which other events come between the steps of a call."""

    def __init__(self) -> None:
        super().__init__(precise=False)
        self.running: Task | None = None
        self.tasks: list[Task] = []
        self.cache._lock = StepLock(self)  # type: ignore[assignment] # all that is used of a lock

    def begin(self, function: Callable[[], object]) -> None:
        """Begin a call, or go on with one, up to its next step."""
        self.tasks.append(Task(self, function))

    def go_on(self) -> None:
        """Take away the tasks that are over, and go on with the calls whose wait is."""
        for call in self.due():
            self.begin(call.go_on)
        self.tasks = [task for task in self.tasks if not task.done]

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        super().close()


class Steps:
    """A few calls at once, and what may happen between any two of their steps.

    Args:
        start: What happens first.
        calls: The calls.
        ends: What happens to requests under way, each once.
        others: Further events, each once.
        fork: The process may fork, after which the child's calls are checked.
    """

    def __init__(
        self,
        *,
        start: Sequence[Event] = (),
        calls: Sequence[Event],
        ends: dict[str, PerRequest],
        others: dict[str, Event] | None = None,
        fork: bool = False,
    ) -> None:
        self.start, self.calls, self.ends, self.others, self.fork = start, calls, ends, others or {}, fork

    def run(self, schedule: Schedule) -> None:
        """Run one order of the steps and the events."""
        simulation = Interleaved()
        ends, others, has_forked = dict(self.ends), dict(self.others), False
        try:
            for event in self.start:
                event(simulation)
            for call in self.calls:
                simulation.begin(partial(call, simulation))
            while not has_forked:
                simulation.go_on()
                choices: list[tuple[str, Callable[[], object]]] = []
                choices += [(f"step {number}", task.step) for number, task in enumerate(simulation.tasks)]
                for index, name in itertools.product(range(len(simulation.under_way)), ends):
                    choices.append((f"{name} {index}", partial(ends[name], simulation, index)))
                choices += [(name, partial(event, simulation)) for name, event in others.items()]
                if self.fork:
                    choices.append(("fork", simulation.fork))
                if not choices:
                    break
                name, act = choices[schedule.choose([name for name, _ in choices])]
                act()
                simulation.check()
                ends.pop(name.rpartition(" ")[0], None)
                others.pop(name, None)
                has_forked = name == "fork"
            if has_forked:
                simulation.call()
                simulation.call(forced=True)
            simulation.drain()
        finally:
            simulation.close()


class _LogCheck(logging.Handler):
    """Refuses a line that cannot be read, or tells a time that is none."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        assert "inf" not in message, message
        assert "nan" not in message, message
        assert "-" not in message, message


@contextmanager
def checked_log() -> Iterator[None]:
    """Check what the library logs."""
    logger = logging.getLogger("azure_imds_credential")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [_LogCheck()], False
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.handlers, logger.level, logger.propagate = before


def identity_missing(simulation: Simulation, index: int) -> None:
    """IMDS says that there is no such identity."""
    simulation.failure(index, IdentityUnavailableError)


def absent(simulation: Simulation, index: int) -> None:
    """Nothing answers."""
    simulation.failure(index, ImdsUnavailableError, is_absent=True)


def stranger(simulation: Simulation, index: int) -> None:
    """Something answers that is not IMDS."""
    simulation.failure(index, ImdsUnavailableError, has_listener=True)
