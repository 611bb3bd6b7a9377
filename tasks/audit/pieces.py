"""Verifies the pieces of an audit: reads their segments, some hundred statements at a time, and signs each result."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from threading import BoundedSemaphore, Event
from typing import Any, Literal, cast

import msgspec

from custody.archive import signed_notes, time_index, time_spans
from custody.archive.reader import manifests_from
from custody.archive.time_index import TimeIndex
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, ObjectMissing, SignatureInvalid
from custody.format import layout, limits
from custody.format.audit import ObjectRef
from custody.format.envelope import Signer
from custody.format.manifest import Statement
from custody.format.times import EPOCH, check_time, format_time, parse_time, shift
from custody.keys.trust import Trust
from custody.query.tables import TableFile
from custody.store.ahead import ReadAhead, call_ahead
from custody.store.open import open_store
from custody.store.protocol import Store, is_local
from custody.verify.protection import UNPROTECTED
from custody.verify.records import Stretch, name_of, named_objects, position_of
from custody.verify.report import Report
from custody.verify.run import verify
from custody.verify.scope import Scope, Span, Within
from tasks.audit.emitters import Collector, Seen, Sinks
from tasks.audit.kept import Kept, OfPiece
from tasks.audit.objects import audit_folder, log_named
from tasks.audit.plan import Piece, Plan, collects
from tasks.audit.tables import TableWriter, check_tables, list_tables_of
from tasks.audit.time_index import Indexer, known_index
from tasks.search.reconcile import compare_with_search, reconcile
from tasks.settings import Settings

PIECE_FORMAT: Literal["custody/audit-piece/1"] = "custody/audit-piece/1"
_PIECE_AGE = timedelta(hours=2)
_LOGS, _LARGE_LOGS = 6, 3
"""Logs in a bucket whose pieces are verified at once, and how many of them may be large ones: nearly all that a small
one needs is waiting. S3's client has a connection for nearly all that they read at once (`CONNECTIONS`)."""
_SMALL = 8
"""Statements up to which the pieces of a log are small."""
_STORE_SLACK = timedelta(seconds=5)
"""A bucket's times are whole seconds, by the clocks of several hosts."""
_SIGNATURES = {"signature", "key-unknown", "key-algorithm"}
"""Findings of statements that do not count."""
_COUNTED = (
    "statements",
    "events",
    "quarantined",
    "skipped",
    "lost",
    "unreadable",
    "stored",
    "inflated",
    "expired_events",
    "expired_quarantined",
)
_now = partial(datetime.now, UTC)


class PieceResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The result of verifying a piece; line 1 of its object.

    Attributes:
        format: the form.
        archive: the archive's id.
        audit: the sequence behind the newest audit that had read anything.
        run: the run of that audit.
        piece: the piece.
        started_at: when reading began.
        store_time: a moment before reading began, by the clock that tells when an object was put.
        sealed_at: when the result was signed.
        counts: numbers of events, statements and so on that were read.
        findings: the findings.
        objects: lists of the tables that were made.
        expired_sealed: when the first and the last statement were sealed whose events expired and are gone.
        sources: the numbers of sources, if the piece is read for the first time, or all is read again.
        sources_left_out: how many events have a number of a source that there was no room for.
        sources_unnamed: whether some of these sources are not in `sources`.
        spans: what it adds to the time index.
        replaced: where spans of that index begin that are made again.
        sound: whether nothing speaks against its chain.
        names: names of the listed objects that its statements name.
        tables: names of the tables that were compared with their lists.
    """

    format: Literal["custody/audit-piece/1"]
    archive: str
    audit: int
    run: str
    piece: Piece
    started_at: str
    store_time: str
    sealed_at: str
    counts: dict[str, int]
    findings: list[dict[str, Any]]
    objects: list[ObjectRef]
    expired_sealed: tuple[str, str] | None
    sources: list[Seen]
    sources_left_out: int
    sources_unnamed: bool
    spans: list[time_spans.Span]
    replaced: list[int]
    sound: bool
    names: bytes
    tables: bytes


def verify_pieces(
    settings: Settings,
    plan: Plan,
    pieces: Sequence[Piece],
    clock: Callable[[], datetime] = _now,
    kept: Kept | None = None,
) -> Iterator[PieceResult]:
    """Verify some pieces, and yield each result. Results of an earlier run of this audit are used again.

    Args:
        settings: the settings.
        plan: the audit's plan.
        pieces: the pieces to verify.
        clock: returns the time.
        kept: what the survey has read.

    Raises:
        CustodyError: the archive or the keys cannot be opened.
    """
    with closing(open_store(settings.archive, settings.s3)) as opened:
        store = kept.reading(opened) if kept else opened
        trust = settings.own_trust()
        signers = settings.signers(clock()).both()
        known = known_index(store, trust, plan) if pieces else time_index.EMPTY

        ended = Event()

        def verified(of_log: Sequence[Piece]) -> Iterator[PieceResult]:
            of_piece = OfPiece()
            for piece in of_log:
                if ended.is_set():
                    return
                done = _read_result(store, trust, plan, piece, clock())
                if done is None:
                    reading = of_piece.reading(store, layout.manifest_key(log_named(piece.log), piece.first))
                    done = _verify_piece(settings, reading, trust, signers, plan, piece, known, clock)
                    if kept:
                        # Some of it was read by the survey.
                        begun = min(plan.started_at, parse_time(done.started_at))
                        done = msgspec.structs.replace(done, store_time=format_time(_store_time(store, begun)))
                    # A result that is too large for a note is read again by the next run.
                    with suppress(FormatError):
                        sealed = signed_notes.seal(done, PIECE_FORMAT, signers)
                        # If it cannot be stored, the next run reads the piece again.
                        with suppress(CustodyError):
                            store.create(_result_key(plan, piece), sealed)
                yield done

        large = BoundedSemaphore(_LARGE_LOGS)

        def in_turn(of_log: Sequence[Piece]) -> list[PieceResult]:
            is_small = sum(piece.end - piece.first for piece in of_log) <= _SMALL
            with nullcontext() if is_small else large:
                return list(verified(of_log))

        logs = [list(of_log) for _, of_log in groupby(pieces, key=attrgetter("log"))]
        if len(logs) == 1 or is_local(store):
            yield from chain.from_iterable(map(verified, logs))
            return
        try:
            yield from chain.from_iterable(call_ahead(store, in_turn, logs, _LOGS))
        finally:
            # After an error or an interrupt, the other logs end with the piece that they are at.
            ended.set()


def _verify_piece(
    settings: Settings,
    store: Store,
    trust: Trust,
    signers: tuple[Signer, Signer],
    plan: Plan,
    piece: Piece,
    known: TimeIndex,
    clock: Callable[[], datetime],
) -> PieceResult:
    started_at = clock()
    store_time = _store_time(store, started_at)
    log, marks = log_named(piece.log), plan.marks.get(piece.log)
    expired = {log: marks.expired} if marks else {}
    # The survey has listed what belongs to new statements, and has checked their locks.
    within, protection = (Within(), settings.protection()) if piece.read == "again" else (None, UNPROTECTED)
    span = {log: [Span(piece.first, piece.end)]}
    scope = Scope(span, listing=within is not None, within=within, expired=expired)
    objects: list[ObjectRef] = []
    indexer = Indexer(store, trust, plan, piece, log, known)
    seen = Statements(plan.listed)

    def take(statement: Statement) -> None:
        indexer.take(statement)
        seen.take(statement)

    check = partial(verify, store, trust, now=started_at, workers=0, scope=scope, each=take, protection=protection)
    collector = Collector(0 if plan.full else plan.counted.get(piece.log, 0), plan.collecting)
    if settings.audit.tables and piece.read == "new":
        with TableWriter(store, log, piece.first, piece.end, archive=plan.archive, signers=signers) as writer:
            report = check(sink=Sinks(writer, collector))
            # No table shows a statement that does not count. Queries read such a range from the statements.
            if _is_usable(report):
                writer.finish()
            objects += [writer.listed] if writer.listed else []
    else:
        sink = collector if collects(piece, full=plan.full) else None
        report = check(sink=sink)
    listed = objects[0] if objects else None
    indexed = indexer.finish(usable=_is_usable(report), files=settings.audit.tables, listed=listed)
    findings = [finding.to_dict() for finding in (*report.findings, *indexed.findings)]
    tables: Sequence[TableFile] = ()
    if piece.read == "again":
        of_piece = list_tables_of(store, log, piece.first, piece.end, seen.days)
        checked = check_tables(store, of_piece, plan.archive, log, piece.first, piece.end, trust, seen.events)
        findings += [problem.to_dict() for problem in checked]
        tables = of_piece.files[log]
    counts = Counter({name: sum(getattr(summary, name) for summary in report.logs) for name in _COUNTED})
    if settings.search.url:
        counts["rejected"] = 0
        comparison = partial(
            reconcile,
            store=store,
            archive=plan.archive,
            log=log,
            statements=range(piece.first, piece.end),
            now=plan.started_at,
            marked=plan.marks[piece.log].indexed if piece.log in plan.marks else 0,
            content=piece.read == "again",
            counts=counts,
            holds=standing(store, plan.archive, trust)(log),
        )
        findings += compare_with_search(settings, comparison)
    return PieceResult(
        format=PIECE_FORMAT,
        archive=plan.archive,
        audit=plan.follows,
        run=plan.run,
        piece=piece,
        started_at=format_time(started_at),
        store_time=format_time(store_time),
        sealed_at=format_time(clock()),
        counts=dict(counts),
        findings=findings,
        objects=objects,
        expired_sealed=next((summary.expired_sealed for summary in report.logs), None),
        sources=collector.take(),
        sources_left_out=collector.left_out,
        sources_unnamed=collector.unnamed,
        spans=indexed.spans,
        replaced=indexed.replaced,
        sound=all(summary.sound for summary in report.logs),
        names=bytes(seen.names),
        tables=b"".join(name_of(file.key) for file in tables),
    )


class Statements:
    """Collects what an audit needs of statements that are read, besides their verification.

    Attributes:
        names: names of their objects that are listed in this audit.
        events: how many events each has, by sequence.
        days: the days on which those with events were sealed.
    """

    def __init__(self, listed: Sequence[tuple[str, str | None]]) -> None:
        self.names = bytearray()
        self.events: dict[int, int] = {}
        self.days: set[str] = set()
        self._stretches = [Stretch(*each) for each in listed]

    def take(self, statement: Statement) -> None:
        """Add a statement."""
        events = self.events[statement.sequence] = sum(batch.events for batch in statement.batches)
        if events:
            self.days.add(statement.sealed_at[:10])
        for key in named_objects(statement):
            if any(stretch.holds(position_of(key)) for stretch in self._stretches):
                self.names += name_of(key)


def _is_usable(report: Report) -> bool:
    """Return whether all statements of a piece count that were taken."""
    return not any(found.finding in _SIGNATURES for found in report.findings)


def _read_result(store: Store, trust: Trust, plan: Plan, piece: Piece, now: datetime) -> PieceResult | None:
    """Return the result of a piece from an earlier run of this audit, if it was signed and is recent."""
    key = _result_key(plan, piece)
    try:
        result = signed_notes.read(store, key, PieceResult, PIECE_FORMAT, trust)
        age = now - check_time(f"{key}: started_at", result.started_at)
        store_time = check_time(f"{key}: store_time", result.store_time)
    except (ObjectMissing, FormatError, SignatureInvalid):
        return None
    same = (result.archive, result.audit, result.piece) == (plan.archive, plan.follows, piece)
    good = same and timedelta(0) <= age < _PIECE_AGE and _is_unchanged(store, trust, plan, piece, store_time)
    return result if good else None


def _store_time(store: Store, moment: datetime) -> datetime:
    """Return a moment of the host's clock by the store's. If the store told no time, none of its times is earlier."""
    clock = store.capabilities.clock
    if clock is None:
        return moment
    ahead = clock.ahead()
    return shift(moment, -ahead - _STORE_SLACK) if ahead is not None else EPOCH


def _is_unchanged(store: Store, trust: Trust, plan: Plan, piece: Piece, moment: datetime) -> bool:
    """Return whether no object of a piece was put since a moment, by the store's times, or is gone.

    In a folder, who changes a file can set its time too. A piece is old for two hours at most.
    """
    log = log_named(piece.log)
    holds = standing(store, plan.archive, trust)(log)
    # Also of a manifest that does not count any more.
    keys = [layout.manifest_key(log, sequence) for sequence in range(piece.first, piece.end)]
    try:
        with ReadAhead(store, limits.FILE_BYTES) as ahead:
            ahead.expect(keys)
            for _, manifest in manifests_from(cast("Store", ahead), log, piece.first, piece.end, holds):
                keys += [ref.key for ref in (manifest.statement.segment, manifest.statement.quarantine) if ref]
        return all(status.created <= moment for status in call_ahead(store, store.status, keys))
    except ObjectMissing:
        return False


def _result_key(plan: Plan, piece: Piece) -> str:
    """Return the key of a piece's result. A roll that signs meanwhile does not change it, and each audit does."""
    span = f"{piece.first:012}-{piece.end:012}-{piece.read}"
    return f"{audit_folder(plan.follows)}pieces/{piece.log}/{span}.json"
