"""Where partitions begin and end: of many, Kafka says it in three requests a broker.

Asked one by one, each partition takes four requests, and waits for them.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition, admin

_SPEC: Any = admin.OffsetSpec  # type: ignore[attr-defined]
_FIRST, _LAST = _SPEC.earliest(), _SPEC.latest()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Offsets of a partition: the log start, the last stable offset, and the read-uncommitted end."""

    start: int
    stable: int
    end: int


def bounds_of(
    client: admin.AdminClient, partitions: Collection[tuple[str, int]], seconds: float
) -> dict[tuple[str, int], Bounds]:
    """Return where partitions begin and end now. Those whose broker did not answer are left out. Raises nothing.

    Args:
        client: asks.
        partitions: topics and numbers.
        seconds: timeout of each of the three requests. To find the leaders may take as long again.
    """
    # In this order: a start is before each end that is asked later. And if the stable offset, asked last, is below the
    # end, a transaction is open. Asked before the end, it would be below it whenever records have just come.
    starts = _offsets(client, partitions, _FIRST, IsolationLevel.READ_UNCOMMITTED, seconds)
    ends = _offsets(client, starts, _LAST, IsolationLevel.READ_UNCOMMITTED, seconds)
    stable = _offsets(client, ends, _LAST, IsolationLevel.READ_COMMITTED, seconds)
    return {each: Bounds(starts[each], offset, max(offset, ends[each])) for each, offset in stable.items()}


def _offsets(
    client: admin.AdminClient,
    partitions: Collection[tuple[str, int]],
    wanted: Any,
    isolation: IsolationLevel,
    seconds: float,
) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    if not partitions:
        return found
    asked = {TopicPartition(*each): wanted for each in partitions}
    # Whoever needs a partition that is left out asks for it alone, and gets the error.
    with suppress(KafkaException, RuntimeError):
        for each, answer in client.list_offsets(asked, isolation_level=isolation, request_timeout=seconds).items():
            with suppress(KafkaException, RuntimeError):
                offset = answer.result().offset
                # If a leader does not answer in time, librdkafka gives no error, but an offset below zero.
                if offset >= 0:
                    found[each.topic, each.partition] = offset
    return found
