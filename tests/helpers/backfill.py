"""What tests of backfills share: three days of events, an archive in a cold class, and what a backfill has copied."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from custody.store.open import open_store
from custody.store.protocol import S3Options
from tasks.settings import Settings
from tests.helpers.corpus import EVENTS
from tests.helpers.sample import Growing
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import MotoServer

DAY = datetime(2026, 3, 1, tzinfo=UTC)
NIGHT = timedelta(days=1)
KINDS = list(EVENTS)
DAYS_OFFSETS = list(range(24, 48))
"""Offsets of the events of DAY."""


def hourly(offset: int) -> bytes:
    """Return an event of each hour from a day before DAY on, each of the six types in turn."""
    moment = DAY - NIGHT + timedelta(hours=offset)
    fields = {"timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"), "request_id": f"request-{offset}"}
    return json.dumps({**EVENTS[KINDS[offset % len(KINDS)]], **fields}).encode()


def lines_in(folder: Path) -> list[bytes]:
    """Return the lines of all files in a folder, in order of their offsets."""
    found: list[bytes] = []
    for path in sorted(folder.rglob("*.jsonl.gz")):
        found += gzip.decompress(path.read_bytes()).splitlines()
    return found


Copied = tuple[bytes, bytes, dict[str, bytes], int]
"""Key, value, headers and partition of a record."""


def records(server: KafkaServer, topic: str, partitions: int) -> list[Copied]:
    """Return what a topic holds."""
    found: list[Copied] = []
    consumer = Consumer({"bootstrap.servers": server.bootstrap, "group.id": topic, "enable.auto.commit": False})
    try:
        ends = {partition: server.watermarks(topic, partition)[1] for partition in range(partitions)}
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        while len(found) < sum(ends.values()):
            message = consumer.poll(30)
            assert message is not None
            assert message.error() is None
            key, value, partition = message.key(), message.value(), message.partition()
            assert key is not None
            assert value is not None
            assert partition is not None
            listed = message.headers() or []
            assert isinstance(listed, list)
            headers = {name: content for name, content in listed if isinstance(content, bytes)}
            found.append((key, value, headers, partition))
    finally:
        consumer.close()
    return found


class Deep:
    """The archive in a bucket of moto, its segments in DEEP_ARCHIVE."""

    def __init__(self, moto: MotoServer, written: Growing) -> None:
        self.client, self.bucket = moto.client(), moto.make_bucket()
        self.url, self.options = f"s3://{self.bucket}/a", S3Options(endpoint_url=moto.endpoint_url)
        for path in written.folder.rglob("*"):
            if path.is_file() and ".staging" not in path.parts:
                key = str(path.relative_to(written.folder))
                deep = {"StorageClass": "DEEP_ARCHIVE"} if key.startswith("events/") else {}
                self.client.put_object(
                    Bucket=self.bucket, Key=f"a/{key}", Body=path.read_bytes(), ChecksumAlgorithm="SHA256", **deep
                )

    def restored(self, settings: Settings) -> int:
        """Return how many segments have a copy that can be read."""
        store = open_store(settings.archive, settings.s3)
        return sum(store.status(info.key).restored for info in store.list("events/"))
