"""Objects that statements name and that are not there: gone by a signed expiry, or missing."""

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
    """From the first to behind the last sequence of those that are not among `objects`."""
    events: int = 0
    """Of segments that are not among `objects`."""


class Missing:
    """Objects that are not there, by log: one by one up to a limit, for after an expiry they are many."""

    def __init__(self) -> None:
        self._logs: dict[str, _MissingOfLog] = {}
        self._count = 0

    def add(self, work: Work, key: str) -> None:
        """Take note of one."""
        found = self._logs.setdefault(work.log, _MissingOfLog([]))
        if self._count < _LIMIT:
            self._count += 1
            found.objects.append((work, key))
        else:
            first = found.beyond[0] if found.beyond else work.sequence
            found.beyond = min(first, work.sequence), max(found.beyond[1] if found.beyond else 0, work.sequence + 1)
            found.events += _events(work) if key.startswith(layout.EVENTS) else 0

    def report(self, accounts: Accounts, findings: Findings) -> None:
        """Report them, but for those that an expiry covers: of these the events are counted."""
        for name, missing in self._logs.items():
            of_log = accounts.of(layout.parse_log_text(name) or layout.AUDIT_LOG)
            for work, key in missing.objects:
                if any(account.may_be_gone(work.sequence) for account in of_log):
                    if key.startswith(layout.EVENTS):
                        accounts.of_work(work).expired_events += _events(work)
                    continue
                kind = "segment" if key.startswith(layout.EVENTS) else "quarantine object"
                what = f"the {kind} of offsets {work.first_offset} to {work.next_offset - 1} is not there"
                where: dict[str, Any] = {"log": name, "sequence": work.sequence, "key": key}
                findings.add(finding("segment-missing", what, offset=work.first_offset, **where))
            if missing.beyond is None:
                continue
            first, end = missing.beyond
            granted = max((stop for account in of_log for start, stop in account.granted if start <= first), default=0)
            if of_log:
                of_log[-1].expired_events += missing.events if granted >= end else 0
            if granted < end:
                what = "so many objects are not there that no more of them are listed one by one"
                first = max(first, granted)
                findings.add(finding("segment-missing", what, log=name, sequence=first, through=end - 1))


def _events(work: Work) -> int:
    return sum(batch.events for batch in work.batches)
