"""One test for both credential classes, and a time in which sleeping is free."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential import _options
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._clock import Clock
from azure_imds_credential.testing import ImdsEmulator, forget_tokens

VAULT = "https://vault.azure.net"


@dataclass(frozen=True)
class Flavor:
    """A credential class, and how to get the value of what its methods return."""

    name: str
    ImdsCredential: Callable[..., Any]
    run: Callable[[Any], Any]

    def ask(self, endpoint: str, *, scope: str = VAULT, **arguments: Any) -> Any:
        """Make a credential and get one token."""
        return self.run(self.ImdsCredential(endpoint=endpoint, **arguments).get_token(scope))


SYNC = Flavor("sync", azure_imds_credential.ImdsCredential, lambda value: value)
AIO = Flavor("aio", azure_imds_credential.aio.ImdsCredential, asyncio.run)


@pytest.fixture(params=[SYNC, AIO], ids=lambda flavor: flavor.name)
def flavor(request: pytest.FixtureRequest) -> Flavor:
    """Each credential class in turn: what a test says of one holds for the other."""
    forget_tokens()
    found = request.param
    assert isinstance(found, Flavor)
    return found


class VirtualTime(Clock):
    """Clocks that run as usual, and jump where the library sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.random = random.Random(4).random  # type: ignore[method-assign] # the same numbers in every run
        self._ahead = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:  # type: ignore[override] # a function in the class itself
        return 1e6 + time.monotonic() + self._ahead  # a machine that has been up for long

    def wall(self) -> float:
        return time.time() + self._ahead

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, "as time.sleep has it"
        with self._lock:
            self.slept.append(seconds)
            self._ahead += seconds

    def skip(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._ahead += seconds


def eventually(happens: Callable[[], object]) -> None:
    """Wait until something holds that needs no more than other threads; a minute means that it never will."""
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


class StillTime(Clock):
    """Clocks that stand still until they are set."""

    def __init__(self, now: float = 1e6, wall: float = 1e9, random: float = 0.5) -> None:
        self.at, self.wall_at, self.dice = now, wall, random

    def now(self) -> float:  # type: ignore[override] # a function in the class itself
        return self.at

    def wall(self) -> float:
        return self.wall_at

    def random(self) -> float:
        return self.dice

    def sleep(self, seconds: float) -> None:
        self.skip(seconds)

    def skip(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.at += seconds
        self.wall_at += seconds


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """Caches that live in virtual time, for credentials made from now on: waits between attempts cost nothing."""
    clock = VirtualTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    return clock


@pytest.fixture
def imds(request: pytest.FixtureRequest) -> Iterator[ImdsEmulator]:
    """An emulated VM with one system-assigned identity; in virtual time where the test is."""
    clock = request.getfixturevalue("virtual_time").wall if "virtual_time" in request.fixturenames else time.time
    with ImdsEmulator(clock=clock) as emulator:
        yield emulator
