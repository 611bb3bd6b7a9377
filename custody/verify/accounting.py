"""Rules 4 and 6 of FORMAT.md, Verification: whether one log's statements account for each of its offsets. Pure.

A `Chain` puts the accounting of Kafka's offsets on top of a `SignedLog` (`custody.tlog.log`), which checks signatures,
sequence, tree and known heads. It is told of every sequence, from 0 on, exactly one of three things: its object's bytes
(`step`), that there is no object (`gap`), or that it cannot be read (`unreadable`). It answers with findings and with
the work that the statement's objects are. Offsets between two statements belong to the finding that says what is
between. It is one module because each check compares a statement with what the same state remembers of those before.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from operator import itemgetter
from typing import Any

from custody.archive.forms import statements_of
from custody.findings import Finding, Findings, Severity, finding, loss_digest
from custody.format import layout, limits
from custody.format.manifest import (
    Batch,
    LastRecord,
    LogId,
    Manifest,
    QuarantineRef,
    Range,
    SegmentRef,
    Statement,
)
from custody.format.offsets import Measure, unlined_ranges
from custody.format.times import parse_time
from custody.tlog.head import Head, KnownHead
from custody.tlog.log import Fault, SignedLog
from custody.tlog.signatures import Keys
from custody.verify.work import Work

RETENTION_GRACE = timedelta(days=7)
"""How long after the end of its retention an object may still be there."""

_CLOCK_SLACK = timedelta(minutes=5)
_HOLES_LIMIT = 100_000
_STEPS_BACK_LIMIT = 10_000
_FOREVER = 1 << 64


@dataclass(frozen=True, slots=True)
class Promises:
    """What `archive.json` and the verifier's trust promise of a log.

    Attributes:
        heartbeat: an idle log writes a statement this often.
        checkpoint: a log that grew gets a checkpoint this often.
        retention: how long evidence is to be kept.
        kept: how long it may be kept at most, where somebody says so.
        live: whether the archive is being written, so that silence is a finding.
    """

    heartbeat: timedelta | None = None
    checkpoint: timedelta | None = None
    retention: timedelta | None = None
    kept: timedelta | None = None
    live: bool = False


@dataclass(frozen=True, slots=True)
class Expiry:
    """A statement that lets the objects of sequences `[first, end)` be deleted."""

    sequence: int
    first: int
    end: int
    sealed_at: datetime
    signers: tuple[str, ...]
    """Keys whose signatures of it count."""


@dataclass(slots=True)
class Totals:
    """What a log's statements account for."""

    statements: int = 0
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    lost: int = 0
    unreadable: int = 0
    stored: int = 0
    inflated: int = 0


@dataclass(slots=True)
class Chain:
    """The state of one log's verification."""

    log: layout.Log
    archive: str | None
    keys: Keys
    now: datetime
    findings: Findings
    known: Sequence[KnownHead] = ()
    earlier: "Chain | None" = None
    """The partition's newest earlier epoch that has statements."""
    promises: Promises = Promises()
    begin: int = 0
    """The first sequence to be looked at: what lies before it was verified at another time."""
    following: Callable[[int], Iterator[tuple[int, bytes]]] = lambda _: iter(())
    """Returns the manifests from a sequence on, for looking ahead."""
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    """Returns whether the tree of a size and root is shown to be a prefix of a head."""

    name: str = field(init=False, default="")
    """The log's name and partition."""
    signed: SignedLog[Manifest] = field(init=False)
    next_offset: int | None = None
    totals: Totals = field(default_factory=Totals)
    holes: list[Range] = field(default_factory=list)
    """Offsets that a finding already speaks of."""
    expiries: list[Expiry] = field(default_factory=list)
    granted: list[Range] = field(default_factory=list)
    """Sequences whose objects may be gone: what of the expiries counts."""
    steps_back: dict[int, datetime] = field(default_factory=dict)
    """Of each statement that was sealed before an earlier one: the latest time that any up to it was sealed."""
    steps_back_from: int | None = None
    """The first of those beyond a limit: from there on the latest time is not known."""
    identity: LogId | None = None
    expired_events: int = 0
    """Events of statements whose objects expired and are gone."""
    _expired: int = 0
    _batch_number: int | None = 0
    _sealed_at: datetime | None = None
    _latest: datetime | None = None
    _last_record: LastRecord | None = None
    _leader_epoch: int = 0

    def __post_init__(self) -> None:
        self.name = str(self.log)
        self.signed = SignedLog(
            self.name,
            statements_of(self.log),
            self.keys,
            self._report_signed,
            self._belongs,
            self.known,
            self.begin,
            self.following,
            self.within,
        )
        if self.begin:
            self._batch_number = None

    @property
    def size(self) -> int:
        """How many sequences were looked at, from 0 on."""
        return self.signed.size

    @property
    def root(self) -> bytes | None:
        """The root of the tree of all statements, None where it is not known."""
        return self.signed.root

    @property
    def sound(self) -> bool:
        """Whether the head may be remembered: a trusted key signed it, or what speaks against it was accepted."""
        return self.signed.sound

    @property
    def pending(self) -> int:
        """How many statements nobody here can check, and no trusted head covers."""
        signed = self.signed
        waiting = signed.unverified[1] - signed.pending if signed.unverified and signed.pending is not None else 0
        return waiting + sum(end - first for first, end in signed.unlinked)

    @property
    def head(self) -> Head | None:
        """The largest head that is verified, None where there is none that may be remembered."""
        signed = self.signed
        if not signed.sound or not signed.size or signed.root is None:
            return None
        if signed.pending is None:
            return Head(signed.size, signed.root)
        return Head(signed.covered, signed.covered_root) if signed.covered_root is not None else None

    def gap(self, first: int, end: int) -> None:
        """Take the sequences `[first, end)`, which have no object."""
        missing = self.signed.gap(first, end)
        if missing is not None:
            many = missing[1] - missing[0]
            self._report(
                "sequence-gap",
                f"{many} manifest{'s are' if many > 1 else ' is'} missing, with later ones there",
                sequence=missing[0],
                through=missing[1] - 1,
                key=layout.manifest_key(self.log, missing[0]),
            )

    def unreadable(self, sequence: int, reason: str) -> None:
        """Take a manifest that is there and cannot be read."""
        key = layout.manifest_key(self.log, sequence)
        self._doubt("unreadable", f"the manifest cannot be read: {reason}", sequence=sequence, key=key)
        self.signed.unreadable(sequence)

    def malformed(self, sequence: int, reason: str, digest: str) -> None:
        """Take an object that is too large to be a manifest, by its SHA-256."""
        self.signed.malformed(sequence, reason, digest)

    def step(self, sequence: int, data: bytes) -> Work | None:
        """Take the manifest of the next sequence; return what there is to check of its objects, if anything."""
        lost = self.signed.lost or (self.begin > 0 and self.identity is None)
        manifest = self.signed.step(sequence, data)
        if manifest is None:
            return None
        statement = manifest.statement
        self.archive = self.archive or statement.archive
        self.identity = self.identity or statement.log
        sealed_at = parse_time(statement.sealed_at)
        self._check_previous_epoch(statement)
        self._check_clock(statement, sealed_at)
        self._join(statement, lost=lost)
        bounds = _record_bounds(statement)
        self._check_last_record(statement, bounds, lost=lost)
        self._count(statement)
        return self._work(statement, sealed_at, bounds)

    def _digest(self) -> str:
        """Return the digest of the manifest in hand. Only findings show it, and good statements make none."""
        return self.signed.digest

    def seam(self, data: bytes) -> None:
        """Check that our root matches the `tree` of the manifest behind us, whose rest is verified by the next span."""
        self.signed.seam(data)

    def end(self, *, whole: bool = True) -> None:
        """Run the checks that need the whole log. For a part that ends earlier, check only what lies inside it."""
        went_back = len(self.findings.kept)
        self.signed.end(whole=whole)
        if any(one.finding == "head-rollback" for one in self.findings.kept[went_back:]):
            self._hole(self.next_offset or 0, _FOREVER)
        self._check_covered()
        if not whole:
            return
        if self.log.epoch > 1 and self.totals.statements:
            where = f"{self.log.topic}/{self.log.partition}"
            what = f"epoch {self.log.epoch} of {where}: the topic was made again or moved"
            self._report("new-epoch", what, sequence=0)
        heartbeat = self.promises.heartbeat if self.promises.live else None
        if heartbeat and self._sealed_at and self.now - self._sealed_at > 2 * heartbeat:
            silent = self.now - self._sealed_at
            self._report("stale", f"nothing was written since {self._sealed_at:%Y-%m-%dT%H:%M:%SZ} ({silent})")

    def _check_covered(self) -> None:
        """Report statements whose signature nobody here can check, and that no trusted head covers."""
        signed, promises = self.signed, self.promises
        for first, end in signed.unlinked:
            what = (
                "no signature of these statements could be checked, and no checkpoint leads to them across the missing"
                " ones behind them"
            )
            self._report("uncovered", what, sequence=first, through=end - 1)
        if signed.pending is None or signed.unverified is None:
            return
        where: dict[str, Any] = {"sequence": signed.pending, "through": signed.unverified[1] - 1}
        if signed.sound and promises.checkpoint and promises.heartbeat and self._sealed_at:
            waited = (self.now if promises.live else self._sealed_at) - parse_time(signed.pending_since)
            if waited <= 2 * (promises.checkpoint + promises.heartbeat):
                what = "no checkpoint covers these statements yet: they are not verified"
                self._report("pending-checkpoint", what, **where)
                return
        if signed.sound:
            what = "no signature of these statements could be checked, and no checkpoint covers them"
            self._report("uncovered", what, **where)
        signed.sound = False

    # --- rule 4

    def _belongs(self, manifest: Manifest) -> Fault | None:
        """Return what makes a statement one of another archive or log, None if it is of this one."""
        log, archive = manifest.statement.log, manifest.statement.archive
        if log == self.identity and archive == self.archive:
            return None
        wrong = [
            (name, expected, found)
            for name, expected, found in (
                ("archive", self.archive or archive, archive),
                ("topic", self.log.topic, log.topic),
                ("partition", self.log.partition, log.partition),
                ("epoch", self.log.epoch, log.epoch),
            )
            if expected != found
        ]
        if not wrong and self.identity is not None and self.identity != log:
            known = self.identity
            wrong = [("cluster and topic id", f"{known.cluster}, {known.topic_id}", f"{log.cluster}, {log.topic_id}")]
        if not wrong:
            return None
        name, expected, found = wrong[0]
        where = {
            "expected": str(expected)[:300],
            "found": str(found)[:300],
            "key": layout.manifest_key(self.log, self.signed.size),
            "sha256": self._digest(),
        }
        return Fault("identity", f"the statement is of another {name}", where)

    # --- rule 6

    def _check_previous_epoch(self, statement: Statement) -> None:
        previous, earlier = statement.previous_epoch, self.earlier
        if statement.sequence or earlier is None:
            if previous is None:
                return
            if statement.sequence or previous.epoch >= self.log.epoch:
                self._odd(statement, "previous_epoch stands where FORMAT.md has null")
            else:
                log = layout.Log(self.log.topic, self.log.partition, previous.epoch)
                self._rolled_back(log, 0, previous.size, previous.root)
            return
        self._check_epochs(statement, earlier)
        if previous is None or previous.epoch != earlier.log.epoch:
            self._doubt(
                "identity",
                "the first statement of an epoch does not name the epoch before it",
                sequence=0,
                expected=f"previous epoch {earlier.log.epoch}",
                found=f"previous epoch {previous.epoch}" if previous else "null",
                sha256=self._digest(),
            )
            return
        if earlier.size < previous.size:
            self._rolled_back(earlier.log, earlier.size, previous.size, previous.root)
        elif earlier.size > previous.size or (
            earlier.size == previous.size and earlier.root is not None and earlier.root.hex() != previous.root
        ):
            self._report(
                "head-fork",
                f"epoch {earlier.log.epoch} is not the one that this epoch signed to go on from",
                sequence=0,
                expected=f"size {previous.size}, root {previous.root}",
                found=f"size {earlier.size}, root {earlier.root.hex() if earlier.root else 'unknown'}",
                sha256=self._digest(),
            )

    def _check_epochs(self, statement: Statement, earlier: "Chain") -> None:
        """Check that epochs are consecutive, and that each is of another topic or cluster than those before."""
        if self.log.epoch != earlier.log.epoch + 1:
            what = f"epoch {self.log.epoch} follows epoch {earlier.log.epoch}: epochs are consecutive"
            self._odd(statement, what)
        chain: Chain | None = earlier
        while chain is not None:
            one, log = chain.identity, statement.log
            # A broker without topic ids cannot tell a topic from the one that had its name before.
            same = one is not None and (one.cluster, one.topic_id) == (log.cluster, log.topic_id)
            if one is not None and same and log.topic_id is not None:
                self._report(
                    "head-fork",
                    f"epoch {self.log.epoch} is of the same topic as epoch {chain.log.epoch}: its records were archived"
                    " a second time",
                    sequence=0,
                    expected=f"another topic id or cluster than {one.topic_id} of {one.cluster}",
                    found=f"{log.topic_id} of {log.cluster}",
                    sha256=self._digest(),
                )
                return
            chain = chain.earlier

    def _rolled_back(self, log: layout.Log, size: int, known: int, root: str) -> None:
        """Report that an earlier epoch is shorter than this one signed."""
        what = f"the log went back: epoch {self.log.epoch} was begun when there were more statements"
        expected, found = f"size {known}, root {root}", f"size {size}"
        where: dict[str, Any] = {"sequence": size, "through": known - 1, "expected": expected, "found": found}
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
        heartbeat = self.promises.heartbeat if self.promises.live else None
        if before is not None and heartbeat and sealed_at - before > 2 * heartbeat:
            self._report(
                "stale",
                f"nothing was written for {sealed_at - before} before it",
                sequence=statement.sequence,
                row="silent",
            )
        self._sealed_at = sealed_at
        if self._latest is None or sealed_at >= self._latest:
            self._latest = sealed_at
        elif len(self.steps_back) < _STEPS_BACK_LIMIT:
            self.steps_back[statement.sequence] = self._latest
        elif self.steps_back_from is None:
            self.steps_back_from = statement.sequence

    def _join(self, statement: Statement, *, lost: bool) -> None:
        """Check that the range joins the one before, and account for its offsets."""
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
        elif lost or expected is None:
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
        for one in statement.unreadable:
            self._report(
                "offset-unreadable",
                f"the broker holds offsets {one.from_} to {one.to - 1}, and no client could decode them: {one.error}",
                offset=one.from_,
                sequence=sequence,
                sha256=self._digest(),
            )
        problem = _problem(statement)
        ordered = not problem and self._in_order(statement, lost=lost)
        if problem:
            self._odd(statement, problem)
        elif ordered:
            self._account(statement)
        if statement.batches:
            self._batch_number = statement.batches[-1].number + 1 if ordered else None
        elif lost:
            self._batch_number = None
        if statement.expired and not problem:
            unknown = lost or (self.begin and not self._expired)
            if statement.expired[0] != self._expired and not (unknown and statement.expired[0] >= self._expired):
                self._odd(statement, "expired does not start where the last one ended")
            self._expired = max(self._expired, statement.expired[1])
            moment = parse_time(statement.sealed_at)
            self.expiries.append(Expiry(sequence, *statement.expired, moment, self.signed.signers))
        self.next_offset = max(end, expected or 0)

    def _check_last_record(self, statement: Statement, bounds: tuple[int, int] | None, *, lost: bool) -> None:
        """Check that the last record is the one of this range, or repeated, and that leader epochs never decrease."""
        last = statement.last_record
        if last is not None and last.leader_epoch < self._leader_epoch:
            self._odd(statement, f"last_record has the leader epoch {last.leader_epoch} after {self._leader_epoch}")
        if bounds is not None:
            wrong = last is not None and last.offset != bounds[1]
        elif statement.lost:
            wrong = last is not None
        else:
            wrong = last != self._last_record and not lost
        if wrong:
            self._odd(statement, "last_record is not the last record that was read")
        self._last_record = last
        if last is not None:
            self._leader_epoch = max(self._leader_epoch, last.leader_epoch)

    def _in_order(self, statement: Statement, *, lost: bool) -> bool:
        """Return whether numbers and places of the batches run on."""
        number = self._batch_number
        if lost or number is None:
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
        """Check that each offset of the range is exactly one: an event's, quarantined, skipped, unreadable, lost."""
        unlined = unlined_ranges(statement)
        for (_, end), (start, stop) in pairwise(unlined):
            if start < end:
                self._miscounted(statement, "offset-overlap", start, min(end, stop) - start, "twice")
                return
        if unlined and (unlined[0][0] < statement.first_offset or unlined[-1][1] > statement.next_offset):
            self._odd(statement, "skipped, lost, unreadable or quarantined offsets lie outside the range")
            return
        measure: Callable[[int, int], int] = Measure(unlined) if unlined else _no_offsets
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
        totals.unreadable += sum(one.to - one.from_ for one in statement.unreadable)

    def _work(self, statement: Statement, sealed_at: datetime, bounds: tuple[int, int] | None) -> Work | None:
        """Return what there is to check of the statement's objects; their keys must be theirs (rule 4)."""
        if not statement.segment and not statement.quarantine:
            return None
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
            self.promises.kept is not None and self.now - sealed_at > self.promises.kept + RETENTION_GRACE,
            statement.sealed_at,
            statement.archive,
        )

    def _hole(self, start: int, end: int) -> None:
        if start < end and len(self.holes) < _HOLES_LIMIT:
            self.holes.append((start, end))

    def in_hole(self, first: int, last: int) -> bool:
        """Return whether offsets `first` to `last` touch what a finding of this log already speaks of."""
        # They are disjoint, and come in order.
        index = bisect_right(self.holes, last, key=itemgetter(0))
        return index > 0 and first < self.holes[index - 1][1]

    def may_be_gone(self, sequence: int) -> bool:
        """Return whether a statement's objects may have been deleted."""
        return any(first <= sequence < end for first, end in self.granted)

    def _doubt(self, name: str, what: str, **where: Any) -> None:
        """Add a finding and mark the head untrusted, unless the finding was accepted."""
        if not self._report(name, what, **where):
            self.signed.sound = False

    def _report_signed(
        self,
        name: str,
        what: str,
        *,
        loss: tuple[str, ...] = (),
        row: str | None = None,
        tampered: bool = False,
        **where: Any,
    ) -> bool:
        """Add a finding of the signed log."""
        if loss:
            where["sha256"] = loss_digest(*loss)
        return self._report(name, what, severity=Severity.TAMPERED if tampered else None, row=row, **where)

    def _report(
        self, name: str, what: str, *, severity: Severity | None = None, row: str | None = None, **where: Any
    ) -> bool:
        """Add a finding, and return whether somebody has accepted it."""
        one: Finding = finding(name, what, severity=severity, log=self.name, **where)
        return self.findings.add(one, row=row)


def _no_offsets(_start: int, _end: int) -> int:
    return 0


def _record_bounds(statement: Statement) -> tuple[int, int] | None:
    """Return the offsets of the first and the last record, event or quarantined, of the range."""
    spans: list[tuple[int, int]] = [(batch.first_offset, batch.next_offset) for batch in statement.batches]
    if statement.quarantine:
        spans += statement.quarantine.offsets
    return (min(spans)[0], max(end for _, end in spans) - 1) if spans else None


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
    if segment is not None and segment.size > limits.SEGMENT_BYTES:
        return f"the segment is beyond {limits.SEGMENT_BYTES} bytes"
    if statement.lost and (statement.lost[0] != statement.first_offset or statement.lost[1] > statement.next_offset):
        return "lost does not begin the range, or goes beyond it"
    if statement.expired and (not empty or segment or quarantine or statement.expired[1] > statement.sequence):
        return "a statement of expiry has a range or objects, or lets later statements expire"
    if quarantine is not None:
        if quarantine.size > limits.QUARANTINE_BYTES or quarantine.inflated > limits.QUARANTINE_INFLATED:
            return "the quarantine is beyond the limits"
        if sum(end - start for start, end in quarantine.offsets) != quarantine.records:
            return "the quarantine has another number of records than of offsets"
    for batch in batches:
        if not 0 < batch.events <= limits.BATCH_EVENTS:
            return f"a batch has {batch.events} events (1 to {limits.BATCH_EVENTS})"
        if batch.min_time > batch.max_time:
            return "a batch's times run backwards"
        if batch.kafka_time and batch.kafka_time.min > batch.kafka_time.max:
            return "a batch's Kafka times run backwards"
    return None
