"""Makes rows of statements from their objects: events from segments, and records in quarantine."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from operator import index
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from custody.errors import FormatError, ObjectArchived, ObjectMissing
from custody.format.layout import Log
from custody.format.manifest import Batch, QuarantineRef, Statement
from custody.format.quarantine import quarantine_lines
from custody.format.times import kafka_moment
from custody.query import tables
from custody.query.unread import Unread
from custody.store.pieces import read_stated
from custody.store.protocol import Store
from custody.verify.pool import Pool
from custody.verify.work import Work, work_of

_DAY = pa.field("day", pa.date32())
_SCHEMA = tables.SCHEMA.append(_DAY)


class EventFile:
    """Writes the events of a log's statements to a local Parquet file, with the day of each."""

    def __init__(
        self, store: Store, log: Log, path: Path, unread: Unread, keep: Callable[[Any], Any] = lambda table: table
    ) -> None:
        """Begin a file.

        Args:
            store: the archive.
            log: the log.
            path: of the file.
            unread: gets why batches are left out that are not as stated.
            keep: takes rows as an Arrow table, and returns those that are written.
        """
        self._log, self._path, self._keep = log, path, keep
        self._pool = Pool(store, 0, unread.add, self)
        self._rows, self._day = tables.Rows(log), ""
        self._file: Any = None

    def put(self, statement: Statement) -> None:
        """Add a statement's events, soon."""
        if statement.segment:
            self._pool.put(msgspec.structs.replace(work_of(statement, str(self._log)), quarantine=None))

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch of a statement. Called in the order in which statements were put."""
        if work.sealed_at[:10] != self._day or self._rows.full:
            self._flush()
            self._day = work.sealed_at[:10]
        self._rows.add(work, batch, payload)

    def finish(self) -> str:
        """Write what is left, and return the path."""
        self._pool.finish()
        self._flush()
        self._open().close()
        return str(self._path)

    def _open(self) -> Any:
        if self._file is None:
            options = {"compression": "zstd", "compression_level": 1, "use_dictionary": tables.REPEATING}
            self._file = pq.ParquetWriter(self._path, _SCHEMA, **options)
        return self._file

    def _flush(self) -> None:
        if self._rows.count:
            table = self._rows.take()
            day = pa.scalar(date.fromisoformat(self._day), pa.date32())
            table = table.append_column(_DAY, pa.repeat(day, len(table)))
            self._open().write_table(self._keep(table))


def quarantined_rows(store: Store, log: Log, statement: Statement, unread: Unread) -> Iterator[tuple[Any, ...]]:
    """Yield a statement's records in quarantine, as rows of the view. `unread` gets why some are not there.

    None is yielded before the digest of all of the object is known to be the stated one.
    """
    ref = statement.quarantine
    if ref is None:
        return
    try:
        for line in quarantine_lines(_whole(store, ref), ref.size, ref.inflated):
            record = json.loads(line)
            value, time, offset = record["value"] or "", record["timestamp"], index(record["offset"])
            time = kafka_moment(time) if isinstance(time, int) else None
            size = left_out(record) or len(value) * 3 // 4 - value[-2:].count("=")
            yield str(log), statement.sequence, offset, time, str(record["error"]), size
    except ObjectMissing:
        unread.add_missing(statement, ref.key)
    except ObjectArchived:
        unread.add_problem(statement, f"{ref.key}: the object is in an archive storage class")
    except (FormatError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # `custody verify` says more.
        unread.add_problem(statement, f"{ref.key}: its records are not those that were archived: {str(error)[:200]}")


def _whole(store: Store, ref: QuarantineRef) -> Iterator[bytes]:
    """Yield the bytes of an object in one piece, once they were compared with the stated digest."""
    yield b"".join(read_stated(store, ref.key, ref.size, ref.sha256))


def left_out(record: Mapping[str, Any]) -> int:
    """Return the size of a quarantined value that was left out because it is too large; 0 if it was kept."""
    value = (record.get("omitted") or {}).get("value")
    size = value["size"] if value else 0
    return size if isinstance(size, int) and 0 <= size < 1 << 63 else 0
