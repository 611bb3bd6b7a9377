"""Rule 6, expiry: which of the signed expiries count, and over which statements."""

from datetime import datetime
from typing import Any

from custody.archive.reader import first_sequence
from custody.errors import CustodyError
from custody.findings import Findings, finding
from custody.format.manifest import Statement
from custody.verify.accounting import Expiry, LogAccount
from custody.verify.logs import Logs


def grant_expiries(account: LogAccount, logs: Logs, now: datetime, findings: Findings) -> None:
    """Grant each signed expiry of a log what it covers rightly, and report what it does not.

    It counts if its signature does, or a trusted head covers it; and over statements whose age is at least the
    retention: from the latest time that any statement up to there was sealed, to the expiry's own or ours, whichever is
    earlier.
    """
    for expiry in account.expiries:
        counts = any(id_ not in account.signed.broken for id_ in expiry.signers)
        counts = counts or account.signed.covers(expiry.sequence)
        end = _granted_end(account, expiry, logs, now) if counts else 0
        if end > expiry.first:
            account.granted.append((expiry.first, end))
        if not counts or end >= expiry.end:
            # What is wrong with the statement itself is a finding of its own.
            continue
        retention = account.promises.retention
        what = f"sequences {max(end, expiry.first)} to {expiry.end - 1} were let expire before their time"
        where: dict[str, Any] = {"log": account.name, "sequence": expiry.sequence}
        where["expected"] = f"after {retention.days} days" if retention else "a known retention"
        where["found"] = f"sealed {min(expiry.sealed_at, now):%Y-%m-%dT%H:%M:%SZ}"
        findings.add(finding("retention", what, **where))


def _granted_end(account: LogAccount, expiry: Expiry, logs: Logs, now: datetime) -> int:
    """Return behind which sequence of its range an expiry no longer counts."""
    retention = account.promises.retention
    if retention is None:
        return expiry.first
    moment = min(expiry.sealed_at, now) - retention

    def too_young(statement: Statement) -> bool:
        # Never falls from one statement to the next, so that halving finds the first one.
        return account.clock.latest_up_to(statement) > moment

    end = expiry.end
    if account.clock.known_until is not None:
        end = min(end, account.clock.known_until)
    try:
        end = min(end, first_sequence(logs.store, account.log, expiry.end, too_young, logs.holds(account.log)))
    except CustodyError:
        # What is wrong with a statement on the way is a finding of its own.
        return expiry.first
    return max(end, expiry.first)
