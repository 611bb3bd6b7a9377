"""Proofs that others can check (RFC 6962, 2.1), read from an archive instead of from all of its entries.

Each entry holds the compact range of the tree before it. With the entry's own leaf, that gives the hash of every
subtree that ends with the entry. Each node of a proof is such a subtree. All nodes to the left of an entry are in its
own compact range. So a proof costs one read, and one for each node to the right, O(log n); twice as many where
signatures cannot be checked. What was read is kept.

A slot that was passed over may hold what looks like an entry, put there by somebody who can write into the store and
has no key. Its signature shows that it is none, or else the next entry, which names its digest.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any, Protocol

from custody.errors import FormatError, ObjectMissing, StoreError
from custody.format import limits
from custody.format.envelope import passed_over_message
from custody.tlog import merkle
from custody.tlog.head import Head
from custody.tlog.log import Entry, Form

_UNSURE = 16
"""Entries behind a slot that are looked at where it cannot be said whether they are valid."""
_KEPT = 64

Valid = Callable[[Any, int], bool | None]
"""Returns whether an entry that stands in a slot is valid there, None where that cannot be said."""


def _any(_entry: Entry, _sequence: int) -> bool:
    return True


class Objects(Protocol):
    """The objects of an archive, as far as proofs need them: a `custody.store.protocol.Store`."""

    def read(self, key: str, *, limit: int) -> bytes:
        """Return an object's bytes; raises StoreError, and FormatError where there are more than `limit`."""
        ...

    def list(self, prefix: str, *, after: str) -> Iterator[object]:
        """Yield the objects under a prefix whose key is greater than `after`."""
        ...


class Proofs:
    """Makes proofs of one log; what was read is kept."""

    def __init__(
        self,
        store: Objects,
        name: str,
        form: Form[Entry],
        valid: Valid = _any,
        is_last: Callable[[int], bool] | None = None,
    ) -> None:
        """Begin; nothing is read yet.

        Args:
            store: the archive.
            name: `<log>/<partition>`, for messages.
            form: what the log is as a signed log.
            valid: whether an entry is valid in its slot; by default each that parses.
            is_last: whether no slot after one has an object; by default the store is listed.
        """
        self._store, self._log, self._form, self._valid = store, name, form, valid
        self._is_last = is_last or self._listed_last
        # Entries do not change; whoever goes from one to the next asks for each several times.
        self._looked_at = lru_cache(_KEPT)(self._look_at)
        self._read: dict[int, tuple[merkle.CompactRange, bytes]] = {}

    def root(self, size: int) -> bytes:
        """Return the root of the tree of the first `size` statements.

        Raises:
            FormatError: a statement on the way is not of the format, or the log has not so many.
            StoreError: the store does not give it.
        """
        return self._subtree(0, size) if size else merkle.EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Return the proof that statement `index` is in the tree of the first `size` (RFC 6962, 2.1.1).

        Raises:
            FormatError: there is no such statement, or one on the way is not of the format.
            StoreError: the store does not give it.
        """
        if not 0 <= index < size:
            raise FormatError(f"{self._log} has no statement {index} in a tree of {size}")
        proof = []
        left = iter(self._last_of(index + 1)[0] if index else ())
        first, end = 0, size
        while end - first > 1:
            middle = first + merkle.split(end - first)
            if index < middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                # The compact range before the entry has these nodes, the largest first.
                proof.append(next(left))
                first = middle
        return proof[::-1]

    def consistency(self, first: int, second: int) -> list[bytes]:
        """Return the proof that the tree of `first` statements is a prefix of that of `second` (RFC 6962, 2.1.2).

        Raises:
            FormatError: the sizes do not rise, or a statement on the way is not of the format.
            StoreError: the store does not give it.
        """
        if not 0 < first <= second:
            raise FormatError(f"no proof of {self._log} leads from size {first} to size {second}")
        proof = []
        left: Iterator[bytes] = iter(())
        begin, end, whole = 0, second, True
        while first != end:
            middle = begin + merkle.split(end - begin)
            if first <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                if whole:
                    left = iter(self._range(first))
                proof.append(next(left))
                begin, whole = middle, False
        if not whole:
            proof.append(next(left))
        return proof[::-1]

    def leads_to(self, size: int, root: bytes, head: Head) -> bool:
        """Return whether the tree of a size and root is shown to be a prefix of a head. Never raises."""
        if size == head.size:
            return root == head.root
        if not size:
            return root == merkle.EMPTY_ROOT
        try:
            proof = self.consistency(size, head.size)
            return merkle.roots_from_consistency(size, head.size, root, proof) == (root, head.root)
        except (FormatError, StoreError):
            return False

    def holds(self, index: int, message: bytes, head: Head) -> bool:
        """Return whether an entry is shown to be number `index` of the tree of a head. Never raises."""
        try:
            proof = self.inclusion(index, head.size)
            return merkle.root_from_inclusion(index, head.size, merkle.leaf_hash(message), proof) == head.root
        except (FormatError, StoreError):
            return False

    def _range(self, size: int) -> merkle.CompactRange:
        """Return the compact range of the first `size` entries, at least one."""
        before, leaf = self._last_of(size)
        return merkle.append(size - 1, before, leaf)

    def _subtree(self, first: int, end: int) -> bytes:
        """Return the hash of the entries `[first, end)`, which are a subtree of some tree."""
        compact_range, leaf = self._last_of(end)
        # The perfect subtrees before the last entry, of which the last ones are those within.
        within = (end - 1 - first).bit_count()
        return merkle.range_root((*compact_range[len(compact_range) - within :], leaf))

    def _last_of(self, size: int) -> tuple[merkle.CompactRange, bytes]:
        """Return the compact range before the last one of the first `size` entries, and that one's leaf."""
        sequence = size - 1
        if sequence not in self._read:
            try:
                self._read[sequence] = self._stated(sequence)
            except (ObjectMissing, FormatError) as error:
                self._read[sequence] = self._passed_over(sequence, error)
        return self._read[sequence]

    def _stated(self, sequence: int) -> tuple[merkle.CompactRange, bytes]:
        key = self._form.key(sequence)
        try:
            data = self._store.read(key, limit=limits.FILE_BYTES)
        except ObjectMissing:
            raise FormatError(f"{key} is not there; `custody verify` says more") from None
        entry = self._form.parse(data)
        valid = self._valid(entry, sequence)
        if valid is False or (valid is None and self._digest_passed_over(sequence) == sha256(data).hexdigest()):
            raise FormatError(f"{key} holds no valid {self._form.noun}; `custody verify` says more")
        tree = entry.statement.tree
        if tree.size != sequence or len(tree.compact_range) != sequence.bit_count():
            raise FormatError(f"{key} does not say what the tree before it is; `custody verify` says more")
        return tuple(map(bytes.fromhex, tree.compact_range)), merkle.leaf_hash(entry.message)

    def _passed_over(self, sequence: int, error: Exception) -> tuple[merkle.CompactRange, bytes]:
        """Return the same for a slot that holds no entry and that a later one passes over; raises `error` otherwise."""
        digest = self._digest_passed_over(sequence)
        if digest is None:
            raise error
        leaf = merkle.leaf_hash(passed_over_message(digest))
        if not sequence:
            return (), leaf
        before, last = self._last_of(sequence)
        return merkle.append(sequence - 1, before, last), leaf

    def is_passed_over(self, sequence: int) -> bool:
        """Return whether a later entry passes over a slot.

        Where it cannot be said whether entries are valid, some of those that follow may stand in slots that were passed
        over with this one: so the next ones are looked at, too.
        """
        for number, valid, passed in islice(self._following(sequence), _UNSURE):
            if number - len(passed) <= sequence:
                return True
            if valid:
                break
        return False

    def _digest_passed_over(self, sequence: int) -> str | None:
        """Return what the next valid entry says of a slot that it passes over, None where it passes over none."""
        for number, _, passed in self._following(sequence):
            return passed[sequence - number + len(passed)] if number - len(passed) <= sequence else None
        return None

    def _following(self, sequence: int) -> Iterator[tuple[int, bool | None, Sequence[str]]]:
        """Yield the entries behind a slot that may be valid: number, whether it is, what it passes over."""
        for number in range(sequence + 1, sequence + 1 + limits.PASSED_OVER):
            try:
                valid, passed = self._looked_at(number)
            except (FormatError, ObjectMissing):
                if self._is_last(number):
                    return
                continue
            if valid is not False:
                yield number, valid, passed

    def _listed_last(self, number: int) -> bool:
        return next(iter(self._store.list(self._form.prefix, after=self._form.key(number))), None) is None

    def _look_at(self, number: int) -> tuple[bool | None, Sequence[str]]:
        entry = self._form.parse(self._store.read(self._form.key(number), limit=limits.FILE_BYTES))
        placed = entry.statement.sequence == number
        return self._valid(entry, number), tuple(entry.statement.passed_over) if placed else ()
