"""The index of an archive by time: which statements were sealed when, and when their events and records are from.

An audit makes it while it reads statements (`tasks.audit.time_index`), and refers to it by its SHA-256. It is derived
from the archive, and no evidence. `custody audit --full` makes it anew. Rules:

- A span is of consecutive statements of a log. The spans of a log are sorted and disjoint. What lies in no span is
  read statement by statement (`gaps`). So what is missing, damaged or of another archive costs time, and hides nothing.
- A span whose statements could not all be read has no times. It overlaps every time.
- Spans are in parts (`time_parts`), which audits merge (`time_merge`). A part has a bounded number of spans. The audit
  refers to the map, which has the runs of each part: adjacent spans of a log as one. Old parts are gathered in maps of
  their own. So a reader gets the map and the few objects below it that its time needs, however old the archive is.
- No run goes beyond the head that the audit signed for its log.

With keys, an index counts only if a trusted key signed the audit that refers to it. What that key, or a fault, made
wrong is found by the audits that read the same statements again.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Lock

from custody.archive.audit_findings import listed_objects
from custody.archive.forms import AUDITS
from custody.archive.reader import find_end
from custody.archive.readings import newest_reading
from custody.archive.time_parts import FOLDER, Contents, Part, Run, read_map, read_part
from custody.archive.time_spans import Contradiction, Span, order
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout
from custody.format.audit import Audit, ObjectRef
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store


class TimeIndex:
    """The index. Its parts are read when they are needed.

    Attributes:
        ref: the map; None if there is none.
        parts: its parts, the oldest first.
        problems: why some of it could not be read so far; what it covered is read statement by statement.
        missing: those of objects that are not there, as in a copy of an archive without its `reports/`.
        contradictions: those that only who signed the index can have made.
    """

    def __init__(self, parts: Sequence[Part], read: Callable[[Part], Contents], ref: ObjectRef | None = None) -> None:
        """Set up.

        Args:
            parts: what the map has.
            read: returns what a part has. Raises FormatError, ObjectMissing or ObjectArchived if it cannot be had.
            ref: the map.
        """
        self.parts, self.ref = tuple(parts), ref
        self.problems: list[str] = []
        self.missing: set[str] = set()
        self.contradictions: set[str] = set()
        self._read = read
        self._contents: dict[str, tuple[Part, Contents]] = {}
        self._inside: dict[str, Mapping[str, Sequence[Run]]] = {}
        self._lost: set[str] = set()
        self._lock = Lock()
        """Threads may share the index. A part is read once, by the first that needs it."""
        self._runs = {log: list(_disjoint(runs)) for log, runs in _by_log(Contents(lower=parts)).items()}

    def end(self, log: Log) -> int:
        """Return where the last span of a log ends. Before it there may be `gaps`."""
        runs = self.runs(log)
        return runs[-1].span.end if runs else 0

    def runs(self, log: Log | str) -> Sequence[Run]:
        """Return the runs of a log in order, as the map has them. Reads no part: `inside` does."""
        return self._runs.get(str(log), ())

    def inside(self, run: Run) -> Sequence[Run]:
        """Return what a run stands for, in order: runs of lower parts, or spans; of a span, the span itself.

        They have all its statements. Those that its part does not have, or all if it is lost, are a lost span.

        Raises:
            StoreError: the store does not answer.
        """
        if run.part is None:
            return [run]
        log, reached, end = run.span.log, run.span.first, run.span.end
        chosen: list[Run] = []
        known = self._opened(run.part).get(log, ())
        for at in range(bisect_left(known, reached, key=_first), len(known)):
            each = known[at]
            if each.span.first >= end:
                break
            # Those that overlap these are of another run of the part.
            if each.span.first == reached and each.span.end <= end:
                chosen.append(each)
                reached = each.span.end
        if reached < end:
            chosen.append(Run(Span(log=log, first=reached, end=end), lost=True))
        return chosen

    def ranges(
        self, log: Log | str, first: int, end: int, wanted: Callable[[Span], bool]
    ) -> Iterator[tuple[range, Span | None]]:
        """Yield the slots `[first, end)` of a log in order, with their span: None for those in none, or of a lost part.

        Spans of a run that is not wanted as a whole are not read: the run stands for them.

        Raises:
            StoreError: the store does not answer.
        """
        for slots, run in self._walk(log, first, end, wanted):
            yield slots, run.span if run and not run.lost else None

    def gaps(self, log: Log, first: int, end: int) -> Iterator[range]:
        """Yield the slots in `[first, end)` of a log that are in no run, in order. Reads no part."""
        return (slots for slots, run in self._walk(log, first, end, lambda _: False) if run is None)

    def overlapping(self, log: Log, since: datetime | None, until: datetime | None) -> Sequence[Span]:
        """Return the spans that may have a statement sealed from `since` on and before `until`.

        A part that turns out to be lost is one span without times. Raises as `ranges`.
        """
        return self._chosen(log, 0, self.end(log), lambda span: span.sealed_within(since, until))

    def between(self, log: Log | str, first: int, end: int) -> Sequence[Span]:
        """Return the spans of a log that have a slot in `[first, end)`. Those of lost parts are left out."""
        return [span for _, span in self.ranges(log, first, end, lambda _: True) if span is not None]

    def lost(self, log: Log, first: int, end: int) -> Sequence[Span]:
        """Return the runs of parts that cannot be read and have a slot in `[first, end)` of a log."""
        return [run.span for _, run in self._walk(log, first, end, lambda _: True) if run and run.lost]

    def contents(self, part: Part) -> Contents:
        """Return what a part has: nothing if it is lost, which is then one of the `problems`."""
        key = part.ref.key
        with self._lock:
            if key not in self._contents:
                self._contents[key] = part, self._read_or_lose(part)
            compared, contents = self._contents[key]
            if compared is not part and compared != part:
                # Its object was compared with another line than this one.
                self._lose(key, Contradiction("two lines of maps say different things of it"))
                return Contents()
            return contents

    def _read_or_lose(self, part: Part) -> Contents:
        try:
            return self._read(part)
        except (FormatError, ObjectMissing, ObjectArchived) as error:
            self._lose(part.ref.key, error)
            return Contents()

    def _lose(self, key: str, error: CustodyError) -> None:
        self._lost.add(key)
        self.note_problem(key, error)

    def note_problem(self, key: str, error: CustodyError) -> None:
        """Note that an object cannot be used."""
        problem = f"a part of the index by time is not used: {key}: {error}"
        if problem in self.contradictions:
            return
        self.problems.append(problem)
        if isinstance(error, ObjectMissing):
            self.missing.add(problem)
        if isinstance(error, Contradiction):
            self.contradictions.add(problem)

    def _chosen(self, log: Log, first: int, end: int, wanted: Callable[[Span], bool]) -> list[Span]:
        return [run.span for _, run in self._walk(log, first, end, wanted) if run is not None and wanted(run.span)]

    def _walk(
        self, log: Log | str, first: int, end: int, wanted: Callable[[Span], bool]
    ) -> Iterator[tuple[range, Run | None]]:
        """Yield the slots `[first, end)` in order, each with the run or span that has them: None if there is none."""
        for run in self._within(self.runs(log), first, end, wanted):
            if first < run.span.first:
                yield range(first, run.span.first), None
                first = run.span.first
            yield range(first, min(run.span.end, end)), run
            first = min(run.span.end, end)
        if first < end:
            yield range(first, end), None

    def _within(self, runs: Iterable[Run], first: int, end: int, wanted: Callable[[Span], bool]) -> Iterator[Run]:
        """Yield what has a slot in `[first, end)`, in order: spans, and runs that are neither wanted nor lost."""
        for run in runs:
            if run.span.end <= first:
                continue
            if run.span.first >= end:
                return
            if run.part is None or not (wanted(run.span) or run.part.ref.key in self._lost):
                yield run
            else:
                yield from self._within(self.inside(run), first, end, wanted)

    def _opened(self, part: Part) -> Mapping[str, Sequence[Run]]:
        """Return what a part has of each log: nothing if it is lost."""
        contents, key = self.contents(part), part.ref.key
        if not any(contents):
            return {}
        if key not in self._inside:
            # Assigned when it is complete, because other threads look at it.
            self._inside[key] = _by_log(contents)
        return self._inside[key]


def _by_log(contents: Contents) -> Mapping[str, Sequence[Run]]:
    """Return the runs of each log in order: spans, or runs of lower parts."""
    runs = [Run(span, part) for part in contents.lower for span in part.runs]
    by_log: dict[str, list[Run]] = {}
    for run in sorted([*runs, *map(Run, contents.spans)], key=_order):
        by_log.setdefault(run.span.log, []).append(run)
    return by_log


def _first(run: Run) -> int:
    return run.span.first


def _order(run: Run) -> tuple[str, int]:
    return order(run.span)


def _disjoint(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield runs in order. Of two that overlap, the later one is left out."""
    end = 0
    for run in sorted(runs, key=lambda each: (each.span.first, each.span.end)):
        if run.span.first >= end:
            yield run
            end = run.span.end


def _none(part: Part) -> Contents:
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
    try:
        parts = read_map(store, audit.archive, ref)
        _check_heads(audit, parts)
    except (FormatError, ObjectMissing, ObjectArchived) as error:
        index = TimeIndex((), _none)
        index.note_problem(ref.key, error)
        return index
    return TimeIndex(parts, lambda part: read_part(store, audit.archive, part), ref)


def _check_heads(audit: Audit, parts: Sequence[Part]) -> None:
    for run in (run for part in parts for run in part.runs):
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
        index.note_problem(layout.AUDITS, error)
        return index
    audit = newest_reading(store, archive, trust, size, signed=bool(trust.keys))
    return read(store, audit) if audit else EMPTY
