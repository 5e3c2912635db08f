"""What the fake Entra tenant publishes for validators of its tokens, on the same port for want of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._http.messages import Answer, compact
from .identities import TENANT_ID
from .tokens import ISSUER, jwks

if TYPE_CHECKING:
    from .._http.messages import Received

CONFIGURATION_PATH = f"/{TENANT_ID}/.well-known/openid-configuration"
KEYS_PATH = f"/{TENANT_ID}/discovery/keys"


def answer(request: Received) -> Answer | None:
    """Return the document of a path, under Entra's own paths; None for any other path.

    Args:
        request: The request; its Host is where the validator finds the rest, whatever name it knows this machine by.
    """
    if request.path == KEYS_PATH:
        return Answer(200, compact(jwks()), server=None)
    if request.path == CONFIGURATION_PATH:
        return Answer(200, compact(_configuration(f"http://{request.header('Host')}")), server=None)
    return None


def _configuration(authority: str) -> dict[str, Any]:
    """Return the members of Entra's OpenID configuration that validators read."""
    return {
        "issuer": ISSUER,
        "jwks_uri": f"{authority}{KEYS_PATH}",
        "authorization_endpoint": f"{authority}/{TENANT_ID}/oauth2/authorize",
        "token_endpoint": f"{authority}/{TENANT_ID}/oauth2/token",
        "response_types_supported": ["code", "id_token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }
