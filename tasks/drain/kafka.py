"""Kafka for the drain: topics, where partitions begin and end, and a read-committed feed of records.

Rules:
- Records come from `Feed`, which reads partitions from offsets that the archive gives. The group's committed offset
  is written only for lag monitors.
- The committed offset's metadata holds the signed head (`tasks.drain.committed_heads`).
- Every failure is one of custody's errors: terminal (`SourceRefused`, `LogChanged`) or transient.
- Settings that correctness depends on override the operator's.

This is one module because its requests and its feed share how librdkafka's errors are mapped and retried.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import tenacity
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

from custody.errors import KeyUnavailable, LogChanged, SourceRefused, TransientSourceError
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.manifest import LastRecord
from custody.tlog.head import Head
from tasks.drain.assemble import Record
from tasks.drain.clients import make_admin, make_consumer
from tasks.drain.committed_heads import METADATA_LIMIT, CommittedHead, encode_committed_head, parse_committed_head

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""Timeout of one request to the broker."""
_RETRY_SHARE = 0.8
"""How long a request is retried, in timeouts. It is less than one, so a request that timed out is not retried."""
_PROBE_SECONDS = 2.0
DIRECT = "direct"
"""The cluster's name in logs that were never in Kafka."""
MOCK_CLUSTER = "mockCluster"
"""Prefix of the id of librdkafka's mock cluster. It has no topic ids, and its admin calls time out."""

_QUEUE_KBYTES = 24 * 1024
_FETCH_BYTES = 64 * 1024
"""Bytes of a partition in one fetch, as stored; or one batch, if it is larger. All of a fetch is inflated at once, and
3 KB can inflate to 95 MB: the default of 1 MiB could take 30 GB of memory, and is not noticeably faster."""
_TERMINAL = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - confluent-kafka's name for librdkafka's own codes
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError._INVALID_ARG,  # noqa: SLF001
    KafkaError._SSL,  # noqa: SLF001
}
_AWAY = {KafkaError._TRANSPORT, KafkaError._RESOLVE}  # noqa: SLF001
"""Errors of a connection to a broker."""
PARTITION_EOF: int = KafkaError._PARTITION_EOF  # noqa: SLF001
OFFSET_OUT_OF_RANGE: int = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001
"""librdkafka's error for a position that it cannot read from, because it is out of range or truncated."""
LOG_TRUNCATION: int = KafkaError._LOG_TRUNCATION  # noqa: SLF001
DAMAGED: frozenset[int] = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG}  # noqa: SLF001
)
"""Errors for a batch that librdkafka cannot decode, or not within its limits. They have the batch's first offset."""
_ANSWERS = frozenset({PARTITION_EOF, OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}) | DAMAGED


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now. `id` is null where the broker has no topic ids."""

    name: str
    id: str | None
    partitions: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """Offsets of a partition: the log start, the last stable offset, and the read-uncommitted end."""

    start: int
    stable: int
    end: int


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


def map_error(error: KafkaError, step: str) -> SourceRefused | TransientSourceError:
    """Return custody's error for one of Kafka's. The message begins with the step that failed."""
    if error.code() in _TERMINAL or error.fatal():
        return SourceRefused(f"{step}: {error.str()}; check the topic, the client's rights and kafka.client's settings")
    return TransientSourceError(f"{step}: {error.str()}; the next run tries again")


def _reason(error: KafkaError) -> str:
    """Return why a broker is away, in librdkafka's words, without its name for the connection and its times."""
    return re.sub(r"^[^ ]+/[a-z0-9]+: | \([^)]*\)$", "", error.str())


def says_truncated(error: KafkaError) -> bool:
    """Return whether librdkafka found by leader epochs that a partition was truncated."""
    # With auto.offset.reset=error, the text of that error is part of the error for the position.
    return error.code() == LOG_TRUNCATION or _TRUNCATED in error.str()


_TRUNCATED = KafkaError(LOG_TRUNCATION).str()


def contradiction(last: LastRecord, offset: int, leader_epoch: int | None) -> str | None:
    """Return how the broker's record contradicts the archive's last one; None if it does not.

    At the same offset, a record with the same leader epoch is the same record. If compaction removed that record, the
    next one must not have an earlier leader epoch, because leader epochs never decrease. With the same or a later
    epoch it shows nothing.

    Args:
        last: the archive's last record.
        offset: the offset of the broker's first record at or after it.
        leader_epoch: the leader epoch of that record.
    """
    if leader_epoch is None or leader_epoch < 0 or leader_epoch == last.leader_epoch or offset < last.offset:
        return None
    if offset > last.offset and leader_epoch > last.leader_epoch:
        return None
    return (
        f"the archive has the record at offset {last.offset} from leader epoch {last.leader_epoch}, but the broker has"
        f" one at offset {offset} from leader epoch {leader_epoch}"
    )


def truncated(log: Log, reason: str) -> LogChanged:
    """Return the error for a partition that lost records which the archive has."""
    return LogChanged(
        f"{log}: {reason}: the partition was truncated, by an unclean leader election or a broker that lost its disk,"
        " and may have grown again. New records at offsets that the archive has already would be left out, so nothing"
        f" is appended. Compare with 'custody verify --kafka'. Then 'custody new-epoch {log.topic}' begins a new epoch"
        " of the log, from the partition's present start; the old epoch stays as it is."
    )


def _is_late(state: tenacity.RetryCallState) -> bool:
    """Return whether a request was retried for long enough, by the timeout of its `Broker`."""
    seconds = getattr(state.args[0], "seconds", REQUEST_SECONDS)
    return (state.seconds_since_start or 0.0) >= _RETRY_SHARE * seconds


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception_type(TransientSourceError),
    stop=_is_late,
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=2, jitter=0.1),
    reraise=True,
)
"""Retry while a broker starts, or while a coordinator or leader moves; not while a broker is down."""


class Broker:
    """Requests to the cluster, with a read-uncommitted and a read-committed consumer."""

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
        self._servers = base["bootstrap.servers"]
        self._refusal: KafkaError | None = None
        self._away: KafkaError | None = None
        self._probe = _consumer(base, group, "read_uncommitted", self._note)
        self._stable = _consumer(base, group, "read_committed")
        self._admin = make_admin(base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.close()
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

    def missing(self, topic: str) -> SourceRefused:
        """Return the error for a topic in the settings that does not exist."""
        return SourceRefused(
            f"topic {topic!r} does not exist on Kafka at {self._servers}, or this client may not see it:"
            " create it, or correct kafka.topics"
        )

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
            if refusal is not None or error.args[0].code() in _TERMINAL:
                raise map_error(refusal or error.args[0], step) from None
            away: KafkaError | None = self._away
            reason = _reason(away or error.args[0])
            raise TransientSourceError(f"{step}: {reason}; check that it runs, and kafka.bootstrap_servers") from None

    def _note(self, error: KafkaError) -> None:
        if error.code() in _TERMINAL:
            self._refusal = error
        elif error.code() in _AWAY:
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
                raise map_error(error.args[0], f"topic {name} cannot be described") from None
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
            start, stable = self._stable.get_watermark_offsets(topic_partition, timeout=self.seconds, cached=False)
            _, end = self._probe.get_watermark_offsets(topic_partition, timeout=self.seconds, cached=False)
        except KafkaException as error:
            raise map_error(error.args[0], f"{topic}/{partition}: its offsets cannot be read") from None
        return Bounds(start, stable, max(stable, end))

    def waits_since(self, topic: str, partition: int, offset: int) -> float | None:
        """Return the Kafka timestamp, in seconds since 1970, of the record at an offset that is not stable yet.

        None if no record comes in time.
        """
        answer = self._first(TopicPartition(topic, partition, offset), min(_PROBE_SECONDS, self.seconds))
        return float(answer.timestamp()[1]) / 1000 if answer is not None and answer.error() is None else None

    @patiently
    def seconds_left(self, topic: str, partition: int, offset: int, written: float | None = None) -> float | None:
        """Return how long the topic's retention keeps the record at an offset; None if no limit is known.

        By time, a record is deleted when it is older than retention.ms. By size, the record is deleted when as much was
        added as lies before it now; at a steady rate that takes as long as the time between the two records.

        Args:
            topic: the topic.
            partition: its number.
            offset: the record's offset.
            written: what `waits_since` returns for it; asked if None.

        Raises:
            SourceError: the broker does not answer, or says no.
        """
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        try:
            asked = self._admin.describe_configs([resource], request_timeout=self.seconds)
            entries = asked[resource].result()
        except KafkaException as error:
            raise map_error(error.args[0], f"{topic}: its retention cannot be read") from None
        kept_ms, kept_bytes = int(entries["retention.ms"].value), int(entries["retention.bytes"].value)
        if written is None:
            written = self.waits_since(topic, partition, offset)
        if "delete" not in entries["cleanup.policy"].value or written is None or written < 0:
            return None
        now = time.time()
        # A producer may have chosen the time: one of the future must not hide anything.
        written = min(written, now)
        limits = [written + kept_ms / 1000 - now] if kept_ms >= 0 else []
        start = self.bounds(topic, partition).start
        if kept_bytes >= 0 and start > 0:
            oldest = self.waits_since(topic, partition, start)
            limits += [written - oldest] if oldest is not None and oldest >= 0 else []
        return min(limits, default=None)

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
        raise map_error(error, f"{topic}/{partition}: the record at offset {last.offset} cannot be read again")

    def after_batch(self, topic: str, partition: int, base: int, inside: int) -> int:
        """Return the first offset after a batch that cannot be decoded. librdkafka does not say where it ends.

        Reading from any offset in it gives an error with the batch's first offset; from the next one it does not.

        Args:
            topic: the topic.
            partition: its number.
            base: the batch's first offset.
            inside: an offset from which on to search; it is returned if it is not in the batch.

        Raises:
            SourceError: the broker does not answer, or says no.
        """

        def is_in_batch(offset: int) -> bool:
            until = time.monotonic() + self.seconds
            error = None
            while True:
                answer = self._first(TopicPartition(topic, partition, offset), until - time.monotonic())
                if answer is None:
                    raise TransientSourceError(f"{topic}/{partition}: no answer came at offset {offset}; try again")
                error = answer.error()
                # After a wrong checksum librdkafka goes on at a nonsensical offset, also when it was told another one.
                if error is None or error.code() != OFFSET_OUT_OF_RANGE or answer.offset() == offset:
                    break
            if error is not None and error.code() not in DAMAGED | {PARTITION_EOF}:
                raise map_error(error, f"{topic}/{partition}: cannot read from offset {offset}")
            return error is not None and error.code() in DAMAGED and answer.offset() == base

        if not is_in_batch(inside):
            return inside
        end, step = self.bounds(topic, partition).end, 1
        while is_in_batch(after := min(inside + step, end)):
            inside, step = after, 2 * step
        # The batch ends after `inside`, and at `after` at the latest.
        while after - inside > 1:
            middle = (inside + after) // 2
            if is_in_batch(middle):
                inside = middle
            else:
                after = middle
        return after

    def _first(self, position: TopicPartition, seconds: float) -> Received | None:
        """Return the first record, event or error from a position on; None if nothing comes in time."""
        self._probe.assign([position])
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for message in cast("list[Received]", self._probe.consume(1, 0.2)):
                    error = message.error()
                    # Other errors, such as a broken connection, go away.
                    if error is None or error.code() in _ANSWERS or error.code() in _TERMINAL:
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
        try:
            answers = self._stable.committed(asked, timeout=self.seconds)
        except KafkaException as error:
            raise map_error(error.args[0], "the group's offsets cannot be read") from None
        heads = [
            parse_committed_head(answer.metadata or "", archive, answer.topic, answer.partition) for answer in answers
        ]
        return [head for head in heads if head is not None]

    def commit(self, log: Log, offset: int, archive: str, head: Head, signer: Signer) -> None:
        """Commit a log's offset for lag monitors, with the head as metadata. A failure is only logged."""
        try:
            metadata = encode_committed_head(archive, log, head, signer)
        except KeyUnavailable as error:
            logger.warning("%s: the head is not stored with the group's offset: %s", log, error, extra={"log": log})
            metadata = ""
        if len(metadata) > METADATA_LIMIT:
            logger.warning(
                "%s: the head is not stored with the group's offset: the key's id is too long", log, extra={"log": log}
            )
            metadata = ""
        try:
            self._stable.commit(
                offsets=[TopicPartition(log.topic, log.partition, offset, metadata)], asynchronous=False
            )
        except KafkaException as error:
            reason = error.args[0].str()
            logger.warning("%s: the group's offset was not committed: %s", log, reason, extra={"log": log})


class Feed:
    """A read-committed consumer of the partitions that one drain reads."""

    def __init__(self, client: Mapping[str, str], group: str, positions: Sequence[TopicPartition]) -> None:
        """Begin to fetch.

        Args:
            client: librdkafka's properties.
            group: the consumer group.
            positions: where to read each partition from.
        """
        self._consumer = _consumer(dict(client), group, "read_committed")
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
            raise map_error(error.args[0], f"{topic}/{partition}: cannot read from offset {position.offset}") from None

    def stop(self, topic: str, partition: int) -> None:
        """Stop fetching a partition, until `seek`. Records that were fetched already may still come."""
        self._consumer.pause([TopicPartition(topic, partition)])


def _consumer(
    client: dict[str, str], group: str, isolation: str, note: Callable[[KafkaError], None] | None = None
) -> Consumer:
    defaults: dict[str, str | int | bool] = {
        # Records waiting in memory, for all partitions: 0.3 s at 250,000 records of 340 bytes a second.
        "queued.max.messages.kbytes": _QUEUE_KBYTES,
        "fetch.message.max.bytes": _FETCH_BYTES,
        # How soon a full queue is checked again. librdkafka's default of a second would halve the speed.
        "fetch.queue.backoff.ms": 5,
        "fetch.wait.max.ms": 100,
    }
    ours: dict[str, str | int | bool] = {
        "group.id": group,
        "isolation.level": isolation,
        "auto.offset.reset": "error",
        "check.crcs": True,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
    }
    return make_consumer({**defaults, **client, **ours}, note)
