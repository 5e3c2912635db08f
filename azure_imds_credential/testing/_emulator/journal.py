"""What the emulator was asked: a list to look at, and asserts whose failure shows it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..._endpoint import TOKEN_PATH
from .._http import checks
from .._http.messages import Received


@dataclass(frozen=True)
class Request(Received):
    """A request as it came in, with the time of the emulator's clock and what became of it."""

    time: float = 0.0
    answered: str = field(default="", compare=False)

    @property
    def is_token_request(self) -> bool:
        """A request to the token endpoint with the Metadata header; probes of SDKs come without it."""
        return self.path == TOKEN_PATH and self.header("Metadata") is not None

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.time, timezone.utc).strftime("%H:%M:%S.%f")[:-3]
        header = self.header("Metadata")
        metadata = "no Metadata header" if header is None else f"Metadata: {header}"
        return f"{moment} {self.method} {self.target} ({metadata}) -> {self.answered}"


class Journal:
    """Requests in the order of their arrival; every method may be called from any thread.

    Args:
        size: How many requests are kept, the newest ones; None: all.
    """

    def __init__(self, size: int | None = None) -> None:
        self._requests: deque[Request] = deque(maxlen=size)
        self._arrived = threading.Condition()

    def add(self, request: Request) -> None:
        """Note a request."""
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()

    def clear(self) -> None:
        """Forget what came so far."""
        with self._arrived:
            self._requests.clear()

    def all(self) -> list[Request]:
        """Return what came so far."""
        with self._arrived:
            return list(self._requests)

    def wait_for(self, count: int, timeout: float) -> list[Request]:
        """Return what came so far, as soon as it is at least `count` requests.

        Raises:
            AssertionError: It is still less after `timeout` seconds.
        """
        checks.whole("count", count)
        checks.seconds("timeout", timeout)
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= count, timeout):
                raise AssertionError(_told(f"{count} or more", f"within {timeout:g} s", self._requests))
            return list(self._requests)

    def check(self, count: int, query: dict[str, str | None]) -> list[Request]:
        """Return the requests whose query variables have these values (None: are absent).

        Raises:
            AssertionError: There are more or fewer than `count`; the message lists all that came.
        """
        checks.whole("count", count)
        came = self.all()
        matching = [request for request in came if all(request.param(name) == query[name] for name in query)]
        if len(matching) != count:
            with_query = "with " + ", ".join(f"{k}={v}" for k, v in query.items()) if query else ""
            raise AssertionError(_told(str(count), with_query, came, len(matching)))
        return matching


def _told(expected: str, condition: str, came: Iterable[Request], matching: int | None = None) -> str:
    lines = [f"  {number}. {request}" for number, request in enumerate(came, 1)] or ["  (none)"]
    found = len(list(came)) if matching is None else matching
    condition = f" {condition}" if condition else ""
    return "\n".join((f"expected {expected} IMDS request(s){condition}, found {found}. All that came:", *lines))
