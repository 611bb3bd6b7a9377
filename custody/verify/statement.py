"""Rules 4 and 6 within one statement: its log, and its account of offsets, batches and objects. Pure.

The functions return a `Fault`; the log's account adds the sequence, and reports it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from custody.errors import counted
from custody.format import layout, limits
from custody.format.manifest import Batch, LogId, QuarantineRef, Range, SegmentRef, Statement
from custody.format.offsets import Measure, counts_of, unlined_ranges
from custody.tlog.log import Fault


@dataclass(slots=True)
class Totals:
    """What a log's statements account for."""

    statements: int = 0
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    lost: int = 0
    unreadable: int = 0
    stored: int = 0
    inflated: int = 0
    outside: int = 0
    """Statements sealed outside the times of the part. Their objects are not read."""

    def count(self, statement: Statement) -> None:
        """Add a statement's counts. Events and bytes are counted when they are read."""
        self.statements += 1
        quarantined, skipped, lost, unreadable = counts_of(statement)
        self.quarantined += quarantined
        self.skipped += skipped
        self.lost += lost
        self.unreadable += unreadable


def belongs_to_another(
    statement: Statement, log: layout.Log, identity: LogId | None, archive: str | None
) -> Fault | None:
    """Return a fault if the statement belongs to another archive or log, else None (rule 4).

    Args:
        statement: the statement.
        log: the log in which it was found.
        identity: the log as its earlier statements name it, None where there is none.
        archive: the archive's id, None where it is not known.
    """
    stated_log = statement.log
    if stated_log == identity and statement.archive == archive:
        return None
    for name, expected, stated in (
        ("archive", archive or statement.archive, statement.archive),
        ("topic", log.topic, stated_log.topic),
        ("partition", log.partition, stated_log.partition),
        ("epoch", log.epoch, stated_log.epoch),
    ):
        if expected != stated:
            return _of_another(name, str(expected), str(stated))
    if identity is not None and identity != stated_log:
        known = f"{identity.cluster}, {identity.topic_id}"
        return _of_another("cluster and topic id", known, f"{stated_log.cluster}, {stated_log.topic_id}")
    return None


def _of_another(name: str, expected: str, stated: str) -> Fault:
    where = {"expected": expected[:300], "found": stated[:300]}
    return Fault("identity", f"the statement is of another {name}", where)


def record_bounds(statement: Statement) -> tuple[int, int] | None:
    """Return the offsets of the first and last record of the range: events and quarantined records."""
    if statement.quarantine is None and len(statement.batches) == 1:
        return statement.batches[0].first_offset, statement.batches[0].next_offset - 1
    spans: list[tuple[int, int]] = [(batch.first_offset, batch.next_offset) for batch in statement.batches]
    if statement.quarantine:
        spans += statement.quarantine.offsets
    return (min(spans)[0], max(end for _, end in spans) - 1) if spans else None


def problem_of(statement: Statement) -> str | None:  # noqa: C901 - a list of checks
    """Return what is not allowed in this statement, None if all is."""
    segment, quarantine, batches = statement.segment, statement.quarantine, statement.batches
    empty = statement.first_offset == statement.next_offset
    if statement.first_offset > statement.next_offset:
        return "the range ends before its start"
    if (segment is None) != (not batches):
        return "there is a segment without batches, or batches without a segment"
    if not batches and statement.types:
        return "types are counted without a batch"
    if segment is not None and segment.size > limits.SEGMENT_BYTES:
        return f"the segment is larger than {limits.SEGMENT_BYTES} bytes"
    if statement.lost and (statement.lost[0] != statement.first_offset or statement.lost[1] > statement.next_offset):
        return "lost does not start with the range, or goes beyond it"
    if statement.expired and (not empty or segment or quarantine or statement.expired[1] > statement.sequence):
        return "a statement of expiry has a range or objects, or covers later statements"
    if quarantine is not None:
        if quarantine.size > limits.QUARANTINE_BYTES or quarantine.inflated > limits.QUARANTINE_INFLATED:
            return "the quarantine exceeds the limits"
        if sum(end - start for start, end in quarantine.offsets) != quarantine.records:
            return "the quarantine's number of records is not its number of offsets"
    for batch in batches:
        if not 0 < batch.events <= limits.BATCH_EVENTS:
            return f"a batch has {batch.events} events (1 to {limits.BATCH_EVENTS})"
        if batch.min_time > batch.max_time:
            return "a batch's last time is before its first"
        if batch.kafka_time and batch.kafka_time.min > batch.kafka_time.max:
            return "a batch's last Kafka time is before its first"
    return None


def disorder(statement: Statement, number: int) -> Fault | None:
    """Return a fault if the batches' numbers or byte positions are not consecutive, else None.

    Args:
        statement: the statement.
        number: the number that its first batch should have.
    """
    position = 0
    for batch in statement.batches:
        if batch.number != number or batch.start != position:
            where = {
                "batch": batch.number,
                "expected": f"number {number} at byte {position}",
                "found": f"number {batch.number} at byte {batch.start}",
            }
            return Fault("batch-order", "the batches are not consecutive", where)
        number += 1
        position += batch.size
    segment = statement.segment
    if segment and position != segment.size:
        where = {"key": segment.key, "expected": f"{segment.size} bytes", "found": f"{position} bytes"}
        return Fault("segment-size", "the members do not add up to the segment's size", where)
    return None


def miscount(statement: Statement) -> Fault | None:
    """Return a fault unless each offset is exactly one of: event, quarantined, skipped, unreadable, lost."""
    unlined = unlined_ranges(statement)
    if not unlined and _is_contiguous(statement):
        return None
    for (_, end), (start, stop) in pairwise(unlined):
        if start < end:
            return _miscounted("offset-overlap", start, min(end, stop) - start)
    if unlined and (unlined[0][0] < statement.first_offset or unlined[-1][1] > statement.next_offset):
        return Fault("statement", "skipped, lost, unreadable or quarantined offsets are outside the range")
    measure = Measure(unlined)
    cursor = statement.first_offset
    for batch in [*statement.batches, None]:
        start = batch.first_offset if batch else statement.next_offset
        missing = start - cursor - measure(cursor, start)
        if start < cursor:
            return _miscounted("offset-overlap", start, cursor - start)
        if missing:
            return _miscounted("offset-gap", cursor, missing)
        if batch is None:
            break
        lines = batch.next_offset - start - measure(start, batch.next_offset)
        if batch.next_offset <= start or lines != batch.events:
            name = "offset-gap" if lines > batch.events else "offset-overlap"
            return _miscounted(name, start, abs(lines - batch.events), batch)
        cursor = batch.next_offset
    return None


def _is_contiguous(statement: Statement) -> bool:
    """Return whether the batches' events are all the offsets of the range, one after another."""
    cursor = statement.first_offset
    for batch in statement.batches:
        if batch.first_offset != cursor or batch.events < 1 or batch.next_offset != cursor + batch.events:
            return False
        cursor = batch.next_offset
    return cursor == statement.next_offset


def _miscounted(name: str, offset: int, count: int, batch: Batch | None = None) -> Fault:
    how = "nowhere" if name == "offset-gap" else "twice"
    message = f"{counted(count, 'offset appears', 'offsets from here on appear')} {how} in the statement's account"
    return Fault(name, message, {"batch": batch.number if batch else None, "offset": offset})


def misnamed(statement: Statement, log: layout.Log, bounds: Range | None) -> Iterator[tuple[Fault, bool]]:
    """Yield a fault for each object with a wrong key (rule 4), and whether no object of an archive can have that key.

    Args:
        statement: the statement.
        log: its log.
        bounds: its `record_bounds`.
    """
    kinds: tuple[tuple[layout.Kind, SegmentRef | QuarantineRef | None], ...] = (
        ("events", statement.segment),
        ("quarantine", statement.quarantine),
    )
    for kind, ref in kinds:
        if ref is None or (bounds and layout.is_records_key(ref.key, kind, log, *bounds, ref.sha256)):
            continue
        key = layout.parse_records_key(ref.key)
        if (
            key is None
            or (key.kind, key.log, key.digest) != (kind, log, ref.sha256[:16])
            or (bounds and (key.first, key.last) != bounds)
        ):
            message = (
                f"the key of the statement's {'segment' if kind == 'events' else 'quarantine'} is not the right one"
            )
            yield Fault("identity", message, {"key": ref.key[:1024]}), key is None
