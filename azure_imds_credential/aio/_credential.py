"""`ImdsCredential`, aio: the sync class with await. Cache and requests are the same ones."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions

from .._base import CredentialBase
from .._cache.token_entry import CachedToken
from .._calling_thread import runs_event_loop
from .._identity import MANAGEMENT_SCOPE
from .._options import has_claims

if TYPE_CHECKING:
    from typing_extensions import Self

    from .._whoami import IdentityInfo


class ImdsCredential(CredentialBase):
    __doc__ = CredentialBase.__doc__

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        force_refresh: bool = False,
        **kwargs: Any,
    ) -> AccessToken:
        if not claims and not force_refresh:
            # As `_fresh`, but without a call: SDK clients pass here at each request of theirs.
            try:
                cached = self._entries[scopes].cached
            except (KeyError, TypeError):
                cached = None
            if cached is not None and self._now() < cached.fresh_until:
                return cached.token
        return (await self._fill(scopes, force_refresh=bool(claims or force_refresh))).token

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        forced = has_claims(options)
        return ((not forced and self._fresh(scopes)) or await self._fill(scopes, force_refresh=forced)).info

    async def _fill(self, scopes: tuple[str, ...], *, force_refresh: bool) -> CachedToken:
        _check_event_loop()
        entry = self._options.entry(scopes)
        filling = self._options.cache.fill(entry, self._options, force_refresh=force_refresh)
        try:
            for wait in filling:
                await wait.block_async()
        finally:
            filling.close()
        self._remember(scopes, entry)
        return filling.cached

    def token_provider(self, *scopes: str) -> Callable[[], Awaitable[str]]:
        from .._federation import checked_assertion  # here, as below: most programs never need it

        key = self._options.entry(scopes).key

        async def token() -> str:
            return checked_assertion((await self.get_token(*scopes)).token, key.resource, str(key.identity))

        return token

    async def whoami(self, scope: str = MANAGEMENT_SCOPE) -> "IdentityInfo":
        from .._whoami import identity_info

        return identity_info((await self.get_token(scope)).token)

    async def close(self) -> None:
        pass

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


def _check_event_loop() -> None:
    """Refuse other async libraries than asyncio before anything is sent.

    Raises:
        TypeError: No asyncio event loop runs here.
    """
    if not runs_event_loop():
        raise TypeError(
            "azure_imds_credential.aio needs a running asyncio event loop. With trio or another async library use the "
            "sync class, azure_imds_credential.ImdsCredential, in a thread: "
            "await trio.to_thread.run_sync(credential.get_token, scope)"
        )
