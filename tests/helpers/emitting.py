"""Writers whose sink is in memory, and what became of each number that a source gave."""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from custody.emit.builders import AuditEvent, own
from custody.emit.quiet import QuietLog
from custody.emit.sink import Outcome, Report, Sink
from custody.emit.spool import Spool
from custody.emit.spool_segment import parse
from custody.emit.writer import Options, QueuedWriter
from tests.helpers.spooling import drain
from tests.servers.kafka import KafkaServer

WAIT_SECONDS = 20.0
_DESTINATION = re.compile(r"[A-Za-z0-9]+-[0-9a-f]{16}")


class MemorySink:
    """A sink that delivers at once, or does as it is told.

    Attributes:
        outcome: what it reports of each line.
        away: whether it takes nothing.
        silent: whether it reports nothing before `close`, which reports `failed`.
        mute: whether it never reports what it has taken.
        delivered: what it has.
        sizes: how many lines came with each call.
    """

    def __init__(self) -> None:
        self.outcome: Callable[[bytes], Outcome] = lambda _: "delivered"
        self.away = self.silent = self.mute = self.closed = False
        self.delivered: list[bytes] = []
        self.sizes: list[int] = []
        self.on_the_way: deque[tuple[bytes, Report]] = deque()

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        if self.away:
            return 0
        self.sizes.append(len(lines))
        self.on_the_way.extend((line, report) for line in lines)
        return len(lines)

    def poll(self, seconds: float) -> None:
        if self.silent or self.mute:
            time.sleep(min(seconds, 0.001))
            return
        while self.on_the_way:
            line, report = self.on_the_way.popleft()
            outcome = self.outcome(line)
            if outcome == "delivered":
                self.delivered.append(line)
            report(line, outcome)

    def close(self, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        self.closed = True
        while self.on_the_way and not self.mute:
            line, report = self.on_the_way.popleft()
            report(line, "failed")


class MemoryWriter(QueuedWriter):
    """A writer to a sink in memory."""

    kind = "Kafka"

    def __init__(self, options: Options, sink: Sink | None = None, destination: str = "memory") -> None:
        self.sink = MemorySink()
        self._sink = sink or self.sink
        super().__init__(options, destination)

    def open_sink(self, quiet: QuietLog) -> Sink:  # noqa: ARG002 - the interface's
        return self._sink


def event(n: int, size: int = 0) -> AuditEvent:
    """Return an own event with a number of the test's, and about so many bytes more."""
    return own("test.event", n=n, fill="x" * size)


def numbered(count: int, first: int = 1) -> list[bytes]:
    """Return lines as a worker numbers them."""
    return [b'{"n":%d,"source":"s/i/1-1","source_seq":%d}' % (n, n) for n in range(first, first + count)]


def sequence(lines: Iterable[bytes]) -> list[int]:
    """Return the numbers of lines."""
    return [json.loads(line)["source_seq"] for line in lines]


def contents(lines: Iterable[bytes]) -> dict[int, bytes]:
    """Return each number's line. Two different lines with one number are an error."""
    known: dict[int, bytes] = {}
    for line in lines:
        n = json.loads(line)["source_seq"]
        assert known.setdefault(n, line) == line, f"two events have the number {n}"
    return known


def left_in(root: Path) -> list[bytes]:
    """Return what the next process finds in a spool, or in those of a writer's folder, and take it out."""
    lines: list[bytes] = []
    for folder in _spools(root):
        with Spool(folder, 1 << 30) as spool:
            lines += drain(spool)
    return lines


def _spools(root: Path) -> list[Path]:
    """Return the folders of destinations below a writer's folder, or the folder itself if it is a spool's."""
    return [path for path in sorted(root.iterdir()) if _DESTINATION.fullmatch(path.name)] or [root]


def put_aside(root: Path) -> list[bytes]:
    """Return the lines in `bad/`."""
    files = sorted(path for folder in _spools(root) for path in (folder / "bad").glob("*"))
    return [line for path in files for line in parse(path.read_bytes()).lines]


def wait_until(true: Callable[[], object], reason: str = "it to become true") -> None:
    """Return when something is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {WAIT_SECONDS} s for {reason}")
        time.sleep(0.005)


def consume(kafka: KafkaServer, topic: str) -> list[bytes]:
    """Return all that a topic of one partition has."""
    start, end = kafka.watermarks(topic)
    if start == end:
        return []
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": topic, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, start)])
    lines: list[bytes] = []
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while time.monotonic() < deadline:
            records = consumer.consume(10_000, 0.2)
            lines += [value for record in records if record.error() is None and (value := record.value()) is not None]
            if consumer.position([TopicPartition(topic, 0)])[0].offset >= end:
                return lines
    finally:
        consumer.close()
    raise AssertionError(f"topic {topic} was not read to {end} within {WAIT_SECONDS} s")
