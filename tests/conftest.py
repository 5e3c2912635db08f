"""What every test gets: no connection that is not loopback, and nothing of the machine's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from environment import SET, clean_environment
from hypothesis import HealthCheck, settings

from azure_imds_credential import _endpoint
from azure_imds_credential.testing._network import loopback_only

clean_environment()  # before any fixture, of whatever scope, can start a child
# The same examples in each run; with FUZZ set (how many times as many) they are new ones. Slowness is no failure.
settings.register_profile(
    "suite", deadline=None, derandomize="FUZZ" not in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
pytest_plugins = ("flavors", "in_memory", "leaks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that measure real time, unless `-m` names them: what else runs then would decide them."""
    if "alone" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("alone")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Refuse every connection whose parsed address is not loopback, and every look-up of names, for the whole suite."""
    with loopback_only() as refused:
        yield
    assert not refused, refused


@pytest.fixture(autouse=True)
def _same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the same environment to begin with, whatever the test before it did."""
    for name, value in SET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _machine_that_has_been_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has just started gives a refused address ten seconds; tests of that say so."""
    monkeypatch.setattr(_endpoint, "BOOT_TIME", 0.0)
