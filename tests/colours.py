"""One test for both colours: the sync and the aio credential behind one fixture, in a time where sleeping is free."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential import _configuration
from azure_imds_credential._freshness import World
from azure_imds_credential._token_cache import TokenCache
from azure_imds_credential.testing import ImdsEmulator, forget_tokens

VAULT = "https://vault.azure.net"


@dataclass(frozen=True)
class Colour:
    """A credential class, and how to get the value of what its methods return."""

    name: str
    ImdsCredential: Callable[..., Any]
    run: Callable[[Any], Any]

    def ask(self, endpoint: str, *, scope: str = VAULT, **arguments: Any) -> Any:
        """Make a credential and get one token."""
        return self.run(self.ImdsCredential(endpoint=endpoint, **arguments).get_token(scope))


SYNC = Colour("sync", azure_imds_credential.ImdsCredential, lambda value: value)
AIO = Colour("aio", azure_imds_credential.aio.ImdsCredential, asyncio.run)


@pytest.fixture(params=[SYNC, AIO], ids=lambda colour: colour.name)
def colour(request: pytest.FixtureRequest) -> Colour:
    """Each colour in turn: what a test says of one holds for the other."""
    forget_tokens()
    found = request.param
    assert isinstance(found, Colour)
    return found


@dataclass
class VirtualTime:
    """Clocks that run as usual, and jump where somebody sleeps."""

    slept: list[float] = field(default_factory=list)
    _ahead: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clock(self) -> float:
        return time.monotonic() + self._ahead

    def wall_clock(self) -> float:
        return time.time() + self._ahead

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, "as time.sleep has it"
        with self._lock:
            self.slept.append(seconds)
            self._ahead += seconds

    def skip(self, seconds: float) -> None:
        """Let time pass without anybody sleeping."""
        with self._lock:
            self._ahead += seconds


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """Caches that live in virtual time, for credentials made from now on: waits between attempts cost nothing."""
    passing = VirtualTime()
    draw = random.Random(4).random

    cache = TokenCache(World(passing.clock, passing.wall_clock, draw, passing.sleep))
    monkeypatch.setattr(_configuration, "process_cache", cache)
    return passing


@pytest.fixture
def imds(request: pytest.FixtureRequest) -> Iterator[ImdsEmulator]:
    """An emulated VM with one system-assigned identity; in virtual time where the test is."""
    clock = request.getfixturevalue("virtual_time").wall_clock if "virtual_time" in request.fixturenames else time.time
    with ImdsEmulator(clock=clock) as emulator:
        yield emulator
