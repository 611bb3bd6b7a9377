"""The loop that reads, assembles and appends, until the run has caught up, is out of time, or must stop."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from custody.archive.assemble import written_at
from custody.archive.writer import Entry
from custody.errors import CustodyError, SourceError, SourceRefused, TransientSourceError, counted
from custody.format.times import EPOCH, kafka_moment, parse_time
from custody.store.protocol import CLOCK_SLACK, Store, host_ahead
from tasks.drain.appends import Appends, held_bytes
from tasks.drain.clients import queue_limit
from tasks.drain.context import Context
from tasks.drain.intake import STALL_SECONDS, Intake, stalled
from tasks.drain.kafka import (
    DAMAGED,
    OFFSET_OUT_OF_RANGE,
    PARTITION_EOF,
    Feed,
    Received,
    error_of,
    partition_of,
)
from tasks.drain.kafka_errors import is_of_group, map_error, reading
from tasks.drain.linger import Linger
from tasks.drain.log_run import LogRun, TopicPartition
from tasks.drain.retention import Retentions, read_headroom
from tasks.drain.signals import stop_requested
from tasks.drain.truncation import LOG_TRUNCATION, says_truncated
from tasks.drain.tuning import keep_freed_memory, rare_collections

READ_RECORDS = 500
"""Records in one read from librdkafka. So few objects stay in the CPU's cache, which makes a read 40 % cheaper."""
READ_SECONDS = 0.1
"""How long a read waits for records; also how soon a stop is noticed."""
CATCHING_UP_OFFSETS = 250_000
"""A run for which more offsets wait than these, of all its logs, catches up. To make fewer of them dense takes half a
second at most."""
MEASURED_LOGS = 8
"""At the end of a run, headroom is measured for all that lingers, and for this many of the other logs that are behind:
each of them takes a read."""

logger = logging.getLogger(__name__)


class Loop:
    """The loop that reads, assembles and appends."""

    def __init__(
        self, context: Context, runs: Sequence[LogRun], appends: Appends, *, once: bool, deadline: float
    ) -> None:
        self._context = context
        self._once = once
        self._deadline = deadline
        self._retentions = Retentions(context.broker)
        heartbeat = context.archive.statement.heartbeat
        self._linger = None if once else Linger(context.settings.drain, heartbeat, self._retentions)
        self._appends = appends
        self._intake = Intake(context, appends)
        self._runs = {run.topic_partition: run for run in runs}
        self._choose_compression()
        self._refused: dict[TopicPartition, int | None] = {}
        """Logs that wait to be read apart, in this order, with the first offset of the batch that was refused."""
        self._has_read_apart = False
        self._limit = held_bytes(context.processes)
        kafka = context.settings.kafka
        self._kafka = ({**queue_limit(context.processes), **kafka.librdkafka()}, kafka.group)
        # With one topic the partition alone is the key, which saves a call for each record.
        one_topic = len({topic for topic, _ in self._runs}) == 1
        self._key: Callable[[Received], object] = partition_of if one_topic else _topic_partition_of

    def _choose_compression(self) -> None:
        """Begin dense, unless a setting says otherwise or the run has to catch up. Then a log is dense once it has."""
        waiting = sum(max(0, run.target - run.assembler.position) for run in self._runs.values())
        compression = self._context.settings.drain.compression
        for run in self._runs.values():
            run.assembler.dense = compression == "dense" or (compression == "auto" and waiting <= CATCHING_UP_OFFSETS)

    def run(self) -> None:
        """Drain until caught up, out of time, or stopped; then cut the open segments and append them."""
        keep_freed_memory()
        with rare_collections(), self._appends, Feed(*self._kafka, [run.start for run in self._runs.values()]) as feed:
            self._follow(feed)
            if self._refused and not self._has_read_apart and not stop_requested.is_set():
                # However late it is, each run tries one of them: else a log might never get on.
                self._finish()
                self._read_apart(feed)
            self._finish()
        silence = timedelta(days=1, seconds=self._context.archive.statement.heartbeat)
        for run in self._runs.values():
            self._report(run)
            run.result.clock = _clock_error(self._context.store, run, silence)
        worst = max((run.result.clock or 0.0 for run in self._runs.values()), key=abs, default=0.0)
        if worst:
            logger.warning(
                "this host's clock is %.0f s %s the clock of the store, the broker or an earlier writer: correct the"
                " wrong one, unless nothing was archived for so long. Statements are signed with this host's time",
                abs(worst),
                "ahead of" if worst > 0 else "behind",
            )
        self._report_behind()

    def _active(self) -> list[LogRun]:
        return [run for run in self._runs.values() if not run.stopped]

    def _finish(self) -> None:
        """Append each log's last entry of the run, and wait until it is archived."""
        for run in self._active():
            self._finish_log(run)
        for run in self._active():
            self._guard(run, None, self._appends.collect)

    def _follow(self, feed: Feed) -> None:
        while not stop_requested.is_set():
            now = time.monotonic()
            active = self._active()
            if not active or now >= self._deadline:
                return
            behind = [run for run in active if run.assembler.position < run.target or run.reread is not None]
            for run in behind:
                if run.silent > STALL_SECONDS and run.topic_partition not in self._refused:
                    self._refuse(run, None, feed)
            if self._refused and all(run.topic_partition in self._refused for run in behind):
                self._read_apart(feed)
                continue
            if self._once and not behind:
                return
            begun = time.monotonic()
            records, others = self._read(feed)
            for run in behind:
                run.silent += time.monotonic() - begun
            for topic_partition, messages in records.items():
                run = self._runs[topic_partition]
                run.silent = 0.0
                if not run.stopped and topic_partition not in self._refused:
                    self._guard(run, feed, self._intake.receive, messages, feed)
            for message in others:
                self._handle(message, feed)
            self._cut_what_is_due(feed, now)

    def _refuse(self, run: LogRun, base: int | None, feed: Feed) -> None:
        """Pause a log until the others have caught up: reading it apart may take long, and they wait meanwhile.

        Args:
            run: the log.
            base: the first offset of the batch that was refused; None if nothing came for long: for a batch above its
                limit librdkafka only drops the connection.
            feed: does not fetch this log meanwhile.
        """
        self._refused[run.topic_partition] = base
        feed.stop(*run.topic_partition)

    def _read_apart(self, feed: Feed) -> None:
        """Read apart the log that waits longest."""
        self._has_read_apart = True
        topic_partition = next(iter(self._refused))
        run, base = self._runs[topic_partition], self._refused.pop(topic_partition)
        self._guard(run, feed, self._intake.read_apart, feed, base)
        if run.stopped and base is None:
            # The broker is silent: do not wait as long for each of the others.
            for silent in [each for each, refused in self._refused.items() if refused is None]:
                self._fail(self._runs[silent], stalled(self._runs[silent]), feed)

    def _read(self, feed: Feed) -> tuple[dict[TopicPartition, list[Received]], list[Received]]:
        """Read once, and return the records by partition, and the events and errors."""
        messages = feed.read(READ_RECORDS, READ_SECONDS)
        others: list[Received] = []
        if any(map(error_of, messages)):
            messages = list(_up_to_damage(messages))
            others = [message for message in messages if message.error() is not None]
            messages = [message for message in messages if message.error() is None]
        records: dict[TopicPartition, list[Received]] = defaultdict(list)
        # librdkafka returns records of one partition in runs.
        for _, group in groupby(messages, self._key):
            of_partition = list(group)
            records[of_partition[0].topic(), of_partition[0].partition()].extend(of_partition)
        return records, others

    def _handle(self, message: Received, feed: Feed) -> None:
        """Act on an event or error that came instead of a record."""
        error = message.error()
        if error is None:
            return
        run = self._runs.get((message.topic(), message.partition()))
        if run is not None and (run.stopped or run.topic_partition in self._refused):
            return
        if run is not None:
            run.silent = 0.0
        if run is not None and error.code() == PARTITION_EOF:
            self._guard(run, feed, self._intake.reach_end, message.offset())
        elif run is not None and error.code() in {OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}:
            self._guard(run, feed, self._intake.resume, feed, error.str() if says_truncated(error) else None)
        elif run is not None and error.code() in DAMAGED:
            log = run.result.log
            logger.warning("%s: librdkafka does not take a batch: %s", log, error.str(), extra={"log": log})
            self._refuse(run, message.offset(), feed)
        elif is_of_group(error):
            # The archive says where to read, and not the group. The run goes on, and fails at its end.
            self._context.broker.refuse_group(error)
        else:
            settings = self._context.settings.kafka
            topic = run.topic_partition[0] if run else ", ".join(sorted({topic for topic, _ in self._runs}))
            mapped = map_error(error, run.result.log if run else "Kafka", settings.librdkafka(), reading(topic))
            if isinstance(mapped, SourceRefused):
                for affected in [run] if run else self._active():
                    self._fail(affected, mapped, feed)
            else:
                logger.info("%s", mapped)

    def _cut_what_is_due(self, feed: Feed, now: float) -> None:
        active = self._active()
        for run in active:
            # Records that waited between two runs do not wait for a whole flush time as well.
            caught_up = not run.caught_up and run.assembler.position >= run.target
            if caught_up:
                run.caught_up = True
                run.assembler.dense = self._context.settings.drain.compression != "fast"
            waited = now - run.since >= self._context.settings.drain.flush_seconds
            due = run.assembler.has_records and (waited or (caught_up and not self._once))
            if due and not self._lingers(run):
                self._guard(run, feed, self._appends.cut)
            elif run.append is not None and run.append.done():
                self._guard(run, feed, self._appends.collect)
        while sum(run.assembler.held_bytes for run in self._active()) > self._limit:
            largest = max(self._active(), key=lambda run: run.assembler.held_bytes)
            self._guard(largest, feed, self._appends.cut)

    def _lingers(self, run: LogRun) -> bool:
        return self._linger is not None and self._linger.holds_back(run)

    def _finish_log(self, run: LogRun) -> None:
        """Append a log's last entry of the run: its open segment, skipped offsets, or a heartbeat if one is due.

        A segment that lingers is dropped. Kafka keeps its records, and the next run reads them again.
        """
        if not run.assembler.is_empty:
            self._guard(run, None, self._appends.collect if self._lingers(run) else self._appends.cut)
            return
        self._guard(run, None, self._appends.collect)
        newest = run.writer.tip.newest
        # If the last record was not read again, the partition may be another one by now: write no heartbeat.
        if run.stopped or newest is None or run.reread is not None:
            return
        idle = (datetime.now(UTC) - parse_time(newest.statement.sealed_at)).total_seconds()
        # A statement from the future, by a wrong clock, does not keep the log silent until then.
        if not 0 <= idle < self._context.archive.statement.heartbeat:
            position = run.assembler.position
            self._guard(run, None, self._appends.submit, Entry(first_offset=position, next_offset=position))

    def _guard(self, run: LogRun, feed: Feed | None, step: Callable[..., None], *arguments: object) -> None:
        """Run one step of one log. A CustodyError stops only that log."""
        try:
            step(run, *arguments)
        except CustodyError as error:
            self._fail(run, error, feed)

    def _fail(self, run: LogRun, error: CustodyError, feed: Feed | None) -> None:
        run.stopped = True
        self._refused.pop(run.topic_partition, None)
        run.result.stop(error)
        if feed is not None:
            feed.stop(*run.topic_partition)

    def _report(self, run: LogRun) -> None:
        """Fill in the log's head and lag at the end of the run."""
        head, result, options = run.writer.tip.head, run.result, self._context.settings.drain
        result.size, result.root, result.next_offset = head.size, head.root.hex(), run.writer.next_offset
        try:
            bounds = self._context.broker.bounds(*run.topic_partition)
        except CustodyError as error:
            logger.warning("%s: the lag is not known: %s", result.log, error, extra={"log": result.log})
            return
        result.lag = max(0, bounds.end - (run.writer.next_offset or 0))
        if bounds.stable < bounds.end and run.assembler.position >= bounds.stable:
            try:
                since = self._context.broker.waits_since(*run.topic_partition, bounds.stable)
            except CustodyError as error:
                logger.warning("%s: a transaction is open, for an unknown time: %s", result.log, error)
                return
            waited = time.time() - since if since is not None else 0.0
            if waited > options.hanging_seconds:
                result.hanging = waited
                logger.error(
                    "%s: a transaction has been open for %.0f s, and %d offsets cannot be archived until it ends: find"
                    " its producer (kafka-transactions.sh find-hanging) and end the transaction",
                    result.log,
                    waited,
                    result.lag,
                    extra={"log": result.log},
                )

    def _report_behind(self) -> None:
        """Fail logs of which nothing was archived, and measure how long Kafka keeps what logs wait for."""
        behind = [run for run in self._runs.values() if (run.writer.next_offset or 0) < run.target]
        for run in behind:
            # The first statement of a log only begins it. What lingers was read.
            idle = run.result.statements <= (run.begun.newest is None) and run.assembler.is_empty
            if idle and not run.stopped and not stop_requested.is_set():
                self._fail(run, _no_progress(run), None)
        for run, written in self._to_measure(behind):
            topic, partition = run.topic_partition
            try:
                headroom = read_headroom(
                    self._context.broker,
                    topic,
                    partition,
                    run.writer.next_offset or 0,
                    written,
                    self._retentions.of(topic),
                )
                run.result.headroom, run.result.headroom_unknown = headroom.seconds, headroom.unknown
            except CustodyError as error:
                run.result.headroom_unknown, log = str(error), run.result.log
                logger.warning("%s: how long Kafka keeps its records is not known: %s", log, error, extra={"log": log})

    def _to_measure(self, behind: Iterable[LogRun]) -> Iterator[tuple[LogRun, float | None]]:
        """Yield the logs whose headroom is measured, with the time of the first record that waits, if it is known.

        What lingers is in memory, so its time is known, and each is measured. Of the others, those are measured whose
        newest statement is the oldest: the lag of a quiet log is small, however long its records wait.
        """
        others: list[LogRun] = []
        for run in behind:
            lingers = None if run.stopped else run.assembler.first_record
            if lingers is not None:
                yield run, written_at(lingers)
            elif self._may_lose(run):
                others.append(run)
        now = datetime.now(UTC)
        for run in sorted(others, key=lambda run: _sealed(run, now))[:MEASURED_LOGS]:
            yield run, None

    def _may_lose(self, run: LogRun) -> bool:
        """Return whether Kafka deletes records of a log's topic, as far as that is known."""
        try:
            return self._retentions.of(run.topic_partition[0]).is_limited
        except SourceError:
            return True


def _sealed(run: LogRun, now: datetime) -> datetime:
    """Return when a log's newest statement was sealed; long ago without one, or by a clock that was ahead."""
    newest = run.writer.tip.newest
    sealed_at = parse_time(newest.statement.sealed_at) if newest else EPOCH
    return sealed_at if sealed_at <= now else EPOCH


def _no_progress(run: LogRun) -> TransientSourceError:
    waited = counted(run.target - (run.writer.next_offset or 0), "offset")
    return TransientSourceError(
        f"{run.result.log}: this run archived nothing, although {waited}"
        " waited when it began. The next run tries again; if it fails too, raise drain.seconds, or find out what"
        " keeps this machine or Kafka busy"
    )


def _up_to_damage(messages: Iterable[Received]) -> Iterator[Received]:
    """Yield messages, but of no partition what follows a damaged batch. Its offsets would count as skipped."""
    damaged = set()
    for message in messages:
        topic_partition, error = _topic_partition_of(message), message.error()
        if topic_partition not in damaged:
            yield message
        if error is not None and error.code() in DAMAGED:
            damaged.add(topic_partition)


def _topic_partition_of(message: Received) -> TopicPartition:
    return message.topic(), message.partition()


def _clock_error(store: Store, run: LogRun, silence: timedelta) -> float | None:
    """Return by how many seconds the host's clock differs from the others; None if by no more than `CLOCK_SLACK`.

    The broker's append times and the statement before this run may be old. So they show that the host is ahead only if
    nothing was archived for more than a day and a heartbeat, which may be true. The roll believes no such jump either.
    Archiving goes on in any case: a wrong time is a notice of the verifier, and events in Kafka expire.
    """
    now, newest, begun = datetime.now(UTC), run.writer.tip.newest, run.begun.newest
    told = [parse_time(begun.statement.sealed_at)] if begun else []
    stamps = [batch.kafka_time for batch in newest.statement.batches if batch.kafka_time] if newest else []
    told += (kafka_moment(stamp.max) or now for stamp in stamps if stamp.type == "append")
    differences = [now - moment for moment in told if moment > now]
    ahead = host_ahead(store)
    if ahead is not None:
        # The store's time is certain.
        differences.append(ahead)
    elif told and now - max(told) > silence:
        differences.append(now - max(told))
    worst = max([*differences, timedelta(0)], key=abs)
    return worst.total_seconds() if abs(worst) > CLOCK_SLACK else None
