"""A signed log: entries in sequence, signed, chained by a Merkle tree, and compared with known heads. Pure.

The log of a partition's statements and the log of audits are two payloads of it; `Form` is what differs. The
owner calls a `SignedLog` exactly once for each slot, in order: `step` with the object's bytes, `gap` if there is none,
or `unreadable`. It checks rules 1, 2, 3, 5 of FORMAT.md, Verification, and asks its owner about rule 4. Its own rules:

1. Each fault is reported once. After an entry that is missing, unreadable, malformed or out of place, the tree
   continues from the next entry's `compact_range`, if that agrees with what is known.
2. A changed entry is reported at its successor, whose `tree` shows it: later trees are consistent with the changed one.
3. An entry whose signature is wrong is still read, so that its other faults are reported too.
4. A slot without a good signature is judged together with the next entry that has one. If that entry passes over the
   slot, by its digest, the slot is a leaf of its own kind, and a notice. A verifier that cannot check signatures
   accepts this.
5. What an ended key signed before its end counts only if the tree leads to the head at which the key ended. That head
   is a known head, so a tree that does not lead there is a fork.
6. A gap hides nothing that lies before it. Known heads of the size at which it begins are checked there. Some entries
   before it are reached neither by such a head nor by the tree that continues behind the gap. No head covers these
   entries, and those signed by an ended key do not count.

It is one module because all of these rules are about one entry in hand, and decide together whether it counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from custody.errors import FormatError
from custody.format import limits
from custody.format.envelope import Algorithm, SignedFile, Tree, passed_over_message
from custody.format.times import format_time, parse_time
from custody.tlog import merkle
from custody.tlog.head import Head, KnownHead
from custody.tlog.signatures import KeyOrder, Keys, Place, Problem, Verdict, check_file

_NEVER = datetime.min.replace(tzinfo=UTC)
_EVIDENCE_LIMIT = 65_536
_DISPLACED_LIMIT = 10_000
# A line 2 that parses: it stands in for one that does not, to see whether line 1 is sound.
_ANY_SIGNATURE = b'{"signatures":[{"key":"-","algorithm":"HMAC-SHA256","value":"' + b"A" * 43 + b'="}]}\n'


class Statement(Protocol):
    """Line 1 of an entry, as far as its log is concerned."""

    @property
    def sequence(self) -> int:
        """Its place."""
        ...

    @property
    def tree(self) -> Tree:
        """The tree before it."""
        ...

    @property
    def passed_over(self) -> list[str]:
        """Digests of the slots directly before it that hold no valid entry."""
        ...

    @property
    def sealed_at(self) -> str:
        """When it was sealed."""
        ...


Entry = SignedFile[Statement]
"""A manifest, or an audit."""

E = TypeVar("E", bound=Entry)
E_co = TypeVar("E_co", bound=Entry, covariant=True)


@dataclass(frozen=True, slots=True)
class Form(Generic[E_co]):
    """The differences between the kinds of signed log.

    Attributes:
        parse: returns an entry from its bytes; raises FormatError.
        wanted: the algorithms of which each entry has exactly one signature.
        noun: what messages call an entry.
        key: returns the key of the object of a sequence.
        prefix: what these keys begin with.
    """

    parse: Callable[[bytes], E_co]
    wanted: tuple[Algorithm, ...]
    noun: str
    key: Callable[[int], str]
    prefix: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of an entry: a finding that is not reported yet."""

    name: str
    message: str
    where: Mapping[str, Any] = field(default_factory=dict)


class Report(Protocol):
    """Takes a finding; returns whether somebody has accepted it."""

    def __call__(
        self, name: str, message: str, *, loss: tuple[str, ...] = (), group: str | None = None, **where: Any
    ) -> bool:
        """Report.

        Args:
            name: of the finding.
            message: what happened.
            loss: of a loss that has no bytes of its own, what distinguishes it from the next one.
            group: findings of one group are joined.
            where: fields of the finding.
        """
        ...


_GIVEN = frozenset({"name", "form", "keys", "report", "belongs", "known", "begin", "following", "within"})
"""What a `SignedLog` works with."""
_IN_HAND = frozenset({"peek", "_data", "_parsed", "_order", "_by_size"})
"""What it needs only until the end."""


@dataclass(slots=True)
class SignedLog(Generic[E]):
    """The state of verifying one signed log, or a part of it.

    It is one class because each rule is about the entry in hand. Tree, signatures, passed-over slots and known heads
    decide together whether that entry counts.
    """

    name: str
    """`<log>/<partition>`."""
    form: Form[E]
    keys: Keys
    report: Report
    belongs: Callable[[E], Fault | None]
    """Returns what makes an entry one of another log or archive (rule 4), None if it is of this one."""
    known: Sequence[KnownHead] = ()
    begin: int = 0
    """The first sequence to be looked at: what lies before it was verified at another time."""
    following: Callable[[int], Iterator[tuple[int, bytes]]] = lambda _: iter(())
    """Returns the objects from a sequence on, for looking ahead."""
    within: Callable[[int, bytes, Head], bool] = lambda _size, _root, _head: False
    """Returns whether the tree of a size and root is shown to be a prefix of a head."""

    peek: tuple[int, bytes] | None = None
    """The object behind the one in hand, where it was read already."""
    size: int = 0
    compact_range: merkle.CompactRange | None = ()
    """Of the first `size` entries; None after one that is lost, until the next takes it up again."""
    lost: bool = False
    """Whether the entry before is not known."""
    sound: bool = True
    """Whether the head is what a trusted key signed, or what speaks against it was accepted."""
    covered: int = 0
    """The largest size whose root somebody signed who is trusted."""
    signers: tuple[str, ...] = ()
    """Keys whose signatures of the newest entry count; none where it does not count as signed."""
    covered_root: bytes | None = None
    """The root at that size."""
    unverified: tuple[int, int] | None = None
    """From the first to behind the last entry that nothing speaks against, and whose signature nobody here can
    check."""
    pending: int | None = None
    """The first of those that no trusted head covers."""
    pending_since: str = ""
    """When that one was sealed."""
    sealed_at: datetime = _NEVER
    """When the newest entry of those looked at was sealed, by its writer's clock; in year 1 before the first."""
    unlinked: list[tuple[int, int]] = field(default_factory=list)
    """From the first to behind the last of the unverified entries before each gap that no later tree leads to."""
    broken: set[str] = field(default_factory=set)
    """Ids of ended keys that signed in a tree that does not lead to the head at which they ended."""
    _last_range: merkle.CompactRange = ()
    _last_size: int = 0
    _order: KeyOrder = field(default_factory=KeyOrder)
    _displaced: dict[int, int] = field(default_factory=dict)
    _ended: dict[str, Head] = field(default_factory=dict)
    _last_by: dict[str, int] = field(default_factory=dict)
    _shown: int = 0
    _loose: tuple[Head, Mapping[str, int]] | None = None
    _by_size: dict[int, list[KnownHead]] = field(default_factory=dict)
    _passed: dict[int, str] = field(default_factory=dict)
    _looked: int = -1
    _consumed: tuple[int, int] = (0, 0)
    _data: bytes = b""
    _parsed: tuple[bytes, E] | None = None

    def __post_init__(self) -> None:
        for head in self.known:
            self._by_size.setdefault(head.size, []).append(head)
        self.size = self.begin
        if self.begin:
            self.compact_range = None

    @property
    def root(self) -> bytes | None:
        """The root of the tree of all entries so far, None where it is not known."""
        return merkle.range_root(self.compact_range) if self.compact_range is not None else None

    @property
    def digest(self) -> str:
        """The SHA-256 of the object in hand. Only findings show it, and good entries make none."""
        return sha256(self._data).hexdigest()

    def results(self) -> dict[str, Any]:
        """Return what was found up to the end, for `adopt` in another process."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _GIVEN | _IN_HAND}

    def adopt(self, results: Mapping[str, Any]) -> None:
        """Take over what another process found up to the end of the same log."""
        for name, value in results.items():
            setattr(self, name, value)

    def covers(self, sequence: int) -> bool:
        """Return whether a head that somebody trusted signed covers an entry."""
        return sequence < self.covered and not any(first <= sequence < end for first, end in self.unlinked)

    # --- what there is, slot by slot

    def gap(self, first: int, end: int) -> tuple[int, int] | None:
        """Process the slots `[first, end)`, which are empty; return those that no later entry passes over."""
        self._look_ahead(end - 1)
        passed = min((slot for slot in self._passed if first <= slot < end), default=end)
        if first < passed:
            self._lose(passed)
        for slot in range(passed, end):
            self._pass_over(slot, None)
        return (first, passed) if first < passed else None

    def unreadable(self, sequence: int) -> None:
        """Process a slot whose object cannot be read."""
        self._lose(sequence + 1)

    def malformed(self, sequence: int, reason: str, digest: str) -> None:
        """Process a slot whose bytes, of this SHA-256, are no entry. A fault, unless a later entry passes over it."""
        if not self._is_passed_over(sequence, digest):
            self.doubt(Fault("statement", reason, {"key": self.form.key(sequence), "sha256": digest}), sequence)
            self._lose(sequence + 1)

    def step(self, sequence: int, data: bytes, entry: E | None = None) -> E | None:
        """Process the object of the next slot; return its entry, None if it is not the entry of this log and slot.

        Args:
            sequence: the slot.
            data: the object.
            entry: the entry in it, if it is parsed already.
        """
        self._data = data
        broken = ""
        if entry is None:
            entry, broken = self._parse(data)
        if entry is None:
            self.malformed(sequence, broken, self.digest)
            return None
        fault = self.belongs(entry) or self._misplaced(entry, sequence)
        if fault is not None:
            if not self._is_passed_over(sequence, self.digest):
                self.doubt(fault, sequence)
                self._lose(sequence + 1)
            return None
        sealed_at = parse_time(entry.statement.sealed_at)
        verdict = Verdict((), ()) if broken else self._check(entry, sequence, sealed_at, self._order)
        if not verdict.good and self._is_passed_over(sequence, self.digest):
            return None
        if broken:
            self.doubt(Fault("signature", broken, {"sha256": self.digest, "group": "line 2"}), sequence)
        if entry.statement.passed_over:
            self._check_passed_over(entry, sequence)
        self._take(verdict, sequence)
        self._check_tree(entry, sequence)
        self._count(entry, verdict, sequence, broken=bool(broken))
        self.sealed_at = sealed_at
        self.size = sequence + 1
        self.lost = False
        return entry

    def seam(self, data: bytes) -> None:
        """Check that our root matches the `tree` of the entry behind us, whose rest is verified by the next span."""
        try:
            statement = self.form.parse(data).statement
        except FormatError:
            return
        if statement.passed_over:
            return
        if self.root is not None and (statement.sequence, statement.tree.root) != (self.size, self.root.hex()):
            where = {
                "expected": f"size {self.size}, root {self.root.hex()}",
                "found": f"size {statement.tree.size}, root {statement.tree.root}",
                "sha256": sha256(data).hexdigest(),
            }
            self.doubt(Fault("tree", "the tree signed here is not that of the statements before", where), self.size)

    def end(self, *, whole: bool = True) -> None:
        """Run the checks that need the whole log. For a part that ends earlier, check only the heads inside it."""
        if self.compact_range is not None:
            self._check_heads(self.size, merkle.range_root(self.compact_range))
        self._settle(0)
        self._check_ends()
        if not whole:
            return
        ahead = [head for head in self.known if head.size > self.size]
        if ahead:
            most = max(ahead, key=lambda head: head.size)
            expected = f"size {most.size}" + (f", root {most.root.hex()}" if most.root else "")
            actual = f"size {self.size}" + (f", root {self.root.hex()}" if self.root else "")
            where = {
                "evidence": (most.evidence,) if most.evidence else (),
                "through": most.size - 1,
                "expected": expected,
                "found": actual,
                "loss": (self.name, expected, actual),
                "group": "rollback",
            }
            message = f"the log went back: {most.origin} remembers more {self.form.noun}s than there are"
            self.doubt(Fault("head-rollback", message, where), self.size)

    # --- rule 2

    def _parse(self, data: bytes) -> tuple[E | None, str]:
        """Return the entry, and what is wrong with the bytes: of one with a broken line 2 both."""
        if self._parsed is not None and data is self._parsed[0]:
            # It was looked at ahead.
            return self._parsed[1], ""
        try:
            entry = self.form.parse(data)
        except FormatError as error:
            reason = str(error)
        else:
            self._parsed = data, entry
            return entry, ""
        if data.count(b"\n") > 2:
            return None, reason
        try:
            return self.form.parse(data.partition(b"\n")[0] + b"\n" + _ANY_SIGNATURE), reason
        except FormatError:
            return None, reason

    def _misplaced(self, entry: E, sequence: int) -> Fault | None:
        """Return what makes an entry one of another place in this log: swapped, or replayed."""
        number = entry.statement.sequence
        if number == sequence:
            return None
        swapped = number > sequence or number in self._displaced
        if len(self._displaced) < _DISPLACED_LIMIT:
            self._displaced[sequence] = number
        noun = self.form.noun
        return Fault(
            "tree" if swapped else "identity",
            f"the {noun}s are out of order" if swapped else f"an older {noun} stands in the place of this one",
            {
                "expected": f"sequence {sequence}",
                "found": f"sequence {number}",
                "key": self.form.key(sequence),
                "sha256": self.digest,
            },
        )

    # --- slots that hold no valid entry

    def _is_passed_over(self, sequence: int, digest: str | None) -> bool:
        """Return whether a later entry passes over a slot whose bytes are no valid entry, and step over it if so."""
        self._look_ahead(sequence)
        if sequence not in self._passed:
            return False
        self._pass_over(sequence, digest)
        return True

    def _look_ahead(self, sequence: int) -> None:
        """Find the next valid entry after a slot, and note which slots it passes over. Each is looked at once."""
        if sequence < self._looked:
            return
        self._passed.clear()
        self._looked = sequence + 1
        for number, data in self._ahead(sequence):
            if number > sequence + limits.PASSED_OVER:
                return
            entry, broken = self._parse(data)
            self._looked = number
            if entry is None or broken or self.belongs(entry) or entry.statement.sequence != number:
                continue
            verdict = self._check(entry, number, parse_time(entry.statement.sealed_at), None)
            if verdict.void or verdict.unknown:
                continue
            hashes = entry.statement.passed_over
            self._passed = dict(zip(range(number - len(hashes), number), hashes, strict=True))
            return

    def _ahead(self, sequence: int) -> Iterator[tuple[int, bytes]]:
        """Yield the objects behind a slot, the one that was read already first."""
        if self.peek is not None and self.peek[0] > sequence:
            sequence = self.peek[0]
            yield self.peek
        yield from self.following(sequence + 1)

    def _pass_over(self, sequence: int, digest: str | None) -> None:
        """Step over a slot that a later entry passes over."""
        stated = self._passed[sequence]
        where: dict[str, Any] = {"sequence": sequence, "key": self.form.key(sequence), "sha256": digest}
        if digest is not None and digest != stated:
            message = "the slot was passed over, and holds other bytes now"
            self.doubt(Fault("statement", message, {**where, "expected": stated, "found": digest}), sequence)
        else:
            gone = ", and is empty now" if digest is None else ""
            message = f"the slot held no valid {self.form.noun}, and the writer passed over it{gone}"
            self.report(
                "passed-over", message, group=f"{'gone' if digest is None else 'there'} before {self._looked}", **where
            )
        self._append(sequence, passed_over_message(stated))
        first = self._consumed[0] if self._consumed[1] == sequence else sequence
        self._consumed = (first, sequence + 1)
        self.size = sequence + 1

    def _check_passed_over(self, entry: E, sequence: int) -> None:
        """Check that each slot which an entry passes over was stepped over, and held no valid entry."""
        first = max(sequence - len(entry.statement.passed_over), self.begin)
        if first < sequence and not (self._consumed[0] <= first and self._consumed[1] == sequence):
            message = f"the {self.form.noun} passes over a slot that holds a valid one: two histories were signed"
            where = {"through": sequence - 1, "sha256": self.digest, "group": f"passed {sequence}"}
            self.doubt(Fault("head-fork", message, where), first)
            self.compact_range, self._last_range, self._last_size = None, (), 0

    # --- rule 3

    def _check(self, entry: E, sequence: int, sealed_at: datetime, order: KeyOrder | None) -> Verdict:
        return check_file(
            entry.message,
            entry.signatures,
            self.keys,
            wanted=self.form.wanted,
            position=Place(self.name, sequence),
            sealed_at=sealed_at,
            order=order,
            subject=self.form.noun,
        )

    def _take(self, verdict: Verdict, sequence: int) -> None:
        """Report what is wrong with signatures."""
        for problem in verdict.problems:
            where: dict[str, Any] = {"expected": problem.expected, "found": problem.found, "group": _group(problem)}
            if not problem.open:
                where |= {"sha256": self.digest, "tampered": problem.kind == "key-span" and not problem.policy}
            if problem.policy or problem.kind == "unchecked-signature":
                self.report(problem.kind, problem.message, sequence=sequence, **where)
            else:
                self.doubt(Fault(problem.kind, problem.message, where), sequence)
        for id_ in verdict.held:
            until = self.keys[id_].until
            if until is not None:
                self._ended[id_], self._last_by[id_] = until[self.name], sequence

    def _count(self, entry: E, verdict: Verdict, sequence: int, *, broken: bool) -> None:
        """Record who signed the entry, or count it among those whose signatures cannot be checked here."""
        self.signers = verdict.held if verdict.counts and not broken else ()
        if self.signers or broken:
            return
        if all(problem.kind == "unchecked-signature" for problem in verdict.problems):
            self.unverified = (self.unverified[0] if self.unverified else sequence, sequence + 1)
            if self.pending is None:
                self.pending, self.pending_since = sequence, entry.statement.sealed_at

    def _check_ends(self) -> None:
        """Check that what ended keys signed lies in a tree that leads to the heads at which they ended."""
        for id_, head in self._ended.items():
            if id_ in self.broken or self.size >= head.size:
                continue
            root = self.root
            if root is None or not self.within(self.size, root, head):
                self._break(id_, head, self.size)

    def _break(self, id_: str, head: Head, size: int) -> None:
        self.broken.add(id_)
        message = (
            f"the key {id_!r} ended at this log's size {head.size}, and these {self.form.noun}s are not shown to lie"
            " within that head"
        )
        where = {"tampered": True, "group": f"until {id_}", "loss": (self.name, id_, str(size))}
        self.doubt(Fault("key-span", message, where), max(size - 1, 0))

    def _settle(self, linked: int) -> None:
        """Mark the entries before a gap that no tree leads to; the one behind it leads to the first `linked` ones."""
        if self._loose is None:
            return
        (before, last_by), self._loose = self._loose, None
        first = max(linked, self._shown, self.begin)
        if first >= before.size:
            return
        if self.unverified is not None and self.unverified[1] > first:
            self.unlinked.append((max(first, self.unverified[0]), self.unverified[1]))
            if self.pending is not None and self.pending >= first:
                self.pending = None
        for id_, head in self._ended.items():
            if (
                last_by.get(id_, -1) >= first
                and id_ not in self.broken
                and not self.within(before.size, before.root, head)
            ):
                self._break(id_, head, before.size)

    # --- rule 5

    def _check_tree(self, entry: E, sequence: int) -> None:
        tree = entry.statement.tree
        follows = False
        # All digests are of one length, so that they are the same where they are so end to end.
        if (
            self.compact_range is not None
            and tree.size == sequence
            and "".join(tree.compact_range) == b"".join(self.compact_range).hex()
        ):
            # The root of the range that was recomputed is what counts.
            follows = merkle.range_root(self.compact_range).hex() == tree.root
        if not follows:
            stated = tuple(map(bytes.fromhex, tree.compact_range))
            coherent = (
                tree.size == sequence
                and len(stated) == sequence.bit_count()
                and merkle.range_root(stated).hex() == tree.root
            )
            linked = self._linked(stated, sequence) if self.compact_range is None and coherent else None
            if self.compact_range is None:
                self._settle(linked or 0)
            if linked is None:
                known = f"root {self.root.hex()}" if self.root else "a compact range that extends the last one known"
                message = f"the tree signed here is not that of the {self.form.noun}s before"
                if not coherent:
                    message += ", and its root does not follow from its compact range"
                where = {
                    "expected": f"size {sequence}, {known}",
                    "found": f"size {tree.size}, root {tree.root}",
                    "sha256": self.digest,
                }
                self.doubt(Fault("tree", message, where), sequence)
            if coherent:
                self.compact_range = stated
            elif self.compact_range is None:
                self._check_heads(sequence, bytes.fromhex(tree.root))
                return
        self._append(sequence, entry.message)

    def _append(self, sequence: int, message: bytes) -> None:
        """Check the known heads of the tree so far, and append an entry to it, if the tree is known."""
        compact_range = self.compact_range
        if compact_range is None:
            return
        if sequence in self._by_size:
            self._check_heads(sequence, merkle.range_root(compact_range))
        self.compact_range = merkle.append(sequence, compact_range, merkle.leaf_hash(message))
        self._last_range, self._last_size = self.compact_range, sequence + 1

    def _linked(self, compact_range: merkle.CompactRange, size: int) -> int | None:
        """Return how many entries lie in subtrees that a stated compact range and the last one known have in common.

        None where the two contradict each other.
        """
        linked = 0
        for known_size, stated_size, known, stated in zip(
            merkle.subtree_sizes(self._last_size),
            merkle.subtree_sizes(size),
            self._last_range,
            compact_range,
            strict=False,
        ):
            if known_size != stated_size:
                break
            if known != stated:
                return None
            linked += known_size
        return linked

    # --- rule 1

    def _check_heads(self, size: int, root: bytes) -> None:
        for head in self._by_size.get(size, ()) if size else ():
            if head.root is None:
                continue
            if head.root == root:
                self._shown = max(self._shown, size)
                self._check_ends_of(head)
                if head.trusted and not self.lost and size > self.covered:
                    self.covered, self.covered_root, self.pending = size, root, None
                continue
            shown = self._data.decode(errors="replace") if len(self._data) <= _EVIDENCE_LIMIT else None
            expected, actual = f"size {size}, root {head.root.hex()}", f"size {size}, root {root.hex()}"
            where: dict[str, Any] = {
                "expected": expected,
                "found": actual,
                "evidence": tuple(text for text in (head.evidence, shown) if text),
                "loss": (self.name, expected, actual),
                "group": f"{size} {root.hex()}",
            }
            if head.checkpoint:
                message = "the root that was signed here is not that of the statements that it covers"
                self.doubt(Fault("checkpoint", message, {**where, "key": head.checkpoint}), size - 1)
            else:
                message = f"another history: {head.origin} remembers another root at this size"
                self.doubt(Fault("head-fork", message, where), size - 1)
            self.broken |= {id_ for id_, end in self._ended.items() if end.size == size and end.root == head.root}

    def _check_ends_of(self, head: KnownHead) -> None:
        """Report a checkpoint of an entry that was sealed after the span of the key that signed the checkpoint."""
        if head.ends is not None and self.sealed_at >= head.ends:
            message = "the key of the checkpoint signs entries that were sealed after its span"
            where: dict[str, Any] = {"sequence": head.size - 1, "key": head.checkpoint}
            expected, found = f"sealed before {head.ends:%Y-%m-%dT%H:%M:%SZ}", format_time(self.sealed_at)
            self.report("key-span", message, group="checkpoints", expected=expected, found=found, **where)

    def _lose(self, size: int) -> None:
        """Continue behind entries that are missing or unreadable."""
        if self.compact_range is not None:
            root = merkle.range_root(self.compact_range)
            self._check_heads(self.size, root)
            self._loose = Head(self.size, root), dict(self._last_by)
        self.size = size
        self.compact_range = None
        self.lost = True

    def doubt(self, fault: Fault, sequence: int) -> None:
        """Add a finding and mark the head untrusted, unless the finding was accepted."""
        if not self.report(fault.name, fault.message, **{"sequence": sequence, **fault.where}):
            self.sound = False


def _group(problem: Problem) -> str:
    """Return what findings of one kind and key are joined by."""
    if problem.kind != "key-span":
        return problem.key or problem.message
    return f"{'span' if problem.policy else 'ended'} {problem.key}"
