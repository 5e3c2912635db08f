"""Entra ID's token endpoint for applications that trust a token instead of a secret, on loopback over TLS.

Sources: the request is that of "client credentials with a federated credential", the error codes are those of Entra's
list. https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
https://learn.microsoft.com/entra/identity-platform/reference-error-codes
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ._emulator.emulator import ImdsEmulator
from ._emulator.identities import TENANT_ID
from ._emulator.tokens import EXCHANGE_ISSUER, EXCHANGE_RESOURCE, ISSUER, LIFETIME, jwks, sign
from ._vault.tls_proxy import Answer, HostDouble, Request

HOST = "login.microsoftonline.com"
_TENANT_URL = f"https://{HOST}/{TENANT_ID}"
_TOKEN_PATH = f"/{TENANT_ID}/oauth2/v2.0/token"
# msal reads the endpoints of a tenant before its first request.
_CONFIGURATION_PATH = f"/{TENANT_ID}/v2.0/.well-known/openid-configuration"
_CONFIGURATION = {
    "issuer": EXCHANGE_ISSUER,
    "authorization_endpoint": f"{_TENANT_URL}/oauth2/v2.0/authorize",
    "token_endpoint": f"https://{HOST}{_TOKEN_PATH}",
    "device_authorization_endpoint": f"{_TENANT_URL}/oauth2/v2.0/devicecode",
}
_JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523, section 2.2


class FederatedCredential(NamedTuple):
    """What an application trusts.

    Attributes:
        subject: The `sub` of the token: for a managed identity its object ID.
        issuer: The `iss` of the token; by default that of managed identities in the emulator's tenant.
        audience: The `aud` of the token.
    """

    subject: str
    issuer: str = EXCHANGE_ISSUER
    audience: str = EXCHANGE_RESOURCE


class _RefusedError(Exception):
    """An error answer, as Entra words it."""

    def __init__(self, status: int, error: str, code: int, text: str) -> None:
        super().__init__(text)
        self.status, self.error, self.code = status, error, code


class EntraDouble(HostDouble):
    """Entra ID's token endpoint, for the applications it is given. It is not Azure, and answers nothing else.

    Clients reach it under its real name, with its certificate verified, because it is an HTTP proxy on a loopback port:
    a program needs `environment()` only. Assertions are verified with the emulator's key: signature, time, issuer,
    subject and audience.

        with ImdsEmulator([app]) as imds, EntraDouble(imds, {CLIENT_ID: FederatedCredential(app.object_id)}) as entra:
            subprocess.run([...], env=os.environ | entra.environment())

    Args:
        imds: The emulator whose clock and tenant it shares.
        applications: What each application trusts, by client ID.

    Attributes:
        requests: What came, as "METHOD PATH -> STATUS ERROR_CODE".
        tokens: Every access token that was issued.
        proxy: URL of the proxy behind which it is.
        ca_file: The certificate to trust.
    """

    def __init__(self, imds: ImdsEmulator, applications: Mapping[str, FederatedCredential]) -> None:
        super().__init__(HOST, self._respond)
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self._imds = imds
        self._applications = dict(applications)

    def _respond(self, request: Request) -> Answer:
        path = urlsplit(request.target).path
        try:
            body = _CONFIGURATION if path == _CONFIGURATION_PATH else self._token(request, path)
            status, code = 200, ""
        except _RefusedError as refusal:
            status, code = refusal.status, f" {refusal.code}"
            body = {
                "error": refusal.error,
                "error_description": f"AADSTS{refusal.code}: {refusal}",
                "error_codes": [refusal.code],
                "trace_id": str(uuid.uuid4()),
                "correlation_id": str(uuid.uuid4()),
            }
        self.requests.append(f"{request.method} {path} -> {status}{code}")
        return Answer(status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(body).encode())

    def _token(self, request: Request, path: str) -> dict[str, Any]:
        """Return the answer to a token request.

        Raises:
            _RefusedError: Something in it is not as it must be.
        """
        if request.method != "POST" or path != _TOKEN_PATH:
            raise _RefusedError(404, "invalid_request", 900144, f"{request.method} {path} is not the token endpoint.")
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if form.get("grant_type") != "client_credentials":
            raise _RefusedError(400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type.")
        client_id = form.get("client_id", "")
        if client_id not in self._applications:
            text = f"Application with identifier '{client_id}' was not found in the directory."
            raise _RefusedError(400, "unauthorized_client", 700016, text)
        self._verify(form, self._applications[client_id])
        return self._issue(client_id, form.get("scope", "").removesuffix("/.default"))

    def _verify(self, form: Mapping[str, str], trusted: FederatedCredential) -> None:
        import jwt

        if form.get("client_assertion_type") != _JWT_BEARER:
            text = "The request body must contain 'client_assertion' or 'client_secret'."
            raise _RefusedError(401, "invalid_client", 7000218, text)
        try:
            key = jwt.PyJWKSet.from_dict(jwks()).keys[0]
            # The times are compared with the emulator's clock, below.
            claims = jwt.decode(
                form.get("client_assertion", ""),
                key,
                ["RS256"],
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False},
            )
        except jwt.InvalidTokenError as error:
            raise _RefusedError(
                401, "invalid_client", 700027, f"The assertion's signature is not valid: {error}"
            ) from error
        if not claims.get("nbf", 0) <= self._imds.now() < claims.get("exp", 0):
            raise _RefusedError(401, "invalid_client", 700024, "Client assertion is not within its valid time range.")
        for code, claim, expected in (
            (700211, "iss", trusted.issuer),
            (700213, "sub", trusted.subject),
            (700212, "aud", trusted.audience),
        ):
            if claims.get(claim) != expected:
                name = {"iss": "issuer", "sub": "subject", "aud": "audience"}[claim]
                text = (
                    f"No matching federated identity record found for presented assertion {name} '{claims.get(claim)}'."
                )
                raise _RefusedError(401, "invalid_client", code, text)

    def _issue(self, client_id: str, resource: str) -> dict[str, Any]:
        now = int(self._imds.now())
        principal = str(uuid.uuid5(uuid.NAMESPACE_URL, client_id))
        claims = {
            "aud": resource,
            "iss": ISSUER,
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME,
            "appid": client_id,
            "appidacr": "2",
            "idtyp": "app",
            "oid": principal,
            "sub": principal,
            "tid": TENANT_ID,
            "ver": "1.0",
        }
        self.tokens.append(sign(claims))
        return {"token_type": "Bearer", "expires_in": LIFETIME, "access_token": self.tokens[-1]}
