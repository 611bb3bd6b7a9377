"""The index of an archive by time: which statements were sealed when, and when their events and records are from.

An audit makes it while it reads statements (`tasks.audit.time_index`), and refers to its objects by their SHA-256. It
is derived from the archive, and no evidence. `custody audit --full` makes it anew. Rules:

- A span is of consecutive statements of a log. The spans of a log are sorted and disjoint. What lies in no span is
  read statement by statement (`gaps`). So what is missing, damaged or of another archive costs time, and hides nothing.
- A span whose statements could not all be read has no times. It overlaps every time.
- No span goes beyond the head that the audit signed for its log.
- Objects are merged as in an LSM tree: an audit adds an object with its spans, and merges it with the newest ones as
  long as they are not more than twice as large. So there are O(log n) objects, and each span is written O(log n) times.

With keys, an index counts only if a trusted key signed the audit that refers to it. What that key, or a fault, made
wrong is found by the audits that read the same statements again.
"""

import gzip
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Literal

import msgspec

from custody.archive.audit_findings import listed_objects
from custody.archive.forms import AUDITS
from custody.archive.reader import find_end
from custody.archive.readings import newest_reading
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout, limits
from custody.format.audit import Audit, ObjectRef
from custody.format.envelope import Int
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import microseconds_of, parse_time
from custody.keys.trust import Trust
from custody.store.protocol import Store

FORMAT: Literal["custody/time-index/1"] = "custody/time-index/1"
FOLDER = "reports/index/"
SIZE_LIMIT = 64 * limits.MIB
INFLATED_LIMIT = 512 * limits.MIB
MERGED_LIMIT = 16 * limits.MIB
"""Objects are not merged beyond this size: some 100,000 spans, so that an audit never writes more at once."""
MOST_SPANS = 50_000
"""Spans that are added as one object: some 8 MiB."""
SMALL = 16 * 1024
"""Objects below this size are merged with any newer one."""
EVENT_SLACK = 1_000
"""A batch's times may be 1 ms off (FORMAT.md, Manifest). In microseconds."""

Bounds = tuple[int, int]
"""The smallest and the largest value."""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Statements `[first, end)` of a log, which an audit read together.

    Attributes:
        log: `<log>/<partition>`.
        first: sequence of the first slot.
        end: sequence after the last one.
        sealed: when the statements were sealed, in µs since 1970; None if not all of them could be read.
        event_times: bounds of the events' own times, in µs since 1970, at most 1 ms off; None without events.
        kafka_times: bounds of the records' Kafka timestamps, in ms since 1970; None if there is none.
        first_offset: the first offset that the statements account for.
        next_offset: the offset after the last one.
        events: how many events they have.
        quarantined: how many records are in quarantine.
        stored: bytes of their objects, as stored.
        inflated: bytes of their events.
        tables: the signed list of the tables of their events; None if there is none.
        manifests: a Parquet file with the rows of the view `manifests`; None if there is none.
        batches: one with the rows of the view `batches`; None if there is none, or no batch.
    """

    log: str
    first: Int
    end: Int
    sealed: Bounds | None = None
    event_times: Bounds | None = None
    kafka_times: Bounds | None = None
    first_offset: Int = 0
    next_offset: Int = 0
    events: Int = 0
    quarantined: Int = 0
    stored: Int = 0
    inflated: Int = 0
    tables: ObjectRef | None = None
    manifests: ObjectRef | None = None
    batches: ObjectRef | None = None

    def sealed_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether a statement may have been sealed from `since` on and before `until`."""
        return self.sealed is None or _overlaps(self.sealed, since, until, 0)

    def events_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether an event may have a time of its own from `since` on and before `until`."""
        if self.sealed is None:
            return True
        return self.event_times is not None and _overlaps(self.event_times, since, until, EVENT_SLACK)

    def all_sealed_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether it is known that all statements were sealed from `since` on and before `until`."""
        if self.sealed is None:
            return False
        low, high = self.sealed
        return (since is None or low >= microseconds_of(since)) and (until is None or high < microseconds_of(until))


def _overlaps(bounds: Bounds, since: datetime | None, until: datetime | None, slack: int) -> bool:
    low, high = bounds[0] - slack, bounds[1] + slack
    return (since is None or high >= microseconds_of(since)) and (until is None or low < microseconds_of(until))


class SpanMaker:
    """Makes the span of a log's slots `[first, end)` from their statements, taken in order.

    It has times only if the statements are those of all of these slots. A slot that one of them passes over has none.
    """

    def __init__(self, log: str, first: int, end: int) -> None:
        self._next = first
        self._whole = True
        self._made = Span(log=log, first=first, end=end)

    def add(self, statement: Statement) -> None:
        """Add the next statement."""
        made, batches, quarantine = self._made, statement.batches, statement.quarantine
        begin = max(statement.sequence - len(statement.passed_over), made.first)
        self._whole = self._whole and begin == self._next
        self._next = statement.sequence + 1
        times = [microseconds_of(parse_time(text)) for batch in batches for text in (batch.min_time, batch.max_time)]
        kafka = [each for batch in batches if (time := batch.kafka_time) for each in (time.min, time.max)]
        self._made = msgspec.structs.replace(
            made,
            sealed=_widened(made.sealed, [microseconds_of(parse_time(statement.sealed_at))]),
            event_times=_widened(made.event_times, times),
            kafka_times=_widened(made.kafka_times, kafka),
            first_offset=statement.first_offset if made.sealed is None else made.first_offset,
            next_offset=statement.next_offset,
            events=made.events + sum(batch.events for batch in batches),
            quarantined=made.quarantined + (quarantine.records if quarantine else 0),
            stored=made.stored + sum(ref.size for ref in (statement.segment, quarantine) if ref),
            inflated=made.inflated + sum(batch.inflated for batch in batches),
        )

    def span(self) -> Span:
        """Return the span, without tables."""
        made = self._made
        whole = self._whole and self._next == made.end
        return made if whole else Span(log=made.log, first=made.first, end=made.end)


def _widened(bounds: Bounds | None, values: Sequence[int]) -> Bounds | None:
    values = [*(bounds or ()), *values]
    return (min(values), max(values)) if values else None


class _Head(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: Literal["custody/time-index/1"]
    archive: str


_head: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)
_span: msgspec.json.Decoder[Span] = msgspec.json.Decoder(Span)


@dataclass(frozen=True, slots=True)
class Part:
    """An object of the index: its reference, and its spans."""

    ref: ObjectRef
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class TimeIndex:
    """The index, as far as it could be read.

    Attributes:
        parts: its objects, the oldest first.
        problems: why some of it could not be read; what it covered is read statement by statement.
        audit: the audit that refers to it; None if there is none.
        missing: the problems of objects that are not there, as in a copy of an archive without its `reports/`.
    """

    parts: tuple[Part, ...] = ()
    problems: tuple[str, ...] = ()
    audit: int | None = None
    missing: frozenset[str] = frozenset()

    @cached_property
    def logs(self) -> dict[str, tuple[Span, ...]]:
        """The spans of each log, sorted and disjoint. Of two that overlap, the later one is left out."""
        grouped: dict[str, list[Span]] = {}
        for part in self.parts:
            for span in part.spans:
                grouped.setdefault(span.log, []).append(span)
        return {log: tuple(_disjoint(spans)) for log, spans in grouped.items()}

    def of(self, log: Log) -> Sequence[Span]:
        """Return the spans of a log."""
        return self.logs.get(str(log), ())

    def end(self, log: Log) -> int:
        """Return where the last span of a log ends. Before it there may be `gaps`."""
        spans = self.of(log)
        return spans[-1].end if spans else 0

    def gaps(self, log: Log, first: int, end: int) -> Iterator[range]:
        """Yield the slots in `[first, end)` of a log that are in no span, in order."""
        return self.slots(log, first, end, lambda _: False)

    def slots(self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]) -> Iterator[range]:
        """Yield the slots in `[first, end)` of a log that are in a wanted span or in none, in order.

        Slots of a span, and those between two spans, are ranges of their own.
        """
        for span in self.of(log):
            if span.end <= first:
                continue
            if span.first >= end:
                break
            if first < span.first:
                yield range(first, span.first)
                first = span.first
            stop = min(span.end, end)
            if wanted(span):
                yield range(first, stop)
            first = stop
        if first < end:
            yield range(first, end)

    def overlapping(self, log: Log, since: datetime | None, until: datetime | None) -> Sequence[Span]:
        """Return the spans that may have a statement sealed from `since` on and before `until`."""
        return [span for span in self.of(log) if span.sealed_within(since, until)]

    def with_events(self, log: Log, since: datetime | None, until: datetime | None) -> Sequence[Span]:
        """Return the spans that may have an event whose own time is from `since` on and before `until`."""
        return [span for span in self.of(log) if span.events_within(since, until)]

    def at(self, log: Log, sequence: int) -> Span | None:
        """Return the span that a slot is in."""
        spans = self.of(log)
        index = bisect_left(spans, sequence + 1, key=lambda span: span.end)
        return spans[index] if index < len(spans) and spans[index].first <= sequence else None


def _disjoint(spans: Iterable[Span]) -> Iterator[Span]:
    end = 0
    for span in sorted(spans, key=lambda span: (span.first, span.end)):
        if span.first >= end:
            yield span
            end = span.end


EMPTY = TimeIndex()


def stated(store: Store, audit: Audit) -> Sequence[ObjectRef]:
    """Return which of an audit's objects are parts of the index, the oldest first."""
    listed = listed_objects(store, audit.objects[0]) if len(audit.objects) == 1 else ()
    return [ref for ref in (*audit.objects, *listed) if ref.key.startswith(FOLDER)]


def read(store: Store, audit: Audit) -> TimeIndex:
    """Return the index that an audit refers to. What is missing or damaged is left out.

    Raises:
        StoreError: the store does not answer.
    """
    parts: list[Part] = []
    problems: list[str] = []
    missing: set[str] = set()
    for ref in stated(store, audit):
        try:
            spans = _read_part(store, audit, ref)
        except (FormatError, ObjectMissing, ObjectArchived) as error:
            problems.append(f"a part of the index of audit {audit.sequence} is not used: {ref.key}: {error}")
            missing |= {problems[-1]} if isinstance(error, ObjectMissing) else set()
        else:
            parts.append(Part(ref, tuple(spans)))
    return TimeIndex(tuple(parts), tuple(problems), audit.sequence, frozenset(missing))


def find(store: Store, archive: str | None, trust: Trust) -> TimeIndex:
    """Return the index that the newest audit refers to which read anything. Empty if there is none that counts.

    With keys, the audit counts only if they signed it. Otherwise it must only be of this archive and slot.

    Args:
        store: the archive.
        archive: its id; None if it is not known and not checked.
        trust: the keys.

    Raises:
        StoreError: the store does not answer.
    """
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    try:
        size = find_end(store, AUDITS, judge.stands).head.size
    except CustodyError as error:
        return TimeIndex(problems=(f"the time index is not used, because the newest audit is not known: {error}",))
    audit = newest_reading(store, archive, trust, size, signed=bool(trust.keys))
    return read(store, audit) if audit else EMPTY


def _read_part(store: Store, audit: Audit, ref: ObjectRef) -> Iterator[Span]:
    if ref.size > SIZE_LIMIT:
        raise FormatError(f"it is larger than {SIZE_LIMIT} bytes")
    data = store.read(ref.key, limit=ref.size)
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError("it differs from the signed digest")
    return (span for span in parse(audit.archive, data) if span.end <= _known(audit, span.log))


def _known(audit: Audit, log: str) -> int:
    head = audit.heads.get(log)
    return head.size if head else 0


def encode(archive: str, spans: Iterable[Span]) -> bytes:
    """Return the bytes of an object: gzip of JSON lines, a head and then the spans in order."""
    lines = (msgspec.json.encode(line) for line in (_Head(FORMAT, archive), *sorted(spans, key=_order)))
    return gzip.compress(b"\n".join(lines) + b"\n", mtime=0)


def parse(archive: str, data: bytes) -> list[Span]:
    """Return the spans of an object.

    Raises:
        FormatError: the bytes are no such object, or one of another archive.
    """
    lines = iter(_inflate(data).splitlines())
    try:
        head = _head.decode(next(lines, b""))
        spans = [_span.decode(line) for line in lines]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"it has another form: {error}") from None
    if head.archive != archive:
        raise FormatError("it is of another archive")
    for span in spans:
        _check(span)
    return spans


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        lines = inflater.decompress(data, INFLATED_LIMIT)
    except zlib.error as error:
        raise FormatError(f"it is no gzip: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise FormatError(f"it is more than one whole gzip member of {INFLATED_LIMIT} bytes, or less")
    return lines


def _check(span: Span) -> None:
    if span.first >= span.end or span.first_offset > span.next_offset:
        raise FormatError(f"the span {span.first} to {span.end} of {span.log[:300]!r} is empty or reversed")
    for bounds in (span.sealed, span.event_times, span.kafka_times):
        if bounds and bounds[0] > bounds[1]:
            raise FormatError(f"the span {span.first} to {span.end} of {span.log[:300]!r} has reversed times")
    if span.sealed is None and (span.event_times or span.manifests or span.batches):
        raise FormatError(f"the span {span.first} to {span.end} of {span.log[:300]!r} has no times, but their tables")


def extend(archive: str, audit: int, known: TimeIndex, new: Iterable[Span]) -> tuple[TimeIndex, dict[str, bytes]]:
    """Add spans. Pure.

    Args:
        archive: the archive's id.
        audit: sequence of the audit that adds them.
        known: what the audit before refers to.
        new: the spans. Of two that overlap, readers use the first one only.

    Returns:
        The index to which the audit refers, and the objects that are to be put, by key.
    """
    parts, made = list(known.parts), dict[str, bytes]()
    ordered = sorted(new, key=_order)
    for start in range(0, len(ordered), MOST_SPANS):
        spans = ordered[start : start + MOST_SPANS]
        data = encode(archive, spans)
        size, several = len(data), False
        while parts and parts[-1].ref.size <= max(2 * size, SMALL) and parts[-1].ref.size + size <= MERGED_LIMIT:
            last = parts.pop()
            made.pop(last.ref.key, None)
            spans += last.spans
            size, several = size + last.ref.size, True
        data = encode(archive, spans) if several else data
        digest = sha256(data).hexdigest()
        ref = ObjectRef(f"{FOLDER}{audit:012}-{digest[:16]}.jsonl.gz", len(data), digest)
        parts.append(Part(ref, tuple(sorted(spans, key=_order))))
        made[ref.key] = data
    return TimeIndex(tuple(parts), audit=audit), made


def without(known: TimeIndex, spans: Collection[tuple[str, int]]) -> tuple[TimeIndex, list[Span]]:
    """Return the index without the parts that have one of these spans, and the other spans of these parts. Pure.

    Args:
        known: the index.
        spans: the log and the first sequence of each.
    """
    kept: list[Part] = []
    freed: list[Span] = []
    for part in known.parts:
        left = [span for span in part.spans if (span.log, span.first) not in spans]
        if len(left) == len(part.spans):
            kept.append(part)
        else:
            freed += left
    return TimeIndex(tuple(kept), audit=known.audit), freed


def _order(span: Span) -> tuple[str, int]:
    return span.log, span.first
