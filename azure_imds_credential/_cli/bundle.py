"""`azure-imds doctor --bundle`: what the doctor found, scrubbed, in a file for a bug report."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from .. import __version__
from .machine import KNOWN_VARIABLES
from .output import CommandError
from .text import to_json

_PACKAGES = ("azure-core", "msal", "azure-identity", "azure-keyvault-secrets", "filelock", "requests", "urllib3")
# Claims whose value is the same for many identities. Of the others only the names are told.
_HARMLESS_CLAIMS = frozenset({"aud", "exp", "iat", "idtyp", "nbf", "ver", "xms_mirid"})
# For Azure support; they name a request, and nothing of who made it.
_REQUEST_IDS = ("request_id", "client_request_id")

_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("token", r"eyJ[\w-]+\.[\w-]+\.[\w-]*"),
        ("mail", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
        ("guid", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
        ("name", r"(?<=/resourcegroups/)[^/\s,;]+"),
        ("name", r"(?<=/userassignedidentities/)[^/\s,;]+"),
        ("name", r"(?<=/virtualmachines/)[^/\s,;]+"),
        ("name", r"(?<=/virtualmachinescalesets/)[^/\s,;]+"),
        ("user", r"(?<=/home/)[^/\s]+"),
        ("user", r"(?<=\\users\\)[^\\\s]+"),
        ("address", r"(?<![\d.])(?!127\.|169\.254\.169\.254)\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"),
        (
            "address",
            r"(?<![\w:])(?:(?:[0-9a-f]{1,4}:){1,6}(?::[0-9a-f]{1,4}){1,6}|(?:[0-9a-f]{1,4}:){5,7}[0-9a-f]{1,4})(?![\w:])",
        ),
        ("host", r"[\w-]+(?=\.onmicrosoft\.com)"),
        ("host", r"(?<=://)(?!127\.|169\.254\.169\.254|localhost|management\.azure\.com|vault\.azure\.net)[^/:\s'\"]+"),
    )
)
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# In an ARM ID types and names take turns behind the provider:
# https://learn.microsoft.com/rest/api/resources/resources/get-by-id#uri-parameters
_RESOURCE = re.compile(r"(?<=/providers/)[^/\s]+(?:/[^/\s,;:'\"]+){2,}", re.IGNORECASE)


class Scrubber:
    """Replaces what names a person, an identity or a place by a word and a number, the same for the same thing.

    Args:
        names: Words that are names, whatever they look like.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._seen: dict[tuple[str, str], str] = {}
        self._names = [re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.IGNORECASE) for name in names]

    def scrub(self, value: Any) -> Any:
        """Return a value of JSON scrubbed."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {name: self._member(name, each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.scrub(each) for each in value]
        return value

    def _member(self, name: str, value: Any) -> Any:
        if name in _REQUEST_IDS:
            return value
        if name == "claims" and isinstance(value, Mapping):
            return {claim: self.scrub(each) if claim in _HARMLESS_CLAIMS else "..." for claim, each in value.items()}
        return self.scrub(value)

    def _text(self, text: str) -> str:
        for pattern in self._names:
            text = pattern.sub(lambda found: self._word("name", found[0]), text)
        for kind, pattern in _PATTERNS:
            text = pattern.sub(lambda found, kind=kind: self._word(kind, found[0]), text)  # type: ignore[misc] # kind is bound
        return _RESOURCE.sub(self._resource, text)

    def _resource(self, found: re.Match[str]) -> str:
        parts = found[0].split("/")
        parts[2::2] = [self._word("name", name) for name in parts[2::2]]
        return "/".join(parts)

    def _word(self, kind: str, what: str) -> str:
        if re.fullmatch(rf"{kind}-\d+", what):
            return what  # it is one of ours
        key = kind, what.lower()
        number = 1 + sum(1 for other, _ in self._seen if other == kind)
        return self._seen.setdefault(key, f"{kind}-{number}")


def write_bundle(path: str, facts: dict[str, Any], typed: Iterable[str | None] = ()) -> None:
    """Write what was found to a new file that only its owner can read.

    Args:
        path: The file.
        facts: What was found.
        typed: What was typed to name an identity or a resource.

    Raises:
        CommandError: It exists, or cannot be written.
    """
    told = os.environ.get("AZURE_TOKEN_CREDENTIALS")  # the only variable whose value is told to people
    # GUIDs, ARM IDs and URLs are known by their form.
    names = {name for name in (*typed, told) if name and "/" not in name and not _GUID.fullmatch(name)}
    text = to_json(Scrubber(sorted(names)).scrub({**facts, "environment": _environment(), "versions": _versions()}))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{text}\n")
    except FileExistsError as error:
        raise CommandError(f"--bundle: {path} exists already; name a new file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CommandError(f"--bundle: {path} cannot be written: {getattr(error, 'strerror', error)}") from error


def _environment() -> list[str]:
    """Return which variables are set, without their values, which may be secret."""
    return sorted(name for name in os.environ if name.upper() in KNOWN_VARIABLES)


def _versions() -> dict[str, str]:
    found = {"azure-imds-credential": __version__, "python": platform.python_version(), "platform": sys.platform}
    found["machine"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
