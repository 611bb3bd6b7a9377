"""What a backfill's plan needs of statements: from the rows of the index by time, or from the manifests, one by one.

- Rows count as the audit does that refers to them: with keys, one that these signed.
- A statement whose slot is empty now is read nevertheless. So the plan names it as missing.
- Whether an object is still what the audit has read is seen when it is copied: the copy reads each statement again.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from custody.archive.forms import statements_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.rows import BatchRow, Row, batches_of, row_of
from custody.archive.slots import Slots
from custody.archive.time_spans import Span
from custody.errors import FormatError, ObjectMissing
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.query.statements import span_batches, span_rows
from custody.store.ahead import in_order
from custody.store.protocol import Store

ADVICE = "`custody verify` says more"
PARALLEL = 32
_SPANS = 16
"""Spans whose rows are in memory at a time."""


Searched = tuple[Sequence[int], Span | None]
"""Slots of a log in order, and the span of the index by time in which they are, if there is one."""


@dataclass(frozen=True, slots=True)
class Stated:
    """A statement and its batches, in order."""

    row: Row
    batches: Sequence[BatchRow]


@dataclass(frozen=True, slots=True)
class StatedReader:
    """Reads statements of a log.

    Attributes:
        store: the archive.
        threads: read several at a time.
        log: the log.
        holds: whether a statement is valid in its slot.
    """

    store: Store
    threads: ThreadPoolExecutor
    log: Log
    holds: Holds[Manifest]

    def read(self, searched: Sequence[Searched]) -> Iterator[tuple[int, Stated | str]]:
        """Yield statements by their sequences, in order; a text says why one cannot be read.

        Slots that the audit saw passed over are left out.

        Args:
            searched: the slots to read, in order.

        Raises:
            StoreError: the store does not answer.
        """
        with_rows = (range(slots[0], slots[-1] + 1) for slots, span in searched if slots and span and span.manifests)
        used = Slots(self.store, statements_of(self.log), with_rows)
        for start in range(0, len(searched), _SPANS):
            several = searched[start : start + _SPANS]
            for (slots, _), known in zip(several, self.threads.map(self._known, several), strict=True):
                if known is None:
                    yield from zip(slots, in_order(self.threads, self._read, slots), strict=True)
                    continue
                for sequence in slots:
                    if sequence in known:
                        yield sequence, known[sequence] if sequence in used else self._read(sequence)

    def _known(self, searched: Searched) -> Mapping[int, Stated] | None:
        """Return the statements of a span by its rows; None if it has none that count."""
        _, span = searched
        if span is None or (rows := span_rows(self.store, span)) is None:
            return None
        batches = span_batches(self.store, span)
        return None if batches is None else {row.sequence: Stated(row, batches.get(row.sequence, ())) for row in rows}

    def _read(self, sequence: int) -> Stated | str:
        try:
            statement = read_manifest(self.store, self.log, sequence, self.holds).statement
        except (FormatError, ObjectMissing) as error:
            return f"{self.log}, sequence {sequence} cannot be read: {error}; {ADVICE}"
        return Stated(row_of(str(self.log), statement), list(batches_of(str(self.log), statement)))
