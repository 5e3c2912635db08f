"""Which recorded request a request is: secrets and the version of an interface do not count, and neither does case."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .fakes import FAKE_NAME_PREFIX, is_fake

_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_imds(uri: str) -> bool:
    """Return whether a URI is one of IMDS, wherever IMDS is."""
    return urlsplit(uri).path.startswith("/metadata/")


def same_request(one: Any, other: Any) -> None:
    """Raise AssertionError if two requests differ, as vcrpy wants it of a matcher."""
    first, second = _parts(one.uri), _parts(other.uri)
    for name, value in first.items():
        if not _agree(name, value, second[name]):
            raise AssertionError(f"{name}: {value} != {second[name]}")


def _parts(uri: str) -> dict[str, Any]:
    parts = urlsplit(uri)
    query = parse_qsl(parts.query, keep_blank_values=True)
    return {
        "scheme": parts.scheme,
        "host": (parts.hostname or "").lower(),
        "port": parts.port or _DEFAULT_PORTS.get(parts.scheme),
        "path": parts.path.split("/"),
        "query": sorted((name.lower(), value.lower()) for name, value in query if name.lower() != "api-version"),
    }


def _agree(name: str, one: Any, other: Any) -> bool:
    if one == other:
        return True
    if name == "host":
        return _same_host(one, other)
    if name == "path":
        return len(one) == len(other) and all(map(_same_value, one, other))
    if name == "query":
        return len(one) == len(other) and all(
            first[0] == second[0] and _same_value(first[1], second[1]) for first, second in zip(one, other, strict=True)
        )
    return False


def _same_host(one: str, other: str) -> bool:
    """Return whether two hosts may be one machine: a program that read a faked name makes a host of it."""
    first, dot, domain = one.partition(".")
    second, _, other_domain = other.partition(".")
    either_is_fake = any(label.startswith(FAKE_NAME_PREFIX) or _is_secret(label) for label in (first, second))
    return bool(dot) and domain == other_domain and either_is_fake


def _same_value(one: str, other: str) -> bool:
    """Return whether two values are one: equal, or one is the fake of a secret that only the other program knows."""
    first, second = unquote(one), unquote(other)
    return first == second or (first != "" and second != "" and (_is_secret(first) or _is_secret(second)))


def _is_secret(value: str) -> bool:
    return len(re.sub(r"[\W_]", "", value)) >= 5 and is_fake(value)
