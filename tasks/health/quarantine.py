"""Why too many of a log's newest records are in quarantine.

Rules:
- The share is of the newest statements that `tasks.health.archive` reads anyway: what an older release of a producer
  sent is not reported for ever, and does not hide what the newest one sends.
- When the share is too large, `tasks.drain.quarantine` says, for a run as well. Only then are reasons read, from the
  newest quarantine objects, until `ENOUGH` are counted. So a healthy log costs no request, and a sick one a few.
"""

from collections.abc import Sequence

from custody.archive.quarantined import read_reasons
from custody.errors import StoreError, counted
from custody.format.manifest import Statement
from custody.format.reasons import NOT_KNOWN, Reasons
from custody.store.protocol import Store
from tasks.drain.quarantine import REMEDY
from tasks.health.model import Problem, Recent

ENOUGH = 1_000
"""Records whose reasons are counted for one log."""


def read_commonest(store: Store, statements: Sequence[Statement]) -> str | None:
    """Return the commonest reason of the newest quarantined records, with an example.

    Args:
        store: the archive.
        statements: the newest one first.
    """
    reasons = Reasons()
    for statement in statements:
        if statement.quarantine is not None and reasons.records < ENOUGH:
            try:
                reasons.add(read_reasons(store, statement.quarantine))
            except StoreError:
                reasons.note(NOT_KNOWN, statement.quarantine.records)
    return reasons.commonest()


def problem_of(log: str, recent: Recent) -> Problem:
    """Return the problem of a log with too many records in quarantine."""
    newest = counted(recent.statements, "newest statement")
    message = (
        f"{recent.quarantined_share:.1%} of the records in its {newest}, sealed since"
        f" {recent.since}, are in quarantine ({recent.quarantined:,}), most often: {recent.reason}"
    )
    return Problem("warning", "quarantined", log, message, REMEDY)
