"""Functions that are told how each request for a token ended. The metrics are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

# Each gets the fields of the request's log record.
observers: list[Callable[[Mapping[str, object]], None]] = []


def notify(fields: Mapping[str, object]) -> None:
    """Tell the observers."""
    for observe in tuple(observers):
        observe(fields)
