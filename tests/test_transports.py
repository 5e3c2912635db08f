"""Transports of users: azure-core's own, older ones, stand-ins of unit tests, and ones that fail in their own way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock, Mock
from urllib.parse import urlsplit

import pytest
import requests
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import HTTPPolicy
from azure.core.pipeline.transport import HttpResponse, HttpTransport, RequestsTransport
from azure.identity import ManagedIdentityCredential
from azure.identity.aio import ManagedIdentityCredential as AsyncManagedIdentityCredential
from flavors import VAULT, Flavor

from azure_imds_credential import (
    IdentityUnavailableError,
    ImdsError,
    ImdsRequestError,
    ImdsServiceError,
    ImdsUnavailableError,
)
from azure_imds_credential.testing import ImdsEmulator, faults

SECONDS = 3600


def payload(**changes: Any) -> dict[str, Any]:
    """Return what IMDS says, as unit tests of Azure's libraries write it."""
    return {
        "access_token": "dummy-secret-token",
        "expires_in": SECONDS,
        "expires_on": int(time.time()) + SECONDS,
        "resource": VAULT,
        "token_type": "Bearer",
        **changes,
    }


class LegacyResponse(HttpResponse):  # type: ignore[misc] # deprecated names of azure-core have no types
    """A response as azure-core documents it for transports of one's own: `body()` and `stream_download()`."""

    def __init__(self, request: Any, response: requests.Response) -> None:
        super().__init__(request, response)
        self.status_code, self.headers, self.reason = response.status_code, response.headers, response.reason
        self.content_type = response.headers.get("Content-Type")

    def body(self) -> bytes:
        return bytes(self.internal_response.content)

    def stream_download(self, _pipeline: Any, **_: Any) -> Iterator[bytes]:
        yield self.body()


class OwnTransport(HttpTransport[Any, Any]):
    """A transport over a session of requests, which is opened and closed by who made it."""

    def __init__(self, response: Callable[[Any, requests.Response], Any] = LegacyResponse) -> None:
        self.calls: list[str] = []
        self._response = response
        self._session = requests.Session()
        self._session.trust_env = False

    def open(self) -> None:
        self.calls.append("open")

    def close(self) -> None:
        self.calls.append("close")
        self._session.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, request: Any, **_: Any) -> Any:
        sent = self._session.request(request.method, request.url, headers=dict(request.headers), timeout=20)
        return self._response(request, sent)


class TextOnly:
    """A response with no more than a status, headers and a text."""

    def __init__(self, _request: Any, response: requests.Response) -> None:
        self.status_code, self.headers, self._text = response.status_code, dict(response.headers), response.text

    def text(self, encoding: str | None = None) -> str:
        return self._text


class BodyOnly(TextOnly):
    """A response whose `text` is for other content types, as azure-core's is."""

    def body(self) -> bytes:
        return self._text.encode()

    def text(self, encoding: str | None = None) -> str:
        raise AttributeError("text")


class Terse(OwnTransport):
    """A transport that takes the request and no arguments."""

    def send(self, request: Any) -> Any:  # type: ignore[override] # that is the point
        return super().send(request)


class Raising(HttpTransport[Any, Any]):
    """A transport that raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

    def send(self, request: Any, **_: Any) -> Any:
        raise self._error


def mocked(mock: type[Mock], document: Any, status: int = 200, headers: Any = None) -> Mock:
    """Return a transport as unit tests make it: a mock, which has every attribute, with a few that answer."""
    response = mock(status_code=status, headers={"content-type": "application/json", **(headers or {})})
    response.text = lambda encoding=None: json.dumps(document)
    response.content_type = "application/json"
    return mock(send=mock(return_value=response))


def httpx_transport() -> Any:
    if find_spec("azure.core.experimental") is None or find_spec("httpx") is None:
        pytest.skip("azure-core-experimental and httpx are not installed; the extra `integration` has them")
    from azure.core.experimental.transport import HttpXTransport

    return HttpXTransport(use_env_settings=False)


def _ask_azure_identity(flavor: Flavor, transport: Any) -> str:
    cls = ManagedIdentityCredential if flavor.name == "sync" else AsyncManagedIdentityCredential
    return str(flavor.run(cls(transport=transport).get_token(VAULT)).token)


# Name -> a transport that reaches the emulator, and whether azure-identity's sync class takes it too.
TOWARDS_IMDS: dict[str, Callable[[], Any]] = {
    "RequestsTransport": RequestsTransport,
    "RequestsTransport that trusts the environment": lambda: RequestsTransport(use_env_settings=True),
    "httpx, of azure-core-experimental": httpx_transport,
    "own, azure-core's older response": OwnTransport,
    "own, without arguments": Terse,
    "own, status_code, headers and text() only": lambda: OwnTransport(TextOnly),
    "own, status_code, headers and body() only": lambda: OwnTransport(BodyOnly),
}
# azure-identity reads `text()` and `content_type`.
NOT_AZURE_IDENTITY = {
    "own, without arguments",
    "own, status_code, headers and text() only",
    "own, status_code, headers and body() only",
}


@pytest.mark.parametrize("name", TOWARDS_IMDS)
def test_transport_brings_the_token(name: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """Each of these transports gets the token with one request."""
    with closing(TOWARDS_IMDS[name]()) as transport:
        assert flavor.ask(imds.endpoint, transport=transport).token == imds.tokens[0]
        imds.assert_requests(1)
        assert getattr(transport, "calls", []) == [], "a transport of the user's was opened or closed"


@pytest.mark.parametrize("name", sorted(TOWARDS_IMDS.keys() - NOT_AZURE_IDENTITY))
def test_transport_as_azure_identity(
    name: str, flavor: Flavor, imds: ImdsEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What azure-identity's sync class takes, both of our classes take, and the token is the same."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
    with closing(TOWARDS_IMDS[name]()) as transport, closing(TOWARDS_IMDS[name]()) as other:
        theirs = ManagedIdentityCredential(transport=transport).get_token(VAULT).token
        assert flavor.ask(imds.endpoint, transport=other).token == theirs


@pytest.mark.parametrize("mock", [Mock, MagicMock])
def test_mock_brings_the_token(mock: type[Mock], flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock with `status_code`, `headers` and `text` is a transport, to us and to azure-identity."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9")
    document = payload()
    theirs = ManagedIdentityCredential(transport=mocked(mock, document)).get_token(VAULT)
    transport = mocked(mock, document)
    ours = flavor.ask("http://127.0.0.1:9", transport=transport)
    assert ours.token == theirs.token == document["access_token"]
    assert ours.expires_on == pytest.approx(theirs.expires_on, abs=60)
    assert transport.send.call_count == 1


# What IMDS says -> our error, and whether azure-identity's is one after which a chain goes on.
@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (400, {"error": "invalid_request", "error_description": "Identity not found"}, IdentityUnavailableError),
        (400, {"error": "invalid_resource", "error_description": "AADSTS500011: no"}, ImdsRequestError),
        (403, {"error": "connecting to 169.254.169.254:80: an unreachable network."}, ImdsUnavailableError),
        (200, {"error": "invalid_request", "error_description": "Identity not found"}, IdentityUnavailableError),
        (200, {}, ImdsUnavailableError),
    ],
)
@pytest.mark.parametrize("mock", [Mock, MagicMock])
def test_mock_brings_the_error(
    mock: type[Mock], status: int, document: Any, expected: type[ImdsError], flavor: Flavor
) -> None:
    """The words of a stand-in are judged like those of a server; its other attributes say nothing."""
    with pytest.raises(expected) as caught:
        flavor.ask("http://127.0.0.1:9", transport=mocked(mock, document, status), retry_total=0)
    assert caught.value.status == status
    assert "Mock" not in str(caught.value)


@pytest.mark.parametrize("mock", [Mock, MagicMock])
def test_empty_mock_is_told(mock: type[Mock], flavor: Flavor) -> None:
    """A mock that answers everything with mocks is no response: an ImdsError, at once, and no TypeError of ours."""
    with pytest.raises(ImdsError):
        flavor.ask("http://127.0.0.1:9", transport=mock(), retry_total=0, timeout=30)


class CannotAnswerThisRequestFromTheRecordingError(Exception): ...


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no such thing"),
        KeyError("key"),
        TypeError("two arguments"),
        ValueError("value"),
        RuntimeError("x"),
        CannotAnswerThisRequestFromTheRecordingError("no such request"),  # longer than what is taken for a token
    ],
    ids=lambda error: type(error).__name__,
)
def test_bug_of_a_transport_is_named(error: Exception, flavor: Flavor) -> None:
    """What a transport raises that is no transport error becomes an ImdsServiceError that names it, sent once."""
    transport = Raising(error)
    with pytest.raises(ImdsServiceError, match=rf"Raising raised {type(error).__name__}: .*{error.args[0]}") as caught:
        flavor.ask("http://127.0.0.1:9", transport=transport)
    assert caught.value.attempts == 1
    assert isinstance(caught.value, ClientAuthenticationError)
    with pytest.raises((type(error), ClientAuthenticationError)):
        _ask_azure_identity(flavor, transport)


def test_transport_error_means_no_imds(flavor: Flavor) -> None:
    """What azure-core's own transports raise when nothing listens keeps its meaning: a chain goes on."""
    with pytest.raises(ImdsUnavailableError, match="connecting failed"):
        flavor.ask("http://127.0.0.1:9", transport=Raising(ServiceRequestError("refused")))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_a_transport_is_no_fault(interrupt: type[BaseException], flavor: Flavor) -> None:
    """What ends a program is no fault of a transport."""
    with pytest.raises(interrupt):
        flavor.ask("http://127.0.0.1:9", transport=Raising(interrupt()))


async def _response() -> None:
    await asyncio.sleep(0)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_async_response_is_told(flavor: Flavor) -> None:
    """A transport that hands out a coroutine where a response belongs is told as what it is."""
    transport = Mock(send=lambda _request, **_: _response())
    with pytest.raises(ImdsServiceError, match="cannot be read"):
        flavor.ask("http://127.0.0.1:9", transport=transport)


def test_response_with_async_body_is_told(flavor: Flavor) -> None:
    """So is a response whose body must be awaited: no token is made of a coroutine."""

    class AsyncResponse:
        status_code = 200
        headers = {"Server": "IMDS/1"}  # noqa: RUF012 # read only

        async def iter_bytes(self) -> Any:
            yield b"{}"

    with pytest.raises(ImdsServiceError, match="200, the body broke off"):
        flavor.ask("http://127.0.0.1:9", transport=Mock(send=lambda _request, **_: AsyncResponse()), retry_total=0)


def test_transport_gets_the_request_of_imds(flavor: Flavor) -> None:
    """A transport sees the request as IMDS would: method, path, query and the header against forgery."""
    transport = mocked(Mock, payload())
    flavor.ask("http://127.0.0.1:9", transport=transport, client_id="an-id")
    request = transport.send.call_args.args[0]
    assert (request.method, urlsplit(request.url).path) == ("GET", "/metadata/identity/oauth2/token")
    assert request.headers["Metadata"] == "true"
    assert (request.query["resource"], request.query["client_id"]) == (VAULT, "an-id")


@pytest.mark.parametrize("broken", [Raising(ValueError("no")), mocked(Mock, {}, status="odd"), Mock()])  # type: ignore[arg-type] # a broken stand-in
def test_hint_of_a_broken_transport(flavor: Flavor, broken: Any) -> None:
    """It is about the transport: nothing is known of IMDS."""
    with pytest.raises(ImdsServiceError, match="Fix the transport"):
        flavor.ask("http://127.0.0.1:9", transport=broken)


class Broken:
    """A response whose raw body was read before, and whose body breaks off when it is read again."""

    def __init__(self) -> None:
        self.status_code, self.headers = 200, {"Server": "IMDS/150.870.65.1"}

    def iter_raw(self) -> Iterator[bytes]:
        return iter(())

    def iter_bytes(self) -> Iterator[bytes]:
        yield json.dumps(payload()).encode()
        raise ServiceResponseError("broke off")


def test_body_that_breaks_off_is_not_taken_for_whole(flavor: Flavor) -> None:
    """What came before the connection broke is not judged, although it may look complete."""
    with pytest.raises(ImdsServiceError, match="the body broke off"):
        flavor.ask("http://127.0.0.1:9", transport=Mock(send=Mock(return_value=Broken())))


class Answering(HTTPPolicy[Any, Any]):
    """A policy that answers in IMDS's place and sends nothing, as caches of programs do."""

    def __init__(self, status: int, **changes: Any) -> None:
        self.response = Mock(status_code=status, headers={}, text=lambda: json.dumps(payload(**changes)))

    def send(self, request: Any) -> Any:
        return PipelineResponse(request.http_request, self.response, request.context)


class Swallowing(HTTPPolicy[Any, Any]):
    """A policy that keeps errors back."""

    calls = 0

    def send(self, request: Any) -> Any:
        self.calls += 1
        with suppress(Exception):
            return self.next.send(request)
        return PipelineResponse(request.http_request, None, request.context)


def test_policy_that_answers(flavor: Flavor) -> None:
    """A policy may answer in IMDS's place; its answer is judged like one of IMDS."""
    endpoint = "http://127.0.0.1:1"
    assert flavor.ask(endpoint, per_call_policies=[Answering(200)]).token == payload()["access_token"]
    with pytest.raises(ImdsServiceError, match="life"):
        flavor.ask(endpoint, per_call_policies=[Answering(200, expires_in=0, expires_on=0)])
    with pytest.raises(ImdsError, match="401"):
        flavor.ask(endpoint, per_call_policies=[Answering(401)])


def test_policy_that_keeps_the_error_back(flavor: Flavor, imds: ImdsEmulator) -> None:
    """The caller gets the error of the request all the same, at once and after one request."""
    imds.script(faults.status(400))
    policy = Swallowing()
    with pytest.raises(ImdsError, match="400"):
        flavor.ask(imds.endpoint, per_call_policies=[policy], timeout=60)
    assert policy.calls == 1
    imds.assert_requests(1)
