"""Calls of signal handlers and finalizers, at each line of the call that they interrupt on their own thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from azure.identity import ManagedIdentityCredential
from flavors import SYNC, VAULT, Flavor, VirtualTime

from azure_imds_credential import ImdsCredential, ImdsError, ImdsServiceError
from azure_imds_credential._cache import token_cache
from azure_imds_credential._fork import import_lock
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

OTHER = "https://other.example"
CACHE = ("/_endpoint.py", "/_request.py", "/_cache/")
MOST = 2000  # lines of one call
HOLDS_A_LOCK = "while its thread was looking for a token"


class AtLine:
    """Makes a call at one line of the code that is tried, on the thread that runs the line.

    Args:
        number: Which line, counted from the beginning.
        call: What is called there.
        thread: The name of the thread whose lines count.
        files: What stands in the names of its files.
    """

    def __init__(self, number: int, call: Callable[[], Any], thread: str, files: tuple[str, ...]) -> None:
        self._left, self._call, self._thread, self._files = number, call, thread, files
        self._first: int | None = None
        self.has_called = False
        self.result: Any = None
        self.error: ImdsError | None = None

    def __enter__(self) -> AtLine:
        self._before = sys.gettrace()
        if self._thread == threading.current_thread().name:
            sys.settrace(self._trace)
        else:
            threading.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        threading.settrace(self._before)  # type: ignore[arg-type] # as sys.settrace took it
        for thread in threading.enumerate():
            if thread.name == token_cache.THREAD_NAME:
                thread.join(60)  # its last lines run after the call has its token

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if self.has_called or threading.current_thread().name != self._thread:
            return None
        self._first = self._first or threading.get_ident()
        if self._first != threading.get_ident():
            return None  # one thread, and none that the call starts
        if not any(part in frame.f_code.co_filename for part in self._files):
            return self._trace if event == "call" else None
        if event != "line":
            return self._trace
        self._left -= 1
        if self._left == 0:
            self.has_called = True
            try:
                self.result = self._call()
            except ImdsError as error:
                self.error = error
        return self._trace


@pytest.mark.parametrize("scope", [VAULT, OTHER], ids=["the same token", "another token"])
def test_a_call_at_each_line(flavor: Flavor, imds: ImdsEmulator, scope: str) -> None:
    """It waits for nothing that its own thread has in hand, and the call that it interrupts gets its token.

    A call that did would end at its `timeout`, with another error.
    """
    flavor.ask(imds.endpoint)  # msal is imported
    told = dict.fromkeys(("token", "error"), 0)
    for number in range(1, MOST):
        forget_tokens()
        imds.clear_faults()
        before = len(imds.requests)
        credential = flavor.ImdsCredential(endpoint=imds.endpoint, timeout=30)
        inner = ImdsCredential(endpoint=imds.endpoint, timeout=20)
        with AtLine(
            number, lambda inner=inner: inner.get_token(scope).token, "MainThread", (*CACHE, "/threading.py")
        ) as line:  # type: ignore[misc] # binds the loop's value
            token = flavor.run(credential.get_token(VAULT)).token
        if not line.has_called:
            break
        assert token in imds.tokens
        if line.error is None:
            assert line.result in imds.tokens
        else:
            assert isinstance(line.error, ImdsServiceError)
            assert HOLDS_A_LOCK in str(line.error)
        told["token" if line.error is None else "error"] += 1
        asked = 1 + (scope == OTHER and line.error is None)
        assert len(imds.requests) - before == asked
    assert number < MOST - 1
    assert told["token"] > told["error"] > 0


@pytest.mark.parametrize("scope", [VAULT, OTHER], ids=["the same token", "another token"])
def test_a_call_at_each_line_of_the_request(imds: ImdsEmulator, scope: str) -> None:
    """A finalizer may also run on the thread of the request."""
    SYNC.ask(imds.endpoint)
    for number in range(1, MOST):
        forget_tokens()
        before = len(imds.requests)
        inner = ImdsCredential(endpoint=imds.endpoint, timeout=20)
        with AtLine(number, lambda inner=inner: inner.get_token(scope).token, token_cache.THREAD_NAME, CACHE) as line:  # type: ignore[misc] # binds the loop's value
            token = SYNC.ask(imds.endpoint, timeout=30).token
        if not line.has_called:
            break
        assert token in imds.tokens
        if line.error is None:
            assert line.result in imds.tokens
        else:
            assert HOLDS_A_LOCK in str(line.error) or (scope == VAULT and "of the request itself" in str(line.error))
        assert len(imds.requests) - before == 1 + (scope == OTHER and line.error is None)
    assert number < MOST - 1


def test_a_call_while_msal_is_imported(imds: ImdsEmulator) -> None:
    """The thread that imports it is told so at once: another one could not import it meanwhile."""
    with import_lock, pytest.raises(ImdsServiceError, match=HOLDS_A_LOCK) as caught:
        SYNC.ask(imds.endpoint)
    assert caught.value.hint is not None
    assert caught.value.hint in str(caught.value)
    imds.assert_requests(0)


@pytest.mark.parametrize("option", [{}, {"wait_for_identity": 5.0}], ids=str)
def test_a_call_under_the_lock_of_the_cache(
    flavor: Flavor, imds: ImdsEmulator, virtual_time: VirtualTime, option: dict[str, Any]
) -> None:
    """It gets a cached token of any age, or an error at once, and starts no request."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, **option)
    cache = credential._options.cache
    with cache._lock, pytest.raises(ImdsServiceError, match=HOLDS_A_LOCK):
        flavor.run(credential.get_token(VAULT))
    token = flavor.run(credential.get_token(VAULT)).token
    for seconds in (13 * 3600, 10.9 * 3600):  # half of its life, and the last minutes
        virtual_time.skip(seconds)
        with cache._lock:
            assert flavor.run(credential.get_token(VAULT)).token == token
            with pytest.raises(ImdsServiceError, match=HOLDS_A_LOCK):
                flavor.run(credential.get_token(VAULT, force_refresh=True))
    imds.assert_requests(1)


def test_azure_identity_on_the_same_input(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no lock: both calls get a token, with a request each. Ours get one as well, with one request in all."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    calls: list[str] = []
    inner = ManagedIdentityCredential()

    def hook(_: Any) -> None:
        if not calls:
            calls.append(inner.get_token(VAULT).token)

    assert ManagedIdentityCredential(raw_request_hook=hook).get_token(VAULT).token in imds.tokens
    assert calls[0] in imds.tokens
    imds.assert_requests(2)

    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        if self.name == token_cache.THREAD_NAME and len(calls) == 1:
            calls.append(SYNC.ask(imds.endpoint).token)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    assert SYNC.ask(imds.endpoint).token == calls[1]
    imds.assert_requests(3)


def test_an_interrupt_runs_the_request_that_its_thread_starts(
    flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails for both calls as for one, and both tell why."""
    start, errors = threading.Thread.start, list[ImdsError]()

    def interrupted(self: threading.Thread) -> None:
        if self.name == token_cache.THREAD_NAME and not errors:
            with pytest.raises(ImdsError) as caught:
                SYNC.ask(imds.endpoint)
            errors.append(caught.value)
        start(self)

    imds.script(
        faults.status(400, {"error": "invalid_resource", "error_description": "AADSTS500011: no such resource"})
    )
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(ImdsError, match="AADSTS500011") as caught:
        flavor.ask(imds.endpoint)
    assert str(errors[0]) == str(caught.value)
    assert errors[0] is not caught.value
    imds.assert_requests(1)
