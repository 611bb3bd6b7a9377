"""The records of a topic with one partition, as a consumer gets them."""

import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tests.servers.kafka import KafkaServer

SECONDS = 60


def read_topic(kafka: KafkaServer, topic: str, count: int) -> list[Any]:
    """Wait for so many records of a topic, and return all of them."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records: list[Any] = []
    deadline = time.monotonic() + SECONDS
    try:
        while len(records) < count:
            assert time.monotonic() < deadline, f"{len(records)} of {count} records"
            for message in consumer.consume(count, 0.5):
                assert message.error() is None
                records.append(message)
    finally:
        consumer.close()
    return records
