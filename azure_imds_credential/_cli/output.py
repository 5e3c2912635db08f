"""What the commands of `azure-imds` give back: facts, the same for people, and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .. import exceptions as e
from .._whoami import IdentityInfo

FOUND, USAGE, VAULT, OUTPUT, INTERRUPTED = 1, 2, 9, 10, 130  # 2 is argparse's own; 130 is what shells give for SIGINT
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
    "endpoint must": "--endpoint must",
    "timeout must": "--timeout must",
    "shared_cache=True needs": "--shared-cache needs",
    "shared_cache=True": "shared_cache=True, or --shared-cache of `azure-imds token`, `whoami` and `secret`",
    "wait_for_identity waits": "`azure-imds wait` waits",
}


@dataclass(frozen=True)
class Result:
    """What a command found out."""

    facts: dict[str, Any]
    text: str
    code: int = 0


class CommandError(Exception):
    """A command cannot do its work, for a reason that has no class of its own."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class OutputError(Exception):
    """Standard output takes no more: a full disk, or a reader that has gone."""


def show(text: str) -> None:
    """Print a result at once, so that it is known whether it arrived.

    Raises:
        OutputError: It did not.
    """
    try:
        print(text, flush=True)  # noqa: T201 # its job
    except OSError as error:
        # Python would try once more as it ends, and say so in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def in_a_shell(text: str) -> str:
    """Put words of this package, such as a hint, in terms of the options that a command has."""
    return re.sub(rf"\b(?:{'|'.join(_IN_A_SHELL)})\b", lambda found: _IN_A_SHELL[found[0]], text)


def message_of(error: e.ImdsError) -> str:
    """Say what went wrong to those who typed a command: the hint in their terms, the words of others as they are."""
    said, hint = str(error), error.hint
    return said.removesuffix(hint) + in_a_shell(hint) if hint and said.endswith(hint) else said


def facts_of(error: e.ImdsError) -> dict[str, Any]:
    """Say everything an error knows, in a form that JSON has."""
    names = (
        "status", "error_code", "error_description", "endpoint", "identity", "resource", "attempts", "elapsed",
        "request_id", "hint",
    )  # fmt: skip
    facts = {name: getattr(error, name) for name in names}
    hint = error.hint and in_a_shell(error.hint)
    return {"error": type(error).__name__, "message": message_of(error), **facts, "hint": hint}


def identity_rows(identity: IdentityInfo) -> dict[str, object]:
    """What of an identity is worth a line."""
    rows: dict[str, object] = {
        "client ID": identity.client_id,
        "object ID": identity.object_id,
        "tenant ID": identity.tenant_id,
        "resource ID": identity.resource_id,
        "audience": identity.audience,
        "issued on": identity.issued_on and instant(identity.issued_on),
        "expires on": identity.expires_on and instant(identity.expires_on),
    }
    return {name: "not in the token" if value is None else value for name, value in rows.items()}


def table(rows: Mapping[str, object]) -> str:
    """Align names and values."""
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def instant(epoch_seconds: float) -> str:
    """Write a time as people read it, in UTC."""
    return str(datetime.fromtimestamp(epoch_seconds, timezone.utc).replace(microsecond=0))
