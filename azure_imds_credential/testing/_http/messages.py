"""What goes over the wire: requests as they came in, replies as IMDS writes them, byte for byte where that is known."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
SERVER = "IMDS/150.870.65.1854"  # captured 2026-02-07


@dataclass(frozen=True)
class Received:
    """A request as it came in: method, target and headers, nothing judged yet."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    version: str = "HTTP/1.1"
    peer: str = ""
    peer_port: int = field(default=0, compare=False)

    @property
    def path(self) -> str:
        """The path without query and trailing slash, with one slash in front, percent-decoded.

        With AZURE_POD_IDENTITY_AUTHORITY_HOST set, MSAL.js (5.6) asks for `/metadata/identity/oauth2/token/`, and
        msal4j before 1.26 for `//metadata/identity/oauth2/token`. AAD Pod Identity took the former; whether IMDS would
        take either is unknown, as neither client sends them to it.
        """
        origin = re.sub(r"^http://[^/?]*", "", self.target)
        return re.sub("^/+", "/", unquote(origin.partition("?")[0])).removesuffix("/")

    @property
    def query(self) -> Mapping[str, tuple[str, ...]]:
        """Every query variable with all its values, in the order they came."""
        values: dict[str, tuple[str, ...]] = {}
        for name, value in parse_qsl(self.target.partition("?")[2], keep_blank_values=True):
            values[name] = (*values.get(name, ()), value)
        return values

    def param(self, name: str) -> str | None:
        """Return the first value of a query variable, None without one."""
        return self.query.get(name, (None,))[0]

    def header(self, name: str) -> str | None:
        """Return the value of a header in any case of its name, None without one."""
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        """Every value of a header, in the order they came."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True)
class Reply:
    """An answer before it becomes bytes. Headers go out in the order they have here."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    reason: str | None = None
    version: str = "HTTP/1.1"

    def header(self, name: str) -> str | None:
        """Return the value of a header in any case of its name, None without one."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def with_header(self, name: str, value: str | None) -> Reply:
        """Return the same reply with one header replaced in its place, added before Date, or (None) taken out."""
        names = [key.lower() for key, _ in self.headers]
        if value is None:
            return replace(self, headers=tuple(h for h in self.headers if h[0].lower() != name.lower()))
        headers = list(self.headers)
        if name.lower() in names:
            headers[names.index(name.lower())] = (name, value)
        else:
            headers.insert(names.index("date") if "date" in names else len(names), (name, value))
        return replace(self, headers=tuple(headers))

    def with_body(self, body: bytes) -> Reply:
        """Return the same reply with another body and its length."""
        return replace(self, body=body).with_header("Content-Length", str(len(body)))

    def head(self) -> bytes:
        """Status line and headers, with the empty line that ends them."""
        reason = self.reason
        if reason is None:
            reason = HTTPStatus(self.status).phrase if self.status in HTTPStatus._value2member_map_ else ""
        lines = [f"{self.version} {self.status} {reason}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def encode(self) -> bytes:
        """Return the whole reply."""
        return self.head() + self.body


@dataclass(frozen=True)
class Answer:
    """What a rule decided, before the headers that every answer carries."""

    status: int
    body: bytes
    content_type: str = JSON
    server: str | None = field(default=SERVER)

    def reply(self, now: float) -> Reply:
        """Add the headers in the order of the newest capture (2026-02-07, /metadata/instance).

        Args:
            now: Epoch seconds, for `Date`.
        """
        headers = [("Content-Type", self.content_type)]
        if self.server is not None:
            headers += [("Server", self.server), ("x-ms-request-id", str(uuid.uuid4()))]
        headers += [("Date", formatdate(int(now), usegmt=True)), ("Content-Length", str(len(self.body)))]
        return Reply(self.status, self.body, tuple(headers))


def compact(document: Any) -> bytes:
    """JSON as the identity category writes it: no space anywhere."""
    return json.dumps(document, separators=(",", ":")).encode()


def identity_error(status: int, description: str, error: str = "invalid_request") -> Answer:
    """Return an error of the identity category, in the only shape that was ever seen there."""
    return Answer(status, compact({"error": error, "error_description": description}))


def instance_error(status: int, text: str) -> Answer:
    """Return an error of the instance category: one member, spaces inside the braces (captured 2017 to 2022)."""
    return Answer(status, b'{ "error": ' + json.dumps(text).encode() + b" }")


# Recorded. Both the rate limits of the emulator and `faults.throttled` send it.
THROTTLED = identity_error(429, "Temporarily throttled, too many requests")
