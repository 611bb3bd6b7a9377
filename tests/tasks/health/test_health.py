"""Each number and each problem of an installation's health, provoked on a real Kafka, Elasticsearch and S3 server."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from custody.archive.reader import read_archive
from custody.archive.resume import find_checked_tip
from custody.archive.writer import Entry, create_archive
from custody.errors import ConfigurationError, SourceError
from custody.findings import CATALOGUE
from custody.format import layout
from custody.format.manifest import Unreadable
from custody.keys.keyring import new_keyring
from custody.query.connect import connect
from custody.settings import EventSettings
from custody.store.folder import FolderStore
from custody.store.open import open_store
from custody.store.protocol import S3Options
from flows.operate.sample import sample_events
from tasks.audit import conclude
from tasks.drain.bounds import Bounds
from tasks.drain.kafka import Broker
from tasks.drain.retention import Headroom, read_headroom
from tasks.drain.run import drain_logs
from tasks.health import kafka as health_kafka
from tasks.health import search as health_search
from tasks.health.archive import RECENT
from tasks.health.deadline import Deadline
from tasks.health.model import Health, LogHealth, Problem
from tasks.health.read import read_health
from tasks.metrics.collect import collect
from tasks.metrics.state import State
from tasks.roll.record import Action, record
from tasks.search.client import Search
from tasks.search.index import index_logs
from tasks.search.indices import put_cursor
from tasks.settings import AlertSettings, DrainSettings, HealthSettings, KafkaSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, delete_indices, now_event
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports
from tests.servers.s3 import SeaweedServer
from tests.tasks.drain.sites import settle

NO_S3 = S3Options()
SLACK = "slack://TokenA/TokenB/TokenC/#channel"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


class Site:
    """An archive of its own beside the shared broker."""

    def __init__(
        self, kafka: KafkaServer, folder: Path, archive: str | None = None, s3: S3Options | None = None
    ) -> None:
        self.kafka, self.archive, self.s3 = kafka, archive or str(folder / "archive"), s3 or S3Options()
        self.keys, self.group = f"file:{folder / 'keyring.json'}", kafka.unused_name("group")
        ring = new_keyring(folder / "keyring.json", datetime.now(UTC))
        with closing(open_store(self.archive, self.s3)) as store:
            create_archive(store, ring.signers(datetime.now(UTC)).both)

    def settings(self, *topics: str, **more: Any) -> Settings:
        given: dict[str, Any] = {"alert": AlertSettings(urls=[SecretStr(SLACK)]), "s3": self.s3, **more}
        kafka = KafkaSettings(bootstrap_servers=self.kafka.bootstrap, topics=list(topics), group=self.group)
        return Settings(archive=self.archive, keys=self.keys, kafka=kafka, **given)

    def topic(self, name: str, partitions: int = 1, **config: object) -> str:
        return self.kafka.create_topic(self.kafka.unused_name(name), partitions, **config)

    def send(self, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
        producer = self.kafka.producer()
        for value in values:
            producer.produce(topic, value, partition=partition)
        assert producer.flush(60) == 0

    def drain(self, *topics: str) -> None:
        results = drain_logs(self.settings(*topics), once=True)
        assert [result.problem for result in results] == [None] * len(results)


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path) -> Site:
    return Site(kafka, tmp_path)


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """An archive without a broker."""
    monkeypatch.setattr(health_kafka, "REQUEST_SECONDS", 0.5)
    made = Growing(tmp_path)
    made.append(3)
    return made


def events(number: int) -> list[bytes]:
    return list(sample_events(number, 1, datetime(2026, 3, 1, tzinfo=UTC)))


def health_of(settings: Settings, later: timedelta = timedelta(0)) -> Health:
    return read_health(settings, datetime.now(UTC) + later)


def alone(growing: Growing, **more: Any) -> Settings:
    """Return the settings of an archive whose broker does not answer."""
    (port,) = free_ports(1)
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", topics=["audit.grows"])
    return Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}", kafka=kafka, **more)


def of(health: Health, kind: str) -> list[Problem]:
    return [problem for problem in health.problems if problem.kind == kind]


def only(health: Health) -> LogHealth:
    (log,) = health.logs
    return log


def test_a_healthy_installation(site: Site) -> None:
    """Each part is read, nothing is wrong, and no secret is in what is said."""
    topic = site.topic("health.good")
    site.send(topic, events(20))
    site.drain(topic)
    audit(site.settings(topic))
    health = health_of(site.settings(topic))
    assert (health.level, health.problems) == ("ok", ())
    assert (health.kafka.address, health.kafka.reachable, health.search) == (site.kafka.bootstrap, True, None)
    assert (health.topics_without_log, health.alerts) == ((), ("1 (slack)",))
    assert health.audit is not None
    assert (health.audit.sequence, health.audit.verdict, health.audit.findings) == (0, "verified", 0)
    assert health.audit.age_seconds is not None
    assert 0 <= health.audit.age_seconds < 60
    log = only(health)
    assert (log.log, log.level, log.next_offset, log.lag_records) == (f"{topic}/0", "ok", 20, 0)
    assert (log.lag_seconds, log.headroom_seconds, log.drained, log.ended) == (0.0, None, True, False)
    assert log.head_age_seconds is not None
    assert 0 <= log.head_age_seconds < 60
    assert (log.recent.events, log.recent.quarantined, log.recent.quarantined_share) == (20, 0, 0.0)
    assert "Token" not in json.dumps(health.to_dict())


def test_lag_in_records_and_seconds(site: Site) -> None:
    """The lag is how many records wait, and how long the oldest of them does; beyond the setting it is a failure."""
    topic = site.topic("health.lag")
    site.send(topic, events(3))
    site.drain(topic)
    site.send(topic, events(7))
    health = health_of(site.settings(topic))
    log = only(health)
    assert (log.lag_records, log.next_offset, log.level) == (7, 3, "ok")
    assert log.lag_seconds is not None
    assert 0 <= log.lag_seconds < 60
    # As long as Kafka keeps them: a week.
    assert log.headroom_seconds is not None
    assert 6 * 86_400 < log.headroom_seconds < 8 * 86_400
    late = health_of(site.settings(topic), timedelta(minutes=30))
    (problem,) = of(late, "lag")
    assert (problem.level, problem.subject, late.level) == ("failed", log.log, "failed")
    assert "7 records wait for the archive, the oldest for 30 min" in problem.message
    patient = site.settings(topic, health=HealthSettings(lag_seconds=3600))
    assert not of(health_of(patient, timedelta(minutes=30)), "lag")
    # What lingers waits on purpose, and for no longer than that.
    lingering = site.settings(topic, drain=DrainSettings(linger_seconds=1800))
    assert not of(health_of(lingering, timedelta(minutes=40)), "lag")
    assert of(health_of(lingering, timedelta(minutes=50)), "lag")


def test_headroom(site: Site) -> None:
    """Records that Kafka deletes soon, before they are archived, are a failure."""
    topic = site.topic("health.headroom", retention_ms=3_600_000)
    site.send(topic, events(3))
    site.drain(topic)
    assert not of(health_of(site.settings(topic)), "headroom")
    site.send(topic, events(2))
    health = health_of(site.settings(topic))
    seconds = only(health).headroom_seconds
    assert seconds is not None
    assert 3000 < seconds <= 3600
    (problem,) = of(health, "headroom")
    assert problem.level == "failed"
    assert "retention.ms" in problem.remedy


def test_quarantine_and_losses(site: Site) -> None:
    """A share of quarantined records above the setting, and lost records, are warnings."""
    topic = site.topic("health.quarantine")
    site.send(topic, [*events(13), *[b"no event", b"{}"] * 3])
    site.drain(topic)
    # Too few records for a share, by the rule of the drain.
    assert only(health_of(site.settings(topic))).recent.quarantined == 6
    assert not of(health_of(site.settings(topic)), "quarantined")
    site.send(topic, events(5))
    site.drain(topic)
    health = health_of(site.settings(topic))
    assert only(health).recent.quarantined_share == 0.25
    (problem,) = of(health, "quarantined")
    assert (problem.level, only(health).level) == ("warning", "warning")
    assert "25.0% of the records" in problem.message
    assert "most often: event_type missing (3), for example: event_type is missing" in problem.message
    sql = re.search(r'custody query "([^"]*)"', problem.remedy)
    assert sql
    with closing(connect(site.archive)) as connection:
        rows = connection.execute(sql[1]).fetchall()
    assert [(log, number) for log, _, number in rows] == [(f"{topic}/0", 3)] * 2
    patient = site.settings(topic, events=EventSettings(quarantined_share=0.25))
    assert not of(health_of(patient), "quarantined")
    assert only(health_of(patient)).recent.reason is None
    site.send(topic, events(5))
    site.kafka.delete_records(topic, {0: 27})
    site.drain(topic)
    health = health_of(site.settings(topic))
    assert only(health).recent.lost == 3
    assert [problem.level for problem in of(health, "lost")] == ["warning"]


def test_silence(site: Site) -> None:
    """A log without a statement for twice the heartbeat is a failure, though nothing waits."""
    topic = site.topic("health.silent")
    site.send(topic, events(1))
    site.drain(topic)
    assert not of(health_of(site.settings(topic), timedelta(hours=1, minutes=50)), "silent")
    health = health_of(site.settings(topic), timedelta(hours=3))
    (problem,) = of(health, "silent")
    assert (problem.level, only(health).lag_records) == ("failed", 0)
    assert "no statement for 3.0 h" in problem.message


def test_many_logs_without_news(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No question waits for records that are not there. If each log waited 0.1 s, the time would be over before."""
    monkeypatch.setattr(health_kafka, "KAFKA_SECONDS", 5.0)
    partitions = range(60)
    topic, producer = site.topic("health.many", len(partitions)), site.kafka.producer()
    for partition in partitions:
        producer.produce(topic, events(1)[0], partition=partition)
    assert producer.flush(60) == 0
    site.drain(topic)
    health = health_of(site.settings(topic))
    assert [log.lag_records for log in health.logs] == [0 for _ in partitions]
    assert not of(health, "lag-unknown")
    site.kafka.delete_topic(topic)


def test_topics_that_match_and_have_no_log(site: Site) -> None:
    """A matching topic is named with the partitions that have no log and what waits there; no other topic is."""
    known, fresh, other = site.topic("health.known"), site.topic("health.fresh", 2), site.topic("health.other")
    site.drain(known)
    site.kafka.create_partitions(known, 2)
    site.send(fresh, events(4), partition=1)
    site.send(other, events(4))
    health = health_of(site.settings(known, fresh))
    assert health.topics_without_log is not None
    without = {topic.topic: (topic.partitions, topic.records) for topic in health.topics_without_log}
    assert without == {known: (1, 0), fresh: (2, 4)}
    assert {problem.subject for problem in of(health, "topic-without-log")} == {known, fresh}
    assert health.level == "warning"


def test_records_of_a_topic_without_a_log_may_be_lost(site: Site) -> None:
    """It is a failure once the oldest record waits for too long, or once Kafka deletes it soon."""
    fresh, soon = site.topic("health.unlogged", 2), site.topic("health.unlogged.soon", retention_ms=3_600_000)
    site.send(fresh, events(4), partition=1)
    (problem,) = of(health_of(site.settings(fresh)), "topic-without-log")
    assert (problem.level, "4 records wait there, the oldest for" in problem.message) == ("warning", True)
    (problem,) = of(health_of(site.settings(fresh), timedelta(hours=3)), "topic-without-log")
    assert problem.level == "failed"
    assert "the oldest for 3.0 h" in problem.message
    (problem,) = of(health_of(site.settings(soon)), "topic-without-log")
    assert problem.level == "warning"
    site.send(soon, events(1))
    (problem,) = of(health_of(site.settings(soon)), "topic-without-log")
    assert problem.level == "failed"
    assert "1 record waits there" in problem.message
    assert "Kafka deletes the first ones in" in problem.message
    assert "retention.ms" in problem.remedy


def test_topics_of_the_settings(site: Site) -> None:
    """A named topic that is missing is a failure. One that is not named any more warns while it exists."""
    kept, dropped = site.topic("health.kept"), site.topic("health.dropped")
    site.drain(kept, dropped)
    (problem,) = of(health_of(site.settings(kept, dropped, "no.such.topic")), "topic-missing")
    assert (problem.level, problem.subject) == ("failed", "no.such.topic")
    health = health_of(site.settings(kept))
    assert [(problem.level, problem.subject) for problem in of(health, "not-drained")] == [("warning", f"{dropped}/0")]
    assert {log.log: log.drained for log in health.logs} == {f"{kept}/0": True, f"{dropped}/0": False}
    site.kafka.delete_topic(dropped)
    # Excluded on purpose, as docs/operating.md says.
    assert not [one for one in health_of(site.settings(kept)).problems if one.subject == f"{dropped}/0"]


def test_in_a_bucket(
    kafka: KafkaServer, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive in S3 is read as one in a folder is."""
    seaweed.use(monkeypatch)
    options = S3Options(endpoint_url=seaweed.endpoint_url)
    site = Site(kafka, tmp_path, f"s3://{seaweed.make_bucket(versioned=True)}/audit", options)
    topic = site.topic("health.bucket")
    site.send(topic, events(5))
    site.drain(topic)
    audit(site.settings(topic))
    site.send(topic, events(2))
    health = health_of(site.settings(topic))
    assert (health.level, only(health).lag_records, only(health).size) == ("ok", 2, 2)
    assert health.audit is not None


def sent_at(site: Site, topic: str, *moments: datetime) -> None:
    """Send a record for each time, which its producer chooses."""
    producer = site.kafka.producer()
    for moment in moments:
        producer.produce(topic, events(1)[0], timestamp=int(moment.timestamp() * 1000))
    assert producer.flush(60) == 0


FOREVER = 2**63 - 1
CENTURY = datetime(2126, 1, 1, tzinfo=UTC)


def test_a_record_of_the_future(site: Site) -> None:
    """For how long a record waits is not known if its producer chose a time of the future: that is a warning."""
    topic = site.topic("health.future", message_timestamp_after_max_ms=FOREVER)
    site.drain(topic)
    sent_at(site, topic, CENTURY, datetime.now(UTC))
    health = health_of(site.settings(topic))
    log = only(health)
    assert (log.lag_records, log.lag_seconds, log.headroom_seconds, log.level) == (2, None, None, "warning")
    (problem,) = of(health, "lag-unknown")
    assert "2 records wait for the archive, for an unknown time" in problem.message
    assert "of the future" in problem.message
    assert "LogAppendTime" in problem.remedy
    with (
        Broker(site.settings(topic).kafka.librdkafka(), site.group) as broker,
        pytest.raises(SourceError, match="future"),
    ):
        read_headroom(broker, topic, 0, 0)


def test_a_record_that_does_not_come(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that wait, of which the broker gives none in time, wait for an unknown time: that is a warning."""
    topic = site.topic("health.silence")
    site.drain(topic)
    site.send(topic, events(2))
    monkeypatch.setattr(Broker, "_first", lambda *_: None)
    health = health_of(site.settings(topic))
    assert (only(health).lag_records, only(health).lag_seconds) == (2, None)
    assert ["did not come in time" in problem.message for problem in of(health, "lag-unknown")] == [True]


def test_a_marker_is_no_record_that_waits(site: Site) -> None:
    """The marker of a transaction after the last record is no lag in time, and no problem."""
    topic = site.topic("health.marker")
    site.drain(topic)
    producer = site.kafka.producer(transactional_id=site.kafka.unused_name("id"))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, events(1)[0])
    producer.commit_transaction(30)
    settle(site.kafka, topic, 2)
    with Broker(site.settings(topic).kafka.librdkafka(), site.group) as broker:
        assert broker.waits_since(topic, 0, 0) is not None
        assert broker.waits_since(topic, 0, 1) is None
        assert read_headroom(broker, topic, 0, 1) == Headroom(None)


def test_an_oldest_record_of_1970_does_not_stretch_the_limit_by_size(site: Site) -> None:
    """It would make the records seem to come slowly. Then that limit is unknown, and the one by time still counts."""
    topic = site.topic("health.stretched", retention_ms=10**16, retention_bytes=10**9)
    site.drain(topic)
    sent_at(site, topic, datetime.now(UTC), datetime(1970, 1, 2, tzinfo=UTC), datetime.now(UTC))
    site.kafka.delete_records(topic, {0: 1})
    with Broker(site.settings(topic).kafka.librdkafka(), site.group) as broker:
        headroom = read_headroom(broker, topic, 0, 2)
    assert headroom.seconds is not None
    assert headroom.seconds > 10**12
    assert "older than Kafka" in str(headroom.unknown)


def test_kafka_has_its_time_for_one_log_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two requests for one log, no more is asked once the time is spent; what is known by then is shown."""
    topic = site.topic("health.slow")
    site.drain(topic)
    site.send(topic, events(2))
    now = [0.0]
    bounds = Broker.bounds

    def slow(broker: Broker, *arguments: Any) -> Bounds:
        now[0] += 0.6 * health_kafka.KAFKA_SECONDS
        return bounds(broker, *arguments)

    monkeypatch.setattr(Broker, "all_bounds", lambda *_: {})
    monkeypatch.setattr(Broker, "bounds", slow)
    monkeypatch.setattr(health_kafka, "time", SimpleNamespace(monotonic=lambda: now[0]))
    health = health_of(site.settings(topic, "no.such.topic"))
    assert (only(health).lag_records, only(health).lag_seconds) == (2, None)
    problems = {problem.subject: problem.message for problem in of(health, "lag-unknown")}
    assert "1 log was not compared within 15 s" in problems["kafka"]
    assert "no.such.topic" in problems


def test_to_ask_for_all_partitions_takes_of_kafka_s_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that spends the time of all logs with the first question is asked no more."""
    topic = site.topic("health.slow")
    site.drain(topic)
    now, real = [0.0], Broker.all_bounds

    def slow(broker: Broker, *arguments: Any) -> Any:
        now[0] += 1.1 * health_kafka.KAFKA_SECONDS
        return real(broker, *arguments)

    monkeypatch.setattr(Broker, "all_bounds", slow)
    monkeypatch.setattr(health_kafka, "time", SimpleNamespace(monotonic=lambda: now[0]))
    health = health_of(site.settings(topic))
    assert only(health).lag_records is None
    assert ["1 log was not compared" in problem.message for problem in of(health, "lag-unknown")] == [True]


# --- without a broker


def pinned(growing: Growing, folder: Path, heads: dict[str, Any], sha256: str | None = None) -> Settings:
    """Return the settings of a reader who has `trust.json` and no keys."""
    with closing(open_store(str(growing.folder))) as store:
        file = read_archive(store)
    path = folder / "trust.json"
    pin = {"id": file.id, "sha256": sha256 or file.pin.sha256}
    path.write_text(json.dumps({"format": "custody/trust/1", "archive": pin, "heads": heads}))
    given = alone(growing)
    return Settings(archive=given.archive, kafka=given.kafka, trust=path)


def test_trust_without_keys(growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a keyring, the pin and the known heads in trust.json are checked all the same."""
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    monkeypatch.chdir(empty)
    head = only(health_of(alone(growing)))
    growing.append(2)
    log, root = head.log, head.root
    for heads in ({}, {log: {"size": head.size, "root": root}}):
        health = health_of(pinned(growing, empty, heads))
        assert [problem.level for problem in of(health, "heads-unchecked")] == ["warning"]
        assert not of(health, "archive-untrusted")
        assert (only(health).size, only(health).level) == (5, "ok")
    for forged in ({"size": head.size, "root": "0" * 64}, {"size": 9, "root": root}):
        (problem,) = of(health_of(pinned(growing, empty, {log: forged})), "log-damaged")
        assert "trust.json" in problem.message
    health = health_of(pinned(growing, empty, {}, "0" * 64))
    (problem,) = of(health, "archive-untrusted")
    assert (problem.level, only(health).size) == ("failed", 0)
    assert "pinned in trust.json" in problem.message
    # Keys that are set, and cannot be opened, are no excuse either.
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{empty / 'missing.json'}")
    health = health_of(pinned(growing, empty, {}, "0" * 64))
    assert (len(of(health, "archive-untrusted")), len(of(health, "heads-unchecked"))) == (1, 1)


@pytest.mark.parametrize("keys", [True, False])
def test_a_newest_statement_that_does_not_count(
    growing: Growing, tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: bool
) -> None:
    """A log whose newest slot has no valid statement is damaged, and no reader claims to have passed over it."""
    path = growing.folder / layout.manifest_key(LOG, 2)
    data = path.read_bytes()
    path.unlink()
    signature = data.rindex(b'"}')
    garbled = data[: signature - 4] + (b"AAAA" if data[signature - 4 : signature] != b"AAAA" else b"BBBB")
    path.write_bytes(garbled + data[signature:] if keys else b"garbage")
    if not keys:
        growing.keyring.rename(tmp_path / "away.json")
    given = alone(growing)
    health = health_of(given if keys else Settings(archive=given.archive, kafka=given.kafka))
    (problem,) = of(health, "log-damaged")
    assert (problem.level, only(health).size, only(health).level) == ("failed", 2, "failed")
    assert path.name in problem.message
    assert path.name in json.dumps(health.to_dict())
    assert ": passed over" not in caplog.text


def test_a_newest_audit_that_does_not_count(growing: Growing) -> None:
    """An object in the next audit's slot is a problem, and the audit before it is shown."""
    settings = alone(growing)
    audit(settings)
    (growing.folder / layout.audit_key(1)).write_bytes(b"garbage")
    health = health_of(settings)
    assert health.audit is not None
    (problem,) = of(health, "audit-unreadable")
    assert (health.audit.sequence, problem.level) == (0, "failed")
    assert layout.audit_key(1) in problem.message


def test_a_head_of_the_future(growing: Growing) -> None:
    """It is a problem, and hides no silence: the age is that of the newest statement whose time can be believed."""
    now = datetime.now(UTC)
    settings = alone(growing)
    growing.heartbeat(now + timedelta(minutes=4))
    health = health_of(settings)
    assert (only(health).head_age_seconds, health.logs[0].problems) == (0.0, ())
    growing.heartbeat(now + timedelta(days=9))
    health = health_of(settings, timedelta(hours=5))
    (problem,) = of(health, "clock")
    assert (problem.level, problem.subject) == ("warning", only(health).log)
    assert "in the future" in problem.message
    age = only(health).head_age_seconds
    assert age is not None
    assert 4.9 * 3600 < age < 5 * 3600
    assert [problem.level for problem in of(health, "silent")] == ["failed"]
    for day in range(10, 10 + RECENT):
        growing.heartbeat(now + timedelta(days=day))
    health = health_of(settings)
    assert only(health).head_age_seconds is None
    assert [problem.level for problem in of(health, "clock")] == ["failed"]
    assert min(ages_of(settings, health), default=0.0) >= 0


def ages_of(settings: Settings, health: Health) -> list[float]:
    """Return the values of all exported metrics that are ages."""
    state = State("", 0.0)
    samples = collect(settings, state, health).samples
    return [
        sample.value
        for sample in samples
        if isinstance(sample.value, int | float) and ("age" in sample.metric.name or "delay" in sample.metric.name)
    ]


def test_audits_of_the_future(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit of the future is a problem, and the audit that can be believed is late."""
    settings = alone(growing)
    audit(settings)
    ahead = datetime.now(UTC) + timedelta(days=30)
    monkeypatch.setattr(conclude, "datetime", SimpleNamespace(now=lambda _: ahead))
    audit(settings)
    health = health_of(settings, timedelta(hours=27))
    assert health.audit is not None
    assert health.audit.sequence == 1
    assert health.audit.age_seconds is not None
    assert 26 * 3600 < health.audit.age_seconds < 28 * 3600
    assert [(one.subject, one.level) for one in of(health, "clock")] == [("audit", "warning")]
    assert [one.level for one in of(health, "audit-late")] == ["warning"]


def test_an_archive_of_the_future_has_no_excuse(growing: Growing) -> None:
    """A first audit is missed also if archive.json claims to have been made in the future."""
    assert of(health_of(alone(growing), timedelta(days=-9)), "audit-missing")


def test_no_broker(growing: Growing) -> None:
    """It is one problem, soon, and what the archive says is there all the same."""
    begun = time.monotonic()
    settings = alone(growing)
    health = health_of(settings)
    assert time.monotonic() - begun < 10
    (problem,) = of(health, "kafka-unreachable")
    assert (problem.level, health.level, health.kafka.reachable) == ("failed", "failed", False)
    assert settings.kafka.bootstrap_servers in problem.message
    assert "Connection refused" in problem.message
    log = only(health)
    assert (log.size, log.lag_records, log.lag_seconds, health.topics_without_log) == (3, None, None, None)


def test_nobody_is_alerted(growing: Growing) -> None:
    """Without alert.urls nobody is alerted, which is a warning. Of URLs only the kind of service is shown."""
    assert [problem.level for problem in of(health_of(alone(growing)), "alerts-nobody")] == ["warning"]
    urls = [SecretStr(url) for url in (SLACK, "mailto://me:secret@example.org")]
    health = health_of(alone(growing, alert=AlertSettings(urls=urls)))
    assert health.alerts == ("1 (slack)", "2 (mailto)")
    assert not of(health, "alerts-nobody")
    assert "secret" not in json.dumps(health.to_dict())


def test_urls_of_alerts_that_cannot_be_read(growing: Growing) -> None:
    """A URL that no service takes is a warning, because nobody would be told by it."""
    urls = [SecretStr(url) for url in (SLACK, "nonsense://secret")]
    health = health_of(alone(growing, alert=AlertSettings(urls=urls)))
    (problem,) = of(health, "alerts-unreadable")
    assert problem.level == "warning"
    assert "2 (nonsense) is told nothing: the URL cannot be read" in problem.message
    assert "secret" not in json.dumps(health.to_dict())


@pytest.mark.parametrize("wrong", [None, "another"])
def test_a_passphrase_that_is_missing_or_wrong(growing: Growing, tmp_path: Path, wrong: str | None) -> None:
    """The remedy names the variable, not only the settings."""
    new_keyring(tmp_path / "encrypted.json", datetime.now(UTC), passphrase="right")
    given = alone(growing)
    secret = SecretStr(wrong) if wrong else None
    settings = given.model_copy(update={"keys": f"file:{tmp_path / 'encrypted.json'}", "keyring_passphrase": secret})
    (problem,) = of(health_of(settings), "heads-unchecked")
    assert "set CUSTODY_KEYRING_PASSPHRASE" in problem.remedy


def test_a_storage_that_never_answers(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: the other parts are shown within seconds."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen(100)
        options = S3Options(endpoint_url=f"http://127.0.0.1:{frozen.getsockname()[1]}", region="eu-west-1")
        given = alone(growing, alert=AlertSettings(urls=[SecretStr(SLACK)]))
        settings = given.model_copy(update={"archive": "s3://bucket/audit", "s3": options})
        begun = time.monotonic()
        health = read_health(settings, datetime.now(UTC), Deadline(1))
        assert time.monotonic() - begun < 15
    (problem,) = of(health, "archive-unreachable")
    assert (problem.level, problem.message) == ("failed", "the archive's storage did not answer within 1 s")
    assert of(health, "kafka-unreachable")
    assert (health.alerts, health.logs, health.topics_without_log) == (("1 (slack)",), (), None)
    assert not of(health, "audit-missing")


def test_a_wrong_secret_is_one_problem(
    seaweed: SeaweedServer, growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logs, the heads and the audits are not known for one cause, so it is told once, with its remedy."""
    seaweed.use(monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3 = S3Options(endpoint_url=seaweed.endpoint_url)
    given = alone(growing).model_copy(update={"archive": f"s3://{seaweed.make_bucket()}/audit", "s3": s3})
    health = read_health(given, datetime.now(UTC), Deadline(10))
    assert [problem.kind for problem in health.problems if problem.subject in {"archive", "audit"}] == [
        "archive-unreachable"
    ]
    (problem,) = of(health, "archive-unreachable")
    assert "403" in problem.message
    assert problem.remedy == "check the credentials; run 'custody check'"


def test_one_log_that_never_comes_hides_no_other(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that were read are shown. The others, and the audit, are not asked for again."""
    Growing(growing.root, 1).append(1)
    release = threading.Event()

    def hang(store: Any, log: Any, *more: Any) -> Any:
        if log.partition == 1:
            release.wait(60)
        return find_checked_tip(store, log, *more)

    monkeypatch.setattr("tasks.health.archive.find_checked_tip", hang)
    try:
        health = read_health(alone(growing), datetime.now(UTC), Deadline(1))
    finally:
        release.set()
    assert {log.log: (log.size, log.level) for log in health.logs} == {
        "audit.grows/0": (3, "ok"),
        "audit.grows/1": (0, "failed"),
    }
    assert "did not answer within 1 s" in of(health, "log-unknown")[0].message
    assert len(of(health, "archive-unreachable")) == 1


def test_no_archive(tmp_path: Path) -> None:
    """Where there is no archive, the error is the one of the other commands."""
    with pytest.raises(ConfigurationError, match=r"there is no archive at .*: is this the right place\?"):
        health_of(Settings(archive=str(tmp_path / "none")))


def test_audits(growing: Growing) -> None:
    """A missing, late, failed or unreadable audit is a problem; what the roll records is no audit."""
    settings = alone(growing)
    assert health_of(settings).audit is None
    assert not of(health_of(settings), "audit-missing")
    assert [one.level for one in of(health_of(settings, timedelta(hours=27)), "audit-missing")] == ["warning"]
    audit(settings)
    assert record(settings, [Action("delete", "an index", "done")], datetime.now(UTC)) == 1
    health = health_of(settings)
    assert health.audit is not None
    assert (health.audit.sequence, health.audit.verdict) == (0, "verified")
    late = health_of(settings, timedelta(hours=27))
    assert [problem.level for problem in of(late, "audit-late")] == ["warning"]
    assert not of(
        health_of(alone(growing, health=HealthSettings(audit_seconds=10**6)), timedelta(hours=27)), "audit-late"
    )
    segment = min((growing.folder / "events").rglob("*.gz"))
    segment.chmod(0o644)
    segment.write_bytes(b"something else")
    audit(settings, full=True)
    health = health_of(settings)
    problem, in_log = sorted(of(health, "audit-failed"), key=lambda each: each.subject != "audit")
    assert (problem.level, health.audit and health.audit.verdict) == ("failed", "tampered")
    named = re.search(r"the worst: ([a-z-]+), ", problem.message)
    assert named
    name = named[1]
    assert name in CATALOGUE
    for part in (str(segment.relative_to(growing.folder)), "audit.grows/0"):
        assert part in problem.message
    assert f"'custody explain {name}'" in problem.remedy
    assert only(health).level == "failed"
    assert only(health).problems == (in_log,)
    assert in_log.message == f"audit 2 found {name}: see the problem of the audit"
    # Its checkpoint remembers it.
    (growing.folder / "audits/000000000002.json").unlink()
    assert [problem.level for problem in of(health_of(settings), "audit-unreadable")] == ["failed"]


@pytest.mark.parametrize("more", [b"{}", b""], ids=["longer", "changed"])
def test_findings_that_are_not_the_signed_ones(growing: Growing, monkeypatch: pytest.MonkeyPatch, more: bytes) -> None:
    """Whoever changes the object of an audit's findings, or adds a byte, does not end the command: it says so."""
    monkeypatch.setattr("custody.format.audit.FINDINGS_INLINE", 0)
    segment = min((growing.folder / "events").rglob("*.gz"))
    segment.chmod(0o644)
    segment.write_bytes(b"something else")
    audit(alone(growing))
    stored = next(path for path in (growing.folder / "audits/objects").iterdir() if b"segment-" in path.read_bytes())
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes().replace(b"segment-", b"segment_") + more)
    health = health_of(alone(growing))
    assert health.audit is not None
    (problem,) = of(health, "audit-failed")
    assert "the findings of audit 0 are not those that were signed: audits/objects/" in problem.message


def test_a_damaged_statement_among_the_newest(growing: Growing) -> None:
    """A log is damaged if one of its newest statements is; bytes that the writer passed over are no damage."""
    (growing.folder / layout.manifest_key(LOG, 3)).write_bytes(b"garbage")
    growing.append(3)
    assert only(health_of(alone(growing))).problems == ()
    path = growing.folder / layout.manifest_key(LOG, 4)
    path.unlink()
    path.write_bytes(b"garbage")
    (problem,) = only(health_of(alone(growing))).problems
    assert (problem.kind, problem.level) == ("log-damaged", "failed")
    assert path.name in problem.message


def test_records_that_cannot_be_decoded(growing: Growing) -> None:
    """Offsets that a recent statement admits as unreadable are a warning."""

    def admit(entry: Entry) -> Entry:
        end = entry.next_offset
        return replace(entry, next_offset=end + 2, unreadable=(Unreadable(end, end + 2, "damaged"),))

    growing.append(1, edit=admit)
    health = health_of(alone(growing))
    assert only(health).recent.unreadable == 2
    assert [problem.level for problem in of(health, "unreadable")] == ["warning"]


def test_it_costs_the_same_however_old_the_archive_is(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log costs its end, and a fixed number of statements: not more with its age, but for a search in log n steps."""
    calls: list[str] = []
    read, exists = FolderStore.read, FolderStore.exists

    def counted_read(store: FolderStore, key: str, **more: Any) -> bytes:
        calls.append(key)
        return read(store, key, **more)

    def counted_exists(store: FolderStore, key: str) -> bool:
        calls.append(key)
        return exists(store, key)

    monkeypatch.setattr(FolderStore, "read", counted_read)
    monkeypatch.setattr(FolderStore, "exists", counted_exists)
    counts = []
    for size in (20, 200):
        growing.append(size - growing.size)
        calls.clear()
        assert only(health_of(alone(growing))).recent.statements == RECENT
        counts.append(len(calls))
    assert counts[1] - counts[0] <= 2 * 4, counts


# --- Elasticsearch


@pytest.fixture
def indexed(growing: Growing, elastic: ElasticsearchServer) -> Iterator[Settings]:
    """The settings of an archive that is indexed."""
    prefix = elastic.unused_prefix()
    made = alone(growing, search=SearchSettings(url=elastic.url, prefix=prefix, replicas=0))
    index_logs(made)
    yield made
    delete_indices(made)


def test_index_delay(growing: Growing, indexed: Settings) -> None:
    """The delay is the age of the first statement that cannot be searched; a cursor that cannot be true is reported."""
    health = health_of(indexed)
    assert health.search is not None
    assert (health.search.reachable, only(health).index_delay_seconds) == (True, 0.0)
    growing.append(2, now_event)
    health = health_of(indexed)
    delay = only(health).index_delay_seconds
    assert delay is not None
    # The statements of this archive are a minute apart, and the first one was sealed 50 minutes ago.
    assert 46 * 60 < delay < 48 * 60
    assert [problem.level for problem in of(health, "index-late")] == ["warning"]
    patient = indexed.model_copy(update={"search": indexed.search.model_copy(update={"behind_seconds": 3600})})
    assert not of(health_of(patient), "index-late")
    with closing(Search(indexed.search)) as search:
        archive = json.loads((growing.folder / "archive.json").read_bytes().split(b"\n")[0])["archive"]
        put_cursor(search, archive, LOG, 99)
        search.refresh(search.cursors)
    health = health_of(indexed)
    assert [problem.level for problem in of(health, "index-cursor")] == ["warning"]
    assert only(health).index_delay_seconds is None


def test_an_index_that_waits_for_a_statement_of_the_future(growing: Growing, indexed: Settings) -> None:
    """How late the index is, is then not known, which is a warning, and no negative delay."""
    growing.heartbeat(datetime.now(UTC) + timedelta(days=9))
    health = health_of(indexed)
    assert only(health).index_delay_seconds is None
    (problem,) = of(health, "index-unknown")
    assert (problem.level, problem.subject) == ("warning", only(health).log)
    assert "in the future" in problem.message


def test_a_slow_elasticsearch(indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logs together have a deadline. Those that were not compared are one problem."""
    monkeypatch.setattr(health_search, "SEARCH_SECONDS", -1.0)
    health = health_of(indexed)
    (problem,) = of(health, "index-unknown")
    assert "1 log was not compared" in problem.message
    assert (only(health).index_delay_seconds, health.search and health.search.reachable) == (None, True)


def test_no_elasticsearch(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is down, or takes connections and says nothing, that is one warning, soon, for all logs."""
    for partition in range(1, 5):
        Growing(growing.root, partition).append(1)
    monkeypatch.setattr(health_search, "REQUEST_SECONDS", 1.0)
    (port,) = free_ports(1)
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        for address in (port, frozen.getsockname()[1]):
            begun = time.monotonic()
            health = health_of(alone(growing, search=SearchSettings(url=f"http://127.0.0.1:{address}")))
            assert time.monotonic() - begun < 10
            (problem,) = of(health, "index-unknown")
            assert (problem.level, health.search and health.search.reachable) == ("warning", False)
            assert str(address) in problem.message
            assert [log.index_delay_seconds for log in health.logs] == [None] * 5
