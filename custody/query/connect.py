"""SQL over an archive with DuckDB: events, statements, quarantined records, audits. Reads only.

Events come from the archive's Parquet tables. Statements without one are read from their segments, so each event is
there once. Files in S3 are read in ranges through the archive's own store: DuckDB downloads no extension and opens no
connection.

A query verifies no contents. What it reads is not signed, or not yet checked, and steers nothing:

- With keys, only statements and audits count that they signed, and only tables in lists that they signed. A table's
  bytes are hashed before the first query, and whenever it is opened. Statements without such a table are read from
  their segments.
- Without keys, or where a signature cannot be checked and no trusted checkpoint covers the statement, a line says
  `unverified`.
- Slots are listed, not searched for. So a log that lacks its first statement is shown from the next one on.
- What is missing or ignored is a row of the table `warnings`, and a warning of this module's logger.
"""

import json
import logging
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import duckdb
import msgspec
import pyarrow as pa

from custody.archive import reader, search
from custody.archive.audit_findings import read_findings
from custody.archive.covered import Coverage
from custody.archive.forms import AUDITS, statements_of
from custody.archive.trusted import Judge, beyond_end, check_archive, empty_slots, known_heads, unverified
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.layout import Log
from custody.format.manifest import QuarantineRef, Statement
from custody.format.quarantine import quarantine_lines
from custody.format.times import as_utc, kafka_moment, parse_time
from custody.keys.trust import Trust
from custody.query import sources, tables, views
from custody.query.files import Files, check_signed
from custody.query.statements import batch_rows, manifest_row
from custody.query.unread import Unread
from custody.settings import Settings
from custody.store.open import open_store
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.tlog.log import Entry, Form
from custody.verify.contents import check
from custody.verify.work import work_of

__all__ = ["connect"]

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Entry)

_ROWS = 10_000
_HIDDEN = 5
_KINDS = ("damaged", "unverified", "archived", "ignored")
"""Of warnings, the worst first."""
_NOT_COVERED = ", and no trusted checkpoint covers these statements"


def connect(
    archive: str | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    trust: Path | str | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open an archive for SQL.

    Args:
        archive: `s3://BUCKET/PREFIX`, `file:///DIR` or a folder. Default: the `archive` setting.
        since: only statements sealed at or after this time; UTC if it names no zone. No events of others are read.
        until: only statements sealed before this time.
        trust: a `trust.json` with the keys that you trust. Default: the `trust` setting.

    Returns:
        A connection with the tables `events`, `sources`, `batches`, `manifests`, `quarantined`, `audits`, `findings`
        and `warnings`. The last one says what is unverified, damaged or ignored. All times are UTC. Its temporary files
        are removed when the process ends.

    Raises:
        ConfigurationError: a setting is wrong.
        CustodyError: the archive cannot be read.
    """
    given = {"archive": archive, "trust": trust}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    store = open_store(settings.archive, settings.s3)
    archive_file = reader.read_archive(store)
    folder = tempfile.TemporaryDirectory(prefix="custody-")
    _folders.append(folder)
    # In a file, so that DuckDB keeps only a part of a large archive's tables in memory.
    connection = duckdb.connect(
        f"{folder.name}/archive.duckdb",
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(views.create_tables())
        _Loader(connection, store, Path(folder.name), settings.trust_at_hand(), archive_file).load(
            since and as_utc(since), until and as_utc(until)
        )
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

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, store: Store, folder: Path, trust: Trust, archive: ArchiveFile
    ) -> None:
        self._connection, self._store, self._folder, self._trust = connection, store, folder, trust
        self._manifests, self._batches, self._quarantined, self._audits, self._findings = (
            _Table(connection, name) for name in ("manifests", "batches", "quarantined", "audits", "findings")
        )
        self._warnings: list[tuple[str, str | None, str]] = []
        problem = check_archive(archive, trust) if trust.keys else None
        self._archive = archive.id if trust.keys and not problem else None
        """The archive's id; None if nothing shows which archive this is."""
        if problem:
            self._warn("unverified", None, problem)
        self._listed = tables.list_tables(store)
        self._digests: dict[str, str] = {}
        """SHA-256 of tables in signed lists, by key."""
        self._heads: dict[str, list[tuple[int, str]]] = {}
        """Sizes of logs in audits that count, and which audit it is."""
        self._unchecked: Counter[Log] = Counter()
        self._files: list[str] = []
        """Temporary Parquet files."""
        self._kept_from = datetime.now(UTC) - timedelta(days=archive.statement.retention_days)
        self._unread = Unread("")
        """Of the log that is being read."""

    def load(self, since: datetime | None, until: datetime | None) -> None:
        """Read the statements sealed from `since` on and before `until`, and all audits."""
        self._read_audits()
        files = [
            self._path(file.key)
            for log in reader.named_logs(self._store, {*self._heads, *self._trust.heads})
            for file in self._log(log, since, until)
        ]
        for table in (self._manifests, self._batches, self._quarantined, self._audits, self._findings):
            table.flush()
        if any(file.startswith(Files.protocol) for file in files):
            self._connection.register_filesystem(Files(self._store, self._digests))
        _create_events(self._connection, self._folder, [*self._files, *files])
        self._connection.execute(sources.VIEW)
        self._report()

    def _report(self) -> None:
        """Put what is damaged first, and publish all warnings."""
        for of, message in unverified(self._trust, self._unchecked, _NOT_COVERED):
            self._warn("unverified", of, message)
        self._warnings.sort(key=lambda row: _KINDS.index(row[0]))
        table = _Table(self._connection, "warnings")
        for kind, log, message in self._warnings:
            table.add(kind, log, message)
            logger.warning("%s: %s%s", kind, f"{log}: " if log else "", message)
        table.flush()

    def _warn(self, kind: str, log: Log | None, message: str) -> None:
        self._warnings.append((kind, str(log) if log else None, message))

    def _path(self, key: str) -> str:
        # A local file is read through its store too if its bytes must be hashed.
        if self._store.url.startswith("file://") and key not in self._digests:
            return unquote(self._store.url.removeprefix("file://")) + "/" + key
        return f"{Files.protocol}://{key}"

    def _judge(self, log: Log, form: Form[Any]) -> tuple[Judge, reader.Holds[Any]]:
        judge = Judge(self._store, log, form, self._archive, self._trust)
        # A verifier with public keys alone knows no key of statements: then none counts as unknown.
        known = any(key.algorithm in form.wanted for key in self._trust.keys.values())
        return judge, partial(judge.may_stand, by_known_keys=known)

    def _entries(self, log: Log, form: Form[E], spans: Iterable[tuple[int, int | None]]) -> Iterator[tuple[int, E]]:
        """Yield the valid entries of a log in spans of slots, and count those that are unverified."""
        judge, holds = self._judge(log, form)
        coverage = Coverage(self._store, log, form, judge, self._trust)
        for first, end in spans:
            for sequence, entry in self._span(log, form, judge, holds, first, end):
                coverage.add(sequence, entry)
                yield sequence, entry
        coverage.end()
        self._unchecked[log] += coverage.uncovered

    def _span(
        self, log: Log, form: Form[E], judge: Judge, holds: reader.Holds[E], first: int, end: int | None
    ) -> Iterator[tuple[int, E]]:
        """Yield the valid entries of a log in slots `[first, end)`, and warn of the slots that have none.

        Without an `end`, the log's end is compared with the heads that are known.
        """
        slots: Sequence[int]
        if end is None:
            infos = self._store.list(form.prefix, after=form.key(first - 1) if first else form.prefix)
            parsed = (reader.sequence_of(info.key) for info in infos)
            slots = sorted({slot for slot in parsed if slot is not None})
        else:
            slots = range(first, end)
        missing: list[tuple[int, int]] = []
        hidden: list[str] = []
        size, reached = first, 0
        for sequence in slots:
            try:
                entry = reader.read_valid(self._store, form, sequence, holds)
            except (ObjectMissing, FormatError):
                continue
            begin = sequence - len(entry.statement.passed_over)
            if size < begin:
                missing.append((size, begin))
            if isinstance(entry.statement, Statement):
                if size < begin and reached < entry.statement.first_offset:
                    start = f"at offsets {reached} to" if size > first else "up to offset"
                    hidden.append(f"{start} {entry.statement.first_offset - 1}")
                reached = entry.statement.next_offset
            size = sequence + 1
            yield sequence, entry
        if size < (last := (slots[-1] + 1 if slots else size) if end is None else end):
            missing.append((size, last))
        if missing:
            records = f". Records {', '.join(hidden[:_HIDDEN])} are not shown" if hidden else ""
            self._warn("damaged", log, f"{empty_slots(form, missing)}{records}")
        if end is None:
            self._check_end(log, form, judge, size)

    def _check_end(self, log: Log, form: Form[Any], judge: Judge, size: int) -> None:
        """Warn if a known head, or a signed checkpoint, is beyond a log's end."""
        heads = [
            *self._heads.get(str(log), ()),
            *((head.size, origin) for origin, head in known_heads(self._trust, log)),
        ]
        if (message := beyond_end(self._store, log, form, judge, size, heads)) is not None:
            self._warn("damaged", log, message)

    def _log(self, log: Log, since: datetime | None, until: datetime | None) -> Iterator[tables.TableFile]:
        """Read a log's statements. Yield the files of those that have one, and make temporary ones for the rest."""
        form = statements_of(log)
        spans, chosen, searched = self._spans(log, since, until)
        starts, ends = [], []
        for files in self._tables(log, chosen):
            starts.append(files[0].first)
            ends.append(files[0].end)
            yield from files
        rows, day = tables.Rows(log), ""
        whole = since is None and until is None
        self._unread = Unread(str(log), None if whole else self._kept_from)
        for sequence, entry in self._entries(log, form, spans):
            statement = entry.statement
            if sequence >= searched and not _is_between(parse_time(statement.sealed_at), since, until):
                continue
            self._note(str(log), statement)
            index = bisect_right(starts, sequence) - 1
            if not statement.segment or (index >= 0 and sequence < ends[index]):
                continue
            if statement.sealed_at[:10] != day or rows.full:
                self._write(day, rows)
                day = statement.sealed_at[:10]
            # Batches that are not as stated are left out.
            work = msgspec.structs.replace(work_of(statement, str(log)), quarantine=None)
            self._unread.add(statement, check(self._store, work, rows))
        self._write(day, rows)
        for kind, message in self._unread.warnings():
            self._warn(kind, log, message)

    def _spans(
        self, log: Log, since: datetime | None, until: datetime | None
    ) -> tuple[list[tuple[int, int | None]], Collection[int] | None, int]:
        """Return what to read of a log: spans of slots, those chosen by time, and before which no time is compared.

        A span with the end None is read to the log's end. None for those chosen by time means all.
        """
        if since is None and until is None:
            return [(0, None)], None, 0
        _, holds = self._judge(log, statements_of(log))
        try:
            size = reader.find_tip(self._store, log, holds).head.size
            chosen = search.sealed_between(self._store, log, size, since, until, holds)
        except (ObjectMissing, FormatError):
            # It is damaged: every statement is read.
            return [(0, None)], (), 0
        spans: list[tuple[int, int | None]] = []
        for sequence in chosen:
            if spans and spans[-1][1] == sequence:
                spans[-1] = (spans[-1][0], sequence + 1)
            else:
                spans.append((sequence, sequence + 1))
        start = spans.pop()[0] if spans and spans[-1][1] == size else size
        return [*spans, (start, None)], set(chosen), size

    def _tables(self, log: Log, chosen: Collection[int] | None) -> Iterator[list[tables.TableFile]]:
        """Yield the files of each range of tables whose statements are all chosen; with keys, only signed ones."""
        files = [
            file
            for file in self._listed.files.get(log, ())
            if chosen is None or all(sequence in chosen for sequence in range(file.first, file.end))
        ]
        if self._trust.keys:
            for start, stop in sorted({(file.first, file.end) for file in files}):
                refs, unread = tables.signed_files(
                    self._store, self._listed, self._archive or "", log, start, stop, self._trust
                )
                self._digests |= {key: ref.sha256 for key, ref in refs.items()}
                if unread is not None:
                    self._warn("ignored", log, f"the tables of statements {start} to {stop - 1}: {unread}")
            unsigned = [file.key for file in files if file.key not in self._digests]
            if unsigned:
                many = f"{len(unsigned)} tables are" if len(unsigned) > 1 else "1 table is"
                message = f"{many} in no list that a trusted key signed, such as {unsigned[0]}"
                self._warn("ignored", log, message)
            problems = check_signed(self._store, self._digests, [file.key for file in files])
            for error in problems.values():
                self._warn("ignored", log, f"{error}. Its events are read from their segments")
            files = [file for file in files if file.key in self._digests and file.key not in problems]
        yield from tables.whole_ranges(files)

    def _write(self, day: str, rows: tables.Rows) -> None:
        """Write a temporary Parquet file of the rows added since the last one."""
        if rows.count:
            path = self._folder / f"day={day}" / f"{len(self._files)}.parquet"
            path.parent.mkdir(exist_ok=True)
            with tables.open_file(str(path)) as file:
                file.write_table(rows.take())
            self._files.append(str(path))

    def _note(self, log: str, statement: Statement) -> None:
        self._manifests.add(*manifest_row(log, statement))
        for row in batch_rows(log, statement):
            self._batches.add(*row)
        if statement.expired:
            self._unread.expired = statement.expired[1]
        if statement.quarantine:
            self._note_quarantined(log, statement, statement.quarantine)

    def _note_quarantined(self, log: str, statement: Statement, ref: QuarantineRef) -> None:
        try:
            for line in quarantine_lines(read_pieces(self._store, ref.key, ref.size), ref.size, ref.inflated):
                record = json.loads(line)
                value, time, offset = record["value"] or "", record["timestamp"], index(record["offset"])
                time = kafka_moment(time) if isinstance(time, int) else None
                size = _left_out(record) or len(value) * 3 // 4 - value[-2:].count("=")
                self._quarantined.add(log, statement.sequence, offset, time, str(record["error"]), size)
        except ObjectMissing:
            self._unread.add_missing(statement, ref.key)
        except ObjectArchived:
            self._unread.add_problem(statement, f"{ref.key}: the object is in an archive storage class")
        except (FormatError, ValueError, KeyError, TypeError, AttributeError) as error:
            # `custody verify` says more.
            self._unread.add_problem(statement, f"{ref.key}: its records cannot be read: {str(error)[:200]}")

    def _read_audits(self) -> None:
        for sequence, signed in self._entries(layout.AUDIT_LOG, AUDITS, [(0, None)]):
            audited = signed.statement
            for name, head in audited.heads.items():
                self._heads.setdefault(name, []).append((head.size, f"audit {sequence}"))
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
            stated = read_findings(self._store, audited)
            for _, problem in stated.problems:
                self._warn("damaged", layout.AUDIT_LOG, problem)
            for finding in map(msgspec.to_builtins, stated.findings):
                self._findings.add(sequence, *map(finding.get, self._findings.schema.names[1:]))


def _create_events(connection: duckdb.DuckDBPyConnection, folder: Path, files: Sequence[str]) -> None:
    """Create the view `events` of Parquet files.

    One more file has all columns. They are selected by name and type: tables made earlier may lack some, and what no
    key of ours signed may have others.
    """
    path = folder / "day=1970-01-01" / "none.parquet"
    path.parent.mkdir(exist_ok=True)
    tables.open_file(str(path)).close()
    quoted = ", ".join("'" + file.replace("'", "''") + "'" for file in (str(path), *files))
    described = connection.read_parquet(str(path))
    types = dict(zip(described.columns, described.types, strict=True))
    events = next(view for view in views.VIEWS if view.name == "events")
    day = "regexp_extract(filename, 'day=([0-9-]{10})/[^/]*$', 1)::DATE"
    columns = ", ".join(
        f'{day} AS "day"' if column.name == "day" else f'"{column.name}"::{types[column.name]} AS "{column.name}"'
        for column in events.columns
    )
    # A view takes no parameters, so the paths are quoted. The day is taken from a file's own folder: DuckDB's
    # partitions would also be `topic=x` or `day=…` in the path of the archive.
    sql = (
        f"CREATE VIEW events AS SELECT {columns}"  # noqa: S608 - they are quoted, and the columns are ours
        f" FROM read_parquet([{quoted}], hive_partitioning=false, filename=true, union_by_name="
    )
    try:
        connection.execute(f"{sql}true)")
    except duckdb.Error:
        # A file is no Parquet. Then queries of events fail and name it, and those of other tables do not.
        connection.execute(f"{sql}false)")


def _is_between(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or moment >= since) and (until is None or moment < until)


def _left_out(record: Mapping[str, Any]) -> int:
    """Return the size of a quarantined value that was left out because it is too large; 0 if it was kept."""
    value = (record.get("omitted") or {}).get("value")
    size = value["size"] if value else 0
    return size if isinstance(size, int) and 0 <= size < 1 << 63 else 0
