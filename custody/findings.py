"""What verification finds: the name, severity and advice of each finding, and how findings add up to a verdict.

Names and severities are those of THREATS.md; exit codes those of FORMAT.md, Verification. A finding that repeats for
many statements, such as a key that nobody trusts, is one finding with a count. A finding that was accepted in
`trust.json` is shown as a notice.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import sha256
from typing import Annotated, Any, Protocol

import msgspec

from custody.errors import counted

__all__ = ["Accepted", "Finding", "Severity"]

FOREIGN_LIMIT = 1_000
"""The most foreign objects that are shown one by one. Further ones are one finding: they crowd out no other."""
FINDINGS_LIMIT = 100_000
"""The most findings that are kept. Further ones are only counted by severity, so that memory stays bounded."""


class Severity(IntEnum):
    """How bad a finding is. The value is the exit code of a verification with this as its worst finding."""

    NOTICE = 3
    POLICY = 10
    INCOMPLETE = 11
    UNVERIFIABLE = 12
    TAMPERED = 13


VERIFIED = 0
"""The exit code where nothing was found."""

_RESTORE = (
    "keep this object as evidence, and find out who modified it; then restore it from a replica or backup (its SHA-256"
    " must be the one stated)"
)
_RESTORE_MANIFEST = (
    "keep this manifest as evidence, and find out who modified it; then restore it from a replica or backup"
)
_SUSPECT = "treat everyone who can use the signing key as a suspect: "
_KEYS = "give the verifier this key from your own copy, never from the archive"
CATALOGUE: Mapping[str, tuple[Severity, str]] = {
    "segment-hash": (Severity.TAMPERED, _RESTORE),
    "segment-size": (Severity.TAMPERED, _RESTORE),
    "segment-missing": (Severity.INCOMPLETE, "restore the object from a replica or backup; find out who deleted it"),
    "gzip": (Severity.TAMPERED, f"{_SUSPECT}they signed a statement about bytes that are wrong"),
    "event": (Severity.TAMPERED, f"{_SUSPECT}they signed a statement about lines that are wrong"),
    "quarantine": (Severity.TAMPERED, f"{_SUSPECT}they signed a statement that does not match the quarantine"),
    "sequence-gap": (Severity.INCOMPLETE, "restore the manifests from a replica or backup; find out who deleted them"),
    "head-rollback": (Severity.TAMPERED, "stop the drain; restore the missing statements from a replica or backup"),
    "head-fork": (Severity.TAMPERED, "keep both heads as evidence: a key holder signed two histories"),
    "tree": (Severity.TAMPERED, "compare the statements with a replica: one was changed after later ones were signed"),
    "batch-order": (Severity.TAMPERED, "compare the statement with a replica"),
    "identity": (Severity.TAMPERED, "compare the object with a replica: it belongs to another log or archive"),
    "offset-overlap": (Severity.TAMPERED, "find out which writer archived the offsets a second time"),
    "offset-gap": (
        Severity.INCOMPLETE,
        "read these offsets from Kafka while it still has them; find out who left them out",
    ),
    "offset-lost": (
        Severity.INCOMPLETE,
        "drain more often, or keep records longer in Kafka; after review, accept it with `custody accept`",
    ),
    "offset-unreadable": (
        Severity.INCOMPLETE,
        "read the records with another client while Kafka has them; after review, accept it with `custody accept`",
    ),
    "passed-over": (Severity.NOTICE, "find out who wrote the foreign object; nothing is missing from the log"),
    "new-epoch": (Severity.NOTICE, "nothing, if the topic was recreated on purpose"),
    "checkpoint": (
        Severity.TAMPERED,
        "keep the checkpoint and the statements as evidence; compare both with copies that others hold",
    ),
    "audit": (Severity.TAMPERED, "restore the audits from a replica or backup; find out who modified them"),
    "version": (Severity.TAMPERED, "keep the first version as the evidence; find out who overwrote it"),
    "delete-marker": (Severity.TAMPERED, "remove the delete marker to restore the object; find out who deleted it"),
    "deferred": (
        Severity.NOTICE,
        "nothing; to have the objects read, restore them, copy the archive, and verify the copy",
    ),
    "lock": (Severity.POLICY, "set Object Lock as in the settings; find out who changed it"),
    "lifecycle": (Severity.POLICY, "set the bucket's lifecycle rules again: they may move evidence, never delete it"),
    "retention": (Severity.POLICY, "compare trust.json's retention_days with what was deleted, and when"),
    "tables": (
        Severity.POLICY,
        "delete the tables of these statements, and make them again with `custody backfill --to tables`",
    ),
    "time-index": (
        Severity.TAMPERED,
        "treat everyone who can use the audit's key as a suspect, unless custody was updated; the audit has made the"
        " index again, and `custody audit --full` makes all of it again",
    ),
    "index-missing": (
        Severity.INCOMPLETE,
        "if Elasticsearch lost an index, nothing: the events were re-indexed. Otherwise find out who deleted them",
    ),
    "index-extra": (
        Severity.TAMPERED,
        "find out who wrote the document, then delete it; the archive is the evidence",
    ),
    "index-edited": (
        Severity.TAMPERED,
        "find out who edited the document, then delete it; the archive is the evidence",
    ),
    "rolled": (Severity.NOTICE, "nothing: this records what the roll deleted, or did not delete"),
    "record-edited": (
        Severity.TAMPERED,
        "keep Kafka's records as evidence: somebody changed records in the archive or in the topic",
    ),
    "source-gap": (
        Severity.INCOMPLETE,
        "look for the events in the spool of that process, and replay it; else find out why it lost them, and accept it"
        " with `custody accept`",
    ),
    "source-repeat": (Severity.NOTICE, "nothing, if a spool was replayed; else find out who sent the events again"),
    "source-silent": (
        Severity.NOTICE,
        "find out how that process ended, and look for its spool; nothing, if it runs and has nothing to say",
    ),
    "topic-changed": (
        Severity.UNVERIFIABLE,
        "if the topic was recreated, moved or deleted on purpose, run `custody new-epoch`. Otherwise find out what"
        " happened to Kafka's records: they can no longer be compared with the archive",
    ),
    "skipped-record": (Severity.TAMPERED, "keep Kafka's records as evidence: the writer left out a record that it got"),
    "unlisted": (Severity.TAMPERED, "find out who wrote it, then move it out of the archive"),
    "foreign": (Severity.POLICY, "nothing of the archive: find out who put it there, then move it out"),
    "orphan": (Severity.NOTICE, "nothing: a writer stopped before its commit, or is still at work"),
    "signature": (Severity.TAMPERED, _RESTORE_MANIFEST),
    "key-unknown": (Severity.UNVERIFIABLE, _KEYS),
    "key-algorithm": (Severity.TAMPERED, "find out who signed: a key never changes its algorithm"),
    "key-span": (Severity.POLICY, "check the key's validity period in the keyring, and the writer's clock"),
    "clock": (Severity.NOTICE, "check the writer's clock"),
    "stale": (Severity.NOTICE, "the log wrote nothing for twice its heartbeat: check that the drain runs"),
    "unreadable": (
        Severity.UNVERIFIABLE,
        "check that the server which the message names runs, and the verifier's permissions there; then verify again",
    ),
    "statement": (Severity.TAMPERED, _RESTORE_MANIFEST),
    "unchecked-signature": (
        Severity.NOTICE,
        "nothing, if you have public keys alone; else give the HMAC key with --keys",
    ),
    "pending-checkpoint": (Severity.NOTICE, "nothing: verify again after the next checkpoint"),
    "leaves": (Severity.TAMPERED, f"{_SUSPECT}evidence of single events would prove other events than these"),
    "uncovered": (Severity.UNVERIFIABLE, "verify with the key, or ask for a checkpoint that covers these statements"),
    "archive": (
        Severity.UNVERIFIABLE,
        "check that this is the archive's root; if so, restore archive.json from a replica or backup",
    ),
    "empty": (Severity.NOTICE, "nothing, if nothing was archived yet"),
}
"""By name: the default severity, and what an operator does next."""


_OPTIONAL = ["log", "sequence", "through", "batch", "offset", "byte", "key", "expected", "found", "sha256", "accepted"]
"""Fields that `--json` prints if they are set, in this order."""


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
    """Offset of the first record concerned."""
    byte: int | None = None
    """Position in the inflated batch, or in the stored object where there is no batch."""
    key: str | None = None
    expected: str | None = None
    found: str | None = None
    sha256: str | None = None
    """Digest of the stored bytes, or of a loss (`loss_digest`). Tampering is accepted by this digest."""
    evidence: tuple[str, ...] = ()
    """Complete signed texts that contradict each other."""
    accepted: str | None = None
    """Who accepted it, when and why. An accepted finding counts as a notice."""
    count: int = 1
    advice: str | None = None
    """What an operator does next, where that is not what it usually is."""

    @property
    def action(self) -> str:
        """What an operator does next."""
        return self.advice or CATALOGUE[self.finding][1]

    @property
    def help(self) -> str:
        """The command that explains it."""
        return f"custody explain {self.finding}"

    @property
    def where(self) -> str:
        """Where it was found, in one phrase."""
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
        accepted = f" [accepted: {self.accepted}]" if self.accepted else ""
        severity = self.severity.name.lower()
        text = f"{self.finding}: {self.where}: {self.message}{compared}{accepted}; {severity}: {self.action}"
        return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints, without the fields that are not set."""
        optional = {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        return {
            "finding": self.finding,
            "severity": self.severity.name.lower(),
            **optional,
            **({"evidence": list(self.evidence)} if self.evidence else {}),
            "count": self.count,
            "message": self.message,
            "action": self.action,
            "help": self.help,
        }


def finding(
    name: str, message: str, *, severity: Severity | None = None, loss: tuple[object, ...] = (), **where: Any
) -> Finding:
    """Return a finding.

    Args:
        name: its name, of those in THREATS.md.
        message: what happened.
        severity: what THREATS.md gives to the name, unless another is given.
        loss: for a loss that has no bytes of its own, the facts that identify it. They make the digest.
        where: other fields of the finding.
    """
    if loss:
        where["sha256"] = loss_digest(*loss)
    return Finding(finding=name, message=message, severity=severity or CATALOGUE[name][0], **where)


_LOGS_NAMED = 3
"""How many logs a joined finding names; one more, if that is the last. `--json` has each log's own."""
_CAUSE = re.compile(r"^.*?\b[a-z0-9]+://\S*: ", re.DOTALL)
"""What comes before the cause in a store's error: what could not be done, and to which object."""


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings for people: what is the same for many logs, or has one cause, is said once with a count.

    A finding about a certain object stays as it is. So does one with signed texts as evidence.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for kept in findings:
        groups.setdefault(_sameness(kept), []).append(kept)
    made: list[Finding] = []
    for group in groups.values():
        apart = len(group) == 1 or (group[0].log is not None and len({kept.log for kept in group}) == 1)
        made += group if apart else [_join(group)]
    return made


def _sameness(kept: Finding) -> tuple[object, ...]:
    """Return what findings that are joined have in common."""
    common = (kept.finding, kept.severity, kept.accepted)
    if kept.finding == "unreadable" and kept.log is None and (cause := _CAUSE.match(kept.message)):
        return *common, kept.message[cause.end() :]
    about_object = kept.key is not None and kept.finding != "unchecked-signature"
    if kept.log is None or about_object or kept.evidence or kept.offset is not None:
        return (kept,)
    return *common, kept.message, kept.expected, kept.found


def _join(group: Sequence[Finding]) -> Finding:
    first, count = group[0], sum(kept.count for kept in group)
    if first.log is None:
        return replace(first, message=f"{first.message} (and {counted(count - 1, 'more request')}, for this reason)")
    logs = list(dict.fromkeys(kept.log for kept in group if kept.log))
    rest = len(logs) - _LOGS_NAMED
    if rest <= 1:
        names = " and ".join(filter(None, (", ".join(logs[:-1]), logs[-1])))
    else:
        names = f"{', '.join(logs[:_LOGS_NAMED])} and {counted(rest, 'more log')}"
    return replace(
        first, log=names, sequence=None, through=None, batch=None, byte=None, key=None, sha256=None, count=count
    )


def loss_digest(*facts: object) -> str:
    """Return a digest in hex for a loss, which has no bytes of its own.

    Args:
        facts: what identifies this loss, such as the known head and the present one.
    """
    return sha256("".join(f"{fact}\n" for fact in facts).encode()).hexdigest()


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An accepted finding, as `trust.json` lists it. It identifies an object by `log` and `sequence`, or by `key`."""

    finding: str
    reason: str
    by: str
    at: str
    log: str | None = None
    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    key: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None
    """Digest of what was accepted."""


class Acceptable(Protocol):
    """What of a finding its acceptance depends on. The attributes are those of `Finding`."""

    @property
    def finding(self) -> str:
        """Its name."""
        ...

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        ...

    @property
    def log(self) -> str | None:
        """The log."""
        ...

    @property
    def sequence(self) -> int | None:
        """The first statement."""
        ...

    @property
    def through(self) -> int | None:
        """The last one."""
        ...

    @property
    def key(self) -> str | None:
        """The object's key."""
        ...

    @property
    def sha256(self) -> str | None:
        """The digest."""
        ...

    @property
    def count(self) -> int:
        """How many were joined."""
        ...


class Acceptances:
    """Finds out whether `trust.json` accepts a finding: the one policy for verifier and report."""

    def __init__(self, accepted: Iterable[Accepted]) -> None:
        self._by_subject: dict[tuple[object, ...], list[Accepted]] = {}
        for acceptance in accepted:
            subject = (acceptance.key,) if acceptance.key is not None else (acceptance.log, acceptance.sequence)
            self._by_subject.setdefault((acceptance.finding, *subject), []).append(acceptance)

    def of(self, finding: Acceptable) -> Accepted | None:
        """Return the acceptance of a finding, None if it was not accepted.

        A finding about several statements is accepted if each statement is. Tampering with several statements at once,
        such as a rollback, has one digest for all of it, so that one acceptance is enough.
        """
        whole = finding.severity is Severity.TAMPERED and finding.sha256 is not None and finding.count == 1
        first, last = finding.sequence, finding.through
        if not whole and first is not None and last is not None and (last != first or finding.count > 1):
            acceptance: Accepted | None = None
            for sequence in range(first, last + 1):
                acceptance = self._exact(finding, (finding.log, sequence))
                if acceptance is None:
                    return None
            return acceptance
        acceptance = self._exact(finding, (finding.key,)) if finding.key is not None else None
        if acceptance is None and first is not None:
            acceptance = self._exact(finding, (finding.log, first))
        return acceptance

    def _exact(self, finding: Acceptable, subject: tuple[object, ...]) -> Accepted | None:
        for acceptance in self._by_subject.get((finding.finding, *subject), ()):
            # Tampering is accepted only by its digest. For others the digest counts where the acceptance names one.
            if acceptance.sha256 == finding.sha256 if acceptance.sha256 else finding.severity is not Severity.TAMPERED:
                return acceptance
        return None


@dataclass(slots=True)
class Findings:
    """Collects findings: applies acceptances, joins repeated findings into one with a count, drops duplicates."""

    accepted: Iterable[Accepted] = ()
    dropped: Counter[Severity] = field(default_factory=Counter)
    """How many findings of each severity were beyond `FINDINGS_LIMIT`."""
    kept: list[Finding] = field(default_factory=list)
    _index: dict[Finding | tuple[str, str | None, str], int] = field(default_factory=dict)
    _acceptances: "Acceptances" = field(init=False)

    def __post_init__(self) -> None:
        self._acceptances = Acceptances(self.accepted)

    def report(self, name: str, message: str, *, tampered: bool = False, group: str | None = None, **more: Any) -> bool:
        """Make a finding and add it. Return whether it was accepted.

        Args:
            name: its name, of those in THREATS.md.
            message: what happened.
            tampered: whether its severity is `tampered`, whatever THREATS.md gives to the name.
            group: as for `add`.
            more: other arguments of `finding`.
        """
        severity = Severity.TAMPERED if tampered else None
        return self.add(finding(name, message, severity=severity, **more), group=group)

    def add(self, finding: Finding, *, group: str | None = None) -> bool:
        """Add a finding, and return whether it was accepted.

        Args:
            finding: what was found.
            group: findings with one name, log and group become one finding with a count.
        """
        acceptance = self._acceptances.of(finding)
        if acceptance is not None:
            accepted = f"by {acceptance.by} at {acceptance.at}: {acceptance.reason}"
            finding = replace(finding, severity=Severity.NOTICE, accepted=accepted)
        self._keep(finding, group)
        return bool(finding.accepted)

    def take(self, other: "Findings") -> None:
        """Add what another collection with the same acceptances has, as if it had been added here."""
        for subject, index in other._index.items():  # noqa: SLF001 - its own class
            self._keep(other.kept[index], subject[2] if isinstance(subject, tuple) else None)
        self.dropped.update(other.dropped)

    def _keep(self, finding: Finding, group: str | None) -> None:
        # An accepted finding is in no group. It is kept once: a store may list a key twice.
        subject = finding if group is None or finding.accepted else (finding.finding, finding.log, group)
        index = self._index.get(subject)
        if index is None and len(self.kept) >= FINDINGS_LIMIT:
            self.dropped[finding.severity] += finding.count
        elif index is None:
            self._index[subject] = len(self.kept)
            self.kept.append(finding)
        elif isinstance(subject, tuple):
            first = self.kept[index]
            through, count = finding.through or finding.sequence, first.count + finding.count
            self.kept[index] = replace(first, through=through, count=count)

    def sorted(self) -> list[Finding]:
        """Return the findings by severity, the worst first, then by log and sequence."""
        return sorted(
            self.kept,
            key=lambda kept: (-kept.severity, kept.log or "", -1 if kept.sequence is None else kept.sequence),
        )

    @property
    def exit_code(self) -> int:
        """The highest code that applies."""
        return max([VERIFIED, *(int(finding.severity) for finding in self.kept), *map(int, self.dropped)])
