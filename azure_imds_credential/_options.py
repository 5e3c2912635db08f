"""A credential's arguments, validated once: which cache it uses, and how it fetches a token."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ._cache.token_cache import TokenCache, process_cache
from ._calling_thread import owns_logging_lock
from ._clock import Clock
from ._endpoint import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE, TOKEN_PATH, Endpoint
from ._errors import SHORTAGE_HINT, copy_of, local_error, place_of, shortage_in
from ._fork import ImportLockTimeoutError, importing
from ._identity import identity_from
from ._request import TokenKey, TokenRequest, TokenResult
from ._source import ManagedIdentitySource, source_and_evidence
from .exceptions import ImdsError, ImdsUnavailableError

if TYPE_CHECKING:
    from typing import TypedDict

    from azure.core.credentials import TokenRequestOptions

    from ._cache.token_entry import TokenEntry
    from ._imds.client import ImdsClient
    from ._shared.shared_cache import Fetcher

    class PipelineOptions(TypedDict, total=False):
        """The keyword arguments that shape a request. A credential with any of them has a cache of its own."""

        connection_timeout: float | None
        read_timeout: float | None
        retry_total: int | None
        per_call_policies: Any
        per_retry_policies: Any
        raw_request_hook: Callable[[Any], Any] | None
        raw_response_hook: Callable[[Any], Any] | None
        user_agent: str | None
        logging_enable: bool | None
        tracing_options: Mapping[str, Any] | None


T = TypeVar("T")

# What functions imported. It is kept, because tests and pyfakefs take modules out of `sys.modules` again: to import
# them anew would mix two copies of azure-core and requests.
_loaded: dict[Callable[[], object], Any] = {}

LOGGING_WAIT = 2.0  # seconds to wait for another import, which may need the lock of logging that this thread has
IMPORT_INTERVAL = 0.5  # seconds between two tries to import where the machine lacks what that takes
MAX_SECONDS = 30 * 86400.0  # more is a mistake, and more than locks can wait on some platforms

# Why nothing was sent yet.
LOADING = "msal and the HTTP stack were being loaded"
SHARING = "another process of this user was asking for the same token"

# What other libraries call by another name, or take in another place.
_OTHER_NAMES = {
    "claims": "get_token takes it",
    "enable_cae": "get_token takes it, and IMDS has no continuous access evaluation; leave it out",
    "force_refresh": "get_token takes it",
    "identity_config": "name the identity by client_id, object_id or resource_id",
    "managed_identity_client_id": "its name is client_id",
    "managed_identity_object_id": "its name is object_id",
    "managed_identity_resource_id": "its name is resource_id",
    "max_retries": "its name is retry_total",
    "msi_res_id": "its name is resource_id",
    "mi_res_id": "its name is resource_id",
    "principal_id": "its name is object_id",
    "resource": "get_token takes it, as a scope",
    "retries": "its name is retry_total",
    "scope": "get_token takes it",
    "scopes": "get_token takes them",
    "tenant_id": "a managed identity belongs to one tenant; leave it out",
    "user_assigned_client_id": "its name is client_id",
    "user_assigned_identity_client_id": "its name is client_id",
}
# Options by which a credential may reach another server than the others do.
_CUSTOM_PIPELINE = frozenset(
    {"per_call_policies", "per_retry_policies", "raw_request_hook", "raw_response_hook", "transport"}
)  # fmt: skip


class CredentialOptions:
    """A credential's arguments, validated.

    Args:
        pipeline_options: What is not named here: the transport, and the options in `PipelineOptions`.
    """

    def __init__(
        self,
        *,
        client_id: str | None,
        object_id: str | None,
        resource_id: str | None,
        endpoint: str | None,
        timeout: float,
        wait_for_identity: float,
        shared_cache: bool,
        require_system_assigned: bool,
        pipeline_options: dict[str, Any],
    ) -> None:
        self.identity = identity_from(
            client_id=client_id,
            object_id=object_id,
            resource_id=resource_id,
            require_system_assigned=require_system_assigned,
        )
        self.endpoint = None if endpoint is None else _base_url("endpoint", endpoint)
        if endpoint is None:
            _base_url(ENDPOINT_VARIABLE, endpoint_of_environment())  # refused now, though it is read when it is needed
        self.timeout = _seconds("timeout", timeout, above_zero=True)
        self.wait_for_identity = _seconds("wait_for_identity", wait_for_identity)
        if self.wait_for_identity > self.timeout:
            raise ValueError(
                f"wait_for_identity={wait_for_identity:g} cannot exceed timeout={timeout:g}, which ends every call: "
                "raise timeout too"
            )
        if not isinstance(shared_cache, bool):
            raise TypeError(f"shared_cache must be True or False, not {shared_cache!r}")
        self.shared_cache = shared_cache
        self.pipeline_options = _checked_pipeline_options(pipeline_options)
        custom_pipeline = sorted(self.pipeline_options.keys() & _CUSTOM_PIPELINE)
        if shared_cache:
            _check_for_filelock()
            if custom_pipeline:
                raise ValueError(
                    f"shared_cache=True and {custom_pipeline[0]} exclude each other: tokens that come through a "
                    "transport, a policy or a hook of one's own are not shared"
                )
        # A transport of the user's may ignore deadlines, so it always runs on a thread that callers can leave.
        self.runs_hooks = bool(custom_pipeline) and "transport" not in self.pipeline_options
        # Tokens that were requested in another way are not mixed with those of other credentials.
        self.cache: TokenCache = (
            process_cache.private_copy(custom_pipeline=bool(custom_pipeline))
            if self.pipeline_options
            else process_cache
        )

    def __str__(self) -> str:
        return f"{self.identity}, endpoint={self.endpoint or endpoint_of_environment()!r}"

    def entry(self, scopes: tuple[str, ...]) -> TokenEntry:
        """Return the cache entry for these scopes.

        Raises:
            ImdsUnavailableError: The environment names another token source than IMDS.
            TypeError: A scope is not a string.
            ValueError: There is not exactly one scope, or it names no resource.
        """
        resource = resource_from(scopes)
        source, evidence = source_and_evidence()
        if source is not ManagedIdentitySource.IMDS:
            hint = "Use azure.identity.ManagedIdentityCredential there, or unset the variables."
            raise copy_of(
                ImdsUnavailableError(
                    f"No token for {resource}: {', '.join(evidence)} says that managed identity tokens come from "
                    f"{source.value} here, not from IMDS. Nothing was sent. {hint}",
                    identity=str(self.identity),
                    resource=resource,
                    hint=hint,
                )
            )
        # The variable is read as late as other libraries read it: a credential may be made before a test sets it.
        url = self.endpoint or _base_url(ENDPOINT_VARIABLE, endpoint_of_environment())
        return self.cache.entry(TokenKey(url, self.identity, resource))

    def fetch(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        """Get a token from IMDS or, with `shared_cache`, from another process of this user."""
        fetch = self._fetch_shared if self.shared_cache else self._fetch_from_imds
        try:
            return fetch(request, endpoint, clock)
        except ImdsError:
            raise
        except ImportLockTimeoutError:
            raise _import_error(request) from None
        except Exception as error:
            if not sys.is_finalizing():
                raise
            # Whatever fails where nothing can be imported any more.
            reason = f"The interpreter is shutting down ({type(error).__name__})"
            hint = "Get the token before: a cached one is handed out until the end."
            raise local_error(request.key, reason, hint) from None

    def _fetch_shared(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        sharing = _imported(_import_sharing, request, clock)
        request.unsent_because = SHARING
        return sharing(self._fetch_from_imds)(request, endpoint, clock)

    def _fetch_from_imds(self, request: TokenRequest, endpoint: Endpoint, clock: Clock) -> TokenResult:
        client = _imported(_import_client, request, clock)
        return client(self.pipeline_options).fetch(request, endpoint, clock)

    def has_listener(self, url: str) -> bool:
        """Return whether something accepts connections at a base URL."""
        if _import_connect not in _loaded:
            with importing():
                _loaded[_import_connect] = _import_connect()
        return bool(_loaded[_import_connect].has_listener(url))


def _import_client() -> type[ImdsClient]:
    from ._imds.client import ImdsClient

    return ImdsClient


def _import_connect() -> ModuleType:
    from ._imds import connect

    return connect


def _import_sharing() -> Callable[[Fetcher], Fetcher]:
    from ._shared.shared_cache import sharing

    return sharing


def _import_error(request: TokenRequest) -> ImdsError:
    """Return the error of a request that could not load msal and the HTTP stack, because another thread does."""
    if owns_logging_lock():
        reason = "Nothing was sent: another thread imports, and may wait for the lock of logging that this one has"
        hint = "Get a token before logging is configured, or after."
    else:
        reason = "Nothing was sent: another thread imports, and did not end in time"
        hint = "Try again, or raise timeout."
    return local_error(request.key, reason, hint)


def _failed_import(request: TokenRequest, error: Exception) -> ImdsError:
    """Return the error of a request that could not load msal and the HTTP stack."""
    missing = error.name if isinstance(error, ImportError) else None
    told = f": {missing}" if missing else f", raised in {place_of(error)}"
    reason = f"Nothing was sent: what asks IMDS could not be imported ({type(error).__name__}{told})"
    hint = "Get one token before privileges or paths change, or install the package and what it needs whole."
    return local_error(request.key, reason, hint)


def _imported(load: Callable[[], T], request: TokenRequest, clock: Clock) -> T:
    """Return what a function imports, in the time that the request has.

    Raises:
        ImdsServiceError: This machine lacks what that takes, such as descriptors, or a module cannot be imported.
        ImportLockTimeoutError: Another thread imports for so long.
    """
    # Without the lock once all is loaded: to read a shared token must not wait for another thread that loads msal.
    if load in _loaded:
        kept: T = _loaded[load]
        return kept
    request.unsent_because = LOADING
    while True:
        try:
            left = request.deadline - clock.now()
            with importing(min(left, LOGGING_WAIT) if owns_logging_lock() else left):
                found = load()
            _loaded[load] = found
            return found
        except ImportLockTimeoutError:
            raise
        except Exception as error:
            if sys.is_finalizing():
                raise
            shortage = shortage_in(error)
            if shortage is None:
                raise _failed_import(request, error) from None
            reason = f"This machine lacks what a connection needs ({shortage})"
            failure = local_error(request.key, reason, SHORTAGE_HINT)
            request.attempt_errors[:] = [failure]  # for callers whose time ends before that of the request
            left = request.deadline - clock.now()
            if left <= 0:
                raise failure from None
        clock.sleep(min(IMPORT_INTERVAL, left))


def resource_from(scopes: tuple[str, ...]) -> str:
    """Return the resource that IMDS is asked for: what stands before `/.default`, slash included.

    Raises:
        TypeError: The scope is not a string.
        ValueError: There is not exactly one scope, or it names no resource.
    """
    if len(scopes) != 1:
        raise ValueError(
            "get_token takes exactly one scope, by position, such as 'https://vault.azure.net/.default'; got "
            f"{len(scopes)}"
        )
    scope = scopes[0]
    if not isinstance(scope, str):
        raise TypeError(f"a scope must be a string, not {type(scope).__name__}")
    scope = str.__str__(scope)  # the text itself: a member of an Enum prints its name
    resource = scope.removesuffix("/.default")
    has_host = "://" not in resource or resource.partition("://")[2].strip("/")
    if not resource.strip("/") or not resource.isprintable() or " " in resource or not has_host:
        raise ValueError(f"scope {scope!r} names no resource; expected for example https://vault.azure.net/.default")
    return resource


def has_claims(options: TokenRequestOptions | None) -> bool:
    """Return whether the options of `get_token_info` hold a claims challenge.

    Raises:
        TypeError: They are no dict.
    """
    if options is None:
        return False
    if not isinstance(options, dict):
        raise TypeError(
            f"options must be a dict such as azure.core.credentials.TokenRequestOptions, not {type(options).__name__}"
        )
    return bool(options.get("claims"))


def endpoint_of_environment() -> str:
    """Return the base URL of a credential without `endpoint`. It is not validated."""
    return os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT


def _base_url(name: str, url: str) -> str:
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a string or None, not {type(url).__name__}")
    return _valid_base_url(name, url)


@lru_cache(maxsize=16)  # without `endpoint` the variable is read anew at each call beyond the fast path
def _valid_base_url(name: str, url: str) -> str:
    shown = url if "@" not in url else "one with a user"  # whose password is not for messages
    expected = f"{name} must be a base URL such as {DEFAULT_ENDPOINT}, got {shown!r}"
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ValueError(expected) from error
    # Names that no look-up takes: RFC 1035, section 2.3.4.
    host = (parts.hostname or "").removesuffix(".")
    is_name = len(host) <= 253 and all(0 < len(label) <= 63 for label in host.split("."))
    plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
    if parts.scheme not in ("http", "https") or not is_name or not port_is_valid or not plain:
        raise ValueError(expected)
    if parts.path.rstrip("/").endswith(TOKEN_PATH):
        raise ValueError(f"{expected}: leave {TOKEN_PATH} out, it is appended")
    return url.rstrip("/")


def _seconds(name: str, value: float, *, above_zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= MAX_SECONDS or (above_zero and value == 0):
        raise ValueError(
            f"{name} must be a number of seconds {'above' if above_zero else 'from'} 0 up to {MAX_SECONDS:.0f}, which "
            f"are 30 days; got {str(value)[:20]}"
        )
    return float(value)


def _check_for_filelock() -> None:
    # Found by name: to import the shared cache would wait for another thread that imports msal.
    if sys.platform.startswith("linux") and find_spec("filelock") is None:
        from ._extras import extra_needed  # importlib.metadata takes longer to import than this package

        raise ImportError(extra_needed("shared_cache=True", "shared"))


def _checked_pipeline_options(given: dict[str, Any]) -> dict[str, Any]:
    for name in given.keys() & _OTHER_NAMES.keys():
        raise TypeError(f"unexpected argument {name!r}: {_OTHER_NAMES[name]}")
    options = {name: value for name, value in given.items() if not _changes_nothing(name, value)}
    if "proxies" in options:
        raise ValueError("proxies: IMDS is link-local and must not be asked through a proxy; leave the option out")
    for name in sorted(options.keys() - _CHECKS.keys()):
        raise TypeError(_unexpected_argument(name))
    for name, value in options.items():
        _CHECKS[name](name, value)
    for name in ("connection_timeout", "read_timeout"):
        if name in options:
            options[name] = float(options[name])
    for name in ("per_call_policies", "per_retry_policies"):
        if name in options:
            options[name] = _policies(options[name])
    return options


def _unexpected_argument(name: str) -> str:
    from difflib import get_close_matches  # only for this message

    own = [each for each in inspect.signature(CredentialOptions).parameters if each != "pipeline_options"]
    known = (*own, *sorted(_CHECKS))
    by_letters = {each.replace("_", ""): each for each in known}
    close = get_close_matches(name.lower().replace("_", "").replace("-", ""), by_letters, n=1, cutoff=0.75)
    if close:
        return f"unexpected argument {name!r}: did you mean {by_letters[close[0]]}?"
    return f"unexpected argument {name!r}; expected one of {', '.join(known)}"


def _changes_nothing(name: str, value: object) -> bool:
    """Return whether an option is as good as absent, so that the credential uses the process's cache."""
    if name == "logging_enable":
        return value is None or value is False
    if name in ("per_call_policies", "per_retry_policies", "proxies", "tracing_options"):
        return value is None or value in ([], (), {})
    return value is None


def _check_seconds(name: str, value: Any) -> None:
    _seconds(name, value, above_zero=True)


def _check_retry_total(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number from 0, got {value!r}")


def _check_user_agent(name: str, value: object) -> None:
    if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
        raise ValueError(f"{name} must be printable ASCII, which HTTP headers are made of, got {value!r}")


def _check_logging(name: str, value: object) -> None:
    if value is not True:
        raise TypeError(f"{name} must be True or False, not {value!r}")


def _check_tracing(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")


def _check_hook(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")
    _refuse_async(name, value, "__call__")


def _check_policies(name: str, value: object) -> None:
    methods = ("send", "on_request", "on_response")
    for policy in _policies(value):
        if not any(callable(getattr(policy, method, None)) for method in methods):
            raise TypeError(f"{name} takes azure-core's HTTPPolicy and SansIOHTTPPolicy, not {policy!r:.100}")
        _refuse_async(name, policy, *methods)


def _check_transport(name: str, value: object) -> None:
    _refuse_async(name, value, "send")
    if not callable(getattr(value, "send", None)):
        raise TypeError(f"{name} must be an azure.core.pipeline.transport.HttpTransport with a method send")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "connection_timeout": _check_seconds,
    "read_timeout": _check_seconds,
    "retry_total": _check_retry_total,
    "user_agent": _check_user_agent,
    "logging_enable": _check_logging,
    "tracing_options": _check_tracing,
    "raw_request_hook": _check_hook,
    "raw_response_hook": _check_hook,
    "per_call_policies": _check_policies,
    "per_retry_policies": _check_policies,
    "transport": _check_transport,
}


def _policies(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _refuse_async(name: str, value: object, *methods: str) -> None:
    if inspect.iscoroutinefunction(value) or any(
        inspect.iscoroutinefunction(getattr(value, method, None)) for method in methods
    ):
        raise TypeError(
            f"{name} must be synchronous, got {type(value).__name__}: the request runs on a thread of its own, once "
            "per token life, for the aio credential too"
        )
