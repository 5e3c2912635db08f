"""The libraries compared, each with its own defaults, each used as its documentation shows.

msal leaves HTTP, and with it retries, to its caller: `requests.Session()` is what its documentation hands in.
All of them find the emulator through AZURE_POD_IDENTITY_AUTHORITY_HOST.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

OURS, IDENTITY, MSAL = "azure-imds-credential", "azure-identity", "msal"
PEERS = (OURS, IDENTITY, MSAL)
ASYNC_PEERS = (OURS, IDENTITY)  # msal has no async client

RESOURCE = "https://vault.azure.net"


def client(peer: str) -> Callable[[str], str]:
    """Make a new credential, and return a function from resource to token."""
    if peer == MSAL:
        import msal
        import requests

        msal_client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=requests.Session())

        def acquire(resource: str) -> str:
            result = msal_client.acquire_token_for_client(resource=resource)
            if "access_token" not in result:
                raise RuntimeError(str(result))
            return str(result["access_token"])

        return acquire
    credential: TokenCredential
    if peer == IDENTITY:
        from azure.identity import ManagedIdentityCredential

        credential = ManagedIdentityCredential()
    else:
        from azure_imds_credential import ImdsCredential

        credential = ImdsCredential()
    return lambda resource: credential.get_token(f"{resource}/.default").token


def async_client(peer: str) -> tuple[Callable[[str], Awaitable[str]], Callable[[], Awaitable[None]]]:
    """Make a new async credential, and return a function from resource to token, and what closes it."""
    credential: AsyncTokenCredential
    if peer == IDENTITY:
        from azure.identity.aio import ManagedIdentityCredential

        credential = ManagedIdentityCredential()
    else:
        from azure_imds_credential.aio import ImdsCredential

        credential = ImdsCredential()

    async def get(resource: str) -> str:
        return str((await credential.get_token(f"{resource}/.default")).token)

    return get, credential.close
