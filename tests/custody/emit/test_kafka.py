"""A writer to a real Kafka: what it delivers, what it refuses, and what it does while the broker is away."""

import json
import os
import random
import signal
import statistics
import string
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from custody.emit import delivery as delivery_module
from custody.emit import kafka as kafka_module
from custody.emit import writer as writer_module
from custody.emit.builders import own
from custody.emit.encode import RESERVED, encode
from custody.emit.errors import AuditError
from custody.emit.kafka import KafkaSink, KafkaWriter
from custody.emit.quiet import QuietLog
from custody.emit.redact import Redaction
from custody.emit.sink import Outcome
from custody.emit.worker import Left
from custody.emit.writer import Options
from custody.format.limits import EVENT_BYTES
from tests.helpers.emitting import consume, contents, event, left_in, numbered, put_aside, sequence, wait_until
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports


def options(root: Path | None = None, **more: object) -> Options:
    spool = None if root is None else root / "spool"
    return Options(service="shop", instance="web-1", spool=spool, **more)  # type: ignore[arg-type]


def noise(size: int) -> str:
    """Return letters that do not compress well."""
    return "".join(random.Random(size).choices(string.ascii_letters + " ", k=size))


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


def test_events_arrive_in_order_also_the_largest_one(kafka: KafkaServer, tmp_path: Path) -> None:
    """An event that `encode` accepts is not too large for librdkafka, whose own limit is lower."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    largest = own("test.event", fill="")
    room = EVENT_BYTES - RESERVED - len(encode(largest, Redaction()))
    with KafkaWriter(topic, {"bootstrap.servers": kafka.bootstrap}, options(tmp_path)) as writer:
        for n in range(500):
            writer.write(event(n))
        writer.write(own("test.event", fill="word " * (room // 5)))
        assert writer.flush(20) == 0
        source = writer.source
    lines = consume(kafka, topic)
    assert sequence(lines) == [*range(1, 504)]
    assert {json.loads(line)["source"] for line in lines} == {source}
    assert max(map(len, lines)) > 1_000_000
    assert list((tmp_path / "spool").glob("*/*")) == []


def test_a_batch_that_is_too_large_for_the_topic_takes_no_small_event_with_it(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    """The broker refuses whole batches. What is too large alone is kept in `bad/`, and the others arrive."""
    topic = kafka.create_topic(kafka.unused_name("emit"), max_message_bytes=20_000)
    with KafkaWriter(topic, {"bootstrap.servers": kafka.bootstrap}, options(tmp_path)) as writer:
        for n in range(200):
            writer.write(event(n, 300))
            if n == 100:
                writer.write(own("test.event", fill=noise(40_000)))
        assert writer.flush(20) == 0
        assert writer.counters()["refused"] == 1
    known = contents(consume(kafka, topic))
    (refused,) = put_aside(tmp_path / "spool")
    assert known.keys() | {*sequence([refused])} == {*range(1, 204)}
    assert len(refused) > 40_000


@pytest.mark.parametrize("no_thread", [False, True])
def test_a_batch_that_is_refused_at_the_end_is_not_lost(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, *, no_thread: bool
) -> None:
    """Its events are sent alone before the sink closes. If they cannot be, they are given back, for the spool."""
    topic = kafka.create_topic(kafka.unused_name("emit"), max_message_bytes=5_000)
    sink = KafkaSink(topic, {"bootstrap.servers": kafka.bootstrap}, QuietLog())
    lines = [b'{"fill":"%b",%b' % (noise(500 + n).encode(), line[1:]) for n, line in enumerate(numbered(40))]
    reports: list[tuple[bytes, Outcome]] = []
    assert sink.send(lines, lambda line, outcome: reports.append((line, outcome))) == 40
    if no_thread:

        def refuse(*_: object) -> None:
            raise AuditError("Kafka", "no thread")

        monkeypatch.setattr(kafka_module, "_make", refuse)
        with pytest.raises(AuditError, match="no thread"):
            sink.close(20)
    else:
        sink.close(20)
    assert sorted(reports) == sorted((line, "failed" if no_thread else "delivered") for line in lines)
    assert consume(kafka, topic) == ([] if no_thread else lines)


def test_properties_that_librdkafka_refuses_are_refused_at_once_and_not_shown(tmp_path: Path) -> None:
    """A value may be a password."""
    before = len(writer_module._writers)
    with pytest.raises(AuditError) as caught:
        KafkaWriter(
            "audit",
            {"bootstrap.servers": "127.0.0.1:1", "acks": "top secret", "no.such": "secret"},
            options(tmp_path / "spool"),
        )
    assert not (tmp_path / "spool").exists()
    assert len(writer_module._writers) == before, "nothing keeps what it was given"
    assert caught.value.kind == "Kafka"
    assert "secret" not in f"{caught.value!r}{caught.getrepr(chain=True)}".replace('"secret"', "").replace(
        '"top secret"', ""
    )


def test_idempotence_is_not_the_applications_to_switch_off(kafka: KafkaServer) -> None:
    """Neither `acks` nor idempotence: with less, events would be lost or doubled without a word."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    client = {"bootstrap.servers": kafka.bootstrap, "acks": "0", "enable.idempotence": False}
    with KafkaWriter(topic, client, options()) as writer:
        writer.write(event(1))
        assert writer.flush(20) == 0
    assert sequence(consume(kafka, topic)) == [1, 2, 3]


class _Fatal:
    """An error as librdkafka reports it when a producer cannot go on. None can be brought about from outside."""

    def fatal(self) -> bool:
        return True

    def code(self) -> int:
        return int(KafkaError._FATAL)

    def str(self) -> str:
        return "out of order"


def test_a_producer_that_cannot_go_on_is_replaced_and_gives_back_what_it_had(kafka: KafkaServer, nowhere: str) -> None:
    """Each line is reported once. Those that come back are older than the next ones, so none is taken before."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    client: dict[str, object] = {"bootstrap.servers": nowhere}
    sink = KafkaSink(topic, client, QuietLog())
    reports: list[tuple[bytes, Outcome]] = []
    report = lambda line, outcome: reports.append((line, outcome))  # noqa: E731
    assert sink.send(numbered(5), report) == 5
    sink._fatal(_Fatal())  # type: ignore[arg-type]
    client["bootstrap.servers"] = kafka.bootstrap
    assert sink.send(numbered(5, 6), report) == 0
    assert sorted(reports) == [(line, "failed") for line in numbered(5)]
    reports.clear()
    assert sink.send(numbered(10), report) == 10
    sink.close(20)
    assert reports == [(line, "delivered") for line in numbered(10)]
    assert consume(kafka, topic) == numbered(10)


def test_trap_7_what_times_out_and_what_is_purged_is_spooled_once(
    nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Librdkafka gives records back with their value. No line is lost, and none is in the spool twice."""
    monkeypatch.setattr(delivery_module, "RETRY_SECONDS", 60.0)
    client = {"bootstrap.servers": nowhere, "message.timeout.ms": 300}
    writer = KafkaWriter("audit", client, options(tmp_path))
    for n in range(100):
        writer.write(event(n))
    wait_until(lambda: writer.counters()["spooled"] == 101)
    counters = writer.counters()
    assert (counters["spool_events"], counters["in_flight"]) == (101, 0)
    # Lines that are with librdkafka when it is closed come back by a purge.
    monkeypatch.setattr(delivery_module, "RETRY_SECONDS", 0.0)
    assert writer.close(0.1) == Left(102, 0)
    assert sequence(left_in(tmp_path / "spool")) == [*range(1, 103)]


def test_what_we_take_back_ourselves_is_no_warning(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is spooled then, or counted as lost: whoever reads that it was purged would look for a loss."""
    sink = KafkaSink("audit", {"bootstrap.servers": nowhere}, QuietLog())
    outcomes: list[str] = []
    assert sink.send(numbered(3), lambda _, outcome: outcomes.append(outcome)) == 3
    sink.close(0)
    assert outcomes == ["failed"] * 3
    assert [record.getMessage() for record in caplog.records if "did not take" in record.getMessage()] == []


def test_a_broker_that_dies_and_comes_back_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is missing, a repeat has equal bytes, and only what librdkafka gave back is out of order.

    Nor if it hangs when the writer is closed, which takes no longer then. Takes longer than other tests: a broker of
    its own starts twice.
    """
    monkeypatch.setattr(delivery_module, "SLOW_SECONDS", 0.2)
    with KafkaServer(tmp_path / "kafka") as server:
        topic = server.create_topic("audit")
        client = {"bootstrap.servers": server.bootstrap, "message.timeout.ms": 1500, "reconnect.backoff.max.ms": 500}
        writer = KafkaWriter(topic, client, options(tmp_path))
        for n in range(300):
            writer.write(event(n))
        assert writer.flush(20) == 0
        server.kill()
        for n in range(300, 900):
            writer.write(event(n))
        wait_until(lambda: writer.counters()["spool_events"] >= 600)
        for n in range(900, 1000):
            writer.write(event(n))
        assert writer.counters()["delivered"] == 301
        server.start()
        for n in range(1000, 1100):
            writer.write(event(n))
        assert writer.flush(60) == 0
        assert writer.counters()["replayed"] >= 700
        assert writer.flush(20) == 0
        os.kill(server.pid, signal.SIGSTOP)
        for n in range(1100, 1150):
            writer.write(event(n))
        # On a slow machine they are in the spool by now.
        wait_until(lambda: 50 in map(writer.counters().get, ("in_flight", "spool_events")))
        time.sleep(0.1)
        begun = time.monotonic()
        assert writer.close(0.2) == Left(51, 0)
        assert time.monotonic() - begun < 0.2 + 3
        os.kill(server.pid, signal.SIGCONT)
        with KafkaWriter(topic, client, Options(service="next", spool=tmp_path / "spool")) as heir:
            heir.write(event(-1))
            wait_until(lambda: heir.counters()["replayed"] >= 51 and not heir.flush(0))
        lines = [line for line in consume(server, topic) if b'"source":"shop/' in line]
    known = contents(lines)
    assert [*sorted(known)] == [*range(1, 1153)]
    first = [*dict.fromkeys(sequence(lines))]
    late = [number for index, number in enumerate(first) if number < max(first[:index], default=0)]
    assert len(late) <= writer.counters()["failed"]
    assert [json.loads(known[n])["n"] for n in range(2, 1152)] == [*range(1150)]
    assert [path.name for path in (tmp_path / "spool").glob("*/*")] == []


def _processor_time(call: Callable[[], None]) -> float:
    """Return the median of this thread's processor time for a call, in seconds."""
    times = []
    for _ in range(1500):
        begun = time.thread_time_ns()
        call()
        times.append(time.thread_time_ns() - begun)
    return statistics.median(times) / 1e9


def test_trap_6_a_dead_broker_and_a_full_queue_cost_a_request_nothing(
    kafka: KafkaServer, nowhere: str, tmp_path: Path
) -> None:
    """`submit` takes the same processor time, the broker up or down, and the spool grows meanwhile."""
    topic = kafka.create_topic(kafka.unused_name("emit"))
    line = encode(event(1), Redaction())
    made = [event(1)]
    up = KafkaWriter(topic, {"bootstrap.servers": kafka.bootstrap}, options(tmp_path))
    small = {"bootstrap.servers": nowhere, "queue.buffering.max.messages": 1000}
    down = KafkaWriter(topic, small, options(tmp_path, close_seconds=0.1))
    for writer in (up, down):
        writer.write(line)
    ratios = []
    for _ in range(3):
        submits = [_processor_time(partial(writer.submit, lambda: made, 100)) for writer in (up, down)]
        writes = [_processor_time(partial(writer.write, line)) for writer in (up, down)]
        ratios.append(max(submits[1] / submits[0], writes[1] / writes[0]))
    assert min(ratios) < 2
    wait_until(lambda: down.counters()["spool_events"] > 5000)
    assert down.counters()["in_flight"] <= 1000
    assert up.close(20) == Left(0, 0)
    written = down.counters()["written"]
    left = down.close(0.1)
    assert (left.spooled, left.lost) == (written + 2, 0)


def test_librdkafkas_lines_are_logged_once_a_minute(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away does not fill the application's log."""
    writer = KafkaWriter(
        "audit", {"bootstrap.servers": nowhere, "reconnect.backoff.ms": 5, "reconnect.backoff.max.ms": 10}, options()
    )
    writer.write(event(1))
    wait_until(lambda: caplog.records)
    time.sleep(0.1)
    assert writer.close(0.05).lost == 3
    messages = [record.message.partition(":")[0] for record in caplog.records if "librdkafka" in record.message]
    assert 1 <= len(messages) <= 4
    assert kafka_module.DELIVERY_SECONDS <= 10
