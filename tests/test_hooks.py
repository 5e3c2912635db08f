"""What hooks and policies may do with a response, and which of their errors are taken for the network's."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
import requests
from azure.core.exceptions import HttpResponseError, ServiceRequestError, StreamConsumedError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import RequestsTransport
from flavors import VAULT, Flavor

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsUnavailableError,
)
from azure_imds_credential._imds import retry_policy
from azure_imds_credential._imds.connect import address_count
from azure_imds_credential._imds.pipeline import no_response
from azure_imds_credential._imds.response import BODY_LIMIT
from azure_imds_credential.testing import ImdsEmulator, faults
from azure_imds_credential.testing.faults import Reply, Steps

NO_IDENTITY = {"error": "invalid_request", "error_description": "Identity not found"}

# What a hook finds in a response, each in a way that azure-core or requests has for it.
WAYS_TO_READ: dict[str, Callable[[Any], Any]] = {
    "text()": lambda response: json.loads(response.text()),
    "json()": lambda response: response.json(),
    "content": lambda response: json.loads(response.content),
    "read()": lambda response: json.loads(response.read()),
    "body()": lambda response: json.loads(response.body()),
    "iter_bytes()": lambda response: json.loads(b"".join(response.iter_bytes())),
    "json() of requests": lambda response: response.internal_response.json(),
    "text of requests": lambda response: json.loads(response.internal_response.text),
}
READERS = pytest.mark.parametrize("read", WAYS_TO_READ.values(), ids=WAYS_TO_READ.keys())


class OnResponse(SansIOHTTPPolicy[Any, Any]):
    """A policy that calls a function with each response."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def on_response(self, request: Any, response: Any) -> None:
        self.function(response.http_response)


class Reading(RequestsTransport):
    """A transport of the user's that reads the response itself."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def send(self, request: Any, **kwargs: Any) -> Any:
        response = super().send(request, **kwargs)
        self.function(response)
        return response


def session_with_hook(function: Callable[[Any], Any]) -> RequestsTransport:
    session = requests.Session()
    session.hooks["response"].append(lambda response, **_: function(response))
    return RequestsTransport(session=session)


def places(function: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """Return the options that call a function with each response, by their place."""
    return {
        "hook": {"raw_response_hook": lambda response: function(response.http_response)},
        "per_retry_policies": {"per_retry_policies": [OnResponse(function)]},
        "per_call_policies": {"per_call_policies": [OnResponse(function)]},
        "transport": {"transport": Reading(function)},
        "hook over a transport": {
            "raw_response_hook": lambda response: function(response.http_response),
            "transport": RequestsTransport(),
        },
    }


def _policies(place: str, policy: HTTPPolicy[Any, Any]) -> dict[str, Any]:
    return {place: [policy]}


PLACES = pytest.mark.parametrize("place", places(print))


@READERS
@PLACES
def test_response_can_be_read(place: str, read: Callable[[Any], Any], flavor: Flavor, imds: ImdsEmulator) -> None:
    """Hooks, policies and transports may read the response in every way, and the token comes all the same."""
    found: list[Any] = []
    options = places(lambda response: found.append(read(response)))[place]
    token = flavor.ask(imds.endpoint, **options).token
    assert [members["access_token"] for members in found] == [token]
    imds.assert_requests(1)


def test_response_can_be_read_by_a_hook_of_requests(flavor: Flavor, imds: ImdsEmulator) -> None:
    """A hook of the session may read the response before azure-core sees it."""
    found: list[str] = []
    transport = session_with_hook(lambda response: found.append(response.json()["access_token"]))
    assert flavor.ask(imds.endpoint, transport=transport).token == found[0]


@READERS
def test_error_can_be_read(read: Callable[[Any], Any], flavor: Flavor, imds: ImdsEmulator) -> None:
    """The response behind an error can be read too, and the error is told as without a hook."""
    imds.script(faults.status(400, NO_IDENTITY))
    found: list[Any] = []
    with pytest.raises(IdentityUnavailableError):
        flavor.ask(imds.endpoint, raw_response_hook=lambda response: found.append(read(response.http_response)))
    assert found == [NO_IDENTITY]


@pytest.mark.parametrize("place", ["hook", "per_retry_policies"])
@pytest.mark.parametrize(
    ("status", "body", "error"),
    [(400, NO_IDENTITY, IdentityUnavailableError), (403, {}, ImdsRequestError), (503, {}, None)],
)
@pytest.mark.usefixtures("virtual_time")
def test_raise_for_status(
    place: str, status: int, body: Any, error: type[Exception] | None, flavor: Flavor, imds: ImdsEmulator
) -> None:
    """`raise_for_status()` in a hook or a policy says no more than the response, which is judged as without it."""
    imds.script(faults.status(status, body))
    options = places(lambda response: response.raise_for_status())[place]
    if error is None:
        assert flavor.ask(imds.endpoint, **options).token == imds.tokens[-1]
        imds.assert_requests(2)
    else:
        with pytest.raises(error):
            flavor.ask(imds.endpoint, **options)
        imds.assert_requests(1)


@PLACES
@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file"),
        OSError(errno.ENOSPC, "no space left on device"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        HttpResponseError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_after_a_good_response(place: str, error: Exception, flavor: Flavor, imds: ImdsEmulator) -> None:
    """What a hook or a policy raises after a good response is its own: handed through, and never "no IMDS".

    Of a transport it cannot be told apart from the network's.
    """

    def fail(_response: Any) -> None:
        raise error

    expected = ImdsUnavailableError if place == "transport" else type(error)
    if place == "transport" and getattr(error, "errno", 0) == errno.ENOSPC:
        expected = ImdsServiceError
    with pytest.raises(expected):
        flavor.ask(imds.endpoint, retry_total=0, **places(fail)[place])
    imds.assert_requests(1)


class Failing(HTTPPolicy[Any, Any]):
    """A policy that raises before anything is sent."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def send(self, request: Any) -> Any:
        raise self.error


def test_policy_that_stands_in_for_the_network(flavor: Flavor, imds: ImdsEmulator) -> None:
    """azure-core's own error for a failed connection means the same where a policy raises it."""
    with pytest.raises(ImdsUnavailableError, match="connecting failed"):
        flavor.ask(imds.endpoint, per_retry_policies=[Failing(ServiceRequestError("no"))])
    refusal = Mock(status_code=400, headers={}, text=lambda: json.dumps(NO_IDENTITY))
    with pytest.raises(IdentityUnavailableError):
        flavor.ask(imds.endpoint, per_retry_policies=[Failing(HttpResponseError(response=refusal))])
    with pytest.raises(PermissionError):
        flavor.ask(imds.endpoint, per_retry_policies=[Failing(PermissionError())])
    imds.assert_requests(0)


class FailingLater(HTTPPolicy[Any, Any]):
    """A policy that raises instead of the second attempt, as a circuit breaker does."""

    def __init__(self, error: Exception) -> None:
        self.error, self.attempts = error, 0

    def send(self, request: Any) -> Any:
        self.attempts += 1
        if self.attempts == 2:
            raise self.error
        return self.next.send(request)


@pytest.mark.parametrize(
    "error", [ServiceRequestError("open"), ConnectionRefusedError(errno.ECONNREFUSED, "no"), requests.ConnectionError()]
)
@pytest.mark.usefixtures("virtual_time")
def test_policy_that_breaks_the_circuit(error: Exception, flavor: Flavor, imds: ImdsEmulator) -> None:
    """An attempt that a policy does not let through is judged by its own error, not by the attempt before."""
    imds.script(faults.status(503))
    assert flavor.ask(imds.endpoint, per_retry_policies=[FailingLater(error)]).token == imds.tokens[-1]
    imds.assert_requests(2)


@READERS
@pytest.mark.parametrize(
    "fault", [faults.wrong_length(), faults.status(503, b" " * (BODY_LIMIT + 1))], ids=["broken", "large"]
)
@pytest.mark.usefixtures("virtual_time")
def test_body_that_a_hook_cannot_read(
    fault: Any, read: Callable[[Any], Any], flavor: Flavor, imds: ImdsEmulator
) -> None:
    """Where a body broke off or is too large, the response counts, not the error of the hook that wants to read it."""
    imds.script(fault)

    def hook(response: Any) -> None:
        with suppress(ValueError):  # what requests still gives of such a body is no JSON
            read(response.http_response)

    assert flavor.ask(imds.endpoint, raw_response_hook=hook).token == imds.tokens[-1]
    imds.assert_requests(2)


class Once:
    """A response of a transport of the user's own that can be read once, and keeps what was read."""

    def __init__(self) -> None:
        self.status_code, self.headers = 200, {"Server": "IMDS/150.870.65.1"}
        self._content: bytes | None = None
        self._is_consumed = False

    def iter_raw(self) -> Iterator[bytes]:
        if self._is_consumed:
            raise StreamConsumedError(self)
        self._is_consumed = True
        yield json.dumps({"access_token": "dummy", "expires_in": 3600, "resource": VAULT}).encode()

    def iter_bytes(self) -> Iterator[bytes]:
        return iter([self._content]) if self._content is not None else self.iter_raw()

    def read(self) -> bytes:
        self._content = b"".join(self.iter_bytes())
        return self._content


def test_response_that_can_be_read_once(flavor: Flavor) -> None:
    """A hook may read a response that cannot be read twice: it is judged by what the hook left in it."""
    transport = Mock(send=lambda *_, **__: Once())
    token = flavor.ask("http://127.0.0.1:1", transport=transport, raw_response_hook=lambda r: r.http_response.read())
    assert token.token == "dummy"


class Plain(RequestsTransport):
    """A transport of the user's that changes nothing in how a request is sent."""


@pytest.mark.parametrize("transport", [RequestsTransport, Plain])
@pytest.mark.usefixtures("virtual_time")
def test_bounds_hold_in_a_users_transport(
    transport: type[RequestsTransport], flavor: Flavor, imds: ImdsEmulator
) -> None:
    """A body that breaks off, or is compressed, is told as with our own transport."""
    imds.script(faults.wrong_length(), faults.wrong_length(), faults.gzipped, faults.gzipped)
    with pytest.raises(ImdsServiceError, match="broke off"):
        flavor.ask(imds.endpoint, transport=transport(), retry_total=1)
    with pytest.raises(ImdsServiceError, match="gzip"):
        flavor.ask(imds.endpoint, transport=transport(), retry_total=1)


class Fallback(HTTPPolicy[Any, Any]):
    """A policy that answers in the place of an IMDS that does not."""

    def send(self, request: Any) -> Any:
        try:
            return self.next.send(request)
        except Exception:
            text = json.dumps({"access_token": "dummy", "expires_in": 3600, "resource": VAULT})
            return PipelineResponse(
                request.http_request, Mock(status_code=200, headers={}, text=lambda: text), request.context
            )


class Empty(HTTPPolicy[Any, Any]):
    """A policy that forgets to return the response."""

    def send(self, request: Any) -> Any:
        self.next.send(request)


@pytest.mark.parametrize("place", ["per_call_policies", "per_retry_policies"])
def test_policy_that_answers_after_a_failure(place: str, flavor: Flavor) -> None:
    """The answer that a policy puts in the place of a failed attempt is judged like one of IMDS."""
    assert flavor.ask("http://127.0.0.1:1", **_policies(place, Fallback())).token == "dummy"


@pytest.mark.parametrize("place", ["per_call_policies", "per_retry_policies"])
def test_policy_that_returns_nothing(place: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """A response that a policy does not hand on was judged before; the token comes."""
    assert flavor.ask(imds.endpoint, **_policies(place, Empty())).token == imds.tokens[0]


def test_fault_of_the_environment_is_named(flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that no HTTP header can hold ends the call with an error of this package that names the cause."""
    monkeypatch.setenv("AZURE_HTTP_USER_AGENT", "caf\N{HOT BEVERAGE}")
    with pytest.raises(ImdsServiceError, match="UnicodeEncodeError"):
        flavor.ask(imds.endpoint)


@pytest.mark.parametrize("encoding", ["none", "utf-8", "identity"])
def test_encoding_that_is_none(encoding: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """A Content-Encoding that was not asked for does no harm where the body is plain JSON."""

    def encoded(reply: Reply) -> Steps:
        yield reply.with_header("Content-Encoding", encoding).encode()

    imds.script(encoded)
    assert flavor.ask(imds.endpoint).token == imds.tokens[0]


@pytest.mark.parametrize(
    ("number", "is_refused"),
    [(socket.EAI_AGAIN, True), (socket.EAI_NONAME, True), (socket.EAI_FAMILY, False)],
)
def test_name_that_is_unknown_yet(number: int, is_refused: bool) -> None:
    """A name that cannot be looked up is tried again like a refused address while the machine boots."""
    error = ServiceRequestError("failed")
    error.__cause__ = socket.gaierror(number, "no")
    assert no_response(error).is_refused == is_refused


@pytest.mark.parametrize(("host", "expected"), [("imds.example", 6), ("127.0.0.1", 1), ("[::1]", 1)])
def test_count_of_addresses(host: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up; an address is one."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [None] * 6)
    assert address_count(f"http://{host}:80") == expected


def test_addresses_share_the_time(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with several addresses has no more time than one: each is tried with its share."""
    timeouts: list[float] = []

    def connect(_address: Any, timeout: float, *_: Any, **__: Any) -> Any:
        timeouts.append(timeout)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(retry_policy, "address_count", lambda _url: 6)
    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    with pytest.raises(ImdsUnavailableError):
        flavor.ask("http://127.0.0.1:1", connection_timeout=0.6)
    assert timeouts == [pytest.approx(0.1)]
