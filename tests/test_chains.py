"""Which errors let a chain try its next credential, with the chains of azure-identity, sync and aio."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import azure.identity
import azure.identity.aio
import jwt
import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import ClientAuthenticationError
from flavors import VAULT, Flavor, VirtualTime

from azure_imds_credential._imds import retry_policy
from azure_imds_credential.testing import (
    EntraDouble,
    FederatedCredential,
    ImdsEmulator,
    SystemAssigned,
    UserAssigned,
    faults,
)
from azure_imds_credential.testing._emulator.tokens import sign
from azure_imds_credential.testing.faults import Fault

SCOPE = f"{VAULT}/.default"


@dataclass
class Developer:
    """The credential that a VM must not use: a developer's own."""

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
        """Do nothing."""

    async def __aenter__(self) -> AsyncDeveloper:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def in_chain(flavor: Flavor, developer: Developer, method: str = "get_token", **arguments: Any) -> str:
    """Ask a chain of our credential and the developer's for a token."""
    credential = flavor.ImdsCredential(**arguments)
    if flavor.name == "sync":
        chain = azure.identity.ChainedTokenCredential(credential, developer)
        return str(getattr(chain, method)(SCOPE).token)

    async def ask() -> str:
        async with azure.identity.aio.ChainedTokenCredential(credential, developer) as chain:  # type: ignore[arg-type] # duck-typed
            return str((await getattr(chain, method)(SCOPE)).token)

    return asyncio.run(ask())


@pytest.fixture
def developer(flavor: Flavor) -> Developer:
    return Developer() if flavor.name == "sync" else AsyncDeveloper()


GOES_ON: dict[str, Fault] = {
    "HTML": faults.html(),
    "Docker Desktop": faults.docker_desktop_403(),
    "Docker Desktop in Norwegian": faults.docker_desktop_403("et nettverk som ikke kan nås."),
    "another cloud": faults.status(404, "no", headers={"Server": "EC2ws"}),
    "WireServer for ever": faults.wireserver(),
    "closed": faults.reset(),
    "no response": faults.hang,
    "no identity": faults.status(400, {"error": "invalid_request", "error_description": "Identity not found"}),
    "an error in a 200": faults.status(200, {"error": "invalid_request", "error_description": "Identity not found"}),
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
    "500": faults.status(500, "ill"),
    "another encoding": faults.gzipped,
    "404": faults.status(404, {"error": "Not Found"}),
    "malformed": faults.members(access_token=""),
    "broken off": faults.reset(after=-10),
    "redirect": faults.redirect("http://127.0.0.1:9/"),
}


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
@pytest.mark.parametrize("name", GOES_ON)
def test_chain_goes_on(
    name: str, method: str, flavor: Flavor, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """Without IMDS, or without the identity, the next credential is asked."""
    imds.script(GOES_ON[name], seconds=math.inf)
    options = {"read_timeout": 0.2} if GOES_ON[name] is faults.hang else {}
    assert in_chain(flavor, developer, method, endpoint=imds.endpoint, **options) == "developer"
    assert developer.asked == [(SCOPE,)]


def test_chain_goes_on_when_refused(flavor: Flavor, developer: Developer, imds: ImdsEmulator) -> None:
    """Connection refused."""
    with imds.down():
        assert in_chain(flavor, developer, endpoint=imds.endpoint) == "developer"
        assert in_chain(flavor, developer, endpoint=imds.endpoint) == "developer"  # from memory


def test_chain_goes_on_at_other_source(
    flavor: Flavor, developer: Developer, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On App Service, where ManagedIdentityCredential may stand next in the chain."""
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9/")
    monkeypatch.setenv("IDENTITY_HEADER", "x")
    assert in_chain(flavor, developer, endpoint=imds.endpoint) == "developer"
    imds.assert_requests(0)


@pytest.mark.parametrize("method", ["get_token", "get_token_info"])
@pytest.mark.parametrize("name", STOPS)
def test_chain_stops(
    name: str, method: str, flavor: Flavor, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A throttled or failing IMDS must not turn a VM's identity into a developer's."""
    imds.script(STOPS[name], seconds=math.inf)
    with pytest.raises(ClientAuthenticationError) as caught:
        in_chain(flavor, developer, method, endpoint=imds.endpoint)
    assert developer.asked == []
    assert "ImdsCredential" in str(caught.value)


def test_chain_stops_when_imds_is_gone(
    flavor: Flavor, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator
) -> None:
    """A machine whose IMDS has answered before is not a laptop."""
    flavor.ask(imds.endpoint, scope="https://management.azure.com")
    for options in ({}, {"user_agent": "app"}, {"retry_total": 1}):
        with imds.down(), pytest.raises(ClientAuthenticationError):
            in_chain(flavor, developer, endpoint=imds.endpoint, **options)
    assert developer.asked == []


def test_chain_stops_at_guest_agent(
    flavor: Flavor, developer: Developer, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain stops where the Metadata Security Protocol refuses this process."""
    monkeypatch.setattr(retry_policy, "has_proxy_agent", lambda: True)
    imds.script(faults.status(403, headers={"Server": None, "x-ms-request-id": None}), seconds=math.inf)
    with pytest.raises(ClientAuthenticationError, match="azure-proxy-agent"):
        in_chain(flavor, developer, endpoint=imds.endpoint)
    assert developer.asked == []


def test_chain_stops_without_descriptors(
    flavor: Flavor, developer: Developer, virtual_time: VirtualTime, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain stops where this machine lacks descriptors: that says nothing of IMDS."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    with pytest.raises(ClientAuthenticationError, match="EMFILE"):
        in_chain(flavor, developer, endpoint=imds.endpoint)
    assert developer.asked == []


def test_chain_takes_first_token(flavor: Flavor, developer: Developer, imds: ImdsEmulator) -> None:
    """One request and no probe, and the developer is not asked."""
    assert in_chain(flavor, developer, endpoint=imds.endpoint) in imds.tokens
    assert developer.asked == []
    imds.assert_requests(1)


def test_chain_message(flavor: Flavor, imds: ImdsEmulator) -> None:
    """When every credential fails, the chain's message has the reason of ours."""
    empty: Callable[..., Any] = (
        azure.identity.ChainedTokenCredential if flavor.name == "sync" else azure.identity.aio.ChainedTokenCredential
    )
    chain = empty(flavor.ImdsCredential(endpoint=imds.endpoint, client_id="00000000-0000-4000-8000-000000000001"))
    with pytest.raises(ClientAuthenticationError, match="az vm identity assign"):
        flavor.run(chain.get_token(SCOPE))


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
def test_import_order(order: str) -> None:
    """Chains recognise the errors in either order of imports, and so do processes that unpickle them."""
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


# Machines: the chain of MIGRATING.md beside DefaultAzureCredential

TENANT = ImdsEmulator.tenant_id
WORKLOAD, SERVICE = "00000000-0000-4000-8000-0000000000a9", "00000000-0000-4000-8000-0000000000c5"
SUBJECT, ISSUER = "system:serviceaccount:shop:cart", "https://oidc.example/cluster/"
APP = UserAssigned("app")
AZ = """#!/bin/sh
echo '{"accessToken": "developer", "expires_on": 4000000000, "tokenType": "Bearer"}'
"""

# Runs the chain of the page and DefaultAzureCredential, sync and aio, and prints the tokens.
PROGRAM = """
import asyncio, json, re, sys

def aio(text):
    return re.sub(r"from (azure.identity|azure_imds_credential) import", r"from \\1.aio import", text)

def made(text):
    names = {}
    exec(text, names)
    return names["credential"]

async def ask(credential):
    async with credential:
        return (await credential.get_token("https://vault.azure.net/.default")).token

default = "from azure.identity import DefaultAzureCredential\\ncredential = DefaultAzureCredential()"
tokens = []
for text in (sys.stdin.read(), default):
    tokens.append(made(text).get_token("https://vault.azure.net/.default").token)
    tokens.append(asyncio.run(ask(made(aio(text)))))
print(json.dumps(tokens))
"""


class Machine(NamedTuple):
    """Where a program runs.

    Attributes:
        identities: What its IMDS has; None: there is no IMDS.
        variables: What its environment has.
        answer: Whose token a program gets: an `appid`, or "developer".
        has_az: Whether a developer is logged in with the Azure CLI.
    """

    identities: Sequence[SystemAssigned | UserAssigned] | None
    variables: Mapping[str, str]
    answer: str
    has_az: bool = False


VM = SystemAssigned()
MACHINES = {
    "service principal": Machine(
        [VM], {"AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": SERVICE, "AZURE_CLIENT_SECRET": "secret"}, SERVICE
    ),
    "pod": Machine(
        [VM],
        {"AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": WORKLOAD, "AZURE_FEDERATED_TOKEN_FILE": "token"},
        WORKLOAD,
    ),
    "VM": Machine([VM, APP], {}, VM.client_id),
    "VM, AZURE_CLIENT_ID": Machine([VM, APP], {"AZURE_CLIENT_ID": APP.client_id}, APP.client_id),
    "VM, empty AZURE_CLIENT_ID": Machine([VM, APP], {"AZURE_CLIENT_ID": ""}, VM.client_id),
    "VM with a developer": Machine([VM], {}, VM.client_id, has_az=True),
    "laptop": Machine(None, {}, "developer", has_az=True),
}


class EntraWithSecrets(EntraDouble):
    """Entra ID that also takes the secret of a service principal."""

    def _verify(self, form: Mapping[str, str], trusted: FederatedCredential) -> None:
        if form.get("client_secret") != "secret":
            super()._verify(form, trusted)


def run_on(machine: Machine, program: str, folder: Path) -> list[str]:
    """Run a program on a machine; return whose token each of its credentials got."""
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "api://AzureADTokenExchange", "nbf": 0, "exp": 4_000_000_000}
    (folder / "token").write_text(sign(claims))
    if machine.has_az:
        (folder / "az").write_text(AZ)
        (folder / "az").chmod(0o755)
    trusted = FederatedCredential(SUBJECT, ISSUER)
    with (
        ImdsEmulator(machine.identities) as imds,
        EntraWithSecrets(imds, {WORKLOAD: trusted, SERVICE: trusted}) as entra,
    ):
        closed = "http://127.0.0.1:9"
        environment = {
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": closed if machine.identities is None else imds.endpoint,
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(folder),
            **machine.variables,
            **entra.environment(),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=program,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout.splitlines()[-1])
    return [
        token if token == "developer" else jwt.decode(token, options={"verify_signature": False})["appid"]
        for token in tokens
    ]


def chain_of_page() -> str:
    """Return the chain that MIGRATING.md gives in the place of DefaultAzureCredential."""
    page = (Path(__file__).parent.parent / "MIGRATING.md").read_text()
    (chain,) = re.findall(r"```python\n((?:(?!```).)*EnvironmentCredential.*?)```", page, re.DOTALL)
    return str(chain)


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_chain_matches_default(name: str, tmp_path: Path) -> None:
    """On each machine the chain of MIGRATING.md uses the credential that DefaultAzureCredential uses, sync and aio."""
    machine = MACHINES[name]
    assert run_on(machine, chain_of_page(), tmp_path) == [machine.answer] * 4


@pytest.mark.slow
def test_imds_first_is_the_node(tmp_path: Path) -> None:
    """With IMDS before workload identity a pod gets its node's identity: why MIGRATING.md insists on the order."""
    chain = """
from azure.identity import ChainedTokenCredential, WorkloadIdentityCredential
from azure_imds_credential import ImdsCredential
credential = ChainedTokenCredential(ImdsCredential(), WorkloadIdentityCredential())
"""
    assert run_on(MACHINES["pod"], chain, tmp_path) == [VM.client_id] * 2 + [WORKLOAD] * 2


def test_machines_of_the_page() -> None:
    """MIGRATING.md has a row for each machine that is tried."""
    page = (Path(__file__).parent.parent / "MIGRATING.md").read_text()
    table = page[page.index("| machine |") : page.index("test_chain_matches_default")]
    assert len(re.findall(r"^\| (?!machine)", table, re.MULTILINE)) == len(MACHINES) - 1  # "VM" and "with a developer"
