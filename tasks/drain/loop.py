"""The loop that reads, assembles and appends, until the run has caught up, is out of time, or must stop."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from custody.archive.writer import Entry
from custody.errors import CustodyError, SourceRefused
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
from tasks.drain.log_run import LogRun, TopicPartition, is_idle
from tasks.drain.outcome import report
from tasks.drain.retention import Retentions
from tasks.drain.signals import stop_requested
from tasks.drain.truncation import LOG_TRUNCATION, says_truncated
from tasks.drain.tuning import keep_freed_memory, rare_collections

READ_RECORDS = 250
"""Records in one read from librdkafka. With 1,000 and their objects, an event took a tenth longer on a machine whose
shared cache others used. With fewer, batches are put together from more parts."""
READ_SECONDS = 0.1
"""How long a read waits for records; also how soon a stop is noticed."""
LOOK_SECONDS = 0.1
"""How often a run that always has records to read looks at all of its logs. To look at 500 takes 2 ms."""
CUT_TO = 7 / 8
"""The part of the memory limit that logs may hold after cuts for want of memory. With all of it, the next read would be
too much again."""
CATCHING_UP_OFFSETS = 250_000
"""A run for which more offsets wait than these, of all its logs, catches up. To make fewer of them dense takes half a
second at most."""

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
        self._held = 0
        """Bytes that all logs hold, at most: what was counted at the last look, and what came since."""
        self._reading = 0.0
        """Seconds of reading since the last look."""
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
        report(self._context, list(self._runs.values()), self._retentions)

    def _active(self) -> list[LogRun]:
        return [run for run in self._runs.values() if not run.stopped]

    def _finish(self) -> None:
        """Append each log's last entry of the run, and wait until it is archived."""
        begun = time.monotonic()
        for run in self._active():
            self._finish_log(run, begun)
        for run in self._active():
            self._guard(run, None, self._appends.collect)

    def _follow(self, feed: Feed) -> None:
        """Read until the run is over, and look at all logs when it is time, or when nothing waits to be read."""
        next_look = 0.0
        while not stop_requested.is_set():
            now = time.monotonic()
            if now >= self._deadline:
                return
            if now >= next_look or self._held > self._limit:
                self._cut_what_is_due(feed, now)
                behind = self._behind(feed)
                if self._refused and all(run.topic_partition in self._refused for run in behind):
                    self._read_apart(feed)
                    next_look = 0.0
                    continue
                if not self._active() or (self._once and not behind):
                    return
                next_look = now + LOOK_SECONDS
            if not self._receive(feed):
                next_look = 0.0

    def _behind(self, feed: Feed) -> list[LogRun]:
        """Return the logs of which the run must read more. Those that were silent for too long are refused."""
        behind = [run for run in self._active() if run.assembler.position < run.target or run.reread is not None]
        for run in behind:
            run.silent += self._reading
            if run.silent > STALL_SECONDS and run.topic_partition not in self._refused:
                self._refuse(run, None, feed)
        self._reading = 0.0
        return behind

    def _receive(self, feed: Feed) -> bool:
        """Read once and pass on what came; return whether more records may wait."""
        begun = time.monotonic()
        messages = feed.read(READ_RECORDS, READ_SECONDS)
        self._reading += time.monotonic() - begun
        records, others = self._sort(messages)
        for topic_partition, of_partition in records.items():
            run = self._runs[topic_partition]
            if not run.stopped and topic_partition not in self._refused:
                before = run.assembler.held_bytes
                self._guard(run, feed, self._intake.receive, of_partition, feed)
                self._held += max(0, run.assembler.held_bytes - before)
        for message in others:
            self._handle(message, feed)
        return len(messages) == READ_RECORDS

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

    def _sort(self, messages: list[Received]) -> tuple[dict[TopicPartition, list[Received]], list[Received]]:
        """Return the records of a read by partition, and its events and errors."""
        others: list[Received] = []
        if any(map(error_of, messages)):
            if any(map(_is_damage, messages)):
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
            run.note_answer()
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
        for run in self._active():
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
        self._held = sum(run.assembler.held_bytes for run in self._active())
        if self._held > self._limit:
            for run in sorted(self._active(), key=lambda run: run.assembler.held_bytes, reverse=True):
                self._held -= run.assembler.held_bytes
                self._guard(run, feed, self._appends.cut)
                if self._held <= CUT_TO * self._limit:
                    break

    def _lingers(self, run: LogRun) -> bool:
        return self._linger is not None and self._linger.holds_back(run)

    def _finish_log(self, run: LogRun, begun: float) -> None:
        """Append a log's last entry of the run: its open segment, skipped offsets, or a heartbeat if one is due.

        A segment that lingers is dropped. Kafka keeps its records, and the next run reads them again.

        Args:
            run: the log.
            begun: when the end of the run began, by `time.monotonic`.
        """
        if not run.assembler.is_empty:
            self._guard(run, None, self._appends.collect if self._lingers(run) else self._appends.cut)
            return
        self._guard(run, None, self._appends.collect)
        newest = run.writer.tip.newest
        # If the last record was not read again, the partition may be another one by now: write no heartbeat.
        if run.stopped or newest is None or run.reread is not None:
            return
        if is_idle(newest, self._context.archive.statement.heartbeat, datetime.now(UTC)):
            position = run.assembler.position
            # The last answer about this log may have come long ago.
            run.answered = begun
            self._guard(run, None, self._appends.submit, Entry(first_offset=position, next_offset=position))

    def _guard(self, run: LogRun, feed: Feed | None, step: Callable[..., None], *arguments: object) -> None:
        """Run one step of one log. A CustodyError stops only that log."""
        try:
            step(run, *arguments)
        except CustodyError as error:
            self._fail(run, error, feed)

    def _fail(self, run: LogRun, error: CustodyError, feed: Feed | None) -> None:
        run.fail(error)
        self._refused.pop(run.topic_partition, None)
        if feed is not None:
            feed.stop(*run.topic_partition)


def _up_to_damage(messages: Iterable[Received]) -> Iterator[Received]:
    """Yield messages, but of no partition what follows a damaged batch. Its offsets would count as skipped."""
    damaged = set()
    for message in messages:
        topic_partition = _topic_partition_of(message)
        if topic_partition not in damaged:
            yield message
        if _is_damage(message):
            damaged.add(topic_partition)


def _is_damage(message: Received) -> bool:
    error = message.error()
    return error is not None and error.code() in DAMAGED


def _topic_partition_of(message: Received) -> TopicPartition:
    return message.topic(), message.partition()
