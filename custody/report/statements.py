"""Reads the statements of one log that a report needs, from the newest back: from the index by time, or one by one.

An audit keeps rows of the statements that it has read: a file for hundreds of them. Rules:

- Rows count as the audit does that refers to them. Where the keys at hand cannot check all statements, rows count only
  if a trusted head covers what the audit signed of the log. Else its statements are read one by one.
- A row counts only while its slot has an object. Whether that is still what the audit has read is for audits to say:
  they read it again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from custody.archive import reader
from custody.archive.covered import Coverage
from custody.archive.forms import statements_of
from custody.archive.rows import Row, row_of
from custody.archive.slots import Slots
from custody.archive.time_index import TimeIndex
from custody.archive.time_spans import Span
from custody.errors import FormatError, ObjectMissing
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.store.protocol import Store

Rows = Callable[[Store, Span], Sequence[Row] | None]
"""Returns the rows of a span's statements, in order; None if they must be read one by one. Raises StoreError."""
Read = Callable[[], Statement]
"""Returns a statement. Raises FormatError or ObjectMissing if it cannot be read."""
Slot = tuple[int, Row | None, Read]
"""A slot, the row of its statement, or None if it has no valid one, and what returns that statement."""
_Range = tuple[range, Span | None]
"""Slots, and the span whose rows say what is there."""

_PARALLEL = 16
_CHUNK = 64
"""Statements that are read at a time."""


@dataclass(frozen=True, slots=True)
class Period:
    """The times at which the statements were sealed whose figures a report shows.

    Attributes:
        since: the first one; None for all from the beginning.
        until: the first one that is later; None for all up to now.
    """

    since: datetime | None = None
    until: datetime | None = None

    def has(self, sealed_at: datetime) -> bool:
        """Return whether a statement that was sealed then is of the period."""
        return not self.is_before(sealed_at) and not (self.until and sealed_at >= self.until)

    def is_before(self, sealed_at: datetime) -> bool:
        """Return whether a statement that was sealed then is older than the period."""
        return self.since is not None and sealed_at < self.since


@dataclass(frozen=True, slots=True)
class StatementReader:
    """Reads the statements of a log.

    Attributes:
        store: the archive.
        log: the log.
        holds: whether a statement is valid in its slot.
        coverage: counts the statements that are read one by one.
        period: what is older is left out, as far as that is known.
        index: the audit's time index.
        rows: reads its rows; None to read all statements one by one.
    """

    store: Store
    log: Log
    holds: reader.Holds[Manifest]
    coverage: Coverage
    period: Period
    index: TimeIndex
    rows: Rows | None

    def slots(self, end: int) -> Iterator[Sequence[Slot]]:
        """Return the slots before an end, some at a time, from the newest back.

        A slot that the audit saw passed over is left out. They are looked for at once; their statements are read as
        they are taken.

        Raises:
            StoreError: the store does not answer.
        """
        ranges = self._ranges(end)
        with_rows = (slots for slots, span in ranges if span and span.manifests)
        return self._read(ranges, Slots(self.store, statements_of(self.log), with_rows))

    def _read(self, ranges: Sequence[_Range], used: Slots) -> Iterator[Sequence[Slot]]:
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for start in range(0, len(ranges), _PARALLEL):
                several = ranges[start : start + _PARALLEL]
                for (slots, _), rows in zip(several, threads.map(self._rows_of, several), strict=True):
                    if rows is None:
                        yield from self._one_by_one(threads, slots)
                        continue
                    yield [
                        (row.sequence, row if row.sequence in used else None, partial(self._statement, row.sequence))
                        for row in reversed(rows)
                        if row.sequence in slots
                    ]

    def _ranges(self, end: int) -> list[_Range]:
        """Return the slots to read, from the newest back.

        These are the newest one, the spans of the audit's time index that may have a statement of the period, and all
        that is in no span.
        """
        spans = self.index.overlapping(self.log, self.period.since, self.period.until)
        ranges: list[_Range] = [(gap, None) for gap in self.index.gaps(self.log, 0, end)]
        ranges += [(range(span.first, min(span.end, end)), span if self.rows else None) for span in spans]
        ranges = sorted((each for each in ranges if each[0]), key=lambda each: each[0].start, reverse=True)
        return ranges if not end or (ranges and end - 1 in ranges[0][0]) else [(range(end - 1, end), None), *ranges]

    def _rows_of(self, each: _Range) -> Sequence[Row] | None:
        return self.rows(self.store, each[1]) if self.rows and each[1] and each[1].manifests else None

    def _statement(self, sequence: int) -> Statement:
        return reader.read_manifest(self.store, self.log, sequence, self.holds).statement

    def _one_by_one(self, threads: ThreadPoolExecutor, slots: range) -> Iterator[Sequence[Slot]]:
        stop = slots.stop
        while stop > slots.start:
            several = range(stop - 1, max(stop - 1 - _CHUNK, slots.start - 1), -1)
            chunk = list(zip(several, threads.map(self._valid, several), strict=True))
            stop = several[-1]
            rows = [row_of(str(self.log), manifest.statement) if manifest else None for _, manifest in chunk]
            # A tree grows from the oldest statement on.
            for (sequence, manifest), row in reversed(list(zip(chunk, rows, strict=True))):
                if manifest and row:
                    self.coverage.add(sequence, manifest, counted=self.period.has(row.sealed_at))
            self.coverage.end()
            yield [
                (sequence, row, partial(_given, manifest))
                for (sequence, manifest), row in zip(chunk, rows, strict=True)
            ]
            # A whole chunk before the period: what is older among these slots is not read.
            if any(rows) and all(self.period.is_before(row.sealed_at) for row in rows if row):
                break

    def _valid(self, sequence: int) -> Manifest | None:
        try:
            return reader.read_manifest(self.store, self.log, sequence, self.holds)
        except (ObjectMissing, FormatError):
            return None


def _given(manifest: Manifest | None) -> Statement:
    if manifest is None:
        raise FormatError("the slot has no valid statement")
    return manifest.statement
