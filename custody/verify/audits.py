"""The log of audits, read back: a signed log (`custody.tlog.log`) whose faults are the finding `audit`.

What the newest sound audit says of each log's head is one more known head of that log.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from custody.archive.forms import AUDITS
from custody.findings import Findings, Severity, finding, loss_digest
from custody.format import layout
from custody.format.audit import SignedAudit
from custody.tlog.head import Head, KnownHead
from custody.tlog.log import Fault, SignedLog
from custody.tlog.signatures import Keys

_OWN_NAMES = frozenset({"unreadable", "key-unknown", "key-span", "unchecked-signature", "passed-over"})
"""Findings that keep their name: all others are called `audit`."""


@dataclass(slots=True)
class AuditLog:
    """The state of verifying the audits, which come in order of sequence."""

    archive: str | None
    keys: Keys
    findings: Findings
    known: Sequence[KnownHead] = ()
    """Known heads of the log of audits itself."""
    following: Callable[[int], Iterator[tuple[int, bytes]]] = lambda _: iter(())
    """Returns the audits from a sequence on, for looking ahead."""
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    """Returns whether the tree of a size and root is shown to be a prefix of a head."""

    signed: SignedLog[SignedAudit] = field(init=False)
    newest: SignedAudit | None = None
    """The newest audit that a trusted key signed."""

    def __post_init__(self) -> None:
        self.signed = SignedLog(
            str(layout.AUDIT_LOG),
            AUDITS,
            self.keys,
            self._report,
            self._belongs,
            self.known,
            following=self.following,
            within=self.within,
        )

    @property
    def size(self) -> int:
        """How many sequences were looked at."""
        return self.signed.size

    @property
    def head(self) -> Head | None:
        """The head, None where it may not be remembered."""
        signed = self.signed
        return Head(signed.size, signed.root) if signed.sound and signed.size and signed.root is not None else None

    def gap(self, first: int, end: int) -> None:
        """Take the sequences `[first, end)`, which have no object."""
        missing = self.signed.gap(first, end)
        if missing is not None:
            first, end = missing
            what = f"{end - first} audit{'s are' if end - first > 1 else ' is'} missing, with later ones there"
            loss = (str(layout.AUDIT_LOG), "missing", str(first), str(end))
            self.signed.doubt(Fault("audit", what, {"through": end - 1, "loss": loss}), first)

    def unreadable(self, sequence: int, reason: str) -> None:
        """Take an audit that is there and cannot be read."""
        self.signed.doubt(Fault("unreadable", f"the audit cannot be read: {reason}"), sequence)
        self.signed.unreadable(sequence)

    def malformed(self, sequence: int, reason: str, digest: str) -> None:
        """Take an object that is too large to be an audit, by its SHA-256."""
        self.signed.malformed(sequence, reason, digest)

    def step(self, sequence: int, data: bytes) -> None:
        """Take the next audit."""
        signed = self.signed.step(sequence, data)
        if signed is not None:
            self.archive = self.archive or signed.statement.archive
            if self.signed.signers:
                self.newest = signed

    def end(self) -> None:
        """Run the checks that need the whole log."""
        self.signed.end()

    def _belongs(self, signed: SignedAudit) -> Fault | None:
        """Return what makes an audit one of another archive, None if it is of this one."""
        found = signed.statement.archive
        if self.archive in {None, found}:
            return None
        where = {"expected": self.archive, "found": found, "sha256": self.signed.digest}
        return Fault("identity", "the audit is of another archive", where)

    def _report(
        self,
        name: str,
        what: str,
        *,
        loss: tuple[str, ...] = (),
        row: str | None = None,
        tampered: bool = False,
        **where: Any,
    ) -> bool:
        if loss:
            where["sha256"] = loss_digest(*loss)
        where.setdefault("key", layout.audit_key(where.get("sequence", 0)))
        shown = name if name in _OWN_NAMES else "audit"
        # A finding of its own for each audit: it names what was done to which one.
        row = row if shown != "audit" else None
        severity = Severity.TAMPERED if tampered else None
        one = finding(shown, what, severity=severity, log=str(layout.AUDIT_LOG), **where)
        return self.findings.add(one, row=row)
