"""What this process knows of one endpoint: whether it is IMDS, whether it is absent, and who is asking it now."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .exceptions import ImdsError

AT_ONCE = 5  # https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting
ABSENT_SECONDS = 30.0  # how long "nobody there" is believed


class Gate:
    """Lets at most `AT_ONCE` requests through. A place ends with its holder's deadline: a request may hang for good."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[object, float] = {}
        self._changed = threading.Condition()

    def enter(self, holder: object, deadline: float) -> bool:
        """Wait for a place until the deadline; say whether there was one."""
        with self._changed:
            while True:
                now = self._clock()
                self._places = {each: until for each, until in self._places.items() if until > now}
                if now >= deadline:
                    return False
                if len(self._places) < AT_ONCE:
                    self._places[holder] = deadline
                    return True
                self._changed.wait(min(deadline, *self._places.values()) - now)

    def leave(self, holder: object) -> None:
        """Give the place back."""
        with self._changed:
            self._places.pop(holder, None)
            self._changed.notify()


class Endpoint:
    """One base URL, shared by all credentials of a cache."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self.url = url
        self.seen = False  # it once answered as IMDS
        self.absence: ImdsError | None = None
        self.absent_until = 0.0
        self._clock = clock
        self.begin_anew()

    def begin_anew(self) -> None:
        """Open a new gate, for a forked child that has none of its parent's requests."""
        self.gate = Gate(self._clock)

    def note_absence(self, error: ImdsError) -> None:
        """Remember that nobody is there, for `ABSENT_SECONDS`."""
        if not self.seen:
            self.absence, self.absent_until = error, self._clock() + ABSENT_SECONDS

    def known_absence(self) -> ImdsError | None:
        """Return the error that is remembered, if it still holds."""
        return self.absence if not self.seen and self._clock() < self.absent_until else None
