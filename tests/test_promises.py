"""Promises that small scripts of a reviewer once broke, each held by a test of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from colours import VAULT, Colour, VirtualTime
from tcp import listening

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsCredential,
    ImdsError,
    ImdsServiceError,
    ImdsUnavailableError,
    _configuration,
)
from azure_imds_credential._endpoint import Gate
from azure_imds_credential._flight import THREAD_NAME, Flight
from azure_imds_credential._freshness import World
from azure_imds_credential._token_cache import TokenCache
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, faults


class Crowd:
    """Counts how many requests IMDS has at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.running, self.most = seconds, 0, 0
        self._lock = threading.Lock()

    def __call__(self, reply: Any) -> Iterator[Any]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        yield from faults.slow(self.seconds)(reply)
        with self._lock:
            self.running -= 1


def test_waiting_for_an_identity_until_the_very_end_says_that_there_is_none(colour: Colour) -> None:
    """With `wait_for_identity` as long as `timeout` the error is still the one that a chain goes on after."""
    with ImdsEmulator(identities=[]) as imds, pytest.raises(IdentityUnavailableError, match="az vm identity assign"):
        colour.ask(imds.endpoint, timeout=1, wait_for_identity=1)


def test_callers_who_leave_early_do_not_open_the_gate(imds: ImdsEmulator) -> None:
    """Five requests at once stay five, though callers with little time leave them."""
    crowd = Crowd(0.5)
    imds.script(*[crowd] * 40)
    patient = ImdsCredential(endpoint=imds.endpoint, timeout=30)
    hasty = ImdsCredential(endpoint=imds.endpoint, timeout=0.2)
    with ThreadPoolExecutor(30) as pool:
        scopes = [f"https://r{number}.example" for number in range(12)]
        waiting = [pool.submit(patient.get_token, scope) for scope in scopes]
        imds.wait_for_requests(5)
        for scope in scopes:
            with contextlib.suppress(ImdsError):  # some tokens are there by then
                hasty.get_token(scope)
        assert all(one.result(30).token for one in waiting)
    assert 1 < crowd.most <= 5


def test_a_wait_between_attempts_holds_no_place_at_the_gate(imds: ImdsEmulator) -> None:
    """Five resources that IMDS is asked for again and again do not keep a sixth waiting."""

    def ill(reply: Any) -> Iterator[Any]:
        sick = b"ill" in imds.requests[-1].target.encode()
        return (faults.status(503, b"") if sick else faults.ok)(reply)

    imds.script(ill, seconds=60)
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=5)
    with ThreadPoolExecutor(5) as pool:
        for number in range(5):
            pool.submit(credential.get_token, f"https://ill{number}.example")
        imds.wait_for_requests(10)  # by then all five wait for their next attempt, or make it
        begun = time.monotonic()
        imds.clear_faults()
        assert credential.get_token(VAULT).token
        assert time.monotonic() - begun < 2.5
        pool.shutdown(cancel_futures=True)


def test_time_spent_at_the_gate_is_told_as_what_it_is(colour: Colour) -> None:
    """Where nothing ever answered as IMDS, who waited for a place gets the error that lets a chain go on."""
    silent = threading.Event()
    with listening(lambda *_: silent.wait(3)) as server, ThreadPoolExecutor(6) as pool:
        for number in range(5):
            pool.submit(colour.ask, server.url, scope=f"https://r{number}.example", timeout=2)  # fails, unheard
        time.sleep(0.5)
        with pytest.raises(ImdsUnavailableError) as caught:
            colour.ask(server.url, timeout=0.6)
        silent.set()
    assert (caught.value.resource, caught.value.identity) == (VAULT, "system-assigned")


def test_a_token_that_comes_while_a_caller_makes_up_his_mind_is_not_asked_for_again(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller saw nothing held; before he could join, the flight landed. One request, not two."""
    credential = ImdsCredential(endpoint=imds.endpoint)
    cache = credential._configuration.cache
    join, landed = cache._join, []

    def late(*args: Any, **options: Any) -> Any:
        if not landed:
            landed.append(True)
            ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)
        return join(*args, **options)

    monkeypatch.setattr(cache, "_join", late)
    assert credential.get_token(VAULT).token == imds.tokens[0]
    imds.assert_requests(1)


def test_more_than_twenty_tokens_are_asked_for_at_the_pace_that_imds_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 resources as fast as it goes: never more than 20 requests in a second, so that none is refused."""
    passing = [1e9]

    def sleep(seconds: float) -> None:
        passing[0] += seconds

    cache = TokenCache(World(lambda: passing[0], lambda: passing[0], sleep=sleep))
    monkeypatch.setattr(_configuration, "process_cache", cache)
    with ImdsEmulator(throttle=True, clock=lambda: passing[0]) as imds:
        credential = ImdsCredential(endpoint=imds.endpoint)
        assert len({credential.get_token(f"https://r{number}.example").token for number in range(64)}) == 64
        assert {request.answered for request in imds.requests} == {"200"}
        imds.assert_requests(64)
        assert passing[0] - 1e9 == pytest.approx(3 * 1.1, abs=1e-3)
        for number in range(64, 80):  # the turns of this second
            credential.get_token(f"https://r{number}.example")
        before = passing[0]
        # Whose turn would come too late says so at once.
        with pytest.raises(ImdsServiceError, match="nothing was sent"):
            ImdsCredential(endpoint=imds.endpoint, timeout=0.5).get_token("https://r80.example")
        assert passing[0] == before
        imds.assert_requests(80)


def test_failed_forced_refreshes_are_limited_too(colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Ten claims challenges while IMDS refuses cost one request; half a minute later it is asked again."""
    credential = colour.ImdsCredential(endpoint=imds.endpoint)
    colour.run(credential.get_token(VAULT))
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'), seconds=10_000)
    errors = []
    for _ in range(10):
        with pytest.raises(ImdsError) as caught:
            colour.run(credential.get_token(VAULT, force_refresh=True))
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 10, "callers share an error"
    imds.assert_requests(2)
    imds.clear_faults()
    virtual_time.skip(31)
    assert colour.run(credential.get_token(VAULT, force_refresh=True)).token == imds.tokens[-1]


def test_a_token_that_died_on_the_way_is_not_handed_out(
    colour: Colour, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """The machine hibernates while the answer comes: the next answer is waited for."""

    def hibernate(reply: Any) -> Iterator[Any]:
        virtual_time.skip(3 * 86400)
        yield from faults.ok(reply)

    imds.script(hibernate)
    token = colour.ask(imds.endpoint, timeout=20 * 86400.0)
    assert token.expires_on > virtual_time.wall_clock()
    imds.assert_requests(2)


def test_no_token_is_logged_where_no_thread_can_start(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller asks on its own thread; what urllib3 says of a broken header is looked at there too."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == THREAD_NAME:
            raise RuntimeError("can't start new thread")
        start(self)

    token = imds.issue_token(VAULT, SystemAssigned())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    answer = f'HTTP/1.1 200 OK\r\nServer: IMDS/1\r\n{{"access_token":"{token}"}}\r\n\r\n'.encode()

    def say(connection: Any, _listener: Any) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with listening(say) as server, caplog.at_level(logging.DEBUG), pytest.raises(ImdsError):
        ImdsCredential(endpoint=server.url, retry_total=0).get_token(VAULT)
    assert token.split(".")[2][:20] not in caplog.text


def test_a_log_handler_may_ask_for_the_token_that_it_is_told_of(imds: ImdsEmulator) -> None:
    """An exporter that authenticates with the same credential gets the token at once."""
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=5)
    got = []

    class Exporter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if hasattr(record, "imds_outcome"):
                got.append(credential.get_token(VAULT).token)

    logger, handler = logging.getLogger("azure_imds_credential"), Exporter()
    logger.addHandler(handler)
    try:
        begun = time.monotonic()
        assert credential.get_token(VAULT).token == imds.tokens[0]
        assert time.monotonic() - begun < 3
    finally:
        logger.removeHandler(handler)
    assert got == [imds.tokens[0]]


def test_a_hook_that_asks_for_the_token_of_its_own_request_is_told_so(colour: Colour, imds: ImdsEmulator) -> None:
    """It would wait for itself until its time is up; instead it gets an error at once."""
    told: list[BaseException] = []

    def hook(request: Any) -> None:
        try:
            ImdsCredential.get_token(sync, VAULT)
        except ImdsError as error:
            told.append(error)

    sync = ImdsCredential(endpoint=imds.endpoint, raw_request_hook=hook)
    begun = time.monotonic()
    assert sync.get_token(VAULT).token
    assert time.monotonic() - begun < 5
    assert "itself" in str(told[0])


def _child_gets_a_token(ask: Callable[[], Any]) -> bool:
    """Fork here, in this thread; say whether the child gets its token in time."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, b"token" if ask().token else b"none")
        except BaseException as error:  # a child must not run on into the suite
            os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], 15)
        return bool(ready) and os.read(read, 100) == b"token"
    finally:
        os.close(read)
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_a_lock_that_another_thread_holds_at_the_fork_does_not_hang_the_child(imds: ImdsEmulator) -> None:
    """The cache's lock is taken; the child has a new one."""
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=5)
    credential.get_token("https://warm.example")  # so that imports are done
    with _configuration.process_cache._lock:
        # Held by another thread as the child sees it: a lock has no owner.
        assert _child_gets_a_token(lambda: credential.get_token(VAULT))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_a_gate_full_of_the_parents_requests_is_open_to_the_child(imds: ImdsEmulator) -> None:
    """Five requests of the parent hang; the child asks at once."""
    answer = threading.Event()
    imds.script(*[faults.hold(answer)] * 5)
    credential = ImdsCredential(endpoint=imds.endpoint)
    with ThreadPoolExecutor(5) as pool:
        for number in range(5):
            pool.submit(credential.get_token, f"https://r{number}.example")
        imds.wait_for_requests(5)
        try:
            assert _child_gets_a_token(lambda: ImdsCredential(endpoint=imds.endpoint, timeout=5).get_token(VAULT))
        finally:
            answer.set()


def test_an_error_shows_200_characters_of_an_answer_at_most(colour: Colour, imds: ImdsEmulator) -> None:
    """However long IMDS's words are."""
    words = " ".join(["word"] * 400)
    imds.script(faults.status(403, {"error": words, "error_description": words}))
    with pytest.raises(ImdsError) as caught:
        colour.ask(imds.endpoint)
    assert str(caught.value).count("word") <= 40
    assert not isinstance(caught.value, ImdsServiceError)


@pytest.mark.parametrize("scope", [["https://vault.azure.net/.default"], 5, None])
def test_a_scope_of_the_wrong_type_is_told_by_name(colour: Colour, scope: Any) -> None:
    """Also where it could not even be looked up."""
    with pytest.raises((TypeError, ValueError), match="scope"):
        colour.run(colour.ImdsCredential().get_token(scope))


@pytest.mark.parametrize("where", ["at the gate", "at the first turn", "at a later turn"])
def test_who_gets_no_place_in_time_sends_nothing_and_leaves_the_rest_to_others(imds: ImdsEmulator, where: str) -> None:
    """A flight whose time ends before it could ask does not; it counts as one that somebody with time may repeat."""
    configuration = ImdsCredential(endpoint=imds.endpoint, retry_total=0)._configuration
    cache, slot = configuration.cache, configuration.slot((VAULT,))
    gate = slot.endpoint.gate = Gate()
    while where == "at the gate" and gate.places.acquire(blocking=False):
        pass
    gate.starts.extend([0.0] * 20 if where == "at a later turn" else [])
    flight = Flight([], [], cache.clock(), cache.clock(), False, False, [])
    cache._fly(slot, configuration, flight)
    outcome = flight.landed[0]
    assert outcome is not None
    assert isinstance(outcome.error, ImdsUnavailableError)
    assert outcome.out_of_time
    assert not any(gate.starts)
    imds.assert_requests(0)


def test_an_error_of_a_users_hook_is_not_taken_for_lack_of_time(imds: ImdsEmulator) -> None:
    """Nobody repeats a request for it."""

    def hook(request: Any) -> None:
        raise KeyError("hook")

    configuration = ImdsCredential(endpoint=imds.endpoint, raw_request_hook=hook)._configuration
    slot, now = configuration.slot((VAULT,)), configuration.cache.clock()
    flight = Flight([], [], now, now + 90, False, False, [])
    configuration.cache._fly(slot, configuration, flight)
    outcome = flight.landed[0]
    assert outcome is not None
    assert isinstance(outcome.error, KeyError)
    assert not outcome.out_of_time


def test_hooks_run_in_the_context_of_the_caller_who_set_out(colour: Colour, imds: ImdsEmulator) -> None:
    """What a tracer keeps in a context variable is there on the thread of the request."""
    span: ContextVar[str] = ContextVar("span", default="none")
    found = []
    token = span.set("of the caller")
    try:
        colour.ask(imds.endpoint, raw_request_hook=lambda _request: found.append(span.get()))
    finally:
        span.reset(token)
    assert found == ["of the caller"]


def test_a_log_filter_that_fails_hangs_nobody(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging lets what a filter raises through: the token is handed out all the same, and at once."""

    def fail(record: logging.LogRecord) -> bool:
        raise KeyError("filter")

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    logger = logging.getLogger("azure_imds_credential")
    logger.addFilter(fail)
    begun = time.monotonic()
    try:
        assert ImdsCredential(endpoint=imds.endpoint, timeout=30).get_token(VAULT).token == imds.tokens[0]
        assert time.monotonic() - begun < 10
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join(10)
    finally:
        logger.removeFilter(fail)
    assert KeyError in [one.exc_type for one in told]


def test_a_request_whose_caller_was_interrupted_while_it_set_out_ends_quietly(
    imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes just after the thread started: its callers were let go, and it has nobody to tell."""
    start, threads = threading.Thread.start, []

    def start_and_interrupt(self: threading.Thread) -> None:
        start(self)
        if self.name == THREAD_NAME and not threads:
            threads.append(self)
            raise KeyboardInterrupt

    answer = threading.Event()
    imds.script(faults.hold(answer))
    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    credential = ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(KeyboardInterrupt):
        credential.get_token(VAULT)
    answer.set()
    threads[0].join(10)
    assert credential.get_token(VAULT).token in imds.tokens
