"""Offsets and lines: what a statement says of each offset of its range, and which line of which batch its event is.

The lines of a batch take the offsets of its range in order, leaving out those without a line: skipped, lost, unreadable
and quarantined ones. Nothing here grows with the width of the ranges that a statement claims.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Literal, NamedTuple

from custody.format import limits
from custody.format.manifest import Batch, Range, Statement

Kind = Literal["event", "quarantined", "skipped", "unreadable", "lost"]

_BEYOND_ALL = 1 << 64


class Counts(NamedTuple):
    """How many offsets of a statement have no event, by what they are instead."""

    quarantined: int
    skipped: int
    lost: int
    unreadable: int


_NONE = Counts(0, 0, 0, 0)


def counts_of(statement: Statement) -> Counts:
    """Return how many of a statement's offsets are no events."""
    if not (statement.quarantine or statement.skipped or statement.lost or statement.unreadable):
        # Nearly all statements.
        return _NONE
    return Counts(
        quarantined=statement.quarantine.records if statement.quarantine else 0,
        skipped=sum(end - start for start, end in statement.skipped),
        lost=statement.lost[1] - statement.lost[0] if statement.lost else 0,
        unreadable=sum(span.to - span.from_ for span in statement.unreadable),
    )


def unlined_ranges(statement: Statement) -> list[Range]:
    """Return the ranges of offsets without a line in the segment, sorted."""
    lost = [statement.lost] if statement.lost else []
    quarantined = statement.quarantine.offsets if statement.quarantine else []
    if not statement.skipped and not lost and not statement.unreadable:
        return quarantined
    unreadable = [(span.from_, span.to) for span in statement.unreadable]
    return sorted([*statement.skipped, *lost, *unreadable, *quarantined])


def line_offsets(batch: Batch, unlined: Sequence[Range]) -> Iterator[int]:
    """Yield the offsets of a batch's lines, in order, without an end: the caller takes as many as it wants.

    Args:
        batch: the batch.
        unlined: the statement's `unlined_ranges`.
    """
    return chain.from_iterable(_stretches(batch.first_offset, unlined))


def offset_of(batch: Batch, unlined: Sequence[Range], line: int) -> int:
    """Return the offset of a line of a batch, counted from 0, even of one that it should not have."""
    return next(islice(line_offsets(batch, unlined), line, None))


def offsets_of(statement: Statement, batch: Batch) -> Sequence[int]:
    """Return the offsets of a batch's lines, in order; of too many of them a few more than a batch may have."""
    if batch.next_offset - batch.first_offset == batch.events:
        return range(batch.first_offset, batch.next_offset)
    offsets: list[int] = []
    for stretch in _stretches(batch.first_offset, unlined_ranges(statement)):
        if stretch.start >= batch.next_offset:
            break
        room = limits.BATCH_EVENTS + 1 - len(offsets)
        offsets.extend(range(stretch.start, min(stretch.stop, batch.next_offset, stretch.start + room)))
    return offsets


def _stretches(offset: int, unlined: Sequence[Range]) -> Iterator[range]:
    """Yield the stretches of offsets that have lines, from an offset on; the last one does not end."""
    for index in range(max(bisect_left(unlined, (offset, 0)) - 1, 0), len(unlined)):
        start, end = unlined[index]
        if end <= offset:
            continue
        if start > offset:
            yield range(offset, start)
        offset = end
    yield range(offset, _BEYOND_ALL)


def kind_of(statement: Statement, offset: int) -> Kind | None:
    """Return what the record at an offset is, None where the statement does not account for it."""
    ranges: list[tuple[Kind, list[Range]]] = [
        ("lost", [statement.lost] if statement.lost else []),
        ("unreadable", [(span.from_, span.to) for span in statement.unreadable]),
        ("skipped", statement.skipped),
        ("quarantined", statement.quarantine.offsets if statement.quarantine else []),
        ("event", [(batch.first_offset, batch.next_offset) for batch in statement.batches]),
    ]
    return next((kind for kind, listed in ranges if any(start <= offset < end for start, end in listed)), None)


def line_of(statement: Statement, offset: int) -> tuple[Batch, int] | None:
    """Return the batch that holds the event at an offset, and its line, from 0; None where no batch does."""
    if kind_of(statement, offset) != "event":
        return None
    batch = next(each for each in statement.batches if each.first_offset <= offset < each.next_offset)
    before = sum(max(min(end, offset) - max(start, batch.first_offset), 0) for start, end in unlined_ranges(statement))
    return batch, offset - batch.first_offset - before


def reason_of(statement: Statement, offset: int) -> str:
    """Return why there is no event at an offset, for people."""
    match kind_of(statement, offset):
        case "quarantined":
            return "the record is no event, and is in quarantine"
        case "skipped":
            return "a read-committed consumer gets no record there (a transaction's marker, aborted, compacted)"
        case "lost":
            return "the broker deleted it before it was read, and the statement admits the loss"
        case "unreadable":
            error = next(span.error for span in statement.unreadable if span.from_ <= offset < span.to)
            return f"the broker holds it, and no client could decode it: {error}"
        case _:
            return "the statement does not account for it"


class Measure:
    """How many offsets of sorted, disjoint ranges lie in a span, in logarithmic time."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._starts = [start for start, _ in ranges]
        self._ranges = ranges
        self._before = [0, *accumulate(end - start for start, end in ranges)]

    def __call__(self, start: int, end: int) -> int:
        """Return how many lie in `[start, end)`."""
        if not self._ranges or end <= start:
            return 0
        return self._below(end) - self._below(start)

    def _below(self, offset: int) -> int:
        index = bisect_right(self._starts, offset)
        if not index:
            return 0
        start, end = self._ranges[index - 1]
        return self._before[index - 1] + min(offset, end) - start
