"""Where many partitions begin and end: as asked one by one. No harm is done by an answer that is missing, or old."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from custody.errors import SourceError, SourceRefused, TransientSourceError
from tasks.drain.bounds import Bounds, bounds_of
from tasks.drain.clients import make_admin
from tasks.drain.kafka import Broker
from tests.servers.kafka import KafkaServer
from tests.servers.mute import LIST_OFFSETS, MuteBroker
from tests.tasks.drain.sites import Site, events, make_site, send

NOT_THERE = ("topic.that.is.not.there", 0)


@pytest.fixture
def site(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return make_site(kafka, tmp_path)


@pytest.fixture
def topic(site: Site) -> str:
    """A topic of which partition 0 has an open transaction, 1 lost its first records, and 2 is empty."""
    topic = site.kafka.create_topic(site.kafka.unused_name("bounds"), 3)
    producer = site.kafka.producer()
    for partition in range(2):
        send(producer, topic, events(5, partition), partition=partition)
    site.kafka.delete_records(topic, {1: 2})
    return topic


@pytest.fixture
def open_transaction(site: Site, topic: str) -> Iterator[None]:
    producer = site.kafka.producer(transactional_id=site.kafka.unused_name("id"), linger_ms=0, acks="all")
    producer.init_transactions(30)
    producer.begin_transaction()
    send(producer, topic, events(2))
    yield
    producer.abort_transaction(30)


def asked_alone(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that gets each partition that is asked for alone from now on."""
    asked: list[tuple[str, int]] = []
    real: Any = Broker.bounds

    def bounds(self: Broker, topic: str, partition: int) -> Bounds:
        asked.append((topic, partition))
        answer: Bounds = real(self, topic, partition)
        return answer

    monkeypatch.setattr(Broker, "bounds", bounds)
    return asked


@pytest.mark.usefixtures("open_transaction")
def test_the_same_as_one_by_one(site: Site, topic: str) -> None:
    """All of a topic's partitions are answered together. One that does not exist is left out."""
    partitions = [(topic, partition) for partition in range(3)]
    with Broker(site.settings(topic).kafka.librdkafka(), site.group) as broker:
        found = broker.all_bounds([*partitions, (topic, 3), NOT_THERE], broker.cluster())
        assert found == {each: broker.bounds(*each) for each in partitions}
        assert broker.all_bounds([], broker.cluster()) == {}
    assert found == {(topic, 0): Bounds(0, 5, 7), (topic, 1): Bounds(2, 5, 5), (topic, 2): Bounds(0, 0, 0)}


def test_a_leader_that_does_not_answer_says_nothing() -> None:
    """Its partitions are left out. librdkafka returns offsets below zero for them, and no error."""
    with MuteBroker("mute", 2) as mute:
        found = bounds_of(make_admin({"bootstrap.servers": mute.bootstrap}), [("mute", 0), ("mute", 1)], 5)
        assert LIST_OFFSETS in mute.asked
    assert found == {}


@pytest.mark.parametrize("error", [SourceRefused, TransientSourceError])
def test_the_lag_is_unknown_if_kafka_does_not_say_it(
    site: Site, topic: str, monkeypatch: pytest.MonkeyPatch, error: type[SourceError]
) -> None:
    """It is not zero then. After one broker that does not answer, the run does not wait for it once more a log."""
    real: Any = Broker.all_bounds
    asked, answers = [], iter([real, lambda *_: {}])
    monkeypatch.setattr(Broker, "all_bounds", lambda *given: next(answers)(*given))

    def refuse(_: Broker, *partition: object) -> None:
        asked.append(partition)
        raise error("no answer")

    monkeypatch.setattr(Broker, "bounds", refuse)
    results = site.drain(topic)
    assert {(result.outcome, result.lag) for result in results.values()} == {("drained", None)}
    assert len(asked) == (1 if error is TransientSourceError else 3)


def test_a_run_asks_for_all_logs_together(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No partition is asked for alone, neither when logs are opened nor for what a run says at its end."""
    site.drain(topic)
    asked = asked_alone(monkeypatch)
    assert {result.lag for result in site.drain(topic).values()} == {0}
    assert asked == []


def test_without_an_answer_each_is_asked_alone(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer for all of them archives the same."""
    monkeypatch.setattr(Broker, "all_bounds", lambda *_: {})
    asked = asked_alone(monkeypatch)
    assert {(result.outcome, result.lag) for result in site.drain(topic).values()} == {("drained", 0)}
    assert {partition for _, partition in asked} == {0, 1, 2}
    assert {name: len(log.events) for name, log in site.read().items()} == {
        f"{topic}/0": 5, f"{topic}/1": 3, f"{topic}/2": 0,
    }  # fmt: skip


def test_another_writer_that_went_on_is_no_truncation(site: Site, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another run archived after Kafka was asked does not look as if the partition had been cut off."""
    site.drain(topic)
    producer, real, first = site.kafka.producer(), Broker.all_bounds, [True]

    def stale(self: Broker, partitions: Collection[tuple[str, int]], cluster: str) -> Any:
        found = real(self, partitions, cluster)
        if first:
            first.clear()
            send(producer, topic, events(4, 9))
            assert site.drain(topic)[f"{topic}/0"].events == 4
        return found

    monkeypatch.setattr(Broker, "all_bounds", stale)
    results = site.drain(topic)
    assert not first
    assert {(result.outcome, result.problem) for result in results.values()} == {("drained", None)}
    assert len(site.read()[f"{topic}/0"].events) == 9
