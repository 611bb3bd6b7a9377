"""Appends statements in the background: for each log one at a time and in order, within a memory limit for all logs."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from custody.archive.writer import Entry
from custody.errors import LogChanged
from custody.format.layout import Log
from tasks.drain.context import Context
from tasks.drain.log_run import LogRun

UPLOADERS = 8
"""Appends that run at the same time, each of another log."""
HELD_BYTES = 64 * 1024 * 1024
"""Assembled bytes of all logs. Above this limit the largest log is cut. The same amount may be in uploads."""


class Appends:
    """The appends that are under way."""

    def __init__(
        self,
        context: Context,
        runs: Sequence[LogRun],
        *,
        progress: Callable[[int], None] | None,
        sealed: Callable[[Log], None] | None,
    ) -> None:
        self._context, self._runs = context, runs
        self._progress, self._sealed = progress, sealed
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
        for other in self._runs:
            if sum(each.appending_bytes for each in self._runs) <= HELD_BYTES:
                break
            if other.append is not None and other is not run:
                other.append.exception()
                other.appending_bytes = 0
        run.appending_bytes = sum(map(len, entry.members)) + len(entry.quarantine or b"")
        run.append = self._pool.submit(self._append, run, entry)

    def collect(self, run: LogRun) -> None:
        """Wait for the log's append, if one is running, and raise its error."""
        if run.append is not None:
            append, run.append = run.append, None
            append.result()
            run.appending_bytes = 0

    def _append(self, run: LogRun, entry: Entry) -> None:
        context, log = self._context, run.writer.log
        known = run.writer.tip.newest
        topic_id = context.broker.topic_id(log.topic, context.cluster)
        if known is not None and topic_id != known.statement.log.topic_id:
            raise LogChanged(
                f"{log}: the topic was deleted and created again during this run; records read since then are"
                f" discarded. Begin a new epoch of the log with 'custody new-epoch {log.topic}'."
            )
        statement = run.writer.append(entry).statement
        head, result = run.writer.tip.head, run.result
        context.broker.commit(log, statement.next_offset, context.archive.id, head, context.signers.hmac())
        events = sum(batch.events for batch in statement.batches)
        quarantined = statement.quarantine.records if statement.quarantine else 0
        result.events += events
        result.quarantined += quarantined
        result.skipped += sum(stop - start for start, stop in statement.skipped)
        result.lost += statement.lost[1] - statement.lost[0] if statement.lost else 0
        result.segments += statement.segment is not None
        result.statements += 1
        result.bytes_in += sum(batch.inflated for batch in statement.batches)
        result.bytes_out += statement.segment.size if statement.segment else 0
        if self._progress is not None:
            self._progress(events + quarantined)
        if self._sealed is not None:
            self._sealed(log)
