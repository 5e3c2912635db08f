"""One base URL: who of this process is asking there now, and whether it is known to be IMDS or to be absent."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .exceptions import ImdsError

if TYPE_CHECKING:
    from ._flight import Flight

GRACE = 0.1  # seconds a caller gives a flight that is about to end, so that it can say why

# https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting
AT_ONCE = 5
PER_SECOND = 20
SECOND = 1.1  # by our clock; requests do not take equally long to get there
ABSENT_SECONDS = 30.0  # how long "nobody there" is believed


class Gate:
    """Who asks a URL now, and when it was asked lately. One for all of a process: IMDS limits what a machine asks."""

    def __init__(self) -> None:
        self.answered = False  # as IMDS, to any of the caches
        self.begin_anew()

    def begin_anew(self) -> None:
        """Stand open, for a forked child that has none of its parent's requests."""
        self.places = threading.Semaphore(AT_ONCE)
        self.inside: dict[int, Flight] = {}  # who went in and did not come out, by the id of a list that is its own
        self.pace = threading.Lock()
        self.starts: deque[float] = deque(maxlen=PER_SECOND)  # of the latest requests

    def enter(self, flight: Flight, clock: Callable[[], float]) -> bool:
        """Wait for a place; say whether there was one before the flight's time was up."""
        while not self.places.acquire(timeout=0.2):
            for other in self.inside.copy().values():
                if clock() >= other.deadline + GRACE:
                    self.leave(other)  # it hangs, perhaps for good
            if clock() >= flight.deadline:
                return False
        self.inside[id(flight.landed)] = flight
        return True

    def leave(self, flight: Flight) -> None:
        """Give a flight's place to the next, once, whoever says so first: itself, or those who saw it overrun."""
        if self.inside.pop(id(flight.landed), None):
            self.places.release()


class Endpoint:
    """What one cache knows of a URL. Credentials that reach it in a way of their own have a cache of their own."""

    def __init__(self, url: str, gate: Gate) -> None:
        self.url, self.gate = url, gate
        self.seen = False  # it once answered as IMDS
        self.absence: ImdsError | None = None
        self.absent_until = 0.0

    def known_absence(self, now: float) -> ImdsError | None:
        """Return the error that is remembered, if it still holds."""
        return self.absence if not self.seen and now < self.absent_until else None

    def note_absence(self, error: ImdsError, now: float) -> None:
        """Remember that nobody is there, for `ABSENT_SECONDS`."""
        if not self.seen:
            self.absence, self.absent_until = error, now + ABSENT_SECONDS
