"""The double of Key Vault: close enough to a vault for Azure's clients, and plainly not one for anything else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests
from azure.core.exceptions import ResourceNotFoundError
from azure.keyvault.secrets import SecretClient

from azure_imds_credential import ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, VaultDouble, forget_tokens
from azure_imds_credential.testing._recording.fakes import dummy_token

NOW = int(time.time())
GOOD = {"aud": "https://vault.azure.net", "nbf": NOW - 60, "exp": NOW + 3600}


@pytest.fixture
def vault() -> Iterator[VaultDouble]:
    # A name of its own: Key Vault's client remembers challenges by host for the whole process.
    with VaultDouble(f"double-{time.time_ns() % 10**9}", {"greeting": "hello"}) as vault:
        yield vault


def get(vault: VaultDouble, target: str = "/secrets/greeting?api-version=7.4", token: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    proxies, verify = {"https": vault.proxy}, str(vault.ca_file)
    return requests.get(vault.url + target, headers=headers, proxies=proxies, verify=verify, timeout=10)


@pytest.fixture
def imds(vault: VaultDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    """An emulator beside the vault, and the environment that makes programs find both."""
    forget_tokens()
    with ImdsEmulator() as imds:
        for name, value in {**vault.environment(), "AZURE_POD_IDENTITY_AUTHORITY_HOST": imds.endpoint}.items():
            monkeypatch.setenv(name, value)
        yield imds


@pytest.mark.usefixtures("imds")
def test_the_sync_client_reads_a_secret(vault: VaultDouble) -> None:
    """Azure's `SecretClient` gets the challenge, then the secret, with certificate and challenge verified."""
    with SecretClient(vault.url, ImdsCredential()) as client:
        secret = client.get_secret("greeting")
        assert client.get_secret("greeting", secret.properties.version).value == "hello"
        with pytest.raises(ResourceNotFoundError):
            client.get_secret("missing")
    assert [line.rpartition(" ")[2] for line in vault.requests] == ["401", "200", "200", "404"]
    assert secret.id == f"{vault.url}/secrets/greeting/{secret.properties.version}"


ASYNC_PROGRAM = """
import asyncio, sys
from azure.keyvault.secrets.aio import SecretClient
from azure_imds_credential.aio import ImdsCredential

async def read():
    async with ImdsCredential() as credential, SecretClient(sys.argv[1], credential) as client:
        print((await client.get_secret("greeting")).value)

asyncio.run(read())
"""


@pytest.mark.usefixtures("imds")
def test_the_async_client_reads_a_secret(vault: VaultDouble) -> None:
    """The same for aio, whose HTTP library finds proxy and certificate by other variables, and at its import."""
    command = [sys.executable, "-c", ASYNC_PROGRAM, vault.url]
    assert subprocess.run(command, capture_output=True, text=True, timeout=600, check=False).stdout == "hello\n"


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        (GOOD, 200),
        ({**GOOD, "aud": "https://vault.azure.net/"}, 200),
        ({**GOOD, "aud": "https://management.azure.com"}, 401),
        ({**GOOD, "exp": NOW - 1}, 401),
        ({**GOOD, "nbf": NOW + 3600}, 401),
    ],
)
def test_refused_tokens(vault: VaultDouble, claims: dict[str, object], status: int) -> None:
    """Audience and time of the token are checked, its signature is not."""
    assert get(vault, token=dummy_token(claims)).status_code == status


def test_challenge(vault: VaultDouble) -> None:
    """Status, challenge and error as a real vault sent them on 2022-03-25, but for the tenant."""
    answer = get(vault)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == (
        'Bearer authorization="https://login.windows.net/11111111-1111-1111-1111-111111111111", '
        'resource="https://vault.azure.net"'
    )
    assert answer.headers["Content-Length"] == "97"
    assert answer.json()["error"] == {
        "code": "Unauthorized",
        "message": "AKV10000: Request is missing a Bearer or PoP token.",
    }


def test_secret_members(vault: VaultDouble) -> None:
    """Members and attributes of a secret, in the order in which a real vault sent them on 2022-03-25."""
    secret = get(vault, token=dummy_token(GOOD)).json()
    assert list(secret) == ["value", "id", "attributes"]
    assert list(secret["attributes"]) == ["enabled", "created", "updated", "recoveryLevel", "recoverableDays"]


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/secrets/greeting", 400, "BadParameter"),
        ("/secrets/missing?api-version=7.4", 404, "SecretNotFound"),
        ("/secrets/greeting/0123?api-version=7.4", 404, "SecretNotFound"),
        ("/keys/greeting?api-version=7.4", 404, "SecretNotFound"),
    ],
)
def test_what_is_not_there_is_refused(vault: VaultDouble, target: str, status: int, code: str) -> None:
    """A request without a version, and one for anything but a secret that exists, is an error in a vault's form."""
    answer = get(vault, target, token=dummy_token(GOOD))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_proxy_forwards_nothing(vault: VaultDouble) -> None:
    """The proxy answers for its vault only: it forwards nothing."""
    with pytest.raises(requests.exceptions.ProxyError, match="502"):
        requests.get("https://other.vault.azure.net", proxies={"https": vault.proxy}, timeout=10)
    assert requests.get("http://example.com", proxies={"http": vault.proxy}, timeout=10).status_code == 502
