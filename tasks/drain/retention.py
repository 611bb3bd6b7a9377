"""How long Kafka's retention keeps what is not archived yet.

Producers choose the times of their records, and Kafka's retention goes by the same ones. A time that cannot be believed
makes a limit unknown, and never longer.
"""

import time
from dataclasses import dataclass

from custody.errors import SourceError
from tasks.drain.kafka import Broker, patiently

_KAFKA_BEGAN = 1_293_840_000.0
"""The year 2011, in seconds since 1970. No record was written to Kafka before."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """How long Kafka keeps a record.

    Attributes:
        seconds: by the limits that are known; None if there is none.
        unknown: why another limit, by the partition's size, is not known; None if there is none.
    """

    seconds: float | None
    unknown: str | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a topic keeps its records.

    Attributes:
        seconds: how old a record gets; None if there is no such limit.
        bytes: how large a partition gets; None if there is no such limit.
        compacts_after: how old a record gets before compaction may remove it; None if the topic is not compacted.
    """

    seconds: float | None = None
    bytes: int | None = None
    compacts_after: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether Kafka deletes records by their age or the partition's size."""
        return self.seconds is not None or self.bytes is not None


@patiently
def read_retention(broker: Broker, topic: str) -> Retention:
    """Return how long a topic keeps its records. Raises SourceError: the broker does not answer, or says no."""
    entries = broker.configuration(topic)
    policy = entries["cleanup.policy"]
    compacts_after = int(entries["min.compaction.lag.ms"]) / 1000 if "compact" in policy else None
    if "delete" not in policy:
        return Retention(compacts_after=compacts_after)
    kept_ms, kept_bytes = int(entries["retention.ms"]), int(entries["retention.bytes"])
    return Retention(kept_ms / 1000 if kept_ms >= 0 else None, kept_bytes if kept_bytes >= 0 else None, compacts_after)


class Retentions:
    """The retention of each topic, asked once in a run."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known: dict[str, Retention | SourceError] = {}

    def of(self, topic: str) -> Retention:
        """Return a topic's. Raises SourceError: the broker did not answer in this run, or said no."""
        if topic not in self._known:
            try:
                self._known[topic] = read_retention(self._broker, topic)
            except SourceError as error:
                self._known[topic] = error
        retention = self._known[topic]
        if isinstance(retention, SourceError):
            raise retention
        return retention


@patiently
def read_headroom(
    broker: Broker,
    topic: str,
    partition: int,
    offset: int,
    written: float | None = None,
    retention: Retention | None = None,
) -> Headroom:
    """Return how long the topic's retention keeps the record at an offset.

    By time, a record is deleted when it is older than retention.ms. By size, the record is deleted when as much was
    added as lies before it now; at a steady rate that takes as long as the time between the two records.

    Args:
        broker: the broker.
        topic: the topic.
        partition: its number.
        offset: the record's offset.
        written: what `Broker.waits_since` returns for it; asked if None.
        retention: the topic's; asked if None.

    Raises:
        SourceError: the broker does not answer, or says no. Or as `Broker.waits_since`.
    """
    if retention is None:
        retention = read_retention(broker, topic)
    if not retention.is_limited:
        return Headroom(None)
    if written is None:
        written = broker.waits_since(topic, partition, offset)
    if written is None:
        return Headroom(None)
    now = time.time()
    written = min(written, now)
    limits = [written + retention.seconds - now] if retention.seconds is not None else []
    unknown = None
    if retention.bytes is not None and (start := broker.bounds(topic, partition).start) > 0:
        try:
            oldest = _first_written(broker, topic, partition, start)
        except SourceError as error:
            unknown = f"how long the partition's size keeps its records is not known: {error}"
        else:
            limits += [written - oldest] if oldest is not None else []
    return Headroom(min(limits, default=None), unknown)


def _first_written(broker: Broker, topic: str, partition: int, start: int) -> float | None:
    """Return when a partition's oldest record was written. Raises as `Broker.waits_since`."""
    oldest = broker.waits_since(topic, partition, start)
    # Such a time would make the records seem to come slowly, and to be kept for long.
    if oldest is not None and oldest < _KAFKA_BEGAN:
        raise SourceError(
            f"{topic}/{partition}: the timestamp of the record at offset {start} is older than Kafka; find its"
            " producer, or set message.timestamp.type=LogAppendTime for the topic"
        )
    return oldest
