"""Errors of calls: how they begin, how they are copied, and those for which there is no response to tell of."""

from __future__ import annotations

import copy
import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import walk_tb
from typing import Any

from ._request import TokenKey
from .exceptions import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError

# What this machine may lack: descriptors, ports, buffers, memory, space. That says nothing of IMDS.
SHORTAGES = frozenset(
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "ENOSPC", "EUSERS", "EDQUOT")
    if hasattr(errno, name)
)
UNSENT_HINT = "Raise timeout, or ask earlier or for fewer tokens at once: this says nothing of IMDS."
SHORTAGE_HINT = "Find out what uses them up on this machine, or raise the limit: this says nothing of IMDS."


def in_words(error: BaseException, number: int) -> str:
    """Return the class of an error and what an error number of the operating system means."""
    return f"{type(error).__name__}, {errno.errorcode.get(number, str(number))}: {os.strerror(number)}"


def shortage_in(error: BaseException) -> str | None:
    """Return the shortage of this machine that made an import fail; None when the error tells of none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError):
            return in_words(found, errno.ENOMEM)
        for number in SHORTAGES:
            # The dynamic loader raises an ImportError that has the reason in its text alone.
            in_text = isinstance(found, ImportError) and os.strerror(number) in str(found)
            if in_text or (isinstance(found, OSError) and found.errno == number):
                return in_words(found, number)
        found = found.__cause__ or found.__context__
    return None


def place_of(error: BaseException) -> str:
    """Return where an error was raised, for a log: callers get it without its frames. "" when it was not raised."""
    steps = list(walk_tb(error.__traceback__))
    if not steps:
        return ""
    frame, line = steps[-1]
    return f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"


def request_summary(resource: str | None, endpoint: str | None, identity: str | None) -> str:
    """Return how the message of an error begins: what was asked, of which endpoint, and as which identity."""
    return f"No token for {resource}, asked of {endpoint} as {identity}"


def timeout_error(key: TokenKey, timeout: float, *, seen: bool, unsent_because: str | None) -> ImdsError:
    """Return the error of a caller whose time ended before there was a response.

    Args:
        key: What was asked for.
        timeout: Seconds that the call had.
        seen: The endpoint answered as IMDS before.
        unsent_because: Why no attempt was sent; None where one was.
    """
    if unsent_because is not None:
        return unsent_error(key, unsent_because, timeout)
    reason = f"No complete response within {timeout:g} s: what listens there is slow, hung or not IMDS"
    hint = "Try again later, or check what listens at this address."
    return local_error(key, reason, hint, seen=seen, elapsed=timeout)


def unsent_error(key: TokenKey, because: str, elapsed: float) -> ImdsError:
    """Return the error of a call whose time ended before anything was sent: nothing is known of IMDS, a chain ends."""
    return local_error(key, f"No request could be sent in time: {because}", UNSENT_HINT, elapsed=elapsed)


def local_error(key: TokenKey, reason: str, hint: str, *, seen: bool = True, elapsed: float = 0.0) -> ImdsError:
    """Return the error of a call for which there is no response to tell of.

    Args:
        key: What was asked for.
        reason: Why there is no token.
        hint: What to do next.
        seen: The endpoint answered as IMDS before, or the reason says nothing of the endpoint: a chain ends here.
        elapsed: Seconds that the call took.
    """
    cls = ImdsServiceError if seen else ImdsUnavailableError
    return error_of(cls, key, reason, hint, separator=". ", elapsed=elapsed)


def error_of(
    cls: type[ImdsError],
    key: TokenKey,
    reason: str,
    hint: str,
    *,
    separator: str = ": ",
    excerpt: str = "",
    **facts: Any,
) -> ImdsError:
    """Return an error whose message tells what was asked of which endpoint, what came back, and what to do next.

    Args:
        cls: Its class.
        key: What was asked for.
        reason: Why there is no token.
        hint: What to do next.
        separator: What stands before the reason.
        excerpt: The beginning of a response that is not IMDS's.
        **facts: Its other attributes.
    """
    identity = str(key.identity)
    message = f"{request_summary(key.resource, key.url, identity)}{separator}{reason}. {hint}"
    error = cls(message, endpoint=key.url, identity=identity, resource=key.resource, hint=hint, **facts)
    # No arguments of the constructor: its signature is public, and these are for `azure-imds` alone.
    error._reason, error._excerpt = reason, excerpt
    return error


def remembered(error: ImdsError, seconds: float, *, identity: str, resource: str) -> ImdsError:
    """Return a copy of an error that says how old it is.

    Args:
        error: What was found out before, maybe for another identity or resource.
        seconds: How long ago.
        identity: Which identity is asked for now.
        resource: What the token is for now.
    """
    again = copy.copy(error)
    again.identity, again.resource = identity, resource
    before = request_summary(error.resource, error.endpoint, error.identity)
    message = error.message.replace(before, request_summary(resource, error.endpoint, identity), 1)
    again.message = again.exc_msg = f"{message} (This is remembered: it was found out {seconds:.0f} s ago.)"
    again.args = (again.message,)
    return again


def copy_of(error: BaseException) -> BaseException:
    """Return a copy for one caller: an instance that is raised twice would mix the tracebacks."""
    join_credential_unavailable(error)
    try:
        again = copy.copy(error)
        # A user's hook may raise what copies badly: a copy runs `__init__` again, over the text that it made before.
        is_faithful = type(again) is type(error) and again.args == error.args
    except Exception:  # or what cannot be copied at all
        return error
    return again if is_faithful else error


def join_credential_unavailable(error: BaseException) -> None:
    """Make azure-identity, where it is loaded, recognise the two errors after which a chain tries the next credential.

    The class itself is changed: an error of a class that is made while raising could not be pickled. azure-identity is
    no dependency of this package, so its class cannot be a base from the start.
    """
    identity_package = sys.modules.get("azure.identity")
    unavailable = getattr(identity_package, "CredentialUnavailableError", None)
    if unavailable is None:
        return
    for cls in (ImdsUnavailableError, IdentityUnavailableError):
        if isinstance(error, cls) and not issubclass(cls, unavailable):
            cls.__bases__ = (ImdsError, unavailable)


@contextmanager
def reporting() -> Iterator[None]:
    """Report an error of a log filter or an observer as one of this thread: no caller loses its token for it.

    Logging handles errors of handlers, and lets through what a filter raises.
    """
    try:
        yield
    except Exception as error:
        told = (type(error), error, error.__traceback__, threading.current_thread())
        with suppress(Exception, SystemExit):  # the hook is the user's
            threading.excepthook(threading.ExceptHookArgs(told))
