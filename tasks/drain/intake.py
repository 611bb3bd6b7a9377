"""Passes records on: compares each log's first ones with the archive's end, and accounts for every offset.

It has what librdkafka refuses read apart, and admits what cannot be read there either.
"""

import logging
import time
from collections.abc import Sequence

from confluent_kafka import TopicPartition as Position

from custody.archive.assemble import Record
from custody.errors import TransientSourceError
from custody.format.manifest import LastRecord
from tasks.drain.apart import ATTEMPTS, Apart, apart_limit
from tasks.drain.apart import SECONDS as APART_SECONDS
from tasks.drain.appends import Appends
from tasks.drain.batch_end import Batches
from tasks.drain.context import Context
from tasks.drain.kafka import Feed
from tasks.drain.log_run import LogRun, Reread
from tasks.drain.resume import check_end
from tasks.drain.signals import stop_requested
from tasks.drain.truncation import contradiction, truncated

STALL_SECONDS = 30
"""A log that is behind is read apart after this time without a record; if that gives none, the run gives it up."""
REREAD_OFFSETS = 10_000
"""Offsets after the archive's last record that are read again, to check that they still have no records."""

PROBES = 16
"""Neighbours of exactly the same size that are read one by one, to learn whether they are one batch."""
PROBE_SECONDS = 60.0
"""How long a run reads them; the next run goes on."""

logger = logging.getLogger(__name__)


class Intake:
    """Passes records to each log's assembler, and appends full segments."""

    def __init__(self, context: Context, appends: Appends) -> None:
        self._broker, self._appends = context.broker, appends
        self._kafka = (context.settings.kafka.librdkafka(), context.settings.kafka.group)
        self._own_types = context.settings.events.own_types

    def receive(self, run: LogRun, messages: Sequence[Record], feed: Feed) -> None:
        """Receive records of one log. Records that the archive has already are compared with it first."""
        run.note_answer()
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
        run.note_answer()
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
        if not run.assembler.is_empty:
            # Whatever becomes of this batch, what was read before it is archived.
            self._appends.cut(run)
            self._appends.collect(run)
        before = run.assembler.position, run.reread
        logger.warning(
            "%s: a process of its own reads on from offset %d",
            run.result.log,
            run.start.offset,
            extra={"log": run.result.log},
        )
        with self._apart(run.start) as apart:
            for records in apart.read():
                self.receive(run, records, feed)
        ended = apart.ended
        if ended is not None and ended.damage is None and ended.offset is not None:
            self.reach_end(run, ended.offset)
        if before == (run.assembler.position, run.reread) and not stop_requested.is_set():
            refused = base if ended is None or ended.offset is None else ended.offset
            damage = ended.damage if ended else None
            if ended is None or damage is None:
                raise stalled(run) if base is None else _not_read(run, base)
            if ended.offset is None and attempts > 1:
                self.read_apart(run, feed, base, attempts - 1)
                return
            self._admit(run, refused, damage)
        run.note_answer()
        feed.seek(run.start)

    def _admit(self, run: LogRun, base: int | None, damage: str) -> None:
        """Account for a batch that cannot be read: its offsets are admitted in a signed statement.

        Args:
            run: the log.
            base: the batch's first offset; None if it is not known.
            damage: why it cannot be read.

        Raises:
            TransientSourceError: now it can be read, or this machine or the broker may be the reason.
            LogChanged: the partition seems to be truncated.
        """
        first = run.start.offset if base is None else base
        self._forget_reread(run)
        begin = max(first, run.assembler.position)
        bounds = self._broker.bounds(*run.topic_partition)
        batches = Batches(*self._kafka, *run.topic_partition)
        after = None if base is None else batches.end_by_base(base, begin, bounds.stable)
        if after is None:
            self._check_reading_elsewhere(run, bounds.stable, damage)
            after = self._end_by_size(run, batches, first, bounds.stable)
        if first > run.assembler.position:
            self._account(run, first, bounds.start)
        if after > run.assembler.position:
            if not run.assembler.has_records:
                run.since = time.monotonic()
            run.assembler.admit(after, damage)
            logger.error(
                "%s: the records at offsets %d to %d cannot be read, and a signed statement says so: %s. Look at the"
                " broker's disk, at who wrote them, and at this machine's memory.",
                *(run.result.log, begin, after - 1, damage),
                extra={"log": run.result.log},
            )
            if run.assembler.full:
                self._appends.cut(run)
        elif after == base:
            raise TransientSourceError(
                f"{run.result.log}: the batch at offset {base} is readable now, and was not: {damage}"
            )

    def _apart(self, position: Position) -> Apart:
        """Return a process that reads from a position."""
        return Apart(*self._kafka, position, own_types=self._own_types)

    def _check_reading_elsewhere(self, run: LogRun, end: int, damage: str) -> None:
        """Check that a process of its own can read at the partition's end.

        Raises:
            TransientSourceError: it cannot. So the reason may be this machine or the broker, not the batch.
        """
        with self._apart(Position(*run.topic_partition, end)) as apart:
            came = any(apart.read())
        if not came and (apart.ended is None or apart.ended.damage is not None):
            raise stalled(run, damage)

    def _end_by_size(self, run: LogRun, batches: Batches, first: int, end: int) -> int:
        """Return an offset up to which nothing can be read, from an offset that processes could not read.

        Neighbours of the same size are told apart by reading them: one of them may be readable.
        """
        size, after = batches.end_by_size(first, end)
        if size > apart_limit():
            return after
        offsets = range(first + 1, after)
        if len(offsets) > PROBES:
            # So many offsets of the same size are one batch.
            offsets = range(first + 1, after, after - first - 2)
        until, proven = time.monotonic() + PROBE_SECONDS, first + 1
        for offset in offsets:
            if time.monotonic() > until or stop_requested.is_set():
                return proven
            with self._apart(Position(*run.topic_partition, offset)) as apart:
                came = any(apart.read())
            if came or apart.ended is None or apart.ended.damage is None:
                return proven
            proven = offset + 1
        return proven

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


def _not_read(run: LogRun, base: int) -> TransientSourceError:
    return TransientSourceError(
        f"{run.result.log}: the batch at offset {base} is too large for librdkafka, or damaged, and a process of its"
        f" own ended after {APART_SECONDS} s at most without reading it; the next run tries again"
    )


def stalled(run: LogRun, damage: str | None = None) -> TransientSourceError:
    """Return the error for a log of which nothing came."""
    return TransientSourceError(
        f"{run.result.log}: no record came for {STALL_SECONDS} s, at offset {run.assembler.position} of {run.target};"
        " records read so far are archived, and the next run continues"
        + (f". A process of its own did not read the batch there: {damage}" if damage else "")
    )
