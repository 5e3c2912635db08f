"""Time and randomness, as one object that tests replace."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

# Seconds by which wall clock and boot clock drift apart between two comparisons: more than a clock that is kept in step
# ever needs.
MAX_DRIFT = 30.0


def _boot_clock() -> Callable[[], float]:
    """Return CLOCK_BOOTTIME, which is never set and goes on while a VM hibernates; else a clock that is never set."""
    try:
        time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):  # some kernels and sandboxes do not know what Python has a name for
        return time.monotonic
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)


boot_clock = _boot_clock()
_generator = random.SystemRandom()  # has no seed, which a program may set alike on many machines


class Clock:
    """The clocks that tokens are measured by.

    `wall` and `sleep` are looked up at each use: gevent, freezegun and time-machine replace them late.
    """

    now = staticmethod(boot_clock)  # seconds since the machine started; on the warm path, so it is no method

    def wall(self) -> float:
        """Return epoch seconds, as the machine's clock is set."""
        return float(time.time())  # a number also where a test put a mock in its place

    def random(self) -> float:
        """Return a number in [0, 1), from a uniform distribution."""
        return _generator.random()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
