"""Which errors let a chain try its next credential: with the real azure-identity, both colours."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import azure.identity
import azure.identity.aio
import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import ClientAuthenticationError
from colours import VAULT, Colour, VirtualTime

from azure_imds_credential.testing import ImdsEmulator, faults
from azure_imds_credential.testing.faults import Fault

SCOPE = f"{VAULT}/.default"


@dataclass
class Developer:
    """The identity that a VM must not fall through to: a developer's own."""

    asked: list[tuple[str, ...]] = field(default_factory=list)

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.asked.append(scopes)
        return AccessToken("developer", 2_000_000_000)

    def get_token_info(self, *scopes: str, **_: Any) -> AccessTokenInfo:
        self.asked.append(scopes)
        return AccessTokenInfo("developer", 2_000_000_000)


@dataclass
class AsyncDeveloper(Developer):
    """The same with await."""

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:  # type: ignore[override] # the other protocol
        return Developer.get_token(self, *scopes)

    async def get_token_info(self, *scopes: str, **_: Any) -> AccessTokenInfo:  # type: ignore[override] # as above
        return Developer.get_token_info(self, *scopes)

    async def close(self) -> None:
        """Nothing to close."""

    async def __aenter__(self) -> AsyncDeveloper:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def in_chain(colour: Colour, developer: Developer, method: str = "get_token", **arguments: Any) -> str:
    """Ask a chain of our credential and the developer's for a token."""
    credential = colour.ImdsCredential(**arguments)
    if colour.name == "sync":
        chain = azure.identity.ChainedTokenCredential(credential, developer)
        return str(getattr(chain, method)(SCOPE).token)

    async def ask() -> str:
        async with azure.identity.aio.ChainedTokenCredential(credential, developer) as chain:  # type: ignore[arg-type] # duck-typed
            return str((await getattr(chain, method)(SCOPE)).token)

    return asyncio.run(ask())


@pytest.fixture
def developer(colour: Colour) -> Developer:
    return Developer() if colour.name == "sync" else AsyncDeveloper()


GOES_ON: dict[str, Fault] = {
    "HTML": faults.html(),
    "Docker Desktop": faults.docker_desktop_403(),
    "Docker Desktop in Norwegian": faults.docker_desktop_403("et nettverk som ikke kan nås."),
    "another cloud": faults.status(404, "no", headers={"Server": "EC2ws"}),
    "WireServer for ever": faults.wireserver(),
    "closed": faults.reset(),
    "silence": faults.hang,
    "no identity": faults.status(400, {"error": "invalid_request", "error_description": "Identity not found"}),
    "no identity, in other words": faults.status(400, {"error": "invalid_request", "error_description": "未找到"}),
}
STOPS: dict[str, Fault] = {
    "another resource's token": faults.members(resource="https://graph.microsoft.com"),
    "no such resource": faults.status(
        400, {"error": "invalid_resource", "error_description": "AADSTS500011", "error_codes": [500011]}
    ),
    "Entra's invalid_request": faults.status(
        400, {"error": "invalid_request", "error_description": "AADSTS900144", "error_codes": [900144]}
    ),
    "forbidden": faults.status(403, "no"),
    "throttled": faults.throttled(),
    "updated": faults.status(410),
    "ill": faults.status(500, "ill"),
    "404": faults.status(404, {"error": "Not Found"}),
    "malformed": faults.members(access_token=""),
    "broken off": faults.reset(after=-10),
    "redirect": faults.redirect("http://127.0.0.1:9/"),
}


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
@pytest.mark.parametrize("name", GOES_ON)
def test_a_chain_goes_on_where_imds_or_the_identity_is_not_there(
    name: str, method: str, colour: Colour, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """On a laptop, in a container, or on a VM without an identity the next credential is asked."""
    imds.script(GOES_ON[name], seconds=math.inf)
    options = {"read_timeout": 0.2} if GOES_ON[name] is faults.hang else {}
    assert in_chain(colour, developer, method, endpoint=imds.endpoint, **options) == "developer"
    assert developer.asked == [(SCOPE,)]


def test_a_chain_goes_on_where_nothing_listens(colour: Colour, developer: Developer, imds: ImdsEmulator) -> None:
    """Connection refused."""
    with imds.down():
        assert in_chain(colour, developer, endpoint=imds.endpoint) == "developer"
        assert in_chain(colour, developer, endpoint=imds.endpoint) == "developer"  # from memory


def test_a_chain_goes_on_where_another_source_is_configured(
    colour: Colour, developer: Developer, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On App Service, where ManagedIdentityCredential may stand next in the chain."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("IDENTITY_HEADER", "x")
    assert in_chain(colour, developer, endpoint=imds.endpoint) == "developer"
    imds.assert_requests(0)


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
@pytest.mark.parametrize("name", STOPS)
def test_a_chain_stops_where_imds_is_there_and_ill(
    name: str, method: str, colour: Colour, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A throttled, ill or lying IMDS must not turn a VM's identity into a developer's."""
    imds.script(STOPS[name], seconds=math.inf)
    with pytest.raises(ClientAuthenticationError) as caught:
        in_chain(colour, developer, method, endpoint=imds.endpoint)
    assert developer.asked == []
    assert "ImdsCredential" in str(caught.value)


def test_a_chain_stops_where_imds_was_seen_and_is_gone(
    colour: Colour, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A machine that had IMDS a minute ago is not a laptop now."""
    colour.ask(imds.endpoint, scope="https://management.azure.com")
    with imds.down(), pytest.raises(ClientAuthenticationError):
        in_chain(colour, developer, endpoint=imds.endpoint)
    assert developer.asked == []


def test_a_chain_takes_the_machines_token_where_there_is_one(
    colour: Colour, developer: Developer, imds: ImdsEmulator
) -> None:
    """One request and no probe, and the developer is not asked."""
    assert in_chain(colour, developer, endpoint=imds.endpoint) in imds.tokens
    assert developer.asked == []
    imds.assert_requests(1)


def test_a_chain_tells_our_reason(colour: Colour, imds: ImdsEmulator) -> None:
    """Where every credential fails, what ours found is in the chain's message."""
    empty: Callable[..., Any] = (
        azure.identity.ChainedTokenCredential if colour.name == "sync" else azure.identity.aio.ChainedTokenCredential
    )
    chain = empty(colour.ImdsCredential(endpoint=imds.endpoint, client_id="00000000-0000-4000-8000-000000000001"))
    with pytest.raises(ClientAuthenticationError, match="az vm identity assign"):
        colour.run(chain.get_token(SCOPE))


CHILD = """
    import asyncio, pickle, sys
    import azure_imds_credential, azure_imds_credential.aio
    {before}
    def fails(**options):
        credential = azure_imds_credential.ImdsCredential(endpoint="http://127.0.0.1:9", **options)
        try:
            credential.get_token("https://vault.azure.net")
        except azure_imds_credential.ImdsUnavailableError as error:
            return error
    first = fails()
    assert isinstance(first, azure_imds_credential.ImdsError)
    assert ("azure.identity" in sys.modules) is {loaded}, "azure-identity is loaded by its users only"
    pickled = pickle.dumps(first)
    from azure.identity import ChainedTokenCredential, CredentialUnavailableError
    from azure.identity.aio import ChainedTokenCredential as AioChain
    class Last:
        def get_token(self, *scopes, **_):
            return "last"
    class AioLast:
        async def get_token(self, *scopes, **_):
            return "last"
    ours = azure_imds_credential.ImdsCredential(endpoint="http://127.0.0.1:9")
    assert ChainedTokenCredential(ours, Last()).get_token("https://vault.azure.net") == "last"
    ours = azure_imds_credential.aio.ImdsCredential(endpoint="http://127.0.0.1:9")
    assert asyncio.run(AioChain(ours, AioLast()).get_token("https://vault.azure.net")) == "last"
    again = fails(retry_total=0)
    assert isinstance(again, CredentialUnavailableError)
    assert isinstance(pickle.loads(pickled), CredentialUnavailableError)
    assert pickle.loads(pickle.dumps(again)).attempts == 1
    assert not issubclass(azure_imds_credential.ImdsServiceError, CredentialUnavailableError)
    assert not issubclass(azure_imds_credential.ImdsError, CredentialUnavailableError)
    sys.stdout.buffer.write(pickle.dumps(again))
"""


@pytest.mark.parametrize("order", ["azure-identity first", "azure-identity after our first error"])
def test_the_order_of_imports_does_not_matter(order: str) -> None:
    """Whoever is imported first, chains recognise the errors, and pickles cross to processes without azure-identity."""
    first = order == "azure-identity first"
    program = textwrap.dedent(CHILD).format(before="import azure.identity" if first else "", loaded=first)
    child = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, check=False)
    assert child.returncode == 0, child.stderr.decode()
    reader = (
        "import pickle, sys; error = pickle.load(sys.stdin.buffer); import azure_imds_credential as ours;"
        "assert type(error) is ours.ImdsUnavailableError and 'azure.identity' not in sys.modules; print(error.hint)"
    )
    read = subprocess.run([sys.executable, "-c", reader], input=child.stdout, capture_output=True, check=False)
    assert read.stdout.startswith(b"Is this an Azure VM"), read.stderr.decode()
