"""What azure-identity's and msal's own suites check of managed identity by IMDS, in our words, held to our credential.

Each row names the test of theirs that it comes from. Where we mean to differ, the row's docstring says so and the row
checks the difference. Both flavors run every row. (Read in public copies of the two repositories of 2020 to 2026.)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.policies import CustomHookPolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import CredentialUnavailableError
from flavors import VirtualTime
from proving import Flavor, settled

from azure_imds_credential import ImdsServiceError, ImdsUnavailableError, ManagedIdentitySource, detect_source
from azure_imds_credential.testing import ImdsEmulator, UserAssigned, faults

AZURE = "Azure/azure-sdk-for-python: sdk/identity/azure-identity/tests/"
MSAL = "AzureAD/microsoft-authentication-library-for-python: tests/"
SCOPE, RESOURCE = "https://vault.azure.net/.default", "https://vault.azure.net"


class World(NamedTuple):
    """What a row has at hand: a machine, both flavors' credentials, and an environment to set."""

    imds: ImdsEmulator
    make: Callable[..., Any]
    flavor: Flavor
    environment: pytest.MonkeyPatch
    time: VirtualTime


Check = Callable[[World], Awaitable[None]]
ROWS: list[tuple[str, Check]] = []


def row(*references: str) -> Callable[[Check], Check]:
    """Enter a check into the table, with the tests that it comes from."""

    def enter(check: Check) -> Check:
        ROWS.append((", ".join(references), check))
        return check

    return enter


async def refusal(error: type[BaseException], credential: Any) -> Any:
    """The error of this kind, or of one below it, that a call for a token ends in."""
    with pytest.raises(error) as caught:
        await settled(credential.get_token(SCOPE))
    return caught.value


# Scopes and arguments


@row(f"{AZURE}test_imds_credential.py::test_no_scopes")
async def no_scope_is_a_value_error(world: World) -> None:
    with pytest.raises(ValueError, match="exactly one scope"):
        await settled(world.make().get_token())


@row(f"{AZURE}test_imds_credential.py::test_multiple_scopes")
async def two_scopes_are_a_value_error(world: World) -> None:
    with pytest.raises(ValueError, match="exactly one scope"):
        await settled(world.make().get_token("one", "another"))


@row(f"{AZURE}test_managed_identity.py::test_imds", f"{MSAL}test_mi.py::VmTestCase::test_happy_path")
async def one_request_of_the_documented_form(world: World) -> None:
    await settled(world.make().get_token(SCOPE))
    (request,) = world.imds.requests
    assert (request.method, request.path) == ("GET", "/metadata/identity/oauth2/token")
    assert dict(request.query) == {"api-version": ("2018-02-01",), "resource": (RESOURCE,)}
    assert request.header("Metadata") == "true"


@row(f"{AZURE}test_imds_credential.py::TestImds::test_system_assigned")
async def the_token_says_when_it_ends_in_whole_seconds(world: World) -> None:
    token = await settled(world.make().get_token(SCOPE))
    assert token.token in world.imds.tokens
    assert isinstance(token.expires_on, int)
    assert abs(token.expires_on - time.time() - 86400) < 60


@row(
    f"{AZURE}test_imds_credential.py::TestImds::test_system_assigned_tenant_id",
    f"{AZURE}test_imds_credential.py::TestImds::test_user_assigned_tenant_id",
)
async def a_tenant_is_accepted_and_changes_nothing(world: World) -> None:
    world.imds.assign(app := UserAssigned("app"))
    for number, identity in enumerate(({}, {"client_id": app.client_id}), start=1):
        credential = world.make(**identity)
        plain = await settled(credential.get_token(SCOPE))
        assert await settled(credential.get_token(SCOPE, tenant_id="some-tenant")) == plain
        info = await settled(credential.get_token_info(SCOPE, options={"tenant_id": "some-tenant"}))
        assert info.token == plain.token
        assert len(world.imds.assert_requests(number)) == number
    assert all("tenant" not in request.target for request in world.imds.requests)


@row(f"{AZURE}test_managed_identity.py, GET_TOKEN_METHODS: each test runs get_token and get_token_info")
async def both_protocols_give_the_same_token(world: World) -> None:
    credential = world.make()
    info = await settled(credential.get_token_info(SCOPE))
    assert info.token == (await settled(credential.get_token(SCOPE))).token
    world.imds.assert_requests(1)


# Which identity


@row(f"{AZURE}test_managed_identity.py::test_client_id_none")
async def none_is_no_selector(world: World) -> None:
    await settled(world.make(client_id=None, object_id=None, resource_id=None).get_token(SCOPE))
    world.imds.assert_requests(1, client_id=None, object_id=None, msi_res_id=None)


@row(
    f"{AZURE}test_managed_identity.py::test_imds_user_assigned_identity",
    f"{MSAL}test_mi.py::VmTestCase::test_vm_resource_id_parameter_should_be_msi_res_id",
)
async def each_selector_has_its_own_variable(world: World) -> None:
    world.imds.assign(app := UserAssigned("app"))
    variables = {"client_id": "client_id", "object_id": "object_id", "resource_id": "msi_res_id"}
    for argument, variable in variables.items():
        value = getattr(app, argument)
        await settled(world.make(**{argument: value}).get_token(SCOPE))
        world.imds.assert_requests(1, **{variable: value})
    world.imds.assert_requests(3)


@row(f"{MSAL}test_mi.py::ManagedIdentityTestCase (the helper class takes exactly one identifier)")
async def two_selectors_are_a_value_error(world: World) -> None:
    with pytest.raises(ValueError, match="one of client_id, object_id and resource_id"):
        world.make(client_id="a", resource_id="b")


@row(
    f"{AZURE}test_imds_credential_async.py::test_identity_config", f"{MSAL}test_mi.py::test_error_out_on_invalid_input"
)
async def unknown_selectors_are_refused(world: World) -> None:
    """Differs: azure-identity sends any member of identity_config; here every way to name an identity has a name."""
    with pytest.raises(TypeError, match="identity_config"):
        world.make(identity_config={"foo": "bar"})


# Errors


@row(f"{AZURE}test_imds_credential.py::test_identity_not_available")
async def an_identity_that_is_not_there_lets_a_chain_go_on(world: World) -> None:
    for identity in world.imds.identities:
        world.imds.remove(identity)
    await refusal(CredentialUnavailableError, world.make())


@row(f"{AZURE}test_imds_credential.py::test_imds_request_failure_docker_desktop")
async def docker_desktop_lets_a_chain_go_on_in_any_language(world: World) -> None:
    for words in ("network.", "host.", "foo.", "nettverk som ikke kan nås."):
        world.imds.script(faults.docker_desktop_403(f"A socket operation was attempted to an unreachable {words}"))
        error = await refusal(CredentialUnavailableError, world.make(read_timeout=5))
        assert words.encode("latin-1", "replace").decode("latin-1")[:4] in str(error)


@row(f"{AZURE}test_managed_identity.py::test_imds_text_response")
async def a_page_lets_a_chain_go_on(world: World) -> None:
    world.imds.script(faults.html())
    await refusal(CredentialUnavailableError, world.make())


@row(f"{AZURE}test_imds_credential_async.py::test_unexpected_error")
async def every_other_status_is_an_authentication_error_with_the_servers_words(world: World) -> None:
    for status in range(401, 600):
        world.imds.script(faults.status(status, {"error": "odd", "error_description": f"went wrong {status}"}))
        error = await refusal(ClientAuthenticationError, world.make(retry_total=0))
        assert f"went wrong {status}" in str(error)
        assert error.status == status
        assert not isinstance(error, CredentialUnavailableError)


@row(f"{MSAL}test_mi.py::VmTestCase::test_vm_error_should_be_returned_as_is (and nothing is cached)")
async def an_error_is_not_held(world: World) -> None:
    world.imds.script(faults.status(400, {"raw": "no format of ours"}))
    credential = world.make()
    error = await refusal(ClientAuthenticationError, credential)
    assert "no format of ours" not in str(error) or len(str(error)) < 1000
    assert (await settled(credential.get_token(SCOPE))).token in world.imds.tokens
    world.imds.assert_requests(2)


@row(f"{AZURE}test_get_token_mixin.py::test_token_acquisition_failure")
async def every_call_asks_while_there_is_no_token(world: World) -> None:
    credential = world.make(retry_total=0)
    world.imds.script(*[faults.status(500)] * 4)
    for number in range(1, 5):
        await refusal(ImdsServiceError, credential)
        world.imds.assert_requests(number)


# Retries


@row(f"{AZURE}test_imds_credential.py::test_retries (and _async)")
async def statuses_of_an_ill_imds_are_retried_as_often_as_told(world: World) -> None:
    for status in (404, 410, 429, 500):
        world.imds.clear_requests()
        world.imds.script(*[faults.status(status)] * 6)
        await refusal(ClientAuthenticationError, world.make(retry_total=5))
        world.imds.assert_requests(6)


@row(f"{AZURE}test_imds_credential.py: 410 is retried for at least 70 s")
async def gone_is_waited_out(world: World) -> None:
    world.imds.script(faults.status(410), seconds=70)
    assert (await settled(world.make().get_token(SCOPE))).token in world.imds.tokens
    assert 69 < sum(world.time.slept) < 90


# Holding tokens


@row(
    f"{AZURE}test_imds_credential.py::test_cache",
    f"{AZURE}test_get_token_mixin.py::test_cached_token_outside_refresh_window",
    f"{MSAL}test_mi.py::VmTestCase::test_happy_path",
)
async def a_good_token_is_served_from_memory(world: World) -> None:
    world.imds.script(faults.members(expires_in="3600", expires_on=str(int(world.imds.now()) + 3600)))
    credential = world.make()
    first = await settled(credential.get_token(SCOPE))
    assert await settled(credential.get_token(SCOPE)) == first
    world.imds.assert_requests(1)


@row(f"{AZURE}test_imds_credential.py::test_cache (its first token is expired already)")
async def an_expired_token_is_never_handed_out(world: World) -> None:
    """Differs: azure-identity hands out what it got, expired or not; here IMDS is asked once more, then it fails."""
    world.imds.script(*[faults.members(expires_in="0", expires_on="1")] * 2)
    credential = world.make()
    await refusal(ImdsServiceError, credential)
    assert (await settled(credential.get_token(SCOPE))).token in world.imds.tokens


@row(f"{AZURE}test_get_token_mixin.py::test_expired_token")
async def a_token_that_has_expired_is_replaced(world: World) -> None:
    credential = world.make()
    first = await settled(credential.get_token(SCOPE))
    world.time.skip(86500)
    assert (await settled(credential.get_token(SCOPE))).token != first.token
    world.imds.assert_requests(2)


@row(f"{AZURE}test_get_token_mixin.py::test_cached_token_within_refresh_window")
async def an_aging_token_is_refreshed(world: World) -> None:
    """Differs: the caller is not kept waiting; it gets the held token while a thread refreshes."""
    credential = world.make()
    first = await settled(credential.get_token(SCOPE))
    world.time.skip(60000)
    assert (await settled(credential.get_token(SCOPE))).token == first.token
    world.imds.wait_for_requests(2)


@row(f"{AZURE}test_get_token_mixin.py::test_retry_delay")
async def a_failed_refresh_costs_nobody_the_held_token(world: World) -> None:
    credential = world.make(retry_total=0)
    first = await settled(credential.get_token(SCOPE))
    world.time.skip(60000)
    world.imds.script(*[faults.status(500)] * 10)
    for _ in range(4):
        assert (await settled(credential.get_token(SCOPE))).token == first.token
    world.imds.wait_for_requests(2)
    for _ in range(4):
        assert (await settled(credential.get_token(SCOPE))).token == first.token
    world.imds.assert_requests(2)


@row(f"{MSAL}test_mi.py::VmTestCase::test_happy_path (refresh_on at half of a life of two hours or more)")
async def a_long_life_is_refreshed_around_its_middle(world: World) -> None:
    info = await settled(world.make().get_token_info(SCOPE))
    left = info.expires_on - time.time()
    assert 0.35 * left < info.refresh_on - time.time() < 0.65 * left


@row(f"{MSAL}test_mi.py::ClientTestCase (a claims challenge misses the cache)")
async def a_claims_challenge_asks_for_a_newer_token(world: World) -> None:
    credential = world.make()
    first = await settled(credential.get_token(SCOPE))
    second = await settled(credential.get_token(SCOPE, claims='{"access_token": {"nbf": {"value": "1"}}}'))
    assert second.token != first.token
    assert "claims" not in world.imds.assert_requests(2)[1].target


# Life of the object


@row(
    f"{AZURE}test_imds_credential_async.py::test_imds_close",
    f"{AZURE}test_managed_identity.py::test_close",
    f"{AZURE}test_managed_identity.py::test_close_incomplete_options",
)
async def close_is_always_allowed(world: World) -> None:
    credential = world.make()
    for _ in range(2):
        await settled(credential.close())
    assert (await settled(credential.get_token(SCOPE))).token in world.imds.tokens


@row(
    f"{AZURE}test_imds_credential_async.py::test_imds_context_manager",
    f"{AZURE}test_managed_identity.py::test_context_manager",
    f"{AZURE}test_managed_identity.py::test_context_manager_incomplete_options",
)
async def it_is_a_context_manager(world: World) -> None:
    credential = world.make()
    names = ("__enter__", "__exit__") if world.flavor.name == "sync" else ("__aenter__", "__aexit__")
    enter, leave = (getattr(credential, name) for name in names)
    assert await settled(enter()) is credential
    assert not await settled(leave(None, None, None))
    assert (await settled(credential.get_token(SCOPE))).token in world.imds.tokens


class Transport(RequestsTransport):  # type: ignore[misc] # its base has no types
    """A user's transport that counts what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def __enter__(self) -> Transport:
        self.done.append("enter")
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.done.append("exit")
        super().__exit__(*details)

    def send(self, *details: Any, **options: Any) -> Any:
        self.done.append("send")
        return super().send(*details, **options)


@row(f"{AZURE}test_managed_identity.py::test_close (with a transport)", f"{AZURE}test_managed_identity.py::test_imds")
async def a_transport_of_the_users_is_used_and_left_alone(world: World) -> None:
    """Differs: azure-identity opens and closes it with the credential; here it belongs to who made it."""
    transport = Transport()
    credential = world.make(transport=transport)
    await settled(credential.get_token(SCOPE))
    await settled(credential.close())
    assert transport.done == ["send"]
    transport.close()


# The pipeline


@row(f"{AZURE}test_managed_identity.py::test_custom_hooks")
async def hooks_see_the_request_and_the_response(world: World) -> None:
    seen: list[str] = []
    credential = world.make(
        raw_request_hook=lambda request: seen.append(request.http_request.url),
        raw_response_hook=lambda response: seen.append(str(response.http_response.status_code)),
    )
    await settled(credential.get_token(SCOPE))
    assert seen[0].startswith(f"{world.imds.endpoint}/metadata/identity/oauth2/token?")
    assert seen[1:] == ["200"]


@row(f"{AZURE}test_client_secret_credential.py::test_policies_configurable (of another credential)")
async def policies_of_the_users_run(world: World) -> None:
    runs: list[str] = []

    class Marker(SansIOHTTPPolicy[Any, Any]):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_request(self, request: Any) -> None:
            runs.append(self.name)
            request.http_request.headers[f"x-{self.name}"] = "1"

    world.imds.script(faults.status(500))
    hook = CustomHookPolicy()
    await settled(
        world.make(per_call_policies=[Marker("call"), hook], per_retry_policies=[Marker("retry")]).get_token(SCOPE)
    )
    assert runs == ["call", "retry", "retry"]
    assert [request.header("x-call") for request in world.imds.requests] == ["1", "1"]


@row(
    f"{AZURE}test_managed_identity.py::test_imds (User-Agent)",
    f"{AZURE}test_client_secret_credential.py::test_user_agent",
)
async def the_user_agent_names_the_library_and_the_user(world: World) -> None:
    await settled(world.make(user_agent="my-app/1").get_token(SCOPE))
    agent = world.imds.requests[0].header("User-Agent")
    assert agent is not None
    assert agent.startswith("my-app/1 azure-imds-credential/")


@row(f"{AZURE}test_imds_credential_async.py::test_imds_authority_override")
async def the_environment_names_another_endpoint(world: World) -> None:
    for number, ending in enumerate(("", "/"), start=1):
        world.environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", world.imds.endpoint + ending)
        await settled(world.make(retry_total=1).get_token(SCOPE))
        assert world.imds.assert_requests(number)[-1].path == "/metadata/identity/oauth2/token"


# Where tokens come from


@row(f"{AZURE}test_imds_credential.py::TestImds::test_managed_identity_aci_probe (within a chain)")
async def a_chain_costs_no_probe(world: World) -> None:
    """Differs: azure-identity sends a request without header first; here the answer itself tells what is there."""
    chain = world.flavor.module("azure.identity").ChainedTokenCredential(world.make())
    assert (await settled(chain.get_token(SCOPE))).token in world.imds.tokens
    assert [request.header("Metadata") for request in world.imds.requests] == ["true"]


@row(f"{MSAL}test_mi.py::GetManagedIdentitySourceTestCase", f"{AZURE}test_managed_identity.py, ALL_ENVIRONMENTS")
async def another_source_is_named_and_nothing_is_sent(world: World) -> None:
    """Differs: this credential is for IMDS alone, and says which other source the environment names."""
    set_by = {
        ManagedIdentitySource.SERVICE_FABRIC: ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IDENTITY_SERVER_THUMBPRINT"),
        ManagedIdentitySource.APP_SERVICE: ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"),
        ManagedIdentitySource.MACHINE_LEARNING: ("MSI_ENDPOINT", "MSI_SECRET"),
        ManagedIdentitySource.AZURE_ARC: ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT"),
        ManagedIdentitySource.CLOUD_SHELL: ("AZUREPS_HOST_ENVIRONMENT",),
    }
    assert detect_source() is ManagedIdentitySource.IMDS
    for source, names in set_by.items():
        with world.environment.context() as environment:
            for name in names:
                value = "cloud-shell-1" if "HOST" in name else "http://127.0.0.1:9"
                environment.setenv(name, value)
            assert detect_source() is source
            error = await refusal(ImdsUnavailableError, world.make())
            assert names[0] in str(error)
    world.imds.assert_requests(0)


@pytest.mark.parametrize(("reference", "check"), ROWS, ids=[check.__name__ for _, check in ROWS])
def test_what_the_peers_suites_check_holds_here(
    reference: str, check: Check, flavor: Flavor, virtual_time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of the table holds for both flavors."""
    assert "::" in reference or ", " in reference or ": " in reference
    with ImdsEmulator(clock=virtual_time.wall) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        world = World(imds, flavor.credential, flavor, monkeypatch, virtual_time)
        flavor.run(lambda: _told(check, world))


async def _told(check: Check, world: World) -> None:
    await check(world)
