"""What serve tells on standard output: lines of text, or of JSON."""

from __future__ import annotations

import json
import logging
import select
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

Tell = Callable[[str, Mapping[str, Any]], None]  # an event in a word, and its facts


def output_has_room() -> bool:
    """Return whether standard output takes a line now: not while its pipe is full, or its terminal stopped (Ctrl+S)."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # Windows has no poll; a test's output has no descriptor
        return True
    return bool(poll.poll(0))


# A pipe that poll() calls writable has room for 4,096 bytes (fs/pipe.c of Linux: one page), so that such a line never
# waits.
_LONGEST_LINE = 4096
_LONGEST_VALUES = (1000, 30)  # characters; the second where the line is too long with the first


def teller(write: Callable[[str], None], *, as_json: bool, has_room: Callable[[], bool] = output_has_room) -> Tell:
    """Return what writes one line for an event.

    A line that cannot be written now is lost: programs wait for tokens, whatever becomes of the log. Long values are
    cut.

    Args:
        write: Writes a line.
        as_json: Write one JSON object a line instead of text.
        has_room: Says whether a line can be written without waiting for a reader.
    """
    one_at_a_time = threading.Lock()

    def tell(event: str, facts: Mapping[str, Any]) -> None:
        with suppress(Exception):
            line = _line(event, facts, as_json=as_json)
            with one_at_a_time:
                if has_room():
                    write(line)

    return tell


def _line(event: str, facts: Mapping[str, Any], *, as_json: bool) -> str:
    shown = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event}
    for longest in _LONGEST_VALUES:
        values = {name: _cut(value, longest) for name, value in facts.items()}
        if as_json:
            line = json.dumps({**shown, **values})
        else:
            line = " ".join((*shown.values(), *(f"{name}={_shown(value)}" for name, value in values.items())))
        if len(ascii(line)) < _LONGEST_LINE:
            break
    return line


def _cut(value: Any, longest: int) -> Any:
    return f"{value[:longest]}..." if isinstance(value, str) and len(value) > longest else value


def _shown(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if any(each in text for each in ' "\n') or not text else text


class LibraryLog(logging.Handler):
    """Tells what the library logs: one line per exchange with IMDS, and its warnings.

    Args:
        tell: Writes a line.
        count: Is told of each exchange: how it ended, and after how many requests.
    """

    def __init__(self, tell: Tell, count: Callable[[str, int], None]) -> None:
        super().__init__(logging.INFO)
        self._tell, self._count = tell, count

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of one record; called on the thread of the exchange."""
        facts = {name.removeprefix("imds_"): value for name, value in vars(record).items() if name.startswith("imds_")}
        if "outcome" in facts:
            self._count(str(facts["outcome"]), int(facts.get("attempts", 1)))
            self._tell("upstream", facts)
        else:
            self._tell(record.levelname.lower(), {"message": logging.Formatter().format(record)})
