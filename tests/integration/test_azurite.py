"""Azurite, Microsoft's emulator of Azure Storage, judges our tokens: issuer, audience and times, over TLS."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock
from proving import Flavor, listed, opened, settled, tool

from azure_imds_credential import IdentityMismatchError, ImdsCredential, ImdsServiceError
from azure_imds_credential.testing import ImdsEmulator, faults, forget_tokens

ACCOUNT = "devstoreaccount1"  # the one account that Azurite has
STORAGE = "https://storage.azure.com"
MIB = 1 << 20
THREADS = 16
DAY = 86400.0
START_SECONDS = 60


class Azurite:
    """A running Azurite.

    Args:
        text: What it printed when it had started.
        ca_file: What its clients trust.
    """

    def __init__(self, text: str, ca_file: str) -> None:
        found = dict(re.findall(r"Azurite (Blob|Queue) service is successfully listening at (\S+)", text))
        self.blob, self.queue = (f"{found[kind]}/{ACCOUNT}" for kind in ("Blob", "Queue"))
        self.trust: dict[str, Any] = {"connection_verify": ca_file}


@pytest.fixture(scope="module")
def azurite(
    peers: Path, certificate: tuple[str, str], ca_file: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Azurite]:
    folder = tmp_path_factory.mktemp("azurite")
    log = folder / "log.txt"
    command = [tool("node"), str(peers / "azurite/dist/src/azurite.js")]
    for kind in ("blob", "queue", "table"):
        command += [f"--{kind}Host", "127.0.0.1", f"--{kind}Port", "0"]
    # The newest clients speak newer versions of the protocol than Azurite knows of, which it would refuse to hear.
    command += ["--oauth", "basic", "--cert", certificate[0], "--key", certificate[1], "--skipApiVersionCheck"]
    command += ["--inMemoryPersistence", "--disableTelemetry"]
    with log.open("w") as out, subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            until = time.monotonic() + START_SECONDS
            while log.read_text().count("successfully listening at") < 3:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield Azurite(log.read_text(), ca_file)
        finally:
            process.terminate()
            process.wait(10)


def test_blobs_are_written_listed_read_and_deleted(azurite: Azurite, imds: ImdsEmulator, flavor: Flavor) -> None:
    """Azurite accepts the tokens for everything that a blob client does, and one request to IMDS serves it all."""

    async def story() -> None:
        storage = flavor.module("azure.storage.blob")
        async with opened(storage.BlobServiceClient(azurite.blob, flavor.credential(), **azurite.trust)) as service:
            container = service.get_container_client(f"all-{flavor.name}")
            await settled(container.create_container())
            await settled(container.upload_blob("one.txt", b"one"))
            await settled(container.upload_blob("two.txt", b"two", metadata={"n": "2"}))
            assert [blob.name for blob in await listed(container.list_blobs())] == ["one.txt", "two.txt"]
            download = await settled(container.download_blob("two.txt"))
            assert await settled(download.readall()) == b"two"
            await settled(container.delete_blob("one.txt"))
            assert [blob.name for blob in await listed(container.list_blobs())] == ["two.txt"]

    flavor.run(story)
    imds.assert_requests(1, resource=STORAGE)


def test_messages_are_sent_peeked_received_and_deleted(azurite: Azurite, imds: ImdsEmulator, flavor: Flavor) -> None:
    """Azurite accepts the tokens for everything that a queue client does, and one request to IMDS serves it all."""

    async def story() -> None:
        storage = flavor.module("azure.storage.queue")
        async with opened(storage.QueueServiceClient(azurite.queue, flavor.credential(), **azurite.trust)) as service:
            queue = await settled(service.create_queue(f"all-{flavor.name}"))
            for text in ("one", "two"):
                await settled(queue.send_message(text))
            assert [message.content for message in await settled(queue.peek_messages(max_messages=5))] == ["one", "two"]
            received = await listed(queue.receive_messages())
            assert sorted(message.content for message in received) == ["one", "two"]
            for message in received:
                await settled(queue.delete_message(message))
            assert (await settled(queue.get_queue_properties())).approximate_message_count == 0

    flavor.run(story)
    imds.assert_requests(1, resource=STORAGE)


def test_64_mib_in_parallel_blocks_take_one_request(azurite: Azurite, imds: ImdsEmulator, flavor: Flavor) -> None:
    """A client that uploads and downloads 64 blocks, 16 at once, asks IMDS once."""
    data = os.urandom(64 * MIB)
    small = {"max_block_size": MIB, "max_single_put_size": MIB, "max_single_get_size": MIB, "max_chunk_get_size": MIB}

    async def story() -> None:
        storage = flavor.module("azure.storage.blob")
        async with opened(
            storage.BlobServiceClient(azurite.blob, flavor.credential(), **small, **azurite.trust)
        ) as service:
            container = service.get_container_client(f"large-{flavor.name}")
            await settled(container.create_container())
            blob = container.get_blob_client("64-MiB")
            await settled(blob.upload_blob(data, max_concurrency=THREADS))
            committed, _ = await settled(blob.get_block_list())
            assert [block.size for block in committed] == [MIB] * 64
            download = await settled(blob.download_blob(max_concurrency=THREADS))
            assert hashlib.sha256(await settled(download.readall())).digest() == hashlib.sha256(data).digest()

    flavor.run(story)
    imds.assert_requests(1, resource=STORAGE)


def test_16_threads_with_a_credential_each_take_one_request(azurite: Azurite, imds: ImdsEmulator) -> None:
    """Threads that start together, each with its own credential and client and no token held, ask IMDS once."""
    from azure.storage.blob import BlobClient, ContainerClient

    data, share = os.urandom(64 * MIB), 64 * MIB // THREADS
    start = threading.Barrier(THREADS)
    with ContainerClient(azurite.blob, "threads", ImdsCredential(), **azurite.trust) as container:
        container.create_container()
    forget_tokens()
    imds.clear_requests()

    def client() -> BlobClient:
        return BlobClient(azurite.blob, "threads", "64-MiB", credential=ImdsCredential(), **azurite.trust)

    def upload(number: int) -> None:
        start.wait(30)
        with client() as blob:
            blob.stage_block(f"{number:04}", data[number * share : (number + 1) * share])

    def download(number: int) -> bytes:
        with client() as blob:
            return blob.download_blob(number * share, share).readall()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(upload, range(THREADS)))
        with client() as blob:
            blob.commit_block_list([BlobBlock(f"{number:04}") for number in range(THREADS)])
        assert b"".join(pool.map(download, range(THREADS))) == data
    imds.assert_requests(1, resource=STORAGE)


def _token(**claims: Any) -> str:
    """A token of another issuer, or without a claim: dummy, signed with a dummy key."""
    now = int(time.time())
    usual = {"aud": STORAGE, "iss": ImdsEmulator.issuer, "iat": now, "nbf": now, "exp": now + 3600}
    return jwt.encode({**usual, **claims}, "a dummy key that nothing in the world accepts", "HS256")


@pytest.mark.parametrize(
    ("behind", "answer", "audience", "refusal"),
    [
        (0, {}, "https://vault.azure.net", "audience"),
        (2 * DAY, {}, STORAGE, "expired"),
        (-2 * DAY, {}, STORAGE, "Lifetime validation failed"),
        (0, {"access_token": "no-jwt-at-all"}, STORAGE, "not supported"),
        (0, {"access_token": _token(iss="https://issuer.example/")}, STORAGE, "issuer"),
    ],
    ids=["wrong audience", "expired", "not yet valid", "malformed", "foreign issuer"],
)
def test_a_token_that_azurite_refuses_is_shown_as_its_refusal(
    azurite: Azurite,
    monkeypatch: pytest.MonkeyPatch,
    flavor: Flavor,
    behind: float,
    answer: dict[str, Any],
    audience: str,
    refusal: str,
) -> None:
    """What IMDS hands out in good form is passed on; the storage client reports the service's refusal, no ImdsError."""
    with ImdsEmulator(clock=lambda: time.time() - behind) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)
        if answer:
            imds.script(faults.members(**answer))

        async def story() -> None:
            storage = flavor.module("azure.storage.blob")
            credential = flavor.credential()
            async with opened(
                storage.BlobServiceClient(azurite.blob, credential, audience=audience, retry_total=0, **azurite.trust)
            ) as service:
                with pytest.raises(HttpResponseError, match=refusal) as caught:
                    await settled(service.create_container("refused"))
                assert caught.value.status_code in (401, 403)
                info = await settled(credential.whoami(f"{audience}/.default"))
                if behind > 0:
                    assert info.expires_on < time.time()
                if not answer:
                    assert info.audience == audience

        flavor.run(story)


@pytest.mark.parametrize(
    ("answer", "error", "requests"),
    [
        ({"access_token": "two words"}, ImdsServiceError, 2),
        ({"access_token": ""}, ImdsServiceError, 2),
        ({"expires_in": "0", "expires_on": "1"}, ImdsServiceError, 2),
        ({"resource": "https://vault.azure.net"}, IdentityMismatchError, 1),
    ],
    ids=["spaces", "empty", "already expired", "for another resource"],
)
def test_a_bad_token_never_reaches_azurite(
    azurite: Azurite, imds: ImdsEmulator, flavor: Flavor, answer: dict[str, Any], error: type[AzureError], requests: int
) -> None:
    """What cannot be a token for this resource is our error, as the storage client's user sees it; nothing is sent."""
    imds.script(*[faults.members(**answer)] * 2)
    heard: list[object] = []

    async def story() -> None:
        storage = flavor.module("azure.storage.blob")
        async with opened(
            storage.BlobServiceClient(
                azurite.blob, flavor.credential(), raw_response_hook=heard.append, retry_total=0, **azurite.trust
            )
        ) as service:
            with pytest.raises(error):
                await settled(service.create_container("never"))

    flavor.run(story)
    assert heard == []
    imds.assert_requests(requests)


def test_a_refreshed_token_is_accepted_again(azurite: Azurite, monkeypatch: pytest.MonkeyPatch, flavor: Flavor) -> None:
    """After IMDS handed out an expired token, force_refresh fetches one that Azurite accepts."""
    with ImdsEmulator(clock=lambda: time.time() - 2 * DAY) as imds:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds.endpoint)

        async def story() -> None:
            storage = flavor.module("azure.storage.blob")
            credential = flavor.credential()
            async with opened(
                storage.BlobServiceClient(azurite.blob, credential, retry_total=0, **azurite.trust)
            ) as service:
                with pytest.raises(HttpResponseError, match="expired"):
                    await settled(service.create_container("later"))
            imds.advance(2 * DAY)
            await settled(credential.get_token(f"{STORAGE}/.default", force_refresh=True))
            async with opened(
                storage.BlobServiceClient(azurite.blob, credential, retry_total=0, **azurite.trust)
            ) as service:
                await settled(service.create_container(f"later-{flavor.name}"))

        flavor.run(story)
        imds.assert_requests(2)


def test_a_certificate_of_nobody_known_is_refused(azurite: Azurite, imds: ImdsEmulator) -> None:
    """Verification is on: without the authority's certificate the client does not talk to Azurite."""
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient(azurite.blob, ImdsCredential(), retry_total=0) as service:
        with pytest.raises(AzureError, match="CERTIFICATE_VERIFY_FAILED"):
            service.create_container("untrusted")
