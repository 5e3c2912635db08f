"""Only type-checked (`mypy --strict`), never run: the public names as a user's code sees them.

Each `type: ignore` below is a mistake that mypy must find: with `--strict` an ignore that is not needed is an error.
"""

import os
from collections.abc import Awaitable, Callable

from azure.core.credentials import AccessToken, AccessTokenInfo, SupportsTokenInfo, TokenCredential, TokenProvider
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.pipeline.transport import RequestsTransport
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


# What type checkers let through.
ImdsCredential(client_id=os.environ.get("CLIENT_ID"))  # None is the machine's default identity
ImdsCredential(client_id=None, object_id=None, resource_id=None)
ImdsCredential(object_id="id", endpoint=None, timeout=5, wait_for_identity=1.5, shared_cache=True)
ImdsCredential(require_system_assigned=True, transport=RequestsTransport(), retry_total=0, user_agent="app")
ImdsCredential(connection_timeout=1, read_timeout=2.5, logging_enable=True, tracing_options={"attributes": {"a": "b"}})
ImdsCredential(per_call_policies=[], per_retry_policies=SansIOHTTPPolicy(), raw_request_hook=print, retry_total=None)
credential.get_token("scope", unknown="ignored")

# What they refuse: two selectors, unknown and misspelt arguments, values of a wrong type.
ImdsCredential(client_id="id", object_id="id")  # type: ignore[call-overload]
ImdsCredential(client_id="id", resource_id="id")  # type: ignore[call-overload]
ImdsCredential(object_id="id", resource_id="id")  # type: ignore[call-overload]
ImdsCredential(client_id="id", object_id="id", resource_id="id")  # type: ignore[call-overload]
ImdsCredential(retry_totl=1)  # type: ignore[call-overload]
ImdsCredential(clientId="id")  # type: ignore[call-overload]
ImdsCredential(proxies={})  # type: ignore[call-overload]
ImdsCredential(tenant_id="id")  # type: ignore[call-overload]
ImdsCredential("id")  # type: ignore[call-overload]
ImdsCredential(client_id=5)  # type: ignore[call-overload]
ImdsCredential(timeout="90")  # type: ignore[call-overload]
ImdsCredential(shared_cache="yes")  # type: ignore[call-overload]
ImdsCredential(retry_total=1.5)  # type: ignore[call-overload]
AsyncImdsCredential(client_id="id", object_id="id")  # type: ignore[call-overload]
AsyncImdsCredential(retry_totl=1)  # type: ignore[call-overload]
credential.get_token(["scope"])  # type: ignore[arg-type]
credential.get_token("scope", force_refresh="yes")  # type: ignore[arg-type]
credential.get_token_info("scope", claims="{}")  # type: ignore[call-arg]


class MyCredential(ImdsCredential):
    """A subclass has a constructor of its own, and the types of what it inherits."""

    def __init__(self, app: str) -> None:
        super().__init__(client_id=app, timeout=7)


assert_type(MyCredential("app").get_token("scope"), AccessToken)
with MyCredential("app") as mine:
    assert_type(mine, MyCredential)


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
