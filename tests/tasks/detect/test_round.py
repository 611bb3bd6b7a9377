"""The way of an alert: events in Kafka, the archive, a rule, Kafka again, the archive, the report, and its proof."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from custody.archive.writer import create_archive
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.store.open import open_store
from tasks.detect.run import detect
from tasks.drain.run import drain_logs
from tasks.settings import KafkaSettings, Settings
from tests.helpers.querying import ask
from tests.helpers.reporting import audited, gathered
from tests.servers.kafka import KafkaServer


def failure(moment: datetime, key: str) -> bytes:
    event = {
        "event_type": "auth_attempt",
        "timestamp": moment.isoformat(),
        "request_id": "r",
        "api_key_id": key,
        "client_ip": "192.0.2.1",
        "status": "failure",
        "failure_reason": None,
        "key_version": None,
        "key_age_days": None,
    }
    return json.dumps(event).encode()


def test_an_alert_comes_back_into_the_archive(kafka: KafkaServer, tmp_path: Path) -> None:
    """It is an event like any other, which feeds no rule, stands in the report, and names its evidence."""
    topic = kafka.create_topic(kafka.unused_name("round"))
    new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    keys = f"file:{tmp_path / 'keyring.json'}"
    with closing(open_store(str(tmp_path / "archive"))) as store:
        create_archive(store, open_signers(keys, datetime.now(UTC)).both)
    group = kafka.unused_name("group")
    servers = KafkaSettings(bootstrap_servers=kafka.bootstrap, topics=[topic], group=group)
    settings = Settings(archive=str(tmp_path / "archive"), keys=keys, kafka=servers)
    begun = datetime.now(UTC) - timedelta(minutes=2)
    producer = kafka.producer()
    for number in range(60):
        producer.produce(topic, failure(begun + timedelta(seconds=number), "key-1"))
    assert producer.flush(30) == 0
    assert [result.events for result in drain_logs(settings, once=True)] == [60]
    first = detect(settings)
    told = [alert for alert in first.opened if alert["rule"] == "failed-logins-by-key"]
    assert [dict(alert["group"]) for alert in told] == [{"api_key_id": "key-1"}]
    assert (first.told, first.problems) == (len(first.opened), [])
    (drained,) = drain_logs(settings, once=True)
    assert (drained.problem, drained.events) == (None, first.told)
    again = detect(settings)
    assert (again.opened, again.told) == ([], 0)
    audited(settings)
    facts = gathered(settings)
    rows = {row.rule: row for row in facts.detections.rows}
    assert set(rows) == {alert["rule"] for alert in first.opened}
    row = rows["failed-logins-by-key"]
    assert (row.group, row.state) == ("api_key_id key-1", "open")
    assert 60 <= int(row.event.removeprefix(f"{topic}/0@")) < 60 + first.told
    ((evidence,),) = ask(settings.archive, "SELECT evidence FROM detections WHERE rule = 'failed-logins-by-key'")
    assert json.loads(evidence) == [f"{topic}/0@{offset}" for offset in range(20)]
