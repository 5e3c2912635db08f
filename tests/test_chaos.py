"""A soak: threads and tasks keep asking while IMDS throttles, restarts, hangs, lies and rotates its tokens.

Time runs sixty times as fast, so that 20 s (CHAOS_SECONDS in the environment for more or less) are 20 minutes in the
life of tokens that live ten: each is refreshed ahead, in its last minutes or too late, many times over.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from flavors import AIO, SYNC

from azure_imds_credential import ImdsError, _options
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._cache.token_entry import CachedToken
from azure_imds_credential._clock import Clock
from azure_imds_credential._imds import retry_policy
from azure_imds_credential._request import Wait
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults
from azure_imds_credential.testing._emulator.rate_limits import IDENTITY_AT_ONCE
from azure_imds_credential.testing.faults import Fault, Reply, Steps

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SPEED = 60.0
THREAD_NAME = "azure-imds-credential"  # of every exchange
TOKEN_LIFETIME = 600
ROUNDING = 3.0  # IMDS and the cache both round the end of a token down
STAYS_ILL = 500.0  # long enough for most tokens to be held through their last minutes, and for some to end
THREADS, TASKS, LOOPS = 32, 200, 2
IDENTITIES = [UserAssigned(name) for name in ("one", "two", "three")]
RESOURCES = [f"https://{name}.example" for name in ("vault", "storage", "graph", "sql")]


def fast() -> float:
    """A clock for everybody: the cache, the emulator and the test."""
    return time.monotonic() * SPEED


class FastClock(Clock):
    """Time runs sixty times as fast, for cache and client."""

    def __init__(self) -> None:
        self.random = random.Random(1).random  # type: ignore[method-assign] # the same numbers in every run

    def now(self) -> float:  # type: ignore[override] # a function in the class itself
        return 1e6 + fast()

    def wall(self) -> float:
        return fast()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / SPEED)


class FastCache(TokenCache):
    """A cache whose callers wait a sixtieth of what it tells them."""

    def _waits(self, *args: Any, **kwargs: Any) -> Generator[Wait, None, CachedToken]:
        waits = super()._waits(*args, **kwargs)
        while True:
            try:
                request, seconds = next(waits)
            except StopIteration as end:
                cached: CachedToken = end.value
                return cached
            yield Wait(request, seconds / SPEED)


@dataclass
class Findings:
    """What the callers saw."""

    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    tokens: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)  # and when each was first seen
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    least_left: float = TOKEN_LIFETIME  # seconds that the oldest token handed out had left

    def claims(self, token: str) -> dict[str, Any]:
        if token not in self.known:
            payload = token.split(".")[1]
            self.known[token] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return self.known[token]

    def got(self, identity: UserAssigned, resource: str, token: str, begun: float) -> None:
        self.calls["token"] += 1
        claims = self.claims(token)
        if (claims["appid"], claims["aud"]) != (identity.client_id, resource):
            self.wrong.append(f"asked for {identity.name} {resource}, got {claims['appid']} {claims['aud']}")
        if claims["exp"] < begun - 1:
            self.wrong.append(f"a token that expired {begun - claims['exp']:.0f} s before it was asked for")
        self.least_left = min(self.least_left, claims["exp"] - begun)
        self.tokens.setdefault((identity.name, resource), {}).setdefault(token, fast())

    def failed(
        self, identity: UserAssigned, resource: str, error: BaseException, begun: float, *, forced: bool = False
    ) -> None:
        self.calls[type(error).__name__] += 1
        if not isinstance(error, ImdsError):
            self.wrong.append(f"an undocumented {error!r}")
        if forced:
            return  # a forced refresh accepts no other token than a new one, so its failure is an error
        for token, since in tuple(self.tokens.get((identity.name, resource), {}).items()):
            left = self.claims(token)["exp"] - fast()
            if since < begun and left > ROUNDING:
                self.wrong.append(f"failed with {left:.0f} s left of a token that was there before: {error}")


class Watched(ImdsEmulator):
    """An emulator that knows how many requests it had at once, those aside whose client may have given up."""

    most_at_once = hanging = 0

    def answered(self, fault: Fault) -> Fault:
        """Count a request while it is being answered."""

        def counted(reply: Reply) -> Steps:
            self.most_at_once = max(self.most_at_once, self._imds.in_flight - self.hanging)
            yield from fault(reply)

        return counted

    def hang(self, reply: Reply) -> Steps:
        """Silence until the client gives up."""
        self.hanging += 1
        try:
            yield from faults.hang(reply)
        finally:
            self.hanging -= 1


def dribble(reply: Reply) -> Steps:
    """The answer in twenty pieces, which takes half a minute."""
    whole = reply.encode()
    for start in range(0, len(whole), 1 + len(whole) // 20):
        yield whole[start : start + 1 + len(whole) // 20]
        yield 0.025


def answers_for_another_identity(imds: ImdsEmulator) -> Fault:
    """A good answer for another identity or resource than was asked."""

    def foreign(reply: Reply) -> Steps:
        document = json.loads(reply.body)
        if reply.status == 200 and "access_token" in document:
            other = next(each for each in IDENTITIES if each.client_id != document["client_id"])
            document |= {"access_token": imds.issue_token(document["resource"], other), "client_id": other.client_id}
        yield reply.with_body(json.dumps(document).encode()).encode()

    return foreign


def cause_chaos(imds: Watched, until: float, chance: random.Random) -> Counter[str]:
    """Cause one fault after the other, each for about a second."""
    foreign = answers_for_another_identity(imds)
    causes: dict[str, Callable[[], None]] = {
        "throttles": lambda: imds.script(imds.answered(faults.throttled()), seconds=30),
        "throttles with Retry-After": lambda: imds.script(faults.throttled(10), seconds=20),
        "updates": lambda: imds.script(faults.status(410), seconds=60),
        "restarts": lambda: imds.restart(refused=0.4, wireserver=4),
        "hangs": lambda: imds.script(imds.hang, seconds=30),
        "drips": lambda: imds.script(imds.answered(dribble), seconds=20),
        "lies": lambda: imds.script(foreign, seconds=20),
        "is ill": lambda: imds.script(faults.status(500), faults.members(access_token=""), faults.reset(), seconds=40),
        "stays ill": lambda: imds.script(faults.status(500), seconds=STAYS_ILL),
        "rotates": imds.renew_tokens,
        "is well": imds.clear_faults,
    }
    caused: Counter[str] = Counter()
    names = list(causes)
    while time.monotonic() < until:
        if not names:
            names = list(causes)
        name = names.pop(chance.randrange(len(names)))
        causes[name]()
        caused[name] += 1
        lasts = STAYS_ILL / SPEED if name == "stays ill" else 0.4 + chance.random()
        time.sleep(min(lasts, max(0.0, until - time.monotonic())))
    imds.clear_faults()
    return caused


@dataclass
class Soak:
    """What a soak came to."""

    found: Findings
    most_at_once: int
    requests_per_second: float
    token_lives: float  # that it lasted
    told: str


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Soak:
    """Return what a soak of `SECONDS` came to."""
    shared = FastCache(FastClock())
    monkeypatch.setattr(_options, "process_cache", shared)
    monkeypatch.setattr(retry_policy, "READ_TIMEOUT", retry_policy.READ_TIMEOUT / SPEED)

    found = Findings()
    begun_at, stop_at = time.monotonic(), time.monotonic() + SECONDS
    chaos_until = stop_at - 2
    imds = Watched(IDENTITIES, clock=fast, token_lifetime=TOKEN_LIFETIME, latency=0.005, renew_before=300)
    with imds:
        imds.random_faults(
            imds.answered(faults.ok), faults.status(503), faults.reset(), faults.status(404), rate=0.5, seed=7
        )

        def pick(chance: random.Random) -> tuple[UserAssigned, str, Any]:
            identity, resource = chance.choice(IDENTITIES), chance.choice(RESOURCES)
            return identity, resource, partial(dict, endpoint=imds.endpoint, client_id=identity.client_id)

        def thread(seed: int) -> None:
            chance = random.Random(seed)
            while time.monotonic() < stop_at:
                identity, resource, arguments = pick(chance)
                credential = SYNC.ImdsCredential(**arguments())
                begun, forced = fast(), chance.random() < 0.01
                try:
                    token = credential.get_token(resource, force_refresh=forced).token
                except BaseException as error:
                    found.failed(identity, resource, error, begun, forced=forced)
                else:
                    found.got(identity, resource, token, begun)
                time.sleep(0.02 * chance.random())

        async def task(seed: int) -> None:
            chance = random.Random(seed)
            while time.monotonic() < stop_at:
                identity, resource, arguments = pick(chance)
                credential = AIO.ImdsCredential(**arguments())
                begun = fast()
                asking = asyncio.ensure_future(credential.get_token(resource))
                if chance.random() < 0.02:
                    asyncio.get_running_loop().call_later(0.01 * chance.random(), asking.cancel)
                try:
                    token = (await asking).token
                except asyncio.CancelledError:
                    found.calls["cancelled"] += 1
                except BaseException as error:
                    found.failed(identity, resource, error, begun)
                else:
                    found.got(identity, resource, token, begun)
                await asyncio.sleep(0.2 * chance.random())

        async def loop(first: int) -> None:
            await asyncio.gather(*(task(first + number) for number in range(TASKS // LOOPS)))

        callers = [threading.Thread(target=thread, args=(seed,)) for seed in range(THREADS)]
        callers += [threading.Thread(target=asyncio.run, args=(loop(1000 * (1 + each)),)) for each in range(LOOPS)]
        for caller in callers:
            caller.start()
        imds.wait_for_requests(len(IDENTITIES) * len(RESOURCES))
        time.sleep(0.5)
        caused = cause_chaos(imds, chaos_until, random.Random(3))
        for caller in callers:
            caller.join()
        requests, passed = len(imds.requests), (time.monotonic() - begun_at) * SPEED
        for thread in threading.enumerate():
            if thread.name == THREAD_NAME:
                thread.join(5)

    told = (
        f"{dict(found.calls)}, tokens with {found.least_left:.0f} s left; {requests} requests in {passed:.0f} s, "
        f"at most {imds.most_at_once} at once; IMDS {dict(caused)}"
    )
    print(told)
    return Soak(found, imds.most_at_once, requests / passed, passed / TOKEN_LIFETIME, told)


@pytest.mark.slow
def test_chaos(soak: Soak) -> None:
    """No failed call while a valid token is held, and no wrong token, however slow the machine is."""
    assert not soak.found.wrong, f"{len(soak.found.wrong)} of {soak.told}: {soak.found.wrong[:10]}"
    assert soak.found.calls["token"] > 0, soak.told


@pytest.mark.alone
def test_chaos_at_full_speed(soak: Soak) -> None:
    """Each token is replaced again and again, nearly every call gets one, and the rate of requests is bounded.

    Real time decides: where the machine stops for a second, a minute has passed for the tokens and the requests.
    """
    found, told = soak.found, soak.told
    assert not found.wrong, f"{len(found.wrong)} of {told}: {found.wrong[:10]}"
    assert found.calls["token"] > 100 * SECONDS, told
    assert found.calls["token"] > 0.9 * found.calls.total(), told
    assert len(found.tokens) == len(IDENTITIES) * len(RESOURCES), told
    assert all(len(tokens) >= min(3, soak.token_lives) for tokens in found.tokens.values()), told
    assert found.least_left < 30, told
    assert 0 < soak.most_at_once <= IDENTITY_AT_ONCE, told
    assert soak.requests_per_second < 2, told
