"""The flow and the command that detect: what people see of an attack, with a real broker and a real Prefect server."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from prefect.client.orchestration import get_client

import flows.publish
from custody.cli.main import main
from flows.detect import _row, detect
from tests.helpers.environment import use_archive
from tests.helpers.sample import Growing
from tests.servers.kafka import KafkaServer

BEGUN = datetime.now(UTC) - timedelta(minutes=20)


def failure(offset: int) -> bytes:
    """Return one of many failed logins, a second apart."""
    event = {
        "event_type": "auth_attempt",
        "timestamp": f"{BEGUN + timedelta(seconds=offset):%FT%TZ}",
        "request_id": f"r-{offset}",
        "api_key_id": "key-1",
        "client_ip": "192.0.2.7",
        "status": "failure",
        "failure_reason": "unknown",
        "key_version": None,
        "key_age_days": None,
    }
    return json.dumps(event).encode()


@pytest.fixture
def topic(tmp_path: Path, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An archive with an attack, and a topic for alerts. The settings name both."""
    growing = Growing(tmp_path / "attacked", begun=BEGUN)
    growing.append(2, failure, each=10)
    topic = kafka.create_topic(kafka.unused_name("audit.alerts"))
    use_archive(monkeypatch, growing.folder, growing.keyring)
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", topic)
    monkeypatch.chdir(tmp_path)
    return topic


def taken(kafka: KafkaServer, topic: str) -> list[dict[str, Any]]:
    """Return the events that are in a topic."""
    reader = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": topic, "auto.offset.reset": "earliest",
         "enable.partition.eof": True, "enable.auto.commit": False}
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    try:
        reader.subscribe([topic])
        while (message := reader.poll(30)) is not None and not message.error():
            value = message.value()
            assert isinstance(value, bytes)
            events.append(json.loads(value))
    finally:
        reader.close()
    return events


@pytest.mark.usefixtures("prefect_server")
def test_the_flow(kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack becomes an event in Kafka, one of Prefect's, and a row; the next run finds nothing new.

    A rule that fails fails the run, and one that is switched off runs nothing.
    """
    emitted: list[str] = []
    monkeypatch.setattr(flows.publish, "emit_event", lambda event, **_: emitted.append(event))
    run: Any = detect(return_state=True)
    assert run.is_completed(), run.message
    events = taken(kafka, topic)
    assert [event["details"]["group"] for event in events if event["alert_type"] == "custody.failed-logins-by-key"] == [
        {"api_key_id": "key-1"}
    ]
    assert emitted.count("custody.detect.opened") == len(events) >= 1
    with get_client(sync_client=True) as client:
        (table,) = [each for each in client.read_artifacts() if each.flow_run_id == run.state_details.flow_run_id]
        assert "20 events, " in client.read_flow_run(run.state_details.flow_run_id).name
    assert "api_key_id key-1" in str(table.data)

    again: Any = detect(return_state=True)
    assert (again.is_completed(), "0 events read" in str(again.message)) == (True, True)
    assert taken(kafka, topic) == events

    Path("rules").mkdir()
    Path("rules/wrong.yml").write_text("title: nothing\n")
    monkeypatch.setenv("CUSTODY_DETECT__RULES", "shipped,rules")
    failed: Any = detect(return_state=True)
    assert (failed.is_failed(), "rules/wrong.yml" in str(failed.message)) == (True, True)
    monkeypatch.setenv("CUSTODY_DETECT__ENABLED", "false")
    assert "detect.enabled is false" in str(detect(return_state=True).message)


def test_a_row_has_no_control_characters() -> None:
    """Clients choose the values of a group. Prefect's database refuses a NUL, and a terminal obeys the others."""
    names = ("level", "title", "first", "last", "matches", "metric", "recorded_only", "rule", "id")
    row = _row({**dict.fromkeys(names), "group": [("client_ip", "a\x00b"), ("user", "\x1b[2J\n\u202e")]})
    assert row["group"] == r"client_ip a\x00b, user \x1b[2J\n\u202e"


def test_the_commands(kafka: KafkaServer, topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They say what they did, tell the same alert, and a rebuild tells nobody again."""
    with pytest.raises(SystemExit) as ended:
        main(["detect", "run", "--json"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["told"] == len(document["opened"]) == len(taken(kafka, topic)) >= 1
    assert "alert: Many failed logins" in printed.err
    with pytest.raises(SystemExit) as ended:
        main(["detect", "rebuild"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("20 events read, ")
    assert len(taken(kafka, topic)) == document["told"]
