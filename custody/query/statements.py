"""Statements as rows of the views `manifests` and `batches`, and these rows as Parquet files.

An audit makes such files of the statements of a span while it reads them, and the time index refers to each by its
SHA-256 (`custody.archive.time_index`). So a query reads a file where it would read hundreds of manifests.

The file of `manifests` has one column more than the view: `types`, the statement's events by type as JSON. A file of an
older version lacks it. It counts for queries, and an audit that reads its statements again makes a new one.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise, starmap
from operator import ge
from typing import Any, Literal

import msgspec
import pyarrow as pa

from custody.archive.rows import BatchRow, Row, row_of
from custody.archive.time_parts import FOLDER
from custody.archive.time_spans import Contradiction, Span
from custody.errors import FormatError, ObjectArchived, ObjectMissing
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import EPOCH
from custody.query import parquet, tables, views
from custody.store.protocol import Store

Name = Literal["manifests", "batches"]
STATEMENTS = f"{FOLDER}statements/"
"""Parquet files of the rows of spans."""

_ROWS = 10_000
_TYPES = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "TIMESTAMP": pa.timestamp("us")}


def _schema(name: Name) -> pa.Schema:
    view = next(view for view in views.VIEWS if view.name == name)
    return pa.schema([(column.name, _TYPES[column.type]) for column in view.columns])


TYPES = "types"
_VIEWS: dict[Name, pa.Schema] = {"manifests": _schema("manifests"), "batches": _schema("batches")}
SCHEMAS: dict[Name, pa.Schema] = {**_VIEWS, "manifests": _VIEWS["manifests"].append(pa.field(TYPES, pa.string()))}
"""The columns of files. An older file has those of its view."""
_NULLABLE = frozenset({"expired_from", "expired_to", "kafka_time", "segment", "quarantine"})
_parse_types: msgspec.json.Decoder[dict[str, int]] = msgspec.json.Decoder(dict[str, int])


def manifest_row(log: str, statement: Statement) -> tuple[Any, ...]:
    """Return a statement as a row of the view `manifests`."""
    return row_of(log, statement)[:-1]


def file_row(row: Row) -> tuple[Any, ...]:
    """Return the values of a statement's row in a file: those of the view, and its events by type as JSON."""
    # In ASCII: a name may have half a character, which Arrow does not take.
    return *row[:-1], json.dumps(row.types, separators=(",", ":"))


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


def file_ref(name: Name, log: Log, first: int, end: int, data: bytes) -> ObjectRef:
    """Return the reference to the file of a span's rows. Its key contains a digest of the bytes."""
    digest = sha256(data).hexdigest()
    span = f"{log.name}-{log.partition}-{first:012}-{end:012}"
    return ObjectRef(f"{STATEMENTS}{span}-{name}-{digest[:16]}.parquet", len(data), digest)


def read_files(store: Store, name: Name, refs: Sequence[ObjectRef]) -> pa.Table:
    """Return the rows of files, as they were signed. What an older file lacks is NULL.

    Raises:
        FormatError: a file is missing, has other bytes, or other columns.
        Contradiction: it is as it was signed, and no Parquet file.
        StoreError: the store does not give it.
    """
    read = [_read_file(store, name, ref) for ref in refs]
    return pa.concat_tables([SCHEMAS[name].empty_table(), *read], promote_options="default")


def _read_file(store: Store, name: Name, ref: ObjectRef) -> pa.Table:
    if ref.size > tables.FILE_LIMIT:
        raise FormatError(f"{ref.key} is larger than {tables.FILE_LIMIT} bytes")
    try:
        data = store.read(ref.key, limit=ref.size)
    except ObjectMissing:
        raise FormatError(f"{ref.key} is missing") from None
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError(f"{ref.key} differs from the signed digest")
    try:
        table = parquet.decode(ref.key, data, SCHEMAS[name])
    except parquet.NotParquet as error:
        # The digest is the signed one.
        raise Contradiction(str(error)) from None
    if not any(table.schema.equals(schema) for schema in (SCHEMAS[name], _VIEWS[name])):
        raise FormatError(f"{ref.key} has other columns")
    return table


def is_older(table: pa.Table) -> bool:
    """Return whether rows of `manifests` are of an older version, which had no types."""
    return bool(table[TYPES].null_count)


def span_rows(store: Store, span: Span) -> Sequence[Row] | None:
    """Return the rows of a span's statements, in order. A slot without one was passed over.

    None if the span has no such file, or one of an older version, or not as it was signed: read the statements then.

    Raises:
        StoreError: the store does not give it.
    """
    if span.manifests is None:
        return None
    try:
        columns = span_columns(store, span, *SCHEMAS["manifests"].names)
        columns[TYPES] = list(map(_parse_types.decode, columns[TYPES]))
    except (FormatError, ObjectArchived, msgspec.MsgspecError):
        return None
    return list(map(Row, *columns.values()))


def span_columns(store: Store, span: Span, *names: str) -> dict[str, list[Any]]:
    """Return columns of the rows of a span's statements, by their names. A slot without a row was passed over.

    Raises:
        FormatError: the span has no such file, or it is not as it was signed, or does not have a row for each of some
            statements of the span, in order.
        ObjectArchived: it is in an archive storage class.
        StoreError: the store does not give it.
    """
    if span.manifests is None:
        raise FormatError(f"statements {span.first} to {span.end - 1} of {span.log} have no file of rows")
    table = read_files(store, "manifests", [span.manifests])
    try:
        columns = _columns(table.select(list(dict.fromkeys(("log", "sequence", *names)))))
    except FormatError as error:
        raise FormatError(f"{span.manifests.key}: {error}") from None
    if not _are_of(span, columns) or any(starmap(ge, pairwise(columns["sequence"]))):
        raise FormatError(f"{span.manifests.key} has rows of other statements, or in another order")
    return {name: columns[name] for name in names}


def _are_of(span: Span, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether each row is of a statement of a span."""
    sequences = columns["sequence"]
    return set(columns["log"]) <= {span.log} and all(span.first <= each < span.end for each in sequences)


def span_batches(store: Store, span: Span) -> Mapping[int, Sequence[BatchRow]] | None:
    """Return the rows of a span's batches, by the sequence of their statement. None and errors as of `span_rows`."""
    if span.manifests is None:
        return None
    try:
        columns = _columns(read_files(store, "batches", [span.batches] if span.batches else []))
    except (FormatError, ObjectArchived):
        return None
    if not _are_of(span, columns):
        return None
    batches: dict[int, list[BatchRow]] = {}
    for row in map(BatchRow, *columns.values()):
        batches.setdefault(row.sequence, []).append(row)
    return batches


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    """Return the values of each column. Raises FormatError if one is NULL that must not: a sum may be too large."""
    if any(table[name].null_count for name in table.column_names if name not in _NULLABLE):
        raise FormatError("a row lacks a value")
    try:
        return {name: _values(table[name]) for name in table.column_names}
    except OverflowError:
        raise FormatError("a row has a time of a year that Python does not have") from None


def _values(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_timestamp(column.type):
        return list(column.to_pylist())
    # Made here, for Arrow would need ten times as long to make times.
    numbers = column.cast(pa.int64()).to_pylist()
    return [None if number is None else EPOCH + timedelta(microseconds=number) for number in numbers]
