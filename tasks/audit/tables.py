"""Events as Parquet tables, made in the audit's own read.

Tables are written to a temporary folder while segments are read, and put into the archive when their range is whole: a
range that is there in part is no range (`custody.query.tables.whole_ranges`), and is made again by the next audit.

Files are named by a digest of their bytes, which anybody can compute. So the files of a range are listed, with whole
digests and rows, in a signed note (`custody.archive.signed_notes`, over `custody/tables/1`), and a table that no such
list names is a finding.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from custody.archive import signed_notes
from custody.archive.reader import Holds, at_or_behind, read_manifest
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, ObjectExists, ObjectMissing, SignatureInvalid
from custody.findings import Finding, finding
from custody.format import limits
from custody.format.audit import ObjectRef
from custody.format.envelope import Signer
from custody.format.layout import Log
from custody.format.manifest import Batch, Manifest
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.query import tables
from custody.store.protocol import Store
from custody.verify.work import Work

LIST_FORMAT: Literal["custody/tables/1"] = "custody/tables/1"

_FILE_BYTES = 16 * 1_048_576
"""A file is closed at this size: it is put as a whole, from memory."""
_FILE_LIMIT = 128 * 1_048_576
"""Beyond the largest file that was ever put."""


class TableRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it was put: its key, the SHA-256 of its bytes, and how many events it holds."""

    key: str
    sha256: str
    rows: int


class TableList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All files of a log's statements `[first, end)`; line 1 of its object."""

    format: Literal["custody/tables/1"]
    archive: str
    log: str
    first: int
    end: int
    sealed_at: str
    files: list[TableRef]


class TableWriter:
    """Makes the tables of a log's statements `[first, end)` from the batches that a verification hands over."""

    def __init__(
        self, store: Store, log: Log, first: int, end: int, *, archive: str, signers: tuple[Signer, Signer]
    ) -> None:
        """Begin; nothing is put before `finish`.

        Args:
            store: where the tables are put.
            log: of which they are.
            first: sequence of the first statement.
            end: behind the last one.
            archive: its id.
            signers: the HMAC-SHA256 and the Ed25519 key, which sign the list of the files.
        """
        # For this process's life: Arrow's own allocator keeps, in each thread's heap, what one row group took at most.
        pa.set_memory_pool(pa.system_memory_pool())
        self._store, self._log, self._first, self._end = store, log, first, end
        self._archive, self._signers = archive, signers
        self._folder = tempfile.TemporaryDirectory(prefix="custody-")
        self._files: list[tuple[str, Path]] = []
        self._rows = tables.Rows(log)
        self._day = ""
        self._open: Any = None
        self.listed: ObjectRef | None = None
        """The list of the files, once it is there."""

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
        """Put the files and then their list, and return how many rows they have.

        Raises:
            StoreError: the archive does not take them.
            KeyUnavailable: no key can sign the list now.
        """
        self._close()
        refs: list[TableRef] = []
        for number, (day, path) in enumerate(self._files, 1):
            data = path.read_bytes()
            key = tables.table_key(self._log, day, self._first, self._end, number, len(self._files), data)
            refs.append(TableRef(key, sha256(data).hexdigest(), pq.read_metadata(path).num_rows))
            try:
                self._store.create(key, data)
            except ObjectExists:
                # Its key holds a digest of 64 bits: other bytes there were not put by us, and the check will say so.
                continue
        if refs:
            self._put_list(refs)
        return sum(ref.rows for ref in refs)

    def _put_list(self, refs: list[TableRef]) -> None:
        made = TableList(
            format=LIST_FORMAT,
            archive=self._archive,
            log=str(self._log),
            first=self._first,
            end=self._end,
            sealed_at=format_time(datetime.now(UTC)),
            files=refs,
        )
        try:
            data = signed_notes.seal(made, LIST_FORMAT, self._signers)
        except FormatError:
            what = f"{len(refs)} tables are too many for one list: lower audit.piece_statements"
            raise FormatError(what) from None
        key = tables.list_key(self._log, self._first, self._end, data)
        self._store.create(key, data)
        self.listed = ObjectRef(key, len(data), sha256(data).hexdigest())

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


@dataclass(frozen=True, slots=True)
class Listed:
    """What lies under `tables/`: the whole ranges of each log, and the keys of their lists by log, first and end."""

    ranges: Mapping[Log, Sequence[Sequence[tables.TableFile]]]
    lists: Mapping[tuple[Log, int, int], Sequence[str]]


def list_tables(store: Store) -> Listed:
    """List the archive's tables, all at once: they are many, and the checks of all logs ask of the same.

    Raises:
        StoreError: the archive cannot be listed.
    """
    keys = [info.key for info in store.list(tables.TABLES)]
    ranges: dict[Log, list[Sequence[tables.TableFile]]] = {}
    for files in tables.whole_ranges(keys):
        ranges.setdefault(files[0].log, []).append(files)
    lists: dict[tuple[Log, int, int], list[str]] = {}
    for key in keys:
        if parsed := tables.parse_list_key(key):
            lists.setdefault(parsed, []).append(key)
    return Listed(ranges, lists)


def check_tables(
    store: Store, listed: Listed, archive: str, log: Log, first: int, end: int, trust: Trust
) -> list[Finding]:
    """Compare the tables of the ranges that begin in a log's statements `[first, end)` with the archive.

    Bytes are compared with the lists that trusted keys signed, and rows with the manifests' counts. What the store does
    not give, or no key can check, now, is nothing against a table: it is the finding `unreadable`.

    Args:
        store: the archive.
        listed: its tables.
        archive: its id.
        log: the log.
        first: sequence of the first statement.
        end: behind the last one.
        trust: by which keys a list may be signed.
    """
    holds = standing(store, archive, trust)(log)
    findings: list[Finding] = []
    unknown: list[Finding] = []
    for files in listed.ranges.get(log, ()):
        one = files[0]
        if not first <= one.first < end:
            continue
        where: dict[str, Any] = {"log": str(log), "sequence": one.first, "through": one.end - 1, "key": one.key}
        lists = listed.lists.get((log, one.first, one.end), ())
        listed_files, unread = _listed_files(store, archive, log, one.first, one.end, lists, trust)
        problems: list[str] = []
        for file in files:
            try:
                if file.key in listed_files:
                    problems += _problems(store, file.key, listed_files[file.key])
                elif unread is not None:
                    raise unread
                else:
                    problems.append("no key that is trusted signed that this is a table of these statements")
            except CustodyError as error:
                # Without a sequence: it must not stand for what a piece finds unreadable of these statements.
                span = f"the tables of statements {one.first} to {one.end - 1}"
                unknown.append(finding("unreadable", f"{span} cannot be checked: {error}", log=str(log), key=file.key))
                break
        else:
            if not problems:
                findings += _counted(store, log, files, listed_files, where, holds)
        findings += (finding("tables", problem, **where) for problem in problems)
    # A store that does not answer gives one for each range; the first says it.
    return [*findings, *(replace(one, count=len(unknown)) for one in unknown[:1])]


def _counted(
    store: Store,
    log: Log,
    files: Sequence[tables.TableFile],
    listed: Mapping[str, TableRef],
    where: Mapping[str, Any],
    holds: Holds[Manifest],
) -> Iterator[Finding]:
    """Yield what is wrong with the number of a range's rows."""
    try:
        expected = sum(_events(store, log, sequence, holds) for sequence in range(files[0].first, files[0].end))
    except ObjectMissing:
        # It would hide the true tables from who asks them.
        yield finding("tables", "the table is of statements that are not there", **where)
        return
    except CustodyError:
        # What is wrong with the statements is a finding of its own.
        return
    rows = sum(listed[file.key].rows for file in files)
    if rows != expected:
        what = "the tables have another number of events than the statements"
        yield finding("tables", what, expected=f"{expected} events", found=f"{rows} rows", **where)


def _events(store: Store, log: Log, sequence: int, holds: Holds[Manifest]) -> int:
    """Return how many events a statement has, 0 where a later one passes over its slot."""
    try:
        statement = read_manifest(store, log, sequence, holds).statement
    except (ObjectMissing, FormatError):
        # Raises the same where the slot was not passed over.
        at_or_behind(store, log, sequence, sequence + 1 + limits.PASSED_OVER, holds)
        return 0
    return sum(batch.events for batch in statement.batches)


def _listed_files(
    store: Store, archive: str, log: Log, first: int, end: int, keys: Iterable[str], trust: Trust
) -> tuple[Mapping[str, TableRef], CustodyError | None]:
    """Return, by key, the files of a range that trusted keys signed to be its tables, and why a list is not known."""
    found: dict[str, TableRef] = {}
    unread: CustodyError | None = None
    for key in keys:
        try:
            made = signed_notes.read(store, key, TableList, LIST_FORMAT, trust)
        except (FormatError, ObjectMissing, SignatureInvalid):
            # Then its files are named by none.
            continue
        except CustodyError as error:
            unread = error
        else:
            if (made.archive, made.log, made.first, made.end) == (archive, str(log), first, end):
                found |= {ref.key: ref for ref in made.files}
    return found, unread


def _problems(store: Store, key: str, listed: TableRef) -> list[str]:
    """Return what is wrong with a file, nothing if it is as it was signed.

    Raises:
        StoreError: the store does not give it now.
    """
    try:
        digest = sha256(store.read(key, limit=_FILE_LIMIT)).hexdigest()
    except (FormatError, ObjectMissing) as error:
        return [f"the table cannot be read: {error}"]
    return [] if digest == listed.sha256 else ["the table's bytes are not those that were put"]
