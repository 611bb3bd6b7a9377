"""What an audit says of sources: events that were lost before Kafka, and events that came twice.

What the audits before knew is read from the object that the newest one refers to. An audit adds the numbers of new
statements, looks at the events beside new holes and at those with a repeated number, and hands all on. Without
anything new it reads no event. A full audit begins anew, if it could read everything.

- `source-gap`: numbers that are missing, since a time that is longer ago than `sources.settle`. It is said again by
  each audit of the whole archive until the events arrive, or it is accepted.
- `source-silent`: sources of a service that the settings expect which did not say that they stop, and of which nothing
  was archived for `sources.silent`. No number shows what was lost behind the last one: this is what shows it.
- `source-repeat`: said once, by the audit that reads the repeat.

`custody verify` says nothing of sources: it decodes no more of an event than its type and time, and it would have to
read a whole archive to say anything, which audits do night by night.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from custody.archive import sources as stored
from custody.archive.reader import read_batch, read_manifest
from custody.archive.readings import newest_reading
from custody.archive.sources import Hole, Source, Sources, Where
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, counted
from custody.findings import Acceptances, Finding, Severity, finding
from custody.format.audit import ObjectRef
from custody.format.lines import shorten
from custody.format.offsets import line_offsets, unlined_ranges
from custody.format.sources import service_of
from custody.format.times import format_time, parse_time, shift
from custody.keys.trust import Trust
from custody.store.protocol import Store
from tasks.audit.advance import LEARNING, Advanced, Repeats, advance, forget
from tasks.audit.emitters import moment_of, numbered
from tasks.audit.objects import log_named
from tasks.audit.pieces import PieceResult
from tasks.audit.plan import Plan
from tasks.settings import Settings

_STATEMENTS = 2_000
"""Statements that an audit reads again for the events beside holes, and for repeats."""
_HOLES = 400
"""Holes of an audit whose neighbours are looked at."""
_FINDINGS = 1_000
_SHOWN = 5
_READ_ALL = frozenset({"deferred", "segment-missing", "unreadable"})
"""Findings about events that were not read."""

Key = tuple[str, int]
"""A source, and a number."""


@dataclass(frozen=True, slots=True)
class Account:
    """What an audit says of sources.

    Attributes:
        ref: the object with all that is known.
        findings: what it found.
        counts: numbers for people.
    """

    ref: ObjectRef
    findings: tuple[dict[str, Any], ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Event:
    """Where an event is that has a number."""

    log: str
    sequence: int
    offset: int
    sealed_at: str
    time: str | None
    sha256: str


def account(
    store: Store, settings: Settings, trust: Trust, plan: Plan, results: Sequence[PieceResult], now: datetime
) -> Account:
    """Add what the pieces have of sources, and store it for the next audit.

    Raises:
        StoreError: the archive cannot be written, or does not give what the audit before knew.
    """
    known, problem = _before(store, trust, plan, results, now)
    again = plan.full and _is_anew(results)
    taken = [
        done
        for done in results
        if again or (done.piece.read == "new" and done.piece.end > known.counted.get(done.piece.log, 0))
    ]
    unnamed = any(done.sources_unnamed for done in taken)
    made = advance(known, [(done.piece.log, each) for done in taken for each in done.sources], plan.sequence, unnamed)
    if unnamed:
        # A source may have begun in what was left out.
        known.known_from = max(known.known_from or "", _later(now))
    for done in results:
        known.counted[done.piece.log] = max(known.counted.get(done.piece.log, 0), done.piece.end)
    events = _look(store, plan.archive, trust, made)
    _describe(made, events)
    excess = forget(known, now)
    data = stored.encode(plan.archive, known)
    ref = stored.reference(plan.sequence, data)
    store.create(ref.key, data)
    left_out = sum(done.sources_left_out for done in taken)
    findings = [*problem, *_bounds(settings, excess, left_out, unnamed=unnamed), *_repeats(settings, made, events)]
    counts: dict[str, int] = {}
    if plan.whole:
        # An audit of a part may lack what another log has.
        findings += _gaps(settings, known, now)
        findings += _silent(settings, known, now)
        counts["sources"] = len(known.sources)
    acceptances = Acceptances(trust.accepted)
    return Account(ref, tuple(_accepted(acceptances, each).to_dict() for each in findings), counts)


def _accepted(acceptances: Acceptances, each: Finding) -> Finding:
    acceptance = acceptances.of(each)
    if acceptance is None:
        return each
    accepted = f"by {acceptance.by} at {acceptance.at}: {acceptance.reason}"
    return replace(each, severity=Severity.NOTICE, accepted=accepted)


def _is_anew(results: Sequence[PieceResult]) -> bool:
    """Return whether a full audit counts all anew. If it has no room for all sources, what was known says more."""
    if any(done.sources_left_out for done in results):
        return False
    return not any(each["finding"] in _READ_ALL for done in results for each in done.findings)


def _before(
    store: Store, trust: Trust, plan: Plan, results: Sequence[PieceResult], now: datetime
) -> tuple[Sources, list[Finding]]:
    """Return what the newest audit knew, and the finding if that is lost."""
    if plan.full and _is_anew(results):
        expired = [done.expired_sealed[1] for done in results if done.expired_sealed]
        return Sources({}, _later(parse_time(max(expired))) if expired else None), []
    audit = newest_reading(store, plan.archive, trust, plan.audits)
    if audit is None and not plan.audits:
        return Sources({}), []
    try:
        known = stored.read(store, audit) if audit else None
    except FormatError as error:
        message = (
            f"what audit {audit.sequence if audit else ''} knew of sources is lost: {error}. Gaps that end before now"
            " are not seen. `custody audit --full` finds them again"
        )
        return Sources({}, _later(now)), [finding("source-gap", message, severity=Severity.NOTICE)]
    return known or Sources({}, _later(now)), []


def _later(moment: datetime) -> str:
    return format_time(shift(moment, LEARNING))


def _wanted(made: Advanced) -> Iterator[Key]:
    """Yield the events to look at: those beside new holes, and those with a repeated number."""
    holes = 0
    for name in made.changed:
        source = made.known.sources[name]
        for hole in source.holes:
            beside = [(name, hole.last + 1)] if hole.before is None else []
            beside += [(name, hole.first - 1)] if hole.after is None and hole.first > source.base else []
            holes += bool(beside)
            if holes > _HOLES:
                break
            yield from beside
    for name, repeats in made.repeats.items():
        yield from ((name, number) for number in repeats.numbers)


def _look(store: Store, archive: str, trust: Trust, made: Advanced) -> dict[Key, list[_Event]]:
    """Read the events that are wanted, as far as `_STATEMENTS` statements have them."""
    wanted: set[Key] = set()
    statements: defaultdict[str, set[int]] = defaultdict(set)
    for name, number in _wanted(made):
        places = [place for place in made.known.sources[name].places if place.low <= number <= place.high]
        room = _STATEMENTS - sum(map(len, statements.values()))
        if sum(place.last - place.first + 1 for place in places) <= room:
            wanted.add((name, number))
            for place in places:
                statements[place.log].update(range(place.first, place.last + 1))
    events: dict[Key, list[_Event]] = {}
    holds = standing(store, archive, trust)
    for log in sorted(statements):
        holds_in_log = holds(log_named(log))
        for sequence in sorted(statements[log]):
            for key, event in _events(store, log, sequence, holds_in_log, wanted):
                events.setdefault(key, []).append(event)
    return events


def _events(store: Store, log: str, sequence: int, holds: Any, wanted: set[Key]) -> Iterator[tuple[Key, _Event]]:
    try:
        statement = read_manifest(store, log_named(log), sequence, holds).statement
        if statement.segment is None:
            return
        for batch in statement.batches:
            payload, _ = read_batch(store, statement.segment.key, batch)
            rows = [row for row in numbered(payload) if row[1:3] in wanted]
            if not rows:
                continue
            lines = payload.split(b"\n")
            offsets = list(zip(range(batch.events), line_offsets(batch, unlined_ranges(statement)), strict=False))
            for line, source, number, row in rows:
                digest = sha256(lines[line]).hexdigest()
                offset = offsets[line][1]
                yield (source, number), _Event(log, sequence, offset, statement.sealed_at, moment_of(row), digest)
    except CustodyError:
        # The verification reports what is wrong with the statement. Here its events only are not described.
        return


def _describe(made: Advanced, events: dict[Key, list[_Event]]) -> None:
    """Put into holes what the events beside them say."""
    for name in made.changed:
        for hole in made.known.sources[name].holes:
            if hole.before is None and (beside := events.get((name, hole.last + 1))):
                first = min(beside, key=lambda event: event.sealed_at)
                hole.before, hole.log = first.time, first.log
                hole.sequence, hole.offset = first.sequence, first.offset
                hole.sealed_at = min(hole.sealed_at, first.sealed_at)
            elif hole.log is None and (place := _place(made.known.sources[name], hole.last + 1)):
                hole.log, hole.sequence = place.log, place.first
            if hole.after is None and (beside := events.get((name, hole.first - 1))):
                hole.after = min(beside, key=lambda event: event.sealed_at).time


def _place(source: Source, number: int) -> Where | None:
    """Return the fewest statements that may have a number."""
    places = [place for place in source.places if place.low <= number <= place.high]
    return min(places, key=lambda place: place.last - place.first, default=None)


def _gaps(settings: Settings, known: Sources, now: datetime) -> Iterator[Finding]:
    """Yield a finding for each source that lacks numbers, the expected ones first, and for a service without one."""
    settled = format_time(shift(now, -timedelta(minutes=settings.sources.settle)))
    lacking = [
        (source, holes)
        for source in known.sources.values()
        if (holes := [hole for hole in source.holes if hole.sealed_at <= settled])
    ]
    lacking.sort(key=lambda item: (not _is_expected(settings, item[0].name), item[0].name))
    seen = {service_of(name) for name in known.sources}
    for service in settings.sources.expected:
        if service not in seen:
            message = f"no event names a source of the service {shorten(service)}, which sources.expected names"
            advice = "check the name in the settings, and that this service emits numbered events"
            yield finding("source-gap", message, severity=Severity.NOTICE, advice=advice)
    for source, holes in lacking[:_FINDINGS]:
        yield _gap(settings, source, holes)
    if rest := lacking[_FINDINGS:]:
        worst = any(_is_expected(settings, source.name) for source, _ in rest)
        message = f"{len(rest):,} more sources lack numbers; the view `sources` of `custody query` has all"
        yield finding("source-gap", message, severity=Severity.INCOMPLETE if worst else Severity.NOTICE)


def _silent(settings: Settings, known: Sources, now: datetime) -> Iterator[Finding]:
    """Yield a notice for each expected service with sources that are silent and did not stop: the newest ones first."""
    since = format_time(shift(now, -timedelta(minutes=settings.sources.silent)))
    by_service: defaultdict[str, list[Source]] = defaultdict(list)
    for source in known.sources.values():
        if _is_expected(settings, source.name) and source.stopped is None and source.sealed_at <= since:
            by_service[service_of(source.name)].append(source)
    for service in sorted(by_service):
        sources = sorted(by_service[service], key=lambda source: (source.sealed_at, source.name), reverse=True)
        shown = ", ".join(
            f"{shorten(source.name)} (number {source.last}, archived at {source.sealed_at})"
            for source in sources[:_SHOWN]
        )
        more = f", and {len(sources) - _SHOWN:,} more" if len(sources) > _SHOWN else ""
        yield finding(
            "source-silent",
            f"{counted(len(sources), 'source')} of the service {shorten(service)} sent nothing for"
            f" {counted(settings.sources.silent, 'minute')}, and did not say that"
            f" {'it stops' if len(sources) == 1 else 'they stop'}. The last events are of {shown}{more}",
        )


def _is_expected(settings: Settings, name: str) -> bool:
    return service_of(name) in settings.sources.expected


def _gap(settings: Settings, source: Source, holes: Sequence[Hole]) -> Finding:
    missing = sum(hole.size for hole in holes)
    events = "event" if missing == 1 else "events"
    more = f", and {len(holes) - _SHOWN:,} more holes" if len(holes) > _SHOWN else ""
    counted = f"; about {source.unlisted:,} more, which are only counted" if source.unlisted else ""
    shown = ", ".join(map(_hole_text, holes[:_SHOWN]))
    where: dict[str, Any] = {}
    first = holes[0]
    if first.log is not None:
        where = {"log": first.log, "sequence": first.sequence, "offset": first.offset}
    return finding(
        "source-gap",
        f"{missing:,} {events} of the source {shorten(source.name)} never arrived: {shown}{more}{counted}",
        severity=Severity.INCOMPLETE if _is_expected(settings, source.name) else Severity.NOTICE,
        loss=(source.name, *((hole.first, hole.last) for hole in holes)),
        **where,
    )


def _hole_text(hole: Hole) -> str:
    numbers = f"number {hole.first}" if hole.size == 1 else f"numbers {hole.first} to {hole.last}"
    if hole.after and hole.before:
        return f"{numbers} (between {hole.after} and {hole.before})"
    return f"{numbers} (before {hole.before or hole.sealed_at})"


def _repeats(settings: Settings, made: Advanced, events: dict[Key, list[_Event]]) -> Iterator[Finding]:
    """Yield one or two findings for each source with repeats: same bytes, and other bytes."""
    for name, repeats in list(made.repeats.items())[:_FINDINGS]:
        yield from _repeated(settings, name, repeats, events)
    if (rest := len(made.repeats) - _FINDINGS) > 0:
        yield finding("source-repeat", f"{rest:,} more sources have events with a number that they had before")


def _repeated(settings: Settings, name: str, repeats: Repeats, events: dict[Key, list[_Event]]) -> Iterator[Finding]:
    same: list[int] = []
    other: list[int] = []
    copies = Counter(repeats.numbers)
    for number in copies:
        several = events.get((name, number), [])
        if len(several) > 1:
            (same if len({event.sha256 for event in several}) == 1 else other).append(number)
    if other:
        last = max(events[name, other[0]], key=lambda event: event.sealed_at)
        yield finding(
            "source-repeat",
            f"different events of the source {shorten(name)} have one number: {_numbers_text(other)}",
            severity=Severity.POLICY if _is_expected(settings, name) else Severity.NOTICE,
            loss=(name, *other),
            log=last.log,
            sequence=last.sequence,
            offset=last.offset,
        )
    compared = sum(copies[number] for number in same)
    if compared:
        events_text = "event" if compared == 1 else "events"
        yield finding(
            "source-repeat",
            f"{compared:,} {events_text} of the source {shorten(name)} arrived again, byte for byte the same:"
            f" {_numbers_text(same)}",
        )
    if unknown := repeats.many - compared - sum(copies[number] for number in other):
        events_text = "event has" if unknown == 1 else "events have"
        yield finding(
            "source-repeat",
            f"{unknown:,} {events_text} a number that the source {shorten(name)} had before. The bytes were not"
            " compared: they are too many, or too far apart",
        )


def _numbers_text(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    return f"number{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_SHOWN]))}{more}"


def _bounds(settings: Settings, excess: int, left_out: int, *, unnamed: bool) -> Iterator[Finding]:
    if excess:
        message = (
            f"there are too many sources: {excess:,} were forgotten, the longest silent first. Their later gaps are"
            " not seen"
        )
        yield finding("source-gap", message, severity=Severity.NOTICE)
    if left_out:
        message = (
            "there are too many sources, or their numbers are too scattered:"
            f" {counted(left_out, 'event was', 'events were')} not counted"
        )
        if unnamed:
            message += ". This audit and the next see no new gap of any source"
        # Who may produce can invent sources, and so hide the gaps of others.
        severity = Severity.INCOMPLETE if unnamed and settings.sources.expected else Severity.NOTICE
        yield finding("source-gap", message, severity=severity)
