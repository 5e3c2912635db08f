"""Who the tokens of an async credential speak for."""

from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential

from .._identity import MANAGEMENT_SCOPE
from .._whoami import IdentityInfo, identity_info, method_of


async def whoami(
    credential: AsyncTokenCredential | AsyncSupportsTokenInfo, scope: str = MANAGEMENT_SCOPE
) -> IdentityInfo:
    """Return who the tokens of any async credential speak for. The claims are decoded, not verified.

    Args:
        credential: Any async credential of the Azure SDK, for example `azure.identity.aio.DefaultAzureCredential()`.
        scope: What the token is for. By default Azure Resource Manager, for which every identity gets a token.

    Raises:
        TypeError: The credential is sync, or none at all.
        azure.core.exceptions.ClientAuthenticationError: The credential has no token.
    """
    result = method_of(credential)(scope)
    if not hasattr(result, "__await__"):
        raise TypeError(f"{type(credential).__name__} is sync: use azure_imds_credential.whoami")
    return identity_info((await result).token)
