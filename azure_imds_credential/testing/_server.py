"""A small HTTP/1.1 server on one thread: it plays the steps of an answer, and can misbehave on purpose."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from typing import Any

from ._wire import Received, Reply

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


class _Connection(asyncio.Protocol):
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


class Server:
    """The listening socket and the thread behind it.

    Args:
        host: IP address to listen on.
        port: Port to listen on; 0 lets the system choose.
        respond: Called on the server's thread with each request; must not block.
    """

    def __init__(self, host: str, port: int, respond: Respond) -> None:
        self._host = host
        self._port = port
        self._respond = respond
        self._open: set[asyncio.Transport] = set()
        self._listener: asyncio.Server | None = None
        self._family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._bound = self._bind()
        self.port: int = self._bound.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="imds-emulator", daemon=True)

    @property
    def url(self) -> str:
        """Base URL under which a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - what to dial instead
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Starts to answer; returns when the port accepts connections."""
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """Ends every connection and the thread."""
        self._call(self._unlisten())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._bound.close()

    def pause(self) -> None:
        """Cuts every connection and refuses new ones; the port stays ours, bound to a socket that does not listen."""
        self._call(self._unlisten(hold_port=True))

    def resume(self) -> None:
        """Accepts connections again after `pause`."""
        self._call(self._listen())

    def resume_later(self, seconds: float) -> None:
        """Accepts connections again after some seconds; returns at once."""

        async def resume() -> None:
            await asyncio.sleep(seconds)
            await self._listen()

        asyncio.run_coroutine_threadsafe(resume(), self._loop)

    def _bind(self) -> socket.socket:
        bound = socket.socket(self._family, socket.SOCK_STREAM)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR would share the port with strangers
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self._host, self._port))
        except BaseException:
            bound.close()
            raise
        self._port = bound.getsockname()[1]
        return bound

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))  # one turn, in which the cancelled end
        self._loop.close()

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await self._loop.create_server(
                lambda: _Connection(self._respond, self._open), sock=self._bound, backlog=1024
            )

    async def _unlisten(self, *, hold_port: bool = False) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if hold_port:
                self._bound = self._bind()
        for transport in tuple(self._open):
            transport.abort()
        while self._open:  # noqa: ASYNC110 - a few turns of the loop at most
            await asyncio.sleep(0)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)
