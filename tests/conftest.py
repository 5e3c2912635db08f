"""What every test gets: no connection that is not loopback, and no environment that names another token source."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from azure_imds_credential._source import VARIABLES
from azure_imds_credential.testing._network import loopback_only

pytest_plugins = ("colours", "leaks")


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Iterator[None]:
    """Refuse every connection whose parsed address is not loopback, and every look-up of names, for the whole suite."""
    with loopback_only() as refused:
        yield
    assert not refused, refused


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine decides what a test sees; a forgotten endpoint is a refused loopback port."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
