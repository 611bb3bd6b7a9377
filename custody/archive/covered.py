"""Shows which statements are covered: they lie in a tree that somebody trusted signed. As `custody verify` counts them.

Their own signatures are HMACs, which no public key can check. A checkpoint can be checked, and it signs a tree. Rules:

- Trusted heads are those in `trust.json`, those that the caller gives, and the newest checkpoint that counts with its
  cosignatures.
- Leaves are hashed from the statements that were read. Only the tree before the first of them is taken from it, and a
  wrong one leads to no trusted head.
- What is not shown is not covered. It costs O(log n) reads for each run of statements, and one list of checkpoints.
- `near` is a size that a log may have, such as that in an audit. A wrong one only costs requests.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any

from custody.archive import guesses, reader
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing
from custody.format.envelope import passed_over_message
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog import merkle, signatures
from custody.tlog.checkpoint import Checkpoint, Note
from custody.tlog.head import Head
from custody.tlog.log import Entry, Form

_TRIED = 20
"""Checkpoints that are read, the newest first, until one counts."""


class Coverage:
    """Counts the entries of a log whose signatures cannot be checked here, and that no trusted head covers.

    Attributes:
        uncovered: how many, after `end`.
    """

    def __init__(
        self,
        store: Store,
        log: Log,
        form: Form[Entry],
        judge: Judge,
        trust: Trust,
        signed: Head | None = None,
        near: int = 0,
    ) -> None:
        """Begin. `signed` is a head that a trusted key signed, such as that of an audit."""
        self._signed, self._near = signed, near
        self._store, self._log, self._form, self._judge, self._trust = store, log, form, judge, trust
        self.uncovered = 0
        self._start = self._size = 0
        self._range: merkle.CompactRange | None = None
        """Of the first `_size` entries, of which those from `_start` on were read; None between two runs."""
        self._start_root = merkle.EMPTY_ROOT
        self._open = 0
        """Entries of this run that are not shown to be covered yet."""
        self._linked: Head | None = None
        """The tree before a run that was covered: a later run may end there."""

    def add(self, sequence: int, entry: Entry, *, counted: bool = True) -> None:
        """Take the next entry. Within a run sequences rise.

        Args:
            sequence: its slot.
            entry: it is valid there, as far as its signature can be checked.
            counted: whether it counts among those that are not covered.
        """
        if not self._trust.keys:
            return
        problems = self._judge.open_problems(entry, sequence)
        if self._range is None and not problems:
            return
        if not self._follows(sequence, entry):
            self.end()
            tree = entry.statement.tree
            if tree.size != sequence or len(tree.compact_range) != sequence.bit_count():
                self.uncovered += counted
                return
            self._start = self._size = sequence
            self._range = tuple(map(bytes.fromhex, tree.compact_range))
            self._start_root = merkle.range_root(self._range)
        if problems and all(problem.kind == "unchecked-signature" for problem in problems):
            self._open += counted
        elif problems:
            # A key that nobody trusts signed it: no checkpoint makes up for that.
            self.uncovered += counted
        self._append(entry.message)

    def end(self) -> None:
        """Finish a run: compare its tree with the trusted heads."""
        if self._range is None:
            return
        root = merkle.range_root(self._range)
        if self._open and any(
            head.size > self._size and self._judge.proofs.leads_to(self._size, root, head) for head in self._heads
        ):
            self._cover()
        self.uncovered += self._open
        self._range, self._open = None, 0

    def shows(self, head: Head) -> bool:
        """Return whether a tree is covered: it is that of a trusted head, or a prefix of it."""
        return any(
            known.size >= head.size and self._judge.proofs.leads_to(head.size, head.root, known)
            for known in self._heads
        )

    def _follows(self, sequence: int, entry: Entry) -> bool:
        """Append the slots that an entry passes over. Return whether it follows the run's last entry."""
        hashes = entry.statement.passed_over
        if self._range is None or sequence != self._size + len(hashes):
            return False
        for digest in hashes:
            self._append(passed_over_message(digest))
        # Somebody changed one of the entries before: what follows is a run of its own.
        return "".join(entry.statement.tree.compact_range) == b"".join(self._range).hex()

    def _append(self, message: bytes) -> None:
        self._range = merkle.append(self._size, self._range or (), merkle.leaf_hash(message))
        self._size += 1
        heads = [*self._heads, *([self._linked] if self._linked else [])]
        if self._open and any(head.size == self._size for head in heads):
            root = merkle.range_root(self._range)
            if any(head == Head(self._size, root) for head in heads):
                self._cover()

    def _cover(self) -> None:
        self._open = 0
        self._linked = Head(self._start, self._start_root)

    @cached_property
    def _heads(self) -> tuple[Head, ...]:
        known = self._trust.heads.get(str(self._log))
        given = [head for head in (known, self._signed) if head]
        return (*given, *self._newest_checkpoint())

    def _newest_checkpoint(self) -> Iterator[Head]:
        """Yield the head of the newest checkpoint that counts, and whose last statement is there."""
        if not signatures.note_keys(self._trust.keys):
            return
        for note, parsed in _newest(self._store, self._log, self._form, self._near):
            with suppress(FormatError, ObjectMissing):
                if self._counts(note, parsed):
                    yield parsed.head
                    return

    def _counts(self, note: Note, parsed: Checkpoint) -> bool:
        """Return whether a checkpoint counts. Of those before it, the last 1, 2, 4 … are read, for the order of keys.

        They are read only if a newer key than the signer's is known.
        """
        verdict = self._judge.note_verdict(note, parsed, datetime.now(UTC))
        if verdict is None or not verdict.counts:
            return False
        keys = self._trust.keys
        newer = {id_ for signer in verdict.signers for id_ in signatures.newer_than(keys[signer], keys)}
        if not newer:
            return True
        before = [size for size in reader.checkpoint_sizes(self._store, self._log) if size < parsed.size]
        earlier = [before[-(1 << step)] for step in range(len(before).bit_length())]
        checked = (self._judge.note_verdict(*read) for read in reader.read_checkpoints(self._store, self._log, earlier))
        return not any(verdict and newer.intersection(verdict.signers) for verdict in checked)


def ask_for_newest(store: Store, log: Log, form: Form[Any], trust: Trust, near: int) -> None:
    """Read what a `Coverage` needs first of a log: its newest checkpoint. Nothing if keys check its entries.

    For a store that keeps what was asked for (`custody.store.ahead`). Raises StoreError.
    """
    if signatures.note_keys(trust.keys) and not trust.checks_all(form.wanted):
        next(_newest(store, log, form, near), None)


def _newest(store: Store, log: Log, form: Form[Any], near: int) -> Iterator[tuple[Note, Checkpoint]]:
    """Yield the newest checkpoints of a log, the newest first, of those whose last statement is there."""
    for size in islice(guesses.checkpoints_back(store, log, near), _TRIED):
        with suppress(FormatError, ObjectMissing):
            note, parsed = reader.read_checkpoint(store, log, size)
            if size and store.exists(form.key(size - 1)):
                yield note, parsed
