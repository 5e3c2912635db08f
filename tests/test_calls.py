"""What single calls promise, each in a test of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.pipeline.transport import RequestsTransport
from flavors import SYNC, VAULT, Flavor, StillTime, VirtualTime, eventually
from tcp import listening

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsCredential,
    ImdsError,
    ImdsServiceError,
    ImdsUnavailableError,
    _options,
)
from azure_imds_credential._cache import token_cache
from azure_imds_credential._cache.token_cache import THREAD_NAME, TokenCache
from azure_imds_credential._calling_thread import is_importing
from azure_imds_credential._endpoint import MAX_CONCURRENT, MAX_PER_WINDOW, WINDOW
from azure_imds_credential._imds import retry_policy
from azure_imds_credential._request import TokenRequest, current_request
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, faults


class CountedRequests:
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


def test_wait_for_identity_as_long_as_timeout(flavor: Flavor) -> None:
    """With `wait_for_identity` as long as `timeout` the error is still the one that a chain goes on after."""
    with ImdsEmulator(identities=[]) as imds, pytest.raises(IdentityUnavailableError, match="az vm identity assign"):
        flavor.ask(imds.endpoint, timeout=1, wait_for_identity=1)


def test_callers_that_leave(imds: ImdsEmulator) -> None:
    """Five requests at once stay five, though callers with little time leave them."""
    counted = CountedRequests(0.5)
    imds.script(*[counted] * 40)
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
    assert 1 < counted.most <= 5


def test_slots_between_attempts(imds: ImdsEmulator) -> None:
    """Five resources that IMDS is asked for again and again do not keep a sixth waiting."""

    def ill(reply: Any) -> Iterator[Any]:
        sick = b"ill" in imds.requests[-1].target.encode()
        return (faults.status(503, b"") if sick else faults.ok)(reply)

    imds.script(ill, seconds=60)
    credential = ImdsCredential(endpoint=imds.endpoint)
    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(credential.get_token, f"https://ill{number}.example") for number in range(5)]
        imds.wait_for_requests(10)  # by then all five wait for their next attempt, or make it
        assert credential.get_token(VAULT).token
        assert not any(other.done() for other in others), "it waited for one of them"
        imds.clear_faults()


@pytest.mark.parametrize("joins", [False, True], ids=["its own request", "the request of another caller"])
def test_chain_after_a_wait_for_a_slot(flavor: Flavor, joins: bool, virtual_time: VirtualTime) -> None:
    """A caller for whom nothing could be sent learns nothing of IMDS: it is told why, and a chain stops."""
    end = threading.Event()
    with listening(lambda *_: end.wait(60)) as server, ThreadPoolExecutor(6) as pool:
        for number in range(MAX_CONCURRENT):
            pool.submit(flavor.ask, server.url, scope=f"https://r{number}.example", timeout=60)  # fails, unheard
        eventually(lambda: server.accepted == MAX_CONCURRENT)
        if joins:
            patient = flavor.ImdsCredential(endpoint=server.url, timeout=60)
            entry = patient._options.entry((VAULT,))
            pool.submit(lambda: flavor.run(patient.get_token(VAULT)))
            eventually(lambda: entry.plain_request is not None)
            with pytest.raises(ImdsServiceError, match="could be sent in time") as caught:
                flavor.ask(server.url, timeout=0.6)
        else:
            credential = flavor.ImdsCredential(endpoint=server.url, timeout=30)
            entry = credential._options.entry((VAULT,))
            call = pool.submit(lambda: flavor.run(credential.get_token(VAULT)))
            eventually(lambda: entry.plain_request and entry.plain_request.unsent_because == retry_policy.RATE_LIMITED)
            virtual_time.skip(30)
            with pytest.raises(ImdsServiceError, match="could be sent in time") as caught:
                call.result(60)
            assert f"at most {MAX_PER_WINDOW} a second and {MAX_CONCURRENT} at once" in str(caught.value)
        end.set()
    error = caught.value
    assert (error.resource, error.identity, error.attempts) == (VAULT, "the machine's default identity", 0)
    assert "says nothing of IMDS" in (error.hint or "")
    assert error.elapsed > 0


class Hold:
    """A place at which a request stays until it may go on."""

    def __init__(self) -> None:
        self.is_reached, self.end = threading.Event(), threading.Event()

    def __call__(self, given: Any = None, *_: Any) -> Any:
        self.is_reached.set()
        self.end.wait(60)
        return given


def call_held(hold: Hold, function: Callable[..., Any], *arguments: Any) -> Any:
    hold()
    return function(*arguments)


class HeldPolicy(SansIOHTTPPolicy[Any, Any]):
    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def on_request(self, request: Any) -> None:
        self._hold()


class HeldTransport(RequestsTransport):
    def __init__(self, hold: Hold) -> None:
        super().__init__()
        self._hold = hold

    def send(self, *args: Any, **kwargs: Any) -> Any:
        self._hold()
        return super().send(*args, **kwargs)


# What takes the time of a call -> arguments of the credential, whether an attempt was sent by then, what it is told.
HELD: dict[str, tuple[Callable[[Hold], dict[str, Any]], bool, str]] = {
    "loading": (lambda _: {}, False, "msal and the HTTP stack were being loaded"),
    "another process": (lambda _: {"shared_cache": True}, False, "another process of this user was asking"),
    "a policy": (lambda hold: {"per_call_policies": HeldPolicy(hold)}, False, "policies and hooks take part"),
    "a hook": (lambda hold: {"raw_request_hook": hold}, False, "policies and hooks take part"),
    "a transport": (lambda hold: {"transport": HeldTransport(hold)}, True, "No complete response within 0.2 s"),
    "a later hook": (lambda hold: {"raw_response_hook": hold}, True, "No complete response within 0.2 s"),
}


def test_a_name_is_looked_up(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up of the endpoint's name asks the network already; policies and hooks that come next do not."""
    told: dict[str, str | None] = {}

    def note(place: str) -> int:
        request = current_request.get()
        assert request is not None
        told[place] = request.unsent_because
        return 1

    monkeypatch.setattr(retry_policy, "address_count", lambda _url: note("look-up"))
    flavor.ask(imds.endpoint, raw_request_hook=lambda _: note("hook"))
    assert told["look-up"] is None
    assert told["hook"] is not None


@pytest.mark.parametrize("way", HELD)
def test_time_that_ends_before_anything_is_sent(
    way: str, flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call whose time is up before an attempt was sent is told what took it; only after one "no IMDS" is said."""
    arguments, was_sent, told = HELD[way]
    hold, load = Hold(), _options._import_client
    if way == "loading":
        monkeypatch.setattr(_options, "_import_client", lambda: hold(load()))
    if way == "another process":
        monkeypatch.setattr(_options, "_import_sharing", lambda: lambda fetch: partial(call_held, hold, fetch))
    imds.script(faults.status(503, "no answer of IMDS", headers={"Server": None}), seconds=60)
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=60, retry_total=0, **arguments(hold))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: flavor.run(credential.get_token(VAULT)))
        try:
            assert hold.is_reached.wait(60)
            credential._options.timeout = 0.2
            with pytest.raises(ImdsUnavailableError if was_sent else ImdsServiceError, match=told) as caught:
                flavor.run(credential.get_token(VAULT))
        finally:
            hold.end.set()
    assert caught.value.attempts == 0
    assert caught.value.elapsed == 0.2


def test_loading_that_takes_all_the_time(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ends because loading took its time says so, and does not blame the rate limit."""
    clock = StillTime()
    load = _options._import_client

    def slowly() -> Any:
        clock.skip(30)
        return load()

    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    monkeypatch.setattr(_options, "_import_client", slowly)
    with pytest.raises(ImdsServiceError, match="could be sent in time: msal and the HTTP stack were being loaded"):
        flavor.ask(imds.endpoint, timeout=30)
    imds.assert_requests(0)


def test_chain_while_the_interpreter_ends(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be loaded any more nothing is known of IMDS: a chain stops."""

    def fail() -> Any:
        raise ImportError("sys.meta_path is None, Python is likely shutting down")

    monkeypatch.setattr(_options, "_import_client", fail)
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    with pytest.raises(ImdsServiceError, match="The interpreter is shutting down"):
        ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)


def test_documented_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 resources as fast as possible: never more than 20 requests in a second, so that none is refused."""
    clock = StillTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    with ImdsEmulator(throttle=True, clock=clock.wall) as imds:
        credential = ImdsCredential(endpoint=imds.endpoint)
        before = clock.now()
        assert len({credential.get_token(f"https://r{number}.example").token for number in range(64)}) == 64
        assert {request.answered for request in imds.requests} == {"200"}
        imds.assert_requests(64)
        assert clock.now() - before == pytest.approx(3 * WINDOW)
        for number in range(64, 80):  # the rest of this window
            credential.get_token(f"https://r{number}.example")
        before = clock.now()
        # A call whose turn would come too late fails at once.
        with pytest.raises(ImdsServiceError, match="at most 20 a second and 5 at once"):
            ImdsCredential(endpoint=imds.endpoint, timeout=0.5).get_token("https://r80.example")
        assert clock.now() == before
        imds.assert_requests(80)


def test_failed_forced_refreshes(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """Ten claims challenges while IMDS refuses cost one request; half a minute later it is asked again."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    flavor.run(credential.get_token(VAULT))
    imds.script(faults.status(403, b'{"error":"x","error_description":"y"}'), seconds=10_000)
    errors = []
    for _ in range(10):
        with pytest.raises(ImdsError) as caught:
            flavor.run(credential.get_token(VAULT, force_refresh=True))
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 10, "callers share an error"
    imds.assert_requests(2)
    imds.clear_faults()
    virtual_time.skip(31)
    assert flavor.run(credential.get_token(VAULT, force_refresh=True)).token == imds.tokens[-1]


def test_hibernation_during_the_response(flavor: Flavor, virtual_time: VirtualTime, imds: ImdsEmulator) -> None:
    """The machine hibernates while the answer comes: the next answer is waited for."""

    def hibernate(reply: Any) -> Iterator[Any]:
        virtual_time.skip(3 * 86400)
        yield from faults.ok(reply)

    imds.script(hibernate)
    token = flavor.ask(imds.endpoint, timeout=20 * 86400.0)
    assert token.expires_on > virtual_time.wall()
    imds.assert_requests(2)


def test_log_without_threads(
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


def test_log_handler(imds: ImdsEmulator) -> None:
    """An exporter that authenticates with the same credential gets the token at once."""
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=90)
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
        assert time.monotonic() - begun < 60, "it waited for itself, until its time was up"
    finally:
        logger.removeHandler(handler)
    assert got == [imds.tokens[0]]


def test_log_handler_that_asks(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A handler that holds its lock while it asks is not waited for: the caller logs the request, not its thread."""
    told: list[tuple[str, str]] = []

    class Exporter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "program":
                told.append(("token", threading.current_thread().name))
                flavor.ask(imds.endpoint, timeout=60)
            elif hasattr(record, "imds_outcome"):
                told.append((record.imds_outcome, threading.current_thread().name))

    handler = Exporter()
    loggers = [logging.getLogger("program"), logging.getLogger("azure_imds_credential")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        loggers[0].warning("a line of the program")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert told == [("token", threading.current_thread().name)] * 2


def test_hook_that_waits_for_itself(flavor: Flavor, imds: ImdsEmulator) -> None:
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
    assert time.monotonic() - begun < 60, "it waited for itself, until its time was up"
    assert "itself" in str(told[0])


def _hook(use: Callable[[], None]) -> dict[str, Any]:
    return {"raw_request_hook": lambda _: use()}


def _policy(use: Callable[[], None]) -> dict[str, Any]:
    class Policy(SansIOHTTPPolicy[Any, Any]):
        def on_request(self, request: Any) -> None:
            use()

    return {"per_retry_policies": [Policy()]}


@pytest.mark.parametrize("way", [_hook, _policy])
def test_a_call_while_its_package_is_imported(
    way: Callable[..., dict[str, Any]], imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a hook or a policy imports from a package may wait for the thread that imports the package."""

    def use() -> None:
        import_module("half_imported")  # as `from half_imported import settings` does first
        assert import_module("half_imported.settings").NAME == "settings"

    def ask() -> str:
        assert is_importing()
        return ImdsCredential(endpoint=imds.endpoint, timeout=30, **way(use)).get_token(VAULT).token

    package = tmp_path / "half_imported"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "import caller_of_half_imported\ntoken = caller_of_half_imported.ask()\n"
    )
    package.joinpath("settings.py").write_text("NAME = 'settings'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "caller_of_half_imported", SimpleNamespace(ask=ask))  # type: ignore[arg-type] # as good
    assert not is_importing()
    try:
        assert import_module("half_imported").token in imds.tokens
    finally:
        for name in ("half_imported", "half_imported.settings"):
            sys.modules.pop(name, None)
    imds.assert_requests(1)


def test_where_a_call_under_an_import_runs(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under an import a hook of the sync class runs on the thread of its caller.

    An event loop goes on, and a transport cannot make a call outlast its timeout: those run on a thread of their own.
    """
    monkeypatch.setattr(token_cache, "is_importing", lambda: True)
    threads: list[threading.Thread] = []

    class Transport(RequestsTransport):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread())
            return super().send(*args, **kwargs)

    flavor.ask(imds.endpoint, raw_request_hook=lambda _: threads.append(threading.current_thread()))
    flavor.ask(imds.endpoint, transport=Transport())
    own = [thread is threading.current_thread() for thread in threads]
    assert own == [flavor is SYNC, False]


@pytest.mark.parametrize("where", ["under a lock of logging", "where no thread can start"])
def test_interrupt_of_a_request_that_another_call_joined(
    where: str, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+C in a request that runs on the thread of its caller ends that call alone; one that joined asks again."""
    main = threading.current_thread()
    if where == "under a lock of logging":
        monkeypatch.setattr(token_cache, "must_not_wait", lambda **_: threading.current_thread() is main)
    else:
        monkeypatch.setattr(token_cache, "_start_thread", lambda *_: False)
    interrupts = iter([True])

    def hook(_request: Any) -> None:
        if next(interrupts, False):
            other.start()
            eventually(lambda: entry.plain_request is not None and entry.plain_request.waiting == 2)
            raise KeyboardInterrupt

    credential, tokens = ImdsCredential(endpoint=imds.endpoint, raw_request_hook=hook), list[str]()
    entry = credential._options.entry((VAULT,))
    other = threading.Thread(target=lambda: tokens.append(credential.get_token(VAULT).token))
    with pytest.raises(KeyboardInterrupt):
        credential.get_token(VAULT)
    other.join()
    assert tokens == [imds.tokens[0]]


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
def test_locks_in_a_child(imds: ImdsEmulator) -> None:
    """The cache's lock is taken; the child has a new one."""
    credential = ImdsCredential(endpoint=imds.endpoint, timeout=5)
    credential.get_token("https://warm.example")  # so that imports are done
    with _options.process_cache._lock:
        # Held by another thread as the child sees it: a lock has no owner.
        assert _child_gets_a_token(lambda: credential.get_token(VAULT))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 warns of a fork beside threads
def test_slots_in_a_child(imds: ImdsEmulator) -> None:
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


def test_length_of_an_error(flavor: Flavor, imds: ImdsEmulator) -> None:
    """However long IMDS's words are."""
    words = " ".join(["word"] * 400)
    imds.script(faults.status(403, {"error": words, "error_description": words}))
    with pytest.raises(ImdsError) as caught:
        flavor.ask(imds.endpoint)
    assert str(caught.value).count("word") <= 40
    assert not isinstance(caught.value, ImdsServiceError)


@pytest.mark.parametrize("scope", [["https://vault.azure.net/.default"], 5, None])
def test_wrong_type_of_scope(flavor: Flavor, scope: Any) -> None:
    """Also where it could not even be looked up."""
    with pytest.raises((TypeError, ValueError), match="scope"):
        flavor.run(flavor.ImdsCredential().get_token(scope))


@pytest.mark.parametrize("busy", ["slots", "window"])
def test_no_slot_in_time(imds: ImdsEmulator, busy: str) -> None:
    """A request whose time ends before it has a slot counts as one that a caller with more time may repeat."""
    options = ImdsCredential(endpoint=imds.endpoint, retry_total=0)._options
    cache, entry = options.cache, options.entry((VAULT,))
    limiter, now = entry.endpoint.limiter, cache.clock.now()
    if busy == "slots":
        limiter.active |= {TokenRequest(entry.key, now, now + 9) for _ in range(MAX_CONCURRENT)}
    else:
        limiter.recent.extend([now] * MAX_PER_WINDOW)
    request = TokenRequest(entry.key, now, now + 0.05)
    cache._run(entry, options, request)
    assert request.result is not None
    assert isinstance(request.result.error, ImdsServiceError)
    assert request.result.timed_out
    imds.assert_requests(0)
    limiter.reset()


def test_hook_error_is_no_timeout(imds: ImdsEmulator) -> None:
    """No other caller repeats a request for it."""

    def hook(request: Any) -> None:
        raise KeyError("hook")

    options = ImdsCredential(endpoint=imds.endpoint, raw_request_hook=hook)._options
    entry, now = options.entry((VAULT,)), options.cache.clock.now()
    request = TokenRequest(entry.key, now, now + 90)
    options.cache._run(entry, options, request)
    assert request.result is not None
    assert isinstance(request.result.error, KeyError)
    assert not request.result.timed_out


class _RewordingError(Exception):
    """Its `args` are not those of its constructor, as in many libraries."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class _UncopyableError(Exception):
    def __reduce__(self) -> Any:
        return int, ("5",)


@pytest.mark.parametrize("error", [_RewordingError("key"), _UncopyableError("no key")], ids=repr)
def test_an_error_of_a_hook_arrives_unchanged(flavor: Flavor, imds: ImdsEmulator, error: Exception) -> None:
    """Each caller raises its own copy of an error, unless the copy would be another error."""

    def hook(request: Any) -> None:
        raise error

    with pytest.raises(type(error), match=r"^no key$"):
        flavor.ask(imds.endpoint, raw_request_hook=hook)


def test_context_of_hooks(flavor: Flavor, imds: ImdsEmulator) -> None:
    """What a tracer keeps in a context variable is there on the thread of the request."""
    span: ContextVar[str] = ContextVar("span", default="none")
    found = []
    token = span.set("of the caller")
    try:
        flavor.ask(imds.endpoint, raw_request_hook=lambda _request: found.append(span.get()))
    finally:
        span.reset(token)
    assert found == ["of the caller"]


def test_place_of_a_failing_hook(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG the log says where the error of a hook was raised: its traceback ends where the caller waits."""

    def hook(_request: object) -> None:
        raise KeyError("of the hook")

    with caplog.at_level(logging.DEBUG, "azure_imds_credential"), pytest.raises(KeyError, match="of the hook"):
        flavor.ask(imds.endpoint, raw_request_hook=hook)
    assert f"KeyError raised in {__file__}, line {hook.__code__.co_firstlineno + 1}, in hook" in caplog.messages


def test_failing_log_filter(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging lets what a filter raises through: the token is handed out all the same, and at once."""

    def fail(record: logging.LogRecord) -> bool:
        raise KeyError("filter")

    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    logger = logging.getLogger("azure_imds_credential")
    logger.addFilter(fail)
    begun = time.monotonic()
    try:
        assert ImdsCredential(endpoint=imds.endpoint, timeout=120).get_token(VAULT).token == imds.tokens[0]
        assert time.monotonic() - begun < 60, "it waited until its time was up"
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join(10)
    finally:
        logger.removeFilter(fail)
    assert KeyError in [one.exc_type for one in told]


def test_interrupted_request(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt just after its thread started, a request ends without output."""
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
