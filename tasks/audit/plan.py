"""The survey of an audit: checks the chains of its spans and the listings, and plans which pieces are read."""

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import count, groupby, pairwise
from typing import Any

import msgspec

from custody.archive import sources, time_index
from custody.archive.reader import Holds, choose_logs, find_tip, named_logs, read_archive
from custody.archive.readings import newest_reading
from custody.archive.search import sealed_between
from custody.archive.time_index import TimeIndex
from custody.archive.trusted import read_trusted_archive, standing
from custody.errors import CustodyError, FormatError
from custody.findings import finding
from custody.format import layout, limits
from custody.format.audit import Audit, Marks, Read
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import format_time, parse_time
from custody.keys.trust import Trust
from custody.store.ahead import call_ahead
from custody.store.open import open_store
from custody.store.protocol import CLOCK_SLACK, Store, host_ahead
from custody.verify.checkpoints import audited_heads
from custody.verify.records import Stretch
from custody.verify.report import Report
from custody.verify.run import verify
from custody.verify.scope import Scope, Span, Within
from tasks.audit import turn as turns
from tasks.audit.kept import Kept
from tasks.audit.objects import log_named
from tasks.audit.signed import clean_audit, find_audits, old_before
from tasks.audit.turn import Share, Turn, share_of, stretches_beside
from tasks.search.reconcile import compare_with_search
from tasks.search.survey import Survey
from tasks.settings import Settings

logger = logging.getLogger(__name__)

_SHARES_A_WORKER = 8
_LOGS = 8
"""Logs that are looked at at once. With a bound of time, each of them reads statements ahead."""


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Statements `[first, end)` of a log that are verified together.

    Attributes:
        log: `<log>/<partition>`.
        first: sequence of the first statement.
        end: sequence after the last one.
        read: whether they are verified for the first time.
    """

    log: str
    first: int
    end: int
    read: Read


@dataclass(frozen=True, slots=True)
class Request:
    """What to audit.

    Attributes:
        logs: `<log>/<partition>`, or `<log>` for all its partitions; empty for all logs.
        full: read everything again, not only new statements and a share of the old ones.
        since: only statements sealed at this time or later.
        until: only statements sealed before this time.
    """

    logs: tuple[str, ...] = ()
    full: bool = False
    since: datetime | None = None
    until: datetime | None = None

    @property
    def whole(self) -> bool:
        """Whether the audit is of the whole archive, as the nightly one is, and not of a part that somebody chose."""
        return not (self.logs or self.since or self.until)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit reads, and the findings of its survey.

    Attributes:
        archive: the archive's id.
        sequence: the audit's sequence, unless a roll signs before it, or slots turn out to have no valid audit.
        follows: the sequence behind the newest audit that read anything; results of pieces are named by it.
        audits: size of the tree of audits that it continues.
        run: id of this run.
        started_at: when the run began.
        pieces: the pieces to read.
        heads: size and root of each log: the present head of a log whose chain is valid; the head in the previous audit
            for a log that was not surveyed, or whose chain is not valid.
        marks: for each log, where the next audit continues.
        findings: the survey's findings.
        whole: whether it is of the whole archive.
        full: whether it reads all of that.
        collecting: how many of the pieces collect the numbers of sources.
        counted: of how many statements of each log the audits before have counted the numbers of sources.
        known: size and root of each log in the previous audit.
        marks_before: the marks of the previous audit.
        ends: size and next offset of each log that was surveyed.
        listed: which of the records' keys are listed: from a position on, and before another (None: to the end).
        turn: what the audit hands on, if all of that can be listed; None if it hands on nothing.
        before: what the previous audit handed on.
        clock: seconds by which the host's clock is ahead of the store's; behind it, if negative. None below five
            minutes, or if the store tells no time.
    """

    archive: str
    sequence: int
    follows: int
    audits: int
    run: str
    started_at: datetime
    pieces: tuple[Piece, ...]
    heads: dict[str, tuple[int, str]]
    marks: dict[str, Marks]
    findings: tuple[dict[str, Any], ...]
    whole: bool = True
    full: bool = False
    collecting: int = 0
    counted: dict[str, int] = {}
    known: dict[str, tuple[int, str]] = {}
    marks_before: dict[str, Marks] = {}
    ends: dict[str, tuple[int, int]] = {}
    listed: tuple[tuple[str, str | None], ...] = ()
    turn: Turn | None = None
    before: Turn | None = None
    clock: float | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """Statements `[first, end)` to read; up to the head if `end` is None."""

    first: int
    end: int | None
    read: Read
    surveyed: int
    """Where the survey of their chain begins. It is of new statements, and of all in a full audit."""


def plan_audit(settings: Settings, request: Request, now: datetime, kept: Kept | None = None) -> Plan:
    """Survey the archive, and return the plan of the audit.

    Args:
        settings: the settings.
        request: what to audit.
        now: the time, timezone-aware.
        kept: keeps what is read for the pieces, and for the conclusion.

    Raises:
        ConfigurationError: a setting, or the request, cannot be used.
        CustodyError: the archive or the keys cannot be read at all; any other problem is a finding.
    """
    with closing(open_store(settings.archive, settings.s3)) as opened:
        store = kept.reading(opened, manifests=True) if kept else opened
        # Before the keys: who has neither needs `custody init`, which makes both.
        read_archive(store)
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id
        tip = find_audits(store, archive, trust)
        before = clean_audit(store, archive, trust, tip)
        # A log with a known head is audited even if all its objects are gone, and one that has nothing but checkpoints.
        logs = choose_logs(named_logs(store, {*(before.heads if before else ()), *trust.heads}), request.logs)
        holds = standing(store, archive, trust)
        newest = newest_reading(store, archive, trust, tip.head.size)
        index = time_index.read(store, newest) if newest and (request.since or request.until) else time_index.EMPTY
        turn = turns.read(store, newest)
        sizes = turn.sizes if turn else old_before(before)

        def read_of(log: Log) -> list[_Read]:
            return _reads(store, log, before, request, settings, now, holds(log), sizes, index)

        reads = dict(zip(logs, call_ahead(store, read_of, logs, _LOGS), strict=True))
        listing = _listing(store, reads, turn if before else None, request, settings, now, holds)
        report = _survey(store, trust, settings, before, reads, listing, now, full=request.full)
        others: list[dict[str, Any]] = []
        indexed = {name: marks.indexed for name, marks in before.marks.items()} if before else {}
        if settings.search.url:
            survey = partial(Survey, store=store, archive=archive, logs=logs, now=now, holds=holds)
            others += compare_with_search(settings, lambda search: survey(search).check_indices())
            others += compare_with_search(settings, lambda search: survey(search).check_cursors(indexed))
            if not request.logs:
                others += compare_with_search(settings, lambda search: survey(search).find_strays())
        counted = _counted(store, newest)
        pieces = tuple(_pieces(report, reads, settings.audit.piece_statements))
        if kept:
            _read_borders(store, shares_of(pieces, settings.audit.workers))
        clock = _clock_error(store)
    turned, full = not request.since and not request.until, request.whole and request.full
    if not turned and not any(reads.values()):
        span = f"from {request.since or 'the beginning'} on and before {request.until or 'now'}"
        chosen = f" of {', '.join(request.logs)}" if request.logs else ""
        others.append(finding("empty", f"nothing was audited: no statement{chosen} was sealed {span}").to_dict())
    return Plan(
        archive=archive,
        sequence=tip.size,
        follows=newest.sequence + 1 if newest else 0,
        audits=tip.head.size,
        run=str(uuid.uuid4()),
        started_at=now,
        pieces=pieces,
        heads=_heads(report, reads, before),
        marks=_marks(report, reads, before, indexed, now, turned=turned),
        marks_before=before.marks if before else {},
        findings=(*(problem.to_dict() for problem in report.findings), *others),
        whole=request.whole,
        full=full,
        collecting=sum(collects(piece, full=full) for piece in pieces),
        counted=counted,
        known={name: (head.size, head.root) for name, head in before.heads.items()} if before else {},
        ends=_ends(report, logs),
        listed=tuple((stretch.since, stretch.until) for stretch in listing.stretches),
        turn=_without_audits(listing.turn, turn, report),
        before=turn,
        clock=clock,
    )


@dataclass(frozen=True, slots=True)
class _Listing:
    """What an audit lists.

    Attributes:
        stretches: of the records' keys.
        audits: whether all audits are listed and read.
        turn: what it hands on; None for nothing.
    """

    stretches: Sequence[Stretch]
    audits: bool
    turn: Turn | None


def _listing(
    store: Store,
    reads: Mapping[Log, Sequence[_Read]],
    turn: Turn | None,
    request: Request,
    settings: Settings,
    now: datetime,
    holds: Callable[[Log], Holds[Manifest]],
) -> _Listing:
    """Return what is listed: by an audit of a part, nothing but the slots that it reads."""
    ends = {
        str(log): max((read.end or 0 for read in spans if read.read == "again"), default=0)
        for log, spans in reads.items()
    }
    olds = {str(log): next((read.first for read in spans if read.read == "new"), 0) for log, spans in reads.items()}
    if not request.whole:
        turned = {name: olds[name] for name, end in ends.items() if end and not (request.since or request.until)}
        return _Listing((), False, msgspec.structs.replace(turn, sizes=turn.sizes | turned) if turn else None)
    known, days = turn or Turn(archive=""), settings.audit.reread_days
    shares = [
        Share(log, olds[str(log)], [(read.first, read.end) for read in spans if read.read == "again" and read.end])
        for log, spans in reads.items()
    ]
    beside, following = ([Stretch()], "") if request.full else stretches_beside(store, shares, known.following, holds)
    stretches, listed = turns.choose(known.listed, beside, now, days)
    audits = request.full or turns.is_due(known.audits_at, now, days)
    made = Turn(
        archive=read_archive(store).id,
        listed=tuple(listed),
        following=following,
        audits_at=format_time(now) if audits else known.audits_at,
        sizes=known.sizes | {name: size for name, size in olds.items() if size},
    )
    return _Listing(stretches, audits, made)


def _survey(
    store: Store,
    trust: Trust,
    settings: Settings,
    before: Audit | None,
    reads: Mapping[Log, Sequence[_Read]],
    listing: _Listing,
    now: datetime,
    *,
    full: bool,
) -> Report:
    """Check the chain of the new statements, and list what belongs to no piece. Pieces check their own chain.

    A full audit checks the chain of all statements, as one from end to end.
    """
    spans = {
        log: [Span(read.surveyed, read.end) for read in of if full or read.read == "new"] for log, of in reads.items()
    }
    expired = {log_named(name): marks.expired for name, marks in before.marks.items()} if before else {}
    # The turn of each log begins anew within `reread_days`.
    begun = frozenset(log for log, of in reads.items() if any(not read.first for read in of))
    scope = Scope(
        {log: of for log, of in spans.items() if of},
        contents=False,
        within=Within(frame=True, audits=listing.audits, folders=begun),
        expired=expired,
    )
    # Audits that are all read name these heads too.
    heads = [(str(log), head) for log, head in audited_heads(before)] if before and not listing.audits else []
    protection = settings.protection()
    return verify(store, trust, now=now, live=True, workers=0, scope=scope, protection=protection, more_heads=heads)


def _without_audits(made: Turn | None, before: Turn | None, report: Report) -> Turn | None:
    """Return what is handed on: if something could not be read, all audits are read again in the next night."""
    if made is None or not any(problem.finding == "unreadable" for problem in report.findings):
        return made
    return msgspec.structs.replace(made, audits_at=before.audits_at if before else Turn(archive="").audits_at)


def _ends(report: Report, logs: Sequence[Log]) -> dict[str, tuple[int, int]]:
    """Return size and next offset of each log; (0, 0) without a statement that could be read."""
    read = {summary.log: (summary.size, summary.next_offset or 0) for summary in report.logs}
    return {str(log): (0, 0) for log in logs} | read


def _counted(store: Store, audit: Audit | None) -> dict[str, int]:
    try:
        known = sources.read(store, audit) if audit else None
    except FormatError:
        # The conclusion reports it.
        return {}
    return known.counted if known else {}


def _clock_error(store: Store) -> float | None:
    """Return by how many seconds the host's clock is wrong by the store's, and log it; as `Plan.clock`."""
    ahead = host_ahead(store)
    if ahead is None or abs(ahead) <= CLOCK_SLACK:
        return None
    logger.warning(
        "this host's clock is %.0f s %s the store's: correct the wrong one. The audit is signed with this host's time",
        abs(ahead.total_seconds()),
        "ahead of" if ahead > timedelta(0) else "behind",
    )
    return ahead.total_seconds()


def _pieces(report: Report, reads: Mapping[Log, Sequence[_Read]], step: int) -> Iterator[Piece]:
    """Yield the pieces of each log, cut at multiples of `step`, so that an audit that resumes gets the same pieces."""
    sizes = {summary.log: summary.size for summary in report.logs}
    for log, spans in reads.items():
        name = str(log)
        for span in spans:
            first, end = span.first, span.end if span.end is not None else sizes.get(name, 0)
            while first < end:
                stop = min((first // step + 1) * step, end)
                yield Piece(name, first, stop, span.read)
                first = stop


def collects(piece: Piece, *, full: bool) -> bool:
    """Return whether a piece's numbers of sources are counted: once, or anew by an audit that reads everything."""
    return full or piece.read == "new"


def shares_of(pieces: Sequence[Piece], workers: int) -> list[Sequence[Piece]]:
    """Return the shares of the pieces that are verified in parallel, several for each worker."""
    size = -(-len(pieces) // (workers * _SHARES_A_WORKER)) or 1
    if workers == 1 or not pieces:
        return [pieces]
    return [pieces[start : start + size] for start in range(0, len(pieces), size)]


def _read_borders(store: Store, shares: Sequence[Sequence[Piece]]) -> None:
    """Read the manifests at which one share ends and the next begins, since both need them."""
    ends = [(before[-1], behind[0]) for before, behind in pairwise(shares)]
    keys = [
        layout.manifest_key(log_named(behind.log), behind.first)
        for before, behind in ends
        if (before.log, before.end) == (behind.log, behind.first)
    ]

    def read(key: str) -> None:
        # The pieces report what is wrong with it.
        with suppress(CustodyError):
            store.read(key, limit=limits.FILE_BYTES)

    for _ in call_ahead(store, read, keys):
        pass


def _heads(report: Report, reads: Mapping[Log, Sequence[_Read]], before: Audit | None) -> dict[str, tuple[int, str]]:
    """Return each log's head. For a log whose chain is not valid, or was not surveyed, it is the previous audit's."""
    heads = {name: (head.size, head.root) for name, head in before.heads.items()} if before else {}
    whole = {str(log) for log, spans in reads.items() if any(span.end is None for span in spans)}
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
    """Return where the next audit continues.

    Args:
        report: the survey's report.
        reads: the statements that are read of each log.
        before: the previous audit.
        indexed: for each log, how many statements were found indexed in Elasticsearch.
        now: the time.
        turned: whether this audit is a turn of reading old statements again.
    """
    marks = dict(before.marks) if before else {}
    surveyed = {summary.log: summary for summary in report.logs}
    refused = {problem.log for problem in report.findings if problem.finding == "retention"}
    for log, spans in reads.items():
        name = str(log)
        old = marks.get(name, Marks(0, 0, format_time(now), 0))
        summary = surveyed.get(name)
        again = turned and summary is not None
        expired = old.expired
        # As with heads: claims of an invalid chain are not signed again. The expired range begins at 0.
        if summary is not None and summary.sound and name not in refused and summary.expired_from <= old.expired:
            expired = max(expired, summary.expired)
        new = Marks(
            expired=expired,
            # A turn that wrapped around has two ranges in order of sequence; it ended in the first one.
            reread=next((read.end or 0 for read in spans if read.read == "again"), 0) if again else old.reread,
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
    sizes: Mapping[str, int],
    index: TimeIndex,
) -> list[_Read]:
    """Return the statements to read of a log, in order. `sizes` is as in `Turn`."""
    seen = before.heads.get(str(log)) if before else None
    old = seen.size if seen else 0
    if request.since or request.until:
        size = find_tip(store, log, holds, old).head.size
        sequences = sealed_between(store, log, size, request.since, request.until, holds, index=index)
        position = count()
        # Consecutive sequences, less their position among the chosen ones, have the same number.
        spans = [list(span) for _, span in groupby(sequences, lambda sequence: sequence - next(position))]
        return [_Read(span[0], span[-1] + 1, "again", span[0]) for span in spans]
    if before is None or not old:
        return [_Read(0, None, "new", 0)]
    left = _left(store, log, old, holds)
    again = [(0, left)] if request.full else _share(str(log), left, before, settings, now, sizes)
    # The survey of new statements begins one earlier. If that statement leads to the root that the previous audit
    # signed, the log did not go back.
    new = _Read(old, None, "new", max(left - 1, 0))
    return [*(_Read(first, end, "again", first) for first, end in again if first < end), new]


def _left(store: Store, log: Log, seen: int, holds: Holds[Manifest]) -> int:
    """Return how many of a log's first `seen` statements exist. If the log went back, the survey begins at its end."""
    try:
        if not seen or any(store.exists(layout.manifest_key(log, sequence)) for sequence in (seen - 1, seen)):
            return seen
        return min(find_tip(store, log, holds, seen).head.size, seen)
    except CustodyError:
        # The survey reports what is wrong.
        return seen


def _share(
    name: str, old: int, before: Audit, settings: Settings, now: datetime, sizes: Mapping[str, int]
) -> list[tuple[int, int]]:
    """Return the old statements to read again in this turn, so that all are read within `reread_days`."""
    # Counted from this log's last turn: the previous audit may be of other logs, or a roll's, which reads nothing.
    marks = before.marks.get(name)
    last = parse_time(marks.reread_at if marks else before.started_at).timestamp()
    days = max((now.timestamp() - last) / timedelta(days=1).total_seconds(), 1.0)
    start, step = marks.reread if marks else 0, settings.audit.piece_statements
    return share_of(start, old, sizes.get(name, old), days / settings.audit.reread_days, step)
