"""Counts what the statements of a log account for. Each run reads only the statements that are new since the last.

The reasons of quarantined records stand in the objects beside them: such an object is read with its statement.

A log is counted again from its first statement if it is not the one that was counted: it is shorter, its root differs,
or its next statement follows another root. An old archive is counted over several runs.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from custody.archive.quarantined import read_reasons
from custody.archive.reader import manifests_from
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log, parse_log_text
from custody.format.manifest import Statement
from custody.format.reasons import Reasons
from tasks.health.archive import Opened
from tasks.health.model import LogHealth
from tasks.metrics.state import LogTotals, State

PIECE = 64
"""Slots that are read between two looks at the clock."""
OTHER = "other"
"""The label of event types that custody does not know: so many types make no more time series."""
_READERS = 8


def count_logs(state: State, opened: Opened, logs: tuple[LogHealth, ...], seconds: float) -> None:
    """Bring the totals of all logs up to date.

    Args:
        state: where they are kept.
        opened: the archive.
        logs: its logs, with their heads.
        seconds: when to stop. What is missing is counted in later runs.

    Raises:
        StoreError: the archive's storage does not answer.
    """
    if opened.file is None or not opened.is_trusted:
        return
    if state.archive != opened.file.id:
        state.archive, state.since, state.logs = opened.file.id, time.time(), {}
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(_READERS, "metrics") as pool:
        for health in logs:
            name = parse_log_text(health.log)
            # A head that could not be read changes nothing.
            if name is not None and health.size:
                before = state.logs.get(health.log, LogTotals())
                state.logs[health.log] = _count(before, opened, name, health, deadline, pool)


def _count(
    totals: LogTotals, opened: Opened, log: Log, health: LogHealth, deadline: float, pool: ThreadPoolExecutor
) -> LogTotals:
    other = totals.size > health.size or (totals.size == health.size and totals.root != health.root)
    if other or sum(totals.reasons.values()) != totals.quarantined:
        totals = LogTotals()
    while totals.size < health.size:
        # What is new in a minute is always read.
        if health.size - totals.size > PIECE and time.monotonic() >= deadline:
            return totals
        end = min(totals.size + PIECE, health.size)
        read = list(_read(opened, log, totals.size, end, pool))
        if totals.root and read and _follows_another(read[0][0], totals):
            totals = LogTotals()
            continue
        for statement, reasons in read:
            _add(totals, statement, reasons)
        totals.size, totals.root = end, health.root if end == health.size else ""
    totals.complete = True
    return totals


def _follows_another(statement: Statement, totals: LogTotals) -> bool:
    """Return whether the next statement of a log states another root than that of the statements that were counted."""
    return statement.sequence == totals.size and statement.tree.root != totals.root


def _read(
    opened: Opened, log: Log, start: int, end: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Statement, Reasons]]:
    """Yield the valid statements of the slots `[start, end)`, each with the reasons of its quarantined records."""
    store, holds = opened.store, opened.holds(log)

    def read(sequence: int) -> list[tuple[Statement, Reasons]]:
        statements = [each.statement for _, each in manifests_from(store, log, sequence, sequence + 1, holds)]
        return [
            (statement, read_reasons(store, statement.quarantine) if statement.quarantine else Reasons())
            for statement in statements
        ]

    for statements in pool.map(read, range(start, end)):
        yield from statements


def _add(totals: LogTotals, statement: Statement, reasons: Reasons) -> None:
    for name, number in statement.types.items():
        kind = name if name in EVENT_TYPES else OTHER
        totals.events[kind] = totals.events.get(kind, 0) + number
    totals.raw += sum(batch.inflated for batch in statement.batches)
    totals.gz += statement.segment.size if statement.segment else 0
    totals.quarantined += statement.quarantine.records if statement.quarantine else 0
    for kind, number in reasons.counts.items():
        totals.reasons[kind] = totals.reasons.get(kind, 0) + number
