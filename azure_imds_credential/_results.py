"""What the commands of `azure-imds` give back: facts, the same for people, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from . import exceptions as e
from ._claims import IdentityInfo

FOUND, USAGE, VAULT, OUTPUT, INTERRUPTED = 1, 2, 9, 10, 130  # 2 is argparse's own; 130 is what shells give for SIGINT
EXIT_CODES: dict[type[e.ImdsError], int] = {
    e.ImdsUnavailableError: 3,
    e.IdentityUnavailableError: 4,
    e.IdentityMismatchError: 5,
    e.ImdsRequestError: 6,
    e.ImdsThrottledError: 7,
    e.ImdsServiceError: 8,
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


def facts_of(error: e.ImdsError) -> dict[str, Any]:
    """Say everything an error knows, in a form that JSON has."""
    names = (
        "status", "error_code", "error_description", "endpoint", "identity", "resource", "attempts", "elapsed",
        "request_id", "hint",
    )  # fmt: skip
    return {"error": type(error).__name__, "message": str(error), **{name: getattr(error, name) for name in names}}


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
