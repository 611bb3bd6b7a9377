"""Proofs that others can check (RFC 6962, 2.1), read from an archive instead of from all of its statements.

Each statement holds the edge of the tree before it: the roots of the perfect subtrees that make it up. So a subtree
that stands in an edge costs one read, and a proof O(log n) of them; a right sibling within a larger subtree stands in
none, and is made from its halves.
"""

from custody import layout, merkle
from custody.errors import FormatError, ObjectMissing
from custody.manifest import MANIFEST_LIMIT, Manifest, parse
from custody.store import Store


class Proofs:
    """Makes proofs of one log; what was read is kept."""

    def __init__(self, store: Store, log: layout.Log) -> None:
        """Begin; nothing is read yet."""
        self._store, self._log = store, log
        self._manifests: dict[int, Manifest | None] = {}
        self._edges: dict[int, merkle.Edge] = {}

    @property
    def reads(self) -> int:
        """How many manifests were asked for."""
        return len(self._manifests)

    def root(self, size: int) -> bytes:
        """Return the root of the tree of the first `size` statements.

        Raises:
            FormatError: a statement on the way is not of the format, or the log has not so many.
            StoreError: the store does not give it.
        """
        return merkle.edge_root(self._edge(size))

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
        if end - first == 1:
            return merkle.leaf_hash(self._manifest(first).line)
        begin = 0
        for place, size in enumerate(merkle.subtree_sizes(end)):
            if begin == first:
                return merkle.edge_root(self._edge(end)[place:])
            begin += size
        middle = first + merkle.split(end - first)
        return merkle.node_hash(self._subtree(first, middle), self._subtree(middle, end))

    def _edge(self, size: int) -> merkle.Edge:
        if size == 0:
            return ()
        if size not in self._edges:
            behind = self._read(size)
            if behind is not None:
                edge = _stated(behind, size)
            else:
                # At the head: no statement behind it says what its tree is.
                last = self._manifest(size - 1)
                edge = merkle.append(size - 1, _stated(last, size - 1), merkle.leaf_hash(last.line))
            self._edges[size] = edge
        return self._edges[size]

    def _manifest(self, sequence: int) -> Manifest:
        found = self._read(sequence)
        if found is None:
            raise FormatError(f"{layout.manifest_key(self._log, sequence)} is not there; `custody verify` says more")
        return found

    def _read(self, sequence: int) -> Manifest | None:
        if sequence not in self._manifests:
            try:
                data = self._store.read(layout.manifest_key(self._log, sequence), limit=MANIFEST_LIMIT)
                self._manifests[sequence] = parse(data)
            except ObjectMissing:
                self._manifests[sequence] = None
        return self._manifests[sequence]


def _stated(manifest: Manifest, size: int) -> merkle.Edge:
    edge = tuple(map(bytes.fromhex, manifest.statement.tree.edge))
    if manifest.statement.tree.size != size or len(edge) != size.bit_count():
        raise FormatError(f"statement {size} does not say what the tree before it is; `custody verify` says more")
    return edge
