"""The survey of an audit: what its spans' chains and the listings show, and which pieces of them are to be read."""

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from custody.archive.reader import Holds, choose_logs, find_tip, list_logs, sealed_from
from custody.archive.trusted import read_trusted_archive, standing
from custody.errors import (
    CustodyError,
)
from custody.format import layout
from custody.format.audit import Audit, Marks, Read
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import format_time, parse_time
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.verify.report import Report
from custody.verify.run import verify
from custody.verify.scope import Scope, Span
from tasks.audit.newest import clean_audit, find_audits
from tasks.audit.objects import log_named
from tasks.audit.tables import check_tables, list_tables
from tasks.search.compare import compare_with_search
from tasks.search.cursor_checks import check_cursors
from tasks.search.strays import find_strays
from tasks.settings import Settings


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Statements `[first, end)` of a log, verified at a time.

    Attributes:
        log: `<log>/<partition>`.
        first: sequence of the first one.
        end: behind the last one.
        read: whether they are verified for the first time.
    """

    log: str
    first: int
    end: int
    read: Read


@dataclass(frozen=True, slots=True)
class Request:
    """Which audit is wanted.

    Attributes:
        logs: `<log>/<partition>`, or `<log>` for all its partitions; none for all.
        full: read everything again, and not only what is new and a share of the old.
        since: only statements sealed from then on.
        until: only statements sealed before.
    """

    logs: tuple[str, ...] = ()
    full: bool = False
    since: datetime | None = None
    until: datetime | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit reads, and what its survey has found already.

    Attributes:
        archive: the archive's id.
        sequence: that the audit gets, unless slots before it turn out to hold no valid audit.
        audits: size of the tree of audits that it goes on from.
        run: which run this is.
        started_at: when it began.
        pieces: what is read.
        heads: by log, size and root: where it ends, of those whose chain holds, and of those not looked at where it
            ended before.
        marks: by log, where the next audit goes on from.
        findings: of the survey.
    """

    archive: str
    sequence: int
    audits: int
    run: str
    started_at: datetime
    pieces: tuple[Piece, ...]
    heads: dict[str, tuple[int, str]]
    marks: dict[str, Marks]
    findings: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """Statements `[first, end)` that are to be read; to the head where `end` is None."""

    first: int
    end: int | None
    read: Read
    survey: int | None = None
    """Where the survey begins, if not there: at the end of a log that went back."""


def plan_audit(settings: Settings, request: Request, now: datetime) -> Plan:
    """Survey the archive, and return what is to be read.

    Raises:
        ConfigurationError: a setting, or the request, cannot be used.
        CustodyError: the archive or the keys cannot be read at all; all else is a finding.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id
        tip = find_audits(store, archive, trust)
        before = clean_audit(store, archive, trust, tip)
        # A log that somebody remembers is looked for even where nothing of it is left.
        remembered = map(log_named, {*(before.heads if before else ()), *trust.heads} - {str(layout.AUDIT_LOG)})
        logs = choose_logs({*list_logs(store), *remembered}, request.logs)
        holds = standing(store, archive, trust)
        reads = {log: _reads(store, log, before, request, settings, now, holds(log)) for log in logs}
        scope = Scope({log: _surveyed(found) for log, found in reads.items() if found}, contents=False)
        report = verify(store, trust, now=now, live=True, workers=0, scope=scope, protection=settings.protection())
        tables = list_tables(store)
        others = [
            one.to_dict()
            for log, found in reads.items()
            for read in found
            if read.read == "again" and read.end is not None
            for one in check_tables(store, tables, archive, log, read.first, read.end, trust)
        ]
        indexed = {name: marks.indexed for name, marks in before.marks.items()} if before else {}
        if settings.search.url:
            look = partial(check_cursors, store=store, archive=archive, logs=logs, now=now, marks=indexed, holds=holds)
            others += compare_with_search(settings, look)
            if not request.logs:
                strays = partial(find_strays, store=store, logs=logs, now=now, holds=holds)
                others += compare_with_search(settings, strays)
    turned = not request.since and not request.until
    return Plan(
        archive=archive,
        sequence=tip.size,
        audits=tip.head.size,
        run=str(uuid.uuid4()),
        started_at=now,
        pieces=tuple(_pieces(report, reads, settings.audit.piece_statements)),
        heads=_heads(report, reads, before),
        marks=_marks(report, reads, before, indexed, now, turned=turned),
        findings=(*(one.to_dict() for one in report.findings), *others),
    )


def _pieces(report: Report, reads: Mapping[Log, Sequence[_Read]], step: int) -> Iterator[Piece]:
    """Yield what is read of each log."""
    sizes = {summary.log: summary.size for summary in report.logs}
    for log, found in reads.items():
        name = str(log)
        for one in found if name in sizes else ():
            yield from _cut(name, one.first, one.end or sizes[name], one.read, step)


def _heads(report: Report, reads: Mapping[Log, Sequence[_Read]], before: Audit | None) -> dict[str, tuple[int, str]]:
    """Return where each log ends; where its chain does not hold, or was not looked at, where it ended before."""
    heads = {name: (head.size, head.root) for name, head in before.heads.items()} if before else {}
    whole = {str(log) for log, found in reads.items() if any(one.end is None for one in found)}
    for summary in report.logs:
        if summary.log in whole and summary.sound and summary.root is not None:
            heads[summary.log] = summary.size, summary.root
    return heads


def _marks(
    report: Report,
    reads: Mapping[Log, Sequence[_Read]],
    before: Audit | None,
    indexed: Mapping[str, int],
    now: datetime,
    *,
    turned: bool,
) -> dict[str, Marks]:
    """Return where the next audit goes on from.

    Args:
        report: of the survey.
        reads: what is read of each log.
        before: the audit that this one goes on from.
        indexed: by log, how many statements Elasticsearch was seen to have.
        now: the time.
        turned: whether this audit is a turn of reading old statements again.
    """
    marks = dict(before.marks) if before else {}
    surveyed = {summary.log: summary for summary in report.logs}
    refused = {one.log for one in report.findings if one.finding == "retention"}
    for log, found in reads.items():
        name = str(log)
        old = marks.get(name, Marks(0, 0, format_time(now), 0))
        summary = surveyed.get(name)
        again = turned and summary is not None
        expired = old.expired
        # As with heads: what a statement says that does not hold is not signed again as ours; nor is there a hole.
        if summary is not None and summary.sound and name not in refused and summary.expired_from <= old.expired:
            expired = max(expired, summary.expired)
        new = Marks(
            expired=expired,
            reread=_turn_end(found) if again else old.reread,
            reread_at=format_time(now) if again else old.reread_at,
            indexed=max(old.indexed, indexed.get(name, 0)),
        )
        if name in marks or again or new.expired or new.indexed:
            marks[name] = new
    return marks


def _reads(
    store: Store,
    log: Log,
    before: Audit | None,
    request: Request,
    settings: Settings,
    now: datetime,
    holds: Holds[Manifest],
) -> list[_Read]:
    """Return what is read of a log, in order."""
    seen = before.heads.get(str(log)) if before else None
    old = seen.size if seen else 0
    if request.since or request.until:
        size = find_tip(store, log, holds, old).head.size
        first = sealed_from(store, log, size, request.since, holds) if request.since else 0
        end = sealed_from(store, log, size, request.until, holds) if request.until else size
        return [_Read(first, end, "again")] if first < end else []
    if before is None or not old:
        return [_Read(0, None, "new")]
    left = _left(store, log, old, holds)
    again = [(0, left)] if request.full else _share(str(log), left, before, settings, now)
    return [*(_Read(first, end, "again") for first, end in again if first < end), _Read(old, None, "new", left)]


def _left(store: Store, log: Log, seen: int, holds: Holds[Manifest]) -> int:
    """Return how much of a log's first `seen` statements is there: where it went back, the survey begins at its end."""
    try:
        if not seen or any(store.exists(layout.manifest_key(log, sequence)) for sequence in (seen - 1, seen)):
            return seen
        return min(find_tip(store, log, holds, seen).head.size, seen)
    except CustodyError:
        # The survey says what is wrong with it.
        return seen


def _surveyed(reads: Sequence[_Read]) -> list[Span]:
    """Return the spans whose chain is looked at.

    New statements are surveyed from the one before them: that it is still there, and leads to the root that was seen,
    shows that the log did not go back.
    """
    begins = (one.first if one.survey is None else one.survey for one in reads)
    return [
        Span(max(begin - 1, 0) if one.end is None else begin, one.end) for one, begin in zip(reads, begins, strict=True)
    ]


def _share(name: str, old: int, before: Audit, settings: Settings, now: datetime) -> list[tuple[int, int]]:
    """Return the old statements whose turn it is to be read again, so that all are within `reread_days`."""
    # Since this log's last turn: the audit before may be of other logs, or a roll's, which reads nothing.
    marks = before.marks.get(name)
    last = parse_time(marks.reread_at if marks else before.started_at).timestamp()
    days = max((now.timestamp() - last) / timedelta(days=1).total_seconds(), 1.0)
    step = settings.audit.piece_statements
    many = min(math.ceil(old * days / settings.audit.reread_days / step) * step, old)
    start = marks.reread if marks else 0
    start = 0 if start >= old else start
    if start + many <= old:
        return [(start, start + many)]
    return [(0, min(start + many - old, start)), (start, old)] if start else [(0, old)]


def _turn_end(reads: Sequence[_Read]) -> int:
    """Return where the next turn of reading old statements again begins."""
    # A turn that wrapped around has its later part last, and ended in its earlier one.
    return next((one.end or 0 for one in reads if one.read == "again"), 0)


def _cut(name: str, first: int, end: int, read: Read, step: int) -> Iterator[Piece]:
    """Cut statements at whole multiples of the step, so that an audit that goes on finds the same pieces again."""
    while first < end:
        stop = min((first // step + 1) * step, end)
        yield Piece(name, first, stop, read)
        first = stop
