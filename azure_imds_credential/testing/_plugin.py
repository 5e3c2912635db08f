"""The pytest plugin. Loaded with every pytest run, so nothing is imported before a fixture is used."""

from __future__ import annotations

import re
from hashlib import sha256
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from azure_imds_credential import ImdsCredential

    from ._emulator.emulator import ImdsEmulator

UNFIT = re.compile(r'[\x00-\x1f"*/:<>?\\|]')  # for file names: on Windows all of these, elsewhere the slash
FIXTURE_OF = {"imds": "imds_emulator", "imds_recording": "imds_recording"}
_REFUSED = pytest.StashKey[list[str]]()
_TOLD = pytest.StashKey[int]()
MARKERS = (
    "imds(**options): options of ImdsEmulator for the imds_emulator fixture, e.g. identities=[...], throttle=True",
    "imds_recording(path): where the imds_recording fixture finds its recording, relative to the folder of the test",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one switch that makes recordings."""
    parser.getgroup("azure-imds-credential").addoption(
        "--imds-record",
        default="none",
        choices=("none", "once", "new_episodes", "all"),
        help="record mode of the imds_recording fixture (default: none, which replays and never records)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tell of a marker that means nothing where it stands."""
    fixtures = getattr(item, "fixturenames", ())
    for marker in getattr(item, "own_markers", ()):
        fixture = FIXTURE_OF.get(marker.name)
        if fixture is not None and not {fixture, "request"} & {*fixtures}:  # through request any may be had
            pytest.fail(f"@pytest.mark.{marker.name} means nothing: the test does not use {fixture}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test with `no_network` in which something was refused, although the test went on."""
    refused = item.stash.get(_REFUSED, [])
    try:
        result = yield
    except BaseException:
        item.stash[_TOLD] = len(refused)
        raise
    item.stash[_TOLD] = len(refused)
    _fail_if(refused)
    return result


def _fail_if(refused: list[str]) -> None:
    if refused:
        lines = "\n".join(f"  {line}" for line in refused)
        pytest.fail(
            f"no_network refused what would leave this machine:\n{lines}\n"
            "A test that expects this empties the list that the fixture yields.",
            pytrace=False,
        )


@pytest.fixture
def _no_tokens() -> Iterator[None]:
    """Tokens of other tests and of the user are gone, and those of this test are not left behind."""
    from . import forget_tokens
    from ._own_cache import own_shared_cache

    with own_shared_cache():
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
    from .._endpoint import ENDPOINT_VARIABLE
    from . import ImdsEmulator

    marker = request.node.get_closest_marker("imds")
    args, options = ((), {}) if marker is None else (marker.args, marker.kwargs)
    with ImdsEmulator(*args, **options) as imds:
        monkeypatch.setenv(ENDPOINT_VARIABLE, imds.endpoint)
        yield imds


@pytest.fixture
def imds_credential(imds_emulator: ImdsEmulator) -> Iterator[ImdsCredential]:
    """A credential without selector for the machine of `imds_emulator`."""
    from azure_imds_credential import ImdsCredential

    with ImdsCredential(endpoint=imds_emulator.endpoint) as credential:
        yield credential


@pytest.fixture
def no_network(request: pytest.FixtureRequest, _no_tokens: None) -> Iterator[list[str]]:
    """Loopback only, for the whole process: other addresses, their proxies and the look-up of names are refused.

    Yields what was refused so far, with the place in the program that asked for it. The refusal is no Exception, so
    that no retry or fallback hides it; and the test fails if anything was refused, even if the refusal was swallowed.
    A test that expects one empties the list.
    """
    from ._network import loopback_only

    with loopback_only() as refused:
        request.node.stash[_REFUSED] = refused
        yield refused
    _fail_if(refused[request.node.stash.get(_TOLD, 0) :])


@pytest.fixture
def imds_recording(request: pytest.FixtureRequest, _no_tokens: None) -> Iterator[Any]:
    """Replay the recording of this test, or what the marker names.

    That is recordings/MODULE/TEST.yaml beside the module, or CLASS.TEST.yaml for a test of a class. `-` stands for what
    a parameter has and a file name cannot have; such names, and those with capitals, end with a part of a hash.

    `pytest --imds-record=once` makes it, on a machine that has IMDS. Yields vcrpy's cassette.
    """
    from . import imds_vcr

    mode: str = request.config.getoption("--imds-record")
    marker = request.node.get_closest_marker("imds_recording")
    named = _own_recording(request) if marker is None else _named_by(marker)
    if mode == "none":
        request.getfixturevalue("_no_other_source")
    with imds_vcr(request.path.parent / named, record_mode=mode) as cassette:
        yield cassette


def _named_by(marker: pytest.Mark) -> str:
    if len(marker.args) != 1 or marker.kwargs or not isinstance(marker.args[0], (str, PathLike)):
        given = ", ".join([*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())])
        pytest.fail(f"@pytest.mark.imds_recording takes the path of a recording, got ({given})", pytrace=False)
    return fspath(marker.args[0])


def _own_recording(request: pytest.FixtureRequest) -> str:
    classes = [node.name for node in request.node.listchain() if isinstance(node, pytest.Class)]
    name, bracket, parameters = request.node.name.partition("[")
    test = UNFIT.sub("-", ".".join((*classes, name)) + bracket + parameters)
    if UNFIT.search(parameters) or parameters != parameters.lower():
        # Some file systems have no case, and `-` stands for several characters.
        test += f"-{sha256(parameters.encode()).hexdigest()[:8]}"
    return f"recordings/{request.path.stem}/{test}.yaml"
