"""The listening socket of an emulator and the thread behind it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from . import checks
from .connection import Connection

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .connection import Refuse, Respond

# Turns of its loop that asyncio (3.10 to 3.13: two) takes to make a transport of a connection that it has accepted.
# When its server is closed meanwhile, it drops the connection without closing it.
ACCEPT_TURNS = 3
BIND_ATTEMPTS, BIND_PAUSE = 1000, 0.02  # the pause in seconds: 20 s in all, less than the 30 s of `_call`


def address(host: str, port: int) -> tuple[str, int]:
    """Return where to listen. No name is looked up: localhost is what it has to be, whatever a file of hosts says.

    Raises:
        TypeError: The host is no string, or the port no number.
        ValueError: They are no IP address (or localhost) and no port.
    """
    expected = f"host must be an IP address such as 127.0.0.1, or localhost, got {host!r}"
    if not isinstance(host, str):
        raise TypeError(expected)
    try:
        ip = "127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError(expected) from None
    return ip, checks.whole("port", port, 0, 65535)


class _Loop(asyncio.SelectorEventLoop):  # on Windows, too: the other kind cannot stop accepting
    """A loop whose time goes on while freezegun, which replaces `time.monotonic` everywhere, stands still."""

    if hasattr(time, "CLOCK_MONOTONIC"):

        def time(self) -> float:
            return time.clock_gettime(time.CLOCK_MONOTONIC)


class Server:
    """The listening socket and the thread behind it.

    Args:
        host: IP address to listen on, as `address` gives it.
        port: Port to listen on; 0 lets the system choose.
        respond: Called on the server's thread with each request; must not block.
        refuse: Called on the server's thread with the head of each request, before its body is read; the reply to one
            that is refused. None refuses none.
    """

    def __init__(self, host: str, port: int, respond: Respond, refuse: Refuse = lambda _: None) -> None:
        self._host = host
        self._port = port
        self._respond = respond
        self._refuse = refuse
        self._open: set[asyncio.Transport] = set()
        self._listener: asyncio.Server | None = None
        self._is_over = False
        self._family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._bound = self._bind()
        self.port: int = self._bound.getsockname()[1]
        self._loop = _Loop()
        self._thread = threading.Thread(target=self._run, name="imds-emulator", daemon=True)
        _servers.add(self)

    @property
    def url(self) -> str:
        """Base URL under which a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - what to dial instead
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Start to answer, and return when the port accepts connections."""
        self._pid = os.getpid()
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """End every connection and the thread. In a forked child, which has no thread, only let go of the port."""
        if os.getpid() != self._pid:
            self._bound.close()
            return
        self._call(self._unlisten(for_good=True))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._bound.close()

    def pause(self) -> None:
        """Cut every connection and refuse new ones; the port stays ours, bound to a socket that does not listen."""
        self._call(self._unlisten())

    def resume(self) -> None:
        """Accept connections again after `pause`."""
        self._call(self._listen())

    def resume_later(self, seconds: float) -> None:
        """Accept connections again after some seconds, and return at once."""

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

    async def _bind_again(self) -> socket.socket:
        """Bind the port that was just listened at: a child forked meanwhile lets go of it when it first runs."""
        for _ in range(BIND_ATTEMPTS - 1):
            try:
                return self._bind()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                await asyncio.sleep(BIND_PAUSE)
        return self._bind()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))  # one turn, in which the cancelled end
        self._loop.close()

    async def _listen(self) -> None:
        if self._listener is None and not self._is_over:
            self._listener = await self._loop.create_server(
                lambda: Connection(self._respond, self._refuse, self._open), sock=self._bound, backlog=1024
            )

    async def _unlisten(self, *, for_good: bool = False) -> None:
        self._is_over |= for_good
        if self._listener is not None:
            self._loop.remove_reader(self._bound)
            for _ in range(ACCEPT_TURNS):
                await asyncio.sleep(0)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if not for_good:
                self._bound = await self._bind_again()
        for transport in tuple(self._open):
            transport.abort()
        while self._open:  # noqa: ASYNC110 - a few turns of the loop at most
            await asyncio.sleep(0)

    def let_go(self) -> None:
        """Let go of every socket in a forked child, where each would stay open after the parent has closed it."""
        sockets = [self._bound, *(transport.get_extra_info("socket") for transport in tuple(self._open))]
        null = os.open(os.devnull, os.O_RDWR)
        for each in sockets:
            if each is not None and each.fileno() >= 0:
                os.dup2(null, each.fileno(), inheritable=False)  # the objects still close a descriptor of theirs
        os.close(null)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)


_servers: weakref.WeakSet[Server] = weakref.WeakSet()


def _let_go() -> None:
    for server in tuple(_servers):
        server.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
