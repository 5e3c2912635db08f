"""What serve answers, in the shape of IMDS: pure functions from facts to bytes.

Members, their order and the rule that every value is a string are those of recorded answers (2020 to 2025).
The documented ones: https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import web

from .. import IdentityInfo, __version__
from ..exceptions import (
    IdentityMismatchError,
    IdentityUnavailableError,
    ImdsError,
    ImdsThrottledError,
    ImdsUnavailableError,
)
from . import SERVE_HEADER

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
SERVER = "IMDS/azure-imds-serve"  # clients that look for IMDS look for this beginning
LOOP_CODE = "loop_detected"  # the error of a serve that would ask a serve

# IMDS: `not_before` lies 300 s before the moment of issue, and `ext_expires_in` is the whole life less a second
# (captures of 2020 to 2025: 86700 s between not_before and expires_on, ext_expires_in 86399).
_BACKDATED = 300


class Answer(NamedTuple):
    """An answer before it is sent.

    Attributes:
        status: HTTP status.
        body: Its bytes.
        content_type: Header of that name.
        headers: More headers.
        reason: For a refusal, in a word: what the metrics count it under.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    reason: str = ""

    def response(self, *, close: bool = False) -> web.Response:
        """Return what aiohttp sends; with `close` the connection ends after it."""
        headers = {
            "Content-Type": self.content_type,
            "Server": SERVER,
            SERVE_HEADER: __version__,
            "x-ms-request-id": str(uuid.uuid4()),
            **self.headers,
        }
        response = web.Response(status=self.status, body=self.body, headers=headers)
        if close:
            response.force_close()
        return response


def _compact(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def identity_error(status: int, description: str, code: str = "invalid_request", reason: str = "") -> Answer:
    """Return an error in the shape of IMDS's identity category."""
    return Answer(status, _compact({"error": code, "error_description": description}), reason=reason)


# Words of recorded answers, 2018 to 2025.
NO_METADATA_HEADER = identity_error(400, "Required metadata header not specified", reason="metadata")
NOT_FOUND = Answer(404, b'{"error":"Not Found"}')
THROTTLED = identity_error(429, "Temporarily throttled, too many requests")
# The specification's example (2018-10-01). Allow is what RFC 9110 asks of every 405.
WRONG_METHOD = identity_error(405, "Not allowed", "method_not_allowed", "method")._replace(
    headers={"Allow": "GET, HEAD"}
)


class TokenBody:
    """The body of a token answer. All but the time left stays the same while the token does.

    Args:
        token: The access token.
        resource: What was asked for.
        identity: What the token says of itself; its fields are None for a token that cannot be decoded.
        client_id: The client ID that was asked for, if any.
        expires_on: Epoch seconds of this machine's clock.
        now: Epoch seconds: for what a token that cannot be decoded does not tell.
    """

    __slots__ = ("_after", "_before", "expires_on", "token")

    def __init__(
        self, token: str, resource: str, identity: IdentityInfo, client_id: str | None, expires_on: int, now: float
    ) -> None:
        self.token, self.expires_on = token, expires_on
        not_before = identity.claims.get("nbf")
        if not isinstance(not_before, int):
            not_before = identity.issued_on or int(now) - _BACKDATED
        whole_life = max(0, (identity.expires_on or expires_on) - not_before - _BACKDATED - 1)
        told = identity.client_id or client_id
        before = {"access_token": token, **({"client_id": told} if told else {})}  # Container Instances tell none
        after = {
            "expires_on": str(expires_on),
            "ext_expires_in": str(whole_life),
            "not_before": str(not_before),
            "resource": resource,
            "token_type": "Bearer",
        }
        self._before = _compact(before)[:-1] + b',"expires_in":"'
        self._after = b'",' + _compact(after)[1:]

    def at(self, now: float) -> Answer:
        """Return the answer at this time (epoch seconds): `expires_in` is what is left, as IMDS has it."""
        return Answer(200, b"%b%d%b" % (self._before, max(0, self.expires_on - int(now)), self._after))


def failure(error: ImdsError, upstream: Answer | None) -> Answer:
    """Return the answer for an error of the credential.

    Args:
        error: Why there is no token.
        upstream: IMDS's last refusal of this request as it came, if it was kept.
    """
    if error.error_code == LOOP_CODE:
        return UPSTREAM_IS_SERVE
    if isinstance(error, ImdsUnavailableError):
        return identity_error(503, f"azure-imds serve has no IMDS behind it. {error}", "service_unavailable")
    if isinstance(error, IdentityMismatchError):
        return identity_error(502, str(error), "server_error")
    if error.status is None:
        return identity_error(503, str(error), "service_unavailable")
    if error.status < 400:  # a token that cannot be used, or a redirect
        return identity_error(502, str(error), "server_error")
    if upstream is not None and upstream.status == error.status:
        return upstream
    code = error.error_code
    if code is None:
        by_class = {IdentityUnavailableError: "invalid_request", ImdsThrottledError: "too_many_requests"}
        code = by_class.get(type(error), "server_error" if error.status >= 500 else "bad_request")
    return identity_error(error.status, error.error_description or str(error), code)


NOT_HTTP = identity_error(400, "Not a request of HTTP/1.1", reason="http")
ENDING = identity_error(503, "azure-imds serve is being ended", "service_unavailable")
UPSTREAM_IS_SERVE = identity_error(
    503,
    "azure-imds serve was told to ask another azure-imds serve, or itself. Start it with --endpoint and the address of "
    "IMDS, or without it.",
    "service_unavailable",
)
