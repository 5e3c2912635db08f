"""freezegun and time-machine, with the emulator, recordings and both credential classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import freezegun
import jwt
import pytest
import time_machine
from flavors import Flavor

from azure_imds_credential.testing import ImdsEmulator, forget_tokens, imds_vcr

RECORDINGS = Path(__file__).parent.parent / "recordings"
VAULT = "https://vault.azure.net/.default"
# A day that is neither today nor in any recording.
THEN = 1_900_000_000.0
DAY = 86400
Move = Callable[[float], None]


@contextmanager
def _freezegun(tick: bool) -> Iterator[Move]:
    with freezegun.freeze_time("2030-03-17T17:46:40", tick=tick) as frozen:
        yield frozen.tick


@contextmanager
def _time_machine(tick: bool) -> Iterator[Move]:
    with time_machine.travel(THEN, tick=tick) as traveller:
        yield traveller.shift


TOOLS: dict[str, Callable[[], AbstractContextManager[Move]]] = {
    "freezegun": lambda: _freezegun(tick=False),
    "freezegun, tick=True": lambda: _freezegun(tick=True),
    "time-machine": lambda: _time_machine(tick=True),
    "time-machine, tick=False": lambda: _time_machine(tick=False),
}


@pytest.fixture(params=TOOLS)
def then(request: pytest.FixtureRequest) -> Iterator[Move]:
    """It is another day inside the test; the value moves it on."""
    forget_tokens()
    with TOOLS[request.param]() as move:
        yield move
    forget_tokens()


def test_emulator(then: Move) -> None:
    """The emulator issues tokens of the day that the test is in, and its clock moves on with it."""
    with ImdsEmulator() as imds:
        claims = jwt.decode(imds.issue_token("api://app"), options={"verify_signature": False})
        assert claims["exp"] - DAY == pytest.approx(THEN, abs=60)
        then(3600)
        assert imds.now() == pytest.approx(THEN + 3600, abs=60)


def test_latency(then: Move, flavor: Flavor) -> None:
    """Answers that take their time come while the time of the test stands still."""
    del then
    with ImdsEmulator(latency=0.05) as imds:
        assert flavor.ask(imds.endpoint).token == imds.tokens[0]


def test_credential(then: Move, flavor: Flavor) -> None:
    """Expiries are told by the clock that the program sees; a held token ages by the machine's own."""
    with ImdsEmulator() as imds:
        credential = flavor.ImdsCredential(endpoint=imds.endpoint)
        first = flavor.run(credential.get_token(VAULT))
        assert first.expires_on == pytest.approx(THEN + DAY, abs=60)
        then(DAY + 60)
        assert flavor.run(credential.get_token(VAULT)).token == first.token
        forget_tokens()
        second = flavor.run(credential.get_token(VAULT))
        assert second.token != first.token
        assert second.expires_on == pytest.approx(THEN + 2 * DAY + 60, abs=60)
        imds.assert_requests(2)


def test_recording(then: Move, flavor: Flavor) -> None:
    """A recording is replayed on the day that the test is in."""
    del then
    with imds_vcr(RECORDINGS / "system-assigned.yaml"):
        token = flavor.run(flavor.ImdsCredential().get_token(VAULT))
    claims: dict[str, Any] = jwt.decode(token.token, options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(THEN + DAY, abs=300)
    assert token.expires_on == pytest.approx(THEN + DAY, abs=300)
    assert time.time() == pytest.approx(THEN, abs=60)
