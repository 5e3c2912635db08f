"""Tokens as Entra signs them for a managed identity, and the documents that let others verify them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import threading
import uuid
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from . import _numbers
from ._identities import TENANT_ID, Identity, SystemAssigned

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

if find_spec("cryptography") is None:  # it is loaded with the first token; here it costs nothing to look for it
    raise ModuleNotFoundError("the emulator signs tokens", name="cryptography")

ISSUER = f"https://sts.windows.net/{TENANT_ID}/"
LIFETIME = 86400  # seconds; expires_on - not_before is 86700 in the captures of 2020 to 2025
BACKDATED = 300  # seconds; not_before lies this much before the instant of issue in the same captures
_making_the_key = threading.Lock()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@functools.cache
def _generated_key() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _signing_key() -> RSAPrivateKey:
    """One key for all emulators of the process: making one takes a tenth of a second, `cache` alone might make two."""
    with _making_the_key:
        return _generated_key()


@functools.cache
def _public_numbers() -> dict[str, str]:
    public = _signing_key().public_key().public_numbers()
    size = (public.n.bit_length() + 7) // 8
    return {"n": _b64(public.n.to_bytes(size, "big")), "e": _b64(public.e.to_bytes(3, "big"))}


@functools.cache
def key_id() -> str:
    """The `kid` (and, as in real tokens, `x5t`) of the process's key: as long as Entra's, a SHA-1 in base64url."""
    return _b64(hashlib.sha1(_public_numbers()["n"].encode(), usedforsecurity=False).digest())


def jwks() -> dict[str, Any]:
    """The public key as a JSON Web Key Set."""
    return {
        "keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": key_id(), "x5t": key_id(), **_public_numbers()}]
    }


def sign(claims: dict[str, Any]) -> str:
    """A JWT over the claims, RS256, with the header members of the capture of 2024-08-06."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    header = {"typ": "JWT", "alg": "RS256", "x5t": key_id(), "kid": key_id()}
    signed = ".".join(_b64(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    return f"{signed}.{_b64(_signing_key().sign(signed.encode(), PKCS1v15(), SHA256()))}"


def _opaque() -> str:
    return _b64(uuid.uuid4().bytes)


def claims(identity: Identity, resource: str, issued_on: int, lifetime: int, machine_id: str) -> dict[str, Any]:
    """The claims of a managed identity token, in the order and types of the captures of 2024-08-06 and 2025-12-05."""
    common = {
        "aud": resource,
        "iss": ISSUER,
        "iat": issued_on - BACKDATED,
        "nbf": issued_on - BACKDATED,
        "exp": issued_on + lifetime,
        "aio": _opaque(),
        "appid": identity.client_id,
        "appidacr": "2",
        "idp": ISSUER,
        "idtyp": "app",
        "oid": identity.object_id,
        "rh": _opaque(),
        "sub": identity.object_id,
        "tid": TENANT_ID,
        "uti": _opaque(),
        "ver": "1.0",
    }
    mirid = identity.resource_id or machine_id
    if isinstance(identity, SystemAssigned):
        newer = {"xms_act_fct": "3 9", "xms_ftd": _opaque(), "xms_idrel": "7 4", "xms_mirid": mirid}
        return {**common, **newer, "xms_rd": _opaque(), "xms_sub_fct": "9 3", "xms_tcdt": 1535447378}
    return {**common, "xms_az_rid": machine_id, "xms_idrel": "7 14", "xms_mirid": mirid, "xms_tcdt": "1535447378"}


@dataclass(frozen=True)
class Token:
    """One issued token."""

    value: str = field(repr=False)
    identity: Identity
    resource: str
    issued_on: int
    lifetime: int

    @property
    def expires_on(self) -> int:
        """Epoch second of its end."""
        return self.issued_on + self.lifetime

    @property
    def not_before(self) -> int:
        """Epoch second from which it holds: five minutes before it was issued."""
        return self.issued_on - BACKDATED

    def expires_in(self, now: float) -> int:
        """Seconds left, one less than the plain difference: 86399 for a new token, 86317 where `Date` gave 86318."""
        return max(0, self.expires_on - int(now) - 1)


class TokenService:
    """Issues tokens and keeps one per identity and resource, as the machine's side of IMDS does.

    Args:
        machine_id: ARM ID of the machine.
        lifetime: Seconds between issue and end of a token.
        renew_before: Seconds before its end from which a kept token is replaced. When real IMDS does so is unknown;
            0 follows the documentation, which names "cache miss or expired cached token".
    """

    def __init__(self, machine_id: str, lifetime: int = LIFETIME, renew_before: float = 0) -> None:
        self._machine_id = machine_id
        self.lifetime = _numbers.whole("token_lifetime", lifetime, 1, _numbers.CENTURY)
        self._renew_before = _numbers.seconds("renew_before", renew_before, most=_numbers.CENTURY)
        self._lock = threading.Lock()
        self._kept: dict[tuple[Identity, str], Token] = {}
        self._issued: list[str] = []

    @property
    def issued(self) -> list[str]:
        """Every access token ever issued, oldest first."""
        return list(self._issued)

    def issue(self, identity: Identity, resource: str, now: float) -> Token:
        """A new token, kept nowhere."""
        issued_on, lifetime = int(now), self.lifetime
        value = sign(claims(identity, resource, issued_on, lifetime, self._machine_id))
        self._issued.append(value)
        return Token(value, identity, resource, issued_on, lifetime)

    def token(self, identity: Identity, resource: str, now: float, *, bypass_cache: bool = False) -> Token:
        """The kept token while it lasts, else (or with `bypass_cache`) a new one, which is kept from then on."""
        with self._lock:
            kept = self._kept.get((identity, resource))
            if kept is None or bypass_cache or kept.expires_in(now) <= self._renew_before:
                kept = self._kept[identity, resource] = self.issue(identity, resource, now)
            return kept

    def renew(self) -> None:
        """Forgets the kept tokens: the next answers carry new ones."""
        with self._lock:
            self._kept.clear()
