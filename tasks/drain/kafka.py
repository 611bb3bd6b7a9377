"""Kafka for the drain: topics, where partitions begin and end, and a read-committed feed of records.

Rules:
- Records come from `Feed`, which reads partitions from offsets that the archive gives. The group's committed offset
  is written only for lag monitors.
- The committed offset's metadata holds the signed head (`tasks.drain.committed_heads`).
- Every failure is one of custody's errors: terminal (`SourceRefused`, `LogChanged`) or transient.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import tenacity
from confluent_kafka import KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

from custody.archive.assemble import Record
from custody.errors import SourceError, SourceRefused, TransientSourceError
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.manifest import LastRecord
from custody.store import retries
from custody.store.protocol import CLOCK_SLACK
from custody.tlog.head import Head
from tasks.drain.bounds import Bounds, bounds_of
from tasks.drain.clients import make_admin, make_reader, read_committed
from tasks.drain.committed_heads import CommittedHead, commit_metadata, parse_committed_head
from tasks.drain.kafka_errors import AWAY, TERMINAL, is_of_group, map_error, reading, reason_of
from tasks.drain.truncation import LOG_TRUNCATION, contradiction, says_truncated

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Timeout of one request to the broker."""
_RETRY_SHARE = 0.8
"""How long a request is retried, in timeouts. It is less than one, so a request that timed out is not retried."""
_PROBE_SECONDS = 2.0
_COMMIT_POLL_SECONDS = 0.002
MOCK_CLUSTER = "mockCluster"
"""Prefix of the id of librdkafka's mock cluster. It has no topic ids, and its admin calls time out."""

PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001
OFFSET_OUT_OF_RANGE: int = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001
"""librdkafka's error for a position that it cannot read from, because it is out of range or truncated."""
DAMAGED: frozenset[int] = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG}  # noqa: SLF001
)
"""Errors for a batch that librdkafka cannot decode, or not within its limits. They have the batch's first offset."""
ANSWERS = frozenset({PARTITION_EOF, OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}) | DAMAGED
"""Errors that answer a read from a position; others, such as a broken connection, go away."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. `id` is null where the broker has no topic ids."""

    name: str
    id: str | None
    partitions: int


class Received(Record, Protocol):
    """What a consumer returns: a record, or an event or error instead."""

    def error(self) -> KafkaError | None:
        """None for a record."""

    def topic(self) -> str:
        """Its topic."""

    def partition(self) -> int:
        """Its partition."""


# Mapping these functions of the class over lists takes half the time of method calls.
error_of = cast("Callable[[Received], KafkaError | None]", Message.error)
partition_of = cast("Callable[[Received], int]", Message.partition)


def is_wanted(topic: str, wanted: Sequence[str]) -> bool:
    """Return whether a setting names a topic, by its name or by a regular expression that begins with `^`."""
    return any(re.search(pattern, topic) if pattern.startswith("^") else pattern == topic for pattern in wanted)


def _is_late(state: tenacity.RetryCallState) -> bool:
    """Return whether a request was retried for long enough, by the timeout of its `Broker`."""
    seconds = getattr(state.args[0], "seconds", REQUEST_SECONDS)
    return (state.seconds_since_start or 0.0) >= _RETRY_SHARE * seconds


def _count(state: tenacity.RetryCallState) -> None:
    """Count a request that is made again, by the name of librdkafka's code for the error before."""
    error = state.outcome.exception() if state.outcome else None
    cause = error.__context__ if error else None
    code = cause.args[0] if isinstance(cause, KafkaException) else None
    retries.count("kafka", code.name() if isinstance(code, KafkaError) else type(error).__name__)


patiently = tenacity.retry(
    before_sleep=_count,
    retry=tenacity.retry_if_exception_type(TransientSourceError),
    stop=_is_late,
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2, jitter=0.1),
    reraise=True,
)
"""Retry while a broker starts, or while a coordinator or leader moves; not while a broker is down."""


class Broker:
    """Requests to the cluster, with a read-uncommitted and a read-committed consumer.

    This is one class because all requests share these consumers, their timeout, and what they were refused.
    """

    def __init__(self, client: Mapping[str, str], group: str, seconds: float | None = None) -> None:
        """Create the clients; nothing is sent yet.

        Args:
            client: librdkafka's properties, `bootstrap.servers` among them.
            group: the consumer group.
            seconds: timeout of one request; `REQUEST_SECONDS` if None.

        Raises:
            ConfigurationError: librdkafka refuses a property.
        """
        base = dict(client)
        self.seconds = REQUEST_SECONDS if seconds is None else seconds
        # For error messages.
        self._servers, self._client, self._group = base["bootstrap.servers"], base, group
        self.group_refusal: SourceRefused | None = None
        """The error if the broker refuses the group. Then nothing more is asked about it: each call would wait."""
        self._refusal: KafkaError | None = None
        self._away: KafkaError | None = None
        self._commits: dict[tuple[str, int], KafkaError | None] = {}
        self._polls = threading.Lock()
        self._is_deaf = False
        """Whether a commit was not acknowledged: then no more are sent, and closing waits for none."""
        # A broker answers one request of a connection after the other: a fetch that waits keeps all others waiting.
        probing = base | {"fetch.wait.max.ms": "1"}
        self._probe = make_reader(probing, group, "read_uncommitted", error_cb=self._note)
        self._stable = make_reader(base, group, "read_committed", on_commit=self._note_commit)
        self._admin = make_admin(base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.close()
        if self._is_deaf:
            # Closing waits for the commit, for as long as the broker is silent.
            threading.Thread(target=self._stable.close, name="close", daemon=True).start()
        else:
            self._stable.close()

    @patiently
    def cluster(self) -> str:
        """Return the cluster's id.

        Raises:
            SourceError: no broker answers, or it refuses.
        """
        cluster = self._list_topics().cluster_id
        if not cluster:
            raise TransientSourceError(f"Kafka at {self._servers} did not name its cluster; the next run tries again")
        return str(cluster)

    @patiently
    def topics(self, wanted: Sequence[str]) -> list[Topic]:
        """Return the existing topics that a setting names, by names or by a regular expression that begins with `^`.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        listing = self._list_topics()
        partitions = {
            name: len(topic.partitions)
            for name, topic in listing.topics.items()
            if topic.error is None and not name.startswith("__")
        }
        names = [name for name in sorted(partitions) if is_wanted(name, wanted)]
        ids = self._topic_ids(names, str(listing.cluster_id))
        return [Topic(name, ids[name], partitions[name]) for name in names]

    def missing(self, topic: str, *, archived: bool = False) -> SourceRefused:
        """Return the error for a topic that `topics` does not return, because it does not exist.

        Args:
            topic: its name.
            archived: whether the archive has logs of it.

        Raises:
            SourceError: as `check_visible`. It may exist.
        """
        self.check_visible(topic)
        advice = "create it, or correct kafka.topics"
        if archived:
            advice = (
                "the archive has logs of it. If it was deleted on purpose, exclude it from kafka.topics: remove its"
                f" name, or write ^(?!{re.escape(topic)}$) at the start of the expression; else find out who deleted it"
            )
        return SourceRefused(f"topic {topic!r} does not exist on Kafka at {self._servers}: {advice}")

    @patiently
    def check_visible(self, topic: str) -> None:
        """Check that this client may see a topic. A listing leaves out what it may not see, as if it did not exist.

        Raises:
            SourceRefused: the broker refuses, whether the topic exists or not.
            TransientSourceError: the broker does not answer.
        """
        asked = self._admin.describe_topics(TopicCollection([topic]), request_timeout=self.seconds)
        try:
            asked[topic].result()
        except KafkaException as error:
            if error.args[0].code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION}:
                return
            step = f"topic {topic} cannot be looked at on Kafka at {self._servers}"
            raise self._error(error.args[0], step, reading(topic)) from None

    def refuse_group(self, error: KafkaError) -> SourceRefused | TransientSourceError:
        """Return the error for the group's offsets, and note it if the broker refuses the group."""
        mapped = self._error(error, f"the offsets of group {self._group}", f"Read on group {self._group}")
        if is_of_group(error) and isinstance(mapped, SourceRefused):
            self.group_refusal = mapped
        return mapped

    def _error(self, error: KafkaError, step: str, needs: str) -> SourceRefused | TransientSourceError:
        return map_error(error, step, self._client, needs)

    def _list_topics(self) -> Any:
        self._refusal = self._away = None
        try:
            return self._probe.list_topics(timeout=self.seconds)
        except KafkaException as error:
            # A refused client, for example with a wrong password, gets the same error here as one without connection.
            # Only the callback gets the reason, and only a poll calls it.
            self._probe.poll(0)
            refusal: KafkaError | None = self._refusal
            step = f"no answer from Kafka at {self._servers}"
            if refusal is not None or error.args[0].code() in TERMINAL:
                raise self._error(refusal or error.args[0], step, "Describe on the cluster") from None
            away: KafkaError | None = self._away
            reason = reason_of(away or error.args[0])
            raise TransientSourceError(f"{step}: {reason}; check that it runs, and kafka.bootstrap_servers") from None

    def _note(self, error: KafkaError) -> None:
        if error.code() in TERMINAL:
            self._refusal = error
        elif error.code() in AWAY:
            self._away = error

    @patiently
    def topic_id(self, topic: str, cluster: str) -> str | None:
        """Return a topic's id as it is now.

        Raises:
            SourceError: the broker does not answer, or the topic does not exist.
        """
        return self._topic_ids([topic], cluster)[topic]

    def _topic_ids(self, names: Sequence[str], cluster: str) -> dict[str, str | None]:
        if not names or cluster.startswith(MOCK_CLUSTER):
            return dict.fromkeys(names)
        asked = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=self.seconds)
        ids: dict[str, str | None] = {}
        for name, answer in asked.items():
            try:
                # A broker older than 2.8 returns the id of all zeroes, which is "AAA…" in base64.
                topic_id = str(answer.result().topic_id)
            except KafkaException as error:
                raise self._error(error.args[0], f"topic {name} cannot be described", reading(name)) from None
            ids[name] = None if topic_id.strip("A") == "" else topic_id
        return ids

    @patiently
    def bounds(self, topic: str, partition: int) -> Bounds:
        """Return where a partition begins and ends now.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        topic_partition = TopicPartition(topic, partition)
        try:
            # The end first: a stable offset that is asked later, and is below it, shows an open transaction.
            _, end = self._probe.get_watermark_offsets(topic_partition, timeout=self.seconds, cached=False)
            start, stable = self._stable.get_watermark_offsets(topic_partition, timeout=self.seconds, cached=False)
        except KafkaException as error:
            step = f"{topic}/{partition}: its offsets cannot be read"
            raise self._error(error.args[0], step, reading(topic)) from None
        return Bounds(start, stable, max(stable, end))

    def all_bounds(self, partitions: Collection[tuple[str, int]], cluster: str) -> dict[tuple[str, int], Bounds]:
        """Return where partitions begin and end now. Those whose broker did not answer are missing: ask `bounds`."""
        return {} if cluster.startswith(MOCK_CLUSTER) else bounds_of(self._admin, partitions, self.seconds)

    def waits_since(self, topic: str, partition: int, offset: int) -> float | None:
        """Return the Kafka timestamp, in seconds since 1970, of the first record from an offset on, stable or not.

        None if there is no record: markers of transactions are none.

        Raises:
            SourceError: it did not come in time, or has no time that can be believed: a producer may have chosen it.
        """
        answer = self._first(TopicPartition(topic, partition, offset), min(_PROBE_SECONDS, self.seconds))
        step = f"{topic}/{partition}: since when the record at offset {offset} has been in Kafka is not known"
        if answer is None:
            raise SourceError(f"{step}: it did not come in time; the next run tries again")
        error = answer.error()
        if error is not None:
            if error.code() == PARTITION_EOF:
                return None
            raise (
                self._error(error, step, reading(topic))
                if error.code() in TERMINAL
                else SourceError(f"{step}: {reason_of(error)}")
            )
        written = float(answer.timestamp()[1]) / 1000
        if written < 0:
            raise SourceError(f"{step}: it has no timestamp; set message.timestamp.type=LogAppendTime for the topic")
        if written > time.time() + CLOCK_SLACK.total_seconds():
            raise SourceError(
                f"{step}: its timestamp is of the future; find its producer, or set"
                " message.timestamp.type=LogAppendTime for the topic"
            )
        return written

    def configuration(self, topic: str) -> dict[str, str]:
        """Return a topic's configuration.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            asked = self._admin.describe_configs([resource], request_timeout=self.seconds)
            entries = asked[resource].result()
        except KafkaException as error:
            step = f"{topic}: its retention cannot be read"
            raise self._error(error.args[0], step, f"DescribeConfigs on topic {topic}") from None
        return {name: str(entry.value) for name, entry in entries.items()}

    @patiently
    def disagreement(self, topic: str, partition: int, last: LastRecord) -> str | None:
        """Return how the broker's log contradicts the archive's last record; None if it does not.

        It does not if retention deleted that record, or if its batch cannot be decoded.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        position = TopicPartition(topic, partition, last.offset, leader_epoch=last.leader_epoch)
        answer = self._first(position, self.seconds)
        if answer is None:
            raise TransientSourceError(f"{topic}/{partition}: no record came at offset {last.offset}; try again")
        error = answer.error()
        if error is None:
            return contradiction(last, answer.offset(), answer.leader_epoch())
        if says_truncated(error):
            return error.str()
        if error.code() in {PARTITION_EOF, OFFSET_OUT_OF_RANGE} | DAMAGED:
            return None
        step = f"{topic}/{partition}: the record at offset {last.offset} cannot be read again"
        raise self._error(error, step, reading(topic))

    def _first(self, position: TopicPartition, seconds: float) -> Received | None:
        """Return the first record, event or error from a position on; None if nothing comes in time."""
        self._probe.assign([position])
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for message in cast("list[Received]", self._probe.consume(1, 0.2)):
                    error = message.error()
                    # Other errors, such as a broken connection, go away. Those of the group do not matter here.
                    if error is None or (error.code() in ANSWERS | TERMINAL and not is_of_group(error)):
                        return message
            return None
        finally:
            self._probe.unassign()

    @patiently
    def remembered(self, partitions: Iterable[tuple[str, int]], archive: str) -> list[CommittedHead]:
        """Return the heads of this archive in the group's committed offsets. Their signatures are not checked yet.

        Raises:
            SourceError: the broker does not answer.
        """
        asked = [TopicPartition(topic, partition) for topic, partition in partitions]
        if not asked:
            return []
        if self.group_refusal is not None:
            raise self.group_refusal
        try:
            answers = read_committed(self._stable, asked, self.seconds)
        except KafkaException as error:
            raise self.refuse_group(error.args[0]) from None
        heads = (parse_committed_head(answer, archive) for answer in answers)
        return [head for head in heads if head is not None]

    def commit(self, log: Log, offset: int, archive: str, head: Head, signer: Signer) -> None:
        """Commit a log's offset for lag monitors, with the head as metadata. A failure is only logged.

        Returns after the timeout of a request, also if the broker is silent: librdkafka's own waits without end.
        """
        if self._is_deaf or self.group_refusal is not None:
            return
        position = TopicPartition(log.topic, log.partition, offset, commit_metadata(archive, log, head, signer))
        try:
            self._stable.commit(offsets=[position], asynchronous=True)
            problem = self._wait_for_commit(log)
        except KafkaException as error:
            problem = str(self.refuse_group(error.args[0]))
        if problem is not None:
            logger.warning("%s: the group's offset was not committed: %s", log, problem, extra={"log": log})

    def _wait_for_commit(self, log: Log) -> str | None:
        """Wait until a log's commit was acknowledged, and return why it was not."""
        key, until = (log.topic, log.partition), time.monotonic() + self.seconds
        while key not in self._commits:
            if time.monotonic() > until:
                self._is_deaf = True
                return f"no answer within {self.seconds:.0f} s"
            # Only a poll calls `_note_commit`. It always takes this long.
            with self._polls:
                if key not in self._commits:
                    event = self._stable.poll(_COMMIT_POLL_SECONDS)
                    error = event.error() if event is not None else None
                    if error is not None and is_of_group(error):
                        # librdkafka would keep the commit, and wait for a coordinator that takes it.
                        self._is_deaf = True
                        return str(self.refuse_group(error))
        error = self._commits.pop(key)
        return None if error is None else str(self.refuse_group(error))

    def _note_commit(self, error: KafkaError | None, positions: Sequence[TopicPartition]) -> None:
        for position in positions:
            self._commits[position.topic, position.partition] = error or position.error


class Feed:
    """A read-committed consumer of the partitions that one drain reads."""

    def __init__(
        self,
        client: Mapping[str, str],
        group: str,
        positions: Sequence[TopicPartition],
        note: Callable[[KafkaError], None] | None = None,
    ) -> None:
        """Begin to fetch.

        Args:
            client: librdkafka's properties.
            group: the consumer group.
            positions: where to read each partition from.
            note: called by `read` with errors of brokers, such as a response that is too large.
        """
        callbacks = {"error_cb": note} if note else {}
        self._client = dict(client)
        self._consumer = make_reader(self._client, group, "read_committed", **callbacks)
        self._consumer.assign(list(positions))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self, records: int, seconds: float) -> list[Received]:
        """Return at most this number of records and events, and wait at most this many seconds for them."""
        return cast("list[Received]", self._consumer.consume(records, seconds))

    def seek(self, position: TopicPartition) -> None:
        """Continue a partition from another position.

        Raises:
            SourceError: librdkafka refuses.
        """
        topic, partition = position.topic, position.partition
        # Not with librdkafka's `seek`, which fails for a partition that it no longer fetches.
        try:
            self._consumer.incremental_unassign([TopicPartition(topic, partition)])
            self._consumer.incremental_assign([position])
            self._consumer.resume([TopicPartition(topic, partition)])
        except KafkaException as error:
            step = f"{topic}/{partition}: cannot read from offset {position.offset}"
            raise map_error(error.args[0], step, self._client, reading(topic)) from None

    def stop(self, topic: str, partition: int) -> None:
        """Stop fetching a partition, until `seek`. Records that were fetched already may still come."""
        self._consumer.pause([TopicPartition(topic, partition)])
