"""The tree and its proofs as RFC 6962, section 2.1, defines them: from all leaf hashes, and without custody."""

from collections.abc import Sequence
from hashlib import sha256


def split(size: int) -> int:
    """Return the largest power of two below `size` (at least 2)."""
    k = 1
    while 2 * k < size:
        k *= 2
    return k


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes (2.1: MTH)."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = split(len(leaves))
    return sha256(b"\x01" + root(leaves[:k]) + root(leaves[k:])).digest()


def inclusion_proof(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree over `leaves` (2.1.1: PATH)."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*inclusion_proof(index, leaves[:k]), root(leaves[k:])]
    return [*inclusion_proof(index - k, leaves[k:]), root(leaves[:k])]


def consistency_proof(first: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Return the proof that the tree of the first `first` leaves is a prefix (2.1.2: PROOF)."""
    return _subproof(first, leaves, whole=True)


def _subproof(first: int, leaves: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if first == len(leaves):
        return [] if whole else [root(leaves)]
    k = split(len(leaves))
    if first <= k:
        return [*_subproof(first, leaves[:k], whole=whole), root(leaves[k:])]
    return [*_subproof(first - k, leaves[k:], whole=False), root(leaves[:k])]
