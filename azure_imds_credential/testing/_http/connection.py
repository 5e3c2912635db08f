"""One HTTP/1.1 connection: requests are parsed, and the steps of each answer played, which may go wrong on purpose."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import struct
import threading
from collections.abc import Callable, Generator
from enum import Enum

from .messages import Received, Reply

MAX_HEADER_BYTES = 65536
MAX_BODY_BYTES = 65536  # a request to IMDS has none; this server reads one of up to so many bytes and ignores it
IDLE_SECONDS = 30.0  # how long a connection may take to send a whole request
RELEASE_POLL = 0.005  # seconds between two looks at an Event that holds an answer back

# RFC 9112 section 3 and RFC 9110 section 5.5; of the forms of a target those that a server meets.
REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[!-~]*|http://[!-~]+|\*) (HTTP/1\.[01])")
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class End(Enum):
    """How a connection ends when an answer says so; otherwise it stays open for the next request."""

    CLOSE = "an orderly end (FIN)"
    RESET = "an abort (RST)"


# An answer is what happens on the wire, in order: bytes are sent, numbers are seconds of silence (math.inf: until the
# client or the emulator gives up), an Event is silence until it is set.
Step = bytes | float | threading.Event | End
Steps = Generator[Step, None, None]
Respond = Callable[[Received], Steps]
Refuse = Callable[[Received], Reply | None]


class BadRequestError(ValueError):
    """This is no request of HTTP/1.1, or more than this server reads.

    Attributes:
        status: What the client is told.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def parse(buffer: bytearray, peer: str = "", peer_port: int = 0) -> tuple[Received, int, int] | None:
    """Return the first request of a buffer, the length of its head and that of its body; None until the head is whole.

    Args:
        buffer: What came in so far.
        peer: Where from; noted in the request.
        peer_port: The port at the other end; noted in the request.

    Raises:
        BadRequestError: This is not HTTP, or more than this server reads.
    """
    end = buffer.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES + 4)
    if end < 0:
        if len(buffer) > MAX_HEADER_BYTES:
            raise BadRequestError("the headers are too long", 431)
        return None
    first, *rest = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    line = REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequestError(f"no request line: {first!r}")
    headers = []
    for each in rest:
        header = HEADER.fullmatch(each)
        if header is None:
            raise BadRequestError(f"no header: {each!r}")
        headers.append((header[1], header[2].rstrip("\t ")))
    request = Received(line[1], line[2], tuple(headers), line[3], peer, peer_port)
    return request, end + 4, _body_length(request)


def _body_length(request: Received) -> int:
    """Return the length of the body.

    Raises:
        BadRequestError: The request names several lengths or hosts, none where it has to, or too long a body.
    """
    hosts, lengths = request.all("Host"), request.all("Content-Length")
    if len(hosts) != 1 and (hosts or request.version != "HTTP/1.0"):
        raise BadRequestError(f"{len(hosts)} Host headers")
    if request.all("Transfer-Encoding"):
        raise BadRequestError("a body without a length", 411)
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
        raise BadRequestError(f"Content-Length: {', '.join(lengths)}")
    if int(lengths[0]) > MAX_BODY_BYTES:
        raise BadRequestError("the body is too long", 413)
    return int(lengths[0])


class Connection(asyncio.Protocol):
    """One client: its requests are answered one after the other.

    Args:
        respond: Gives the steps of the answer to a whole request.
        refuse: Gives the reply to a request that is refused by its head alone, before its body is read.
        open_connections: Where the transport is noted while the connection lasts.
    """

    def __init__(self, respond: Respond, refuse: Refuse, open_connections: set[asyncio.Transport]) -> None:
        self._respond = respond
        self._refuse = refuse
        self._open = open_connections
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._head: tuple[Received, int] | None = None  # a request whose body is still to come, and the body's length
        self._steps: Steps | None = None  # of the answer that is being played
        self._playing: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer, self._peer_port = transport.get_extra_info("peername")[:2]
        self._open.add(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        self._open.discard(self._transport)
        self._stop_waiting()
        self._give_up()

    def eof_received(self) -> None:
        self._continue()
        self._give_up()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > MAX_HEADER_BYTES + MAX_BODY_BYTES and self._steps is not None:
            self._transport.abort()  # requests pile up behind an answer that takes its time
        # Two turns of the loop later, when the ends of other connections that came before this request are known:
        # a client that gave up one request and sends the next has one request under way, not two.
        self._loop.call_soon(self._loop.call_soon, self._continue)

    def _wait_for_request(self) -> None:
        self._idle = self._loop.call_later(IDLE_SECONDS, self._transport.close)

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()

    def _continue(self) -> None:
        try:
            while self._steps is None and not self._transport.is_closing():
                request = self._next_request()
                if request is None:
                    return
                self._stop_waiting()
                self._answer(request)
        except BadRequestError as error:
            self._end_with(Reply(error.status, b"", (("Connection", "close"), ("Content-Length", "0"))))

    def _next_request(self) -> Received | None:
        """Return the next request once it is whole, body and all; None until then, or when it is refused."""
        if self._head is None:
            parsed = parse(self._buffer, self._peer, self._peer_port)
            if parsed is None:
                return None
            request, head_length, body_length = parsed
            del self._buffer[:head_length]
            refusal = self._refuse(request)
            if refusal is not None:
                self._end_with(refusal)
                return None
            self._head = request, body_length
        request, body_length = self._head
        if len(self._buffer) < body_length:
            return None
        del self._buffer[:body_length]
        self._head = None
        return request

    def _end_with(self, reply: Reply) -> None:
        self._transport.write(reply.encode())
        self._transport.close()

    def _answer(self, request: Received) -> None:
        wants_end = (request.header("Connection") or "").lower() == "close" or request.version == "HTTP/1.0"
        # What needs no waiting is written at once, so that even a client that already hung up its half gets it.
        try:
            self._steps = steps = self._respond(request)
            waiting = self._write_until_wait(steps)
        except Exception as error:
            self._report(error)
            return
        if waiting is not None:
            self._playing = self._loop.create_task(self._play(waiting, steps))
            self._playing.add_done_callback(lambda played: self._played(played, wants_end))
        else:
            self._is_over(wants_end)

    def _write_until_wait(self, steps: Steps) -> float | threading.Event | None:
        """Do what needs no waiting, and return what to wait for; None when the answer has ended.

        All steps up to there are taken before the first byte goes out: the generator of an answer has ended, and the
        request counts as over, before its client can know.
        """
        taken: list[bytes | End] = []
        waiting = None
        for step in steps:
            if not isinstance(step, (bytes, End)):
                waiting = step
                break
            taken.append(step)
        for step in taken:
            if isinstance(step, bytes):
                self._transport.write(step)
            elif step is End.CLOSE:
                self._transport.close()
            else:
                self._reset()
        return waiting

    async def _play(self, waiting: float | threading.Event | None, steps: Steps) -> None:
        while waiting is not None:
            await _wait(waiting)
            waiting = self._write_until_wait(steps)

    def _played(self, played: asyncio.Task[None], wants_end: bool) -> None:
        self._playing = None
        if not played.cancelled() and (error := played.exception()) is not None:
            self._report(error)
        self._is_over(wants_end)
        self._continue()

    def _report(self, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": "a fault failed", "exception": error})
        self._transport.abort()

    def _is_over(self, wants_end: bool) -> None:
        self._give_up()
        if wants_end:
            self._transport.close()
        elif not self._transport.is_closing():
            self._wait_for_request()

    def _give_up(self) -> None:
        """End the answer that is being played: it has come to its end, or its client is gone."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
        if self._playing is not None:
            self._playing.cancel()

    def _reset(self) -> None:
        """End with RST: what `close` does after SO_LINGER with a time of zero."""
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
