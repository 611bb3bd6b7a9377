"""The conclusion of an audit: merge the findings, sign the audit, and write it.

An audit verifies the statements that are new since the last signed audit, and a share of the old ones, and signs the
result. Its phases, and what is lost if the process dies in each:

1. **Survey** (`plan`). Checks statements, signatures and trees of new statements, lists what belongs to no piece, and
   plans the night's turn (`turn`). Pieces take what it has read (`kept`). Lost: some minutes of work.
2. **Pieces** (`pieces`). Reads the statements of the spans with all that they name, some hundred at a time, and lists
   their slots. Each piece's result is signed and put under `reports/`, so an audit that was killed resumes after the
   last piece. A result counts only with that signature, for two hours, and if the store says that no object was put
   since. The audit's `started_at` is the start of the earliest piece that it uses. The same read makes Parquet tables
   of new events.
3. **Conclusion.** Lists the records' part of the turn (`listed`). Adds what was read to what is known of sources
   (`sources`), and to the index by time (`time_index`). Writes long lists of findings first, then the audit, which is
   the commit, then checkpoints of all logs. If two audits run at once, one is written and the other ends without an
   error. If a roll has signed a record since the survey, the audit is written behind it.

The archive is the state: the newest audit says where to continue, and how far the rolling re-read has come. If a
trusted key signed that audit outside its span, it is not used, and everything is verified as new. If it does not count
at all, and may not be passed over, the new audit ends with an alarm.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from custody.archive.checkpoints import put_checkpoint
from custody.archive.forms import form_of
from custody.archive.reader import Tip
from custody.archive.trusted import Judge
from custody.archive.writer import writer_name
from custody.errors import Fenced
from custody.findings import Severity
from custody.format import audit, layout
from custody.format.audit import Audit, Covered, Marks, ObjectRef, SignedAudit, Verdict
from custody.format.envelope import HeadRef
from custody.format.times import format_time, parse_time
from custody.keys.signers import Signers
from custody.keys.trust import Trust
from custody.store.ahead import call_ahead
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import Head, KnownHead
from tasks.audit import turn as turns
from tasks.audit.kept import Kept
from tasks.audit.listed import check_listed
from tasks.audit.objects import keep_report, log_named, put_lines, refer_to
from tasks.audit.pieces import PieceResult
from tasks.audit.plan import Piece, Plan
from tasks.audit.signed import are_of_rolls, find_audits, sign_behind
from tasks.audit.sources import account
from tasks.audit.time_index import hand_on
from tasks.audit.turn import Turn
from tasks.settings import Settings

_CHECKPOINTS = 8
"""Checkpoints that are put at once: a key in KMS has its limits too."""
TAKEN_OVER = "pieces_taken_over"
"""In `counts`: how many pieces an earlier run of this audit read."""
_VERDICTS: Mapping[int, Verdict] = {
    0: "verified",
    Severity.NOTICE: "notices",
    Severity.POLICY: "policy",
    Severity.INCOMPLETE: "incomplete",
    Severity.UNVERIFIABLE: "unverifiable",
    Severity.TAMPERED: "tampered",
}
_SEVERITIES = {severity.name.lower(): int(severity) for severity in Severity}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an audit.

    Attributes:
        sequence: the audit's sequence number.
        verdict: the verdict, by the worst severity of its findings.
        exit_code: the exit code, as in `custody verify`.
        counts: numbers of events, statements and so on that were read.
        findings: the findings, the worst first.
        whole: the address of all findings: the audit, or an object of its own if they are too many for it.
        expired: when the first and the last statement were sealed whose events expired and are gone; None without any.
        report: the address of the integrity report, if one was made.
    """

    sequence: int
    verdict: Verdict
    exit_code: int
    counts: Mapping[str, int]
    findings: tuple[Mapping[str, Any], ...]
    whole: str
    expired: tuple[str, str] | None = None
    report: str | None = None


def conclude(settings: Settings, plan: Plan, results: Sequence[PieceResult], kept: Kept | None = None) -> Outcome:
    """Merge the results, sign and write the audit, and write a checkpoint of each log.

    Args:
        settings: the settings.
        plan: the audit's plan.
        results: of its pieces.
        kept: what the survey has read.

    Raises:
        Fenced: another valid audit was written meanwhile.
        HeadRollback: the audits went back meanwhile, an audit's slot holds an entry that may not be passed over, or an
            existing checkpoint has another root.
        CustodyError: the archive cannot be written, or no key can sign.
    """
    now = datetime.now(UTC)
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    counts[TAKEN_OVER] = sum(result.run != plan.run for result in results)
    started_at = min([plan.started_at, *(parse_time(result.started_at) for result in results)])
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust, signers = settings.own_trust(), settings.signers(now)
        # Also before the work that another audit would make needless.
        plan = msgspec.structs.replace(plan, sequence=_tip(store, plan, trust, results).size)
        reading = kept.reading(store) if kept else store
        of_sources = account(reading, settings, trust, plan, results, now)
        spans = [span for result in results for span in result.spans]
        replaced = {(result.piece.log, first) for result in results for first in result.replaced}
        indexed, lost = hand_on(reading, trust, plan, spans, replaced)
        listed, turn = check_listed(reading, trust, plan, results)
        findings = _merged(plan, results, [*of_sources.findings, *(each.to_dict() for each in (*lost, *listed))])
        exit_code = max((_SEVERITIES[finding["severity"]] for finding in findings), default=0)
        verdict = _VERDICTS[exit_code]
        counts.update(of_sources.counts, findings=len(findings))
        inline: list[dict[str, Any]] | ObjectRef = [dict(finding) for finding in findings]
        objects = [ref for result in results for ref in result.objects]
        marks, turn = _repeated(plan, results, turn)
        handed_on = [turns.put(store, plan.sequence, turn)] if turn else []
        heads = _heads(plan, results)

        def make(tip: Tip[SignedAudit]) -> Audit:
            reports = keep_report(store, trust, plan.archive, tip.head.size - 1)
            return Audit(
                format=audit.FORMAT,
                archive=plan.archive,
                sequence=tip.size,
                tree=tip.tree,
                passed_over=list(tip.passed_over),
                started_at=format_time(started_at),
                sealed_at=format_time(now),
                writer=writer_name(),
                heads={name: HeadRef(size, root) for name, (size, root) in sorted(heads.items())},
                covered=_covered(plan.pieces),
                marks=dict(sorted(marks.items())),
                counts=dict(sorted(counts.items())),
                findings=inline if len(findings) <= audit.FINDINGS_INLINE else put_lines(store, findings),
                objects=refer_to(store, [*objects, *reports, of_sources.ref, *indexed, *handed_on]),
                verdict=verdict,
            )

        # If it was a roll that came first, the end is behind its record then.
        written = sign_behind(store, partial(_tip, store, plan, trust, results), make, signers.both(), trust)
        _put_checkpoints(store, trust, signers, plan.archive, heads, written)
        sequence = written.size - 1
        held = written.newest.statement.findings if written.newest else None
        whole = f"{store.url}/{held.key if isinstance(held, ObjectRef) else layout.audit_key(sequence)}"
    moments = [moment for result in results for moment in result.expired_sealed or ()]
    expired = (min(moments), max(moments)) if moments else None
    return Outcome(sequence, verdict, exit_code, counts, tuple(findings), whole, expired)


def _tip(store: Store, plan: Plan, trust: Trust, results: Sequence[PieceResult]) -> Tip[SignedAudit]:
    """Return the end of the audits: where it was when this audit was planned, or behind records of rolls.

    A roll's record says nothing that an audit continues from. But a roll deletes what has expired, so if this audit
    missed objects, the next one reads their pieces again.

    Raises:
        Fenced: another one was written meanwhile; or a roll's record, and objects were missing.
        HeadRollback: the audits went back.
    """
    tip = find_audits(store, plan.archive, trust, [KnownHead(plan.audits, None, "the plan of this audit")])
    if tip.head.size > plan.audits and not are_of_rolls(store, plan.archive, trust, range(plan.audits, tip.head.size)):
        raise Fenced(f"audit {tip.head.size - 1} was written by another process meanwhile")
    missed = (problem["finding"] == "segment-missing" for result in results for problem in result.findings)
    if tip.head.size > plan.audits and any(missed):
        raise Fenced(
            f"audit {tip.head.size - 1}, of a roll, was written meanwhile, and objects were missing that the roll may"
            " have deleted: run the audit again"
        )
    return tip


def _heads(plan: Plan, results: Sequence[PieceResult]) -> dict[str, tuple[int, str]]:
    """Return the heads to sign. For a log of which a piece's chain is not valid, it is the previous audit's."""
    unsound = {result.piece.log for result in results if not result.sound}
    heads = {name: head for name, head in plan.heads.items() if name not in unsound}
    return heads | {name: head for name, head in plan.known.items() if name in unsound}


def _repeated(plan: Plan, results: Sequence[PieceResult], turn: Turn | None) -> tuple[dict[str, Marks], Turn | None]:
    """Return the marks and what is handed on. A log of which something could not be read has its turn again.

    Until that is done its share grows by each night, so that all of it is still read within `audit.reread_days`.
    """
    marks, sizes = dict(plan.marks), dict(turn.sizes) if turn else {}
    again = {result.piece.log for result in results if result.piece.read == "again" and _lacks(result)}
    again |= _unlisted(plan)
    for name in again & marks.keys():
        old = plan.marks_before.get(name, Marks(0, 0, format_time(plan.started_at), 0))
        marks[name] = msgspec.structs.replace(marks[name], reread=old.reread, reread_at=old.reread_at)
        if plan.before is not None and name in plan.before.sizes:
            sizes[name] = plan.before.sizes[name]
    return marks, msgspec.structs.replace(turn, sizes=sizes) if turn else None


def _unlisted(plan: Plan) -> set[str]:
    """Return the logs of which a folder could not be listed. In a folder, a log is listed in one night of its turn."""
    keys = {problem.get("key") for problem in plan.findings if problem["finding"] == "unreadable"}
    prefixes = (layout.log_prefix, layout.checkpoint_prefix)
    return {name for name in plan.marks if not keys.isdisjoint(prefix(log_named(name)) for prefix in prefixes)}


def _lacks(result: PieceResult) -> bool:
    return any(problem["finding"] == "unreadable" for problem in result.findings)


def _put_checkpoints(
    store: Store,
    trust: Trust,
    signers: Signers,
    archive: str,
    signed: Mapping[str, tuple[int, str]],
    tip: Tip[SignedAudit],
) -> None:
    heads = {name: Head(size, bytes.fromhex(root)) for name, (size, root) in signed.items() if size}
    signer = signers.ed25519()

    def put(item: tuple[str, Head]) -> None:
        log, head = log_named(item[0]), item[1]
        put_checkpoint(store, archive, log, head, signer, Judge(store, log, form_of(log), archive, trust))

    for _ in call_ahead(store, put, {str(layout.AUDIT_LOG): tip.head, **heads}.items(), _CHECKPOINTS):
        pass


def _merged(
    plan: Plan, results: Sequence[PieceResult], of_sources: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return all findings, the worst first. A finding of the survey that a piece repeats is reported once."""
    surveyed: dict[tuple[str | None, ...], list[tuple[int, int]]] = {}
    for finding in plan.findings:
        # -1, not 0: a finding without a statement is not about the first one.
        first = finding.get("sequence", -1)
        surveyed.setdefault(_subject(finding), []).append((first, finding.get("through", first)))
    merged = [*plan.findings, *of_sources]
    for result in results:
        for finding in result.findings:
            sequence = finding.get("sequence", -1)
            reported = surveyed.get(_subject(finding), ())
            marks = plan.marks.get(finding.get("log", ""))
            expired = finding["finding"] == "segment-missing" and marks is not None and sequence < marks.expired
            if not expired and not any(first <= sequence <= through for first, through in reported):
                merged.append(finding)
    return sorted(
        merged,
        key=lambda finding: (-_SEVERITIES[finding["severity"]], finding.get("log", ""), finding.get("sequence", -1)),
    )


def _subject(finding: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return what a finding is about: a log, and if it names no statement, an object."""
    return finding["finding"], finding.get("log"), None if "sequence" in finding else finding.get("key")


def _covered(pieces: Sequence[Piece]) -> dict[str, list[Covered]]:
    """Return the statements that were read of each log, with adjacent ranges joined."""
    covered: dict[str, list[Covered]] = {}
    for piece in sorted(pieces, key=lambda piece: (piece.log, piece.first)):
        spans = covered.setdefault(piece.log, [])
        if spans and (spans[-1].to, spans[-1].read) == (piece.first, piece.read):
            spans[-1] = Covered(spans[-1].from_, piece.end, piece.read)
        else:
            spans.append(Covered(piece.first, piece.end, piece.read))
    return covered
