"""The broker that tests run against is real, shared, and can be broken by a test of its own."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message

from tests.servers.kafka import KafkaServer, KafkaUnavailableError
from tests.servers.require import unavailable


def produce(server: KafkaServer, topic: str, values: list[bytes]) -> None:
    producer = server.producer()
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def consume(server: KafkaServer, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": server.bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe([topic])
        found: list[Message] = []
        deadline = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline:
            found += [one for one in consumer.consume(100, 0.2) if one.error() is None]
        return [value for one in found if (value := one.value()) is not None]
    finally:
        consumer.close()


@pytest.mark.parametrize("worker", [1, 2])
def test_the_broker_is_shared(kafka: KafkaServer, worker: int) -> None:
    """Every process of the session uses the same broker, each test its own topics."""
    topic = kafka.create_topic(kafka.unused_name("shared"), 2, retention_ms=3_600_000)
    produce(kafka, topic, [b"%d" % worker])
    assert consume(kafka, topic, 1) == [b"%d" % worker]
    brokers = [
        process
        for process in psutil.process_iter(["pid", "cmdline"])
        if str(kafka.folder) in " ".join(process.info["cmdline"] or []) and "kafka.Kafka" in process.info["cmdline"]
    ]
    assert [process.pid for process in brokers] == [kafka.pid]


def test_deleted_records_move_the_log_start(kafka: KafkaServer) -> None:
    """Tests can delete records as retention does."""
    topic = kafka.create_topic(kafka.unused_name("deleted"))
    produce(kafka, topic, [b"x"] * 10)
    kafka.delete_records(topic, {0: 7})
    assert kafka.watermarks(topic) == (7, 10)


def test_a_topic_can_be_created_again(kafka: KafkaServer) -> None:
    """A deleted topic is gone when the helper returns, and its name is free."""
    topic = kafka.create_topic(kafka.unused_name("again"))
    produce(kafka, topic, [b"x"])
    kafka.delete_topic(topic)
    kafka.create_topic(topic, 3)
    assert kafka.watermarks(topic) == (0, 0)
    kafka.create_partitions(topic, 4)


def test_a_killed_broker_keeps_its_records(tmp_path: Path) -> None:
    """A broker that was killed with -9, or stopped, starts again with the same data on the same port."""
    try:
        with KafkaServer(tmp_path / "own", heap="256m") as server:
            topic, before = server.create_topic("own"), server.bootstrap
            produce(server, topic, [b"1", b"2"])
            server.kill()
            server.start()
            assert server.bootstrap == before
            produce(server, topic, [b"3"])
            server.stop()
            server.start()
            assert consume(server, topic, 3) == [b"1", b"2", b"3"]
    except KafkaUnavailableError as error:
        unavailable(str(error))


def test_a_truncated_partition_grows_again(tmp_path: Path) -> None:
    """A partition that lost its last batches goes on where it was cut, in a later leader epoch."""
    try:
        with KafkaServer(tmp_path / "own", heap="256m") as server:
            topic = server.create_topic("cut")
            for number in range(10):
                produce(server, topic, [b"old %d" % number])
            server.stop()
            server.truncate(topic, 6)
            server.start()
            assert server.watermarks(topic) == (0, 6)
            produce(server, topic, [b"new"])
            assert consume(server, topic, 7) == [*(b"old %d" % number for number in range(6)), b"new"]
    except KafkaUnavailableError as error:
        unavailable(str(error))


def test_no_broker_outlives_its_owner(tmp_path: Path) -> None:
    """A broker whose owner was killed with -9 ends, and its folder goes."""
    program = (
        "import sys, time; from pathlib import Path; from tests.servers.kafka import KafkaServer\n"
        "server = KafkaServer(Path(sys.argv[1]), '256m'); server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    folder = tmp_path / "orphan"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as owner:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        owner.kill()
    if not line:
        unavailable("Kafka did not start in a child process")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (folder.exists() or psutil.pid_exists(int(line))):
        time.sleep(0.2)
    assert not folder.exists()
    assert not psutil.pid_exists(int(line)) or psutil.Process(int(line)).status() == psutil.STATUS_ZOMBIE
