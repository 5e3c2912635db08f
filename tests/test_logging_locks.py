"""Calls whose thread holds a lock of logging, which a request on another thread would wait for."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flavors import SYNC, VAULT, Flavor, VirtualTime

from azure_imds_credential import ImdsServiceError, _options
from azure_imds_credential._calling_thread import owns, owns_logging_lock
from azure_imds_credential._fork import import_lock
from azure_imds_credential.testing import ImdsEmulator, faults

LONG = 60.0  # seconds that a call has that must not wait


class Asking(logging.Handler):
    """Takes every record, and makes a call where the record of the program, or a flush, says so."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(logging.DEBUG)
        self._call = call
        self.results: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "program":
            self.results.append(self._call())

    def flush(self) -> None:
        if not self.results:
            self.results.append(self._call())


def _in_emit(handler: Asking) -> None:
    logging.getLogger("program").warning("a record of the program")


def _in_shutdown(handler: Asking) -> None:
    logging.shutdown([weakref.ref(handler)])


def _in_configuration(handler: Asking) -> None:
    with logging._lock:  # as `logging.config.dictConfig` does
        logging.getLogger().setLevel(logging.DEBUG)  # each logger asks again whether it is enabled, under the lock
        handler.flush()


@pytest.fixture(params=[_in_emit, _in_shutdown, _in_configuration], ids=lambda place: place.__name__)
def under_lock(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """What makes a call under a lock of logging, while every record goes to the handler that makes it."""
    root, handlers = logging.getLogger(), list[Asking]()
    level = root.level

    def make(call: Callable[[], Any]) -> Any:
        handlers.append(Asking(call))
        root.addHandler(handlers[-1])
        root.setLevel(logging.DEBUG)
        request.param(handlers[-1])
        return handlers[-1].results[0]

    yield make
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(level)


def test_a_first_call_under_a_lock_of_logging(
    flavor: Flavor, imds: ImdsEmulator, under_lock: Callable[[Callable[[], Any]], Any]
) -> None:
    """It gets its token, with a retry, though each record of the request needs the lock of its thread."""
    imds.script(faults.status(503))
    token = under_lock(lambda: flavor.ask(imds.endpoint, timeout=LONG).token)
    assert token in imds.tokens
    imds.assert_requests(2)


def test_a_call_under_a_lock_of_logging_joins_no_request(
    flavor: Flavor, imds: ImdsEmulator, under_lock: Callable[[Callable[[], Any]], Any]
) -> None:
    """The request that is under way may wait for that lock; it goes on, and serves those who wait for it."""
    answer, joined = threading.Event(), list[str]()
    imds.script(faults.hold(answer))
    thread = threading.Thread(target=lambda: joined.append(SYNC.ask(imds.endpoint, timeout=LONG).token))
    thread.start()
    try:
        imds.wait_for_requests(1)
        token = under_lock(lambda: flavor.ask(imds.endpoint, timeout=LONG).token)
    finally:
        answer.set()
        thread.join()
    assert {token, *joined} <= set(imds.tokens)
    imds.assert_requests(2)


def test_a_forced_call_under_a_lock_of_logging(
    flavor: Flavor, imds: ImdsEmulator, under_lock: Callable[[Callable[[], Any]], Any]
) -> None:
    """It gets a newer token, too."""
    first = flavor.ask(imds.endpoint).token
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=LONG)
    token = under_lock(lambda: flavor.run(credential.get_token(VAULT, force_refresh=True)).token)
    assert token in imds.tokens
    assert token != first
    imds.assert_requests(1, bypass_cache="true")


@pytest.mark.parametrize("age", [13 * 3600, 23.95 * 3600], ids=["half of its life", "the last minutes"])
def test_a_cached_token_under_a_lock_of_logging(
    flavor: Flavor,
    virtual_time: VirtualTime,
    imds: ImdsEmulator,
    under_lock: Callable[[Callable[[], Any]], Any],
    age: float,
) -> None:
    """It is handed out before its refresh ends; the refresh begins as always, on a thread of its own."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint)
    first = flavor.run(credential.get_token(VAULT)).token
    virtual_time.skip(age)
    answer = threading.Event()
    imds.script(faults.hold(answer))
    try:
        assert under_lock(lambda: flavor.run(credential.get_token(VAULT)).token) == first
    finally:
        answer.set()
    imds.wait_for_requests(2)


@contextmanager
def _import_elsewhere() -> Iterator[None]:
    """Have another thread hold the lock under which msal is imported."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with import_lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_call_under_a_lock_of_logging_while_msal_is_imported(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that imports may wait for the lock of logging, so the call ends with its time."""
    monkeypatch.setattr(_options, "_loaded", {})
    with _import_elsewhere():
        with logging._lock, pytest.raises(ImdsServiceError, match="another thread imports") as caught:
            flavor.ask(imds.endpoint, timeout=0.1)
        assert caught.value.hint is not None
        assert caught.value.hint in str(caught.value)
    imds.assert_requests(0)


def test_nothing_is_imported_twice(flavor: Flavor, imds: ImdsEmulator) -> None:
    """Once msal is loaded, a request waits for no thread that imports something else."""
    flavor.ask(imds.endpoint)
    with _import_elsewhere():
        assert flavor.ask(imds.endpoint, scope="https://other.example", timeout=LONG).token in imds.tokens


CONFIGURED = """
import asyncio, logging, logging.config, sys
import azure_imds_credential, azure_imds_credential.aio

class Exporter(logging.NullHandler):
    def __init__(self):
        super().__init__()
        if sys.argv[1] == "sync":
            credential = azure_imds_credential.ImdsCredential(timeout=60)
            token = credential.get_token("https://vault.azure.net")
        else:
            credential = azure_imds_credential.aio.ImdsCredential(timeout=60)
            token = asyncio.run(credential.get_token("https://vault.azure.net"))
        print(token.token, end="")

logging.config.dictConfig({
    "version": 1, "handlers": {"exporter": {"()": Exporter}}, "root": {"handlers": ["exporter"], "level": "WARNING"}
})
"""


def test_a_handler_that_asks_while_logging_is_configured(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request of a process imports msal, whose loggers need the lock that the configuration holds."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURED, flavor.name], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout in imds.tokens


def test_whose_lock_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock counts where it is known that this thread has it; logging may have none, and handlers any."""
    ours, other = threading.RLock(), threading.Lock()
    with other:
        assert not any(owns(lock) for lock in (None, ours, other))
    with ours:
        assert owns(ours)
        assert not owns_logging_lock()
    handler = logging.Handler()
    for lock, counts in ((ours, True), (None, False), (other, False)):
        handler.lock = lock  # type: ignore[assignment] # `createLock` of a handler may do so
        with ours:
            assert owns_logging_lock() is counts
    with logging._lock:
        assert owns_logging_lock()
        monkeypatch.delattr(logging, "_lock")
        monkeypatch.delattr(logging, "_handlerList")
        assert not owns_logging_lock()
        monkeypatch.undo()
