"""A request under way, shared by all who wait for it, and how it can end."""

import copy
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from ._freshness import NEVER
from .exceptions import ImdsError, ImdsServiceError, ImdsUnavailableError, let_chains_go_on

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._configuration import Configuration
    from ._freshness import Slot


THREAD_NAME = "azure-imds-credential"

# The one line that an exchange logs.
LINE = (
    "IMDS: identity=%(imds_identity)s resource=%(imds_resource)s outcome=%(imds_outcome)s "
    "attempts=%(imds_attempts)d milliseconds=%(imds_milliseconds)d expires_in=%(imds_expires_in)s"
)
REFRESH_FAILED = "refreshing a token failed, the held one serves for %d s more; next try in %d s: %s"

# The flight that the running code belongs to. Hooks, policies and log handlers of a user run in one too.
current_flight: ContextVar["Flight | None"] = ContextVar("current_flight", default=None)


class Outcome(NamedTuple):
    """How a flight ended: with a token and the clock's reading at its expiry, or with an error."""

    access_token: str = ""
    expires_at: float = NEVER
    error: BaseException | None = None
    absent: bool = False  # nothing listens there: worth remembering
    out_of_time: bool = False  # somebody with more time might have succeeded
    retry_after: float = 0.0  # seconds that the server asked for, of whoever asks next
    facts: Mapping[str, object] | None = None  # for the log

    def __repr__(self) -> str:
        return f"Outcome(error={self.error!r})"


class Flight(NamedTuple):
    """An exchange under way. Its future never fails and cannot be cancelled: whoever waits may leave, it goes on."""

    future: "Future[Outcome | None]"  # gives None when whoever started it was interrupted first
    started: float
    deadline: float
    forced: bool
    troubles: list[BaseException]  # the errors of its attempts so far, for callers who leave before it ends


def no_answer(slot: "Slot", wish: "Configuration", reason: str = "") -> ImdsError:
    """Make the error of a caller whose time ended before anything could be said of the answer."""
    cls = ImdsServiceError if slot.endpoint.seen else ImdsUnavailableError
    reason = reason or f"No whole answer within {wish.timeout:g} s: whatever listens there is slow, hung or not IMDS"
    hint = "Try again later, or check what listens at this address."
    return cls(
        f"No token for {slot.resource}, asked of {slot.endpoint.url} as {slot.identity}. {reason}. {hint}",
        endpoint=slot.endpoint.url,
        identity=str(slot.identity),
        resource=slot.resource,
        elapsed=wish.timeout,
        hint=hint,
    )


def own_copy(error: BaseException) -> BaseException:
    """Give each caller an exception of its own: one instance raised twice would mix their tracebacks."""
    let_chains_go_on(error)
    try:
        return copy.copy(error)
    except Exception:  # a user's hook may raise what cannot be copied
        return error
