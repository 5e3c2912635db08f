"""A request under way, shared by all who wait for it, and how it can end."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

from ._freshness import NEVER
from .exceptions import ImdsServiceError, ImdsUnavailableError, let_chains_go_on

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._configuration import Configuration
    from ._freshness import Slot


class Outcome(NamedTuple):
    """How a flight ended: with a token and the clock's reading at its expiry, or with an error."""

    access_token: str = ""
    expires_at: float = NEVER
    error: BaseException | None = None
    absent: bool = False  # nothing listens there: worth remembering
    out_of_time: bool = False  # somebody with more time might have succeeded

    def __repr__(self) -> str:
        return f"Outcome(error={self.error!r})"


class Flight(NamedTuple):
    """An exchange under way. Its future never fails and cannot be cancelled: whoever waits may leave, it goes on."""

    future: Future[Outcome | None]  # None: it never set out, since the caller who meant to start it was interrupted
    started: float
    deadline: float
    forced: bool
    troubles: list[BaseException]  # the errors of its attempts so far, for callers who leave before it ends


def no_answer(slot: Slot, wish: Configuration) -> BaseException:
    cls = ImdsServiceError if slot.endpoint.seen else ImdsUnavailableError
    return cls(
        f"No token for {slot.resource}, asked of {slot.endpoint.url} as {slot.identity}: no whole answer within "
        f"{wish.timeout:g} s. Whatever listens there is slow, hung or not IMDS.",
        endpoint=slot.endpoint.url,
        identity=str(slot.identity),
        resource=slot.resource,
        elapsed=wish.timeout,
        hint="Try again later, or check what listens at this address.",
    )


def own_copy(error: BaseException) -> BaseException:
    """Give each caller an exception of its own: one instance raised twice would mix their tracebacks."""
    let_chains_go_on(error)
    try:
        return copy.copy(error)
    except Exception:  # a user's hook may raise what cannot be copied
        return error
