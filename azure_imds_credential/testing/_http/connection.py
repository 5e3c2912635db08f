"""One HTTP/1.1 connection: requests are parsed, and the steps of each answer played, which may go wrong on purpose."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import threading
from collections.abc import Callable, Generator
from enum import Enum

from .messages import Received, Reply

MOST_HEADER_BYTES = 65536
RELEASE_POLL = 0.005  # seconds between two looks at an Event that holds an answer back


class End(Enum):
    """How a connection ends when an answer says so; otherwise it stays open for the next request."""

    CLOSE = "an orderly end (FIN)"
    RESET = "an abort (RST)"


# An answer is what happens on the wire, in order: bytes are sent, numbers are seconds of silence (math.inf: until the
# client or the emulator gives up), an Event is silence until somebody sets it.
Step = bytes | float | threading.Event | End
Steps = Generator[Step, None, None]
Respond = Callable[[Received], Steps]


def parse(buffer: bytearray, peer: str = "") -> tuple[Received, int] | None:
    """The first whole request of a buffer and its length; None while there is more to come.

    Args:
        buffer: What came in so far.
        peer: Where from; noted in the request.

    Raises:
        ValueError: This is not HTTP, or more than this server reads.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MOST_HEADER_BYTES:
            raise ValueError("the headers are too long")
        return None
    first, *rest = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"unknown version {version}")
    headers = []
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"header without a colon: {line!r}")
        headers.append((name, value.strip()))
    request = Received(method, target, tuple(headers), version, peer)
    length = end + 4 + max(0, int(request.header("Content-Length") or 0))
    return (request, length) if len(buffer) >= length else None


class Connection(asyncio.Protocol):
    """One client: its requests are answered one after the other."""

    def __init__(self, respond: Respond, open_connections: set[asyncio.Transport]) -> None:
        self._respond = respond
        self._open = open_connections
        self._buffer = bytearray()
        self._playing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = transport.get_extra_info("peername")[0]
        self._open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        self._open.discard(self._transport)
        if self._playing is not None:
            self._playing.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._continue()

    def _continue(self) -> None:
        while self._playing is None and self._buffer and not self._transport.is_closing():
            try:
                parsed = parse(self._buffer, self._peer)
            except ValueError:
                self._transport.write(Reply(400, b"", (("Content-Length", "0"),)).encode())
                self._transport.close()
                return
            if parsed is None:
                return
            request, length = parsed
            del self._buffer[:length]
            self._answer(request)

    def _answer(self, request: Received) -> None:
        steps = self._respond(request)
        wants_end = (request.header("Connection") or "").lower() == "close" or request.version == "HTTP/1.0"
        # What needs no waiting is written at once, so that even a client that already hung up its half gets it.
        waiting = self._write_until_wait(steps)
        if waiting is not None:
            self._playing = asyncio.get_running_loop().create_task(self._play(waiting, steps))
            self._playing.add_done_callback(lambda played: self._played(played, steps, wants_end))
        elif wants_end:
            self._transport.close()

    def _write_until_wait(self, steps: Steps) -> float | threading.Event | None:
        for step in steps:
            if isinstance(step, bytes):
                self._transport.write(step)
            elif step is End.CLOSE:
                self._transport.close()
            elif step is End.RESET:
                self._reset()
            else:
                assert not isinstance(step, End)
                return step
        return None

    async def _play(self, waiting: float | threading.Event | None, steps: Steps) -> None:
        while waiting is not None:
            await _wait(waiting)
            waiting = self._write_until_wait(steps)

    def _played(self, played: asyncio.Task[None], steps: Steps, wants_end: bool) -> None:
        self._playing = None
        steps.close()
        if not played.cancelled() and (error := played.exception()) is not None:
            played.get_loop().call_exception_handler({"message": "a fault failed", "exception": error})
            self._transport.abort()
        elif wants_end:
            self._transport.close()
        self._continue()

    def _reset(self) -> None:
        """Ends with RST: what `close` does after SO_LINGER with a time of zero."""
        connection: socket.socket | None = self._transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def _wait(step: float | threading.Event) -> None:
    if isinstance(step, threading.Event):
        while not step.is_set():  # noqa: ASYNC110 - the test that sets it knows no loop
            await asyncio.sleep(RELEASE_POLL)
    elif math.isinf(step):
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(step)
