"""A session of requests and answers, scrubbed as a whole: what is a secret in one of them is one in all."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from vcr.request import Request  # type: ignore[import-untyped] # vcrpy ships no types

from .bodies import headers_of_changed_body, scrub_body
from .scrub import Scrubber, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Exchange = tuple[Any, dict[str, Any]]


class Scrubbed(NamedTuple):
    """What became of a session.

    Attributes:
        exchanges: What may be written down.
        problems: Why something may not be, one line for each.
        secrets: What must not be in the file.
    """

    exchanges: list[Exchange]
    problems: list[str]
    secrets: list[str]


def scrub_session(exchanges: Iterable[Exchange], scrubber: Scrubber, keep: Iterable[str | re.Pattern[str]]) -> Scrubbed:
    """Return a session without its secrets. It is read twice: what is found last may stand in what came first."""
    session, kept = list(exchanges), list(keep)
    problems: dict[str, None] = {}
    for request, response in session:
        try:
            _scrub_exchange(request, response, scrubber, kept)
        except UnreadableError as error:
            problems[f"{request.method} {request.uri.partition('?')[0]}: {error}"] = None
    if problems:
        return Scrubbed([], list(problems), [])
    scrubber.taint()
    scrubbed = [_scrub_exchange(request, response, scrubber, kept) for request, response in session]
    return Scrubbed(scrubbed, [], [secret for secret in scrubber.secrets if scrubber.is_taint(secret)])


def _scrub_exchange(
    request: Any, response: dict[str, Any], scrubber: Scrubber, keep: list[str | re.Pattern[str]]
) -> Exchange:
    scrubber.enter(request.method, request.uri)
    return scrub_request(request, scrubber, keep), _scrub_response(response, scrubber, keep)


def scrub_request(request: Any, scrubber: Scrubber, keep: Iterable[str | re.Pattern[str]] = ()) -> Any:
    """Return a request as it is written down and compared; one that was scrubbed before comes out unchanged."""
    scrubber.enter(request.method, request.uri)
    body = _bytes_of(request.body)
    if body:
        content_type, encoding = _header(request.headers, "content-type"), _header(request.headers, "content-encoding")
        body = scrub_body(body, content_type, scrubber, encoding=encoding, allowed=_is_allowed(content_type, keep))
    headers = scrubber.request_headers(request.headers)
    return Request(request.method, scrubber.uri(request.uri), body, headers)


def _scrub_response(
    response: dict[str, Any], scrubber: Scrubber, keep: Iterable[str | re.Pattern[str]]
) -> dict[str, Any]:
    headers = {
        name: [values] if isinstance(values, str) else list(values) for name, values in response["headers"].items()
    }
    before = _bytes_of(response["body"].get("string")) or b""
    status = response.get("status")
    if isinstance(status, dict) and str(status.get("code", 200)) >= "400":
        scrubber.hands_out = False  # an error says in words why there is no secret
    content_type, encoding = _header(headers, "content-type"), _header(headers, "content-encoding")
    after = scrub_body(before, content_type, scrubber, encoding=encoding, allowed=_is_allowed(content_type, keep))
    made_anew = headers_of_changed_body(headers, before, after)
    changed = copy.deepcopy({name: value for name, value in response.items() if name not in ("headers", "body")})
    if isinstance(changed.get("url"), str):  # aiohttp's answers know where they came from
        changed["url"] = scrubber.uri(changed["url"])
    status = changed.get("status")
    if isinstance(status, dict) and isinstance(status.get("message"), str):
        status["message"] = scrubber.text(status["message"])
    return {**changed, "headers": scrubber.response_headers(made_anew), "body": {**response["body"], "string": after}}


def _is_allowed(content_type: str, keep: Iterable[str | re.Pattern[str]]) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return any(
        bool(entry.fullmatch(media)) if isinstance(entry, re.Pattern) else entry.lower() == media
        for entry in keep
        if media
    )


def _header(headers: Mapping[str, Any], name: str) -> str:
    for key, value in headers.items():
        if key.lower() == name:
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            return first.decode("latin-1") if isinstance(first, bytes) else str(first or "")
    return ""


def _bytes_of(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "read"):
        return _bytes_of(body.read())
    return b"".join(_bytes_of(piece) or b"" for piece in body)
