"""A Key Vault in memory, with the shapes of its REST API 7.x: secrets with versions and a bin, keys, certificates."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

from cloud import Answer, Request, Service
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from azure_imds_credential.testing import ImdsEmulator

AUDIENCE = "https://vault.azure.net"
PAGE = 2  # entries per page, so that three entries are two pages


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Vault:
    """The service behind one vault host.

    Args:
        host: Its name.
        certificate: What the one certificate in it says, DER.
        resource: What its challenge says that tokens must be for.
    """

    def __init__(self, host: str, certificate: bytes = b"", resource: str = AUDIENCE) -> None:
        self.host = host
        self.secrets: dict[str, list[dict[str, Any]]] = {}
        self.bin: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, tuple[str, rsa.RSAPrivateKey]] = {}
        self.certificate = certificate
        self.claims_wanted = ""  # a claims challenge for requests with a token; withdrawn once it was given
        challenge = f'Bearer authorization="https://login.windows.net/{ImdsEmulator.tenant_id}", resource="{resource}"'
        self.service = Service(AUDIENCE, self.answer, {"WWW-Authenticate": challenge})

    def answer(self, request: Request) -> Answer:
        if "api-version" not in request.query:
            return _error(400, "BadParameter", "api-version must be specified")
        if self.claims_wanted:
            wanted = _b64(self.claims_wanted.encode())
            self.claims_wanted = ""
            header = f'{self.service.refusal["WWW-Authenticate"]}, error="insufficient_claims", claims="{wanted}"'
            return Answer(401, {"error": {"code": "Unauthorized", "message": "claims"}}, {"WWW-Authenticate": header})
        kind, *rest = request.path.strip("/").split("/")
        route = {
            "secrets": self._secrets, "deletedsecrets": self._deleted, "keys": self._keys,
            "certificates": self._certificates,
        }[kind]  # fmt: skip
        return route(request, *rest)

    def _id(self, *path: str) -> str:
        return f"https://{self.host}/{'/'.join(path)}"

    def _page(self, request: Request, entries: list[dict[str, Any]]) -> Answer:
        first = int(request.query.get("skip", "0"))
        page: dict[str, Any] = {"value": entries[first : first + PAGE], "nextLink": None}
        if first + PAGE < len(entries):
            version = request.query["api-version"]
            page["nextLink"] = self._id(f"{request.path.strip('/')}?api-version={version}&skip={first + PAGE}")
        return Answer(200, page)

    def _secrets(self, request: Request, name: str = "", version: str = "") -> Answer:
        def entry(bundle: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in bundle.items() if key != "value"}

        if not name:
            current = [entry(versions[-1]) for versions in self.secrets.values()]
            return self._page(request, [{**one, "id": one["id"].rpartition("/")[0]} for one in current])
        if request.method == "PUT":
            now = int(time.time())
            attributes = {"enabled": True, "created": now, "updated": now, "recoveryLevel": "Recoverable+Purgeable"}
            bundle = {"id": self._id("secrets", name, uuid.uuid4().hex), "attributes": attributes, **request.body}
            self.secrets.setdefault(name, []).append(bundle)
            return Answer(200, bundle)
        if name not in self.secrets:
            return _error(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")
        if request.method == "DELETE":
            self.bin[name] = self.secrets.pop(name)
            return Answer(200, self._in_bin(name))
        if version == "versions":
            return self._page(request, [entry(bundle) for bundle in self.secrets[name]])
        found = [bundle for bundle in self.secrets[name] if bundle["id"].endswith(f"/{version}") or not version]
        return Answer(200, found[-1]) if found else _error(404, "SecretNotFound", "no such version")

    def _in_bin(self, name: str) -> dict[str, Any]:
        now = int(time.time())
        dates = {"deletedDate": now, "scheduledPurgeDate": now + 90 * 86400}
        return {**self.bin[name][-1], "recoveryId": self._id("deletedsecrets", name), **dates}

    def _deleted(self, request: Request, name: str = "", verb: str = "") -> Answer:
        if not name:
            return self._page(request, [self._in_bin(name) for name in self.bin])
        if name not in self.bin:
            return _error(404, "SecretNotFound", f"no deleted secret {name}")
        if request.method == "POST" and verb == "recover":
            self.secrets[name] = self.bin.pop(name)
            return Answer(200, self.secrets[name][-1])
        if request.method == "DELETE":
            del self.bin[name]
            return Answer(204)
        return Answer(200, self._in_bin(name))

    def _keys(self, request: Request, name: str = "", version: str = "", verb: str = "") -> Answer:
        if not name:
            return self._page(request, [{"kid": self._id("keys", one), "attributes": {}} for one in self.keys])
        if version == "create":
            made = rsa.generate_private_key(public_exponent=65537, key_size=request.body["key_size"])
            self.keys[name] = uuid.uuid4().hex, made
        if name not in self.keys:
            return _error(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")
        current, private = self.keys[name]
        if verb == "sign":
            digest = base64.urlsafe_b64decode(request.body["value"] + "==")
            signature = private.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
            return Answer(200, {"kid": self._id("keys", name, current), "value": _b64(signature)})
        public = private.public_key().public_numbers()
        numbers = {
            "n": _b64(public.n.to_bytes(private.key_size // 8, "big")),
            "e": _b64(public.e.to_bytes(3, "big")),
        }
        operations = {"key_ops": ["sign", "verify"]}
        key = {"kid": self._id("keys", name, current), "kty": "RSA", **operations, **numbers}
        return Answer(200, {"key": key, "attributes": {"enabled": True}})

    def _certificates(self, request: Request, name: str = "", version: str = "") -> Answer:
        bundle = {"id": self._id("certificates", "site", "1"), "attributes": {"enabled": True}}
        if not name:
            return self._page(request, [bundle])
        if name != "site":
            return _error(404, "CertificateNotFound", f"A certificate with (name/id) {name} was not found.")
        content = {
            "cer": base64.b64encode(self.certificate).decode(),
            "policy": {"id": self._id("certificates/site/policy")},
        }
        return Answer(200, {**bundle, **content})


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"error": {"code": code, "message": message}})
