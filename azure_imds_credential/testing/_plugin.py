"""The pytest plugin. Loaded with every pytest run, so nothing is imported before a fixture is used."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_imds_credential import ImdsCredential

    from ._emulator.emulator import ImdsEmulator

UNFIT = re.compile(r'[\x00-\x1f"*/:<>?\\|]')  # for file names: on Windows all of these, elsewhere the slash
MARKERS = (
    "imds(**options): options of ImdsEmulator for the imds_emulator fixture, e.g. identities=[...], throttle=True",
    "imds_recording(path): where the imds_recording fixture finds its recording, relative to the folder of the test",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the one switch that makes recordings."""
    parser.getgroup("azure-imds-credential").addoption(
        "--imds-record",
        default="none",
        choices=("none", "once", "new_episodes", "all"),
        help="record mode of the imds_recording fixture (default: none, which replays and never records)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.fixture
def _no_tokens() -> Iterator[None]:
    """Tokens of other tests are gone, and those of this test are not left behind."""
    from . import forget_tokens

    forget_tokens()
    yield
    forget_tokens()


@pytest.fixture
def _no_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no other token source than IMDS."""
    from azure_imds_credential._source import VARIABLES

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def imds_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _no_tokens: None, _no_other_source: None
) -> Iterator[ImdsEmulator]:
    """An IMDS of the test's own, which every credential that is not told otherwise asks.

    `@pytest.mark.imds(...)` takes the options of `ImdsEmulator`. AZURE_POD_IDENTITY_AUTHORITY_HOST points to it, so
    that code which makes its own credential needs no change, whether that is of this package or of azure-identity.
    """
    from . import ImdsEmulator

    marker = request.node.get_closest_marker("imds")
    args, options = ((), {}) if marker is None else (marker.args, marker.kwargs)
    with ImdsEmulator(*args, **options) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


@pytest.fixture
def imds_credential(imds_emulator: ImdsEmulator) -> Iterator[ImdsCredential]:
    """A credential without selector for the machine of `imds_emulator`."""
    from azure_imds_credential import ImdsCredential

    with ImdsCredential(endpoint=imds_emulator.endpoint) as credential:
        yield credential


@pytest.fixture
def no_network(_no_tokens: None) -> Iterator[list[str]]:
    """Loopback only, for the whole process: other addresses are refused, and so is the look-up of names.

    Yields what was refused so far. The refusal is no Exception, so that no retry or fallback hides it.
    """
    from ._network import loopback_only

    with loopback_only() as refused:
        yield refused


@pytest.fixture
def imds_recording(request: pytest.FixtureRequest, _no_tokens: None) -> Iterator[Any]:
    """Replays the recording of this test, or what the marker names.

    That is recordings/MODULE/TEST.yaml beside the module, or CLASS.TEST.yaml for a test of a class; `-` stands for what
    a parameter has and a file name cannot have.

    `pytest --imds-record=once` makes it, on a machine that has IMDS. Yields vcrpy's cassette.
    """
    from . import imds_vcr

    mode: str = request.config.getoption("--imds-record")
    marker = request.node.get_closest_marker("imds_recording")
    named = _own_recording(request) if marker is None else marker.args[0]
    if mode == "none":
        request.getfixturevalue("_no_other_source")
    with imds_vcr(request.path.parent / named, record_mode=mode) as cassette:
        yield cassette


def _own_recording(request: pytest.FixtureRequest) -> str:
    classes = [node.name for node in request.node.listchain() if isinstance(node, pytest.Class)]
    test = UNFIT.sub("-", ".".join((*classes, request.node.name)))
    return f"recordings/{request.path.stem}/{test}.yaml"
