"""The conclusion of an audit: add up what was found, sign it, and write it. Here is the life of an audit, too.

An audit verifies what is new since the last signed audit and a share of what is old, and signs the result.

The life of an audit, and what is lost where it dies:

1. **Survey** (`plan`). Statements, signatures and trees of the spans, and all that only a listing shows. Lost: minutes.
2. **Pieces** (`pieces`). Segments of the spans are read, some hundred statements at a time. Each piece's result is
   signed and put under `reports/`, so that an audit that was killed goes on behind the last one. Nothing in `reports/`
   is believed without that signature, nor what is older than two hours: what was read then may have been changed since.
   An audit says that it began when the first piece that it counts was begun. Events of new statements become Parquet
   tables in the same read.
3. **Conclusion.** Findings first, then the audit, which is the commit, then checkpoints of all logs. Of two audits at
   once one is written, and the other ends quietly.

The archive is the state: the newest audit says where to go on, and how far the rolling re-read came. An audit that a
trusted key signed outside its span is nothing to go on from: then everything is new. One that does not count at all,
and may not be passed over, ends the audit with an alarm.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from custody.archive.forms import form_of
from custody.archive.reader import Tip
from custody.archive.trusted import Judge
from custody.archive.writer import append_audit, put_checkpoint, writer_name
from custody.errors import (
    Fenced,
)
from custody.findings import Severity
from custody.format import audit, layout
from custody.format.audit import Audit, Covered, ObjectRef, SignedAudit, Verdict
from custody.format.envelope import HeadRef
from custody.format.times import format_time, parse_time
from custody.keys.signers import Signers
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import Head, KnownHead
from tasks.audit.kept_report import keep_report
from tasks.audit.newest import find_audits
from tasks.audit.objects import log_named, put_lines, refer_to
from tasks.audit.pieces import PieceResult
from tasks.audit.plan import Piece, Plan
from tasks.settings import Settings

TAKEN_OVER = "pieces_taken_over"
"""In `counts`: how many pieces an earlier run of the audit has read."""
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
        tip = find_audits(store, plan.archive, trust, [KnownHead(plan.audits, None, "the plan of this audit")])
        if tip.head.size > plan.audits:
            raise Fenced(f"audit {tip.head.size - 1} was written by somebody else meanwhile")
        inline: list[dict[str, Any]] | ObjectRef = [dict(one) for one in findings]
        held = inline if len(findings) <= audit.FINDINGS_INLINE else put_lines(store, findings)
        objects = [ref for result in results for ref in result.objects]
        objects += keep_report(store, trust, plan.archive, tip.head.size - 1)

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
                objects=refer_to(store, objects),
                verdict=verdict,
            )

        written = append_audit(store, tip, make, signers.both(), trust)
        _put_checkpoints(store, trust, signers, plan, written)
        sequence = written.size - 1
        whole = f"{store.url}/{held.key if isinstance(held, ObjectRef) else layout.audit_key(sequence)}"
    sizes = {name: size for name, (size, _) in plan.heads.items()}
    return Outcome(sequence, verdict, exit_code, counts, tuple(findings), whole, sizes)


def _put_checkpoints(store: Store, trust: Trust, signers: Signers, plan: Plan, tip: Tip[SignedAudit]) -> None:
    heads = {name: Head(size, bytes.fromhex(root)) for name, (size, root) in plan.heads.items() if size}
    for name, head in {str(layout.AUDIT_LOG): tip.head, **heads}.items():
        log = log_named(name)
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
