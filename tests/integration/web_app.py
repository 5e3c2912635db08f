"""A web application as gunicorn and uwsgi load it, with a credential made at import: `/token` and `/ping`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from azure_imds_credential import ImdsCredential, ImdsError

credential = ImdsCredential(timeout=60)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body, status = b"pong", "200 OK"
    if environ["PATH_INFO"] == "/token":
        try:
            body = credential.get_token("https://vault.azure.net/.default").token[-12:].encode()
        except ImdsError as error:
            body, status = str(error).encode(), "503 Service Unavailable"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
