"""Tables that are made when DuckDB reads them, and only the part that it asks for.

DuckDB hands the columns and the conditions of a query to an Arrow dataset when it scans one. `Lazy` is a dataset that
is made at that moment. So a query pays for the tables that it names, and `pruned` leaves out what no row of a part can
meet: its files are not opened. A condition that says more than a part guarantees only costs time.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from custody.query import tables, views

P = TypeVar("P")

_ROWS = 10_000
_GROUP = 64
"""How many parts are left out, or looked at one by one, at a time."""
_TYPES = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "TIMESTAMP": pa.timestamp("us"), "DATE": pa.date32()}
_FORMAT = ds.ParquetFileFormat()


def schema_of(name: str) -> pa.Schema:
    """Return the Arrow schema of a view other than `sources`."""
    if name == "events":
        return EVENTS
    view = next(view for view in views.VIEWS if view.name == name)
    return pa.schema([(column.name, _TYPES[column.type]) for column in view.columns])


def _event_type(name: str) -> pa.DataType:
    if name == "day":
        return pa.date32()
    # Few different values: DuckDB groups by their numbers, several times as fast.
    return pa.dictionary(pa.int32(), pa.string()) if name in tables.REPEATING else tables.SCHEMA.field(name).type


EVENTS = pa.schema([(name, _event_type(name)) for name in ("day", *tables.SCHEMA.names)])
"""The columns of events. DuckDB reads the first one to count rows: `day` is in a file's name, and costs nothing."""


class Lazy(ds.Dataset):  # type: ignore[misc]
    """A table whose rows are made by a function, each time when it is scanned."""

    def __init__(self, schema: pa.Schema, scan: Callable[[Sequence[str], Any], Any]) -> None:
        """Set up. `scan` returns a scanner of some columns, by an expression or None."""
        self._columns, self._scan = schema, scan

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._columns

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> Any:  # noqa: A002 - Arrow's
        """Return a scanner: DuckDB calls it."""
        return self._scan(columns if columns is not None else self._columns.names, filter)


class Spill:
    """Collects rows in a temporary Parquet file, in little memory."""

    def __init__(self, schema: pa.Schema, path: Path) -> None:
        self._schema, self._path = schema, path
        self._rows: list[tuple[Any, ...]] = []
        self._file: Any = None

    def add(self, *row: Any) -> None:
        """Add a row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._flush()

    def finish(self) -> str:
        """Write what is left, and return the path of the file."""
        self._flush()
        self._file.close()
        return str(self._path)

    def _flush(self) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, self._schema, compression="zstd", compression_level=1)
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [tables.column(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


# --- what a part guarantees


def within(name: str, bounds: tuple[int, int], *, nullable: bool = False) -> Any:
    """Return that a time is within bounds in µs since 1970, both included; or, if it is nullable, NULL."""
    field = pc.field(name)
    low, high = (pa.scalar(value, pa.timestamp("us")) for value in bounds)
    if nullable:
        return ((field >= low) | field.is_null()) & ((field <= high) | field.is_null())
    return (field >= low) & (field <= high)


def of_statements(log: str, first: int, end: int) -> Any:
    """Return that rows are of statements `[first, end)` of a log."""
    low, high = (pa.scalar(value, pa.int64()) for value in (first, end))
    return (pc.field("log") == log) & (pc.field("sequence") >= low) & (pc.field("sequence") < high)


def on_day(day: date) -> Any:
    """Return that the column `day` has a value."""
    return pc.field("day") == pa.scalar(day, pa.date32())


def on_days(first: datetime, last: datetime) -> Any:
    """Return that the column `day` is between those of two times."""
    low, high = (pa.scalar(moment.date(), pa.date32()) for moment in (first, last))
    return (pc.field("day") >= low) & (pc.field("day") <= high)


class Pruned:
    """Parts of a table, of which those are found that may have rows that meet a condition.

    Neighbours are looked at together first. So a condition that few parts meet costs little, however many there are.
    """

    def __init__(self, schema: pa.Schema, parts: Sequence[P], guarantee: Callable[[Sequence[Any]], Any]) -> None:
        """Set up.

        Args:
            schema: of the table.
            parts: in the order in which neighbours are alike.
            guarantee: returns an expression that each row of some parts meets.
        """
        self._schema, self._guarantee = schema, guarantee
        self._groups = [parts[start : start + _GROUP] for start in range(0, len(parts), _GROUP)]
        self._of_groups: Any = None
        self._of_parts: dict[int, Any] = {}

    def meeting(self, condition: Any) -> Iterator[Any]:
        """Yield the parts that may have a row which meets a condition; all if it is None."""
        if condition is None:
            for group in self._groups:
                yield from group
            return
        if self._of_groups is None:
            self._of_groups = self._dataset(self._groups)
        for number in _numbers(self._of_groups, condition):
            group = self._groups[number]
            if number not in self._of_parts:
                self._of_parts[number] = self._dataset([[part] for part in group])
            for position in _numbers(self._of_parts[number], condition):
                yield group[position]

    def _dataset(self, groups: Collection[Sequence[Any]]) -> Any:
        """Return a dataset that is never read: Arrow compares the guarantees of its files with a condition."""
        files = [
            _FORMAT.make_fragment(str(number), fs.LocalFileSystem(), partition_expression=self._guarantee(group))
            for number, group in enumerate(groups)
        ]
        return ds.FileSystemDataset(files, self._schema, _FORMAT, fs.LocalFileSystem())


def _numbers(dataset: Any, condition: Any) -> Iterator[int]:
    return (int(fragment.path) for fragment in dataset.get_fragments(condition))
