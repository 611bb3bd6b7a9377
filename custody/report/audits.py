"""Reads the signed audits of an archive from the newest back, as far as a report needs them.

Rules:
- With keys, only audits count that they signed. Any other slot that no later audit passes over is a problem.
- A finding of an earlier audit is open until a later audit has read its statement again, or its object is gone if it is
  about no statement, or `trust.json` accepts it. A nightly audit reads only a share of what is old: that it found
  nothing does not mean that the damage is gone.
- The walk ends when each statement has been read by an audit that was seen: what is older was read again since. It goes
  on until the page has its rows.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from custody.archive import reader
from custody.archive.forms import AUDITS
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing
from custody.findings import Severity
from custody.format import audit, layout, limits
from custody.format.audit import Audit, ObjectRef, SignedAudit
from custody.keys.trust import Trust
from custody.report.spans import LastRead, subtract
from custody.store.protocol import Store

_FINDINGS_LIMIT = 64 * 1_048_576
_LIST_LIMIT = 64 * 1_048_576
_ROWS = 10
"""The newest audits, which the page lists."""
_SEVERITIES = {severity.name.lower(): severity for severity in Severity}

Fields = Mapping[str, Any]
"""A finding, as an audit has it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was seen while the report was made, and that no audit says."""

    severity: Severity
    message: str
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A signed audit that counts.

    Attributes:
        statement: what it says.
        sha256: of its stored bytes.
        signed_by: ids and algorithms of the keys that signed it.
    """

    statement: Audit
    sha256: str
    signed_by: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Its key in the archive."""
        return layout.audit_key(self.statement.sequence)


@dataclass(slots=True)
class Audits:
    """What a walk over the audits has found.

    Attributes:
        newest: the newest audit of statements, None if there is none.
        findings: its findings.
        whole: the object that holds all of them, if they are not in the audit itself.
        open: findings of earlier audits, each with its audit's sequence, whose statement no later audit has read.
        read: which statements were read, by log.
        rows: the newest audits.
        oldest: the oldest audit whose reading still is the last one of some statement.
        problems: what was seen on the way.
    """

    newest: Stored | None = None
    findings: list[Fields] = field(default_factory=list)
    whole: ObjectRef | None = None
    open: list[tuple[int, Fields]] = field(default_factory=list)
    read: dict[str, LastRead] = field(default_factory=dict)
    rows: list[Audit] = field(default_factory=list)
    oldest: Audit | None = None
    problems: list[Problem] = field(default_factory=list)


def severity_of(fields: Fields) -> Severity:
    """Return the severity of a finding. One that is not known is as bad as what cannot be verified."""
    return _SEVERITIES.get(str(fields.get("severity")), Severity.UNVERIFIABLE)


def walk(store: Store, archive: str | None, trust: Trust, until: int | None = None) -> Audits:
    """Read the audits from the newest back.

    Args:
        store: the archive.
        archive: its id; None if it is not known and not checked.
        trust: the keys. Without any, each well-formed audit counts.
        until: the sequence of the audit to begin with; None for the newest.

    Raises:
        StoreError: the store does not give one.
    """
    made = Audits()
    seen: set[tuple[object, ...]] = set()
    for stored in valid_audits(store, archive, trust, made.problems, until):
        statement = stored.statement
        if len(made.rows) < _ROWS:
            made.rows.append(statement)
        # A record of the roll reads nothing, and counts no findings.
        if "findings" not in statement.counts:
            continue
        found, whole = findings_of(store, statement, made.problems)
        if made.newest is None:
            made.newest, made.findings, made.whole = stored, found, whole
        own = {name: _read(made, name, statement) for name in statement.covered}
        if statement is not made.newest.statement:
            made.open += [
                (statement.sequence, each)
                for each in found
                if severity_of(each) is not Severity.NOTICE
                and not _is_accepted(each, trust)
                and (_is_open(each, own) or _is_left(store, each, seen))
            ]
        seen |= {_subject(each) for each in found}
        if any(own.values()):
            made.oldest = statement
        heads = made.newest.statement.heads
        left = any(subtract((0, head.size), _all_read(made, name)) for name, head in heads.items())
        if len(made.rows) >= _ROWS and not left:
            break
    return made


def _all_read(audits: Audits, log: str) -> list[tuple[int, int]]:
    return audits.read[log].all if log in audits.read else []


def _read(audits: Audits, log: str, statement: Audit) -> list[tuple[int, int]]:
    spans = [(covered.from_, covered.to) for covered in statement.covered[log]]
    return audits.read.setdefault(log, LastRead()).add(spans, statement.sequence)


def _is_open(fields: Fields, own: Mapping[str, list[tuple[int, int]]]) -> bool:
    """Return whether no later audit has read the statements of a finding."""
    log, first = fields.get("log"), fields.get("sequence")
    if not isinstance(log, str) or not isinstance(first, int):
        return False
    through = fields.get("through")
    last = through if isinstance(through, int) else first
    return any(begin <= last and first < end for begin, end in own.get(log, ()))


def _subject(fields: Fields) -> tuple[object, ...]:
    return fields.get("finding"), fields.get("log"), fields.get("key")


def _is_left(store: Store, fields: Fields, seen: set[tuple[object, ...]]) -> bool:
    """Return whether the object of a finding about no statement is still there, and no later audit names it.

    Listings are read by shares too: such an object is not named again each night.
    """
    key = fields.get("key")
    if not isinstance(key, str) or "sequence" in fields or _subject(fields) in seen:
        return False
    try:
        return store.exists(key)
    except FormatError:
        return False


def _is_accepted(fields: Fields, trust: Trust) -> bool:
    """Return whether `trust.json` accepts a finding by now: tampering by its digest alone."""
    return any(
        accepted.finding == fields.get("finding")
        and (accepted.key, accepted.log, accepted.sequence)
        in {(fields.get("key"), accepted.log, None), (None, fields.get("log"), fields.get("sequence"))}
        and (
            accepted.sha256 == fields.get("sha256") if accepted.sha256 else severity_of(fields) is not Severity.TAMPERED
        )
        for accepted in trust.accepted
    )


def valid_audits(
    store: Store, archive: str | None, trust: Trust, problems: list[Problem], until: int | None = None
) -> Iterator[Stored]:
    """Yield the audits that count, the newest first, and add what is wrong with other slots to `problems`."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    slots = {reader.sequence_of(info.key) for info in store.list(AUDITS.prefix)} - {None}
    passed_over = range(0)
    last: int | None = None
    for sequence in sorted((slot for slot in slots if slot is not None), reverse=True):
        if until is not None and sequence > until:
            continue
        if last is not None and sequence < last - 1 and last - 1 not in passed_over:
            message = f"no audit is in the slots {sequence + 1} to {last - 1}; run `custody verify`"
            problems.append(Problem(Severity.TAMPERED, message, str(layout.AUDIT_LOG)))
        last = sequence
        if sequence in passed_over:
            continue
        stored, reason = _stored(store, judge, sequence, checked=bool(trust.keys))
        if stored is None:
            message = f"{layout.audit_key(sequence)} does not count: {reason}; run `custody verify`"
            problems.append(Problem(Severity.UNVERIFIABLE, message, str(layout.AUDIT_LOG)))
            continue
        yield stored
        passed_over = range(sequence - len(stored.statement.passed_over), sequence)


def _stored(store: Store, judge: Judge, sequence: int, *, checked: bool) -> tuple[Stored | None, str]:
    try:
        data = store.read(layout.audit_key(sequence), limit=limits.FILE_BYTES)
        signed: SignedAudit = audit.parse(data)
    except (FormatError, ObjectMissing) as error:
        return None, str(error)
    if not judge.is_of_place(signed, sequence):
        return None, "it is of another archive or slot"
    verdict = judge.verdict(signed, sequence)
    if checked and not verdict.counts:
        return None, verdict.reason
    by = tuple((signature.key, signature.algorithm) for signature, _ in signed.signatures)
    return Stored(signed.statement, sha256(data).hexdigest(), by), ""


def findings_of(store: Store, statement: Audit, problems: list[Problem]) -> tuple[list[Fields], ObjectRef | None]:
    """Return an audit's findings, and the object that holds them if they are not in the audit itself."""
    ref = statement.findings
    if not isinstance(ref, ObjectRef):
        return list(ref), None
    try:
        data = store.read(ref.key, limit=_FINDINGS_LIMIT)
        if sha256(data).hexdigest() == ref.sha256:
            return [line for line in map(json.loads, data.splitlines()) if isinstance(line, dict)], ref
        reason = "its bytes differ from the signed digest"
    except (ObjectMissing, FormatError, ValueError, RecursionError) as error:
        reason = str(error)
    message = f"the findings of audit {statement.sequence} are not shown: {ref.key}: {reason}"
    problems.append(Problem(Severity.TAMPERED, message, str(layout.AUDIT_LOG)))
    return [], ref


def stating_audit(store: Store, archive: str | None, trust: Trust, digest: str) -> Stored | None:
    """Return the audit that names an object by its SHA-256, as it does with a report; None if none does.

    Raises:
        StoreError: the store does not give an audit.
    """
    key = layout.audit_object_key(digest)
    for stored in valid_audits(store, archive, trust, []):
        for ref in stored.statement.objects:
            if ref.key == key or any(line.key == key for line in _listed(store, ref)):
                return stored
    return None


def _listed(store: Store, ref: ObjectRef) -> Iterator[ObjectRef]:
    """Yield the objects that an object lists; nothing if it is no list, or not as it was signed."""
    if not ref.key.startswith(layout.AUDITS):
        return
    try:
        data = store.read(ref.key, limit=_LIST_LIMIT)
        if sha256(data).hexdigest() == ref.sha256 and data.startswith(b'{"key"'):
            yield from map(audit.parse_object, data.splitlines())
    except (FormatError, ObjectMissing):
        return
