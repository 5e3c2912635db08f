"""Which fault comes next: scripted ones first, then random ones, else none."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._http import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..faults import Fault


def _check(faults: Sequence[Fault]) -> None:
    """Refuse here what is no fault: on the server's thread the error would be lost.

    Raises:
        TypeError: One is no function, or a function of `faults` that makes a fault and was not called.
        ValueError: There is none.
    """
    if not faults:
        raise ValueError("at least one fault is needed")
    for fault in faults:
        if not callable(fault):
            raise TypeError(f"a fault is a function, such as faults.status(410); got {fault!r}")
        if getattr(fault, "__annotations__", {}).get("return") == "Fault":
            raise TypeError(f"faults.{fault.__name__} makes a fault: call it, faults.{fault.__name__}(...)")


@dataclass
class _Window:
    """Faults for the requests of one path: one after the other, or the first for every request until a moment."""

    path: str
    faults: deque[Fault]
    until: float | None = None


class Script:
    """What was asked to go wrong. Thread-safe; the clock is the caller's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: list[_Window] = []
        self._random: tuple[Sequence[Fault], float, random.Random] | None = None

    def add(self, path: str, faults: Sequence[Fault], now: float, seconds: float | None = None) -> None:
        """Queue faults after those that are already there: for one request each, or for so many seconds from now."""
        _check(faults)
        until = None if seconds is None else now + checks.seconds("seconds", seconds, most=math.inf)
        with self._lock:
            self._windows.append(_Window(path, deque(faults), until))

    def at_random(self, faults: Sequence[Fault], rate: float, seed: int) -> None:
        """From now on a share of the requests gets one of the faults; the same seed gives the same sequence."""
        _check(faults)
        checks.share("rate", rate)
        checks.whole("seed", seed, least=None)
        with self._lock:
            self._random = (tuple(faults), rate, random.Random(seed))  # noqa: S311 - repeatable on purpose

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._windows.clear()
            self._random = None

    def left(self) -> int:
        """Scripted faults that no request has met yet, windows not counted."""
        with self._lock:
            return sum(len(window.faults) for window in self._windows if window.until is None)

    def next(self, path: str, token_path: str, now: float) -> Fault | None:
        """Return the fault for a request that just came in.

        Args:
            path: The path of the request.
            token_path: The path that random faults apply to.
            now: The emulator's clock.
        """
        with self._lock:
            self._windows = [w for w in self._windows if (w.faults if w.until is None else now < w.until)]
            for window in self._windows:
                if window.path == path:
                    if window.until is None:
                        return window.faults.popleft()
                    chosen = window.faults[0]
                    window.faults.rotate(-1)
                    return chosen
            if self._random is not None and path == token_path:
                faults, rate, chance = self._random
                if chance.random() < rate:
                    return chance.choice(faults)
        return None
