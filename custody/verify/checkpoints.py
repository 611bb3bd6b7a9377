"""Rules 1 and 11 of FORMAT.md, Verification: known heads, checkpoints in the archive, and cosigned checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from custody.errors import CustodyError, FormatError
from custody.findings import Findings, Severity, finding
from custody.format import layout
from custody.format.audit import Audit
from custody.keys.trust import Trust
from custody.tlog import checkpoint, merkle
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head, KnownHead
from custody.tlog.signatures import KeyOrder, NoteVerdict, check_checkpoint, note_keys
from custody.verify.accounts import Logs
from custody.verify.protection import Locks


class Checkpoints:
    """Checks checkpoints, and reports those that are not valid."""

    def __init__(self, trust: Trust, now: datetime, logs: Logs, findings: Findings) -> None:
        self._trust = trust
        self._now = now
        self._logs = logs
        self._findings = findings
        self._cosigned: frozenset[str] = frozenset()

    def take_cosigned(self, notes: Sequence[bytes], archive: str | None) -> list[tuple[str, KnownHead]]:
        """Return the heads, with their logs, of the given cosigned checkpoints that are valid. Report the others.

        Args:
            notes: the checkpoints.
            archive: the archive's id, None where it is not known.
        """
        heads = [head for data in notes if (head := self._check_given(data, archive)) is not None]
        self._cosigned = frozenset(log for log, _ in heads)
        return heads

    def _check_given(self, data: bytes, archive: str | None) -> tuple[str, KnownHead] | None:
        digest = sha256(data).hexdigest()
        where: dict[str, Any] = {"key": digest, "sha256": digest}
        try:
            note = checkpoint.parse_note(data)
            signed = checkpoint.parse_checkpoint(note.text)
        except FormatError as error:
            message = f"a given checkpoint does not follow the format: {error}"
            self._findings.add(finding("checkpoint", message, severity=Severity.POLICY, **where))
            return None
        name = signed.origin.removeprefix(f"custody/{archive}/")
        log = layout.parse_log_text(name)
        if log is None or signed.origin != checkpoint.origin_of(archive or "", log):
            message = f"a given checkpoint is of {signed.origin[:300]!r}, not of this archive"
            self._findings.add(finding("checkpoint", message, severity=Severity.POLICY, **where))
            return None
        verdict = self._verdict(note, signed, log)
        if not verdict.counts:
            message = f"a given checkpoint does not count: {verdict.reason}"
            self._findings.add(finding("checkpoint", message, log=name, **where))
            return None
        return name, KnownHead(signed.size, signed.root, "a cosigned checkpoint", trusted=True, evidence=data.decode())

    def heads(
        self, log: layout.Log, answers: Iterator[tuple[int, bytes | CustodyError]], archive: str | None, locks: Locks
    ) -> Iterator[KnownHead]:
        """Yield the heads that a log's checkpoints in the archive sign.

        Args:
            log: the log.
            answers: sizes, each with the bytes of the archive's checkpoint, or with the error from reading it.
            archive: the archive's id, None where it is not known.
            locks: checks the lock of each.
        """
        order = KeyOrder()
        for size, answer in answers:
            key = layout.checkpoint_key(log, size)
            where: dict[str, Any] = {"log": str(log), "sequence": max(size - 1, 0), "key": key}
            if isinstance(answer, CustodyError) and not isinstance(answer, FormatError):
                self._findings.add(finding("unreadable", f"the checkpoint cannot be read: {answer}", **where))
                continue
            locks.put(key, log=str(log))
            if isinstance(answer, bytes):
                where["sha256"] = sha256(answer).hexdigest()
            try:
                if isinstance(answer, CustodyError):
                    raise answer
                note = checkpoint.parse_note(answer)
                signed = checkpoint.parse_checkpoint(note.text)
            except FormatError as error:
                message = f"the checkpoint is not valid: {error}"
                self._findings.add(finding("checkpoint", message, severity=Severity.POLICY, **where))
                continue
            wrong = _misplaced(signed, size, log, archive)
            # A misplaced copy says nothing about the order of keys.
            verdict = self._verdict(note, signed, log, None if wrong else order)
            if wrong:
                # Anyone can put an object here; but one that names a trusted key is from a key holder, or is a copy.
                severity = Severity.POLICY if verdict.unsigned else None
                message = f"the checkpoint is not valid: {wrong}"
                self._findings.add(finding("checkpoint", message, severity=severity, **where))
                continue
            if self._report(verdict, where):
                signers = [self._trust.keys[id_] for id_ in verdict.signers]
                yield KnownHead(
                    size,
                    signed.root,
                    f"a checkpoint of size {size}",
                    verdict.counts,
                    key,
                    note.encode().decode(),
                    min((signer.ended for signer in signers if signer.ended), default=None),
                )

    def _verdict(self, note: Note, signed: Checkpoint, log: layout.Log, order: KeyOrder | None = None) -> NoteVerdict:
        return check_checkpoint(
            note,
            signed,
            str(log),
            self._trust.keys,
            within=lambda head: self._logs.judge(log).proofs.leads_to(signed.size, signed.root, head),
            witnesses=self._trust.witnesses,
            quorum=self._trust.quorum,
            now=self._now,
            order=order,
        )

    def _report(self, verdict: NoteVerdict, where: Mapping[str, Any]) -> bool:
        """Report what is wrong with a checkpoint's signatures. Return whether the log's own key signed it."""
        if not note_keys(self._trust.keys):
            message = "no trusted key can check the signatures of checkpoints"
            self._findings.add(finding("unchecked-signature", message, log=where["log"]), group="checkpoints")
            return False
        for problem in verdict.problems:
            if problem.kind == "key-span":
                group = f"checkpoints {problem.key} {problem.policy}"
                self._findings.report("key-span", problem.message, tampered=not problem.policy, group=group, **where)
            elif problem.open:
                self._findings.add(finding(problem.kind, problem.message, **where), group=problem.key)
            else:
                self._findings.add(finding("checkpoint", f"the checkpoint is not valid: {problem.message}", **where))
        if verdict.unsigned:
            message = f"the checkpoint is not valid: {verdict.reason}"
            self._findings.add(finding("checkpoint", message, severity=Severity.POLICY, **where))
        elif verdict.signers and len(verdict.witnessed) < verdict.quorum and where["log"] not in self._cosigned:
            message = (
                "checkpoints in the archive are not cosigned: give cosigned ones from your witnesses (--checkpoint)"
            )
            self._findings.add(finding("unchecked-signature", message, log=where["log"]), group="quorum")
        return bool(verdict.signers)


def _misplaced(signed: Checkpoint, size: int, log: layout.Log, archive: str | None) -> str | None:
    """Return why a checkpoint does not belong to the key that it is under, None if it does."""
    if signed.size != size:
        return f"it is of size {signed.size}, not of size {size}"
    if not size and signed.root != merkle.EMPTY_ROOT:
        return "its size is 0, but its root is not that of the empty tree"
    id_ = archive or signed.origin.removeprefix("custody/").partition("/")[0]
    if signed.origin != checkpoint.origin_of(id_, log):
        return f"it is of {signed.origin[:300]!r}, not of this log"
    return None


def known_heads(
    trust: Trust, remembered: Mapping[str, Head], more: Sequence[tuple[str, KnownHead]]
) -> dict[layout.Log, list[KnownHead]]:
    """Return the known heads of each log, and of the log of audits.

    Args:
        trust: has known heads, and the heads at which keys end.
        remembered: the heads in the state file.
        more: the heads that witnesses signed, and those of the archive that this one is a copy of.
    """
    heads: dict[layout.Log, list[KnownHead]] = {}
    for name, known in _heads(trust, remembered, more):
        log = layout.parse_log_text(name)
        if log is not None and known.size:
            heads.setdefault(log, []).append(known)
    return heads


def _heads(
    trust: Trust, remembered: Mapping[str, Head], more: Sequence[tuple[str, KnownHead]]
) -> Iterator[tuple[str, KnownHead]]:
    for name, head in trust.heads.items():
        yield name, KnownHead(head.size, head.root, "trust.json", trusted=True)
    for key in trust.keys.values():
        for name, head in (key.until or {}).items():
            yield name, KnownHead(head.size, head.root, f"the end of the key {key.id!r}")
    for name, head in remembered.items():
        yield name, KnownHead(head.size, head.root, "the state file", trusted=True)
    yield from more


def audited_heads(audit: Audit) -> Iterator[tuple[layout.Log, KnownHead]]:
    """Yield the heads that an audit names, each with its log."""
    origin = f"audit {audit.sequence}"
    for name, head in audit.heads.items():
        log = layout.parse_log_text(name)
        if log not in {None, layout.AUDIT_LOG} and head.size:
            quoted = f'{origin}, sealed {audit.sealed_at}: "{name}":{{"size":{head.size},"root":"{head.root}"}}'
            yield log, KnownHead(head.size, bytes.fromhex(head.root), origin, evidence=quoted)
