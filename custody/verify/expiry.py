"""Rule 6, expiry: which signed expiries count, and for which statements."""

from datetime import datetime
from typing import Any

from custody.archive.reader import first_sequence
from custody.errors import CustodyError
from custody.findings import Findings, finding
from custody.format.manifest import Statement
from custody.verify.accounting import Expiry, LogAccount
from custody.verify.logs import Logs


def grant_expiries(account: LogAccount, logs: Logs, now: datetime, findings: Findings) -> None:
    """Apply each signed expiry of a log as far as it is allowed, and report where it is not.

    An expiry counts if its signature is valid, or a trusted head covers it. It counts for statements that are at least
    as old as the retention. Their age is from the latest time that any statement up to them was sealed, to the time of
    the expiry or the present time, whichever is earlier.
    """
    for expiry in account.expiries:
        counts = any(id_ not in account.signed.broken for id_ in expiry.signers)
        counts = counts or account.signed.covers(expiry.sequence)
        end = _granted_end(account, expiry, logs, now) if counts else 0
        if end > expiry.first:
            account.granted.append((expiry.first, end))
        if not counts or end >= expiry.end:
            # Problems with the statement itself are reported elsewhere.
            continue
        retention = account.promises.retention
        first, last = max(end, expiry.first), expiry.end - 1
        message = f"sequences {first} to {last} were declared expired before the end of their retention"
        where: dict[str, Any] = {"log": account.name, "sequence": expiry.sequence}
        where["expected"] = f"after {retention.days} days" if retention else "a known retention"
        where["found"] = f"sealed {min(expiry.sealed_at, now):%Y-%m-%dT%H:%M:%SZ}"
        findings.add(finding("retention", message, **where))


def _granted_end(account: LogAccount, expiry: Expiry, logs: Logs, now: datetime) -> int:
    """Return the end of the part of its range for which an expiry counts."""
    retention = account.promises.retention
    if retention is None:
        return expiry.first
    moment = min(expiry.sealed_at, now) - retention

    def too_young(statement: Statement) -> bool:
        # The times never decrease from one statement to the next, so a binary search finds the first one.
        return account.clock.latest_up_to(statement) > moment

    end = expiry.end
    if account.clock.known_until is not None:
        end = min(end, account.clock.known_until)
    try:
        end = min(end, first_sequence(logs.store, account.log, expiry.end, too_young, logs.holds(account.log)))
    except CustodyError:
        # Problems with these statements are reported elsewhere.
        return expiry.first
    return max(end, expiry.first)
