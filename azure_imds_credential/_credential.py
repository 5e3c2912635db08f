"""`ImdsCredential`, sync. The credential asks the cache; the cache asks IMDS when it must."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions

from ._base import CredentialBase
from ._cache.token_entry import CachedToken
from ._identity import MANAGEMENT_SCOPE
from ._options import has_claims

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._whoami import IdentityInfo


class ImdsCredential(CredentialBase):
    __doc__ = CredentialBase.__doc__

    def get_token(
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
        return self._fill(scopes, force_refresh=bool(claims or force_refresh)).token

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        forced = has_claims(options)
        return ((not forced and self._fresh(scopes)) or self._fill(scopes, force_refresh=forced)).info

    def _fill(self, scopes: tuple[str, ...], *, force_refresh: bool) -> CachedToken:
        entry = self._options.entry(scopes)
        filling = self._options.cache.fill(entry, self._options, force_refresh=force_refresh)
        try:
            for wait in filling:
                wait.block()
        finally:
            filling.close()
        self._remember(scopes, entry)
        return filling.cached

    def token_provider(self, *scopes: str) -> Callable[[], str]:
        from ._federation import checked_assertion  # here, as below: most programs never need it

        key = self._options.entry(scopes).key
        return lambda: checked_assertion(self.get_token(*scopes).token, key.resource, str(key.identity))

    def whoami(self, scope: str = MANAGEMENT_SCOPE) -> "IdentityInfo":
        from ._whoami import identity_info

        return identity_info(self.get_token(scope).token)

    def close(self) -> None:
        pass

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()
