"""A recorded answer, as if it had been given now: that is what keeps a recording good for years."""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ..._jwt import claims_of
from .fakes import GUID, TOKEN, is_dummy_token, with_claims
from .structure import Place, json_or_none, rewrite_json

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOVED_MEMBERS = ("expires_on", "not_before")
_MOVED_CLAIMS = ("exp", "iat", "nbf")


def rebased(response: dict[str, Any], now: float, known: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer with its Date and the instants of its tokens moved by its age, and the program's identities.

    `expires_in` stays: it is the time that was left when the answer was given, and the answer is given now.

    Args:
        response: As vcrpy keeps it; not changed.
        now: Epoch seconds.
        known: For each fake: what the running program calls it.
    """
    body = response["body"]["string"]
    text = _decoded(body)
    answer = json_or_none(text) if text is not None else None
    token_answer = answer if isinstance(answer, dict) and isinstance(answer.get("access_token"), str) else {}
    age = round(now - _given_on(response, token_answer, now))
    dated = {name: [formatdate(now, usegmt=True)] for name in response["headers"] if name.lower() == "date"}
    moved = {**response, "headers": {**response["headers"], **dated}}
    if text is None:
        return moved
    changed = _with_moved_members(text, age) if token_answer else text
    changed = TOKEN.sub(lambda token: _moved_token(token[0], age, known), changed)
    changed = _renamed(changed, known)
    return moved if changed == text else with_body(moved, changed.encode())


def with_body(response: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Return the same answer with another body and its length."""
    length = {name: [str(len(body))] for name in response["headers"] if name.lower() == "content-length"}
    return {**response, "headers": {**response["headers"], **length}, "body": {**response["body"], "string": body}}


def _with_moved_members(text: str, seconds: int) -> str:
    def move(value: str, place: Place) -> str:
        at_top = place.above == ("",) and place.name in _MOVED_MEMBERS
        return str(int(value) + seconds) if at_top and value.isdigit() else value

    return rewrite_json(text, move, move) or text


def _given_on(response: Mapping[str, Any], token_answer: Mapping[str, Any], now: float) -> float:
    """Return the epoch seconds at which the answer was given: its Date, else what its expiry says, else now."""
    for name, values in response["headers"].items():
        if name.lower() == "date" and values:
            return parsedate_to_datetime(values[0]).timestamp()
    try:
        return float(token_answer["expires_on"]) - float(token_answer["expires_in"])
    except (KeyError, ValueError):
        return now


def _moved_token(token: str, seconds: int, known: Mapping[str, str]) -> str:
    if not is_dummy_token(token) or token.count(".") != 2:
        return token  # recorded without imds_vcr: a signature would not survive the change
    claims = claims_of(token)
    moved = {
        name: value + seconds if name in _MOVED_CLAIMS and _is_number(value) else value
        for name, value in claims.items()
    }
    renamed = {name: _renamed(value, known) if isinstance(value, str) else value for name, value in moved.items()}
    return token if renamed == claims else with_claims(token, renamed)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _renamed(text: str, known: Mapping[str, str]) -> str:
    # Longest first: the fake of an ARM ID contains the fake of its subscription. IMDS changes the case of ARM IDs.
    for fake in sorted(known, key=len, reverse=True):
        real = known[fake]
        text = re.sub(re.escape(fake), real.replace("\\", r"\\"), text, flags=re.IGNORECASE)
        if GUID.fullmatch(fake) and "-" in fake:
            text = re.sub(fake.replace("-", ""), real.replace("-", ""), text, flags=re.IGNORECASE)
    return text


def _decoded(body: Any) -> str | None:
    try:
        return body.decode() if isinstance(body, bytes) else str(body or "")
    except UnicodeDecodeError:
        return None
