"""One request for all callers at once: threads, tasks and loops, and what happens when one of them leaves."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.identity import ManagedIdentityCredential
from flavors import SYNC, VAULT, Flavor, VirtualTime, eventually

from azure_imds_credential import IdentityUnavailableError, ImdsCredential, ImdsError, ImdsServiceError
from azure_imds_credential._cache import token_cache
from azure_imds_credential._cache.token_cache import MIN_STACK, TokenCache
from azure_imds_credential._endpoint import MAX_CONCURRENT, MAX_PER_WINDOW
from azure_imds_credential._request import TokenResult
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens
from azure_imds_credential.testing.faults import End, Reply, Steps

MANY = 64


def _at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make all calls in threads that set out together; give what each returned or raised."""
    barrier = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        barrier.wait(30)
        try:
            return one()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_threads_share_a_request(imds: ImdsEmulator) -> None:
    """64 threads that share a credential."""
    credential = ImdsCredential(endpoint=imds.endpoint)
    assert set(_at_once([lambda: credential.get_token(VAULT).token] * MANY)) == {imds.tokens[0]}
    imds.assert_requests(1)


def test_credentials_share_a_request(imds: ImdsEmulator) -> None:
    """64 threads with a credential each."""
    ask = [lambda: ImdsCredential(endpoint=imds.endpoint).get_token(VAULT).token] * MANY
    assert set(_at_once(ask)) == {imds.tokens[0]}
    imds.assert_requests(1)


def test_tasks_loops_and_threads_share_a_request() -> None:
    """1,000 tasks in four event loops and 64 threads, sync and aio mixed, while IMDS takes its time."""

    async def tasks(number: int) -> set[str]:
        credential = AsyncImdsCredential(endpoint=imds.endpoint)
        return {token.token for token in await asyncio.gather(*(credential.get_token(VAULT) for _ in range(number)))}

    with ImdsEmulator(latency=0.3) as imds:
        loops: list[Callable[[], Any]] = [lambda: asyncio.run(tasks(250))] * 4
        threads: list[Callable[[], Any]] = [lambda: {ImdsCredential(endpoint=imds.endpoint).get_token(VAULT).token}]
        results = _at_once(loops + threads * MANY)
        assert all(result == {imds.tokens[0]} for result in results), results
        imds.assert_requests(1)


@pytest.mark.parametrize("options", [{}, {"retry_total": 5}], ids=["one cache", "a cache each"])
def test_many_resources_keep_the_limits(options: dict[str, Any]) -> None:
    """64 tokens for 64 resources: at most five requests at a time, and never a 429 for being too many at once."""
    with ImdsEmulator(latency=0.02, throttle=True) as imds:
        scopes = [f"https://r{number}.example/.default" for number in range(MANY)]
        credentials = [ImdsCredential(endpoint=imds.endpoint, **options) for _ in scopes]
        running, most = 0, 0
        lock = threading.Lock()

        def counted(reply: Any) -> Any:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            yield from faults.slow(0.02)(reply)
            with lock:
                running -= 1

        imds.script(*[counted] * MANY)
        calls = [partial(credential.get_token, scope) for credential, scope in zip(credentials, scopes, strict=True)]
        results = _at_once(calls)
        assert not [result for result in results if isinstance(result, Exception)]
        assert len({result.token for result in results}) == MANY
        assert 1 < most <= 5
        imds.assert_requests(MANY)


def test_own_errors() -> None:
    """A failed request fails every caller that waits, each with an exception instance of its own."""
    with ImdsEmulator(identities=[], latency=0.3) as imds:
        credential = ImdsCredential(endpoint=imds.endpoint)
        errors = _at_once([lambda: credential.get_token(VAULT)] * 16)
        assert {type(error) for error in errors} == {IdentityUnavailableError}
        assert len({id(error) for error in errors}) == 16
        imds.assert_requests(1)


def test_abandoned_task(imds: ImdsEmulator) -> None:
    """A task whose loop was closed without it is collected, and its call is counted no more."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    credential = AsyncImdsCredential(endpoint=imds.endpoint)
    held: list[weakref.ref[Any]] = []

    class Local:
        """What the frame of the caller holds."""

    async def caller() -> None:
        local = Local()
        held.append(weakref.ref(local))
        await credential.get_token(VAULT)

    async def begin() -> None:
        task = asyncio.ensure_future(caller())
        await asyncio.to_thread(imds.wait_for_requests, 1)
        del task

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    del loop
    answer.set()
    entry = credential._options.entry((VAULT,))
    eventually(lambda: entry.cached is not None and entry.plain_request is None)
    gc.collect()
    assert held[0]() is None
    assert not entry.calls


def test_cancelled_task(imds: ImdsEmulator) -> None:
    """The task that asked first is cancelled; the request goes on and serves the rest."""
    answer = threading.Event()
    imds.script(faults.hold(answer))

    async def scenario() -> None:
        credential = AsyncImdsCredential(endpoint=imds.endpoint)
        leader = asyncio.create_task(credential.get_token(VAULT))
        await asyncio.to_thread(imds.wait_for_requests, 1)
        others = [asyncio.create_task(credential.get_token(VAULT)) for _ in range(5)]
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(credential.get_token(VAULT), 0.05)
        answer.set()
        assert {(await other).token for other in others} == {imds.tokens[0]}

    asyncio.run(scenario())
    imds.assert_requests(1)


def test_ended_loop(imds: ImdsEmulator) -> None:
    """`asyncio.run` ends while its task waits; a thread and another loop get the token of the same request."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    credential = AsyncImdsCredential(endpoint=imds.endpoint)

    async def gives_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(credential.get_token(VAULT), 0.2)

    asyncio.run(gives_up())
    with ThreadPoolExecutor(2) as pool:
        sync = pool.submit(ImdsCredential(endpoint=imds.endpoint).get_token, VAULT)
        other = pool.submit(lambda: asyncio.run(credential.get_token(VAULT)))
        time.sleep(0.05)
        answer.set()
        assert sync.result(10).token == other.result(10).token == imds.tokens[0]
    imds.assert_requests(1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer signal")
def test_interrupt(imds: ImdsEmulator) -> None:
    """Ctrl-C ends the call of the thread that asked first; the other callers get the token of the same request."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    answer = threading.Event()
    imds.script(faults.hold(answer))
    credential = ImdsCredential(endpoint=imds.endpoint)
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            credential.get_token(VAULT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(credential.get_token, VAULT)
        answer.set()
        assert waiting.result(10).token == imds.tokens[0]
    imds.assert_requests(1)


def test_interrupt_before_the_request(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt while the thread of the request starts, no call hangs, and the next caller sends a request."""
    start, interrupted = threading.Thread.start, []

    def interrupt_once(self: threading.Thread) -> None:
        if self.name == "azure-imds-credential" and not interrupted:
            interrupted.append(self)
            raise KeyboardInterrupt
        start(self)

    monkeypatch.setattr(threading.Thread, "start", interrupt_once)
    credential = ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(KeyboardInterrupt):
        credential.get_token(VAULT)
    assert credential.get_token(VAULT).token == imds.tokens[0]
    imds.assert_requests(1)


@pytest.mark.parametrize("moment", ["_start", "_new_request"])
def test_an_interrupt_around_the_start_leaves_no_trace(
    moment: str, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes when the request is noted but not started: the next caller does not wait for it."""
    owner: Any = TokenCache if moment == "_start" else token_cache
    original, interrupted = getattr(owner, moment), []

    def interrupt_once(*args: Any) -> Any:
        if interrupted:
            return original(*args)
        interrupted.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, moment, interrupt_once)
    credential = ImdsCredential(endpoint=imds.endpoint)
    with pytest.raises(KeyboardInterrupt):
        credential.get_token(VAULT)
    entry = credential._options.entry((VAULT,))
    assert (entry.plain_request, entry.calls) == (None, set())
    assert credential.get_token(VAULT).token == imds.tokens[0]
    imds.assert_requests(1)


def test_caches_may_come_while_tokens_are_forgotten() -> None:
    """A cache that is made between any two lines, as by another thread, does not disturb `forget_tokens`."""
    made: list[TokenCache] = []

    def make(frame: FrameType, event: str, arg: object) -> Any:
        if len(made) < MANY:
            made.append(TokenCache())
        return make

    before = sys.gettrace()
    sys.settrace(make)
    try:
        forget_tokens()
    finally:
        sys.settrace(before)
    assert made


def test_no_threads(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the interpreter is shutting down: the token comes all the same."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "azure-imds-credential":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert flavor.ask(imds.endpoint).token == imds.tokens[0]


@pytest.mark.parametrize(("size", "inline"), [(32768, True), (MIN_STACK - 1, True), (MIN_STACK, False), (0, False)])
def test_no_thread_with_a_small_stack(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, size: int, inline: bool
) -> None:
    """A request would overflow it and end the process, so it runs on the thread of its caller."""
    threads = list[str]()
    monkeypatch.setattr(threading, "stack_size", lambda: size)
    token = flavor.ask(imds.endpoint, raw_request_hook=lambda _: threads.append(threading.current_thread().name)).token
    assert token in imds.tokens
    assert threads == [threading.current_thread().name if inline else "azure-imds-credential"]


def test_short_timeout(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A short `timeout` ends one caller's wait, not the request."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(flavor.ask, imds.endpoint)
        imds.wait_for_requests(1)
        with pytest.raises(ImdsError, match=r"within 0\.2 s"):  # while the answer is held, which is for ever
            flavor.ask(imds.endpoint, timeout=0.2)
        answer.set()
        assert patient.result(10).token == imds.tokens[0]
    imds.assert_requests(1)


def test_longer_timeout(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """When a request fails at the deadline of its caller, a waiting caller with a later deadline sends another."""
    both_wait, answer = threading.Event(), threading.Event()

    def fail_at_the_deadline(_reply: Reply) -> Steps:
        while not both_wait.is_set():
            yield 0.01
        virtual_time.skip(60)
        yield End.CLOSE

    imds.script(fail_at_the_deadline, faults.hold(answer))
    entry = flavor.ImdsCredential(endpoint=imds.endpoint)._options.entry((VAULT,))
    with ThreadPoolExecutor(2) as pool:
        hasty = pool.submit(flavor.ask, imds.endpoint, timeout=60)
        imds.wait_for_requests(1)
        patient = pool.submit(flavor.ask, imds.endpoint, timeout=600)
        eventually(lambda: entry.plain_request is not None and entry.plain_request.callers == 2)
        both_wait.set()
        with pytest.raises(ImdsError):
            hasty.result(60)
        answer.set()  # not sooner: a hasty one who wakes late would get the token too
        assert patient.result(60).token == imds.tokens[0]
    imds.assert_requests(2)


def test_overdue_request(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """When a server sends its header without end, the request exceeds its time, and the next caller sends another."""

    def endless_header(_reply: Reply) -> Steps:
        yield b"HTTP/1.1 200 OK\r\n"
        virtual_time.skip(60)
        while True:
            yield b"X-More: 1\r\n"
            yield 0.01

    imds.script(endless_header)
    with pytest.raises(ImdsError):
        flavor.ask(imds.endpoint, timeout=60)
    assert flavor.ask(imds.endpoint, timeout=60).token == imds.tokens[0]
    imds.assert_requests(2)


def test_forced_request(imds: ImdsEmulator) -> None:
    """While an ordinary request hangs, a forced one goes its own way, and its token outlives the older answer."""
    answer = threading.Event()
    imds.script(faults.hold(answer))
    credential = ImdsCredential(endpoint=imds.endpoint)
    with ThreadPoolExecutor(1) as pool:
        ordinary = pool.submit(credential.get_token, VAULT)
        imds.wait_for_requests(1)
        forced = credential.get_token(VAULT, force_refresh=True).token
        answer.set()
        assert ordinary.result(10).token == forced  # the newer one
    assert credential.get_token(VAULT).token == forced
    assert [request.param("bypass_cache") for request in imds.requests] == [None, "true"]


def test_slots_of_hooks(imds: ImdsEmulator) -> None:
    """Five requests whose hooks each wait for one more: the waiting ones give up their places."""
    all_inside = threading.Barrier(MAX_CONCURRENT)

    def ask(number: int) -> str:
        def hook(_: Any) -> None:
            all_inside.wait(10)
            ImdsCredential(endpoint=imds.endpoint, timeout=5).get_token(f"https://inner{number}.example")

        credential = ImdsCredential(endpoint=imds.endpoint, timeout=20, raw_request_hook=hook)
        return credential.get_token(f"https://outer{number}.example").token

    tokens = _at_once([partial(ask, number) for number in range(MAX_CONCURRENT)])
    assert set(tokens) <= set(imds.tokens), tokens
    imds.assert_requests(2 * MAX_CONCURRENT)


def test_retry_without_a_slot(imds: ImdsEmulator) -> None:
    """A request that says that it will be repeated has left its place by then."""
    credential, active = ImdsCredential(endpoint=imds.endpoint), list[int]()
    limiter = credential._options.entry((VAULT,)).endpoint.limiter

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "again" in record.getMessage():
                active.append(len(limiter.active))

    logger, handler = logging.getLogger("azure_imds_credential"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        imds.script(faults.status(503))
        credential.get_token(VAULT)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert active == [0]


@pytest.mark.parametrize("busy", ["slots", "window"])
def test_busy_imds(imds: ImdsEmulator, busy: str) -> None:
    """A chain does not move on because other credentials of the process keep IMDS busy."""
    others = ImdsCredential(endpoint=imds.endpoint)
    others.get_token(VAULT)
    limiter, answer = others._options.entry((VAULT,)).endpoint.limiter, threading.Event()
    if busy == "window":
        limiter.recent.extend([others._now() + 10] * MAX_PER_WINDOW)
    else:
        imds.script(*[faults.hold(answer)] * MAX_CONCURRENT)
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        if busy == "slots":
            waiting = [pool.submit(others.get_token, f"https://r{number}.example") for number in range(MAX_CONCURRENT)]
            imds.wait_for_requests(1 + MAX_CONCURRENT)
        with pytest.raises(ImdsServiceError):
            ImdsCredential(endpoint=imds.endpoint, timeout=0.3, retry_total=0).get_token("https://other.example")
        answer.set()
        if busy == "slots":
            assert {future.result(10).token for future in waiting} <= set(imds.tokens)
    forget_tokens()
    assert not limiter.recent
    assert not others._options.entry((VAULT,)).endpoint.seen


def test_error_of_a_hook(flavor: Flavor, imds: ImdsEmulator) -> None:
    """What a hook raises is handed through as it is, though it was raised on the thread of the request."""

    class HookError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def hook(response: Any) -> None:
        raise HookError(1, 2)

    with pytest.raises(HookError, match="1 and 2"):
        flavor.ask(imds.endpoint, raw_response_hook=hook)


def test_failure_is_not_kept(flavor: Flavor, imds: ImdsEmulator) -> None:
    """No error is kept: the next call asks again, at once (msal keeps a 500 for five seconds)."""
    imds.script(faults.status(500, b'{"error":"x","error_description":"y"}'))
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, retry_total=0)
    with pytest.raises(ImdsServiceError):
        flavor.run(credential.get_token(VAULT))
    assert flavor.run(credential.get_token(VAULT)).token == imds.tokens[0]
    imds.assert_requests(2)


def test_repr_of_a_result() -> None:
    """Its text shows the error and never the token."""
    assert "dummy" not in repr(TokenResult("dummy", 10.0))


def test_hook_of_a_refresh(virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Code that runs inside a refresh and asks for its token needs no newer one than is held."""
    told: list[str] = []
    credential = ImdsCredential(
        endpoint=imds.endpoint, raw_response_hook=lambda _: told and told.append(credential.get_token(VAULT).token)
    )
    told.append(credential.get_token(VAULT).token)
    virtual_time.skip(14 * 3600)
    imds.renew_tokens()
    answer = threading.Event()
    imds.script(faults.hold(answer))
    assert credential.get_token(VAULT).token == told[0]
    answer.set()
    imds.wait_for_requests(2)
    eventually(lambda: len(told) == 2)  # the hook has a token
    assert told[1] == told[0]


def test_slot_beyond_the_deadline() -> None:
    """A caller never takes a slot after its deadline."""
    with ImdsEmulator(latency=0.3) as imds:
        impatient = ImdsCredential(endpoint=imds.endpoint, timeout=0.15)
        for turn in range(4):
            _at_once([lambda n=n, t=turn: impatient.get_token(f"https://r{n}-{t}.example") for n in range(15)])  # type: ignore[misc] # binds the loop's value
        assert len(imds.requests) <= 20 * 4


@pytest.mark.parametrize("begun", [True, False], ids=["its thread runs", "its thread begins later"])
def test_interrupt_at_the_start(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """A request that is under way by then is there for others to join; one that is not never begins."""
    start, threads = threading.Thread.start, list[threading.Thread]()

    def interrupted(self: threading.Thread) -> None:
        if self.name != "azure-imds-credential" or threads:
            start(self)
            return
        threads.append(self)
        if begun:
            start(self)
            imds.wait_for_requests(1)
        raise KeyboardInterrupt

    answer = threading.Event()
    imds.script(faults.hold(answer))
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SYNC.ask(imds.endpoint)
    answer.set()
    assert flavor.ask(imds.endpoint).token == imds.tokens[0]
    if not begun:
        start(threads[0])
    threads[0].join(10)
    imds.assert_requests(1)


def test_interrupt_keeps_no_lock(imds: ImdsEmulator) -> None:
    """Ctrl+C at thirty moments of the wait: later callers, of this key and of another, get their tokens."""
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=20)
    for turn in range(30):
        answer = threading.Event()
        imds.script(faults.hold(answer))
        timer = threading.Timer(0.001 + turn * 0.0003, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 # it may come before the call does
            timer.start()
            credential.get_token(f"https://r{turn}.example")
        answer.set()
        tokens = _at_once([lambda s=s: credential.get_token(f"https://{s}.example").token for s in (f"r{turn}", "x")])  # type: ignore[misc] # binds the loop's value
        assert not [token for token in tokens if isinstance(token, Exception)]
        imds.clear_faults()


@pytest.mark.parametrize("place", ["raw_request_hook", "raw_response_hook", "per_call_policies", "per_retry_policies"])
@pytest.mark.parametrize("cls", [StopIteration, StopAsyncIteration])
def test_the_end_of_an_iteration_in_a_hook(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, place: str, cls: type[Exception]
) -> None:
    """It ends no loop of a caller: it is an error that names it, as azure-identity's cause does."""

    class Stopping(SansIOHTTPPolicy[Any, Any]):
        def on_request(self, request: Any) -> None:
            raise cls("my iterator is empty")

    def hook(_: Any) -> None:
        raise cls("my iterator is empty")

    option = {place: hook if place.endswith("hook") else [Stopping()]}
    with pytest.raises(ImdsServiceError, match=f"{cls.__name__}: my iterator is empty") as caught:
        flavor.ask(imds.endpoint, **option)
    assert caught.value.hint is not None
    assert "hook or policy" in caught.value.hint
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    if place.endswith("hook"):  # it knows no such policies
        with pytest.raises(ClientAuthenticationError) as theirs:
            ManagedIdentityCredential(**option).get_token(VAULT)
        assert isinstance(theirs.value.__cause__, cls)
