"""Ask for tokens with azure-core's tracing on, as `configure_azure_monitor` turns it on, and print the spans as JSON.

Usage: python tracing_program.py plugin|native|off
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from azure.core.settings import settings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

SCOPE = "https://vault.azure.net/.default"


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.name}: {record.getMessage()}")


def main(mode: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    if mode == "plugin":
        settings.tracing_implementation = "opentelemetry"
    elif mode == "native":
        settings.tracing_enabled = True
    records = _Records()
    logging.getLogger("azure").addHandler(records)

    with ImdsEmulator() as imds:
        os.environ["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = imds.endpoint
        print(json.dumps({**_spans(imds, exporter), "said": records.said}))


def _spans(imds: ImdsEmulator, exporter: InMemorySpanExporter) -> dict[str, Any]:
    """Return the spans of each call."""
    from azure.identity import ManagedIdentityCredential

    def ask(credential: Any) -> Callable[[], object]:
        return lambda: credential.get_token(SCOPE)

    def ask_async(**options: Any) -> Callable[[], object]:
        return lambda: asyncio.run(azure_imds_credential.aio.ImdsCredential(**options).get_token(SCOPE))

    tracing_options = {"attributes": {"team": "blue"}}
    refused = {"endpoint": "http://127.0.0.1:9", "timeout": 20}
    calls: dict[str, Callable[[], object]] = {
        "azure-identity": ask(ManagedIdentityCredential()),
        "sync": ask(azure_imds_credential.ImdsCredential()),
        "aio": ask_async(),
        "sync with options": ask(azure_imds_credential.ImdsCredential(tracing_options=tracing_options)),
        "aio with options": ask_async(tracing_options=tracing_options),
        "sync, refused": ask(azure_imds_credential.ImdsCredential(**refused)),
        "aio, refused": ask_async(**refused),
        "sync, twice": ask(azure_imds_credential.ImdsCredential()),
        "aio, twice": ask_async(),
    }
    told: dict[str, Any] = {}
    for name, call in calls.items():
        forget_tokens()
        exporter.clear()
        if "twice" in name:
            imds.script(faults.status(404, {"error": "not_found", "error_description": "later"}))
        with trace.get_tracer("program").start_as_current_span("outer") as outer:
            try:
                call()
            except azure_imds_credential.ImdsError as error:
                told[f"error of {name}"] = type(error).__name__
        told[name] = [
            {
                "name": span.name,
                "kind": span.kind.name,
                "attributes": dict(span.attributes or {}),
                "status": span.status.status_code.name,
                "in_outer": span.parent is not None and span.parent.span_id == outer.get_span_context().span_id,
            }
            for span in exporter.get_finished_spans()
            if span.name != "outer"
        ]
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of these libraries, about each other
    main(*sys.argv[1:])
