"""From a request to what happens on the wire: limits, faults, rules, journal. Runs on the server's thread alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..._endpoint import TOKEN_PATH
from .._http import checks
from .._http.messages import THROTTLED
from ..faults import describe, ok
from . import instance, openid
from .fault_queue import Script
from .journal import Journal, Request
from .rate_limits import is_identity
from .token_endpoint import WRONG_PATH, Machine, token_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._http.connection import Steps
    from .._http.messages import Answer, Received, Reply
    from ..faults import Fault
    from .rate_limits import Limits


@dataclass
class Imds:
    """The service of one machine.

    Args:
        machine: What it answers for.
        now: The emulator's clock.
        latency: Seconds that every answer takes.
        limits: How many requests it takes; None: any number.
    """

    machine: Machine
    now: Callable[[], float]
    latency: float = 0.0
    limits: Limits | None = None
    journal: Journal = field(default_factory=Journal)
    script: Script = field(default_factory=Script)
    in_flight: int = 0

    def __post_init__(self) -> None:
        checks.seconds("latency", self.latency)

    def respond(self, received: Received) -> Steps:
        """Return what happens on the wire in answer to a request."""
        now = self.now()
        published = openid.answer(received)
        if published is not None:
            return ok(published.reply(now))
        throttled = self.limits is not None and self.limits.refuses(received.path, now, self.in_flight)
        fault = None if throttled else self.script.next(received.path, TOKEN_PATH, now)
        reply = self._reply(THROTTLED if throttled else self._answer(received, now), received, now)
        told = "429 (throttled)" if throttled else f"{reply.status}" if fault is None else describe(fault)
        self.journal.add(Request(**vars(received), time=now, answered=told))
        return self._played(reply, fault or ok, counts=is_identity(received.path) and not throttled)

    def _answer(self, received: Received, now: float) -> Answer:
        if received.path == TOKEN_PATH:
            return token_answer(received, self.machine, now)
        found = instance.answer(received, self.machine.profile)
        of_instance = self.machine.profile.is_imds and not is_identity(received.path)
        return found or (instance.WRONG_PATH if of_instance else WRONG_PATH)

    def _reply(self, answer: Answer, received: Received, now: float) -> Reply:
        """Container Instances do not call themselves IMDS; their headers are unknown, so they get the fewest."""
        reply = (answer if self.machine.profile.is_imds else replace(answer, server=None)).reply(now)
        return replace(reply, body=b"") if received.method == "HEAD" else reply

    def _played(self, reply: Reply, fault: Fault, *, counts: bool) -> Steps:
        self.in_flight += counts
        try:
            if self.latency:
                yield self.latency
            yield from fault(reply)
        finally:
            self.in_flight -= counts
