"""Adds what an audit has read of sources to what the audits before it knew. Pure.

Rules:
- A source begins with 1. If some statements were never looked at, a source that was first seen then begins with the
  lowest number that was seen.
- A number above the highest one leaves a hole. A number in a hole closes it, or cuts it in two, whatever log it is in.
  Any other number is a repeat.
- An audit that left out numbers of a source, or may have, adds no hole and no repeat of it. Nor does the next one with
  its numbers: those between may be what was left out. Holes from before stay. A number of such a hole that comes late
  is taken for a repeat then.
- A source has at most `HOLES` holes. What is missing beyond them is only counted: such a count is about right, and the
  source's repeats are not named.
- A source without a hole is forgotten: a week after its last event if it stopped, else after 90 days. If there are more
  than `SOURCES`, those are forgotten whose last event is the oldest.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from custody.archive.sources import Hole, Source, Sources, Where
from custody.format.times import format_time, shift
from tasks.audit.emitters import Seen
from tasks.audit.numbers import Numbers

SOURCES = 50_000
HOLES = 1_000
PLACES = 64
"""Parts of logs in which a source's earlier numbers are looked for."""
REPEATS = 1_000
"""Repeated numbers of an audit that are looked at."""
LEARNING = timedelta(days=7)
"""After statements were left out: how long a new source may be one that began in them."""
_COMPLETE, _SILENT = timedelta(days=7), timedelta(days=90)


@dataclass(slots=True)
class Repeats:
    """Repeats of a source: how many, and the first of their numbers."""

    many: int = 0
    numbers: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Advanced:
    """What was added.

    Attributes:
        known: all sources.
        changed: names of the sources of which something was read.
        repeats: the repeats that were read, by source.
    """

    known: Sources
    changed: list[str] = field(default_factory=list)
    repeats: dict[str, Repeats] = field(default_factory=dict)


def advance(known: Sources, seen: Iterable[tuple[str, Seen]], audit: int, unnamed: bool = False) -> Advanced:
    """Add what pieces have of sources, each with its log.

    Args:
        known: all sources.
        seen: what the pieces have.
        audit: the audit's sequence.
        unnamed: whether sources were left out without their names, which may be any.
    """
    made = Advanced(known)
    grouped: defaultdict[str, list[tuple[str, Seen]]] = defaultdict(list)
    for log, each in seen:
        grouped[each.source].append((log, each))
    room = REPEATS
    for name in sorted(grouped):
        sure = not unnamed and not any(each.partial for _, each in grouped[name])
        repeats = _advance(known, name, grouped[name], audit, room, sure=sure)
        made.changed.append(name)
        if repeats.many:
            made.repeats[name] = repeats
            room -= len(repeats.numbers)
    if unnamed:
        for source in known.sources.values():
            source.partial = True
    return made


def forget(known: Sources, now: datetime) -> int:
    """Forget sources by the rules, and return how many had to go for others."""
    complete, silent = (format_time(shift(now, -age)) for age in (_COMPLETE, _SILENT))
    for name, source in list(known.sources.items()):
        source.places = _fewer(source.places)
        if not source.missing and source.sealed_at < (complete if source.stopped else silent):
            del known.sources[name]
    excess = max(len(known.sources) - SOURCES, 0)
    if excess:
        # Those that lack nothing go first.
        order = sorted(known.sources.values(), key=lambda source: (source.missing > 0, source.sealed_at))
        for source in order[:excess]:
            del known.sources[source.name]
        known.known_from = format_time(shift(now, LEARNING))
    return excess


def _advance(
    known: Sources, name: str, seen: Sequence[tuple[str, Seen]], audit: int, room: int, *, sure: bool
) -> Repeats:
    repeats, union = Repeats(), Numbers()
    for _, each in seen:
        _note(repeats, ((number, number) for number in each.repeats), room)
        repeats.many += each.repeated - len(each.repeats)
        _note(repeats, union.merge(Numbers(each.numbers)), room)
    runs = list(union.runs())
    source = known.sources.get(name)
    if source is None:
        first_sealed = min(each.first_sealed for _, each in seen)
        is_known = known.known_from is None or first_sealed >= known.known_from
        base = 1 if is_known or not runs else runs[0][0]
        source = known.sources[name] = Source(name=name, base=base, last=base - 1)
    source.places += [
        Where(log, part.first, part.last, part.low, part.high, part.sealed_at)
        for log, each in seen
        for part in each.spans
    ]
    source.sealed_at = max(
        source.sealed_at,
        *(each.first_sealed for _, each in seen),
        *(part.sealed_at for _, each in seen for part in each.spans),
    )
    unsure = source.partial or not sure
    for first, last in runs:
        if unsure:
            source.last = max(source.last, first - 1)
            source.base = min(source.base, last + 1)
        there = list(_take(source, first, last, audit))
        if source.unlisted:
            # They may be numbers that were missing, and were only counted.
            source.unlisted = max(0, source.unlisted - sum(end - begin + 1 for begin, end in there))
        elif not unsure:
            _note(repeats, there, room)
    for _, each in seen:
        source.events += each.events
        source.started = each.started or source.started
        source.stopped = each.stopped or source.stopped
    source.partial = not sure
    source.repeats += repeats.many
    return repeats


def _note(repeats: Repeats, runs: Iterable[tuple[int, int]], room: int) -> None:
    for first, last in runs:
        repeats.many += last - first + 1
        left = max(room - len(repeats.numbers), 0)
        repeats.numbers += range(first, min(last + 1, first + left))


def _take(source: Source, first: int, last: int, audit: int) -> Iterator[tuple[int, int]]:
    """Add a run of numbers, and yield the runs of those that the source had before."""
    base, end = source.base, source.last
    if first < base:
        top = min(last, base - 1)
        source.base = first
        if top < base - 1:
            _add_hole(source, Hole(top + 1, base - 1, audit, source.sealed_at))
    if last > end:
        begin = max(first, end + 1)
        source.last = last
        if begin > end + 1:
            _add_hole(source, Hole(end + 1, begin - 1, audit, source.sealed_at))
    first, last = max(first, base), min(last, end)
    if first <= last:
        yield from _close(source, first, last)


def _add_hole(source: Source, hole: Hole) -> None:
    holes = source.holes
    holes.insert(bisect_left(holes, hole.first, key=_first), hole)
    if len(holes) > HOLES:
        source.unlisted += holes.pop().size


def _first(hole: Hole) -> int:
    return hole.first


def _last(hole: Hole) -> int:
    return hole.last


def _close(source: Source, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Take the numbers `first` to `last` out of the holes, and yield the runs of those that were in none."""
    start = end = bisect_left(source.holes, first, key=_last)
    left: list[Hole] = []
    while end < len(source.holes) and source.holes[end].first <= last:
        hole = source.holes[end]
        if hole.first > first:
            yield first, hole.first - 1
        elif hole.first < first:
            left.append(
                msgspec.structs.replace(hole, last=first - 1, before=None, log=None, sequence=None, offset=None)
            )
        if hole.last > last:
            left.append(msgspec.structs.replace(hole, first=last + 1, after=None))
        first = hole.last + 1
        end += 1
    source.holes[start:end] = left
    if first <= last:
        yield first, last


def _fewer(places: list[Where]) -> list[Where]:
    """Return at most `PLACES` of a source's places: the oldest ones of a log are joined, or left out."""
    while len(places) > PLACES:
        oldest, *places = places
        follower = next((place for place in places if place.log == oldest.log), None)
        if follower is not None:
            follower.first, follower.last = min(oldest.first, follower.first), max(oldest.last, follower.last)
            follower.low, follower.high = min(oldest.low, follower.low), max(oldest.high, follower.high)
    return places
