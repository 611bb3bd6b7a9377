"""Proofs read from an archive are those of the RFC, and cost few reads."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.archive.forms import statements_of
from custody.archive.reader import read_archive
from custody.archive.trusted import Judge
from custody.errors import FormatError
from custody.format import limits
from custody.format.envelope import passed_over_message
from custody.format.layout import Log, manifest_key
from custody.format.manifest import parse
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog import merkle
from custody.tlog.head import Head
from custody.tlog.proofs import Proofs, Valid
from tests.helpers import rfc6962
from tests.helpers.archives import Builder, Edit, tree_hash
from tests.helpers.leafy import Leafy, forged, plant
from tests.helpers.sample import Growing

SIZE = 70
LOG = Log("audit.grows", 0)


def proofs_of(store: Store) -> Proofs:
    return Proofs(store, str(LOG), statements_of(LOG))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[bytes]]:
    growing = Growing(tmp_path_factory.mktemp("proofs"))
    growing.append(SIZE)
    store = open_store(str(growing.folder))
    messages = [parse(store.read(manifest_key(LOG, one), limit=10**6)).message for one in range(SIZE)]
    return store, [merkle.leaf_hash(message) for message in messages]


@settings(max_examples=300)
@given(st.data())
def test_inclusion(archive: tuple[Store, list[bytes]], data: st.DataObject) -> None:
    """A proof is the RFC's, leads to the root, and costs a read, and one for each node to the right of the entry."""
    store, leaves = archive
    size = data.draw(st.integers(1, SIZE))
    index = data.draw(st.integers(0, size - 1))
    proofs = proofs_of(store)
    proof = proofs.inclusion(index, size)
    assert proof == rfc6962.inclusion_proof(index, leaves[:size])
    # The nodes to the left are the bits that are set in its number.
    assert len(proofs._read) == len(proof) - index.bit_count() + (index > 0) <= (size - 1).bit_length()
    assert merkle.root_from_inclusion(index, size, leaves[index], proof) == proofs.root(size)


@settings(max_examples=300)
@given(st.data())
def test_consistency(archive: tuple[Store, list[bytes]], data: st.DataObject) -> None:
    """A proof is the RFC's, and costs a read, and one for each node to the right of the smaller tree."""
    store, leaves = archive
    second = data.draw(st.integers(1, SIZE))
    first = data.draw(st.integers(1, second))
    proofs = proofs_of(store)
    proof = proofs.consistency(first, second)
    assert proof == rfc6962.consistency_proof(first, leaves[:second])
    left = 0 if first == second or first.bit_count() == 1 else first.bit_count()
    assert len(proofs._read) == len(proof) - left + (left > 0) <= (second - 1).bit_length() + 1


def test_roots(archive: tuple[Store, list[bytes]]) -> None:
    """The root of each size is the tree's."""
    store, leaves = archive
    assert [proofs_of(store).root(size) for size in range(SIZE + 1)] == [
        rfc6962.root(leaves[:size]) for size in range(SIZE + 1)
    ]


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (0, SIZE + 2)])
def test_no_such_statement(archive: tuple[Store, list[bytes]], index: int, size: int) -> None:
    """What is not there has no proof, and the error says so."""
    with pytest.raises(FormatError):
        proofs_of(archive[0]).inclusion(index, size)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (6, 5), (1, SIZE + 2)])
def test_no_such_sizes(archive: tuple[Store, list[bytes]], first: int, second: int) -> None:
    """Sizes that do not rise, or go beyond the log, have no proof."""
    with pytest.raises(FormatError):
        proofs_of(archive[0]).consistency(first, second)


def test_a_broken_statement(tmp_path: Path) -> None:
    """A statement on the way that is no statement is said."""
    growing = Growing(tmp_path)
    growing.append(5)
    path = growing.folder / manifest_key(LOG, 3)
    path.unlink()
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(FormatError):
        proofs_of(open_store(str(growing.folder))).inclusion(2, 5)


def test_what_leads_to_a_head(archive: tuple[Store, list[bytes]]) -> None:
    """Of two heads, and of an entry and a head, it is said whether one is shown to lie within the other."""
    store, leaves = archive
    proofs = proofs_of(store)
    roots = [rfc6962.root(leaves[:size]) for size in range(SIZE + 1)]
    head = Head(40, roots[40])
    messages = [parse(store.read(manifest_key(LOG, one), limit=10**6)).message for one in range(42)]
    for size in range(SIZE):
        assert proofs.leads_to(size, roots[size], head) is (size <= 40)
        assert not proofs.leads_to(size, bytes(32), head)
        # The empty tree is a prefix of every tree.
        assert proofs.leads_to(size, roots[size], Head(40, bytes(32))) is (size == 0)
    for index, message in enumerate(messages):
        assert proofs.holds(index, message, head) is (index < 40)
        assert not proofs.holds(index, b"another", head)
    assert not proofs.leads_to(5, roots[5], Head(SIZE + 3, bytes(32)))
    assert not proofs.holds(5, messages[5], Head(SIZE + 3, bytes(32)))


def test_slots_that_were_passed_over(tmp_path: Path) -> None:
    """What lies in a slot that was passed over is no leaf, however like an entry it is, for whoever has which keys."""
    made = Leafy(tmp_path / "of")
    leaves: list[bytes] = []
    for sequence in range(21):
        if sequence in {0, 5, 6, 12, 15}:
            data = b"garbage\n" if sequence in {0, 6} else forged(made, sequence)
            plant(made, sequence, data)
            leaves.append(merkle.leaf_hash(passed_over_message(sha256(data).hexdigest())))
        else:
            made.append(range(5 * sequence, 5 * sequence + 5))
            data = made.store.read(manifest_key(made.log, sequence), limit=10**6)
            leaves.append(merkle.leaf_hash(parse(data).message))
    for trust in (made.own, made.public, Trust()):
        judge = Judge(made.store, made.log, statements_of(made.log), read_archive(made.store).id, trust)
        for size in range(1, len(leaves) + 1):
            # Of slots at the end nobody knows yet that they were passed over.
            if size - 1 not in {0, 5, 6, 12, 15}:
                assert judge.proofs.root(size) == rfc6962.root(leaves[:size])
                assert judge.proofs.consistency(size, 21) == rfc6962.consistency_proof(size, leaves)
        for index in range(21):
            assert judge.proofs.inclusion(index, 21) == rfc6962.inclusion_proof(index, leaves)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A log that the second implementation writes."""
    made = Builder(tmp_path / "archive", topic="grows")
    for _ in range(4):
        made.append(1)
    return made


def of(builder: Builder, valid: Valid = lambda _entry, _sequence: True, store: Store | None = None) -> Proofs:
    log = Log(builder.topic, builder.partition)
    return Proofs(store or open_store(str(builder.root)), str(log), statements_of(log), valid)


def unsure(_entry: object, _sequence: int) -> None:
    return None


def test_an_entry_that_is_not_valid_is_none(builder: Builder) -> None:
    """What is not valid is in no proof, though nothing passes over it."""
    assert of(builder).root(3) == tree_hash(builder.entries[:3])
    with pytest.raises(FormatError, match="holds no valid statement"):
        of(builder, lambda _, sequence: sequence != 2).root(3)


@pytest.mark.parametrize(
    "edit",
    [lambda tree: tree.update(size=tree["size"] + 1), lambda tree: tree.update(compact_range=[])],
    ids=["another size", "another range"],
)
def test_a_tree_that_is_not_the_one_before(builder: Builder, edit: Edit) -> None:
    """An entry says what the tree before it is, by its size and by as many nodes as that size has."""
    builder.resign(3, lambda statement: edit(statement["tree"]))
    with pytest.raises(FormatError):
        of(builder).root(4)


@pytest.mark.parametrize("count", [1, 3, limits.PASSED_OVER])
@pytest.mark.parametrize("valid", [lambda _entry, _sequence: True, unsure], ids=["valid", "unsure"])
def test_which_slots_were_passed_over(builder: Builder, count: int, valid: Valid) -> None:
    """Those between two entries, of which the later one passes over them, and no others."""
    for number in range(count):
        builder.pass_over(b"noise %d" % number)
    builder.append(1)
    builder.append(1)
    proofs = of(builder, valid)
    assert [proofs.is_passed_over(sequence) for sequence in (3, 4, 4 + count - 1, 4 + count)] == [
        False,
        True,
        True,
        False,
    ]
    assert proofs.root(4 + count + 2) == tree_hash(builder.entries)


def test_what_passes_over_far_behind(builder: Builder) -> None:
    """Where entries cannot be checked, sixteen that follow are looked at, so that the search has an end."""
    for behind, passed in ((15, True), (16, False)):
        copy = builder.copy(builder.root.parent / str(behind))
        other = copy.copy(builder.root.parent / f"forged {behind}")
        for _ in range(behind + 1):
            other.append(1)
        for number in range(behind + 1):
            copy.pass_over(other.path(4 + number).read_bytes())
        copy.append(1)
        assert of(copy, unsure).is_passed_over(4) is passed


def test_an_entry_of_another_slot_passes_over_nothing(builder: Builder) -> None:
    """A copy of an entry says nothing of the slots before the copy."""
    builder.pass_over()
    builder.append(1)
    builder.path(6).write_bytes(b"noise")
    builder.path(7).write_bytes(builder.path(5).read_bytes())
    assert of(builder).is_passed_over(4) is True
    assert of(builder).is_passed_over(6) is False


def test_the_end_of_a_log_is_seen_at_once(builder: Builder) -> None:
    """Behind the last entry no slot is tried one by one."""
    asked: list[str] = []

    class Counting:
        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def read(self, key: str, **arguments: Any) -> bytes:
            asked.append(key)
            return self._store.read(key, **arguments)

    counting: Any = Counting(open_store(str(builder.root)))
    assert of(builder, store=counting).is_passed_over(3) is False
    assert len(asked) == 1
