"""Tokens in the forms in which other tools ask for them: kubectl's plugins and git's credential helpers."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .._identity import DEVOPS_USER

if TYPE_CHECKING:
    from azure.core.credentials import AccessTokenInfo

# The application "Azure Kubernetes Service AAD Server" of every cluster with Entra ID,
# https://azure.github.io/kubelogin/concepts/aks.html
AKS_SCOPE = "6dae42f8-4368-4678-94ff-3960e28e3630/.default"
# Its hosts, https://learn.microsoft.com/azure/devops/organizations/security/allow-list-ip-url, with or without a port.
_DEVOPS_HOST = re.compile(r"(?:(?:[a-z0-9-]+\.)*dev\.azure\.com|(?:[a-z0-9-]+\.)+visualstudio\.com)(?::\d+)?")
_EXEC_API = "client.authentication.k8s.io/v1beta1"  # for kubectl before 1.20, which does not say what it takes


def exec_credential(info: AccessTokenInfo) -> str:
    """Return a token as kubectl takes it from a plugin.

    https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
    """
    expiry = datetime.fromtimestamp(info.expires_on, timezone.utc).replace(microsecond=0)
    return json.dumps(
        {
            "apiVersion": _exec_api_version(),
            "kind": "ExecCredential",
            "status": {"token": info.token, "expirationTimestamp": expiry.isoformat().replace("+00:00", "Z")},
        }
    )


def _exec_api_version() -> str:
    """Return the version that kubectl asks for: it takes no other."""
    try:
        asked = json.loads(os.environ.get("KUBERNETES_EXEC_INFO", ""))["apiVersion"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _EXEC_API
    return asked if isinstance(asked, str) else _EXEC_API


def read_attributes(text: bytes) -> dict[str, list[str]]:
    """Return what git tells a credential helper: lines of name=value, some names ending in [], up to an empty line.

    https://git-scm.com/docs/git-credential#IOFMT
    """
    attributes: dict[str, list[str]] = {}
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        if not line:
            break
        name, _, value = line.partition("=")
        attributes.setdefault(name, []).append(value)
    return attributes


def is_azure_devops(attributes: dict[str, list[str]]) -> bool:
    """Return whether git asks about Azure DevOps over TLS: no other server may get a token of it."""
    host = attributes.get("host", [""])[-1].lower()
    return attributes.get("protocol", [""])[-1] == "https" and _DEVOPS_HOST.fullmatch(host) is not None


def git_answer(asked: dict[str, list[str]], info: AccessTokenInfo) -> str:
    """Return a token as git takes it: as a Bearer token where git can send one (2.46 and later), else as a password."""
    if "authtype" in asked.get("capability[]", []):
        lines = ["capability[]=authtype", "authtype=Bearer", f"credential={info.token}", "ephemeral=1"]
    else:
        lines = [f"username={DEVOPS_USER}", f"password={info.token}"]
    return "\n".join([*lines, f"password_expiry_utc={int(info.expires_on)}"])
