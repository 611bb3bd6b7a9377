"""Proofs read from an archive are those of the RFC, and cost few reads."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody import merkle
from custody.errors import FormatError
from custody.layout import Log, manifest_key
from custody.manifest import parse
from custody.proofs import Proofs
from custody.store import Store, open_store
from tests.sample import Growing

SIZE = 70
LOG = Log("audit.grows", 0)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[bytes]]:
    growing = Growing(tmp_path_factory.mktemp("proofs"))
    growing.append(SIZE)
    store = open_store(str(growing.folder))
    lines = [parse(store.read(manifest_key(LOG, one), limit=10**6)).line for one in range(SIZE)]
    return store, [merkle.leaf_hash(line) for line in lines]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_inclusion(archive: tuple[Store, list[bytes]], data: st.DataObject) -> None:
    """A proof is the RFC's, leads to the root, and costs one read a node: no more than the tree is deep."""
    store, leaves = archive
    size = data.draw(st.integers(1, SIZE))
    index = data.draw(st.integers(0, size - 1))
    proofs = Proofs(store, LOG)
    proof = proofs.inclusion(index, size)
    assert proof == merkle.inclusion_proof(index, leaves[:size])
    assert proofs.reads == len(proof) <= (size - 1).bit_length()
    assert merkle.root_from_inclusion(index, size, leaves[index], proof) == proofs.root(size)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_consistency(archive: tuple[Store, list[bytes]], data: st.DataObject) -> None:
    """A proof is the RFC's, and costs one read a node."""
    store, leaves = archive
    second = data.draw(st.integers(1, SIZE))
    first = data.draw(st.integers(1, second))
    proofs = Proofs(store, LOG)
    proof = proofs.consistency(first, second)
    assert proof == merkle.consistency_proof(first, leaves[:second])
    assert proofs.reads == len(proof) <= (second - 1).bit_length() + 1


def test_roots(archive: tuple[Store, list[bytes]]) -> None:
    """The root of each size is the tree's."""
    store, leaves = archive
    assert [Proofs(store, LOG).root(size) for size in range(SIZE + 1)] == [
        merkle.root(leaves[:size]) for size in range(SIZE + 1)
    ]


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, SIZE + 2)])
def test_no_such_statement(archive: tuple[Store, list[bytes]], index: int, size: int) -> None:
    """What is not there has no proof, and the error says so."""
    with pytest.raises(FormatError):
        Proofs(archive[0], LOG).inclusion(index, size)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (6, 5), (1, SIZE + 2)])
def test_no_such_sizes(archive: tuple[Store, list[bytes]], first: int, second: int) -> None:
    """Sizes that do not rise, or go beyond the log, have no proof."""
    with pytest.raises(FormatError):
        Proofs(archive[0], LOG).consistency(first, second)


def test_a_broken_statement(tmp_path: Path) -> None:
    """A statement on the way that is no statement is said."""
    growing = Growing(tmp_path)
    growing.append(5)
    path = growing.folder / manifest_key(LOG, 3)
    path.unlink()
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(FormatError):
        Proofs(open_store(str(growing.folder)), LOG).inclusion(2, 5)
