"""The azure-core pipeline that carries one exchange. Nothing between us and the link-local address has a say in it."""

from __future__ import annotations

import errno
import os
import platform
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import (
    AzureError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline import Pipeline
from azure.core.pipeline.policies import (
    CustomHookPolicy,
    DistributedTracingPolicy,
    HttpLoggingPolicy,
    HTTPPolicy,
    UserAgentPolicy,
)
from azure.core.pipeline.transport import RequestsTransport
from requests import Session
from urllib3.exceptions import HTTPError

from . import __version__, _quiet
from ._answer import Silence

# Imported by the transport in the middle of its first request. A fork at that moment would leave them half-imported in
# the child for good, so they are imported here, where `_fork.imports` is held. Names that a release may drop.
for _name in ("azure.core.rest._requests_basic", "encodings.idna"):
    with suppress(ImportError):
        import_module(_name)

# azure-core's own default would start a child process (`uname -p`, through platform.platform()).
_USER_AGENT = f"azure-imds-credential/{__version__} Python/{platform.python_version()} ({sys.platform})"

_quiet.watch()

# What a transport may raise that means "no usable answer". Anything else is a bug, or a user's hook speaking.
TRANSPORT_ERRORS = (AzureError, OSError, HTTPError, HTTPException)


def build_pipeline(
    attempts: HTTPPolicy[Any, Any], endpoint: str, options: Mapping[str, Any]
) -> tuple[Pipeline[Any, Any], Session | None, dict[str, Any]]:
    """Build a pipeline around the policy that repeats attempts.

    Returns:
        The pipeline; its session, whose connection is to be closed after each attempt (None with a user's transport,
        which is neither opened nor closed); and what every request is sent with, so that proxies, `.netrc` and
        redirects do not apply.
    """
    policies = [
        UserAgentPolicy(_USER_AGENT, user_agent=options.get("user_agent")),
        *options.get("per_call_policies", ()),
        attempts,
        *options.get("per_retry_policies", ()),
        CustomHookPolicy(**{k: options[k] for k in ("raw_request_hook", "raw_response_hook") if k in options}),
        # Of azure-core's two logging policies the one that never logs a body, which is where the token is.
        *([HttpLoggingPolicy()] if options.get("logging_enable") else []),
        DistributedTracingPolicy(tracing_attributes=(options.get("tracing_options") or {}).get("attributes")),
    ]
    per_request: dict[str, Any] = {"stream": True}
    if "tracing_options" in options:
        per_request["tracing_options"] = options["tracing_options"]
    transport = options.get("transport")
    if transport is None:
        own = RequestsTransport(use_env_settings=False)
        own.open()
        session: Session = own.session
        # A function that answers None to everything: no answer is a redirect; see `_without_redirects`.
        session.get_redirect_target = {}.get  # type: ignore[assignment,method-assign] # not of a Response only
        return Pipeline(own, policies), session, per_request
    if isinstance(transport, RequestsTransport):
        # A session that trusts the environment merges its proxies under these keys, most specific first, and reads
        # .netrc unless it is given a way to authenticate.
        parts = urlsplit(endpoint)
        keys = ("http", "https", "all", f"{parts.scheme}://{parts.hostname}", f"all://{parts.hostname}")
        per_request |= {"proxies": dict.fromkeys(keys), "auth": _without_redirects}
    return Pipeline(transport, policies), None, per_request


def _without_redirects(request: Any) -> Any:
    """Authenticate nothing, but hide where a redirect points.

    requests prepares the redirected request even when it is told not to follow: it reads the whole body first, which
    may be endless, and trips over targets that are no URL.
    """

    def hide(response: Any, **_: Any) -> None:
        response.headers.pop("Location", None)

    request.register_hook("response", hide)
    return request


def silence(error: BaseException) -> Silence:
    """Name what a transport raised by type and errno. Its text is not kept: http.client quotes the server in it."""
    reason = _root(error)
    if isinstance(error, ServiceRequestTimeoutError):
        return Silence(f"connecting timed out ({reason})", absent=True)
    if isinstance(error, ServiceResponseTimeoutError):
        return Silence(f"connected, then silence ({reason})", absent=True)
    if isinstance(error, ServiceRequestError):
        return Silence(f"connecting failed ({reason})", absent=True)
    return Silence(f"the connection broke before an answer ({reason})", absent=False)


def _root(error: BaseException) -> str:
    """Find the operating system's reason under the wrappings of azure-core, requests and urllib3."""
    seen: list[BaseException] = []
    todo = [error]
    while todo and len(seen) < 20:
        one = todo.pop(0)
        if one in seen:
            continue
        seen.append(one)
        if isinstance(one, (socket.gaierror, ssl.SSLError)):  # numbers of their own, and words of this machine
            return f"{type(one).__name__}: {one.strerror}"
        if isinstance(one, OSError) and isinstance(one.errno, int):
            return f"{type(one).__name__}, {errno.errorcode.get(one.errno, one.errno)}: {os.strerror(one.errno)}"
        inner = (
            getattr(one, "inner_exception", None),
            getattr(one, "reason", None),
            one.__cause__,
            one.__context__,
            *one.args,
        )
        todo += [each for each in inner if isinstance(each, BaseException)]
    return type(seen[-1]).__name__
