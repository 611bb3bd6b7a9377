"""Counts what the statements of a log account for. Each run reads only the statements that are new since the last.

Where many are new, those that a signed audit's index by time covers are counted by its rows. The reasons of quarantined
records stand in the objects beside them: such an object is read with its statement.

A log is counted again from its first statement if it is not the one that was counted: it is shorter, its root differs,
or its next statement follows another root. An old archive is counted over several runs.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

from custody.archive import time_index
from custody.archive.forms import statements_of
from custody.archive.quarantined import read_reasons
from custody.archive.reader import manifests_from
from custody.archive.rows import Row, row_of
from custody.archive.slots import Slots
from custody.archive.time_index import EMPTY, TimeIndex
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log, parse_log_text
from custody.format.reasons import Reasons
from custody.query.statements import span_rows
from tasks.health.archive import Opened
from tasks.health.model import LogHealth
from tasks.metrics.state import LogTotals, State

PIECE = 64
"""Slots that are read between two looks at the clock."""
OTHER = "other"
"""The label of event types that custody does not know: so many types make no more time series."""
_READERS = 8


class _Counted(NamedTuple):
    """A statement, the bytes of its quarantine object, and the reasons of the records in it."""

    row: Row
    quarantined_bytes: int
    reasons: Reasons


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
        reader = _Reader(opened, pool)
        for health in logs:
            name = parse_log_text(health.log)
            # A head that could not be read changes nothing.
            if name is not None and health.size:
                before = state.logs.get(health.log, LogTotals())
                state.logs[health.log] = _count(before, reader, name, health, deadline)


def _count(totals: LogTotals, reader: "_Reader", log: Log, health: LogHealth, deadline: float) -> LogTotals:
    other = totals.size > health.size or (totals.size == health.size and totals.root != health.root)
    if other or sum(totals.reasons.values()) != totals.quarantined:
        totals = LogTotals()
    while totals.size < health.size:
        # What is new in a minute is always read.
        if health.size - totals.size > PIECE and time.monotonic() >= deadline:
            return totals
        end, read = reader.read(log, totals.size, health.size)
        if totals.root and read and _follows_another(read[0].row, totals):
            totals = LogTotals()
            continue
        for counted in read:
            _add(totals, counted)
        totals.size, totals.root = end, health.root if end == health.size else ""
    totals.complete = True
    return totals


def _follows_another(row: Row, totals: LogTotals) -> bool:
    """Return whether the next statement of a log states another root than that of the statements that were counted."""
    return row.sequence == totals.size and row.root != totals.root


class _Reader:
    """Reads the statements of logs, a piece at a time."""

    def __init__(self, opened: Opened, pool: ThreadPoolExecutor) -> None:
        self._opened, self._pool = opened, pool

    def read(self, log: Log, start: int, size: int) -> tuple[int, Sequence[_Counted]]:
        """Return the valid statements of a log's slots from `start` on, and where they end, at `size` at most."""
        # In a minute there are fewer, and no audit has read them.
        for span in self._index.between(log, start, start + 1) if size - start > PIECE else ():
            if (rows := span_rows(self._opened.store, span)) is not None:
                end = min(span.end, size)
                used = Slots(self._opened.store, statements_of(log), [range(start, end)])
                return end, self._of_rows(log, [row for row in rows if row.sequence in used])
        end = min(start + PIECE, size)
        return end, self._of_slots(log, range(start, end))

    @cached_property
    def _index(self) -> TimeIndex:
        trust, file = self._opened.trust, self._opened.file
        return time_index.find(self._opened.store, file.id, trust) if file and trust and trust.keys else EMPTY

    def _of_rows(self, log: Log, rows: Sequence[Row]) -> Sequence[_Counted]:
        plain = [_Counted(row, 0, Reasons()) for row in rows if not row.quarantine]
        quarantined = self._of_slots(log, [row.sequence for row in rows if row.quarantine])
        return sorted([*plain, *quarantined], key=lambda each: each.row.sequence)

    def _of_slots(self, log: Log, slots: Sequence[int]) -> Sequence[_Counted]:
        store, holds = self._opened.store, self._opened.holds(log)

        def read(slot: int) -> list[_Counted]:
            statements = [each.statement for _, each in manifests_from(store, log, slot, slot + 1, holds)]
            return [
                _Counted(row_of(str(log), statement), quarantine.size, read_reasons(store, quarantine))
                if (quarantine := statement.quarantine)
                else _Counted(row_of(str(log), statement), 0, Reasons())
                for statement in statements
            ]

        return [each for several in self._pool.map(read, slots) for each in several]


def _add(totals: LogTotals, counted: _Counted) -> None:
    row = counted.row
    for name, number in row.types.items():
        kind = name if name in EVENT_TYPES else OTHER
        totals.events[kind] = totals.events.get(kind, 0) + number
    totals.raw += row.inflated
    totals.gz += row.stored - counted.quarantined_bytes
    totals.quarantined += row.quarantined
    for kind, number in counted.reasons.counts.items():
        totals.reasons[kind] = totals.reasons.get(kind, 0) + number
