"""Reads records apart: in a process of its own, with larger limits than the drain's, and with bounded memory and time.

A small record can inflate to more than librdkafka takes (`receive.message.max.bytes`). Then the drain reads it here.
The process hands back events as they are. Of any other record it hands back the line of the quarantine object, which
is at most 16 MiB. So however large a record is, the drain does not hold it.

Run as `python -m tasks.drain.apart`, with a task on stdin. It answers with frames on stdout: records, and `Ended` last.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec
from confluent_kafka import KafkaError
from confluent_kafka import TopicPartition as Position

from custody.archive.assemble import RecordApart, quarantine_line
from custody.format import limits
from custody.format.events import reason
from tasks.drain.batch_end import ONE_BATCH, response_size
from tasks.drain.kafka import DAMAGED, OFFSET_OUT_OF_RANGE, PARTITION_EOF, Feed
from tasks.drain.signals import stop_requested
from tasks.drain.truncation import LOG_TRUNCATION

INFLATED_BYTES = 1024 * limits.MIB
"""The largest batch that is read apart, as stored and inflated."""
MEMORY_BYTES = 3 * INFLATED_BYTES
"""Address space of the process: the batch, a copy of one record, and the program."""
SECONDS = 30
"""The process ends after this time, whatever it is doing."""
ENOUGH_SECONDS = 3
"""It reads on for this time after its first record, because a batch that is too large is seldom alone."""
ATTEMPTS = 3
"""Processes that must die of one batch, before it counts as one that cannot be read."""
TOGETHER_BYTES = 4 * limits.MIB
"""Records are handed to the drain in lists of about this size."""

_CLIENT = {**ONE_BATCH, "receive.message.max.bytes": str(INFLATED_BYTES)}
_TOO_LARGE = f"reading it takes more than {MEMORY_BYTES // limits.MIB:,} MiB of memory"
_FRAME_HEAD = 4
_DEATHS: dict[int, str] = {
    # librdkafka got no memory.
    **dict.fromkeys((signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS), _TOO_LARGE),
    signal.SIGKILL: "the processes that read it were killed, as a machine with too little memory does",
    signal.SIGALRM: f"reading it takes more than {SECONDS} s",
}
"""Why a batch counts as one that cannot be read, by the signal that ended the process. Those of a stop are not here."""
_ENVIRONMENT = re.compile(
    r"PATH|HOME|TZ|TMPDIR|LANG|LC_\w+|LD_LIBRARY_PATH|KRB5\w+|SSL_\w+|OPENSSL\w+|https?_proxy|no_proxy", re.IGNORECASE
)
"""Variables that the process gets. It reads what strangers wrote, so it gets no passphrase and no credentials."""


def apart_limit() -> int:
    """Return the size of the largest response that the process takes."""
    return int(_CLIENT["receive.message.max.bytes"])


class _Task(msgspec.Struct):
    client: dict[str, str]
    group: str
    topic: str
    partition: int
    offset: int
    own_types: bool


class Ended(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Why no more records came.

    Attributes:
        offset: the partition's end, or the first offset of the batch that cannot be read; None if it is not known.
        damage: why that batch cannot be read, or None.
    """

    offset: int | None = None
    damage: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RecordApart | Ended).decode


class Apart:
    """A process that reads one partition from an offset."""

    def __init__(self, client: Mapping[str, str], group: str, position: Position, *, own_types: bool) -> None:
        """Set up; entering starts the process.

        Args:
            client: librdkafka's properties.
            group: the consumer group.
            position: where to read from.
            own_types: whether events of other types than the six are taken.
        """
        task = _Task({**client, **_CLIENT}, group, position.topic, position.partition, position.offset, own_types)
        self._task = msgspec.json.encode(task)
        self.ended: Ended | None = None
        """Why no more records came; None if the process was ended by something else than the batch."""

    def __enter__(self) -> Self:
        # On stdin, because the properties may hold a password. -P: no module comes from the current folder.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.drain.apart"],
            env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)}
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MALLOC_ARENA_MAX": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.__exit__(kind, error, at)

    def read(self) -> Iterator[list[RecordApart]]:
        """Yield records in lists, until a stop is requested. Afterwards `ended` says why there are no more."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None and taken is not None  # noqa: S101, PT018 - for the type checker
        with suppress(BrokenPipeError), given:
            given.write(self._task)
        together: list[RecordApart] = []
        size = 0
        for frame in _frames(taken):
            if isinstance(frame, Ended):
                self.ended = frame
                break
            together.append(frame)
            size += len(frame.content or b"") + len(frame.line or b"")
            if size >= TOGETHER_BYTES:
                yield together
                together, size = [], 0
                if stop_requested.is_set():
                    return
        if together:
            yield together
        if self.ended is None and (damage := _DEATHS.get(-self._process.wait())):
            self.ended = Ended(damage=damage)


def _frames(taken: IO[bytes]) -> Iterator[RecordApart | Ended]:
    while len(head := taken.read(_FRAME_HEAD)) == _FRAME_HEAD:
        size = int.from_bytes(head)
        body = taken.read(size)
        if len(body) < size:
            return
        yield _decode(body)


def _hand_back(frame: RecordApart | Ended) -> None:
    body = _encode(frame)
    sys.stdout.buffer.write(len(body).to_bytes(_FRAME_HEAD) + body)


def _read(task: _Task) -> Ended:
    """Hand records back until the partition ends, a batch cannot be read, or enough was read."""
    too_large: list[int] = []

    def note(error: KafkaError) -> None:
        size = response_size(error)
        if size is not None:
            too_large.append(size)

    feed = Feed(task.client, task.group, [Position(task.topic, task.partition, task.offset)], note)
    until = float("inf")
    while time.monotonic() < until:
        if too_large:
            return Ended(damage=f"it has {too_large[0]:,} bytes as stored, more than librdkafka takes")
        for message in feed.read(1, 0.5):
            error = message.error()
            if error is None:
                until = min(until, time.monotonic() + ENOUGH_SECONDS)
                value = message.value()
                problem = reason(value, own_types=task.own_types)
                line = None if problem is None else quarantine_line(message, value, problem)
                epoch = message.leader_epoch()
                _hand_back(RecordApart(message.offset(), message.timestamp(), epoch, None if line else value, line))
            elif message.topic() is None:
                # Of the client as a whole, and not of the partition.
                continue
            elif error.code() == PARTITION_EOF:
                return Ended(message.offset())
            elif error.code() in DAMAGED:
                return Ended(message.offset(), error.str())
            elif error.code() in {OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}:
                return Ended()
    return Ended()


if __name__ == "__main__":
    signal.alarm(SECONDS)
    with suppress(OSError):
        # Where memory is short, the kernel ends this process and not the drain.
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        _hand_back(_read(msgspec.json.decode(sys.stdin.buffer.read(), type=_Task)))
    except (MemoryError, SystemError):
        # confluent-kafka gives the second where there is no memory for a value.
        _hand_back(Ended(damage=_TOO_LARGE))
    sys.stdout.buffer.flush()
    # Without closing the consumer, which would wait for its threads.
    os._exit(0)
