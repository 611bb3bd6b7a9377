"""Audit the archive: verify what is new since the last signed audit and a share of what is old, and sign the result.

The life of an audit, and what is lost where it dies:

1. **Survey.** Statements, signatures and trees of the spans, and all that only a listing shows. Lost: minutes.
2. **Pieces.** Segments of the spans are read, some hundred statements at a time. Each piece's result is signed and put
   under `reports/`, so that an audit that was killed goes on behind the last one. Nothing in `reports/` is believed
   without that signature, nor what is older than two hours: what was read then may have been changed since. An audit
   says that it began when the first piece that it counts was begun. Events of new statements become Parquet tables in
   the same read.
3. **Conclusion.** Findings first, then the audit, which is the commit, then checkpoints of all logs. Of two audits at
   once one is written, and the other ends quietly.

The archive is the state: the newest audit says where to go on, and how far the rolling re-read came. An audit that a
trusted key signed outside its span is nothing to go on from: then everything is new. One that does not count at all,
and may not be passed over, ends the audit with an alarm. Prefect is not imported here.
"""

import json
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import msgspec

from custody.archive import signed_notes
from custody.archive.forms import AUDITS, form_of
from custody.archive.reader import Holds, Tip, find_tip, list_logs, sealed_from
from custody.archive.resume import find_checked_tip
from custody.archive.trusted import Judge, read_trusted_archive, standing
from custody.archive.writer import append_audit, put_checkpoint, writer_name
from custody.errors import (
    ConfigurationError,
    CustodyError,
    Fenced,
    FormatError,
    ObjectExists,
    ObjectMissing,
    SearchError,
    SignatureInvalid,
    TransientStoreError,
)
from custody.findings import Finding, Severity, finding
from custody.format import audit, layout
from custody.format.audit import Audit, Covered, Marks, ObjectRef, Read, SignedAudit, Verdict
from custody.format.envelope import HeadRef, Signer
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import check_time, format_time, parse_time
from custody.keys.keyring import Signers
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import Head, KnownHead
from custody.verify.run import Report, Scope, Span, verify
from tasks.audit.tables import TableWriter, check_tables, list_tables
from tasks.search.client import Search
from tasks.search.reconcile import check_cursors, find_strays, reconcile
from tasks.settings import Settings

PIECE_FORMAT: Literal["custody/audit-piece/1"] = "custody/audit-piece/1"
REPORT_FORMAT: Literal["custody/report/1"] = "custody/report/1"
TAKEN_OVER = "pieces_taken_over"
"""In `counts`: how many pieces an earlier run of the audit has read."""
OBJECTS_INLINE = 1000
"""Objects that an audit refers to by itself; more stand in one object that it refers to."""
_PIECE_AGE = timedelta(hours=2)
_COUNTED = ("statements", "events", "quarantined", "skipped", "lost", "unreadable", "stored", "inflated")
_VERDICTS: Mapping[int, Verdict] = {
    0: "verified",
    Severity.NOTICE: "notices",
    Severity.POLICY: "policy",
    Severity.INCOMPLETE: "incomplete",
    Severity.UNVERIFIABLE: "unverifiable",
    Severity.TAMPERED: "tampered",
}


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


class PieceResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the verification of a piece gave; line 1 of its object.

    Attributes:
        format: the form.
        archive: the archive's id.
        audit: sequence of the audit that it was read for.
        run: of that audit which read it.
        piece: which statements.
        started_at: when reading began.
        sealed_at: when it was signed.
        counts: what was read.
        findings: what was found.
        objects: lists of the tables that were made.
    """

    format: Literal["custody/audit-piece/1"]
    archive: str
    audit: int
    run: str
    piece: Piece
    started_at: str
    sealed_at: str
    counts: dict[str, int]
    findings: list[dict[str, Any]]
    objects: list[ObjectRef]


class ReportNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which page is the report of an audit; line 1 of its object. The next audit keeps that page as evidence."""

    format: Literal["custody/report/1"]
    archive: str
    audit: int
    sealed_at: str
    size: int
    sha256: str


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an audit found: the result of a run.

    Attributes:
        sequence: of the audit.
        verdict: by the worst severity of its findings.
        exit_code: as `custody verify` has it.
        counts: what was read.
        findings: the worst first.
        whole: where all of them stand: the audit, or the object that holds them where they are too many for it.
        heads: size of each log.
        report: where the integrity report lies, if one was made.
    """

    sequence: int
    verdict: Verdict
    exit_code: int
    counts: Mapping[str, int]
    findings: tuple[Mapping[str, Any], ...]
    whole: str
    heads: Mapping[str, int]
    report: str | None = None


def plan_audit(settings: Settings, request: Request, now: datetime) -> Plan:
    """Survey the archive, and say what is to be read.

    Raises:
        ConfigurationError: a setting, or the request, cannot be used.
        CustodyError: the archive or the keys cannot be read at all; all else is a finding.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id
        tip = _find_audits(store, archive, trust)
        before = clean_audit(store, archive, trust, tip)
        # A log that somebody remembers is looked for even where nothing of it is left.
        remembered = map(_log, {*(before.heads if before else ()), *trust.heads} - {str(layout.AUDIT_LOG)})
        logs = _chosen(sorted({*list_logs(store), *remembered}), request.logs)
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
            others += _compared_with_search(settings, look)
            if not request.logs:
                strays = partial(find_strays, store=store, logs=logs, now=now, holds=holds)
                others += _compared_with_search(settings, strays)
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


def clean_audit(store: Store, archive: str, trust: Trust, tip: Tip[SignedAudit]) -> Audit | None:
    """Return the newest audit, None if there is none, or if a key signed it outside its span.

    Args:
        store: the archive.
        archive: its id.
        trust: the keys.
        tip: where the audits end, by what trusted keys signed.
    """
    if tip.newest is None:
        return None
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return tip.newest.statement if judge.verdict(tip.newest, tip.head.size - 1).clean else None


def _chosen(logs: Sequence[Log], wanted: Sequence[str]) -> list[Log]:
    if not wanted:
        return list(logs)
    chosen = [log for log in logs if str(log) in wanted or log.name in wanted]
    for name in wanted:
        if not any(name in {str(log), log.name} for log in chosen):
            raise ConfigurationError(f"the archive has no log {name!r}; `custody status` lists them")
    return chosen


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


def _now() -> datetime:
    return datetime.now(UTC)


def verify_pieces(
    settings: Settings, plan: Plan, pieces: Sequence[Piece], clock: Callable[[], datetime] = _now
) -> Iterator[PieceResult]:
    """Read segments of some pieces, and yield what each gave; what an earlier run of this audit has done is not redone.

    Args:
        settings: the settings.
        plan: of the audit.
        pieces: those of its pieces that are read.
        clock: gives the time.

    Raises:
        CustodyError: the archive or the keys cannot be opened.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        signers = settings.signers(clock()).both()
        for piece in pieces:
            done = _read_result(store, trust, plan, piece, clock())
            if done is None:
                done = _verify_piece(settings, store, trust, signers, plan, piece, clock)
                # A result that is too large for a note is read again by the next run.
                with suppress(FormatError):
                    _keep(store, _result_key(plan, piece), signed_notes.seal(done, PIECE_FORMAT, signers))
            yield done


def _verify_piece(
    settings: Settings,
    store: Store,
    trust: Trust,
    signers: tuple[Signer, Signer],
    plan: Plan,
    piece: Piece,
    clock: Callable[[], datetime],
) -> PieceResult:
    started_at = clock()
    log, scope = _log(piece.log), Scope({_log(piece.log): [Span(piece.first, piece.end)]}, listing=False)
    objects: list[ObjectRef] = []
    if settings.audit.tables and piece.read == "new":
        with TableWriter(store, log, piece.first, piece.end, archive=plan.archive, signers=signers) as writer:
            report = verify(store, trust, now=started_at, workers=0, scope=scope, sink=writer)
            writer.finish()
            objects += [writer.listed] if writer.listed else []
    else:
        report = verify(store, trust, now=started_at, workers=0, scope=scope)
    findings = [one.to_dict() for one in report.findings]
    counts = Counter({name: sum(getattr(one, name) for one in report.logs) for name in _COUNTED})
    if settings.search.url:
        counts["rejected"] = 0
        look = partial(
            reconcile,
            store=store,
            archive=plan.archive,
            log=log,
            first=piece.first,
            end=piece.end,
            now=plan.started_at,
            holds=standing(store, plan.archive, trust)(log),
        )
        marked = plan.marks[piece.log].indexed if piece.log in plan.marks else 0
        findings += _compared_with_search(
            settings, partial(look, marked=marked, content=piece.read == "again", counts=counts)
        )
    return PieceResult(
        format=PIECE_FORMAT,
        archive=plan.archive,
        audit=plan.sequence,
        run=plan.run,
        piece=piece,
        started_at=format_time(started_at),
        sealed_at=format_time(clock()),
        counts=dict(counts),
        findings=findings,
        objects=objects,
    )


def _compared_with_search(settings: Settings, look: Callable[[Search], Iterator[Finding]]) -> list[dict[str, Any]]:
    """Return what a comparison with Elasticsearch finds; that it cannot be asked says nothing against the archive."""
    found: list[dict[str, Any]] = []
    try:
        with closing(Search(settings.search)) as search:
            found += (one.to_dict() for one in look(search))
    except (SearchError, TransientStoreError) as error:
        what = f"Elasticsearch was not held against the archive: {error}"
        found.append(finding("unreadable", what, severity=Severity.NOTICE).to_dict())
    except CustodyError:
        # What is wrong with a statement or segment is a finding of its own.
        pass
    return found


def _read_result(store: Store, trust: Trust, plan: Plan, piece: Piece, now: datetime) -> PieceResult | None:
    """Return what an earlier run of this audit found of a piece, if it signed it a short while ago."""
    key = _result_key(plan, piece)
    try:
        result = signed_notes.read(store, key, PieceResult, PIECE_FORMAT, trust)
        age = now - check_time(f"{key}: started_at", result.started_at)
    except (ObjectMissing, FormatError, SignatureInvalid):
        return None
    same = (result.archive, result.audit, result.piece) == (plan.archive, plan.sequence, piece)
    # What it has read may have been changed since.
    return result if same and timedelta(0) <= age < _PIECE_AGE else None


def _keep(store: Store, key: str, data: bytes) -> None:
    """Put what the next run need not do again; that it cannot be put costs that run time, and nothing else."""
    try:
        store.create(key, data)
    except CustodyError:
        return


def conclude(settings: Settings, plan: Plan, results: Sequence[PieceResult]) -> Outcome:
    """Add up, sign and write the audit, and a checkpoint of each log.

    Raises:
        Fenced: another audit was written meanwhile, rightly.
        HeadRollback: the audits went back meanwhile, a slot of theirs holds what may not be passed over, or a
            checkpoint that is there has another root.
        CustodyError: the archive does not take it, or no key can sign.
    """
    now = datetime.now(UTC)
    findings = _merged(plan, results)
    exit_code = max((_SEVERITIES[one["severity"]] for one in findings), default=0)
    verdict = _VERDICTS[exit_code]
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    counts["findings"] = len(findings)
    counts[TAKEN_OVER] = sum(result.run != plan.run for result in results)
    started_at = min([plan.started_at, *(parse_time(result.started_at) for result in results)])
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust, signers = settings.own_trust(), settings.signers(now)
        tip = _find_audits(store, plan.archive, trust, [KnownHead(plan.audits, None, "the plan of this audit")])
        if tip.head.size > plan.audits:
            raise Fenced(f"audit {tip.head.size - 1} was written by somebody else meanwhile")
        inline: list[dict[str, Any]] | ObjectRef = [dict(one) for one in findings]
        held = inline if len(findings) <= audit.FINDINGS_INLINE else _put_lines(store, findings)
        objects = [ref for result in results for ref in result.objects]
        objects += _keep_report(store, trust, plan.archive, tip.head.size - 1)

        def make(tip: Tip[SignedAudit]) -> Audit:
            return Audit(
                format=audit.FORMAT,
                archive=plan.archive,
                sequence=tip.size,
                tree=tip.tree,
                passed_over=list(tip.passed_over),
                started_at=format_time(started_at),
                sealed_at=format_time(now),
                writer=writer_name(),
                heads={name: HeadRef(size, root) for name, (size, root) in sorted(plan.heads.items())},
                covered=_covered(plan.pieces),
                marks=dict(sorted(plan.marks.items())),
                counts=dict(sorted(counts.items())),
                findings=held,
                objects=_referred(store, objects),
                verdict=verdict,
            )

        written = append_audit(store, tip, make, signers.both(), trust)
        _put_checkpoints(store, trust, signers, plan, written)
        sequence = written.size - 1
        whole = f"{store.url}/{held.key if isinstance(held, ObjectRef) else layout.audit_key(sequence)}"
    sizes = {name: size for name, (size, _) in plan.heads.items()}
    return Outcome(sequence, verdict, exit_code, counts, tuple(findings), whole, sizes)


def _find_audits(store: Store, archive: str, trust: Trust, known: Sequence[KnownHead] = ()) -> Tip[SignedAudit]:
    """Find where the audits end, for one that is to be signed behind them; raises as `find_checked_tip`."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return find_checked_tip(store, layout.AUDIT_LOG, AUDITS, judge, trust, known)


def _put_lines(store: Store, lines: Sequence[Any]) -> ObjectRef:
    """Put what is too much for an audit, one JSON value a line, where the audit refers to it by its SHA-256."""
    return _put_object(
        store, b"".join(json.dumps(msgspec.to_builtins(one), separators=(",", ":")).encode() + b"\n" for one in lines)
    )


def _put_object(store: Store, data: bytes) -> ObjectRef:
    digest = sha256(data).hexdigest()
    key = layout.audit_object_key(digest)
    store.create(key, data)
    return ObjectRef(key, len(data), digest)


def _referred(store: Store, objects: Sequence[ObjectRef]) -> list[ObjectRef]:
    return list(objects) if len(objects) <= OBJECTS_INLINE else [_put_lines(store, objects)]


def put_report(settings: Settings, sequence: int, page: bytes) -> str:
    """Put the report of an audit, and sign that it is this one, so that the next audit keeps it as evidence.

    Returns:
        Where it lies.

    Raises:
        CustodyError: the archive does not take it, or no key can sign.
    """
    now = datetime.now(UTC)
    digest = sha256(page).hexdigest()
    key = _page_key(sequence, digest)
    with closing(open_store(settings.archive, settings.s3)) as store:
        store.create(key, page)
        note = ReportNote(
            format=REPORT_FORMAT,
            archive=read_trusted_archive(store, settings.own_trust()).id,
            audit=sequence,
            sealed_at=format_time(now),
            size=len(page),
            sha256=digest,
        )
        data = signed_notes.seal(note, REPORT_FORMAT, settings.signers(now).both())
        # Where another run has made one of the same audit, that one is kept.
        with suppress(ObjectExists):
            store.create(_report_key(sequence), data)
        return f"{store.url}/{key}"


def _keep_report(store: Store, trust: Trust, archive: str, sequence: int) -> list[ObjectRef]:
    """Put the report of an audit where the next one refers to it; nothing where none was made, or it was changed."""
    if sequence < 0:
        return []
    try:
        note = signed_notes.read(store, _report_key(sequence), ReportNote, REPORT_FORMAT, trust)
        if (note.archive, note.audit) != (archive, sequence):
            return []
        page = store.read(_page_key(sequence, note.sha256), limit=note.size)
    except (ObjectMissing, FormatError, SignatureInvalid):
        return []
    return [_put_object(store, page)] if sha256(page).hexdigest() == note.sha256 else []


def _put_checkpoints(store: Store, trust: Trust, signers: Signers, plan: Plan, tip: Tip[SignedAudit]) -> None:
    heads = {name: Head(size, bytes.fromhex(root)) for name, (size, root) in plan.heads.items() if size}
    for name, head in {str(layout.AUDIT_LOG): tip.head, **heads}.items():
        log = _log(name)
        judge = Judge(store, log, form_of(log), plan.archive, trust)
        put_checkpoint(store, plan.archive, log, head, signers.ed25519(), judge)


def _merged(plan: Plan, results: Sequence[PieceResult]) -> list[Mapping[str, Any]]:
    """Return all findings, the worst first: what a piece found again of what the survey says is said once."""
    surveyed: dict[tuple[str, str | None], list[tuple[int, int]]] = {}
    for one in plan.findings:
        # One of no statement says nothing about the first one.
        first = one.get("sequence", -1)
        surveyed.setdefault((one["finding"], one.get("log")), []).append((first, one.get("through", first)))
    found = list(plan.findings)
    for result in results:
        for one in result.findings:
            sequence = one.get("sequence", -1)
            said = surveyed.get((one["finding"], one.get("log")), ())
            marks = plan.marks.get(one.get("log", ""))
            expired = one["finding"] == "segment-missing" and marks is not None and sequence < marks.expired
            if not expired and not any(first <= sequence <= through for first, through in said):
                found.append(one)
    return sorted(found, key=lambda one: (-_SEVERITIES[one["severity"]], one.get("log", ""), one.get("sequence", -1)))


_SEVERITIES = {severity.name.lower(): int(severity) for severity in Severity}


def _covered(pieces: Sequence[Piece]) -> dict[str, list[Covered]]:
    """Return what was read of each log, neighbours joined."""
    covered: dict[str, list[Covered]] = {}
    for piece in sorted(pieces, key=lambda one: (one.log, one.first)):
        spans = covered.setdefault(piece.log, [])
        if spans and (spans[-1].to, spans[-1].read) == (piece.first, piece.read):
            spans[-1] = Covered(spans[-1].from_, piece.end, piece.read)
        else:
            spans.append(Covered(piece.first, piece.end, piece.read))
    return covered


def _folder(sequence: int) -> str:
    return f"reports/audits/{sequence:012}/"


def _page_key(sequence: int, digest: str) -> str:
    return f"{_folder(sequence)}integrity-{digest[:16]}.html"


def _report_key(sequence: int) -> str:
    return f"{_folder(sequence)}report.json"


def _result_key(plan: Plan, piece: Piece) -> str:
    span = f"{piece.first:012}-{piece.end:012}-{piece.read}"
    return f"{_folder(plan.sequence)}pieces/{piece.log}/{span}.json"


def _log(name: str) -> Log:
    log = layout.parse_log_text(name)
    if log is None:
        raise FormatError(f"{name!r} is no log")
    return log
