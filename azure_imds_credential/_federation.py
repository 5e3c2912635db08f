"""Tokens with which a managed identity stands for an application (workload identity federation)."""

from __future__ import annotations

from ._jwt import USER_ASSIGNED, claims_of
from .exceptions import IdentityMismatchError

# The public cloud, US Government and China:
# https://learn.microsoft.com/entra/workload-id/workload-identity-federation-config-app-trust-managed-identity
_EXCHANGES = frozenset(
    f"api://{name}".casefold()
    for name in ("AzureADTokenExchange", "AzureADTokenExchangeUSGov", "AzureADTokenExchangeChina")
)


def checked_assertion(token: str, resource: str, identity: str) -> str:
    """Return a token, unless it is for an application and of the system-assigned identity, which none can trust.

    Args:
        token: What IMDS gave.
        resource: What it was asked for.
        identity: The identity that was asked for, for the message.

    Raises:
        IdentityMismatchError: The token is of the system-assigned identity.
    """
    if resource.casefold() not in _EXCHANGES:
        return token
    arm_id = claims_of(token).get("xms_mirid")
    if not isinstance(arm_id, str) or USER_ASSIGNED in arm_id.casefold():
        return token  # what the token leaves out is unknown
    hint = "Name a user-assigned identity that the application trusts, with client_id, object_id or resource_id."
    raise IdentityMismatchError(
        f"The token for {resource}, asked for as {identity}, is of the system-assigned identity of {arm_id}. "
        f"An application can trust a user-assigned identity only. {hint}",
        identity=identity,
        resource=resource,
        hint=hint,
    )
