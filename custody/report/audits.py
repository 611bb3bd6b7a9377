"""Reads the signed audits of an archive from the newest back, as far as a report needs them.

Rules:
- With keys, only audits count that they signed. Any other slot that no later audit passes over is a problem.
- A finding of an earlier audit is open until later audits have read all of its statements again, or `trust.json`
  accepts it. A nightly audit reads only a share of what is old: that it found nothing does not mean that the damage is
  gone. A finding about an object that should not be there is open until the object is gone.
- Findings about sources are of what an audit knows of all logs. Each audit of the whole archive says again what stays.
- Of evidence that is gone, nothing is closed: whoever deletes the rest of an object does not turn the page green.
- The walk ends when each statement has been read by an audit that was seen: what is older was read again since. It goes
  on until the page has its rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from custody.archive.audit_findings import StatedFinding, listed_objects, read_findings
from custody.archive.forms import AUDITS
from custody.archive.slots import sequence_of
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing
from custody.findings import Acceptances, Severity
from custody.format import audit, layout, limits
from custody.format.audit import Audit, ObjectRef, SignedAudit
from custody.keys.trust import Trust
from custody.report.spans import LastRead, Span, subtract
from custody.store.protocol import Store

_ROWS = 10
"""The newest audits, which the page lists."""
_OF_SOURCES = frozenset({"source-gap", "source-repeat", "source-silent"})
_STRAYS = frozenset({"unlisted", "foreign"})
"""Findings about an object that should not be there."""


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
    findings: list[StatedFinding] = field(default_factory=list)
    whole: ObjectRef | None = None
    open: list[tuple[int, StatedFinding]] = field(default_factory=list)
    read: dict[str, LastRead] = field(default_factory=dict)
    rows: list[Audit] = field(default_factory=list)
    oldest: Audit | None = None
    problems: list[Problem] = field(default_factory=list)


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
    acceptances = Acceptances(trust.accepted)
    seen: set[tuple[object, ...]] = set()
    sources_looked_at = False
    for stored in valid_audits(store, archive, trust, made.problems, until):
        statement = stored.statement
        if len(made.rows) < _ROWS:
            made.rows.append(statement)
        # A record of the roll reads nothing, and counts no findings.
        if "findings" not in statement.counts:
            continue
        read = read_findings(store, statement)
        made.problems += [Problem(severity, message, str(layout.AUDIT_LOG)) for severity, message in read.problems]
        later = {name: last.all for name, last in made.read.items()}
        own = [_read(made, name, statement) for name in statement.covered]
        if made.newest is None:
            made.newest, made.findings, made.whole = stored, list(read.findings), read.whole
        else:
            made.open += [
                (statement.sequence, each)
                for each in read.findings
                if each.severity is not Severity.NOTICE
                and acceptances.of(each) is None
                and _subject(each) not in seen
                and not (each.finding in _OF_SOURCES and sources_looked_at)
                and _is_open(store, each, statement, later)
            ]
        seen |= {_subject(each) for each in read.findings}
        sources_looked_at |= "sources" in statement.counts
        if any(own):
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


def _subject(each: StatedFinding) -> tuple[object, ...]:
    return each.finding, each.log, each.key, each.sequence, each.through


def _is_open(store: Store, each: StatedFinding, statement: Audit, later: Mapping[str, Sequence[Span]]) -> bool:
    """Return whether later audits have not settled a finding that none of them names.

    Args:
        store: the archive.
        each: the finding.
        statement: of its audit.
        later: what later audits have read of each log.
    """
    if each.log is not None and each.sequence is not None:
        # A rollback is about the statements after the end of the log: an audit must get there.
        end = max(each.sequence, each.through or 0) + 1
        return bool(subtract((each.sequence, end), later.get(each.log, ())))
    if each.key is None:
        return False
    if each.finding in _STRAYS or not each.key.startswith(layout.EVIDENCE):
        # Listings are read by shares too: such an object is not named again each night.
        try:
            return store.exists(each.key)
        except FormatError:
            return False
    log = layout.log_of(each.key)
    span = _span_of(each.key, str(log), statement)
    return span is None or bool(subtract(span, later.get(str(log), ())))


def _span_of(key: str, log: str, statement: Audit) -> Span | None:
    """Return the statements that an audit must have read to have seen an object of evidence; None if none show it.

    The key of records names no statement: it may be any of its log.
    """
    if (manifest := layout.parse_manifest_key(key)) is not None:
        return manifest[1], manifest[1] + 1
    if (checkpoint := layout.parse_checkpoint_key(key)) is not None:
        return max(checkpoint[1] - 1, 0), max(checkpoint[1], 1)
    head = statement.heads.get(log)
    return (0, head.size) if head and head.size else None


def valid_audits(
    store: Store, archive: str | None, trust: Trust, problems: list[Problem], until: int | None = None
) -> Iterator[Stored]:
    """Yield the audits that count, the newest first, and add what is wrong with other slots to `problems`."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    slots = {sequence_of(info.key) for info in store.list(AUDITS.prefix)} - {None}
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


def stating_audit(store: Store, archive: str | None, trust: Trust, digest: str) -> Stored | None:
    """Return the audit that names an object by its SHA-256, as it does with a report; None if none does.

    Raises:
        StoreError: the store does not give an audit.
    """
    key = layout.audit_object_key(digest)
    for stored in valid_audits(store, archive, trust, []):
        for ref in stored.statement.objects:
            if ref.key == key or any(line.key == key for line in listed_objects(store, ref)):
                return stored
    return None
