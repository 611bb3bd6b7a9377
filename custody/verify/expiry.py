"""Rule 6, expiry: which signed expiries count, and which missing or deleted objects they cover."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from custody.archive.reader import manifests_from
from custody.archive.search import first_sequence
from custody.errors import CustodyError, StoreError
from custody.findings import Finding, Findings, finding
from custody.format import layout
from custody.format.manifest import Range, Statement
from custody.format.times import parse_time, shift
from custody.verify.accounting import Expiry, LogAccount
from custody.verify.accounts import Accounts, Logs
from custody.verify.clock import Clock
from custody.verify.work import Work

_MISSING_LIMIT = 100_000


def grant_expiries(account: LogAccount, logs: Logs, now: datetime, findings: Findings) -> None:
    """Apply each signed expiry of a log as far as it is allowed, and report where it is not.

    An expiry counts if its signature is valid, or a trusted head covers it. It counts for statements that are at least
    as old as the retention. Their age is from the latest time that any statement up to them was sealed, to the time of
    the expiry or the present time, whichever is earlier.
    """
    signed, retention = account.signed, account.promises.retention
    # Problems with the other ones are reported elsewhere.
    counting = [
        expiry
        for expiry in account.expiries
        if any(id_ not in signed.broken for id_ in expiry.signers) or signed.covers(expiry.sequence)
    ]
    # If the account begins later, an audit must have found that the statements before this one are old enough.
    first = max((end for _, end in account.granted), default=0) if account.begin else 0
    try:
        clock = _clock(account, logs, first, max((expiry.end for expiry in counting), default=0))
    except StoreError as error:
        findings.add(finding("unreadable", f"what has expired is not known: {error}", log=account.name))
        return
    for expiry in counting:
        end = _granted_end(account, expiry, logs, clock, first)
        if end > expiry.first:
            account.granted.append((expiry.first, end))
        if end >= expiry.end:
            continue
        message = f"sequences {max(end, expiry.first)} to {expiry.end - 1} were declared expired before the end of"
        where: dict[str, Any] = {"log": account.name, "sequence": expiry.sequence}
        where["expected"] = f"after {retention.days} days" if retention else "a known retention"
        where["found"] = f"sealed {min(expiry.sealed_at, now):%Y-%m-%dT%H:%M:%SZ}"
        findings.add(finding("retention", f"{message} their retention", **where))


def _clock(account: LogAccount, logs: Logs, first: int, end: int) -> Clock:
    """Return the times of the statements from `first` on, up to `end` at least.

    They have no order. What an earlier statement said is known only if each one was read.

    Raises:
        StoreError: a statement cannot be read.
    """
    if account.begin <= first:
        return account.clock
    clock = Clock(account.now, None)
    for _, manifest in manifests_from(logs.store, account.log, first, end, logs.holds(account.log)):
        clock.step(manifest.statement, parse_time(manifest.statement.sealed_at))
    return clock


def _granted_end(account: LogAccount, expiry: Expiry, logs: Logs, clock: Clock, first: int) -> int:
    """Return the end of the part of its range for which an expiry counts. Statements before `first` are old enough."""
    retention = account.promises.retention
    if retention is None:
        return expiry.first
    moment = shift(min(expiry.sealed_at, account.now), -retention)

    def too_young(statement: Statement) -> bool:
        # The latest time never decreases from one statement to the next, so a binary search finds the first one.
        return statement.sequence >= first and clock.latest_up_to(statement) > moment

    end = min(expiry.end, expiry.end if clock.known_until is None else clock.known_until)
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
    quarantined: int = 0
    """Records of the quarantine objects that are not in `objects`."""
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
            events, quarantined = _counts(work, key)
            missing.events += events
            missing.quarantined += quarantined
            moments = [work.sealed_at, *(missing.sealed or ())]
            missing.sealed = min(moments), max(moments)

    def report(self, accounts: Accounts, findings: Findings) -> None:
        """Report missing objects. For those that an expiry covers, only count the records."""
        for name, missing in self._logs.items():
            of_log = accounts.of(name)
            for work, key in missing.objects:
                if any(account.may_be_gone(work.sequence) for account in of_log):
                    accounts.of_work(work).lose(*_counts(work, key), work.sealed_at)
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
                of_log[-1].lose(missing.events, missing.quarantined, *(missing.sealed or ()))
            if granted < end:
                message = "more objects are missing; they are too many to be listed one by one"
                first = max(first, granted)
                findings.add(finding("segment-missing", message, log=name, sequence=first, through=end - 1))


def _counts(work: Work, key: str) -> tuple[int, int]:
    """Return how many events, and how many quarantined records, a statement says of its object."""
    if key.startswith(layout.EVENTS):
        return sum(batch.events for batch in work.batches), 0
    return 0, work.quarantine.records if work.quarantine else 0


def report_history(
    history: Sequence[tuple[str, Finding]],
    granted: Callable[[layout.Log], Sequence[Range]],
    logs: Logs,
    findings: Findings,
    left_out: Callable[[layout.Log], bool],
) -> None:
    """Report overwritten and deleted evidence, except what has expired.

    Args:
        history: keys, each with the finding about it.
        granted: returns the ranges of a log's sequences whose objects may have been deleted.
        logs: reads statements again.
        findings: gets the findings.
        left_out: returns whether a log is not in the part that was asked for.
    """
    gone: dict[layout.Log, list[tuple[int, int]]] = {}
    for key, change in history:
        if (log := layout.log_of(key)) and left_out(log):
            continue
        parsed = layout.parse_records_key(key)
        if parsed is None:
            findings.add(change)
            continue
        if parsed.log not in gone:
            gone[parsed.log] = _expired_offsets(parsed.log, granted(parsed.log), logs)
        if not any(first <= parsed.first and parsed.last < end for first, end in gone[parsed.log]):
            findings.add(change)


def _expired_offsets(log: layout.Log, granted: Sequence[Range], logs: Logs) -> list[tuple[int, int]]:
    """Return the ranges of offsets whose objects may have been deleted."""
    ranges = []
    for first, end in granted:
        begin, last = logs.statement(log, first), logs.statement(log, end - 1)
        if begin and last:
            ranges.append((begin.first_offset, last.next_offset))
    return ranges
