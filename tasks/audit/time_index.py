"""Makes the time index while an audit reads statements, and compares what it says of those that are read again.

- What is in no span yet gets one, whether it is read for the first time or again: so the index of an archive that had
  none is complete after `audit.reread_days`, and at once after a full audit.
- A span of statements that are read again must say what they say: its times and sums, and the rows of its files. If it
  does not, this is a finding, and the span is made again. It is made again too if its files are of an older version.
- An audit that cannot use statements, because a signature does not count or a slot is empty, gives them a span without
  times. Readers then read them one by one.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from custody.archive import signed_notes, time_index, time_merge
from custody.archive.readings import newest_reading
from custody.archive.rows import batches_of, row_of
from custody.archive.time_index import TimeIndex
from custody.archive.time_spans import Bounds, Contradiction, Span, SpanMaker
from custody.errors import CustodyError, FormatError, KeyUnavailable, ObjectExists, ObjectMissing, SignatureInvalid
from custody.findings import Finding, Severity, finding
from custody.format import limits
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import format_us
from custody.keys.trust import Trust
from custody.query import parquet, statements, tables
from custody.query.statements import Name
from custody.store.protocol import Store
from tasks.audit.plan import Piece, Plan

_NAMES: tuple[Name, ...] = ("manifests", "batches")
_SUMS = ("first_offset", "next_offset", "events", "quarantined", "stored", "inflated")


def known_index(store: Store, trust: Trust, plan: Plan) -> TimeIndex:
    """Return the index that the audit before refers to. Raises StoreError."""
    audit = newest_reading(store, plan.archive, trust, plan.audits)
    return time_index.read(store, audit) if audit else time_index.EMPTY


@dataclass(slots=True)
class Indexed:
    """What a piece adds to the index.

    Attributes:
        spans: new ones.
        replaced: where known spans begin that are not as the statements, or lack files. New ones may take their place.
        findings: what is wrong with known spans.
    """

    spans: list[Span] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class _Range:
    """Statements `[first, end)` of a piece, as they are read: their span, and their rows."""

    def __init__(
        self, log: str, first: int, end: int, known: Span | None = None, listed: ObjectRef | None = None
    ) -> None:
        self.first, self.end, self.known, self.listed = first, end, known, listed
        self.is_older = False
        """Whether the known span's file of statements is of an older version."""
        self._log, self._span = log, SpanMaker(log, first, end)
        self._rows = {name: statements.Rows(name) for name in _NAMES}

    def add(self, statement: Statement) -> None:
        self._span.add(statement)
        self._rows["manifests"].add(statements.file_row(row_of(self._log, statement)))
        for row in batches_of(self._log, statement):
            self._rows["batches"].add(row)

    def span(self) -> Span:
        return self._span.span()

    def table(self, name: Name) -> pa.Table:
        return self._rows[name].table()


class Indexer:
    """Makes the spans of a piece from its statements, and compares them with those that are known."""

    def __init__(self, store: Store, trust: Trust, plan: Plan, piece: Piece, log: Log, known: TimeIndex) -> None:
        """Begin. `known` is the index that the audit before refers to.

        Raises:
            StoreError: the archive cannot be listed.
        """
        self._store, self._log, self._piece, self._full = store, log, piece, plan.full
        self._archive, self._trust = plan.archive, trust
        name, first, end = piece.log, piece.first, piece.end
        ranges = list(known.ranges(log, first, end, lambda _: True))
        self._known = [_Range(name, slots.start, slots.stop, span) for slots, span in ranges if span is not None]
        self._lost = [run.first for run in known.lost(log, first, end)]
        gaps = [range(first, end)] if plan.full else [slots for slots, span in ranges if span is None]
        if piece.read == "new":
            # Its tables are made in the same read.
            self._new = [_Range(name, gap.start, gap.stop) for gap in gaps]
        else:
            self._new = [
                _Range(name, start, stop, listed=ref)
                for gap in gaps
                for start, stop, ref in signed_lists(store, plan.archive, log, gap.start, gap.stop, trust)
            ]

    def take(self, statement: Statement) -> None:
        """Add the next statement of the piece."""
        for ranges in (self._known, self._new):
            index = bisect_right(ranges, statement.sequence, key=_first) - 1
            if index >= 0 and statement.sequence < ranges[index].end:
                ranges[index].add(statement)

    def finish(self, *, usable: bool, files: bool, listed: ObjectRef | None) -> Indexed:
        """Put the files of new spans, and return what was made.

        Args:
            usable: whether all of the statements count.
            files: whether files are made of them.
            listed: the signed list of the tables that were made of this piece.

        Raises:
            StoreError: the archive cannot be written.
        """
        made = Indexed(replaced=list(self._lost))
        again = list(self._compare(made, files=files)) if usable else []
        for each in [*self._new, *([] if self._full else again)]:
            span = each.span() if usable else Span(log=self._piece.log, first=each.first, end=each.end)
            if (each.first, each.end) == (self._piece.first, self._piece.end):
                each.listed = each.listed or listed
            made.spans.append(self._with_files(each, span) if files and span.sealed else span)
        return made

    def _with_files(self, each: _Range, span: Span) -> Span:
        span = msgspec.structs.replace(span, tables=each.listed)
        made = {name: each.table(name) for name in _NAMES}
        if any(parquet.size_of(table) > parquet.TABLE_BYTES for table in made.values()):
            # Nobody could read it.
            return span
        try:
            return msgspec.structs.replace(span, **{name: self._put(each, name, made[name]) for name in _NAMES})
        except ObjectExists:
            # Somebody else has put other bytes there, which nobody may overwrite. Readers do without the files.
            return span

    def _put(self, each: _Range, name: Name, table: pa.Table) -> ObjectRef | None:
        if not table.num_rows:
            return None
        data = parquet.encode(table)
        ref = statements.file_ref(name, self._log, each.first, each.end, data)
        self._store.create(ref.key, data)
        return ref

    def _compare(self, made: Indexed, *, files: bool) -> Iterator[_Range]:
        """Compare the known spans with what was read, and yield those that are to be made again from this piece."""
        for each in self._known:
            known, read = each.known, each.span()
            if known is None or read.sealed is None:
                continue
            try:
                problem = self._difference(each, known, read) or self._file_problem(each, known)
                listed = known.tables if self._is_listed(known) else self._found_list(known)
            except CustodyError as error:
                message = f"the time index of statements {each.first} to {each.end - 1} cannot be checked: {error}"
                made.findings.append(finding("unreadable", message, log=known.log))
                continue
            made.findings += [problem] if problem else []
            lacks_files = files and (known.manifests is None or each.is_older)
            lacks = known.sealed is None or lacks_files or listed != known.tables
            whole = (each.first, each.end) == (known.first, known.end)
            if problem or (lacks and whole):
                made.replaced.append(known.first)
                each.listed = listed
                if whole:
                    yield each

    def _difference(self, each: _Range, known: Span, read: Span) -> Finding | None:
        """Return a finding if a known span does not say what the statements say, as far as they are of this piece."""
        if known.tables and tables.parse_list_key(known.tables.key) != (self._log, known.first, known.end):
            message = "the time index names a list of tables that is not of its statements"
            return self._finding(each, message, key=known.tables.key)
        whole = (each.first, each.end) == (known.first, known.end)
        for name, what in (("sealed", "were sealed"), ("event_times", "have events"), ("kafka_times", "have records")):
            stated, actual = getattr(known, name), getattr(read, name)
            if known.sealed is None or stated == actual or (not whole and _contains(stated, actual)):
                continue
            scale = 1_000 if name == "kafka_times" else 1
            message = f"the time index says that the statements {what} at other times than they do"
            return self._finding(each, message, expected=_times(actual, scale), found=_times(stated, scale))
        for name in _SUMS if known.sealed is not None and whole else ():
            stated, actual = getattr(known, name), getattr(read, name)
            if stated != actual:
                message = f"the time index and the statements differ in {name}"
                return self._finding(each, message, expected=str(actual), found=str(stated))
        return None

    def _file_problem(self, each: _Range, known: Span) -> Finding | None:
        """Return a finding if a known span's files do not have the rows of the statements."""
        for name, ref in zip(_NAMES, (known.manifests, known.batches), strict=True):
            if known.manifests is None:
                break
            try:
                rows = statements.read_files(self._store, name, [ref] if ref else [])
            except Contradiction as error:
                message = f"a file of the time index is as it was signed, and cannot be read: {error}"
                return self._finding(each, message, key=ref.key if ref else None)
            except FormatError as error:
                # Queries read the statements instead.
                message = f"a file of the time index is not as it was signed: {error}"
                return self._finding(each, message, severity=Severity.POLICY, key=ref.key if ref else None)
            actual = each.table(name)
            if name == "manifests" and statements.is_older(rows):
                each.is_older = True
                rows, actual = rows.drop_columns([statements.TYPES]), actual.drop_columns([statements.TYPES])
            within = pc.and_(pc.greater_equal(rows["sequence"], each.first), pc.less(rows["sequence"], each.end))
            if not rows.filter(within).equals(actual):
                message = f"the view `{name}` has other rows in the time index than in the statements"
                return self._finding(each, message, key=ref.key if ref else None)
        return None

    def _is_listed(self, known: Span) -> bool:
        """Return whether the list of a known span's tables is as the span says. Tables are checked elsewhere."""
        ref = known.tables
        if ref is None or tables.parse_list_key(ref.key) != (self._log, known.first, known.end):
            return ref is None
        try:
            return sha256(self._store.read(ref.key, limit=limits.FILE_BYTES)).hexdigest() == ref.sha256
        except (ObjectMissing, FormatError):
            return False

    def _found_list(self, known: Span) -> ObjectRef | None:
        """Return the signed list of the tables of a known span, found by its name; None if there is none."""
        found = signed_lists(self._store, self._archive, self._log, known.first, known.end, self._trust)
        _, end, ref = next(iter(found))
        return ref if end == known.end else None

    def _finding(self, each: _Range, message: str, **fields: Any) -> Finding:
        loss = (self._piece.log, each.first, each.end, message, fields.get("expected"), fields.get("found"))
        fields |= {"log": self._piece.log, "sequence": each.first, "through": each.end - 1}
        return finding("time-index", message, loss=loss, **fields)


def _first(each: _Range) -> int:
    return each.first


def _contains(stated: Bounds | None, actual: Bounds | None) -> bool:
    return actual is None or (stated is not None and stated[0] <= actual[0] and actual[1] <= stated[1])


def _times(bounds: Bounds | None, scale: int) -> str:
    return " to ".join(_time(scale * each) for each in bounds) if bounds else "none"


def _time(microseconds: int) -> str:
    try:
        return format_us(microseconds)
    except OverflowError:
        return f"{microseconds} µs after 1970"


def signed_lists(
    store: Store, archive: str, log: Log, first: int, end: int, trust: Trust
) -> Iterator[tuple[int, int, ObjectRef | None]]:
    """Yield the ranges of a log's statements `[first, end)` that have a signed list of tables, and the rest with None.

    Raises:
        StoreError: the archive cannot be listed.
    """
    while first < end:
        ref, stop = None, end
        for info in sorted(store.list(tables.list_prefix(log, first)), key=attrgetter("key")):
            parsed = tables.parse_list_key(info.key)
            if parsed is not None and parsed[:2] == (log, first) and parsed[2] <= end:
                ref = _signed_list(store, archive, info.key, parsed, trust)
            if ref is not None and parsed is not None:
                stop = parsed[2]
                break
        yield first, stop, ref
        first = stop


def _signed_list(store: Store, archive: str, key: str, range_: tuple[Log, int, int], trust: Trust) -> ObjectRef | None:
    """Return the reference to a list of a range's tables; None if no trusted key signed it."""
    log, first, end = range_
    try:
        made = signed_notes.read(store, key, tables.TableList, tables.LIST_FORMAT, trust)
        data = store.read(key, limit=limits.FILE_BYTES)
    except (FormatError, ObjectMissing, SignatureInvalid, KeyUnavailable):
        return None
    of_range = (made.archive, made.log, made.first, made.end) == (archive, str(log), first, end)
    return ObjectRef(key, len(data), sha256(data).hexdigest()) if of_range else None


def hand_on(
    store: Store, trust: Trust, plan: Plan, new: Iterable[Span], replaced: Collection[tuple[str, int]]
) -> tuple[list[ObjectRef], list[Finding]]:
    """Add what the pieces made to the index that the audit before refers to. A full audit begins anew.

    Args:
        store: the archive.
        trust: the keys.
        plan: the audit's plan.
        new: the spans that the pieces made.
        replaced: the log and the first sequence of each known span that is not kept.

    Returns:
        The objects to which this audit refers, and a finding for each that is lost.

    Raises:
        StoreError: the archive cannot be written.
    """
    known = known_index(store, trust, plan)
    for log, first in replaced if plan.full else ():
        # It is named if it is lost, though nothing of it is kept.
        known.between(log, first, first + 1)
    # What lies beyond the head that this audit signs may be another history.
    new = [span for span in new if span.end <= plan.heads.get(span.log, (0, ""))[0]]
    before = time_index.EMPTY if plan.full else known
    ref, made = time_merge.extend(plan.archive, plan.sequence, before, new, replaced)
    for key, data in made.items():
        store.create(key, data)
    return [ref] if ref else [], list(_lost(known))


def _lost(known: TimeIndex) -> Iterator[Finding]:
    """Yield a finding for each object of the index that is lost. What it covered is indexed again as it is read."""
    for problem in known.problems:
        severity = Severity.TAMPERED if problem in known.contradictions else Severity.POLICY
        if problem in known.missing:
            # A copy of an archive has what is evidence, and this is none.
            severity = Severity.NOTICE
        yield finding("time-index", problem, severity=severity, loss=(problem,))
