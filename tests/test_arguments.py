"""What the constructor and `get_token` take, and how they refuse bad input, sync and aio."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from azure.core.pipeline.policies import HTTPPolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import AsyncHttpTransport, RequestsTransport
from flavors import VAULT, Flavor

from azure_imds_credential import ImdsCredential, ImdsServiceError
from azure_imds_credential._options import resource_from
from azure_imds_credential.aio import ImdsCredential as AsyncImdsCredential
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, forget_tokens

both_classes = pytest.mark.parametrize("cls", [ImdsCredential, AsyncImdsCredential], ids=["sync", "aio"])
GUID = "6f0d6a0e-9a0f-4a57-9c71-1f0f4d1e8c11"


class AsyncPolicy(HTTPPolicy[Any, Any]):
    async def send(self, request: Any) -> Any:  # type: ignore[override] # what a user mixes up
        return await self.next.send(request)  # type: ignore[misc] # as above


class AsyncSansIO(SansIOHTTPPolicy[Any, Any]):
    async def on_request(self, request: Any) -> None:
        """Do nothing."""


async def an_async_hook(response: Any) -> None:
    """Do nothing."""


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
def test_resource(scope: str, resource: str) -> None:
    """The resource is what stands before `/.default`."""
    assert resource_from((scope,)) == resource


# What is sent as it was before, and what would ask for something else if it were sent as it is.
QUERY = {
    "https://vault.azure.net": "https://vault.azure.net",
    f"api://{GUID}": f"api://{GUID}",
    "https://x.example/a_(b).c-d~": "https://x.example/a_(b).c-d~",
    "https://x.example/gr\u00f6\u00dfe": "https://x.example/gr%C3%B6%C3%9Fe",
    "https://x.example/a&client_id=b": "https://x.example/a%26client_id%3Db",
    "https://x.example/#a": "https://x.example/%23a",
    "https://x.example/a+b": "https://x.example/a%2Bb",
    "https://x.example/a%2Fb%20": "https://x.example/a%252Fb%2520",
}


@pytest.mark.parametrize("value", QUERY)
def test_values_in_the_query(value: str, flavor: Flavor) -> None:
    """A scope and an identity arrive as they were given, whatever characters they have."""
    identity = UserAssigned("app", resource_id=value)
    with ImdsEmulator(identities=[identity]) as imds:
        assert flavor.ask(imds.endpoint, scope=value, resource_id=value).token == imds.tokens[0]
        (request,) = imds.assert_requests(1, resource=value, msi_res_id=value)
        assert f"&resource={QUERY[value]}&" in request.target
        assert request.target.endswith(f"&msi_res_id={QUERY[value]}")


class Names(str, Enum):
    APP = GUID
    SCOPE = VAULT


def test_member_of_an_enum(flavor: Flavor) -> None:
    """A string that prints as something else, such as a member of an Enum, stands for its value."""
    with ImdsEmulator(identities=[UserAssigned("app", client_id=GUID)]) as imds:
        credential = flavor.ImdsCredential(endpoint=imds.endpoint, client_id=Names.APP)
        assert flavor.run(credential.get_token(Names.SCOPE)).token == imds.tokens[0]
        imds.assert_requests(1, client_id=GUID, resource=VAULT)
    assert GUID in repr(credential)


@pytest.mark.parametrize(
    "scopes",
    [
        (),
        ("https://a/.default", "https://b/.default"),
        ("",),
        ("/.default",),
        ("a b",),
        ("a\r\nb",),
        ("\ud800",),
        ("https:///.default",),
        ("https://",),
        ("https:////.default",),
        ("api:///.default",),
    ],
)
def test_bad_scope(scopes: tuple[str, ...]) -> None:
    """No scope, two, an empty one or one without a host is a ValueError that says what is expected."""
    with pytest.raises(ValueError, match=r"https://vault\.azure\.net/\.default"):
        ImdsCredential().get_token(*scopes)


def test_scope_of_wrong_type() -> None:
    """A list of scopes, as msal takes it, is a TypeError."""
    with pytest.raises(TypeError, match="list"):
        resource_from((["https://vault.azure.net/.default"],))  # type: ignore[arg-type] # that is the point


@both_classes
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
        ({"endpoint": "http://a..b"}, ValueError, "endpoint"),
        ({"endpoint": f"http://{'a' * 64}.example"}, ValueError, "endpoint"),
        ({"endpoint": f"http://{'a.' * 127}example"}, ValueError, "endpoint"),
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
        ({"managed_identity_resource_id": "x"}, TypeError, "its name is resource_id"),
        ({"resource": "x"}, TypeError, "get_token takes it"),
        ({"scopes": "x"}, TypeError, "get_token takes them"),
        ({"client_id": " 6a7b8c9d-0000-4000-8000-00000000abcd"}, ValueError, "client_id"),
        ({"mi_res_id": "x"}, TypeError, "resource_id"),
        ({"principal_id": "x"}, TypeError, "object_id"),
        ({"tenant_id": "x"}, TypeError, "leave it out"),
        ({"managed_identity_client_id": "x"}, TypeError, "its name is client_id"),
        ({"managed_identity_object_id": "x"}, TypeError, "its name is object_id"),
        ({"user_assigned_client_id": "x"}, TypeError, "its name is client_id"),
        ({"user_assigned_identity_client_id": "x"}, TypeError, "its name is client_id"),
        ({"retries": 1}, TypeError, "its name is retry_total"),
        ({"max_retries": 1}, TypeError, "its name is retry_total"),
        ({"force_refresh": True}, TypeError, "'force_refresh': get_token takes it"),
        ({"claims": "x"}, TypeError, "'claims': get_token takes it"),
        ({"enable_cae": True}, TypeError, "no continuous access evaluation"),
        ({"retry_totl": 1}, TypeError, "'retry_totl': did you mean retry_total"),
        ({"clientid": "x"}, TypeError, "did you mean client_id"),
        ({"clientId": "x"}, TypeError, "did you mean client_id"),
        ({"Client_ID": "x"}, TypeError, "did you mean client_id"),
        ({"client-id": "x"}, TypeError, "did you mean client_id"),
        ({"object_ids": "x"}, TypeError, "did you mean object_id"),
        ({"time_out": 1}, TypeError, "did you mean timeout"),
        ({"end_point": "x"}, TypeError, "did you mean endpoint"),
        ({"connect_timeout": 1}, TypeError, "did you mean connection_timeout"),
        ({"wait_for_identities": 1}, TypeError, "did you mean wait_for_identity"),
        ({"requires_system_assigned": 1}, TypeError, "did you mean require_system_assigned"),
        ({"colour": 1}, TypeError, "expected one of client_id, .*user_agent"),
        ({"require_system_assigned": "false"}, TypeError, "require_system_assigned"),
        ({"require_system_assigned": 1}, TypeError, "require_system_assigned"),
        ({"require_system_assigned": True, "client_id": "x"}, ValueError, "client_id exclude each other"),
        ({"shared_cache": True, "raw_request_hook": print}, ValueError, "raw_request_hook exclude each other"),
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
def test_bad_argument(cls: Any, arguments: dict[str, Any], error: type, named: str) -> None:
    """The message names the argument and what was expected."""
    with pytest.raises(error, match=named):
        cls(**arguments)


@both_classes
def test_async_transport(cls: Any) -> None:
    """An async transport is a TypeError that says why, for the aio class too."""

    class Transport(AsyncHttpTransport[Any, Any]):
        async def send(self, request: Any, **kwargs: Any) -> Any: ...

        async def open(self) -> None: ...

        async def close(self) -> None: ...

        async def __aenter__(self) -> Any: ...

        async def __aexit__(self, *args: Any) -> None: ...

    with pytest.raises(TypeError, match="once per token life"):
        cls(transport=Transport())


@both_classes
def test_bad_variable(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad endpoint from the environment is refused by the name of the variable."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "not a url")
    with pytest.raises(ValueError, match="AZURE_POD_IDENTITY_AUTHORITY_HOST"):
        cls()


@both_classes
@pytest.mark.parametrize(
    ("argument", "variable", "endpoint"),
    [
        (None, "http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:9000/prefix/", "http://127.0.0.1:8000", "http://127.0.0.1:9000/prefix"),
        (None, "", "http://169.254.169.254"),
        ("http://[::1]:80", "", "http://[::1]:80"),
    ],
)
def test_endpoint(
    cls: Any, monkeypatch: pytest.MonkeyPatch, argument: str | None, variable: str, endpoint: str
) -> None:
    """The endpoint is the argument, else the variable unless it is empty, else the link-local address."""
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", variable)
    assert endpoint in repr(cls(endpoint=argument))


@both_classes
def test_none_is_absent(cls: Any) -> None:
    """Options that are None are as good as absent: the credential uses the cache of the process."""
    plain, passing_none = cls(), cls(transport=None, retry_total=None, proxies=None)
    assert passing_none._options.cache is plain._options.cache
    assert cls(transport=RequestsTransport())._options.cache is not plain._options.cache


@both_classes
def test_options_that_change_nothing(cls: Any) -> None:
    """Empty policies and tracing options and `logging_enable=False` are as good as absent; `retry_total=0` is not."""
    plain, idle = cls(), cls(logging_enable=False, per_call_policies=[], per_retry_policies=(), tracing_options={})
    assert idle._options.cache is plain._options.cache
    assert cls(retry_total=0)._options.cache is not plain._options.cache


@both_classes
def test_password_in_endpoint(cls: Any) -> None:
    """An endpoint with a user is refused by an error without the password."""
    with pytest.raises(ValueError, match="endpoint") as caught:
        cls(endpoint="http://user:hunter2@127.0.0.1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("wrong", [["https://vault.azure.net"], 5, b"https://vault.azure.net"], ids=repr)
def test_scope_type_in_both_methods(flavor: Flavor, wrong: Any) -> None:
    """A scope that is no string is a TypeError, also where it is no key of a dict."""
    credential = flavor.ImdsCredential()
    for method in (credential.get_token, credential.get_token_info):
        with pytest.raises(TypeError, match=f"scope must be a string, not {type(wrong).__name__}"):
            flavor.run(method(wrong))


def test_options_of_get_token_info(flavor: Flavor) -> None:
    """`options` must be a dict, as azure-core's `TokenRequestOptions` is."""
    with pytest.raises(TypeError, match="options must be"):
        flavor.run(flavor.ImdsCredential().get_token_info(VAULT, options="claims"))


def test_variable_is_read_late(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable counts as it is when IMDS is asked, not as it was when the credential was made."""
    credential = flavor.ImdsCredential()
    for _ in range(2):
        with ImdsEmulator() as imds:
            monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
            forget_tokens()
            assert flavor.run(credential.get_token(VAULT)).token in imds.tokens
            imds.assert_requests(1)


@both_classes
def test_longest_timeout(cls: Any) -> None:
    """A timeout of 30 days is taken."""
    assert cls(timeout=30 * 86400, wait_for_identity=30 * 86400)._options.timeout == 30 * 86400


PRIVATE: dict[str, Any] = {
    "retry_total": 1,
    "connection_timeout": 1.0,
    "read_timeout": 1.0,
    "user_agent": "app",
    "logging_enable": True,
    "tracing_options": {"attributes": {"a": "b"}},
}


@pytest.mark.parametrize("option", PRIVATE)
def test_options_that_shape_the_request(option: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """They give a cache of tokens of its own; the rate limit and "seen" are those of the process."""
    plain, shaped = (
        flavor.ImdsCredential(endpoint=imds.endpoint),
        flavor.ImdsCredential(endpoint=imds.endpoint, **{option: PRIVATE[option]}),
    )
    token = flavor.run(plain.get_token(VAULT)).token
    assert flavor.run(shaped.get_token(VAULT)).token == token  # IMDS's own cache
    imds.assert_requests(2)
    endpoints = [each._options.entry((VAULT,)).endpoint for each in (plain, shaped)]
    assert endpoints[0] is not endpoints[1]
    assert endpoints[0].limiter is endpoints[1].limiter
    assert endpoints[1].seen
    with imds.down(), pytest.raises(ImdsServiceError):
        flavor.ask(imds.endpoint, timeout=0.5, **{option: PRIVATE[option]})


def test_seen_through_an_option(flavor: Flavor, imds: ImdsEmulator) -> None:
    """What a credential with options sees counts for every other credential of the process."""
    flavor.ask(imds.endpoint, retry_total=0)
    with imds.down(), pytest.raises(ImdsServiceError):
        flavor.ask(imds.endpoint, timeout=0.5)


OWN_WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "transport": lambda: {"transport": RequestsTransport()},
    "per_call_policies": lambda: {"per_call_policies": [SansIOHTTPPolicy()]},
    "per_retry_policies": lambda: {"per_retry_policies": SansIOHTTPPolicy()},
    "raw_request_hook": lambda: {"raw_request_hook": lambda _: None},
    "raw_response_hook": lambda: {"raw_response_hook": lambda _: None},
}


@pytest.mark.parametrize("way", OWN_WAYS)
def test_options_with_a_way_of_their_own(way: str, flavor: Flavor, imds: ImdsEmulator) -> None:
    """A transport, policy or hook may lead elsewhere: what it sees is kept apart; the rate limit is the process's."""
    plain = flavor.ImdsCredential(endpoint=imds.endpoint)
    own = flavor.ImdsCredential(endpoint=imds.endpoint, **OWN_WAYS[way]())
    flavor.run(own.get_token(VAULT))
    mine, others = own._options.entry((VAULT,)).endpoint, plain._options.entry((VAULT,)).endpoint
    assert (mine.seen, others.seen) == (True, False)
    assert mine.limiter is others.limiter
    flavor.run(plain.get_token(VAULT))
    assert not flavor.ImdsCredential(endpoint=imds.endpoint, **OWN_WAYS[way]())._options.entry((VAULT,)).endpoint.seen
