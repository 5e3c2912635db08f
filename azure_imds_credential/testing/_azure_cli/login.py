"""What the Azure CLI says about the developer who is logged in, and the same in the form of IMDS."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import datetime
from typing import Any

from ..._jwt import claims_of
from .._http.messages import compact

AZ_SECONDS = 60.0  # it starts a Python of its own and may ask Entra; a second or two is usual


def token_of_the_cli(resource: str, az: str = "az") -> dict[str, Any]:
    """Return what `az account get-access-token` says.

    Raises:
        LookupError: It gave none; the message says why, in the words of az.
    """
    program = shutil.which(az)
    if program is None:
        raise LookupError("the Azure CLI (az) is not installed")
    command = [program, "account", "get-access-token", f"--resource={resource}", "--output=json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AZ_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LookupError(f"az gave no token within {AZ_SECONDS:g} s") from None
    try:
        document: dict[str, Any] = json.loads(done.stdout)
        document["accessToken"]
    except (ValueError, KeyError, TypeError):
        words = [*done.stderr.strip().splitlines(), "it did not say why"][0]
        raise LookupError(f"az ended with {done.returncode}: {words[:200]}") from None
    return document


def in_imds_form(given: dict[str, Any], resource: str, client_id: str | None, now: float) -> bytes:
    """Return the answer of a virtual machine with the token of the CLI.

    Args:
        given: What the CLI said. `expires_on` (epoch) is there since version 2.54; `expiresOn` is local time.
        resource: As it was asked for.
        client_id: As it was asked for: the developer stands in for that identity. None: the CLI's own application.
        now: Epoch seconds.
    """
    token: str = given["accessToken"]
    claims = claims_of(token)
    expires_on = given.get("expires_on")
    if expires_on is None:
        expires_on = datetime.fromisoformat(given["expiresOn"]).timestamp()
    left = max(0, int(expires_on) - int(now) - 1)
    document = {
        "access_token": token,
        "client_id": client_id or claims.get("appid", ""),
        "expires_in": str(left),
        "expires_on": str(int(expires_on)),
        "ext_expires_in": str(left),
        "not_before": str(claims.get("nbf", int(now))),
        "resource": resource,
        "token_type": "Bearer",
    }
    return compact(document)
