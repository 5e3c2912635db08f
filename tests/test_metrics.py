"""OpenTelemetry metrics of the requests to IMDS, read as an exporter reads them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from azure_imds_credential import IdentityUnavailableError, ImdsCredential, _observers, metrics
from azure_imds_credential._cache import token_cache
from azure_imds_credential.metrics import record_metrics
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

VAULT = "https://vault.azure.net"
TOKEN = {"azure.imds.identity": "the machine's default identity", "azure.imds.resource": VAULT}

Read = Callable[[], dict[str, list[tuple[dict[str, Any], Any]]]]


@pytest.fixture
def imds() -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator() as imds:
        yield imds


@pytest.fixture
def read() -> Iterator[Read]:
    """Record into memory; yield a function that returns attributes and value of each point, by metric.

    One collection has it all: OpenTelemetry SDK 1.20 gives a histogram again only after a new measurement.
    """
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = record_metrics(provider)

    def read() -> dict[str, list[tuple[dict[str, Any], Any]]]:
        data = reader.get_metrics_data()
        metrics = [m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics]
        return {
            metric.name: [
                (dict(point.attributes or {}), getattr(point, "value", getattr(point, "count", None)))
                for point in metric.data.data_points
            ]
            for metric in metrics
        }

    yield read
    stop()
    provider.shutdown()


def test_request_metrics(imds: ImdsEmulator, read: Read) -> None:
    """A request is counted with its outcome, duration and caller; the life of its token is read at each export."""
    ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)
    request = {**TOKEN, "azure.imds.outcome": "token", "azure.imds.refresh": False}
    points = read()
    assert points["azure.imds.requests"] == [(request, 1)]
    assert points["azure.imds.request.duration"] == [(request, 1)]
    assert points["azure.imds.request.callers"] == [(TOKEN, 1)]
    assert points["azure.imds.request.throttled"] == [(TOKEN, 0)]
    ((attributes, life),) = points["azure.imds.token.life"]
    assert attributes == TOKEN
    assert 86000 < life <= 86400


def test_cached_token_records_nothing(imds: ImdsEmulator, read: Read) -> None:
    """Calls that are answered from the cache are not counted."""
    credential = ImdsCredential(endpoint=imds.endpoint)
    for _ in range(5):
        credential.get_token(VAULT)
    assert [value for _, value in read()["azure.imds.requests"]] == [1]


def test_failure_metrics(imds: ImdsEmulator, read: Read) -> None:
    """A failure is counted by the class of its error, and leaves no life of a token."""
    with pytest.raises(IdentityUnavailableError):
        ImdsCredential(endpoint=imds.endpoint, client_id="00000000-0000-4000-8000-000000000001").get_token(VAULT)
    points = read()
    ((attributes, count),) = points["azure.imds.requests"]
    assert (attributes["azure.imds.outcome"], count) == ("IdentityUnavailableError", 1)
    assert "azure.imds.token.life" not in points


def test_throttled_metric(imds: ImdsEmulator, read: Read) -> None:
    """Each 429 is counted, also where the retry succeeds. `Retry-After: 0` makes the pause short."""
    imds.script(faults.throttled(0), faults.throttled(0))
    ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)
    points = read()
    assert points["azure.imds.request.throttled"] == [(TOKEN, 2)]
    assert [value for _, value in points["azure.imds.requests"]] == [1]


def test_refresh_metric(imds: ImdsEmulator, read: Read) -> None:
    """A request that is sent while a token is cached is a refresh."""
    credential = ImdsCredential(endpoint=imds.endpoint)
    credential.get_token(VAULT)
    credential.get_token(VAULT, force_refresh=True)
    assert {attributes["azure.imds.refresh"]: count for attributes, count in read()["azure.imds.requests"]} == {
        False: 1,
        True: 1,
    }


def test_shared_request_metric(imds: ImdsEmulator, read: Read) -> None:
    """Callers that wait for the same request are counted, so that what sharing saves can be seen."""
    ready = threading.Barrier(4)

    def ask() -> None:
        ready.wait(30)
        ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = read()
    ((_, callers),) = points["azure.imds.request.callers"]
    assert 1 <= callers <= 4
    assert [value for _, value in points["azure.imds.requests"]] == [1]


def test_recording_ends(imds: ImdsEmulator) -> None:
    """After the end of a recording nothing is added, and ending it twice does no harm."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = record_metrics(provider)
    stop()
    stop()
    ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)
    data = reader.get_metrics_data()
    names = [m.name for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics]
    assert names == []
    provider.shutdown()


@pytest.mark.parametrize("has_threads", [True, False], ids=["on a thread", "where no thread can start"])
def test_observer_that_fails(
    has_threads: bool, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of an observer costs no caller its token, and no log record; it is reported as one of the thread."""

    def observe(_fields: Any) -> None:
        raise ValueError("no disk left")

    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    monkeypatch.setattr(_observers, "observers", [observe])
    if not has_threads:
        monkeypatch.setattr(token_cache, "_start_thread", lambda *_: False)
    caplog.set_level(logging.INFO, "azure_imds_credential")
    assert ImdsCredential(endpoint=imds.endpoint).get_token(VAULT).token in imds.tokens
    assert [str(each.exc_value) for each in reported] == ["no disk left"]
    assert len(caplog.records) == 1


def test_expired_token_has_no_life(imds: ImdsEmulator, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that has expired is reported no more, by a clock that goes on while the machine sleeps."""
    ImdsCredential(endpoint=imds.endpoint).get_token(VAULT)
    now = metrics.boot_clock()
    monkeypatch.setattr(metrics, "boot_clock", lambda: now + 2 * 86400)
    assert "azure.imds.token.life" not in read()
    monkeypatch.setattr(metrics, "boot_clock", lambda: now)
    assert "azure.imds.token.life" not in read(), "it is kept for good"


def test_opentelemetry_is_optional() -> None:
    """The package does not import OpenTelemetry; where it is missing, the error names the extra."""
    program = """
import sys
sys.modules["opentelemetry.metrics"] = None
import azure_imds_credential, azure_imds_credential.aio
azure_imds_credential.ImdsCredential
from azure_imds_credential._cache import token_cache
from azure_imds_credential.metrics import record_metrics
try:
    record_metrics()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert "the extra [opentelemetry]" in done.stdout
