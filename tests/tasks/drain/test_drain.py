"""What is on a Kafka topic is in the archive: once, in order, byte for byte, with every offset accounted for.

The broker is real. Each drain is judged twice: by `helpers.reading`, which knows only FORMAT.md, and by the verifier.
"""

import base64
import ctypes
import gc
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import confluent_kafka
import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]

from custody.archive.forms import statements_of
from custody.archive.reader import Tip, find_tip, read_archive
from custody.archive.trusted import Judge, find_trusted_audits
from custody.archive.writer import Entry, LogWriter, append_audit, create_archive
from custody.errors import ConfigurationError, HeadRollback, LogChanged, SourceRefused, TransientSourceError
from custody.format.audit import Audit, SignedAudit
from custody.format.envelope import HeadRef
from custody.format.events import reason
from custody.format.layout import Log as LogName
from custody.format.layout import checkpoint_key, checkpoint_prefix, parse_checkpoint_key
from custody.format.manifest import LastRecord
from custody.keys.key import HmacKey
from custody.keys.keyring import Keyring, new_keyring, rotate_keyring
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.tlog.head import Head, KnownHead
from custody.tlog.proofs import Proofs
from flows.operate.sample import invalid_values
from tasks.drain import apart, intake, loop, outcome, resume, signals
from tasks.drain import kafka as source
from tasks.drain import run as engine
from tasks.drain.committed_heads import check_committed_head, encode_committed_head, parse_committed_head
from tasks.drain.kafka import (
    Feed,
    Received,
)
from tasks.drain.log_run import LogResult
from tasks.drain.loop import Loop
from tasks.drain.resume import begin_epoch
from tasks.drain.run import drain_logs
from tasks.drain.truncation import LOG_TRUNCATION, contradiction
from tasks.health.model import LogHealth
from tasks.health.read import read_health
from tasks.settings import Settings
from tests.helpers.corpus import EVENT_LIMIT, sized
from tests.helpers.environment import shifted
from tests.helpers.own import SHAPES, own_event
from tests.helpers.reading import anything, read_archive_records, read_bucket
from tests.helpers.sample import Growing, audit_of
from tests.servers.kafka import GuardedServer, KafkaServer, KafkaUnavailableError
from tests.servers.kms import HMAC_ARN
from tests.servers.ports import free_ports
from tests.servers.require import unavailable
from tests.servers.s3 import SeaweedServer
from tests.tasks.drain.sites import (
    Sent,
    Site,
    another_writer,
    archived,
    child_environment,
    events,
    make_site,
    send,
    settle,
    until,
)

SMALL_FETCHES = {"queued.max.messages.kbytes": 64, "fetch.message.max.bytes": 20_000}
"""Nearly nothing is fetched ahead, so that what a test does to the topic comes before the next fetch."""
UNLIMITED_MS = 2**63 - 1

Ranges = list[tuple[int, int]]


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A new archive in a folder."""
    monkeypatch.chdir(tmp_path)
    return make_site(kafka, tmp_path)


def make_bucket_site(kafka: KafkaServer, seaweed: SeaweedServer, folder: Path) -> Site:
    bucket = seaweed.make_bucket()
    options = S3Options(endpoint_url=seaweed.endpoint_url)
    url, keyring = f"s3://{bucket}/some/archive", folder / "keyring.json"
    ring = new_keyring(keyring, datetime.now(UTC))
    store = open_store(url, options)
    create_archive(store, ring.signers(datetime.now(UTC)).both)
    store.close()

    def fetch() -> Mapping[str, bytes]:
        return read_bucket(seaweed.client(), bucket, "some/archive/")

    return Site(kafka, url, f"file:{keyring}", kafka.unused_name("group"), options, fetch)


def only(results: Mapping[str, LogResult]) -> LogResult:
    """Return the one result, of a log that was drained."""
    (result,) = results.values()
    assert result.outcome == "drained", result.problem
    return result


def ranges(offsets: Sequence[int]) -> Ranges:
    found: Ranges = []
    for offset in sorted(offsets):
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found


def holes(sent: Sequence[Sent], start: int, end: int) -> Ranges:
    """Return the offsets of a range that are no record's."""
    return ranges(sorted(set(range(start, end)) - {one.offset for one in sent}))


def at_read(monkeypatch: pytest.MonkeyPatch, happens: Callable[[int, list[Received]], None]) -> None:
    """Call `happens` between a read from Kafka and its use, with the number of records read before, and these."""
    real, count = Feed.read, 0

    def read(self: Feed, records: int, seconds: float) -> list[Received]:
        nonlocal count
        messages = real(self, records, seconds)
        found = [message for message in messages if message.error() is None]
        happens(count, found)
        count += len(found)
        return messages

    monkeypatch.setattr(Feed, "read", read)


# --- what is archived


def test_half_a_million_events(site: Site) -> None:
    """A backlog of 500,000 events over four partitions is archived: each once, in order, byte for byte."""
    topic = site.kafka.create_topic(site.kafka.unused_name("backlog"), 4)
    values = events(500_000)
    producer = site.kafka.producer(
        linger_ms=50, batch_num_messages=10_000, queue_buffering_max_messages=600_000, enable_idempotence=True
    )
    for place, value in enumerate(values):
        producer.produce(topic, value, partition=place % 4)
        if place % 50_000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    results = drain_logs(site.settings(topic), once=True)
    assert [(one.outcome, one.events, one.lag) for one in results] == [("drained", 125_000, 0)] * 4
    found = site.read()
    for partition in range(4):
        log = found[f"{topic}/{partition}"]
        assert [value for _, value in log.events] == values[partition::4]
        assert [offset for offset, _ in log.events] == list(range(125_000))
        assert (log.skipped, log.lost, log.quarantined) == ([], [], [])
        types = Counter[str]()
        for statement in log.statements:
            types.update(statement["types"])
        assert sum(types.values()) == 125_000
        assert all(batch["events"] == 1000 for statement in log.statements for batch in statement["batches"][:-1])


def test_second_run_adds_what_is_new(site: Site) -> None:
    """A run goes on where the archive ends, and one with nothing new writes nothing."""
    topic = site.kafka.create_topic(site.kafka.unused_name("twice"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(1500, 1))
    first = only(site.drain(topic))
    again = only(site.drain(topic))
    assert (first.events, first.size, again.events, again.statements) == (1500, 2, 0, 0)
    assert (again.size, again.root, again.next_offset) == (first.size, first.root, first.next_offset)
    sent += send(producer, topic, events(10, 2))
    assert only(site.drain(topic)).events == 10
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    # Batch numbers run on over statements that have none.
    assert [batch["number"] for batch in log.batches] == [0, 1, 2]


def test_committed_and_aborted_transactions(site: Site) -> None:
    """Of transactions only what was committed is archived; aborted records and markers are skipped, and no other."""
    topic = site.kafka.create_topic(site.kafka.unused_name("transactions"))
    one, two = (
        site.kafka.producer(transactional_id=site.kafka.unused_name("id"), linger_ms=0, acks="all") for _ in range(2)
    )
    plain = site.kafka.producer()
    one.init_transactions(30)
    two.init_transactions(30)
    kept: list[Sent] = []
    aborted: list[Sent] = []
    values = iter(events(200))

    def some(number: int) -> list[bytes]:
        return [next(values) for _ in range(number)]

    kept += send(plain, topic, some(3))
    one.begin_transaction()
    aborted += send(one, topic, some(7))
    one.abort_transaction(30)
    one.begin_transaction()
    kept += send(one, topic, some(5))
    two.begin_transaction()
    aborted += send(two, topic, some(4))
    kept += send(one, topic, [b"no event"])
    kept += send(plain, topic, some(2))
    one.commit_transaction(30)
    kept += send(plain, topic, some(1))
    aborted += send(two, topic, [*some(2), b"no event either"])
    two.abort_transaction(30)
    one.begin_transaction()
    kept += send(one, topic, some(6))
    one.commit_transaction(30)
    end = len(kept) + len(aborted) + 4
    settle(site.kafka, topic, end)

    result = only(site.drain(topic))
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(kept)
    assert log.quarantined_values == [b"no event"]
    assert log.skipped == holes(kept, 0, end)
    assert (log.next_offset, result.next_offset, result.lag) == (end, end, 0)
    assert (result.events, result.quarantined, result.skipped) == (17, 1, end - 18)
    assert log.lost == []


def test_markers_at_the_end_of_a_run(site: Site) -> None:
    """Skipped offsets alone, the markers of transactions that came to nothing, are written at the end of a run."""
    topic = site.kafka.create_topic(site.kafka.unused_name("markers"))
    producer = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    producer.init_transactions(30)
    producer.begin_transaction()
    kept = send(producer, topic, events(3))
    producer.commit_transaction(30)
    settle(site.kafka, topic, 4)
    site.drain(topic)
    producer.begin_transaction()
    send(producer, topic, events(2, 2))
    producer.abort_transaction(30)
    settle(site.kafka, topic, 7)
    result = only(site.drain(topic))
    assert (result.events, result.skipped, result.segments, result.statements, result.lag) == (0, 3, 0, 1, 0)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(kept)
    assert log.skipped == [(3, 7)]
    assert log.statements[-1]["segment"] is None
    assert only(site.drain(topic)).statements == 0


def test_hanging_transaction(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing beyond the last stable offset is archived; what holds it back for too long is alarmed; the lag shows."""
    topic = site.kafka.create_topic(site.kafka.unused_name("hanging"))
    plain = site.kafka.producer()
    hanging = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    hanging.init_transactions(30)
    kept = send(plain, topic, events(5))
    hanging.begin_transaction()
    aborted = send(hanging, topic, events(2, 2))
    after = send(plain, topic, events(4, 3))

    result = only(site.drain(topic))
    assert (result.events, result.next_offset, result.lag, result.hanging) == (5, 5, 6, None)
    with caplog.at_level(logging.ERROR):
        result = only(site.drain(topic, hanging_seconds=0.001))
    assert result.hanging is not None
    assert 0 < result.hanging < 60
    assert (result.events, result.next_offset, result.lag) == (0, 5, 6)
    assert "transaction has been open" in caplog.text
    assert site.read()[f"{topic}/0"].events == archived(kept)

    hanging.abort_transaction(30)
    settle(site.kafka, topic, 12)
    result = only(site.drain(topic, hanging_seconds=0.001))
    assert (result.events, result.lag, result.hanging) == (4, 0, None)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(kept + after)
    assert log.skipped == [(aborted[0].offset, aborted[-1].offset + 1), (11, 12)]


def consume(kafka: KafkaServer, topic: str) -> dict[int, bytes | None]:
    """Return all records of partition 0 as a plain consumer reads them."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "plain",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    found: dict[int, bytes | None] = {}
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while True:
            for message in consumer.consume(1000, 0.5):
                if message.error() is not None:
                    return found
                offset = message.offset()
                assert offset is not None
                found[offset] = message.value()
    finally:
        consumer.close()


def test_compacted_topic(site: Site) -> None:
    """What compaction removed is skipped, the rest archived, tombstones quarantined; nothing is called lost."""
    topic = site.kafka.create_topic(
        site.kafka.unused_name("compacted"),
        cleanup_policy="compact",
        segment_ms=100,
        min_cleanable_dirty_ratio=0.001,
        min_compaction_lag_ms=0,
        max_compaction_lag_ms=100,
        delete_retention_ms=3_600_000,
    )
    producer = site.kafka.producer(linger_ms=0)
    values = iter(events(60))
    sent: list[Sent] = []
    for round_ in range(4):
        for key in (b"a", b"b", b"c"):
            sent += send(producer, topic, [next(values), next(values)], key=key)
        sent += send(producer, topic, [next(values) if round_ != 1 else None], key=b"gone")
        sent += send(producer, topic, [next(values)], key=b"only-%d" % round_)
        time.sleep(0.15)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # A record rolls the segment before it, which may then be compacted.
        sent += send(producer, topic, [next(values)], key=b"roll")
        left = consume(site.kafka, topic)
        if len(left) <= 16 and sent[0].offset not in left:
            break
        time.sleep(0.4)
    before = consume(site.kafka, topic)
    only(site.drain(topic))
    log = site.read()[f"{topic}/0"]
    if consume(site.kafka, topic) != before:
        # The cleaner ran in between: what was archived is what was there at either time.
        assert set(log.events) <= set(archived(sent))
    else:
        assert log.events == [(offset, value) for offset, value in before.items() if value is not None]
    end = sent[-1].offset + 1
    there = {offset for offset, _ in log.events} | set(log.quarantined_offsets)
    assert log.skipped == ranges(sorted(set(range(end)) - there))
    assert len(log.skipped) >= 3
    assert log.lost == []
    assert log.next_offset == end


def encoded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def test_quarantined_lines(site: Site) -> None:
    """What is no event is put aside with all of the record, in the form that FORMAT.md gives, and the reason."""
    topic = site.kafka.create_topic(site.kafka.unused_name("quarantine"))
    producer = site.kafka.producer()
    cases: list[dict[str, Any]] = [
        {"value": None},
        {"value": None, "key": b"tombstone"},
        {"value": b""},
        {"value": b"", "key": b""},
        {"value": b"\x00\xff", "key": b"\xff\x00", "headers": []},
        {"value": b"text", "headers": [("empty", b""), ("none", None), ("none", None), ("bytes", b"\xff\n\x00")]},
        {"value": b"text", "headers": [("", b"no name"), ("Gr\u00fc\u00dfe \u2028 \U0001f600", b"\xc3\xbc")]},
        *({"value": value} for value in invalid_values()),
        {"value": b"x" * 500_000, "key": b"k" * 300_000},
    ]
    expected = []
    good = events(2)
    sent = send(producer, topic, good[:1])
    for place, case in enumerate(cases):
        stamp = 1_772_366_400_000 + place
        (one,) = send(
            producer, topic, [case["value"]], key=case.get("key"), headers=case.get("headers"), timestamp=stamp
        )
        sent.append(one)
        headers = [[name, encoded(header)] for name, header in case.get("headers", [])]
        fields = {
            "offset": one.offset,
            "timestamp": stamp,
            "key": encoded(case.get("key")),
            "value": encoded(case["value"]),
            "headers": headers,
            "error": reason(case["value"]),
            "omitted": None,
        }
        assert fields["error"]
        expected.append(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
    sent += send(producer, topic, good[1:])
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.lag) == (2, len(cases), 0)
    log = site.read()[f"{topic}/0"]
    assert log.quarantined == expected
    assert log.events == archived(sent)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("often", [False, True], ids=["", "collecting at every step"])
def test_header_name_that_is_not_utf_8(site: Site, monkeypatch: pytest.MonkeyPatch, often: bool) -> None:
    """A header's name of any bytes, as Kafka allows, stops nothing: the line in quarantine says what it leaves out."""
    topic = site.kafka.create_topic(site.kafka.unused_name("headers"))
    good = events(2)
    send(site.kafka.producer(), topic, good[:1])
    send_with_header(site.kafka.bootstrap, topic, b"no event", b"\xff\xfe")
    send_with_header(site.kafka.bootstrap, topic, good[1], b"\xff\xfe")
    before = gc.get_threshold()
    if often:
        # A collection on the way swallows the exception that confluent-kafka's failure is known by.
        at_read(monkeypatch, lambda _, messages: gc.set_threshold(1) if messages else None)
    try:
        result = only(site.drain(topic))
    finally:
        gc.set_threshold(*before)
    assert (result.events, result.quarantined) == (2, 1)
    (line,) = site.read()[f"{topic}/0"].quarantined
    record = json.loads(line)
    assert base64.b64decode(record["value"]) == b"no event"
    assert record["headers"] == []
    assert "headers are left out" in record["error"]


def send_with_header(bootstrap: str, topic: str, value: bytes, name: bytes) -> None:
    """Produce a record with a header of a name that confluent-kafka cannot send, by librdkafka itself."""
    libraries = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    found = sorted(libraries.glob("librdkafka*.so*"))
    if not found:
        pytest.skip("confluent-kafka's librdkafka is not where its wheel for Linux puts it")
    library = ctypes.CDLL(str(found[0]))
    for function in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = ctypes.c_void_p
    error = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    assert library.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap.encode(), error, 512) == 0
    client = ctypes.c_void_p(library.rd_kafka_new(0, conf, error, 512))
    headers = ctypes.c_void_p(library.rd_kafka_headers_new(ctypes.c_size_t(1)))
    library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"v", ctypes.c_ssize_t(1))
    # librdkafka's numbers: 1 topic, 4 value, 7 flags (2: copy the value), 10 headers, 0 end.
    kinds = {kind: ctypes.c_int(kind) for kind in (0, 1, 4, 7, 10)}
    result = library.rd_kafka_producev(
        client,
        *(kinds[1], ctypes.c_char_p(topic.encode())),
        *(kinds[4], ctypes.c_char_p(value), ctypes.c_size_t(len(value))),
        *(kinds[7], ctypes.c_int(2)),
        *(kinds[10], headers),
        kinds[0],
    )
    assert result == 0
    assert library.rd_kafka_flush(client, 20_000) == 0
    library.rd_kafka_destroy(client)


def test_producers_at_once_in_every_compression(site: Site) -> None:
    """Several producers at once, each with batches in another compression, are archived in the broker's one order."""
    topic = site.kafka.create_topic(site.kafka.unused_name("codecs"))
    sent: dict[str, list[Sent]] = {}

    def work(codec: str, seed: int) -> None:
        producer = site.kafka.producer(compression_type=codec, linger_ms=20, batch_num_messages=500)
        sent[codec] = send(producer, topic, events(4000, seed))

    codecs = ("none", "gzip", "snappy", "lz4", "zstd")
    threads = [threading.Thread(target=work, args=(codec, seed)) for seed, codec in enumerate(codecs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.skipped) == (20_000, 0, 0)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived([one for some in sent.values() for one in some])


def test_newlines_become_spaces(site: Site) -> None:
    """An event that was sent over several lines stands on one, and nothing else of it is changed."""
    topic = site.kafka.create_topic(site.kafka.unused_name("lines"))
    values = [json.dumps(json.loads(value), indent=2).encode() + b"\n" for value in events(20)]
    sent = send(site.kafka.producer(), topic, values)
    only(site.drain(topic))
    assert site.read()[f"{topic}/0"].events == archived(sent)
    assert len(archived(sent)) == 20


def test_empty_topic_and_idle_partitions(site: Site) -> None:
    """A partition without records gets statement 0 at once, at the broker's log start, and no other."""
    topic = site.kafka.create_topic(site.kafka.unused_name("idle"), 3)
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10), partition=1)
    send(producer, topic, events(4), partition=2)
    site.kafka.delete_records(topic, {2: 4})
    assert {one.outcome for one in site.drain(topic).values()} == {"drained"}
    site.drain(topic)
    found = site.read()
    assert [len(found[f"{topic}/{partition}"].statements) for partition in range(3)] == [1, 2, 1]
    assert found[f"{topic}/1"].events == archived(sent)
    for partition, start in ((0, 0), (2, 4)):
        statement = found[f"{topic}/{partition}"].statements[0]
        assert (statement["first_offset"], statement["next_offset"], statement["lost"]) == (start, start, None)


def test_heartbeat(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle log makes a statement of nothing once the archive's heartbeat has passed, and a busy one does not."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path, heartbeat=600)
    topic = kafka.create_topic(kafka.unused_name("heartbeat"), 2)
    producer = kafka.producer()
    sent = send(producer, topic, events(3))
    site.drain(topic)
    sent += send(producer, topic, events(1, 2))
    with monkeypatch.context() as patched:
        # Statements have the true time, so one is due in each run, however long it takes.
        for module in (loop, resume):
            patched.setattr(module, "datetime", shifted(timedelta(seconds=600)))
        results = site.drain(topic)
        assert [results[f"{topic}/{partition}"].statements for partition in range(2)] == [1, 1]
        assert [one.statements for one in site.drain(topic).values()] == [1, 1]
    # A batch after a heartbeat is numbered on.
    sent += send(producer, topic, events(1, 3))
    site.drain(topic)
    found = site.read()
    assert found[f"{topic}/0"].events == archived(sent)
    assert [batch["number"] for batch in found[f"{topic}/0"].batches] == [0, 1, 2]
    idle = found[f"{topic}/1"].statements
    assert len(idle) == 3
    assert all(one["first_offset"] == one["next_offset"] == 0 for one in idle)


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(days=365)], ids=str)
def test_heartbeat_after_a_clock_that_was_ahead(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """An idle log whose last statement is from the future gets its heartbeat now, and no more than it needs."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path)
    topic = kafka.create_topic(kafka.unused_name("ahead"), 1)
    send(kafka.producer(), topic, events(1))
    real = LogWriter.__init__

    def init(self: LogWriter, *arguments: Any, **more: Any) -> None:
        real(self, *arguments, **more, clock=lambda: datetime.now(UTC) + ahead)

    with monkeypatch.context() as patched:
        patched.setattr(LogWriter, "__init__", init)
        assert only(site.drain(topic)).statements == 2
    assert [only(site.drain(topic)).statements for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("kind", ["LogAppendTime", "CreateTime"])
def test_a_clock_that_is_behind_the_brokers(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A host far behind the broker's append time, or an earlier statement, is reported. Archiving goes on."""
    topic = site.kafka.create_topic(site.kafka.unused_name("behind"), message_timestamp_type=kind)
    send(site.kafka.producer(), topic, events(3))
    assert only(site.drain(topic)).clock is None
    assert "clock" not in caplog.text
    send(site.kafka.producer(), topic, events(3, 3))
    with monkeypatch.context() as patched:
        patched.setattr("tasks.drain.outcome.datetime", shifted(timedelta(minutes=-10)))
        result = only(site.drain(topic))
    assert result.events == 3
    assert result.clock is not None
    assert round(result.clock / 60) == -10
    assert "this host's clock is 6" in caplog.text or "this host's clock is 59" in caplog.text
    assert only(site.drain(topic)).clock is None


def test_a_clock_that_is_far_ahead(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A host with a folder, which has no clock, reports a jump of more than a day since the last statement."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path)
    topic = kafka.create_topic(kafka.unused_name("far"))
    send(kafka.producer(), topic, events(3))
    assert only(site.drain(topic)).clock is None
    for days, seconds in ((2, 2 * 86_400), (0.9, None)):
        with monkeypatch.context() as patched:
            patched.setattr("tasks.drain.outcome.datetime", shifted(timedelta(days=days)))
            clock = only(site.drain(topic)).clock
        assert (clock and round(clock / 60) * 60) == seconds
    assert "s ahead of the clock" in caplog.text
    assert "unless nothing was archived for so long" in caplog.text


# --- limits


def test_records_on_either_side_of_the_event_limit(site: Site) -> None:
    """An event of 1 MiB is archived, one byte more is put aside whole, and records of 10 MiB stop nothing."""
    topic = site.kafka.create_topic(site.kafka.unused_name("large"), max_message_bytes=11 * 2**20)
    producer = site.kafka.producer(message_max_bytes=11 * 2**20)
    big = random.Random(1).randbytes(10 * 2**20)
    small = events(2)
    values = [
        small[0],
        sized(EVENT_LIMIT - 1),
        sized(EVENT_LIMIT),
        sized(EVENT_LIMIT + 1),
        big,
        sized(10 * 2**20),
        small[1],
        *[big] * 7,
    ]
    sent = send(producer, topic, values)
    result = only(site.drain(topic))
    assert (result.events, result.quarantined) == (4, 10)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    # Of what is larger than 8 MiB its size and digest are kept.
    assert log.quarantined_values == [values[3], None, None, *[None] * 7]
    omitted = [json.loads(line)["omitted"] for line in log.quarantined]
    assert omitted == [
        value and {"key": None, "value": {"size": len(value), "sha256": sha256(value).hexdigest()}, "headers": None}
        for value in (None, big, values[5], *[big] * 7)
    ]
    # A quarantine object has its limit, however much was fetched at once.
    assert max(one["quarantine"]["size"] for one in log.statements if one["quarantine"]) < 40 * 2**20


def test_batches_of_large_events(site: Site) -> None:
    """A batch is cut before 4 MiB, so that a reader needs little memory; an event larger than what is left waits."""
    topic = site.kafka.create_topic(site.kafka.unused_name("batches"), max_message_bytes=2 * 2**20)
    producer = site.kafka.producer(message_max_bytes=2 * 2**20)
    sent = send(producer, topic, [sized(900_000 + place) for place in range(9)])
    only(site.drain(topic))
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert [batch["events"] for batch in log.batches] == [4, 4, 1]
    assert all(batch["inflated"] <= 4 * 2**20 for batch in log.batches)


@pytest.mark.parametrize("number", [1, 9, 10, 11, 20, 21])
def test_batch_events(site: Site, number: int) -> None:
    """A batch is cut at `batch_events` events, and a last one holds what is left."""
    topic = site.kafka.create_topic(site.kafka.unused_name("batch"))
    sent = send(site.kafka.producer(), topic, events(number))
    only(site.drain(topic, batch_events=10))
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert [batch["events"] for batch in log.batches] == [10] * (number // 10) + [number % 10] * (number % 10 > 0)


def test_segment_bytes(site: Site) -> None:
    """A segment is cut when it has `segment_bytes` of JSONL."""
    topic = site.kafka.create_topic(site.kafka.unused_name("segments"))
    sent = send(site.kafka.producer(), topic, events(30_000))
    limit = 2**20
    only(site.drain(topic, segment_bytes=limit, client={"queued.max.messages.kbytes": 256}))
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    sizes = [sum(batch["inflated"] for batch in one["batches"]) for one in log.statements if one["segment"]]
    assert len(sizes) > 5
    assert all(limit <= size < limit + 2 * 2**20 for size in sizes[:-1])


def test_as_many_ranges_as_a_statement_may_hold(site: Site) -> None:
    """A topic in which every second record is no event is cut into statements before the format's limit of ranges."""
    topic = site.kafka.create_topic(site.kafka.unused_name("ranges"))
    values = [value for pair in zip(events(22_000), [b"{}"] * 22_000, strict=True) for value in pair]
    sent = send(site.kafka.producer(linger_ms=50, queue_buffering_max_messages=100_000), topic, values)
    result = only(site.drain(topic, flush_seconds=600))
    assert (result.events, result.quarantined) == (22_000, 22_000)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert len(log.quarantined) == 22_000
    assert [20_000 <= len(one["quarantine"]["offsets"]) < 50_000 for one in log.statements[1:]] == [True, False]


def test_small_batches_fit_a_statement(site: Site) -> None:
    """With one event a batch a statement would grow beyond its limit of 8 MiB: it is cut earlier."""
    topic = site.kafka.create_topic(site.kafka.unused_name("tiny"))
    sent = send(site.kafka.producer(linger_ms=50), topic, events(12_500))
    assert only(site.drain(topic, batch_events=1, flush_seconds=600)).events == 12_500
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert [len(one["batches"]) for one in log.statements] == [0, 5000, 5000, 2500]
    assert len(log.batches) == 12_500


# --- Kafka's times

FAR_OFF = {
    "none": -1,
    "negative": -5,
    "1960": -315_619_200_000,
    "1970": 1,
    "last of 9999": 253_402_300_799_999,
    "10000": 253_402_300_800_000,
    "the largest": 2**63 - 1,
}


@pytest.mark.parametrize("stamp", FAR_OFF.values(), ids=FAR_OFF.keys())
@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
def test_kafka_times(site: Site, kind: str, stamp: int) -> None:
    """Whatever time a producer claims, its records are archived; the key's date is 1970 where a date has no meaning."""
    topic = site.kafka.create_topic(
        site.kafka.unused_name("times"),
        message_timestamp_type=kind,
        message_timestamp_after_max_ms=UNLIMITED_MS,
        message_timestamp_before_max_ms=UNLIMITED_MS,
        retention_ms=-1,
    )
    now_ms = int(time.time() * 1000)
    sent = send(site.kafka.producer(), topic, [*events(2), b"no event"], timestamp=stamp)
    only(site.drain(topic))
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    statement = log.statements[-1]
    times = statement["batches"][0]["kafka_time"]
    stated = json.loads(log.quarantined[0])["timestamp"]
    date = re.match(r"events/([0-9/]+)-", statement["segment"]["key"])
    assert date is not None
    moment = datetime.strptime(date[1], "%Y/%m/%d/%H/%M/%S").replace(tzinfo=UTC)
    if kind == "LogAppendTime":
        assert times["type"] == "append"
        assert now_ms - 60_000 <= times["min"] <= times["max"] <= now_ms + 60_000
        assert stated >= times["max"]
        assert moment == datetime.fromtimestamp(times["min"] // 1000, UTC)
        return
    assert times == (None if stamp < 0 else {"type": "create", "min": stamp, "max": stamp})
    assert stated == (None if stamp == -1 else stamp)
    beginning = datetime(1970, 1, 1, tzinfo=UTC)
    inside = 0 <= stamp < FAR_OFF["10000"]
    assert moment == beginning + timedelta(seconds=stamp // 1000 if inside else 0)


# --- retention, and topics that change


def test_retention_before_a_run(site: Site) -> None:
    """What the broker deleted since the last run is admitted as lost, and not called skipped."""
    topic = site.kafka.create_topic(site.kafka.unused_name("retention"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(100))
    site.drain(topic)
    sent += send(producer, topic, events(100, 2))
    site.kafka.delete_records(topic, {0: 150})
    result = only(site.drain(topic))
    assert (result.events, result.lost, result.skipped, result.lag) == (50, 50, 0, 0)
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert log.lost == [(100, 150)]
    assert log.events == archived([one for one in sent if one.offset not in range(100, 150)])


def test_everything_was_deleted(site: Site) -> None:
    """Where the broker deleted all that was left, the loss alone is stated."""
    topic = site.kafka.create_topic(site.kafka.unused_name("retention"))
    producer = site.kafka.producer()
    site.drain(topic)
    send(producer, topic, events(20))
    site.kafka.delete_records(topic, {0: -1})
    result = only(site.drain(topic))
    assert (result.events, result.lost, result.next_offset, result.lag) == (0, 20, 20, 0)
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert (log.lost, log.skipped, log.events) == ([(0, 20)], [], [])


def test_retention_in_the_middle_of_a_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where retention overtakes a run that is reading, what it deleted is lost, and never called skipped."""
    topic = site.kafka.create_topic(site.kafka.unused_name("overtaken"), segment_bytes=2**20)
    producer = site.kafka.producer(linger_ms=5, batch_num_messages=20)
    sent = send(producer, topic, events(5000))
    deleted = threading.Event()

    def delete(before: int, messages: list[Received]) -> None:
        if before + len(messages) >= 200 and not deleted.is_set():
            deleted.set()
            site.kafka.delete_records(topic, {0: 4000})

    at_read(monkeypatch, delete)
    result = only(site.drain(topic, client=SMALL_FETCHES))
    log = site.read(exit_code=11)[f"{topic}/0"]
    ((start, stop),) = log.lost
    assert 200 <= start < stop == 4000
    assert log.skipped == []
    assert log.events == archived([one for one in sent if not start <= one.offset < stop])
    assert (result.lost, result.lag) == (stop - start, 0)


def test_retention_into_a_gap(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of aborted records that the broker deletes before it is asked about them, those that it still has are skipped."""
    topic = site.kafka.create_topic(site.kafka.unused_name("gap"))
    plain = site.kafka.producer()
    aborting = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    aborting.init_transactions(30)
    sent = send(plain, topic, events(10))
    aborting.begin_transaction()
    send(aborting, topic, events(9, 2))
    aborting.abort_transaction(30)
    settle(site.kafka, topic, 20)
    sent += send(plain, topic, events(10, 3))
    assert sent[10].offset == 20, "nine records and a marker"

    def delete(_: int, messages: list[Received]) -> None:
        if any(message.offset() == 20 for message in messages):
            site.kafka.delete_records(topic, {0: 15})

    at_read(monkeypatch, delete)
    only(site.drain(topic))
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert (log.lost, log.skipped) == ([(10, 15)], [(15, 20)])
    assert log.events == archived(sent)


def test_topic_created_again(site: Site) -> None:
    """A topic that was deleted and created again is refused until the operator begins a new epoch, which says so."""
    topic = site.kafka.create_topic(site.kafka.unused_name("again"), 2)
    other = site.kafka.create_topic(site.kafka.unused_name("other"))
    producer = site.kafka.producer()
    old = send(producer, topic, events(30))
    site.drain([topic, other])
    with pytest.raises(LogChanged, match="no reason"):
        begin_epoch(site.settings(topic), topic)
    site.kafka.delete_topic(topic)
    site.kafka.create_topic(topic, 3)
    new = send(site.kafka.producer(), topic, events(50, 2))
    elsewhere = send(producer, other, events(5, 3))

    results = site.drain([topic, other])
    for partition in range(2):
        result = results[f"{topic}/{partition}"]
        assert result.outcome == "failed"
        assert f"custody new-epoch {topic}" in str(result.problem)
    # A log that is refused stops no other.
    assert (results[f"{other}/0"].outcome, results[f"{other}/0"].events) == ("drained", 5)

    settings = site.settings(topic)
    begun = begin_epoch(settings, topic)
    # A partition that the old topic did not have begins with its first epoch, at the next run.
    assert sorted(one.log for one in begun) == [f"{topic}@2/0", f"{topic}@2/1"]
    assert not any(one.same_topic for one in begun)
    results = site.drain(topic)
    assert sorted(results) == [f"{topic}/2", f"{topic}@2/0", f"{topic}@2/1"]
    assert {one.outcome for one in results.values()} == {"drained"}
    assert results[f"{topic}@2/0"].events == 50
    # That a new epoch was begun is a notice, which an auditor judges.
    found = site.read(exit_code=3)
    assert found[f"{topic}/0"].events == archived(old)
    assert found[f"{topic}@2/0"].events == archived(new)
    assert found[f"{other}/0"].events == archived(elsewhere)
    head = find_tip(open_store(site.archive), LogName(topic, 0), anything).head
    first, second = found[f"{topic}@2/0"].statements
    assert first["previous_epoch"] == {"epoch": 1, "size": head.size, "root": head.root.hex()}
    assert second["previous_epoch"] is None
    with pytest.raises(LogChanged, match="no reason"):
        begin_epoch(settings, topic)


def test_end_below_the_head(site: Site) -> None:
    """A partition that ends before the archive does, as after an unclean election, is refused: nothing is written."""
    topic = site.kafka.create_topic(site.kafka.unused_name("below"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10))
    site.drain(topic)
    writer = another_writer(site, LogName(topic, 0))
    writer.open()
    writer.append(Entry(first_offset=10, next_offset=500, skipped=[(10, 500)]))
    send(producer, topic, events(10, 2))
    (result,) = site.drain(topic).values()
    assert result.outcome == "failed"
    assert f"custody new-epoch {topic}" in str(result.problem)
    assert "500" in str(result.problem)
    (status,) = health_of(site.settings(topic))
    assert status.lag_records is None
    assert [(one.kind, "ends before the log" in one.message) for one in status.problems] == [("topic-changed", True)]
    log = site.read()[f"{topic}/0"]
    assert (log.events, len(log.statements)) == (archived(sent), 3)


def test_topic_created_again_during_a_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was read of a new topic gets into the old one's log, even when it took its place during the run."""
    topic = site.kafka.create_topic(site.kafka.unused_name("swapped"))
    old = send(site.kafka.producer(batch_num_messages=20), topic, events(3000))
    swapped = threading.Event()

    def swap(before: int, messages: list[Received]) -> None:
        if before + len(messages) >= 300 and not swapped.is_set():
            swapped.set()
            site.kafka.delete_topic(topic)
            site.kafka.create_topic(topic)
            send(site.kafka.producer(), topic, events(4000, 2))

    at_read(monkeypatch, swap)
    monkeypatch.setattr(loop, "STALL_SECONDS", 8)
    (result,) = site.drain(topic, client=SMALL_FETCHES, segment_bytes=20_000).values()
    assert result.outcome == "failed"
    assert result.problem
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(old)[: len(log.events)]
    assert (log.lost, log.skipped) == ([], [])
    (result,) = site.drain(topic).values()
    assert "custody new-epoch" in str(result.problem)


def test_new_partitions_and_topics(site: Site) -> None:
    """A regular expression is looked up at each run: partitions and topics that came since are drained whole."""
    base = site.kafka.unused_name("several")
    pattern = f"^{re.escape(base)}\\."
    assert site.drain(pattern) == {}
    first = site.kafka.create_topic(f"{base}.first")
    site.kafka.create_topic(f"x{base}.other")
    producer = site.kafka.producer()
    sent = {f"{first}/0": send(producer, first, events(3, 1))}
    assert list(site.drain(pattern)) == [f"{first}/0"]
    site.kafka.create_partitions(first, 2)
    second = site.kafka.create_topic(f"{base}.second")
    sent[f"{first}/1"] = send(site.kafka.producer(), first, events(4, 2), partition=1)
    sent[f"{second}/0"] = send(producer, second, events(5, 3))
    results = site.drain(pattern)
    assert {name: one.events for name, one in results.items()} == {f"{first}/0": 0, f"{first}/1": 4, f"{second}/0": 5}
    found = site.read()
    assert {name: log.events for name, log in found.items()} == {name: archived(some) for name, some in sent.items()}


# --- what librdkafka does not take


BOMB = 95_000_000
"""Zeros that zstd makes 3 KB of, and that are too many for librdkafka."""


def send_bombs(site: Site, topic: str, sizes: Sequence[int]) -> list[Sent]:
    """Produce records of zeros, in one batch where they fit."""
    producer = site.kafka.producer(
        message_max_bytes=1_000_000_000, batch_size=1_000_000_000, linger_ms=30_000, compression_type="zstd"
    )
    return send(producer, topic, [bytes(size) for size in sizes])


@pytest.mark.parametrize("policy", ["delete", "compact"])
def test_records_that_inflate_beyond_the_clients_limit(site: Site, policy: str) -> None:
    """A small record that inflates to 95 MB is quarantined by its size and SHA-256, and its partition goes on."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"), cleanup_policy=policy)
    producer = site.kafka.producer()
    sent: list[Sent] = []
    for seed in range(2):
        sent += send(producer, topic, events(20, seed), key=b"key")
        sent += send_bombs(site, topic, [BOMB])[:1] if policy == "delete" else []
        if policy == "compact":
            zstd = site.kafka.producer(message_max_bytes=1_000_000_000, compression_type="zstd")
            sent += send(zstd, topic, [bytes(BOMB)], key=b"bomb%d" % seed)
    sent += send(producer, topic, events(5, 9), key=b"key")
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.unreadable, result.skipped) == (45, 2, 0, 0)
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    digest = sha256(bytes(BOMB)).hexdigest()
    omitted = [json.loads(line)["omitted"]["value"] for line in log.quarantined]
    assert omitted == [{"size": BOMB, "sha256": digest}] * 2
    # The last record is read again, in the same way.
    assert only(site.drain(topic)).statements == 0


@pytest.mark.parametrize("unknown_types", ["archive", "quarantine"])
def test_own_types(site: Site, monkeypatch: pytest.MonkeyPatch, unknown_types: str) -> None:
    """Events of own types are archived, or quarantined if the setting says so, also where they are read apart."""
    monkeypatch.setenv("CUSTODY_EVENTS__UNKNOWN_TYPES", unknown_types)
    topic = site.kafka.create_topic(site.kafka.unused_name("own"))
    own = [own_event(offset) for offset in range(2 * len(SHAPES))]
    sent = send(site.kafka.producer(), topic, [*own, *events(3), b"no event"])
    together = site.kafka.producer(
        message_max_bytes=1_000_000_000, batch_size=1_000_000_000, linger_ms=30_000, compression_type="zstd"
    )
    sent += send(together, topic, [*own, bytes(BOMB), *events(2)])
    strict = unknown_types == "quarantine"
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.unreadable) == ((5, 22, 0) if strict else (25, 2, 0))
    log = site.read()[f"{topic}/0"]
    assert log.events == [pair for pair in archived(sent) if not strict or reason(pair[1], own_types=False) is None]
    errors = [json.loads(line)["error"] for line in log.quarantined]
    assert sum("is not one of query_executed," in error for error in errors) == (20 if strict else 0)


def test_last_record_in_a_batch_beyond_the_clients_limit(site: Site) -> None:
    """A run whose last record lies in a batch that is too large reads it apart, agrees, and goes on."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"))
    sent = send_bombs(site, topic, [100, BOMB, 100])
    assert only(site.drain(topic)).quarantined == 3
    assert only(site.drain(topic)).statements == 0
    sent += send(site.kafka.producer(), topic, events(3))
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.unreadable) == (3, 0, 0)
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_transactions_with_records_beyond_the_clients_limit(site: Site) -> None:
    """Committed records that are too large are quarantined. Those of an aborted transaction are skipped."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"))
    producer = site.kafka.producer(
        transactional_id=site.kafka.unused_name("id"), message_max_bytes=1_000_000_000, compression_type="zstd"
    )
    producer.init_transactions(30)
    sent: list[Sent] = []
    for commit in (True, False, True):
        producer.begin_transaction()
        taken = send(producer, topic, [*events(3, 1), bytes(BOMB), *events(3, 2)])
        if commit:
            producer.commit_transaction(30)
            sent += taken
        else:
            producer.abort_transaction(30)
    # Three times seven records and a marker.
    settle(site.kafka, topic, 24)
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.unreadable, result.skipped) == (12, 2, 0, 10)
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_batches_that_no_client_can_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read apart either is admitted, batch by batch; what lies between is archived."""
    monkeypatch.setitem(apart._CLIENT, "receive.message.max.bytes", "60000000")
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"))
    sent = send(site.kafka.producer(), topic, events(10))
    send_bombs(site, topic, [10, BOMB, *[10] * 9])
    send_bombs(site, topic, [BOMB])
    sent += send(site.kafka.producer(), topic, events(10, 2))
    send_bombs(site, topic, [BOMB, 10])
    result = only(site.drain(topic))
    assert (result.events, result.quarantined, result.unreadable, result.skipped) == (20, 0, 14, 0)
    assert result.problem is None
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert log.events == archived(sent)
    assert log.unreadable == [(10, 22), (32, 34)]
    assert only(site.drain(topic)).statements == 0


def instead_of_apart(monkeypatch: pytest.MonkeyPatch, program: str) -> list[Mapping[str, str]]:
    """Run another program as the process that reads apart, and return the environments that it is started with."""
    real = subprocess.Popen
    environments: list[Mapping[str, str]] = []

    def start(command: list[str], **more: Any) -> Any:
        assert command[-1] == "tasks.drain.apart"
        environments.append(more["env"])
        return real([sys.executable, "-c", program], **more)

    monkeypatch.setattr(subprocess, "Popen", start)
    return environments


LITTLE_MEMORY = (
    f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2**29}, {2**29})); import runpy;"
    "resource.setrlimit = lambda *_: None; runpy.run_module('tasks.drain.apart', run_name='__main__')"
)


def killed_by(kind: signal.Signals) -> str:
    return f"import os; os.kill(os.getpid(), {kind.value})"


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (LITTLE_MEMORY, "MiB of memory"),
        (killed_by(signal.SIGKILL), "were killed"),
        (killed_by(signal.SIGALRM), f"more than {apart.SECONDS} s"),
        (killed_by(signal.SIGSEGV), "MiB of memory"),
    ],
    ids=["limit", "killed", "time", "crash"],
)
def test_a_batch_that_processes_die_of(site: Site, monkeypatch: pytest.MonkeyPatch, program: str, error: str) -> None:
    """However the processes die that read a batch, after some attempts it is admitted, with the reason."""
    begun = instead_of_apart(monkeypatch, program)
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"))
    sent = send(site.kafka.producer(), topic, events(10))
    send_bombs(site, topic, [3 * BOMB])
    sent += send(site.kafka.producer(), topic, events(10, 2))
    result = only(site.drain(topic))
    assert (result.events, result.unreadable) == (20, 1)
    assert len(begun) in {1, apart.ATTEMPTS}
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert log.events == archived(sent)
    (admitted,) = [each for statement in log.statements for each in statement["unreadable"]]
    assert error in admitted["error"]


@pytest.mark.parametrize("program", [killed_by(signal.SIGTERM), "raise SystemExit(1)"], ids=["stopped", "broken"])
def test_a_process_that_did_not_die_of_the_batch(site: Site, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """A process that was stopped, or could not start, says nothing about the batch: the next run reads it."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"))
    sent = send(site.kafka.producer(), topic, events(10))
    send_bombs(site, topic, [BOMB])
    with monkeypatch.context() as patched:
        instead_of_apart(patched, program)
        (result,) = site.drain(topic).values()
    assert (result.outcome, result.events, result.unreadable) == ("failed", 10, 0)
    result = only(site.drain(topic))
    assert (result.quarantined, result.unreadable) == (1, 0)
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_no_secret_for_the_process_that_reads_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads what strangers wrote gets none of the drain's secrets in its environment."""
    secrets = ["CUSTODY_KEYRING_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "CUSTODY_SEARCH__API_KEY"]
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("KRB5_CONFIG", "/etc/krb5.conf")
    begun = instead_of_apart(monkeypatch, "pass")
    with apart.Apart({}, "group", TopicPartition("topic", 0, 0), own_types=True):
        (environment,) = begun
    assert "secret" not in environment.values()
    assert {"PATH", "KRB5_CONFIG"} <= set(environment)


def test_the_others_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is read apart when the others have caught up, so that a record of one topic does not hold up the others."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"), partitions=2)
    real, seen = Loop._read_apart, []

    def spy(self: Loop, feed: Feed) -> None:
        seen.append(self._runs[topic, 1].assembler.position)
        real(self, feed)

    monkeypatch.setattr(Loop, "_read_apart", spy)
    send_bombs(site, topic, [BOMB])
    send(site.kafka.producer(), topic, events(5))
    send(site.kafka.producer(), topic, events(2000, 2), partition=1)
    first, second = site.drain(topic, client=SMALL_FETCHES).values()
    assert (first.events, first.quarantined, second.events) == (5, 1, 2000)
    assert seen == [2000]


def test_out_of_time_with_batches_to_read_apart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is out of time still reads one log apart, after all else is archived; and never another one."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bomb"), partitions=2)
    for partition in range(2):
        producer = site.kafka.producer(message_max_bytes=1_000_000_000, compression_type="zstd")
        send(producer, topic, [bytes(BOMB)], partition=partition)
    real = Loop._refuse

    def refuse(self: Loop, *arguments: Any) -> None:
        self._deadline = 0.0
        real(self, *arguments)

    monkeypatch.setattr(Loop, "_refuse", refuse)
    for _ in range(2):
        assert sum(result.quarantined for result in site.drain(topic).values()) == 1
    assert [len(log.quarantined) for log in site.read().values()] == [1, 1]


def test_more_headers_than_librdkafka_gives(site: Site) -> None:
    """Of a record with more than 100,000 headers the client gives none. It is quarantined without them."""
    topic = site.kafka.create_topic(site.kafka.unused_name("headers"))
    producer = site.kafka.producer(compression_type="zstd")
    for number in (100_000, 100_001):
        send(producer, topic, [b"no event"], headers=[("a", None)] * number)
    assert only(site.drain(topic)).quarantined == 2
    given, hidden = (json.loads(line) for line in site.read()[f"{topic}/0"].quarantined)
    assert (len(given["headers"]), len(hidden["headers"])) == (100_000, 0)


def test_a_batch_for_which_librdkafka_drops_the_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored batch beyond librdkafka's limit gives no error, but silence: it is read apart, and its log goes on."""
    monkeypatch.setattr(loop, "STALL_SECONDS", 1)
    topic = site.kafka.create_topic(site.kafka.unused_name("silent"), partitions=2, max_message_bytes=104_000_000)
    sent = send(site.kafka.producer(), topic, events(10))
    other = send(site.kafka.producer(), topic, events(10, 3), partition=1)
    large = site.kafka.producer(message_max_bytes=1_000_000_000)
    sent += send(large, topic, [random.Random(7).randbytes(102_000_000)])
    sent += send(site.kafka.producer(), topic, events(10, 2))
    first, second = site.drain(topic).values()
    assert (first.events, first.quarantined, first.unreadable, first.problem) == (20, 1, 0, None)
    assert (second.events, second.problem) == (10, None)
    logs = site.read()
    assert logs[f"{topic}/0"].events == archived(sent)
    assert logs[f"{topic}/1"].events == archived(other)


def test_a_silent_batch_that_processes_die_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where librdkafka only drops the connection, nothing is admitted: the log stops with the reason."""
    monkeypatch.setattr(loop, "STALL_SECONDS", 1)
    instead_of_apart(monkeypatch, killed_by(signal.SIGKILL))
    topic = site.kafka.create_topic(site.kafka.unused_name("silent"), max_message_bytes=104_000_000)
    sent = send(site.kafka.producer(), topic, events(10))
    large = site.kafka.producer(message_max_bytes=1_000_000_000)
    send(large, topic, [random.Random(7).randbytes(102_000_000)])
    (result,) = site.drain(topic).values()
    assert (result.outcome, result.events, result.unreadable) == ("failed", 10, 0)
    assert "were killed" in str(result.problem)
    assert site.read()[f"{topic}/0"].events == archived(sent)


ONLY_AT = """
import io, json, os, runpy, signal, sys
task = sys.stdin.buffer.read()
if json.loads(task)["offset"] in {offsets}:
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin = io.TextIOWrapper(io.BytesIO(task))
runpy.run_module("tasks.drain.apart", run_name="__main__")
"""
"""A process that is killed where it reads from certain offsets, and nowhere else."""
SMALL_LIMIT: Mapping[str, object] = {
    "receive.message.max.bytes": 1_000_000,
    "fetch.max.bytes": 500_000,
    "message.max.bytes": 65_536,
}
"""Properties with which librdkafka only drops the connection for a stored batch above 1 MB."""


def send_stored(site: Site, topic: str, sizes: Sequence[int], seed: int = 7) -> list[Sent]:
    """Produce records that no compression makes smaller, in one batch."""
    producer = site.kafka.producer(message_max_bytes=1_000_000_000, batch_size=1_000_000_000, linger_ms=30_000)
    return send(producer, topic, [random.Random(seed).randbytes(size) for size in sizes])


@pytest.mark.parametrize("limit", ["of the client", "of the process"])
def test_a_silent_batch_that_cannot_be_read_is_admitted(
    site: Site, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Where librdkafka only drops the connection, and processes fail too, exactly those batches are admitted.

    Readable records lie right before, between and right after them, also in batches of the same size. The reason is
    either that processes die of it, or that it is too large as stored.
    """
    # Long enough for the client to read what is readable: a process that began before a bad batch would read it too.
    monkeypatch.setattr(loop, "STALL_SECONDS", 4)
    topic = site.kafka.create_topic(site.kafka.unused_name("silent"), max_message_bytes=104_000_000)
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10))
    send_stored(site, topic, [600_000] * 5)
    sent += send(producer, topic, events(3, 2))
    bad = set(range(10, 15))
    if limit == "of the client":
        # The first of three neighbours of exactly the same size.
        for seed in range(3):
            send_stored(site, topic, [2_000_000], seed)
        bad.add(18)
    else:
        send_stored(site, topic, [900_000] * 2)
        bad |= {18, 19}
    sent += send(producer, topic, events(10, 3))
    if limit == "of the client":
        instead_of_apart(monkeypatch, ONLY_AT.replace("{offsets}", str(bad)))
    else:
        monkeypatch.setitem(apart._CLIENT, "receive.message.max.bytes", "1500000")
        monkeypatch.setitem(apart._CLIENT, "fetch.max.bytes", "1000000")
    results = [site.drain(topic, client=SMALL_LIMIT)[f"{topic}/0"] for _ in range(2)]
    assert [result.problem for result in results] == [None, None]
    assert (results[0].unreadable, results[0].events, results[1].statements) == (len(bad), 23, 0)
    log = site.read(exit_code=11)[f"{topic}/0"]
    assert log.events == archived(sent)
    assert log.unreadable == ranges(sorted(bad))
    assert len(log.quarantined) == (2 if limit == "of the client" else 0)


@pytest.mark.parametrize("bombs", [(), (BOMB,)])
def test_a_batch_damaged_on_the_brokers_disk(fragile: Site, bombs: Sequence[int]) -> None:
    """A batch whose checksum is wrong is admitted, never called skipped, and its partition goes on."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("damaged"))
    sent = send(fragile.kafka.producer(), topic, events(10))
    send(fragile.kafka.producer(linger_ms=30_000), topic, events(7, 2))
    send_bombs(fragile, topic, bombs)
    sent += send(fragile.kafka.producer(), topic, events(10, 3))
    fragile.kafka.stop()
    fragile.kafka.damage(topic, 10)
    fragile.kafka.start()
    result = only(fragile.drain(topic))
    assert (result.events, result.quarantined, result.unreadable, result.skipped) == (20, len(bombs), 7, 0)
    log = fragile.read(exit_code=11)[f"{topic}/0"]
    assert log.events == archived(sent)
    assert log.unreadable == [(10, 17)]


@pytest.mark.parametrize(
    ("values", "compression", "mib"),
    [
        ([bytes(95_000_000)], "zstd", 200),
        ([bytes(60_000_000)], "zstd", 380),
        ([bytes(200_000_000)], "gzip", 800),
        ([random.Random(7).randbytes(70_000_000)], "none", 410),
        ([None] * 400_000, "zstd", 200 + 3 * 4 + 400_000 * 350 // 2**20),
    ],
    ids=["zstd-95", "zstd-60", "gzip-200", "none-70", "empty-400,000"],
)
def test_memory_while_large_batches_come(
    site: Site, tmp_path: Path, values: list[bytes | None], compression: str, mib: int
) -> None:
    """A large batch takes the stated memory: 200 MiB, three times what it inflates to, and 350 bytes a record."""
    topic = site.kafka.create_topic(site.kafka.unused_name("large"), max_message_bytes=90_000_000)
    producer = site.kafka.producer(
        message_max_bytes=1_000_000_000,
        compression_type=compression,
        batch_num_messages=1_000_000,
        queue_buffering_max_messages=1_000_000,
        batch_size=200_000_000,
        linger_ms=3000,
    )
    sent = send(producer, topic, events(10))
    sent += send(producer, topic, values)
    sent += send(producer, topic, events(10, 2))
    assert drain_peak(site, topic, tmp_path) < mib
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert len(log.quarantined) == len(values)


def test_memory_while_large_batches_come_in_every_partition(site: Site, tmp_path: Path) -> None:
    """Bombs in all partitions at once take the stated memory: 200 MiB, and three times what one fetch inflates to."""
    partitions, size = 4, 60_000_000
    topic = site.kafka.create_topic(site.kafka.unused_name("bombs"), partitions=partitions)
    for partition in range(partitions):
        producer = site.kafka.producer(
            message_max_bytes=1_000_000_000, compression_type="gzip" if partition % 2 else "zstd"
        )
        send(producer, topic, [bytes(size)], partition=partition)
    assert drain_peak(site, topic, tmp_path) < 200 + 3 * partitions * size / 2**20
    assert [len(log.quarantined) for log in site.read().values()] == [1] * partitions


def drain_peak(site: Site, topic: str, folder: Path) -> float:
    """Drain in a process of its own, and return its peak memory in MiB."""
    # Not `ru_maxrss`: that of a child includes what its parent held.
    program = (
        "import atexit, pathlib, sys; sys.argv[1:] = ['drain', '--once'];"
        "atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text()));"
        "from custody.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, env=child_environment(site, topic), cwd=folder, capture_output=True, text=True, check=True
    )
    peak = re.search(r"VmHWM:\s+(\d+) kB", ended.stdout)
    assert peak is not None
    return int(peak[1]) / 1024


# --- a run in time


def test_budget_and_following(site: Site) -> None:
    """A run follows its topics until its time is up, flushes what is old enough, and ends in time."""
    topic = site.kafka.create_topic(site.kafka.unused_name("follow"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10))
    done = threading.Event()

    def trickle() -> None:
        for seed in range(2, 150):
            if done.wait(0.1):
                break
            sent.extend(send(producer, topic, events(1, seed)))

    thread = threading.Thread(target=trickle)
    begun = time.monotonic()
    thread.start()
    (result,) = drain_logs(site.settings(topic, flush_seconds=0.5), seconds=8)
    took = time.monotonic() - begun
    done.set()
    thread.join()
    assert 7.9 < took < 14
    assert result.outcome == "drained"
    # Statement 0, and several that were flushed.
    assert result.statements >= 4
    assert result.events > 15
    only(site.drain(topic))
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_a_slow_start_leaves_time_to_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose start takes longer than its time still reads, so the lag does not grow run after run."""
    real = source.Broker.cluster

    def slow(broker: source.Broker) -> str:
        time.sleep(2.5)
        return real(broker)

    monkeypatch.setattr(source.Broker, "cluster", slow)
    topic = site.kafka.create_topic(site.kafka.unused_name("slow"))
    sent = send(site.kafka.producer(), topic, events(100))
    (result,) = drain_logs(site.settings(topic), seconds=2)
    assert (result.outcome, result.events, result.lag) == ("drained", 100, 0)
    assert site.read()[f"{topic}/0"].events == archived(sent)


def read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run's time before its first read."""
    monkeypatch.setattr(Loop, "_follow", lambda *_: None)


def test_no_progress(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that archives nothing of what waited has failed, with the number. One with nothing to do has not."""
    topic = site.kafka.create_topic(site.kafka.unused_name("stalled"))
    with monkeypatch.context() as patched:
        read_nothing(patched)
        for number in range(3):
            (result,) = drain_logs(site.settings(topic), seconds=1)
            assert (result.outcome, result.headroom) == ("failed" if number else "drained", result.headroom)
            if number:
                assert f"archived nothing, although {10 * number} offsets waited when it began" in str(result.problem)
            send(site.kafka.producer(), topic, events(10, number))
    only(site.drain(topic))
    read_nothing(monkeypatch)
    (result,) = drain_logs(site.settings(topic), seconds=1)
    assert (result.outcome, result.headroom) == ("drained", None)


RETENTION: dict[str, tuple[dict[str, Any], int | None]] = {
    "by time": ({"retention_ms": 3_600_000}, 650),
    "by time, for ever": ({"retention_ms": -1}, None),
    "compacted, never deleted": ({"retention_ms": 3_600_000, "cleanup_policy": "compact"}, None),
    "by size": ({"retention_ms": -1, "retention_bytes": 10**9}, 50),
}


@pytest.mark.parametrize("kind", RETENTION)
def test_headroom(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of a log that is behind it is known how long Kafka keeps the first record that is not archived."""
    config, expected = RETENTION[kind]
    topic = site.kafka.create_topic(site.kafka.unused_name("headroom"), **config)
    written = int(time.time() - 3000) * 1000
    send(site.kafka.producer(), topic, events(10), timestamp=written, key="k")
    only(site.drain(topic))
    if "cleanup_policy" not in config:
        site.kafka.delete_records(topic, {0: 5})
    send(site.kafka.producer(), topic, events(10), timestamp=written + 50_000, key="k")
    read_nothing(monkeypatch)
    (result,) = drain_logs(site.settings(topic), seconds=1)
    assert result.headroom == (None if expected is None else pytest.approx(expected, abs=49))


def test_headroom_of_the_log_that_waits_longest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many logs that are behind, those with the oldest statement are measured, however small their lag is."""
    topic = site.kafka.create_topic(site.kafka.unused_name("quiet"), 3)
    endless = site.kafka.create_topic(site.kafka.unused_name("endless"), retention_ms=-1)
    settings = site.settings([endless, topic])
    logs = [(endless, 0), (topic, 1), (topic, 0), (topic, 2)]
    for partition, log in enumerate(logs):
        drain_logs(settings, [log], once=True)
        send(site.kafka.producer(), log[0], events(5 + partition), partition=log[1])
    read_nothing(monkeypatch)
    monkeypatch.setattr(outcome, "MEASURED_LOGS", 1)
    results = drain_logs(settings, logs, seconds=1)
    assert [result.log for result in results if result.headroom is not None] == [f"{topic}/1"]


def test_headroom_that_cannot_be_known(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Kafka does not say how long it keeps what a log waits for, the result says so, each time, with the reason."""
    topic = site.kafka.create_topic(site.kafka.unused_name("unknown"))
    only(site.drain(topic))
    send(site.kafka.producer(), topic, events(10))
    read_nothing(monkeypatch)

    def refuse(*_: object) -> None:
        raise SourceRefused(f"{topic}: its retention cannot be read: not allowed")

    monkeypatch.setattr(outcome, "read_headroom", refuse)
    for _ in range(2):
        (result,) = drain_logs(site.settings(topic), seconds=1)
        assert result.headroom is None
        assert result.headroom_unknown == f"{topic}: its retention cannot be read: not allowed"


def test_records_of_the_future(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A time of the future, which a producer chose, hides no limit and no open transaction: both are unknown."""
    topic = site.kafka.create_topic(site.kafka.unused_name("future"), message_timestamp_after_max_ms=2**63 - 1)
    only(site.drain(topic))
    hanging = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    hanging.init_transactions(30)
    hanging.begin_transaction()
    send(hanging, topic, events(1), timestamp=int(time.time() + 10**9) * 1000)
    only(site.drain(topic, hanging_seconds=0.001))
    assert "a transaction is open, for an unknown time" in caplog.text
    hanging.commit_transaction(30)
    settle(site.kafka, topic, 2)
    read_nothing(monkeypatch)
    (result,) = drain_logs(site.settings(topic), seconds=1)
    assert result.headroom is None
    assert "its timestamp is of the future" in str(result.headroom_unknown)


def test_a_topic_that_vanishes(site: Site) -> None:
    """Of a topic that an expression names, and the archive has logs of, it is said when Kafka has it no more."""
    name = site.kafka.unused_name("vanish")
    topics = [site.kafka.create_topic(f"{name}.{part}") for part in ("stays", "goes")]
    for topic in topics:
        send(site.kafka.producer(), topic, events(5))
    assert {one.outcome for one in site.drain(f"^{re.escape(name)}").values()} == {"drained"}
    site.kafka.delete_topic(topics[1])
    send(site.kafka.producer(), topics[0], events(5))
    results = site.drain(f"^{re.escape(name)}")
    assert (results[f"{topics[0]}/0"].events, results[f"{topics[1]}/0"].outcome) == (5, "failed")
    assert f"topic {topics[1]!r} does not exist" in str(results[f"{topics[1]}/0"].problem)
    assert "exclude it from kafka.topics" in str(results[f"{topics[1]}/0"].problem)
    assert [results[f"{topic}/0"].vanished for topic in topics] == [False, True]
    # The advice of that message ends it.
    assert set(site.drain(f"^(?!{re.escape(topics[1])}$){re.escape(name)}")) == {f"{topics[0]}/0"}
    # The archive's other logs, which the setting does not name, are none of this run's.
    assert set(site.drain(topics[0])) == {f"{topics[0]}/0"}


CHILD = """
import json, sys
from tasks.settings import DrainSettings, KafkaSettings, Settings
from tasks.drain.kafka import Feed
from tasks.drain.run import drain_logs
from tasks.drain.signals import stop_on_signals

real, count = Feed.read, 0

def read(self, records, seconds):
    global count
    messages = real(self, records, seconds)
    count += sum(message.error() is None for message in messages)
    print(count, flush=True)
    return messages

Feed.read = read
with stop_on_signals():
    (result,) = drain_logs(Settings(), seconds=120)
print(json.dumps([result.outcome, result.events]), flush=True)
"""


def test_sigterm_finishes_the_segment_in_hand(site: Site, tmp_path: Path) -> None:
    """SIGTERM ends a run cleanly: what it has read is archived first."""
    topic = site.kafka.create_topic(site.kafka.unused_name("sigterm"))
    sent = send(site.kafka.producer(), topic, events(2500))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env=child_environment(site, topic),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            if line.strip() == "2500":
                break
        child.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        rest = child.stdout.read()
        assert child.wait(30) == 0, child.stderr.read()
    assert time.monotonic() - begun < 10
    assert json.loads(rest.splitlines()[-1]) == ["drained", 2500]
    assert site.read()[f"{topic}/0"].events == archived(sent)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop servers, so that they accept connections and answer nothing."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def draining(environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `custody drain` for long."""
    command = [sys.executable, "-m", "custody", "drain", "--seconds", "600"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stderr=log) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def ends(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child ends within seconds after SIGTERM."""
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(signals.GRACE_SECONDS + 15) in {0, 1, 128 + signal.SIGTERM}
    except subprocess.TimeoutExpired:
        return False


def test_sigterm_while_kafka_hangs(fragile: Site, tmp_path: Path) -> None:
    """SIGTERM ends a drain within seconds while the broker answers nothing, and the next run goes on."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("hang"))
    sent = send(fragile.kafka.producer(), topic, events(100))
    with draining(child_environment(fragile, topic), tmp_path) as child:
        until(lambda: list((tmp_path / "archive").glob("events/**/*.gz")))
        sent += send(fragile.kafka.producer(), topic, events(100, 2))
        with frozen(fragile.kafka.pid):
            assert ends(child)
    # A broker that stood still elects its controller anew. Until then a run fails.
    fragile.kafka.create_topic(fragile.kafka.unused_name("awake"))
    only(fragile.drain(topic))
    assert fragile.read()[f"{topic}/0"].events == archived(sent)


def test_sigterm_while_s3_hangs(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends a drain within seconds while S3 answers nothing, and the next run goes on."""
    monkeypatch.chdir(tmp_path)
    with SeaweedServer(tmp_path / "seaweed") as s3:
        s3.use(monkeypatch)
        site = make_bucket_site(kafka, s3, tmp_path)
        topic = kafka.create_topic(kafka.unused_name("hang"))
        sent = send(kafka.producer(), topic, events(100))
        variables = child_environment(site, topic) | {"CUSTODY_S3__ENDPOINT_URL": s3.endpoint_url}
        with draining(variables, tmp_path) as child:
            until(lambda: any(log.events for log in read_archive_records(site.fetch()).values()))
            sent += send(kafka.producer(), topic, events(100, 2))
            with frozen(s3.pid):
                assert ends(child)
        only(site.drain(topic))
        assert site.read()[f"{topic}/0"].events == archived(sent)


@pytest.mark.parametrize("reader", ["the drain", "a process of its own"])
def test_sigterm_while_a_batch_is_inflated(site: Site, tmp_path: Path, reader: str) -> None:
    """SIGTERM ends a drain within seconds while a large batch is inflated, there or apart, and the next run goes on."""
    topic = site.kafka.create_topic(site.kafka.unused_name("inflate"))
    sent = send(site.kafka.producer(), topic, events(10))
    if reader == "the drain":
        gzip = site.kafka.producer(message_max_bytes=1_000_000_000, compression_type="gzip")
        bombs = send(gzip, topic, [bytes(200_000_000)])
    else:
        bombs = send_bombs(site, topic, [BOMB] * 5)
    sent += send(site.kafka.producer(), topic, events(10, 2))
    with draining(child_environment(site, topic), tmp_path) as child:
        drain = psutil.Process(child.pid)
        if reader == "the drain":
            until(lambda: drain.memory_info().rss > 200_000_000)
            apart_ones = []
        else:
            until(drain.children)
            apart_ones = drain.children()
        assert ends(child)
    _, alive = psutil.wait_procs(apart_ones, timeout=apart.SECONDS + 10)
    assert not alive
    only(site.drain(topic))
    log = site.read()[f"{topic}/0"]
    assert (log.events, len(log.quarantined)) == (archived(sent), len(bombs))


@pytest.mark.parametrize("server", ["elasticsearch", "kms"])
def test_sigterm_while_another_server_hangs(site: Site, tmp_path: Path, server: str) -> None:
    """SIGTERM ends a drain within seconds while Elasticsearch or KMS accepts connections and answers nothing."""
    topic = site.kafka.create_topic(site.kafka.unused_name("hang"))
    sent = send(site.kafka.producer(), topic, events(100))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        variables = child_environment(site, topic)
        if server == "kms":
            variables |= {"CUSTODY_KEYS": f"aws-kms:///{HMAC_ARN}", "AWS_ENDPOINT_URL_KMS": url}
            variables |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        else:
            variables |= {"CUSTODY_SEARCH__URL": url}
        with draining(variables, tmp_path) as child:
            listener.settimeout(60)
            accepted, _ = listener.accept()
            with accepted:
                assert ends(child)
    only(site.drain(topic))
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_committed_offsets_and_status(site: Site) -> None:
    """The group's offset follows the manifest, for lag monitors; the status tells heads and lag."""
    topic = site.kafka.create_topic(site.kafka.unused_name("committed"))
    producer = site.kafka.producer()
    send(producer, topic, events(12))
    result = only(site.drain(topic))
    send(producer, topic, events(3, 2))
    consumer = Consumer({"bootstrap.servers": site.kafka.bootstrap, "group.id": site.group})
    try:
        (committed,) = consumer.committed([TopicPartition(topic, 0)], timeout=10)
    finally:
        consumer.close()
    assert committed.offset == 12
    metadata = str(committed.metadata)
    memory = json.loads(metadata.split("\n")[0])
    assert (memory["epoch"], memory["size"], memory["root"]) == (1, result.size, result.root)
    assert len(metadata) < 1024
    (status,) = health_of(site.settings(topic))
    assert (status.log, status.size, status.root, status.next_offset, status.lag_records) == (
        f"{topic}/0",
        result.size,
        result.root,
        12,
        3,
    )


def health_of(settings: Settings) -> tuple[LogHealth, ...]:
    """Return the health of the archive's logs now."""
    return read_health(settings, datetime.now(UTC)).logs


def told(log: LogHealth) -> str:
    """Return what is said of a log's problems."""
    return "; ".join(f"{problem.message}. {problem.remedy}" for problem in log.problems)


def test_status_of_a_topic_that_is_another(site: Site) -> None:
    """A topic that was recreated has no lag but a problem; after `new-epoch` the earlier epoch has ended."""
    topic = site.kafka.create_topic(site.kafka.unused_name("restated"))
    send(site.kafka.producer(), topic, events(12))
    site.drain(topic)
    settings = site.settings(topic)
    site.kafka.delete_topic(topic)
    (gone,) = health_of(settings)
    assert (gone.next_offset, gone.lag_records) == (12, None)
    assert "no longer has the partition" in told(gone)
    site.kafka.create_topic(topic)
    # More than were archived, so that nothing but the topic's id shows it.
    send(site.kafka.producer(), topic, events(30, 2))
    (again,) = health_of(settings)
    assert (again.size, again.next_offset, again.lag_records, again.ended) == (gone.size, 12, None, False)
    assert "deleted and created again (archived: topic id" in told(again)
    assert "custody new-epoch" in told(again)
    begin_epoch(settings, topic)
    # A folder alone ends no epoch.
    (Path(site.archive) / "manifests" / f"{topic}@7" / "0").mkdir(parents=True)
    ended, current = health_of(settings)
    assert (ended.log, ended.lag_records, ended.ended, ended.problems) == (f"{topic}/0", None, True, ())
    assert (current.log, current.lag_records, current.ended, current.problems) == (f"{topic}@2/0", 30, False, ())


def test_status_of_a_damaged_log(site: Site, tmp_path: Path) -> None:
    """A log that lacks its first statement, its last one, or all of them, is shown, with what is wrong."""
    topic = site.kafka.create_topic(site.kafka.unused_name("holes"))
    for seed in (1, 2):
        send(site.kafka.producer(), topic, events(5, seed))
        only(site.drain(topic))
    manifests = tmp_path / "archive" / "manifests" / topic / "0"
    kept = {path: path.read_bytes() for path in sorted(manifests.iterdir())}
    for missing in ([0], [2], [0, 1, 2]):
        for number in missing:
            list(kept)[number].unlink()
        (status,) = health_of(site.settings(topic))
        assert (status.log, status.level) == (f"{topic}/0", "failed")
        assert {problem.kind for problem in status.problems} == {"log-damaged"}
        assert "custody verify" in told(status)
        for path, data in kept.items():
            path.unlink(missing_ok=True)
            path.write_bytes(data)
    (status,) = health_of(site.settings(topic))
    assert (status.size, status.lag_records, status.problems) == (3, 0, ())


def test_head_that_went_back(site: Site, tmp_path: Path) -> None:
    """An archive that lacks a statement which the committed offset remembers is not gone on from."""
    topic = site.kafka.create_topic(site.kafka.unused_name("rollback"))
    producer = site.kafka.producer()
    send(producer, topic, events(12))
    site.drain(topic)
    newest = tmp_path / "archive" / "manifests" / topic / "0" / "000000000001.json"
    newest.unlink()
    (result,) = site.drain(topic).values()
    assert result.outcome == "failed"
    assert "head has size 1" in str(result.problem)
    assert not newest.exists()


# --- S3


def test_into_s3(kafka: KafkaServer, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive in a bucket is the same as one in a folder: events, quarantine, skipped and lost."""
    monkeypatch.chdir(tmp_path)
    seaweed.use(monkeypatch)
    site = make_bucket_site(kafka, seaweed, tmp_path)
    topic = kafka.create_topic(kafka.unused_name("s3"), 2)
    producer = kafka.producer()
    sent = send(producer, topic, [*events(5000), b"no event", *events(10, 2)])
    other = send(producer, topic, events(100, 3), partition=1)
    results = site.drain(topic, segment_bytes=2**19)
    assert {one.outcome for one in results.values()} == {"drained"}
    more = send(producer, topic, events(100, 4), partition=1)
    kafka.delete_records(topic, {1: 130})
    assert site.drain(topic)[f"{topic}/1"].lost == 30
    found = site.read(exit_code=11)
    assert found[f"{topic}/0"].events == archived(sent)
    assert found[f"{topic}/0"].quarantined_values == [b"no event"]
    assert found[f"{topic}/1"].events == archived(other + more[30:])
    assert found[f"{topic}/1"].lost == [(100, 130)]
    assert only({name: one for name, one in site.drain(topic).items() if name.endswith("/0")}).statements == 0


# --- a broker that does not answer, or says no


def test_broker_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no broker answers the run ends soon, with an error that names the broker, the reason, and what to do."""
    monkeypatch.setattr(source, "REQUEST_SECONDS", 2.0)
    server = KafkaServer(Path("nowhere"))
    (server.port,) = free_ports(1)
    site.kafka = server
    begun = time.monotonic()
    told = rf"Kafka at {server.bootstrap}: Connect to ipv4#{server.bootstrap} failed: Connection refused; check that"
    with pytest.raises(TransientSourceError, match=told):
        site.drain("any")
    assert time.monotonic() - begun < 10


def test_unknown_topic(site: Site) -> None:
    """A topic that does not exist is named, with what to do, and keeps no other from being drained."""
    there = site.kafka.create_topic(site.kafka.unused_name("there"))
    sent = send(site.kafka.producer(), there, events(10))
    results = site.drain([there, "no.such.topic"])
    assert results[f"{there}/0"].outcome == "drained"
    missing = results["no.such.topic/0"]
    assert missing.outcome == "failed"
    assert re.search(r"'no\.such\.topic' does not exist.*create it, or correct kafka\.topics", missing.problem or "")
    assert site.read()[f"{there}/0"].events == archived(sent)


def test_topic_that_cannot_be_archived(site: Site) -> None:
    """A topic whose keys would be too long is refused with the reason, and keeps no other from being drained."""
    there = site.kafka.create_topic(site.kafka.unused_name("short"))
    long = site.kafka.create_topic(site.kafka.unused_name("x" * 200))
    results = site.drain([there, long])
    assert results[f"{there}/0"].outcome == "drained"
    assert "too long to archive" in (results[f"{long}/0"].problem or "")


def test_settings_reach_librdkafka(site: Site) -> None:
    """TLS settings pass through: librdkafka refuses a certificate that is not there, and no value is repeated."""
    secret = "not-to-be-seen"
    client = {"security.protocol": "SSL", "ssl.ca.location": "/does/not/exist.pem", "ssl.key.password": secret}
    with pytest.raises(ConfigurationError, match="librdkafka does not accept the settings") as raised:
        site.drain("any", client=client)
    assert secret not in str(raised.value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A broker of this module's own that wants a password."""
    try:
        with GuardedServer(tmp_path_factory.mktemp("guarded") / "kafka", heap="256m") as server:
            yield server
    except KafkaUnavailableError as error:
        unavailable(str(error))


def test_password(
    guarded: GuardedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SASL settings pass through; a wrong password is refused for good, and stands in no text."""
    monkeypatch.chdir(tmp_path)
    site = make_site(guarded, tmp_path)
    topic = guarded.inner().create_topic("guarded")
    guarded.allow(ResourceType.TOPIC, topic, AclOperation.READ)
    guarded.allow(ResourceType.GROUP, site.group, AclOperation.READ)
    sent = send(guarded.inner().producer(), topic, events(5))
    client = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "custody"}
    assert only(site.drain(topic, client=client | {"sasl.password": "right-password"})).events == 5
    begun = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceRefused, match="uthentication") as raised:
        site.drain(topic, client=client | {"sasl.password": "wrong-password"})
    assert time.monotonic() - begun < 15
    assert "wrong-password" not in str(raised.value) + caplog.text
    assert "refused to User:custody" in str(raised.value)
    assert site.read()[f"{topic}/0"].events == archived(sent)


# --- a partition that lost records, and has grown again


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker of this module's own, which may be stopped and its disk changed."""
    try:
        with KafkaServer(tmp_path_factory.mktemp("breakable") / "kafka", heap="256m") as server:
            yield server
    except KafkaUnavailableError as error:
        unavailable(str(error))


@pytest.fixture
def fragile(breakable: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A new archive, of a broker that may be broken."""
    monkeypatch.chdir(tmp_path)
    return make_site(breakable, tmp_path)


def send_singly(site: Site, topic: str, number: int, seed: int) -> list[Sent]:
    """Produce events each in a batch of its own."""
    producer = site.kafka.producer(linger_ms=0)
    return [one for value in events(number, seed) for one in send(producer, topic, [value])]


def cut(site: Site, topic: str, offset: int) -> None:
    """Lose a partition's records from an offset on, as a broker does whose disk lost its last writes."""
    site.kafka.stop()
    site.kafka.truncate(topic, offset)
    site.kafka.start()


def test_truncated_and_grown_again(fragile: Site) -> None:
    """A partition that lost records and has grown beyond the archive's end is refused: no new record is passed over."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("truncated"))
    old = send_singly(fragile, topic, 10, 1)
    assert only(fragile.drain(topic)).next_offset == 10
    cut(fragile, topic, 6)
    new = send_singly(fragile, topic, 6, 2)
    assert [one.offset for one in new] == list(range(6, 12))
    before = fragile.fetch()
    assert isinstance(before, Path)
    there = sorted(before.rglob("*"))
    for _ in range(2):
        (result,) = fragile.drain(topic).values()
        assert (result.outcome, result.events, result.statements) == ("failed", 0, 0)
        assert "the partition was truncated" in str(result.problem)
        assert f"custody new-epoch {topic}" in str(result.problem)
    assert sorted(before.rglob("*")) == there
    assert fragile.read()[f"{topic}/0"].events == archived(old)

    (begun,) = begin_epoch(fragile.settings(topic), topic)
    assert (begun.log, begun.earlier, begun.same_topic) == (f"{topic}@2/0", f"{topic}/0", True)
    assert only(fragile.drain(topic)).events == 12
    # Two histories of one topic were signed: somebody has to accept that.
    found = fragile.read(exit_code=13)
    assert found[f"{topic}/0"].events == archived(old)
    assert found[f"{topic}@2/0"].events == archived(old[:6] + new)


def test_truncated_in_the_middle_of_a_run(fragile: Site) -> None:
    """A partition that is truncated while a run follows it, and grows again, ends that log's run."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("following"))
    old = send_singly(fragile, topic, 10, 1)
    results: list[LogResult] = []
    settings = fragile.settings(topic, flush_seconds=0.2)
    thread = threading.Thread(target=lambda: results.extend(drain_logs(settings, seconds=150)))
    thread.start()
    until, store = time.monotonic() + 60, open_store(fragile.archive)

    def is_archived() -> bool:
        # On a busy machine ten records may take some statements.
        newest = find_tip(store, LogName(topic, 0), anything).newest
        return newest is not None and newest.statement.next_offset == len(old)

    while not (archived_all := is_archived()) and time.monotonic() < until:
        time.sleep(0.1)
    cut(fragile, topic, 6)
    send_singly(fragile, topic, 6, 2)
    thread.join()
    (result,) = results
    assert archived_all
    assert result.outcome == "failed", result
    # On a busy machine the run may look before the partition has grown again: then it ends before the log does.
    assert "truncated" in str(result.problem)
    log = fragile.read()[f"{topic}/0"]
    assert log.events == archived(old)


def test_truncated_behind_the_last_record(fragile: Site) -> None:
    """New records where the archive has skipped ones are noticed, although the archive's last record is still there."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("aborted"))
    kept = send_singly(fragile, topic, 3, 1)
    aborting = fragile.kafka.producer(transactional_id=fragile.kafka.unused_name("id"), linger_ms=0)
    aborting.init_transactions(30)
    aborting.begin_transaction()
    for value in events(4, 2):
        send(aborting, topic, [value])
    aborting.abort_transaction(30)
    settle(fragile.kafka, topic, 8)
    first = only(fragile.drain(topic))
    assert (first.events, first.skipped, first.next_offset) == (3, 5, 8)
    cut(fragile, topic, 3)
    send_singly(fragile, topic, 9, 3)
    (result,) = fragile.drain(topic).values()
    assert (result.outcome, result.statements) == ("failed", 0)
    assert "at offset 3, where the archive says that there is none" in str(result.problem)
    assert fragile.read()[f"{topic}/0"].events == archived(kept)


def test_a_leader_change_without_loss(fragile: Site) -> None:
    """A broker that was stopped, or killed, and starts again in a later leader epoch is gone on from."""
    topic = fragile.kafka.create_topic(fragile.kafka.unused_name("restarted"))
    sent = send_singly(fragile, topic, 4, 1)
    only(fragile.drain(topic))
    for seed, end in ((2, fragile.kafka.stop), (3, fragile.kafka.kill)):
        end()
        fragile.kafka.start()
        assert only(fragile.drain(topic)).statements == 0
        sent += send_singly(fragile, topic, 2, seed)
        assert only(fragile.drain(topic)).events == 2
    log = fragile.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    epochs = [one["last_record"]["leader_epoch"] for one in log.statements if one["last_record"]]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) == 3


@pytest.mark.parametrize("before", [10, 12])
def test_retention_has_taken_the_last_record(site: Site, before: int) -> None:
    """Where the archive's last record is no longer on the broker nothing is said of it, and the drain goes on."""
    topic = site.kafka.create_topic(site.kafka.unused_name("forgotten"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10))
    only(site.drain(topic))
    sent += send(producer, topic, events(4, 2))
    site.kafka.delete_records(topic, {0: before})
    result = only(site.drain(topic))
    assert (result.events, result.lost) == (14 - before, before - 10)
    log = site.read(exit_code=11 if result.lost else 0)[f"{topic}/0"]
    assert log.events == archived([one for one in sent if one.offset not in range(10, before)])


def test_retention_takes_the_last_record_before_it_is_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where retention takes the archive's last record at the start of a run, the run goes on behind it."""
    topic = site.kafka.create_topic(site.kafka.unused_name("raced"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(10))
    only(site.drain(topic))
    sent += send(producer, topic, events(5, 2))
    real = resume.open_logs

    def opened(*arguments: Any) -> Any:
        found = real(*arguments)
        site.kafka.delete_records(topic, {0: 12})
        return found

    monkeypatch.setattr(engine, "open_logs", opened)
    result = only(site.drain(topic))
    assert (result.events, result.lost) == (3, 2)
    assert site.read(exit_code=11)[f"{topic}/0"].lost == [(10, 12)]


def test_many_aborted_records_are_not_read_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a last record that agrees, a run reads no long stretch of skipped offsets a second time."""
    topic = site.kafka.create_topic(site.kafka.unused_name("stretch"))
    sent = send(site.kafka.producer(), topic, events(3))
    aborting = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    aborting.init_transactions(30)
    aborting.begin_transaction()
    send(aborting, topic, events(40, 2))
    aborting.abort_transaction(30)
    settle(site.kafka, topic, 44)
    only(site.drain(topic))
    monkeypatch.setattr(intake, "REREAD_OFFSETS", 20)
    sought: list[int] = []
    seek = Feed.seek

    def noting(feed: Feed, position: TopicPartition) -> None:
        sought.append(position.offset)
        seek(feed, position)

    monkeypatch.setattr(Feed, "seek", noting)
    sent += send(site.kafka.producer(), topic, events(2, 3))
    assert only(site.drain(topic)).events == 2
    assert sought == [44]
    assert site.read()[f"{topic}/0"].events == archived(sent)


LAST = LastRecord(9, 4)


@pytest.mark.parametrize(
    ("offset", "leader_epoch", "wrong"),
    [
        (9, 4, False),
        (9, 5, True),
        (9, 3, True),
        (9, None, False),
        (9, -1, False),
        (12, 4, False),
        (12, 5, False),
        (12, 3, True),
        (8, 3, False),
    ],
)
def test_contradictions(offset: int, leader_epoch: int | None, wrong: bool) -> None:
    """The record itself is known by its leader epoch; one behind it, where compaction took it, by an earlier one."""
    assert (contradiction(LAST, offset, leader_epoch) is not None) is wrong


@pytest.mark.parametrize("ending", ["a later record", "the end"])
def test_truncated_where_compaction_took_the_last_record(
    site: Site, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Where the last record cannot be read again, what librdkafka finds by the broker's leader epochs decides."""
    topic = site.kafka.create_topic(site.kafka.unused_name("compacted"))
    send(site.kafka.producer(), topic, events(10))
    only(site.drain(topic))
    send(site.kafka.producer(), topic, events(2, 2))
    found = KafkaError(KafkaError._AUTO_OFFSET_RESET, f"{KafkaError(LOG_TRUNCATION).str()} (broker 1)")
    last = (
        Message(topic=topic, partition=0, offset=11, value=events(1)[0], leader_epoch=7)
        if ending == "a later record"
        else Message(topic=topic, partition=0, offset=12, error=KafkaError(KafkaError._PARTITION_EOF))
    )
    answers = [[Message(topic=topic, partition=0, error=found)], [last]]
    monkeypatch.setattr(Feed, "read", lambda *_: answers.pop(0))
    (result,) = site.drain(topic).values()
    assert (result.outcome, result.statements) == ("failed", 0)
    assert "Partition log truncation detected" in str(result.problem)


# --- what lies in the archive, and in Kafka, and is not signed


def commit_metadata(site: Site, topic: str, metadata: str, partition: int = 0) -> None:
    consumer = Consumer({"bootstrap.servers": site.kafka.bootstrap, "group.id": site.group})
    try:
        consumer.commit(offsets=[TopicPartition(topic, partition, 1, metadata)], asynchronous=False)
    finally:
        consumer.close()


def committed_metadata(site: Site, topic: str, partition: int = 0) -> str:
    consumer = Consumer({"bootstrap.servers": site.kafka.bootstrap, "group.id": site.group})
    try:
        (found,) = consumer.committed([TopicPartition(topic, partition)], timeout=10)
        return str(found.metadata)
    finally:
        consumer.close()


@pytest.mark.parametrize(("size", "counts"), [(2, True), (1, False), (None, False)])
def test_a_memory_by_a_key_that_has_ended(tmp_path: Path, size: int | None, *, counts: bool) -> None:
    """What a leaked key signs as a committed offset counts within the head at which it ended, and nowhere else."""
    growing = Growing(tmp_path)
    growing.append(2)
    store, log = open_store(str(growing.folder)), LogName("audit.grows", 0)
    trust, signers = open_trust([f"file:{growing.keyring}"]), open_signers(f"file:{growing.keyring}", datetime.now(UTC))
    judge = Judge(store, log, statements_of(log), read_archive(store).id, trust)
    head = Head(2, judge.proofs.root(2))
    archive = read_archive(store).id
    committed = TopicPartition(log.topic, 0, 2, encode_committed_head(archive, log, head, signers.hmac()))
    memory = parse_committed_head(committed, archive)
    assert memory is not None
    until = {} if size is None else {str(log): Head(size, judge.proofs.root(size))}
    ended = replace(trust, keys={id_: replace(key, until=until) for id_, key in trust.keys.items()})
    assert check_committed_head(memory, trust, judge.proofs) == KnownHead(
        2, head.root, "the offset that the group committed"
    )
    assert (check_committed_head(memory, ended, judge.proofs) is not None) is counts


def test_what_other_clients_commit(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """What a Kafka client without the key commits as a memory of the head stops nothing, nor what it copies."""
    topic = site.kafka.create_topic(site.kafka.unused_name("memories"), 2)
    producer = site.kafka.producer()
    send(producer, topic, events(5))
    site.drain(topic)
    for seed in (2, 3):
        send(producer, topic, events(5, seed), partition=1)
        site.drain(topic)
    mine, other = committed_metadata(site, topic), committed_metadata(site, topic, 1)
    line, second, _ = mine.split("\n")

    def changed(**fields: object) -> str:
        return f"{json.dumps(json.loads(line) | fields, separators=(',', ':'))}\n{second}\n"

    forged = [
        "",
        "x" * 100,
        "[" * 4000,
        f"{line}\n",
        changed(size=999),
        changed(root="00" * 32),
        changed(archive="00000000-0000-4000-8000-000000000000"),
        re.sub(r'"key":"[^"]+"', '"key":"nobody"', mine),
        mine.replace("HMAC-SHA256", "Ed25519"),
        # The head of the other partition is larger.
        other,
    ]
    for number, metadata in enumerate(forged):
        commit_metadata(site, topic, metadata)
        caplog.clear()
        assert site.drain(topic)[f"{topic}/0"].outcome == "drained", metadata
        assert ("is ignored" in caplog.text) is (4 <= number <= 8 and number != 6), metadata
    commit_metadata(site, topic, mine)
    assert site.drain(topic)[f"{topic}/0"].outcome == "drained"
    site.read()


def test_names_begin_no_epoch(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty folder, garbage, or a copied statement under the name of a later epoch begins none."""
    topic = site.kafka.create_topic(site.kafka.unused_name("names"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(5))
    site.drain(topic)
    manifests = tmp_path / "archive" / "manifests"
    copied = (manifests / topic / "0" / "000000000000.json").read_bytes()
    for epoch, data in ((2, None), (7, b"garbage"), (9, copied)):
        folder = manifests / f"{topic}@{epoch}" / "0"
        folder.mkdir(parents=True)
        if data is not None:
            (folder / "000000000000.json").write_bytes(data)
    sent += send(producer, topic, events(5, 2))
    results = site.drain(topic)
    assert list(results) == [f"{topic}/0"]
    assert only(results).events == 5
    assert "they are no epochs" in caplog.text
    with pytest.raises(LogChanged, match="no reason"):
        begin_epoch(site.settings(topic), topic)
    for epoch in (2, 7, 9):
        shutil.rmtree(manifests / f"{topic}@{epoch}")
    assert site.read()[f"{topic}/0"].events == archived(sent)


def test_a_later_epoch_that_was_deleted(site: Site) -> None:
    """Where an audit knows a later epoch that is gone, no earlier one is gone on with."""
    topic = site.kafka.create_topic(site.kafka.unused_name("gone"))
    send(site.kafka.producer(), topic, events(5))
    site.drain(topic)
    audited(site, {f"{topic}@2/0": Head(3, bytes(32))})
    (result,) = site.drain(topic).values()
    assert (result.log, result.outcome) == (f"{topic}@2/0", "failed")
    # Nobody can say that it was not made from this topic.
    assert "has size 3" in str(result.problem)


def test_a_later_epoch_that_only_kafka_remembers(site: Site, tmp_path: Path) -> None:
    """A later epoch that was deleted whole is not begun a second time where the committed offset remembers it."""
    topic = site.kafka.create_topic(site.kafka.unused_name("gone"))
    send(site.kafka.producer(), topic, events(5))
    site.drain(topic)
    site.kafka.delete_topic(topic)
    site.kafka.create_topic(topic)
    send(site.kafka.producer(), topic, events(5, 2))
    begin_epoch(site.settings(topic), topic)
    only(site.drain(topic))
    for folder in ("manifests", "checkpoints"):
        shutil.rmtree(tmp_path / "archive" / folder / f"{topic}@2")
    (result,) = site.drain(topic).values()
    assert (result.log, result.outcome) == (f"{topic}@2/0", "failed")
    assert "known from the offset that the group committed has size 2" in str(result.problem)
    with pytest.raises(LogChanged, match="no reason"):
        begin_epoch(site.settings(topic), topic)
    assert not (tmp_path / "archive" / "manifests" / f"{topic}@2").exists()


def audited(site: Site, heads: Mapping[str, Head]) -> None:
    """Append a signed audit that has seen heads."""
    store, trust = open_store(site.archive), open_trust([site.keys])
    archive = read_archive(store).id
    seen = {log: HeadRef(head.size, head.root.hex()) for log, head in heads.items()}

    def make(tip: Tip[SignedAudit]) -> Audit:
        return audit_of(archive, tip, datetime.now(UTC), heads=seen)

    signers = open_signers(site.keys, datetime.now(UTC)).both()
    append_audit(store, find_trusted_audits(store, archive, trust), make, signers, trust)


def test_audits_remember_heads(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A signed audit's heads are a memory of the log; what nobody signed lies beside it, and only warns."""
    topic = site.kafka.create_topic(site.kafka.unused_name("audited"))
    producer = site.kafka.producer()
    send(producer, topic, events(5))
    log = f"{topic}/0"
    site.drain(topic)
    head = find_tip(open_store(site.archive), LogName(topic, 0), anything).head
    audited(site, {log: head})
    audits = tmp_path / "archive" / "audits"
    good = (audits / "000000000000.json").read_bytes()
    line, second = good.split(b"\n")[:2]
    unsigned = line.replace(b'"size":2', b'"size":999') + b"\n" + second + b"\n"
    foreign = line + b"\n" + re.sub(rb'"key":"[^"]*"', b'"key":"nobody"', second, count=1) + b"\n"
    for garbage in (b"", b"garbage", unsigned, good, foreign):
        (audits / "000000000001.json").write_bytes(garbage)
        caplog.clear()
        assert only(site.drain(topic)).log == log
        assert "audits/000000000001.json and later audits are not signed" in caplog.text
    (audits / "000000000001.json").unlink()
    (audits / "000000000000.json").unlink()
    audited(site, {log: Head(head.size, bytes(32))})
    (result,) = site.drain(topic).values()
    assert result.outcome == "failed"
    assert "known from audits/000000000000.json" in str(result.problem)


def write_trust(path: Path, **fields: object) -> Path:
    path.write_text(json.dumps({"format": "custody/trust/1", **fields}))
    path.chmod(0o600)
    return path


def test_an_archive_that_is_not_the_pinned_one(site: Site, tmp_path: Path) -> None:
    """A drain goes on only in the archive that trust.json pins, or that its own keys signed."""
    topic = site.kafka.create_topic(site.kafka.unused_name("pinned"))
    send(site.kafka.producer(), topic, events(5))
    file = tmp_path / "archive" / "archive.json"
    pin = read_archive(open_store(site.archive)).pin
    pinned = {"id": pin.id, "sha256": pin.sha256}
    site.trust = write_trust(tmp_path / "trust.json", archive=pinned)
    assert only(site.drain(topic)).events == 5
    site.trust = write_trust(tmp_path / "other.json", archive=pinned | {"sha256": "00" * 32})
    with pytest.raises(HeadRollback, match=r"not the one pinned in trust\.json.*The archive is not used"):
        site.drain(topic)
    site.trust = None
    (tmp_path / "elsewhere").mkdir()
    other = make_site(site.kafka, tmp_path / "elsewhere")
    file.write_bytes((Path(other.archive) / "archive.json").read_bytes())
    with pytest.raises(HeadRollback, match=r"other keys signed archive\.json"):
        site.drain(topic)


@pytest.mark.parametrize("root", [True, False], ids=["within its end", "beyond its end"])
def test_a_key_that_has_ended(site: Site, tmp_path: Path, root: bool) -> None:
    """What a key signed that trust.json has ended is gone on from as far as it lies within that end, and no further."""
    topic = site.kafka.create_topic(site.kafka.unused_name("ended"))
    producer = site.kafka.producer()
    send(producer, topic, events(5))
    site.drain(topic)
    head = find_tip(open_store(site.archive), LogName(topic, 0), anything).head
    first = Proofs(open_store(site.archive), topic, statements_of(LogName(topic, 0))).root(1)
    end = head if root else Head(1, first)
    ring = Keyring.load(tmp_path / "keyring.json")
    ended = [
        {"id": key.key_id, "algorithm": key.algorithm, "from": None, "to": None}
        | {"until": {f"{topic}/0": {"size": end.size, "root": end.root.hex()}}}
        for key in ring.keys
        if isinstance(key, HmacKey)
    ]
    site.trust = write_trust(tmp_path / "trust.json", keys=ended)
    rotate_keyring(tmp_path / "keyring.json")
    send(producer, topic, events(5, 2))
    (result,) = site.drain(topic).values()
    if root:
        assert (result.outcome, result.events) == ("drained", 5)
    else:
        assert (result.outcome, result.events) == ("failed", 0)
        assert "ended at this log's size 1" in str(result.problem)


# --- checkpoints, and leaves


def checkpoint_sizes(site: Site, topic: str) -> list[int]:
    parsed = (
        parse_checkpoint_key(info.key) for info in open_store(site.archive).list(checkpoint_prefix(LogName(topic, 0)))
    )
    return sorted(one[1] for one in parsed if one)


def run(site: Site, topic: str, seconds: float = 1.5) -> LogResult:
    """Drain for a time, as the minute's run does."""
    (result,) = drain_logs(site.settings(topic), seconds=seconds)
    assert result.outcome == "drained", result.problem
    return result


NEVER = 31_000_000
"""Seconds of a slot that hardly ends while a test runs."""


@pytest.mark.parametrize(
    ("seconds", "expected"), [(NEVER, [2]), (1, [2, 3, 4])], ids=["once in a while", "every second"]
)
def test_checkpoints_of_a_log_that_grows(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, expected: list[int]
) -> None:
    """The first run of a log signs its head, a later one as often as archive.json says; the checkpoints verify."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path, checkpoint=seconds)
    topic = kafka.create_topic(kafka.unused_name("heads"))
    for seed in range(3):
        send(kafka.producer(), topic, events(5, seed))
        run(site, topic)
    assert checkpoint_sizes(site, topic) == expected
    site.read()


def test_a_checkpoint_that_was_not_written_in_time(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a run died before its checkpoint, a later one writes it, although the log did not grow; and only once."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path, checkpoint=1)
    topic = kafka.create_topic(kafka.unused_name("late"))
    send(kafka.producer(), topic, events(5))
    run(site, topic)
    path = tmp_path / "archive" / checkpoint_key(LogName(topic, 0), 2)
    path.unlink()
    assert run(site, topic).statements == 0
    made = path.read_bytes()
    path.write_bytes(b"somebody else's")
    run(site, topic)
    assert path.read_bytes() == b"somebody else's"
    path.write_bytes(made)
    site.read()


def test_once_signs_every_head(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody drain --once` leaves no head without a checkpoint, whatever the time."""
    monkeypatch.chdir(tmp_path)
    site = make_site(kafka, tmp_path, checkpoint=NEVER)
    topic = kafka.create_topic(kafka.unused_name("once"))
    for seed in range(3):
        send(kafka.producer(), topic, events(5, seed))
        site.drain(topic)
    assert checkpoint_sizes(site, topic) == [2, 3, 4]
    (tmp_path / "archive" / checkpoint_key(LogName(topic, 0), 4)).unlink()
    assert only(site.drain(topic)).statements == 0
    assert checkpoint_sizes(site, topic) == [2, 3, 4]
    site.read()


def test_without_a_key_for_checkpoints(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no Ed25519 key is at hand events are archived all the same, and a warning says what is missing."""
    topic = site.kafka.create_topic(site.kafka.unused_name("hmac"))
    pin = read_archive(open_store(site.archive)).pin
    ring = Keyring.load(tmp_path / "keyring.json")
    Keyring(tuple(key for key in ring.keys if isinstance(key, HmacKey))).save(tmp_path / "hmac.json")
    site.keys = f"file:{tmp_path / 'hmac.json'}"
    site.trust = write_trust(tmp_path / "trust.json", archive={"id": pin.id, "sha256": pin.sha256})
    sent = send(site.kafka.producer(), topic, events(5))
    assert only(site.drain(topic, event_leaves=True)).events == 5
    assert "no checkpoints: no Ed25519 key is valid now" in caplog.text
    assert "batches get no leaves" in caplog.text
    assert checkpoint_sizes(site, topic) == []
    log = read_archive_records(tmp_path / "archive")[f"{topic}/0"]
    assert log.events == archived(sent)
    assert [batch["leaves"] for batch in log.batches] == [None]


def test_a_checkpoint_that_cannot_be_put_stops_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The drain goes on without it, and says so."""

    def refuse(*_: object) -> None:
        raise TransientSourceError("no")

    monkeypatch.setattr("tasks.drain.appends.put_checkpoint", refuse)
    topic = site.kafka.create_topic(site.kafka.unused_name("refused"))
    send(site.kafka.producer(), topic, events(5))
    assert site.drain(topic)[f"{topic}/0"].outcome == "drained"
    assert "no checkpoint of" in caplog.text
    site.read()


def test_leaves(site: Site) -> None:
    """Batches commit to each event alone where the settings say so, numbered on over runs that had none."""
    topic = site.kafka.create_topic(site.kafka.unused_name("leaves"))
    producer = site.kafka.producer()
    sent = send(producer, topic, events(25))
    site.drain(topic, batch_events=10, event_leaves=True)
    sent += send(producer, topic, events(5, 2))
    site.drain(topic, batch_events=10)
    sent += send(producer, topic, events(5, 3))
    site.drain(topic, batch_events=10, event_leaves=True)
    # The verifier has the secret, and checks each.
    log = site.read()[f"{topic}/0"]
    assert log.events == archived(sent)
    assert [batch["number"] for batch in log.batches] == [0, 1, 2, 3, 4]
    assert [batch["leaves"] is not None for batch in log.batches] == [True, True, True, False, True]
