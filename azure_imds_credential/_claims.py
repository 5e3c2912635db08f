"""What a token says of itself. Decoded and not verified: good for comparing and explaining, never for trusting."""

import base64
import binascii
import json
import math
from typing import Any, NamedTuple


def claims_of(token: str) -> dict[str, Any]:
    """Decode the claims of a JWT; an empty dict when it is not one (tokens are opaque by contract)."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


class IdentityInfo(NamedTuple):
    """Who a token speaks for, read from its claims without verifying them.

    Attributes:
        client_id: Application ID of the identity (`appid` or `azp`).
        object_id: Object ID of its service principal (`oid`): what role assignments name.
        tenant_id: Directory of the identity (`tid`).
        resource_id: ARM ID of the VM (system-assigned) or of the user-assigned identity (`xms_mirid`).
        audience: What the token is for (`aud`).
        issued_on: Epoch seconds at which it was issued (`iat`): roles and groups are as of then.
        expires_on: Epoch seconds at which it expires (`exp`).
        claims: All claims.
    """

    client_id: str | None
    object_id: str | None
    tenant_id: str | None
    resource_id: str | None
    audience: str | None
    issued_on: int | None
    expires_on: int | None
    claims: dict[str, Any]


def identity_info(token: str) -> IdentityInfo:
    """Read an `IdentityInfo` from a token; every field None when the token cannot be decoded."""
    claims = claims_of(token)

    def text(*names: str) -> str | None:
        return next((claims[name] for name in names if isinstance(claims.get(name), str)), None)

    def seconds(name: str) -> int | None:
        value = claims.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return int(value) if abs(value) < math.inf else None  # json reads NaN and Infinity

    return IdentityInfo(
        client_id=text("appid", "azp"),
        object_id=text("oid"),
        tenant_id=text("tid"),
        resource_id=text("xms_mirid"),
        audience=text("aud"),
        issued_on=seconds("iat"),
        expires_on=seconds("exp"),
        claims=claims,
    )
