"""Reads the newest audit: its verdict, and how old it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter

from custody.archive.audit_findings import read_findings
from custody.archive.forms import AUDITS
from custody.archive.reader import Tip, find_audit_tip, read_audit
from custody.archive.readings import is_of_roll
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectMissing, StoreError, counted
from custody.findings import Severity
from custody.format import layout
from custody.format.audit import Audit, SignedAudit
from custody.format.times import duration_text
from tasks.audit.signed import GOOD, find_audits
from tasks.health.archive import Opened
from tasks.health.model import AuditHealth, Problem, age_seconds, of_future
from tasks.settings import Settings

_ROLLS = 50
"""How many records of the roll are passed over to find an audit. There is at most one a day."""
_SCHEDULE = "check that audit-nightly runs, or run 'custody audit'"


@dataclass(frozen=True, slots=True)
class AuditRead:
    """The newest audit.

    Attributes:
        audit: its health; None if there is none, or if it cannot be read.
        problems: what is wrong with it.
        of_logs: the worst of what it found in each log, by the log's name.
    """

    audit: AuditHealth | None
    problems: tuple[Problem, ...] = ()
    of_logs: Mapping[str, Problem] = field(default_factory=dict)


def read_audit_health(settings: Settings, opened: Opened, now: datetime) -> AuditRead:
    """Return the newest audit of statements. With keys, it is one that they signed."""
    if not opened.is_trusted:
        return AuditRead(None)
    try:
        tip = _find_tip(opened)
        audits = _audits(opened, tip)
        audit = next(audits, None)
        age = age_seconds(audit.sealed_at, now) if audit else None
        believed = age
        while believed is None and (older := next(audits, None)) is not None:
            believed = age_seconds(older.sealed_at, now)
    except CustodyError as error:
        problem = Problem("failed", "audit-unreadable", "audit", str(error), "run 'custody verify'")
        return AuditRead(None, (problem,))
    problems: list[Problem] = []
    of_logs: dict[str, Problem] = {}
    if tip.passed_over:
        slots = counted(len(tip.passed_over), "slot has", "slots have")
        message = f"from {layout.audit_key(tip.head.size)} on, {slots} no valid audit"
        remedy = "find out who wrote them, and run 'custody verify'"
        problems.append(Problem("failed", "audit-unreadable", "audit", message, remedy))
    longest = settings.health.audit_seconds
    if audit is None:
        created = age_seconds(opened.file.statement.created, now) if opened.file else None
        # The first one is not due before.
        if created is None or created > longest:
            problems.append(Problem("warning", "audit-missing", "audit", "there is no audit yet", _SCHEDULE))
        return AuditRead(None, tuple(problems))
    count = audit.counts.get("findings", 0)
    health = AuditHealth(audit.sequence, audit.verdict, audit.sealed_at, believed, count)
    if age is None:
        problems.append(of_future("audit", "audit", audit.sealed_at, now, believed))
    if audit.verdict not in GOOD:
        failed, of_logs = _failed(opened, audit, count)
        problems.append(failed)
    if believed is not None and believed > longest:
        message = f"the newest audit is {duration_text(believed)} old"
        problems.append(Problem("warning", "audit-late", "audit", message, _SCHEDULE))
    return AuditRead(health, tuple(problems), of_logs)


def _failed(opened: Opened, audit: Audit, count: int) -> tuple[Problem, dict[str, Problem]]:
    """Return the problem of an audit that found something, with the worst finding; and the worst one of each log."""
    message = f"audit {audit.sequence} ended with the verdict {audit.verdict}; findings: {count:,}"
    remedy = f"keep everything as it is; 'custody show {layout.audit_key(audit.sequence)}' lists the findings"
    worst, of_logs = None, dict[str, Problem]()
    try:
        read = read_findings(opened.store, audit)
    except StoreError as error:
        return Problem(
            "failed", "audit-failed", "audit", f"{message}; they cannot be read now: {error}", remedy
        ), of_logs
    message = "; ".join([message, *(problem for _, problem in read.problems)])
    for finding in sorted(read.findings, key=attrgetter("severity"), reverse=True):
        if finding.severity <= Severity.NOTICE:
            break
        name, log = finding.finding, finding.log
        explained = f"keep everything as it is; run 'custody verify', and 'custody explain {name}'"
        if worst is None:
            # The problem of the audit tells it whole, so that of its log does not.
            told = "see the problem of the audit"
            places = [part for part in (log, finding.key) if part]
            worst = ": ".join([", ".join([name, *places]), finding.message])
            message, remedy = f"{message}; the worst: {worst}", explained
        else:
            where = f" ({finding.key})" if finding.key else ""
            told = f"{finding.message}{where}"
        if log and log not in of_logs:
            text = f"audit {audit.sequence} found {name}: {told}"
            of_logs[log] = Problem("failed", "audit-failed", log, text, explained)
    return Problem("failed", "audit-failed", "audit", message, remedy), of_logs


def _find_tip(opened: Opened) -> Tip[SignedAudit]:
    if opened.trust is not None and opened.file is not None:
        return find_audits(opened.store, opened.file.id, opened.trust)
    return find_audit_tip(opened.store, _judge(opened).stands)


def _judge(opened: Opened) -> Judge:
    archive = opened.file.id if opened.file else None
    return Judge(opened.store, layout.AUDIT_LOG, AUDITS, archive, opened.readable)


def _audits(opened: Opened, tip: Tip[SignedAudit]) -> Iterator[Audit]:
    """Yield the newest audits that are no records of the roll, the newest one first."""
    if tip.newest is None:
        return
    if not is_of_roll(tip.newest.statement):
        yield tip.newest.statement
    judge = _judge(opened)
    for sequence in range(tip.head.size - 2, max(-1, tip.head.size - 2 - _ROLLS), -1):
        try:
            audit = read_audit(opened.store, sequence, judge.stands).statement
        except (ObjectMissing, FormatError):
            continue
        if not is_of_roll(audit):
            yield audit
