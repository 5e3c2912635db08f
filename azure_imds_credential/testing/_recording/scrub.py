"""What is taken out of an exchange before it is written down, and put back when it is replayed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from .fakes import (
    GUID,
    NO_GUID,
    SCRUBBED,
    TOKEN,
    dummy_of,
    dummy_token,
    fake_arm_id,
    fake_guid,
    find_arm_ids,
    is_dummy_token,
)

if TYPE_CHECKING:
    from collections.abc import Callable

IMDS_HOST = "http://169.254.169.254"

# Nothing else of a request is written down, Authorization least of all: replay does not look at headers.
_KEPT_REQUEST_HEADERS = frozenset({"accept", "content-type", "metadata"})
# Cookies, and the caller's public address (x-ms-keyvault-network-info).
_DROPPED_RESPONSE_HEADERS = frozenset({"set-cookie", "x-ms-keyvault-network-info"})

TOKEN_MEMBERS = frozenset({"access_token", "id_token", "refresh_token"})
# Names in lower case; what other Azure services call the secrets that they hand out.
SECRET_MEMBERS = frozenset(
    {
        "accountkey",
        "client_secret",
        "clientsecret",
        "key1",
        "key2",
        "password",
        "secrettext",
        "sharedaccesskey",
        "primarykey",
        "secondarykey",
    }
    | {"connectionstring", "primaryconnectionstring", "secondaryconnectionstring"}
)
STORAGE_KEY = re.compile(r"(?<![A-Za-z0-9+/])(?P<value>[A-Za-z0-9+/]{86}==)")  # 64 bytes in base64
# name=value, in connection strings (";"), forms and signed URLs ("&").
SECRET_PAIR = re.compile(
    r"(?P<name>\b(?:AccountKey|SharedAccessKey|SharedAccessSignature|Password|Pwd|client_secret|client_assertion|sig)=)"
    r"(?P<value>[^;&\s\"'<>]+)",
    re.IGNORECASE,
)


class Scrubber:
    """Replaces what must not be recorded by stable fakes, and remembers which fake the running program knows better.

    Attributes:
        known: For each fake put into the URI of a request: what stood there. A program that replays with its own
            client ID gets answers that name this client ID.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def request(self, request: Any) -> Any:
        """A request as it is written down and compared; already scrubbed ones come out unchanged."""
        request.uri = self._uri(request.uri)
        kept = {name: value for name, value in request.headers.items() if name.lower() in _KEPT_REQUEST_HEADERS}
        request.headers = kept
        if isinstance(request.body, bytes):
            request.body = scrub_body(request.body)
        return request

    def _uri(self, uri: str) -> str:
        parts = urlsplit(uri)
        host = IMDS_HOST if parts.path.startswith("/metadata/") else f"{parts.scheme}://{parts.netloc}"
        query = [(name, self._noted(value)) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
        path = host + self._noted(parts.path)
        return scrub_pairs(f"{path}?{urlencode(query, quote_via=quote, safe='')}") if query else path

    def _noted(self, text: str) -> str:
        def note(real: str, fake: str) -> str:
            if fake != real:
                self.known[fake] = real
            return fake

        return scrub_text(text, note)


def scrub_response(response: dict[str, Any]) -> dict[str, Any]:
    """An answer as it is written down; its Content-Length fits the new body."""
    headers = {
        name: [_header_value(name.lower(), value) for value in values]
        for name, values in response["headers"].items()
        if name.lower() not in _DROPPED_RESPONSE_HEADERS
    }
    body = response["body"]["string"] or b""
    body = body.encode() if isinstance(body, str) else body
    return with_body({**response, "headers": headers}, scrub_body(body))


def with_body(response: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The same answer with another body."""
    length = {name: [str(len(body))] for name in response["headers"] if name.lower() == "content-length"}
    return {**response, "headers": {**response["headers"], **length}, "body": {**response["body"], "string": body}}


def _header_value(name: str, value: str) -> str:
    # Each request has new request IDs. As one constant they do not show up as changes when a session is recorded again.
    return NO_GUID if name.endswith("request-id") else scrub_text(value)


def scrub_body(body: bytes) -> bytes:
    """A body without tokens, identities and secret values; what is no text stays as it is (the scan looks into it)."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body
    document = read_json(text)
    if document is None:
        return scrub_text(text).encode()
    scrubbed = _secret_value(_walk(document))
    return body if scrubbed == document else _json_like(text, document, scrubbed).encode()


def read_json(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array of a text, None if it is none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, (dict, list)) else None


def is_secret_value(document: Any) -> bool:
    """Whether a JSON object looks like a Key Vault secret, read or written: its value is a string beside its name."""
    return isinstance(document, dict) and isinstance(document.get("value"), str)


def _fake_secret_value(document: dict[str, Any]) -> str:
    """Tells secrets apart by their names, which are in the URI anyway; nothing of the value goes in."""
    path = urlsplit(str(document.get("id", ""))).path.split("/")
    return f"{SCRUBBED} value of {path[2]}" if len(path) > 2 else f"{SCRUBBED} value"


def _secret_value(document: Any) -> Any:
    if not is_secret_value(document) or document["value"].startswith(SCRUBBED):
        return document
    return {**document, "value": _fake_secret_value(document)}


def _walk(document: Any) -> Any:
    if isinstance(document, dict):
        # Names, too: Azure Resource Manager lists the identities of a machine by their ARM IDs.
        return {scrub_text(name): _member(name, value, document) for name, value in document.items()}
    if isinstance(document, list):
        return [_walk(item) for item in document]
    return scrub_text(document) if isinstance(document, str) else document


def _member(name: str, value: Any, beside: dict[str, Any]) -> Any:
    if not isinstance(value, str) or not value:
        return _walk(value)
    if name.lower() in SECRET_MEMBERS:
        return SCRUBBED
    if name not in TOKEN_MEMBERS:
        return scrub_text(value)
    if TOKEN.fullmatch(value):
        return scrub_text(value)
    # Tokens are opaque by contract: one that is no JWT becomes one all the same, with what the answer says of it.
    said = {"aud": beside.get("resource"), "exp": beside.get("expires_on"), "nbf": beside.get("not_before")}
    return dummy_token({claim: _number(value) for claim, value in said.items() if value})


def _number(value: Any) -> Any:
    return int(value) if str(value).isdigit() else value


def _json_like(text: str, document: Any, changed: Any) -> str:
    """The changed document in the layout of the original: IMDS answers in compact JSON, others with spaces."""
    compact = (",", ":")
    was_compact = json.dumps(document, separators=compact, ensure_ascii=False) == text
    return json.dumps(changed, separators=compact if was_compact else None, ensure_ascii=False)


def scrub_text(text: str, note: Callable[[str, str], str] = lambda _, fake: fake) -> str:
    """A text with dummies for its tokens and fakes for its ARM IDs, GUIDs and the secrets of connection strings.

    Args:
        text: Any text. One that was scrubbed before comes out unchanged.
        note: Is told each (real, fake) pair and gives the fake back.
    """

    def dummy(match: re.Match[str]) -> str:
        return match[0] if is_dummy_token(match[0]) else dummy_of(match[0], scrub_text)

    text = TOKEN.sub(dummy, text)
    for match in reversed(find_arm_ids(text)):
        text = text[: match.start()] + note(match[0], fake_arm_id(match)) + text[match.end() :]
    return scrub_pairs(GUID.sub(lambda guid: note(guid[0], fake_guid(guid[0])), text))


def scrub_pairs(text: str) -> str:
    """A text without the secrets of its name=value pairs, and without the keys of storage accounts."""
    return STORAGE_KEY.sub(SCRUBBED, SECRET_PAIR.sub(lambda pair: pair["name"] + SCRUBBED, text))
