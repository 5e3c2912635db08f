"""`ImdsCredential`, async: the same story with await. Cache, flights and exchange are those of the sync class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._configuration import Configuration, claims_in, picklable
from .._freshness import Slot
from .._whoami import IdentityInfo, identity_info

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
    from typing_extensions import Self

    from .._flight import Flight


class ImdsCredential:
    """Managed identity tokens from Azure's Instance Metadata Service (IMDS), for any async Azure SDK client.

    It shares the process's cache with the sync class, belongs to no event loop, and leaves nothing open. Cancelling a
    caller never cancels the request that others wait for. With trio, use the sync class in a thread.

    Args:
        client_id: Client ID of a user-assigned identity.
        object_id: Object ID (principal ID) of a user-assigned identity.
        resource_id: ARM ID of a user-assigned identity. At most one of the three; with none IMDS chooses: the
            system-assigned identity, or the only user-assigned one of a machine that has no other.
        endpoint: Base URL of IMDS; by default the variable AZURE_POD_IDENTITY_AUTHORITY_HOST, as it is when IMDS may
            have to be asked, else http://169.254.169.254.
        timeout: Seconds after which a call ends whatever happens, all attempts and waits included.
        wait_for_identity: Seconds to keep asking, every 5 s, while IMDS answers that there is no such identity: a new
            assignment takes minutes to arrive. At most `timeout`.
        shared_cache: Share tokens with the other processes of this user on this machine.
        transport: A synchronous azure-core transport to send with. It is never opened or closed here.
        **pipeline_options: As for the sync class; policies are synchronous ones here too.

    Raises:
        ValueError: An argument has no usable value; the message names it.
        TypeError: An argument is unknown or has the wrong type.
    """

    def __init__(
        self,
        *,
        client_id: str | None = None,
        object_id: str | None = None,
        resource_id: str | None = None,
        endpoint: str | None = None,
        timeout: float = 90.0,
        wait_for_identity: float = 0.0,
        shared_cache: bool = False,
        transport: Any = None,
        **pipeline_options: Any,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "client_id": client_id,
            "object_id": object_id,
            "resource_id": resource_id,
            "endpoint": endpoint,
            "timeout": timeout,
            "wait_for_identity": wait_for_identity,
            "shared_cache": shared_cache,
        }
        self._options = {"transport": transport, **pipeline_options}
        self._configure()

    def _configure(self) -> None:
        self._configuration = Configuration(**self._arguments, options=self._options)
        self._now = self._configuration.cache.clock
        self._slots: dict[str | None, Slot] = {}

    # Callers are on this path at every request of theirs, so it is held to 1.8 times what one dict lookup, one clock
    # reading and one comparison cost. A tuple of scopes, or names for the keywords without a meaning, would break that.
    async def get_token(
        self,
        scope: str | None = None,
        /,
        *more: str,
        claims: str | None = None,
        force_refresh: bool = False,
        **kwargs: Any,
    ) -> AccessToken:
        """Get a token, from memory when a usable one is held.

        Args:
            scope: The resource with or without `/.default`. Exactly one is needed.
            *more: Must stay empty: a token is for one resource.
            claims: A claims challenge. IMDS takes no claims, so this only asks for a newer token than the one held.
            force_refresh: Ask IMDS although a token is held, and ask it to bypass its own cache, which it may or may
                not do. Calls within 30 s of each other share one such refresh, and its failure.
            **kwargs: Ignored. SDK clients send `tenant_id` and `enable_cae`; an identity belongs to one tenant.

        Returns:
            The token; `expires_on` in epoch seconds of this machine's clock.

        Raises:
            ImdsError: There is no token; its subclasses say why.
            ValueError: There is not exactly one scope.
        """
        try:
            slot, now = self._slots[scope], self._now
            if now() < slot.fresh_until and not (more or claims or force_refresh):
                return slot.token  # type: ignore[return-value] # a fresh slot has one
        except (KeyError, TypeError):  # nothing is held, or what was given is no string: that is said below
            pass
        filled = await self._filled(scope, more, forced=bool(claims or force_refresh))
        return filled.token  # type: ignore[return-value] # a filled slot has one

    async def get_token_info(
        self, scope: str | None = None, /, *more: str, options: TokenRequestOptions | None = None
    ) -> AccessTokenInfo:
        """Get a token as `get_token` does, with the time at which it should be refreshed.

        Args:
            scope: The resource with or without `/.default`. Exactly one is needed.
            *more: Must stay empty: a token is for one resource.
            options: `claims` is taken as by `get_token`; everything else is ignored.

        Returns:
            The token; `expires_on` and `refresh_on` in epoch seconds of this machine's clock.

        Raises:
            ImdsError: There is no token; its subclasses say why.
            ValueError: There is not exactly one scope.
        """
        claims = claims_in(options) if options else False
        try:
            slot, now = self._slots[scope], self._now
            if now() < slot.fresh_until and not (more or claims):
                return slot.info  # type: ignore[return-value] # a fresh slot has one
        except (KeyError, TypeError):  # as above
            pass
        filled = await self._filled(scope, more, forced=claims)
        return filled.info  # type: ignore[return-value] # a filled slot has one

    async def _filled(self, scope: str | None, more: tuple[str, ...], *, forced: bool) -> Slot:
        slot = self._configuration.slot(() if scope is None else (scope, *more))
        for flight, seconds in self._configuration.cache.steps(slot, self._configuration, forced=forced):
            await _wait_for(flight, seconds)
        self._slots[scope] = slot
        return slot

    def token_provider(self, *scopes: str) -> Callable[[], Awaitable[str]]:
        """Make an async function without arguments that returns the token alone, as OpenAI's async clients take it.

        Raises:
            ImdsUnavailableError: The environment names another token source; said now, as a wrong scope is.
            ValueError: There is not exactly one scope.
        """
        self._configuration.slot(scopes)

        async def token() -> str:
            return (await self.get_token(*scopes)).token

        return token

    async def whoami(self, scope: str = "https://management.azure.com/.default") -> IdentityInfo:
        """Get a token and read who it speaks for. Its claims are decoded, not verified.

        Raises:
            ImdsError: There is no token; its subclasses say why.
        """
        return identity_info((await self.get_token(scope)).token)

    async def close(self) -> None:
        """Do nothing: there is nothing to close. The credential stays usable."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__setstate__(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        return picklable(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # a subclass may have arguments, and attributes, of its own
        self._configure()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._configuration})"


async def _wait_for(flight: Flight | None, seconds: float) -> None:
    """Wait as the sync class does, without holding up the loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    if flight is not None:
        flight.bells.append(lambda: loop.call_soon_threadsafe(waiter.cancel))  # ends the wait, whatever it says
        if flight.landed:  # it may have, before the bell hung
            return
    try:
        await asyncio.wait((waiter,), timeout=seconds)
    finally:
        waiter.cancel()
