"""What serve tells on standard output: lines of text, or of JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

Tell = Callable[[str, Mapping[str, Any]], None]  # an event in a word, and its facts


def teller(write: Callable[[str], None], *, as_json: bool) -> Tell:
    """Return what writes one line for an event.

    A line that cannot be written is lost: programs wait for tokens, whatever becomes of the log.

    Args:
        write: Writes a line.
        as_json: Write one JSON object a line instead of text.
    """

    def tell(event: str, facts: Mapping[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        if as_json:
            line = json.dumps({"time": now, "event": event, **facts})
        else:
            line = " ".join((now, event, *(f"{name}={_shown(value)}" for name, value in facts.items())))
        with suppress(Exception):
            write(line)

    return tell


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
