"""One HTTP exchange as bytes: what a test compares with a capture, no library in between."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TOKEN_TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"


@dataclass(frozen=True)
class Raw:
    """Everything that came until the server ended the connection."""

    data: bytes

    @property
    def status_line(self) -> str:
        return self.data.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.status_line.split(" ", 2)[1])

    @property
    def reason(self) -> str:
        return self.status_line.split(" ", 2)[2]

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(line.partition(": ")[0], line.partition(": ")[2]) for line in lines]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def exchange(
    endpoint: str,
    target: str = TOKEN_TARGET,
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    timeout: float = 10.0,
) -> Raw:
    """Send one request and read until the connection ends. `Metadata: true` unless headers say otherwise."""
    lines = {"Host": "169.254.169.254", **({"Metadata": "true", "Connection": "close"} if headers is None else headers)}
    text = "\r\n".join((f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""))
    return send(endpoint, text.encode("latin-1"), timeout)


def send(endpoint: str, data: bytes, timeout: float = 10.0) -> Raw:
    """Send bytes and read until the connection ends."""
    place = urlsplit(endpoint)
    with socket.create_connection((place.hostname, place.port), timeout) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return Raw(received)
