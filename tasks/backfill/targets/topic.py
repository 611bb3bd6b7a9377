"""A Kafka topic as a target."""

import re
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from custody.errors import ConfigurationError, TransientSourceError
from custody.format.layout import Log, check_topic
from custody.settings import Settings
from tasks.backfill.targets.target import Content, Part
from tasks.drain.kafka import PARTITION_EOF, REQUEST_SECONDS, logger, map_error
from tasks.search.client import Sent

TOPIC_SECONDS = 120.0
"""How long Kafka may take to acknowledge a record, or to give the next one of what a topic holds."""
_POLL_SECONDS = 0.2


class TopicTarget:
    """A Kafka topic: the event as the value, where it comes from as key and headers, partitions as in its log's topic.

    Kafka takes whatever is sent, so what the topic holds is read first, once, and not sent again. Records have the time
    of sending, for by the events' own a topic's retention would delete them at once.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        """Look at what the topic holds.

        Raises:
            ConfigurationError: there is no such topic, or it is one that is archived itself.
            SourceError: Kafka does not answer, or says no.
        """
        check_topic(topic)
        if any(re.search(one, topic) if one.startswith("^") else one == topic for one in settings.kafka.topics):
            raise ConfigurationError(
                f"topic {topic!r} is archived itself (kafka.topics): what is sent to it would be archived again;"
                " name another"
            )
        self._topic = topic
        client = settings.kafka.librdkafka()
        self._there, self._partitions = _holdings(client, settings.kafka.group, topic)
        # The broker says what is too large for it; the client's own limit is below an event's with its headers.
        ours = {"enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4", "message.max.bytes": 2_097_152}
        self._producer = _made(lambda: Producer({"client.id": "custody", **client, **ours}, logger=logger))
        self._problem: KafkaError | None = None
        self._rejected = 0

    def has(self, part: Part) -> bool:  # noqa: ARG002 - which events are chosen is not known before they are read
        """Say no: which of a part's events are chosen is known once they are read."""
        return False

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Send what the topic lacks, and wait until it is acknowledged."""
        log, self._rejected = part.log, 0
        there = self._there.get(str(log), array("q"))
        try:
            for one in contents:
                headers = [("topic", log.topic.encode()), ("partition", str(log.partition).encode())]
                headers += [("epoch", str(log.epoch).encode())] if log.epoch > 1 else []
                for line, offset in zip(one.lines, one.offsets, strict=True):
                    place = bisect_left(there, offset)
                    if place < len(there) and there[place] == offset:
                        sent.there += 1
                        continue
                    self._send(log, line, offset, headers)
                    sent.created += 1
        finally:
            self._flush()
            sent.created -= self._rejected
            sent.rejected += self._rejected

    def _send(self, log: Log, line: bytes, offset: int, headers: list[tuple[str, bytes]]) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    line,
                    f"{log}/{offset}".encode(),
                    log.partition % self._partitions,
                    self._delivered,
                    headers=[*headers, ("offset", str(offset).encode())],
                )
            except BufferError:
                self._producer.poll(1)
                self._check()
            except KafkaException as error:
                raise map_error(error.args[0], f"topic {self._topic} does not take {log}, offset {offset}") from None
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: KafkaError | None, _message: Any) -> None:
        if error is None:
            return
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._rejected += 1
        else:
            self._problem = self._problem or error

    def _check(self) -> None:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise map_error(problem, f"topic {self._topic} does not take events")

    def _flush(self) -> None:
        left = self._producer.flush(TOPIC_SECONDS)
        self._check()
        if left:
            raise TransientSourceError(
                f"topic {self._topic} did not acknowledge {left:,} records within {TOPIC_SECONDS:.0f} s; the next run"
                " goes on"
            )


def _made(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except KafkaException as error:
        # librdkafka repeats a property's value in some messages, and a value may be a password.
        raise ConfigurationError(
            f"librdkafka does not take a property of kafka.client (error {error.args[0].code()})"
        ) from None


def _holdings(client: dict[str, str], group: str, topic: str) -> tuple[dict[str, "array[int]"], int]:
    """Return the offsets of each log that a topic holds, sorted, and how many partitions it has."""
    ours = {
        "group.id": group,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    }
    found: dict[str, array[int]] = {}
    with closing(_made(lambda: Consumer({"client.id": "custody", **client, **ours}, logger=logger))) as consumer:
        try:
            # Of all topics: asked for by its name, one that is not there might be made.
            listed = consumer.list_topics(timeout=REQUEST_SECONDS).topics.get(topic)
            if listed is None or listed.error is not None or not listed.partitions:
                raise ConfigurationError(f"there is no topic {topic!r} on Kafka: create it first")
            places = [TopicPartition(topic, partition) for partition in listed.partitions]
            bounds = {one.partition: consumer.get_watermark_offsets(one, REQUEST_SECONDS) for one in places}
            left = {partition for partition, (low, high) in bounds.items() if high > low}
            consumer.assign([TopicPartition(topic, partition, bounds[partition][0]) for partition in sorted(left)])
            heard = time.monotonic()
            while left:
                # It waits for as many as are asked for, or for as long: so not for long.
                messages = consumer.consume(10_000, _POLL_SECONDS)
                heard = time.monotonic() if messages else heard
                if time.monotonic() - heard > TOPIC_SECONDS:
                    raise TransientSourceError(f"topic {topic} gives nothing for {TOPIC_SECONDS:.0f} s; try again")
                for message in messages:
                    error = message.error()
                    if error is not None and error.code() == PARTITION_EOF:
                        left.discard(message.partition())
                    elif error is not None:
                        raise map_error(error, f"topic {topic} cannot be read")
                    else:
                        _note(found, message.key())
        except KafkaException as error:
            raise map_error(error.args[0], f"topic {topic} cannot be read") from None
    return {log: array("q", sorted(offsets)) for log, offsets in found.items()}, len(listed.partitions)


def _note(found: dict[str, "array[int]"], key: bytes | None) -> None:
    log, _, offset = (key or b"").decode(errors="replace").rpartition("/")
    if log and re.fullmatch(r"[0-9]{1,18}", offset):
        found.setdefault(log, array("q")).append(int(offset))
