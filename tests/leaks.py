"""Everything the library says during the suite is searched for the tokens that were issued to it.

Tokens come from the emulator. What is said: log records of the library and of all it stands on, at every level; the
reprs, pickles, texts and tracebacks (with the reprs of locals) of every error; the reprs of everything returned.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential.testing._emulator import tokens as _tokens

# Ours, and those that may log while a request runs.
LOGGERS = ("azure", "azure_imds_credential", "charset_normalizer", "msal", "requests", "urllib3")
DUMMY = "dummy-secret-"  # tokens that tests make by hand begin so
_TELLING = 20  # characters: a shorter piece of a token says nothing
_RUN = re.compile(rf"[A-Za-z0-9_\-]{{{_TELLING},}}")


class Monitor(logging.Handler):
    """Collects what is said, and knows what must not be in it."""

    def __init__(self) -> None:
        super().__init__(level=logging.NOTSET)
        self.said: list[tuple[str, str]] = []
        self.beginnings: set[str] = set()  # of payload and signature of each token; headers are all alike

    def issue(self, token: str) -> str:
        self.beginnings.update(part[:_TELLING] for part in token.split(".")[1:])
        return token

    def emit(self, record: logging.LogRecord) -> None:
        formatted = self.format(record)  # with the traceback, if there is one
        self.note(f"log record of {record.name}", f"{formatted} {record.args!r} {vars(record)!r}")

    def note(self, where: str, text: str) -> None:
        self.said.append((where, text))

    def note_error(self, error: BaseException) -> None:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.note("traceback with locals", "".join(told.format()))
        self.note("error", f"{error} {error!r} {vars(error)!r}")
        if isinstance(error, azure_imds_credential.ImdsError):
            self.note("pickled error", pickle.dumps(error).decode("latin-1"))

    def note_credential(self, credential: Any, cached: Any) -> None:
        self.note("what is returned", f"{cached!r} {cached.token!s} {cached.info!s} {credential!r}")
        with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):  # a transport, or a local hook
            self.note("pickled credential", pickle.dumps(credential).decode("latin-1"))

    def leaks(self) -> list[str]:
        """Search what was said since the last search."""
        said, self.said = self.said, []
        return [f"{where}: {text[:2000]}" for where, text in said if self._tells(text)]

    def _tells(self, text: str) -> bool:
        return DUMMY in text or any(run[:_TELLING] in self.beginnings for run in _RUN.findall(text))


monitor = Monitor()


@pytest.fixture(autouse=True, scope="session")
def _listen() -> Iterator[None]:
    """Note what is issued and what is said, for the whole suite."""
    patch = pytest.MonkeyPatch()
    sign = _tokens.sign
    patch.setattr(_tokens, "sign", lambda claims: monitor.issue(sign(claims)))
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in LOGGERS}
    for logger in levels:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(monitor)

    sync, aio = azure_imds_credential.ImdsCredential, azure_imds_credential.aio.ImdsCredential
    sync_fill, aio_fill = sync._fill, aio._fill

    def fill(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            cached = sync_fill(self, *args, **kwargs)
        except BaseException as error:
            monitor.note_error(error)
            raise
        monitor.note_credential(self, cached)
        return cached

    async def fill_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            cached = await aio_fill(self, *args, **kwargs)
        except BaseException as error:
            monitor.note_error(error)
            raise
        monitor.note_credential(self, cached)
        return cached

    patch.setattr(sync, "_fill", fill)
    patch.setattr(aio, "_fill", fill_async)
    yield
    patch.undo()
    for logger, level in levels.items():
        logger.setLevel(level)
        logger.removeHandler(monitor)
    _fail_on(monitor.leaks())


@pytest.fixture(autouse=True)
def _no_token_is_said() -> Iterator[None]:
    """No test may make the library say a token."""
    yield
    _fail_on(monitor.leaks())


def _fail_on(leaks: list[str]) -> None:
    if leaks:
        pytest.fail("a token was said\n\n" + "\n\n".join(leaks[:5]), pytrace=False)
