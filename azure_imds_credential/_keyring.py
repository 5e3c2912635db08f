"""A backend of keyring for Azure Artifacts: pip, uv and twine reach its feeds with the machine's identity.

Every program that uses keyring loads this module, so it imports nothing until a feed's password is asked for.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from keyring.backend import KeyringBackend
from keyring.credentials import SimpleCredential
from keyring.errors import PasswordDeleteError, PasswordSetError

from ._identity import DEVOPS_SCOPE, DEVOPS_USER

if TYPE_CHECKING:
    from ._credential import ImdsCredential

# https://learn.microsoft.com/azure/devops/organizations/security/allow-list-ip-url#azure-artifacts
_FEED_HOST = re.compile(r"pkgs\.dev\.azure\.com|[a-z0-9-]+\.pkgs\.visualstudio\.com")
_TIMEOUT = 15.0  # seconds; pip waits for the answer

_log = logging.getLogger("azure_imds_credential")


class AzureArtifactsKeyring(KeyringBackend):
    """Tokens of this machine's managed identity as passwords for the feeds of Azure Artifacts. It stores nothing.

    Attributes:
        client_id: Client ID of a user-assigned identity; keyring sets it from KEYRING_PROPERTY_CLIENT_ID.
    """

    # Above 0, so that keyring's chain asks it; below 1, so that every recommended backend is asked first.
    priority = 0.5

    client_id: str | None = None

    def get_password(self, service: str, username: str | None) -> str | None:
        """Return a token if the service is a feed of Azure Artifacts and there is one; None otherwise.

        Args:
            service: URL of the feed, or its host.
            username: Any.
        """
        if not _is_feed(service):
            return None
        from .exceptions import ImdsError

        try:
            return _credential(self.client_id).get_token(DEVOPS_SCOPE).token
        except (ImdsError, ValueError) as error:  # ValueError: a variable has no usable value
            _log.warning("No password for %s from this machine's identity: %s", urlsplit(service).hostname, error)
            return None

    def get_credential(self, service: str, username: str | None) -> SimpleCredential | None:
        """Return a name and a token, as `get_password` does."""
        password = self.get_password(service, username)
        return None if password is None else SimpleCredential(username or DEVOPS_USER, password)

    def set_password(self, service: str, username: str, password: str) -> None:
        """Refuse: tokens come from IMDS."""
        raise PasswordSetError("the backend for Azure Artifacts stores no passwords")

    def delete_password(self, service: str, username: str) -> None:
        """Refuse: nothing is stored."""
        raise PasswordDeleteError("the backend for Azure Artifacts stores no passwords")


def _is_feed(service: str) -> bool:
    """Return whether a service is a feed over TLS. A plain host, as pip asks for second, says nothing of TLS."""
    try:
        parts = urlsplit(service if "://" in service else f"https://{service}")
        host = (parts.hostname or "").lower()
    except ValueError:
        return False
    return parts.scheme == "https" and _FEED_HOST.fullmatch(host) is not None


def _credential(client_id: str | None) -> ImdsCredential:
    """Return a credential that shares its tokens with other processes where that is possible."""
    from ._credential import ImdsCredential

    try:
        return ImdsCredential(client_id=client_id, timeout=_TIMEOUT, shared_cache=True)
    except ImportError:  # without filelock: keyring loads this backend without the extra, too
        return ImdsCredential(client_id=client_id, timeout=_TIMEOUT)
