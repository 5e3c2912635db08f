"""Tokens shared by the processes of one user on one machine, and which of them asks for the next.

What is shared acts like IMDS's own cache: it hands out the token it has with what is left of its life, and each process
decides for itself when to look for a newer one. The first to look asks IMDS, under a lock, and the others find what it
brought. Readers take no lock and import nothing for it.

An endpoint does not count as seen by a shared token. "Seen" says that asking again from this process may help, and only
an answer to this process shows that: it may share memory with the others, but not their network.
"""

from __future__ import annotations

import binascii
import json
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from .._clock import Clock
from .._endpoint import Endpoint
from .._errors import local_error
from .._fork import importing
from .._jwt import EXPIRY_MARGIN
from .._request import NEVER, TokenKey, TokenRequest, TokenResult
from ..exceptions import ImdsError
from .memory_files import Folder, RefusedError, empty_folders, open_folder
from .stored_token import StoredToken, decode, encode

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# Seconds.
LOOK_INTERVAL = 0.05  # between two looks while a caller waits for the token; ten times that while none does
HEAD_START = 1.0  # for which the others only read files, before they import filelock
FALLBACK_TIMEOUT = 2.0  # for which a process waits for a better token than one in its last minutes or in doubt
ABSENT_WAIT = 2.0  # after which those who wait ask at once where nothing answers
RECENT = 30.0  # a token that was stored this recently is the newest there is

MAX_SWEPT = 8  # tokens that a process with the lock looks at, to remove those that have expired

# What a note says: IMDS was asked, or nothing answered. Both spare time and processor time: see docs/shared-cache.md.
# Any other end of the request removes the note.
ASKING, ABSENT = "asking", "absent"

_TOKEN, _LOCK, _NOTE = ".token", ".lock", ".note"
_logger = logging.getLogger("azure_imds_credential")
_warned: set[str] = set()

Fetcher = Callable[[TokenRequest, Endpoint, Clock], TokenResult]


def sharing(fetch: Fetcher) -> Fetcher:
    """Return a function that fetches a token only where no other process of this user has one."""

    def fetch_shared(request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        with SharedLease(request, clock) as lease:
            if lease.result is not None:
                return lease.result
            try:
                result = fetch(request, endpoint, clock)
            except ImdsError as error:
                result = TokenResult(error=error)
            return lease.share(result)

    return fetch_shared


def forget_shared_tokens() -> int:
    """Remove the shared tokens of this user on this machine. Processes go on with those they cache.

    Returns:
        How many tokens there were.
    """
    return empty_folders(_TOKEN)


class SharedLease:
    """Inside the `with` block this process asks IMDS for all, unless there is a `result` already.

    Args:
        request: The request that would be sent.
        clock: Its clocks must be the machine's: what other processes stored is judged by them.
    """

    result: TokenResult | None = None  # what spares this process the request

    def __init__(self, request: TokenRequest, clock: Clock) -> None:
        self._request, self._clock = request, clock
        self._key: list[object] = [request.key.url, *request.key.identity, request.key.resource]
        # Only a name: the file says in full what it is for. (hashlib would double what a reader imports.)
        self._name = f"{binascii.crc32(json.dumps(self._key).encode()):08x}"
        self._folder: Folder | None = None
        self._lock: int | None = None  # its descriptor, while it is ours
        self._asked_at = NEVER
        self._fallback: StoredToken | None = None  # it serves where IMDS gives no better one
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._folder = self._closing.enter_context(open_folder())
            found = self._look()
            if found is None:
                self._fallback = self._find_fallback()
                found = self._wait_for_lock(self._folder)
            if found is not None:
                self.result = TokenResult(found.access_token, self._expiry(found))
        except Exception as error:  # sharing spares requests; no trouble with it may cost a caller the token
            _warn_once(f"tokens are not shared, this process asks IMDS by itself: {error}")
        self._asked_at = self._clock.now()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._closing.close()

    def share(self, result: TokenResult) -> TokenResult:
        """Store a result for the other processes, and return what it means for this one."""
        if result.error is not None:
            if result.is_absent:
                self._write_note(ABSENT)
            elif self._folder is not None:
                self._folder.remove(self._name + _NOTE)
            return self._or_fallback(result)
        if self._folder is None or (self._lock is not None and not self._folder.holds(self._name + _LOCK, self._lock)):
            return result  # there is no place for it, or everything was forgotten meanwhile
        now = self._clock.now()
        wall_offset = self._clock.wall() - now
        stored = StoredToken(
            result.access_token, result.expires_at, self._asked_at, now, wall_offset, self._request.forced
        )
        try:
            self._folder.replace(self._name + _TOKEN, encode(self._key, stored))
            self._folder.remove(self._name + _NOTE)
        except FileNotFoundError:
            pass  # forgotten meanwhile, too
        except OSError as error:
            _warn_once(f"a token could not be stored for other processes: {self._folder.path}: {error.strerror}")
        return result

    def _or_fallback(self, failed: TokenResult) -> TokenResult:
        if self._fallback is None:
            return failed
        expiry, now = self._expiry(self._fallback), self._clock.now()  # the VM may have been paused meanwhile
        if now >= expiry:
            return failed
        _logger.warning(
            "asking for a token failed, the shared one serves for %d s more: %s", expiry - now, failed.error
        )
        return TokenResult(self._fallback.access_token, expiry, log_fields=failed.log_fields)

    def _look(self) -> StoredToken | None:
        """Return a stored token that makes the request needless."""
        found = self._stored()
        return found if found is not None and self._spares_request(found) else None

    def _find_fallback(self) -> StoredToken | None:
        """Return a stored token that serves if the request fails; None if this process holds one or wants another."""
        if self._request.forced or self._holds_usable(self._clock.now()):
            return None
        return self._stored()

    def _stored(self) -> StoredToken | None:
        """Return the stored token, unless it has expired or cannot be trusted."""
        assert self._folder is not None
        try:
            content = self._folder.read(self._name + _TOKEN)
            # Reads the clock after the file, or what was stored in between would be from the future.
            found = None if content is None else decode(content, self._key, self._clock.now())
        except (RefusedError, ValueError) as error:
            _warn_once(f"a shared token was ignored: {error}")
            return None
        return found if found is not None and self._clock.now() < self._expiry(found) else None

    def _spares_request(self, found: StoredToken) -> bool:
        """Return whether asking would bring nothing better than a stored token with life left."""
        request, now = self._request, self._clock.now()
        if found.has_drifted(now, self._clock.wall()):
            return False  # how long it lasts is in doubt; the token of one request has the times of now
        if request.forced:
            return found.forced and found.asked_at >= request.started
        if found.stored_at >= request.started or now - found.stored_at < RECENT:
            return True  # another process has just asked
        if found.expires_at - now <= EXPIRY_MARGIN:
            return False
        return found.stored_at > request.held_since or not self._holds_usable(now)

    def _expiry(self, found: StoredToken) -> float:
        return found.earliest_expiry(self._clock.now(), self._clock.wall())

    def _holds_usable(self, now: float) -> bool:
        return now < self._request.held_until

    def _wait_for_lock(self, folder: Folder) -> StoredToken | None:
        """Wait for the lock; return what another process stored meanwhile.

        A holder that dies lets go of it. One that is stopped does not, and one that IMDS keeps waiting may take all of
        its time: so a process without a token waits half of its time at most, and then asks by itself. One that has a
        token never asks while another does.
        """
        begun, request = self._clock.now(), self._request
        longest_wait = max(0.0, (request.deadline - begun) / 2)  # filelock takes a negative number for "no limit"
        if self._fallback is not None:  # as for a token of this process in its last minutes
            longest_wait = min(longest_wait, FALLBACK_TIMEOUT)
            request.deadline = min(request.deadline, begun + FALLBACK_TIMEOUT)
        usable = self._holds_usable(begun) and not request.forced
        no_caller_waits = usable and request.held_until - begun > EXPIRY_MARGIN
        if (found := self._watch_first(begun)) is not None:
            return found

        def is_needless() -> bool:
            if self._look() is not None:
                return True
            # Nothing answers. One process after the other would wait as long for that, so all ask at once. After an
            # error of IMDS they go on one by one: that is as fast, and stays within its limits.
            return self._clock.now() - begun >= ABSENT_WAIT and self._read_note(ABSENT) >= begun

        with importing(request.deadline - self._clock.now()):
            from filelock import FileLock, Timeout

        def keep(descriptor: int) -> None:
            # The path may lead to another file by now; then this lock keeps no other process out.
            if not folder.holds(self._name + _LOCK, descriptor):
                raise RefusedError(f"{folder.path}/{self._name}{_LOCK}: replaced while it was locked")
            self._lock = descriptor

        # Not fcntl.flock: a child that is forked meanwhile would inherit the lock and keep it after its holder's death.
        path = f"{folder.path}/{self._name}{_LOCK}"
        lock = FileLock(path, longest_wait, 0o600, fallback_to_soft=False, on_acquired=keep)
        try:
            lock.acquire(poll_interval=LOOK_INTERVAL * (10 if no_caller_waits else 1), cancel_check=is_needless)
        except Timeout:
            if (found := self._look()) is not None:
                return found
            if usable or self._fallback is not None:
                self.result = self._or_fallback(TokenResult(error=_busy(request.key, self._clock.now() - begun)))
            return None
        self._closing.callback(lock.release)
        folder.tidy(self._name)
        self._remove_expired(folder)
        return self._look()

    def _remove_expired(self, folder: Folder) -> None:
        """Remove a few tokens that have expired, whatever they are for: not all that ever were stay in memory.

        The boot clock alone decides: a process with a wrong wall clock must not remove what serves the others. A token
        that is replaced at this very moment may go too, which costs a request. Lock files stay: where one is removed,
        a process that waits for it and a process that makes a new one may both ask.
        """
        names = folder.names(_TOKEN)
        first = int(self._clock.random() * len(names))
        for name in (names[first:] + names[:first])[:MAX_SWEPT]:
            with suppress(RefusedError, ValueError):
                now = self._clock.now()
                if now >= decode(folder.read(name) or b"", None, now).expires_at:
                    folder.remove(name)

    def _watch_first(self, begun: float) -> StoredToken | None:
        """Watch what the first of many processes brings; return its token. The first one itself does not wait."""
        if not 0 <= begun - self._read_note(ASKING) < HEAD_START:
            self._write_note(ASKING)
            return None
        while self._clock.now() - begun < HEAD_START and self._read_note(ASKING) != NEVER:
            self._clock.sleep(LOOK_INTERVAL)
            if (found := self._look()) is not None:
                return found
        return None

    def _write_note(self, word: str) -> None:
        """Tell the other processes. This only spares them waits; nothing is lost when it gets lost."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.replace(self._name + _NOTE, f"{word} {self._clock.now()}".encode())

    def _read_note(self, word: str) -> float:
        """Return when this word was last written; `NEVER` if it was not."""
        if self._folder is not None:
            with suppress(RefusedError, ValueError):
                written, _, at = (self._folder.read(self._name + _NOTE) or b"").decode().partition(" ")
                return float(at) if written == word else NEVER
        return NEVER


def _busy(key: TokenKey, seconds: float) -> ImdsError:
    reason = f"Another process of this user has been asking for {seconds:.0f} s and has no token yet"
    return local_error(key, reason, "Try again, or raise timeout.", elapsed=seconds)


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _logger.warning("%s", text)
