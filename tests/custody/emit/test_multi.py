"""One event to several backends: the error names those that have it, and a repeat has the same id."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from elasticsearch import Elasticsearch

from custody.emit.async_writer import AsyncWriter
from custody.emit.builders import AuditEvent, own
from custody.emit.elasticsearch import ElasticsearchWriter
from custody.emit.errors import AuditError
from custody.emit.kafka import KafkaWriter
from custody.emit.multi import MultiWriter
from custody.emit.outlet import Counts, ReservingOutlet
from custody.emit.queue import Limits
from custody.emit.quiet import QuietLog
from custody.emit.receive import receiver
from custody.emit.worker import Left
from custody.emit.writer import Options
from custody.errors import ConfigurationError
from tests.helpers.emitting import MemoryWriter
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer

MOCK = {"test.mock.num.brokers": 1}
"""librdkafka's own broker, in its memory."""
FULL = Limits(events=0)


def mock_writer(*, full: bool = False, spool: Path | None = None) -> KafkaWriter:
    queue = FULL if full else Limits()
    return KafkaWriter("audit", MOCK, Options(service="shop", on_full="fail", queue=queue, spool=spool))


def paid() -> AuditEvent:
    return own("order.paid", number=1)


def test_each_backend_gets_each_event(kafka: KafkaServer, elastic: ElasticsearchServer, tmp_path: Path) -> None:
    """An event has the same id in all of them, and each numbers its own events."""
    topic, index = kafka.create_topic(kafka.unused_name("multi")), f"{elastic.unused_prefix()}-multi"
    options = [Options(service="shop", spool=tmp_path / name) for name in ("k", "e")]
    writers = {
        "kafka": KafkaWriter(topic, {"bootstrap.servers": kafka.bootstrap}, options[0]),
        "search": ElasticsearchWriter(index, {"hosts": elastic.url}, options[1]),
    }
    with MultiWriter(writers) as writer:
        event = paid()
        writer.write(event)
        writer.submit(lambda: [own("order.sent")], 100)
        assert writer.flush(30) == 0
        assert writer.counters()["written"] == 4
        assert {name: inner.counters()["delivered"] for name, inner in writers.items()} == {"kafka": 3, "search": 3}
    assert writer.close() == Left(0, 0)
    with Elasticsearch(elastic.url) as client:
        client.indices.refresh(index=index)
        hits = [hit["_source"] for hit in client.search(index=index, size=100)["hits"]["hits"]]
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": topic})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records = [json.loads(message.value() or b"") for message in consumer.consume(4, 30)]
    consumer.close()
    ids = [sorted(each["event_id"] for each in have if "order" in each["event_type"]) for have in (records, hits)]
    assert ids[0] == ids[1]
    assert event.fields["event_id"] in ids[0]
    assert sorted(each["source_seq"] for each in records) == sorted(each["source_seq"] for each in hits) == [1, 2, 3, 4]


def test_the_error_names_who_has_the_event() -> None:
    """The first that does not take it ends the write: those before have it, those behind do not."""
    first, last = mock_writer(), mock_writer()
    with MultiWriter({"first": first, "full": mock_writer(full=True), "last": last}) as writer:
        gives: list[Callable[[], None]] = [
            lambda: writer.write(paid()),
            lambda: writer.submit(lambda: [paid()], 10),
        ]
        for give in gives:
            with pytest.raises(AuditError) as caught:
                give()
            assert (caught.value.kind, caught.value.accepted) == ("Kafka", ("first",))
            assert str(caught.value).startswith("full: the queue is full")
            assert "first took it" in str(caught.value)
        with MultiWriter({"outer": writer}) as outer, pytest.raises(AuditError) as caught:
            outer.write(paid())
        assert caught.value.accepted == ("first",)
        assert (first.counters()["written"], last.counters()["written"]) == (3, 0)


def test_an_event_that_is_not_valid_is_nowhere() -> None:
    """It is refused before the first backend takes it."""
    with MultiWriter({"first": mock_writer(), "second": mock_writer()}) as writer:
        with pytest.raises(AuditError) as caught:
            writer.write(AuditEvent("auth_attempt", {"event_type": "auth_attempt"}))
        assert (caught.value.kind, caught.value.accepted, writer.counters()["written"]) == ("Serialization", (), 0)


def test_events_are_made_once_for_all() -> None:
    """What a request's function makes, or raises, is made once: a second call would give other ids."""
    made: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def together() -> list[AuditEvent]:
        both.wait()
        return []

    def build() -> list[AuditEvent]:
        made.append(1)
        return [paid()]

    def broken() -> list[AuditEvent]:
        made.append(1)
        raise ValueError("the request is gone")

    with MultiWriter({"first": mock_writer(), "second": mock_writer()}) as writer:
        for inner in writer.writers.values():
            inner.submit(together, 1)
        writer.submit(build, 10)
        writer.submit(broken, 10)
        assert writer.flush(10) == 0
        assert writer.counters()["refused"] == 2
        assert len(made) == 2


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_each_writer_gets_what_was_made_before_an_error(error: type[BaseException]) -> None:
    """The rest is refused by each, as by a writer that is alone."""
    writers = {name: MemoryWriter(Options(service="shop")) for name in "ab"}
    both = [paid(), paid()]

    def build() -> Iterator[AuditEvent]:
        yield from both
        raise error

    with MultiWriter(writers) as writer:
        writer.submit(build, 100)
        assert writer.flush(10) == 0
        assert writer.counters()["refused"] == 2
    for inner in writers.values():
        have = [json.loads(line)["event_id"] for line in inner.sink.delivered if b"order.paid" in line]
        assert have == [each.fields["event_id"] for each in both]


def test_the_end_of_what_was_admitted_keeps_its_place() -> None:
    """What comes before, such as a server's acknowledgement, does not spend it."""
    writer = MemoryWriter(Options(service="shop", queue=Limits(events=2)))
    counts = Counts()
    outlet = ReservingOutlet(writer, counts, QuietLog())
    assert outlet.may_begin()
    assert writer.reserve()
    assert not outlet.put(lambda: [paid()], 100)
    writer.release()
    assert outlet.may_begin()
    assert outlet.put(lambda: [paid()], 100), "a message's own place is spent at once"
    assert writer.flush(10) == 0
    assert writer.reserve()
    assert not writer.reserve()
    outlet.put_last(lambda: [paid()], 100)
    assert counts.unaudited == 0
    assert writer.flush(10) == 0
    assert writer.reserve()
    writer.close(5)
    assert sum(b"order.paid" in line for line in writer.sink.delivered) == 2


def test_a_place_is_kept_in_all_queues_or_in_none() -> None:
    """`reserve` of which one part fails keeps nothing."""
    first = KafkaWriter("audit", MOCK, Options(service="shop", on_full="fail", queue=Limits(events=1)))
    with MultiWriter({"first": first, "full": mock_writer(full=True)}) as writer:
        assert not writer.reserve()
        assert first.reserve(), "the place was given back"
        writer.release()
        writer.drop(3)
        assert writer.counters()["dropped"] == 6
    with MultiWriter({"first": mock_writer(), "second": mock_writer()}) as writer:
        assert writer.reserve()
        writer.submit(lambda: [paid()], 10, reserved=True)
        assert writer.flush(10) == 0


def test_writers_with_one_spool_are_refused(tmp_path: Path) -> None:
    """Each would send to its backend what the other one left; and nothing is no writer."""
    with pytest.raises(ConfigurationError, match="a and b have the same spool"):
        MultiWriter({"a": mock_writer(spool=tmp_path), "b": mock_writer(spool=tmp_path)})
    with pytest.raises(ConfigurationError, match="at least one"):
        MultiWriter({})


def memory_writer(*, full: bool = False) -> MemoryWriter:
    return MemoryWriter(Options(service="shop", wait_seconds=0.02, queue=FULL if full else Limits()))


def test_several_writers_are_written_to_by_coroutines_too() -> None:
    """The error names who has the event."""
    first = memory_writer()

    async def write() -> None:
        async with AsyncWriter(MultiWriter({"first": first})) as writer:
            await writer.write(paid())
        async with AsyncWriter(MultiWriter({"other": memory_writer(), "full": memory_writer(full=True)})) as writer:
            with pytest.raises(AuditError, match="full: the queue is full") as caught:
                await writer.write(paid())
            assert caught.value.accepted == ("other",)

    asyncio.run(write())
    assert len(first.sink.delivered) == 3


def test_a_receiver_writes_to_several() -> None:
    """What a server posts is in each of them, or is refused with its reason."""
    writers = {"first": memory_writer(), "second": memory_writer()}
    app = receiver(MultiWriter(writers), token="0123456789abcdef")
    body = json.dumps([{"event_type": "login"}, {"no": "event"}]).encode()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer 0123456789abcdef")]
    asyncio.run(app({"type": "http", "method": "POST", "headers": headers}, receive, send))
    assert sent[0]["status"] == 202
    for writer in writers.values():
        writer.close(5)
        assert len(writer.sink.delivered) == 3
        assert writer.counters()["refused"] == 1


def test_one_of_several_that_was_closed_meanwhile_takes_nothing_from_the_others() -> None:
    """The others have the request's event: it is dropped for the closed one alone, and all places are given back."""
    writers = {name: MemoryWriter(Options(service="shop", queue=Limits(events=1))) for name in "abc"}
    for writer in writers.values():
        writer.sink.away = True
    counts = Counts()
    outlet = ReservingOutlet(MultiWriter(writers), counts, QuietLog())
    assert outlet.may_begin()
    writers["b"].close(0)
    outlet.put_last(lambda: [paid()], 100)
    assert [writer.counters()["dropped"] for writer in writers.values()] == [0, 1, 0]
    assert counts.unaudited == 0
    for name in "ac":
        writers[name].sink.away = False
        assert writers[name].flush(10) == 0
        assert writers[name].reserve()
        writers[name].close(5)
        assert sum(b"order.paid" in line for line in writers[name].sink.delivered) == 1
