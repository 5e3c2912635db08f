"""Requests to IMDS: msal builds them, a pipeline sends them. No other module uses msal."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import msal
from azure.core.rest import HttpRequest

from .._clock import Clock
from .._endpoint import TOKEN_PATH, Endpoint
from .._errors import local_error
from .._request import TokenRequest, TokenResult
from ..exceptions import ImdsError
from .retry_policy import BYPASS_CACHE, CLIENT_REQUEST_ID, ImdsRetryPolicy

_IDENTITY = msal.UserAssignedManagedIdentity  # names the members of the dict in which msal takes an identity
_ID_TYPES = {
    "default": _IDENTITY.SYSTEM_ASSIGNED,
    "client_id": _IDENTITY.CLIENT_ID,
    "object_id": _IDENTITY.OBJECT_ID,
    "resource_id": _IDENTITY.RESOURCE_ID,
}


class ImdsClient:
    """Gets tokens from IMDS.

    Args:
        options: The credential's pipeline options.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options

    def fetch(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        """Ask IMDS for a token, again and again as `retry` says, until the request's deadline.

        Args:
            request: What is asked for. It is told the error of each failed attempt.
            endpoint: What is known of the base URL, and its rate limiter.
            clock: Clocks, randomness and sleep.
        """
        policy = ImdsRetryPolicy(request, endpoint, self._options, clock)
        try:
            result = _acquire_token(request, policy)
        except ImdsError as error:
            error.__traceback__ = error.__context__ = None  # frames hold responses, and responses hold tokens
            result = policy.failure(error)
        except (StopIteration, StopAsyncIteration) as error:
            # Around a caller's loop it would pass for the end of the loop.
            result = policy.failure(policy.fault(f"a hook or a policy raised {type(error).__name__}: {error}"))
        finally:
            endpoint.limiter.release(request, clock)
        result.log_fields = policy.log_fields(result)
        return result


def _acquire_token(request: TokenRequest, policy: ImdsRetryPolicy) -> TokenResult:
    """Have msal ask.

    Raises:
        ImdsError: There is no token.
    """
    # The slot first: only threads that have one build msal's client, which takes longer than a request. If all built
    # theirs at once, up to 0.1 s would pass between taking a slot and sending, and other requests would get a 429.
    policy.acquire_slot()
    identity = request.key.identity
    selector = {_IDENTITY.ID_TYPE: _ID_TYPES[identity.kind], _IDENTITY.ID: identity.value}
    client = msal.ManagedIdentityClient(selector, http_client=_HttpClient(request, policy), http_cache={})
    access_token = client.acquire_token_for_client(resource=request.key.resource)["access_token"]
    # msal hands on the token and not its life.
    return TokenResult(access_token, policy.sent_at + policy.verdict.life)


class _HttpClient:
    """The HTTP client that msal sends its request with.

    Args:
        request: What is asked for.
        policy: What repeats attempts, in the pipeline that carries the request.
    """

    def __init__(self, request: TokenRequest, policy: ImdsRetryPolicy) -> None:
        self._request, self._policy = request, policy

    def get(self, _url: str, *, params: Mapping[str, str], headers: Mapping[str, str]) -> SimpleNamespace:
        """Carry msal's request to our endpoint: msal reads the environment, which another thread may change.

        What msal gets to read is only ever a good response, put in its terms.
        """
        if headers.get("Metadata") != "true" or "X-IDENTITY-HEADER" in headers:
            reason = "The environment began to name another token source while IMDS was asked"
            hint = "Use azure.identity.ManagedIdentityCredential there, or unset the variables."
            raise local_error(self._request.key, reason, hint, seen=False)
        request = HttpRequest(
            "GET",
            f"{self._request.key.url}{TOKEN_PATH}",
            # azure-core sends values as they are: `&`, `#`, `+` and `%` would ask for something else.
            params={name: quote(value, safe=":/()") for name, value in params.items()},
            headers={
                **headers,
                # msal sends one since 1.34; IMDS wants the name with x-ms- in front.
                CLIENT_REQUEST_ID: headers.get(CLIENT_REQUEST_ID) or str(uuid.uuid4()),
                "Accept-Encoding": "identity",  # no Content-Encoding is ever decoded
            },
        )
        if self._request.bypass_cache:
            request.url += BYPASS_CACHE
        verdict = self._policy.run(request)
        token = {"access_token": verdict.access_token, "expires_in": max(1, int(verdict.life))}
        return SimpleNamespace(status_code=200, headers={}, text=json.dumps(token))

    def close(self) -> None:
        """Do nothing: the connection ended with `get`. msal asks for the method."""
