"""Following a log from a bucket: statements are read ahead with their segments, and the same is found as one by one."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from custody.archive.reader import read_archive
from custody.archive.trusted import standing
from custody.errors import TransientStoreError
from custody.format.layout import Log, manifest_key
from custody.keys.trust import open_trust
from custody.store.open import open_store
from tasks.search.following import Following, New, next_statement
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

STATEMENTS = 40
AHEAD = 4
MOST = 1_000_000
LOG = Log("audit.grows", 0)
BEGUN = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Growing:
    made = Growing(tmp_path_factory.mktemp("following") / "site", begun=BEGUN)
    made.append(STATEMENTS)
    return made


@pytest.fixture
def store(growing: Growing) -> MemoryStore:
    files = (path for path in growing.folder.rglob("*") if path.is_file())
    return MemoryStore({path.relative_to(growing.folder).as_posix(): path.read_bytes() for path in files})


class Reader:
    """Follows the log in a store."""

    def __init__(self, growing: Growing, store: MemoryStore) -> None:
        trust = open_trust([f"file:{growing.keyring}"])
        self.store = store
        self.holds = standing(store, read_archive(open_store(str(growing.folder))).id, trust)(LOG)

    def follow(self, begin: int, end: int | None, most: int = MOST) -> Iterator[tuple[New, dict[int, str]]]:
        """Yield what comes from a slot on, until nothing follows."""
        with ThreadPoolExecutor(AHEAD) as threads:
            following = Following(self.store, LOG, self.holds, begin, end, threads, ahead=AHEAD, most=most)
            sequence = begin
            while True:
                new, unread = following.next(sequence, holes=True)
                if new is None:
                    return
                yield new, unread
                sequence = new.statement.sequence + 1

    def one_by_one(self, begin: int) -> list[tuple[int, dict[int, str]]]:
        """Return the same without reading ahead: sequences, and what is unread before each."""
        found: list[tuple[int, dict[int, str]]] = []
        sequence = begin
        while True:
            statement, unread = next_statement(self.store, LOG, sequence, self.holds, holes=True)
            if statement is None:
                return found
            found.append((statement.sequence, unread))
            sequence = statement.sequence + 1


def segment_of(new: New) -> str:
    segment = new.statement.segment
    assert segment is not None
    return segment.key


@pytest.mark.parametrize("end", [None, STATEMENTS, STATEMENTS - 7])
@pytest.mark.parametrize("begin", [0, 1, STATEMENTS - 1])
def test_each_statement_comes_with_its_segment(
    growing: Growing, store: MemoryStore, begin: int, end: int | None
) -> None:
    """Each is read once; where the end is known, nothing is asked for behind it."""
    reader = Reader(growing, store)
    store.calls.clear()
    found = list(reader.follow(begin, end))
    assert [new.statement.sequence for new, _ in found] == list(range(begin, STATEMENTS))
    # Where the end is not known, the first one shows that more may follow.
    known = range(begin + 1, STATEMENTS) if end is None else range(end)
    for new, unread in found:
        assert unread == {}
        assert new.segment == (store.objects[segment_of(new)] if new.statement.sequence in known else None)
    reads = Counter(key for name, key in store.calls if name == "read")
    # That the slot at the end is empty is seen twice, if it was read ahead.
    assert reads.pop(manifest_key(LOG, STATEMENTS)) == (2 if end is None else 1)
    assert set(reads.values()) == {1}
    beyond = [key for key in reads if key > manifest_key(LOG, STATEMENTS)]
    assert len(beyond) < AHEAD if end is None else not beyond


def test_a_large_segment_is_left_to_who_needs_it(growing: Growing, store: MemoryStore) -> None:
    """So memory is bounded, whatever a statement says."""
    reader = Reader(growing, store)
    store.calls.clear()
    assert all(new.segment is None for new, _ in reader.follow(0, STATEMENTS, most=10))
    assert not [key for name, key in store.calls if name == "read" and key.startswith("events/")]


def test_a_log_without_news_takes_no_more_than_one_by_one(growing: Growing, store: MemoryStore) -> None:
    """Where it is not known whether something follows, nothing is read ahead until something does."""
    reader = Reader(growing, store)
    store.calls.clear()
    assert list(reader.follow(STATEMENTS, None)) == []
    assert [name for name, _ in store.calls] == ["read", "list"]


def test_a_segment_that_is_larger_than_stated_is_not_read_ahead(growing: Growing, store: MemoryStore) -> None:
    """Whoever can write into the store cannot fill memory with it."""
    reader = Reader(growing, store)
    store.objects[segment_of(next(reader.follow(5, STATEMENTS))[0])] += bytes(MOST)
    found = [new for new, _ in reader.follow(0, STATEMENTS)]
    assert [new.statement.sequence for new in found if new.segment is None] == [5]


def test_an_error_of_a_slot_that_nobody_wants_ends_nothing(growing: Growing, store: MemoryStore) -> None:
    """One that is passed by is no error; one that is wanted is, when it is asked for in earnest."""
    reader = Reader(growing, store)

    def fail(name: str, key: str) -> None:
        if name == "read" and key == manifest_key(LOG, 2):
            raise TransientStoreError("no answer")

    store.before = fail
    with ThreadPoolExecutor(AHEAD) as threads:
        following = Following(store, LOG, reader.holds, 0, STATEMENTS, threads, ahead=AHEAD, most=MOST)
        assert [following.next(sequence, holes=True)[1] for sequence in (0, 20)] == [{}, {}]
    with pytest.raises(TransientStoreError):
        list(reader.follow(0, STATEMENTS))


@pytest.mark.parametrize("damage", ["a hole", "garbage", "a long hole", "no segment", "all"])
@pytest.mark.parametrize("end", [None, STATEMENTS])
def test_what_is_damaged_is_named_as_one_by_one(
    growing: Growing, store: MemoryStore, damage: str, end: int | None
) -> None:
    """A hole, garbage and a lost segment stop nothing, and a hole is not read slot by slot."""
    reader = Reader(growing, store)
    keys = [manifest_key(LOG, sequence) for sequence in range(STATEMENTS)]
    if damage in {"a hole", "all"}:
        del store.objects[keys[3]]
    if damage in {"garbage", "all"}:
        store.objects[keys[5]] = b"garbage"
    if damage in {"a long hole", "all"}:
        for key in keys[10:30]:
            del store.objects[key]
    if damage in {"no segment", "all"}:
        lost = next(key for key in store.objects if key.startswith("events/") and "-0-00000000000000000035-" in key)
        del store.objects[lost]
    wanted = reader.one_by_one(0)
    store.calls.clear()
    found = list(reader.follow(0, end))
    assert [(new.statement.sequence, unread) for new, unread in found] == wanted
    without = [new.statement.sequence for new, _ in found if new.segment is None]
    assert (7 in without) == (damage in {"no segment", "all"})
    in_hole = {key for name, key in store.calls if name == "read" and keys[10] < key < keys[30]}
    assert damage not in {"a long hole", "all"} or len(in_hole) < 2 * AHEAD


def test_who_jumps_ahead_reads_nothing_between(growing: Growing, store: MemoryStore) -> None:
    """Statements that are too old are passed by."""
    reader = Reader(growing, store)
    store.calls.clear()
    with ThreadPoolExecutor(AHEAD) as threads:
        following = Following(store, LOG, reader.holds, 0, STATEMENTS, threads, ahead=AHEAD, most=MOST)
        for sequence in (0, 30, 31):
            new, _ = following.next(sequence, holes=True)
            assert new is not None
            assert new.statement.sequence == sequence
    between = {key for name, key in store.calls if manifest_key(LOG, 2 * AHEAD) < key < manifest_key(LOG, 30)}
    assert not between
