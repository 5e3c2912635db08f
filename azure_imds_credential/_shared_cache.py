"""Tokens shared by the processes of one user on one machine, and whose turn it is to ask for the next.

What is shared acts like IMDS's own cache: it hands out the token it has with what is left of its life, and each
process decides for itself when to look for a newer one. The first to look asks IMDS, under a lock, and the others find
what it brought. Readers take no lock and import nothing for it.

An endpoint does not count as seen by a shared token. "Seen" says that asking again from this process may help; only an
answer to this process shows that (it may share memory with the others, but not their network).
"""

from __future__ import annotations

import binascii
import json
import logging
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from . import _fork
from ._flight import Outcome
from ._freshness import LAST_MINUTES, LONGEST_WAIT, NEVER, SOONEST_REFRESH
from ._memory_files import Folder, RefusedError, empty_folders, open_folder
from ._stored_token import Found, read, written
from .exceptions import ImdsServiceError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._flight import Flight
    from ._freshness import Slot, World

LOOK_EVERY = 0.05  # seconds between two looks while somebody waits for the token; ten times that while nobody does

HEAD_START = 1.0  # seconds for which the others look on before they load and try the lock
ASKING, FAILED = "asking", "failed"

_TOKEN, _LOCK, _NOTE = ".token", ".lock", ".note"
_logger = logging.getLogger("azure_imds_credential")
_told: set[str] = set()


def forget_shared_tokens() -> int:
    """Remove the shared tokens of this user on this machine. Processes go on with those they hold.

    Returns:
        How many tokens there were.
    """
    return empty_folders(_TOKEN)


class Turn:
    """Inside the `with` block it is this process's turn to ask IMDS, unless there is an `outcome` already.

    Args:
        slot: What this process holds, and for which key.
        flight: The flight that would ask.
        world: Clock and sleep. The clock must be the machine's: what other processes wrote is judged by it.
    """

    outcome: Outcome | None = None  # what spares this process the asking

    def __init__(self, slot: Slot, flight: Flight, world: World) -> None:
        self.flight = flight  # to ask with: its deadline may be nearer than that of the flight that was given
        self._slot, self._clock, self._sleep = slot, world.clock, world.sleep
        self._key = [slot.endpoint.url, *slot.identity, slot.resource]
        # Only a name: the file says in full what it is for. (hashlib would double what a reader imports.)
        self._name = f"{binascii.crc32(json.dumps(self._key).encode()):08x}"
        self._folder: Folder | None = None
        self._lock: int | None = None  # its descriptor, while it is ours
        self._asked_at = NEVER
        self._spare: Found | None = None  # usable, but about to expire: for the case that IMDS gives no better one
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._folder = self._closing.enter_context(open_folder())
            found = self._look()
            if found is None:
                found = self._wait_for_turn(self._folder)
            if found is not None:
                self.outcome = Outcome(found.access_token, found.expires_at)
        except Exception as error:  # sharing spares requests; no trouble with it may cost a caller the token
            _warn_once(f"tokens are not shared, this process asks IMDS by itself: {error}")
        self._asked_at = self._clock()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._closing.close()

    def share(self, outcome: Outcome) -> Outcome:
        """Store what IMDS said for the other processes, and say what it means for this one."""
        if outcome.error is not None:
            self._note(FAILED)
            return self._or_spare(outcome)
        if self._folder is None or (self._lock is not None and not self._folder.holds(self._name + _LOCK, self._lock)):
            return outcome  # nowhere to put it, or everything was forgotten meanwhile
        found = Found(outcome.access_token, outcome.expires_at, self._asked_at, self._clock(), self.flight.forced)
        try:
            self._folder.replace(self._name + _TOKEN, written(self._key, found))
            self._folder.remove(self._name + _NOTE)
        except FileNotFoundError:
            pass  # forgotten meanwhile, too
        except OSError as error:
            _warn_once(f"a token could not be stored for other processes: {self._folder.path}: {error.strerror}")
        return outcome

    def _or_spare(self, failed: Outcome) -> Outcome:
        spare, now = self._spare, self._clock()
        if spare is None or now >= spare.expires_at:
            return failed
        _logger.warning(
            "asking for a token failed, the shared one serves for %d s more: %s", spare.expires_at - now, failed.error
        )
        return Outcome(spare.access_token, spare.expires_at)

    def _look(self) -> Found | None:
        """Find a token that makes asking needless."""
        assert self._folder is not None
        flight, slot = self.flight, self._slot
        try:
            content = self._folder.read(self._name + _TOKEN)
            now = self._clock()  # after reading, or what was stored in between would be from the future
            found = None if content is None else read(content, self._key, now)
        except (RefusedError, ValueError) as error:
            _warn_once(f"a shared token was ignored: {error}")
            return None
        if found is None or now >= found.expires_at:
            return None
        if flight.forced:
            return found if found.forced and found.asked_at >= flight.started else None
        if found.stored_at >= flight.started or now - found.stored_at < SOONEST_REFRESH:
            return found  # somebody has just asked; asking again would bring nothing better
        if found.expires_at - now <= LAST_MINUTES:
            self._spare = None if self._holds_usable(now) else found
            return None
        return found if found.stored_at > slot.stored_at or not self._holds_usable(now) else None

    def _holds_usable(self, now: float) -> bool:
        return self._slot.token is not None and now < self._slot.expires_at

    def _wait_for_turn(self, folder: Folder) -> Found | None:
        """Wait for the lock; return what another process stored meanwhile.

        A holder that dies lets go of it. One that is stopped does not, and one that IMDS keeps waiting may take all of
        its time: so whoever has no token waits half of its own at most, and then asks by itself. Whoever has one never
        asks while somebody else does.
        """
        begun, flight = self._clock(), self.flight
        patience = (flight.deadline - begun) / 2
        if self._spare is not None:  # as for a token of this process in its last minutes
            patience = min(patience, LONGEST_WAIT)
            self.flight = flight._replace(deadline=min(flight.deadline, begun + LONGEST_WAIT))
        usable = self._holds_usable(begun) and not flight.forced
        nobody_waits = usable and self._slot.expires_at - begun > LAST_MINUTES
        # In a herd the first asks at once, and the others need no lock to see it and what it brings.
        if 0 <= begun - self._noted(ASKING) < HEAD_START:
            while self._clock() - begun < HEAD_START and self._noted(ASKING) != NEVER:
                self._sleep(LOOK_EVERY)
                if (found := self._look()) is not None:
                    return found
        else:
            self._note(ASKING)

        def no_need() -> bool:
            if self._look() is not None:
                return True
            # The holder failed. In a row behind each other the next would fail as slowly: better all at once.
            return self._clock() - begun >= LONGEST_WAIT and self._noted(FAILED) >= begun

        with _fork.imports:
            from filelock import FileLock, Timeout

        def keep(descriptor: int) -> None:
            # The path may lead to another file by now; then this lock keeps nobody out.
            if not folder.holds(self._name + _LOCK, descriptor):
                raise RefusedError(f"{folder.path}/{self._name}{_LOCK}: replaced while it was locked")
            self._lock = descriptor

        # Not fcntl.flock: a child that is forked meanwhile would inherit the lock and keep it after its holder's death.
        path = f"{folder.path}/{self._name}{_LOCK}"
        lock = FileLock(path, patience, 0o600, fallback_to_soft=False, on_acquired=keep)
        try:
            lock.acquire(poll_interval=LOOK_EVERY * (10 if nobody_waits else 1), cancel_check=no_need)
        except Timeout:
            if (found := self._look()) is not None:
                return found
            if usable or self._spare is not None:  # who has a token never asks while another does
                self.outcome = self._or_spare(Outcome(error=_busy(self._slot, self._clock() - begun)))
            return None
        self._closing.callback(lock.release)
        folder.tidy(self._name)
        return self._look()

    def _note(self, word: str) -> None:
        """Leave a word for the others. It only spares them waits; nothing is lost when it gets lost."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.replace(self._name + _NOTE, f"{word} {self._clock()}".encode())

    def _noted(self, word: str) -> float:
        """Say when somebody last left this word."""
        if self._folder is not None:
            with suppress(RefusedError, ValueError):
                said, _, at = (self._folder.read(self._name + _NOTE) or b"").decode().partition(" ")
                return float(at) if said == word else NEVER
        return NEVER


def _busy(slot: Slot, seconds: float) -> ImdsServiceError:
    return ImdsServiceError(
        f"No token for {slot.resource}: another process of this user has been asking {slot.endpoint.url} for "
        f"{seconds:.0f} s and has none yet.",
        endpoint=slot.endpoint.url,
        identity=str(slot.identity),
        resource=slot.resource,
        elapsed=seconds,
    )


def _warn_once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        _logger.warning("%s", text)
