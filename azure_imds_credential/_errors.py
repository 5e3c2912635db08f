"""Errors of calls: how they begin, how they are copied, and those for which there is no response to tell of."""

from __future__ import annotations

import copy
import errno
import os
import sys
import threading
from traceback import walk_tb

from ._request import TokenKey
from .exceptions import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError

# What this machine may lack: descriptors, ports, buffers, memory, space. That says nothing of IMDS.
SHORTAGES = frozenset(
    getattr(errno, name)
    for name in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "ENOSPC", "EUSERS", "EDQUOT")
    if hasattr(errno, name)
)
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
    """Return where an error was raised, "" when it was not."""
    steps = list(walk_tb(error.__traceback__))
    if not steps:
        return ""
    frame, line = steps[-1]
    return f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"


def request_summary(resource: str | None, endpoint: str | None, identity: str | None) -> str:
    """Return how the message of an error begins: what was asked, of which endpoint, and as which identity."""
    return f"No token for {resource}, asked of {endpoint} as {identity}"


def timeout_error(key: TokenKey, timeout: float, *, seen: bool) -> ImdsError:
    """Return the error of a caller whose time ended before there was a response.

    Args:
        key: What was asked for.
        timeout: Seconds that the call had.
        seen: The endpoint answered as IMDS before.
    """
    reason = f"No complete response within {timeout:g} s: what listens there is slow, hung or not IMDS"
    hint = "Try again later, or check what listens at this address."
    return local_error(key, reason, hint, seen=seen, elapsed=timeout)


def local_error(key: TokenKey, reason: str, hint: str, *, seen: bool = True, elapsed: float = 0.0) -> ImdsError:
    """Return the error of a call for which there is no response to tell of.

    Args:
        key: What was asked for.
        reason: Why there is no token.
        hint: What to do next.
        seen: The endpoint answered as IMDS before, or the reason says nothing of the endpoint: a chain ends here.
        elapsed: Seconds that the call took.
    """
    error = (ImdsServiceError if seen else ImdsUnavailableError)(
        f"{request_summary(key.resource, key.url, str(key.identity))}. {reason}. {hint}",
        endpoint=key.url,
        identity=str(key.identity),
        resource=key.resource,
        elapsed=elapsed,
        hint=hint,
    )
    error._reason = reason
    return error


def remembered(error: ImdsError, seconds: float, *, identity: str, resource: str) -> ImdsError:
    """Return a copy of an error that says how old it is.

    Args:
        error: What was found out before, maybe for another identity or resource.
        seconds: How long ago.
        identity: Which identity is asked for now.
        resource: What the token is for now.
    """
    join_credential_unavailable(error)
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


def report(error: Exception) -> None:
    """Report an error of a log handler or an observer as one of this thread: no caller loses its token for it."""
    told = (type(error), error, error.__traceback__, threading.current_thread())
    threading.excepthook(threading.ExceptHookArgs(told))
