"""Statements as rows of the views `manifests` and `batches`, and these rows as Parquet files.

An audit makes such files of the statements of a span while it reads them, and the time index refers to each by its
SHA-256 (`custody.archive.time_index`). So a query reads a file where it would read hundreds of manifests.
"""

import io
from collections.abc import Iterator, Sequence
from hashlib import sha256
from operator import attrgetter
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from custody.archive.time_index import FOLDER
from custody.errors import FormatError, ObjectMissing
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import kafka_moment, parse_time
from custody.query import tables, views
from custody.store.protocol import Store
from custody.verify.statement import Totals

Name = Literal["manifests", "batches"]
STATEMENTS = f"{FOLDER}statements/"
"""Parquet files of the rows of spans."""

_ROWS = 10_000
_BATCH = attrgetter("number", "first_offset", "next_offset", "events", "size", "inflated")
_TYPES = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "TIMESTAMP": pa.timestamp("us")}


def _schema(name: Name) -> pa.Schema:
    view = next(view for view in views.VIEWS if view.name == name)
    return pa.schema([(column.name, _TYPES[column.type]) for column in view.columns])


SCHEMAS: dict[Name, pa.Schema] = {"manifests": _schema("manifests"), "batches": _schema("batches")}


def manifest_row(log: str, statement: Statement) -> tuple[Any, ...]:
    """Return a statement as a row of the view `manifests`."""
    segment, quarantine = statement.segment, statement.quarantine
    stated = Totals()
    stated.count(statement)
    times = [batch.kafka_time.min for batch in statement.batches if batch.kafka_time]
    return (
        log,
        statement.sequence,
        parse_time(statement.sealed_at),
        statement.first_offset,
        statement.next_offset,
        sum(statement.types.values()),
        stated.quarantined,
        stated.skipped,
        stated.lost,
        stated.unreadable,
        len(statement.passed_over),
        *(statement.expired or (None, None)),
        (segment.size if segment else 0) + (quarantine.size if quarantine else 0),
        sum(batch.inflated for batch in statement.batches),
        kafka_moment(min(times, default=None)),
        segment.key if segment else None,
        quarantine.key if quarantine else None,
        statement.tree.root,
        statement.writer,
    )


def batch_rows(log: str, statement: Statement) -> Iterator[tuple[Any, ...]]:
    """Yield a statement's batches as rows of the view `batches`."""
    for batch in statement.batches:
        yield log, statement.sequence, *_BATCH(batch), parse_time(batch.min_time), parse_time(batch.max_time)


class Rows:
    """Collects the rows of a view, in little memory."""

    def __init__(self, name: Name) -> None:
        self.schema = SCHEMAS[name]
        self._rows: list[tuple[Any, ...]] = []
        self._tables: list[pa.Table] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Add a row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._flush()

    def table(self) -> pa.Table:
        """Return the rows that were added."""
        self._flush()
        return pa.concat_tables([self.schema.empty_table(), *self._tables])

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [tables.column(values, each.type) for values, each in zip(columns, self.schema, strict=True)]
            self._tables.append(pa.Table.from_arrays(arrays, schema=self.schema))
            self._rows = []


def parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    made = io.BytesIO()
    pq.write_table(table, made, compression="zstd", compression_level=3)
    return made.getvalue()


def file_ref(name: Name, log: Log, first: int, end: int, data: bytes) -> ObjectRef:
    """Return the reference to the file of a span's rows. Its key contains a digest of the bytes."""
    digest = sha256(data).hexdigest()
    span = f"{log.name}-{log.partition}-{first:012}-{end:012}"
    return ObjectRef(f"{STATEMENTS}{span}-{name}-{digest[:16]}.parquet", len(data), digest)


def read_files(store: Store, name: Name, refs: Sequence[ObjectRef]) -> pa.Table:
    """Return the rows of files, as they were signed.

    Raises:
        FormatError: a file is missing, has other bytes, or other columns.
        StoreError: the store does not give it.
    """
    read = [_read_file(store, SCHEMAS[name], ref) for ref in refs]
    return pa.concat_tables([SCHEMAS[name].empty_table(), *read])


def _read_file(store: Store, schema: pa.Schema, ref: ObjectRef) -> pa.Table:
    if ref.size > tables.FILE_LIMIT:
        raise FormatError(f"{ref.key} is larger than {tables.FILE_LIMIT} bytes")
    try:
        data = store.read(ref.key, limit=ref.size)
    except ObjectMissing:
        raise FormatError(f"{ref.key} is missing") from None
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError(f"{ref.key} differs from the signed digest")
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{ref.key} is no Parquet file: {error}") from None
    if not table.schema.equals(schema):
        raise FormatError(f"{ref.key} has other columns")
    return table
