"""The log of audits, read back: rules 1 to 5 of FORMAT.md for signed audits; their faults are the finding `audit`.

What the newest sound audit says of each log's head is one more memory of where that log was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from custody import audit, layout, merkle
from custody.audit import SignedAudit
from custody.chain import Memory
from custody.errors import FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import Findings, Severity, finding, loss_digest
from custody.layout import Log
from custody.manifest import Signature, message, parse_time
from custody.trust import Trust, TrustedKey


@dataclass(slots=True)
class AuditChain:
    """The state of verifying the audits, which come in order of sequence."""

    archive: str | None
    trust: Trust
    findings: Findings
    memories: Sequence[Memory] = ()
    """What is remembered of the log of audits itself."""

    size: int = 0
    edge: merkle.Edge | None = ()
    sound: bool = True
    newest: SignedAudit | None = None
    """The newest audit that a trusted key signed."""
    heartbeat: tuple[int, int] | None = None
    """The archive's heartbeat in seconds as the first audit of a trusted key has it, and that audit's sequence."""
    _data: bytes = b""

    @property
    def root(self) -> bytes | None:
        """The root of the tree of all audits, None where it is not known."""
        return merkle.edge_root(self.edge) if self.edge is not None else None

    def gap(self, first: int, end: int) -> None:
        """Take note that audits `[first, end)` are not there."""
        what = f"{end - first} audit{'s are' if end - first > 1 else ' is'} missing, with later ones there"
        self._report(what, first, through=end - 1, sha256=loss_digest(layout.AUDIT_LOG, "missing", first, end))
        self._lose(end)

    def unreadable(self, sequence: int, reason: str) -> None:
        """Take note that an audit is there and cannot be read."""
        self._report(f"the audit cannot be read: {reason}", sequence, name="unreadable")
        self._lose(sequence + 1)

    def step(self, sequence: int, data: bytes) -> None:
        """Take the next audit."""
        digest = sha256(data).hexdigest()
        self._data = data
        try:
            signed = audit.parse(data)
        except FormatError as error:
            self._report(f"it is no audit: {error}", sequence, sha256=digest)
            self._lose(sequence + 1)
            return
        statement = signed.statement
        if self.archive is not None and statement.archive != self.archive:
            where = {"expected": self.archive, "found": statement.archive, "sha256": digest}
            self._report("the audit is of another archive", sequence, **where)
            self._lose(sequence + 1)
            return
        if statement.sequence != sequence:
            where = {"expected": f"sequence {sequence}", "found": f"sequence {statement.sequence}", "sha256": digest}
            self._report("another audit stands in the place of this one", sequence, **where)
            self._lose(sequence + 1)
            return
        held = self._is_signed(signed, sequence, digest)
        self._check_tree(signed, sequence, digest)
        self.size = sequence + 1
        if held:
            self.newest = signed
            seconds = statement.counts.get(audit.HEARTBEAT)
            if seconds is not None and not 1 <= seconds <= audit.HEARTBEAT_LIMIT:
                where = {"expected": f"1 to {audit.HEARTBEAT_LIMIT} s", "found": f"{seconds} s", "sha256": digest}
                self._report("the audit signs a heartbeat that no archive may have", sequence, **where)
            elif seconds is not None and self.heartbeat is None:
                self.heartbeat = seconds, sequence

    def end(self) -> None:
        """Judge the whole, once there is no later audit."""
        self._check_heads(self.size)
        ahead = [memory for memory in self.memories if memory.size > self.size]
        if ahead:
            most = max(ahead, key=lambda memory: memory.size)
            where = {"expected": f"size {most.size}", "found": f"size {self.size}"}
            root = most.root.hex() if most.root else None
            where["sha256"] = loss_digest(layout.AUDIT_LOG, *where.values(), root)
            self._report(f"audits were removed: {most.origin} remembers more of them", self.size, **where)

    def _is_signed(self, signed: SignedAudit, sequence: int, digest: str) -> bool:
        text = message(signed.line, audit.FORMAT)
        held = False
        if not any(signature.algorithm == "HMAC-SHA256" for signature, _ in signed.signatures):
            self._report("the audit has no HMAC-SHA256 signature", sequence, sha256=digest)
        for signature, value in signed.signatures:
            key = self.trust.keys.get(signature.key)
            if key is None:
                what = f"the key {signature.key[:200]!r} is not among those trusted"
                self._report(what, sequence, name="key-unknown", row=signature.key)
                continue
            if key.algorithm != signature.algorithm:
                self._report(f"the key {key.id!r} signs by an algorithm that it does not have", sequence, sha256=digest)
                continue
            try:
                key.verify(text, value)
            except SignatureInvalid as error:
                self._report(str(error).replace("statement", "audit"), sequence, sha256=digest)
            except KeyUnavailable as error:
                name = "unreadable" if key.checkable else "unchecked-signature"
                self._report(str(error), sequence, name=name, row=key.id)
            else:
                held = self._may_sign(key, signed, sequence, digest) or held
        return held

    def _may_sign(self, key: TrustedKey, signed: SignedAudit, sequence: int, digest: str) -> bool:
        """Return whether the key may sign this audit at all; its span is policy, `until` is not."""
        until = key.until.get(str(layout.AUDIT_LOG))
        if until is not None and sequence >= until.size:
            what = f"the key {key.id!r} ended at the audits' size {until.size} and signs beyond it"
            self._report(what, sequence, name="key-span", severity=Severity.TAMPERED, sha256=digest)
            return False
        if not key.holds(parse_time(signed.statement.sealed_at)):
            what = f"the key {key.id!r} signs outside its span"
            self._report(what, sequence, name="key-span", row=f"span {key.id}", sha256=digest)
        return True

    def _check_tree(self, signed: SignedAudit, sequence: int, digest: str) -> None:
        tree = signed.statement.tree
        stated = tuple(map(bytes.fromhex, tree.edge))
        coherent = (
            tree.size == sequence
            and len(stated) == sequence.bit_count()
            and merkle.edge_root(stated).hex() == tree.root
        )
        follows = coherent and (self.edge is None or stated == self.edge)
        if not follows:
            known = f"root {self.root.hex()}" if self.root else "an edge whose root follows from it"
            where = {"expected": f"size {sequence}, {known}", "found": f"size {tree.size}, root {tree.root}"}
            self._report("the tree signed here is not that of the audits before", sequence, sha256=digest, **where)
        edge = stated if coherent else self.edge
        if edge is not None:
            self.edge = edge
            self._check_heads(sequence)
            self.edge = merkle.append(sequence, edge, merkle.leaf_hash(signed.line))

    def _check_heads(self, size: int) -> None:
        if self.root is None or not size:
            return
        for memory in self.memories:
            if memory.size == size and memory.root not in {None, self.root}:
                shown = (memory.evidence, self._data[:65_536].decode(errors="replace"))
                expected = f"size {size}, root {memory.root.hex() if memory.root else '?'}"
                found = f"size {size}, root {self.root.hex()}"
                self._report(
                    f"another history of audits: {memory.origin} has another root at this size",
                    size - 1,
                    expected=expected,
                    found=found,
                    sha256=loss_digest(layout.AUDIT_LOG, expected, found),
                    evidence=tuple(text for text in shown if text),
                )

    def _lose(self, size: int) -> None:
        self.size = size
        self.edge = None

    def _report(self, what: str, sequence: int, *, name: str = "audit", row: str | None = None, **where: Any) -> None:
        one = finding(name, what, log=str(layout.AUDIT_LOG), sequence=sequence, key=layout.audit_key(sequence), **where)
        accepted = self.findings.add(one, row=row)
        if one.severity is not Severity.NOTICE and not accepted:
            self.sound = False


def is_signed(
    trust: Trust,
    text: bytes,
    signatures: Sequence[tuple[Signature, bytes]],
    sequence: int,
    sealed_at: str,
    log: Log = layout.AUDIT_LOG,
) -> bool:
    """Say whether an audit, a piece of it, or a log's statement is signed by keys that were trusted when it was sealed.

    A signature that cannot be checked now counts for none; `check_signed` tells the two apart.

    Args:
        trust: the keys, and where they end.
        text: what is signed.
        signatures: by whom it is said to be, each with its value.
        sequence: of the audit, or of the statement.
        sealed_at: of what is signed.
        log: whose statement it is; the audits' own by default.
    """
    try:
        return check_signed(trust, text, signatures, sequence, sealed_at, log)
    except KeyUnavailable:
        return False


def check_signed(
    trust: Trust,
    text: bytes,
    signatures: Sequence[tuple[Signature, bytes]],
    sequence: int,
    sealed_at: str,
    log: Log = layout.AUDIT_LOG,
) -> bool:
    """Say the same as `is_signed`.

    Raises:
        KeyUnavailable: nothing speaks against it, and none of its signatures can be checked now.
    """
    held, unavailable = False, None
    for signature, value in signatures:
        key = trust.keys.get(signature.key)
        if key is None or key.algorithm != signature.algorithm:
            return False
        until = key.until.get(str(log))
        if (until is not None and sequence >= until.size) or not key.holds(parse_time(sealed_at)):
            return False
        try:
            key.verify(text, value)
        except SignatureInvalid:
            return False
        except KeyUnavailable as error:
            unavailable = unavailable or error
            continue
        held = True
    if unavailable is not None and not held:
        raise unavailable
    return held
