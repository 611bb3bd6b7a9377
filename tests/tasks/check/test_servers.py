"""Each line of a check that needs a server: a real Kafka, S3 and Elasticsearch, as they are and with a fault."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elasticsearch._sync.client.cat import CatClient
from elasticsearch._sync.client.security import SecurityClient
from pydantic import SecretStr

from custody.archive.writer import create_archive
from custody.errors import SourceRefused, TerminalStoreError
from custody.keys.keyring import new_keyring
from custody.settings import EventSettings, TierSettings
from custody.store.open import open_store
from custody.store.protocol import S3Options
from custody.store.s3 import S3Store
from flows.operate.sample import sample_events
from tasks.check import archive, clock, retention, sample, search
from tasks.check import kafka as kafka_check
from tasks.check.model import Line
from tasks.drain.kafka import Broker
from tasks.drain.run import drain_logs
from tasks.health import kafka as health_kafka
from tasks.search.client import Search
from tasks.settings import DrainSettings, KafkaSettings, SearchSettings, Settings
from tests.helpers.environment import clear_settings
from tests.helpers.own import own_event
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports
from tests.servers.proxy import FaultyProxy
from tests.servers.s3 import MotoServer, SeaweedServer

SECRET = "s3cret-of-a-test"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    # The machine that tests may be busy: a server that is slow is not one that is down.
    for module in (kafka_check, search, health_kafka):
        monkeypatch.setattr(module, "REQUEST_SECONDS", 60.0)
    monkeypatch.setattr(kafka_check, "ASKING_SECONDS", 60.0)
    monkeypatch.setattr(sample, "SECONDS", 60.0)


def now() -> datetime:
    return datetime.now(UTC)


def levels(lines: Sequence[Line]) -> dict[str, str]:
    """Return the level of each subject."""
    assert len({line.subject for line in lines}) == len(lines), lines
    return {line.subject: line.level for line in lines}


def of(lines: Iterator[Line], subject: str) -> Line:
    """Return the only line about a subject."""
    (line,) = (line for line in lines if line.subject == subject)
    return line


# Kafka.


def on_kafka(server: KafkaServer, *topics: str, **more: Any) -> Settings:
    """Return settings for topics of a broker."""
    given = KafkaSettings(bootstrap_servers=server.bootstrap, topics=list(topics), group=server.unused_name("group"))
    return Settings(kafka=given, **more)


def send(server: KafkaServer, topic: str, values: Sequence[bytes | None]) -> None:
    """Send records to the partitions in turn: librdkafka would send as many to one as fit into a batch."""
    producer = server.producer()
    partitions = len(producer.list_topics(topic, 30).topics[topic].partitions)
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % partitions)
    assert producer.flush(60) == 0


def events(number: int) -> list[bytes]:
    return list(sample_events(number, 1, datetime(2026, 3, 1, tzinfo=UTC)))


def test_own_types_are_sampled_as_they_are_drained(kafka: KafkaServer) -> None:
    """Records of own types are ok, unless the setting says that they are quarantined."""
    topic = kafka.create_topic(kafka.unused_name("check.own"), 1)
    send(kafka, topic, [own_event(offset) for offset in range(10)])
    settings = on_kafka(kafka, topic)
    assert "10 newest records" in of(kafka_check.check(settings), topic).message
    strict = settings.model_copy(update={"events": EventSettings(unknown_types="quarantine")})
    line = of(kafka_check.check(strict), topic)
    assert (line.level, "of its 10 newest records, 10 would be quarantined" in line.message) == ("failed", True)


def test_topics_are_described_read_and_sampled(kafka: KafkaServer) -> None:
    """Records that are events are ok; some that are not are a warning, and all a failure, with the commonest reason."""
    names = [kafka.create_topic(kafka.unused_name(f"check.{name}"), 2) for name in ("good", "some", "bad", "empty")]
    good, some, bad, empty = names
    send(kafka, good, events(300))
    send(kafka, some, [*events(20), b"{}", b"{}", None])
    send(kafka, bad, [b"not JSON"] * 5)
    settings = on_kafka(kafka, *names)
    lines = list(kafka_check.check(settings))
    assert levels(lines) == {
        "login": "ok",
        "topics": "ok",
        "group": "ok",
        good: "ok",
        some: "warning",
        bad: "failed",
        empty: "ok",
        "broker": "ok",
    }
    assert "append times" in of(iter(lines), "broker").message
    assert "4 topics with 8 partitions" in of(iter(lines), "topics").message
    assert "100 newest records" in of(iter(lines), good).message
    assert "of its 23 newest records, 3 would be quarantined" in of(iter(lines), some).message
    assert "of its 5 newest records, 5 would be quarantined" in of(iter(lines), bad).message
    # Nothing was committed.
    with Broker(settings.kafka.librdkafka(), settings.kafka.group) as broker:
        assert broker.remembered([(good, 0)], "") == []


def test_lingering_that_does_not_fit_the_retention(kafka: KafkaServer) -> None:
    """A topic that keeps its records for less than lingering and headroom, by size, or compacted has a warning."""
    configs: dict[str, dict[str, Any]] = {
        "short": {"retention_ms": 22_000_000},
        "sized": {"retention_bytes": 10**9},
        "fits": {"retention_ms": 86_400_000},
        "endless": {"retention_ms": -1},
        "compacted": {"cleanup_policy": "compact"},
        "late": {"cleanup_policy": "compact", "min_compaction_lag_ms": 86_400_000},
    }
    names = {kind: kafka.create_topic(kafka.unused_name(f"check.{kind}"), **config) for kind, config in configs.items()}

    def warnings(seconds: float) -> dict[str, str]:
        given = on_kafka(kafka, *names.values()).model_copy(update={"drain": DrainSettings(linger_seconds=seconds)})
        return {line.subject: line.message for line in kafka_check.check(given) if line.level == "warning"}

    assert warnings(0) == {}
    said = warnings(900)
    assert set(said) == {names["short"], names["sized"], names["compacted"]}
    assert "records linger for 5 min at most" in said[names["short"]]
    assert "has no effect" in said[names["sized"]]
    assert "compaction may remove a record" in said[names["compacted"]]


def test_topics_that_do_not_exist(kafka: KafkaServer) -> None:
    """A name without a topic fails, and so does an expression that matches none."""
    name = kafka.unused_name("check.none")
    lines = list(kafka_check.check(on_kafka(kafka, name)))
    assert levels(lines) == {"login": "ok", name: "failed"}
    lines = list(kafka_check.check(on_kafka(kafka, f"^{name}")))
    assert levels(lines) == {"login": "ok", "topics": "failed"}
    assert "no topic matches" in of(iter(lines), "topics").message


@pytest.mark.parametrize(
    ("operation", "subject", "level"),
    [("bounds", "topic", "failed"), ("configuration", "topic", "warning"), ("remembered", "group", "failed")],
)
def test_rights_that_this_client_lacks(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, operation: str, subject: str, level: str
) -> None:
    """Each operation that the broker refuses has its line, with what to allow; the others are still tried."""

    def refuse(*_: object) -> None:
        raise SourceRefused("Topic authorization failed")

    topic = kafka.create_topic(kafka.unused_name("check.rights"))
    monkeypatch.setattr(Broker, operation, refuse)
    lines = [line for line in kafka_check.check(on_kafka(kafka, topic)) if line.level != "ok"]
    assert [(line.subject, line.level) for line in lines] == [(topic if subject == "topic" else "group", level)]
    assert "authorization failed" in lines[0].message
    assert "allow this client" in lines[0].remedy


def test_append_times_of_the_broker_show_a_host_that_is_behind(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker's clock that is far ahead of this host's is a failure; old records show nothing."""
    topic = kafka.create_topic(kafka.unused_name("check.clock"), 1, **{"message.timestamp.type": "LogAppendTime"})
    send(kafka, topic, events(1))
    settings = on_kafka(kafka, topic)
    assert [line for line in kafka_check.check(settings) if line.part == "clock" and line.level != "ok"] == []

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(kafka_check, "datetime", Behind)
    (line,) = (line for line in kafka_check.check(settings) if line.part == "clock")
    assert line.level == "failed"
    assert "behind the broker's" in line.message


def test_retention(kafka: KafkaServer, tmp_path: Path) -> None:
    """What waits and is deleted soon fails; without a limit, or with nothing waiting, all is well."""
    ring = new_keyring(tmp_path / "keyring.json", now())
    with closing(open_store(str(tmp_path / "archive"))) as store:
        create_archive(store, ring.signers(now()).both)
    topic = kafka.create_topic(kafka.unused_name("check.retention"), 1, **{"retention.ms": 3_600_000})
    send(kafka, topic, events(3))
    settings = on_kafka(kafka, topic, archive=str(tmp_path / "archive"), keys=f"file:{tmp_path / 'keyring.json'}")
    lines = list(retention.check(settings, now()))
    assert levels(lines) == {topic: "warning"}
    assert "3 records wait there" in of(iter(lines), topic).message
    drain_logs(settings, once=True)
    assert levels(list(retention.check(settings, now()))) == {"headroom": "ok"}
    send(kafka, topic, events(3))
    lines = list(retention.check(settings, now()))
    assert levels(lines) == {f"{topic}/0": "failed", "headroom": "ok"}
    assert "Kafka deletes records" in of(iter(lines), f"{topic}/0").message


# S3.


def in_bucket(
    server: SeaweedServer | MotoServer,
    tmp_path: Path,
    bucket: str,
    endpoint: str | None = None,
    **options: Any,
) -> Settings:
    """Return the settings of a new archive in a bucket."""
    s3 = S3Options(endpoint_url=server.endpoint_url)
    url, path = f"s3://{bucket}/audit", tmp_path / "keyring.json"
    ring = new_keyring(path, now())
    with closing(open_store(url, s3)) as store:
        create_archive(store, ring.signers(now()).both)
    given = S3Options(endpoint_url=endpoint or server.endpoint_url, **options)
    return Settings(archive=url, keys=f"file:{path}", s3=given)


def keys_left(server: SeaweedServer | MotoServer, bucket: str) -> list[str]:
    """Return all versions under the probes' prefix."""
    with closing(server.client()) as client:
        answer = client.list_object_versions(Bucket=bucket, Prefix="audit/reports/")
        return [each["Key"] for kind in ("Versions", "DeleteMarkers") for each in answer.get(kind, ())]


def test_a_bucket_with_versions_and_locks(
    seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put, conditional put, versions and the lock are really tried, and nothing is left."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket(object_lock=True)
    settings = in_bucket(seaweed, tmp_path, bucket, retention_mode="COMPLIANCE", retention_days=1)
    lines = list(archive.check(settings, now()))
    assert levels(unconfigured(lines)) == dict.fromkeys(
        ("archive.json", "put", "conditional put", "versions", "lock"), "ok"
    )
    assert keys_left(seaweed, bucket) == []
    assert levels(list(clock.check(settings))) == {"store": "ok"}


@pytest.mark.parametrize("may_delete", [True, False])
def test_a_lock_that_does_not_hold_or_cannot_be_tried(
    seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, may_delete: bool
) -> None:
    """A locked object that can be deleted is a failure. Without permission to delete, nobody knows: a warning."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket(object_lock=True)
    settings = in_bucket(seaweed, tmp_path, bucket, retention_mode="GOVERNANCE", retention_days=1)

    def remove(_: S3Store, key: str) -> None:
        if not may_delete:
            raise TerminalStoreError(f"{key}: AccessDenied")

    # What the store answers to somebody who may pass by locks, or who may delete nothing.
    monkeypatch.setattr(S3Store, "remove", remove)
    line = of(archive.check(settings, now()), "lock")
    assert line.level == ("failed" if may_delete else "warning")


def unconfigured(lines: Sequence[Line]) -> list[Line]:
    """Return lines without those about lifecycle rules and policies, of which a bucket of a test has none."""
    return [line for line in lines if line.subject != "configuration"]


def test_a_bucket_without_versions_and_locks(
    seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are warnings; a lock that the settings ask for, and that the bucket cannot give, is a failure."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket()
    settings = in_bucket(seaweed, tmp_path, bucket)
    lines = list(archive.check(settings, now()))
    assert levels(unconfigured(lines)) == {
        "archive.json": "ok",
        "put": "ok",
        "conditional put": "ok",
        "versions": "warning",
        "lock": "warning",
    }
    locked = S3Options(endpoint_url=seaweed.endpoint_url, retention_mode="COMPLIANCE", retention_days=1)
    asking = Settings(archive=settings.archive, keys=settings.keys, s3=locked)
    assert of(archive.check(asking, now()), "lock").level == "failed"
    assert keys_left(seaweed, bucket) == []


def test_a_wrong_bucket_and_a_server_that_is_down(
    seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that does not exist will not pass by itself; a server that does not answer may."""
    seaweed.use(monkeypatch)
    new_keyring(tmp_path / "keyring.json", now())
    keys = f"file:{tmp_path / 'keyring.json'}"
    s3 = S3Options(endpoint_url=seaweed.endpoint_url)
    (line,) = archive.check(Settings(archive="s3://no-such-bucket/audit", keys=keys, s3=s3), now())
    assert (line.level, line.passing) == ("failed", False)
    assert line.message == "there is no such bucket: s3://no-such-bucket"
    assert line.remedy == "create it, or correct the archive's URL"
    (port,) = free_ports(1)
    s3 = S3Options(endpoint_url=f"http://127.0.0.1:{port}")
    (line,) = archive.check(Settings(archive="s3://bucket/audit", keys=keys, s3=s3), now())
    assert (line.level, line.passing) == ("failed", True)
    assert f"the archive's storage at {s3.endpoint_url} does not answer" in line.message
    assert line.remedy == "check that it runs, and s3.endpoint_url"
    assert seaweed.secret_key not in repr(line)


class Unconditional(FaultyProxy):
    """A server that does not know `If-None-Match`."""

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        del request.headers["If-None-Match"]
        return super()._ask(request, body)


@pytest.mark.parametrize("manage", [True, False])
def test_lifecycle_rules_that_the_roll_sets(
    moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manage: bool
) -> None:
    """Where the roll manages them, it is the remedy; else they are compared by hand."""
    moto.use(monkeypatch)
    settings = in_bucket(moto, tmp_path, moto.make_bucket(versioned=True))
    settings = settings.model_copy(update={"tiers": TierSettings(manage=manage)})
    remedies = {line.remedy for line in archive.check(settings, now()) if "lifecycle" in line.message}
    assert ("'custody roll' sets them" in remedies) == manage


def test_a_server_without_conditional_puts(moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers would overwrite each other: a failure that will not pass."""
    moto.use(monkeypatch)
    bucket = moto.make_bucket(versioned=True)
    with Unconditional(moto.endpoint_url) as proxy:
        settings = in_bucket(moto, tmp_path, bucket, proxy.endpoint_url)
        line = of(archive.check(settings, now()), "conditional put")
    assert (line.level, line.passing) == ("failed", False)
    assert "wrote over" in line.message
    assert keys_left(moto, bucket) == []


# Elasticsearch.


def test_elasticsearch(elastic: ElasticsearchServer) -> None:
    """It answers, its disks have room, and no template of others takes over; one that does is a failure."""
    prefix = elastic.unused_prefix()
    settings = Settings(search=SearchSettings(url=elastic.url, prefix=prefix, api_key=SecretStr(SECRET)))
    lines = list(search.check(settings))
    shown = levels([line for line in lines if line.subject != "disks"])
    # The tests' server has no security.
    assert shown == {"server": "ok", "privileges": "warning", "template": "ok"}, [line.message for line in lines]
    assert SECRET not in json.dumps([line.to_dict() for line in lines])
    with closing(Search(settings.search)) as opened:
        opened.client.indices.put_index_template(name=f"{prefix}-x", index_patterns=[f"{prefix}-*"], priority=10_000)
        try:
            assert of(search.check(settings), "template").level == "failed"
        finally:
            opened.client.indices.delete_index_template(name=f"{prefix}-x")


@pytest.mark.parametrize(
    ("lacks", "level"), [((), "ok"), (("manage",), "warning"), (("index",), "failed"), (("manage", "index"), "failed")]
)
def test_privileges_of_the_key(
    elastic: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch, lacks: tuple[str, ...], level: str
) -> None:
    """A key that cannot index fails; one that cannot roll is a warning. The tests' server has no security to ask."""

    def has_privileges(_: object, *, cluster: list[str], index: list[Any]) -> Any:
        ((names, privileges),) = ((each["names"], each["privileges"]) for each in index)
        given = {name: {privilege: privilege not in lacks for privilege in privileges} for name in names}
        return SimpleNamespace(body={"cluster": dict.fromkeys(cluster, True), "index": given})

    monkeypatch.setattr(SecurityClient, "has_privileges", has_privileges)
    settings = Settings(search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix()))
    line = of(search.check(settings), "privileges")
    assert line.level == level
    assert [name for name in lacks if name == "index" and name not in line.message] == []


@pytest.mark.parametrize(("percent", "level"), [("12", "ok"), ("91", "warning"), ("96", "failed")])
def test_disks_of_elasticsearch(
    elastic: ElasticsearchServer, monkeypatch: pytest.MonkeyPatch, percent: str, level: str
) -> None:
    """A disk from which shards are moved is a warning, one that takes no writes a failure."""
    rows = [{"node": "a", "disk.percent": percent}, {"node": "UNASSIGNED", "disk.percent": None}]
    monkeypatch.setattr(CatClient, "allocation", lambda *_, **__: SimpleNamespace(body=rows))
    settings = Settings(search=SearchSettings(url=elastic.url, prefix=elastic.unused_prefix()))
    line = of(search.check(settings), "disks")
    assert (line.level, percent in line.message) == (level, True)


def test_elasticsearch_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and archiving goes on."""
    monkeypatch.setattr(search, "REQUEST_SECONDS", 3.0)
    (port,) = free_ports(1)
    (line,) = search.check(Settings(search=SearchSettings(url=f"http://127.0.0.1:{port}")))
    assert (line.level, line.passing) == ("failed", True)
