"""The index of an archive by time: which statements were sealed when, and when their events and records are from.

An audit makes it while it reads statements (`tasks.audit.time_index`), and refers to it by its SHA-256. It is derived
from the archive, and no evidence. `custody audit --full` makes it anew. Rules:

- A span is of consecutive statements of a log. The spans of a log are sorted and disjoint. What lies in no span is
  read statement by statement (`gaps`). So what is missing, damaged or of another archive costs time, and hides nothing.
- A span whose statements could not all be read has no times. It overlaps every time.
- Spans are kept in parts: objects that are merged as in an LSM tree. An audit adds a part with its spans, and merges it
  with the newest ones as long as they have not more than twice as many. So each span is written O(log n) times.
- A part has a bounded number of spans. The map, to which the audit refers, has the runs of each part: adjacent spans of
  a log as one. So a reader gets the map and the few parts that its time needs, however old the archive is.
- No run goes beyond the head that the audit signed for its log.

With keys, an index counts only if a trusted key signed the audit that refers to it. What that key, or a fault, made
wrong is found by the audits that read the same statements again.
"""

import gzip
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from threading import Lock
from typing import Literal, TypeVar

import msgspec

from custody.archive.audit_findings import listed_objects
from custody.archive.forms import AUDITS
from custody.archive.reader import find_end
from custody.archive.readings import newest_reading
from custody.archive.time_spans import Span, check, order, runs_of
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout, limits
from custody.format.audit import Audit, ObjectRef
from custody.format.envelope import Int
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store

FORMAT: Literal["custody/time-index/1"] = "custody/time-index/1"
MAP_FORMAT: Literal["custody/time-index-map/1"] = "custody/time-index-map/1"
FOLDER = "reports/index/"
SIZE_LIMIT = 64 * limits.MIB
INFLATED_LIMIT = 512 * limits.MIB
MOST_SPANS = 2_048
"""Spans of a part, if the archive has few logs: 0.4 MB, or half a year of four logs."""
_EACH_LOG = 64
"""Spans of a part for each log: of many logs a part has a few each, and the map would be as large as the parts."""
SMALL = 64
"""Parts with no more spans are merged with any newer one: a request costs more than they do."""


class Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A part of the index, as a line of the map.

    Attributes:
        ref: the object with its spans.
        many: how many it has.
        runs: they, adjacent ones of a log as one.
    """

    ref: ObjectRef
    many: Int
    runs: list[Span]


Spans = Callable[[Part], Sequence[Span]]
"""Returns the spans of a part. Raises FormatError, ObjectMissing or ObjectArchived if they cannot be had."""


class Contradiction(FormatError):
    """What was signed contradicts itself."""


class TimeIndex:
    """The index. Its parts are read when they are needed.

    Attributes:
        ref: the map; None if there is none.
        parts: its parts, the oldest first.
        problems: why some of it could not be read so far; what it covered is read statement by statement.
        missing: those of objects that are not there, as in a copy of an archive without its `reports/`.
        contradictions: those that only who signed the index can have made.
    """

    def __init__(self, parts: Sequence[Part], spans: Spans, ref: ObjectRef | None = None) -> None:
        self.parts, self.ref = tuple(parts), ref
        self.problems: list[str] = []
        self.missing: set[str] = set()
        self.contradictions: set[str] = set()
        self._read = spans
        self._spans: dict[str, Sequence[Span]] = {}
        self._grouped: dict[str, dict[str, list[Span]]] = {}
        self._lost: set[str] = set()
        self._lock = Lock()
        """Threads may share the index. A part is read once, by the first that needs it."""
        self._runs: dict[str, list[tuple[Span, Part]]] = {}
        for part in self.parts:
            for run in part.runs:
                self._runs.setdefault(run.log, []).append((run, part))
        for name, runs in self._runs.items():
            self._runs[name] = list(_disjoint(runs))

    def end(self, log: Log) -> int:
        """Return where the last span of a log ends. Before it there may be `gaps`."""
        runs = self._runs.get(str(log))
        return runs[-1][0].end if runs else 0

    def ranges(
        self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]
    ) -> Iterator[tuple[range, Span | None]]:
        """Yield the slots `[first, end)` of a log in order, with their span: None for those in none, or of a lost part.

        Spans of a run that is not wanted as a whole are not read: the run stands for them.

        Raises:
            StoreError: the store does not answer.
        """
        for slots, span, part in self._walk(log, first, end, wanted):
            yield slots, None if part is not None and self.is_lost(part) else span

    def slots(self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]) -> Iterator[range]:
        """Yield the slots in `[first, end)` of a log in order that are in a wanted span, in none, or of a lost part."""
        for slots, span in self.ranges(log, first, end, wanted):
            if span is None or wanted(span):
                yield slots

    def gaps(self, log: Log, first: int, end: int) -> Iterator[range]:
        """Yield the slots in `[first, end)` of a log that are in no span, in order: not those of a lost part either."""
        return (slots for slots, _, part in self._walk(log, first, end, lambda _: False) if part is None)

    def overlapping(self, log: Log, since: datetime | None, until: datetime | None) -> Sequence[Span]:
        """Return the spans that may have a statement sealed from `since` on and before `until`.

        A part that turns out to be lost is one span without times. Raises as `ranges`.
        """
        return self._chosen(log, 0, self.end(log), lambda span: span.sealed_within(since, until))

    def with_events(self, log: Log, since: datetime | None, until: datetime | None) -> Sequence[Span]:
        """Return the spans that may have an event whose own time is from `since` on and before `until`."""
        return self._chosen(log, 0, self.end(log), lambda span: span.events_within(since, until))

    def of(self, log: Log) -> Sequence[Span]:
        """Return all spans of a log. Reads all parts that have some."""
        return self._chosen(log, 0, self.end(log), lambda _: True)

    def runs(self, log: Log) -> Sequence[tuple[Span, Part]]:
        """Return the runs of a log in order, each with its part. Reads none: `within` does."""
        return self._runs.get(str(log), ())

    def within(self, run: Span, part: Part) -> Sequence[Span]:
        """Return the spans of a run of `runs`; the run as one span without times if the part is lost.

        Raises:
            StoreError: the store does not answer.
        """
        return self._of_run(run, part, lambda _: True)

    def between(self, log: Log, first: int, end: int) -> Sequence[Span]:
        """Return the spans of a log that have a slot in `[first, end)`. Those of lost parts are left out."""
        return [span for _, span in self.ranges(log, first, end, lambda _: True) if span is not None]

    def lost(self, log: Log, first: int, end: int) -> Sequence[Span]:
        """Return the runs of parts that could not be read and have a slot in `[first, end)` of a log."""
        runs = self._runs.get(str(log), ())
        return [run for run, part in runs if run.first < end and run.end > first and self.is_lost(part)]

    def spans(self, part: Part) -> Sequence[Span] | None:
        """Return the spans of a part; None if it is lost, which is then one of the `problems`."""
        key = part.ref.key
        with self._lock:
            if key not in self._spans and key not in self._lost:
                try:
                    self._spans[key] = self._read(part)
                except (FormatError, ObjectMissing, ObjectArchived) as error:
                    self._lost.add(key)
                    self.lose(key, error)
            return self._spans.get(key)

    def is_lost(self, part: Part) -> bool:
        """Return whether a part was to be read, and could not be."""
        return part.ref.key in self._lost

    def lose(self, key: str, error: CustodyError) -> None:
        """Note that an object cannot be used."""
        self.problems.append(f"a part of the index by time is not used: {key}: {error}")
        if isinstance(error, ObjectMissing):
            self.missing.add(self.problems[-1])
        if isinstance(error, Contradiction):
            self.contradictions.add(self.problems[-1])

    def _chosen(self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]) -> list[Span]:
        return [span for _, span, _ in self._walk(log, first, end, wanted) if span is not None and wanted(span)]

    def _walk(
        self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]
    ) -> Iterator[tuple[range, Span | None, Part | None]]:
        for run, part in self._runs.get(str(log), ()):
            if run.end <= first:
                continue
            if run.first >= end:
                break
            if first < run.first:
                yield range(first, run.first), None, None
                first = run.first
            for span in self._of_run(run, part, wanted):
                if span.end > first and span.first < end:
                    yield range(first, min(span.end, end)), span, part
                    first = min(span.end, end)
        if first < end:
            yield range(first, end), None, None

    def _of_run(self, run: Span, part: Part, wanted: Callable[[Span], bool]) -> Sequence[Span]:
        lost = Span(log=run.log, first=run.first, end=run.end)
        if not wanted(run):
            return [lost if self.is_lost(part) else run]
        spans = self.spans(part)
        if spans is None:
            return [lost]
        key = part.ref.key
        grouped = self._grouped.get(key)
        if grouped is None:
            grouped = {}
            for span in spans:
                grouped.setdefault(span.log, []).append(span)
            # Whole, or not there.
            self._grouped[key] = grouped
        chosen: list[Span] = []
        reached = run.first
        for span in grouped.get(run.log, ()):
            # Spans that overlap these are of another run of the part.
            if span.first == reached and span.end <= run.end:
                chosen.append(span)
                reached = span.end
        return chosen


def _disjoint(runs: Iterable[tuple[Span, Part]]) -> Iterator[tuple[Span, Part]]:
    """Yield runs in order. Of two that overlap, the later one is left out."""
    end = 0
    for run, part in sorted(runs, key=lambda each: (each[0].first, each[0].end)):
        if run.first >= end:
            yield run, part
            end = run.end


def _none(part: Part) -> Sequence[Span]:
    raise FormatError(f"there is no {part.ref.key}")


EMPTY = TimeIndex((), _none)


def read(store: Store, audit: Audit) -> TimeIndex:
    """Return the index that an audit refers to. What is missing or damaged is left out.

    Raises:
        StoreError: the store does not answer.
    """
    listed = listed_objects(store, audit.objects[0]) if len(audit.objects) == 1 else ()
    ref = next((ref for ref in (*audit.objects, *listed) if ref.key.startswith(FOLDER)), None)
    if ref is None:
        return EMPTY

    def spans(part: Part) -> Sequence[Span]:
        read = parse(_signed(store, part.ref), audit.archive, FORMAT, _span)
        for span in read:
            check(span)
        if len(read) != part.many or runs_of(read) != part.runs:
            raise Contradiction("its spans are not those of the map")
        return read

    try:
        parts = parse(_signed(store, ref), audit.archive, MAP_FORMAT, _part)
        _check_runs(audit, parts)
    except (FormatError, ObjectMissing, ObjectArchived) as error:
        index = TimeIndex((), _none)
        index.lose(ref.key, error)
        return index
    return TimeIndex(parts, spans, ref)


def _check_runs(audit: Audit, parts: Sequence[Part]) -> None:
    for run in (run for part in parts for run in part.runs):
        check(run)
        head = audit.heads.get(run.log)
        if head is None or run.end > head.size:
            raise Contradiction(f"it goes beyond the head of {run.log[:300]!r} that the audit signed")


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
    except FormatError as error:
        index = TimeIndex((), _none)
        index.lose(layout.AUDITS, error)
        return index
    audit = newest_reading(store, archive, trust, size, signed=bool(trust.keys))
    return read(store, audit) if audit else EMPTY


class _Head(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: str
    archive: str


_head: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)
_span: msgspec.json.Decoder[Span] = msgspec.json.Decoder(Span)
_part: msgspec.json.Decoder[Part] = msgspec.json.Decoder(Part)
L = TypeVar("L")


def _signed(store: Store, ref: ObjectRef) -> bytes:
    if ref.size > SIZE_LIMIT:
        raise FormatError(f"it is larger than {SIZE_LIMIT} bytes")
    data = store.read(ref.key, limit=ref.size)
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError("it differs from the signed digest")
    return data


def encode(archive: str, form: str, lines: Iterable[Span | Part]) -> bytes:
    """Return the bytes of an object: gzip of JSON lines, a head and then the lines."""
    encoded = map(msgspec.json.encode, (_Head(form, archive), *lines))
    return gzip.compress(b"\n".join(encoded) + b"\n", compresslevel=6, mtime=0)


def parse(data: bytes, archive: str, form: str, decoder: "msgspec.json.Decoder[L]") -> list[L]:
    """Return the lines of an object behind its head.

    Raises:
        FormatError: the bytes are no such object, or one of another archive.
    """
    lines = iter(_inflate(data).splitlines())
    try:
        head = _head.decode(next(lines, b""))
        parsed = [decoder.decode(line) for line in lines]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"it has another form: {error}") from None
    if (head.format, head.archive) != (form, archive):
        raise FormatError("it is of another format, or of another archive")
    return parsed


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        lines = inflater.decompress(data, INFLATED_LIMIT)
    except zlib.error as error:
        raise FormatError(f"it is no gzip: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise FormatError(f"it is more than one whole gzip member of {INFLATED_LIMIT} bytes, or less")
    return lines


def extend(
    archive: str, audit: int, known: TimeIndex, new: Iterable[Span], replaced: Collection[tuple[str, int]] = ()
) -> tuple[TimeIndex, dict[str, bytes]]:
    """Add spans. Puts nothing.

    Args:
        archive: the archive's id.
        audit: sequence of the audit that adds them.
        known: what the audit before refers to. Lost parts are left out.
        new: the spans. Of two that overlap, readers use the first one only.
        replaced: the log and the first sequence of each known span that is left out.

    Returns:
        The index to which the audit refers, and the objects that are to be put, by key.

    Raises:
        StoreError: the store does not answer.
    """
    parts, freed = _kept(known, replaced)
    ordered = sorted([*freed, *new], key=order)
    if not ordered and tuple(parts) == known.parts:
        return known, {}
    most = max(MOST_SPANS, _EACH_LOG * len({run.log for part in parts for run in part.runs} | {s.log for s in ordered}))
    made: dict[str, tuple[bytes, Sequence[Span]]] = {}
    for start in range(0, len(ordered), most):
        spans = ordered[start : start + most]
        while parts and parts[-1].many <= max(2 * len(spans), SMALL) and parts[-1].many + len(spans) <= most:
            last = parts.pop()
            before = made.pop(last.ref.key)[1] if last.ref.key in made else known.spans(last)
            spans += before or ()
        spans.sort(key=order)
        data = encode(archive, FORMAT, spans)
        ref = _reference(f"{audit:012}", data)
        parts.append(Part(ref, len(spans), runs_of(spans)))
        made[ref.key] = data, spans
    data = encode(archive, MAP_FORMAT, parts)
    ref = _reference(f"{audit:012}-map", data)

    def spans_of(part: Part) -> Sequence[Span]:
        if part.ref.key in made:
            return made[part.ref.key][1]
        spans = known.spans(part)
        return _none(part) if spans is None else spans

    return TimeIndex(parts, spans_of, ref), {key: data for key, (data, _) in made.items()} | {ref.key: data}


def _kept(known: TimeIndex, replaced: Collection[tuple[str, int]]) -> tuple[list[Part], list[Span]]:
    """Return the parts without a span that is replaced, and the other spans of the parts with one."""
    kept: list[Part] = []
    freed: list[Span] = []
    for part in known.parts:
        if known.is_lost(part):
            continue
        runs = ((run.log, run.first, run.end) for run in part.runs)
        if not any(log == name and first <= sequence < end for log, first, end in runs for name, sequence in replaced):
            kept.append(part)
        else:
            freed += [span for span in known.spans(part) or () if (span.log, span.first) not in replaced]
    return kept, freed


def _reference(name: str, data: bytes) -> ObjectRef:
    digest = sha256(data).hexdigest()
    return ObjectRef(f"{FOLDER}{name}-{digest[:16]}.jsonl.gz", len(data), digest)
