"""Reads what Kafka says of the logs: how far each is behind, how long Kafka keeps what waits, and topics without a log.

Rules:
- Nothing here waits long: a request has `REQUEST_SECONDS`, and after `KAFKA_SECONDS` the remaining logs are not asked.
- A broker that does not answer is one problem, not one for each log.
- Timestamps of records are the producers', unless the topic has `message.timestamp.type=LogAppendTime`. Kafka's
  retention goes by the same ones.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from custody.errors import SourceError, SourceRefused, counted
from custody.format.manifest import Statement
from custody.format.times import duration_text
from tasks.drain.bounds import Bounds
from tasks.drain.change import find_change
from tasks.drain.kafka import Broker, Topic, is_wanted
from tasks.drain.retention import read_headroom
from tasks.health.archive import LogRead
from tasks.health.model import Kind, Problem, ServerHealth, TopicHealth
from tasks.settings import Settings

REQUEST_SECONDS = 3.0
"""Timeout of one request."""
KAFKA_SECONDS = 15.0
"""How long logs are compared with Kafka, all together."""
_COMPARE = "check that the brokers answer, and that this client may read the topic (docs/kafka.md)"


@dataclass(frozen=True, slots=True)
class KafkaRead:
    """What Kafka said.

    Attributes:
        server: the broker.
        logs: the logs, with their lag.
        topics_without_log: topics with partitions that have no log; None if Kafka did not answer, or if not all
            logs are known.
        problems: problems that belong to no log.
    """

    server: ServerHealth
    logs: tuple[LogRead, ...]
    topics_without_log: tuple[TopicHealth, ...] | None = None
    problems: tuple[Problem, ...] = ()


def read_kafka(settings: Settings, logs: Sequence[LogRead], now: datetime, *, listed: bool = True) -> KafkaRead:
    """Compare logs with their partitions.

    Args:
        settings: the settings.
        logs: the archive's logs.
        now: the time.
        listed: whether these are all of them, so that a partition without one has none.

    Raises:
        ConfigurationError: librdkafka refuses a setting.
    """
    kafka = settings.kafka
    servers, deadline = kafka.bootstrap_servers, time.monotonic() + KAFKA_SECONDS
    with Broker(kafka.librdkafka(), kafka.group, REQUEST_SECONDS) as broker:
        try:
            cluster = broker.cluster()
            names = sorted({read.name.topic for read in logs if read.is_current})
            topics = {topic.name: topic for topic in broker.topics([*kafka.topics, *names])}
        except SourceError as error:
            problem = Problem("failed", "kafka-unreachable", "kafka", *_split(error))
            return KafkaRead(ServerHealth(servers, reachable=False), tuple(logs), None, (problem,))
        partitions = [(topic.name, number) for topic in topics.values() for number in range(topic.partitions)]
        bounds = broker.all_bounds(partitions, cluster)
        comparison = _Comparison(settings, broker, cluster, topics, now, deadline, bounds)
        compared = tuple(map(comparison.compare, logs))
        missing = tuple(comparison.missing(logs))
        without, waiting = _topics_without_log(comparison, logs) if listed else (None, ())
    server = ServerHealth(servers, reachable=True)
    return KafkaRead(server, compared, without, (*missing, *waiting, *comparison.late()))


def _split(error: SourceError) -> tuple[str, str]:
    """Return an error's message and its remedy, which stands after a semicolon."""
    message, _, remedy = str(error).rpartition("; ")
    return (message, remedy) if message else (str(error), "check that it runs, and the settings of kafka")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What waits in a partition that has no log. Each number is None if it is not known.

    Attributes:
        records: how many records it holds.
        seconds: how long the oldest one has been in Kafka.
        headroom: how long Kafka keeps that one; None also without a limit.
    """

    records: int | None = None
    seconds: float | None = None
    headroom: float | None = None


class _Comparison:
    """Compares logs with the broker, one after the other."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        cluster: str,
        topics: Mapping[str, Topic],
        now: datetime,
        deadline: float,
        known_bounds: Mapping[tuple[str, int], Bounds],
    ) -> None:
        self._settings, self._broker, self._cluster = settings, broker, cluster
        self.topics, self._now, self._deadline = topics, now, deadline
        self._left_out = 0
        self._known_bounds = known_bounds

    def is_late(self) -> bool:
        """Return whether no more may be asked."""
        return time.monotonic() > self._deadline

    def _bounds(self, topic: str, partition: int) -> Bounds:
        """Return where a partition begins and ends: what Kafka said when all were asked, if it did."""
        return self._known_bounds.get((topic, partition)) or self._broker.bounds(topic, partition)

    def wanted(self) -> list[Topic]:
        """Return the topics that `kafka.topics` names."""
        return [topic for topic in self.topics.values() if is_wanted(topic.name, self._settings.kafka.topics)]

    def late(self) -> Iterator[Problem]:
        """Yield the problem of logs that were not compared, if there are any."""
        if self._left_out:
            logs = counted(self._left_out, "log was", "logs were")
            message = f"Kafka answers slowly: {logs} not compared within {KAFKA_SECONDS:.0f} s"
            yield Problem("warning", "lag-unknown", "kafka", message, "look at the brokers, and try again")

    def missing(self, logs: Sequence[LogRead]) -> Iterator[Problem]:
        """Yield the problems of named topics that no listing has: refused, or missing. Those of logs say it there."""
        known = {read.name.topic for read in logs}
        for name in self._settings.kafka.topics:
            if name.startswith("^") or name in self.topics or name in known:
                continue
            if self.is_late():
                message = f"Kafka answers slowly: whether the topic {name} exists is not known"
                yield Problem("warning", "lag-unknown", name, message, "look at the brokers, and try again")
                continue
            try:
                self._broker.check_visible(name)
            except SourceRefused as error:
                yield _refused(name, error)
            except SourceError as error:
                yield _unknown("lag-unknown", name, error)
            else:
                message = f"the topic {name} does not exist"
                yield Problem("failed", "topic-missing", name, message, "create it, or correct kafka.topics")

    def waiting(self, topic: str, partition: int) -> _Waiting:
        """Return what waits in a partition without a log, as far as Kafka says it in time."""
        records = seconds = headroom = None
        with suppress(SourceError):
            if self.is_late():
                return _Waiting()
            bounds = self._bounds(topic, partition)
            records = bounds.end - bounds.start
            if not records or self.is_late():
                return _Waiting(records)
            written = self._broker.waits_since(topic, partition, bounds.start)
            if written is None:
                return _Waiting(records)
            seconds = max(0.0, self._now.timestamp() - written)
            if not self.is_late():
                headroom = read_headroom(self._broker, topic, partition, bounds.start, written).seconds
        return _Waiting(records, seconds, headroom)

    def without_log(self, topic: str, waiting: Sequence[_Waiting], records: int | None) -> Problem:
        """Return the problem of a topic whose partitions have no log; a failure once its records wait for long."""
        settings = self._settings
        waits = max((each.seconds for each in waiting if each.seconds is not None), default=None)
        left = min((each.headroom for each in waiting if each.headroom is not None), default=None)
        message = f"{counted(len(waiting), 'partition has', 'partitions have')} no log yet"
        if records is None:
            message += ", and how many records wait there is not known: Kafka did not say it"
        elif records:
            message += f", and {counted(records, 'record waits', 'records wait')} there"
            message += "" if waits is None else f", the oldest for {duration_text(waits)}"
        if left is not None and left < settings.drain.headroom_seconds:
            message += f"; Kafka deletes the first ones in {duration_text(max(0.0, left))}"
            remedy = "raise the topic's retention.ms now, then run 'custody drain --once': it begins the logs"
            return Problem("failed", "topic-without-log", topic, message, remedy)
        if waits is not None and waits > settings.health.lag_seconds:
            remedy = "check that the drain runs, and what its last run says: it begins the logs"
            return Problem("failed", "topic-without-log", topic, message, remedy)
        return Problem("warning", "topic-without-log", topic, message, "run the drain: it begins the logs")

    def compare(self, read: LogRead) -> LogRead:
        """Return a log with its lag, or with how its partition no longer continues it."""
        if not read.is_current or read.newest is None:
            return read
        health, log = read.health, read.name
        if not is_wanted(log.topic, self._settings.kafka.topics):
            # A topic that was deleted on purpose is taken out of the setting, and then there is nothing to say.
            if log.topic not in self.topics:
                return read
            message = "its topic exists, but kafka.topics does not name it: nothing of it is archived"
            problem = Problem(
                "warning", "not-drained", health.log, message, "add it to kafka.topics, or delete the topic"
            )
            return read.with_health(health, problem)
        if self._leaves_out():
            return read
        try:
            bounds = self._known_bounds.get((log.topic, log.partition))
            changed = find_change(self._broker, self._cluster, self.topics.get(log.topic), log, read.newest, bounds)
            if changed is not None:
                differs = f" (archived: {changed.expected}; now: {changed.found})" if changed.found else ""
                message = f"{changed.message}{differs}"
                return read.with_health(health, Problem("failed", "topic-changed", health.log, message, changed.action))
            return self._measure(read, read.newest)
        except SourceRefused as error:
            return read.with_health(health, _refused(health.log, error))
        except SourceError as error:
            return read.with_health(health, _unknown("lag-unknown", health.log, error))

    def _measure(self, read: LogRead, newest: Statement) -> LogRead:
        """Return a log with its lag in records and seconds, and its headroom. Raises SourceError."""
        log, position = read.name, newest.next_offset
        if self._leaves_out():
            return read
        lag = max(0, self._bounds(log.topic, log.partition).end - position)
        read = read.with_health(replace(read.health, lag_records=lag))
        if not lag:
            return read.with_health(replace(read.health, lag_seconds=0.0))
        if self._leaves_out():
            return read
        try:
            written = self._broker.waits_since(log.topic, log.partition, position)
        except SourceRefused:
            raise
        except SourceError as error:
            message, remedy = _split(error)
            message = f"{counted(lag, 'record waits', 'records wait')} for the archive, for an unknown time: {message}"
            return read.with_health(read.health, Problem("warning", "lag-unknown", read.health.log, message, remedy))
        if written is None:
            # Markers of transactions, and no record.
            return read.with_health(replace(read.health, lag_seconds=0.0))
        read = self._with_lag(read, lag, written)
        return read if self._leaves_out() else self._with_headroom(read, position, written)

    def _leaves_out(self) -> bool:
        """Return whether the rest of a log is not asked, and count it."""
        late = self.is_late()
        self._left_out += late
        return late

    def _with_lag(self, read: LogRead, lag: int, written: float) -> LogRead:
        """Return a log with how long its records wait."""
        waits = max(0.0, self._now.timestamp() - written)
        health = replace(read.health, lag_seconds=waits)
        # What lingers on purpose waits for so long in any case.
        if waits <= self._settings.health.lag_seconds + self._settings.drain.linger_seconds:
            return read.with_health(health)
        message = (
            f"{counted(lag, 'record waits', 'records wait')} for the archive, the oldest for {duration_text(waits)}"
        )
        remedy = "check that the drain runs, and what its last run says"
        return read.with_health(health, Problem("failed", "lag", health.log, message, remedy))

    def _with_headroom(self, read: LogRead, position: int, written: float) -> LogRead:
        """Return a log with how long Kafka keeps the record that it waits for."""
        log = read.name
        try:
            headroom = read_headroom(self._broker, log.topic, log.partition, position, written)
        except SourceError as error:
            return read.with_health(read.health, _unknown("headroom", read.health.log, error))
        health, left = replace(read.health, headroom_seconds=headroom.seconds), headroom.seconds
        problems: list[Problem] = []
        if headroom.unknown:
            problems.append(_unknown("headroom", health.log, SourceError(headroom.unknown)))
        if left is not None and left < self._settings.drain.headroom_seconds:
            message = f"Kafka deletes records that are not archived yet in {duration_text(max(0.0, left))}"
            remedy = "raise the topic's retention.ms now, then run 'custody drain --once'"
            problems.append(Problem("failed", "headroom", health.log, message, remedy))
        return read.with_health(health, *problems)


def _unknown(kind: Kind, log: str, error: SourceError) -> Problem:
    return Problem("warning", kind, log, f"it cannot be compared with Kafka: {error}", _COMPARE)


def _refused(subject: str, error: SourceRefused) -> Problem:
    remedy = "allow this client what it needs (docs/kafka.md)"
    return Problem("failed", "topic-refused", subject, f"it cannot be compared with Kafka: {error}", remedy)


def _topics_without_log(
    comparison: _Comparison, logs: Sequence[LogRead]
) -> tuple[tuple[TopicHealth, ...], tuple[Problem, ...]]:
    """Return the topics that match and have partitions without a log, and a problem for each."""
    begun = {(read.name.topic, read.name.partition) for read in logs}
    without: list[TopicHealth] = []
    problems: list[Problem] = []
    for topic in comparison.wanted():
        partitions = [number for number in range(topic.partitions) if (topic.name, number) not in begun]
        if not partitions:
            continue
        waiting = [comparison.waiting(topic.name, number) for number in partitions]
        counts = [each.records for each in waiting if each.records is not None]
        records = sum(counts) if len(counts) == len(waiting) else None
        without.append(TopicHealth(topic.name, len(partitions), records))
        problems.append(comparison.without_log(topic.name, waiting, records))
    return tuple(without), tuple(problems)
