"""A real bucket refuses the drain one kind of call: nothing moves on, and the error says what and to whom."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.archive.writer import create_archive
from custody.errors import CustodyError
from custody.keys.keyring import new_keyring
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.drain.run import drain_logs
from tasks.settings import KafkaSettings, Settings
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import LIMITED, SeaweedServer

EVENTS = 1000


@pytest.mark.parametrize("key", LIMITED)
def test_a_refusing_bucket(
    key: str, kafka: KafkaServer, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 events that a bucket does not take are booked as nothing. Once it takes them, they are archived once."""
    monkeypatch.chdir(tmp_path)
    seaweed.use(monkeypatch)
    topic = kafka.create_topic(kafka.unused_name("bucket"))
    new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    given = Settings(
        archive=f"s3://{seaweed.make_bucket()}/audit",
        keys="file:keyring.json",
        s3=S3Options(endpoint_url=seaweed.endpoint_url),
        kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap, topics=[topic], group=kafka.unused_name("group")),
    )
    with closing(open_store(given.archive, given.s3)) as store:
        create_archive(store, given.signers(datetime.now(UTC)).both)
    producer = kafka.producer()
    for value in sample_events(EVENTS, 1, datetime(2026, 3, 1, tzinfo=UTC)):
        producer.produce(topic, value)
    assert producer.flush(30) == 0

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    try:
        (result,) = drain_logs(given, once=True)
    except CustodyError as error:
        said = str(error)
    else:
        assert (result.outcome, result.events, result.quarantined, result.lost) == ("failed", 0, 0, 0)
        said = str(result.problem)
    doing = {"maynotwrite": "write", "maynotread": "read", "maynotlist": "list"}[key]
    assert f"cannot {doing} s3://" in said
    assert "HTTP 403, AccessDenied" in said
    assert f"refused to access key {key} of env" in said
    assert seaweed.secret_key not in said

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    (result,) = drain_logs(given, once=True)
    assert (result.problem, result.events, result.quarantined, result.lost) == (None, EVENTS, 0, 0)
    with closing(open_store(given.archive, given.s3)) as store:
        report = verify(store, given.own_trust(), now=datetime.now(UTC), workers=0)
    assert (report.exit_code, list(report.findings)) == (0, [])
