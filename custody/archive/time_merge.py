"""Adds spans to the index by time. Merges its newest parts, and gathers its oldest ones, so that each reader has few.

- An audit adds a part with its spans, and merges it with the newest ones as long as they have not more than twice as
  many, as an LSM tree does. So each span is written O(log n) times.
- When there are twice `GATHERED` parts of a level, the older half becomes one part of the level above: a map of them.
  So the map to which the audit refers has O(log n) lines for each log, however old the archive is.
- A span that is made again takes the place of the one before. Its part, and those above it, are written again.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

from custody.archive.time_index import TimeIndex
from custody.archive.time_parts import Part, make_map, make_part, make_upper
from custody.archive.time_spans import Span, order
from custody.format.audit import ObjectRef

MOST_SPANS = 2_048
"""Spans of a part, if the archive has few logs: 0.4 MB, or half a year of four logs."""
EACH_LOG = 16
"""Spans of a part for each log: of many logs a part has a few each, and the map would be as large as the parts."""
MOST_OF_ALL = 131_072
"""Spans of a part, however many logs there are: 31 MB."""
SMALL = 64
"""Parts with no more spans are merged with any newer one: a request costs more than they do."""
GATHERED = 8
"""Parts that become one of the level above. So after seven years, 10,000 logs have a map that readers take."""


def extend(
    archive: str, audit: int, known: TimeIndex, new: Iterable[Span], replaced: Collection[tuple[str, int]] = ()
) -> tuple[ObjectRef | None, dict[str, bytes]]:
    """Add spans. Puts nothing.

    Args:
        archive: the archive's id.
        audit: sequence of the audit that adds them.
        known: what the audit before refers to. Parts of it that turn out to be lost are left out.
        new: the spans. One is left out if a known one, which is not left out, has a statement of it.
        replaced: the log and the first sequence of each known span that is left out, and of each run of a lost part.

    Returns:
        The map to which the audit refers, None if there is none; and the objects that are to be put, by key.

    Raises:
        StoreError: the store does not answer.
    """
    made, change = _Made(archive, f"{audit:012}", known), _Change(known, new, replaced)
    parts = _rebuilt(made, known.parts, change)
    added = change.rest()
    if not added and not made.objects and len(parts) == len(known.parts):
        return known.ref, {}
    _add(made, parts, added)
    _gather(made, parts)
    ref, data = made.map(parts)
    return ref, made.objects | {ref.key: data}


def _rebuilt(made: "_Made", parts: Iterable[Part], change: "_Change") -> list[Part]:
    """Return parts in which some spans are left out, or replaced by new ones, without those that become empty."""
    rebuilt: list[Part] = []
    for part in parts:
        if not change.touches(part):
            rebuilt.append(part)
            continue
        lower, spans = made.known.contents(part)
        if lower:
            inner = _rebuilt(made, lower, change)
            rebuilt += [made.upper(inner)] if inner else []
        else:
            # Of a lost part, new spans are added as others are: there may be more than a part has.
            taken = change.take_within(part) if spans else ()
            kept = [*(span for span in spans if not change.leaves_out(span)), *taken]
            rebuilt += [made.part(kept)] if kept else []
    return rebuilt


def _add(made: "_Made", parts: list[Part], added: Sequence[Span]) -> None:
    """Append parts of new spans, merged with the newest ones."""
    logs = {run.log for part in parts for run in part.runs} | {span.log for span in added}
    most = max(MOST_SPANS, min(EACH_LOG * len(logs), MOST_OF_ALL))
    # If they are several parts, each has the spans of a time, as if each night had been added alone.
    added = sorted(added, key=lambda span: span.sealed or (0, 0))
    for start in range(0, len(added), most):
        spans = added[start : start + most]
        while parts and _may_grow(parts[-1], len(spans), most):
            spans += made.absorb(parts.pop())
        parts.append(made.part(spans))


def _may_grow(newest: Part, many: int, most: int) -> bool:
    return newest.level == 0 and newest.many <= max(2 * many, SMALL) and newest.many + many <= most


def _gather(made: "_Made", parts: list[Part]) -> None:
    """Replace the oldest parts of each level, as many together as `GATHERED`, by one of the level above.

    As many of a level, at least, are left. Levels do not rise along the list, so those of one lie side by side.
    """
    level = 0
    while many := sum(part.level == level for part in parts):
        left = max(many // GATHERED - 1, 0) * GATHERED
        kept: list[Part] = []
        oldest: list[Part] = []
        for part in parts:
            if part.level != level or not left:
                kept.append(part)
                continue
            left -= 1
            oldest.append(part)
            if len(oldest) == GATHERED:
                kept.append(made.upper(oldest))
                oldest = []
        parts[:] = kept
        level += 1


class _Change:
    """New spans, and the known ones that are left out."""

    def __init__(self, known: TimeIndex, new: Iterable[Span], replaced: Iterable[tuple[str, int]]) -> None:
        self._replaced: dict[str, list[int]] = {}
        for log, first in sorted(replaced):
            self._replaced.setdefault(log, []).append(first)
        self._new: dict[str, list[Span]] = {}
        for span in sorted(new, key=order):
            # A part that was lost when the new one was made may be there again.
            if all(map(self.leaves_out, known.between(span.log, span.first, span.end))):
                self._new.setdefault(span.log, []).append(span)

    def touches(self, part: Part) -> bool:
        """Return whether a span of a part is left out."""
        return any(self._begins_within(run.log, run.first, run.end) for run in part.runs)

    def leaves_out(self, span: Span) -> bool:
        """Return whether a known span is left out."""
        return self._begins_within(span.log, span.first, span.first + 1)

    def _begins_within(self, log: str, first: int, end: int) -> bool:
        """Return whether a span that is left out begins in `[first, end)`."""
        sequences = self._replaced.get(log, ())
        at = bisect_left(sequences, first)
        return at < len(sequences) and sequences[at] < end

    def take_within(self, part: Part) -> Sequence[Span]:
        """Take the new spans that lie within the runs of a part, and return them."""
        taken: list[Span] = []
        for run in part.runs:
            spans = self._new.get(run.log, [])
            start, end = (bisect_left(spans, at, key=_first) for at in (run.first, run.end))
            within = [span for span in spans[start:end] if span.end <= run.end]
            spans[start:end] = [span for span in spans[start:end] if span.end > run.end]
            taken += within
        return taken

    def rest(self) -> Sequence[Span]:
        """Return the new spans that were not taken."""
        return [span for spans in self._new.values() for span in spans]


def _first(span: Span) -> int:
    return span.first


class _Made:
    """The objects that an audit makes.

    Attributes:
        known: the index before.
        objects: the bytes of each, by key.
    """

    def __init__(self, archive: str, name: str, known: TimeIndex) -> None:
        self.known = known
        self.objects: dict[str, bytes] = {}
        self._archive, self._name = archive, name
        self._spans: dict[str, Sequence[Span]] = {}

    def part(self, spans: Sequence[Span]) -> Part:
        """Make a part of some spans."""
        spans = sorted(spans, key=order)
        part, self.objects[part.ref.key] = make_part(self._name, self._archive, spans)
        self._spans[part.ref.key] = spans
        return part

    def upper(self, parts: Sequence[Part]) -> Part:
        """Make a part of some parts."""
        part, self.objects[part.ref.key] = make_upper(f"{self._name}-upper", self._archive, parts)
        return part

    def map(self, parts: Sequence[Part]) -> tuple[ObjectRef, bytes]:
        """Make the map of all parts."""
        return make_map(f"{self._name}-map", self._archive, parts)

    def absorb(self, part: Part) -> Sequence[Span]:
        """Return the spans of a part which go into another one. If it was just made, it is not put."""
        self.objects.pop(part.ref.key, None)
        spans = self._spans.get(part.ref.key)
        return self.known.contents(part).spans if spans is None else spans
