"""Reads the newest audit: its verdict, and how old it is."""

from dataclasses import dataclass
from datetime import datetime

from custody.archive.forms import AUDITS
from custody.archive.reader import Tip, find_audit_tip, read_audit
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, ObjectMissing, TransientStoreError
from custody.format import layout
from custody.format.audit import Audit, SignedAudit
from custody.format.times import duration_text, parse_time
from custody.keys.trust import Trust
from tasks.audit.signed import GOOD, find_audits, is_of_roll
from tasks.health.archive import Opened
from tasks.health.model import AuditHealth, Problem
from tasks.settings import Settings

_ROLLS = 50
"""How many records of the roll are passed over to find the newest audit. There is at most one a day."""
_SCHEDULE = "check that audit-nightly runs, or run 'custody audit'"


@dataclass(frozen=True, slots=True)
class AuditRead:
    """The newest audit, None if there is none or it cannot be read, and what is wrong with it."""

    audit: AuditHealth | None
    problems: tuple[Problem, ...] = ()


def read_audit_health(settings: Settings, opened: Opened, now: datetime) -> AuditRead:
    """Return the newest audit of statements. With keys, it is one that they signed.

    Raises:
        TransientStoreError: the archive's storage does not answer.
    """
    if not opened.is_trusted:
        return AuditRead(None)
    try:
        audit = _newest(opened)
    except TransientStoreError:
        raise
    except CustodyError as error:
        problem = Problem("failed", "audit-unreadable", "audit", str(error), "run 'custody verify'")
        return AuditRead(None, (problem,))
    longest = settings.health.audit_seconds
    if audit is None:
        # The first one is not due before.
        if opened.file and (now - parse_time(opened.file.statement.created)).total_seconds() <= longest:
            return AuditRead(None)
        return AuditRead(None, (Problem("warning", "audit-missing", "audit", "there is no audit yet", _SCHEDULE),))
    age = (now - parse_time(audit.sealed_at)).total_seconds()
    count = audit.counts.get("findings", 0)
    health = AuditHealth(audit.sequence, audit.verdict, audit.sealed_at, age, count)
    problems = []
    if audit.verdict not in GOOD:
        message = f"audit {audit.sequence} ended with the verdict {audit.verdict}; findings: {count:,}"
        remedy = f"keep everything as it is; 'custody show {layout.audit_key(audit.sequence)}' lists the findings"
        problems.append(Problem("failed", "audit-failed", "audit", message, remedy))
    if age > longest:
        message = f"the newest audit is {duration_text(age)} old"
        problems.append(Problem("warning", "audit-late", "audit", message, _SCHEDULE))
    return AuditRead(health, tuple(problems))


def _newest(opened: Opened) -> Audit | None:
    """Return the newest audit that is no record of the roll; None if there is none among the newest."""
    archive = opened.file.id if opened.file else None
    judge = Judge(opened.store, layout.AUDIT_LOG, AUDITS, archive, opened.trust or Trust())
    tip: Tip[SignedAudit]
    if opened.trust is not None and opened.file is not None:
        tip = find_audits(opened.store, opened.file.id, opened.trust)
    else:
        tip = find_audit_tip(opened.store, judge.stands)
    if tip.newest is None:
        return None
    if not is_of_roll(tip.newest.statement):
        return tip.newest.statement
    for sequence in range(tip.head.size - 2, max(-1, tip.head.size - 2 - _ROLLS), -1):
        try:
            audit = read_audit(opened.store, sequence, judge.stands).statement
        except (ObjectMissing, FormatError):
            continue
        if not is_of_roll(audit):
            return audit
    return None
