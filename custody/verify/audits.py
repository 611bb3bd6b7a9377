"""Verification of the log of audits, and of the objects under `audits/objects/` that audits refer to.

The log is a signed log (`custody.tlog.log`) whose faults are the finding `audit`. The newest sound audit names the head
of each log: one more known head of that log.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from custody.archive.forms import AUDITS
from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Finding, Findings, finding, loss_digest
from custody.format import layout, limits
from custody.format.audit import Audit, ObjectRef, SignedAudit, parse_object
from custody.store.protocol import Store
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

    def step(self, sequence: int, data: bytes) -> None:
        """Check the next audit."""
        signed = self.signed.step(sequence, data)
        if signed is not None:
            self.archive = self.archive or signed.statement.archive
            if self.signed.signers:
                self.newest = signed

    def _belongs(self, signed: SignedAudit) -> Fault | None:
        """Return a fault if the audit belongs to another archive, else None."""
        archive = signed.statement.archive
        if self.archive in {None, archive}:
            return None
        where = {"expected": self.archive, "found": archive, "sha256": self.signed.digest}
        return Fault("identity", "the audit is of another archive", where)

    def _report(self, name: str, message: str, *, group: str | None = None, **where: Any) -> bool:
        where.setdefault("key", layout.audit_key(where.get("sequence", 0)))
        if name not in _OWN_NAMES:
            # Not joined: each finding names what was done to which audit.
            name, group = "audit", None
        return self.findings.report(name, message, group=group, log=str(layout.AUDIT_LOG), **where)


def referred(store: Store, audit: Audit) -> Iterator[ObjectRef]:
    """Return the objects under `audits/objects/` that an audit refers to."""
    refs = [*audit.objects, *([audit.findings] if isinstance(audit.findings, ObjectRef) else [])]
    if len(audit.objects) == 1:
        refs += _listed_in(store, audit.objects[0])
    # Objects elsewhere are made from the archive, and can be made again.
    return (ref for ref in refs if layout.parse_audit_object_key(ref.key) is not None)


def check_referred(store: Store, audit: Audit, ref: ObjectRef, *, contents: bool) -> Finding | None:
    """Return what is wrong with an object that an audit refers to by its hash, None if nothing is wrong.

    Args:
        store: the archive.
        audit: the audit.
        ref: the object.
        contents: whether it is read.
    """
    where: dict[str, Any] = {"log": str(layout.AUDIT_LOG), "sequence": audit.sequence, "key": ref.key}
    digest = layout.parse_audit_object_key(ref.key)
    if digest != ref.sha256:
        message = "the audit refers to an object by a SHA-256 that is not the one in its key"
        return finding("audit", message, expected=ref.sha256, found=digest, sha256=digest, **where)
    return _check_object(store, ref, where) if contents else None


def check_unreferred(store: Store, key: str, digest: str) -> Finding | None:
    """Return the finding about an object that no audit refers to: left by an unfinished audit, or foreign.

    Args:
        store: the archive.
        key: of the object.
        digest: the SHA-256 that it names.
    """
    try:
        stored = sha256(store.read(key, limit=limits.FILE_BYTES)).hexdigest()
    except ObjectMissing:
        return None
    except FormatError:
        stored = ""
    except CustodyError as error:
        return finding("unreadable", f"the object cannot be read: {error}", key=key)
    if stored == digest:
        return finding("orphan", "no audit refers to it", key=key)
    message = "its SHA-256 is not the one in its key, and no audit refers to it"
    return finding("unlisted", message, key=key, sha256=stored or loss_digest(key))


def _listed_in(store: Store, ref: ObjectRef) -> list[ObjectRef]:
    """Return the objects listed in an object of an audit, one JSON object per line; none if it is not such a list."""
    if layout.parse_audit_object_key(ref.key) is None or ref.size > limits.FILE_BYTES:
        return []
    try:
        data = store.read(ref.key, limit=ref.size)
        if sha256(data).hexdigest() != ref.sha256:
            return []
        return [parse_object(line) for line in data.splitlines()]
    except CustodyError:
        # A missing or changed list is reported where the list itself is checked.
        return []


def _check_object(store: Store, ref: ObjectRef, where: Mapping[str, Any]) -> Finding | None:
    try:
        data = store.read(ref.key, limit=ref.size)
    except (ObjectMissing, FormatError) as error:
        message = f"an object that the audit refers to is missing or changed: {error}"
        return finding("audit", message, loss=(ref.key, ref.sha256), **where)
    except CustodyError as error:
        return finding("unreadable", f"an object that the audit refers to cannot be read: {error}", **where)
    digest = sha256(data).hexdigest()
    if digest == ref.sha256:
        return None
    message = "an object that the audit refers to was changed"
    return finding("audit", message, expected=ref.sha256, found=digest, sha256=digest, **where)
