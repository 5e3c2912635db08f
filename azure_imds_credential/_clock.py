"""Time and randomness, as one object that tests replace."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

# CLOCK_BOOTTIME is never set and goes on while a VM hibernates. Without it: a clock that is never set.
boot_clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Clock:
    """The clocks that tokens are measured by.

    `wall`, `random` and `sleep` are looked up at each use: gevent, freezegun and time-machine replace them late.
    """

    now = staticmethod(boot_clock)  # seconds since the machine started; on the warm path, so it is no method

    def wall(self) -> float:
        """Return epoch seconds, as the machine's clock is set."""
        return time.time()

    def random(self) -> float:
        """Return a number in [0, 1), from a uniform distribution."""
        return random.random()  # noqa: S311 # jitter, not a secret

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
