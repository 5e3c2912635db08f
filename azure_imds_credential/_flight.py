"""A request under way, shared by all who wait for it, and how it can end."""

import copy
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from ._endpoint import GRACE
from ._freshness import NEVER
from .exceptions import IdentityUnavailableError, ImdsError, ImdsServiceError, ImdsUnavailableError, let_chains_go_on

if TYPE_CHECKING:
    from ._configuration import Configuration
    from ._freshness import Slot


THREAD_NAME = "azure-imds-credential"

# Seconds.
ASK_FOR_IDENTITY_EVERY = 5.0  # while a caller waits for an identity to arrive
ASK_AFTER_DEAD_TOKEN = 0.5
FORCE_EVERY = 30.0  # callers that force a refresh within them share one

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
    """An exchange under way. Whoever waits for it may leave: it goes on.

    The lists are shared by all who have the flight. They are only appended to and read, which takes no lock: whoever
    waits may be interrupted at any moment, and would keep it for good. (So no future of concurrent.futures.)
    """

    landed: list[Outcome | None]  # how it ended, once it has; None when whoever started it was interrupted first
    bells: list[Callable[[], object]]  # rung when it has landed, one for each who waits
    started: float
    deadline: float
    forced: bool
    bypass: bool  # IMDS is asked to bypass its own cache
    troubles: list[BaseException]  # the errors of its attempts so far, for callers who leave before it ends


def no_answer(slot: "Slot", wish: "Configuration", reason: str = "") -> ImdsError:
    """Make the error of a caller whose time ended before anything could be said of the answer."""
    cls = ImdsServiceError if slot.endpoint.gate.answered else ImdsUnavailableError
    reason = reason or f"No whole answer within {wish.timeout:g} s: whatever listens there is slow, hung or not IMDS"
    hint = "Try again later, or check what listens at this address."
    error = cls(
        f"No token for {slot.resource}, asked of {slot.endpoint.url} as {slot.identity}. {reason}. {hint}",
        endpoint=slot.endpoint.url,
        identity=str(slot.identity),
        resource=slot.resource,
        elapsed=wish.timeout,
        hint=hint,
    )
    error._came_back = reason
    return error


def must_ask_anew(slot: "Slot", now: float, patient_until: float) -> bool:
    """Say whether a caller who wants a newer token is not served by what another's forced refresh brought just now.

    Raises:
        ImdsError: It brought an error that is this caller's too.
    """
    if now >= slot.forced_at + FORCE_EVERY:
        return True
    if slot.forced_error is not None and not _is_worth_patience(slot.forced_error, now, patient_until):
        raise own_copy(slot.forced_error)
    return slot.forced_error is not None


def pause_for_identity(slot: "Slot", now: float, patient_until: float) -> float:
    """Say for how many seconds nobody need ask again, after IMDS said to whomever that there is no such identity."""
    return max(0.0, min(slot.no_identity_at + ASK_FOR_IDENTITY_EVERY, patient_until) - now)


def failure(
    slot: "Slot",
    wish: "Configuration",
    flight: Flight,
    outcome: Outcome | None,
    now: float,
    deadline: float,
    patient_until: float,
) -> tuple[BaseException, float]:
    """Say what a flight that brought this caller no token comes to.

    Returns:
        The error, and the seconds until it is worth asking again; infinite when it is not.
    """
    if outcome is None:  # it overran its time, or who led it was interrupted
        return (flight.troubles[-1] if flight.troubles else no_answer(slot, wish)), 0.0
    if outcome.error is None:
        # The machine slept while the answer came. Not at once, in case its tokens are always dead.
        return no_answer(slot, wish), ASK_AFTER_DEAD_TOKEN
    if _is_worth_patience(outcome.error, now, patient_until):
        return outcome.error, pause_for_identity(slot, now, patient_until)
    if outcome.out_of_time and deadline > flight.deadline + 5 * GRACE:
        return outcome.error, outcome.retry_after  # who led it had less time than we have
    return outcome.error, math.inf


def _is_worth_patience(error: BaseException, now: float, patient_until: float) -> bool:
    return isinstance(error, IdentityUnavailableError) and now < patient_until  # it may arrive yet


def own_copy(error: BaseException) -> BaseException:
    """Give each caller an exception of its own: one instance raised twice would mix their tracebacks."""
    let_chains_go_on(error)
    try:
        return copy.copy(error)
    except Exception:  # a user's hook may raise what cannot be copied
        return error
