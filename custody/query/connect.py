"""DuckDB over an archive: views of events, statements, what was quarantined, audits. Reads only.

Events come from the Parquet tables where there are some, and from the segments' gzip JSONL where there are not: each
event once. Files of an archive in S3 are read through the archive's own store, in ranges, so that nothing but the
archive is asked: no extension is downloaded, and DuckDB opens no connection.

Verifies no more than that no key at hand speaks against a statement or an audit, and that no later one passes over it.
Tables are taken by their names: audits hold them against their signed lists.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from custody.archive.forms import AUDITS, statements_of
from custody.archive.reader import (
    Holds,
    find_audit_tip,
    find_tip,
    list_logs,
    read_archive,
    read_audit,
    read_manifest,
    sealed_from,
)
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

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["connect"]

_BLOCK = 4 * 1_048_576
_FINDINGS_LIMIT = 64 * 1_048_576
_ROWS = 10_000
_TIME = pa.timestamp("us")

_MANIFESTS = pa.schema(
    [
        pa.field("log", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("sealed_at", _TIME),
        pa.field("first_offset", pa.int64()),
        pa.field("next_offset", pa.int64()),
        pa.field("events", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("skipped", pa.int64()),
        pa.field("lost", pa.int64()),
        pa.field("unreadable", pa.int64()),
        # Slots before it that hold no statement.
        pa.field("passed_over", pa.int64()),
        pa.field("stored", pa.int64()),
        pa.field("inflated", pa.int64()),
        pa.field("kafka_time", _TIME),
        pa.field("segment", pa.string()),
        pa.field("quarantine", pa.string()),
        pa.field("root", pa.string()),
        pa.field("writer", pa.string()),
    ]
)
_BATCHES = pa.schema(
    [
        pa.field("log", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("batch", pa.int64()),
        pa.field("first_offset", pa.int64()),
        pa.field("next_offset", pa.int64()),
        pa.field("events", pa.int64()),
        pa.field("stored", pa.int64()),
        pa.field("inflated", pa.int64()),
        pa.field("min_time", _TIME),
        pa.field("max_time", _TIME),
    ]
)
_QUARANTINED = pa.schema(
    [
        pa.field("log", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("kafka_time", _TIME),
        pa.field("error", pa.string()),
        pa.field("bytes", pa.int64()),
    ]
)
_AUDITS = pa.schema(
    [
        pa.field("sequence", pa.int64()),
        pa.field("started_at", _TIME),
        pa.field("sealed_at", _TIME),
        pa.field("verdict", pa.string()),
        pa.field("statements", pa.int64()),
        pa.field("events", pa.int64()),
        # NULL in what a roll recorded: it looks for none, and its verdict is not on the archive.
        pa.field("findings", pa.int64()),
        # NULL where Elasticsearch was not asked.
        pa.field("rejected", pa.int64()),
        pa.field("covered", pa.string()),
        pa.field("heads", pa.string()),
    ]
)
_FINDINGS = pa.schema(
    [
        pa.field("audit", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("finding", "severity", "log")),
        *(pa.field(name, pa.int64()) for name in ("sequence", "through", "batch", "offset", "byte")),
        *(pa.field(name, pa.string()) for name in ("key", "expected", "found", "accepted")),
        pa.field("count", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("message", "action")),
    ]
)


def connect(
    archive: str | None = None, *, since: datetime | None = None, until: datetime | None = None
) -> "DuckDBPyConnection":
    """Open an archive for SQL.

    Args:
        archive: `s3://BUCKET/PREFIX`, `file:///DIR` or a folder; the setting's if not given.
        since: leave out statements sealed before; of a large archive that saves reading what is not asked for.
        until: leave out statements sealed from then on.

    Returns:
        A connection with the views `events`, `batches`, `manifests`, `quarantined`, `audits` and `findings`, all times
        UTC. What was made for it is removed when the process ends.

    Raises:
        ConfigurationError: a setting is wrong.
        CustodyError: the archive cannot be read.
    """
    settings = Settings(**({} if archive is None else {"archive": archive}))
    store = open_store(settings.archive, settings.s3)
    read_archive(store)
    folder = tempfile.TemporaryDirectory(prefix="custody-")
    _folders.append(folder)
    views = _Views(store, Path(folder.name), since, until, settings.trust_at_hand())
    connection = duckdb.connect(
        ":memory:", config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        views.make(connection)
    except duckdb.Error as error:
        connection.close()
        raise CustodyError(f"the archive {store.url} cannot be opened for SQL: {error}") from None
    return connection


_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends: a connection does not say when it is closed."""


class _Views:
    """What an archive holds, as files that DuckDB reads."""

    def __init__(
        self, store: Store, folder: Path, since: datetime | None, until: datetime | None, trust: Trust
    ) -> None:
        self._store, self._folder, self._trust = store, folder, trust
        self._since, self._until = since, until
        self._manifests = _Sheet(folder / "manifests.parquet", _MANIFESTS)
        self._batches = _Sheet(folder / "batches.parquet", _BATCHES)
        self._quarantined = _Sheet(folder / "quarantined.parquet", _QUARANTINED)
        self._audits = _Sheet(folder / "audits.parquet", _AUDITS)
        self._findings = _Sheet(folder / "findings.parquet", _FINDINGS)

    def make(self, connection: "DuckDBPyConnection") -> None:
        """Make the views."""
        listed = (info.key for info in self._store.list(tables.TABLES))
        ranges: dict[Log, list[list[tables.TableFile]]] = {}
        for whole in tables.whole_ranges(listed):
            ranges.setdefault(whole[0].log, []).append(whole)
        files = [self._path(file.key) for log in list_logs(self._store) for file in self._log(log, ranges.get(log, []))]
        files += map(str, self._folder.glob("day=*/*.parquet"))
        self._read_audits()
        if any(file.startswith(_Files.protocol) for file in files):
            connection.register_filesystem(_Files(self._store))
        if not files:
            path = self._folder / "day=1970-01-01" / "none.parquet"
            path.parent.mkdir()
            tables.open_file(str(path)).close()
            files = [str(path)]
        sheets = {"manifests": self._manifests, "batches": self._batches, "quarantined": self._quarantined,
                  "audits": self._audits, "findings": self._findings}  # fmt: skip
        for name, sheet in sheets.items():
            _view(connection, name, f"read_parquet({_quoted([sheet.close()])})")
        _view(
            connection, "events", f"read_parquet({_quoted(files)}, hive_partitioning=true, hive_types={{'day': DATE}})"
        )

    def _path(self, key: str) -> str:
        if self._store.url.startswith("file://"):
            return unquote(self._store.url.removeprefix("file://")) + "/" + key
        return f"{_Files.protocol}://{key}"

    def _log(self, log: Log, ranges: list[list[tables.TableFile]]) -> Iterator[tables.TableFile]:
        """Note a log's statements, make tables of those that have none, and yield the files of those that have."""
        holds: Holds[Manifest] = Judge(self._store, log, statements_of(log), None, self._trust).may_stand
        size = find_tip(self._store, log, holds).head.size
        first, end = (
            sealed_from(self._store, log, size, moment, holds) if moment else default
            for moment, default in ((self._since, 0), (self._until, size))
        )
        tabled = [False] * max(end - first, 0)
        for files in ranges:
            if first <= files[0].first and files[0].end <= end:
                tabled[files[0].first - first : files[0].end - first] = [True] * (files[0].end - files[0].first)
                yield from files
        rest = _Rest(self._folder, log)
        for sequence in range(first, end):
            try:
                statement = read_manifest(self._store, log, sequence, holds).statement
            except (ObjectMissing, FormatError):
                # `custody verify` says so; here it is a gap.
                continue
            self._note(str(log), statement)
            if not tabled[sequence - first] and statement.segment:
                rest.read(self._store, statement)
        rest.close()

    def _note(self, log: str, statement: Statement) -> None:
        segment, quarantine = statement.segment, statement.quarantine
        times = [batch.kafka_time.min for batch in statement.batches if batch.kafka_time]
        # Time stamps are a producer's.
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
            sum(one.to - one.from_ for one in statement.unreadable),
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
            span = parse_time(batch.min_time), parse_time(batch.max_time)
            sizes = batch.events, batch.size, batch.inflated
            self._batches.add(
                log, statement.sequence, batch.number, batch.first_offset, batch.next_offset, *sizes, *span
            )

        if quarantine:
            self._note_quarantined(log, statement.sequence, quarantine)

    def _note_quarantined(self, log: str, sequence: int, ref: QuarantineRef) -> None:
        try:
            for line in quarantine_lines(read_pieces(self._store, ref.key, ref.size), ref.size, ref.inflated):
                record = json.loads(line)
                value, time, at = record["value"] or "", record["timestamp"], record["offset"]
                if not isinstance(at, int):
                    return
                time = time * 1000 if isinstance(time, int) and 0 <= time < YEAR_10000_MS else None
                size = _left_out(record) or len(value) * 3 // 4 - value[-2:].count("=")
                self._quarantined.add(log, sequence, at, time, str(record["error"]), size)
        except (ObjectMissing, ObjectArchived, FormatError, ValueError, KeyError, TypeError, AttributeError):
            # `custody verify` says what is wrong with it.
            return

    def _read_audits(self) -> None:
        holds: Holds[SignedAudit] = Judge(self._store, layout.AUDIT_LOG, AUDITS, None, self._trust).may_stand
        for sequence in range(find_audit_tip(self._store, holds).head.size):
            try:
                found = read_audit(self._store, sequence, holds).statement
            except (ObjectMissing, FormatError):
                continue
            self._audits.add(
                sequence,
                parse_time(found.started_at),
                parse_time(found.sealed_at),
                found.verdict,
                found.counts.get("statements", 0),
                found.counts.get("events", 0),
                found.counts.get("findings"),
                found.counts.get("rejected"),
                msgspec.json.encode(found.covered).decode(),
                msgspec.json.encode(found.heads).decode(),
            )
            for one in self._findings_of(found):
                self._findings.add(sequence, *(_fitting(one.get(field.name), field) for field in list(_FINDINGS)[1:]))

    def _findings_of(self, found: audit.Audit) -> Sequence[Mapping[str, Any]]:
        if not isinstance(found.findings, audit.ObjectRef):
            return found.findings
        try:
            lines = self._store.read(found.findings.key, limit=_FINDINGS_LIMIT).splitlines()
            return [json.loads(line) for line in lines]
        except (ObjectMissing, FormatError, ValueError):
            return []


class _Sheet:
    """Rows on their way into a Parquet file of the temporary folder."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._path, self._schema = path, schema
        self._rows: list[tuple[Any, ...]] = []
        self._writer = pq.ParquetWriter(path, schema)

    def add(self, *row: Any) -> None:
        """Add a row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._flush()

    def close(self) -> str:
        """Write what is left, and return the path."""
        self._flush()
        self._writer.close()
        return str(self._path)

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in self._schema)
        arrays = [_array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


class _Rest:
    """Makes tables, in the temporary folder, of a log's statements that have none in the archive."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder, self._log = folder, log
        self._rows = tables.Rows(log)
        self._day = ""
        self._files = 0

    def read(self, store: Store, statement: Statement) -> None:
        """Take a statement's events; a batch that is not as stated is left out, and `custody verify` says so."""
        day = statement.sealed_at[:10]
        if day != self._day or self._rows.count >= tables.ROW_GROUP:
            self.close()
            self._day = day
        work = msgspec.structs.replace(work_of(statement, str(self._log)), quarantine=None)
        check(store, work, self._rows)

    def close(self) -> None:
        """Write what was taken."""
        if not self._rows.count:
            return
        self._files += 1
        path = self._folder / f"day={self._day}" / f"{self._log.name}-{self._log.partition}-{self._files}.parquet"
        path.parent.mkdir(exist_ok=True)
        with tables.open_file(str(path)) as file:
            file.write_table(self._rows.take())


class _Files(AbstractFileSystem):  # type: ignore[misc]
    """An archive's tables as files: read in blocks through its store."""

    protocol = "custody"
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return a file's size."""
        name = self._strip_protocol(path)
        return {"name": name, "size": self._store.status(name).size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """Return when a file was made; it never changes."""
        return self._store.status(self._strip_protocol(path)).created

    created = modified

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _File(self, path, mode, block_size=_BLOCK, cache_type="readahead")

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return some of a file's bytes."""
        return self._store.read(path, limit=end - start, start=start, size=end - start)


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is open."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.read_range(self.path, start, end)
        return data


def _view(connection: "DuckDBPyConnection", name: str, source: str) -> None:
    # A view takes no parameters; paths are quoted, and all else is ours.
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")  # noqa: S608


def _fitting(value: Any, field: Any) -> Any:
    """Return a value of a finding as its column takes it: audits are read, and not believed."""
    if field.type == pa.string():
        return value if isinstance(value, str) else None
    return value if isinstance(value, int) and abs(value) < 1 << 63 else None


def _left_out(record: Mapping[str, Any]) -> int:
    """Return the size of a quarantined record's value that was too large to be kept, 0 of one that was not."""
    value = (record.get("omitted") or {}).get("value")
    size = value["size"] if value else 0
    return size if isinstance(size, int) and 0 <= size < 1 << 63 else 0


def _array(column: Sequence[Any], kind: Any) -> Any:
    """Return a column. A number beyond 64 bits, which only a wrong statement can add up to, becomes NULL."""
    try:
        return pa.array(column, kind)
    except OverflowError:
        fits = [value if not isinstance(value, int) or -(1 << 63) <= value < 1 << 63 else None for value in column]
        return pa.array(fits, kind)


def _quoted(paths: Sequence[str]) -> str:
    return "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"
