"""A double of Key Vault, just good enough for `SecretClient` to read a secret. It is not Azure, nor anybody's emulator.

What it answers follows sessions with a real vault that the tests of Azure's own SDK recorded: the challenge, the
secret and their headers from 2022-03-25 (azure-sdk-for-python, tests/recordings of azure-keyvault-secrets 4.4.0).
"""

from __future__ import annotations

import json
import ssl
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import trustme

from .._claims import claims_of
from ._identities import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

_RESOURCE = "https://vault.azure.net"
_CHALLENGE = f'Bearer authorization="https://login.windows.net/{TENANT_ID}", resource="{_RESOURCE}"'
_IDLE = 30.0  # seconds after which a silent connection is dropped, so that no thread outlives its test


class VaultDouble:
    """A vault with secrets that anyone may read who brings a token for Key Vault.

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
    """

    def __init__(self, name: str, secrets: Mapping[str, str]) -> None:
        self.host = f"{name}.vault.azure.net"
        self.url = f"https://{self.host}"
        self.requests: list[str] = []
        self._secrets = {name: (value, uuid.uuid4().hex) for name, value in secrets.items()}
        self._created = int(time.time())

    def __enter__(self) -> VaultDouble:
        authority = trustme.CA()
        self._folder = tempfile.TemporaryDirectory()
        self.ca_file = Path(self._folder.name) / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(self.host).configure_cert(self.tls)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()

    @property
    def proxy(self) -> str:
        """URL of the proxy behind which the vault is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """The variables with which requests (REQUESTS_CA_BUNDLE) and aiohttp (SSL_CERT_FILE) find and trust it.

        aiohttp reads its variable once, when it is imported: start the program with it.
        """
        trusted = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.ca_file))
        proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), self.proxy)
        return {**trusted, **proxies, "NO_PROXY": "", "no_proxy": ""}

    def answer(self, target: str, authorization: str) -> tuple[int, dict[str, Any]]:
        """Status and body for a GET."""
        claims = claims_of(authorization.removeprefix("Bearer ")) if authorization.startswith("Bearer ") else {}
        if not claims:
            return 401, _error("Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
        if str(claims.get("aud", "")).rstrip("/") != _RESOURCE:
            return 401, _error("Unauthorized", f"AKV10022: the audience {claims.get('aud')} is not {_RESOURCE}.")
        if not claims.get("nbf", 0) - 300 <= time.time() < claims.get("exp", 0):
            return 401, _error("Unauthorized", "the token is not valid now.")
        parts = urlsplit(target)
        if "api-version" not in parse_qs(parts.query):
            return 400, _error("BadParameter", "api-version must be specified")
        kind, _, name = parts.path.strip("/").partition("/")
        name, _, version = name.partition("/")
        value, current = self._secrets.get(name, ("", ""))
        if kind != "secrets" or not current or version not in ("", current):
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection after the test

    def __init__(self, vault: VaultDouble) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.vault = vault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    tunnelled = False

    def do_CONNECT(self) -> None:
        vault = self.server.vault
        if self.path != f"{vault.host}:443":
            self.send_error(502, f"only {vault.host} is behind this proxy")
            return
        self.wfile.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        self.connection = vault.tls.wrap_socket(self.connection, server_side=True)
        self.tunnelled = True
        self.setup_streams()

    def setup_streams(self) -> None:
        self.connection.settimeout(_IDLE)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        if not self.tunnelled:
            self.send_error(502, "this proxy takes CONNECT only")
            return
        vault = self.server.vault
        status, body = vault.answer(self.path, self.headers.get("Authorization", ""))
        vault.requests.append(f"GET {self.path} -> {status}")
        content = json.dumps(body, separators=(",", ":")).encode()
        self.send_response_only(status)
        for name, value in (
            ("Cache-Control", "no-cache"),
            ("Pragma", "no-cache"),
            ("Content-Type", "application/json; charset=utf-8"),
            ("Expires", "-1"),
            *((("WWW-Authenticate", _CHALLENGE),) if status == 401 else ()),
            ("x-ms-keyvault-region", "double"),
            ("x-ms-request-id", str(uuid.uuid4())),
            ("Date", self.date_time_string()),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        with suppress(OSError):
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Nothing: `VaultDouble.requests` tells."""
