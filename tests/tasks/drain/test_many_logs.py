"""A process with many logs: what a read or a statement costs does not grow with the logs beside it."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from custody.errors import SourceError
from custody.format.layout import parse_log_text
from custody.tlog.head import KnownHead
from custody.verify.chains import alone
from tasks.drain import loop
from tasks.drain.intake import Intake
from tasks.drain.kafka import Broker, Feed, Received
from tasks.drain.loop import Loop
from tasks.drain.resume import find_epochs, newest_epoch
from tasks.drain.topic_ids import TopicIds
from tests.helpers.growth import check_growth
from tests.servers.kafka import KafkaServer
from tests.tasks.drain.sites import Site, archived, events, make_site, send, until

LOGS = 24
EVENTS = 100
"""In each log."""
READ = 8
"""Records in one read: enough reads, with few events."""


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return make_site(kafka, tmp_path)


@dataclass
class Backlog:
    """A topic that is full, and what an archive must hold of each log."""

    topic: str
    expected: dict[str, list[tuple[int, bytes]]]


@pytest.fixture
def backlog(site: Site) -> Iterator[Backlog]:
    topic = site.kafka.create_topic(site.kafka.unused_name("many"), LOGS)
    producer = site.kafka.producer(linger_ms=50)
    sent = [send(producer, topic, events(EVENTS, seed), partition=seed) for seed in range(LOGS)]
    yield Backlog(topic, {f"{topic}/{number}": archived(of_log) for number, of_log in enumerate(sent)})
    # The broker of all tests needs memory for each partition.
    site.kafka.delete_topic(topic)


def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: Counter[str]) -> None:
    """Count calls of a method."""
    real = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[name] += 1
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


def test_reads_do_not_look_at_all_logs(site: Site, backlog: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    """While records wait, a read costs nothing for the logs that it has none of. All logs are archived nevertheless."""
    topic, expected = backlog.topic, backlog.expected
    full = Counter[bool]()
    real = Feed.read

    def read(self: Feed, records: int, seconds: float) -> list[Received]:
        messages = real(self, records, seconds)
        full[len(messages) == records] += 1
        return messages

    looks = Counter[str]()
    counting(monkeypatch, Loop, "_cut_what_is_due", looks)
    monkeypatch.setattr(Feed, "read", read)
    monkeypatch.setattr(loop, "READ_RECORDS", READ)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 3600)
    results = site.drain(topic)
    assert {name: result.events for name, result in results.items()} == dict.fromkeys(expected, EVENTS)
    assert full[True] > LOGS * EVENTS / READ / 2
    assert looks["_cut_what_is_due"] <= full[False] + 1
    assert {name: log.events for name, log in site.read().items()} == expected


def test_memory_of_all_logs_between_looks(site: Site, backlog: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all logs hold together stays within the limit, and one read, also where the next look is far away."""
    topic, expected = backlog.topic, backlog.expected
    limit, most = 100_000, 0
    calls = Counter[str]()
    counting(monkeypatch, Loop, "_cut_what_is_due", calls)
    counting(monkeypatch, Feed, "read", calls)
    real = Intake.receive

    def receive(self: Intake, run: Any, messages: Any, feed: Feed) -> None:
        nonlocal most
        real(self, run, messages, feed)
        most = max(most, sum(each.assembler.held_bytes for each in self._appends._runs))

    monkeypatch.setattr(Intake, "receive", receive)
    monkeypatch.setattr(loop, "held_bytes", lambda _: limit)
    monkeypatch.setattr(loop, "READ_RECORDS", READ)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 3600)
    site.drain(topic)
    whole = sum(len(value) for log in expected.values() for _, value in log)
    assert limit / 2 < most < limit + READ * 1000 < whole
    assert calls["_cut_what_is_due"] < calls["read"] / 2
    assert {name: log.events for name, log in site.read().items()} == expected


def test_logs_share_what_kafka_says_of_their_topic(
    site: Site, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer about a topic names each of its partitions: it is asked for a few times, and not for each statement."""
    topic, expected = backlog.topic, backlog.expected
    asked = Counter[str]()
    counting(monkeypatch, Broker, "topic_id", asked)
    results = site.drain(topic)
    assert sum(result.statements for result in results.values()) >= LOGS
    assert 0 < asked["topic_id"] < LOGS / 4
    assert {name: log.events for name, log in site.read().items()} == expected


def named(size: int) -> bytes:
    """Return names of logs, some of later epochs, of about a size together."""
    number = size // len("audit/1000")
    return b"\n".join(b"audit%s/%d" % (b"" if log % 10 else b"@2", log) for log in range(number))


def test_finding_epochs_takes_time_by_the_logs() -> None:
    """The newest epoch of each partition is found among all logs once, and not again for each of them."""

    def check(names: bytes) -> None:
        logs = [log for name in names.decode().split("\n") if (log := parse_log_text(name)) is not None]
        known = {str(log): (KnownHead(1, None, "a test"),) for log in logs}
        trust: Any = SimpleNamespace(heads={})
        epochs = find_epochs(logs, known, trust)
        context: Any = None
        for log in logs:
            assert newest_epoch(context, epochs, (log.topic, log.partition)) == log
        assert len(alone(logs)) == len(logs)

    check_growth(check, named)


class Asked:
    """Answers with a number that grows, and can be held up."""

    def __init__(self) -> None:
        self.times = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, topic: str) -> str:
        self.times += 1
        number = self.times
        assert self.may_answer.wait(60)
        return f"{topic} {number}"


def test_an_answer_is_of_after_the_records() -> None:
    """An id that was asked for before records came says nothing of them: then it is asked for again."""
    asked = Asked()
    ids = TopicIds(asked)
    came = time.monotonic()
    assert ids.of("a", came) == "a 1"
    assert ids.of("a", came) == "a 1"
    assert ids.of("b", came) == "b 2"
    later = time.monotonic()
    assert ids.of("a", later) == "a 3"
    assert ids.of("a", came) == "a 3"
    assert asked.times == 3


def test_threads_share_one_answer() -> None:
    """Who needs an answer that another thread waits for waits for the same."""
    asked = Asked()
    ids = TopicIds(asked)
    came = time.monotonic()
    asked.may_answer.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ids.of, "a", came) for _ in range(6)]
        until(lambda: asked.times)
        asked.may_answer.set()
        assert [answer.result(60) for answer in waiting] == ["a 1"] * 6
    assert asked.times == 1


def test_a_refusal_is_not_kept() -> None:
    """After an error it is asked again, also for records that came before the error."""
    is_gone = True

    def ask(_: str) -> str:
        if is_gone:
            raise SourceError("gone")
        return "id"

    ids = TopicIds(ask)
    came = time.monotonic()
    with pytest.raises(SourceError, match="gone"):
        ids.of("a", came)
    is_gone = False
    assert ids.of("a", came) == "id"


def test_a_topic_that_becomes_another_between_two_statements(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of before the records is not used for them: the log ends with the statement before."""
    topic = site.kafka.create_topic(site.kafka.unused_name("swapped"), 2)
    sent = [send(site.kafka.producer(), topic, events(400, 2 + number), partition=number) for number in range(2)]
    site.drain(topic)
    sent[0] += send(site.kafka.producer(), topic, events(400, 4))
    real, answers = Broker.topic_id, 0

    def topic_id(self: Broker, name: str, cluster: str) -> str | None:
        nonlocal answers
        answers += 1
        return real(self, name, cluster) if answers == 1 else "another"

    monkeypatch.setattr(Broker, "topic_id", topic_id)
    monkeypatch.setattr(loop, "READ_RECORDS", READ)
    result = site.drain(topic, segment_bytes=20_000)[f"{topic}/0"]
    assert "the topic was deleted and created again during this run" in str(result.problem)
    assert 0 < result.events < 400
    monkeypatch.undo()
    found = site.read()
    assert found[f"{topic}/0"].events == archived(sent[0])[: 400 + result.events]
    assert found[f"{topic}/1"].events == archived(sent[1])
