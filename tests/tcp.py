"""Servers below HTTP: what happens on a loopback port from the moment a connection is accepted."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Listener:
    """A port, and what came through it."""

    port: int
    accepted: int = 0
    received: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Talk = Callable[[socket.socket, Listener], None]


@contextmanager
def listening(talk: Talk) -> Iterator[Listener]:
    """Let `talk` have each connection, on a thread of its own; afterwards every connection is cut."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        listener = Listener(server.getsockname()[1])

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                talk(connection, listener)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    listener.accepted += 1
                    connections.append(connection)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield listener
        finally:
            for endpoint in (server, *connections):
                with contextlib.suppress(OSError):
                    endpoint.shutdown(socket.SHUT_RDWR)
            accepting.join()


def record(connection: socket.socket, listener: Listener) -> None:
    """Keep what comes and answer 200 with nothing in it."""
    data = connection.recv(65536)
    listener.received.append(data)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def never_read(connection: socket.socket, listener: Listener) -> None:
    """Accept and do nothing more, until the client goes."""
    threading.Event().wait(60)


def speak_first(connection: socket.socket, listener: Listener) -> None:
    """Say something that is no TLS before being asked."""
    connection.sendall(b"220 mail.example ESMTP\r\n")
    connection.recv(65536)
