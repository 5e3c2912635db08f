"""An HTTP proxy on loopback that answers, over TLS, in the name of hosts that are elsewhere, and forwards nothing."""

from __future__ import annotations

import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from typing_extensions import Self

_IDLE = 30.0  # seconds after which a silent connection is dropped, so that no thread outlives its test


class Request(NamedTuple):
    """What came through the tunnel to one of the hosts."""

    method: str
    host: str
    target: str  # path and query
    headers: Message  # looked up without regard to case
    body: bytes


class Answer(NamedTuple):
    """What goes back; its length is added."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TlsProxy:
    """The proxy, inside a `with` block. Clients keep the hosts' names, and verify their certificates as ever.

    Args:
        authority: Signs the certificate of the hosts; clients must trust it.
        hosts: Their names; each is reached on port 443.
        answer: Answers a request, on a thread of the client's connection.
    """

    def __init__(self, authority: trustme.CA, hosts: Iterable[str], answer: Callable[[Request], Answer]) -> None:
        self.hosts = frozenset(hosts)
        self.answer = answer
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*self.hosts).configure_cert(self.tls)

    def __enter__(self) -> TlsProxy:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """URL of the proxy, for HTTPS requests."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class HostDouble:
    """A host that answers on this machine, inside a `with` block: a proxy with an authority of its own.

    Args:
        host: The name of the host.
        answer: Answers a request, on a thread of the client's connection.

    Attributes:
        proxy: URL of the proxy behind which the host is.
        ca_file: The certificate to trust.
    """

    def __init__(self, host: str, answer: Callable[[Request], Answer]) -> None:
        self.host = host
        self._answer = answer

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            authority = trustme.CA()
            self.ca_file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ca.pem"
            authority.cert_pem.write_to_path(self.ca_file)
            self.proxy = stack.enter_context(TlsProxy(authority, [self.host], self._answer)).url
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def environment(self) -> dict[str, str]:
        """Return the variables with which requests (REQUESTS_CA_BUNDLE) and aiohttp (SSL_CERT_FILE) find and trust it.

        aiohttp reads its variable once, when it is imported: start the program with it.
        """
        trusted = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.ca_file))
        proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), self.proxy)
        return {**trusted, **proxies, "NO_PROXY": "", "no_proxy": ""}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection after the test

    def __init__(self, proxy: TlsProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that goes away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    host = ""  # at the other end of the tunnel, once there is one

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if host not in self.server.proxy.hosts or port != "443":
            self.send_error(502, f"{self.path} is not behind this proxy")
            return
        self.wfile.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        self.connection = self.server.proxy.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.host, self.close_connection = host, False

    def _answer(self) -> None:
        if not self.host:
            self.send_error(502, "this proxy takes CONNECT only")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.proxy.answer(Request(self.command, self.host, self.path, self.headers, body))
        self.send_response_only(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815 - names of the base class

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        with suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Log nothing: the journal has the request."""
