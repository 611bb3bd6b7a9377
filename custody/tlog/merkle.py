"""Merkle tree hashes, compact ranges, inclusion and consistency proofs of RFC 6962 section 2.1, with SHA-256.

The prefix bytes 0x00 (leaf) and 0x01 (node) keep a leaf from being passed off as a node. All functions are pure; a hash
is 32 bytes. A *compact range* holds the roots of the perfect subtrees that make up a tree, largest first, one for each
bit that is set in its size.
"""

from collections.abc import Sequence
from hashlib import sha256

from custody.errors import FormatError

__all__ = ["leaf_hash", "node_hash", "root_from_inclusion", "roots_from_consistency"]

EMPTY_ROOT = sha256(b"").digest()

CompactRange = tuple[bytes, ...]


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 ‖ leaf)."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return sha256(b"\x01" + left + right).digest()


def append(size: int, compact_range: CompactRange, leaf: bytes) -> CompactRange:
    """Return the compact range of the tree of `size` leaves after one more leaf, given by its hash."""
    nodes = list(compact_range)
    node = leaf
    while size & 1:
        node = node_hash(nodes.pop(), node)
        size >>= 1
    nodes.append(node)
    return tuple(nodes)


def range_root(compact_range: CompactRange) -> bytes:
    """Return the root of the tree with this compact range."""
    if not compact_range:
        return EMPTY_ROOT
    nodes = reversed(compact_range)
    root = next(nodes)
    for node in nodes:
        # As `node_hash`, without the call: this is done for each entry of a log.
        root = sha256(b"\x01" + node + root).digest()
    return root


def split(size: int) -> int:
    """Return the largest power of two below `size` (at least 2)."""
    return 1 << (size - 1).bit_length() - 1


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, 2.1.3.2). The caller compares it.

    Raises:
        FormatError: the proof is too short or too long for this place in this tree.
    """
    if not 0 <= index < size:
        raise FormatError(f"an inclusion proof for leaf {index} of a tree of {size}: there is no such leaf")
    fn, sn, node = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            raise FormatError(f"the inclusion proof for leaf {index} of {size} is too long")
        if fn & 1 or fn == sn:
            node = node_hash(sibling, node)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            node = node_hash(node, sibling)
        fn >>= 1
        sn >>= 1
    if sn:
        raise FormatError(f"the inclusion proof for leaf {index} of {size} is too short")
    return node


def roots_from_consistency(first: int, second: int, first_root: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the roots of both trees that a consistency proof leads to (RFC 9162, 2.1.4.2). The caller compares them.

    Args:
        first: size of the older tree, from 1.
        second: size of the newer tree, larger than `first`.
        first_root: root of the older tree; it is the first node where `first` is a power of two.
        proof: the nodes, the lowest first.

    Raises:
        FormatError: the proof is too short or too long for these sizes, or the sizes are wrong.
    """
    if not 0 < first < second:
        raise FormatError(f"a consistency proof from {first} to {second}: the sizes must be positive and rise")
    nodes = list(proof)
    if first & (first - 1) == 0:
        nodes.insert(0, first_root)
    if not nodes:
        raise FormatError(f"the consistency proof from {first} to {second} is too short")
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if sn == 0:
            raise FormatError(f"the consistency proof from {first} to {second} is too long")
        if fn & 1 or fn == sn:
            old = node_hash(node, old)
            new = node_hash(node, new)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            new = node_hash(new, node)
        fn >>= 1
        sn >>= 1
    if sn:
        raise FormatError(f"the consistency proof from {first} to {second} is too short")
    return old, new


def subtree_sizes(size: int) -> list[int]:
    """Return the sizes of the perfect subtrees of a tree, largest first: what each node of its compact range covers."""
    bits = [1 << bit for bit in range(size.bit_length()) if size >> bit & 1]
    return bits[::-1]
