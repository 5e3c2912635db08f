"""The azure-core pipeline that carries one request. Proxies, `.netrc`, redirects and caches have no say in it."""

from __future__ import annotations

import errno
import io
import logging
import platform
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from http.client import HTTPResponse as ClientResponse
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import requests
from azure.core.exceptions import (
    AzureError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
    StreamClosedError,
    StreamConsumedError,
)
from azure.core.pipeline import Pipeline
from azure.core.pipeline.policies import (
    CustomHookPolicy,
    DistributedTracingPolicy,
    HttpLoggingPolicy,
    HTTPPolicy,
    UserAgentPolicy,
)
from azure.core.pipeline.transport import HttpTransport, RequestsTransport
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse
from urllib3.util.retry import Retry as UrllibRetry

from .._errors import SHORTAGES, in_words, place_of, reporting
from .._version import __version__
from .log_redaction import install_redaction
from .response import BODY_LIMIT, BROKEN_BODY, LARGE_BODY, NoResponse, Response, excerpt

# Imported by the transport in the middle of its first request. A fork at that moment would leave them half-imported in
# the child for good, so they are imported here, under `_fork.import_lock`. Names that a release may drop.
for _name in ("azure.core.rest._requests_basic", "encodings.idna"):
    with suppress(ImportError):
        import_module(_name)

# azure-core's own default would start a child process (`uname -p`, through platform.platform()).
_USER_AGENT = f"azure-imds-credential/{__version__} Python/{platform.python_version()} ({sys.platform})"

install_redaction()

# What a transport may raise that means "no usable response". Anything else is a bug, or comes from a user's hook.
TRANSPORT_ERRORS = (AzureError, OSError, HTTPError, HTTPException)
# By which a policy that sends nothing says that the network failed.
NETWORK_ERRORS = (
    ServiceRequestError,
    ServiceResponseError,
    ConnectionError,
    HTTPError,
    HTTPException,
    requests.RequestException,
)

_UNREACHABLE = frozenset(
    getattr(errno, name)
    for name in ("ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EHOSTDOWN")
    if hasattr(errno, name)
)

_OWN_NUMBERS = (socket.gaierror, ssl.SSLError)  # whose `errno` is none of the operating system's
# A name that cannot be looked up yet, as while a machine or its name server starts.
_UNKNOWN_HOST = frozenset({socket.EAI_AGAIN, socket.EAI_NONAME})

_CHUNK = 4096  # bytes, as azure-core reads

_UNKNOWN_ARGUMENT = r"unexpected keyword argument '(\w+)'"  # what Python says of a call that cannot be made

SecondsLeft = Callable[[], float]
Read = Callable[[Any], Response | NoResponse]

_logger = logging.getLogger("azure_imds_credential")


class TransportFaultError(AzureError):
    """A user's transport raised what is no transport error."""


class BlockedError(ServiceRequestError):
    """Our own transport raised what is no transport error.

    Tools that block or replace the network of tests do that, and audit hooks.
    """


class ImdsPipeline:
    """A pipeline for one request, around the policy that repeats attempts.

    Args:
        retry_policy: The policy that repeats attempts.
        endpoint: The base URL that is asked.
        options: The credential's pipeline options.
        seconds_left: Returns the seconds until the request's deadline.
        read: Reads a response of the transport.
        note_sent: Is called before each attempt of the transport to send.
    """

    def __init__(
        self,
        retry_policy: HTTPPolicy[Any, Any],
        endpoint: str,
        options: Mapping[str, Any],
        seconds_left: SecondsLeft,
        read: Read,
        note_sent: Callable[[], None],
    ) -> None:
        self._session: requests.Session | None = None  # our own; a user's transport is neither opened nor closed
        self.per_request: dict[str, Any] = {}  # policies take some out, so each attempt is given them
        if "tracing_options" in options:
            self.per_request["tracing_options"] = options["tracing_options"]
        transport = options.get("transport")
        if transport is None:
            self._session = _session(seconds_left)
            transport = RequestsTransport(session=self._session, session_owner=False, use_env_settings=False)
        elif isinstance(transport, RequestsTransport):
            self.per_request |= _without_environment(endpoint)
        if isinstance(transport, RequestsTransport) and type(transport).send is RequestsTransport.send:
            self.per_request["stream"] = True  # a `send` of the user's may read the response itself
        self.transport = ReadingTransport(transport, read, note_sent, is_own=self._session is not None)
        self._pipeline: Pipeline[Any, Any] = Pipeline(self.transport, _policies(retry_policy, options))

    def run(self, request: Any) -> Any:
        """Send the request, as often as the policy says, and return the response as azure-core's pipelines do."""
        if self._session is None:
            request.headers["Cache-Control"] = "no-store"  # a cache below the user's transport must not keep tokens
        return self._pipeline.run(request, **self.per_request)

    def close_connection(self) -> None:
        """Close our connection: one that brought a bad response must not carry the next request."""
        if self._session is not None:
            self._session.close()


def _policies(retry_policy: HTTPPolicy[Any, Any], options: Mapping[str, Any]) -> list[Any]:
    tracing_options = options.get("tracing_options") or {}
    return [
        UserAgentPolicy(_USER_AGENT, user_agent=options.get("user_agent")),
        *options.get("per_call_policies", ()),
        retry_policy,
        *options.get("per_retry_policies", ()),
        CustomHookPolicy(**{k: options[k] for k in ("raw_request_hook", "raw_response_hook") if k in options}),
        # Of azure-core's two logging policies the one that never logs a body, which is where the token is.
        *([HttpLoggingPolicy()] if options.get("logging_enable") else []),
        DistributedTracingPolicy(tracing_attributes=dict(tracing_options.get("attributes") or {})),
    ]


class _DeadlineReader(io.RawIOBase):
    """Reads a response from its socket until the request's deadline.

    A read timeout begins anew with each byte, so a server that drips would be read for ever.
    """

    def __init__(self, sock: Any, raw: Any, seconds_left: SecondsLeft) -> None:
        self._sock, self._raw, self._seconds_left = sock, raw, seconds_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._seconds_left()
        if left <= 0:
            raise TimeoutError("the deadline of the request")
        timeout = self._sock.gettimeout() if hasattr(self._sock, "gettimeout") else None  # pyOpenSSL's has none
        self._sock.settimeout(left if timeout is None else min(left, timeout))
        try:
            count: int | None = self._raw.readinto(buffer)
        finally:
            with suppress(OSError):
                self._sock.settimeout(timeout)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _DeadlineResponse(ClientResponse):
    """A response of http.client whose reads end at the request's deadline, above the socket and above TLS."""

    def __init__(self, seconds_left: SecondsLeft, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if isinstance(self.fp, io.BufferedReader):  # the socket of a test's stand-in may give something else
            self.fp = io.BufferedReader(_DeadlineReader(sock, self.fp.detach(), seconds_left))


class _DeadlinePool(HTTPConnectionPool):
    """A pool whose connections give such responses.

    Its `ConnectionCls` is left alone, because recorders such as vcrpy replace it.
    """

    seconds_left: SecondsLeft

    def _new_conn(self) -> Any:
        connection: Any = super()._new_conn()
        connection.response_class = partial(_DeadlineResponse, self.seconds_left)  # an attribute of http.client's
        return connection


class _DeadlineTlsPool(_DeadlinePool, HTTPSConnectionPool):
    """The same over TLS."""


def _pool(cls: type[_DeadlinePool], seconds_left: SecondsLeft, *args: Any, **kwargs: Any) -> _DeadlinePool:
    pool = cls(*args, **kwargs)
    pool.seconds_left = seconds_left
    return pool


def _session(seconds_left: SecondsLeft) -> requests.Session:
    """Return a session without redirects, proxies, `.netrc` and retries, whose reads end at the deadline."""
    adapter = HTTPAdapter(max_retries=UrllibRetry(total=False, redirect=False, raise_on_status=False))
    adapter.poolmanager.pool_classes_by_scheme = {
        "http": partial(_pool, _DeadlinePool, seconds_left),
        "https": partial(_pool, _DeadlineTlsPool, seconds_left),
    }
    session = _Session()
    session.trust_env = False
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _genuine_session_class() -> type[requests.Session]:
    """Return requests' own class, also where another library has put a subclass or a function in its place."""
    named = (requests.Session, *requests.sessions.SessionRedirectMixin.__subclasses__())
    for cls in (cls for each in named if isinstance(each, type) for cls in each.__mro__):
        if (cls.__module__, cls.__name__) == ("requests.sessions", "Session"):
            return cls
    return requests.Session


class _Session(_genuine_session_class()):  # type: ignore[misc] # a class that is found at run time
    """A session for which no response is a redirect.

    requests prepares the redirected request even when it is told not to follow: it reads the whole body first, which
    may be endless, and fails on targets that are no URL.
    """

    def get_redirect_target(self, resp: Any) -> None:  # noqa: ARG002 # as requests names it
        return None


def _without_environment(endpoint: str) -> dict[str, Any]:
    """Return what keeps proxies, `.netrc` and redirects out of a user's `RequestsTransport`."""
    # A session that trusts the environment merges its proxies under these keys, most specific first, and reads .netrc
    # unless it is given a way to authenticate.
    parts = urlsplit(endpoint)
    keys = ("http", "https", "all", f"{parts.scheme}://{parts.hostname}", f"all://{parts.hostname}")
    return {"proxies": dict.fromkeys(keys), "auth": _hide_redirects}


def _hide_redirects(request: Any) -> Any:
    """Authenticate nothing, but hide where a redirect points; see `_Session`."""

    def hide(response: Any, **_: Any) -> None:
        response.headers.pop("Location", None)

    request.register_hook("response", hide)
    return request


class ReadingTransport(HttpTransport[Any, Any]):
    """Sends through a transport, and has the response read before hooks and policies get it.

    So they can read it again, as with azure-core's own clients, and their errors are not mistaken for the network's.

    Args:
        transport: The transport, ours or the user's. It is neither opened nor closed, and its bugs are told as such.
        read: Reads a response.
        note_sent: Is called before each attempt of the transport to send.
        is_own: The transport is ours, so that what it raises is no bug of the user's.
    """

    def __init__(self, transport: Any, read: Read, note_sent: Callable[[], None], *, is_own: bool) -> None:
        self._transport, self._read, self._note_sent, self._is_own = transport, read, note_sent, is_own
        self.forget()

    def forget(self) -> None:
        """Know nothing of the attempt before."""
        self.response: Any = None  # as the transport returned it
        self._came_back: Response | NoResponse | None = None

    @property
    def came_back(self) -> Response | NoResponse | None:
        """What the attempt brought; None when nothing was sent."""
        if self._came_back is None and self.response is not None:
            self._came_back = self._read(self.response)
        return self._came_back

    def send(self, request: Any, **kwargs: Any) -> Any:
        self.forget()
        self._note_sent()
        try:
            self.response = self._send(request, **kwargs)
        except TRANSPORT_ERRORS as error:
            self._came_back = no_response(error)
            raise
        if _requests_response(self.response) is not None:  # others cannot be read twice
            self._came_back = self._read(self.response)
        return self.response

    def _send(self, request: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return self._transport.send(request, **kwargs)
            except TRANSPORT_ERRORS:
                raise
            except Exception as error:
                # azure-core-experimental's transport hands what it does not know, such as `read_timeout`, to httpx.
                unknown = re.search(_UNKNOWN_ARGUMENT, str(error)) if isinstance(error, TypeError) else None
                if unknown is None or kwargs.pop(unknown[1], None) is None:
                    raise self._fault(error) from error

    def _fault(self, error: Exception) -> AzureError:
        """Return how what is no transport error is told. Names of classes may be longer than an excerpt has them."""
        name = type(error).__name__
        if sys.is_finalizing():
            raise error  # nothing can be imported any more, of which `CredentialOptions.fetch` tells
        # What no header can hold is in the request, by a hook or the variable AZURE_HTTP_USER_AGENT.
        if not self._is_own or isinstance(error, UnicodeEncodeError):
            return TransportFaultError(
                f"the transport {type(self._transport).__name__} raised {name}: {excerpt(error)}"
            )
        with reporting():  # it may be a bug of ours. Its text is not logged: http.client quotes the server in it
            _logger.debug("%s raised in %s", name, place_of(error))
        return BlockedError(f"connecting failed ({name})")

    def open(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def read_body(response: Any, seconds_left: SecondsLeft) -> tuple[bytes | None, str]:
    """Read the body as it came over the wire, without decoding any Content-Encoding.

    Transports give azure-core's newer responses, its older ones, or stand-ins of tests that have `text()` alone. Some
    stand-ins have every attribute, so what counts is what comes back.

    Returns:
        The body and "", or None and why there is none.
    """
    was_empty = False
    for read in _ways_to_read(response):
        body = bytearray()
        try:
            for chunk in read():
                body += chunk
                if len(body) > BODY_LIMIT:
                    return None, LARGE_BODY
                if seconds_left() <= 0:
                    return None, "incomplete when the time was up"
            _put_back(response, bytes(body))
        except (StreamConsumedError, StreamClosedError):  # a hook or a policy has read it: iter_bytes has it still
            continue
        except TRANSPORT_ERRORS:
            if body or not was_empty:
                return None, BROKEN_BODY
            continue
        except Exception:  # noqa: S112 # no such method, or a stand-in that answers anything with anything
            continue
        if body:
            return bytes(body), ""
        was_empty = True
    return (b"", "") if was_empty else (None, BROKEN_BODY)


def _ways_to_read(response: Any) -> Iterator[Callable[[], Iterator[bytes]]]:
    """Yield ways to get the chunks of a body, the best first. A way that does not fit raises."""
    inner = _requests_response(response)
    if inner is not None:
        # As `iter_raw` does, without its warning about a body that breaks off.
        yield lambda: _only_bytes(inner.raw.stream(_CHUNK, decode_content=False))
    for name in ("iter_raw", "iter_bytes"):
        if hasattr(response, name):
            yield lambda name=name: _only_bytes(getattr(response, name)())  # type: ignore[misc] # binds the loop's value
    for name in ("read", "body"):  # httpx of azure-core-experimental is read by `read` alone, when it streams
        if hasattr(response, name):
            yield lambda name=name: _only_bytes([getattr(response, name)()])  # type: ignore[misc] # as above
    yield lambda: _only_bytes([response.text().encode()])


def _requests_response(response: Any) -> requests.Response | None:
    inner = getattr(response, "internal_response", None)
    return inner if isinstance(inner, requests.Response) else None


def _put_back(response: Any, body: bytes) -> None:
    """Have hooks and policies find a response of requests read, as they do in azure-core's own clients."""
    inner = _requests_response(response)
    if inner is not None:
        inner.raw = HTTPResponse(io.BytesIO(body), preload_content=False)  # without headers: nothing is decoded
        with suppress(Exception):  # a Content-Length that is no number, where azure-core reads it
            inner.content  # noqa: B018 # has requests keep it
            response.read()


def _only_bytes(chunks: Any) -> Iterator[bytes]:
    for chunk in chunks:
        if not isinstance(chunk, (bytes, bytearray)):
            raise TypeError("not bytes")
        yield bytes(chunk)


def no_response(error: BaseException) -> NoResponse:
    """Name what a transport raised by type and errno. Its text is not kept: http.client quotes the server in it."""
    root, reason = _root(error)
    number = root.errno if isinstance(root, OSError) and not isinstance(root, _OWN_NUMBERS) else None
    if number in SHORTAGES or isinstance(root, MemoryError):
        return NoResponse(f"this machine lacks what a connection needs ({reason})", is_shortage=True)
    if isinstance(error, TransportFaultError):
        return NoResponse(str(error), is_fault=True)
    if isinstance(error, BlockedError):
        return NoResponse(str(error), is_blocked=True)
    if isinstance(error, ServiceRequestTimeoutError):
        return NoResponse(f"connecting timed out ({reason})", is_absent=True)
    if isinstance(error, ServiceResponseTimeoutError):
        return NoResponse(f"connected, then no response ({reason})", is_absent=True, has_listener=True)
    if isinstance(error, ServiceRequestError):
        is_unknown = isinstance(root, socket.gaierror) and root.errno in _UNKNOWN_HOST
        is_refused = number in _UNREACHABLE or is_unknown
        return NoResponse(f"connecting failed ({reason})", is_absent=True, is_refused=is_refused)
    return NoResponse(f"the connection broke before a response ({reason})", has_listener=True)


def _root(error: BaseException) -> tuple[BaseException, str]:
    """Find the operating system's error under the wrappings of azure-core, requests and urllib3; say it in words."""
    visited: list[BaseException] = []
    todo = [error]
    while todo and len(visited) < 20:
        one = todo.pop(0)
        if one in visited:
            continue
        visited.append(one)
        if isinstance(one, _OWN_NUMBERS):  # their words come from this machine
            return one, f"{type(one).__name__}: {one.strerror}"
        if isinstance(one, OSError) and isinstance(one.errno, int):
            return one, in_words(one, one.errno)
        if isinstance(one, MemoryError):
            return one, in_words(one, errno.ENOMEM)
        inner = (
            getattr(one, "inner_exception", None),
            getattr(one, "reason", None),
            one.__cause__,
            one.__context__,
            *one.args,
        )
        todo += [each for each in inner if isinstance(each, BaseException)]
    return visited[-1], type(visited[-1]).__name__
