"""A few Azure services on loopback, under their real names, for Azure's own clients.

They are ours, so they prove nothing about Azure. What they prove is that each client, as its users make it, gets our
token through its real pipeline into the header of every request: the clients keep their default URLs and scopes, verify
the certificate, and PyJWT judges the token against the key set that the emulator publishes.

A client reaches them through the HTTP proxy that a `Cloud` is: it answers in the name of the host it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import jwt
import trustme

from azure_imds_credential.testing import ImdsEmulator
from azure_imds_credential.testing._vault import tls_proxy


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
        self._imds = imds
        self._keys = jwt.PyJWKClient(imds.jwks_uri)
        self._proxy = tls_proxy.TlsProxy(authority, services, self._respond)

    def __enter__(self) -> Cloud:
        self._proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.__exit__()

    @property
    def proxies(self) -> dict[str, str]:
        """What azure-core's clients take as `proxies`."""
        return {"https": self._proxy.url}

    def _respond(self, sent: tls_proxy.Request) -> tls_proxy.Answer:
        parts = urlsplit(sent.target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        asked = Request(sent.method, sent.host, parts.path, query, json.loads(sent.body) if sent.body else None, {})
        answer = self._judged(asked, unquote(sent.headers.get("Authorization", "")))
        self.requests.append(f"{answer.status} {asked.method} {asked.host}{asked.path}")
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", **answer.headers}
        return tls_proxy.Answer(answer.status, headers, content)

    def _judged(self, request: Request, authorization: str) -> Answer:
        service = self.services[request.host]
        try:
            if not authorization.startswith(service.prefix):
                raise jwt.InvalidTokenError("no token")
            token = authorization.removeprefix(service.prefix)
            key = self._keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(token, key, ["RS256"], audience=service.audience, issuer=self._imds.issuer)
        except jwt.InvalidTokenError as error:
            return Answer(401, {"error": {"code": "Unauthorized", "message": str(error)}}, service.refusal)
        return service.answer(request._replace(claims=claims))
