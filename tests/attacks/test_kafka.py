"""Rows 9 and 41: what the broker still has tells on a writer who left it out, and on an archive that went back."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody import cli
from tasks.kafka import Broker
from tests.archives import KEY_ID, SECRET, Builder, event
from tests.environment import clear_settings
from tests.faults.world import make_world
from tests.servers.kafka import KafkaServer

RECORDS = 20


def verify(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]]]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(one) for one in ("verify", *arguments, "--json")])
    out, err = capfd.readouterr()
    assert out, err
    found = [json.loads(line) for line in out.splitlines()]
    return int(ended.value.code or 0), [one for one in found if one["kind"] == "finding"]


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


def written(kafka: KafkaServer, topic: str, folder: Path, skip: list[int]) -> Path:
    """Write the archive of a topic as a dishonest writer would, who calls some records skipped; return its trust."""
    with Broker({"bootstrap.servers": kafka.bootstrap}, "tests") as broker:
        cluster = broker.cluster()
        topic_id = broker.topic_id(topic, cluster)

    def edit(statement: dict[str, Any]) -> None:
        statement["log"].update(cluster=cluster, topic_id=topic_id)

    log = Builder(folder, topic=topic, next_offset=0, clock=datetime.now(UTC)).init()
    log.append(edit=edit)
    log.append(RECORDS, skip=skip, edit=edit)
    path = folder.parent / "trust.json"
    secret = base64.b64encode(SECRET).decode()
    key = {"id": KEY_ID, "algorithm": "HMAC-SHA256", "from": None, "to": None, "secret": secret}
    path.write_text(json.dumps({"format": "custody/trust/1", "keys": [key]}))
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


def test_newest_deleted_by_the_broker(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The group's committed offset remembers a head that the archive has no more (row 9)."""
    clear(monkeypatch, tmp_path)
    world = make_world(kafka, tmp_path, partitions=1)
    for _ in range(3):
        world.produce(9)
        assert world.drain()[0] == 0
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    archive = tmp_path / "archive"
    assert verify(capfd, archive, "--kafka") == (0, [])
    manifests = sorted((archive / "manifests").rglob("*.json"))
    newest = json.loads(manifests[-1].read_bytes().split(b"\n")[0])
    manifests[-1].unlink()
    for kind in ("segment", "quarantine"):
        if newest[kind]:
            (archive / newest[kind]["key"]).unlink()
    code, findings = verify(capfd, archive, "--kafka")
    assert [one["finding"] for one in findings] == ["head-rollback"]
    assert code == 13
