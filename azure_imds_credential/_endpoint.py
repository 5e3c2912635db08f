"""What this process knows of one base URL, and how fast it may send requests there."""

from __future__ import annotations

import threading
from collections import deque

from ._clock import Clock
from ._request import TokenRequest
from .exceptions import ImdsError

DEFAULT_ENDPOINT = "http://169.254.169.254"
ENDPOINT_VARIABLE = "AZURE_POD_IDENTITY_AUTHORITY_HOST"
TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105 # a path, not a password

# https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service#rate-limiting
MAX_CONCURRENT = 5
MAX_PER_WINDOW = 20
WINDOW = 1.1  # seconds; one second, and a margin for a server whose clock runs differently
MAX_SLEEP = 0.2  # seconds; a slot can also become free because a request overran its deadline

# A refused or unreachable address is tried again on a machine that has just started: once per process and URL, because
# one without IMDS would pay for it at each call.
BOOT_TIME = 120.0  # seconds after its start in which its network and IMDS may still be on their way
BOOT_WINDOW = 10.0  # seconds for which attempts are repeated, from the first that fails so

ABSENCE_MEMORY = 30.0  # seconds for which "there is no IMDS" is believed
PROBE_INTERVAL = 1.0  # seconds between two probes, connect attempts that tell whether that is still so


class RateLimiter:
    """Keeps the attempts of this process at one URL within the documented limits of IMDS.

    An attempt counts from the moment its request takes a slot until `WINDOW` after the response, because it reaches the
    server at some moment in between. So the server never sees more than `MAX_PER_WINDOW` in a second, however slow this
    machine is.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests: in a forked child those of its parent."""
        self.lock = threading.RLock()  # this thread can be asked whether it has it
        self.active: set[TokenRequest] = set()
        self.recent: deque[float] = deque()  # when the latest responses came
        self._waiting: deque[threading.Lock] = deque()  # one for each thread that waits, locked until it may look again

    def acquire(self, request: TokenRequest, clock: Clock) -> bool:
        """Wait for a slot; return whether there was one before the request's deadline.

        A request that a hook of an active one asks for needs no slot of its own: the active one waits for it. So may
        active ones for an inline request, whose thread has a lock of logging that they need.
        """
        while True:
            turn = threading.Lock()
            turn.acquire()
            with self.lock:
                now = clock.now()
                if now >= request.deadline:
                    return False
                pause = self._pause(request, now)
                if pause == 0:
                    self.active.add(request)
                    return True
                if pause is None:
                    self._waiting.append(turn)
            if pause is None:  # five are active: the next response ends the wait
                turn.acquire(timeout=MAX_SLEEP)
                with self.lock:
                    if turn in self._waiting:
                        self._waiting.remove(turn)
            elif now + pause >= request.deadline:
                return False  # a slot that is taken and not used would be missing to others
            else:
                clock.sleep(pause)

    def release(self, request: TokenRequest, clock: Clock) -> None:
        """Give the slot back, after the response or when there will be none."""
        with self.lock:
            if request in self.active:
                self.active.remove(request)
                self.recent.append(clock.now())
            if self._waiting:
                self._waiting.popleft().release()

    def clear(self) -> None:
        """Forget the latest requests, as `testing.forget_tokens` does."""
        with self.lock:
            self.recent.clear()

    def _pause(self, request: TokenRequest, now: float) -> float | None:
        """Return the seconds until a slot may be free, None when that depends on the active requests."""
        self.active = {other for other in self.active if not other.has_overrun(now)}
        while self.recent and now >= self.recent[0] + WINDOW:
            self.recent.popleft()
        own = sum(other.includes(request) for other in self.active)
        if len(self.active) - own >= MAX_CONCURRENT and not request.inline:
            return None
        if len(self.active) + len(self.recent) < MAX_PER_WINDOW:
            return 0.0
        return self.recent[0] + WINDOW - now if self.recent else None


class Absence:
    """The error that told that there is no IMDS, and how long it is believed. It is never changed.

    Args:
        error: The error.
        noted_at: Time of `Clock.now` at which it was raised.
        until: Time of `Clock.now` until which it is believed.
        can_probe: A connect attempt would tell something new.
    """

    def __init__(self, error: ImdsError, noted_at: float, until: float, *, can_probe: bool) -> None:
        self.error, self.noted_at, self.until, self.can_probe = error, noted_at, until, can_probe


class UrlState:
    """What all credentials of a process share about a base URL."""

    def __init__(self) -> None:
        self.limiter = RateLimiter()
        self.seen = False  # it answered as IMDS
        self.boot_window_from: float | None = None  # when the time began that a machine is given which has just started
        self.generation = 0  # goes up when it is cleared

    def clear(self) -> None:
        """Know nothing."""
        with self.limiter.lock:
            self.seen, self.boot_window_from = False, None
            self.generation += 1
            self.limiter.clear()


class Endpoint:
    """What one cache knows of a base URL.

    Args:
        url: The base URL.
        state: What is shared with the other caches of the process.
        custom_pipeline: Requests go through a transport, a policy or a hook of the user's, which may lead elsewhere.
            What they see is kept apart, and no bare connect attempt is made.
    """

    def __init__(self, url: str, state: UrlState, *, custom_pipeline: bool = False) -> None:
        self.url, self.limiter, self.custom_pipeline = url, state.limiter, custom_pipeline
        self._shared, self._seen_by = state, UrlState() if custom_pipeline else state
        self._forget_absence()

    @property
    def seen(self) -> bool:
        """Whether it answered as IMDS before."""
        return self._seen_by.seen

    @property
    def generation(self) -> int:
        """A number that changes when it is cleared: a request that began before tells nothing afterwards."""
        return self._shared.generation

    def note_seen(self, request: TokenRequest) -> None:
        """Remember that it answered a request as IMDS."""
        with self.limiter.lock:
            if request.endpoint_generation == self.generation:
                self._seen_by.seen = True

    def boot_time_left(self, now: float) -> float:
        """Return the seconds for which a refused or unreachable address is tried again, because the machine boots."""
        begun = self._shared.boot_window_from
        if begun is None:
            return BOOT_WINDOW if now < BOOT_TIME else 0.0
        return max(0.0, begun + BOOT_WINDOW - now)

    def note_boot_failure(self, request: TokenRequest, now: float) -> None:
        """Remember when an address was refused or unreachable first, on a machine that has just started."""
        with self.limiter.lock:
            if request.endpoint_generation == self.generation and self._shared.boot_window_from is None:
                self._shared.boot_window_from = now

    def forget_boot(self, now: float) -> None:
        """Know nothing of a machine that still boots: a forked child gives it time of its own."""
        if now < BOOT_TIME:
            self._shared.boot_window_from = None
            self._forget_absence()

    def clear(self) -> None:
        """Know nothing."""
        self._shared.clear()
        self._seen_by.clear()
        self._forget_absence()

    def _forget_absence(self) -> None:
        self.absence: Absence | None = None
        self._is_probing = False  # a connect attempt is made every second
        self._asked_at = 0.0  # when a caller was last told what is remembered
        self._found_listener = False

    def known_absence(self, now: float) -> Absence | None:
        """Return what is remembered, if it still holds."""
        absence = self.absence
        return absence if absence is not None and not self.seen and now < absence.until else None

    def note_unavailable(self, error: ImdsError, now: float, *, is_absent: bool, has_listener: bool) -> None:
        """Remember that there is no IMDS.

        Args:
            error: What callers are told meanwhile.
            now: Time of `Clock.now`.
            is_absent: Nothing answered. Another server's answer is remembered only where a probe led to it: the next
                call may find IMDS in its place.
            has_listener: Something accepts connections there, so that a probe would tell nothing new.
        """
        if self.seen or not (is_absent or self._found_listener):
            return
        self._found_listener = self._found_listener and has_listener
        self._is_probing = False
        can_probe = not has_listener and not self.custom_pipeline
        self.absence = Absence(error, now, now + ABSENCE_MEMORY, can_probe=can_probe)

    def absence_to_probe(self, now: float) -> Absence | None:
        """Return the absence for which connect attempts are to begin, now that a caller asks.

        None when they are being made already, or would tell nothing new.
        """
        self._asked_at = now
        absence = self.known_absence(now)
        if absence is None or not absence.can_probe or self._is_probing:
            return None
        self._is_probing = True
        return absence

    def record_probe(self, absence: Absence, *, found: bool, now: float) -> Absence | None:
        """Keep what a connect attempt found; it ends or renews the memory that it was made for.

        Returns:
            The absence to probe again. None when it is no longer remembered, or no caller has asked for 30 s.
        """
        if self.absence is not absence:
            return None  # cleared, or learned anew meanwhile
        self._found_listener = found
        self.absence = (
            None
            if found
            else Absence(absence.error, absence.noted_at, now + ABSENCE_MEMORY, can_probe=absence.can_probe)
        )
        self._is_probing = not found and now < self._asked_at + ABSENCE_MEMORY
        return self.absence if self._is_probing else None

    def stop_probing(self) -> None:
        """Have the next caller begin anew: there is no thread that makes connect attempts."""
        self._is_probing = False
