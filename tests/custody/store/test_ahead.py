"""Asking for several objects at once: in order, errors in their turn, never more than a few ahead, nothing twice."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import cast

import pytest

from custody.errors import FormatError, ObjectMissing, TransientStoreError
from custody.store.ahead import AHEAD, AskAhead, ReadAhead, call_ahead, in_order
from custody.store.folder import FolderStore
from custody.store.protocol import Store
from tests.helpers.asked import count_calls
from tests.helpers.memory import MemoryStore

pytestmark = pytest.mark.timeout(60)


def test_results_come_in_order() -> None:
    """However long each call takes."""
    turns = [threading.Event() for _ in range(4)]

    def late(number: int) -> int:
        # Each waits for the one behind it.
        if number % 4 != 3:
            turns[number % 4 + 1].wait(30)
        turns[number % 4].set()
        return number

    with ThreadPoolExecutor(4) as threads:
        assert list(in_order(threads, late, range(4), ahead=4)) == [0, 1, 2, 3]


def test_no_more_are_begun_than_may_wait() -> None:
    """Items without end are taken as results are."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as threads:
        results = in_order(threads, str, items(), ahead=3)
        assert not taken
        assert list(islice(results, 10)) == [str(number) for number in range(10)]
        assert len(taken) == 12
        results.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_turn() -> None:
    """What was asked for before is not lost, and what was not begun never is."""
    called: list[int] = []

    def fail(number: int) -> int:
        called.append(number)
        if number == 2:
            raise ValueError(number)
        return number

    with ThreadPoolExecutor(1) as threads:
        results = in_order(threads, fail, range(100), ahead=4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="2"):
            next(results)
    assert max(called) <= 6


def test_an_error_of_the_items_comes_in_its_turn() -> None:
    """What was begun before it is not lost: a listing may fail after much that it has shown."""

    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no more can be listed")

    with ThreadPoolExecutor(4) as threads:
        results = in_order(threads, str, items(), ahead=8)
        assert [next(results) for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(ValueError, match="no more"):
            next(results)


def test_who_stops_does_not_wait() -> None:
    """An interrupt is not held up by a server that does not answer."""
    never = threading.Event()

    def wait(number: int) -> int:
        if number:
            never.wait(50)
        return number

    results = call_ahead(MemoryStore(), wait, range(5))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert not never.is_set()
    never.set()


def test_of_a_folder_one_after_the_other(tmp_path: Path) -> None:
    """There, threads are of no use; elsewhere reads are made in several."""

    def thread(_: int) -> int:
        return threading.get_ident()

    assert set(call_ahead(FolderStore(str(tmp_path)), thread, range(5))) == {threading.get_ident()}
    assert threading.get_ident() not in set(call_ahead(MemoryStore(), thread, range(5)))


LIMIT = 100
MANY = 3 * AHEAD
KEYS = [f"log/{number:04}" for number in range(MANY)]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore({key: key.encode() for key in KEYS})


def reads(store: MemoryStore) -> list[str]:
    return [key for name, key in store.calls if name == "read"]


def test_what_is_expected_is_read_once(store: MemoryStore) -> None:
    """Who looks at the next ones before has them from memory, and so has who reads them then."""
    with ReadAhead(store, LIMIT) as ahead:
        ahead.expect(KEYS)
        for number, key in enumerate(KEYS):
            assert ahead.read(key, limit=LIMIT) == key.encode()
            for following in KEYS[number + 1 : number + 3]:
                assert ahead.read(following, limit=LIMIT) == following.encode()
    assert sorted(reads(store)) == KEYS


def test_little_is_read_ahead(store: MemoryStore) -> None:
    """Who stops early has asked for little too much; nothing is read before something is asked for."""
    with ReadAhead(store, LIMIT) as ahead:
        ahead.expect(iter(KEYS))
        assert reads(store) == []
        ahead.read(KEYS[0], limit=LIMIT)
    assert len(reads(store)) <= AHEAD


def test_what_is_missing_is_missing_in_its_turn(store: MemoryStore) -> None:
    """The others come all the same."""
    del store.objects[KEYS[5]]
    with ReadAhead(store, LIMIT) as ahead:
        ahead.expect(KEYS)
        for key in KEYS:
            if key == KEYS[5]:
                with pytest.raises(ObjectMissing):
                    ahead.read(key, limit=LIMIT)
            else:
                assert ahead.read(key, limit=LIMIT) == key.encode()
    assert sorted(reads(store)) == KEYS


def test_what_is_not_expected_is_read_itself(store: MemoryStore) -> None:
    """Parts, other limits and other keys; and each new expectation replaces the one before."""
    with ReadAhead(store, LIMIT) as ahead:
        assert ahead.read(KEYS[7], limit=LIMIT) == KEYS[7].encode()
        ahead.expect(KEYS[:AHEAD])
        assert ahead.read(KEYS[0], limit=LIMIT) == KEYS[0].encode()
        assert ahead.read(KEYS[1], limit=LIMIT, start=2, size=3) == KEYS[1].encode()[2:5]
        assert ahead.read(KEYS[1], limit=LIMIT + 1) == KEYS[1].encode()
        ahead.expect(KEYS[AHEAD:])
        for key in KEYS[AHEAD:]:
            assert ahead.read(key, limit=LIMIT) == key.encode()
        assert ahead.exists(KEYS[0])
    assert sorted(set(reads(store)[AHEAD + 3 :])) == KEYS[AHEAD:]
    assert len(reads(store)) == 1 + MANY + 2


def test_from_a_folder_nothing_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it would not be faster."""
    folder = FolderStore(str(tmp_path))
    for key in KEYS[:3]:
        folder.create(key, key.encode())
    calls = count_calls(monkeypatch, "log/")
    with ReadAhead(folder, LIMIT) as ahead:
        ahead.expect(KEYS[:3])
        assert ahead.read(KEYS[0], limit=LIMIT) == KEYS[0].encode()
    assert calls["read"] == 1


def ask(store: Store, number: int) -> None:
    store.exists(KEYS[number])
    list(store.list("log/", after=KEYS[number]))


def read_whole(store: Store, key: str) -> None:
    store.read(key, limit=LIMIT)


def test_answers_are_given_once(store: MemoryStore) -> None:
    """What was asked beforehand is not asked again, but by who asks a second time: it may have changed."""
    asked = AskAhead(store)
    asked.ask(ask, range(0, MANY, 8))
    before = list(store.calls)
    for number in range(0, MANY, 8):
        ask(cast("Store", asked), number)
    assert store.calls == before
    listed = [info.key for info in asked.list("log/", after=KEYS[0])]
    assert listed == KEYS[1:]
    assert asked.exists(KEYS[0])
    assert store.calls == [*before, ("list", "log/"), ("exists", KEYS[0])]
    assert [info.key for info in asked.list("log/", after=KEYS[8], through=KEYS[9])] == [KEYS[9]]


def test_answers_are_kept_up_to_a_bound(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many logs with much to list do not fill memory."""
    monkeypatch.setattr("custody.store.ahead._MOST_KEPT", 3 * MANY)
    asked = AskAhead(store)
    asked.ask(ask, range(10))
    before = len(store.calls)
    for number in range(10):
        assert len(list(asked.list("log/", after=KEYS[number]))) == MANY - number - 1
    assert len(store.calls) - before == 7


def test_objects_are_given_once(store: MemoryStore) -> None:
    """What was read beforehand is not read again, also in part; but not what is larger than the limit."""
    asked = AskAhead(store)
    asked.ask(read_whole, KEYS[:3])
    store.calls.clear()
    assert asked.read(KEYS[0], limit=LIMIT) == store.objects[KEYS[0]]
    assert asked.read(KEYS[1], limit=2, start=1, size=2) == store.objects[KEYS[1]][1:3]
    assert store.calls == []
    with pytest.raises(FormatError):
        asked.read(KEYS[2], limit=1)
    asked.read(KEYS[0], limit=LIMIT)
    assert store.calls == [("read", KEYS[2]), ("read", KEYS[0])]


def test_objects_are_kept_up_to_a_bound(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large objects do not fill memory. There is room again once the answers are forgotten."""
    monkeypatch.setattr("custody.store.ahead._MOST_BYTES", 3 * len(store.objects[KEYS[0]]))
    asked = AskAhead(store)
    for _ in range(2):
        asked.ask(read_whole, KEYS[:8])
        store.calls.clear()
        for key in KEYS[:8]:
            read_whole(cast("Store", asked), key)
        assert len(store.calls) == 5
        asked.forget()


def test_answers_are_forgotten(store: MemoryStore) -> None:
    """What nobody asked for does not stay."""
    asked = AskAhead(store)
    asked.ask(ask, [0])
    asked.forget()
    before = list(store.calls)
    assert asked.exists(KEYS[0])
    assert store.calls == [*before, ("exists", KEYS[0])]


def test_no_error_is_kept_and_no_long_answer(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks in earnest gets the error, or the listing, from the store."""
    monkeypatch.setattr("custody.store.ahead.MOST_LISTED", MANY // 2)

    def fail(name: str, key: str) -> None:
        if name == "exists" and key == KEYS[1]:
            raise TransientStoreError("no answer")

    store.before = fail
    asked = AskAhead(store)
    asked.ask(ask, [0, 1, MANY - 2])
    before = list(store.calls)
    with pytest.raises(TransientStoreError):
        asked.exists(KEYS[1])
    assert len(list(asked.list("log/", after=KEYS[0]))) == MANY - 1
    assert [info.key for info in asked.list("log/", after=KEYS[-2])] == [KEYS[-1]]
    assert store.calls == [*before, ("exists", KEYS[1]), ("list", "log/")]
