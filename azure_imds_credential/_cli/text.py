"""Text for terminals and for programs.

Text of others (claims, file names, answers) never controls a terminal: what is not printable is shown escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import textwrap
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import NamedTuple, TextIO

_MAX_DEPTH = 50  # of nested claims; tokens of Entra have two levels
_NAME_WIDTH = 32  # of a table's first column; longer names push their value to the right


class Terminal(NamedTuple):
    """What text is laid out for.

    Attributes:
        width: Columns; None where no terminal reads, and a line may be as long as it is.
        color: Whether to use colors.
    """

    width: int | None = None
    color: bool = False

    def paint(self, text: str, style: str) -> str:
        """Return text in a style, one of `_STYLES`; as it is where colors are off."""
        return f"{_STYLES[style]}{text}{_RESET}" if self.color else text


_STYLES = {"good": "\x1b[32m", "warning": "\x1b[33m", "bad": "\x1b[31m", "dim": "\x1b[2m"}  # ECMA-48, SGR
_RESET = "\x1b[0m"
_OWN_ESCAPES = re.compile("|".join(map(re.escape, [*_STYLES.values(), _RESET])))


def terminal_of(stream: TextIO | None) -> Terminal:
    """Return what a stream is read by.

    NO_COLOR and FORCE_COLOR decide about colors where they are set (https://no-color.org, https://force-color.org).
    """
    for_people = is_terminal(stream)
    if os.environ.get("NO_COLOR"):
        color = False
    else:
        color = bool(os.environ.get("FORCE_COLOR")) or (for_people and os.environ.get("TERM") != "dumb")
    return Terminal(max(shutil.get_terminal_size().columns, 20) if for_people else None, color)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person reads the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def escaped(text: str) -> str:
    """Return text with what is not printable escaped as in Python: control characters, line breaks, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped_lines(text: str) -> str:
    """Return text escaped but for its line breaks."""
    return "\n".join(map(escaped, text.split("\n")))


def escaped_but_styles(text: str) -> str:
    """Return text escaped but for line breaks and the styles of `Terminal.paint`: its values are escaped already."""
    parts, styles = _OWN_ESCAPES.split(text), [*_OWN_ESCAPES.findall(text), ""]
    return "".join(escaped_lines(part) + style for part, style in zip(parts, styles, strict=True))


def to_json(value: object, *, indent: int | None = 2) -> str:
    """Return a value as JSON that every parser takes: ASCII, and NaN and infinities, which JSON lacks, as strings."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: object, depth: int = 0) -> object:
    if isinstance(value, (dict, list, tuple)) and depth >= _MAX_DEPTH:
        return "nested too deeply to be shown"
    if isinstance(value, dict):
        return {_whole(str(name)): _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, depth + 1) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # NaN, Infinity or -Infinity
    return _whole(value) if isinstance(value, str) else value


def _whole(text: str) -> str:
    """Return text with lone surrogates escaped: their form in JSON is grammatical, but not every parser takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def table(rows: Mapping[str, object], terminal: Terminal) -> str:
    """Return names and values in two columns, the values broken where a terminal would break them less well."""
    names = {name: escaped(name) for name in rows}
    column = min(max(map(len, names.values()), default=0), _NAME_WIDTH)
    return "\n".join(
        hanging(f"{names[name]:{column}}  ", as_text(value), terminal.width) for name, value in rows.items()
    )


def as_text(value: object) -> str:
    plain = _plain(value)
    return escaped(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def hanging(prefix: str, text: str, width: int | None, *, indent: int | None = None) -> str:
    """Return text after a prefix, its further lines below its first.

    Args:
        prefix: What stands before the first line.
        text: One paragraph.
        width: Columns of the terminal; None does not break it.
        indent: Columns before each further line; as long as the prefix by default.
    """
    indent = len(prefix) if indent is None else indent
    if width is None or width - indent < 20:  # too narrow to be of use
        return prefix + text
    lines = textwrap.wrap(text, width, initial_indent=prefix, subsequent_indent=" " * indent, break_on_hyphens=False)
    return "\n".join(lines or [prefix])


def instant(epoch_seconds: float) -> str:
    """Return a time as people read it, in UTC."""
    try:
        return str(datetime.fromtimestamp(epoch_seconds, timezone.utc).replace(microsecond=0))
    except (ValueError, OverflowError, OSError):
        return f"{epoch_seconds}, which is no time in seconds"
