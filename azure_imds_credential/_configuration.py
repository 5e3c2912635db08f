"""What a credential was told, checked once; and how it asks. Shared by both colours."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ._freshness import Slot
from ._identity import identity_from
from ._source import ManagedIdentitySource, source_and_evidence
from ._token_cache import process_cache
from .exceptions import ImdsUnavailableError, let_chains_go_on

if TYPE_CHECKING:
    from azure.core.credentials import TokenRequestOptions

DEFAULT_ENDPOINT = "http://169.254.169.254"
ENDPOINT_VARIABLE = "AZURE_POD_IDENTITY_AUTHORITY_HOST"
LONGEST = 30 * 86400.0  # seconds: more is a mistake, and more than locks can wait on some platforms
TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105 # a path, not a password

PIPELINE_OPTIONS = frozenset(
    {
        "connection_timeout", "logging_enable", "per_call_policies", "per_retry_policies", "raw_request_hook",
        "raw_response_hook", "read_timeout", "retry_total", "tracing_options", "transport", "user_agent",
    }
)  # fmt: skip
# How other libraries call what has another name here.
NAMES_ELSEWHERE = {
    "identity_config": "name the identity by client_id, object_id or resource_id",
    "msi_res_id": "its name is resource_id",
    "mi_res_id": "its name is resource_id",
    "principal_id": "its name is object_id",
    "tenant_id": "a managed identity belongs to one tenant; leave it out",
}
# Those by which a credential may hear something else than others do.
OWN_WAYS = frozenset(
    {"per_call_policies", "per_retry_policies", "raw_request_hook", "raw_response_hook", "transport"}
)  # fmt: skip


class Configuration:
    """A credential's arguments, validated, and the cache they lead to."""

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
        options: dict[str, Any],
    ) -> None:
        self.identity = identity_from(client_id=client_id, object_id=object_id, resource_id=resource_id)
        self.endpoint = None if endpoint is None else _base_url("endpoint", endpoint)
        if endpoint is None:
            _base_url(ENDPOINT_VARIABLE, endpoint_of_environment())  # said now, though it is read when it is needed
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
        self.options = _checked_options(options)
        if shared_cache:
            _check_for_filelock()
            if own := sorted(self.options.keys() & OWN_WAYS):
                raise ValueError(
                    f"shared_cache=True and {own[0]} exclude each other: tokens that come through a transport, a "
                    "policy or a hook of one's own are not shared"
                )
        # A credential that talks in its own way must not share what others heard.
        self.cache = process_cache.apart() if self.options else process_cache

    def __str__(self) -> str:
        return f"{self.identity}, endpoint={self.endpoint or endpoint_of_environment()!r}"

    def slot(self, scopes: tuple[str, ...]) -> Slot:
        """Find where the token for these scopes is held, once the environment is known to leave IMDS the choice."""
        resource = resource_from(scopes)
        source, evidence = source_and_evidence()
        if source is not ManagedIdentitySource.IMDS:
            error = ImdsUnavailableError(
                f"No token for {resource}: {', '.join(evidence)} says that managed identity tokens come from "
                f"{source.value} here, not from IMDS. Nothing was sent.",
                identity=str(self.identity),
                resource=resource,
                hint="Use azure.identity.ManagedIdentityCredential there, or unset the variables.",
            )
            let_chains_go_on(error)
            raise error
        # The variable is read as late as other libraries read it: a credential may be made before a test sets it.
        url = self.endpoint or _base_url(ENDPOINT_VARIABLE, endpoint_of_environment())
        return self.cache.slot(url, self.identity, resource)


def resource_from(scopes: tuple[str, ...]) -> str:
    """Turn the one scope into the resource that IMDS is asked for: what stands before `/.default`, slash included.

    Raises:
        TypeError: The scope is not a string.
        ValueError: There is not exactly one scope, or it names no resource.
    """
    if len(scopes) != 1:
        raise ValueError(
            f"get_token takes exactly one scope, such as https://vault.azure.net/.default; got {len(scopes)}"
        )
    scope = scopes[0]
    if not isinstance(scope, str):
        raise TypeError(f"a scope must be a string, not {type(scope).__name__}")
    resource = scope.removesuffix("/.default")
    if not resource or not resource.isprintable() or " " in resource:
        raise ValueError(f"scope {scope!r} names no resource; expected for example https://vault.azure.net/.default")
    return resource


def claims_in(options: TokenRequestOptions) -> bool:
    """Say whether the options of `get_token_info` hold a claims challenge.

    Raises:
        TypeError: They are no dict.
    """
    if not isinstance(options, dict):
        raise TypeError(
            f"options must be a dict such as azure.core.credentials.TokenRequestOptions, not {type(options).__name__}"
        )
    return bool(options.get("claims"))


def picklable(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of a credential's attributes is pickled: its arguments, never a token.

    Raises:
        TypeError: It has a transport: that holds connections, which belong to its process.
    """
    if state["_options"].get("transport") is not None:
        raise TypeError("a credential with a transport of its own cannot be pickled; make it where it is used")
    return {name: value for name, value in state.items() if name not in ("_configuration", "_now", "_slots")}


def endpoint_of_environment() -> str:
    """Say where IMDS is for whoever gave no endpoint. Not validated."""
    return os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT


def _base_url(name: str, url: str) -> str:
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a string or None, not {type(url).__name__}")
    shown = url if "@" not in url else "one with a user"  # whose password is not for messages
    expected = f"{name} must be a base URL such as {DEFAULT_ENDPOINT}, got {shown!r}"
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ValueError(expected) from error
    plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or not plain:
        raise ValueError(expected)
    if parts.path.rstrip("/").endswith(TOKEN_PATH):
        raise ValueError(f"{expected}: leave {TOKEN_PATH} out, it is appended")
    return url.rstrip("/")


def _seconds(name: str, value: float, *, above_zero: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= LONGEST or (above_zero and value == 0):
        raise ValueError(
            f"{name} must be a number of seconds {'above' if above_zero else 'from'} 0 up to {LONGEST:.0f}, which are "
            f"30 days; got {str(value)[:20]}"
        )
    return float(value)


def _check_for_filelock() -> None:
    # Said at once, and not in production. By name: to import the shared cache would wait for whoever imports msal.
    if sys.platform.startswith("linux") and find_spec("filelock") is None:
        raise ImportError("shared_cache=True needs filelock: pip install 'azure-imds-credential[shared]'")


def _checked_options(given: dict[str, Any]) -> dict[str, Any]:
    for name in given.keys() & NAMES_ELSEWHERE.keys():
        raise TypeError(f"unexpected argument {name!r}: {NAMES_ELSEWHERE[name]}")
    options = {name: value for name, value in given.items() if not _changes_nothing(name, value)}
    if "proxies" in options:
        raise ValueError("proxies: IMDS is link-local and must not be asked through a proxy; leave the option out")
    unknown = sorted(options.keys() - PIPELINE_OPTIONS)
    if unknown:
        raise TypeError(
            f"unexpected argument {unknown[0]!r}; pipeline options are {', '.join(sorted(PIPELINE_OPTIONS))}"
        )
    for name in ("connection_timeout", "read_timeout"):
        if name in options:
            options[name] = _seconds(name, options[name], above_zero=True)
    retry_total = options.get("retry_total", 0)
    if isinstance(retry_total, bool) or not isinstance(retry_total, int) or retry_total < 0:
        raise ValueError(f"retry_total must be a whole number from 0, got {retry_total!r}")
    agent = options.get("user_agent", "")
    if not isinstance(agent, str) or not (agent.isascii() and agent.isprintable()):
        raise ValueError(f"user_agent must be printable ASCII, which HTTP headers are made of, got {agent!r}")
    if options.get("logging_enable", True) is not True:
        raise TypeError(f"logging_enable must be True or False, not {options['logging_enable']!r}")
    if not isinstance(options.get("tracing_options", {}), Mapping):
        raise TypeError(f"tracing_options must be a dict, not {type(options['tracing_options']).__name__}")
    for name in ("raw_request_hook", "raw_response_hook"):
        if name in options:
            if not callable(options[name]):
                raise TypeError(f"{name} must be callable, not {type(options[name]).__name__}")
            _refuse_async(name, options[name], "__call__")
    for name in ("per_call_policies", "per_retry_policies"):
        if name in options:
            policies = options[name]
            options[name] = tuple(policies) if isinstance(policies, (list, tuple)) else (policies,)
            for policy in options[name]:
                if not any(callable(getattr(policy, method, None)) for method in ("send", "on_request", "on_response")):
                    raise TypeError(f"{name} takes azure-core's HTTPPolicy and SansIOHTTPPolicy, not {policy!r:.100}")
                _refuse_async(name, policy, "send", "on_request", "on_response")
    if "transport" in options:
        _refuse_async("transport", options["transport"], "send")
        if not callable(getattr(options["transport"], "send", None)):
            raise TypeError("transport must be an azure.core.pipeline.transport.HttpTransport with a method send")
    return options


def _changes_nothing(name: str, value: object) -> bool:
    """Such an option is as good as absent, so that the credential shares the process's cache."""
    if name == "logging_enable":
        return value is None or value is False
    if name in ("per_call_policies", "per_retry_policies", "proxies", "tracing_options"):
        return value is None or value in ([], (), {})
    return value is None


def _refuse_async(name: str, value: object, *methods: str) -> None:
    if inspect.iscoroutinefunction(value) or any(
        inspect.iscoroutinefunction(getattr(value, method, None)) for method in methods
    ):
        raise TypeError(
            f"{name} must be synchronous, got {type(value).__name__}: the exchange runs on a thread of its own, once "
            "per token life, for the aio credential too"
        )
