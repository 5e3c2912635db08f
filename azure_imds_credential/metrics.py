"""Metrics of the requests to IMDS, for OpenTelemetry. Nothing of it is loaded by the package itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import __version__
from ._clock import boot_clock
from ._extras import extra_needed
from ._observers import observers

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

__all__ = ["record_metrics"]


def record_metrics(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Record metrics of each request to IMDS from now on.

    A call that is answered from the cache records nothing, and costs nothing.

    Args:
        meter_provider: Where the metrics go; by default OpenTelemetry's global one.

    Returns:
        A function that ends the recording.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError as error:
        raise ImportError(extra_needed("azure_imds_credential.metrics", "opentelemetry")) from error
    instruments = _Instruments(get_meter("azure_imds_credential", __version__, meter_provider))
    observers.append(instruments.observe)

    def stop() -> None:
        if instruments.observe in observers:
            observers.remove(instruments.observe)
            instruments.forget()

    return stop


class _Instruments:
    """The instruments, and when each token expires.

    Args:
        meter: What makes them. Names follow OpenTelemetry's conventions: dots, and the unit apart.
    """

    def __init__(self, meter: Any) -> None:
        # By identity and resource, of `boot_clock`. Without a lock: a fork would leave it locked in the child.
        self._expiries: dict[tuple[str, str], float] = {}
        self._requests = meter.create_counter(
            "azure.imds.requests", unit="{request}", description="Requests for a token that ended"
        )
        self._callers = meter.create_counter(
            "azure.imds.request.callers", unit="{call}", description="Calls of get_token that waited for a request"
        )
        self._throttled = meter.create_counter(
            "azure.imds.request.throttled", unit="{response}", description="Responses with status 429"
        )
        self._duration = meter.create_histogram(
            "azure.imds.request.duration", unit="s", description="Time from the start of the request to the outcome"
        )
        meter.create_observable_gauge(
            "azure.imds.token.life", [self._lives], unit="s", description="Time until the cached token expires"
        )

    def observe(self, fields: Mapping[str, Any]) -> None:
        """Record one request.

        Args:
            fields: The fields of its log record.
        """
        key = (fields["imds_identity"], fields["imds_resource"])
        token = {"azure.imds.identity": key[0], "azure.imds.resource": key[1]}
        request = {**token, "azure.imds.outcome": fields["imds_outcome"], "azure.imds.refresh": fields["imds_refresh"]}
        self._requests.add(1, request)
        self._duration.record(fields["imds_milliseconds"] / 1000, request)
        self._callers.add(fields["imds_callers"], token)
        self._throttled.add(fields["imds_throttled"], token)
        if fields["imds_expires_in"] is not None:
            self._expiries[key] = boot_clock() + fields["imds_expires_in"]

    def forget(self) -> None:
        """Report no token any more."""
        self._expiries.clear()

    def _lives(self, _options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        now = boot_clock()
        for key, expiry in tuple(self._expiries.items()):
            if expiry <= now:
                newest = self._expiries.pop(key, expiry)
                if newest > now:  # a request has just brought another
                    self._expiries.setdefault(key, newest)
            else:
                identity, resource = key
                yield Observation(expiry - now, {"azure.imds.identity": identity, "azure.imds.resource": resource})
