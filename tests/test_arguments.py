"""What the constructor and `get_token` take, and what they say to bad input. Sync and aio validate in one place."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import AsyncHttpTransport, RequestsTransport
from colours import VAULT, Colour

from azure_imds_credential import ImdsCredential
from azure_imds_credential._configuration import resource_from
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, forget_tokens

both_colours = pytest.mark.parametrize("cls", [ImdsCredential, AsyncImdsCredential], ids=["sync", "aio"])
GUID = "6f0d6a0e-9a0f-4a57-9c71-1f0f4d1e8c11"


class AsyncPolicy(HTTPPolicy[Any, Any]):
    async def send(self, request: Any) -> Any:  # type: ignore[override] # what a user mixes up
        return await self.next.send(request)


class AsyncSansIO(SansIOHTTPPolicy[Any, Any]):
    async def on_request(self, request: Any) -> None:  # type: ignore[override] # as above
        """Be awaited, where anybody would."""


async def an_async_hook(response: Any) -> None:
    """Be awaited, where anybody would."""


@pytest.mark.parametrize(
    ("scope", "resource"),
    [
        ("https://vault.azure.net/.default", "https://vault.azure.net"),
        ("https://management.azure.com//.default", "https://management.azure.com/"),  # the slash belongs to it
        ("https://storage.azure.com/", "https://storage.azure.com/"),
        ("https://vault.azure.net", "https://vault.azure.net"),
        ("https://vault.azure.cn/.default", "https://vault.azure.cn"),  # sovereign clouds
        ("https://vault.usgovcloudapi.net/.default", "https://vault.usgovcloudapi.net"),
        (f"{GUID}/.default", GUID),
        (GUID, GUID),
        (f"api://{GUID}/.default", f"api://{GUID}"),
        ("https://ossrdbms-aad.database.windows.net/.default", "https://ossrdbms-aad.database.windows.net"),
        ("https://x/.defaults", "https://x/.defaults"),  # only the exact suffix is one
    ],
)
def test_the_resource_is_what_stands_before_default(scope: str, resource: str) -> None:
    """`/.default` is cut off and nothing else is."""
    assert resource_from((scope,)) == resource


@pytest.mark.parametrize(
    "scopes",
    [(), ("https://a/.default", "https://b/.default"), ("",), ("/.default",), ("a b",), ("a\r\nb",), ("\ud800",)],
)
def test_bad_scopes_are_value_errors(scopes: tuple[str, ...]) -> None:
    """None, two, empty, or what cannot be one resource: the message says what is expected."""
    with pytest.raises(ValueError, match=r"https://vault\.azure\.net/\.default"):
        ImdsCredential().get_token(*scopes)


def test_a_scope_that_is_no_string_is_a_type_error() -> None:
    """A list of scopes is msal's habit; here it is told apart from a wrong value."""
    with pytest.raises(TypeError, match="list"):
        resource_from((["https://vault.azure.net/.default"],))  # type: ignore[arg-type] # that is the point


@both_colours
@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"client_id": ""}, ValueError, "client_id"),
        ({"object_id": " "}, ValueError, "object_id"),
        ({"resource_id": "a\nb"}, ValueError, "resource_id"),
        ({"client_id": 5}, TypeError, "client_id"),
        ({"client_id": "a", "object_id": "b"}, ValueError, "client_id, object_id"),
        ({"client_id": "a", "object_id": "b", "resource_id": "c"}, ValueError, "resource_id"),
        ({"endpoint": ""}, ValueError, "endpoint"),
        ({"endpoint": "127.0.0.1:80"}, ValueError, "endpoint"),
        ({"endpoint": "ftp://127.0.0.1"}, ValueError, "endpoint"),
        ({"endpoint": "http://"}, ValueError, "endpoint"),
        ({"endpoint": "http://127.0.0.1:99999"}, ValueError, "endpoint"),
        ({"endpoint": "http://127.0.0.1:x"}, ValueError, "endpoint"),
        ({"endpoint": "http://127.0.0.1/?a=b"}, ValueError, "endpoint"),
        ({"endpoint": "http://user@127.0.0.1/"}, ValueError, "endpoint"),
        ({"endpoint": "http://127.0.0.1\r\nX: y"}, ValueError, "endpoint"),
        ({"endpoint": "http://127.0.0.1/metadata/identity/oauth2/token"}, ValueError, "it is appended"),
        ({"endpoint": 80}, TypeError, "endpoint"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": float("inf")}, ValueError, "timeout"),
        ({"timeout": "90"}, TypeError, "timeout"),
        ({"timeout": 30 * 86400 + 1}, ValueError, "timeout"),
        ({"timeout": True}, TypeError, "timeout"),
        ({"wait_for_identity": -1}, ValueError, "wait_for_identity"),
        ({"wait_for_identity": 91}, ValueError, "timeout"),
        ({"retry_total": -1}, ValueError, "retry_total"),
        ({"retry_total": 1.5}, ValueError, "retry_total"),
        ({"connection_timeout": 0}, ValueError, "connection_timeout"),
        ({"read_timeout": "1"}, TypeError, "read_timeout"),
        ({"proxies": {"http": "http://127.0.0.1:1"}}, ValueError, "proxies"),
        ({"raw_request_hook": 1}, TypeError, "raw_request_hook"),
        ({"identity_config": {"object_id": "x"}}, TypeError, "identity_config.*object_id"),
        ({"msi_res_id": "x"}, TypeError, "resource_id"),
        ({"mi_res_id": "x"}, TypeError, "resource_id"),
        ({"principal_id": "x"}, TypeError, "object_id"),
        ({"tenant_id": "x"}, TypeError, "leave it out"),
        ({"retry_totl": 1}, TypeError, "retry_totl.*retry_total"),
        ({"shared_cache": "false"}, TypeError, "shared_cache"),
        ({"shared_cache": 1}, TypeError, "shared_cache"),
        ({"logging_enable": "false"}, TypeError, "logging_enable"),
        ({"tracing_options": 1}, TypeError, "tracing_options"),
        ({"user_agent": "a\r\nX: y"}, ValueError, "user_agent"),
        ({"user_agent": "\u00fc"}, ValueError, "user_agent"),
        ({"user_agent": 1}, ValueError, "user_agent"),
        ({"transport": object()}, TypeError, "transport"),
        ({"transport": []}, TypeError, "transport"),
        ({"retry_total": False}, ValueError, "retry_total"),
        ({"per_call_policies": 1}, TypeError, "per_call_policies"),
        ({"per_retry_policies": [object()]}, TypeError, "per_retry_policies"),
        ({"per_retry_policies": "x"}, TypeError, "per_retry_policies"),
        ({"per_call_policies": AsyncSansIO()}, TypeError, "per_call_policies must be synchronous"),
        ({"raw_response_hook": an_async_hook}, TypeError, "raw_response_hook must be synchronous"),
        ({"per_retry_policies": [AsyncPolicy()]}, TypeError, "per_retry_policies"),
        ({"per_call_policies": AsyncPolicy()}, TypeError, "per_call_policies"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_argument_is_refused_by_name(cls: Any, arguments: dict[str, Any], error: type, named: str) -> None:
    """The message names the argument and what was expected."""
    with pytest.raises(error, match=named):
        cls(**arguments)


@both_colours
def test_an_async_transport_is_refused_with_the_reason(cls: Any) -> None:
    """The aio class too takes a sync transport, and says why."""

    class Transport(AsyncHttpTransport[Any, Any]):
        async def send(self, request: Any, **kwargs: Any) -> Any: ...

        async def open(self) -> None: ...

        async def close(self) -> None: ...

        async def __aenter__(self) -> Any: ...

        async def __aexit__(self, *args: Any) -> None: ...

    with pytest.raises(TypeError, match="once per token life"):
        cls(transport=Transport())


@both_colours
def test_a_bad_environment_is_refused_by_the_name_of_the_variable(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who never passed `endpoint` must not be told about it."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "not a url")
    with pytest.raises(ValueError, match="AZURE_POD_IDENTITY_AUTHORITY_HOST"):
        cls()


@both_colours
@pytest.mark.parametrize(
    ("argument", "variable", "endpoint"),
    [
        (None, "http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:9000/prefix/", "http://127.0.0.1:8000", "http://127.0.0.1:9000/prefix"),
        (None, "", "http://169.254.169.254"),
        ("http://[::1]:80", "", "http://[::1]:80"),
    ],
)
def test_the_endpoint_is_the_argument_then_the_variable_then_the_link_local_address(
    cls: Any, monkeypatch: pytest.MonkeyPatch, argument: str | None, variable: str, endpoint: str
) -> None:
    """A trailing slash does not count, an empty variable is none. Nothing is sent here."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", variable)
    assert endpoint in repr(cls(endpoint=argument))


@both_colours
def test_options_that_are_none_are_as_good_as_absent(cls: Any) -> None:
    """Code that passes its own optional arguments on needs no special case, and keeps the shared cache."""
    plain, passing_none = cls(), cls(transport=None, retry_total=None, proxies=None)
    assert passing_none._configuration.cache is plain._configuration.cache
    assert cls(transport=RequestsTransport())._configuration.cache is not plain._configuration.cache


@both_colours
def test_options_that_change_nothing_keep_the_shared_cache(cls: Any) -> None:
    """No policies, no logging, no tracing options: as good as absent. No retries are something else."""
    plain, idle = cls(), cls(logging_enable=False, per_call_policies=[], per_retry_policies=(), tracing_options={})
    assert idle._configuration.cache is plain._configuration.cache
    assert cls(retry_total=0)._configuration.cache is not plain._configuration.cache


@both_colours
def test_a_password_in_an_endpoint_is_not_repeated(cls: Any) -> None:
    """An endpoint has no user; who writes one gets an error without the password."""
    with pytest.raises(ValueError, match="endpoint") as caught:
        cls(endpoint="http://user:hunter2@127.0.0.1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [["https://vault.azure.net"], 5, b"https://vault.azure.net"], ids=repr)
def test_both_methods_say_that_a_scope_is_a_string(colour: Colour, wrong: Any) -> None:
    """A list is msal's habit, and no key of a dict."""
    credential = colour.ImdsCredential()
    for method in (credential.get_token, credential.get_token_info):
        with pytest.raises(TypeError, match=f"scope must be a string, not {type(wrong).__name__}"):
            colour.run(method(wrong))


def test_options_of_get_token_info_are_a_dict(colour: Colour) -> None:
    """As azure-core's `TokenRequestOptions` is."""
    with pytest.raises(TypeError, match="options must be"):
        colour.run(colour.ImdsCredential().get_token_info(VAULT, options="claims"))


def test_the_variable_is_read_when_imds_is_asked(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential of a module is made before any test sets the variable, and asks the emulator all the same."""
    credential = colour.ImdsCredential()
    for _ in range(2):
        with ImdsEmulator() as imds:
            monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
            forget_tokens()
            assert colour.run(credential.get_token(VAULT)).token in imds.tokens
            imds.assert_requests(1)


@both_colours
def test_a_call_may_take_thirty_days(cls: Any) -> None:
    """The longest time that is taken; a second more is refused."""
    assert cls(timeout=30 * 86400, wait_for_identity=30 * 86400)._configuration.timeout == 30 * 86400
