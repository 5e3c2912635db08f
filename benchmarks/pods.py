"""A simulated IMDS with its documented limits, and its clients: pods of one node, machines over a week.

Our numbers are not copied: `_imds.retry.next_delay` and `_cache.token_entry.refresh_delay` themselves are simulated.
Peers follow their documentation or source.

Whether a refused request counts against the limit of 20 a second is not documented. Both are simulated, over a window
of one second that slides. `counted` is the harsher one: no request is served while 20 or more keep arriving.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from random import Random
from typing import Any, NamedTuple

import simpy

from azure_imds_credential._cache.token_entry import next_refresh_after, refresh_delay
from azure_imds_credential._imds.retry import Retry, last_chance, next_delay
from azure_imds_credential.testing._emulator.rate_limits import IDENTITY_AT_ONCE, IDENTITY_PER_SECOND

DAY = 86400.0
TIMEOUT = 90.0  # seconds: the default of ImdsCredential
GONE_SECONDS = 70.0  # "IMDS will be available within 70 seconds"
REFUSAL = 0.002  # seconds for a 429, which costs IMDS no thought

OK, GONE, THROTTLED = 200, 410, 429

Rand = Callable[[], float]


class Imds:
    """One machine's IMDS.

    Args:
        latency: Seconds for an answer that is no 429.
        counted: Whether refused requests count against the limit.
        gone_until: It answers 410 until then, within the same limits.
    """

    def __init__(self, latency: float, *, counted: bool, gone_until: float = 0.0) -> None:
        self.latency, self.counted, self.gone_until = latency, counted, gone_until
        self.requests: list[float] = []
        self.throttled = 0
        self._recent: deque[float] = deque()
        self._answered: deque[float] = deque()  # when; all take the same time, so the first asked is the first answered

    def ask(self, now: float) -> tuple[int, float]:
        """Ask once; give the status, and the seconds until it comes."""
        recent, answered = self._recent, self._answered
        self.requests.append(now)
        while recent and recent[0] <= now - 1:
            recent.popleft()
        while answered and answered[0] <= now:
            answered.popleft()
        if len(recent) >= IDENTITY_PER_SECOND or len(answered) >= IDENTITY_AT_ONCE:
            if self.counted:
                recent.append(now)
            self.throttled += 1
            return THROTTLED, REFUSAL
        recent.append(now)
        answered.append(now + self.latency)
        return (GONE if now < self.gone_until else OK), self.latency


class Policy(NamedTuple):
    """How a library behaves.

    Attributes:
        wait: From a status, how often it was met before, the seconds since it was first met, the seconds left and
            randomness to the seconds before the next attempt, or None to give up.
        refresh: From the life of a token and randomness to the seconds until its refresh.
    """

    name: str
    wait: Callable[[int, int, float, float, Rand], float | None]
    refresh: Callable[[float, Rand], float]


def _ours(status: int, met: int, since: float, left: float, rand: Rand) -> float | None:
    delay = next_delay({GONE: Retry.GONE, THROTTLED: Retry.THROTTLED}[status], met, since, None, rand)
    return None if delay is None else last_chance(delay, left, rand)


def _fixed(throttled: tuple[float, ...], gone: tuple[float, ...]) -> Callable[..., float | None]:
    def wait(status: int, met: int, *_: Any) -> float | None:
        schedule = throttled if status == THROTTLED else gone
        return schedule[met] if met < len(schedule) else None

    return wait


def _azidentity(_status: int, met: int, _since: float, _left: float, rand: Rand) -> float | None:
    # azcore/runtime/policy_retry.go: (2**try - 1) * RetryDelay * [0.8, 1.3), at most MaxRetryDelay
    return min(25.0, 2.0 * (2 ** (met + 1) - 1) * (0.8 + 0.5 * rand())) if met < 6 else None


def _half(life: float, _rand: Rand) -> float:
    return life / 2


OURS = Policy(
    "azure-imds-credential", _ours, lambda life, rand: refresh_delay(life, is_same_token=False, random=rand())
)
# azure-identity 1.27, _credentials/imds.py: 5 retries, backoff 0.8 s (the first at once); 410 over more than 70 s.
IDENTITY = Policy("azure-identity", _fixed((0, 1.6, 3.2, 6.4, 12.8), (0, 5, 10, 20, 40)), _half)
# msal (Python) 1.39: no retry.
MSAL = Policy("msal", _fixed((), ()), _half)
# MSAL.NET, docs/imds_retry_based_on_errors.md; MSAL for JS and Java do the same.
MSAL_NET = Policy("MSAL.NET, JS, Java", _fixed((1, 2, 4), (10,) * 7), _half)
# azidentity (Go), managed_identity_client.go: 6 retries, 2 s doubling to 25 s.
GO = Policy("azidentity (Go)", _azidentity, _half)
POLICIES = (OURS, IDENTITY, MSAL, MSAL_NET, GO)


class Herd(NamedTuple):
    """What became of pods that all needed a token. Times are seconds from the first start."""

    failures: int
    last: float  # when the last of those that got one had its token
    requests: list[float]
    throttled: int


def pods(
    policy: Policy,
    count: int,
    seed: int,
    *,
    latency: float,
    counted: bool = False,
    gone: float = 0.0,
    spread: float = 0.0,
    timeout: float = TIMEOUT,
) -> Herd:
    """Start pods on one node.

    Args:
        policy: What they use.
        count: How many.
        seed: Of all randomness.
        latency: Seconds for an answer.
        counted: Whether refused requests count against the limit.
        gone: Seconds of 410, from the first start on.
        spread: Seconds over which they start; 0: in the same instant.
        timeout: Seconds after which a call ends.
    """
    env = simpy.Environment()
    imds = Imds(latency, counted=counted, gone_until=gone)
    rand = Random(seed).random
    done: list[float] = []

    def pod() -> Generator[simpy.Event, None, None]:
        if spread:
            yield env.timeout(spread * rand())
        if (yield from call(env, imds, policy, rand, timeout)):
            done.append(env.now)

    for _ in range(count):
        env.process(pod())
    env.run()
    return Herd(count - len(done), max(done, default=math.inf), imds.requests, imds.throttled)


def call(
    env: simpy.Environment, imds: Imds, policy: Policy, rand: Rand, timeout: float
) -> Generator[simpy.Event, None, bool]:
    """Ask until there is a token or the policy gives up; say which."""
    deadline = env.now + timeout
    failures: dict[int, tuple[float, int]] = {}
    while True:
        status, seconds = imds.ask(env.now)
        if status == OK:
            yield env.timeout(seconds)
            return True
        now = env.now + seconds
        since, met = failures.get(status, (now, 0))
        failures[status] = since, met + 1
        delay = policy.wait(status, met, now - since, deadline - now, rand)
        if delay is None or now + delay >= deadline:
            return False
        yield env.timeout(seconds + delay)


def optimum(count: int, latency: float) -> float:
    """Seconds in which IMDS could serve so many who asked in turn: 20 a second, and 5 at once."""
    return max(count / IDENTITY_PER_SECOND, count * latency / IDENTITY_AT_ONCE)


class Week(NamedTuple):
    """What a fleet asked in a week."""

    per_minute: list[int]
    throttled: int
    without: int  # processes that, at some time after their first token, held none that was valid
    peak: int  # most requests in a minute, the first hour not counted


def week(policy: Policy, machines: int, seed: int, *, processes: int = 4, days: float = 7.0) -> Week:
    """Run a fleet that was deployed within ten minutes, and is always in use.

    Each machine runs some processes, each with its own tokens, that start together. Once in the week its IMDS answers
    410 for up to 70 s, for half of them in one night, as when hosts are updated; the rest at any time.

    Args:
        policy: What the processes use.
        machines: How many.
        seed: Of all randomness.
        processes: On each machine.
        days: How long.
    """
    env = simpy.Environment()
    random = Random(seed)
    rand = random.random
    fleet: list[Imds] = []
    without = 0

    def process(imds: Imds, start: float) -> Generator[simpy.Event, None, None]:
        nonlocal without
        yield env.timeout(start)
        expires, failures, hungry = -math.inf, 0, False
        while True:
            if (yield from call(env, imds, policy, rand, TIMEOUT)):
                expires, failures, hungry = env.now + DAY, 0, False
                yield env.timeout(policy.refresh(DAY, rand))
            else:
                failures += 1
                if env.now > expires > 0 and not hungry:
                    without, hungry = without + 1, True
                yield env.timeout(max(1.0, next_refresh_after(failures, env.now, expires) - env.now))

    def update(imds: Imds, at: float) -> Generator[simpy.Event, None, None]:
        yield env.timeout(at)
        imds.gone_until = env.now + GONE_SECONDS * rand()

    for number in range(machines):
        imds = Imds(0.05, counted=False)
        fleet.append(imds)
        start = 600 * rand()
        for _ in range(processes):
            env.process(process(imds, start + 0.2 * rand()))
        night = 3 * DAY + 2 * 3600 * rand()
        env.process(update(imds, night if number % 2 else days * DAY * rand()))
    env.run(until=days * DAY)
    per_minute = [0] * (int(days * 1440) + 1)
    for imds in fleet:
        for at in imds.requests:
            per_minute[int(at // 60)] += 1
    return Week(per_minute, sum(imds.throttled for imds in fleet), without, max(per_minute[60:]))
