"""A recorded answer, as if it had been given now: that is what keeps a recording good for years."""

from __future__ import annotations

import json
import re
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ..._claims import claims_of
from .fakes import TOKEN, dummy_token, is_dummy_token
from .scrub import read_json, with_body

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOVED_MEMBERS = ("expires_on", "not_before")
_MOVED_CLAIMS = ("exp", "iat", "nbf")


def rebased(response: dict[str, Any], now: float, known: Mapping[str, str]) -> dict[str, Any]:
    """The answer with its Date and the instants of its tokens moved by its age, and with the program's own identities.

    `expires_in` stays: it is the time that was left when the answer was given, and the answer is given now.

    Args:
        response: As vcrpy keeps it; not changed.
        now: Epoch seconds.
        known: For each fake: what the running program calls it.
    """
    text = _decoded(response["body"]["string"])
    answer = read_json(text) if text is not None else None
    token_answer = answer if isinstance(answer, dict) and isinstance(answer.get("access_token"), str) else {}
    age = round(now - _given_on(response, token_answer, now))
    dated = {name: [formatdate(now, usegmt=True)] for name in response["headers"] if name.lower() == "date"}
    moved = {**response, "headers": {**response["headers"], **dated}}
    if text is None:
        return moved
    if token_answer:
        changed = _moved(token_answer, _MOVED_MEMBERS, age)
        text = text if changed == token_answer else json.dumps(changed, separators=(",", ":"))
    text = TOKEN.sub(lambda token: _moved_token(token[0], age, known), text)
    return with_body(moved, _renamed(text, known).encode())


def _given_on(response: Mapping[str, Any], token_answer: Mapping[str, Any], now: float) -> float:
    """Epoch seconds at which the answer was given: its Date, else what its expiry says, else now."""
    for name, values in response["headers"].items():
        if name.lower() == "date" and values:
            return parsedate_to_datetime(values[0]).timestamp()
    try:
        return float(token_answer["expires_on"]) - float(token_answer["expires_in"])
    except (KeyError, ValueError):
        return now


def _moved(content: Mapping[str, Any], names: tuple[str, ...], seconds: int) -> dict[str, Any]:
    """The same content with some of its instants moved; a string stays a string, as IMDS writes numbers."""
    changed = dict(content)
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value.isdigit():
            changed[name] = str(int(value) + seconds)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            changed[name] = value + seconds
    return changed


def _moved_token(token: str, seconds: int, known: Mapping[str, str]) -> str:
    if not is_dummy_token(token):
        return token  # recorded without imds_vcr: a signature would not survive the change
    claims = _moved(claims_of(token), _MOVED_CLAIMS, seconds)
    return dummy_token(
        {name: _renamed(value, known) if isinstance(value, str) else value for name, value in claims.items()}
    )


def _renamed(text: str, known: Mapping[str, str]) -> str:
    # Longest first: the fake of an ARM ID contains the fake of its subscription. IMDS changes the case of ARM IDs.
    for fake in sorted(known, key=len, reverse=True):
        text = re.sub(re.escape(fake), known[fake].replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def _decoded(body: Any) -> str | None:
    try:
        return body.decode() if isinstance(body, bytes) else str(body or "")
    except UnicodeDecodeError:
        return None
