"""Adds spans to the index by time. Merges its newest parts, and gathers its oldest ones, so that each reader has few.

- An audit adds a part with its spans, and merges it with the newest ones as long as they have not more than twice as
  many, as an LSM tree does. So each span is written O(log n) times.
- When there are twice `GATHERED` parts of a level, the older half becomes one part of the level above: a map of them.
  So the map to which the audit refers has O(log n) lines for each log, however old the archive is.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence

from custody.archive.time_index import TimeIndex
from custody.archive.time_parts import Contents, Part, make_map, make_part, make_upper
from custody.archive.time_spans import Span, order

MOST_SPANS = 2_048
"""Spans of a part, if the archive has few logs: 0.4 MB, or half a year of four logs."""
EACH_LOG = 16
"""Spans of a part for each log: of many logs a part has a few each, and the map would be as large as the parts."""
MOST_OF_ALL = 131_072
"""Spans of a part, however many logs there are: 31 MB."""
SMALL = 64
"""Parts with no more spans are merged with any newer one: a request costs more than they do."""
GATHERED = 8
"""Parts that become one of the level above."""


def extend(
    archive: str, audit: int, known: TimeIndex, new: Iterable[Span], replaced: Collection[tuple[str, int]] = ()
) -> tuple[TimeIndex, dict[str, bytes]]:
    """Add spans. Puts nothing.

    Args:
        archive: the archive's id.
        audit: sequence of the audit that adds them.
        known: what the audit before refers to. Parts of it that turn out to be lost are left out.
        new: the spans. Of two that overlap, readers use the first one only.
        replaced: the log and the first sequence of each known span that is left out, and of each run of a lost part.

    Returns:
        The index to which the audit refers, and the objects that are to be put, by key.

    Raises:
        StoreError: the store does not answer.
    """
    parts, freed = _kept(known, known.parts, _by_log(replaced))
    # Of so many that they are several parts, each has those of a time, as if each had been added in its time.
    added = sorted([*freed, *new], key=lambda span: span.sealed or (0, 0))
    if not added and tuple(parts) == known.parts:
        return known, {}
    many_logs = len({run.log for part in parts for run in part.runs} | {span.log for span in added})
    most = max(MOST_SPANS, min(EACH_LOG * many_logs, MOST_OF_ALL))
    made = _Made(archive, f"{audit:012}", known)
    for start in range(0, len(added), most):
        spans = added[start : start + most]
        while parts and _may_grow(parts[-1], len(spans), most):
            spans += made.merged(parts.pop())
        parts.append(made.part(sorted(spans, key=order)))
    _gather(made, parts)
    return made.finish(parts)


def _may_grow(newest: Part, many: int, most: int) -> bool:
    return newest.level == 0 and newest.many <= max(2 * many, SMALL) and newest.many + many <= most


def _gather(made: "_Made", parts: list[Part]) -> None:
    level = 0
    while of_level := [part for part in parts if part.level == level]:
        for start in range(0, len(of_level) - 2 * GATHERED + 1, GATHERED):
            oldest = of_level[start : start + GATHERED]
            parts[parts.index(oldest[0])] = made.upper(oldest)
            for part in oldest[1:]:
                parts.remove(part)
        level += 1


def _by_log(replaced: Iterable[tuple[str, int]]) -> Mapping[str, Sequence[int]]:
    by_log: dict[str, list[int]] = {}
    for log, first in sorted(replaced):
        by_log.setdefault(log, []).append(first)
    return by_log


def _kept(
    known: TimeIndex, parts: Iterable[Part], replaced: Mapping[str, Sequence[int]]
) -> tuple[list[Part], list[Span]]:
    """Return the parts without a span that is replaced, and the other spans of the parts with one."""
    kept: list[Part] = []
    freed: list[Span] = []
    for part in parts:
        if not any(_is_within(replaced.get(run.log, ()), run.first, run.end) for run in part.runs):
            kept.append(part)
            continue
        lower, spans = known.contents(part)
        inner, others = _kept(known, lower, replaced)
        kept += inner
        freed += others
        freed += [span for span in spans if not _is_within(replaced.get(span.log, ()), span.first, span.first + 1)]
    return kept, freed


def _is_within(sequences: Sequence[int], first: int, end: int) -> bool:
    """Return whether one of some sorted sequences is in `[first, end)`."""
    at = bisect_left(sequences, first)
    return at < len(sequences) and sequences[at] < end


class _Made:
    """The objects that an audit makes."""

    def __init__(self, archive: str, name: str, known: TimeIndex) -> None:
        self._archive, self._name, self._known = archive, name, known
        self._objects: dict[str, bytes] = {}
        self._contents: dict[str, Contents] = {}

    def part(self, spans: Sequence[Span]) -> Part:
        """Make a part of some spans."""
        return self._keep(*make_part(self._name, self._archive, spans), Contents(spans=spans))

    def upper(self, parts: Sequence[Part]) -> Part:
        """Make a part of some parts."""
        return self._keep(*make_upper(f"{self._name}-upper", self._archive, parts), Contents(lower=parts))

    def _keep(self, part: Part, data: bytes, contents: Contents) -> Part:
        self._objects[part.ref.key], self._contents[part.ref.key] = data, contents
        return part

    def merged(self, part: Part) -> Sequence[Span]:
        """Return the spans of a part that becomes one of another, so it is not put."""
        spans = self.contents(part).spans
        self._objects.pop(part.ref.key, None)
        return spans

    def contents(self, part: Part) -> Contents:
        """Return what a part has, whoever made it."""
        made = self._contents.get(part.ref.key)
        return self._known.contents(part) if made is None else made

    def finish(self, parts: Sequence[Part]) -> tuple[TimeIndex, dict[str, bytes]]:
        """Make the map, and return the index with all objects that are to be put."""
        ref, data = make_map(f"{self._name}-map", self._archive, parts)
        return TimeIndex(parts, self.contents, ref), self._objects | {ref.key: data}
