"""What tests put in place of the network, and tools that block it: pytest-socket, vcrpy, requests_mock, httpretty."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import requests
from azure.core.credentials import AccessToken
from azure.identity import ChainedTokenCredential, CredentialUnavailableError, ManagedIdentityCredential
from azure.identity.aio import ChainedTokenCredential as AsyncChainedTokenCredential
from azure.identity.aio import ManagedIdentityCredential as AsyncManagedIdentityCredential
from flavors import VAULT, Flavor
from vcr import VCR

from azure_imds_credential import ImdsServiceError, ImdsUnavailableError
from azure_imds_credential._imds.connect import has_listener
from azure_imds_credential.testing import ImdsEmulator

OTHER = "https://management.azure.com"


class SocketBlockedError(RuntimeError):
    """As pytest-socket raises it."""


class NoMockAddress(Exception):  # noqa: N818 # its name
    """As requests_mock 1.12 raises it."""


def refuse(*_: Any, **__: Any) -> Any:
    raise SocketBlockedError("A test tried to use words of a server")


def refuse_to_connect(connection: socket.socket, *_: Any) -> None:
    connection.close()  # urllib3 closes it for errors of the network only
    refuse()


class BlockedSocket(socket.socket):
    """As pytest-socket replaces the class."""

    def __new__(cls, family: int = -1, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls, family, *args, **kwargs) if family == socket.AF_UNIX else refuse()


def no_mock(*_: Any, **__: Any) -> Any:
    raise NoMockAddress("No mock address: GET")


# Name -> what blocks, and the class of what it raises.
BLOCKS: dict[str, tuple[Callable[[Path], AbstractContextManager[Any]], str]] = {
    "no sockets": (lambda _: patch.object(socket, "socket", BlockedSocket), "SocketBlockedError"),
    "no look-ups": (lambda _: patch.object(socket, "getaddrinfo", refuse), "SocketBlockedError"),
    "no connections": (lambda _: patch.object(socket.socket, "connect", refuse_to_connect), "SocketBlockedError"),
    "no mock": (lambda _: patch.object(requests.Session, "get_adapter", no_mock), "NoMockAddress"),
    # Longer than what `excerpt` takes for a token.
    "no recording": (
        lambda path: VCR().use_cassette(str(path / "none.yaml"), record_mode="none"),
        "CannotOverwriteExistingCassetteException",
    ),
}
blocks = pytest.mark.parametrize("how", BLOCKS)


@blocks
def test_blocked_network(how: str, flavor: Flavor, imds: ImdsEmulator, tmp_path: Path) -> None:
    """A call that something keeps from the network finds no IMDS, as with azure-identity, and the next one asks."""
    block, name = BLOCKS[how]
    endpoint = imds.endpoint.replace("127.0.0.1", "localhost")
    with block(tmp_path), pytest.raises(ImdsUnavailableError, match=rf"connecting failed \({name}\)") as caught:
        flavor.ask(endpoint, timeout=60)
    assert "kept it from the network" in str(caught.value)
    assert "transport" not in str(caught.value)
    assert caught.value.attempts == 1
    assert flavor.ask(endpoint).token in imds.tokens


@blocks
def test_blocked_network_of_a_seen_imds(how: str, flavor: Flavor, imds: ImdsEmulator, tmp_path: Path) -> None:
    """Where IMDS answered before, a chain must not go on to a developer's login; the call ends at once."""
    block, name = BLOCKS[how]
    flavor.ask(imds.endpoint)
    with block(tmp_path), pytest.raises(ImdsServiceError, match=rf"connecting failed \({name}\)") as caught:
        flavor.ask(imds.endpoint, scope=OTHER, timeout=60)
    assert caught.value.attempts == 1
    assert "kept it from the network" in str(caught.value)


class Developer:
    """The login that stands next in a chain."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken("dummy-developer", 2**40)


class AsyncDeveloper(Developer):
    async def get_token(self, *_: str, **__: Any) -> AccessToken:  # type: ignore[override] # the async protocol
        return super().get_token()

    async def close(self) -> None: ...


@blocks
def test_chain_in_a_blocked_network(
    how: str, flavor: Flavor, imds: ImdsEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain goes on, as it does with azure-identity."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    is_sync = flavor.name == "sync"
    managed: Any = ManagedIdentityCredential() if is_sync else AsyncManagedIdentityCredential()
    chain: Any = ChainedTokenCredential if is_sync else AsyncChainedTokenCredential
    developer = Developer() if is_sync else AsyncDeveloper()
    with BLOCKS[how][0](tmp_path):
        if is_sync:
            with pytest.raises(CredentialUnavailableError):
                managed.get_token(VAULT)
        told = flavor.run(chain(flavor.ImdsCredential(), developer).get_token(VAULT))
    if not is_sync:
        asyncio.run(managed.close())
    assert told.token == "dummy-developer"


def test_place_of_what_blocked_is_logged(flavor: Flavor, imds: ImdsEmulator, caplog: pytest.LogCaptureFixture) -> None:
    """A bug of this package may be behind it: the log says at DEBUG where it was raised, and not its words."""
    with (
        caplog.at_level(logging.DEBUG, "azure_imds_credential"),
        patch.object(socket.socket, "connect", refuse_to_connect),
        pytest.raises(ImdsUnavailableError) as caught,
    ):
        flavor.ask(imds.endpoint)
    (place,) = [line for line in caplog.messages if " raised in " in line]
    assert place.startswith(f"SocketBlockedError raised in {__file__}, line ")
    assert place.endswith(", in refuse")
    assert "words of a server" not in caplog.text + str(caught.value)


def test_replaced_look_up(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of `socket.getaddrinfo` is called as urllib3 calls it: by position."""
    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: original("127.0.0.1", *args[1:]))
    assert flavor.ask(imds.endpoint.replace("127.0.0.1", "imds.internal")).token in imds.tokens


@pytest.mark.parametrize("name", ["getaddrinfo", "create_connection"])
def test_blocked_look(name: str, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look whether something listens finds nothing where something keeps it from the network."""
    endpoint = imds.endpoint.replace("127.0.0.1", "localhost")
    assert has_listener(endpoint)
    monkeypatch.setattr(socket, name, refuse)
    assert not has_listener(endpoint)
