"""Only type-checked (`mypy --strict`), never run: the public names as a user's code sees them."""

from collections.abc import Awaitable, Callable

from azure.core.credentials import AccessToken, AccessTokenInfo, SupportsTokenInfo, TokenCredential, TokenProvider
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.keyvault.secrets import SecretClient
from azure.keyvault.secrets.aio import SecretClient as AsyncSecretClient
from typing_extensions import assert_type

from azure_imds_credential import IdentityInfo, ImdsCredential, ManagedIdentitySource, detect_source, whoami
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.aio import whoami as async_whoami

credential = ImdsCredential()
a: TokenCredential = credential
b: SupportsTokenInfo = credential
c: TokenProvider = credential
assert_type(credential.get_token("scope"), AccessToken)
assert_type(credential.get_token("scope", claims="{}", tenant_id="t", enable_cae=True, force_refresh=True), AccessToken)
assert_type(credential.get_token_info("scope", options={"claims": "{}"}), AccessTokenInfo)
assert_type(credential.token_provider("scope"), Callable[[], str])
assert_type(credential.whoami(), IdentityInfo)
assert_type(whoami(a), IdentityInfo)
assert_type(whoami(b, "scope"), IdentityInfo)
assert_type(detect_source(), ManagedIdentitySource)
with ImdsCredential(client_id="id") as entered:
    assert_type(entered, ImdsCredential)
SecretClient("https://vault.azure.net", credential)


async def aio() -> None:
    """The same for the aio class."""
    credential = AsyncImdsCredential()
    d: AsyncTokenCredential = credential
    e: AsyncSupportsTokenInfo = credential
    assert_type(await credential.get_token("scope"), AccessToken)
    assert_type(await credential.get_token_info("scope"), AccessTokenInfo)
    assert_type(credential.token_provider("scope"), Callable[[], Awaitable[str]])
    assert_type(await credential.whoami(), IdentityInfo)
    assert_type(await async_whoami(d), IdentityInfo)
    assert_type(await async_whoami(e, "scope"), IdentityInfo)
    async with AsyncImdsCredential(resource_id="id") as entered:
        assert_type(entered, AsyncImdsCredential)
    AsyncSecretClient("https://vault.azure.net", credential)
    print(d, e)


print(a, b, c)
