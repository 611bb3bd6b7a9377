"""What people read of the archive: events as Parquet tables, made in the audit's own read, and the integrity report.

Tables are written to a temporary folder while segments are read, and put into the archive when their range is whole: a
range that is there in part is no range (`custody.tables.whole_ranges`), and is made again by the next audit.

Files are named by a digest of their bytes, which anybody can compute. So the files of a range are listed, with whole
digests and rows, in an object that is signed as statements are (two lines, over `custody/tables/1`), and a table that
no such list names is a finding. A key that has ended (`until`) counts for no list, for nothing says when one was made.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from custody import manifest, tables
from custody.archive import read_manifest
from custody.audits import is_signed
from custody.contents import Work
from custody.errors import CustodyError, ObjectExists, ObjectMissing
from custody.findings import Finding, finding
from custody.layout import Log
from custody.manifest import Batch, Signer
from custody.store import Store
from custody.trust import Trust

LIST_FORMAT: Literal["custody/tables/1"] = "custody/tables/1"

_FILE_BYTES = 16 * 1_048_576
"""A file is closed at this size: it is put as a whole, from memory."""
_FILE_LIMIT = 128 * 1_048_576
"""Beyond the largest file that was ever put."""

# Arrow's own allocator keeps, in each thread's heap, what one row group took at most: some 40 MiB.
pa.set_memory_pool(pa.system_memory_pool())


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
        self, store: Store, log: Log, first: int, end: int, *, archive: str, signers: Sequence[Signer]
    ) -> None:
        """Begin; nothing is put before `finish`.

        Args:
            store: where the tables are put.
            log: of which they are.
            first: sequence of the first statement.
            end: behind the last one.
            archive: its id.
            signers: who sign the list of the files.
        """
        self._store, self._log, self._first, self._end = store, log, first, end
        self._archive, self._signers = archive, signers
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
            sealed_at=manifest.format_time(datetime.now(UTC)),
            files=refs,
        )
        data = manifest.seal(msgspec.json.encode(made), self._signers, LIST_FORMAT)
        self._store.create(tables.list_key(self._log, self._first, self._end, data), data)

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


def check_tables(store: Store, archive: str, log: Log, first: int, end: int, trust: Trust) -> list[Finding]:
    """Hold the tables of the ranges that begin in a log's statements `[first, end)` to the archive.

    Bytes are compared with the lists that trusted keys signed, and rows with the manifests' counts.

    Args:
        store: the archive.
        archive: its id.
        log: the log.
        first: sequence of the first statement.
        end: behind the last one.
        trust: by which keys a list may be signed.
    """
    findings: list[Finding] = []
    keys = [info.key for info in store.list(tables.TABLES)]
    for files in tables.whole_ranges(keys):
        one = files[0]
        if one.log != log or not first <= one.first < end:
            continue
        where: dict[str, Any] = {"log": str(log), "sequence": one.first, "through": one.end - 1, "key": one.key}
        listed = _listed(store, archive, log, one.first, one.end, keys, trust)
        problems = [problem for file in files if (problem := _problem(store, file.key, listed))]
        findings += (finding("tables", problem, **where) for problem in problems)
        if problems:
            continue
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
        rows = sum(listed[file.key].rows for file in files)
        if rows != expected:
            what = "the tables have another number of events than the statements"
            findings.append(finding("tables", what, expected=f"{expected} events", found=f"{rows} rows", **where))
    return findings


def _listed(
    store: Store, archive: str, log: Log, first: int, end: int, keys: Iterable[str], trust: Trust
) -> Mapping[str, TableRef]:
    """Return, by key, the files of a range that trusted keys signed to be its tables."""
    found: dict[str, TableRef] = {}
    for key in keys:
        if tables.parse_list_key(key) != (log, first, end):
            continue
        try:
            line, second = manifest.split_lines(store.read(key, limit=manifest.MANIFEST_LIMIT))
            signatures = manifest.parse_signatures(second)
            made = msgspec.json.decode(line, type=TableList)
            manifest.check_time("sealed_at", made.sealed_at)
        except (CustodyError, msgspec.MsgspecError, ValueError, RecursionError):
            # Then its files are named by none.
            continue
        ended = any(signature.key in trust.keys and trust.keys[signature.key].until for signature, _ in signatures)
        own = (made.archive, made.log, made.first, made.end) == (archive, str(log), first, end)
        text = manifest.message(line, LIST_FORMAT)
        if own and not ended and is_signed(trust, text, signatures, 0, made.sealed_at):
            found |= {ref.key: ref for ref in made.files}
    return found


def _problem(store: Store, key: str, listed: Mapping[str, TableRef]) -> str | None:
    """Return what is wrong with a file, None if it is as it was signed."""
    if key not in listed:
        return "no key that is trusted signed that this is a table of these statements"
    try:
        digest = sha256(store.read(key, limit=_FILE_LIMIT)).hexdigest()
    except CustodyError as error:
        return f"the table cannot be read: {error}"
    return None if digest == listed[key].sha256 else "the table's bytes are not those that were put"
