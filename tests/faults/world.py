"""An archive and a topic that live through many broken drains, and the two judges of what they leave."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from custody.archive.writer import create_archive
from custody.format.events import reason
from custody.keys.keyring import new_keyring
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.verify.run import verify
from flows.operate.sample import invalid_values, sample_events
from tasks.settings import DrainSettings, KafkaSettings, Settings
from tests.faults import child
from tests.faults.child import Plan
from tests.faults.processes import start
from tests.helpers.reading import read_archive_records
from tests.servers.kafka import KafkaServer

SECONDS = 60
"""A child that takes longer hangs."""
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)

_numbers = itertools.count()


@dataclass
class World:
    """A topic with what was produced to it, and the archive that it is drained into."""

    kafka: KafkaServer
    folder: Path
    archive: str
    s3: S3Options
    fetch: Callable[[], Path | Mapping[str, bytes]]
    topic: str
    environment: dict[str, str]
    partitions: int
    produced: dict[int, list[bytes]] = field(default_factory=dict)
    _seed: int = 0

    def produce(self, number: int) -> None:
        """Produce so many records to each partition, one in seven of them no event."""
        producer = self.kafka.producer()
        bad = itertools.cycle(invalid_values())
        for partition in range(self.partitions):
            self._seed += 1
            for place, value in enumerate(sample_events(number, self._seed, BEGIN)):
                record = next(bad) if place % 7 == 6 else value
                producer.produce(self.topic, record, partition=partition)
                self.produced.setdefault(partition, []).append(record)
        assert producer.flush(60) == 0

    def start(self, plan: Plan | None = None) -> tuple[Any, Path]:
        """Start a drain in a child process; return it and where it will report."""
        report = self.folder / f"report-{next(_numbers)}.json"
        if plan is None:
            return start(self.folder, child.run_freely, self.environment, report), report
        return start(self.folder, child.run, self.environment, plan, report), report

    def finish(self, started: tuple[Any, Path]) -> tuple[int | None, dict[str, Any]]:
        """Wait for a drain that was started; return its exit code, and its report if it lived to write one."""
        process, report = started
        return child.finish(process, report, SECONDS, "the drain")

    def drain(self, plan: Plan | None = None) -> tuple[int | None, dict[str, Any]]:
        """Drain in a child process, to the end or to where the plan ends it."""
        return self.finish(self.start(plan))

    def settings(self) -> Settings:
        """Return the settings, for a drain in this process."""
        variables = self.environment
        return Settings(
            archive=self.archive,
            keys=variables["CUSTODY_KEYS"],
            s3=self.s3,
            kafka=KafkaSettings(
                bootstrap_servers=self.kafka.bootstrap, topics=[self.topic], group=variables["CUSTODY_KAFKA__GROUP"]
            ),
            drain=DrainSettings(batch_events=10, segment_bytes=1500),
        )

    def judge(self, allowed: Sequence[str] = ("orphan",)) -> None:
        """Check by the verifier, and by a reader of its own, that nothing is lost, doubled, moved or changed."""
        store = open_store(self.archive, self.s3)
        report = verify(store, open_trust([self.environment["CUSTODY_KEYS"]]), now=datetime.now(UTC), workers=0)
        store.close()
        assert report.exit_code in {0, 3}, [str(finding) for finding in report.findings]
        assert {finding.finding for finding in report.findings} <= set(allowed), list(report.findings)
        found = read_archive_records(self.fetch())
        for partition, records in self.produced.items():
            log = found[f"{self.topic}/{partition}"]
            good = [(at, value) for at, value in enumerate(records) if reason(value) is None]
            bad = [(at, value) for at, value in enumerate(records) if reason(value) is not None]
            assert log.events == [(at, value.replace(b"\n", b" ")) for at, value in good]
            assert list(zip(log.quarantined_offsets, log.quarantined_values, strict=True)) == bad
            assert (log.skipped, log.lost) == ([], [])


def make_world(
    kafka: KafkaServer,
    folder: Path,
    *,
    archive: str | None = None,
    s3: S3Options | None = None,
    fetch: Callable[[], Path | Mapping[str, bytes]] | None = None,
    more: Mapping[str, str] | None = None,
    partitions: int = 2,
) -> World:
    """Return a world with an empty archive: in a folder, or where it is said."""
    folder.mkdir(exist_ok=True)
    keyring = folder / "keyring.json"
    ring = new_keyring(keyring, datetime.now(UTC))
    where = archive or str(folder / "archive")
    store = open_store(where, s3 or S3Options())
    create_archive(store, ring.signers(datetime.now(UTC)).both)
    store.close()
    topic = kafka.create_topic(kafka.unused_name("faults"), partitions)
    environment = {
        "CUSTODY_ARCHIVE": where,
        "CUSTODY_KEYS": f"file:{keyring}",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "CUSTODY_KAFKA__TOPICS": topic,
        "CUSTODY_KAFKA__GROUP": topic,
        "CUSTODY_DRAIN__BATCH_EVENTS": "10",
        "CUSTODY_DRAIN__SEGMENT_BYTES": "1500",
        **(more or {}),
    }
    return World(
        kafka,
        folder,
        where,
        s3 or S3Options(),
        fetch or (lambda: folder / "archive"),
        topic,
        environment,
        partitions,
    )
