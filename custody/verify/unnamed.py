"""Rule 10 of FORMAT.md, Verification: objects that no statement and no audit names."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from custody.errors import CustodyError
from custody.findings import Findings, Severity, finding
from custody.format import layout
from custody.verify import orphans
from custody.verify.accounting import LogAccount
from custody.verify.accounts import Accounts
from custody.verify.audit_objects import check_unreferred
from custody.verify.listing import Names
from custody.verify.logs import Logs

_LATER_LIMIT = 10_000
"""How many statements after the last verified one are read, for the objects that they name."""
_UNNAMED_LIMIT = 100_000


@dataclass(slots=True)
class Unnamed:
    """Reports unnamed objects.

    Attributes:
        logs: reads statements again.
        accounts: the verified logs.
        findings: gets the findings.
        unread: existing logs that are out of scope.
        live: whether a writer may be at work.
    """

    logs: Logs
    accounts: Accounts
    findings: Findings
    unread: Collection[layout.Log]
    live: bool
    _seen: set[str] = field(default_factory=set)
    _named_since: dict[layout.Log, frozenset[str]] = field(default_factory=dict)

    def report(self, names: Names, *, audits: bool) -> None:
        """Find unnamed objects in a second listing, and report each.

        Args:
            names: the listed and the named objects.
            audits: whether all objects that audits refer to are known.
        """
        unnamed = names.unnamed()
        if not unnamed:
            return
        try:
            for prefix in (*layout.RECORDS, *((layout.AUDIT_OBJECTS,) if audits else ())):
                for info in self.logs.store.list(prefix):
                    if names.holds(unnamed, info.key) and info.key not in self._seen:
                        self._report(info.key)
        except CustodyError as error:
            self.findings.add(finding("unreadable", f"the archive cannot be listed again: {error}", key=layout.EVENTS))

    def _report(self, key: str) -> None:
        if len(self._seen) >= _UNNAMED_LIMIT:
            self.findings.dropped[Severity.TAMPERED] += 1
            return
        if digest := layout.parse_audit_object_key(key):
            self._seen.add(key)
            if one := check_unreferred(self.logs.store, key, digest):
                self.findings.add(one)
            return
        parsed = layout.parse_records_key(key)
        accounts: Sequence[LogAccount | None] = (parsed and self.accounts.of(parsed.log)) or (None,)
        newest = accounts[-1]
        if parsed and newest is None and parsed.log in self.unread:
            return
        if parsed and (newest is None or parsed.last >= (newest.next_offset or 0)) and key in self._later(parsed.log):
            return
        self._seen.add(key)
        # For each span of a log, everything outside it is a hole.
        for account in accounts:
            if one := orphans.judge(self.logs.store, account, key, self.logs.holds, live=self.live):
                self.findings.add(one)

    def _later(self, log: layout.Log) -> frozenset[str]:
        """Return the names in statements newer than our reading of the log. The next verification checks those."""
        if log not in self._named_since:
            found: set[str] = set()
            first = self.accounts.size(log)
            for sequence in range(first, first + _LATER_LIMIT):
                if (statement := self.logs.statement(log, sequence)) is None:
                    break
                found.update(ref.key for ref in (statement.segment, statement.quarantine) if ref)
            self._named_since[log] = frozenset(found)
        return self._named_since[log]
