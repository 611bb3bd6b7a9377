"""What tests of the drain share: archives with their keys and broker, and what was sent to it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from custody.archive.reader import find_tip, read_archive
from custody.archive.writer import LogWriter, create_archive
from custody.format.events import reason
from custody.format.layout import Log as LogName
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.drain.log_run import LogResult
from tasks.drain.run import drain_logs
from tasks.settings import DrainSettings, KafkaSettings, Settings
from tests.helpers.reading import Log, anything, read_archive_records
from tests.servers.kafka import KafkaServer

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def events(number: int, seed: int = 1) -> list[bytes]:
    """Return good events."""
    return list(sample_events(number, seed, BEGIN))


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the broker took."""

    partition: int
    offset: int
    value: bytes | None


def send(producer: Producer, topic: str, values: Sequence[bytes | None], **more: Any) -> list[Sent]:
    """Produce records to partition 0, and return what the broker took of them, in the order of sending.

    The topic is asked for first: a client that meets it with the first record may send that one in a batch of its own.
    """
    producer.list_topics(topic, 60)
    sent: dict[int, Sent] = {}
    for place, value in enumerate(values):

        def delivered(error: Any, message: Any, place: int = place, value: bytes | None = value) -> None:
            assert error is None, error
            sent[place] = Sent(message.partition(), message.offset(), value)

        while True:
            try:
                producer.produce(topic, value, **{"partition": 0, **more}, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    return [sent[place] for place in range(len(values))]


@dataclass
class Site:
    """An archive with its keys, and a broker."""

    kafka: KafkaServer
    archive: str
    keys: str
    group: str
    s3: S3Options
    fetch: Callable[[], Path | Mapping[str, bytes]]
    trust: Path | None = None

    def settings(
        self, topics: str | Sequence[str], client: Mapping[str, object] | None = None, **drain: object
    ) -> Settings:
        return Settings(
            archive=self.archive,
            keys=self.keys,
            trust=self.trust,
            s3=self.s3,
            kafka=KafkaSettings.model_validate(
                {
                    "bootstrap_servers": self.kafka.bootstrap,
                    "topics": [topics] if isinstance(topics, str) else list(topics),
                    "group": self.group,
                    "client": dict(client or {}),
                }
            ),
            drain=DrainSettings.model_validate(drain),
        )

    def drain(
        self, topics: str | Sequence[str], client: Mapping[str, object] | None = None, **drain: object
    ) -> dict[str, LogResult]:
        """Drain until caught up, and return the results by log."""
        return {result.log: result for result in drain_logs(self.settings(topics, client, **drain), once=True)}

    def read(self, exit_code: int = 0) -> dict[str, Log]:
        """Return what the archive holds, after both judges have looked at it."""
        found = read_archive_records(self.fetch())
        store = open_store(self.archive, self.s3)
        report = verify(store, open_trust([self.keys], self.trust), now=datetime.now(UTC), workers=0)
        store.close()
        assert report.exit_code == exit_code, list(report.findings)
        assert {f"{log.log}": log.events for log in report.logs} == {
            name: len(log.events) for name, log in found.items()
        }
        return found


def make_site(kafka: KafkaServer, folder: Path, heartbeat: int = 3600, checkpoint: int = 3600) -> Site:
    archive, keyring = folder / "archive", folder / "keyring.json"
    ring = new_keyring(keyring, datetime.now(UTC))
    create_archive(
        open_store(str(archive)), ring.signers(datetime.now(UTC)).both, heartbeat=heartbeat, checkpoint=checkpoint
    )
    return Site(kafka, str(archive), f"file:{keyring}", kafka.unused_name("group"), S3Options(), lambda: archive)


def another_writer(site: Site, log: LogName, archive: str | None = None) -> LogWriter:
    """Return a writer of a log with the site's keys, not opened yet: of the site's archive, or of a copy."""
    store = open_store(archive or site.archive)
    newest = find_tip(store, log, anything).newest
    assert newest is not None
    return LogWriter(
        store,
        read_archive(store).id,
        newest.statement.log,
        signer=open_signers(site.keys, datetime.now(UTC)).hmac(),
        trust=open_trust([site.keys]),
        writer="another writer",
    )


def archived(sent: Sequence[Sent]) -> list[tuple[int, bytes]]:
    """Return what an archive must hold of the events among records."""
    return [
        (one.offset, one.value.replace(b"\n", b" "))
        for one in sorted(sent, key=lambda one: one.offset)
        if one.value is not None and reason(one.value) is None
    ]


def child_environment(site: Site, topic: str) -> dict[str, str]:
    return os.environ | {
        "CUSTODY_ARCHIVE": site.archive,
        "CUSTODY_KEYS": site.keys,
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": site.kafka.bootstrap,
        "CUSTODY_KAFKA__TOPICS": topic,
        "CUSTODY_KAFKA__GROUP": site.group,
        "CUSTODY_DRAIN__FLUSH_SECONDS": "100",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }


def settle(kafka: KafkaServer, topic: str, end: int, partition: int = 0) -> None:
    """Return when a partition ends at this offset, with the markers of its transactions, and none of them is open.

    The coordinator writes a marker when it gets to it, and may answer a commit or an abort before.
    """
    until(lambda: kafka.watermarks(topic, partition)[1] == kafka.stable_end(topic, partition) == end)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
