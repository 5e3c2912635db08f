"""Tokens as Entra signs them for a managed identity, and the documents that let others verify them."""

from __future__ import annotations

import base64
import functools
import hashlib
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._http import checks
from .identities import TENANT_ID, Identity, SystemAssigned

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

for _library in ("cryptography", "jwt"):  # both are loaded with the first token; here it costs nothing to look for them
    if find_spec(_library) is None:
        raise ModuleNotFoundError("the emulator signs tokens", name=_library)

ISSUER = f"https://sts.windows.net/{TENANT_ID}/"
# What a managed identity's token must be for so that an application may trust it. Only such a token has the issuer of
# Entra's second version: https://github.com/AzureAD/microsoft-identity-web/issues/2551 (comment of 2024-02-08).
EXCHANGE_RESOURCE = "api://AzureADTokenExchange"
EXCHANGE_ISSUER = f"https://login.microsoftonline.com/{TENANT_ID}/v2.0"
LIFETIME = 86400  # seconds; expires_on - not_before is 86700 in the captures of 2020 to 2025
BACKDATED = 300  # seconds; not_before lies this much before the instant of issue in the same captures
Changes = Mapping[str, Any]
_making_the_key = threading.Lock()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@functools.cache
def _generated_key() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _signing_key() -> RSAPrivateKey:
    """Return one key for all emulators of the process: to make one takes 0.1 s, and `cache` alone might make two."""
    with _making_the_key:
        return _generated_key()


@functools.cache
def _public_key() -> dict[str, str]:
    """Return the public key's modulus and exponent as members of a JSON Web Key."""
    from jwt.algorithms import RSAAlgorithm

    key = RSAAlgorithm.to_jwk(_signing_key().public_key(), as_dict=True)
    return {"n": key["n"], "e": key["e"]}


@functools.cache
def key_id() -> str:
    """Return the `kid` and `x5t` of the key. Entra gives both the same value, a SHA-1 in base64url."""
    return _b64(hashlib.sha1(_public_key()["n"].encode(), usedforsecurity=False).digest())


def jwks() -> dict[str, Any]:
    """Return the public key as a JSON Web Key Set, with the members that Entra publishes."""
    return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": key_id(), "x5t": key_id(), **_public_key()}]}


def sign(claims: dict[str, Any]) -> str:
    """Return a JWT over the claims, RS256, with the header members of the capture of 2024-08-06."""
    import jwt

    headers = {"x5t": key_id(), "kid": key_id()}
    return jwt.encode(claims, _signing_key(), algorithm="RS256", headers=headers, sort_headers=False)


def _opaque() -> str:
    return _b64(uuid.uuid4().bytes)


def claims(identity: Identity, resource: str, issued_on: int, lifetime: int, machine_id: str) -> dict[str, Any]:
    """Return the claims of a managed identity token, in order and types as captured on 2024-08-06 and 2025-12-05."""
    common = {
        "aud": resource,
        "iss": EXCHANGE_ISSUER if resource == EXCHANGE_RESOURCE else ISSUER,
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
        changes: Claims to replace or add, None to leave one out; or a function of the resource that gives them.
        size: How many tokens are kept, the newest ones; None: all.
    """

    def __init__(
        self,
        machine_id: str,
        lifetime: int = LIFETIME,
        renew_before: float = 0,
        changes: Changes | Callable[[str], Changes] | None = None,
        size: int | None = None,
    ) -> None:
        if changes is not None and not isinstance(changes, Mapping) and not callable(changes):
            raise TypeError(f"claims must be a mapping or a function of the resource, got {changes!r}")
        self._machine_id = machine_id
        self._changes, self._size = changes, size
        self.lifetime = checks.whole("token_lifetime", lifetime, 1, checks.CENTURY)
        self._renew_before = checks.seconds("renew_before", renew_before, most=checks.CENTURY)
        self._lock = threading.Lock()
        self._kept: dict[tuple[Identity, str], Token] = {}
        self._issued: deque[str] = deque(maxlen=size)

    @property
    def issued(self) -> list[str]:
        """Every access token ever issued, oldest first."""
        return list(self._issued)

    def issue(self, identity: Identity, resource: str, now: float) -> Token:
        """Return a new token that no request is handed.

        Raises:
            TypeError: The function of the resource gave no mapping.
        """
        issued_on, lifetime = int(now), self.lifetime
        changes = self._changes(resource) if callable(self._changes) else self._changes or {}
        if not isinstance(changes, Mapping):
            raise TypeError(f"claims of {resource} must be a mapping, got {changes!r}")
        changed = {**claims(identity, resource, issued_on, lifetime, self._machine_id), **changes}
        value = sign({name: value for name, value in changed.items() if value is not None})
        self._issued.append(value)
        return Token(value, identity, resource, issued_on, lifetime)

    def token(self, identity: Identity, resource: str, now: float, *, bypass_cache: bool = False) -> Token:
        """Return the kept token while it lasts, else (or with `bypass_cache`) a new one, which is kept from then on."""
        with self._lock:
            kept = self._kept.get((identity, resource))
            if kept is None or bypass_cache or kept.expires_in(now) <= self._renew_before:
                self._kept.pop((identity, resource), None)
                while self._size is not None and len(self._kept) >= self._size:
                    del self._kept[next(iter(self._kept))]  # the oldest
                kept = self._kept[identity, resource] = self.issue(identity, resource, now)
            return kept

    def renew(self) -> None:
        """Forget the kept tokens: the next answers carry new ones."""
        with self._lock:
            self._kept.clear()
