"""A process with one port for each kind of endless answer, so that the process of the test has only the client's half.

It prints the base URLs by kind as JSON, and serves until its standard input ends.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tcp import Listener, Talk, listening, never_read

from azure_imds_credential.testing import ImdsEmulator, faults

INTERVAL = 0.005  # seconds between two parts: less than any read timeout
FLOODS = ("100 Continue", "empty lines", "chunks", "chunk extension", "body", "gzip blocks")  # as fast as they are read

_OK = b"HTTP/1.1 200 OK\r\nServer: IMDS/150.870.65.1854\r\n"


def _say(beginning: bytes, again: bytes = b"") -> Talk:
    """Read a request, say the beginning, and then the same thing for ever; nothing more without one."""

    def talk(connection: socket.socket, _listener: Listener) -> None:
        connection.recv(65536)
        _say_on(connection, beginning, again)

    return talk


def _say_on(connection: socket.socket, beginning: bytes, again: bytes) -> None:
    connection.sendall(beginning)
    pause = threading.Event()
    while not pause.wait(INTERVAL if again else 60):
        connection.sendall(again)


def _speak_before_tls(connection: socket.socket, _listener: Listener) -> None:
    connection.recv(65536)
    _say_on(connection, b"\x16\x03\x03\x40\x00", b"\x02")  # a handshake record of 16 KiB, a byte at a time


# Below HTTP, or without an answer at all.
RAW: dict[str, Talk] = {
    "nothing after the connection": never_read,
    "nothing after the request": _say(b""),
    "half a status line": _say(b"HTTP/1.1 2"),
    "half the headers": _say(_OK),
    "half a body": _say(_OK + b"Content-Length: 1000\r\n\r\n{"),
    "half a chunk": _say(_OK + b"Transfer-Encoding: chunked\r\n\r\n400\r\n{"),
    "an end that never comes": _say(_OK + b"Connection: close\r\n\r\n{}"),
    "a hundred thousand headers": _say(
        _OK + b"".join(b"X-%d: 1\r\n" % number for number in range(100_000)), b"X: 1\r\n"
    ),
    "101 Switching Protocols": _say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b"x"),
    "bytes that are no HTTP": _say(b"220 mail.example ESMTP\r\n", b"."),
}
# After a TLS handshake.
TLS: dict[str, Talk] = {
    "TLS, body": _say(_OK + b"Content-Length: 1000000000\r\n\r\n", b" "),
    "TLS, 100 Continue": _say(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "TLS, headers": _say(_OK, b"X-Again: and again\r\n"),
    "TLS, nothing": _say(b""),
}
TLS_HANDSHAKES: dict[str, Talk] = {
    "TLS handshake, dripping": _speak_before_tls,
    "TLS handshake, nothing": never_read,
}
KINDS = (*faults.ENDLESS, *(f"{kind}, flood" for kind in FLOODS), *RAW, *TLS, *TLS_HANDSHAKES)


def _inside_tls(talk: Talk, context: ssl.SSLContext) -> Talk:
    def wrapped(connection: socket.socket, listener: Listener) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            talk(inner, listener)

    return wrapped


def _tls_context(folder: Path) -> ssl.SSLContext:
    """Return a context of a new authority, whose certificate is written to `ca.pem`."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        context = _tls_context(folder)
        urls: dict[str, str] = {"ca": str(folder / "ca.pem")}

        def emulate(name: str, fault: faults.Fault) -> None:
            emulator = stack.enter_context(ImdsEmulator())
            emulator.script(fault, seconds=3600)
            urls[name] = emulator.endpoint

        for kind in faults.ENDLESS:
            emulate(kind, faults.endless(kind, INTERVAL))
        for kind in FLOODS:
            emulate(f"{kind}, flood", faults.endless(kind, 0, times=1000))
        groups: tuple[tuple[dict[str, Talk], Callable[[Talk], Talk], str], ...] = (
            (RAW, lambda talk: talk, "http"),
            (TLS, lambda talk: _inside_tls(talk, context), "https"),
            (TLS_HANDSHAKES, lambda talk: talk, "https"),
        )
        for talks, wrap, scheme in groups:
            for name, talk in talks.items():
                listener = stack.enter_context(listening(wrap(talk)))
                urls[name] = f"{scheme}://127.0.0.1:{listener.port}"
        print(json.dumps(urls), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
