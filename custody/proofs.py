"""Proofs that others can check (RFC 6962, 2.1), read from an archive instead of from all of its statements.

Each statement holds the edge of the tree before it: the roots of the perfect subtrees that make it up. So a statement
says, with its own leaf behind that edge, what the hash is of every subtree that ends with it; each node of a proof is
such a one. A proof costs one read a node, O(log n).
"""

from typing import Protocol

from custody import audit, layout, manifest, merkle
from custody.errors import FormatError, ObjectMissing
from custody.manifest import MANIFEST_LIMIT, Tree
from custody.store import Store


class _Stated(Protocol):
    """A statement as far as its log's tree is concerned."""

    @property
    def tree(self) -> Tree:
        """The tree before it."""
        ...


class _Signed(Protocol):
    """A manifest, or an audit."""

    @property
    def statement(self) -> _Stated:
        """What it says."""
        ...

    @property
    def line(self) -> bytes:
        """The leaf."""
        ...


class Proofs:
    """Makes proofs of one log; what was read is kept."""

    def __init__(self, store: Store, log: layout.Log) -> None:
        """Begin; nothing is read yet."""
        self._store, self._log = store, log
        self._read: dict[int, tuple[merkle.Edge, bytes]] = {}

    @property
    def reads(self) -> int:
        """How many statements were read."""
        return len(self._read)

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
        first, end = 0, size
        while end - first > 1:
            middle = first + merkle.split(end - first)
            if index < middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(first, middle))
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
        begin, end, whole = 0, second, True
        while first != end:
            middle = begin + merkle.split(end - begin)
            if first <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(begin, middle))
                begin, whole = middle, False
        if not whole:
            proof.append(self._subtree(begin, end))
        return proof[::-1]

    def _subtree(self, first: int, end: int) -> bytes:
        """Return the hash of the statements `[first, end)`, which are a subtree of some tree."""
        edge, leaf = self._last_of(end)
        # The perfect subtrees before the last statement, of which the last ones are those within.
        within = (end - 1 - first).bit_count()
        return merkle.edge_root((*edge[len(edge) - within :], leaf))

    def _last_of(self, size: int) -> tuple[merkle.Edge, bytes]:
        """Return what the last one of the first `size` statements says: the edge before it, and its own leaf's hash."""
        sequence = size - 1
        if sequence not in self._read:
            key = _key(self._log, sequence)
            parse = audit.parse if self._log == layout.AUDIT_LOG else manifest.parse
            try:
                found: _Signed = parse(self._store.read(key, limit=MANIFEST_LIMIT))
            except ObjectMissing:
                raise FormatError(f"{key} is not there; `custody verify` says more") from None
            tree = found.statement.tree
            if tree.size != sequence or len(tree.edge) != sequence.bit_count():
                raise FormatError(f"{key} does not say what the tree before it is; `custody verify` says more")
            self._read[sequence] = tuple(map(bytes.fromhex, tree.edge)), merkle.leaf_hash(found.line)
        return self._read[sequence]


def _key(log: layout.Log, sequence: int) -> str:
    return layout.audit_key(sequence) if log == layout.AUDIT_LOG else layout.manifest_key(log, sequence)
