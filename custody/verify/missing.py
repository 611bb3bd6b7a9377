"""Objects that statements name and that do not exist: deleted after a signed expiry, or missing."""

from dataclasses import dataclass
from typing import Any

from custody.findings import Findings, finding
from custody.format import layout
from custody.verify.accounts import Accounts
from custody.verify.work import Work

_LIMIT = 100_000


@dataclass(slots=True)
class _MissingOfLog:
    objects: list[tuple[Work, str]]
    beyond: tuple[int, int] | None = None
    """The range of sequences of the objects that are not in `objects`."""
    events: int = 0
    """Events of the segments that are not in `objects`."""


class Missing:
    """Missing objects by log. They are kept one by one up to a limit: after an expiry there are many."""

    def __init__(self) -> None:
        self._logs: dict[str, _MissingOfLog] = {}
        self._count = 0

    def add(self, work: Work, key: str) -> None:
        """Add a missing object."""
        found = self._logs.setdefault(work.log, _MissingOfLog([]))
        if self._count < _LIMIT:
            self._count += 1
            found.objects.append((work, key))
        else:
            first = found.beyond[0] if found.beyond else work.sequence
            found.beyond = min(first, work.sequence), max(found.beyond[1] if found.beyond else 0, work.sequence + 1)
            found.events += _events(work) if key.startswith(layout.EVENTS) else 0

    def report(self, accounts: Accounts, findings: Findings) -> None:
        """Report missing objects. For those that an expiry covers, only count the events."""
        for name, missing in self._logs.items():
            of_log = accounts.of(layout.parse_log_text(name) or layout.AUDIT_LOG)
            for work, key in missing.objects:
                if any(account.may_be_gone(work.sequence) for account in of_log):
                    if key.startswith(layout.EVENTS):
                        accounts.of_work(work).expired_events += _events(work)
                    continue
                kind = "segment" if key.startswith(layout.EVENTS) else "quarantine object"
                message = f"the {kind} of offsets {work.first_offset} to {work.next_offset - 1} is missing"
                where: dict[str, Any] = {"log": name, "sequence": work.sequence, "key": key}
                findings.add(finding("segment-missing", message, offset=work.first_offset, **where))
            if missing.beyond is None:
                continue
            first, end = missing.beyond
            granted = max((stop for account in of_log for start, stop in account.granted if start <= first), default=0)
            if of_log:
                of_log[-1].expired_events += missing.events if granted >= end else 0
            if granted < end:
                message = "more objects are missing; they are too many to be listed one by one"
                first = max(first, granted)
                findings.add(finding("segment-missing", message, log=name, sequence=first, through=end - 1))


def _events(work: Work) -> int:
    return sum(batch.events for batch in work.batches)
