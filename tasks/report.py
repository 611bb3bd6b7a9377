"""What people read of the archive: events as Parquet tables, made in the audit's own read, and the integrity report.

Tables are written to a temporary folder while segments are read, and put into the archive when their range is whole: a
range that is there in part is no range (`custody.tables.whole_ranges`), and is made again by the next audit.
"""

import io
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq

from custody import tables
from custody.archive import read_manifest
from custody.contents import Work
from custody.errors import CustodyError, ObjectExists, ObjectMissing
from custody.findings import Finding, finding
from custody.layout import Log
from custody.manifest import Batch
from custody.store import Store

_FILE_BYTES = 64 * 1_048_576
"""A file is closed at this size: it is put as a whole, from memory."""
_FILE_LIMIT = 2 * _FILE_BYTES


class TableWriter:
    """Makes the tables of a log's statements `[first, end)` from the batches that a verification hands over."""

    def __init__(self, store: Store, log: Log, first: int, end: int) -> None:
        """Begin; nothing is put before `finish`."""
        self._store, self._log, self._first, self._end = store, log, first, end
        self._folder = tempfile.TemporaryDirectory(prefix="custody-")
        self._files: list[tuple[str, Path]] = []
        self._rows = tables.Rows(log)
        self._day = ""
        self._open: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        self._folder.cleanup()

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Take a batch of JSON lines."""
        day = work.sealed_at[:10]
        if day != self._day:
            self._close()
            self._day = day
        self._rows.add(work, batch, payload)
        if self._rows.count >= tables.ROW_GROUP:
            self._flush()

    def finish(self) -> int:
        """Put the files, and return how many rows they have.

        Raises:
            StoreError: the archive does not take them.
        """
        self._close()
        rows = 0
        for number, (day, path) in enumerate(self._files, 1):
            data = path.read_bytes()
            rows += pq.read_metadata(path).num_rows
            key = tables.table_key(self._log, day, self._first, self._end, number, len(self._files), data)
            try:
                self._store.create(key, data)
            except ObjectExists:
                # Its key holds a digest of 64 bits: other bytes there were not put by us, and the check will say so.
                continue
        return rows

    def _flush(self) -> None:
        table = self._rows.take()
        if self._open is None:
            path = Path(self._folder.name) / f"{len(self._files)}.parquet"
            self._files.append((self._day, path))
            self._open = tables.open_file(str(path))
        self._open.write_table(table)
        if self._files[-1][1].stat().st_size >= _FILE_BYTES:
            self._open.close()
            self._open = None

    def _close(self) -> None:
        if self._rows.count:
            self._flush()
        if self._open is not None:
            self._open.close()
            self._open = None


def check_tables(store: Store, log: Log, first: int, end: int) -> list[Finding]:
    """Hold the tables of the ranges that begin in a log's statements `[first, end)` to the archive.

    Rows are compared with the manifests' counts, and bytes with the digest in the key.
    """
    findings: list[Finding] = []
    keys = [info.key for info in store.list(tables.TABLES)]
    for files in tables.whole_ranges(keys):
        one = files[0]
        if one.log != log or not first <= one.first < end:
            continue
        where: dict[str, Any] = {"log": str(log), "sequence": one.first, "through": one.end - 1, "key": one.key}
        try:
            expected = sum(
                batch.events
                for sequence in range(one.first, one.end)
                for batch in read_manifest(store, log, sequence).statement.batches
            )
        except ObjectMissing:
            # It would hide the true tables from who asks them.
            findings.append(finding("tables", "the table is of statements that are not there", **where))
            continue
        except CustodyError:
            # What is wrong with the statements is a finding of its own.
            continue
        rows = 0
        for file in files:
            try:
                data = store.read(file.key, limit=_FILE_LIMIT)
                if sha256(data).hexdigest()[:16] != file.digest:
                    findings.append(finding("tables", "the table's bytes are not those that were put", **where))
                rows += pq.read_metadata(io.BytesIO(data)).num_rows
            except (CustodyError, OSError, ValueError) as error:
                findings.append(finding("tables", f"the table cannot be read: {error}", **where))
        if rows != expected:
            what = "the tables have another number of events than the statements"
            findings.append(finding("tables", what, expected=f"{expected} events", found=f"{rows} rows", **where))
    return findings
