"""Takes one log's records from Kafka: compares the first ones with the archive's end, and accounts for every offset."""

import time

from custody.format.manifest import LastRecord
from tasks.drain.appends import Appends
from tasks.drain.kafka import Broker, Feed, Position, Received, contradiction, truncated
from tasks.drain.log_run import LogRun, Reread
from tasks.drain.resume import check_end

REREAD_OFFSETS = 10_000
"""Offsets after the archive's last record that are read again, to check that they still have no records."""


class Intake:
    """Passes records to each log's assembler, and appends full segments."""

    def __init__(self, broker: Broker, appends: Appends) -> None:
        self._broker, self._appends = broker, appends

    def receive(self, run: LogRun, messages: list[Received], feed: Feed) -> None:
        """Receive records of one log. Records that the archive has already are compared with it first."""
        if run.reread is not None:
            messages = self._compare(run, run.reread, messages, feed)
        if messages:
            offset, leader_epoch = messages[-1].offset(), messages[-1].leader_epoch()
            run.last = LastRecord(offset, leader_epoch) if leader_epoch is not None and leader_epoch >= 0 else None
            self._take(run, messages)

    def _compare(self, run: LogRun, reread: Reread, messages: list[Received], feed: Feed) -> list[Received]:
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
                    feed.seek(*run.topic_partition, Position(position))
                    return []
        return []

    def _take(self, run: LogRun, messages: list[Received]) -> None:
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

    def _add(self, run: LogRun, messages: list[Received]) -> None:
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
        if run.reread is not None:
            if run.reread.suspect is not None and not run.reread.agrees:
                raise truncated(run.writer.log, run.reread.suspect)
            run.reread = None
        if offset > run.assembler.position:
            self._account(run, offset, self._broker.bounds(*run.topic_partition).start)

    def resume(self, run: LogRun, feed: Feed, suspect: str | None) -> None:
        """Seek after librdkafka gave up a position, because retention deleted it or the partition was truncated."""
        bounds = self._broker.bounds(*run.topic_partition)
        position = run.assembler.position
        check_end(run.writer.log, position, bounds)
        last = run.last
        if last is not None and bounds.start <= last.offset < position:
            # Without the leader epoch: with it, librdkafka would report the same error again.
            run.reread = Reread(last, run.reread.skipped if run.reread else (), suspect)
            feed.seek(*run.topic_partition, Position(last.offset))
            return
        run.reread = None
        if bounds.start > position:
            self._account(run, bounds.start, bounds.start)
        feed.seek(*run.topic_partition, Position(run.assembler.position))
