"""The tokens of this process, and the flights under way to fetch more.

One slot per (endpoint, identity, resource), one flight per slot, for threads and tasks together. A flight is an
exchange on a thread of its own, so that a caller can leave at its deadline whatever the server does.
"""

from __future__ import annotations

import contextvars
import logging
import math
import sys
import threading
from collections.abc import Generator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from . import _fork
from ._endpoint import GRACE, Endpoint, Gate
from ._flight import (
    FORCE_EVERY,
    LINE,
    REFRESH_FAILED,
    THREAD_NAME,
    Flight,
    Outcome,
    current_flight,
    failure,
    must_ask_anew,
    no_answer,
    own_copy,
    pause_for_identity,
)
from ._freshness import LONGEST_WAIT, Phase, Slot, World, phase
from .exceptions import IdentityUnavailableError

if TYPE_CHECKING:
    from ._configuration import Configuration
    from ._identity import Identity
    from ._shared_cache import Turn

REFRESH_SECONDS = 90.0  # what a refresh has while the held token serves: as a call has by default

_logger = logging.getLogger("azure_imds_credential")


class TokenCache:
    """Slots, and the one way to fill them."""

    def __init__(self, world: World | None = None, gates: dict[str, Gate] | None = None) -> None:
        self.world = world or World()
        self.clock = self.world.clock
        self._gates: dict[str, Gate] = {} if gates is None else gates
        self._slots: dict[tuple[str, Identity, str], Slot] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.RLock()  # a signal handler may ask for a token while this thread has it
        _fork.register(self)

    def apart(self) -> TokenCache:
        """Make another that takes turns with this one where it asks, and shares nothing else."""
        return TokenCache(self.world, self._gates)

    def begin_anew(self) -> None:
        """Keep the tokens in a forked child, under no lock; locks and flights stayed with the parent's threads."""
        self._lock = threading.RLock()
        for slot in self._slots.values():
            slot.plain = slot.forced = None
        for gate in self._gates.values():
            gate.begin_anew()

    def slot(self, url: str, identity: Identity, resource: str) -> Slot:
        """Return the one slot of this key."""
        with self._lock:
            slot = self._slots.get((url, identity, resource))
            if slot is None:
                slot = Slot()
                if url not in self._endpoints:
                    self._endpoints[url] = Endpoint(url, self._gates.setdefault(url, Gate()))
                slot.endpoint = self._endpoints[url]
                slot.identity, slot.resource = identity, resource
                self._slots[url, identity, resource] = slot  # last: a fork may come in between
            return slot

    def forget(self) -> None:
        """Hold no token, and know nothing of any endpoint."""
        with self._lock:
            for slot in self._slots.values():
                slot.clear(self.clock())
            for endpoint in self._endpoints.values():
                endpoint.seen, endpoint.absence = False, None
                endpoint.gate.answered = False
                endpoint.gate.starts.clear()

    def steps(
        self, slot: Slot, wish: Configuration, *, forced: bool
    ) -> Generator[tuple[Flight | None, float], None, None]:
        """Say what to wait for, and for how long at most, until the slot has what the caller wants.

        The caller does the waiting, on a thread or in an event loop, and nothing else: so both colours tell one story.

        Yields:
            A flight, or None for a mere pause, and seconds.

        Raises:
            ImdsError: There is no token to be had in time.
        """
        now = self.clock()
        deadline, patient_until = now + wish.timeout, now + wish.wait_for_identity
        asked, waited, no_identity, heeds_until = False, False, None, patient_until
        while True:
            now, news = self.clock(), slot.news
            force = forced and (asked or must_ask_anew(slot, now, heeds_until))
            # `phase` would say EXPIRED as well. Whoever reads how a first token comes about need not look there.
            held = phase(now, slot.refresh_at, slot.expires_at) if now < slot.expires_at else Phase.EXPIRED
            if held is Phase.EXPIRED or force:
                if slot.endpoint.absence and (absence := slot.endpoint.known_absence(now)):
                    raise own_copy(absence)
                if now < patient_until and (slot.forced if force else slot.plain) is None:
                    pause = pause_for_identity(slot, now, patient_until)
                    if 0 < pause < deadline - now:
                        heeds_until = math.inf  # what others were told before the pause will be old after it
                        yield None, pause
                        continue
                flight = self._join(slot, wish, deadline, news, forced=force)
                if flight is None:
                    continue  # another flight landed between our look and the lock
                asked = True
                yield flight, min(deadline, flight.deadline) + GRACE - now
                now = self.clock()
                if now >= flight.deadline:
                    slot.endpoint.gate.leave(flight)  # it overran its time: others may ask
                outcome = flight.landed[0] if flight.landed else None
                if now < slot.expires_at and not (force and (outcome is None or outcome.error)):
                    return  # what it brought, or what another flight brought meanwhile
                error, pause = failure(slot, wish, flight, outcome, now, deadline, patient_until)
                if isinstance(error, IdentityUnavailableError):
                    no_identity = error
                if now + pause >= deadline:
                    # That there is no such identity tells more than that the time was up for asking again.
                    said_something = outcome is not None and outcome.error is error and not outcome.out_of_time
                    raise own_copy(error if said_something or no_identity is None else no_identity)
                if pause:
                    yield None, pause
            else:
                flight = None
                if slot.plain is not None and slot.plain is current_flight.get():
                    return  # a hook or a log handler of the refresh itself: the held token is good enough for it
                if held is not Phase.FRESH and (slot.plain is not None or now >= slot.retry_at):
                    # A refresh in the background has its own time, not that of the caller who noticed.
                    flight = self._join(slot, wish, now + REFRESH_SECONDS, news, forced=False)
                    if flight is None:
                        continue
                seconds = 0.0 if flight is None else min(flight.started + LONGEST_WAIT, deadline) - now
                if flight is None or held is not Phase.CLOSING or seconds <= 0 or waited:
                    if flight is None and now >= slot.fresh_until:
                        self._follow_wall_clock(slot, now)
                    return
                waited = True
                yield flight, seconds

    def _follow_wall_clock(self, slot: Slot, now: float) -> None:
        """Tell callers of the held token by the wall clock as it is set now."""
        with self._lock:
            if slot.token is not None and now >= slot.fresh_until:
                slot.publish(slot.token.token, slot.refresh_at, slot.expires_at, now, self.world.wall_clock())

    def _join(self, slot: Slot, wish: Configuration, deadline: float, news: int, *, forced: bool) -> Flight | None:
        """Return the flight under way, or set out on a new one when there is none or it overran its time.

        None when a flight ended since the caller looked: it may need none now.
        """
        new = thread = None
        try:
            with self._lock:
                now = self.clock()
                flight = slot.forced if forced else slot.plain
                if flight is not None and now < flight.deadline + GRACE:
                    if flight is current_flight.get():
                        raise no_answer(slot, wish, "A hook or a log handler of the request itself asked for its token")
                    return flight
                if slot.news != news:
                    return None
                new = Flight([], [], now, deadline, forced, forced and now >= slot.forced_at + FORCE_EVERY, [])
                if forced:
                    slot.forced = new
                else:
                    slot.plain = new
            run, args = contextvars.copy_context().run, (self._fly, slot, wish, new)
            thread = threading.Thread(target=run, args=args, name=THREAD_NAME, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can start, as when the interpreter is shutting down
                self._fly(slot, wish, new)
        except BaseException:
            if new is not None and (thread is None or thread.ident is None):  # else it flies, for others to join
                self._settle(slot, new, None)
            raise
        return new

    def _fly(self, slot: Slot, wish: Configuration, flight: Flight) -> None:
        """Be the thread of a flight: see what other processes have, wait at the gate, ask, and keep what comes."""
        if flight.landed:
            return  # who set out was interrupted before this thread began
        gate, parent, was = slot.endpoint.gate, current_flight.get(), current_flight.set(flight)
        if parent is not None:
            gate.leave(parent)  # a hook of it waits for this one: five of them would keep the gate shut
        try:
            with self._turn(slot, flight) if wish.shared_cache else nullcontext() as turn:
                outcome = turn.outcome if turn else None
                if outcome is None:
                    if gate.places.acquire(blocking=False):  # as `enter` would, with less for a reader to walk
                        gate.inside[id(flight.landed)] = flight
                    elif not gate.enter(flight, self.clock):
                        raise no_answer(slot, wish)
                    loaded = f"{__package__}._exchange" in sys.modules
                    with _fork.imports, nullcontext() if loaded else _fork.rare_collections():
                        from . import _exchange
                    outcome = _exchange.ask(slot, turn.flight if turn else flight, wish.options, self.world)
                    if turn:
                        outcome = turn.share(outcome)
        except BaseException as error:  # a user's hook may raise anything, and callers are waiting for it
            # Frames of the exchange hold answers, and answers hold tokens.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            outcome = Outcome(error=error, out_of_time=self.clock() >= flight.deadline)
        current_flight.reset(was)
        self._settle(slot, flight, outcome)

    def _turn(self, slot: Slot, flight: Flight) -> Turn:
        with nullcontext() if f"{__package__}._shared_cache" in sys.modules else _fork.imports:
            from ._shared_cache import Turn
        return Turn(slot, flight, self.world)

    def _settle(self, slot: Slot, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight: keep what it brought, and wake whoever waits."""
        gate = slot.endpoint.gate
        if gate.inside.pop(id(flight.landed), None):  # as `leave` would, too
            gate.places.release()
        failed = False
        with self._lock:
            now = self.clock()
            slot.news += 1
            if slot.forced is flight:
                slot.forced = None
            if slot.plain is flight:
                slot.plain = None
            # A token that arrived after this flight set out is the newer one, however this one ends: unless IMDS was
            # asked to bypass its own cache.
            wanted = flight.started >= (slot.cleared_at if flight.forced else slot.stored_at)
            if outcome is not None and wanted:
                if outcome.error is None:
                    slot.hold(outcome.access_token, outcome.expires_at, now, self.world)
                else:
                    failed = now < slot.expires_at
                    slot.lack(outcome, now, forced=flight.forced)
                if flight.forced and not outcome.out_of_time:
                    slot.forced_at, slot.forced_error = now, outcome.error
            if flight.landed:
                return  # who led it was interrupted after all: nobody waits any more
            flight.landed.append(outcome)
        try:
            # Here, for a log handler may ask for the same token: the flight is over, and what it brought is held.
            if outcome is not None and outcome.facts is not None:
                _logger.info(LINE, outcome.facts, extra=outcome.facts)
            if outcome is not None and failed:
                left, pause = slot.expires_at - now, max(0.0, slot.retry_at - now)
                _logger.warning(REFRESH_FAILED, left, pause, outcome.error)
        finally:
            for bell in tuple(flight.bells):
                with suppress(RuntimeError):  # of a loop that is closed by now, where nobody waits any more
                    bell()


process_cache = TokenCache()


def forget_tokens() -> None:
    """Empty the caches of this process, for tests that must not see each other's tokens."""
    for cache in _fork.caches():
        cache.forget()
