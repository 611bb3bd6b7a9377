"""Sends events to Kafka, by librdkafka's idempotent producer.

A producer does not survive a fork, so each process makes its own. librdkafka sends a batch again while it is not
acknowledged; after `DELIVERY_SECONDS` it gives the records back, and they go to the spool.

A broker refuses a batch as a whole, say because it is larger than the topic allows, though each record may be small
enough. So each is sent once more, by a second producer that makes batches of one record. What is refused then is.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.sink import Outcome, Report, Sink
from custody.emit.writer import Options, QueuedWriter
from custody.errors import legible
from custody.format.limits import EVENT_BYTES

__all__ = ["KafkaWriter"]

DELIVERY_SECONDS: Final = 10
"""How long librdkafka tries. So long, what it has is in memory alone; a new leader is elected sooner."""
QUEUE_KBYTES: Final = 64 * 1024
"""Memory of records on their way."""
_DEFAULTS: Final[Mapping[str, object]] = {
    "compression.type": "lz4",
    "linger.ms": 20,
    "message.timeout.ms": DELIVERY_SECONDS * 1000,
    "queue.buffering.max.kbytes": QUEUE_KBYTES,
    "queue.buffering.max.messages": 100_000,
    # librdkafka's own limit is below an event's. Batches have another one, `batch.size`.
    "message.max.bytes": EVENT_BYTES + 4096,
}
_OURS: Final[Mapping[str, object]] = {"enable.idempotence": True, "acks": "all"}
"""What the application may not change: with less, records are lost or doubled without a word."""
_NEVER: Final = frozenset(
    {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG_SIZE}
)
"""Errors that are about the one record: it would be refused again."""
_ONE_BY_ONE: Final[Mapping[str, object]] = {"batch.num.messages": 1, "linger.ms": 0}
_GIVEN_UP: Final = frozenset((KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT))  # noqa: SLF001 - public names
"""Errors of records that we took back: they are spooled, or counted as lost."""
_PURGE_SECONDS: Final = 1.0
_SOURCE: Final = b',"source":"'


class KafkaWriter(QueuedWriter):
    """Writes audit events to a topic of Kafka."""

    kind = "Kafka"

    def __init__(self, topic: str, client: Mapping[str, object], options: Options) -> None:
        """Set up. Nothing is connected before the first event.

        Args:
            topic: where events go. One process's events have one key, its source, so they keep their order.
            client: librdkafka's properties; `bootstrap.servers` at least. Idempotence and `acks` are ours.
            options: how events are treated.

        Raises:
            AuditError: librdkafka refuses a property, or the spool's folder cannot be used.
        """
        self._topic, self._client = topic, dict(client)
        # Names and values of properties are checked by making a producer. It connects to nobody that soon.
        _make(self._client, QuietLog())
        super().__init__(options, topic)

    def open_sink(self, quiet: QuietLog) -> Sink:
        """Return a producer of this process."""
        return KafkaSink(self._topic, self._client, quiet)


class _Lines:
    """A logger for librdkafka, whose lines come often while a broker is away or starts.

    The sink warns of what that means for events. So below an error its lines are of the level INFO.
    """

    def __init__(self, quiet: QuietLog) -> None:
        self._quiet = quiet

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log a line at most once a minute for each kind."""
        text = legible(message % arguments if arguments else message)
        shown = level if level >= logging.ERROR else min(level, logging.INFO)
        self._quiet.log(shown, f"librdkafka {text.partition(' ')[0]}", f"librdkafka: {text}")


class KafkaSink:
    """A producer, and a second one for single records. Their callbacks run in `poll` and `close`, on their caller."""

    def __init__(self, topic: str, client: Mapping[str, object], quiet: QuietLog) -> None:
        """Make the producer.

        Raises:
            AuditError: librdkafka refuses a property.
        """
        self._topic, self._client, self._quiet = topic, client, quiet
        self._producer = _make(client, quiet, self._fatal)
        self._single: Any = None
        self._alone: deque[tuple[bytes, Report]] = deque()
        """Records of refused batches, which are sent one by one."""
        self._broken = False

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Pass lines to librdkafka's queue; fewer if it is full, or has just been given up."""
        if self._broken:
            # What comes back now is older than these lines.
            self._renew()
            return 0

        def delivered(error: KafkaError | None, message: Any) -> None:
            outcome = self._outcome(error)
            if outcome == "refused":
                self._alone.append((message.value(), report))
            else:
                report(message.value(), outcome)

        for taken, line in enumerate(lines):
            try:
                self._producer.produce(self._topic, line, _source(line), on_delivery=delivered)
            except BufferError:
                return taken
            except KafkaException as error:
                outcome = self._outcome(error.args[0])
                if outcome == "failed":
                    return taken
                report(line, outcome)
        return len(lines)

    def poll(self, seconds: float) -> None:
        """Run callbacks of records that were acknowledged or given up."""
        self._producer.poll(seconds)
        self._send_single()

    def close(self, seconds: float) -> None:
        """Wait for acknowledgements, then give up the rest."""
        deadline = time.monotonic() + seconds
        try:
            self._producer.flush(seconds)
            self._send_single()
            if self._single is not None:
                self._single.flush(max(0.0, deadline - time.monotonic()))
        finally:
            self._give_up()

    def _send_single(self) -> None:
        """Send each record of refused batches in a batch of its own."""
        if self._alone and self._single is None:
            self._single = _make({**self._client, **_ONE_BY_ONE}, self._quiet, self._fatal)
        while self._alone:
            line, report = self._alone[0]
            try:
                self._single.produce(self._topic, line, _source(line), on_delivery=self._last(report))
            except BufferError:
                break
            except KafkaException as error:
                report(line, self._outcome(error.args[0]))
            self._alone.popleft()
        if self._single is not None:
            self._single.poll(0)

    def _last(self, report: Report) -> Callable[[KafkaError | None, Any], None]:
        return lambda error, message: report(message.value(), self._outcome(error))

    def _give_up(self) -> None:
        """Give up every record that is still on its way, so that each is reported."""
        for producer in (self._producer, self._single):
            if producer is not None:
                producer.purge(in_queue=True, in_flight=True, blocking=False)
                producer.flush(_PURGE_SECONDS)
        self._single = None
        while self._alone:
            line, report = self._alone.popleft()
            report(line, "failed")

    def _renew(self) -> None:
        """Make a new producer, because this one cannot go on."""
        self._give_up()
        self._producer, self._broken = _make(self._client, self._quiet, self._fatal), False

    def _fatal(self, error: KafkaError) -> None:
        self._broken = self._broken or error.fatal()

    def _outcome(self, error: KafkaError | None) -> Outcome:
        if error is None:
            return "delivered"
        code = error.code()
        if code in _GIVEN_UP:
            return "failed"
        self._quiet.warn(f"Kafka {code}", f"Kafka, topic {self._topic}, did not take an audit event: {error.str()}")
        return "refused" if code in _NEVER else "failed"


def _source(line: bytes) -> bytes:
    """Return the source of a numbered line. A spool has lines of other processes too."""
    start = line.rfind(_SOURCE) + len(_SOURCE)
    return line[start : line.find(b'"', start)]


def _make(
    client: Mapping[str, object], quiet: QuietLog, on_error: Callable[[KafkaError], None] = lambda _: None
) -> Any:
    """Return a producer.

    Raises:
        AuditError: librdkafka refuses a property.
    """
    try:
        return Producer({**_DEFAULTS, **client, **_OURS, "error_cb": on_error}, logger=_Lines(quiet))
    except KafkaException as error:
        # Its text may have the value of a property, such as a password.
        code = error.args[0].code()
        raise AuditError(
            "Kafka", f"librdkafka does not accept the client's properties (error {code}): check names and values"
        ) from None
