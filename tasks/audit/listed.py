"""Checks what an audit lists of the records' keys, once its pieces have read what their statements name."""

from collections.abc import Sequence

import msgspec

from custody.findings import Finding, Findings
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.verify.accounts import Logs
from custody.verify.records import NAME_BYTES, LogEnd, Stretch, check_records
from tasks.audit.objects import log_named
from tasks.audit.pieces import PieceResult
from tasks.audit.plan import Plan
from tasks.audit.tables import find_unlisted
from tasks.audit.turn import Turn


def check_listed(
    store: Store, trust: Trust, plan: Plan, results: Sequence[PieceResult]
) -> tuple[Sequence[Finding], Turn | None]:
    """Return the findings about listed objects, and what the audit hands on.

    Keys that cannot be listed now are due in the next night: the audit hands on what the one before did.
    """
    if not plan.listed:
        return (), plan.turn
    findings = Findings(trust.accepted)
    stretches = [Stretch(*each) for each in plan.listed]
    ends = {
        log_named(name): LogEnd(size, offset, plan.marks[name].expired if name in plan.marks else 0)
        for name, (size, offset) in plan.ends.items()
    }
    logs = Logs(store, trust, plan.archive)
    complete = check_records(logs, ends, stretches, (result.names for result in results), findings)
    named = {
        result.tables[start : start + NAME_BYTES]
        for result in results
        for start in range(0, len(result.tables), NAME_BYTES)
    }
    for problem in find_unlisted(store, plan.archive, stretches, named, trust):
        findings.add(problem)
        complete = complete and problem.finding != "unreadable"
    if complete or plan.turn is None:
        return findings.sorted(), plan.turn
    before = plan.before or Turn(archive=plan.archive)
    made = msgspec.structs.replace(plan.turn, listed=before.listed, following=before.following)
    return findings.sorted(), made
