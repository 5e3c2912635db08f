"""What serve counts, as a line a minute and in Prometheus's form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts since the start. Used on the event loop alone."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()  # by what was asked for, and status
        self.refusals: Counter[str] = Counter()  # by reason
        self.upstream: Counter[str] = Counter()  # requests to IMDS's token endpoint, by how the exchange ended
        self.gauges: Mapping[str, Callable[[], int]] = {}
        self._before = Snapshot(0, {}, 0)

    def count_upstream(self, outcome: str, requests: int) -> None:
        """Count an exchange with IMDS."""
        self.upstream[outcome] += requests

    def since_last(self) -> Snapshot:
        """Return what came since the last call."""
        statuses: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            statuses[status] += count
        now = Snapshot(self.answers.total(), dict(statuses), self.upstream.total())
        before, self._before = self._before, now
        return Snapshot(
            now.requests - before.requests,
            {status: n for status, count in now.statuses.items() if (n := count - before.statuses.get(status, 0))},
            now.upstream - before.upstream,
        )

    def collect(self) -> Iterator[Metric]:
        """Yield all counts for prometheus-client, which calls this method of whatever is registered with it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        answers = CounterMetricFamily(
            "azure_imds_serve_requests", "Requests that were answered.", labels=("path", "status")
        )
        for (path, status), count in self.answers.items():
            answers.add_metric((path, str(status)), count)
        yield answers
        refusals = CounterMetricFamily(
            "azure_imds_serve_refused_requests",
            "Requests that were refused whatever they asked for.",
            labels=("reason",),
        )
        for reason, count in self.refusals.items():
            refusals.add_metric((reason,), count)
        yield refusals
        upstream = CounterMetricFamily(
            "azure_imds_serve_upstream_requests", "Token requests sent to IMDS.", labels=("outcome",)
        )
        for outcome, count in self.upstream.items():
            upstream.add_metric((outcome,), count)
        yield upstream
        for name, read in self.gauges.items():
            yield GaugeMetricFamily(f"azure_imds_serve_{name}", _GAUGES[name], value=read())


_GAUGES = {
    "tokens": "Tokens that are held and have not expired.",
    "connections": "Connections that are open.",
    "waiting_requests": "Requests that wait for IMDS.",
}


class Snapshot:
    """Counts at one moment, or their growth between two.

    Args:
        requests: How many were answered.
        statuses: How many with which status.
        upstream: How many were sent to IMDS.
    """

    def __init__(self, requests: int, statuses: Mapping[int, int], upstream: int) -> None:
        self.requests, self.statuses, self.upstream = requests, statuses, upstream


def rendered(metrics: Metrics) -> bytes | None:
    """Return all counts in Prometheus's text format; None without prometheus-client."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        return None
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry)
