"""Reads the newest records of topics, without committing anything, and checks them as the drain does."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import TopicPartition

from custody.archive.assemble import TIME_APPEND
from custody.format.events import check
from tasks.drain.bounds import Bounds
from tasks.drain.kafka import PARTITION_EOF, Feed, Received
from tasks.drain.kafka_errors import map_error, reading
from tasks.settings import Settings

RECORDS = 100
"""Newest records of a topic that are read."""
SECONDS = 5.0
"""How long records are waited for, of all topics together."""


@dataclass(slots=True)
class Sample:
    """The newest records of a topic.

    Attributes:
        records: how many were read.
        reasons: why records would be quarantined, each with their number.
        appended: the newest append time of the broker, in seconds since 1970; None if it sets none.
        refusal: why the topic cannot be read; empty if it can.
        waiting: partitions whose records are still waited for, each with the first offset after them.
    """

    records: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    appended: float | None = None
    refusal: str = ""
    waiting: dict[int, int] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """How many records would be quarantined."""
        return self.reasons.total()


def read_samples(settings: Settings, bounds: Mapping[str, Mapping[int, Bounds]]) -> dict[str, Sample]:
    """Return a sample of each topic.

    Args:
        settings: the operator's.
        bounds: of the topics' partitions.

    Raises:
        ConfigurationError: librdkafka refuses a setting.
    """
    samples = {topic: Sample() for topic in bounds}
    positions: list[TopicPartition] = []
    for topic, partitions in bounds.items():
        each = -(-RECORDS // max(1, len(partitions)))
        for number, bound in partitions.items():
            first = max(bound.start, bound.stable - each)
            if first < bound.stable:
                positions.append(TopicPartition(topic, number, first))
                samples[topic].waiting[number] = bound.stable
    if not positions:
        return samples
    until = time.monotonic() + SECONDS
    client, own_types = settings.kafka.librdkafka(), settings.events.own_types
    with Feed(client, settings.kafka.group, positions) as feed:
        while time.monotonic() < until and any(sample.waiting for sample in samples.values()):
            for message in feed.read(RECORDS, 0.2):
                _take(samples, message, client, own_types=own_types)
    return samples


def _take(samples: Mapping[str, Sample], message: Received, client: Mapping[str, str], *, own_types: bool) -> None:
    """Check a record for its topic's sample, or end its partition. No value is kept: it may be large."""
    error, partition = message.error(), message.partition()
    sample = samples.get(message.topic() or "")
    if sample is None or partition not in sample.waiting:
        return
    if error is not None:
        if error.code() != PARTITION_EOF:
            sample.refusal = str(map_error(error, "its records cannot be read", client, reading(message.topic() or "")))
        del sample.waiting[partition]
        return
    sample.records += 1
    sample.reasons.update(reason for _, reason in check([message.value()], own_types=own_types).refused)
    kind, milliseconds = message.timestamp()
    if kind == TIME_APPEND:
        sample.appended = max(sample.appended or 0.0, milliseconds / 1000)
    if message.offset() + 1 >= sample.waiting[partition]:
        del sample.waiting[partition]
