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


@patiently
def read_headroom(broker: Broker, topic: str, partition: int, offset: int, written: float | None = None) -> Headroom:
    """Return how long the topic's retention keeps the record at an offset.

    By time, a record is deleted when it is older than retention.ms. By size, the record is deleted when as much was
    added as lies before it now; at a steady rate that takes as long as the time between the two records.

    Args:
        broker: the broker.
        topic: the topic.
        partition: its number.
        offset: the record's offset.
        written: what `Broker.waits_since` returns for it; asked if None.

    Raises:
        SourceError: the broker does not answer, or says no. Or as `Broker.waits_since`.
    """
    entries = broker.configuration(topic)
    kept_ms, kept_bytes = int(entries["retention.ms"]), int(entries["retention.bytes"])
    if "delete" not in entries["cleanup.policy"] or max(kept_ms, kept_bytes) < 0:
        return Headroom(None)
    if written is None:
        written = broker.waits_since(topic, partition, offset)
    if written is None:
        return Headroom(None)
    now = time.time()
    written = min(written, now)
    limits = [written + kept_ms / 1000 - now] if kept_ms >= 0 else []
    start, unknown = broker.bounds(topic, partition).start, None
    if kept_bytes >= 0 and start > 0:
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
