"""Verification of the log of audits: a signed log (`custody.tlog.log`) whose faults are the finding `audit`.

The newest sound audit names the head of each log: one more known head of that log.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from custody.archive.forms import AUDITS
from custody.findings import Findings, Severity, finding
from custody.format import layout
from custody.format.audit import SignedAudit
from custody.tlog.head import Head, KnownHead
from custody.tlog.log import Fault, SignedLog
from custody.tlog.signatures import Keys

_OWN_NAMES = frozenset({"unreadable", "key-unknown", "key-span", "unchecked-signature", "passed-over"})
"""Findings that keep their name. All others are called `audit`."""


@dataclass(slots=True)
class AuditLog:
    """The state of verifying the audits, in order of sequence."""

    archive: str | None
    keys: Keys
    findings: Findings
    known: Sequence[KnownHead] = ()
    """Known heads of the log of audits itself."""
    following: Callable[[int], Iterator[tuple[int, bytes]]] = lambda _: iter(())
    """Returns the audits from a sequence on, for looking ahead."""
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    """Returns whether the tree of this size and root is proved to be a prefix of a head."""

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
        """How many sequences were checked."""
        return self.signed.size

    @property
    def head(self) -> Head | None:
        """The head, None if it must not be saved as a known head."""
        signed = self.signed
        return Head(signed.size, signed.root) if signed.sound and signed.size and signed.root is not None else None

    def gap(self, first: int, end: int) -> None:
        """Report that the sequences `[first, end)` have no object."""
        missing = self.signed.gap(first, end)
        if missing is not None:
            first, end = missing
            message = f"{end - first} audit{'s are' if end - first > 1 else ' is'} missing, but later ones exist"
            loss = (str(layout.AUDIT_LOG), "missing", str(first), str(end))
            self.signed.doubt(Fault("audit", message, {"through": end - 1, "loss": loss}), first)

    def unreadable(self, sequence: int, reason: str) -> None:
        """Report an audit that exists but cannot be read."""
        self.signed.doubt(Fault("unreadable", f"the audit cannot be read: {reason}"), sequence)
        self.signed.unreadable(sequence)

    def malformed(self, sequence: int, reason: str, digest: str) -> None:
        """Report an object that is too large to be an audit. Only its SHA-256 is known."""
        self.signed.malformed(sequence, reason, digest)

    def step(self, sequence: int, data: bytes) -> None:
        """Check the next audit."""
        signed = self.signed.step(sequence, data)
        if signed is not None:
            self.archive = self.archive or signed.statement.archive
            if self.signed.signers:
                self.newest = signed

    def end(self) -> None:
        """Run the checks that need the whole log."""
        self.signed.end()

    def _belongs(self, signed: SignedAudit) -> Fault | None:
        """Return a fault if the audit belongs to another archive, else None."""
        found = signed.statement.archive
        if self.archive in {None, found}:
            return None
        where = {"expected": self.archive, "found": found, "sha256": self.signed.digest}
        return Fault("identity", "the audit is of another archive", where)

    def _report(
        self,
        name: str,
        message: str,
        *,
        loss: tuple[str, ...] = (),
        row: str | None = None,
        tampered: bool = False,
        **where: Any,
    ) -> bool:
        where.setdefault("key", layout.audit_key(where.get("sequence", 0)))
        shown = name if name in _OWN_NAMES else "audit"
        # Not joined: each finding names what was done to which audit.
        row = row if shown != "audit" else None
        severity = Severity.TAMPERED if tampered else None
        one = finding(shown, message, severity=severity, loss=loss, log=str(layout.AUDIT_LOG), **where)
        return self.findings.add(one, row=row)
