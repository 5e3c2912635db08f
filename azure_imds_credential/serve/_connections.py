"""Open connections: how many, how long they may be idle, and who is at the other end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web

from ._peer import peer_uid

MAX_CONNECTIONS = 256
IDLE_SECONDS = 30.0


class Http(web.RequestHandler):
    """aiohttp's protocol for one connection, with serve's own answer to what is not HTTP.

    Args:
        server: aiohttp's server.
        not_http: Returns that answer.
        options: Those of aiohttp's protocol.
    """

    __slots__ = ("_not_http",)

    def __init__(self, server: web.Server, not_http: Callable[[], web.Response], **options: Any) -> None:
        super().__init__(server, **options)
        self._not_http = not_http

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, *details: Any, **more: Any
    ) -> web.StreamResponse:
        """Return the answer to a request that cannot be read, or to one that failed."""
        return self._not_http() if status == 400 else super().handle_error(request, status, *details, **more)


class Connections:
    """The open connections of one server.

    A connection is idle unless a request on it is being answered: a client that sends its request byte by byte, or does
    not read its answers, keeps an idle connection. Of more than `limit` the one that was idle longest is ended, so that
    clients which open connections and do nothing keep out only each other.

    Args:
        new_http: Makes aiohttp's protocol for a connection.
        limit: How many may be open.
        idle_seconds: How long one may be idle.
        only_uid: The user whose processes may ask (Linux); None: any.
    """

    def __init__(
        self,
        new_http: Callable[[], web.RequestHandler],
        *,
        limit: int = MAX_CONNECTIONS,
        idle_seconds: float = IDLE_SECONDS,
        only_uid: int | None = None,
    ) -> None:
        self._new_http = new_http
        self._limit, self._idle_seconds, self._only_uid = limit, idle_seconds, only_uid
        self._loop = asyncio.get_running_loop()
        self._idle: OrderedDict[web.RequestHandler, Connection] = OrderedDict()  # idle longest first
        self._busy: dict[web.RequestHandler, Connection] = {}
        self._sweeper = self._loop.call_later(idle_seconds / 10, self._sweep)

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self, self._new_http())

    def close(self) -> None:
        """End the watch over idle connections."""
        self._sweeper.cancel()

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False when every other one is busy and there is no place."""
        if len(self) >= self._limit:
            if not self._idle:
                return False
            self._end(next(iter(self._idle.values())))
        self._note_idle(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._idle.pop(connection.http, None)
        self._busy.pop(connection.http, None)

    def begin(self, http: web.RequestHandler) -> Connection | None:
        """Note that a request is being answered; None when its connection is gone."""
        connection = self._idle.pop(http, None)
        if connection is not None:
            self._busy[http] = connection
        return connection

    def finish(self, connection: Connection) -> None:
        """Note that a request was answered."""
        if self._busy.pop(connection.http, None) is not None:
            self._note_idle(connection)

    async def may_ask(self, connection: Connection) -> bool:
        """Return whether the process at the other end belongs to the right user; looked up once per connection."""
        if self._only_uid is None:
            return True
        if connection.uid is None:
            names = (connection.transport.get_extra_info(name) for name in ("peername", "sockname"))
            connection.uid = await self._loop.run_in_executor(None, peer_uid, *names)
        return connection.uid == self._only_uid

    def _note_idle(self, connection: Connection) -> None:
        connection.idle_since = self._loop.time()
        self._idle[connection.http] = connection

    def _end(self, connection: Connection) -> None:
        self.remove(connection)
        connection.transport.abort()  # not close: that would wait until the client has read everything

    def _sweep(self) -> None:
        latest = self._loop.time() - self._idle_seconds
        for connection in list(self._idle.values()):
            if connection.idle_since > latest:
                break
            self._end(connection)
        self._sweeper = self._loop.call_later(self._idle_seconds / 10, self._sweep)


class Connection(asyncio.Protocol):
    """One connection: hands everything on to aiohttp's protocol, once there is a place."""

    __slots__ = ("_admitted", "_connections", "http", "idle_since", "transport", "uid")

    def __init__(self, connections: Connections, http: web.RequestHandler) -> None:
        self._connections = connections
        self._admitted = False
        self.http = http
        self.idle_since = 0.0
        self.uid: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._admitted = self._connections.admit(self)
        if self._admitted:
            self.http.connection_made(transport)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        if self._admitted:
            self.http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._admitted:
            self.http.data_received(data)

    def eof_received(self) -> None:
        self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()
