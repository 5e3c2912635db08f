"""The last look before a recording is written: no live value may be in it, in any encoding."""

from __future__ import annotations

import base64
import html
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

import yaml

from .bodies import members_of_zip, unpacked
from .structure import from_base64

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
_ESCAPES = re.compile(r"\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[\\\"'/nrt])")
_HEX_RUN = re.compile(r"(?:[0-9A-Fa-f]{2}){8,}")
DEEPEST = 6  # encodings inside encodings


def find_live(text: str, live: Iterable[str]) -> list[str]:
    """Return those of the live values that a text holds, as it is or decoded in any way that is known here."""
    wanted = {value for value in live if value}
    found = set()
    for view in views(text):
        hits = {value for value in wanted if value in view}
        found |= hits
        wanted -= hits
        if not wanted:
            break
    return sorted(found | {value for value in wanted if _is_encoded_in(text, value)})


def _is_encoded_in(text: str, value: str) -> bool:
    """Return whether base64 of something around a value is in a text, at any of its three alignments."""
    content = value.encode()
    for skip in range(3):
        encoded = base64.b64encode(b"\0" * skip + content).decode().rstrip("=")
        middle = encoded[-(-skip * 8 // 6) : len(encoded) - (1 if (skip + len(content)) % 3 else 0)]
        middle = middle[1:] if skip else middle
        if len(middle) >= 10 and (middle in text or middle.translate(str.maketrans("+/", "-_")) in text):
            return True
    return content.hex() in text.lower()


def views(text: str) -> Iterator[str]:
    """Yield a text and all that it says when it is decoded, and decoded again."""
    seen: set[str] = set()
    queue: list[tuple[str, int]] = [(text, 0), *((string, 1) for string in _strings_of_yaml(text))]
    while queue:
        view, depth = queue.pop(0)
        if view in seen:
            continue
        seen.add(view)
        yield view
        if depth < DEEPEST:
            queue += [(more, depth + 1) for more in _decodings(view) if more not in seen]


def _strings_of_yaml(text: str) -> Iterator[str]:
    """Yield every scalar of a recording: YAML folds long strings, and writes bytes in base64."""
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        return
    stack = documents
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, bytes):
            yield from _texts_of(item)
        elif isinstance(item, str):
            yield item


def _texts_of(content: bytes) -> Iterator[str]:
    yield content.decode("latin-1")
    yield content.replace(b"\0", b"").decode("latin-1")  # UTF-16 of what is ASCII
    with suppress(UnicodeDecodeError):
        yield content.decode()
    packed = unpacked(content)
    if packed is not None:
        yield from _texts_of(packed[0])
    if content.startswith(b"PK"):
        for member in members_of_zip(content):
            yield from _texts_of(member)


def _decodings(view: str) -> Iterator[str]:
    if "%" in view:
        yield unquote(view)
    if "&" in view and ";" in view:
        yield html.unescape(view)
    if "\\" in view:
        yield _ESCAPES.sub(_unescaped, view)
    if "+" in view:
        yield view.replace("+", " ")
    for run in _BASE64_RUN.findall(view):
        content = from_base64(run)
        if content:
            yield from _readable(content)
    joined = re.sub(r"\s", "", view)
    if joined != view and (content := from_base64(joined)):
        yield from _readable(content)
    for run in _HEX_RUN.findall(view):
        yield from _readable(bytes.fromhex(run))


def _readable(content: bytes) -> Iterator[str]:
    for text in _texts_of(content):
        if sum(char.isprintable() or char in "\r\n\t" for char in text) > 0.7 * len(text):
            yield text


def _unescaped(escape: re.Match[str]) -> str:
    raw = escape[0]
    if raw[1] in "ux":
        return chr(int(raw[2:], 16))
    decoded: str = json.loads(f'"{raw}"') if raw[1] != "'" else "'"
    return decoded
