"""What is known of access tokens: their form, their life, and their claims, decoded and not verified."""

import base64
import binascii
import json
from typing import Any

# A pattern: what fits into an Authorization header, without spaces and control characters.
TOKEN = r"[!-~]+"  # noqa: S105 # no password
# Part of the claim `xms_mirid` where it is the ARM ID of a user-assigned identity; case does not count.
USER_ASSIGNED = "/providers/microsoft.managedidentity/userassignedidentities/"
MAX_LIFE = 366 * 86400.0  # seconds; managed identity tokens live 24 h today, so this only excludes nonsense
EXPIRY_MARGIN = 300.0  # seconds; azure-core and msal treat a token with less as expired


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a JWT; an empty dict when it is none (tokens are opaque by contract).

    They are good for comparing and explaining, never for trusting.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}
