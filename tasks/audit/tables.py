"""Makes Parquet tables of events while an audit reads them, and checks existing tables.

Tables are written to a temporary folder while segments are read, and put into the archive when their range is complete.
An incomplete range is ignored (`custody.query.tables.whole_ranges`), and the next audit makes it again.

A table that is in no signed list is a finding.
"""

import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from custody.archive import signed_notes
from custody.archive.reader import Holds
from custody.archive.search import at_or_behind
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, ObjectExists, ObjectMissing
from custody.findings import Finding, finding
from custody.format import limits
from custody.format.audit import ObjectRef
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.query import tables
from custody.store.ahead import call_ahead
from custody.store.protocol import Store
from custody.verify.records import Stretch, name_of, names_of
from custody.verify.work import Work

_UNLISTED = "the table is in no list signed by a trusted key"
_FILE_BYTES = 16 * 1_048_576
"""A file is closed at this size, because it is uploaded from memory in one piece."""


class TableWriter:
    """Makes the tables of a log's statements `[first, end)` from batches that a verification has read."""

    def __init__(
        self, store: Store, log: Log, first: int, end: int, *, archive: str, signers: tuple[Signer, Signer]
    ) -> None:
        """Begin; nothing is put before `finish`.

        Args:
            store: the archive.
            log: the log.
            first: sequence of the first statement.
            end: sequence after the last one.
            archive: the archive's id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign the list of the files.
        """
        # Until the process ends: Arrow's own allocator would keep the memory of the largest row group in each thread.
        pa.set_memory_pool(pa.system_memory_pool())
        self._store, self._log, self._first, self._end = store, log, first, end
        self._archive, self._signers = archive, signers
        self._folder = tempfile.TemporaryDirectory(prefix="custody-")
        self._files: list[tuple[str, Path]] = []
        self._rows = tables.Rows(log)
        self._day = ""
        self._open: Any = None
        self.listed: ObjectRef | None = None
        """The list of the files, after `finish`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
        self._folder.cleanup()

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch of JSON lines."""
        day = work.sealed_at[:10]
        if day != self._day:
            self._close()
            self._day = day
        self._rows.add(work, batch, payload)
        if self._rows.full:
            self._flush()

    def finish(self) -> int:
        """Put the files and then their list, and return their number of rows.

        Raises:
            StoreError: the archive cannot be written.
            KeyUnavailable: no key can sign the list now.
        """
        self._close()
        refs: list[tables.TableRef] = []
        for number, (day, path) in enumerate(self._files, 1):
            data = path.read_bytes()
            key = tables.table_key(self._log, day, self._first, self._end, number, len(self._files), data)
            refs.append(tables.TableRef(key, sha256(data).hexdigest(), pq.read_metadata(path).num_rows))
            try:
                self._store.create(key, data)
            except ObjectExists:
                # The key holds 64 bits of the digest. If other bytes are there, we did not put them, and the check
                # reports them.
                continue
        if not refs:
            return 0
        made = tables.TableList(
            format=tables.LIST_FORMAT,
            archive=self._archive,
            log=str(self._log),
            first=self._first,
            end=self._end,
            sealed_at=format_time(datetime.now(UTC)),
            files=refs,
        )
        try:
            data = signed_notes.seal(made, tables.LIST_FORMAT, self._signers)
        except FormatError:
            message = f"{len(refs)} tables are too many for one list: lower audit.piece_statements"
            raise FormatError(message) from None
        key = tables.list_key(self._log, self._first, self._end, data)
        self._store.create(key, data)
        self.listed = ObjectRef(key, len(data), sha256(data).hexdigest())
        return sum(ref.rows for ref in refs)

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


def list_tables_of(store: Store, log: Log, first: int, end: int, days: Iterable[str]) -> tables.Listed:
    """List the tables, and lists of them, of the ranges that begin in a log's statements `[first, end)`.

    Args:
        store: the archive.
        log: the log.
        first: sequence of the first statement.
        end: sequence after the last one.
        days: on which these statements were sealed, such as `2026-11-28`.

    Raises:
        StoreError: the archive cannot be listed.
    """
    files = [
        file
        for day in sorted(days)
        for info in store.list(f"{tables.TABLES}day={day}/{log.name}-{log.partition}-")
        if (file := tables.parse_table_key(info.key)) and file.log == log and first <= file.first < end
    ]
    lists: dict[tuple[Log, int, int], list[str]] = {}
    prefix = f"{tables.SIGNED}{log.name}-{log.partition}-"
    for info in store.list(prefix, after=f"{prefix}{first:012}-", through=f"{prefix}{end - 1:012}-~") if files else ():
        parsed = tables.parse_list_key(info.key)
        if parsed and parsed[0] == log:
            lists.setdefault(parsed, []).append(info.key)
    return tables.Listed({log: files}, lists)


def find_unlisted(
    store: Store, archive: str, stretches: Sequence[Stretch], named: Container[bytes], trust: Trust
) -> Iterator[Finding]:
    """Yield the tables of some days that are in no list signed by a trusted key.

    Args:
        store: the archive.
        archive: its id.
        stretches: have the days, as the records' keys have them.
        named: names of tables that are compared with their lists elsewhere.
        trust: keys that may sign a list.
    """

    def check(file: tables.TableFile) -> Finding | None:
        range_ = (file.log, file.first, file.end)
        lists = [each.key for each in store.list(f"{tables.list_prefix(file.log, file.first)}{file.end:012}-")]
        refs, unread = tables.signed_files(store, tables.Listed({}, {range_: lists}), archive, *range_, trust)
        if unread is not None:
            raise unread
        if file.key in refs:
            return None
        where: dict[str, Any] = {"log": str(file.log), "sequence": file.first, "through": file.end - 1}
        return finding("tables", _UNLISTED, key=file.key, **where)

    try:
        yield from filter(None, call_ahead(store, check, _tables_of_days(store, stretches, named)))
    except CustodyError as error:
        yield finding("unreadable", f"tables cannot be looked for: {error}", key=tables.TABLES)


def _tables_of_days(store: Store, stretches: Sequence[Stretch], named: Container[bytes]) -> Iterator[tables.TableFile]:
    """Yield the tables of the days of stretches that are not named. Raises StoreError."""
    folders, _ = store.level(tables.TABLES)
    for folder in folders:
        day = tuple(folder.removeprefix("day=").split("-"))
        if not folder.startswith("day=") or not any(_has_day(stretch, day) for stretch in stretches):
            continue
        for info in store.list(f"{tables.TABLES}{folder}/"):
            file = tables.parse_table_key(info.key)
            if file is not None and name_of(info.key) not in named:
                yield file


def _has_day(stretch: Stretch, day: tuple[str, ...]) -> bool:
    """Return whether a day is of a stretch. Each day is of one of the stretches that meet."""
    since = names_of(stretch.since)[:3]
    return since <= day and (stretch.until is None or day < names_of(stretch.until)[:3])


def check_tables(
    store: Store,
    listed: tables.Listed,
    archive: str,
    log: Log,
    first: int,
    end: int,
    trust: Trust,
    known: Mapping[int, int] = MappingProxyType({}),
) -> Iterator[Finding]:
    """Compare the tables of the ranges that begin in a log's statements `[first, end)` with the archive.

    Bytes are compared with the lists that trusted keys signed, and rows with the manifests' counts. A table that cannot
    be read or checked now is reported as `unreadable`, not as wrong.

    Args:
        store: the archive.
        listed: its tables.
        archive: its id.
        log: the log.
        first: sequence of the first statement.
        end: sequence after the last one.
        trust: keys that may sign a list.
        known: how many events each statement has that was read already. The others are read.
    """
    holds = standing(store, archive, trust)(log)
    unknown: list[Finding] = []
    for files in tables.whole_ranges(listed.files.get(log, ())):
        table = files[0]
        if not first <= table.first < end:
            continue
        where: dict[str, Any] = {"log": str(log), "sequence": table.first, "through": table.end - 1, "key": table.key}
        try:
            refs, unread = tables.signed_files(store, listed, archive, log, table.first, table.end, trust)
            wrong = False
            for file in files:
                problem = _problem(store, file.key, refs.get(file.key), unread)
                if problem is not None:
                    wrong = True
                    yield finding("tables", problem, **where)
            if not wrong:
                rows = sum(refs[file.key].rows for file in files)
                yield from _counted(store, log, table, rows, where, holds, known)
        except CustodyError as error:
            # Without a sequence, so that it does not replace a piece's finding `unreadable` of these statements.
            span = f"the tables of statements {table.first} to {table.end - 1}"
            unknown.append(finding("unreadable", f"{span} cannot be checked: {error}", log=str(log), key=table.key))
    # If the store does not answer there is one for each range: report the first, with their number.
    if unknown:
        yield replace(unknown[0], count=len(unknown))


def _problem(store: Store, key: str, listed: tables.TableRef | None, unread: CustodyError | None) -> str | None:
    """Return what is wrong with a file; None if it is as it was signed.

    Raises:
        CustodyError: the file, or a list that may name it, cannot be read now.
    """
    if listed is None:
        if unread is not None:
            raise unread
        return _UNLISTED
    try:
        digest = sha256(store.read(key, limit=tables.FILE_LIMIT)).hexdigest()
    except (FormatError, ObjectMissing) as error:
        return f"the table cannot be read: {error}"
    return None if digest == listed.sha256 else "the table's bytes differ from the signed digest"


def _counted(
    store: Store,
    log: Log,
    table: tables.TableFile,
    rows: int,
    where: Mapping[str, Any],
    holds: Holds[Manifest],
    known: Mapping[int, int],
) -> Iterator[Finding]:
    """Yield a finding if a range has the wrong number of rows. Problems with its statements are reported separately."""
    events = 0
    try:
        for sequence in range(table.first, table.end):
            if sequence in known:
                events += known[sequence]
                continue
            # A slot that a later statement passes over has no events.
            number, manifest = at_or_behind(store, log, sequence, sequence + 1 + limits.PASSED_OVER, holds)
            events += sum(batch.events for batch in manifest.statement.batches) if number == sequence else 0
    except ObjectMissing:
        # Queries would read this table instead of the real ones.
        yield finding("tables", "the table is of statements that do not exist", **where)
    except CustodyError:
        return
    else:
        if rows != events:
            message = "the tables and the statements have different numbers of events"
            yield finding("tables", message, expected=f"{events} events", found=f"{rows} rows", **where)
