"""A directory server that knows one question, LDAP's simple bind (RFC 4511, 4.2): is this the password of that name?

PostgreSQL asks it for every connection, so that a test decides with a real server in between what is a good password.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable

SUCCESS, INVALID_CREDENTIALS = 0, 49
BIND_REQUEST, BIND_RESPONSE, SIMPLE, SEQUENCE, INTEGER = 0x60, 0x61, 0x80, 0x30, 0x02


class Directory:
    """The server; `asked` has name, password and verdict of every question.

    Args:
        is_good: Judges a name and a password.
    """

    def __init__(self, is_good: Callable[[str, str], bool]) -> None:
        self.is_good = is_good
        self.asked: list[tuple[str, str, bool]] = []

    def __enter__(self) -> Directory:
        directory = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 30

            def handle(self) -> None:
                directory.answer(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def answer(self, connection: socketserver.StreamRequestHandler) -> None:
        """Answer the one bind that PostgreSQL makes per connection of a client."""
        _, message = read_element(connection.rfile.read)
        (_, number), (kind, request) = elements(message)
        assert kind == BIND_REQUEST
        _, (_, name), (method, password) = elements(request)
        good = method == SIMPLE and bool(password) and self.is_good(name.decode(), password.decode())
        self.asked.append((name.decode(), password.decode(), good))
        verdict = bytes((0x0A, 1, SUCCESS if good else INVALID_CREDENTIALS, 0x04, 0, 0x04, 0))
        body = bytes((INTEGER, len(number), *number, BIND_RESPONSE, len(verdict))) + verdict
        connection.wfile.write(bytes((SEQUENCE, len(body))) + body)
        connection.rfile.read(1)  # until the client has unbound or left


def elements(content: bytes) -> list[tuple[int, bytes]]:
    """Take apart what a BER element holds."""
    found, rest = [], content
    while rest:
        position = 0

        def read(count: int, rest: bytes = rest) -> bytes:
            nonlocal position
            position += count
            return rest[position - count : position]

        found.append(read_element(read))
        rest = rest[position:]
    return found


def read_element(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Read one BER element: its tag and what it holds."""
    tag, length = read(2)
    if length & 0x80:
        length = int.from_bytes(read(length & 0x7F), "big")
    return tag, read(length)
