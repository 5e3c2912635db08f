"""Azure's SecretClient, as its users make it, works a whole vault with our credential. The vault is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trustme
from azure.core.exceptions import AzureError, HttpResponseError, ResourceNotFoundError
from azure.keyvault.secrets import SecretClient
from cloud import Answer, Cloud, Request
from proving import Flavor, listed, opened, settled
from vault import AUDIENCE, Vault

from azure_imds_credential import IdentityUnavailableError, ImdsCredential
from azure_imds_credential.testing import ImdsEmulator, SystemAssigned, UserAssigned

# Key Vault clients remember the challenge of a host for the whole process: each test has a host of its own.


class Kit:
    """A vault of this test's own, in the cloud, and how a client reaches it."""

    def __init__(self, cloud: Cloud, vault: Vault, ca_file: str) -> None:
        self.cloud, self.vault, self.url = cloud, vault, f"https://{vault.host}"
        self.way = {"proxies": cloud.proxies, "connection_verify": ca_file}


@pytest.fixture
def kit(request: pytest.FixtureRequest, imds: ImdsEmulator, authority: trustme.CA, ca_file: str) -> Iterator[Kit]:
    name = "".join(letter for letter in request.node.name.replace("_", "-") if letter.isalnum() or letter == "-")[-60:]
    vault = Vault(f"{name.strip('-').lower()}.vault.azure.net")
    with Cloud(imds, authority, {vault.host: vault.service}) as cloud:
        yield Kit(cloud, vault, ca_file)


def test_secrets_live_and_die(kit: Kit, imds: ImdsEmulator, flavor: Flavor) -> None:
    """Set, read, versions, pages of a list, deleted, recovered, purged: one token serves it all."""

    async def story() -> None:
        async with opened(
            flavor.module("azure.keyvault.secrets").SecretClient(kit.url, flavor.credential(), **kit.way)
        ) as client:
            first = await settled(client.set_secret("a", "old", tags={"of": "test"}))
            await settled(client.set_secret("a", "new"))
            for name in ("b", "c"):
                await settled(client.set_secret(name, name))
            assert (await settled(client.get_secret("a"))).value == "new"
            assert (await settled(client.get_secret("a", first.properties.version))).value == "old"
            assert [one.name for one in await listed(client.list_properties_of_secrets())] == ["a", "b", "c"]
            versions = await listed(client.list_properties_of_secret_versions("a"))
            assert [one.tags for one in versions] == [{"of": "test"}, None]
            delete = client.begin_delete_secret if flavor.name == "sync" else client.delete_secret
            assert (await settled(delete("a"))).recovery_id.endswith("/deletedsecrets/a")
            assert [one.name for one in await listed(client.list_deleted_secrets())] == ["a"]
            with pytest.raises(ResourceNotFoundError, match="SecretNotFound"):
                await settled(client.get_secret("a"))
            recover = client.begin_recover_deleted_secret if flavor.name == "sync" else client.recover_deleted_secret
            await settled(recover("a"))
            assert (await settled(client.get_secret("a"))).value == "new"
            await settled(delete("b"))
            await settled(client.purge_deleted_secret("b"))
            with pytest.raises(ResourceNotFoundError):
                await settled(client.get_deleted_secret("b"))

    flavor.run(story)
    imds.assert_requests(1, resource=AUDIENCE)
    refused = [line for line in kit.cloud.requests if line.startswith("401")]
    assert len(refused) == 1, "only the first request goes without a token, to be challenged"


def test_a_wrong_name_is_the_vaults_answer(kit: Kit, flavor: Flavor) -> None:
    """A secret that does not exist is ResourceNotFoundError, as from any credential."""

    async def story() -> None:
        async with opened(
            flavor.module("azure.keyvault.secrets").SecretClient(kit.url, flavor.credential(), **kit.way)
        ) as client:
            with pytest.raises(ResourceNotFoundError, match="nowhere was not found"):
                await settled(client.get_secret("nowhere"))

    flavor.run(story)


@pytest.mark.parametrize("resource", [AUDIENCE, "https://vault.example.net"], ids=["own", "foreign"])
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_the_challenge_decides_what_is_asked_for(
    imds: ImdsEmulator, authority: trustme.CA, ca_file: str, flavor: Flavor, resource: str, verify: bool
) -> None:
    """A foreign resource in the challenge gets no token while it is verified; unverified, one for it is fetched."""
    own = "own" if resource == AUDIENCE else "foreign"
    vault = Vault(f"challenge-{flavor.name}-{own}-{verify}.vault.azure.net".lower(), resource=resource)
    vault.service = vault.service._replace(audience=resource)
    with Cloud(imds, authority, {vault.host: vault.service}) as cloud:

        async def story() -> None:
            async with opened(
                flavor.module("azure.keyvault.secrets").SecretClient(
                    f"https://{vault.host}",
                    flavor.credential(),
                    verify_challenge_resource=verify,
                    proxies=cloud.proxies,
                    connection_verify=ca_file,
                )
            ) as client:
                if verify and resource != AUDIENCE:
                    with pytest.raises(ValueError, match="does not match the requested domain"):
                        await settled(client.set_secret("a", "1"))
                else:
                    assert (await settled(client.set_secret("a", "1"))).value == "1"

        flavor.run(story)
    refused = verify and resource != AUDIENCE
    imds.assert_requests(0 if refused else 1)
    imds.assert_requests(0 if refused else 1, resource=resource)


def test_a_claims_challenge_is_met_with_a_newer_token(kit: Kit, imds: ImdsEmulator, flavor: Flavor) -> None:
    """When the vault wants other claims, the client asks with them and gets a token that was not held before."""

    async def story() -> None:
        async with opened(
            flavor.module("azure.keyvault.secrets").SecretClient(kit.url, flavor.credential(), **kit.way)
        ) as client:
            await settled(client.set_secret("a", "1"))
            kit.vault.claims_wanted = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}'
            assert (await settled(client.get_secret("a"))).value == "1"

    flavor.run(story)
    asked = imds.assert_requests(2)
    assert [request.param("bypass_cache") for request in asked] == [None, "true"]
    assert len(imds.tokens) == 2
    assert "claims" not in asked[1].query


def test_the_certificate_is_verified(kit: Kit, imds: ImdsEmulator, flavor: Flavor) -> None:
    """Without the authority's certificate the client talks neither to the vault nor, for it, to IMDS."""

    async def story() -> None:
        async with opened(
            flavor.module("azure.keyvault.secrets").SecretClient(
                kit.url, flavor.credential(), proxies=kit.cloud.proxies, retry_total=0
            )
        ) as client:
            with pytest.raises(AzureError, match=r"(?i)certificate.verify.failed"):
                await settled(client.get_secret("a"))

    flavor.run(story)
    assert kit.cloud.requests == []
    imds.assert_requests(0)


@pytest.mark.parametrize("selector", ["client_id", "object_id", "resource_id"])
def test_the_vault_sees_the_identity_that_was_named(
    imds: ImdsEmulator, authority: trustme.CA, ca_file: str, flavor: Flavor, selector: str
) -> None:
    """The token that reaches the vault is the named identity's, not the machine's."""
    for each in imds.identities:
        imds.remove(each)
    app = UserAssigned("app")
    for each in (SystemAssigned(), app, UserAssigned("other")):
        imds.assign(each)
    seen = []
    vault = Vault(f"names-{selector.replace('_', '-')}-{flavor.name}.vault.azure.net")
    vault.secrets["a"] = [{"id": f"https://{vault.host}/secrets/a/1", "value": "1", "attributes": {}}]

    def answer(request: Request) -> Answer:
        seen.append(request.claims["oid"])
        return vault.answer(request)

    service = vault.service._replace(answer=answer)
    with Cloud(imds, authority, {vault.host: service}) as cloud:

        async def story() -> None:
            credential = flavor.credential(**{selector: getattr(app, selector)})
            async with opened(
                flavor.module("azure.keyvault.secrets").SecretClient(
                    f"https://{vault.host}", credential, proxies=cloud.proxies, connection_verify=ca_file
                )
            ) as client:
                assert (await settled(client.get_secret("a"))).value == "1"

        flavor.run(story)
    assert seen == [app.object_id]


def test_no_identity_is_told_through_the_client(kit: Kit, imds: ImdsEmulator, flavor: Flavor) -> None:
    """The user of SecretClient sees IdentityUnavailableError with what to do, and the vault sees no token."""
    for each in imds.identities:
        imds.remove(each)

    async def story() -> None:
        async with opened(
            flavor.module("azure.keyvault.secrets").SecretClient(kit.url, flavor.credential(), **kit.way)
        ) as client:
            with pytest.raises(IdentityUnavailableError, match="az vm identity assign"):
                await settled(client.get_secret("a"))

    flavor.run(story)
    assert [line[:3] for line in kit.cloud.requests] == ["401"]


def test_a_token_for_another_tenants_keys_is_refused(kit: Kit, imds: ImdsEmulator, ca_file: str) -> None:
    """The judge can say no: a token whose signature does not fit the published keys gets 401."""
    with SecretClient(kit.url, ImdsCredential(), **kit.way) as client:
        client.set_secret("a", "1")
        header, payload, _ = imds.tokens[0].split(".")
        forged = f"{header}.{payload}.{'A' * 342}"

    class Forger:
        def get_token(self, *scopes: str, **_: object) -> object:
            return ImdsCredential().get_token(*scopes)._replace(token=forged)

    with SecretClient(kit.url, Forger(), **kit.way) as client:  # type: ignore[arg-type] # no TokenCredential
        with pytest.raises(HttpResponseError, match="Signature verification failed"):
            client.get_secret("a")
