"""The tree against RFC 6962's definition and the vectors of the Certificate Transparency reference implementations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.tlog import merkle
from tests.helpers import rfc6962

# The reference tree that the C++, Go and Java implementations of Certificate Transparency are tested with.
LEAVES = [
    merkle.leaf_hash(bytes.fromhex(text))
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
MANY = [merkle.leaf_hash(number.to_bytes(2)) for number in range(65)]

hashes = st.binary(min_size=32, max_size=32)


def compact_ranges(leaves: list[bytes]) -> list[merkle.CompactRange]:
    """The compact range of every prefix, the empty one first."""
    found: list[merkle.CompactRange] = [()]
    for size, leaf in enumerate(leaves):
        found.append(merkle.append(size, found[-1], leaf))
    return found


def test_empty_root() -> None:
    """The root of the empty tree is the SHA-256 of nothing."""
    assert merkle.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.range_root(()) == merkle.EMPTY_ROOT


@pytest.mark.parametrize("size", range(1, 9))
def test_reference_roots(size: int) -> None:
    """Each prefix of the reference tree has the root that Certificate Transparency publishes."""
    assert rfc6962.root(LEAVES[:size]) == ROOTS[size - 1]
    assert merkle.range_root(compact_ranges(LEAVES)[size]) == ROOTS[size - 1]


@pytest.mark.parametrize(("place", "path"), INCLUSION.items(), ids=str)
def test_reference_inclusion(place: tuple[int, int], path: list[str]) -> None:
    """Audit paths in the reference tree are the published ones, and lead to the published root."""
    index, size = place
    proof = rfc6962.inclusion_proof(index, LEAVES[:size])
    assert [node.hex() for node in proof] == path
    assert merkle.root_from_inclusion(index, size, LEAVES[index], proof) == ROOTS[size - 1]


@pytest.mark.parametrize(("sizes", "path"), CONSISTENCY.items(), ids=str)
def test_reference_consistency(sizes: tuple[int, int], path: list[str]) -> None:
    """Consistency proofs of the reference tree are the published ones, and lead to both published roots."""
    first, second = sizes
    proof = rfc6962.consistency_proof(first, LEAVES[:second])
    assert [node.hex() for node in proof] == path
    if first < second:
        found = merkle.roots_from_consistency(first, second, ROOTS[first - 1], proof)
        assert found == (ROOTS[first - 1], ROOTS[second - 1])


@given(st.lists(hashes, max_size=70))
def test_append_is_the_definition(leaves: list[bytes]) -> None:
    """Appending leaf by leaf gives the roots of the recursive definition, and a perfect subtree for each bit."""
    for size, compact_range in enumerate(compact_ranges(leaves)):
        assert merkle.range_root(compact_range) == rfc6962.root(leaves[:size])
        assert len(compact_range) == size.bit_count() == len(merkle.subtree_sizes(size))
    start = 0
    for size, node in zip(merkle.subtree_sizes(len(leaves)), compact_ranges(leaves)[-1], strict=True):
        assert node == rfc6962.root(leaves[start : start + size])
        start += size
    assert start == len(leaves)


@pytest.mark.parametrize("size", range(1, 65))
def test_inclusion_of_every_leaf(size: int) -> None:
    """Each leaf's proof leads to the root; one node altered, missing, or too many never does."""
    leaves = MANY[:size]
    root = rfc6962.root(leaves)
    for index, leaf in enumerate(leaves):
        proof = rfc6962.inclusion_proof(index, leaves)
        assert merkle.root_from_inclusion(index, size, leaf, proof) == root
        assert merkle.root_from_inclusion(index, size, MANY[64], proof) != root
        for place in range(len(proof)):
            altered = [*proof[:place], MANY[64], *proof[place + 1 :]]
            assert merkle.root_from_inclusion(index, size, leaf, altered) != root
        with pytest.raises(FormatError, match="too long"):
            merkle.root_from_inclusion(index, size, leaf, [*proof, MANY[64]])
        if proof:
            with pytest.raises(FormatError, match="too short"):
                merkle.root_from_inclusion(index, size, leaf, proof[:-1])


@pytest.mark.parametrize("second", range(2, 65))
def test_consistency_of_every_prefix(second: int) -> None:
    """Each prefix's proof leads to both roots; one node altered, missing, or too many never does."""
    leaves = MANY[:second]
    new = rfc6962.root(leaves)
    for first in range(1, second):
        old = rfc6962.root(leaves[:first])
        proof = rfc6962.consistency_proof(first, leaves)
        assert merkle.roots_from_consistency(first, second, old, proof) == (old, new)
        for place in range(len(proof)):
            altered = [*proof[:place], MANY[64], *proof[place + 1 :]]
            assert merkle.roots_from_consistency(first, second, old, altered) != (old, new)
        assert merkle.roots_from_consistency(first, second, MANY[64], proof) != (MANY[64], new)
        with pytest.raises(FormatError, match="too long"):
            merkle.roots_from_consistency(first, second, old, [*proof, MANY[64]])
        with pytest.raises(FormatError, match="too short"):
            merkle.roots_from_consistency(first, second, old, proof[:-1])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_no_such_leaf(index: int, size: int) -> None:
    """A proof for a leaf that is not there is refused."""
    with pytest.raises(FormatError, match="no such leaf"):
        merkle.root_from_inclusion(index, size, LEAVES[0], [])


@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 3), (4, 3), (-1, 3)])
def test_no_such_prefix(first: int, second: int) -> None:
    """A consistency proof between sizes that do not rise from 1 is refused."""
    with pytest.raises(FormatError, match="rise"):
        merkle.roots_from_consistency(first, second, ROOTS[0], [ROOTS[1]])


@given(st.integers(0, 2**63), st.integers(0, 2**63), hashes, st.lists(hashes, max_size=70))
def test_any_proof_is_judged(one: int, other: int, node: bytes, proof: list[bytes]) -> None:
    """Whatever stands in a proof, checking it gives roots or a FormatError."""
    for check in (merkle.root_from_inclusion, merkle.roots_from_consistency):
        try:
            check(one, other, node, proof)
        except FormatError:
            continue


def test_a_node_is_no_leaf() -> None:
    """A leaf that spells two hashes does not pass for their parent."""
    left, right = LEAVES[0], LEAVES[1]
    assert merkle.leaf_hash(left + right) != merkle.node_hash(left, right)


def test_the_hash_of_an_empty_leaf() -> None:
    """A leaf is hashed behind one zero byte: Certificate Transparency's own vector."""
    assert merkle.leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
