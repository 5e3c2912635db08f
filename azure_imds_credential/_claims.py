"""What a token says of itself. Decoded and not verified: good for comparing and explaining, never for trusting."""

import base64
import binascii
import json
from typing import Any


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
