"""Audit the archive: verify what is new since the last signed audit and a share of what is old, and sign the result.

The life of an audit, and what is lost where it dies:

1. **Survey.** Statements, signatures and trees of the spans, and all that only a listing shows. Lost: minutes.
2. **Pieces.** Segments of the spans are read, some hundred statements at a time. Each piece's result is signed and put
   under `reports/`, so that an audit that was killed goes on behind the last one. Nothing in `reports/` is believed
   without that signature. Events of new statements become Parquet tables in the same read.
3. **Conclusion.** Findings first, then the audit, which is the commit, then checkpoints of all logs. Of two audits at
   once one is written, and the other ends quietly.

The archive is the state: the newest audit says where to go on, and how far the rolling re-read came. An audit that no
trusted key signed is nothing to go on from: then everything is new. Prefect is not imported here.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, Literal

import msgspec

from custody import audit, layout, manifest
from custody.archive import (
    AuditHead,
    append_audit,
    find_audits,
    find_head,
    list_logs,
    put_checkpoint,
    read_archive,
    sealed_from,
    writer_name,
)
from custody.audit import Audit, Covered, FindingsRef, HeadRef, Read, Verdict
from custody.audits import is_signed
from custody.checkpoints import find_signer, trust_own
from custody.errors import (
    ConfigurationError,
    CustodyError,
    FormatError,
    ObjectMissing,
    SearchError,
    TransientStoreError,
)
from custody.findings import Finding, Severity, finding
from custody.keys import open_signers
from custody.layout import Log
from custody.manifest import Signer
from custody.settings import Settings
from custody.store import Store, open_store
from custody.trust import Trust, open_trust
from custody.verify import Report, Scope, Span, verify
from tasks.reconcile import check_cursors, find_strays, reconcile
from tasks.report import TableWriter, check_tables, list_tables
from tasks.search import Search

EXPIRED = "expired "
READ_AGAIN = "read again "
LAST_TURN = "last turn "
INDEXED = "indexed "
PIECE_FORMAT: Literal["custody/audit-piece/1"] = "custody/audit-piece/1"
_PIECE_AGE = timedelta(days=2)
_PIECE_LIMIT = manifest.MANIFEST_LIMIT
_COUNTED = ("statements", "events", "quarantined", "skipped", "lost", "stored", "inflated")
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
    """What the verification of a piece gave; line 1 of its object."""

    format: Literal["custody/audit-piece/1"]
    archive: str
    audit: int
    piece: Piece
    sealed_at: str
    counts: dict[str, int]
    findings: list[dict[str, Any]]


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
    """What an audit reads, and what its survey has found already."""

    archive: str
    sequence: int
    started_at: datetime
    pieces: tuple[Piece, ...]
    heads: dict[str, tuple[int, str]]
    """By log: where it ends, of those whose chain holds, and of those not looked at where it ended before."""
    marks: dict[str, int]
    """Counts of the audit that the next one goes on from: `expired <log>` (sequences whose objects may be gone),
    `read again <log>` (how far the turn of reading old statements again came), `last turn <log>` (when that was, in
    seconds since 1970), `indexed <log>` (how many statements Elasticsearch was seen to have; it never goes back), and
    the archive's `heartbeat`."""
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
        verdict: the worst class of its findings.
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
        info = read_archive(store)
        trust = _trust(settings)
        last = last_trusted_audit(store, trust)
        before = last.newest.statement if last.newest else None
        # A log that somebody remembers is looked for even where nothing of it is left.
        remembered = map(_log, {*(before.heads if before else ()), *trust.heads} - {str(layout.AUDIT_LOG)})
        logs = _chosen(sorted({*list_logs(store), *remembered}), request.logs)
        reads = {log: _reads(store, log, before, request, settings, now) for log in logs}
        scope = Scope({log: _surveyed(found) for log, found in reads.items() if found}, contents=False)
        report = verify(store, trust, now=now, live=True, workers=0, scope=scope, protection=settings.protection())
        tables = list_tables(store)
        tabled = [
            one.to_dict()
            for log, found in reads.items()
            for read in found
            if read.read == "again" and read.end is not None
            for one in check_tables(store, tables, info.archive, log, read.first, read.end, trust)
        ]
        # The heartbeat that the first audit says is what counts from then on.
        marks = marks_of(before)
        if 1 <= info.heartbeat <= audit.HEARTBEAT_LIMIT:
            marks.setdefault(audit.HEARTBEAT, info.heartbeat)
        if settings.search.url:
            indexed = {str(log): marks.get(f"{INDEXED}{log}", 0) for log in logs}
            look = partial(check_cursors, store=store, archive=info.archive, logs=logs, now=now, marks=indexed)
            tabled += _held_against_search(settings, look)
            marks |= {f"{INDEXED}{name}": size for name, size in indexed.items() if size}
            if not request.logs:
                tabled += _held_against_search(settings, partial(find_strays, store=store, logs=logs, now=now))
    return _planned(report, last, reads, marks, info.archive, request, settings, now, tabled)


def _planned(
    report: Report,
    last: AuditHead,
    reads: Mapping[Log, Sequence[_Read]],
    marks: dict[str, int],
    archive: str,
    request: Request,
    settings: Settings,
    now: datetime,
    tabled: Sequence[dict[str, Any]],
) -> Plan:
    before = last.newest.statement if last.newest else None
    summaries = {log.log: log for log in report.logs}
    heads = {name: (head.size, head.root) for name, head in before.heads.items()} if before else {}
    pieces: list[Piece] = []
    for log, found in reads.items():
        name = str(log)
        summary = summaries.get(name)
        if summary is None:
            continue
        # As with heads: what a statement says that does not hold is not signed again as ours.
        if summary.expired and summary.sound:
            marks[f"{EXPIRED}{name}"] = max(marks.get(f"{EXPIRED}{name}", 0), summary.expired)
        whole = any(one.end is None for one in found)
        if whole and summary.sound and summary.root is not None:
            heads[name] = summary.size, summary.root
        if not request.since and not request.until:
            marks[f"{READ_AGAIN}{name}"] = _turn_end(found)
            marks[f"{LAST_TURN}{name}"] = math.ceil(now.timestamp())
        for one in found:
            pieces += _cut(name, one.first, one.end or summary.size, one.read, settings.audit.piece_statements)
    return Plan(
        archive=archive,
        sequence=last.size,
        started_at=now,
        pieces=tuple(pieces),
        heads=heads,
        marks=marks,
        findings=(*(one.to_dict() for one in report.findings), *tabled),
    )


def marks_of(before: Audit | None) -> dict[str, int]:
    """Return the counts of an audit that the next one goes on from."""
    counts = before.counts.items() if before else ()
    return {
        name: number
        for name, number in counts
        if name.startswith((EXPIRED, READ_AGAIN, LAST_TURN, INDEXED))
        or (name == audit.HEARTBEAT and 1 <= number <= audit.HEARTBEAT_LIMIT)
    }


def last_trusted_audit(store: Store, trust: Trust) -> AuditHead:
    """Return where the audits end, with the newest one only if a trusted key signed it, for this archive.

    Raises:
        FormatError: the newest audit is not of the format.
        StoreError: the store does not answer.
    """
    head = find_audits(store)
    if head.newest is None:
        return head
    statement = head.newest.statement
    text = manifest.message(head.newest.line, audit.FORMAT)
    if statement.archive == read_archive(store).archive and is_signed(
        trust, text, head.newest.signatures, head.size - 1, statement.sealed_at
    ):
        return head
    # The survey says what is wrong with it; here it is nothing to go on from.
    return AuditHead(head.size, head.edge, None)


def _chosen(logs: Sequence[Log], wanted: Sequence[str]) -> list[Log]:
    if not wanted:
        return list(logs)
    chosen = [log for log in logs if str(log) in wanted or log.name in wanted]
    for name in wanted:
        if not any(name in {str(log), log.name} for log in chosen):
            raise ConfigurationError(f"the archive has no log {name!r}; `custody status` lists them")
    return chosen


def _reads(
    store: Store, log: Log, before: Audit | None, request: Request, settings: Settings, now: datetime
) -> list[_Read]:
    """Return what is read of a log, in order."""
    seen = before.heads.get(str(log)) if before else None
    old = seen.size if seen else 0
    if request.since or request.until:
        size = find_head(store, log, old).size
        first = sealed_from(store, log, size, request.since) if request.since else 0
        end = sealed_from(store, log, size, request.until) if request.until else size
        return [_Read(first, end, "again")] if first < end else []
    if before is None or not old:
        return [_Read(0, None, "new")]
    left = _left(store, log, old)
    again = [(0, left)] if request.full else _share(str(log), left, before, settings, now)
    return [*(_Read(first, end, "again") for first, end in again if first < end), _Read(old, None, "new", left)]


def _left(store: Store, log: Log, seen: int) -> int:
    """Return how much of a log's first `seen` statements is there: where it went back, the survey begins at its end."""
    try:
        if not seen or any(store.exists(layout.manifest_key(log, sequence)) for sequence in (seen - 1, seen)):
            return seen
        return min(find_head(store, log, seen).size, seen)
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
    turned = before.counts.get(f"{LAST_TURN}{name}")
    last = manifest.parse_time(before.started_at).timestamp() if turned is None else turned
    days = max((now.timestamp() - last) / timedelta(days=1).total_seconds(), 1.0)
    step = settings.audit.piece_statements
    many = min(math.ceil(old * days / settings.audit.reread_days / step) * step, old)
    start = before.counts.get(f"{READ_AGAIN}{name}", 0)
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


def verify_pieces(settings: Settings, plan: Plan, pieces: Sequence[Piece]) -> Iterator[PieceResult]:
    """Read segments of some pieces, and yield what each gave; what an earlier run of this audit has done is not redone.

    Raises:
        CustodyError: the archive or the keys cannot be opened.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = _trust(settings)
        signers = open_signers(settings.keys, datetime.now(UTC), settings.passphrase())
        for piece in pieces:
            done = _read_result(store, trust, plan, piece)
            if done is None:
                done = _verify_piece(settings, store, trust, signers, plan, piece)
                line = msgspec.json.encode(done)
                if len(line) < manifest.STATEMENT_LIMIT:
                    _keep(store, _result_key(plan, piece), manifest.seal(line, signers, PIECE_FORMAT))
            yield done


def _verify_piece(
    settings: Settings, store: Store, trust: Trust, signers: Sequence[Signer], plan: Plan, piece: Piece
) -> PieceResult:
    log, scope = _log(piece.log), Scope({_log(piece.log): [Span(piece.first, piece.end)]}, listing=False)
    if settings.audit.tables and piece.read == "new":
        with TableWriter(store, log, piece.first, piece.end, archive=plan.archive, signers=signers) as writer:
            report = verify(store, trust, now=datetime.now(UTC), workers=0, scope=scope, sink=writer)
            writer.finish()
    else:
        report = verify(store, trust, now=datetime.now(UTC), workers=0, scope=scope)
    findings = [one.to_dict() for one in report.findings]
    counts = Counter({name: sum(getattr(one, name) for one in report.logs) for name in _COUNTED})
    if settings.search.url:
        counts["rejected"] = 0
        look = partial(
            reconcile, store=store, archive=plan.archive, log=log, first=piece.first, end=piece.end, now=plan.started_at
        )
        marked = plan.marks.get(f"{INDEXED}{log}", 0)
        findings += _held_against_search(
            settings, partial(look, marked=marked, content=piece.read == "again", counts=counts)
        )
    return PieceResult(
        format=PIECE_FORMAT,
        archive=plan.archive,
        audit=plan.sequence,
        piece=piece,
        sealed_at=manifest.format_time(datetime.now(UTC)),
        counts=dict(counts),
        findings=findings,
    )


def _held_against_search(settings: Settings, look: Callable[[Search], Iterator[Finding]]) -> list[dict[str, Any]]:
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


def _read_result(store: Store, trust: Trust, plan: Plan, piece: Piece) -> PieceResult | None:
    """Return what an earlier run of this audit found of a piece, if it signed it."""
    try:
        line, second = manifest.split_lines(store.read(_result_key(plan, piece), limit=_PIECE_LIMIT))
        signatures = manifest.parse_signatures(second)
        result = msgspec.json.decode(line, type=PieceResult)
        age = datetime.now(UTC) - manifest.check_time("sealed_at", result.sealed_at)
    except (ObjectMissing, FormatError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    same = (result.archive, result.audit, result.piece) == (plan.archive, plan.sequence, piece)
    if not same or not timedelta(0) <= age < _PIECE_AGE:
        return None
    text = manifest.message(line, PIECE_FORMAT)
    return result if is_signed(trust, text, signatures, plan.sequence, result.sealed_at) else None


def _keep(store: Store, key: str, data: bytes) -> None:
    """Put what the next run need not do again; that it cannot be put costs that run time, and nothing else."""
    try:
        store.create(key, data)
    except CustodyError:
        return


def conclude(settings: Settings, plan: Plan, results: Sequence[PieceResult]) -> Outcome:
    """Add up, sign and write the audit, and a checkpoint of each log.

    Raises:
        Fenced: another audit was written meanwhile.
        HeadRollback: a checkpoint that is there has another root.
        CustodyError: the archive does not take it, or no key can sign.
    """
    now = datetime.now(UTC)
    findings = _merged(plan, results)
    exit_code = max((_SEVERITIES[one["class"]] for one in findings), default=0)
    verdict = _VERDICTS[exit_code]
    counts: dict[str, int] = {}
    for result in results:
        for name, number in result.counts.items():
            counts[name] = counts.get(name, 0) + number
    counts["findings"] = len(findings)
    counts |= plan.marks
    with closing(open_store(settings.archive, settings.s3)) as store:
        signers = open_signers(settings.keys, now, settings.passphrase())
        head = find_audits(store)
        held: list[dict[str, Any]] | FindingsRef = [dict(one) for one in findings]
        if len(findings) > audit.FINDINGS_INLINE:
            held = _put_findings(store, head.size, findings)
        statement = Audit(
            format=audit.FORMAT,
            archive=plan.archive,
            sequence=plan.sequence,
            tree=manifest.Tree(head.size, head.root.hex(), [node.hex() for node in head.edge]),
            started_at=manifest.format_time(plan.started_at),
            sealed_at=manifest.format_time(now),
            writer=writer_name(),
            heads={name: HeadRef(size, root) for name, (size, root) in sorted(plan.heads.items())},
            covered=_covered(plan.pieces),
            counts=dict(sorted(counts.items())),
            findings=held,
            verdict=verdict,
        )
        written = append_audit(store, head, statement, signers)
        _put_checkpoints(store, settings, plan, written, now)
        whole = f"{store.url}/{held.key if isinstance(held, FindingsRef) else layout.audit_key(statement.sequence)}"
    sizes = {name: size for name, (size, _) in plan.heads.items()}
    return Outcome(statement.sequence, verdict, exit_code, counts, tuple(findings), whole, sizes)


def _put_findings(store: Store, sequence: int, findings: Sequence[Mapping[str, Any]]) -> FindingsRef:
    data = b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in findings)
    digest = sha256(data).hexdigest()
    key = f"reports/audits/{sequence:012}/findings-{digest[:16]}.jsonl"
    store.create(key, data)
    return FindingsRef(key, len(data), digest)


def _put_checkpoints(store: Store, settings: Settings, plan: Plan, head: AuditHead, now: datetime) -> None:
    uri = settings.checkpoint_keys or settings.keys
    signer = find_signer(open_signers(uri, now, settings.passphrase()))
    if signer is None:
        return
    put_checkpoint(store, plan.archive, layout.AUDIT_LOG, head.size, head.root, signer)
    for name, (size, root) in plan.heads.items():
        if size:
            put_checkpoint(store, plan.archive, _log(name), size, bytes.fromhex(root), signer)


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
            expired = one["finding"] == "segment-missing" and sequence < plan.marks.get(f"{EXPIRED}{one.get('log')}", 0)
            if not expired and not any(first <= sequence <= through for first, through in said):
                found.append(one)
    return sorted(found, key=lambda one: (-_SEVERITIES[one["class"]], one.get("log", ""), one.get("sequence", -1)))


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


def _result_key(plan: Plan, piece: Piece) -> str:
    return f"reports/audits/{plan.sequence:012}/pieces/{piece.log}/{piece.first:012}-{piece.end:012}-{piece.read}.json"


def _trust(settings: Settings) -> Trust:
    return trust_own(open_trust([settings.keys], settings.trust, settings.passphrase()), settings)


def _log(name: str) -> Log:
    log = layout.parse_log_text(name)
    if log is None:
        raise FormatError(f"{name!r} is no log")
    return log
