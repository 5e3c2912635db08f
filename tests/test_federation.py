"""A managed identity as the credential of an application: Azure's ClientAssertionCredential, against Entra's double."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jwt
import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientAssertionCredential

from azure_imds_credential import IdentityMismatchError, ImdsCredential, aio
from azure_imds_credential._federation import checked_assertion
from azure_imds_credential.testing import EntraDouble, FederatedCredential, ImdsEmulator, UserAssigned, forget_tokens
from azure_imds_credential.testing._emulator.tokens import sign

APP_ID = "00000000-0000-4000-8000-0000000000a9"
EXCHANGE = "api://AzureADTokenExchange"
GRAPH = "https://graph.microsoft.com"
JOBS, OTHER = UserAssigned("jobs"), UserAssigned("other")


class Flavor(NamedTuple):
    """The sync or the aio class, and how its results are awaited."""

    credential: Callable[..., Any]
    run: Callable[[Any], Any]


@pytest.fixture(params=["sync", "aio"])
def flavor(request: pytest.FixtureRequest) -> Flavor:
    if request.param == "sync":
        return Flavor(ImdsCredential, lambda value: value)
    return Flavor(aio.ImdsCredential, asyncio.run)


@pytest.fixture
def imds(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImdsEmulator]:
    forget_tokens()
    with ImdsEmulator([JOBS, OTHER]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        yield imds


@pytest.fixture
def entra(imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[EntraDouble]:
    with EntraDouble(imds, {APP_ID: FederatedCredential(JOBS.object_id)}) as entra:
        for name, value in entra.environment().items():
            monkeypatch.setenv(name, value)
        yield entra


def application(imds: ImdsEmulator, assertion: Any, client_id: str = APP_ID) -> ClientAssertionCredential:
    return ClientAssertionCredential(imds.tenant_id, client_id, func=assertion, retry_total=0)


def test_identity_as_application(imds: ImdsEmulator, entra: EntraDouble) -> None:
    """The application gets its own token for the identity's, and IMDS is asked once for any number of them."""
    assertion = ImdsCredential(client_id=JOBS.client_id).token_provider(EXCHANGE)
    for resource in (GRAPH, "https://vault.azure.net"):
        token = application(imds, assertion).get_token(f"{resource}/.default").token
        key = jwt.PyJWKClient(imds.jwks_uri).get_signing_key_from_jwt(token)
        claims = jwt.decode(token, key, ["RS256"], audience=resource, issuer=imds.issuer)
        assert claims["appid"] == APP_ID
    assert entra.requests == [f"POST /{imds.tenant_id}/oauth2/v2.0/token -> 200"] * 2
    imds.assert_requests(1, resource=EXCHANGE)


def test_identity_as_application_aio(imds: ImdsEmulator, entra: EntraDouble) -> None:
    """Azure's async class takes the same function. In a process of its own: aiohttp reads SSL_CERT_FILE at import."""
    program = f"""
        import asyncio
        from azure.identity.aio import ClientAssertionCredential
        from azure_imds_credential import ImdsCredential

        async def main():
            assertion = ImdsCredential(client_id="{JOBS.client_id}").token_provider("{EXCHANGE}")
            async with ClientAssertionCredential("{imds.tenant_id}", "{APP_ID}", func=assertion) as credential:
                print((await credential.get_token("{GRAPH}/.default")).token)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, **entra.environment()},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.strip() in entra.tokens, done.stderr


@pytest.mark.parametrize("exchange", [EXCHANGE, f"{EXCHANGE}/.default", "api://AzureADTokenExchangeChina"])
def test_system_assigned_is_refused(flavor: Flavor, exchange: str) -> None:
    """The token of a system-assigned identity is no assertion: the error says so before Entra is asked."""
    forget_tokens()
    with ImdsEmulator() as imds:
        assertion = flavor.credential(endpoint=imds.endpoint).token_provider(exchange)
        with pytest.raises(IdentityMismatchError, match="An application can trust a user-assigned identity only"):
            flavor.run(assertion())
        other = flavor.credential(endpoint=imds.endpoint).token_provider("https://vault.azure.net/.default")
        assert flavor.run(other()) in imds.tokens


def test_opaque_token_is_no_mismatch() -> None:
    """What a token does not say is unknown: an opaque one is handed on, and Entra judges it."""
    assert checked_assertion("opaque", EXCHANGE, "the machine's default identity") == "opaque"


def claims_of(imds: ImdsEmulator, **changed: Any) -> dict[str, Any]:
    claims = jwt.decode(imds.issue_token(EXCHANGE, JOBS), options={"verify_signature": False})
    return {**claims, **changed}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"iss": "https://sts.windows.net/00000000-0000-4000-8000-000000000000/"}, 700211),
        ({"sub": OTHER.object_id}, 700213),
        ({"aud": "https://vault.azure.net"}, 700212),
        ({"exp": 1}, 700024),
        ({"nbf": 2**40}, 700024),
    ],
)
def test_assertion_is_judged(imds: ImdsEmulator, entra: EntraDouble, changed: dict[str, Any], code: int) -> None:
    """A wrong issuer, subject, audience or time is refused with Entra's code."""
    assertion = sign(claims_of(imds, **changed))
    with pytest.raises(ClientAuthenticationError, match=f"AADSTS{code}"):
        application(imds, lambda: assertion).get_token(f"{GRAPH}/.default")
    assert entra.requests == [f"POST /{imds.tenant_id}/oauth2/v2.0/token -> 401 {code}"]
    assert entra.tokens == []


def test_foreign_signature(imds: ImdsEmulator, entra: EntraDouble) -> None:
    """An assertion that another key signed is refused."""
    assertion = jwt.encode(claims_of(imds), "x" * 32, algorithm="HS256")
    with pytest.raises(ClientAuthenticationError, match="AADSTS700027"):
        application(imds, lambda: assertion).get_token(f"{GRAPH}/.default")
    assert entra.tokens == []


def test_unknown_application(imds: ImdsEmulator, entra: EntraDouble) -> None:
    """An application that the tenant does not have gets no token."""
    assertion = ImdsCredential(client_id=JOBS.client_id).token_provider(EXCHANGE)
    with pytest.raises(ClientAuthenticationError, match="AADSTS700016"):
        application(imds, assertion, client_id=OTHER.client_id).get_token(f"{GRAPH}/.default")
    assert entra.tokens == []


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ("grant_type=refresh_token", 70003),
        (f"grant_type=client_credentials&client_id={APP_ID}&client_secret=x", 7000218),
    ],
)
def test_other_grants(imds: ImdsEmulator, entra: EntraDouble, form: str, code: int) -> None:
    """Other grants, and an application that sends a secret, get Entra's error."""
    import requests

    url = f"https://login.microsoftonline.com/{imds.tenant_id}/oauth2/v2.0/token"
    answer = requests.post(url, data=form, verify=str(entra.ca_file), timeout=30)
    assert json.loads(answer.text)["error_codes"] == [code]
    assert requests.get(url, verify=str(entra.ca_file), timeout=30).status_code == 404
