"""What a statement says as a row, with its sums: from the statement itself, or from the index by time. Pure.

An audit keeps the rows of the statements that it has read (`custody.query.statements`). So figures and plans read a
file of hundreds of rows where they would read hundreds of manifests.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from custody.format.manifest import Statement
from custody.format.offsets import counts_of
from custody.format.times import kafka_moment, parse_time


class Row(NamedTuple):
    """A statement. All but the types are the columns of the view `manifests`, which has their meaning.

    Attributes:
        log: `<log>/<partition>`.
        stored: bytes of its segment and its quarantine object.
        kafka_time: the earliest Kafka timestamp of its records; None if Kafka gave none.
        segment: the segment's key.
        quarantine: the quarantine object's key.
        types: how many events of each type it has.
    """

    log: str
    sequence: int
    sealed_at: datetime
    first_offset: int
    next_offset: int
    events: int
    quarantined: int
    skipped: int
    lost: int
    unreadable: int
    passed_over: int
    expired_from: int | None
    expired_to: int | None
    stored: int
    inflated: int
    kafka_time: datetime | None
    segment: str | None
    quarantine: str | None
    root: str
    writer: str
    types: dict[str, int]


class BatchRow(NamedTuple):
    """A batch. Its fields are the columns of the view `batches`, which has their meaning."""

    log: str
    sequence: int
    batch: int
    first_offset: int
    next_offset: int
    events: int
    stored: int
    inflated: int
    min_time: datetime
    max_time: datetime


def row_of(log: str, statement: Statement) -> Row:
    """Return a statement as a row."""
    segment, quarantine = statement.segment, statement.quarantine
    expired_from, expired_to = statement.expired or (None, None)
    times = [batch.kafka_time.min for batch in statement.batches if batch.kafka_time]
    return Row(
        log=log,
        sequence=statement.sequence,
        sealed_at=parse_time(statement.sealed_at),
        first_offset=statement.first_offset,
        next_offset=statement.next_offset,
        events=sum(statement.types.values()),
        **counts_of(statement)._asdict(),
        passed_over=len(statement.passed_over),
        expired_from=expired_from,
        expired_to=expired_to,
        stored=(segment.size if segment else 0) + (quarantine.size if quarantine else 0),
        inflated=sum(batch.inflated for batch in statement.batches),
        kafka_time=kafka_moment(min(times, default=None)),
        segment=segment.key if segment else None,
        quarantine=quarantine.key if quarantine else None,
        root=statement.tree.root,
        writer=statement.writer,
        types=statement.types,
    )


def batches_of(log: str, statement: Statement) -> Iterator[BatchRow]:
    """Yield a statement's batches as rows, in order."""
    for batch in statement.batches:
        yield BatchRow(
            log,
            statement.sequence,
            batch.number,
            batch.first_offset,
            batch.next_offset,
            batch.events,
            batch.size,
            batch.inflated,
            parse_time(batch.min_time),
            parse_time(batch.max_time),
        )
