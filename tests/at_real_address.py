"""A program for a network namespace of its own: the emulator on IMDS's own address, and clients that know no other.

Takes the folder of @azure/identity or nothing. Prints one JSON object: client -> [its token is the emulator's, its
requests as (path has a query, Metadata header)].
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from azure_imds_credential.testing import ImdsEmulator

SCOPE = "https://vault.azure.net/.default"
CURL = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
DEFAULT_CREDENTIAL = """
import { DefaultAzureCredential } from "@azure/identity";
console.log((await new DefaultAzureCredential().getToken("https://vault.azure.net/.default")).token);
"""


def azure_identity() -> str:
    from azure.identity import ChainedTokenCredential, ManagedIdentityCredential

    with ChainedTokenCredential(ManagedIdentityCredential()) as credential:
        return credential.get_token(SCOPE).token


def azure_identity_aio() -> str:
    from azure.identity.aio import ChainedTokenCredential, ManagedIdentityCredential

    async def ask() -> str:
        async with ChainedTokenCredential(ManagedIdentityCredential()) as credential:
            return (await credential.get_token(SCOPE)).token

    return asyncio.run(ask())


def msal() -> str:
    import msal
    import requests

    with requests.Session() as session:
        client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=session)
        return str(client.acquire_token_for_client(resource="https://vault.azure.net")["access_token"])


def curl() -> str:
    done = subprocess.run(["curl", "-s", "-H", "Metadata: true", CURL], capture_output=True, check=True, timeout=600)
    return str(json.loads(done.stdout)["access_token"])


def javascript(folder: str) -> str:
    command = ["node", "--input-type=module", "-e", DEFAULT_CREDENTIAL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout.strip()


def imds_credential() -> str:
    from azure_imds_credential import ImdsCredential

    return ImdsCredential().get_token(SCOPE).token


def main(javascript_folder: str | None) -> None:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this machine has a network: run me in a namespace of my own")
    clients: dict[str, Callable[[], str]] = {
        each.__name__: each for each in (azure_identity, azure_identity_aio, msal, curl, imds_credential)
    }
    if javascript_folder:
        clients["javascript"] = lambda: javascript(javascript_folder)
    seen: dict[str, Any] = {}
    with ImdsEmulator(host="169.254.169.254", port=80) as imds:
        for name, client in clients.items():
            imds.clear_requests()
            token = client()
            seen[name] = [token in imds.tokens, [(bool(r.query), r.header("Metadata")) for r in imds.requests]]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:2] or [None])
