"""What users' tests put in the place of the standard library's functions, and errors that are hard to handle."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import MagicMock, Mock, patch

import pytest
from flavors import VAULT, Flavor, StillTime, eventually

from azure_imds_credential import ImdsCredential, ImdsThrottledError, ImdsUnavailableError, _fork, _options
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._clock import Clock
from azure_imds_credential.testing import ImdsEmulator, faults


class SynchronousThread:
    """A stand-in that runs its function at once."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **_: object) -> None:
        self._run = partial(target, *args)

    def start(self) -> None:
        self._run()


@pytest.mark.parametrize(
    "stand_in",
    [
        lambda: patch("random.random"),
        lambda: patch("random.random", return_value=None),
        lambda: patch("random.random", side_effect=[]),
        lambda: patch("time.time"),
        lambda: patch("threading.Thread", MagicMock()),
        lambda: patch("threading.Thread.start"),
        lambda: patch("threading.Thread.start", side_effect=AssertionError("no threads here")),
        lambda: patch("threading.Thread.start", side_effect=MemoryError),
        lambda: patch("threading.stack_size", MagicMock()),
        lambda: patch("threading.Thread", SynchronousThread),
    ],
    ids=[
        "random.random", "random.random gives None", "random.random gives nothing", "time.time", "Thread",
        "Thread.start", "Thread.start raises", "no memory for a thread", "stack_size", "synchronous Thread",
    ],
)  # fmt: skip
def test_a_token_with_a_stand_in(flavor: Flavor, imds: ImdsEmulator, stand_in: Callable[[], Any]) -> None:
    """A call gets its token, and so does the next, where a test replaced what the library uses of Python."""
    if flavor.name == "aio":
        flavor.run(flavor.ImdsCredential().close())  # asyncio starts its own threads before the replacement
    with stand_in():
        assert flavor.ask(imds.endpoint, timeout=20).token in imds.tokens
    assert flavor.ask(imds.endpoint, timeout=20).token in imds.tokens
    assert len(imds.token_requests) == 1


def test_waits_that_take_no_time(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Where a test replaced `time.sleep`, a call asks as often as it would have in its time, and then ends."""
    imds.script(faults.throttled(), seconds=3600)
    with patch("time.sleep") as sleep, pytest.raises(ImdsThrottledError):
        flavor.ask(imds.endpoint, timeout=60)
    assert 2 <= len(imds.token_requests) <= 20
    assert 30 <= sum(call.args[0] for call in sleep.mock_calls) <= 60


def test_an_exception_while_a_token_is_kept(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers get it at once, instead of waiting for `timeout`, and the next call asks again."""
    with monkeypatch.context() as patched:
        patched.setattr(Clock, "random", Mock(side_effect=OverflowError("no numbers")))
        with pytest.raises(OverflowError, match="no numbers"):
            flavor.ask(imds.endpoint, timeout=20)
    assert flavor.ask(imds.endpoint, timeout=20).token in imds.tokens
    assert len(imds.token_requests) == 2


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """An error that cannot be changed."""

    reason: str


class SealedError(Exception):
    """An error that raises when it is changed."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError(f"{name} is set")


@pytest.mark.parametrize("error", [FrozenError("no"), SealedError("no")], ids=lambda error: type(error).__name__)
def test_an_error_that_cannot_be_changed(flavor: Flavor, imds: ImdsEmulator, error: Exception) -> None:
    """Callers get the error of a hook at once, also one that refuses to lose its traceback."""

    def refuse(_response: Any) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        flavor.ask(imds.endpoint, timeout=20, raw_response_hook=refuse)
    assert caught.value.__context__ is None


def test_an_error_is_copied_without_the_lock(flavor: Flavor, imds: ImdsEmulator) -> None:
    """To copy an error of a hook runs its `__init__`, which may log and so wait for another caller."""
    owned: list[bool] = []

    class LoggingError(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            owned.append(credential._options.cache._lock._is_owned())

    def refuse(_response: Any) -> None:
        raise LoggingError("no")

    credential = flavor.ImdsCredential(endpoint=imds.endpoint, raw_response_hook=refuse)
    with pytest.raises(LoggingError):
        flavor.run(credential.get_token(VAULT))
    assert owned == [False, False], "the error, and its copy"


@pytest.mark.parametrize(
    "hook",
    [None, Mock(side_effect=ValueError), Mock(side_effect=SystemExit)],
    ids=["none", "raises", "exits"],
)
def test_the_hook_for_errors_of_threads_fails(
    flavor: Flavor, imds: ImdsEmulator, hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No caller loses its token for it, where a log filter fails too."""

    def fail(_record: logging.LogRecord) -> bool:
        raise ValueError("a filter")

    monkeypatch.setattr(threading, "excepthook", hook)
    logger = logging.getLogger("azure_imds_credential")
    monkeypatch.setattr(logger, "filters", [fail])
    monkeypatch.setattr(logger, "level", logging.INFO)
    assert flavor.ask(imds.endpoint, timeout=20).token in imds.tokens


def test_a_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps a probe from connecting means that it found nothing, and the probes go on."""
    none_left = OSError(errno.EMFILE, "Too many open files")
    found = iter([RuntimeError("a test permits no sockets"), none_left, ImportError("its module"), True])
    probes: list[object] = []

    def has_listener(_self: object, _url: str) -> bool:
        result = next(found)
        probes.append(result)
        if isinstance(result, Exception):
            raise result
        return bool(result)

    monkeypatch.setattr(_options.CredentialOptions, "has_listener", has_listener)
    monkeypatch.setattr("azure_imds_credential._cache.token_cache.PROBE_INTERVAL", 0.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        cache = TokenCache(StillTime())
        monkeypatch.setattr(_options, "process_cache", cache)
        credential = ImdsCredential(endpoint=endpoint)
        for _ in range(2):  # the second call is told what is remembered, and starts the probes
            with pytest.raises(ImdsUnavailableError):
                credential.get_token(VAULT)
        eventually(lambda: len(probes) == 4)
        eventually(lambda: cache._endpoints[endpoint].absence is None)


def test_caches_while_the_collector_runs() -> None:
    """The collector may drop caches at any moment, also while they are listed."""
    kept = [TokenCache() for _ in range(50)]
    before = gc.get_threshold()
    try:
        for objects in range(12):  # that are made before the collector runs
            gc.set_threshold(1_000_000, *before[1:])
            gc.collect()
            for _ in range(30):
                cache = TokenCache()
                vars(cache)["itself"] = cache
            del cache
            gc.set_threshold(gc.get_count()[0] + objects, *before[1:])
            listed = _fork.caches()
            assert set(kept) <= set(listed)
    finally:
        gc.set_threshold(*before)


INTERRUPTED = """
import random, signal
from azure_imds_credential import ImdsCredential, _fork, _options
from azure_imds_credential._cache import token_cache
from azure_imds_credential._clock import Clock
from azure_imds_credential._request import TokenResult

class Interrupt(KeyboardInterrupt):
    pass

def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise Interrupt

def fetch(self, request, endpoint, clock):
    endpoint.limiter.acquire(request, clock)
    endpoint.limiter.release(request, clock)
    return TokenResult("dummy", clock.now() + 600)

armed, kept = False, []
signal.signal(signal.SIGALRM, interrupt)
token_cache._start_thread = lambda *_: False  # threading has locks of its own, and this interrupt leaves them locked
_options.CredentialOptions.fetch = fetch
chance = random.Random(1)
for number in range(4000):
    cache = _options.process_cache = token_cache.TokenCache(Clock())
    credential = ImdsCredential(endpoint="http://127.0.0.1:1")
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
        for resource in range(20):
            credential.get_token(f"https://{resource}")
        armed = False
    except Interrupt as error:
        kept = kept[-9:] + [error]  # its frames live on
    armed = False
    locks = [cache._lock, _fork.import_lock, *(url.limiter.lock for url in cache._urls.values())]
    assert not any(lock._is_owned() for lock in locks), f"after {number} calls"
print(len(kept))
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer signal")
def test_an_interrupt_leaves_no_lock() -> None:
    """Whenever an interrupt comes, each lock of the library is free afterwards: on Python 3.14 by more than `with`."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0, "no interrupt came"
