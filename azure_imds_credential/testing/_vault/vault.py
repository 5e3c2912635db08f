"""A double of Key Vault, just good enough for `SecretClient` to read a secret. It is not Azure.

What it answers follows sessions with a real vault that the tests of Azure's own SDK recorded: the challenge, the
secret and their headers from 2022-03-25 (azure-sdk-for-python, tests/recordings of azure-keyvault-secrets 4.4.0).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..._jwt import claims_of
from .._emulator.identities import TENANT_ID
from .tls_proxy import Answer, HostDouble, Request

_RESOURCE = "https://vault.azure.net"
_CHALLENGE = f'Bearer authorization="https://login.windows.net/{TENANT_ID}", resource="{_RESOURCE}"'


class VaultDouble(HostDouble):
    """A vault with secrets that a token for Key Vault opens.

    Clients reach it under its real-looking name, with certificate and challenge verified as on Azure, because it is an
    HTTP proxy on a loopback port: it answers in the name of the vault what is sent to the vault, and nothing else.
    `environment()` is all that a program needs to be told.

        with ImdsEmulator() as imds, VaultDouble("demo", {"greeting": "hello"}) as vault:
            subprocess.run([...], env=os.environ | vault.environment() | {
                "AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint})

    Tokens are not verified, only read: audience and expiry must fit.

    Args:
        name: The first label of the host name.
        secrets: Value by name.

    Attributes:
        requests: What came, as "METHOD PATH?QUERY -> STATUS".
        proxy: URL of the proxy behind which the vault is.
        ca_file: The certificate to trust.
    """

    def __init__(self, name: str, secrets: Mapping[str, str]) -> None:
        super().__init__(f"{name}.vault.azure.net", self._respond)
        self.url = f"https://{self.host}"
        self.requests: list[str] = []
        self._secrets = {name: (value, uuid.uuid4().hex) for name, value in secrets.items()}
        self._created = int(time.time())

    def _respond(self, request: Request) -> Answer:
        status, body = self._found(request)
        self.requests.append(f"{request.method} {request.target} -> {status}")
        headers = {
            "Cache-Control": "no-cache",
            "Pragma": "no-cache",
            "Content-Type": "application/json; charset=utf-8",
            "Expires": "-1",
            **({"WWW-Authenticate": _CHALLENGE} if status == 401 else {}),
            "x-ms-keyvault-region": "double",
            "x-ms-request-id": str(uuid.uuid4()),
            "Date": formatdate(usegmt=True),
        }
        return Answer(status, headers, json.dumps(body, separators=(",", ":")).encode())

    def _found(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Return status and body."""
        authorization = request.headers.get("Authorization", "")
        claims = claims_of(authorization.removeprefix("Bearer ")) if authorization.startswith("Bearer ") else {}
        if not claims:
            return 401, _error("Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
        if str(claims.get("aud", "")).rstrip("/") != _RESOURCE:
            return 401, _error("Unauthorized", f"AKV10022: the audience {claims.get('aud')} is not {_RESOURCE}.")
        if not claims.get("nbf", 0) - 300 <= time.time() < claims.get("exp", 0):
            return 401, _error("Unauthorized", "the token is not valid now.")
        parts = urlsplit(request.target)
        if "api-version" not in parse_qs(parts.query):
            return 400, _error("BadParameter", "api-version must be specified")
        kind, _, name = parts.path.strip("/").partition("/")
        name, _, version = name.partition("/")
        value, current = self._secrets.get(name, ("", ""))
        if request.method != "GET" or kind != "secrets" or not current or version not in ("", current):
            return 404, _error("SecretNotFound", f"there is no secret {name} here")
        attributes = {
            "enabled": True,
            "created": self._created,
            "updated": self._created,
            "recoveryLevel": "CustomizedRecoverable+Purgeable",
            "recoverableDays": 7,
        }
        return 200, {"value": value, "id": f"{self.url}/secrets/{name}/{current}", "attributes": attributes}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
