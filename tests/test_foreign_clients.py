"""Clients of others against the emulator, unchanged: what they send it takes, and what it answers they take."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import msal
import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ChainedTokenCredential, CredentialUnavailableError, ManagedIdentityCredential, aio

from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned, faults

SCOPE = "https://vault.azure.net/.default"
RESOURCE = "https://vault.azure.net"
Identity = SystemAssigned | UserAssigned
HERE = Path(__file__).parent
SYSTEM, A, B = SystemAssigned(), UserAssigned("a"), UserAssigned("b")


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    with ImdsEmulator([SYSTEM, A, B]) as emulator:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", emulator.endpoint)
        yield emulator


def appid(token: str) -> str:
    """Whose token it is."""
    return str(jwt.decode(token, options={"verify_signature": False})["appid"])


WAYS = [
    ({}, SYSTEM),
    ({"client_id": A.client_id}, A),
    ({"identity_config": {"object_id": B.object_id}}, B),
    ({"identity_config": {"resource_id": A.resource_id}}, A),
]


@pytest.mark.parametrize(("options", "means"), WAYS)
def test_azure_identity(imds: ImdsEmulator, options: dict[str, Any], means: Identity) -> None:
    """azure-identity gets a token by every selector it has, and takes its expiry from the answer."""
    with ManagedIdentityCredential(**options) as credential:
        token = credential.get_token(SCOPE)
    assert imds.tokens == [token.token]
    assert appid(token.token) == means.client_id
    assert abs(token.expires_on - imds.now() - 86399) < 60
    imds.assert_requests(1)


@pytest.mark.parametrize(("options", "means"), [way for way in WAYS if "resource_id" not in str(way[0])])
def test_azure_identity_aio(imds: ImdsEmulator, options: dict[str, Any], means: Identity) -> None:
    """The same for its async half, which sends a resource ID under a name IMDS does not know (so not tried here)."""

    async def ask() -> str:
        async with aio.ManagedIdentityCredential(**options) as credential:
            return (await credential.get_token(SCOPE)).token

    token = asyncio.run(ask())
    assert imds.tokens == [token]
    assert appid(token) == means.client_id
    imds.assert_requests(1)


def test_errors_reach_azure_identity() -> None:
    """What azure-identity makes of a machine without an identity is an error it knows, sync and async."""
    with ImdsEmulator([]) as imds, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        with (
            ManagedIdentityCredential() as credential,
            pytest.raises(CredentialUnavailableError, match="Identity not found"),
        ):
            credential.get_token(SCOPE)

        async def ask() -> None:
            async with aio.ManagedIdentityCredential() as credential:
                await credential.get_token(SCOPE)

        with pytest.raises(ClientAuthenticationError):
            asyncio.run(ask())


def test_azure_identity_in_a_chain(imds: ImdsEmulator) -> None:
    """In a chain azure-identity takes the emulator too; its probe is tried where it sends one, below."""
    with ChainedTokenCredential(ManagedIdentityCredential()) as credential:
        assert credential.get_token(SCOPE).token == imds.tokens[0]


def test_azure_identity_retries(imds: ImdsEmulator) -> None:
    """A scripted fault is one that azure-identity's own retries know: it asks again and gets its token."""
    imds.script(faults.status(500))
    with ManagedIdentityCredential(retry_backoff_factor=0.01) as credential:
        assert credential.get_token(SCOPE).token in imds.tokens
    imds.assert_requests(2)


@pytest.mark.parametrize(
    ("identity", "means"),
    [
        (msal.SystemAssignedManagedIdentity(), SYSTEM),
        (msal.UserAssignedManagedIdentity(client_id=A.client_id), A),
        (msal.UserAssignedManagedIdentity(object_id=B.object_id), B),
        (msal.UserAssignedManagedIdentity(resource_id=B.resource_id), B),
    ],
)
def test_bare_msal(imds: ImdsEmulator, identity: Any, means: Identity) -> None:
    """Msal alone gets a token by every selector; what it makes of a fault is an answer with "error"."""
    with requests.Session() as session:
        client = msal.ManagedIdentityClient(identity, http_client=session)
        token = client.acquire_token_for_client(resource=RESOURCE)["access_token"]
        other = client.acquire_token_for_client(resource="no-such-resource")
    assert imds.tokens == [token]
    assert appid(token) == means.client_id
    assert other["error"] == "invalid_resource"
    assert other["error_description"].startswith("AADSTS500011: ")


def test_curl(imds: ImdsEmulator) -> None:
    """The command of the documentation works, and curl keeps its connection for a second request."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    url = f"{imds.endpoint}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={RESOURCE}"
    command = ["curl", "-s", "-v", "-H", "Metadata: true", url, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    answers = [json.loads(text + "}") for text in done.stdout.split("}")[:-1]]
    assert [answer["access_token"] for answer in answers] == imds.tokens * 2
    assert done.stderr.count("* Connected to ") == 1


PROBED_WITH = {
    # Chains of azure-identity leave out the header, but not the query, and then ask properly.
    "azure_identity": [[True, None], [True, "true"]],
    "azure_identity_aio": [[True, None], [True, "true"]],
    "msal": [[True, "true"]],
    "curl": [[True, "true"]],
    "imds_credential": [[True, "true"]],
}


def test_probes_at_the_real_address() -> None:
    """At 169.254.169.254, which only a network of its own can have, clients send their probes, are content, and ask."""
    lacking = [tool for tool in ("unshare", "ip", "curl") if shutil.which(tool) is None]
    if not sys.platform.startswith("linux") or lacking:
        pytest.skip(f"needs Linux with unshare, ip and curl; there is no {' and no '.join(lacking)} here")
    steps = 'ip link set lo up && ip addr add 169.254.169.254/32 dev lo && exec "$0" "$@"'
    program = [sys.executable, str(HERE / "at_real_address.py")]
    environment = {k: v for k, v in os.environ.items() if k != "AZURE_POD_IDENTITY_AUTHORITY_HOST"}
    command = ["unshare", "--net", "--map-root-user", "sh", "-c", steps, *program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode and "ermitted" in done.stderr:
        pytest.skip(f"no network namespace to be had: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {name: requests for name, (_, requests) in seen.items()} == PROBED_WITH
    assert {name for name, (got_token, _) in seen.items() if got_token} == set(PROBED_WITH)
