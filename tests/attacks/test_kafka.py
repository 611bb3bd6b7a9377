"""Rows 9 and 41: what the broker still has tells on a writer who left it out or changed it, and on a lost head."""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from custody.cli.main import main
from tasks.drain.kafka import Broker, Feed
from tasks.drain.resume import begin_epoch
from tests.faults.world import World, make_world
from tests.helpers.archives import ARCHIVE_ID, KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, START, Builder, event
from tests.helpers.environment import clear_settings
from tests.servers.kafka import KafkaServer, KafkaUnavailableError
from tests.servers.require import unavailable

RECORDS = 20


def verify(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]]]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in ("verify", *arguments, "--json")])
    out, err = capfd.readouterr()
    assert out, err
    found = [json.loads(line) for line in out.splitlines()]
    return int(ended.value.code or 0), [one for one in found if one["kind"] == "finding"]


def sound(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """Return a world's archive, which agrees with Kafka; the world's settings are this process's from now on."""
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    archive = tmp_path / "archive"
    assert verify(capfd, archive, "--kafka") == (0, [])
    return archive


def clear(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    clear_settings(monkeypatch)


@pytest.fixture
def topic(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic of good events, and settings that name it."""
    clear(monkeypatch, tmp_path)
    name = kafka.create_topic(kafka.unused_name("skipped"))
    producer = kafka.producer()
    for offset in range(RECORDS):
        producer.produce(name, event(offset), partition=0)
    assert producer.flush(60) == 0
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", name)
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", kafka.unused_name("group"))
    return name


def builder(kafka: KafkaServer, topic: str, folder: Path, **fields: Any) -> Builder:
    """Return what writes the archive of a topic as a dishonest writer can, who holds the keys."""
    with Broker({"bootstrap.servers": kafka.bootstrap}, "tests") as broker:
        cluster = broker.cluster()
        topic_id = broker.topic_id(topic, cluster)
    known = {"cluster": cluster, "topic_id": topic_id, "next_offset": 0, "clock": datetime.now(UTC), "leader_epoch": 0}
    log = Builder(folder, topic=topic, **(known | fields)).init()
    log.append()
    return log


def written(kafka: KafkaServer, topic: str, folder: Path, skip: list[int]) -> Path:
    """Write the archive of a topic as a dishonest writer would, who calls some records skipped; return its trust."""
    builder(kafka, topic, folder).append(RECORDS, skip=skip)
    return trusting(folder.parent)


def trusting(folder: Path) -> Path:
    """Write a trust.json with the dishonest writer's keys."""
    path = folder / "trust.json"
    secret = base64.b64encode(SECRET).decode()
    public = base64.b64encode(NOTE_PUBLIC).decode()
    keys = [
        {"id": KEY_ID, "algorithm": "HMAC-SHA256", "from": None, "to": None, "secret": secret},
        {"id": NOTE_NAME, "algorithm": "Ed25519", "from": None, "to": None, "public": public},
    ]
    path.write_text(json.dumps({"format": "custody/trust/1", "keys": keys}))
    path.chmod(0o600)
    return path


def test_a_record_called_skipped(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A record that the broker still has, and that a statement calls skipped, is found (row 41)."""
    trust = written(kafka, topic, tmp_path / "archive", skip=[7])
    assert verify(capfd, tmp_path / "archive", "--trust", trust) == (0, [])
    code, findings = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    assert [one["finding"] for one in findings] == ["skipped-record"]
    assert (findings[0]["log"], findings[0]["offset"], findings[0]["sequence"]) == (f"{topic}/0", 7, 1)
    assert code == 13


def test_an_honest_writer(kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the broker has nothing of what was skipped, there is nothing to say."""
    trust = written(kafka, topic, tmp_path / "archive", skip=[])
    assert verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka") == (0, [])


def test_what_the_broker_has_deleted(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What retention took from the broker cannot be read again, and is no finding."""
    trust = written(kafka, topic, tmp_path / "archive", skip=[7])
    kafka.delete_records(topic, {0: 10})
    code, findings = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    assert ([one["finding"] for one in findings], code) == ([], 0)


def other_event(at: int) -> Callable[[int], bytes]:
    return lambda offset: event(offset, request_id="another") if offset == at else event(offset)


@pytest.mark.parametrize("at", [0, 7, RECORDS - 1])
def test_an_event_that_is_not_the_brokers(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], at: int
) -> None:
    """An event that the dishonest writer changed before it was signed is found while the broker has the record."""
    builder(kafka, topic, tmp_path / "archive").append(RECORDS, events=other_event(at))
    trust = trusting(tmp_path)
    assert verify(capfd, tmp_path / "archive", "--trust", trust) == (0, [])
    code, (found,) = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    assert (found["finding"], found["log"], found["offset"], found["sequence"]) == (
        "record-edited", f"{topic}/0", at, 1
    )  # fmt: skip
    assert found["key"].startswith("events/")
    assert found["found"] == hashlib.sha256(event(at)).hexdigest()
    assert len(found["sha256"]) == 64
    assert code == 13
    kafka.delete_records(topic, {0: at + 1})
    assert verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka") == (0, [])


def test_many_events_that_are_not_the_brokers(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The changed events of a statement are one finding with a count, and those of the next are another."""
    log = builder(kafka, topic, tmp_path / "archive")
    log.append(10, events=lambda offset: event(offset + 1))
    log.append(10, events=lambda offset: event(offset + 1))
    code, found = verify(capfd, tmp_path / "archive", "--trust", trusting(tmp_path), "--kafka")
    assert [(one["finding"], one["sequence"], one["offset"], one["count"]) for one in found] == [
        ("record-edited", 1, 0, 10),
        ("record-edited", 2, 10, 10),
    ]
    assert found[0]["sha256"] != found[1]["sha256"]
    assert code == 13


def test_newlines_are_no_difference(kafka: KafkaServer, topic: str, tmp_path: Path, capfd: Any) -> None:
    """A record over several lines is the event that is archived on one."""
    spaced = event(RECORDS).replace(b",", b", ")
    producer = kafka.producer()
    producer.produce(topic, event(RECORDS).replace(b",", b",\n"), partition=0)
    assert producer.flush(60) == 0
    log = builder(kafka, topic, tmp_path / "archive")
    log.append(RECORDS + 1, events=lambda offset: spaced if offset == RECORDS else event(offset))
    assert verify(capfd, tmp_path / "archive", "--trust", trusting(tmp_path), "--kafka") == (0, [])


LARGE = b"x" * (9 << 20)
RECORD: dict[str, Any] = {
    "value": b"no event",
    "key": None,
    "headers": [("trace", b"\x00\xff"), ("none", None)],
    "timestamp": int(START.timestamp() * 1000),
}
"""The record that `Builder.quarantined` writes of offset 0."""
DIFFERENCES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "value": {"value": b"no Event"},
    "no value": {"value": None},
    "key": {"key": b"k"},
    "empty key": {"key": b""},
    "headers": {"headers": [("trace", b"\x00\xff")]},
    "a header's value": {"headers": [("trace", b"\x00\xfe"), ("none", None)]},
    "a header's name": {"headers": [("Trace", b"\x00\xff"), ("none", None)]},
    "time": {"timestamp": RECORD["timestamp"] + 1},
}


@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_quarantined_record_that_is_not_the_brokers(
    kafka: KafkaServer,
    topic: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    difference: str,
    large: bool,
) -> None:
    """Of a quarantined record value, key, headers and time are compared; of a large one by size and SHA-256."""
    topic = kafka.create_topic(kafka.unused_name("quarantine"), max_message_bytes=10 << 20, retention_ms=-1)
    producer = kafka.producer(message_max_bytes=10 << 20)
    record = RECORD | ({"value": LARGE} if large else {}) | DIFFERENCES[difference]
    if large and difference == "value":
        record["value"] = LARGE[:-1] + b"y"
    producer.produce(topic, partition=0, **record)
    assert producer.flush(60) == 0
    log = builder(kafka, topic, tmp_path / "archive")
    log.append(1, quarantine=[0], values=lambda _: LARGE if large else RECORD["value"])
    trust = trusting(tmp_path)
    assert verify(capfd, tmp_path / "archive", "--trust", trust) == (0, [])
    code, found = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    if difference == "nothing":
        assert (code, found) == (0, [])
    else:
        assert [(one["finding"], one["offset"]) for one in found] == [("record-edited", 0)]
        assert found[0]["key"].startswith("quarantine/")
        assert ("the value is the same" in found[0]["message"]) is (
            not difference.endswith("value") or "'" in difference
        )
        assert code == 13


def test_what_cannot_be_compared(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Behind a manifest or segment that is broken the comparison goes on, and adds nothing to what is wrong there."""
    log = builder(kafka, topic, tmp_path / "archive")
    for _ in range(3):
        log.append(4)
    log.append(4, events=other_event(14))
    log.append(4)
    segment = log.segment(1)
    segment.write_bytes(segment.read_bytes()[:-1] + b"x")
    log.path(2).write_bytes(b"garbage")
    log.segment(5).unlink()
    trust = trusting(tmp_path)
    _, without = verify(capfd, tmp_path / "archive", "--trust", trust)
    code, found = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    more = [one for one in found if one not in without]
    assert [(one["finding"], one["offset"], one.get("sequence")) for one in more] == [
        ("record-edited", 14, 4),
        ("offset-gap", 4, 3),
    ]
    assert "4 records of the broker, up to offset 7" in more[1]["message"]
    assert code == 13


def test_records_that_the_last_statements_left_out(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records between two statements, which the archive does not have, are named while the broker has them."""
    log = builder(kafka, topic, tmp_path / "archive")
    log.append(4)
    log.next_offset = 9
    log.append(4)
    trust = trusting(tmp_path)
    _, without = verify(capfd, tmp_path / "archive", "--trust", trust)
    _, found = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    (more,) = [one for one in found if one not in without]
    assert (more["finding"], more["offset"], more["sequence"]) == ("offset-gap", 4, 2)
    assert "5 records of the broker, up to offset 8" in more["message"]


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "of another cluster": ({"cluster": "another"}, "to another cluster"),
    "made again": ({"topic_id": "AAAAAAAAQAAAAAAAAAAAAA"}, "deleted and created again"),
    "of a partition that is gone": ({"partition": 3}, "no longer has the partition"),
    "truncated": ({"more": 1}, "ends before the log"),
    "truncated and grown again": ({"leader_epoch": 3}, "truncated and has grown again"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_topic_that_is_another(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """A topic that does not fit the archive's head is said to be another, and nothing of it is compared."""
    fields, said = CHANGED[kind]
    fields = dict(fields)
    records = RECORDS + fields.pop("more", 0)
    log = builder(kafka, topic, tmp_path / "archive", **fields)
    log.append(records, events=other_event(7))
    trust = trusting(tmp_path)
    assert verify(capfd, tmp_path / "archive", "--trust", trust) == (0, [])
    # A name alone hides nothing.
    (tmp_path / "archive" / "manifests" / f"{topic}@7" / "0").mkdir(parents=True)
    code, (found,) = verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka")
    assert (found["finding"], found["severity"], found["sequence"]) == ("topic-changed", "unverifiable", 1)
    assert said in found["message"]
    assert "custody new-epoch" in found["action"]
    assert code == 12


def test_a_topic_that_was_made_again(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A topic that was made again is another until a new epoch begins; then that is what is compared."""
    clear(monkeypatch, tmp_path)
    world = make_world(kafka, tmp_path, partitions=1)
    world.produce(9)
    assert world.drain()[0] == 0
    archive = sound(world, tmp_path, monkeypatch, capfd)
    kafka.delete_topic(world.topic)
    code, found = verify(capfd, archive, "--kafka")
    assert ([one["finding"] for one in found], code) == (["topic-changed"], 12)
    kafka.create_topic(world.topic)
    world.produce(9)
    code, found = verify(capfd, archive, "--kafka")
    assert ([one["finding"] for one in found], code) == (["topic-changed"], 12)
    begin_epoch(world.settings(), world.topic)
    assert world.drain()[0] == 0
    code, found = verify(capfd, archive, "--kafka")
    assert ([one["finding"] for one in found], code) == (["new-epoch"], 3)


def test_a_partition_that_was_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A partition that lost records and has grown again is said to be another, and its new records are not compared."""
    clear(monkeypatch, tmp_path)
    try:
        with KafkaServer(tmp_path / "own", heap="256m") as own:
            world = make_world(own, tmp_path, partitions=1)
            for _ in range(10):
                world.produce(1)
            assert world.drain()[0] == 0
            archive = sound(world, tmp_path, monkeypatch, capfd)
            own.stop()
            own.truncate(world.topic, 6)
            own.start()
            code, (found,) = verify(capfd, archive, "--kafka")
            assert (found["finding"], code) == ("topic-changed", 12)
            assert "ends before the log" in found["message"]
            for _ in range(6):
                world.produce(1)
            code, (found,) = verify(capfd, archive, "--kafka")
            assert (found["finding"], code) == ("topic-changed", 12)
            assert "truncated and has grown again" in found["message"]
            monkeypatch.undo()
    except KafkaUnavailableError as error:
        unavailable(str(error))


def test_what_other_clients_commit(
    kafka: KafkaServer, topic: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A memory of the head that no trusted key signed, in the group's committed offset, is no finding."""
    trust = written(kafka, topic, tmp_path / "archive", skip=[])
    group = os.environ["CUSTODY_KAFKA__GROUP"]
    size = {"archive": ARCHIVE_ID, "topic": topic, "partition": 0, "epoch": 1, "size": 999, "root": "00" * 32}
    value = base64.b64encode(bytes(32)).decode()
    signature = {"key": KEY_ID, "algorithm": "HMAC-SHA256", "value": value}
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    for metadata in (json.dumps(size), json.dumps(size | {"signature": signature})):
        consumer.commit(offsets=[TopicPartition(topic, 0, 1, metadata)], asynchronous=False)
        assert verify(capfd, tmp_path / "archive", "--trust", trust, "--kafka") == (0, [])
    consumer.close()


def test_what_the_broker_deletes_meanwhile(
    kafka: KafkaServer, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What retention takes while it is compared is no finding, and what is left is compared."""
    builder(kafka, topic, tmp_path / "archive").append(RECORDS, events=other_event(RECORDS - 1))
    real, before = Feed.read, Feed.__init__

    def begin(self: Feed, *arguments: Any) -> None:
        kafka.delete_records(topic, {0: 10})
        before(self, *arguments)

    monkeypatch.setattr(Feed, "__init__", begin)
    monkeypatch.setattr(Feed, "read", lambda self, _, seconds: real(self, 3, seconds))
    code, (found,) = verify(capfd, tmp_path / "archive", "--trust", trusting(tmp_path), "--kafka")
    assert (found["finding"], found["offset"], code) == ("record-edited", RECORDS - 1, 13)


def test_newest_deleted_by_the_broker(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The group's committed offset remembers a head that the archive has no more (row 9)."""
    clear(monkeypatch, tmp_path)
    world = make_world(kafka, tmp_path, partitions=1)
    for _ in range(3):
        world.produce(9)
        assert world.drain()[0] == 0
    archive = sound(world, tmp_path, monkeypatch, capfd)
    manifests = sorted((archive / "manifests").rglob("*.json"))
    newest = json.loads(manifests[-1].read_bytes().split(b"\n")[0])
    manifests[-1].unlink()
    # Nothing but Kafka remembers it.
    max((archive / "checkpoints").rglob("0*")).unlink()
    for kind in ("segment", "quarantine"):
        if newest[kind]:
            (archive / newest[kind]["key"]).unlink()
    code, findings = verify(capfd, archive, "--kafka")
    assert [one["finding"] for one in findings] == ["head-rollback"]
    assert code == 13
