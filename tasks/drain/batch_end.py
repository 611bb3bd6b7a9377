"""Finds where a batch ends that cannot be read. librdkafka does not say it, and may only drop the connection.

Rules:
- A read from any offset of a batch gives the whole batch. So all its offsets get the same answer.
- The answer is an error with the batch's first offset; or, above a limit, the size of the broker's response.
- Each question has a consumer of its own: librdkafka reports the same error of a broker only once in 30 s.
"""

import re
import time
from collections.abc import Mapping

from confluent_kafka import KafkaError, TopicPartition

from custody.errors import SourceRefused, TransientSourceError
from tasks.drain.kafka import ANSWERS, DAMAGED, OFFSET_OUT_OF_RANGE, REQUEST_SECONDS, Feed, Received
from tasks.drain.kafka_errors import is_of_group, map_error, reading
from tasks.drain.signals import stop_requested

SIZED_BYTES = 256 * 1024
"""Responses above this size are refused, and give their size: so no batch is fetched or inflated to learn it."""
SCAN_SECONDS = 20.0
"""How long a run looks for the end of one batch by sizes, offset by offset; the next run goes on."""
ONE_BATCH: Mapping[str, str] = {"fetch.message.max.bytes": "1", "queued.min.messages": "1"}
"""One batch in each fetch, and none ahead: a broker gives a batch whole, however small the limit is."""
_QUIET: Mapping[str, str] = {**ONE_BATCH, "log_level": "2"}
"""Errors are the answers here: without this, librdkafka logs each of them."""
_SIZED: Mapping[str, str] = {
    **_QUIET,
    "receive.message.max.bytes": str(SIZED_BYTES),
    # librdkafka wants these to be less.
    "fetch.max.bytes": "65536",
    "message.max.bytes": "65536",
}
_TOO_LARGE = re.compile(r"Invalid response size (\d+)")


def response_size(error: KafkaError) -> int | None:
    """Return the size of a response that librdkafka refused because of it; None for another error."""
    refused = _TOO_LARGE.search(error.str())
    return int(refused[1]) if refused else None


class Batches:
    """What a broker answers for single offsets of a partition."""

    def __init__(self, client: Mapping[str, str], group: str, topic: str, partition: int) -> None:
        """Set up; nothing is sent yet.

        Args:
            client: librdkafka's properties.
            group: the consumer group.
            topic: the topic.
            partition: its number.
        """
        self._client, self._group = dict(client), group
        self._topic, self._partition = topic, partition

    def end_by_base(self, base: int, inside: int, end: int) -> int | None:
        """Return the first offset after a batch that cannot be decoded; None if this client only drops the connection.

        Reading from any offset in it gives an error with the batch's first offset; from the next one it does not.

        Args:
            base: the batch's first offset.
            inside: an offset from which on to search; it is returned if it is not in the batch.
            end: the partition's end.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        client = {**self._client, **_QUIET}

        def is_in_batch(answer: Received | int) -> bool:
            error = None if isinstance(answer, int) else answer.error()
            return (
                error is not None
                and error.code() in DAMAGED
                and not isinstance(answer, int)
                and answer.offset() == base
            )

        answer = self._ask(inside, client)
        if isinstance(answer, int):
            return None
        if not is_in_batch(answer):
            return inside
        step = 1
        while is_in_batch(self._ask(after := min(inside + step, end), client)):
            inside, step = after, 2 * step
        # The batch ends after `inside`, and at `after` at the latest.
        while after - inside > 1:
            middle = (inside + after) // 2
            if is_in_batch(self._ask(middle, client)):
                inside = middle
            else:
                after = middle
        return after

    def end_by_size(self, first: int, end: int) -> tuple[int, int]:
        """Return the size of the response for an offset, and the next offset with another answer.

        Every offset between has the same size: they are in one batch, or in neighbours of exactly the same size.
        Offsets are asked one after the other, because a jump could pass over a batch that can be read. So after
        `SCAN_SECONDS` the offset returned may still be in the batch.

        Args:
            first: the offset.
            end: the partition's end, where the broker must answer too.

        Raises:
            SourceError: the broker does not answer at one of them, or says no, or gives records at the first.
        """
        client = {**self._client, **_SIZED}
        if isinstance(self._ask(end, client), int):
            raise self._silent(end)
        size = self._ask(first, client)
        if not isinstance(size, int):
            raise self._silent(first)
        until, after = time.monotonic() + SCAN_SECONDS, first + 1
        while after < end and time.monotonic() < until and not stop_requested.is_set():
            if self._ask(after, client) != size:
                break
            after += 1
        return size, after

    def _ask(self, offset: int, client: Mapping[str, str]) -> Received | int:
        """Return the first record, event or error from an offset on, or the size of a response that is too large.

        Raises:
            SourceError: nothing comes in time, or the broker says no.
        """
        sizes: list[int] = []

        def note(error: KafkaError) -> None:
            size = response_size(error)
            if size is not None:
                sizes.append(size)

        position = TopicPartition(self._topic, self._partition, offset)
        until = time.monotonic() + REQUEST_SECONDS
        with Feed(client, self._group, [position], note) as feed:
            while time.monotonic() < until:
                for message in feed.read(1, 0.05):
                    error = message.error()
                    if message.topic() is None or (error is not None and is_of_group(error)):
                        # Of the client as a whole, and not of the partition.
                        continue
                    # Other errors, such as a broken connection, go away. After a wrong checksum librdkafka goes on at
                    # a nonsensical offset, also when it was told another one.
                    nonsense = error is not None and error.code() == OFFSET_OUT_OF_RANGE and message.offset() != offset
                    if error is None or (error.code() in ANSWERS and not nonsense):
                        return message
                    step = f"{self._topic}/{self._partition}: cannot read from offset {offset}"
                    mapped = map_error(error, step, client, reading(self._topic))
                    if isinstance(mapped, SourceRefused):
                        raise mapped
                if sizes:
                    return sizes[0]
        raise self._silent(offset)

    def _silent(self, offset: int) -> TransientSourceError:
        return TransientSourceError(
            f"{self._topic}/{self._partition}: Kafka gave no usable answer at offset {offset}; the next run tries again"
        )
