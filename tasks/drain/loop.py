"""The loop that reads, assembles and appends, until the run has caught up, is out of time, or must stop.

`Intake` compares each log's first records with the archive's end, and accounts for every offset.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from confluent_kafka import TopicPartition as Position

from custody.archive.writer import Entry
from custody.errors import CustodyError, SourceRefused, TransientSourceError
from custody.format.manifest import LastRecord
from custody.format.times import kafka_moment, parse_time
from custody.store.protocol import Store
from tasks.drain.apart import ATTEMPTS, Apart
from tasks.drain.apart import SECONDS as APART_SECONDS
from tasks.drain.appends import HELD_BYTES, Appends
from tasks.drain.assemble import Record
from tasks.drain.context import Context
from tasks.drain.kafka import (
    DAMAGED,
    LOG_TRUNCATION,
    OFFSET_OUT_OF_RANGE,
    PARTITION_EOF,
    Feed,
    Received,
    contradiction,
    error_of,
    map_error,
    partition_of,
    says_truncated,
    truncated,
)
from tasks.drain.log_run import LogRun, Reread, TopicPartition
from tasks.drain.resume import check_end
from tasks.drain.signals import stop_requested
from tasks.drain.tuning import keep_freed_memory, rare_collections

READ_RECORDS = 500
"""Records in one read from librdkafka. So few objects stay in the CPU's cache, which makes a read 40 % cheaper."""
READ_SECONDS = 0.1
"""How long a read waits for records; also how soon a stop is noticed."""
CLOCK_SECONDS = 300
"""A difference between clocks that is reported. Time synchronization keeps hosts within a second."""
STALL_SECONDS = 30
"""A log that is behind is read apart after this time without a record; if that gives none, the run gives it up."""
MEASURED_LOGS = 8
"""At the end of a run, headroom is measured for this many of the logs that are behind: each takes a read."""
REREAD_OFFSETS = 10_000
"""Offsets after the archive's last record that are read again, to check that they still have no records."""

logger = logging.getLogger(__name__)


class Intake:
    """Passes records to each log's assembler, and appends full segments."""

    def __init__(self, context: Context, appends: Appends) -> None:
        self._broker, self._appends = context.broker, appends
        self._kafka = (context.settings.kafka.librdkafka(), context.settings.kafka.group)

    def receive(self, run: LogRun, messages: Sequence[Record], feed: Feed) -> None:
        """Receive records of one log. Records that the archive has already are compared with it first."""
        if run.reread is not None:
            messages = self._compare(run, run.reread, messages, feed)
        if messages:
            offset, leader_epoch = messages[-1].offset(), messages[-1].leader_epoch()
            run.last = LastRecord(offset, leader_epoch) if leader_epoch is not None and leader_epoch >= 0 else None
            self._take(run, messages)

    def _compare(self, run: LogRun, reread: Reread, messages: Sequence[Record], feed: Feed) -> Sequence[Record]:
        """Compare records with the archive's end, and return those after it.

        Raises:
            LogChanged: they contradict it.
        """
        log, last, position = run.writer.log, reread.last, run.assembler.position
        for index, message in enumerate(messages):
            offset = message.offset()
            if offset < last.offset:
                continue
            problem = contradiction(last, offset, message.leader_epoch())
            if offset == last.offset:
                reread.agrees = problem is None
            elif problem is None and not reread.agrees:
                problem = reread.suspect
            if problem is None and any(first <= offset < stop for first, stop in reread.skipped):
                problem = f"the broker has a record at offset {offset}, where the archive says that there is none"
            if problem is not None:
                raise truncated(log, problem)
            if offset >= position:
                run.reread = None
                return messages[index:]
            if offset == last.offset and (position - offset == 1 or position - offset > REREAD_OFFSETS):
                run.reread = None
                if position - offset > 1:
                    feed.seek(Position(*run.topic_partition, position))
                    return []
        return []

    def _take(self, run: LogRun, messages: Sequence[Record]) -> None:
        """Pass records to the assembler, and account for every gap before and between them."""
        assembler = run.assembler
        first, last = messages[0].offset(), messages[-1].offset()
        if first == assembler.position and last - first == len(messages) - 1:
            self._add(run, messages)
            return
        # After a seek librdkafka may return records that it has returned before.
        messages = [message for message in messages if message.offset() >= assembler.position]
        start: int | None = None
        while messages:
            offset = messages[0].offset()
            if offset > assembler.position:
                if start is None:
                    # Asked after the fetch. A record missing below the start may have been deleted. One missing above
                    # it never existed for a read-committed consumer.
                    start = self._broker.bounds(*run.topic_partition).start
                self._account(run, offset, start)
            joined = 1
            while joined < len(messages) and messages[joined].offset() == offset + joined:
                joined += 1
            self._add(run, messages[:joined])
            messages = messages[joined:]

    def _add(self, run: LogRun, messages: Sequence[Record]) -> None:
        while messages:
            if not run.assembler.has_records:
                run.since = time.monotonic()
            messages = messages[run.assembler.add(messages) :]
            if run.assembler.full:
                self._appends.cut(run)

    def _account(self, run: LogRun, to: int, start: int) -> None:
        """Account for offsets without a record: lost below the partition's start, skipped above it."""
        assembler = run.assembler
        if start > assembler.position:
            if not assembler.is_empty:
                self._appends.cut(run)
            run.since = time.monotonic()
            assembler.lose(min(start, to))
        if to > assembler.position:
            assembler.skip(to)
            if assembler.full:
                self._appends.cut(run)

    def reach_end(self, run: LogRun, offset: int) -> None:
        """Account for the offsets between the last record and the end: transaction markers and aborted records."""
        self._forget_reread(run)
        if offset > run.assembler.position:
            self._account(run, offset, self._broker.bounds(*run.topic_partition).start)

    def _forget_reread(self, run: LogRun) -> None:
        """Compare no more with the archive's end. Raise LogChanged if a truncation was reported, and not disproved."""
        if run.reread is not None and run.reread.suspect is not None and not run.reread.agrees:
            raise truncated(run.writer.log, run.reread.suspect)
        run.reread = None

    def read_apart(self, run: LogRun, feed: Feed, base: int | None, attempts: int = ATTEMPTS) -> None:
        """Read in a process of its own what librdkafka refuses in this one. Admit what cannot be read there either.

        Args:
            run: the log.
            feed: seeks behind what was read or admitted.
            base: the first offset of the batch that was refused; None if it is not known.
            attempts: processes that may die of it.

        Raises:
            TransientSourceError: no record came, and no reason why.
            LogChanged: the records contradict the archive's end.
        """
        before = run.assembler.position, run.reread
        logger.warning("%s: a process of its own reads on from offset %d", run.result.log, run.start.offset)
        with Apart(*self._kafka, run.start) as apart:
            for records in apart.read():
                self.receive(run, records, feed)
        ended = apart.ended
        if ended is not None and ended.damage is None and ended.offset is not None:
            self.reach_end(run, ended.offset)
        if before == (run.assembler.position, run.reread) and not stop_requested.is_set():
            refused = base if ended is None or ended.offset is None else ended.offset
            if ended is None or ended.damage is None or refused is None:
                raise _stalled(run) if base is None else _not_read(run, base)
            if ended.offset is None and attempts > 1:
                self.read_apart(run, feed, base, attempts - 1)
                return
            self._admit(run, refused, ended.damage)
        run.silent = 0.0
        feed.seek(run.start)

    def _admit(self, run: LogRun, base: int, damage: str) -> None:
        """Account for a batch that cannot be read: its offsets are admitted in a signed statement.

        Raises:
            TransientSourceError: now it can be read.
            LogChanged: the partition seems to be truncated.
        """
        self._forget_reread(run)
        begin = max(base, run.assembler.position)
        after = self._broker.after_batch(*run.topic_partition, base, begin)
        if base > run.assembler.position:
            self._account(run, base, self._broker.bounds(*run.topic_partition).start)
        if after > run.assembler.position:
            if not run.assembler.has_records:
                run.since = time.monotonic()
            run.assembler.admit(after, damage)
            logger.error(
                "%s: no client can decode the records at offsets %d to %d, and a signed statement says so: %s. Look at"
                " the broker's disk and at who wrote them.",
                *(run.result.log, begin, after - 1, damage),
            )
            if run.assembler.full:
                self._appends.cut(run)
        elif after == base:
            raise TransientSourceError(
                f"{run.result.log}: the batch at offset {base} is readable now, and was not: {damage}"
            )

    def resume(self, run: LogRun, feed: Feed, suspect: str | None) -> None:
        """Seek after librdkafka gave up a position, because retention deleted it or the partition was truncated."""
        bounds = self._broker.bounds(*run.topic_partition)
        position = run.assembler.position
        check_end(run.writer.log, position, bounds)
        last = run.last
        if last is not None and bounds.start <= last.offset < position:
            # Without the leader epoch: with it, librdkafka would report the same error again.
            run.reread = Reread(last, run.reread.skipped if run.reread else (), suspect)
            feed.seek(Position(*run.topic_partition, last.offset))
            return
        run.reread = None
        if bounds.start > position:
            self._account(run, bounds.start, bounds.start)
        feed.seek(Position(*run.topic_partition, run.assembler.position))


class Loop:
    """The loop that reads, assembles and appends."""

    def __init__(
        self, context: Context, runs: Sequence[LogRun], appends: Appends, *, once: bool, deadline: float
    ) -> None:
        self._context = context
        self._once = once
        self._deadline = deadline
        self._appends = appends
        self._intake = Intake(context, appends)
        self._runs = {run.topic_partition: run for run in runs}
        self._kafka = (context.settings.kafka.librdkafka(), context.settings.kafka.group)
        # With one topic the partition alone is the key, which saves a call for each record.
        one_topic = len({topic for topic, _ in self._runs}) == 1
        self._key: Callable[[Received], object] = partition_of if one_topic else _topic_partition_of

    def run(self) -> None:
        """Drain until caught up, out of time, or stopped; then cut the open segments and append them."""
        keep_freed_memory()
        with rare_collections(), self._appends, Feed(*self._kafka, [run.start for run in self._runs.values()]) as feed:
            self._follow(feed)
            for run in self._active():
                self._finish(run)
            for run in self._active():
                self._guard(run, None, self._appends.collect)
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

    def _follow(self, feed: Feed) -> None:
        while not stop_requested.is_set():
            now = time.monotonic()
            active = self._active()
            if not active or now >= self._deadline:
                return
            behind = [run for run in active if run.assembler.position < run.target or run.reread is not None]
            if self._once and not behind:
                return
            self._read_stalled(feed, [run for run in behind if run.silent > STALL_SECONDS])
            begun = time.monotonic()
            records, others = self._read(feed)
            for run in behind:
                run.silent += time.monotonic() - begun
            for topic_partition, messages in records.items():
                run = self._runs[topic_partition]
                run.silent = 0.0
                if not run.stopped:
                    self._guard(run, feed, self._intake.receive, messages, feed)
            for message in others:
                self._handle(message, feed)
            self._cut_what_is_due(feed, now)

    def _read_stalled(self, feed: Feed, stalled: list[LogRun]) -> None:
        """Read apart where nothing came for long: for a batch above its limit librdkafka only drops the connection."""
        for run in stalled:
            self._guard(run, feed, self._intake.read_apart, feed, None)
            if run.stopped:
                # The broker is silent: do not wait as long for each of the others.
                for other in stalled:
                    if not other.stopped:
                        self._fail(other, _stalled(other), feed)
                return

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
        if run is not None and run.stopped:
            return
        if run is not None:
            run.silent = 0.0
        if run is not None and error.code() == PARTITION_EOF:
            self._guard(run, feed, self._intake.reach_end, message.offset())
        elif run is not None and error.code() in {OFFSET_OUT_OF_RANGE, LOG_TRUNCATION}:
            self._guard(run, feed, self._intake.resume, feed, error.str() if says_truncated(error) else None)
        elif run is not None and error.code() in DAMAGED:
            logger.warning("%s: librdkafka does not take a batch: %s", run.result.log, error.str())
            self._guard(run, feed, self._intake.read_apart, feed, message.offset())
        else:
            mapped = map_error(error, run.result.log if run else "Kafka")
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
            run.caught_up = run.caught_up or caught_up
            waited = now - run.since >= self._context.settings.drain.flush_seconds
            if run.assembler.has_records and (waited or (caught_up and not self._once)):
                self._guard(run, feed, self._appends.cut)
            elif run.append is not None and run.append.done():
                self._guard(run, feed, self._appends.collect)
        while sum(run.assembler.held_bytes for run in self._active()) > HELD_BYTES:
            largest = max(self._active(), key=lambda run: run.assembler.held_bytes)
            self._guard(largest, feed, self._appends.cut)

    def _finish(self, run: LogRun) -> None:
        """Append a log's last entry of the run: its open segment, skipped offsets, or a heartbeat if one is due."""
        if not run.assembler.is_empty:
            self._guard(run, None, self._appends.cut)
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
            logger.warning("%s: the lag is not known: %s", result.log, error)
            return
        position = run.writer.next_offset or 0
        result.lag = max(0, bounds.end - position)
        if bounds.stable < bounds.end and position >= bounds.stable:
            since = self._context.broker.waits_since(*run.topic_partition, bounds.stable)
            waited = time.time() - since if since is not None else 0.0
            if waited > options.hanging_seconds:
                result.hanging = waited
                logger.error(
                    "%s: a transaction has been open for %.0f s, and %d offsets cannot be archived until it ends: find"
                    " its producer (kafka-transactions.sh find-hanging) and end the transaction",
                    result.log,
                    waited,
                    result.lag,
                )

    def _report_behind(self) -> None:
        """Fail logs of which nothing was archived, and measure how long Kafka keeps what the largest lags wait for."""
        behind = [run for run in self._runs.values() if (run.writer.next_offset or 0) < run.target]
        for run in behind:
            # The first statement of a log only begins it.
            if not run.stopped and not stop_requested.is_set() and run.result.statements <= (run.begun.newest is None):
                self._fail(run, _no_progress(run), None)
        for run in sorted(behind, key=lambda run: -(run.result.lag or 0))[:MEASURED_LOGS]:
            position = run.writer.next_offset or 0
            try:
                run.result.headroom = self._context.broker.seconds_left(*run.topic_partition, position)
            except CustodyError as error:
                logger.warning("%s: how long Kafka keeps its records is not known: %s", run.result.log, error)


def _no_progress(run: LogRun) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: this run archived nothing, although {run.target - (run.writer.next_offset or 0):,} offsets"
        " were waiting when it began. The next run tries again; if it fails too, raise drain.seconds, or find out what"
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
    """Return by how many seconds the host's clock differs from the others; None if by no more than `CLOCK_SECONDS`.

    The broker's append times and the statement before this run may be old. So they show that the host is ahead only if
    nothing was archived for more than a day and a heartbeat, which may be true. The roll believes no such jump either.
    Archiving goes on in any case: a wrong time is a notice of the verifier, and events in Kafka expire.
    """
    now, newest, begun = datetime.now(UTC), run.writer.tip.newest, run.begun.newest
    told = [parse_time(begun.statement.sealed_at)] if begun else []
    stamps = [batch.kafka_time for batch in newest.statement.batches if batch.kafka_time] if newest else []
    told += (kafka_moment(stamp.max) or now for stamp in stamps if stamp.type == "append")
    differences = [now - moment for moment in told if moment > now]
    ahead = store.capabilities.clock.ahead() if store.capabilities.clock else None
    if ahead is not None:
        # The store's time is certain.
        differences.append(ahead)
    elif told and now - max(told) > silence:
        differences.append(now - max(told))
    worst = max([*differences, timedelta(0)], key=abs).total_seconds()
    return worst if abs(worst) > CLOCK_SECONDS else None


def _not_read(run: LogRun, base: int) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: the batch at offset {base} is too large for librdkafka, or damaged, and a process of its"
        f" own could not read it in {APART_SECONDS} s; the next run tries again. Give the machine more memory or time."
    )


def _stalled(run: LogRun) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: no record came for {STALL_SECONDS} s, at offset {run.assembler.position} of {run.target};"
        " records read so far are archived, and the next run continues"
    )
