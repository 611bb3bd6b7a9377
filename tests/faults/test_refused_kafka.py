"""A real broker with ACLs refuses one right after the other: the rest is done, and the error says what and to whom."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, ResourceType  # type: ignore[attr-defined]

from custody.archive.writer import create_archive
from custody.errors import ConfigurationError, SourceRefused
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.store.open import open_store
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.audit.recheck import recheck
from tasks.backfill.copy import Progress, copy
from tasks.backfill.plan import Request, plan_backfill
from tasks.detect import publish
from tasks.detect.alerts import Notice
from tasks.drain import loop, outcome
from tasks.drain.context import Context
from tasks.drain.log_run import LogResult, LogRun
from tasks.drain.resume import begin_epoch
from tasks.drain.retention import Retentions
from tasks.drain.run import drain_logs
from tasks.health.model import Health, LogHealth, Problem
from tasks.health.read import read_health
from tasks.settings import KafkaSettings, Settings
from tests.helpers.alerts import ALERT
from tests.servers.kafka import GuardedServer, KafkaUnavailableError
from tests.servers.require import unavailable

TOPIC, GROUP = ResourceType.TOPIC, ResourceType.GROUP
DESCRIBE, READ = AclOperation.DESCRIBE, AclOperation.READ
RIGHTS = (READ, AclOperation.DESCRIBE_CONFIGS)
BATCH = 5
WHO = "refused to User:custody: allow it "


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    """A broker of this module's own, with passwords and ACLs."""
    try:
        with GuardedServer(tmp_path_factory.mktemp("refused") / "kafka", heap="256m") as server:
            yield server
    except KafkaUnavailableError as error:
        unavailable(str(error))


@dataclass
class Site:
    """Two topics and an archive of them, in which both were archived once. More waits in both."""

    kafka: GuardedServer
    settings: Settings
    open: str
    refused: str

    def produce(self) -> None:
        producer = self.kafka.inner().producer()
        for topic in (self.open, self.refused):
            for value in sample_events(BATCH, 1, datetime(2026, 3, 1, tzinfo=UTC)):
                producer.produce(topic, value)
        assert producer.flush(30) == 0

    def drain(self) -> tuple[LogResult, LogResult]:
        """Drain, and return the results of the topic that may be read, and of the other one."""
        results = {result.log: result for result in drain_logs(self.settings, once=True)}
        self.judge()
        return results[f"{self.open}/0"], results[f"{self.refused}/0"]

    def judge(self) -> None:
        """Check that the archive is whole."""
        with closing(open_store(self.settings.archive)) as store:
            report = verify(store, self.settings.own_trust(), now=datetime.now(UTC), workers=0)
        assert report.exit_code == 0, list(report.findings)

    def rechecked(self) -> list[tuple[str, str | None, str]]:
        """Return the findings of `verify --kafka` about the broker."""
        with closing(open_store(self.settings.archive)) as store:
            findings = recheck(self.settings, store, self.settings.own_trust())
            return [(each.finding, each.log, each.message) for each in findings]

    def health(self) -> Health:
        return read_health(self.settings, datetime.now(UTC))


def log_of(health: Health, topic: str) -> LogHealth:
    """Return the health of a topic's log."""
    (log,) = (log for log in health.logs if log.log == f"{topic}/0")
    return log


def failures(health: Health) -> list[Problem]:
    """Return what needs somebody now."""
    return [problem for problem in health.problems if problem.level == "failed"]


@pytest.fixture
def site(guarded: GuardedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Everything is allowed, and was archived once."""
    monkeypatch.chdir(tmp_path)
    topics = [guarded.inner().create_topic(guarded.unused_name(name)) for name in ("open", "refused")]
    new_keyring(tmp_path / "keyring.json", datetime.now(UTC))
    keys = f"file:{tmp_path / 'keyring.json'}"
    with closing(open_store(str(tmp_path / "archive"))) as store:
        create_archive(store, open_signers(keys, datetime.now(UTC)).both)
    kafka = {
        "bootstrap_servers": guarded.bootstrap,
        "topics": topics,
        "group": guarded.unused_name("group"),
        "client": dict(guarded.client),
    }
    settings = Settings(archive=str(tmp_path / "archive"), keys=keys, kafka=KafkaSettings.model_validate(kafka))
    made = Site(guarded, settings, *topics)
    for topic in topics:
        guarded.allow(TOPIC, topic, *RIGHTS)
    guarded.allow(GROUP, settings.kafka.group, READ)
    made.produce()
    assert [(result.problem, result.events) for result in made.drain()] == [(None, BATCH)] * 2
    made.produce()
    return made


def check_recovers(site: Site, waiting: Sequence[int]) -> None:
    """Allow everything again: what waits is archived, nothing twice, and the broker agrees."""
    for topic in (site.open, site.refused):
        site.kafka.allow(TOPIC, topic, *RIGHTS)
    site.kafka.allow(GROUP, site.settings.kafka.group, READ)
    assert [(result.problem, result.events) for result in site.drain()] == [(None, events) for events in waiting]
    assert site.rechecked() == []
    health = site.health()
    assert failures(health) == []
    assert [log_of(health, topic).lag_records for topic in (site.open, site.refused)] == [0, 0]


@pytest.mark.parametrize("left", ["Describe", "nothing", "Write elsewhere"])
def test_alerts_are_refused(guarded: GuardedServer, left: str) -> None:
    """Without Write, or even Describe, on the topic of alerts nothing counts as sent. The error says what to allow."""
    topic, other = (guarded.inner().create_topic(guarded.unused_name(name)) for name in ("alerts", "other"))
    guarded.allow(TOPIC, topic, *([] if left == "nothing" else [DESCRIBE]))
    guarded.allow(TOPIC, other, *([AclOperation.WRITE] if left == "Write elsewhere" else []))
    kafka = {"bootstrap_servers": guarded.bootstrap, "client": dict(guarded.client)}
    settings = KafkaSettings.model_validate(kafka)
    notices = [Notice(f"{number:032x}", "opened", ALERT, "Look.") for number in range(3)]
    sent = publish.send(notices, settings, topic, seconds=10)
    assert sent.ids == frozenset()
    assert "User:custody" in str(sent.problem)
    assert f"Describe and Write on topic {topic}" in str(sent.problem) or left == "nothing"
    assert topic in str(sent.problem)
    assert "Describe and Write on it" in str(sent.problem) or left != "nothing"
    assert guarded.client["sasl.password"] not in str(sent.problem)
    guarded.allow(TOPIC, topic, AclOperation.WRITE)
    assert publish.send(notices, settings, topic).problem is None
    guarded.allow(TOPIC, other)


@pytest.mark.parametrize("left", ["Describe", "nothing"])
def test_a_topic_is_refused(site: Site, left: str) -> None:
    """Without Read, or even Describe, on a topic it did not vanish; the other one is archived, read and compared."""
    site.kafka.allow(TOPIC, site.refused, *([DESCRIBE] if left == "Describe" else []))
    needed = f"{WHO}Describe and Read on topic {site.refused}"
    done, refused = site.drain()
    assert (done.outcome, done.events) == ("drained", BATCH)
    assert (refused.outcome, refused.events) == ("failed", 0)
    assert needed in str(refused.problem)
    assert not refused.vanished
    ((finding, log, message),) = site.rechecked()
    assert (finding, log) == ("unreadable", f"{site.refused}/0")
    assert needed in message
    health = site.health()
    (problem,) = failures(health)
    assert (problem.kind, problem.subject) == ("topic-refused", f"{site.refused}/0")
    assert needed in problem.message
    assert log_of(health, site.open).lag_records == 0
    for said in (str(refused.problem), message, problem.message):
        assert not any(word in said for word in ("right-password", "truncated", "does not exist", "no longer"))
    if left == "nothing":
        with pytest.raises(SourceRefused, match="refused to User:custody"):
            begin_epoch(site.settings, site.refused)
    check_recovers(site, (0, BATCH))


def test_a_topic_without_a_log_is_refused(site: Site) -> None:
    """A named topic that may not be seen is refused, by drain and status; one that does not exist is missing."""
    unseen = site.kafka.inner().create_topic(site.kafka.unused_name("unseen"))
    absent = site.kafka.unused_name("absent")
    site.kafka.allow(TOPIC, absent, DESCRIBE)
    kafka = site.settings.kafka.model_copy(update={"topics": [site.open, unseen, absent]})
    site = replace(site, settings=site.settings.model_copy(update={"kafka": kafka}))
    results = {result.log: str(result.problem) for result in drain_logs(site.settings, once=True)}
    needed = f"{WHO}Describe and Read on topic {unseen}"
    assert needed in results[f"{unseen}/0"]
    assert f"topic {absent!r} does not exist" in results[f"{absent}/0"]
    problems = {problem.subject: problem for problem in failures(site.health())}
    assert {subject: problem.kind for subject, problem in problems.items()} == {
        unseen: "topic-refused",
        absent: "topic-missing",
    }
    assert needed in problems[unseen].message


def test_the_group_is_refused(site: Site) -> None:
    """Without Read on the group everything is archived and compared, quickly, and the runs fail with the reason."""
    site.kafka.allow(GROUP, site.settings.kafka.group)
    needed = f"{WHO}Read on group {site.settings.kafka.group}"
    begin = time.monotonic()
    for result in site.drain():
        assert (result.outcome, result.events) == ("failed", BATCH)
        assert needed in str(result.problem)
    # librdkafka would wait 45 s for each commit.
    assert time.monotonic() - begin < 40
    findings = site.rechecked()
    assert [(finding, log) for finding, log, _ in findings] == [
        ("unreadable", f"{topic}/0") for topic in (site.open, site.refused)
    ]
    assert all(needed in message and "committed offset" in message for *_, message in findings)
    assert failures(site.health()) == []
    # An epoch that cannot be taken back is not begun without that memory.
    with pytest.raises(SourceRefused, match="Read on group"):
        begin_epoch(site.settings, site.open)
    check_recovers(site, (0, 0))


def test_the_configuration_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DescribeConfigs nobody knows how long Kafka keeps what waits: the run archives, and says so."""
    site.kafka.allow(TOPIC, site.refused, READ)

    def behind(context: Context, runs: Sequence[LogRun], retentions: Retentions) -> None:
        # As if records had come meanwhile: only then is it asked.
        for run in runs:
            run.target = (run.writer.next_offset or 0) + 1
        outcome.report(context, runs, retentions)

    monkeypatch.setattr(loop, "report", behind)
    done, refused = site.drain()
    assert (done.outcome, done.events, done.headroom_unknown) == ("drained", BATCH, None)
    assert (refused.outcome, refused.events, refused.problem) == ("drained", BATCH, None)
    assert f"{WHO}DescribeConfigs on topic {site.refused}" in str(refused.headroom_unknown)
    monkeypatch.undo()
    check_recovers(site, (0, 0))


def test_a_wrong_password(site: Site) -> None:
    """Whoever is not let in at all is named, and so is where: by drain, status and `verify --kafka`."""
    kafka = site.settings.kafka.model_dump(mode="python") | {
        "client": {**site.kafka.client, "sasl.password": "wrong-password"}
    }
    wrong = replace(site, settings=site.settings.model_copy(update={"kafka": KafkaSettings.model_validate(kafka)}))
    with pytest.raises(SourceRefused) as raised:
        drain_logs(wrong.settings, once=True)
    ((finding, _, message),) = wrong.rechecked()
    assert finding == "unreadable"
    health = wrong.health()
    (problem,) = failures(health)
    assert problem.kind == "kafka-unreachable"
    assert log_of(health, site.open).size
    for said in (str(raised.value), message, problem.message):
        assert "refused to User:custody: check" in said
        assert site.settings.kafka.bootstrap_servers in said
        assert "password" not in said.replace("username or password", "").replace("the password, certificate", "")
    site.judge()
    check_recovers(site, (BATCH, BATCH))


def test_a_backfill_is_refused(site: Site) -> None:
    """A backfill says which right it lacks: to see the topic, on the group, or to write. No event is booked for it."""
    target = site.kafka.inner().create_topic(site.kafka.unused_name("target"))
    begin = datetime(2026, 3, 1, tzinfo=UTC)
    request = Request(since=begin - timedelta(days=1), until=begin + timedelta(days=9), target="topic", topic=target)

    def send() -> Progress:
        return copy(site.settings, plan_backfill(site.settings, request))

    try:
        with pytest.raises(ConfigurationError, match="that User:custody may see"):
            send()
        site.kafka.allow(TOPIC, target, DESCRIBE)
        with pytest.raises(SourceRefused, match=r"refused to User:custody: allow it Read on group .*-backfill-"):
            send()
        site.kafka.allow(GROUP, "*", READ)
        # It raises, so that nothing is counted as rejected.
        with pytest.raises(SourceRefused, match=f"{WHO}Describe and Write on topic {target}"):
            send()
        assert site.kafka.inner().watermarks(target) == (0, 0)
        site.kafka.allow(TOPIC, target, DESCRIBE, AclOperation.WRITE)
        done = send()
        assert (done.created, done.rejected, done.problems) == (2 * BATCH, 0, [])
    finally:
        site.kafka.allow(GROUP, "*")
