"""Rule 10 of FORMAT.md, Verification: objects among the evidence that no manifest and no audit names.

A writer that stops between its segment and its manifest leaves such an object, and the next run archives the same
records in other segments. The object is an `orphan` if it is well formed, and each of its records is identical to the
committed one, or no statement has a record there. Any other object is `unlisted`: somebody put it there. Objects whose
keys have no form of the archive's are not here: they are `foreign` (`listing.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from custody.archive.reader import Holds, read_batch, read_manifest
from custody.errors import CustodyError, FormatError, ObjectMissing, StoreError
from custody.findings import Finding, Findings, Severity, finding
from custody.format import layout, limits, lines
from custody.format.manifest import Manifest, Range, Statement
from custody.format.members import inflate_stream
from custody.format.offsets import line_offsets, unlined_ranges
from custody.format.quarantine import QuarantinedRecord, parse_quarantined, quarantine_lines
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.verify.accounting import Holes, LogAccount
from custody.verify.accounts import Accounts, Logs
from custody.verify.audits import check_unreferred
from custody.verify.names import Names

WRITER_TIME = timedelta(days=1)
"""How long a writer may take between an object and the statement that names it: much longer than any run."""
_LATER_LIMIT = 10_000
"""How many statements after the last verified one are read, for the objects that they name."""
_UNNAMED_LIMIT = 100_000


class _CommittedDamagedError(Exception):
    """The committed bytes are not the stated ones (already reported), so nothing can be compared with them."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a log goes.

    Attributes:
        log: the log.
        size: how many slots it has; 0 without any statement.
        next_offset: the offset that its next statement begins with.
        holes: offsets that are reported already.
    """

    log: layout.Log
    size: int
    next_offset: int
    holes: Holes = field(default_factory=Holes)

    @classmethod
    def of(cls, account: LogAccount) -> "Extent":
        """Return how far a log goes that was verified."""
        size = account.size if account.totals.statements else 0
        return cls(account.log, size, account.next_offset or 0, account.holes)


@dataclass(frozen=True, slots=True)
class _Committed:
    """What was committed to a log: its valid statements."""

    store: Store
    extent: Extent
    holds: Holds[Manifest]


class Accounting:
    """Finds the statements of a log that account for offsets, asked for one after another, mostly in order."""

    def __init__(self, store: Store, extent: Extent, holds: Holds[Manifest]) -> None:
        self._committed = _Committed(store, extent, holds)
        self._last: tuple[int, Statement] | None = None

    def statement(self, offset: int) -> Statement | None:
        """Return the first valid statement that ends beyond an offset; None if there is none."""
        low = 0
        if self._last is not None:
            sequence, last = self._last
            if last.first_offset <= offset < last.next_offset:
                return last
            low = sequence + 1 if offset >= last.next_offset else 0
        searched = _search(self._committed, low, offset)
        self._last = searched or self._last
        return searched[1] if searched else None


@dataclass(slots=True)
class Unnamed:
    """Reports unnamed objects.

    Attributes:
        logs: reads statements again.
        accounts: the verified logs.
        findings: gets the findings.
        unread: returns whether a log exists, or may exist, and is out of scope.
        live: whether a writer may be at work.
    """

    logs: Logs
    accounts: Accounts
    findings: Findings
    unread: Callable[[layout.Log], bool]
    live: bool
    _seen: set[str] = field(default_factory=set)
    _named_since: dict[layout.Log, frozenset[str]] = field(default_factory=dict)

    def report(self, names: Names, prefixes: Sequence[str]) -> None:
        """Find unnamed objects in a second listing, and report each.

        Args:
            names: the listed and the named objects.
            prefixes: of the keys that are known to be all named, or listed.
        """
        unnamed = names.unnamed()
        if not unnamed:
            return
        try:
            for prefix in prefixes:
                for info in self.logs.store.list(prefix):
                    if names.digest(info.key) in unnamed and info.key not in self._seen:
                        self._report(info.key)
        except CustodyError as error:
            self.findings.add(finding("unreadable", f"the archive cannot be listed again: {error}", key=layout.EVENTS))

    def _report(self, key: str) -> None:
        if len(self._seen) >= _UNNAMED_LIMIT:
            self.findings.dropped[Severity.TAMPERED] += 1
            return
        if digest := layout.parse_audit_object_key(key):
            self._seen.add(key)
            if unreferred := check_unreferred(self.logs.store, key, digest):
                self.findings.add(unreferred)
            return
        parsed = layout.parse_records_key(key)
        if parsed is None:
            return
        accounts: Sequence[LogAccount | None] = self.accounts.of(parsed.log) or (None,)
        newest = accounts[-1]
        if newest is None and self.unread(parsed.log):
            return
        if (newest is None or parsed.last >= (newest.next_offset or 0)) and key in self._later(parsed.log):
            return
        self._seen.add(key)
        # For each span of a log, everything outside it is a hole.
        for account in accounts:
            extent = Extent.of(account) if account is not None else None
            if unnamed := check_unnamed(self.logs.store, extent, key, self.logs.holds, live=self.live):
                self.findings.add(unnamed)

    def _later(self, log: layout.Log) -> frozenset[str]:
        """Return the names in statements newer than our reading of the log. The next verification checks those."""
        if log not in self._named_since:
            names: set[str] = set()
            first = max((account.size for account in self.accounts.of(log)), default=0)
            for sequence in range(first, first + _LATER_LIMIT):
                if (statement := self.logs.statement(log, sequence)) is None:
                    break
                names.update(ref.key for ref in (statement.segment, statement.quarantine) if ref)
            self._named_since[log] = frozenset(names)
        return self._named_since[log]


def check_unnamed(
    store: Store, extent: Extent | None, key: str, holds: Callable[[layout.Log], Holds[Manifest]], *, live: bool
) -> Finding | None:
    """Return the finding about an unnamed object. None if it is gone or reported already, or a writer is at work.

    Args:
        store: the archive.
        extent: of the object's log, None where there is none.
        key: of the object.
        holds: returns, for a log, the check whether a manifest is one that was verified.
        live: whether a writer may be at work.
    """
    parsed = layout.parse_records_key(key)
    if parsed is None:
        # It is foreign, and was reported when it was listed.
        return None
    if extent is None or not extent.size:
        if extent is not None and extent.holes.touch(parsed.first, parsed.last):
            return None
        digest = _digest_if_read(store, key)
        return finding("unlisted", "its log has no statement", log=str(parsed.log), key=key, sha256=digest)
    if extent.holes.touch(parsed.first, parsed.last):
        return None
    # A writer at work begins at the log's end. If it is killed, its object stays, and is one that no statement names.
    if live and parsed.first >= extent.next_offset and _may_be_written(store, key):
        return None
    where: dict[str, Any] = {"log": str(extent.log), "key": key, "offset": parsed.first}
    digest = None
    try:
        digest = _digest(store, key, limits.SEGMENT_BYTES if parsed.kind == "events" else limits.QUARANTINE_BYTES)
        if digest[:16] != parsed.digest:
            return finding("unlisted", "its SHA-256 is not the one in its key", sha256=digest, **where)
        compare = _compare_events if parsed.kind == "events" else _compare_quarantine
        difference = compare(_Committed(store, extent, holds(extent.log)), key, parsed)
    except (ObjectMissing, _CommittedDamagedError):
        return None
    except FormatError as error:
        return finding("unlisted", f"no manifest names it, and it is not well formed: {error}", sha256=digest, **where)
    except StoreError as error:
        return finding("unreadable", f"the object cannot be read: {error}", **where)
    if difference:
        return finding("unlisted", f"no manifest names it, and {difference}", sha256=digest, **where)
    return finding("orphan", "no manifest names it; its records are committed elsewhere, or not committed yet", **where)


def _may_be_written(store: Store, key: str) -> bool:
    """Return whether an object is so new that its writer may still put the statement that names it."""
    try:
        return datetime.now(UTC) - store.status(key).created < WRITER_TIME
    except StoreError:
        return True


def _digest_if_read(store: Store, key: str) -> str | None:
    """Return the SHA-256 of an unknown object, so that it can be accepted."""
    try:
        return _digest(store, key, limits.SEGMENT_BYTES)
    except (FormatError, StoreError):
        return None


def _digest(store: Store, key: str, limit: int) -> str:
    digest = sha256()
    size = 0
    for piece in read_pieces(store, key, limit + 1):
        digest.update(piece)
        size += len(piece)
    if size > limit:
        raise FormatError(f"it is larger than {limit} bytes")
    return digest.hexdigest()


def _compare_events(committed: _Committed, key: str, parsed: layout.RecordsKey) -> str | None:
    """Return how a segment differs from what was committed at its offsets, None if it does not."""
    own = _event_lines(committed.store, key, parsed.last - parsed.first + 1)
    free = 0
    for offset, item in _committed_events(committed, parsed.first, parsed.last):
        if isinstance(item, int):
            free += item
            continue
        line = next(own, None)
        while line != item and line is not None and free:
            line, free = next(own, None), free - 1
        if line != item:
            return f"its record at offset {offset} is not the committed one"
    free += max(parsed.last + 1 - max(committed.extent.next_offset, parsed.first), 0)
    if sum(1 for _ in own) > free:
        return "it has more records than were committed at its offsets"
    return None


def _event_lines(store: Store, key: str, most: int) -> Iterator[bytes]:
    """Yield a segment's lines, and check that each is an event. Members may be cut anywhere."""
    rest = bytearray()
    # The range in its key is only a claim.
    limit = min(most * (limits.EVENT_BYTES + 1), limits.ORPHAN_INFLATED)
    for chunk in inflate_stream(read_pieces(store, key, limits.SEGMENT_BYTES), limit):
        # A long line may come in very many chunks: it grows in place.
        rest += chunk
        whole: list[bytes] = []
        if b"\n" in chunk:
            end = rest.rindex(b"\n")
            whole = bytes(rest[:end]).split(b"\n")
            del rest[: end + 1]
        if len(rest) > limits.EVENT_BYTES:
            raise FormatError("a line is longer than the limit of an event")
        for start in range(0, len(whole), limits.BATCH_EVENTS):
            some = whole[start : start + limits.BATCH_EVENTS]
            if faults := lines.check(b"\n".join(some) + b"\n").faults:
                raise FormatError(f"a line is not an event: {faults[0].reason}")
        yield from whole
    if rest:
        raise FormatError("its last line does not end in a newline")


def _committed_events(committed: _Committed, first: int, last: int) -> Iterator[tuple[int, bytes | int]]:
    """Yield the committed lines of offsets `first` to `last`, in order, and the number of lost ones."""
    for count, statement in enumerate(_statements(committed, first, last), 1):
        if count > limits.ORPHAN_STATEMENTS:
            raise FormatError(f"it claims the offsets of more than {limits.ORPHAN_STATEMENTS} statements")
        if statement.lost and (lost := min(statement.lost[1], last + 1) - max(statement.lost[0], first)) > 0:
            yield statement.lost[0], lost
        unlined = unlined_ranges(statement)
        for batch in statement.batches:
            if batch.next_offset <= first or batch.first_offset > last or statement.segment is None:
                continue
            try:
                payload, *_ = read_batch(committed.store, statement.segment.key, batch)
            except FormatError:
                raise _CommittedDamagedError from None
            own = payload.split(b"\n")[:-1]
            for offset, line in zip(line_offsets(batch, unlined), own, strict=False):
                if first <= offset <= last:
                    yield offset, line


def _compare_quarantine(committed: _Committed, key: str, parsed: layout.RecordsKey) -> str | None:
    """Return how a quarantine object differs from what was committed at its offsets, None if it does not."""
    store, end = committed.store, committed.extent.next_offset
    stated: Iterator[QuarantinedRecord | Range] = iter(())
    theirs: QuarantinedRecord | Range | None = None
    through = 0
    before = parsed.first - 1
    pieces = read_pieces(store, key, limits.QUARANTINE_BYTES)
    for line in quarantine_lines(pieces, limits.QUARANTINE_BYTES, limits.QUARANTINE_INFLATED, exact=False):
        record = parse_quarantined(line)
        if not before < record.offset <= parsed.last:
            return f"its record of offset {record.offset} is out of place"
        before = record.offset
        if record.offset >= end:
            continue
        if record.offset >= through:
            # A new search, so that a key that claims the whole log does not cause all of it to be read.
            statement = next(_statements(committed, record.offset, record.offset), None)
            through = statement.next_offset if statement else record.offset + 1
            stated = _committed_quarantine(store, statement) if statement else iter(())
            theirs = next(stated, None)
        while theirs is not None and _end_of(theirs) <= record.offset:
            theirs = next(stated, None)
        if theirs is None or (record != theirs and not (isinstance(theirs, tuple) and theirs[0] <= record.offset)):
            return f"its record at offset {record.offset} is not the committed one"
    return None


def _end_of(item: QuarantinedRecord | Range) -> int:
    return item[1] if isinstance(item, tuple) else item.offset + 1


def _committed_quarantine(store: Store, statement: Statement) -> Iterator[QuarantinedRecord | Range]:
    """Yield the range that a statement declares as lost, then its quarantined records."""
    if statement.lost:
        yield statement.lost
    ref = statement.quarantine
    if ref is None:
        return
    try:
        if _digest(store, ref.key, limits.QUARANTINE_BYTES) != ref.sha256:
            raise _CommittedDamagedError
        pieces = read_pieces(store, ref.key, ref.size)
        yield from map(parse_quarantined, quarantine_lines(pieces, ref.size, ref.inflated))
    except FormatError:
        raise _CommittedDamagedError from None


def _statements(committed: _Committed, first: int, last: int) -> Iterator[Statement]:
    """Yield the statements that account for offsets `first` to `last`. Those between that account for none are not."""
    sequence, offset = 0, first
    while (following := _search(committed, sequence, offset)) and following[1].first_offset <= last:
        yield following[1]
        sequence, offset = following[0] + 1, following[1].next_offset


def _search(committed: _Committed, low: int, offset: int) -> tuple[int, Statement] | None:
    """Return the first statement from `low` on that ends beyond an offset, None if there is none.

    It is mostly near, so the steps grow. A long run of heartbeats is not read.
    """
    size = committed.extent.size
    result = None
    high, step = low, 1
    while high < size and (result := _readable(committed, high, size)) and result[1].next_offset <= offset:
        low, result = result[0] + 1, None
        high, step = low + step, 2 * step
    high = min(high, size)
    while low < high:
        middle = (low + high) // 2
        statement = _readable(committed, middle, high)
        if statement is None or statement[1].next_offset > offset:
            high, result = middle, statement or result
        else:
            low = statement[0] + 1
    return result


def _readable(committed: _Committed, first: int, end: int) -> tuple[int, Statement] | None:
    """Return the first valid statement in slots `[first, end)`, None if there is none: slots may be passed over."""
    for sequence in range(first, end):
        try:
            found = read_manifest(committed.store, committed.extent.log, sequence, committed.holds)
        except (ObjectMissing, FormatError):
            # Already reported.
            continue
        return sequence, found.statement
    return None
