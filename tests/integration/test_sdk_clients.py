"""Azure's other clients, each as its users make it: default URL, default scope, our credential, its real pipeline."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
import pytest
import trustme
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos.documents import ConnectionPolicy, SSLConfiguration
from azure.keyvault.keys.crypto import SignatureAlgorithm
from cloud import Answer, Cloud, Request, Service
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from proving import Flavor, listed, opened, settled
from vault import AUDIENCE, Vault

from azure_imds_credential import ImdsRequestError
from azure_imds_credential.testing import ImdsEmulator

ARM = "https://management.azure.com"
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
COSMOS_HOST = "demo.documents.azure.com"
END_SECONDS = 60


@pytest.fixture
def way(imds: ImdsEmulator, authority: trustme.CA, ca_file: str) -> Iterator[Any]:
    """Start services and give what a client needs to reach them: a proxy and a certificate to trust."""
    running: list[Cloud] = []

    def start(services: Mapping[str, Service]) -> dict[str, Any]:
        cloud = Cloud(imds, authority, services)
        running.append(cloud.__enter__())
        return {"proxies": cloud.proxies, "connection_verify": ca_file}

    yield start
    for cloud in running:
        cloud.__exit__()
        refused = [line for line in cloud.requests if line.startswith("401")]
        assert len(cloud.requests) > len(refused), "the service was never reached with a good token"


def _vault_host(flavor: Flavor, kind: str) -> str:
    return f"{kind}-{flavor.name}.vault.azure.net"


def test_keys_are_made_listed_and_sign(way: Any, imds: ImdsEmulator, flavor: Flavor) -> None:
    """KeyClient makes and lists keys, CryptographyClient signs with one; the signature holds; one IMDS request."""
    host = _vault_host(flavor, "keys")
    how = way({host: Vault(host).service})

    async def story() -> None:
        keys, crypto = flavor.module("azure.keyvault.keys"), flavor.module("azure.keyvault.keys.crypto")
        credential = flavor.credential()
        async with opened(keys.KeyClient(f"https://{host}", credential, **how)) as client:
            key = await settled(client.create_rsa_key("signing", size=2048))
            assert [one.name for one in await listed(client.list_properties_of_keys())] == ["signing"]
        async with opened(crypto.CryptographyClient(key.id, credential, **how)) as client:
            digest, rs256 = bytes(range(32)), SignatureAlgorithm.rs256
            signed = await settled(client.sign(rs256, digest))
            assert (await settled(client.verify(rs256, digest, signed.signature))).is_valid
            assert not (await settled(client.verify(rs256, digest[::-1], signed.signature))).is_valid

    flavor.run(story)
    imds.assert_requests(1, resource=AUDIENCE)


def test_certificates_are_listed_and_read(way: Any, imds: ImdsEmulator, authority: trustme.CA, flavor: Flavor) -> None:
    """CertificateClient lists certificates and reads one; one IMDS request."""
    host = _vault_host(flavor, "certificates")
    der = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).public_bytes(Encoding.DER)
    how = way({host: Vault(host, der).service})

    async def story() -> None:
        module = flavor.module("azure.keyvault.certificates")
        async with opened(module.CertificateClient(f"https://{host}", flavor.credential(), **how)) as client:
            assert [one.name for one in await listed(client.list_properties_of_certificates())] == ["site"]
            assert bytes((await settled(client.get_certificate("site"))).cer) == der

    flavor.run(story)
    imds.assert_requests(1, resource=AUDIENCE)


class Arm:
    """Azure Resource Manager: two resource groups, one of them being deleted; a virtual machine."""

    def __init__(self) -> None:
        self.polls = 0
        self.service = Service(ARM, self.answer, {"WWW-Authenticate": 'Bearer error="invalid_token"'})

    def answer(self, request: Request) -> Answer:
        groups = f"/subscriptions/{SUBSCRIPTION}/resourcegroups"
        path = request.path.lower()
        if request.method == "DELETE" and path == f"{groups}/old":
            return Answer(
                202, headers={"Location": f"{ARM}/subscriptions/{SUBSCRIPTION}/operationresults/1", "Retry-After": "0"}
            )
        if path.endswith("/operationresults/1"):
            self.polls += 1
            return Answer(202, headers={"Retry-After": "0"}) if self.polls < 3 else Answer(200)
        if path == groups:
            return Answer(
                200, {"value": [{"id": f"{groups}/{name}", "name": name, "location": "x"} for name in ("old", "new")]}
            )
        if path.endswith("/providers/microsoft.compute/virtualmachines"):
            return Answer(200, {"value": [{"id": f"{groups}/new/vm-1", "name": "vm-1", "location": "x"}]})
        return Answer(404, {"error": {"code": "NotFound", "message": request.path}})


def test_resource_groups_are_listed_and_deleted(way: Any, imds: ImdsEmulator, flavor: Flavor) -> None:
    """ResourceManagementClient lists and, in a long-running operation, deletes; every poll has the token."""
    arm = Arm()
    how = way({"management.azure.com": arm.service})

    async def story() -> None:
        module = flavor.module("azure.mgmt.resource.resources")
        async with opened(module.ResourceManagementClient(flavor.credential(), SUBSCRIPTION, **how)) as client:
            assert [one.name for one in await listed(client.resource_groups.list())] == ["old", "new"]
            await settled(client.resource_groups.begin_delete("old", polling_interval=0))

    flavor.run(story)
    assert arm.polls == 3
    imds.assert_requests(1, resource=ARM)


def test_virtual_machines_are_listed(way: Any, imds: ImdsEmulator, flavor: Flavor) -> None:
    """ComputeManagementClient lists virtual machines; one IMDS request."""
    how = way({"management.azure.com": Arm().service})

    async def story() -> None:
        module = flavor.module("azure.mgmt.compute")
        async with opened(module.ComputeManagementClient(flavor.credential(), SUBSCRIPTION, **how)) as client:
            assert [one.name for one in await listed(client.virtual_machines.list_all())] == ["vm-1"]

    flavor.run(story)
    imds.assert_requests(1, resource=ARM)


def test_settings_are_read(way: Any, imds: ImdsEmulator, flavor: Flavor) -> None:
    """AzureAppConfigurationClient reads a setting with a token for App Configuration."""

    def answer(request: Request) -> Answer:
        if request.path != "/kv/flavor":
            return Answer(404)
        return Answer(200, {"key": "flavor", "value": "blue", "etag": "1", "locked": False, "tags": {}})

    how = way({"demo.azconfig.io": Service("https://azconfig.io", answer)})

    async def story() -> None:
        module = flavor.module("azure.appconfiguration")
        client = module.AzureAppConfigurationClient("https://demo.azconfig.io", flavor.credential(), **how)
        async with opened(client):
            assert (await settled(client.get_configuration_setting("flavor"))).value == "blue"

    flavor.run(story)
    imds.assert_requests(1, resource="https://azconfig.io")


def _cosmos(request: Request) -> Answer:
    if request.path == "/":
        here = [{"name": "West Europe", "databaseAccountEndpoint": f"https://{COSMOS_HOST}:443/"}]
        account = {"id": "demo", "_rid": COSMOS_HOST, "writableLocations": here, "readableLocations": here}
        policy = {"userConsistencyPolicy": {"defaultConsistencyLevel": "Session"}}
        return Answer(200, {**account, **policy, "enableMultipleWriteLocations": False})
    if request.path.strip("/") == "dbs":
        return Answer(200, {"_rid": "", "Databases": [{"id": "books", "_rid": "a"}], "_count": 1})
    return Answer(404, {"code": "NotFound", "message": request.path})


def _trusting(ca_file: str, flavor: Flavor) -> dict[str, Any]:
    """How a CosmosClient is told whom to trust: each flavor has one way that works."""
    if flavor.name == "sync":
        policy = ConnectionPolicy()
        policy.SSLConfiguration = SSLConfiguration()
        policy.SSLConfiguration.SSLCaCerts = ca_file
        return {"connection_policy": policy}
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca_file))
    return {"transport": AioHttpTransport(session=aiohttp.ClientSession(connector=connector))}


@pytest.mark.parametrize("known", [f"https://{COSMOS_HOST}", "https://cosmos.azure.com"], ids=["account", "fallback"])
def test_databases_are_listed(
    authority: trustme.CA, ca_file: str, flavor: Flavor, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CosmosClient asks for its account's audience and, when Entra knows none (AADSTS500011), for that of all."""
    with ImdsEmulator(known_resources=[known]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        service = Service(known, _cosmos, prefix="type=aad&ver=1.0&sig=")
        with Cloud(imds, authority, {COSMOS_HOST: service}) as cloud:

            async def story() -> None:
                client = flavor.module("azure.cosmos").CosmosClient(
                    f"https://{COSMOS_HOST}:443/",
                    flavor.credential(),
                    proxies=cloud.proxies,
                    **_trusting(ca_file, flavor),
                    retry_total=0,
                )
                enter = getattr(client, "__aenter__", None) or client.__enter__
                leave = getattr(client, "__aexit__", None) or client.__exit__
                await settled(enter())
                try:
                    assert [one["id"] for one in await listed(client.list_databases())] == ["books"]
                finally:
                    await settled(leave(None, None, None))

            flavor.run(story)
            # The sync client looks at its account in a thread, which goes on when the client is closed.
            for thread in threading.enumerate():
                if thread.name == "cosmos-endpoint-refresh":
                    thread.join(END_SECONDS)
                    assert not thread.is_alive()
            assert {line[:3] for line in cloud.requests} == {"200"}
        asked = [request.param("resource") for request in imds.token_requests]
        assert asked == list(dict.fromkeys([f"https://{COSMOS_HOST}", known]))


def test_a_resource_that_entra_does_not_know_stops_a_client(
    authority: trustme.CA, ca_file: str, flavor: Flavor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's user sees ImdsRequestError with Entra's code, which azure-core takes for an authentication error."""
    with ImdsEmulator(known_resources=["https://vault.azure.net"]) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        with Cloud(imds, authority, {"management.azure.com": Arm().service}) as cloud:
            how = {"proxies": cloud.proxies, "connection_verify": ca_file}

            async def story() -> None:
                module = flavor.module("azure.mgmt.compute")
                async with opened(module.ComputeManagementClient(flavor.credential(), SUBSCRIPTION, **how)) as client:
                    with pytest.raises(ImdsRequestError, match="AADSTS500011") as caught:
                        await listed(client.virtual_machines.list_all())
                    assert isinstance(caught.value, ClientAuthenticationError)

            flavor.run(story)
            assert cloud.requests == []
