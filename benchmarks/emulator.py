"""The emulator in a process of its own, so that its work is not part of what is measured."""

from __future__ import annotations

import math
import multiprocessing
from multiprocessing.managers import BaseManager
from typing import NamedTuple

from azure_imds_credential.testing import ImdsEmulator, faults


class Arrival(NamedTuple):
    """A token request as the emulator saw it."""

    time: float  # epoch seconds of its arrival
    resource: str
    throttled: bool


class Machine:
    """A VM with its IMDS. Lives in the emulator's process; the benchmark holds a proxy.

    Args:
        throttle: Refuse with 429 what is beyond the documented 20 requests a second and 5 at once.
        latency: Seconds that each answer takes.
    """

    def __init__(self, throttle: bool = False, latency: float = 0.0) -> None:
        self._imds = ImdsEmulator(throttle=throttle, latency=latency).start()
        self._imds.issue_token("https://vault.azure.net")  # the first one makes the key, which is not measured

    def endpoint(self) -> str:
        """Base URL."""
        return self._imds.endpoint

    def arrivals(self) -> list[Arrival]:
        """The token requests so far, in the order of their arrival."""
        return [
            Arrival(request.time, request.param("resource") or "", request.answered.startswith("429"))
            for request in self._imds.token_requests
        ]

    def slow_after_the_first(self, seconds: float) -> None:
        """Answer the first request at once, and take so many seconds for each one after it."""
        self._imds.script(faults.ok)
        self._imds.script(faults.slow(seconds), seconds=math.inf)

    def fail_after_the_first(self) -> None:
        """Answer the first request, and each one after it with 500."""
        self._imds.script(faults.ok)
        self._imds.script(faults.status(500), seconds=math.inf)

    def close(self) -> None:
        """Stop listening."""
        self._imds.close()


class EmulatorProcess(BaseManager):
    """The process. `with EmulatorProcess() as process: machine = process.Machine()`."""

    def __init__(self) -> None:
        super().__init__(ctx=multiprocessing.get_context("spawn"))


EmulatorProcess.register("Machine", Machine)


def most_at_once(arrivals: list[Arrival], latency: float) -> int:
    """Count how many requests were being answered at the busiest moment, each for `latency` seconds."""
    times = sorted(arrival.time for arrival in arrivals)
    return max((sum(1 for other in times if moment - latency < other <= moment) for moment in times), default=0)
