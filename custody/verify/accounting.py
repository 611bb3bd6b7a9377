"""Rules 4 and 6 of FORMAT.md, Verification: whether one log's statements account for each of its offsets. Pure.

A `LogAccount` puts the accounting of Kafka's offsets on top of a `SignedLog` (`custody.tlog.log`), which checks
signatures, sequence, tree and known heads. For every sequence from 0 on, call exactly one of: `step` with the object's
bytes, `gap` if there is no object, `signed.unreadable` if it cannot be read. The results are findings, and the work of
checking the statement's objects. Offsets inside a reported gap are not reported again. `statement.py` has the checks
within one statement.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter
from typing import Any

from custody.archive.forms import statements_of
from custody.findings import Findings, loss_digest
from custody.format import layout
from custody.format.manifest import LastRecord, LogId, Manifest, Range, Statement
from custody.format.times import parse_time
from custody.tlog.head import Head, KnownHead
from custody.tlog.log import Fault, SignedLog
from custody.tlog.signatures import Keys
from custody.verify.archive_file import Promises
from custody.verify.clock import Clock
from custody.verify.scope import WHOLE, Part
from custody.verify.statement import (
    Totals,
    belongs_to_another,
    disorder,
    miscount,
    misnamed,
    problem_of,
    record_bounds,
)
from custody.verify.work import Work, work_of

RETENTION_GRACE = timedelta(days=7)
"""How long an object may remain after the end of its retention."""

_HOLES_LIMIT = 100_000
_FOREVER = 1 << 64
_DOUBTED = frozenset({"identity", "statement"})
"""Faults after which the head is not saved as a known head."""


_GIVEN = frozenset(
    {
        "log",
        "keys",
        "now",
        "findings",
        "known",
        "earlier",
        "promises",
        "begin",
        "following",
        "within",
        "part",
        "each",
        "granted",
    }
)
"""What a `LogAccount` works with."""


@dataclass(frozen=True, slots=True)
class Expiry:
    """A statement that allows deleting the objects of sequences `[first, end)`."""

    sequence: int
    first: int
    end: int
    sealed_at: datetime
    signers: tuple[str, ...]
    """The keys with a valid signature."""


class Holes:
    """Offsets that are already reported: disjoint ranges, in order."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def add(self, start: int, end: int) -> None:
        """Add a range, unless it is empty or there are too many ranges."""
        if start < end and len(self._ranges) < _HOLES_LIMIT:
            self._ranges.append((start, end))

    def touch(self, first: int, last: int) -> bool:
        """Return whether one of the offsets `first` to `last` is in a hole."""
        index = bisect_right(self._ranges, last, key=itemgetter(0))
        return index > 0 and first < self._ranges[index - 1][1]


@dataclass(slots=True)
class LogAccount:
    """The state of one log's verification."""

    log: layout.Log
    archive: str | None
    keys: Keys
    now: datetime
    findings: Findings
    known: Sequence[KnownHead] = ()
    earlier: Sequence["LogAccount"] | None = ()
    """The accounts of the partition's earlier epochs that have statements, the newest first; None if they are not
    verified."""
    promises: Promises = field(default_factory=Promises)
    begin: int = 0
    """The first sequence to check. Earlier ones were verified at another time."""
    following: Callable[[int], Iterator[tuple[int, bytes]]] = lambda _: iter(())
    """Returns the manifests from a sequence on, for looking ahead."""
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    """Returns whether the tree of this size and root is proved to be a prefix of a head."""
    part: Part = WHOLE
    """Decides which statements' objects are read."""
    each: Callable[[Statement], None] = lambda _: None
    """Gets each statement that is taken."""

    name: str = field(init=False, default="")
    """The log's name and partition."""
    signed: SignedLog[Manifest] = field(init=False)
    clock: Clock = field(init=False)
    next_offset: int | None = None
    totals: Totals = field(default_factory=Totals)
    holes: Holes = field(default_factory=Holes)
    expiries: list[Expiry] = field(default_factory=list)
    granted: list[Range] = field(default_factory=list)
    """Objects of sequences before this one may have been deleted: the end of the valid expiries."""
    identity: LogId | None = None
    expired_events: int = 0
    """Events of statements whose objects expired and are gone."""
    expired_quarantined: int = 0
    """Their quarantined records."""
    expired_sealed: tuple[str, str] | None = None
    """When the first and the last of these statements were sealed."""
    _expired: int = 0
    _batch_number: int | None = 0
    _last_record: LastRecord | None = None
    _leader_epoch: int = 0

    def __post_init__(self) -> None:
        self.name = str(self.log)
        self.clock = Clock(self.now, self.promises.heartbeat if self.promises.live else None)
        self.signed = SignedLog(
            self.name,
            statements_of(self.log),
            self.keys,
            partial(self.findings.report, log=self.name),
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
        """How many sequences were checked, from 0 on."""
        return self.signed.size

    @property
    def pending(self) -> int:
        """How many statements have no signature that can be checked here, and no trusted head that covers them."""
        signed = self.signed
        waiting = signed.unverified[1] - signed.pending if signed.unverified and signed.pending is not None else 0
        return waiting + sum(end - first for first, end in signed.unlinked)

    @property
    def head(self) -> Head | None:
        """The largest verified head, None if there is none to save as a known head."""
        signed = self.signed
        if not signed.sound or not signed.size or signed.root is None:
            return None
        if signed.pending is None:
            return Head(signed.size, signed.root)
        return Head(signed.covered, signed.covered_root) if signed.covered_root is not None else None

    def results(self) -> dict[str, Any]:
        """Return what was found up to the end, for `adopt` in another process."""
        results = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _GIVEN}
        return {**results, "signed": self.signed.results()}

    def adopt(self, results: Mapping[str, Any]) -> None:
        """Take over what another process found up to the end of the same log."""
        for name, value in results.items():
            if name == "signed":
                self.signed.adopt(value)
            else:
                setattr(self, name, value)

    def may_be_gone(self, sequence: int) -> bool:
        """Return whether a statement's objects may have been deleted."""
        return any(first <= sequence < end for first, end in self.granted)

    def lose(self, events: int, quarantined: int, *sealed_at: str) -> None:
        """Count records of statements whose objects expired and are gone, and note when those were sealed."""
        self.expired_events += events
        self.expired_quarantined += quarantined
        moments = [*sealed_at, *(self.expired_sealed or ())]
        self.expired_sealed = min(moments), max(moments)

    def gap(self, first: int, end: int) -> None:
        """Report that the sequences `[first, end)` have no object."""
        missing = self.signed.gap(first, end)
        if missing is not None:
            first, many = missing[0], missing[1] - missing[0]
            message = f"{many} manifest{'s are' if many > 1 else ' is'} missing, but later ones exist"
            where: dict[str, Any] = {"through": missing[1] - 1, "key": layout.manifest_key(self.log, first)}
            self.signed.report("sequence-gap", message, sequence=first, **where)

    def step(self, sequence: int, data: bytes, parsed: Manifest | None = None) -> Statement | None:
        """Check the manifest of the next sequence. Return its statement if it names objects, None if there are none.

        Args:
            sequence: the sequence.
            data: the manifest.
            parsed: the same, if it is parsed already.
        """
        lost = self.signed.lost or (self.begin > 0 and self.identity is None)
        manifest = self.signed.step(sequence, data, parsed)
        if manifest is None:
            return None
        statement = manifest.statement
        sealed_at = self.signed.sealed_at
        self.archive = self.archive or statement.archive
        self.identity = self.identity or statement.log
        if self.earlier is not None and (not sequence or statement.previous_epoch is not None):
            self._take(_epoch_faults(statement, self.log, self.earlier), sequence)
        self._take(self.clock.step(statement, sealed_at), sequence)
        self._join(statement, sealed_at, lost=lost)
        bounds = record_bounds(statement)
        self._check_last_record(statement, bounds, lost=lost)
        self.totals.count(statement)
        self.totals.outside += not self.part.reads(statement.sealed_at)
        self.each(statement)
        return statement if self._names_objects(statement, bounds) else None

    def end(self, *, whole: bool = True) -> None:
        """Run the checks that need the whole log. For a partial span, check only the heads inside it."""
        before = len(self.findings.kept)
        self.signed.end(whole=whole)
        # Nobody may look at the newest statements: what they name is not known, and no sign of tampering.
        hidden = self.signed.lost and any(kept.finding == "unreadable" for kept in self.findings.kept)
        # What later statements name is not known after a part of a log either.
        if hidden or not whole or any(kept.finding == "head-rollback" for kept in self.findings.kept[before:]):
            self.holes.add(self.next_offset or 0, _FOREVER)
        self._check_covered()
        if not whole:
            return
        if self.log.epoch > 1 and self.totals.statements:
            where = f"{self.log.topic}/{self.log.partition}"
            message = f"epoch {self.log.epoch} of {where}: the topic was recreated or moved"
            self.signed.report("new-epoch", message, sequence=0)
        if silence := self.clock.silence():
            self.signed.report(silence.name, silence.message)

    def _check_covered(self) -> None:
        """Report statements whose signature cannot be checked here, and that no trusted head covers."""
        signed, promises = self.signed, self.promises
        for first, end in signed.unlinked:
            message = (
                "no signature of these statements could be checked, and no checkpoint covers them: later statements are"
                " missing"
            )
            self.signed.report("uncovered", message, sequence=first, through=end - 1)
        if signed.pending is None or signed.unverified is None:
            return
        where: dict[str, Any] = {"sequence": signed.pending, "through": signed.unverified[1] - 1}
        if signed.sound and promises.checkpoint and promises.heartbeat and self.clock.sealed_at:
            present = self.now if promises.live else min(self.clock.sealed_at, self.now)
            # Both times are the writer's. One far ahead excuses nothing.
            if abs(present - parse_time(signed.pending_since)) <= 2 * (promises.checkpoint + promises.heartbeat):
                message = "no checkpoint covers these statements yet: they are not verified"
                signed.report("pending-checkpoint", message, **where)
                return
        if signed.sound:
            message = "no signature of these statements could be checked, and no checkpoint covers them"
            signed.report("uncovered", message, **where)
        signed.sound = False

    def _belongs(self, manifest: Manifest) -> Fault | None:
        """Return a fault if the statement belongs to another archive or log, else None."""
        fault = belongs_to_another(manifest.statement, self.log, self.identity, self.archive)
        if fault is None:
            return None
        where = {"key": layout.manifest_key(self.log, self.signed.size), "sha256": self.signed.digest}
        return Fault(fault.name, fault.message, {**fault.where, **where})

    def _join(self, statement: Statement, sealed_at: datetime, *, lost: bool) -> None:
        """Check that the range continues the one before, and account for its offsets."""
        first, end = statement.first_offset, statement.next_offset
        expected = self.next_offset
        sequence = statement.sequence
        if expected is not None and first < expected:
            message = f"offsets {first} to {min(expected, max(end, first + 1)) - 1} were archived before"
            self._unjoined("offset-overlap", message, sequence, first, expected, first)
        elif lost or expected is None:
            if sequence:
                self.holes.add(expected or 0, first)
        elif first > expected:
            self.holes.add(expected, first)
            message = f"no statement has the offsets {expected} to {first - 1}"
            self._unjoined("offset-gap", message, sequence, expected, expected, first)
        if statement.lost or statement.unreadable:
            self._take(_admissions(statement), sequence)
        problem = problem_of(statement)
        number = self._first_number(statement, lost=lost)
        disordered = None if problem else disorder(statement, number)
        if problem:
            self._odd(sequence, problem)
        elif fault := disordered or miscount(statement):
            self._take([fault], sequence)
        if statement.batches:
            self._batch_number = None if problem or disordered else statement.batches[-1].number + 1
        elif lost:
            self._batch_number = None
        if statement.expired and not problem:
            unknown = lost or (self.begin and not self._expired)
            if statement.expired[0] != self._expired and not (unknown and statement.expired[0] >= self._expired):
                self._odd(sequence, "expired does not start where the last one ended")
            self._expired = max(self._expired, statement.expired[1])
            self.expiries.append(Expiry(sequence, *statement.expired, sealed_at, self.signed.signers))
        self.next_offset = max(end, expected or 0)

    def _unjoined(self, name: str, message: str, sequence: int, offset: int, expected: int, actual: int) -> None:
        where = {"offset": offset, "expected": f"first_offset {expected}", "found": f"first_offset {actual}"}
        self._take([Fault(name, message, where)], sequence)

    def _first_number(self, statement: Statement, *, lost: bool) -> int:
        """Return the number that the statement's first batch should have."""
        if self._batch_number is not None and not lost:
            return self._batch_number
        return max(statement.batches[0].number if statement.batches else 0, self._batch_number or 0)

    def _check_last_record(self, statement: Statement, bounds: tuple[int, int] | None, *, lost: bool) -> None:
        """Check that the last record is the one of this range, or repeated, and that leader epochs never decrease."""
        last = statement.last_record
        if last is not None and last.leader_epoch < self._leader_epoch:
            message = f"last_record has the leader epoch {last.leader_epoch} after {self._leader_epoch}"
            self._odd(statement.sequence, message)
        if bounds is not None:
            wrong = last is not None and last.offset != bounds[1]
        elif statement.lost:
            wrong = last is not None
        else:
            wrong = last != self._last_record and not lost
        if wrong:
            self._odd(statement.sequence, "last_record is not the last record that was read")
        self._last_record = last
        if last is not None:
            self._leader_epoch = max(self._leader_epoch, last.leader_epoch)

    def work(self, statement: Statement) -> Work:
        """Return the work of checking a statement's objects."""
        kept, age = self.promises.kept, self.now - parse_time(statement.sealed_at)
        return work_of(statement, self.name, overdue=kept is not None and age > kept + RETENTION_GRACE)

    def _names_objects(self, statement: Statement, bounds: Range | None) -> bool:
        """Return whether the statement names objects that can exist. Check that their keys are the right ones."""
        if not statement.segment and not statement.quarantine:
            return False
        for fault, impossible in misnamed(statement, self.log, bounds):
            self._take([fault], statement.sequence)
            if impossible:
                return False
        return True

    def _odd(self, sequence: int, message: str) -> None:
        self._take([Fault("statement", message)], sequence)

    def _take(self, faults: Iterable[Fault], sequence: int) -> None:
        """Report the faults of a statement. Some of them mark the head untrusted, unless they were accepted."""
        for fault in faults:
            where = {"sequence": sequence, "sha256": self.signed.digest, **fault.where}
            accepted = self.signed.report(fault.name, fault.message, **where)
            if fault.name in _DOUBTED and not accepted:
                self.signed.sound = False


def _admissions(statement: Statement) -> Iterator[Fault]:
    """Yield a fault for each range that the statement declares as never archived."""
    if statement.lost:
        first, end = statement.lost
        message = f"the broker deleted offsets {first} to {end - 1} before they were archived"
        yield Fault("offset-lost", message, {"offset": first})
    for unreadable in statement.unreadable:
        first, end = unreadable.from_, unreadable.to
        message = f"the broker has offsets {first} to {end - 1}, but no client could decode them: {unreadable.error}"
        yield Fault("offset-unreadable", message, {"offset": first})


def _epoch_faults(statement: Statement, log: layout.Log, earlier: Sequence[LogAccount]) -> Iterator[Fault]:
    """Yield the faults of a statement's `previous_epoch`, and for a first statement those of the epoch itself.

    Args:
        statement: the statement.
        log: its log.
        earlier: the accounts of the partition's earlier epochs that have statements, the newest first.
    """
    previous = statement.previous_epoch
    if statement.sequence or not earlier:
        if previous is None:
            return
        if statement.sequence or previous.epoch >= log.epoch:
            yield Fault("statement", "previous_epoch is set where FORMAT.md wants null")
        else:
            before = layout.Log(log.topic, log.partition, previous.epoch)
            yield _rolled_back(log, before, 0, previous.size, previous.root)
        return
    newest, root = earlier[0], earlier[0].signed.root
    if log.epoch != newest.log.epoch + 1:
        message = f"epoch {log.epoch} follows epoch {newest.log.epoch}: epochs must be consecutive"
        yield Fault("statement", message)
    yield from _same_topic(statement, log, earlier)
    if previous is None or previous.epoch != newest.log.epoch:
        where = {
            "expected": f"previous epoch {newest.log.epoch}",
            "found": f"previous epoch {previous.epoch}" if previous else "null",
        }
        yield Fault("identity", "the first statement of an epoch does not name the epoch before it", where)
        return
    if newest.size < previous.size:
        yield _rolled_back(log, newest.log, newest.size, previous.size, previous.root)
    elif newest.size > previous.size or (root is not None and root.hex() != previous.root):
        message = f"epoch {newest.log.epoch} is not the one that this epoch says it continues"
        where = {
            "expected": f"size {previous.size}, root {previous.root}",
            "found": f"size {newest.size}, root {root.hex() if root else 'unknown'}",
        }
        yield Fault("head-fork", message, where)


def _same_topic(statement: Statement, log: layout.Log, earlier: Sequence[LogAccount]) -> Iterator[Fault]:
    """Yield a fault for the newest earlier epoch of the same topic and cluster, if there is one."""
    identity = statement.log
    if identity.topic_id is None:
        # Without topic ids, a broker cannot distinguish a topic from an earlier one of the same name.
        return
    for account in earlier:
        known = account.identity
        if known is not None and (known.cluster, known.topic_id) == (identity.cluster, identity.topic_id):
            message = (
                f"epoch {log.epoch} is of the same topic as epoch {account.log.epoch}: its records were archived"
                " a second time"
            )
            where = {
                "expected": f"another topic id or cluster than {known.topic_id} of {known.cluster}",
                "found": f"{identity.topic_id} of {identity.cluster}",
            }
            yield Fault("head-fork", message, where)
            return


def _rolled_back(log: layout.Log, before: layout.Log, size: int, known: int, root: str) -> Fault:
    """Return the fault that an earlier epoch is shorter than a later epoch signed."""
    message = f"the log was rolled back: it had more statements when epoch {log.epoch} began"
    expected, actual = f"size {known}, root {root}", f"size {size}"
    where: dict[str, Any] = {"log": str(before), "sequence": size, "through": known - 1}
    where |= {
        "expected": expected,
        "found": actual,
        "sha256": loss_digest(before, expected, actual),
        "group": "rollback",
    }
    return Fault("head-rollback", message, where)
