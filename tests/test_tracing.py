"""With azure-core's tracing on, each request to IMDS is a span of the caller's, as azure-identity's are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = str(Path(__file__).with_name("tracing_program.py"))
FOREIGN = ("http.user_agent", "user_agent.original", "az.client_request_id", "az.service_request_id")


def _is_missing() -> bool:
    try:
        return find_spec("opentelemetry.sdk") is None
    except ModuleNotFoundError:
        return True


pytestmark = pytest.mark.skipif(_is_missing(), reason="opentelemetry-sdk is not installed; the extra `test` has it")


@pytest.fixture(scope="module")
def told() -> Callable[[str], Any]:
    """What the program printed, by how tracing was turned on."""
    known: dict[str, Any] = {}

    def program(mode: str) -> Any:
        if mode not in known:
            if mode == "plugin" and find_spec("azure.core.tracing.ext") is None:
                pytest.skip("azure-core-tracing-opentelemetry is not installed; the extra `test` has it")
            done = subprocess.run(
                [sys.executable, PROGRAM, mode], capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, done.stderr
            known[mode] = json.loads(done.stdout)
        return known[mode]

    return program


MODES = pytest.mark.parametrize("mode", ["plugin", "native"])
OURS = pytest.mark.parametrize("call", ["sync", "aio", "sync with options", "aio with options"])


@MODES
@OURS
def test_one_span_for_each_request(told: Callable[[str], Any], mode: str, call: str) -> None:
    """A request is one span of kind client, inside the caller's own."""
    (span,) = told(mode)[call]
    assert span["kind"] == "CLIENT"
    assert span["in_outer"]


@MODES
@OURS
def test_spans_as_azure_identity(told: Callable[[str], Any], mode: str, call: str) -> None:
    """Name, kind and attributes are those of azure-identity's span, values of the request's own ID apart."""
    theirs, (ours,) = told(mode)["azure-identity"][-1], told(mode)[call]
    assert (ours["name"], ours["kind"]) == (theirs["name"], theirs["kind"])
    missing = theirs["attributes"].keys() - ours["attributes"].keys()
    assert not missing - set(FOREIGN), missing
    for name in theirs["attributes"].keys() & ours["attributes"].keys() - set(FOREIGN):
        assert ours["attributes"][name] == theirs["attributes"][name], name


@MODES
@OURS
def test_attributes_of_tracing_options(told: Callable[[str], Any], mode: str, call: str) -> None:
    """`tracing_options={"attributes": ...}` adds them to the span."""
    (span,) = told(mode)[call]
    assert span["attributes"].get("team") == ("blue" if "options" in call else None)


@MODES
@pytest.mark.parametrize("call", ["sync, refused", "aio, refused"])
def test_span_of_a_failed_request(told: Callable[[str], Any], mode: str, call: str) -> None:
    """A request that nothing answered is a span with an error."""
    (span,) = told(mode)[call]
    assert told(mode)[f"error of {call}"] == "ImdsUnavailableError"
    assert span["status"] == "ERROR"


@MODES
@pytest.mark.parametrize("call", ["sync, twice", "aio, twice"])
def test_one_span_for_each_attempt(told: Callable[[str], Any], mode: str, call: str) -> None:
    """A request that is repeated is a span each time, with the status of its own response."""
    spans = told(mode)[call]
    assert all(span["in_outer"] for span in spans)
    codes = [
        span["attributes"].get("http.status_code", span["attributes"].get("http.response.status_code"))
        for span in spans
    ]
    assert codes == [404, 200]


@MODES
def test_tracing_says_nothing(told: Callable[[str], Any], mode: str) -> None:
    """No warning such as "Unable to start network span"."""
    assert told(mode)["said"] == []


def test_no_span_without_tracing(told: Callable[[str], Any]) -> None:
    """Without a tracer there are no spans."""
    assert all(told("off")[call] == [] for call in ("sync", "aio", "sync with options"))
