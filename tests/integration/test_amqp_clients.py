"""Event Hubs and Service Bus put our token to $cbs over AMQP, where a broker made of others' parts judges it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trustme
from proving import HERE, Flavor, opened, settled, tool

from azure_imds_credential.testing import ImdsEmulator, faults

NAMESPACE = "demo.servicebus.windows.net"
START_SECONDS = 60


class Broker:
    """A running broker: `facts` is what it told so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.facts: list[dict[str, Any]] = []
        self._told = threading.Condition()
        assert process.stdout is not None
        self._lines = process.stdout
        threading.Thread(target=self._listen, daemon=True).start()
        self.port = self.wait_for("port")["port"]

    def _listen(self) -> None:
        for line in self._lines:
            with self._told:
                self.facts.append(json.loads(line))
                self._told.notify_all()

    def wait_for(self, name: str) -> dict[str, Any]:
        """The first fact with this name."""

        def told() -> list[dict[str, Any]]:
            return [fact for fact in self.facts if name in fact]

        with self._told:
            assert self._told.wait_for(told, START_SECONDS), self.facts
            return told()[0]


@pytest.fixture
def broker(peers: Path, imds: ImdsEmulator, authority: trustme.CA, tmp_path: Path) -> Iterator[Broker]:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    leaf = authority.issue_cert(NAMESPACE, "127.0.0.1")
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)
    command = [tool("node"), "amqp.mjs", imds.jwks_uri, imds.issuer, str(chain), str(key)]
    with subprocess.Popen(command, cwd=HERE / "peers", stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Broker(process)
        finally:
            process.terminate()
            process.wait(10)


def _way(broker: Broker, ca_file: str, package: str) -> dict[str, Any]:
    return {
        "transport_type": import_module(package).TransportType.Amqp,  # a custom endpoint means web sockets otherwise
        "custom_endpoint_address": f"amqps://127.0.0.1:{broker.port}",
        "connection_verify": ca_file,
        "retry_total": 0,
    }


def test_an_event_hub_is_described_and_written_to(
    broker: Broker, imds: ImdsEmulator, flavor: Flavor, ca_file: str
) -> None:
    """EventHubProducerClient reads the hub's properties and sends an event with one token for Event Hubs."""

    async def story() -> None:
        from azure.eventhub import EventData

        module = flavor.module("azure.eventhub")
        client = module.EventHubProducerClient(
            NAMESPACE, "hub", flavor.credential(), **_way(broker, ca_file, "azure.eventhub")
        )
        async with opened(client):
            assert (await settled(client.get_eventhub_properties()))["partition_ids"] == ["0", "1"]
            batch = await settled(client.create_batch())
            batch.add(EventData("hello"))
            await settled(client.send_batch(batch))

    flavor.run(story)
    assert broker.wait_for("message")["message"].endswith("/hub")
    put = broker.wait_for("put")
    assert (put["status"], put["audience"]) == (202, "https://eventhubs.azure.net/")
    assert put["oid"] == imds.identities[0].object_id
    imds.assert_requests(1, resource="https://eventhubs.azure.net/")


def test_a_service_bus_queue_is_written_to(broker: Broker, imds: ImdsEmulator, flavor: Flavor, ca_file: str) -> None:
    """ServiceBusClient sends a message with one token for Service Bus."""

    async def story() -> None:
        from azure.servicebus import ServiceBusMessage

        module = flavor.module("azure.servicebus")
        async with opened(
            module.ServiceBusClient(NAMESPACE, flavor.credential(), **_way(broker, ca_file, "azure.servicebus"))
        ) as client:
            async with opened(client.get_queue_sender("queue")) as sender:
                await settled(sender.send_messages(ServiceBusMessage("hello")))

    flavor.run(story)
    assert broker.wait_for("message")["message"].endswith("/queue")
    put = broker.wait_for("put")
    assert (put["status"], put["audience"]) == (202, "https://servicebus.azure.net/")
    imds.assert_requests(1, resource="https://servicebus.azure.net/")


def test_a_token_that_the_broker_refuses_sends_nothing(
    broker: Broker, imds: ImdsEmulator, flavor: Flavor, ca_file: str
) -> None:
    """The judge can say no: a token of another kind is refused at $cbs, and no message gets through."""
    imds.script(faults.members(access_token="no-jwt-at-all"))

    async def story() -> None:
        from azure.eventhub.exceptions import EventHubError

        module = flavor.module("azure.eventhub")
        client = module.EventHubProducerClient(
            NAMESPACE, "hub", flavor.credential(), **_way(broker, ca_file, "azure.eventhub")
        )
        async with opened(client):
            with pytest.raises(EventHubError):
                await settled(client.get_eventhub_properties())

    flavor.run(story)
    assert broker.wait_for("put")["status"] == 401
    assert not [fact for fact in broker.facts if "message" in fact]
