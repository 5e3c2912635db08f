"""The slots of this process, and the one way to fill them.

One slot per (endpoint, identity, resource), one flight per slot, for threads and tasks together. A flight is an
exchange on a thread of its own, so that a caller can leave at its deadline whatever the server does.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import random
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NamedTuple

from . import _fork
from ._endpoint import Endpoint
from ._freshness import LONGEST_WAIT, Phase, boot_clock, next_refresh_after, phase
from ._identity import Identity
from ._slot import Flight, Outcome, Slot
from .exceptions import IdentityUnavailableError, ImdsServiceError, ImdsUnavailableError, let_chains_go_on

if TYPE_CHECKING:
    from concurrent.futures import Future

ASK_FOR_IDENTITY_EVERY = 5.0  # seconds, while a caller waits for an identity to arrive
FORCE_EVERY = 30.0  # seconds: callers that force a refresh within them share one
GRACE = 0.1  # seconds a caller gives a flight that is about to end, so that it can say why

_logger = logging.getLogger("azure_imds_credential")


class Wish(NamedTuple):
    """What one caller wants. Times are seconds."""

    timeout: float
    wait_for_identity: float
    forced: bool
    ask: Callable[[Flight], Outcome]


class TokenCache:
    """Slots, and the one way to fill them."""

    def __init__(
        self,
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.wall_clock, self.random, self.sleep = clock, wall_clock, rand, sleep
        self._slots: dict[tuple[str, Identity, str], Slot] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()
        _fork.register(self)

    def begin_anew(self) -> None:
        """Keep the tokens in a forked child; locks and flights stayed with the parent's threads."""
        self._lock = threading.Lock()
        for slot in self._slots.values():
            slot.plain = slot.forced = None
        for endpoint in self._endpoints.values():
            endpoint.begin_anew()

    def slot(self, url: str, identity: Identity, resource: str) -> Slot:
        """Return the one slot of this key."""
        with self._lock:
            endpoint = self._endpoints.get(url) or self._endpoints.setdefault(url, Endpoint(url, self.clock))
            key = (url, identity, resource)
            return self._slots.get(key) or self._slots.setdefault(key, Slot(endpoint))

    def forget(self) -> None:
        """Hold no token, and know nothing of any endpoint."""
        with self._lock:
            for slot in self._slots.values():
                slot.clear()
                slot.plain = slot.forced = None
                slot.stored_at = self.clock()  # what flights under way bring is not kept
            for endpoint in self._endpoints.values():
                endpoint.seen, endpoint.absence = False, None

    def steps(self, slot: Slot, wish: Wish) -> Generator[tuple[Future[Outcome | None], float], None, None]:
        """Say what to wait for, and for how long at most, until the slot has what the caller wants.

        The caller does the waiting, on a thread or in an event loop, and nothing else: so both colours tell one story.

        Yields:
            A future that need not succeed, and seconds.

        Raises:
            ImdsError: There is no token to be had in time.
        """
        begun = self.clock()
        deadline, patient_until = begun + wish.timeout, begun + min(wish.timeout, wish.wait_for_identity)
        courteous = True
        while True:
            now = self.clock()
            forced = wish.forced and not (now < slot.forced_at + FORCE_EVERY and now < slot.expires_at)
            held = phase(now, slot.refresh_at, slot.expires_at)
            if held is Phase.EXPIRED or forced:
                absence = slot.endpoint.known_absence()
                if absence:
                    raise _own_copy(absence)
                flight = self._join(slot, wish, deadline, forced=forced)
                yield flight.future, min(deadline, flight.deadline) + GRACE - now
                if not flight.future.done():
                    if self.clock() < deadline:
                        continue  # the flight overran its own deadline: the next one replaces it
                    raise _own_copy(flight.last_error or self._never_answered(slot, wish))
                outcome, now = flight.future.result(), self.clock()
                if outcome is None or (outcome.out_of_time and deadline > flight.deadline + 5 * GRACE):
                    continue  # who led it was interrupted, or had less time than we have
                if outcome.error is None:
                    if slot.token is None:
                        continue  # everything was forgotten meanwhile
                    return
                if not isinstance(outcome.error, IdentityUnavailableError) or now >= patient_until:
                    raise _own_copy(outcome.error)
                yield type(flight.future)(), min(ASK_FOR_IDENTITY_EVERY, patient_until - now)
            else:
                if held is Phase.FRESH or (now < slot.retry_at and slot.plain is None):
                    wait = 0.0
                else:
                    flight = self._join(slot, wish, deadline, forced=False)
                    wait = min(flight.started + LONGEST_WAIT, deadline) - now
                if held is not Phase.CLOSING or wait <= 0 or not courteous:
                    if now >= slot.fresh_until:
                        with self._lock:
                            slot.publish(now, self.wall_clock())
                    return
                courteous = False
                yield flight.future, wait

    def _join(self, slot: Slot, wish: Wish, deadline: float, *, forced: bool) -> Flight:
        """Return the flight under way, or set out on a new one when there is none or it overran its time."""
        new: Flight | None = None
        try:
            with self._lock:
                now = self.clock()
                flight = slot.forced if forced else slot.plain
                if flight is None or now >= flight.deadline + GRACE:
                    flight = new = Flight(now, deadline, forced=forced)
                    if forced:
                        slot.forced = new
                    else:
                        slot.plain = new
            if new is not None:
                self._launch(slot, new, wish)
        except BaseException:
            if new is not None:
                self._settle(slot, new, None)
            raise
        return flight

    def _launch(self, slot: Slot, flight: Flight, wish: Wish) -> None:
        run, args = contextvars.copy_context().run, (self._fly, slot, flight, wish)
        try:
            threading.Thread(target=run, args=args, name="azure-imds-credential", daemon=True).start()
        except RuntimeError:  # no thread can start, as when the interpreter is shutting down
            self._fly(slot, flight, wish)

    def _fly(self, slot: Slot, flight: Flight, wish: Wish) -> None:
        try:
            outcome = wish.ask(flight)
        except BaseException as error:  # a user's hook may raise anything, and callers are waiting for it
            # Frames of the exchange hold answers, and answers hold tokens.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            outcome = Outcome(error=error)
        self._settle(slot, flight, outcome)

    def _settle(self, slot: Slot, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight: keep what it brought, and wake whoever waits."""
        with self._lock:
            if flight.future.done():
                return
            now = self.clock()
            if flight.forced and slot.forced is flight:
                slot.forced = None
            if not flight.forced and slot.plain is flight:
                slot.plain = None
            kept = now < slot.expires_at
            if outcome is None:
                pass
            elif outcome.error is not None:
                slot.failures += 1
                slot.retry_at = next_refresh_after(slot.failures, now, slot.expires_at)
            # A token that arrived after this flight set out is the newer one, however this one ends.
            elif flight.forced or slot.stored_at <= flight.started:
                slot.hold(outcome, now, self.wall_clock, self.random)
                if flight.forced:
                    slot.forced_at = now
        if outcome is not None and outcome.absent and isinstance(outcome.error, ImdsUnavailableError):
            slot.endpoint.note_absence(outcome.error)
        flight.future.set_result(outcome)
        if outcome is not None and outcome.error is not None and kept:
            _logger.warning(
                "refreshing a token failed, the held one serves for %d s more; next try in %d s: %s",
                slot.expires_at - now,
                slot.retry_at - now,
                outcome.error,
            )

    def _never_answered(self, slot: Slot, wish: Wish) -> BaseException:
        cls = ImdsServiceError if slot.endpoint.seen else ImdsUnavailableError
        return cls(
            f"No token: {slot.endpoint.url} did not finish an answer within {wish.timeout:g} s. "
            "Whatever listens there is slow, hung or not IMDS.",
            endpoint=slot.endpoint.url,
            elapsed=wish.timeout,
            hint="Try again later, or check what listens at this address.",
        )


def _own_copy(error: BaseException) -> BaseException:
    """Give each caller an exception of its own: one instance raised twice would mix their tracebacks."""
    let_chains_go_on(error)
    return copy.copy(error)


process_cache = TokenCache()


def forget_tokens() -> None:
    """Empty the cache that the credentials of this process share, for tests that must not see each other's tokens."""
    process_cache.forget()
