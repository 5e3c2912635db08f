"""What a process knows of a base URL, and the rate limiter: 20 in a second, 5 at once, as the server counts."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from flavors import StillTime

from azure_imds_credential import ImdsUnavailableError, _endpoint
from azure_imds_credential._endpoint import (
    ABSENCE_MEMORY,
    BOOT_WINDOW,
    MAX_CONCURRENT,
    MAX_PER_WINDOW,
    WINDOW,
    Absence,
    Endpoint,
    RateLimiter,
    UrlState,
)
from azure_imds_credential._identity import Identity
from azure_imds_credential._request import GRACE, TokenKey, TokenRequest

URL = "http://127.0.0.1"
KEY = TokenKey(URL, Identity(), "https://a")
DOCUMENTED_PER_SECOND, DOCUMENTED_AT_ONCE = 20, 5
# https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting


@pytest.fixture
def clock() -> StillTime:
    """Time in which sleeping is free."""
    return StillTime(now=0.0)


def _request(deadline: float = 90.0, **members: Any) -> TokenRequest:
    return TokenRequest(KEY, 0.0, deadline, **members)


def _acquired(limiter: RateLimiter, clock: StillTime, number: int, **members: Any) -> list[TokenRequest]:
    requests = [_request(**members) for _ in range(number)]
    assert all(limiter.acquire(request, clock) for request in requests)
    return requests


class _Server:
    """Notes when requests arrive, and refuses what the documentation says IMDS refuses."""

    def __init__(self) -> None:
        self.arrivals: deque[float] = deque()
        self.open = self.served = 0
        self.most_open = self.most_arrivals = 0

    def arrive(self, now: float) -> None:
        while self.arrivals and self.arrivals[0] <= now - 1.0:
            self.arrivals.popleft()
        self.arrivals.append(now)
        self.open += 1
        self.served += 1
        self.most_open = max(self.most_open, self.open)
        self.most_arrivals = max(self.most_arrivals, len(self.arrivals))

    def respond(self) -> None:
        self.open -= 1


class _Waits(BaseException):
    """A request waits for an event of the simulation."""


def _simulate(seed: int, clients: int, delay: Callable[[Random], float], latency: Callable[[Random], float]) -> _Server:
    """Run clients against a server, each event at its time.

    Args:
        seed: Of latencies and delays.
        clients: Requests that begin within two seconds.
        delay: Seconds between taking the slot and the arrival, and between the response and giving it back.
        latency: Seconds that the server takes.
    """
    random, clock, limiter, server = Random(seed), StillTime(now=0.0), RateLimiter(), _Server()
    order = itertools.count()
    events: list[tuple[float, int, Callable[[], None]]] = []

    def later(seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(events, (clock.now() + seconds, next(order), event))

    class Turn:
        """Instead of a lock on which a thread waits: a release has the request look again."""

        def __init__(self) -> None:
            self.request = asks[-1]

        def acquire(self, timeout: float | None = None) -> None:
            if timeout is not None:
                raise _Waits

        def release(self) -> None:
            later(0.0, partial(ask, self.request))

    asks: list[TokenRequest] = []

    def sleep(seconds: float) -> None:
        later(seconds, partial(ask, asks[-1]))
        raise _Waits

    clock.sleep = sleep  # type: ignore[method-assign]

    def ask(request: TokenRequest) -> None:
        asks.append(request)
        try:
            assert limiter.acquire(request, clock)
        except _Waits:
            return
        later(delay(random), partial(arrive, request))

    def arrive(request: TokenRequest) -> None:
        server.arrive(clock.now())
        later(latency(random), partial(respond, request))

    def respond(request: TokenRequest) -> None:
        server.respond()
        later(delay(random), partial(limiter.release, request, clock))

    for _ in range(clients):
        later(random.uniform(0, 2), partial(ask, _request(math.inf)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_endpoint, "threading", SimpleNamespace(Lock=Turn))
        while events:
            at, _, event = heapq.heappop(events)
            clock.skip(at - clock.now())
            event()
    assert server.served == clients, "some request was never woken"
    return server


SECONDS: dict[str, Callable[[Random], float]] = {
    "none": lambda random: 0.0,
    "milliseconds": lambda random: random.uniform(0.0, 0.02),
    "now and then a second": lambda random: random.uniform(0.5, 1.0) if random.random() < 0.2 else 0.0,
    "a busy machine": lambda random: random.choice((0.0, random.uniform(0.0, 0.9))),
    "seconds": lambda random: random.uniform(0.0, 4.0),
}


@pytest.mark.parametrize("latency", SECONDS.values(), ids=SECONDS)
@pytest.mark.parametrize("delay", SECONDS.values(), ids=SECONDS)
def test_the_server_never_counts_more(delay: Callable[[Random], float], latency: Callable[[Random], float]) -> None:
    """However long requests, responses and this machine take, at most 20 arrive in a second and 5 are open at once."""
    for seed in range(30):
        server = _simulate(seed, 60, delay, latency)
        assert server.most_arrivals <= DOCUMENTED_PER_SECOND
        assert server.most_open <= DOCUMENTED_AT_ONCE


def test_the_limits_are_used() -> None:
    """A server that responds at once gets its 20 in a window: the limiter is not stricter than it must be."""
    server = _simulate(1, 200, SECONDS["none"], SECONDS["none"])
    assert server.most_arrivals == DOCUMENTED_PER_SECOND
    assert _simulate(1, 60, SECONDS["none"], SECONDS["seconds"]).most_open == DOCUMENTED_AT_ONCE


def test_the_window_begins_at_the_response(clock: StillTime) -> None:
    """A request may arrive at any moment before its response, so it counts until a window after that."""
    limiter = RateLimiter()
    slow = _acquired(limiter, clock, MAX_CONCURRENT)
    clock.skip(10.0)
    for request in slow:
        limiter.release(request, clock)
    for _ in range(MAX_PER_WINDOW - MAX_CONCURRENT):
        limiter.release(_acquired(limiter, clock, 1)[0], clock)
    assert clock.now() == 10.0
    _acquired(limiter, clock, 1)
    assert clock.now() == pytest.approx(10.0 + WINDOW)


def test_the_21st_waits_for_a_window(clock: StillTime) -> None:
    """Until the oldest response is a window ago, to the moment."""
    limiter = RateLimiter()
    for number in range(MAX_PER_WINDOW):
        (request,) = _acquired(limiter, clock, 1)
        limiter.release(request, clock)
        if number == 0:
            clock.skip(0.25)
    assert clock.now() == 0.25
    _acquired(limiter, clock, 1)
    assert clock.now() == pytest.approx(WINDOW)
    _acquired(limiter, clock, 1)
    assert clock.now() == pytest.approx(0.25 + WINDOW)


def test_active_requests_count_too(clock: StillTime) -> None:
    """Each of them may arrive now."""
    limiter = RateLimiter()
    slow = _acquired(limiter, clock, 4)
    for _ in range(MAX_PER_WINDOW - 4):
        limiter.release(_acquired(limiter, clock, 1)[0], clock)
    assert clock.now() == 0.0
    limiter.release(slow[0], clock)
    _acquired(limiter, clock, 1)
    assert clock.now() == pytest.approx(WINDOW)


@pytest.mark.parametrize(("deadline", "acquires"), [(0.0, False), (-1.0, False), (0.1, True)])
def test_a_deadline_that_has_come(clock: StillTime, deadline: float, acquires: bool) -> None:
    """No slot is taken after it."""
    limiter = RateLimiter()
    assert limiter.acquire(_request(deadline), clock) is acquires
    assert len(limiter.active) == acquires


@pytest.mark.parametrize(("deadline", "acquires"), [(WINDOW, False), (WINDOW - 0.1, False), (WINDOW + 0.1, True)])
def test_a_window_that_ends_too_late(clock: StillTime, deadline: float, acquires: bool) -> None:
    """A request that would get its turn at its deadline is told at once, and costs no other one its turn."""
    limiter = RateLimiter()
    for _ in range(MAX_PER_WINDOW):
        limiter.release(_acquired(limiter, clock, 1)[0], clock)
    assert limiter.acquire(_request(deadline), clock) is acquires
    assert clock.now() == pytest.approx(WINDOW if acquires else 0.0)


def test_hooks_use_the_slot_of_their_request(clock: StillTime) -> None:
    """Five requests whose hooks ask for other tokens get them: each would wait for the other four for ever."""
    limiter = RateLimiter()
    for request in _acquired(limiter, clock, MAX_CONCURRENT):
        nested = _request(parent=request)
        assert limiter.acquire(nested, clock)
        deeper = _request(parent=nested)
        assert limiter.acquire(deeper, clock)
        assert len(limiter.active) == MAX_CONCURRENT + 2
        limiter.release(deeper, clock)
        limiter.release(nested, clock)
    assert len(limiter.active) == MAX_CONCURRENT


def test_an_inline_request_waits_for_no_other(clock: StillTime) -> None:
    """Five others may wait for a lock that its thread has; the number in a second holds for it too."""
    limiter = RateLimiter()
    for _ in _acquired(limiter, clock, MAX_CONCURRENT):
        assert limiter.acquire(_request(inline=True), clock)
    assert clock.now() == 0.0
    assert len(limiter.active) == 2 * MAX_CONCURRENT
    for request in tuple(limiter.active):
        limiter.release(request, clock)
    for _ in range(MAX_PER_WINDOW - 2 * MAX_CONCURRENT):
        limiter.release(_acquired(limiter, clock, 1)[0], clock)
    _acquired(limiter, clock, 1, inline=True)
    assert clock.now() == pytest.approx(WINDOW)


def test_slots_expire(clock: StillTime) -> None:
    """A moment after the deadline of their request, which may hang for good; what it releases then opens no other."""
    limiter = RateLimiter()
    hung = _acquired(limiter, clock, MAX_CONCURRENT, deadline=10.0)
    clock.skip(10.0 + GRACE / 2)
    assert limiter._pause(_request(), clock.now()) is None
    clock.skip(GRACE)
    others = _acquired(limiter, clock, MAX_CONCURRENT)
    for request in hung:
        limiter.release(request, clock)
    assert set(limiter.active) == set(others)
    assert not limiter.recent


def test_a_release_without_a_slot(clock: StillTime) -> None:
    """A second one, or one of a request that got none, counts as nothing."""
    limiter = RateLimiter()
    (request,) = _acquired(limiter, clock, 1)
    limiter.release(request, clock)
    limiter.release(request, clock)
    limiter.release(_request(), clock)
    assert list(limiter.recent) == [0.0]


def test_forgetting_ends_a_window(clock: StillTime) -> None:
    """`forget_tokens` frees the window, not the slots of requests that are under way."""
    limiter = RateLimiter()
    (request,) = _acquired(limiter, clock, 1)
    for _ in range(MAX_PER_WINDOW - 1):
        limiter.release(_acquired(limiter, clock, 1)[0], clock)
    limiter.clear()
    assert (list(limiter.recent), list(limiter.active)) == ([], [request])


def test_a_child_has_no_requests_of_its_parent(clock: StillTime) -> None:
    """Its limiter is new, its lock is free, and none of its threads waits."""
    limiter = RateLimiter()
    requests = _acquired(limiter, clock, MAX_CONCURRENT)
    limiter.release(requests[0], clock)
    limiter._waiting.append(threading.Lock())
    held = limiter.lock
    held.acquire()
    limiter.reset()
    assert not limiter.active
    assert not limiter.recent
    assert not limiter._waiting
    assert limiter.lock is not held


def test_those_who_wait_go_on_in_their_order(clock: StillTime) -> None:
    """Each response wakes the thread that waits longest, and that one alone."""
    limiter = RateLimiter()
    first, second = threading.Lock(), threading.Lock()
    for turn in (first, second):
        turn.acquire()
        limiter._waiting.append(turn)
    requests = _acquired(limiter, clock, 2)
    limiter.release(requests[0], clock)
    assert (first.locked(), second.locked()) == (False, True)
    limiter.release(requests[1], clock)
    assert not second.locked()


def test_a_response_ends_a_wait(clock: StillTime) -> None:
    """A sixth request gets the slot that is given back, on whichever thread it waits."""
    limiter = RateLimiter()
    requests = _acquired(limiter, clock, MAX_CONCURRENT)
    sixth = _request()
    waits = threading.Event()

    class Waiting(deque[threading.Lock]):
        def append(self, turn: threading.Lock) -> None:
            super().append(turn)
            waits.set()

    limiter._waiting = Waiting()
    thread = threading.Thread(target=limiter.acquire, args=(sixth, clock))
    thread.start()
    assert waits.wait(60)
    assert sixth not in limiter.active
    limiter.release(requests[0], clock)
    thread.join(60)
    assert sixth in limiter.active
    assert not limiter._waiting


# What is known of the URL.


@pytest.fixture
def endpoint() -> Endpoint:
    """An endpoint of which nothing is known."""
    return Endpoint(URL, UrlState())


def _is_told(endpoint: Endpoint, now: float) -> bool:
    return endpoint.known_absence(now) is not None


def test_absence_lasts_30_seconds(endpoint: Endpoint) -> None:
    """And no longer."""
    error = ImdsUnavailableError("nothing")
    assert not _is_told(endpoint, 100.0)
    endpoint.note_unavailable(error, 100.0, is_absent=True, has_listener=False)
    absence = endpoint.known_absence(100.0 + ABSENCE_MEMORY - 0.1)
    assert absence is not None
    assert vars(absence) == vars(Absence(error, 100.0, 100.0 + ABSENCE_MEMORY, can_probe=True))
    assert not _is_told(endpoint, 100.0 + ABSENCE_MEMORY)


def test_an_endpoint_that_was_seen_is_never_absent(endpoint: Endpoint) -> None:
    """Neither one seen before, nor one seen since."""
    endpoint.note_unavailable(ImdsUnavailableError("nothing"), 100.0, is_absent=True, has_listener=False)
    endpoint._seen_by.seen = True
    assert not _is_told(endpoint, 101.0)
    assert endpoint.absence_to_probe(110.0) is None
    endpoint.clear()
    assert not endpoint.seen
    endpoint._seen_by.seen = True
    endpoint.note_unavailable(ImdsUnavailableError("nothing"), 100.0, is_absent=True, has_listener=False)
    assert endpoint.absence is None


@pytest.mark.parametrize("custom_pipeline", [False, True])
def test_who_shares_what_was_seen(custom_pipeline: bool) -> None:
    """All credentials of the process, but for those that reach the URL in a way of their own; the limit is shared."""
    state = UrlState()
    one, other = Endpoint(URL, state), Endpoint(URL, state, custom_pipeline=custom_pipeline)
    one._seen_by.seen = True
    assert other.seen is not custom_pipeline
    other._seen_by.seen = True
    one.clear()
    assert other.seen is custom_pipeline
    assert one.limiter is other.limiter is state.limiter


def test_looks_go_on_while_callers_ask(endpoint: Endpoint) -> None:
    """One series at a time, renewed by each look that finds nothing, until no caller has asked for 30 s."""
    endpoint.note_unavailable(ImdsUnavailableError("nothing"), 100.0, is_absent=True, has_listener=False)
    absence = endpoint.absence_to_probe(101.0)
    assert absence is endpoint.absence
    assert endpoint.absence_to_probe(110.0) is None, "a second series"
    assert absence is not None
    renewed = endpoint.record_probe(absence, found=False, now=112.0)
    assert renewed is not None
    assert renewed is endpoint.absence
    assert vars(renewed) == vars(absence) | {"until": 112.0 + ABSENCE_MEMORY}
    assert endpoint.record_probe(absence, found=False, now=113.0) is None, "not the one that is remembered"
    assert endpoint.record_probe(renewed, found=False, now=110.0 + ABSENCE_MEMORY) is None
    again = endpoint.absence_to_probe(141.0)
    assert again is not None
    assert endpoint.record_probe(again, found=True, now=141.0) is None
    assert not _is_told(endpoint, 141.0)


def test_looks_begin_anew_without_a_thread(endpoint: Endpoint) -> None:
    """Where no thread could start, the next caller tries again."""
    endpoint.note_unavailable(ImdsUnavailableError("nothing"), 100.0, is_absent=True, has_listener=False)
    assert endpoint.absence_to_probe(101.0) is not None
    endpoint.stop_probing()
    assert endpoint.absence_to_probe(101.0) is not None


@pytest.mark.parametrize(("custom_pipeline", "has_listener"), [(True, False), (False, True), (True, True)])
def test_no_look_is_made(custom_pipeline: bool, has_listener: bool) -> None:
    """Where a connect attempt would tell nothing: something listens, or requests go another way."""
    endpoint = Endpoint(URL, UrlState(), custom_pipeline=custom_pipeline)
    endpoint.note_unavailable(ImdsUnavailableError("no"), 100.0, is_absent=True, has_listener=has_listener)
    assert _is_told(endpoint, 110.0)
    assert endpoint.absence_to_probe(110.0) is None


def test_another_server_is_remembered_after_a_look(endpoint: Endpoint) -> None:
    """Each look would find it; before a look the next call may find IMDS in its place."""
    error = ImdsUnavailableError("no")
    endpoint.note_unavailable(error, 100.0, is_absent=False, has_listener=True)
    assert not _is_told(endpoint, 100.0)
    endpoint.note_unavailable(error, 100.0, is_absent=True, has_listener=False)
    absence = endpoint.absence_to_probe(101.0)
    assert absence is not None
    endpoint.record_probe(absence, found=True, now=101.0)
    endpoint.note_unavailable(error, 102.0, is_absent=False, has_listener=True)
    assert _is_told(endpoint, 103.0)
    endpoint.note_unavailable(error, 140.0, is_absent=True, has_listener=False)  # it went away
    endpoint.note_unavailable(error, 180.0, is_absent=False, has_listener=True)
    assert not _is_told(endpoint, 180.0)


def test_a_look_for_what_was_forgotten(endpoint: Endpoint) -> None:
    """It says nothing about what is known now."""
    endpoint.note_unavailable(ImdsUnavailableError("no"), 100.0, is_absent=True, has_listener=False)
    absence = endpoint.absence_to_probe(101.0)
    assert absence is not None
    endpoint.clear()
    endpoint.record_probe(absence, found=False, now=102.0)
    assert endpoint.absence is None
    endpoint.note_unavailable(ImdsUnavailableError("no"), 103.0, is_absent=True, has_listener=False)
    endpoint.record_probe(absence, found=True, now=104.0)
    assert _is_told(endpoint, 105.0)


def test_clearing_knows_nothing(endpoint: Endpoint) -> None:
    """As when the process began."""
    endpoint.note_unavailable(ImdsUnavailableError("no"), 100.0, is_absent=True, has_listener=False)
    endpoint._shared.boot_window_from = 90.0
    endpoint.clear()
    assert vars(endpoint) == vars(Endpoint(URL, endpoint._seen_by))
    assert endpoint._shared.boot_window_from is None


@pytest.mark.parametrize("custom_pipeline", [False, True])
def test_a_request_from_before_tells_nothing_afterwards(custom_pipeline: bool) -> None:
    """What it finds out is of a world that was forgotten; a later one counts."""
    endpoint = Endpoint(URL, UrlState(), custom_pipeline=custom_pipeline)
    key = TokenKey(URL, Identity(), "https://a")
    older = TokenRequest(key, 0.0, 90.0, endpoint_generation=endpoint.generation)
    endpoint.clear()
    endpoint.note_seen(older)
    endpoint.note_boot_failure(older, 10.0)
    assert (endpoint.seen, endpoint._shared.boot_window_from) == (False, None)
    newer = TokenRequest(key, 0.0, 90.0, endpoint_generation=endpoint.generation)
    endpoint.note_seen(newer)
    assert (endpoint.seen, endpoint._shared.boot_window_from) == (True, None)
    endpoint.note_boot_failure(newer, 11.0)
    assert endpoint._shared.boot_window_from == 11.0


def test_the_boot_window(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens with the first failure of a machine that has just started, lasts 10 s, and never opens again."""
    monkeypatch.setattr(_endpoint, "BOOT_TIME", 120.0)
    assert [endpoint.boot_time_left(now) for now in (0.0, 119.9, 120.0, 1e6)] == [BOOT_WINDOW, BOOT_WINDOW, 0.0, 0.0]
    other = Endpoint(URL, endpoint._shared, custom_pipeline=True)
    for now in (115.0, 118.0):
        other.note_boot_failure(_request(), now)
    assert [endpoint.boot_time_left(now) for now in (115.0, 121.0, 125.0, 130.0)] == [BOOT_WINDOW, 4.0, 0.0, 0.0]
    assert BOOT_WINDOW == 10.0
