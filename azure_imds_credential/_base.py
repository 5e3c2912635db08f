"""What the sync and the aio credential share: their arguments, documentation, copies, pickles and repr."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, overload

from ._cache.token_entry import CachedToken, TokenEntry
from ._identity import MANAGEMENT_SCOPE
from ._options import CredentialOptions

if TYPE_CHECKING:
    from azure.core.credentials import TokenRequestOptions
    from typing_extensions import Self, Unpack

    from ._options import PipelineOptions


MAX_ENTRIES = 1000  # per credential; a program with more resources at once looks them up in the cache now and then


class _PipelineOptions(dict[str, Any]):
    """Pipeline options as they were given. Copies of a credential share them: they hold the user's own objects."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.get("transport") is not None:
            raise TypeError("a credential with a transport of its own cannot be pickled; make it where it is used")
        return type(self), (dict(self),)


class CredentialBase(ABC):
    """Managed identity tokens from Azure's Instance Metadata Service (IMDS), for any Azure SDK client.

    Credentials without pipeline options share one cache, so it does not matter how many are made. One with `transport`
    or any of `pipeline_options` has a cache of its own. A credential holds no connection: it can be closed or not,
    copied, pickled (its arguments only), and used by any thread and after a fork.

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
        require_system_assigned: Refuse a token of a user-assigned identity, which IMDS may choose where the machine has
            no system-assigned one, and a token that does not say (no claim `xms_mirid`).
        transport: A synchronous azure-core transport to send with. It is never opened or closed here.
        **pipeline_options: `retry_total` (0 for none), `connection_timeout` and `read_timeout` (seconds; they only
            shorten), `per_call_policies`, `per_retry_policies`, `raw_request_hook`, `raw_response_hook`, `user_agent`,
            `logging_enable` (bodies are never logged), `tracing_options`.

    Raises:
        ValueError: An argument has no usable value; the message names it.
        TypeError: An argument is unknown or has the wrong type.
    """

    @overload
    def __init__(
        self,
        *,
        client_id: str | None = None,
        object_id: None = None,
        resource_id: None = None,
        endpoint: str | None = None,
        timeout: float = 90.0,
        wait_for_identity: float = 0.0,
        shared_cache: bool = False,
        require_system_assigned: bool = False,
        transport: Any = None,
        **pipeline_options: Unpack[PipelineOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        client_id: None = None,
        object_id: str | None = None,
        resource_id: None = None,
        endpoint: str | None = None,
        timeout: float = 90.0,
        wait_for_identity: float = 0.0,
        shared_cache: bool = False,
        require_system_assigned: bool = False,
        transport: Any = None,
        **pipeline_options: Unpack[PipelineOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        client_id: None = None,
        object_id: None = None,
        resource_id: str | None = None,
        endpoint: str | None = None,
        timeout: float = 90.0,
        wait_for_identity: float = 0.0,
        shared_cache: bool = False,
        require_system_assigned: bool = False,
        transport: Any = None,
        **pipeline_options: Unpack[PipelineOptions],
    ) -> None: ...

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
        require_system_assigned: bool = False,
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
            "require_system_assigned": require_system_assigned,
        }
        self._pipeline_options = _PipelineOptions({"transport": transport, **pipeline_options})
        self._set_up()

    def _set_up(self) -> None:
        self._options = CredentialOptions(**self._arguments, pipeline_options=self._pipeline_options)
        self._now = self._options.cache.clock.now
        self._entries: dict[tuple[str, ...], TokenEntry] = {}  # by the scopes of earlier calls

    @abstractmethod
    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        force_refresh: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return a token, from memory when a usable one is cached.

        Args:
            *scopes: Exactly one: the resource with or without `/.default`.
            claims: A claims challenge. IMDS takes no claims, so this only asks for a newer token than the cached one.
            tenant_id: Ignored: an identity belongs to one tenant.
            enable_cae: Ignored: IMDS has no continuous access evaluation.
            force_refresh: Ask IMDS although a token is cached, and ask it to bypass its own cache, which it may or may
                not do. Calls within 30 s of each other share one such request, and its failure.
            **kwargs: Ignored.

        Returns:
            The token; `expires_on` in epoch seconds of this machine's clock.

        Raises:
            ImdsError: There is no token; its subclasses say why.
            ValueError: There is not exactly one scope.
        """

    @abstractmethod
    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> Any:
        """Return a token as `get_token` does, with the time at which it should be refreshed.

        Args:
            *scopes: Exactly one: the resource with or without `/.default`.
            options: `claims` is taken as by `get_token`; everything else is ignored.

        Returns:
            The token; `expires_on` and `refresh_on` in epoch seconds of this machine's clock.

        Raises:
            ImdsError: There is no token; its subclasses say why.
            ValueError: There is not exactly one scope.
        """

    @abstractmethod
    def token_provider(self, *scopes: str) -> Any:
        """Return a function without arguments that returns the token alone, as OpenAI's clients and others take it.

        The function of the aio credential is a coroutine function.

        Args:
            *scopes: Exactly one: the resource with or without `/.default`.

        Raises:
            ImdsUnavailableError: The environment names another token source. It is raised here already, as the next is.
            ValueError: There is not exactly one scope.
            IdentityMismatchError: Raised by the function: it is for `api://AzureADTokenExchange`, and the token is of
                the system-assigned identity, which an application cannot trust.
        """

    @abstractmethod
    def whoami(self, scope: str = MANAGEMENT_SCOPE) -> Any:
        """Return the identity that a token speaks for. Its claims are decoded, not verified.

        Args:
            scope: What the token is for.

        Raises:
            ImdsError: There is no token; its subclasses say why.
        """

    @abstractmethod
    def close(self) -> Any:
        """Do nothing: there is nothing to close. The credential stays usable."""

    def _fresh(self, scopes: tuple[str, ...]) -> CachedToken | None:
        """Return the token that an earlier call with these scopes led to, if it needs no other look."""
        try:
            cached = self._entries[scopes].cached
        except (KeyError, TypeError):  # the first call, or scopes that are no strings: `CredentialOptions` refuses them
            return None
        return cached if cached is not None and self._now() < cached.fresh_until else None

    def _remember(self, scopes: tuple[str, ...], entry: TokenEntry) -> None:
        """Keep where the token for these scopes is, for `_fresh`."""
        if len(self._entries) >= MAX_ENTRIES:
            self._entries = {}  # the next call for each finds it in the cache
        self._entries[scopes] = entry

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of: arguments, and the attributes of a subclass."""
        state = {name: value for name, value in vars(self).items() if name not in ("_options", "_now", "_entries")}
        # Only what differs from the defaults: a version that lacks an argument can open what does not use it.
        state["_arguments"] = {
            name: value for name, value in self._arguments.items() if name not in _DEFAULTS or value != _DEFAULTS[name]
        }
        for name, slot in _slots(type(self)).items():
            if hasattr(self, name):
                state[name] = slot.__get__(self)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        slots = _slots(type(self))
        vars(self).update({name: value for name, value in state.items() if name not in slots})
        for name in slots.keys() & state.keys():
            slots[name].__set__(self, state[name])
        for name in sorted(self._arguments.keys() - _DEFAULTS.keys()):
            raise TypeError(f"the credential was pickled with the argument {name!r}, which this version does not have")
        self._arguments = _DEFAULTS | self._arguments
        self._set_up()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._options})"


# The arguments by name, `transport` excepted: no pickle has one.
_DEFAULTS: dict[str, Any] = {
    name: default for name, default in (CredentialBase.__init__.__kwdefaults__ or {}).items() if name != "transport"
}


def _slots(cls: type) -> dict[str, MemberDescriptorType]:
    """Return what a subclass keeps in `__slots__`, by the names that the attributes have."""
    return {
        name: member
        for each in cls.__mro__
        if "__slots__" in vars(each)
        for name, member in vars(each).items()
        if isinstance(member, MemberDescriptorType)
    }
