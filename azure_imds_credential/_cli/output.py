"""What the commands of `azure-imds` give back, and how it reaches standard output and standard error."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from .. import exceptions as e
from .._whoami import IdentityInfo
from .text import (
    Terminal,
    as_text,
    escaped,
    escaped_but_styles,
    escaped_lines,
    instant,
    is_terminal,
    terminal_of,
    to_json,
)

# 2 is argparse's own, 70 is EX_SOFTWARE of sysexits.h, 130 and 141 are what shells give for SIGINT and SIGPIPE.
FOUND, USAGE, VAULT, OUTPUT, FAULT, INTERRUPTED, READER_GONE = 1, 2, 9, 10, 70, 130, 141
EXIT_CODES: dict[type[e.ImdsError], int] = {
    e.ImdsUnavailableError: 3,
    e.IdentityUnavailableError: 4,
    e.IdentityMismatchError: 5,
    e.ImdsRequestError: 6,
    e.ImdsThrottledError: 7,
    e.ImdsServiceError: 8,
}


# How what the library calls an argument is spelled by those who typed a command; the first that fits counts. Programs
# share tokens as well, and not every command does.
_IN_A_SHELL = {
    "client_id": "--client-id",
    "object_id": "--object-id",
    "resource_id": "--resource-id",
    "require_system_assigned=True": "--require-system-assigned",
    "require_system_assigned": "--require-system-assigned",
    "endpoint must": "--endpoint must",
    "timeout must": "--timeout must",
    "shared_cache=True needs": "--shared-cache needs",
    "shared_cache=True": "shared_cache=True, or --shared-cache of `azure-imds token`, `whoami` and `secret`",
    "wait_for_identity waits": "`azure-imds wait` waits",
}


@dataclass(frozen=True)
class Result:
    """What a command found out.

    Attributes:
        facts: For `--json`.
        text: For people; a function where the layout depends on the terminal.
        code: The exit code.
        exact: Text that is written as it is, such as the value of a secret; escaped only for a terminal.
    """

    facts: dict[str, Any]
    text: str | Callable[[Terminal], str] = ""
    code: int = 0
    exact: bool = False


class CommandError(Exception):
    """A command cannot do its work, for a reason that has no class of its own."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class OutputError(Exception):
    """Standard output takes no more: it is closed, or its disk is full."""


class ReaderGoneError(Exception):
    """The reader of standard output ended first, as `head -1` does. That is no error."""


def show_result(result: Result, *, as_json: bool) -> None:
    """Print what a command found out.

    Raises:
        OutputError: Standard output did not take all of it.
        ReaderGoneError: Its reader has ended.
    """
    if as_json:
        if result.facts:
            show(to_json(result.facts))
        return
    if not isinstance(result.text, str):
        _write(sys.stdout, f"{escaped_but_styles(result.text(terminal_of(sys.stdout)))}\n", "backslashreplace")
    elif result.exact and not is_terminal(sys.stdout):
        if result.text:
            _write_exactly(f"{result.text}\n")
    elif result.text:
        show(result.text)


def show(text: str) -> None:
    """Print text on standard output at once, so that it is known whether it arrived. Control characters are escaped.

    Raises:
        OutputError: Standard output did not take it.
        ReaderGoneError: Its reader has ended.
    """
    _write(sys.stdout, f"{escaped_lines(text)}\n", "backslashreplace")


def _write_exactly(text: str) -> None:
    try:
        _write(sys.stdout, text, "strict")
    except UnicodeEncodeError as error:
        raise OutputError(
            f"the encoding of standard output, {error.encoding}, lacks a character of the result: use --json, or set "
            "PYTHONIOENCODING=utf-8"
        ) from None


def _write(stream: TextIO | None, text: str, errors: str) -> None:
    if stream is None:
        raise OutputError("standard output cannot be written: it is closed")
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, errors).decode(encoding))
        stream.flush()
    except UnicodeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: it was closed in this process
        _drop(stream)
        # Windows says EINVAL of a pipe without reader, https://bugs.python.org/issue35754.
        gone = (errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)
        if isinstance(error, OSError) and error.errno in gone:
            raise ReaderGoneError from error
        reason = error.strerror if isinstance(error, OSError) else "it is closed"
        raise OutputError(f"standard output cannot be written: {reason}") from error


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds to nowhere: Python would try to write it as it ends, and fail in its own way."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(message: str) -> None:
    """Print a message on standard error. Where that cannot be written, the exit code has to do."""
    prefix = terminal_of(sys.stderr).paint("azure-imds:", "bad")
    _write_error(f"{prefix} {escaped_lines(message)}\n")


def note(message: str) -> None:
    """Print progress, or something worth knowing, on standard error."""
    _write_error(escaped_lines(f"azure-imds: {message}\n"))


def _write_error(text: str) -> None:
    with suppress(OutputError, ReaderGoneError):
        _write(sys.stderr, text, "backslashreplace")


class Progress:
    """What a waiting command waits for: on one line of a terminal, which moves; elsewhere a line whenever it changes.

    Args:
        quiet: Say nothing.
    """

    _FRAMES = "|/-\\"
    _EVERY = 0.25  # seconds between two frames

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._width = None if os.environ.get("TERM") == "dumb" else terminal_of(sys.stderr).width  # it cannot erase
        self._reason = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._width is not None and not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()

    def tell(self, reason: str) -> None:
        """Write why it still lasts."""
        if self._width is None and not self._quiet and reason != self._reason:
            note(f"waiting: {reason}")
        self._reason = reason

    def _draw(self) -> None:
        assert self._width is not None
        started = time.monotonic()
        for frame in itertools.cycle(self._FRAMES):
            line = escaped(f"{frame} waiting {time.monotonic() - started:.0f} s: {self._reason}")
            _write_error(f"\r\x1b[K{line[: self._width - 1]}")  # EL: erase to the end of the line (ECMA-48)
            if self._ended.wait(self._EVERY):
                _write_error("\r\x1b[K")
                return


class LogHandler(logging.Handler):
    """What is logged, for `--verbose`, in the form of a program."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            note(f"{record.levelname.lower()}: {self.format(record)}")
        except Exception:
            self.handleError(record)


def in_a_shell(text: str) -> str:
    """Put words of this package, such as a hint, in terms of the options that a command has."""
    return re.sub(rf"\b(?:{'|'.join(_IN_A_SHELL)})\b", lambda found: _IN_A_SHELL[found[0]], text)


def message_of(error: e.ImdsError) -> str:
    """Return what went wrong in the terms of the command line; what IMDS said stays as it is."""
    said, hint = str(error), error.hint
    return said.removesuffix(hint) + in_a_shell(hint) if hint and said.endswith(hint) else said


def facts_of(error: e.ImdsError) -> dict[str, Any]:
    """Return everything that an error holds, in a form that JSON has."""
    names = (
        "status", "error_code", "error_description", "endpoint", "identity", "resource", "attempts", "elapsed",
        "request_id", "client_request_id", "hint",
    )  # fmt: skip
    facts = {name: getattr(error, name) for name in names}
    hint = error.hint and in_a_shell(error.hint)
    return {"error": type(error).__name__, "message": message_of(error), **facts, "hint": hint}


def identity_rows(identity: IdentityInfo) -> dict[str, object]:
    """Return what is shown of an identity."""
    rows: dict[str, object] = {
        "client ID": identity.client_id,
        "object ID": identity.object_id,
        "tenant ID": identity.tenant_id,
        "resource ID": identity.resource_id,
        "audience": identity.audience,
        "issued on": _time_of(identity.claims, "iat", identity.issued_on),
        "expires on": _time_of(identity.claims, "exp", identity.expires_on),
    }
    # In tokens of people: https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
    for claim in ("upn", "unique_name"):
        if isinstance(identity.claims.get(claim), str):
            rows.setdefault("user", identity.claims[claim])
    return {name: "not in the token" if value is None else value for name, value in rows.items()}


def _time_of(claims: Mapping[str, object], claim: str, seconds: int | None) -> str | None:
    if seconds is not None:
        return instant(seconds)
    return f"{as_text(claims[claim])}, which is no time in seconds" if claim in claims else None
