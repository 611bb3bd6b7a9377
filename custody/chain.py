"""Rules 1 to 6 of FORMAT.md, Verification: one log's statements in order of sequence. Pure; all reading is elsewhere.

A `Chain` is told of every sequence, from 0 on, exactly one of three things: its object's bytes (`step`), that there is
no object (`gap`), or that it cannot be read (`unreadable`). It answers with findings and with the work that the
statement's objects are. Its rules:

1. Each fault is one finding, and what follows from it is none: after a statement that is missing, unreadable, malformed
   or not of its place the chain is taken up again from the next one's `edge`, and the offsets between belong to it.
2. A changed statement shows in the next one's `tree`; later ones agree with that again, so it is said once.
3. A statement whose signature does not hold is still read on: what else is wrong with it shall be known too.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

from custody import layout, merkle
from custody.contents import QUARANTINE_INFLATED_LIMIT, QUARANTINE_LIMIT, SEGMENT_LIMIT, Work
from custody.errors import FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import Finding, Findings, Severity, finding, loss_digest
from custody.lines import BATCH_EVENTS_LIMIT
from custody.manifest import (
    Algorithm,
    Batch,
    LogId,
    Manifest,
    QuarantineRef,
    Range,
    SegmentRef,
    Statement,
    message,
    parse,
    parse_time,
)
from custody.trust import Trust, TrustedKey

RETENTION_GRACE = timedelta(days=7)
"""How long after the end of its retention an object may still be there."""

_CLOCK_SLACK = timedelta(minutes=5)
_EVIDENCE_LIMIT = 65_536
_DISPLACED_LIMIT = 10_000
_HOLES_LIMIT = 100_000
# A line 2 that parses: it stands in for one that does not, to see whether line 1 is sound.
_ANY_SIGNATURE = b'{"signatures":[{"key":"-","algorithm":"HMAC-SHA256","value":"' + b"A" * 43 + b'="}]}\n'
_FOREVER = 1 << 64


@dataclass(frozen=True, slots=True)
class Memory:
    """A head that was seen of a log before."""

    size: int
    root: bytes | None
    """None where only the size is known."""
    origin: str
    """Who remembers it."""
    trusted: bool = False
    """Whether it was signed or given so that what it covers counts as verified."""
    checkpoint: str | None = None
    """The key of the checkpoint that it is."""
    evidence: str | None = None
    """The signed text, whole."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """A statement that lets the objects of sequences `[first, end)` be deleted."""

    sequence: int
    first: int
    end: int
    sealed_at: datetime


@dataclass(slots=True)
class Totals:
    """What a log's statements account for."""

    statements: int = 0
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    lost: int = 0
    stored: int = 0
    inflated: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chain stands: all of its state that steps over statements without a fault depend on.

    Faults, expiries and another signing key depend on more; a `Passage` has none of them.
    """

    archive: str | None
    size: int
    edge: merkle.Edge
    next_offset: int | None
    batch_number: int | None
    identity: LogId | None
    sealed_at: datetime | None
    signing: Mapping[Algorithm, str]


@dataclass(frozen=True, slots=True)
class Passage:
    """How a chain went over statements without a fault.

    Attributes:
        start: where it stood before.
        end: where it stood then.
        number: of the first batch on the way, None if there was none.
        totals: what the statements account for.
        verified: statements with a signature that holds.
        unverified: sequences from the first to behind the last one without; None if there is none.
        data: the last statement's manifest.
    """

    start: Place
    end: Place
    number: int | None
    totals: Totals
    verified: int
    unverified: Range | None
    data: bytes


@dataclass(slots=True)
class Chain:
    """The state of one log's verification."""

    log: layout.Log
    archive: str | None
    trust: Trust
    now: datetime
    findings: Findings
    memories: Sequence[Memory] = ()
    earlier: "Chain | None" = None
    """The partition's newest earlier life that has statements."""
    heartbeat: timedelta | None = None
    """Where given, statements further apart than twice this are `stale`."""
    retention: timedelta | None = None
    """How long objects are to be kept."""
    begin: int = 0
    """The first sequence to be looked at: what lies before it was verified at another time."""
    check: Callable[[TrustedKey, bytes, bytes], None] = TrustedKey.verify
    """Checks a signature: key, message, value."""

    name: str = field(init=False, default="")
    """The log's name and partition."""
    size: int = 0
    edge: merkle.Edge | None = ()
    """Of the first `size` statements; None after one that is lost, until the next takes it up again."""
    next_offset: int | None = None
    totals: Totals = field(default_factory=Totals)
    holes: list[Range] = field(default_factory=list)
    """Offsets that a finding already speaks of."""
    expired: int = 0
    expiries: list[Expiry] = field(default_factory=list)
    covered: int = 0
    """The largest size whose root somebody signed who is trusted."""
    sound: bool = True
    """Whether the head is what a trusted key signed, or what speaks against it was accepted: only then may it be
    remembered."""
    verified: int = 0
    """Statements with at least one signature that holds."""
    _last_edge: merkle.Edge = ()
    _last_size: int = 0
    _batch_number: int | None = 0
    _identity: LogId | None = None
    _sealed_at: datetime | None = None
    _signing: dict[Algorithm, str] = field(default_factory=dict)
    _retired: set[str] = field(default_factory=set)
    _displaced: dict[int, int] = field(default_factory=dict)
    _lost: bool = False
    _unverified: Range | None = None
    _by_size: dict[int, list[Memory]] = field(default_factory=dict)
    _data: bytes = b""

    def __post_init__(self) -> None:
        self.name = str(self.log)
        for memory in self.memories:
            self._by_size.setdefault(memory.size, []).append(memory)
        self.size = self.begin
        if self.begin:
            self.edge, self._batch_number = None, None

    @property
    def root(self) -> bytes | None:
        """The root of the tree of all statements, None where it is not known."""
        return merkle.edge_root(self.edge) if self.edge is not None else None

    def gap(self, first: int, end: int) -> None:
        """Take note that the sequences `[first, end)` have no object."""
        self._report(
            "sequence-gap",
            f"{end - first} manifest{'s are' if end - first > 1 else ' is'} missing, with later ones there",
            sequence=first,
            through=end - 1,
            key=layout.manifest_key(self.log, first),
        )
        self._lose(end)

    def unreadable(self, sequence: int, reason: str) -> None:
        """Take note that a manifest is there and cannot be read."""
        self._doubt(
            "unreadable",
            f"the manifest cannot be read: {reason}",
            sequence=sequence,
            key=layout.manifest_key(self.log, sequence),
        )
        self._lose(sequence + 1)

    def malformed(self, sequence: int, reason: str, digest: str | None = None) -> None:
        """Take note that a manifest's bytes are no statement."""
        self._doubt(
            "statement",
            reason,
            sequence=sequence,
            key=layout.manifest_key(self.log, sequence),
            sha256=digest,
        )
        self._lose(sequence + 1)

    def step(self, sequence: int, data: bytes) -> Work | None:
        """Take the manifest of the next sequence; return what there is to check of its objects, if anything."""
        self._data = data
        try:
            manifest = parse(data)
        except FormatError as error:
            try:
                if data.count(b"\n") > 2:
                    raise
                manifest = parse(data.partition(b"\n")[0] + b"\n" + _ANY_SIGNATURE)
            except FormatError:
                self.malformed(sequence, str(error), self._digest())
                return None
            manifest = Manifest(manifest.statement, manifest.line, ())
            self._doubt("signature", str(error), sequence=sequence, sha256=self._digest(), row="line 2")
        else:
            if not any(signature.algorithm == "HMAC-SHA256" for signature, _ in manifest.signatures):
                what = "the statement has no HMAC-SHA256 signature"
                self._doubt("signature", what, sequence=sequence, sha256=self._digest(), row="none")
        statement = manifest.statement
        if not self._belongs(statement, sequence):
            self._lose(sequence + 1)
            return None
        if statement.sequence != sequence:
            return self._misplaced(statement, sequence)
        sealed_at = parse_time(statement.sealed_at)
        believed = self._check_signatures(manifest, sealed_at, sequence)
        self._check_tree(statement, manifest.line, sequence)
        self._check_after(statement)
        self._check_clock(statement, sealed_at)
        self._join(statement, believed=believed)
        self._count(statement)
        self.size = sequence + 1
        self._lost = False
        return self._work(statement, sealed_at)

    def _digest(self) -> str:
        """Return the digest of the manifest in hand. Only findings show it, and good statements make none."""
        return sha256(self._data).hexdigest()

    def seam(self, data: bytes) -> None:
        """Hold what was read to the statement behind it, of which no more is looked at: another span judges that."""
        try:
            statement = parse(data).statement
        except FormatError:
            return
        if self.root is not None and (statement.sequence, statement.tree.root) != (self.size, self.root.hex()):
            self._doubt(
                "tree",
                "the tree signed here is not that of the statements before",
                sequence=self.size,
                expected=f"size {self.size}, root {self.root.hex()}",
                found=f"size {statement.tree.size}, root {statement.tree.root}",
                sha256=sha256(data).hexdigest(),
            )

    def end(self, *, whole: bool = True) -> None:
        """Judge the whole, once there is no later manifest; of a part that ends earlier, no more than what it holds."""
        if self.edge is not None:
            self._check_heads(self.size, merkle.edge_root(self.edge))
        if self._unverified is not None:
            self._uncovered(*self._unverified)
        if not whole:
            return
        ahead = [memory for memory in self.memories if memory.size > self.size]
        if ahead:
            most = max(ahead, key=lambda memory: memory.size)
            expected = f"size {most.size}" + (f", root {most.root.hex()}" if most.root else "")
            found = f"size {self.size}" + (f", root {self.root.hex()}" if self.root else "")
            self._doubt(
                "head-rollback",
                f"the log went back: {most.origin} remembers more statements than there are",
                evidence=(most.evidence,) if most.evidence else (),
                sequence=self.size,
                through=most.size - 1,
                expected=expected,
                found=found,
                sha256=loss_digest(self.name, expected, found),
                row="rollback",
            )
            self._hole(self.next_offset or 0, _FOREVER)
        if self.log.life > 1 and self.totals.statements:
            what = f"life {self.log.life} of {self.log.topic}/{self.log.partition}: the topic was made again or moved"
            self._report("new-life", what, sequence=0)
        if self.heartbeat and self._sealed_at and self.now - self._sealed_at > 2 * self.heartbeat:
            silent = self.now - self._sealed_at
            self._report("stale", f"nothing was written since {self._sealed_at:%Y-%m-%dT%H:%M:%SZ} ({silent})")

    # --- passages: statements that another chain stepped over

    @property
    def remembered(self) -> Mapping[int, Sequence[Memory]]:
        """What is remembered of the log's heads, by size."""
        return self._by_size

    def depart(self) -> Place | None:
        """Begin a passage: forget what was counted; None where the chain cannot go on from what it knows."""
        self.totals, self.verified, self._unverified, self.sound = Totals(), 0, None, True
        self.expiries.clear()
        return self._place()

    def arrive(self, start: Place, number: int | None) -> Passage | None:
        """End a passage; None if another chain could judge otherwise of what was met.

        Args:
            start: what `depart` gave.
            number: of the first batch since then.
        """
        end = self._place()
        if end is None or not self.sound or self.expiries or end.signing != start.signing:
            return None
        return Passage(start, end, number, self.totals, self.verified, self._unverified, self._data)

    def passes(self, passage: Passage) -> bool:
        """Say whether stepping over a passage's statements would lead this chain where it led the other one."""
        start, here = passage.start, self._place()
        if here is None or any(here.signing.get(algorithm) != key for algorithm, key in start.signing.items()):
            return False
        number = here.batch_number
        if start.batch_number is None and number is not None and passage.number in (None, number):
            # The other one had met no batch yet, and took the first one's number as it came.
            number = None
        return replace(here, batch_number=number, signing=start.signing) == start

    def pass_on(self, passage: Passage) -> None:
        """Go where steps over a passage's statements lead. It must be one that `passes`."""
        end = passage.end
        self.size, self.edge, self.next_offset, self._sealed_at = end.size, end.edge, end.next_offset, end.sealed_at
        self._last_edge, self._last_size = end.edge, end.size
        if end.batch_number is not None:
            self._batch_number = end.batch_number
        for name in Totals.__slots__:
            setattr(self.totals, name, getattr(self.totals, name) + getattr(passage.totals, name))
        self.verified += passage.verified
        if passage.unverified:
            first, behind = passage.unverified
            self._unverified = (self._unverified[0] if self._unverified else first, behind)
        self._data = passage.data

    def _place(self) -> Place | None:
        if self.edge is None or self._lost:
            return None
        return Place(
            self.archive,
            self.size,
            self.edge,
            self.next_offset,
            self._batch_number,
            self._identity,
            self._sealed_at,
            dict(self._signing),
        )

    # --- rule 3

    def _check_signatures(self, manifest: Manifest, sealed_at: datetime, sequence: int) -> bool:
        """Return whether what the statement lets expire counts: a signature holds, or one cannot be checked here."""
        text = message(manifest.line)
        held = unchecked = False
        # Whether a finding of its own says why no signature holds.
        said = not manifest.signatures
        for signature, value in manifest.signatures:
            key = self.trust.keys.get(signature.key)
            if key is None:
                what = f"the key {signature.key[:200]!r} is not among those trusted"
                self._doubt("key-unknown", what, sequence=sequence, sha256=self._digest(), row=signature.key)
                unchecked = said = True
                continue
            if key.algorithm != signature.algorithm:
                self._doubt(
                    "key-algorithm",
                    f"the key {signature.key!r} signs by an algorithm that it does not have",
                    sequence=sequence,
                    expected=key.algorithm,
                    found=signature.algorithm,
                    sha256=self._digest(),
                    row=signature.key,
                )
                said = True
                continue
            try:
                self.check(key, text, value)
            except SignatureInvalid as error:
                self._doubt("signature", str(error), sequence=sequence, sha256=self._digest(), row=signature.key)
                said = True
                continue
            except KeyUnavailable as error:
                self._unchecked(key, str(error), sequence)
                unchecked, said = True, said or key.checkable
                continue
            if self._check_span(key, sealed_at, sequence):
                held = True
            else:
                said = True
        if held:
            self.verified += 1
        elif not said:
            self._unverified = (self._unverified[0] if self._unverified else sequence, sequence + 1)
        return held or unchecked

    def _unchecked(self, key: TrustedKey, reason: str, sequence: int) -> None:
        if key.checkable:
            self._doubt("unreadable", f"a signature could not be checked: {reason}", sequence=sequence, row=key.id)
        else:
            self._report("unchecked-signature", reason, sequence=sequence, row=key.id)

    def _uncovered(self, first: int, end: int) -> None:
        """Say once that statements are held by no signature, unless findings of their own say why."""
        if end <= self.covered:
            return
        if self.sound:
            what = "no signature of these statements could be checked, and no checkpoint covers them"
            self._report("uncovered", what, sequence=max(first, self.covered), through=end - 1)
        self.sound = False

    def _check_span(self, key: TrustedKey, sealed_at: datetime, sequence: int) -> bool:
        """Return whether the key may sign this statement at all; its span is policy, `until` is not."""
        until = key.until.get(self.name)
        if until is not None and sequence >= until.size:
            self._doubt(
                "key-span",
                f"the key {key.id!r} ended at this log's size {until.size} and signs beyond it",
                severity=Severity.TAMPERED,
                sequence=sequence,
                sha256=self._digest(),
                row=f"until {key.id}",
            )
            return False
        current = self._signing.get(key.algorithm)
        if current is not None and current != key.id:
            before = self.trust.keys[current]
            if key.id in self._retired or key.began < before.began:
                self._doubt(
                    "key-span",
                    f"the older key {key.id!r} signs after the newer {current!r}",
                    severity=Severity.TAMPERED,
                    sequence=sequence,
                    sha256=self._digest(),
                    row=f"older {key.id}",
                )
                return True
            self._retired.add(current)
        self._signing[key.algorithm] = key.id
        if not key.holds(sealed_at):
            self._report(
                "key-span",
                f"the key {key.id!r} signs outside its span",
                sequence=sequence,
                expected=f"sealed from {key.from_ or 'ever'} to {key.to or 'ever'}",
                found=f"{sealed_at:%Y-%m-%dT%H:%M:%S.%fZ}",
                sha256=self._digest(),
                row=f"span {key.id}",
            )
        return True

    # --- rule 4

    def _belongs(self, statement: Statement, sequence: int) -> bool:
        """Say whether the statement is of this archive and this log."""
        log = statement.log
        if self.archive is None:
            self.archive = statement.archive
        wrong = [
            (name, expected, found)
            for name, expected, found in (
                ("archive", self.archive, statement.archive),
                ("topic", self.log.topic, log.topic),
                ("partition", self.log.partition, log.partition),
                ("life", self.log.life, log.life),
            )
            if expected != found
        ]
        if not wrong and self._identity is not None and self._identity != log:
            wrong = [("cluster and topic id", f"{self._identity.cluster}, {self._identity.topic_id}",
                      f"{log.cluster}, {log.topic_id}")]  # fmt: skip
        if wrong:
            name, expected, found = wrong[0]
            self._doubt(
                "identity",
                f"the statement is of another {name}",
                sequence=sequence,
                expected=str(expected)[:300],
                found=str(found)[:300],
                key=layout.manifest_key(self.log, sequence),
                sha256=self._digest(),
            )
            return False
        self._identity = log
        return True

    def _misplaced(self, statement: Statement, sequence: int) -> Work | None:
        """Judge a statement of this log that stands at another one's place: swapped, or replayed."""
        number = statement.sequence
        swapped = number > sequence or number in self._displaced
        if len(self._displaced) < _DISPLACED_LIMIT:
            self._displaced[sequence] = number
        self._doubt(
            "tree" if swapped else "identity",
            "the statements are out of order" if swapped else "an older statement stands in the place of this one",
            sequence=sequence,
            expected=f"sequence {sequence}",
            found=f"sequence {number}",
            key=layout.manifest_key(self.log, sequence),
            sha256=self._digest(),
        )
        self._lose(sequence + 1)
        return None

    # --- rule 5

    def _check_tree(self, statement: Statement, line: bytes, sequence: int) -> None:
        tree = statement.tree
        follows = False
        # All digests are of one length, so that they are the same where they are so end to end.
        if self.edge is not None and tree.size == sequence and "".join(tree.edge) == b"".join(self.edge).hex():
            # The root of the edge that was recomputed is what counts.
            follows = merkle.edge_root(self.edge).hex() == tree.root
        if not follows:
            stated = tuple(map(bytes.fromhex, tree.edge))
            coherent = (
                tree.size == sequence
                and len(stated) == sequence.bit_count()
                and merkle.edge_root(stated).hex() == tree.root
            )
            resumed = self.edge is None and coherent and self._extends(stated, sequence)
            if not resumed:
                computed = (
                    f"size {sequence}, root {self.root.hex()}"
                    if self.root
                    else "an edge that extends the last one known"
                )
                self._doubt(
                    "tree",
                    "the tree signed here is not that of the statements before"
                    + ("" if coherent else ", and its root does not follow from its edge"),
                    sequence=sequence,
                    expected=computed,
                    found=f"size {tree.size}, root {tree.root}",
                    sha256=self._digest(),
                )
            if coherent:
                self.edge = stated
            elif self.edge is None:
                self._check_heads(sequence, bytes.fromhex(tree.root))
                return
        edge = self.edge
        if edge is None:
            return
        if sequence in self._by_size:
            self._check_heads(sequence, merkle.edge_root(edge))
        self.edge = merkle.append(sequence, edge, merkle.leaf_hash(line))
        self._last_edge, self._last_size = self.edge, sequence + 1

    def _extends(self, edge: merkle.Edge, size: int) -> bool:
        """Say whether a stated edge agrees with the last one known, as far as both have the same subtrees."""
        for one, other, old, new in zip(
            merkle.subtree_sizes(self._last_size), merkle.subtree_sizes(size), self._last_edge, edge, strict=False
        ):
            if one != other:
                break
            if old != new:
                return False
        return True

    def _check_heads(self, size: int, root: bytes) -> None:
        for memory in self._by_size.get(size, ()) if size else ():
            if memory.root is None:
                continue
            if memory.root == root:
                if memory.trusted and not self._lost:
                    self.covered = max(self.covered, size)
                continue
            shown = self._data.decode(errors="replace") if len(self._data) <= _EVIDENCE_LIMIT else None
            expected, found = f"size {size}, root {memory.root.hex()}", f"size {size}, root {root.hex()}"
            where: dict[str, Any] = {
                "sequence": size - 1,
                "expected": expected,
                "found": found,
                "evidence": tuple(text for text in (memory.evidence, shown) if text),
                "sha256": loss_digest(self.name, expected, found),
                "row": f"{size} {root.hex()}",
            }
            if memory.checkpoint:
                what = "the root that was signed here is not that of the statements that it covers"
                self._doubt("checkpoint", what, key=memory.checkpoint, **where)
            else:
                what = f"another history: {memory.origin} remembers another root at this size"
                self._doubt("head-fork", what, **where)

    # --- rule 6

    def _check_after(self, statement: Statement) -> None:
        after, earlier = statement.after, self.earlier
        if statement.sequence or earlier is None:
            if after is None:
                return
            if statement.sequence or after.life >= self.log.life:
                self._odd(statement, "after stands where FORMAT.md has null")
            else:
                self._rolled_back(layout.Log(self.log.topic, self.log.partition, after.life), 0, after.size, after.root)
            return
        if after is None or after.life != earlier.log.life:
            self._doubt(
                "identity",
                "the first statement of a life does not name the life before it",
                sequence=0,
                expected=f"after life {earlier.log.life}",
                found=f"after life {after.life}" if after else "null",
                sha256=self._digest(),
            )
            return
        if earlier.size < after.size:
            self._rolled_back(earlier.log, earlier.size, after.size, after.root)
        elif earlier.size > after.size or (
            earlier.size == after.size and earlier.root is not None and earlier.root.hex() != after.root
        ):
            self._report(
                "head-fork",
                f"life {earlier.log.life} is not the one that this life signed to go on from",
                sequence=0,
                expected=f"size {after.size}, root {after.root}",
                found=f"size {earlier.size}, root {earlier.root.hex() if earlier.root else 'unknown'}",
                sha256=self._digest(),
            )

    def _rolled_back(self, log: layout.Log, size: int, remembered: int, root: str) -> None:
        """Say of an earlier life that it is shorter than this one signed."""
        what = f"the log went back: life {self.log.life} was begun when there were more statements"
        expected, found = f"size {remembered}, root {root}", f"size {size}"
        where: dict[str, Any] = {"sequence": size, "through": remembered - 1, "expected": expected, "found": found}
        digest = loss_digest(log, expected, found)
        self.findings.add(finding("head-rollback", what, log=str(log), sha256=digest, **where), row="rollback")

    def _check_clock(self, statement: Statement, sealed_at: datetime) -> None:
        before = self._sealed_at
        if before is not None and sealed_at < before:
            self._report(
                "clock",
                "the writer's clock stepped back",
                sequence=statement.sequence,
                expected=f"not before {before:%Y-%m-%dT%H:%M:%S.%fZ}",
                found=statement.sealed_at,
                row="back",
            )
        if sealed_at > self.now + _CLOCK_SLACK:
            self._report(
                "clock",
                "the statement was sealed in the future",
                sequence=statement.sequence,
                expected=f"not after {self.now:%Y-%m-%dT%H:%M:%S.%fZ}",
                found=statement.sealed_at,
                row="future",
            )
        if before is not None and self.heartbeat and sealed_at - before > 2 * self.heartbeat:
            self._report(
                "stale",
                f"nothing was written for {sealed_at - before} before it",
                sequence=statement.sequence,
                row="silent",
            )
        self._sealed_at = sealed_at

    def _join(self, statement: Statement, *, believed: bool) -> None:
        """Hold the range against the one before, and account for its offsets."""
        first, end = statement.first_offset, statement.next_offset
        expected = self.next_offset
        sequence = statement.sequence
        if expected is not None and first < expected:
            self._report(
                "offset-overlap",
                f"offsets {first} to {min(expected, max(end, first + 1)) - 1} were archived before",
                offset=first,
                expected=f"first_offset {expected}",
                found=f"first_offset {first}",
                sequence=sequence,
                sha256=self._digest(),
            )
        elif self._lost or expected is None:
            if statement.sequence:
                self._hole(expected or 0, first)
        elif first > expected:
            self._hole(expected, first)
            self._report(
                "offset-gap",
                f"offsets {expected} to {first - 1} are in no statement",
                offset=expected,
                expected=f"first_offset {expected}",
                found=f"first_offset {first}",
                sequence=sequence,
                sha256=self._digest(),
            )
        if statement.lost:
            self._report(
                "offset-lost",
                f"the broker deleted offsets {statement.lost[0]} to {statement.lost[1] - 1} before they were archived",
                offset=statement.lost[0],
                sequence=sequence,
                sha256=self._digest(),
            )
        problem = _problem(statement)
        ordered = not problem and self._in_order(statement)
        if problem:
            self._odd(statement, problem)
        elif ordered:
            self._account(statement)
        if statement.batches:
            self._batch_number = statement.batches[-1].number + 1 if ordered else None
        elif self._lost:
            self._batch_number = None
        # Who forges a statement shall not hide by it which objects are gone.
        if statement.expired and believed:
            unknown = self._lost or (self.begin and not self.expired)
            if statement.expired[0] != self.expired and not (unknown and statement.expired[0] >= self.expired):
                self._odd(statement, "expired does not go on where the last one ended")
            self.expired = max(self.expired, statement.expired[1])
            self.expiries.append(Expiry(statement.sequence, *statement.expired, parse_time(statement.sealed_at)))
        self.next_offset = max(end, expected or 0)

    def _in_order(self, statement: Statement) -> bool:
        """Say whether numbers and places of the batches run on."""
        number = self._batch_number
        if self._lost or number is None:
            number = statement.batches[0].number if statement.batches else 0
            if number < (self._batch_number or 0):
                number = self._batch_number or 0
        place = 0
        for batch in statement.batches:
            if batch.number != number or batch.start != place:
                self._report(
                    "batch-order",
                    "the batches do not follow one another",
                    sequence=statement.sequence,
                    batch=batch.number,
                    expected=f"number {number} at byte {place}",
                    found=f"number {batch.number} at byte {batch.start}",
                    sha256=self._digest(),
                )
                return False
            number += 1
            place += batch.size
        if statement.segment and place != statement.segment.size:
            self._report(
                "segment-size",
                "the members do not make up the segment",
                sequence=statement.sequence,
                key=statement.segment.key,
                expected=f"{statement.segment.size} bytes",
                found=f"{place} bytes",
                sha256=self._digest(),
            )
            return False
        return True

    def _account(self, statement: Statement) -> None:
        """Hold every offset of the range to be exactly one of: an event's, quarantined, skipped, lost."""
        unlined = unlined_ranges(statement)
        for (_, end), (start, stop) in pairwise(unlined):
            if start < end:
                self._miscounted(statement, "offset-overlap", start, min(end, stop) - start, "twice")
                return
        if unlined and (unlined[0][0] < statement.first_offset or unlined[-1][1] > statement.next_offset):
            self._odd(statement, "skipped, lost or quarantined offsets lie outside the range")
            return
        measure: Callable[[int, int], int] = _Measure(unlined) if unlined else _no_offsets
        cursor = statement.first_offset
        for batch in [*statement.batches, None]:
            start = batch.first_offset if batch else statement.next_offset
            missing = start - cursor - measure(cursor, start)
            if start < cursor or missing:
                name, many = ("offset-overlap", cursor - start) if start < cursor else ("offset-gap", missing)
                self._miscounted(statement, name, min(cursor, start), many, "twice" if start < cursor else "nowhere")
                return
            if batch is None:
                return
            lines = batch.next_offset - start - measure(start, batch.next_offset)
            if batch.next_offset <= start or lines != batch.events:
                gap = lines > batch.events
                name = "offset-gap" if gap else "offset-overlap"
                how = "nowhere" if gap else "twice"
                self._miscounted(statement, name, start, abs(lines - batch.events), how, batch)
                return
            cursor = batch.next_offset

    def _miscounted(
        self, statement: Statement, name: str, offset: int, many: int, how: str, batch: Batch | None = None
    ) -> None:
        self._report(
            name,
            f"{many} offset{'s' if many != 1 else ''} from here on stand {how} in the statement's account",
            sequence=statement.sequence,
            batch=batch.number if batch else None,
            offset=offset,
            sha256=self._digest(),
        )

    def _odd(self, statement: Statement, what: str) -> None:
        self._doubt("statement", what, sequence=statement.sequence, sha256=self._digest())

    def _count(self, statement: Statement) -> None:
        totals = self.totals
        totals.statements += 1
        totals.quarantined += statement.quarantine.records if statement.quarantine else 0
        totals.skipped += sum(end - start for start, end in statement.skipped)
        totals.lost += statement.lost[1] - statement.lost[0] if statement.lost else 0

    def _work(self, statement: Statement, sealed_at: datetime) -> Work | None:
        """Return what there is to check of the statement's objects; their keys must be theirs (rule 4)."""
        if not statement.segment and not statement.quarantine:
            return None
        bounds = _record_bounds(statement)
        kinds: tuple[tuple[layout.Kind, SegmentRef | QuarantineRef | None], ...] = (
            ("events", statement.segment),
            ("quarantine", statement.quarantine),
        )
        for kind, ref in kinds:
            if ref is None or (bounds and layout.is_records_key(ref.key, kind, self.log, *bounds, ref.sha256)):
                continue
            key = layout.parse_records_key(ref.key)
            if (
                key is None
                or (key.kind, key.log, key.digest) != (kind, self.log, ref.sha256[:16])
                or (bounds and (key.first, key.last) != bounds)
            ):
                self._doubt(
                    "identity",
                    f"the key of the statement's {'segment' if kind == 'events' else 'quarantine'} is not its own",
                    sequence=statement.sequence,
                    key=ref.key[:1024],
                    sha256=self._digest(),
                )
                if key is None:
                    return None
        return Work(
            self.name,
            statement.sequence,
            statement.first_offset,
            statement.next_offset,
            statement.segment,
            statement.batches,
            statement.types,
            statement.quarantine,
            unlined_ranges(statement),
            self.retention is not None and self.now - sealed_at > self.retention + RETENTION_GRACE,
            statement.sealed_at,
        )

    def _lose(self, size: int) -> None:
        """Go on behind statements that are not known."""
        self.size = size
        self.edge = None
        self._lost = True

    def _hole(self, start: int, end: int) -> None:
        if start < end and len(self.holes) < _HOLES_LIMIT:
            self.holes.append((start, end))

    def in_hole(self, first: int, last: int) -> bool:
        """Say whether offsets `first` to `last` touch what a finding of this log already speaks of."""
        # They are disjoint, and come in order.
        place = bisect_right(self.holes, last, key=itemgetter(0))
        return place > 0 and first < self.holes[place - 1][1]

    def _doubt(self, name: str, what: str, **where: Any) -> None:
        """Report what keeps the head from being remembered, unless somebody has judged it: then the log goes on."""
        if not self._report(name, what, **where):
            self.sound = False

    def _report(
        self, name: str, what: str, *, severity: Severity | None = None, row: str | None = None, **where: Any
    ) -> bool:
        """Add a finding, and say whether somebody has accepted it."""
        one: Finding = finding(name, what, severity=severity, log=self.name, **where)
        return self.findings.add(one, row=row)


class _Measure:
    """How many offsets of sorted, disjoint ranges lie in a span, in logarithmic time."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._starts = [start for start, _ in ranges]
        self._ranges = ranges
        self._before = [0, *accumulate(end - start for start, end in ranges)]

    def __call__(self, start: int, end: int) -> int:
        if not self._ranges or end <= start:
            return 0
        return self._below(end) - self._below(start)

    def _below(self, offset: int) -> int:
        place = bisect_right(self._starts, offset)
        if not place:
            return 0
        start, end = self._ranges[place - 1]
        return self._before[place - 1] + min(offset, end) - start


def _no_offsets(_start: int, _end: int) -> int:
    return 0


def unlined_ranges(statement: Statement) -> list[Range]:
    """Return the ranges of offsets without a line in the segment, sorted."""
    lost = [statement.lost] if statement.lost else []
    quarantined = statement.quarantine.offsets if statement.quarantine else []
    if not statement.skipped and not lost:
        return quarantined
    return sorted([*statement.skipped, *lost, *quarantined])


def _record_bounds(statement: Statement) -> tuple[int, int] | None:
    """Return the offsets of the first and the last record, event or quarantined, of the range."""
    spans: list[tuple[int, int]] = [(batch.first_offset, batch.next_offset) for batch in statement.batches]
    if statement.quarantine:
        spans += statement.quarantine.offsets
    return (min(start for start, _ in spans), max(end for _, end in spans) - 1) if spans else None


def _problem(statement: Statement) -> str | None:
    """Return what a statement says that no statement may say, None if nothing."""
    segment, quarantine, batches = statement.segment, statement.quarantine, statement.batches
    empty = statement.first_offset == statement.next_offset
    if statement.first_offset > statement.next_offset:
        return "the range runs backwards"
    if (segment is None) != (not batches):
        return "a segment stands without batches, or batches without a segment"
    if not batches and statement.types:
        return "types are counted without a batch"
    if segment is not None and segment.size > SEGMENT_LIMIT:
        return f"the segment is beyond {SEGMENT_LIMIT} bytes"
    if statement.lost and (statement.lost[0] != statement.first_offset or statement.lost[1] > statement.next_offset):
        return "lost does not begin the range, or goes beyond it"
    if statement.expired and (not empty or segment or quarantine or statement.expired[1] > statement.sequence):
        return "a statement of expiry has a range or objects, or lets later statements expire"
    if quarantine is not None:
        if quarantine.size > QUARANTINE_LIMIT or quarantine.inflated > QUARANTINE_INFLATED_LIMIT:
            return "the quarantine is beyond the limits"
        if sum(end - start for start, end in quarantine.offsets) != quarantine.records:
            return "the quarantine has another number of records than of offsets"
    for batch in batches:
        if not 0 < batch.events <= BATCH_EVENTS_LIMIT:
            return f"a batch has {batch.events} events (1 to {BATCH_EVENTS_LIMIT})"
        if batch.min_time > batch.max_time:
            return "a batch's times run backwards"
        if batch.kafka_time and batch.kafka_time.min > batch.kafka_time.max:
            return "a batch's Kafka times run backwards"
    return None
