"""What verification finds: the name, the class and the advice of each finding, and how findings add up to a verdict.

Names and classes are those of THREATS.md; classes and exit codes those of FORMAT.md, Verification. A finding that is
the same for many statements in a row (a key that nobody trusts, say) is one finding with a count, and one that somebody
has judged and put into `trust.json` is shown as a notice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import sha256
from typing import Any, Protocol

__all__ = ["Finding", "Severity"]

FINDINGS_LIMIT = 100_000
"""Findings that are kept one by one. Of those beyond only number and class count, so that memory stays bounded."""


class Severity(IntEnum):
    """How bad a finding is; the value is the exit code of a verification whose worst finding it is."""

    NOTICE = 3
    POLICY = 10
    INCOMPLETE = 11
    UNVERIFIABLE = 12
    TAMPERED = 13


VERIFIED = 0
"""The exit code where nothing was found."""

_RESTORE = "restore the object from a replica or backup (its SHA-256 must be the one stated), then find out who wrote"
_KEYS = "give the verifier the key from where you keep it, never from the archive"
CATALOGUE: Mapping[str, tuple[Severity, str]] = {
    "segment-hash": (Severity.TAMPERED, _RESTORE),
    "segment-size": (Severity.TAMPERED, _RESTORE),
    "segment-missing": (Severity.INCOMPLETE, "restore the object from a replica or backup; find out who deleted it"),
    "gzip": (
        Severity.TAMPERED,
        "treat whoever holds the signing key as suspect: the statement fits bytes that are wrong",
    ),
    "event": (
        Severity.TAMPERED,
        "treat whoever holds the signing key as suspect: the statement fits lines that are wrong",
    ),
    "quarantine": (Severity.TAMPERED, "treat whoever holds the signing key as suspect: the statement does not fit"),
    "sequence-gap": (Severity.INCOMPLETE, "restore the manifests from a replica or backup; find out who deleted them"),
    "head-rollback": (Severity.TAMPERED, "stop the writer, and restore what is missing from a replica or backup"),
    "head-fork": (Severity.TAMPERED, "keep both heads as evidence: one key holder signed two histories"),
    "tree": (Severity.TAMPERED, "compare the statements with a replica: one was changed after later ones were signed"),
    "batch-order": (Severity.TAMPERED, "compare the statement with a replica"),
    "identity": (Severity.TAMPERED, "compare the object with a replica: it belongs to another place"),
    "offset-overlap": (Severity.TAMPERED, "find out which writer archived the offsets a second time"),
    "offset-gap": (
        Severity.INCOMPLETE,
        "read the offsets from Kafka while it still has them, and find out who left them out",
    ),
    "offset-lost": (
        Severity.INCOMPLETE,
        "once judged, list it in trust.json under accepted; drain more often, or keep Kafka's records longer",
    ),
    "offset-unreadable": (
        Severity.INCOMPLETE,
        "read the records with another client while Kafka has them; once judged, list it in trust.json under accepted",
    ),
    "passed-over": (Severity.NOTICE, "find out who wrote into the slot; nothing of the log is missing"),
    "new-epoch": (Severity.NOTICE, "nothing, if the topic was meant to be made again"),
    "checkpoint": (
        Severity.TAMPERED,
        "keep the checkpoint and the statements as evidence, and compare both with copies that others hold",
    ),
    "audit": (Severity.TAMPERED, "restore the audits from a replica or backup; find out who wrote"),
    "version": (Severity.TAMPERED, "the first version is the evidence: find out who wrote over it"),
    "delete-marker": (Severity.TAMPERED, "remove the marker to bring the object back; find out who deleted it"),
    "deferred": (Severity.NOTICE, "nothing; restore the objects and verify again to have them read"),
    "lock": (Severity.POLICY, "set Object Lock again as the settings ask, and find out who changed it"),
    "lifecycle": (Severity.POLICY, "set the bucket's lifecycle rules again; rules may move evidence, never delete it"),
    "retention": (Severity.POLICY, "hold trust.json's retention_days against what is deleted, and when"),
    "tables": (
        Severity.POLICY,
        "remove the tables of these statements; `custody backfill --to tables` makes them anew",
    ),
    "index-missing": (
        Severity.INCOMPLETE,
        "nothing, if Elasticsearch lost an index: what it lacked is indexed again; else find out who deleted it",
    ),
    "index-extra": (Severity.TAMPERED, "the archive is the evidence: find out who wrote it, then delete the document"),
    "index-edited": (Severity.TAMPERED, "the archive is the evidence: find out who wrote it, then delete the document"),
    "rolled": (Severity.NOTICE, "nothing: it is the record of what the roll deleted, or did not"),
    "record-edited": (
        Severity.TAMPERED,
        "keep Kafka's records as evidence: somebody wrote other records into the archive, or into the topic",
    ),
    "topic-changed": (
        Severity.UNVERIFIABLE,
        "nothing, if the topic was meant to be made again, moved or removed: `custody new-epoch` then begins a new"
        " epoch; else find out what became of Kafka's records, which can no longer be compared with the archive",
    ),
    "skipped-record": (Severity.TAMPERED, "keep Kafka's records as evidence: the writer left out what it was given"),
    "unlisted": (Severity.TAMPERED, "find out who wrote it; move it out of the archive once that is known"),
    "orphan": (Severity.NOTICE, "nothing: a writer died before its commit, or is at work"),
    "signature": (Severity.TAMPERED, "restore the manifest from a replica or backup; find out who wrote"),
    "key-unknown": (Severity.UNVERIFIABLE, _KEYS),
    "key-algorithm": (Severity.TAMPERED, "find out who signed: a key has one algorithm for ever"),
    "key-span": (Severity.POLICY, "check the key's span in the keyring, and the writer's clock"),
    "clock": (Severity.NOTICE, "check the writer's clock"),
    "stale": (Severity.NOTICE, "check that the drain is running"),
    "unreadable": (Severity.UNVERIFIABLE, "check the store and the verifier's permissions, then verify again"),
    "statement": (Severity.TAMPERED, "restore the manifest from a replica or backup; find out who wrote"),
    "unchecked-signature": (Severity.NOTICE, "nothing, if this verifier is not meant to check it"),
    "pending-checkpoint": (Severity.NOTICE, "nothing: verify again once the next checkpoint is there"),
    "leaves": (
        Severity.TAMPERED,
        "treat whoever holds the signing key as suspect: evidence of single events would not be of these events",
    ),
    "uncovered": (Severity.UNVERIFIABLE, "verify with the key, or ask for a checkpoint that covers these statements"),
    "archive": (Severity.UNVERIFIABLE, "restore archive.json from a replica or backup; is this the archive's root?"),
    "empty": (Severity.NOTICE, "nothing, if nothing was archived yet"),
}
"""By name: the class, unless a finding says otherwise, and what an operator does next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One typed result of verification."""

    finding: str
    message: str
    """What happened, in one line."""
    severity: Severity
    log: str | None = None
    sequence: int | None = None
    through: int | None = None
    """The last sequence, where the finding is about several."""
    batch: int | None = None
    offset: int | None = None
    """Of the first record concerned."""
    byte: int | None = None
    """Within the inflated batch where there is one, else within the stored object."""
    key: str | None = None
    expected: str | None = None
    found: str | None = None
    sha256: str | None = None
    """Of the stored bytes that the finding is about, or of a loss (`loss_digest`): what accepts tampering."""
    evidence: tuple[str, ...] = ()
    """Signed texts that contradict each other, whole."""
    accepted: str | None = None
    """Who judged it, when and why; such a finding counts as a notice."""
    count: int = 1

    @property
    def action(self) -> str:
        """What an operator does next."""
        return CATALOGUE[self.finding][1]

    @property
    def where(self) -> str:
        """The place in one phrase."""
        parts = [self.log] if self.log else []
        if self.sequence is not None:
            span = f"-{self.through}" if self.through is not None and self.through != self.sequence else ""
            parts.append(f"sequence {self.sequence}{span}")
        for name in ("batch", "offset", "byte"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name} {value}")
        if self.key and (not parts or self.sequence is None):
            parts.append(self.key)
        return ", ".join(parts) or "the archive as a whole"

    def __str__(self) -> str:
        compared = f" (expected {self.expected}, found {self.found})" if self.expected or self.found else ""
        judged = f" [accepted: {self.accepted}]" if self.accepted else ""
        class_ = self.severity.name.lower()
        text = f"{self.finding}: {self.where}: {self.message}{compared}{judged}; {class_}: {self.action}"
        return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints of it, without what is not known."""
        names = (
            "log",
            "sequence",
            "through",
            "batch",
            "offset",
            "byte",
            "key",
            "expected",
            "found",
            "sha256",
            "accepted",
        )
        optional = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {
            "finding": self.finding,
            "severity": self.severity.name.lower(),
            **optional,
            **({"evidence": list(self.evidence)} if self.evidence else {}),
            "count": self.count,
            "message": self.message,
            "action": self.action,
        }


def finding(name: str, message: str, *, severity: Severity | None = None, **where: Any) -> Finding:
    """Make a finding of the class that THREATS.md gives to its name, unless told otherwise."""
    return Finding(finding=name, message=message, severity=severity or CATALOGUE[name][0], **where)


def loss_digest(*facts: object) -> str:
    """Return the digest of a loss that has no bytes of its own, in hex.

    Args:
        facts: what tells this loss from the next one, such as the head that was remembered and the one that was found.
    """
    return sha256("".join(f"{fact}\n" for fact in facts).encode()).hexdigest()


class Acceptance(Protocol):
    """A finding that somebody has judged, as `trust.json` lists it."""

    @property
    def finding(self) -> str:
        """Its name."""
        ...

    @property
    def log(self) -> str | None:
        """The log, together with a sequence."""
        ...

    @property
    def sequence(self) -> int | None:
        """The sequence, together with a log."""
        ...

    @property
    def key(self) -> str | None:
        """The object."""
        ...

    @property
    def sha256(self) -> str | None:
        """The exact digest of what was judged."""
        ...

    @property
    def reason(self) -> str:
        """Why."""
        ...

    @property
    def by(self) -> str:
        """Who."""
        ...

    @property
    def at(self) -> str:
        """When."""
        ...


@dataclass(slots=True)
class Findings:
    """Collects findings: judges them by what was accepted, joins those of a row, keeps each once and within bounds."""

    accepted: Iterable[Acceptance] = ()
    dropped: Counter[Severity] = field(default_factory=Counter)
    """How many of each class are beyond `FINDINGS_LIMIT`."""
    kept: list[Finding] = field(default_factory=list)
    _rows: dict[tuple[str, str | None, str], int] = field(default_factory=dict)
    _by_place: dict[tuple[object, ...], list[Acceptance]] = field(default_factory=dict)
    _once: set[Finding] = field(default_factory=set)

    def __post_init__(self) -> None:
        for judged in self.accepted:
            place = (judged.key,) if judged.key is not None else (judged.log, judged.sequence)
            self._by_place.setdefault((judged.finding, *place), []).append(judged)

    def add(self, one: Finding, *, row: str | None = None) -> bool:
        """Add a finding, and say whether it was accepted. Those of one name, log and `row` are one with a count."""
        one = self._judged(one)
        if row is not None and not one.accepted:
            place = self._rows.get((one.finding, one.log, row))
            if place is not None:
                first = self.kept[place]
                self.kept[place] = replace(first, through=one.through or one.sequence, count=first.count + one.count)
                return False
        if len(self.kept) >= FINDINGS_LIMIT:
            self.dropped[one.severity] += one.count
            return bool(one.accepted)
        if row is not None and not one.accepted:
            self._rows[one.finding, one.log, row] = len(self.kept)
        elif one in self._once:
            # A store may list a key twice.
            return bool(one.accepted)
        else:
            self._once.add(one)
        self.kept.append(one)
        return bool(one.accepted)

    def _judged(self, one: Finding) -> Finding:
        judged = self._acceptance(one)
        if judged is None:
            return one
        accepted = f"by {judged.by} at {judged.at}: {judged.reason}"
        return replace(one, severity=Severity.NOTICE, accepted=accepted)

    def _acceptance(self, one: Finding) -> Acceptance | None:
        """Return who accepted a finding. One about several statements is accepted where each of them is.

        Tampering with several at once, as a log that went back, has a digest of all of it: one acceptance is enough.
        """
        whole = one.severity is Severity.TAMPERED and one.sha256 is not None and one.count == 1
        if not whole and one.sequence is not None and one.through is not None and one.through != one.sequence:
            judged: Acceptance | None = None
            for sequence in range(one.sequence, one.through + 1):
                judged = self._exact(one, (one.log, sequence))
                if judged is None:
                    return None
            return judged
        found = self._exact(one, (one.key,)) if one.key is not None else None
        if found is None and one.sequence is not None:
            found = self._exact(one, (one.log, one.sequence))
        return found

    def _exact(self, one: Finding, place: tuple[object, ...]) -> Acceptance | None:
        for judged in self._by_place.get((one.finding, *place), ()):
            # Tampering is accepted by its digest alone; all else by its digest where one was named.
            if judged.sha256 == one.sha256 if judged.sha256 else one.severity is not Severity.TAMPERED:
                return judged
        return None

    def rows(self) -> Iterator[tuple[Finding, str | None]]:
        """Yield the findings in the order in which they came, each with the row that it began."""
        rows = {place: row for (_, _, row), place in self._rows.items()}
        for place, one in enumerate(self.kept):
            yield one, rows.get(place)

    def sorted(self) -> list[Finding]:
        """Return the findings, the worst first, and within a class by log and sequence."""
        return sorted(
            self.kept,
            key=lambda one: (-one.severity, one.log or "", -1 if one.sequence is None else one.sequence),
        )

    @property
    def exit_code(self) -> int:
        """The highest code that applies."""
        return max([VERIFIED, *(int(one.severity) for one in self.kept), *map(int, self.dropped)])
