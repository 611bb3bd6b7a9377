"""SQL over an archive with DuckDB: events, statements, quarantined records, audits. Reads only.

Events come from the archive's Parquet tables. Statements without one are read from their segments, so each event is
there once. Files in S3 are read in ranges through the archive's own store: DuckDB downloads no extension and opens no
connection.

Checks only that a statement or an audit has no wrong signature, as far as keys are available, and that no later one
passes over it. Parquet tables are chosen by their names: audits compare them with their signed lists.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import msgspec
import pyarrow as pa
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from custody.archive import reader
from custody.archive.forms import AUDITS, statements_of
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import audit, layout
from custody.format.audit import SignedAudit
from custody.format.layout import Log
from custody.format.manifest import Manifest, QuarantineRef, Statement
from custody.format.quarantine import quarantine_lines
from custody.format.times import YEAR_10000_MS, parse_time
from custody.keys.trust import Trust
from custody.query import tables
from custody.settings import Settings
from custody.store.open import open_store
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.verify.contents import check
from custody.verify.work import work_of

__all__ = ["connect"]

_BLOCK = 4 * 1_048_576
_FINDINGS_LIMIT = 64 * 1_048_576
_ROWS = 10_000
_BATCH = attrgetter("number", "first_offset", "next_offset", "events", "size", "inflated")
_TABLES = """
CREATE TABLE manifests (
    log VARCHAR, sequence BIGINT, sealed_at TIMESTAMP, first_offset BIGINT, next_offset BIGINT, events BIGINT,
    quarantined BIGINT, skipped BIGINT, lost BIGINT, unreadable BIGINT,
    passed_over BIGINT,  -- slots before it without a valid statement
    stored BIGINT, inflated BIGINT, kafka_time TIMESTAMP, segment VARCHAR, quarantine VARCHAR, root VARCHAR,
    writer VARCHAR
);
CREATE TABLE batches (
    log VARCHAR, sequence BIGINT, batch BIGINT, first_offset BIGINT, next_offset BIGINT, events BIGINT, stored BIGINT,
    inflated BIGINT, min_time TIMESTAMP, max_time TIMESTAMP
);
CREATE TABLE quarantined (
    log VARCHAR, sequence BIGINT, "offset" BIGINT, kafka_time TIMESTAMP, error VARCHAR, bytes BIGINT
);
CREATE TABLE audits (
    sequence BIGINT, started_at TIMESTAMP, sealed_at TIMESTAMP, verdict VARCHAR, statements BIGINT, events BIGINT,
    findings BIGINT,  -- NULL for the record of a roll: it does not verify the archive
    rejected BIGINT,  -- NULL if Elasticsearch was not asked
    covered VARCHAR, heads VARCHAR
);
CREATE TABLE findings (
    audit BIGINT, finding VARCHAR, severity VARCHAR, log VARCHAR, sequence BIGINT, through BIGINT, batch BIGINT,
    "offset" BIGINT, byte BIGINT, key VARCHAR, expected VARCHAR, found VARCHAR, accepted VARCHAR, count BIGINT,
    message VARCHAR, action VARCHAR
);
"""


def connect(
    archive: str | None = None, *, since: datetime | None = None, until: datetime | None = None
) -> duckdb.DuckDBPyConnection:
    """Open an archive for SQL.

    Args:
        archive: `s3://BUCKET/PREFIX`, `file:///DIR` or a folder. Default: the `archive` setting.
        since: only statements sealed at or after this time. In a large archive, the others are not read.
        until: only statements sealed before this time.

    Returns:
        A connection with the tables `events`, `batches`, `manifests`, `quarantined`, `audits` and `findings`. All times
        are UTC. Its temporary files are removed when the process ends.

    Raises:
        ConfigurationError: a setting is wrong.
        CustodyError: the archive cannot be read.
    """
    settings = Settings(**({} if archive is None else {"archive": archive}))
    store = open_store(settings.archive, settings.s3)
    reader.read_archive(store)
    folder = tempfile.TemporaryDirectory(prefix="custody-")
    _folders.append(folder)
    # In a file, so that DuckDB keeps only a part of a large archive's tables in memory.
    connection = duckdb.connect(
        f"{folder.name}/archive.duckdb",
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(_TABLES)
        _Loader(connection, store, Path(folder.name), settings.trust_at_hand()).load(since, until)
    except duckdb.Error as error:
        connection.close()
        raise CustodyError(f"the archive {store.url} cannot be opened for SQL: {error}") from None
    return connection


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends: a connection does not say when it is closed."""


class _Table:
    """Collects rows, and inserts them into a table of the connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        self._connection, self._name = connection, name
        self.schema = connection.table(name).limit(0).to_arrow_table().schema
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        """Add a row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Insert the collected rows."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [tables.column(values, field.type) for values, field in zip(columns, self.schema, strict=True)]
            table = pa.Table.from_arrays(arrays, schema=self.schema)
            self._connection.from_arrow(table).insert_into(self._name)
            self._rows = []


class _Loader:
    """Fills the tables from an archive, and makes the view of its events."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, store: Store, folder: Path, trust: Trust) -> None:
        self._connection, self._store, self._folder, self._trust = connection, store, folder, trust
        self._manifests, self._batches, self._quarantined, self._audits, self._findings = (
            _Table(connection, name) for name in ("manifests", "batches", "quarantined", "audits", "findings")
        )
        self._files: list[str] = []
        """Temporary Parquet files."""

    def load(self, since: datetime | None, until: datetime | None) -> None:
        """Read the statements sealed from `since` on and before `until`, and all audits."""
        ranges: dict[Log, list[list[tables.TableFile]]] = {}
        for whole in tables.whole_ranges(info.key for info in self._store.list(tables.TABLES)):
            ranges.setdefault(whole[0].log, []).append(whole)
        files = [
            self._path(file.key)
            for log in reader.list_logs(self._store)
            for file in self._log(log, ranges.get(log, []), since, until)
        ]
        files += self._files
        self._read_audits()
        for table in (self._manifests, self._batches, self._quarantined, self._audits, self._findings):
            table.flush()
        if any(file.startswith(_Files.protocol) for file in files):
            self._connection.register_filesystem(_Files(self._store))
        if not files:
            path = self._folder / "day=1970-01-01" / "none.parquet"
            path.parent.mkdir()
            tables.open_file(str(path)).close()
            files = [str(path)]
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        # A view takes no parameters, so the paths are quoted. The day is taken from a file's own folder: DuckDB's
        # partitions would also be `topic=x` or `day=…` in the path of the archive.
        self._connection.execute(
            "CREATE VIEW events AS SELECT * EXCLUDE (filename),"  # noqa: S608 - they are quoted
            " regexp_extract(filename, 'day=([0-9-]{10})/[^/]*$', 1)::DATE AS day"
            f" FROM read_parquet([{quoted}], hive_partitioning=false, filename=true)"
        )

    def _path(self, key: str) -> str:
        if self._store.url.startswith("file://"):
            return unquote(self._store.url.removeprefix("file://")) + "/" + key
        return f"{_Files.protocol}://{key}"

    def _log(
        self, log: Log, ranges: list[list[tables.TableFile]], since: datetime | None, until: datetime | None
    ) -> Iterator[tables.TableFile]:
        """Read a log's statements. Yield the files of those that have one, and make temporary ones for the rest."""
        holds: reader.Holds[Manifest] = Judge(self._store, log, statements_of(log), None, self._trust).may_stand
        size = reader.find_tip(self._store, log, holds).head.size
        first = reader.sealed_from(self._store, log, size, since, holds) if since else 0
        end = reader.sealed_from(self._store, log, size, until, holds) if until else size
        tabled = [False] * max(end - first, 0)
        for files in ranges:
            if first <= files[0].first and files[0].end <= end:
                tabled[files[0].first - first : files[0].end - first] = [True] * (files[0].end - files[0].first)
                yield from files
        rows, day = tables.Rows(log), ""
        for sequence in range(first, end):
            try:
                statement = reader.read_manifest(self._store, log, sequence, holds).statement
            except (ObjectMissing, FormatError):
                # A gap here. `custody verify` reports it.
                continue
            self._note(str(log), statement)
            if tabled[sequence - first] or not statement.segment:
                continue
            if statement.sealed_at[:10] != day or rows.count >= tables.ROW_GROUP:
                self._write(day, rows)
                day = statement.sealed_at[:10]
            # Batches that are not as stated are left out. `custody verify` reports them.
            check(self._store, msgspec.structs.replace(work_of(statement, str(log)), quarantine=None), rows)
        self._write(day, rows)

    def _write(self, day: str, rows: tables.Rows) -> None:
        """Write a temporary Parquet file of the rows added since the last one."""
        if rows.count:
            path = self._folder / f"day={day}" / f"{len(self._files)}.parquet"
            path.parent.mkdir(exist_ok=True)
            with tables.open_file(str(path)) as file:
                file.write_table(rows.take())
            self._files.append(str(path))

    def _note(self, log: str, statement: Statement) -> None:
        segment, quarantine = statement.segment, statement.quarantine
        times = [batch.kafka_time.min for batch in statement.batches if batch.kafka_time]
        # Producers set these times, so any number is possible.
        kafka_ms = min(times, default=YEAR_10000_MS)
        self._manifests.add(
            log,
            statement.sequence,
            parse_time(statement.sealed_at),
            statement.first_offset,
            statement.next_offset,
            sum(statement.types.values()),
            quarantine.records if quarantine else 0,
            sum(end - start for start, end in statement.skipped),
            statement.lost[1] - statement.lost[0] if statement.lost else 0,
            sum(span.to - span.from_ for span in statement.unreadable),
            len(statement.passed_over),
            (segment.size if segment else 0) + (quarantine.size if quarantine else 0),
            sum(batch.inflated for batch in statement.batches),
            kafka_ms * 1000 if kafka_ms < YEAR_10000_MS else None,
            segment.key if segment else None,
            quarantine.key if quarantine else None,
            statement.tree.root,
            statement.writer,
        )
        for batch in statement.batches:
            self._batches.add(
                log, statement.sequence, *_BATCH(batch), parse_time(batch.min_time), parse_time(batch.max_time)
            )
        if quarantine:
            self._note_quarantined(log, statement.sequence, quarantine)

    def _note_quarantined(self, log: str, sequence: int, ref: QuarantineRef) -> None:
        try:
            for line in quarantine_lines(read_pieces(self._store, ref.key, ref.size), ref.size, ref.inflated):
                record = json.loads(line)
                value, time, offset = record["value"] or "", record["timestamp"], record["offset"]
                if not isinstance(offset, int):
                    return
                time = time * 1000 if isinstance(time, int) and 0 <= time < YEAR_10000_MS else None
                size = _left_out(record) or len(value) * 3 // 4 - value[-2:].count("=")
                self._quarantined.add(log, sequence, offset, time, str(record["error"]), size)
        except (ObjectMissing, ObjectArchived, FormatError, ValueError, KeyError, TypeError, AttributeError):
            # `custody verify` reports what is wrong with it.
            return

    def _read_audits(self) -> None:
        holds: reader.Holds[SignedAudit] = Judge(self._store, layout.AUDIT_LOG, AUDITS, None, self._trust).may_stand
        for sequence in range(reader.find_audit_tip(self._store, holds).head.size):
            try:
                audited = reader.read_audit(self._store, sequence, holds).statement
            except (ObjectMissing, FormatError):
                continue
            counts = {"statements": 0, "events": 0, **audited.counts}
            self._audits.add(
                sequence,
                parse_time(audited.started_at),
                parse_time(audited.sealed_at),
                audited.verdict,
                *map(counts.get, ("statements", "events", "findings", "rejected")),
                msgspec.json.encode(audited.covered).decode(),
                msgspec.json.encode(audited.heads).decode(),
            )
            for finding in self._findings_of(audited):
                self._findings.add(sequence, *map(finding.get, self._findings.schema.names[1:]))

    def _findings_of(self, audited: audit.Audit) -> Sequence[Mapping[str, Any]]:
        if not isinstance(audited.findings, audit.ObjectRef):
            return audited.findings
        try:
            lines = self._store.read(audited.findings.key, limit=_FINDINGS_LIMIT).splitlines()
            return [json.loads(line) for line in lines]
        except (ObjectMissing, FormatError, ValueError):
            return []


class _Files(AbstractFileSystem):  # type: ignore[misc]
    """Opens the archive's Parquet files, and reads them in blocks through its store."""

    protocol = "custody"
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return a file's size."""
        name = self._strip_protocol(path)
        return {"name": name, "size": self.store.status(name).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return when a file was made. It never changes."""
        return self.store.status(self._strip_protocol(path)).created

    created = modified

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _File(self, path, mode, block_size=_BLOCK, cache_type="readahead")


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """An open file."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.store.read(self.path, limit=end - start, start=start, size=end - start)
        return data


def _left_out(record: Mapping[str, Any]) -> int:
    """Return the size of a quarantined value that was left out because it is too large; 0 if it was kept."""
    value = (record.get("omitted") or {}).get("value")
    size = value["size"] if value else 0
    return size if isinstance(size, int) and 0 <= size < 1 << 63 else 0
