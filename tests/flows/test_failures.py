"""Each failed run emits the event that an alert waits for, whatever the failure."""

import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from rich.console import Console

import flows.audit
import flows.backfill
import flows.detect
import flows.drain
import flows.index
import flows.publish
import flows.roll
import tasks.detect.run
from custody.errors import TerminalStoreError, TransientSourceError, TransientStoreError
from flows.alert import alert
from flows.operate.deploy import DEPLOYMENTS
from flows.operate.sample import sample_events
from flows.summaries import drain_table
from tasks.backfill import copy
from tasks.drain import apart
from tasks.drain.log_run import LogResult
from tasks.search.index import IndexResult
from tests.helpers.environment import use_archive
from tests.helpers.sample import Growing
from tests.servers.kafka import KafkaServer

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
Emitted = list[tuple[str, dict[str, Any]]]

WORK: dict[str, tuple[Flow[..., Any], Any, str, tuple[Any, ...]]] = {
    "audit": (flows.audit.audit, flows.audit, "_run", ()),
    "drain": (flows.drain.drain, flows.drain, "_run", ()),
    "roll": (flows.roll.roll, flows.roll, "take_steps", ()),
    "backfill": (flows.backfill.backfill, flows.backfill, "_run", (BEGIN, BEGIN)),
    "index": (flows.index.index, flows.index, "_run", ()),
    "detect": (flows.detect.detect, tasks.detect.run, "detect", ()),
}


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Emitted:
    """The events that flows emit, by name, with their payloads but for the run's page. Settings name an archive."""
    growing = Growing(tmp_path)
    growing.append(1)
    use_archive(monkeypatch, growing.folder, growing.keyring)
    monkeypatch.chdir(tmp_path)
    events: Emitted = []

    def emit(event: str, *, resource: dict[str, str], payload: dict[str, Any]) -> None:
        assert resource["prefect.resource.id"].startswith("custody.")
        events.append((event, {name: value for name, value in payload.items() if name != "run"}))

    monkeypatch.setattr(flows.publish, "emit_event", emit)
    return events


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", WORK)
def test_any_exception_is_an_event(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An error that nobody foresaw fails the run, and emits the event with its text."""
    flow, module, function, arguments = WORK[name]

    def fail(*_: Any, **__: Any) -> None:
        raise RecursionError("nested too deep")

    monkeypatch.setattr(module, function, fail)
    state: Any = flow(*arguments, return_state=True)
    assert state.is_failed()
    assert [event for event, _ in emitted] == [f"custody.{name}.failed"]
    assert "nested too deep" in emitted[0][1]["problem"]


@pytest.mark.usefixtures("prefect_server")
def test_a_part_is_no_nightly_audit(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only an audit of the whole archive keeps the alarm about silence quiet, with whatever verdict it ends."""
    monkeypatch.setenv("CUSTODY_AUDIT__TABLES", "false")
    monkeypatch.setenv("CUSTODY_AUDIT__REPORT", "false")
    triggers = {
        trigger["name"]: trigger["expect"]
        for deployment in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
        for trigger in deployment.get("triggers", ())
    }
    assert triggers["custody-audit-silent"] == ["custody.audit.ended"]
    future = datetime(2096, 1, 1, tzinfo=UTC)
    for part in ({"since": future}, {"until": BEGIN}, {"until": future}, {"logs": ["audit.grows"]}):
        assert flows.audit.audit(**part, return_state=True).is_completed()
        assert emitted == []
    for number, full in enumerate((False, True), 4):
        assert flows.audit.audit(full=full, return_state=True).is_completed()
        assert emitted.pop() == ("custody.audit.ended", {"verdict": "verified", "audit": number})
    segment = next(Path(tmp_path).rglob("events/**/*.gz"))
    segment.unlink()
    segment.write_bytes(b"")
    for parameters, names in (
        ({"until": future}, ["custody.audit.failed"]),
        ({"full": True}, ["custody.audit.ended", "custody.audit.failed"]),
    ):
        emitted.clear()
        assert flows.audit.audit(**parameters, return_state=True).is_failed()
        assert [event for event, _ in emitted] == names


@pytest.mark.usefixtures("prefect_server")
def test_a_wrong_clock_is_an_event(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert about clocks waits for audits too."""
    monkeypatch.setenv("CUSTODY_AUDIT__TABLES", "false")
    monkeypatch.setenv("CUSTODY_AUDIT__REPORT", "false")
    monkeypatch.setattr("tasks.audit.plan.host_ahead", lambda _: timedelta(minutes=6))
    assert flows.audit.audit(return_state=True).is_completed()
    assert [event for event, _ in emitted] == ["custody.clock.wrong", "custody.audit.ended"]
    assert emitted[0][1] == {"seconds": 360.0}
    (trigger,) = (
        trigger
        for deployment in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
        for trigger in deployment.get("triggers", ())
        if trigger["expect"] == ["custody.clock.wrong"]
    )
    assert "custody.audit" in trigger["match"]["prefect.resource.id"]


def test_an_alert_waits_for_each_failure() -> None:
    """Each flow has the hooks, and each but the alert itself has a trigger for its event."""
    made = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
    expected = {event for one in made for trigger in one.get("triggers", []) for event in trigger["expect"]}
    for flow, *_ in WORK.values():
        assert flow.on_failure_hooks == flow.on_crashed_hooks == [flows.publish.emit_failure]
        assert f"custody.{flow.name}.failed" in expected
    assert alert.on_failure_hooks == [flows.publish.emit_failure]
    assert {each["entrypoint"].split(".")[1] for each in made} == {*WORK, "alert"}


@pytest.mark.usefixtures("prefect_server")
def test_no_topic_at_all(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer) -> None:
    """A drain that finds no topic has failed: it is no success that there was nothing to do."""
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", "^no-topic-has-this-name$")
    state = flows.drain.drain(return_state=True)
    assert state.is_failed()
    assert "no topic on" in str(state.message)
    assert [event for event, _ in emitted] == ["custody.drain.failed"]


@pytest.mark.usefixtures("prefect_server")
def test_shrinking_headroom(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer) -> None:
    """A log whose unread records Kafka deletes soon fails the run, and has an event with the seconds left."""
    topic = kafka.create_topic(kafka.unused_name("headroom"), retention_ms=3_600_000)
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", topic)
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", topic)
    assert flows.drain.drain(once=True, return_state=True).is_completed()
    producer = kafka.producer()
    for value in sample_events(10, 0, BEGIN):
        producer.produce(topic, value, timestamp=int(time.time() - 3000) * 1000)
    assert producer.flush(30) == 0
    emitted.clear()
    # Its time is over before its first read.
    monkeypatch.setattr("tasks.drain.loop.Loop._follow", lambda *_: None)
    state = flows.drain.drain(return_state=True)
    assert state.is_failed()
    assert "archived nothing" in str(state.message)
    assert "raise the topic's retention" in str(state.message)
    assert [event for event, _ in emitted] == ["custody.drain.headroom", "custody.drain.failed"]
    assert 0 < emitted[0][1]["seconds"] < 650


def drain_topics(monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer, topics: str) -> None:
    """Name topics to the flow, and a group that nobody else has."""
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
    monkeypatch.setenv("CUSTODY_KAFKA__TOPICS", topics)
    monkeypatch.setenv("CUSTODY_KAFKA__GROUP", kafka.unused_name("group"))


@pytest.mark.usefixtures("prefect_server")
def test_a_vanished_topic(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer) -> None:
    """A topic that vanished fails each run, with an event that says what to do. It is no silence of the drain."""
    name = kafka.unused_name("vanish")
    topics = [kafka.create_topic(f"{name}.{part}") for part in ("stays", "goes")]
    drain_topics(monkeypatch, kafka, f"^{name}")
    assert flows.drain.drain(once=True, return_state=True).is_completed()
    kafka.delete_topic(topics[1])
    for _ in range(2):
        emitted.clear()
        assert flows.drain.drain(once=True, return_state=True).is_failed()
        names = [event for event, _ in emitted]
        assert names == ["custody.log.vanished", "custody.drain.completed", "custody.drain.failed"]
        assert "exclude it from kafka.topics" in emitted[0][1]["problem"]
    # With another problem beside it, the run is no success.
    emitted.clear()
    monkeypatch.setattr("flows.drain._report_headroom", lambda _: ["another problem"])
    assert flows.drain.drain(once=True, return_state=True).is_failed()
    assert [event for event, _ in emitted] == ["custody.log.vanished", "custody.drain.failed"]


@pytest.mark.usefixtures("prefect_server")
def test_unreadable_records(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer) -> None:
    """A run that admits records which no client can decode ends well, and emits the event that an alert waits for."""
    topic = kafka.create_topic(kafka.unused_name("unreadable"))
    drain_topics(monkeypatch, kafka, topic)
    monkeypatch.setitem(apart._CLIENT, "receive.message.max.bytes", "60000000")
    producer = kafka.producer(message_max_bytes=1_000_000_000, compression_type="zstd")
    producer.produce(topic, bytes(95_000_000))
    assert producer.flush(60) == 0
    assert flows.drain.drain(once=True, return_state=True).is_completed()
    assert [event for event, _ in emitted] == ["custody.log.unreadable", "custody.drain.completed"]
    assert emitted[0][1]["offsets"] == 1


@pytest.mark.usefixtures("prefect_server")
def test_too_much_quarantine(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer) -> None:
    """A run with a log of no valid records ends well. Its event, its message and its table name share and reason."""
    name = kafka.unused_name("quarantine")
    topics = [kafka.create_topic(f"{name}.{part}") for part in ("bad", "good")]
    drain_topics(monkeypatch, kafka, f"^{name}")
    tables: list[Any] = []
    monkeypatch.setattr(flows.drain, "publish_table", lambda _, rows, summary: tables.append((rows, summary)))
    producer = kafka.producer()
    for number in range(1_000):
        producer.produce(topics[0], b'{"nonsense":%d}' % number)
    for value in [*sample_events(200, 0, BEGIN), b"{"]:
        producer.produce(topics[1], value)
    assert producer.flush(60) == 0
    state = flows.drain.drain(once=True, return_state=True)
    assert state.is_completed()
    assert [event for event, _ in emitted] == ["custody.log.quarantined", "custody.drain.completed"]
    sentence = (
        "100.0% of the run's records are in quarantine (1,000 of 1,000),"
        " most often: event_type missing (1,000), for example: event_type is missing"
    )
    assert emitted[0][1] == {"problem": sentence}
    assert f"{topics[0]}/0: {sentence}." in str(state.message)
    assert topics[1] not in str(state.message)
    ((rows, summary),) = tables
    assert summary == state.message
    reasons = {row["log"]: row["reasons"] for row in rows}
    assert reasons[f"{topics[0]}/0"].startswith("event_type missing (1,000)")
    assert reasons[f"{topics[1]}/0"].startswith("not JSON (1)")
    # Nothing new: nobody is told again.
    emitted.clear()
    assert flows.drain.drain(once=True, return_state=True).is_completed()
    assert [event for event, _ in emitted] == ["custody.drain.completed"]


def in_shares(monkeypatch: pytest.MonkeyPatch, flow: str) -> list[tuple[list[dict[str, Any]], str]]:
    """Run a flow in two shares, on threads, and return the tables that it is to publish."""
    monkeypatch.setenv(f"CUSTODY_{flow}__WORKERS", "2")
    monkeypatch.setenv(f"CUSTODY_{flow}__TASK_RUNNER", "threads")
    tables: list[Any] = []
    for module in (flows.drain, flows.index):
        monkeypatch.setattr(module, "publish_table", lambda _, rows, summary: tables.append((rows, summary)))
    return tables


@pytest.mark.usefixtures("prefect_server")
def test_a_share_of_a_drain_that_fails(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts are sent about logs of the other shares. Then the run fails, and names the error and its logs."""
    tables = in_shares(monkeypatch, "DRAIN")
    results = [
        LogResult("a/0", headroom=5.0, lag=3),
        LogResult("a/2", hanging=99.0, lag=9),
        LogResult("a/4", events=10, quarantined=90),
        LogResult("a/6", unreadable=1),
        LogResult("a/8", "failed", vanished=True, problem="the topic is gone"),
    ]
    behind = [IndexResult("a/0", problem="Elasticsearch does not answer")]

    def drained(_: Any, partitions: Any, **__: Any) -> Any:
        if ("a", 1) in partitions:
            raise TransientSourceError("no answer from Kafka")
        return results, behind

    monkeypatch.setattr(flows.drain, "find_partitions", lambda _: [("a", number) for number in range(4)])
    monkeypatch.setattr("tasks.drain.task.drain_and_index", drained)
    state = flows.drain.drain(return_state=True)
    assert state.is_failed()
    assert "a/1: no answer from Kafka" in str(state.message)
    assert "a/3: no answer from Kafka" in str(state.message)
    assert [event for event, _ in emitted] == [
        "custody.drain.headroom",
        "custody.log.quarantined",
        "custody.search.behind",
        "custody.log.hanging-transaction",
        "custody.log.unreadable",
        "custody.log.vanished",
        "custody.drain.failed",
    ]
    ((rows, _),) = tables
    assert {row["log"] for row in rows if row["outcome"] == "failed"} == {"a/1", "a/3", "a/8"}
    assert len(rows) == 7


@pytest.mark.usefixtures("prefect_server")
def test_a_share_of_an_index_that_fails(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of the other logs are shown, and the run fails with the error and its logs."""
    tables = in_shares(monkeypatch, "SEARCH")

    def indexed(_: Any, logs: Any) -> list[IndexResult]:
        if "a/1" in logs:
            raise TransientStoreError("the storage does not answer")
        return [IndexResult(log, created=7) for log in logs]

    monkeypatch.setattr("tasks.search.task.logs_to_index", lambda *_: ["a/0", "a/1", "a/2"])
    monkeypatch.setattr("tasks.search.task.index_logs", indexed)
    state = flows.index.index(return_state=True)
    assert state.is_failed()
    assert "14 events of 3 logs indexed" in str(state.message)
    assert "a/1: the storage does not answer" in str(state.message)
    ((rows, _),) = tables
    assert [(row["log"], row["created"], row["problem"]) for row in rows] == [
        ("a/1", 0, "the storage does not answer"),
        ("a/0", 7, None),
        ("a/2", 7, None),
    ]
    assert [event for event, _ in emitted] == ["custody.index.failed"]


@pytest.mark.usefixtures("prefect_server")
def test_a_share_of_a_backfill_that_fails(emitted: Emitted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run says how many events the other share copied, and fails with the error. The next one copies the rest."""
    in_shares(monkeypatch, "BACKFILL")
    Growing(tmp_path).append(4)
    real, begin = copy.copy_share, datetime(2000, 1, 1, tzinfo=UTC)

    def copied(settings: Any, plan: Any, **more: Any) -> Any:
        if plan.parts[0].first > 0:
            raise TerminalStoreError("the storage refuses")
        return real(settings, plan, **more)

    parameters: Any = {"since": begin, "until": begin.replace(year=2090), "target": "folder", "folder": "out"}
    with monkeypatch.context() as patched:
        patched.setattr("tasks.backfill.task.copy_share", copied)
        state = flows.backfill.backfill(**parameters, return_state=True)
    assert state.is_failed()
    summary, problem = str(state.message).splitlines()
    assert problem == "the storage refuses"
    assert "10 of 25 events checked: 10 copied" in summary
    assert [event for event, _ in emitted] == ["custody.backfill.failed"]
    state = flows.backfill.backfill(**parameters, return_state=True)
    assert state.is_completed(), state.message
    assert "25 of 25 events checked: 15 copied" in str(state.message)


@pytest.mark.usefixtures("prefect_server")
def test_a_share_of_an_audit_that_fails(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is signed about a part of the archive: the audit fails with the error."""
    in_shares(monkeypatch, "AUDIT")

    def verified(_: Any, __: Any, pieces: Any, **___: Any) -> Any:
        if pieces:
            raise TerminalStoreError("the storage refuses")
        return []

    monkeypatch.setattr("flows.audit.shares_of", lambda pieces, _: [pieces, ()])
    monkeypatch.setattr("tasks.audit.task.verify_pieces", verified)
    state = flows.audit.audit(return_state=True)
    assert state.message == "the audit could not be done: the storage refuses"
    assert [event for event, _ in emitted] == ["custody.audit.failed"]


def test_many_logs_with_too_much_quarantine(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names three logs and counts the rest. Each has its event."""
    monkeypatch.setattr(flows.drain, "get_run_logger", logging.getLogger)
    results = [LogResult(f"a/{number}", quarantined=30) for number in range(5)]
    sentences = flows.drain._report_quarantine(results)
    assert [sentences.count(f"a/{number}") for number in range(5)] == [1, 1, 1, 0, 0]
    assert "2 more logs" in sentences
    assert len(emitted) == 5


@pytest.mark.usefixtures("prefect_server")
def test_unknown_headroom(emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose headroom is not known says so in its message and its table, and why. It does not fail for it."""
    results = [LogResult(f"a/{number}", lag=9, headroom_unknown="Kafka says no") for number in range(5)]
    report = flows.drain.RunReport((*results, LogResult("b/0", lag=9, headroom=1e6)), 1.0)
    tables: list[Any] = []
    monkeypatch.setattr(flows.drain, "_run", lambda *_: report)
    monkeypatch.setattr(flows.drain, "publish_table", lambda _, rows, summary: tables.append((rows, summary)))
    state = flows.drain.drain(return_state=True)
    assert state.is_completed()
    ((rows, summary),) = tables
    assert summary == state.message
    assert "Headroom of a/0: unknown. Kafka says no. Headroom of a/1" in summary
    assert "of 2 more logs" in summary
    assert [row["headroom"] for row in rows] == ["unknown"] * 5 + [1e6]
    assert [event for event, _ in emitted] == ["custody.drain.completed"]
    shown = Console(width=160)
    with shown.capture() as captured:
        shown.print(drain_table(report.results))
    assert captured.get().count("unknown") == 5
    assert "12 d" in captured.get()


@pytest.mark.parametrize(("headroom", "problems"), [(None, 0), (21_601.0, 0), (21_599.0, 1), (-5.0, 1)])
def test_the_limit_of_headroom(emitted: Emitted, headroom: float | None, problems: int) -> None:
    """Only a log with less headroom than the setting is a problem."""
    found = flows.drain._report_headroom([LogResult("a/0", headroom=headroom)])
    assert len(found) == len(emitted) == problems
