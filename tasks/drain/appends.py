"""Writes what a run adds to the archive: statements in the background, and checkpoints at its end.

Each log has one append at a time, in order. A memory limit holds for all logs together.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Self

from custody.archive.checkpoints import put_checkpoint
from custody.archive.writer import Entry
from custody.errors import CustodyError, Fenced, HeadRollback, LogChanged
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.quarantine import quarantine_lines
from custody.format.times import parse_time
from tasks.drain.context import Context
from tasks.drain.log_run import LogRun
from tasks.drain.topic_ids import TopicIds

UPLOADERS = 16
"""Appends, or checkpoints, that run at the same time, each of another log."""
HELD_BYTES = 64 * 1024 * 1024
"""Assembled bytes of all logs of all processes. Above this limit the largest log is cut. The same amount may be in
uploads."""
LEAST_HELD_BYTES = 4 * 1024 * 1024
"""What each process may hold at least: a segment of the default size."""

logger = logging.getLogger(__name__)


def held_bytes(processes: int) -> int:
    """Return how much of `HELD_BYTES` each of so many processes may hold."""
    return max(LEAST_HELD_BYTES, HELD_BYTES // processes)


class Appends:
    """The appends that are under way."""

    def __init__(self, context: Context, runs: Sequence[LogRun], sealed: Callable[[Log, int], None] | None) -> None:
        self._context, self._runs, self._sealed = context, runs, sealed
        self._limit = held_bytes(context.processes)
        self._topic_ids = TopicIds(lambda topic: context.broker.topic_id(topic, context.cluster))
        self._pool = ThreadPoolExecutor(min(UPLOADERS, len(runs)), "append")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def cut(self, run: LogRun) -> None:
        """Cut a log's open segment, and append it."""
        self.submit(run, run.assembler.cut())

    def submit(self, run: LogRun, entry: Entry) -> None:
        """Append in the background, after this log's previous append, and within the memory limit for all logs."""
        self.collect(run)
        appending = sum(each.appending_bytes for each in self._runs)
        for other in self._runs:
            if appending <= self._limit:
                break
            if other.append is not None and other is not run:
                other.append.exception()
                appending -= other.appending_bytes
                other.appending_bytes = 0
        run.appending_bytes = sum(map(len, entry.members)) + len(entry.quarantine or b"")
        run.append = self._pool.submit(self._append, run, entry, run.answered)

    def collect(self, run: LogRun) -> None:
        """Wait for the log's append, if one is running, and raise its error."""
        if run.append is not None:
            append, run.append = run.append, None
            append.result()
            run.appending_bytes = 0

    def _append(self, run: LogRun, entry: Entry, answered: float) -> None:
        context, log = self._context, run.writer.log
        known = run.writer.tip.newest
        topic_id = self._topic_ids.of(log.topic, answered)
        if known is not None and topic_id != known.statement.log.topic_id:
            raise LogChanged(
                f"{log}: the topic was deleted and created again during this run; records read since then are"
                f" discarded. Begin a new epoch of the log with 'custody new-epoch {log.topic}'."
            )
        statement = run.writer.append(entry).statement
        head, result = run.writer.tip.head, run.result
        context.broker.commit(log, statement.next_offset, context.archive.id, head, context.signers.hmac())
        result.events += sum(batch.events for batch in statement.batches)
        result.quarantined += statement.quarantine.records if statement.quarantine else 0
        if entry.quarantine is not None:
            pieces = iter([entry.quarantine])
            result.reasons.count(quarantine_lines(pieces, len(entry.quarantine), entry.quarantine_inflated))
        result.skipped += sum(stop - start for start, stop in statement.skipped)
        result.lost += statement.lost[1] - statement.lost[0] if statement.lost else 0
        result.unreadable += sum(span.to - span.from_ for span in statement.unreadable)
        result.segments += statement.segment is not None
        result.statements += 1
        result.bytes_in += sum(batch.inflated for batch in statement.batches)
        result.bytes_out += statement.segment.size if statement.segment else 0
        if self._sealed is not None:
            self._sealed(log, head.size)


def put_checkpoints(context: Context, runs: Sequence[LogRun], *, once: bool) -> None:
    """Sign the heads of logs for which a checkpoint is due.

    A checkpoint only covers what is in the archive already, so the drain does not fail if one cannot be written. But a
    log whose end contradicts what is known, or its own checkpoint, fails. One that another writer continued is fenced.
    """
    now = datetime.now(UTC)
    signer = context.signers.checkpoints
    if signer is None:
        logger.warning("no checkpoints: no Ed25519 key is valid now; create one, or set `checkpoint_keys`")
        return

    def put(run: LogRun) -> None:
        writer = run.writer
        try:
            if _is_due(context, run, now, once=once):
                writer.check()
                put_checkpoint(context.store, context.archive.id, writer.log, writer.tip.head, signer, writer.judge)
        except (Fenced, HeadRollback) as error:
            run.fail(error)
        except CustodyError as error:
            logger.warning("no checkpoint of %s: %s", writer.log, error, extra={"log": writer.log})

    with ThreadPoolExecutor(UPLOADERS, "checkpoint") as pool:
        list(pool.map(put, (run for run in runs if run.result.outcome == "drained")))


def _is_due(context: Context, run: LogRun, now: datetime, *, once: bool) -> bool:
    """Return whether a log's head gets a checkpoint at the end of a run.

    Time is divided into slots of `checkpoint` seconds.

    - A log that grew gets one if its earlier head is of another slot than now. This needs no look at checkpoints.
    - A log that did not grow gets one if its head is of an earlier slot and has none: the last run may have died.
    - The first run of a log writes one, and `once` writes one for every head that has none.
    """
    tip, seconds = run.writer.tip, context.archive.statement.checkpoint

    def slot(newest: Manifest) -> int:
        return int(parse_time(newest.statement.sealed_at).timestamp()) // seconds

    present, begun = int(now.timestamp()) // seconds, run.begun.newest
    if tip.newest is None:
        return False
    if not once and tip.newest is not begun:
        return begun is None or slot(begun) != present
    if not once and slot(tip.newest) == present:
        return False
    return not context.store.exists(layout.checkpoint_key(run.writer.log, tip.head.size))
