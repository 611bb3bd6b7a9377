"""What a statement says of one offset of its range: in which line of which batch its event is, or what else it is."""

from typing import Literal

from custody.format.manifest import Batch, Range, Statement
from custody.verify.accounting import unlined_ranges

Kind = Literal["event", "quarantined", "skipped", "unreadable", "lost"]


def kind_of(statement: Statement, offset: int) -> Kind | None:
    """Return what the record at an offset is, None where the statement does not account for it."""
    ranges: list[tuple[Kind, list[Range]]] = [
        ("lost", [statement.lost] if statement.lost else []),
        ("unreadable", [(one.from_, one.to) for one in statement.unreadable]),
        ("skipped", statement.skipped),
        ("quarantined", statement.quarantine.offsets if statement.quarantine else []),
        ("event", [(batch.first_offset, batch.next_offset) for batch in statement.batches]),
    ]
    return next((kind for kind, listed in ranges if any(start <= offset < end for start, end in listed)), None)


def line_of(statement: Statement, offset: int) -> tuple[Batch, int] | None:
    """Return the batch that holds the event at an offset, and its line, from 0; None where no batch does.

    The lines of a batch take the offsets of its range in order, leaving out those without a line.
    """
    if kind_of(statement, offset) != "event":
        return None
    batch = next(one for one in statement.batches if one.first_offset <= offset < one.next_offset)
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
            error = next(one.error for one in statement.unreadable if one.from_ <= offset < one.to)
            return f"the broker holds it, and no client could decode it: {error}"
        case _:
            return "the statement does not account for it"
