"""The sample for Kafka, with confluent-kafka, against Apache's broker, whose own validator judges our tokens.

The broker reads the key set that the emulator publishes, and verifies signature, audience, issuer and expiry (KIP-768).
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from environment import MACHINE
from proving import CACHE, HERE, free_port, needs, run, sample_environment, tool

from azure_imds_credential.testing import ImdsEmulator

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "kafka_produce.py"
NAMESPACE = "https://shop.servicebus.windows.net"  # the audience that Event Hubs wants: the namespace
TOPIC = "greetings"
START_SECONDS = 120
VALIDATOR = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
LOGIN = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"

SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=CONTROLLER://127.0.0.1:{controller},INTERNAL://127.0.0.1:{internal},PUBLIC://127.0.0.1:{public}
inter.broker.listener.name=INTERNAL
listener.security.protocol.map=CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,PUBLIC:SASL_SSL
log.dirs={folder}/data
auto.create.topics.enable=true
offsets.topic.replication.factor=1
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
sasl.enabled.mechanisms=OAUTHBEARER
sasl.oauthbearer.jwt.validator.class=org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator
sasl.oauthbearer.jwks.endpoint.url={keys}
sasl.oauthbearer.expected.audience={audience}
sasl.oauthbearer.expected.issuer={issuer}
listener.name.public.oauthbearer.sasl.server.callback.handler.class={validator}
listener.name.public.oauthbearer.sasl.jaas.config={login} required;
"""


@pytest.fixture(scope="session")
def kafka_libraries() -> Path:
    """Return the folder of the broker's libraries, from Maven, once per pom.xml."""
    needs("confluent_kafka")
    tool("java")
    pom = HERE / "peers" / "kafka" / "pom.xml"
    folder = CACHE / "kafka"
    stamp = folder / "installed-from.xml"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "maven.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be installing
        if not stamp.exists() or stamp.read_text() != pom.read_text():
            told = f"-DoutputDirectory={folder}"
            run(tool("mvn"), "-q", "-B", "-f", pom, "dependency:copy-dependencies", told, env=MACHINE)
            stamp.write_text(pom.read_text())
    return folder


@pytest.fixture
def broker(kafka_libraries: Path, imds: ImdsEmulator, certificate: tuple[str, str], tmp_path: Path) -> Iterator[str]:
    """Run the broker on loopback ports; return where clients with tokens find it."""
    ports = {name: free_port() for name in ("controller", "internal", "public")}
    chain, key = (Path(path).read_text() for path in certificate)
    (tmp_path / "server.pem").write_text(to_pkcs8(key) + chain)
    settings = tmp_path / "server.properties"
    settings.write_text(
        SETTINGS.format(
            **ports,
            folder=tmp_path,
            keys=imds.jwks_uri,
            audience=NAMESPACE,
            issuer=imds.issuer,
            validator=VALIDATOR,
            login=LOGIN,
        )
    )
    java = [
        *(tool("java"), "-Xmx512m", "-cp", f"{kafka_libraries}/*"),
        f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={imds.jwks_uri}",
    ]
    cluster = "MkU3OEVBNTcwNTJENDM2Qg"  # any UUID in base64
    run(*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", settings, cwd=tmp_path)
    log = tmp_path / "broker.txt"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*java, "kafka.Kafka", settings], cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_until_logged("Kafka Server started", log, process)
            yield f"127.0.0.1:{ports['public']}"
        finally:
            process.kill()


def to_pkcs8(key: str) -> str:
    """Return a private key in the form that Kafka reads."""
    from cryptography.hazmat.primitives import serialization as s

    private = s.load_pem_private_key(key.encode(), None)
    return private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()


def wait_until_logged(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def test_kafka_takes_the_token(broker: str, imds: ImdsEmulator, ca_file: str) -> None:
    """The broker's validator lets the sample in, and the message is delivered; one request to IMDS."""
    said = run(
        *(sys.executable, SAMPLE, broker, TOPIC, f"{NAMESPACE}/.default", ca_file),
        seconds=60,
        env=sample_environment(ca_file),
    )
    assert said == f"{TOPIC}[0] at 0\n"
    imds.assert_requests(1, resource=NAMESPACE)


@pytest.mark.parametrize(
    ("reason", "audience", "age"),
    [("Audience (aud) claim", "https://vault.azure.net", 0), ("The JWT is no longer valid", NAMESPACE, 90_000)],
)
def test_kafka_refuses(
    broker: str, imds: ImdsEmulator, ca_file: str, tmp_path: Path, reason: str, audience: str, age: int
) -> None:
    """A token for another audience, or one that has expired, is refused by the broker's validator."""
    from confluent_kafka import Producer

    imds.advance(-age)
    token = imds.issue_token(audience)
    imds.advance(age)
    errors: list[Any] = []
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "OAUTHBEARER",
            "ssl.ca.location": ca_file,
            "oauth_cb": lambda _: (token, time.time() + 3600),  # the client must not be who refuses it
            "error_cb": errors.append,
            "log_level": 0,
        }
    )
    until = time.monotonic() + START_SECONDS
    while not any("invalid_token" in str(error) for error in errors):
        producer.poll(0.2)
        assert time.monotonic() < until, errors
    assert reason in (tmp_path / "broker.txt").read_text()


def test_kafka_wants_a_token(broker: str, ca_file: str) -> None:
    """The broker's public listener takes no client without a token."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": broker, "security.protocol": "SSL", "ssl.ca.location": ca_file})
    with pytest.raises(KafkaException):
        client.list_topics(timeout=5)
