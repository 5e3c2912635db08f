"""The azure-core pipeline that carries one exchange. Nothing between us and the link-local address has a say in it."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from azure.core.rest import HttpRequest
from urllib3.exceptions import HTTPError

from ._answer import BODY_LIMIT, Reply, Silence
from ._version import __version__

# Imported by the transport in the middle of its first request. A fork at that moment would leave them half-imported in
# the child for good, so they are imported here, where `_fork.imports` is held. Names that a release may drop.
for _name in ("azure.core.rest._requests_basic", "encodings.idna", "encodings.utf_8_sig"):
    with suppress(ImportError):
        import_module(_name)

# azure-core's own default would start a child process (`uname -p`, through platform.platform()).
_USER_AGENT = f"azsdk-python-imds-credential/{__version__} Python/{platform.python_version()} ({sys.platform})"

# What a transport may raise that means "no usable answer". Anything else is a bug, or a user's hook speaking.
TRANSPORT_ERRORS = (AzureError, OSError, HTTPError, HTTPException)


@contextmanager
def open_pipeline(attempts: HTTPPolicy[Any, Any], options: Mapping[str, Any]) -> Iterator[Pipeline[Any, Any]]:
    """Build a pipeline around the policy that repeats attempts, with a connection that lives as long as the block.

    A user's transport is neither opened nor closed.
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
    transport = options.get("transport")
    if transport is not None:
        yield Pipeline(transport, policies)
        return
    with RequestsTransport(use_env_settings=False) as own:
        yield Pipeline(own, policies)


def request_options(endpoint: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Say what every request of the exchange is sent with, so that proxies and `.netrc` do not apply."""
    sent: dict[str, Any] = {"stream": True}
    if "tracing_options" in options:
        sent["tracing_options"] = options["tracing_options"]
    if isinstance(options.get("transport"), RequestsTransport):
        # A session that trusts the environment merges its proxies under these keys, most specific first, and reads
        # .netrc unless it is given a way to authenticate.
        parts = urlsplit(endpoint)
        keys = ("http", "https", "all", f"{parts.scheme}://{parts.hostname}", f"all://{parts.hostname}")
        sent["proxies"] = dict.fromkeys(keys)
        sent["auth"] = _as_it_is
    return sent


def _as_it_is(request: Any) -> Any:
    return request


def token_request(endpoint: str, params: Mapping[str, str], headers: Mapping[str, str]) -> HttpRequest:
    """Build the request; an answer is asked for uncompressed so that its size is what it says."""
    return HttpRequest(
        "GET",
        f"{endpoint}/metadata/identity/oauth2/token",
        params=params,
        headers={**headers, "Accept-Encoding": "identity"},
    )


def read_reply(response: Any, out_of_time: Callable[[], bool]) -> Reply:
    """Read an answer up to the limit and to the deadline. The body is kept only when it is whole."""
    headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
    body, fault = bytearray(), ""
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > BODY_LIMIT:
                fault = f"more than {BODY_LIMIT} bytes"
            elif out_of_time():
                fault = "the answer was still dripping when the time was up"
            if fault:
                break
    except (*TRANSPORT_ERRORS, ValueError):  # azure-core trips over a Content-Length that is no number
        fault = "the answer broke off"
    return Reply(response.status_code, headers, None if fault else bytes(body), fault)


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
        if isinstance(one, OSError) and one.errno:
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
