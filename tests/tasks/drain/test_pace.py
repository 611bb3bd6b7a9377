"""How a run's pace shows in the archive: dense or fast batches, and few statements of a log that lingers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.writer import create_archive
from custody.errors import SourceRefused
from custody.format.members import pack
from custody.keys.keyring import new_keyring
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.drain import log_run, loop, outcome
from tasks.drain.kafka import Broker
from tasks.drain.log_run import LogResult
from tasks.drain.loop import Loop
from tasks.drain.run import drain_logs
from tasks.settings import DrainSettings, KafkaSettings, Settings
from tests.helpers.environment import shifted
from tests.helpers.reading import Log, read_archive_records
from tests.servers.kafka import KafkaServer

BATCH = 1000
HEARTBEAT = 3600
LINGER = 1800


@dataclass
class Pace:
    """An archive in a folder, and a topic of one partition."""

    kafka: KafkaServer
    folder: Path
    topic: str

    def send(self, values: Sequence[bytes], *, partition: int = 0, age: float = 0, key: bytes | None = None) -> None:
        """Produce records that were written so many seconds ago."""
        producer = self.kafka.producer(linger_ms=50)
        for value in values:
            timestamp = int((time.time() - age) * 1000)
            producer.produce(self.topic, value, key, partition=partition, timestamp=timestamp)
        assert producer.flush(60) == 0

    def settings(self, **drain: Any) -> Settings:
        kafka = KafkaSettings(bootstrap_servers=self.kafka.bootstrap, topics=[self.topic], group=self.topic)
        keys = f"file:{self.folder / 'keyring.json'}"
        return Settings(archive=str(self.folder / "archive"), keys=keys, kafka=kafka, drain=DrainSettings(**drain))

    def drain(self, *, once: bool = True, **drain: Any) -> LogResult:
        """Drain once, or as the schedule does; then the run's time ends when it has caught up."""
        (result,) = drain_logs(self.settings(**drain), once=once, seconds=None if once else 60)
        assert (result.outcome, result.problem) == ("drained", None)
        return result

    def read(self) -> Log:
        """Return what the archive holds, after the verifier found nothing wrong."""
        store = open_store(str(self.folder / "archive"))
        report = verify(store, open_trust([self.settings().keys]), now=datetime.now(UTC), workers=0)
        assert report.exit_code == 0, list(report.findings)
        return read_archive_records(self.folder / "archive")[f"{self.topic}/0"]


@pytest.fixture
def pace(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pace:
    real = Loop._cut_what_is_due

    def cut(self: Loop, *arguments: Any) -> None:
        real(self, *arguments)
        if all(run.caught_up for run in self._active()):
            self._deadline = 0.0

    monkeypatch.setattr(Loop, "_cut_what_is_due", cut)
    ring = new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    signers = ring.signers(datetime.now(UTC)).both
    create_archive(open_store(str(tmp_path / "archive")), signers, heartbeat=HEARTBEAT)
    return Pace(kafka, tmp_path, kafka.create_topic(kafka.unused_name("pace")))


@contextmanager
def later(seconds: float) -> Iterator[None]:
    """Let a run begin so much later: its clock is ahead."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log_run, "datetime", shifted(timedelta(seconds=seconds)))
        yield


def events(number: int, seed: int = 1) -> list[bytes]:
    return list(sample_events(number, seed, datetime(2026, 3, 1, tzinfo=UTC)))


def sizes(values: Sequence[bytes], dense: Sequence[bool]) -> list[int]:
    """Return the stored size of each batch of values, made as `dense` says."""
    batches = [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
    lines = (b"".join(value + b"\n" for value in batch) for batch in batches)
    return [len(pack(each, dense=how).data) for each, how in zip(lines, dense, strict=True)]


def test_a_steady_log_is_dense(pace: Pace) -> None:
    """The sample at a steady pace, as minute after minute brings it, takes less than a fifth of its bytes."""
    sent: list[bytes] = []
    for minute in range(3):
        fresh = events(2 * BATCH, minute + 1)
        pace.send(fresh)
        sent += fresh
        result = pace.drain()
        assert result.events == len(fresh)
        assert result.bytes_in / result.bytes_out > 5
    assert [value for _, value in pace.read().events] == sent


def test_a_log_is_fast_until_it_has_caught_up(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run catches up its batches are fast. What ends after that is dense, and so is what comes later."""
    monkeypatch.setattr(loop, "CATCHING_UP_OFFSETS", 3 * BATCH + BATCH // 2 - 1)
    backlog, fresh = events(3 * BATCH + BATCH // 2), events(BATCH, 2)
    pace.send(backlog)
    pace.drain()
    pace.send(fresh)
    pace.drain()
    expected = [*sizes(backlog, [False, False, False, True]), *sizes(fresh, [True])]
    log = pace.read()
    assert [batch["size"] for batch in log.batches] == expected
    assert [value for _, value in log.events] == [*backlog, *fresh]
    assert pace.settings().drain.compression == "auto"


@pytest.mark.parametrize(("compression", "dense"), [("fast", False), ("dense", True)])
def test_a_setting_that_chooses_always_one(
    pace: Pace, monkeypatch: pytest.MonkeyPatch, compression: str, dense: bool
) -> None:
    """Whether the run catches up or not, all batches are as the setting says, and quarantined records too."""
    monkeypatch.setattr(loop, "CATCHING_UP_OFFSETS", BATCH)
    backlog, fresh = events(2 * BATCH + 5), events(10, 2)
    pace.send(backlog)
    pace.drain(compression=compression)
    pace.send([*fresh, b"no event"])
    pace.drain(compression=compression)
    log = pace.read()
    assert [batch["size"] for batch in log.batches] == [*sizes(backlog, [dense] * 3), *sizes(fresh, [dense])]
    (quarantine,) = [statement["quarantine"] for statement in log.statements if statement["quarantine"]]
    assert quarantine["size"] == len(pack(log.quarantined[0], dense=dense).data)


# --- lingering


def test_a_quiet_log_lingers(pace: Pace) -> None:
    """Until the last statement is old enough, records wait in Kafka, and no run is worse off for it. Then all come."""
    sent = events(3)
    pace.send(sent)
    begun = pace.drain(once=False, linger_seconds=LINGER)
    assert (begun.statements, begun.events, begun.lag) == (1, 0, 3), "a log begins at once"
    fresh = events(2, 2)
    pace.send(fresh)
    waiting = pace.drain(once=False, linger_seconds=LINGER)
    assert (waiting.statements, waiting.events, waiting.lag) == (0, 0, 5)
    assert waiting.headroom is not None, "what waits on purpose can be deleted too, and the alert must come"
    with later(LINGER):
        sealed = pace.drain(once=False, linger_seconds=LINGER)
    assert (sealed.statements, sealed.events, sealed.lag) == (1, 5, 0)
    # From this statement on, the time counts anew.
    more = events(1, 3)
    pace.send(more)
    assert pace.drain(once=False, linger_seconds=LINGER).statements == 0
    assert pace.drain(linger_seconds=LINGER).events == 1, "who asks for all gets all"
    log = pace.read()
    assert [value for _, value in log.events] == [*sent, *fresh, *more]
    assert len(log.statements) == 3


SHORT: Mapping[str, dict[str, Any]] = {
    "it keeps records for less than that": {"retention_ms": 600_000},
    "it keeps them for hardly more, and headroom would be a problem": {"retention_ms": (21_600 + LINGER) * 1000},
    "it deletes them by size, however soon that is": {"retention_bytes": 10**9},
    "a newer record of the key lets it remove an older one": {"cleanup_policy": "compact"},
    "it deletes and compacts": {"cleanup_policy": "compact,delete"},
    "it compacts hardly later": {"cleanup_policy": "compact", "min_compaction_lag_ms": (21_600 + LINGER) * 1000},
}


@pytest.mark.parametrize("kind", SHORT)
def test_what_kafka_deletes_soon_does_not_linger(pace: Pace, kind: str) -> None:
    """Lingering alone loses no record and is no problem of headroom: what is in hand is archived before."""
    config = SHORT[kind]
    pace = replace(pace, topic=pace.kafka.create_topic(pace.kafka.unused_name("short"), **config))
    pace.send(events(3), age=LINGER - 60 if "hardly" in kind else 0, key=b"the same")
    result = pace.drain(once=False, linger_seconds=LINGER)
    assert (result.events, result.lag, result.headroom) == (3, 0, None)
    pace.read()


def test_what_is_compacted_late_enough_lingers(pace: Pace) -> None:
    """A topic whose cleaner leaves records alone for long enough is as any other."""
    config: dict[str, Any] = {"cleanup_policy": "compact", "min_compaction_lag_ms": 86_400_000}
    pace = replace(pace, topic=pace.kafka.create_topic(pace.kafka.unused_name("late"), **config))
    pace.send(events(3), key=b"the same")
    assert pace.drain(once=False, linger_seconds=LINGER).lag == 3


def test_where_retention_is_not_known_nothing_lingers(
    pace: Pace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that may not ask how long Kafka keeps records leaves none there, and says so."""

    def refuse(*_: object) -> None:
        raise SourceRefused("not allowed")

    monkeypatch.setattr(Broker, "configuration", refuse)
    pace.send(events(3))
    result = pace.drain(once=False, linger_seconds=LINGER)
    assert (result.events, result.lag) == (3, 0)
    assert caplog.text.count("nothing lingers, since its retention is not known: not allowed") == 1


def test_each_log_that_lingers_is_measured(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, how long Kafka keeps what waits is known of each, without a read."""
    topic = pace.kafka.create_topic(pace.kafka.unused_name("many"), 3)
    pace = replace(pace, topic=topic)
    for partition in range(3):
        pace.send(events(1 + partition), partition=partition)
    monkeypatch.setattr(outcome, "MEASURED_LOGS", 0)
    results = drain_logs(pace.settings(linger_seconds=LINGER), seconds=60)
    assert [result.lag for result in results] == [1, 2, 3]
    assert all(result.headroom == pytest.approx(7 * 86_400, abs=300) for result in results)


def test_without_the_setting_nothing_lingers(pace: Pace) -> None:
    """By default each run archives what it read."""
    pace.send(events(3))
    result = pace.drain(once=False)
    assert (result.statements, result.events, result.lag) == (2, 3, 0)


def test_full_segments_do_not_linger(pace: Pace) -> None:
    """A log with enough to do is archived as ever. What is left of a segment lingers, and is read again."""
    sent = events(2 * BATCH + 7)
    pace.send(sent)
    segment = sum(len(value) + 1 for value in sent[:BATCH])
    first = pace.drain(once=False, linger_seconds=LINGER, segment_bytes=segment - 100)
    assert (first.segments, first.events, first.lag) == (2, 2 * BATCH, 7)
    with later(LINGER):
        assert pace.drain(once=False, linger_seconds=LINGER).events == 7
    assert [value for _, value in pace.read().events] == sent


def test_no_log_lingers_longer_than_its_heartbeat(pace: Pace) -> None:
    """A statement is written then in any case, so it takes the records with it."""
    pace.drain()
    pace.send(events(3))
    with later(HEARTBEAT - 60):
        assert pace.drain(once=False, linger_seconds=86_400).statements == 0
    with later(HEARTBEAT):
        sealed = pace.drain(once=False, linger_seconds=86_400)
    assert (sealed.statements, sealed.events) == (1, 3)
    pace.read()


def test_a_loss_does_not_linger(pace: Pace) -> None:
    """Offsets that Kafka has deleted are stated at once, with what came after them."""
    pace.drain()
    pace.send(events(10))
    pace.kafka.delete_records(pace.topic, {0: 4})
    result = pace.drain(once=False, linger_seconds=LINGER)
    assert (result.lost, result.events, result.lag) == (4, 6, 0)


def test_a_statement_of_the_future_does_not_hold_records_back(pace: Pace) -> None:
    """After a clock that was ahead, records are archived at once, and not only when its time has come."""
    pace.drain()
    pace.send(events(3))
    with later(-10 * LINGER):
        assert pace.drain(once=False, linger_seconds=LINGER).events == 3
