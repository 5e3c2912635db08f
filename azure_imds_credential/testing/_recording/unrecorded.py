"""Exchanges that happen while vcrpy records, and that it does not see.

vcrpy takes its patches off for the whole process while one thread opens a connection. What other threads or tasks send
meanwhile is sent, and recorded nowhere (40 exchanges made by 8 threads, 2 to 10 of them kept). They cannot be held up
from here: by then they have the real connection in hand. So they are counted, and the recording fails.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import inspect
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# The clients that vcrpy records, each by the method that does one exchange. Those that are not loaded send nothing.
_CLIENTS = (
    ("aiohttp.client", "ClientSession", "_request"),
    ("httpcore", "ConnectionPool", "handle_request"),
    ("httpcore", "AsyncConnectionPool", "handle_async_request"),
)


class UnrecordedExchanges:
    """Counts, inside the `with` block, the exchanges that were made and those that were recorded."""

    def __init__(self) -> None:
        self._made: dict[Hashable, list[str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> UnrecordedExchanges:
        with ExitStack() as stack:
            # Not `http.client` by name later on: inside the block vcrpy's own class stands there.
            self._watch(stack, http.client.HTTPConnection, "getresponse")
            for module, name, method in _CLIENTS:
                client = getattr(sys.modules.get(module), name, None)
                if client is not None and hasattr(client, method):
                    self._watch(stack, client, method)
            self._patches = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    @property
    def found(self) -> list[str]:
        """What was exchanged and not recorded, one line each."""
        with self._lock:
            return sorted(line for lines in self._made.values() for line in lines)

    def recorded(self) -> None:
        """Note that the newest exchange of this thread or task has been recorded."""
        with self._lock:
            made = self._made.get(_who())
            if made:
                made.pop()

    def _watch(self, stack: ExitStack, client: type, method: str) -> None:
        original: Callable[..., Any] = getattr(client, method)
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                result = await original(*args, **kwargs)
                self._note(args)
                return result

            stack.enter_context(mock.patch.object(client, method, call_async))
            return

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._note(args)
            return result

        stack.enter_context(mock.patch.object(client, method, call))

    def _note(self, args: tuple[Any, ...]) -> None:
        connection, *given = args
        host = getattr(connection, "host", None)  # of http.client
        told = f"{host}:{connection.port}" if host else " ".join(str(each) for each in given)
        line = f"{told} in {threading.current_thread().name}"
        with self._lock:
            self._made.setdefault(_who(), []).append(line)


def _who() -> Hashable:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop in this thread
        task = None
    return threading.get_ident(), task
