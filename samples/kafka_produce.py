"""Kafka (Event Hubs) with OAUTHBEARER.  Usage: kafka_produce.py BOOTSTRAP TOPIC SCOPE [CA_FILE]."""

import sys

from confluent_kafka import KafkaError, Message, Producer

from azure_imds_credential import ImdsCredential


def delivered(error: KafkaError | None, message: Message) -> None:
    """Print where the message is, or raise."""
    if error:
        sys.exit(str(error))
    print(f"{message.topic()}[{message.partition()}] at {message.offset()}")


if __name__ == "__main__":
    bootstrap, topic, scope, *ca_file = sys.argv[1:]
    credential = ImdsCredential()
    settings = {
        "bootstrap.servers": bootstrap,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "oauth_cb": lambda _: credential.get_token(scope)[:2],  # the token, and when it expires
        "message.timeout.ms": 20_000,
        **({"ssl.ca.location": ca_file[0]} if ca_file else {}),
    }
    producer = Producer(settings)
    producer.produce(topic, b"hello", on_delivery=delivered)
    sys.exit("not delivered" if producer.flush(30) else 0)
