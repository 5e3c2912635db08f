"""The request limits that IMDS documents: 20 a second and 5 at once for managed identities, 5 a second for the rest."""

from __future__ import annotations

from collections import deque

# IMDSDOC, "Rate limits", per machine.
IDENTITY_PER_SECOND = 20
IDENTITY_AT_ONCE = 5
OTHERS_PER_SECOND = 5


def is_identity(path: str) -> bool:
    """Return whether a path belongs to the category of managed identities."""
    return path.startswith("/metadata/identity")


class Limits:
    """Counts the requests of the last second per category. Used by one thread only."""

    def __init__(self) -> None:
        self._recent: dict[bool, deque[float]] = {True: deque(), False: deque()}

    def refuses(self, path: str, now: float, in_flight: int) -> bool:
        """Return whether a request is one too many; if not, it is counted.

        A window of one second that slides, and refused requests count for nothing: how production counts is unknown.

        Args:
            path: The path of the request, which decides the category.
            now: The emulator's clock.
            in_flight: How many requests for managed identities are being answered, refused ones left out.
        """
        identity = is_identity(path)
        recent = self._recent[identity]
        while recent and not now - 1 < recent[0] <= now:
            recent.popleft()
        if len(recent) >= (IDENTITY_PER_SECOND if identity else OTHERS_PER_SECOND):
            return True
        if identity and in_flight >= IDENTITY_AT_ONCE:
            return True
        recent.append(now)
        return False
