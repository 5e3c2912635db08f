"""A few Azure services on loopback, under their real names, for Azure's own clients.

They are ours, so they prove nothing about Azure. What they prove is that each client, as its users make it, gets our
token through its real pipeline into the header of every request: the clients keep their default URLs and scopes, verify
the certificate, and PyJWT judges the token against the key set that the emulator publishes.

A client reaches them through the HTTP proxy that a `Cloud` is: it answers in the name of the host it is asked for.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import jwt
import trustme

from azure_imds_credential.testing import ImdsEmulator

IDLE_SECONDS = 30  # after which a connection that a client forgot is dropped


class Request(NamedTuple):
    """A request that came with a good token, or with none."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    body: Any
    claims: Mapping[str, Any]


class Answer(NamedTuple):
    status: int
    body: Any = None
    headers: Mapping[str, str] = {}


class Service(NamedTuple):
    """One host.

    Args:
        audience: What tokens must be for.
        answer: Answers a request whose token is good.
        refusal: What comes with a 401.
        prefix: What stands before the token in the Authorization header.
    """

    audience: str
    answer: Callable[[Request], Answer]
    refusal: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}
    prefix: str = "Bearer "


class Cloud:
    """The proxy with the services behind it. `requests` has what came, as "STATUS METHOD HOST/PATH"."""

    def __init__(self, imds: ImdsEmulator, authority: trustme.CA, services: Mapping[str, Service]) -> None:
        self.services = services
        self.requests: list[str] = []
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*services).configure_cert(self.tls)
        self._imds = imds
        self._keys = jwt.PyJWKClient(imds.jwks_uri)

    def __enter__(self) -> Cloud:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def proxies(self) -> dict[str, str]:
        """What azure-core's clients take as `proxies`."""
        return {"https": f"http://127.0.0.1:{self._server.server_address[1]}"}

    def answer(self, request: Request, authorization: str) -> Answer:
        service = self.services[request.host]
        try:
            if not authorization.startswith(service.prefix):
                raise jwt.InvalidTokenError("no token")
            token = authorization.removeprefix(service.prefix)
            key = self._keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, ["RS256"], audience=service.audience, issuer=self._imds.issuer)
        except jwt.InvalidTokenError as error:
            body = {"error": {"code": "Unauthorized", "message": str(error)}}
            answer = Answer(401, body, service.refusal)
        else:
            answer = service.answer(request._replace(claims=claims))
        self.requests.append(f"{answer.status} {request.method} {request.host}{request.path}")
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection after the test

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cloud = cloud

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    host = ""

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        if host not in self.server.cloud.services:
            self.send_error(502, f"{host} is not behind this proxy")
            return
        self.wfile.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        self.connection = self.server.cloud.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.host, self.close_connection = host, False

    def _answer(self) -> None:
        if not self.host:
            self.send_error(502, "this proxy takes CONNECT only")
            return
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = json.loads(content) if content else None
        asked = Request(self.command, self.host, parts.path, query, body, {})
        answer = self.server.cloud.answer(asked, unquote(self.headers.get("Authorization", "")))
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        self.send_response_only(answer.status)
        headers = {"Content-Type": "application/json; charset=utf-8", **answer.headers}
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815 - names of the base class

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        with suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Nothing: `Cloud.requests` tells."""
