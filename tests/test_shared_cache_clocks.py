"""Stored tokens after a pause of the VM, which stops the boot clock, and after the wall clock was set."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flavors import VAULT, Flavor, VirtualTime

from azure_imds_credential import ImdsCredential, ImdsError, _options
from azure_imds_credential._cache.token_cache import TokenCache
from azure_imds_credential._clock import MAX_DRIFT
from azure_imds_credential._request import TokenRequest
from azure_imds_credential._shared import shared_cache
from azure_imds_credential._shared.stored_token import StoredToken
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tokens are shared on Linux only, for now")

HOUR = 3600.0
DAY = 24 * HOUR


class PausableTime(VirtualTime):
    """Virtual time in which the wall clock alone can jump, as it does after a pause."""

    _paused = 0.0

    def wall(self) -> float:
        return super().wall() + self._paused

    def pause(self, seconds: float) -> None:
        """Let time pass that the boot clock does not count."""
        self._paused += seconds


@pytest.fixture
def virtual_time(memory: Path, monkeypatch: pytest.MonkeyPatch) -> PausableTime:
    """The clock of all processes, and of the emulator."""
    clock = PausableTime()
    monkeypatch.setattr(_options, "process_cache", TokenCache(clock))
    monkeypatch.setattr(shared_cache, "FALLBACK_TIMEOUT", 60.0)  # a slow machine changes no outcome
    return clock


def new_process(flavor: Flavor, imds: ImdsEmulator, **arguments: Any) -> Any:
    """Return a token for a process that has none."""
    forget_tokens()
    return flavor.ask(imds.endpoint, shared_cache=True, **arguments)


REFUSED = faults.status(400, {"error": "invalid_request", "error_description": "no"})


@pytest.mark.parametrize("age", [11.0, 120.0], ids=["just stored", "stored a while ago"])
def test_expired_during_a_pause(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator, age: float) -> None:
    """A process that holds a token which ended while the VM was paused does not find it again in the shared cache."""
    credential = flavor.ImdsCredential(endpoint=imds.endpoint, shared_cache=True)
    old = flavor.run(credential.get_token(VAULT))
    virtual_time.skip(age)
    virtual_time.pause(25 * HOUR)
    new = flavor.run(credential.get_token(VAULT))
    assert new.token != old.token
    assert new.expires_on == pytest.approx(virtual_time.wall() + DAY, abs=60)
    imds.assert_requests(2)


def test_new_process_after_a_pause(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator) -> None:
    """After a pause one process asks how long the stored token lasts, and the others take that from it."""
    old = new_process(flavor, imds)
    virtual_time.skip(60)
    virtual_time.pause(20 * HOUR)
    for _ in range(3):
        token = new_process(flavor, imds)
        assert token.token == old.token
        assert token.expires_on == pytest.approx(old.expires_on, abs=60)
        imds.assert_requests(2)


@pytest.mark.parametrize("pause", [25 * HOUR, 20 * HOUR])
def test_no_answer_after_a_pause(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator, pause: float) -> None:
    """Where IMDS fails after a pause, the stored token serves as long as the wall clock gives it."""
    old = new_process(flavor, imds)
    virtual_time.skip(60)
    virtual_time.pause(pause)
    imds.script(REFUSED)
    if pause < DAY:
        token = new_process(flavor, imds)
        assert token.token == old.token
        assert token.expires_on == pytest.approx(old.expires_on, abs=60)
    else:
        with pytest.raises(ImdsError):
            new_process(flavor, imds)
    imds.assert_requests(2)


@pytest.mark.parametrize("pause", [0.0, 20 * HOUR])
def test_forced_before_a_pause(virtual_time: PausableTime, imds: ImdsEmulator, pause: float) -> None:
    """What another process forced serves a forced request that began before, but not after a pause."""
    credential = ImdsCredential(endpoint=imds.endpoint, shared_cache=True)
    began = virtual_time.now()
    token = credential.get_token(VAULT, force_refresh=True).token
    virtual_time.pause(pause)
    key = credential._options.entry((VAULT,)).key
    request = TokenRequest(key, began, virtual_time.now() + HOUR, forced=True)
    with shared_cache.SharedLease(request, virtual_time) as lease:
        assert (lease.result.access_token if lease.result else None) == (None if pause else token)


def test_pause_during_the_request(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator) -> None:
    """A stored token in its last minutes that ends while the VM is paused does not serve where IMDS then fails."""
    new_process(flavor, imds)
    virtual_time.skip(DAY - 200)
    answer = threading.Event()

    def refuse_later(reply: faults.Reply) -> faults.Steps:
        yield answer
        yield from REFUSED(reply)

    imds.script(refuse_later)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(new_process, flavor, imds)
        imds.wait_for_requests(2)
        virtual_time.pause(300)
        answer.set()
        with pytest.raises(ImdsError):
            asked.result()


@pytest.mark.parametrize("jump", [-400 * DAY, -HOUR, HOUR, 400 * DAY])
def test_wall_clock_that_was_set(flavor: Flavor, virtual_time: PausableTime, jump: float) -> None:
    """A wall clock that was set cannot be told from a pause: it costs one request, and ends no token."""
    with ImdsEmulator(clock=partial(VirtualTime.wall, virtual_time)) as imds:  # its clock was not set
        old = new_process(flavor, imds)
        virtual_time.pause(jump)
        for _ in range(3):
            token = new_process(flavor, imds)
            assert token.token == old.token
            assert token.expires_on == pytest.approx(virtual_time.wall() + DAY, abs=60)
        imds.assert_requests(2)


@pytest.mark.parametrize("step", [-20.0, 20.0])
def test_wall_clock_kept_in_step(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator, step: float) -> None:
    """A small difference between the clocks costs no request, and the boot clock has the token's age."""
    old = new_process(flavor, imds)
    virtual_time.skip(60)
    virtual_time.pause(step)
    token = new_process(flavor, imds)
    assert token.expires_on == pytest.approx(old.expires_on + step, abs=2)
    imds.assert_requests(1)


def test_expired_tokens_of_others(flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator, memory: Path) -> None:
    """Processes that ask remove the tokens that have expired, a few at a time, and no other file."""
    for number in range(shared_cache.MAX_SWEPT + 4):
        new_process(flavor, imds, scope=f"https://{number}.test")
    expired, locks = set(memory.rglob("*.token")), set(memory.rglob("*.lock"))
    virtual_time.skip(DAY / 2)
    new_process(flavor, imds, scope="https://younger.test")
    damaged = next(iter(expired)).with_name("00000000.token")
    damaged.write_bytes(b"damaged")
    damaged.chmod(0o600)
    kept = set(memory.rglob("*.token")) - expired
    virtual_time.skip(DAY / 2 + 60)
    for number in range(100):
        before = len(expired & set(memory.rglob("*.token")))
        new_process(flavor, imds, scope=f"https://new-{number}.test")
        left = len(expired & set(memory.rglob("*.token")))
        assert left >= before - shared_cache.MAX_SWEPT
        if not left:
            break
    files = set(memory.rglob("*"))
    assert not files & expired
    assert files >= locks | kept


def test_tokens_of_others_after_a_pause(
    flavor: Flavor, virtual_time: PausableTime, imds: ImdsEmulator, memory: Path
) -> None:
    """No process removes the token of another because its own wall clock is ahead."""
    new_process(flavor, imds)
    virtual_time.pause(400 * DAY)
    new_process(flavor, imds, scope="https://new.test")
    assert len(list(memory.rglob("*.token"))) == 2


@pytest.mark.parametrize(
    ("drift", "drifted", "expires_at"),
    [
        (0.0, False, 2000.0),
        (MAX_DRIFT, False, 2000.0),
        (-MAX_DRIFT, False, 2000.0),
        (MAX_DRIFT + 1, True, 2000.0 - MAX_DRIFT - 1),
        (-MAX_DRIFT - 1, True, 2000.0),
        (5000.0, True, -3000.0),
    ],
)
def test_earliest_expiry(drift: float, drifted: bool, expires_at: float) -> None:
    """Beyond the drift of a clock that is kept in step the earlier expiry counts, as for cached tokens."""
    stored = StoredToken("dummy", 2000.0, 1000.0, 1000.0, wall_offset=1e9, forced=False)
    assert stored.has_drifted(1500.0, 1e9 + 1500.0 + drift) is drifted
    assert stored.earliest_expiry(1500.0, 1e9 + 1500.0 + drift) == expires_at
