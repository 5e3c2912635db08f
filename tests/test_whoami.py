"""`whoami` of any credential, and what an `IdentityInfo` makes of odd claims."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo

import azure_imds_credential
import azure_imds_credential.aio
from azure_imds_credential import ImdsCredential
from azure_imds_credential._whoami import identity_info
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, forget_tokens

CLAIMS = {"aud": "https://a", "appid": "c", "oid": "o", "tid": "t", "iat": 1, "exp": 2, "xms_mirid": "/r"}


def jwt(claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.c2ln"


class Sync:
    """A credential of another library, with the older protocol."""

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(jwt({**CLAIMS, "aud": scopes[0]}), 2)


class SyncInfo:
    """One with the newer protocol only."""

    def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        return AccessTokenInfo(jwt({**CLAIMS, "aud": scopes[0]}), 2)


class Async:
    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return Sync().get_token(*scopes)


class AsyncInfo:
    async def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        return SyncInfo().get_token_info(*scopes)


def told(credential: Any, *scope: str) -> Any:
    if isinstance(credential, (Sync, SyncInfo)):
        return azure_imds_credential.whoami(credential, *scope)
    return asyncio.run(azure_imds_credential.aio.whoami(credential, *scope))


@pytest.mark.parametrize("credential", [Sync(), SyncInfo(), Async(), AsyncInfo()], ids=lambda one: type(one).__name__)
def test_whoami_takes_every_protocol(credential: Any) -> None:
    """Credentials with get_token or get_token_info, sync or async, are asked for the scope; their claims are read."""
    assert told(credential, "scope") == ("c", "o", "t", "/r", "scope", 1, 2, {**CLAIMS, "aud": "scope"})
    assert told(credential).audience == "https://management.azure.com/.default"


def test_whoami_of_our_own_credential_is_its_method() -> None:
    """For an ImdsCredential the function says what the method says, sync and aio."""
    forget_tokens()
    with ImdsEmulator() as imds:
        ours, aio = (module.ImdsCredential(endpoint=imds.endpoint)
                     for module in (azure_imds_credential, azure_imds_credential.aio))  # fmt: skip
        info = azure_imds_credential.whoami(ours)
        assert info == ours.whoami() == asyncio.run(azure_imds_credential.aio.whoami(aio))
    assert info.client_id == SystemAssigned().client_id


def test_whoami_names_the_twin_for_the_other_kind() -> None:
    """An async credential given to the sync function, a sync one given to aio, and what is none are TypeErrors."""
    with pytest.raises(TypeError, match=r"Async is async: use azure_imds_credential.aio.whoami"):
        azure_imds_credential.whoami(Async())  # type: ignore[arg-type] # that is the mistake
    with pytest.raises(TypeError, match=r"Sync is sync: use azure_imds_credential.whoami"):
        asyncio.run(azure_imds_credential.aio.whoami(Sync()))  # type: ignore[arg-type] # that is the mistake
    with pytest.raises(TypeError, match="must have get_token or get_token_info, got str"):
        azure_imds_credential.whoami("token")  # type: ignore[arg-type] # that is the mistake


def test_whoami_of_a_credential_without_token_raises_its_error() -> None:
    """What the credential raises reaches the caller as it is."""
    with ImdsEmulator([]) as imds, pytest.raises(azure_imds_credential.IdentityUnavailableError):
        azure_imds_credential.whoami(ImdsCredential(endpoint=imds.endpoint))


@pytest.mark.parametrize(
    ("aud", "audience"),
    [
        ("https://a", "https://a"),
        (["https://a"], "https://a"),
        (["https://a", "https://b"], "https://a, https://b"),
        ([], None),
        (["https://a", 1], None),
        (None, None),
        ({}, None),
        (1, None),
    ],
)
def test_audience_may_be_a_list(aud: Any, audience: str | None) -> None:
    """An audience is a string or a list of strings (RFC 7519); anything else is none. The claim stays as it is."""
    info = identity_info(jwt({"aud": aud}))
    assert (info.audience, info.claims["aud"]) == (audience, aud)


@pytest.mark.parametrize(
    ("claim", "seconds"),
    [
        (1700000000, 1700000000),
        (1700000000.9, 1700000000),
        (0, 0),
        (253402300799, 253402300799),
        (1700000000000, None),  # milliseconds
        (10**400, None),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("1700000000", None),
        (None, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_odd_times_are_no_times(claim: Any, seconds: int | None) -> None:
    """A time is a number of seconds between 1970 and 9999; anything else is None, and the claim stays as it is."""
    info = identity_info(jwt({"iat": claim, "exp": claim}))
    assert (info.issued_on, info.expires_on) == (seconds, seconds)
