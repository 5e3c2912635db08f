"""Who a token speaks for. Read from its claims and not verified: good for explaining, never for trusting."""

# Without `from __future__ import annotations`: it makes each field of a named tuple a string to be compiled.
from typing import Any, NamedTuple

from azure.core.credentials import SupportsTokenInfo, TokenCredential

from ._identity import MANAGEMENT_SCOPE
from ._jwt import claims_of

# 9999-12-31T23:59:59Z, the last second that datetime knows. Larger numbers are not seconds.
_LAST_SECOND = 253_402_300_799


class IdentityInfo(NamedTuple):
    """Who a token speaks for, read from its claims without verifying them.

    Attributes:
        client_id: Application ID of the identity (`appid` or `azp`).
        object_id: Object ID of its service principal (`oid`): what role assignments name.
        tenant_id: Directory of the identity (`tid`).
        resource_id: ARM ID of the VM (system-assigned) or of the user-assigned identity (`xms_mirid`).
        audience: What the token is for (`aud`). The members of a list are joined by ", "; `claims` has the list.
        issued_on: Epoch seconds at which it was issued (`iat`): roles and groups are as of then. None if the claim is
            no such number, for example because it counts milliseconds.
        expires_on: Epoch seconds at which it expires (`exp`); None as for `issued_on`.
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
    """Return what a token says of itself; every field is None when the token cannot be decoded."""
    claims = claims_of(token)

    def text(*names: str) -> str | None:
        return next((claims[name] for name in names if isinstance(claims.get(name), str)), None)

    def seconds(name: str) -> int | None:
        value = claims.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return int(value) if 0 <= value <= _LAST_SECOND else None  # False for NaN, which json reads

    return IdentityInfo(
        client_id=text("appid", "azp"),
        object_id=text("oid"),
        tenant_id=text("tid"),
        resource_id=text("xms_mirid"),
        audience=_audience(claims.get("aud")),
        issued_on=seconds("iat"),
        expires_on=seconds("exp"),
        claims=claims,
    )


def _audience(value: object) -> str | None:
    """Return the audience of either form that RFC 7519, section 4.1.3, allows: a string, or a list of strings."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return None


def whoami(credential: TokenCredential | SupportsTokenInfo, scope: str = MANAGEMENT_SCOPE) -> IdentityInfo:
    """Return who the tokens of any credential speak for. The claims are decoded, not verified.

    Args:
        credential: Any sync credential of the Azure SDK, for example `azure.identity.DefaultAzureCredential()`.
        scope: What the token is for. By default Azure Resource Manager, for which every identity gets a token.

    Raises:
        TypeError: The credential is async, or none at all.
        azure.core.exceptions.ClientAuthenticationError: The credential has no token.
    """
    result = method_of(credential)(scope)
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()  # otherwise Python warns of a coroutine that was never awaited
        raise TypeError(f"{type(credential).__name__} is async: use azure_imds_credential.aio.whoami")
    return identity_info(result.token)


def method_of(credential: object) -> Any:
    """Return the method that gets a token: azure-core has two protocols, and a credential may have either.

    Raises:
        TypeError: It has neither.
    """
    method = getattr(credential, "get_token", None) or getattr(credential, "get_token_info", None)
    if method is None:
        raise TypeError(f"credential must have get_token or get_token_info, got {type(credential).__name__}")
    return method
