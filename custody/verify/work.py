"""The work of checking a statement's objects, and its outcome: sent to worker processes, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from custody.findings import Finding
from custody.format.manifest import Batch, QuarantineRef, Range, SegmentRef, Statement
from custody.format.offsets import unlined_ranges


class Work(msgspec.Struct, frozen=True):
    """What one statement says about its objects."""

    log: str
    sequence: int
    first_offset: int
    next_offset: int
    segment: SegmentRef | None
    batches: Sequence[Batch]
    types: dict[str, int]
    quarantine: QuarantineRef | None
    unlined: Sequence[Range]
    """Offsets of the range without a line in the segment: skipped or quarantined. Sorted."""
    overdue: bool = False
    """Whether the objects should have been deleted by now."""
    sealed_at: str = ""
    archive: str = ""
    """The archive's id, as stated."""

    @property
    def weight(self) -> int:
        """Bytes to inflate, as stated."""
        return sum(batch.inflated for batch in self.batches) + (self.quarantine.inflated if self.quarantine else 0)


def work_of(statement: Statement, log: str, *, overdue: bool = False) -> Work:
    """Return what a statement says about its objects."""
    return Work(
        log,
        statement.sequence,
        statement.first_offset,
        statement.next_offset,
        statement.segment,
        statement.batches,
        statement.types,
        statement.quarantine,
        unlined_ranges(statement),
        overdue,
        statement.sealed_at,
        statement.archive,
    )


@dataclass(slots=True)
class Outcome:
    """The outcome of checking a statement's objects."""

    work: Work
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Keys of missing objects. The log decides whether they may have been deleted."""
    events: int = 0
    stored: int = 0
    inflated: int = 0


class Sink(Protocol):
    """Gets the inflated bytes, so that whoever needs them does not read them again."""

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch of JSON lines that has the stated bytes. Batches come in the order of their log."""
        ...


Salts = Callable[[Work, Batch], bytes | None]
"""Returns the salts of a batch's events, None if it has none or their secret is not available."""
