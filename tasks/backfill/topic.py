"""A Kafka topic as a target. Events are sent at least once: an event may come twice, and its headers identify it.

Each record's value is the event. Its headers name the archived record: `topic`, `partition` and `offset`, and `epoch`
if that is not 1. Its key says the same: `<log>/<partition>/<offset>`. Two records with the same headers are the same
event, so a consumer that wants each event once keeps the first.

The position up to which each log was sent is committed in a consumer group of this choice of events. A backfill that
was stopped or killed continues from there, and sends later events again: usually those of at most one statement. If the
positions of all logs do not fit into the group's metadata, the logs sent longest ago are sent again as a whole. After
everything was sent, the positions are cleared, so the same backfill started again sends all events again.

Positions are not signed. Whoever may commit in that group can make a backfill leave out events, just as whoever may
delete records of the topic can remove them. The topic is a copy, and no evidence.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from custody.errors import ConfigurationError, SourceRefused, TransientSourceError, counted
from custody.format.layout import Log, check_topic
from tasks.backfill.plan import Part
from tasks.backfill.targets import Content, Target
from tasks.drain.clients import make_consumer, make_producer, read_committed, serve
from tasks.drain.committed_heads import METADATA_LIMIT
from tasks.drain.kafka import REQUEST_SECONDS, patiently
from tasks.drain.kafka_errors import map_error, principal
from tasks.search.bulk import Sent
from tasks.settings import Settings

logger = logging.getLogger(__name__)

TOPIC_SECONDS = 120.0
"""How long Kafka may take to acknowledge a record."""


class TopicTarget(Target):
    """A Kafka topic. An event goes to the partition with its log's partition number, modulo the number of partitions.

    A record's timestamp is the time of sending. With the event's own time, retention could delete it at once.
    """

    def __init__(self, settings: Settings, topic: str, choice: bytes, *, complete: bool) -> None:
        """Read the positions of an earlier run.

        Args:
            settings: the settings.
            topic: the topic.
            choice: names the archive and the choice of events.
            complete: whether the plan has no problems. Otherwise no positions are stored, because a position would also
                cover the events that the plan leaves out.

        Raises:
            ConfigurationError: there is no such topic, or it is archived itself.
            SourceError: Kafka does not answer, or refuses.
        """
        check_topic(topic)
        patterns = settings.kafka.topics
        if any(re.search(name, topic) if name.startswith("^") else name == topic for name in patterns):
            raise ConfigurationError(
                f"topic {topic!r} is archived itself (kafka.topics), so its events would be archived again: name"
                " another topic"
            )
        self._topic = topic
        self._client = client = settings.kafka.librdkafka()
        group = f"{settings.kafka.group}-backfill-{sha256(choice).hexdigest()[:16]}"
        self._positions = _Positions(client, group, topic)
        self._complete = complete
        # The broker decides what is too large. The client's default limit is too small for the largest event.
        ours = {"enable.idempotence": True, "linger.ms": 20, "compression.type": "lz4", "message.max.bytes": 2_097_152}
        self._producer = make_producer({**client, **ours})
        self._problem: KafkaError | None = None
        self._refused: list[Message] = []
        """Records of refused requests. Which of a request's records are too large is not known."""

    def close(self) -> None:
        """Close the connections."""
        self._positions.close()

    def has(self, part: Part) -> bool:
        """Return whether an earlier run sent a part."""
        return self._positions.has(part)

    def write(self, part: Part, contents: Iterator[Content], sent: Sent) -> None:
        """Send a part, wait until it is acknowledged, and commit its position."""
        log = part.log
        whole = False
        try:
            for content in contents:
                for line, offset in zip(content.lines, content.offsets, strict=True):
                    self._send(log, line, offset)
                    sent.created += 1
            whole = True
        finally:
            self._flush()
            rejected = sum(self._is_refused_alone(log, record) for record in self._take_refused())
            sent.created -= rejected
            sent.rejected += rejected
            if self._complete:
                self._positions.note(part, whole=whole)

    def finish(self) -> None:
        """Clear the positions, because everything was sent."""
        self._positions.clear()

    def _send(self, log: Log, line: bytes, offset: int) -> None:
        headers = [("topic", log.topic.encode()), ("partition", str(log.partition).encode())]
        headers += [("epoch", str(log.epoch).encode())] if log.epoch > 1 else []
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    line,
                    f"{log}/{offset}".encode(),
                    log.partition % self._positions.partitions,
                    self._delivered,
                    headers=[*headers, ("offset", str(offset).encode())],
                )
            except BufferError:
                self._serve(self._producer.poll, 1)
                self._check()
            except KafkaException as error:
                raise self._error(
                    error.args[0], f"topic {self._topic} does not accept {log}, offset {offset}"
                ) from None
            else:
                self._serve(self._producer.poll, 0)
                return

    def _take_refused(self) -> list[Message]:
        refused, self._refused = self._refused, []
        return refused

    def _is_refused_alone(self, log: Log, record: Message) -> bool:
        """Send a record of a refused request alone, and return whether it is refused again."""
        offset = int((record.key() or b"").rpartition(b"/")[2])
        self._send(log, record.value() or b"", offset)
        self._flush()
        return bool(self._take_refused())

    def _delivered(self, error: KafkaError | None, record: Message) -> None:
        if error is None:
            return
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._refused.append(record)
        else:
            self._problem = self._problem or error

    def _check(self) -> None:
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise self._error(problem, f"topic {self._topic} does not accept events")

    def _error(self, error: KafkaError, step: str) -> SourceRefused | TransientSourceError:
        return map_error(error, step, self._client, f"Describe and Write on topic {self._topic}")

    def _serve(self, call: Callable[[float], int], seconds: float) -> int:
        """Call a method of the producer that delivers answers, and return what it returns."""
        try:
            return serve(call, seconds)
        except KafkaException as error:
            raise self._error(error.args[0], f"topic {self._topic} does not accept events") from None

    def _flush(self) -> None:
        left = self._serve(self._producer.flush, TOPIC_SECONDS)
        self._check()
        if left:
            raise TransientSourceError(
                f"topic {self._topic} did not acknowledge {counted(left, 'record')} within {TOPIC_SECONDS:.0f} s; the"
                " next run continues"
            )


class _Positions:
    """The position up to which each log was sent, as metadata of a consumer group's committed offsets.

    A log's position is stored with the partition that its events go to: `{"<log>/<partition>": next offset}`. It stops
    before the first part that could not be sent as a whole.
    """

    def __init__(self, client: dict[str, str], group: str, topic: str) -> None:
        self._topic, self._client, self._group = topic, client, group
        ours = {"group.id": group, "enable.auto.commit": False}
        self._consumer = make_consumer({**client, **ours})
        self._stopped: set[Log] = set()
        try:
            answers = self._read()
        except BaseException:
            self._consumer.close()
            raise
        self.partitions = len(answers)
        self._next = {answer.partition: _parse(answer.metadata) for answer in answers}

    @patiently
    def _read(self) -> list[TopicPartition]:
        try:
            # List all topics: a request for one name might create a topic that does not exist.
            listed = self._consumer.list_topics(timeout=REQUEST_SECONDS).topics.get(self._topic)
            if listed is None or listed.error is not None or not listed.partitions:
                raise ConfigurationError(
                    f"there is no topic {self._topic!r} on Kafka that {principal(self._client)} may see: create it, or"
                    " allow Describe and Write on it"
                )
            asked = [TopicPartition(self._topic, partition) for partition in listed.partitions]
            return read_committed(self._consumer, asked, REQUEST_SECONDS)
        except KafkaException as error:
            raise map_error(
                error.args[0],
                f"topic {self._topic}: the backfill's position cannot be read",
                self._client,
                f"Read on group {self._group}",
            ) from None

    def close(self) -> None:
        self._consumer.close()

    def has(self, part: Part) -> bool:
        return self._of(part.log).get(str(part.log), 0) >= part.next_offset

    def note(self, part: Part, *, whole: bool) -> None:
        """Note that a part was sent, or that it was not sent as a whole."""
        if not whole:
            self._stopped.add(part.log)
        if part.log in self._stopped:
            return
        positions = self._of(part.log)
        # The newest last: if not all fit, the oldest are dropped.
        positions.pop(str(part.log), None)
        positions[str(part.log)] = part.next_offset
        while len(json.dumps(positions)) > METADATA_LIMIT and len(positions) > 1:
            positions.pop(next(iter(positions)))
        self._commit([part.log.partition % self.partitions])

    def clear(self) -> None:
        self._next = {partition: {} for partition, positions in self._next.items() if positions}
        self._commit(list(self._next))

    def _of(self, log: Log) -> dict[str, int]:
        return self._next.setdefault(log.partition % self.partitions, {})

    def _commit(self, partitions: list[int]) -> None:
        """Commit positions. If that fails, the next run sends more events again, and nothing is lost."""
        offsets = [
            TopicPartition(self._topic, partition, 0, json.dumps(self._next[partition])) for partition in partitions
        ]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            logger.warning("topic %s: the position was not committed: %s", self._topic, error.args[0].str())


def _parse(metadata: str | None) -> dict[str, int]:
    """Return the positions in committed metadata; none if it is not ours."""
    with suppress(ValueError, RecursionError):
        positions = json.loads(metadata or "{}")
        if isinstance(positions, dict) and all(type(offset) is int for offset in positions.values()):
            return positions
    return {}
