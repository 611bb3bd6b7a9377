"""Rule 6, expiry: which signed expiries count, and which missing or deleted objects they cover."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from custody.archive.reader import first_sequence
from custody.errors import CustodyError
from custody.findings import Finding, Findings, finding
from custody.format import layout
from custody.format.manifest import Statement
from custody.format.times import shift
from custody.verify.accounting import Expiry, LogAccount
from custody.verify.accounts import Accounts, Logs
from custody.verify.work import Work

_MISSING_LIMIT = 100_000


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
    moment = shift(min(expiry.sealed_at, now), -retention)

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


@dataclass(slots=True)
class _MissingOfLog:
    objects: list[tuple[Work, str]]
    beyond: tuple[int, int] | None = None
    """The range of sequences of the objects that are not in `objects`."""
    events: int = 0
    """Events of the segments that are not in `objects`."""
    sealed: tuple[str, str] | None = None
    """When the first and the last of their statements were sealed."""


class Missing:
    """Missing objects by log. They are kept one by one up to a limit: after an expiry there are many."""

    def __init__(self) -> None:
        self._logs: dict[str, _MissingOfLog] = {}
        self._count = 0

    def add(self, work: Work, key: str) -> None:
        """Add a missing object."""
        missing = self._logs.setdefault(work.log, _MissingOfLog([]))
        if self._count < _MISSING_LIMIT:
            self._count += 1
            missing.objects.append((work, key))
        else:
            first, end = missing.beyond or (work.sequence, 0)
            missing.beyond = min(first, work.sequence), max(end, work.sequence + 1)
            missing.events += _events(work) if key.startswith(layout.EVENTS) else 0
            moments = [work.sealed_at, *(missing.sealed or ())]
            missing.sealed = min(moments), max(moments)

    def report(self, accounts: Accounts, findings: Findings) -> None:
        """Report missing objects. For those that an expiry covers, only count the events."""
        for name, missing in self._logs.items():
            of_log = accounts.of(name)
            for work, key in missing.objects:
                if any(account.may_be_gone(work.sequence) for account in of_log):
                    if key.startswith(layout.EVENTS):
                        accounts.of_work(work).lose(_events(work), work.sealed_at)
                    continue
                kind = "segment" if key.startswith(layout.EVENTS) else "quarantine object"
                message = f"the {kind} of offsets {work.first_offset} to {work.next_offset - 1} is missing"
                where: dict[str, Any] = {"log": name, "sequence": work.sequence, "key": key}
                findings.add(finding("segment-missing", message, offset=work.first_offset, **where))
            if missing.beyond is None:
                continue
            first, end = missing.beyond
            granted = max((stop for account in of_log for start, stop in account.granted if start <= first), default=0)
            if of_log and granted >= end:
                of_log[-1].lose(missing.events, *(missing.sealed or ()))
            if granted < end:
                message = "more objects are missing; they are too many to be listed one by one"
                first = max(first, granted)
                findings.add(finding("segment-missing", message, log=name, sequence=first, through=end - 1))


def _events(work: Work) -> int:
    return sum(batch.events for batch in work.batches)


def report_history(history: Sequence[tuple[str, Finding]], accounts: Accounts, logs: Logs, findings: Findings) -> None:
    """Report overwritten and deleted evidence, except what has expired."""
    gone: dict[layout.Log, list[tuple[int, int]]] = {}
    for key, change in history:
        parsed = layout.parse_records_key(key)
        if parsed is None:
            findings.add(change)
            continue
        if parsed.log not in gone:
            gone[parsed.log] = _expired_offsets(parsed.log, accounts, logs)
        if not any(first <= parsed.first and parsed.last < end for first, end in gone[parsed.log]):
            findings.add(change)


def _expired_offsets(log: layout.Log, accounts: Accounts, logs: Logs) -> list[tuple[int, int]]:
    """Return the ranges of offsets whose objects may have been deleted."""
    ranges = []
    for first, end in (granted for account in accounts.of(log) for granted in account.granted):
        begin, last = logs.statement(log, first), logs.statement(log, end - 1)
        if begin and last:
            ranges.append((begin.first_offset, last.next_offset))
    return ranges
