"""The slots of a log that have an object are the same in a bucket and in a folder, where a long log is not listed."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive import last_slot, reader, slots
from custody.archive.forms import statements_of
from custody.archive.last_slot import find_last
from custody.archive.reader import find_end, read_archive
from custody.archive.resume import find_checked_tip
from custody.archive.slots import slots_after
from custody.archive.trusted import Judge, beyond_end
from custody.errors import HeadRollback
from custody.format import limits
from custody.format.layout import Log, manifest_key, parse_log_text
from custody.keys.trust import Trust, open_trust
from custody.store.folder import FolderStore
from custody.store.open import open_store
from tests.benchmarks.copying import copy_to_folder
from tests.helpers.aged import AgedStore
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

LOG = Log("audit", 0)
FORM = statements_of(LOG)
LONG = slots._FEW
"""Slots after this one are looked for by their names, and those after an earlier one are listed."""
FAR = 5000
"""Behind a hole that is longer than what may be passed over, and at none of the distances that are looked at."""


class Local(MemoryStore):
    """A store that is taken for a folder."""

    @property
    def url(self) -> str:
        return "file:///memory"

    def asked(self, name: str) -> int:
        """Return how many calls there were."""
        return sum(call == name for call, _ in self.calls)


def with_slots(*numbers: int) -> dict[str, bytes]:
    return {manifest_key(LOG, number): b"garbage" for number in numbers}


@pytest.mark.parametrize("begin", [-1, LONG])
def test_a_folder_has_the_slots_of_a_bucket(begin: int) -> None:
    """Holes as long as what may be passed over hide nothing, wherever one begins, and in a short log none does."""
    random = Random(17)
    for _ in range(20):
        numbers, number = [], begin
        for _ in range(random.randrange(60)):
            number += random.choice((1, 1, 1, 2, 30, limits.PASSED_OVER + 1))
            numbers.append(number)
        for low in (begin, *random.choices(range(begin + 1, begin + 101), k=3)):
            expected = [number for number in numbers if number > low]
            # Before the first one there may be a longer hole than this can look over in a long log.
            if begin < LONG or not expected or expected[0] - low <= limits.PASSED_OVER + 1:
                assert list(slots_after(Local(with_slots(*numbers)), FORM, low)) == expected
            assert list(slots_after(MemoryStore(with_slots(*numbers)), FORM, low)) == expected


@pytest.mark.parametrize("distance", [*(1 << power for power in range(10, 38)), *range(1088, 1 << 16, 64 * 99)])
def test_what_is_far_behind_a_hole_is_found_at_some_distances(distance: int) -> None:
    """If a slot at one of these distances has an object, all that is behind the hole is listed."""
    near, last = [LONG + 1, LONG + 2], LONG + 2
    behind = [last + distance, last + 1 + distance, last + 992 + distance]
    store = Local(with_slots(*near, *behind))
    assert list(slots_after(store, FORM, LONG)) == [*near, *behind]


def test_what_is_elsewhere_behind_a_hole_of_a_long_log_is_left_to_audits() -> None:
    """A bucket's listing has it. In a folder the audit finds it that lists the log, and `verify`."""
    near, far = [LONG + 1, LONG + 2], LONG + FAR
    assert list(slots_after(MemoryStore(with_slots(*near, far)), FORM, LONG)) == [*near, far]
    assert list(slots_after(Local(with_slots(*near, far)), FORM, LONG)) == near


@pytest.mark.parametrize("end", [0, 8, LONG])
def test_all_that_is_behind_a_hole_of_a_short_log_is_found(end: int) -> None:
    """It is listed, so how far away something lies does not matter."""
    behind = [end + FAR, end + 3 * FAR, 10**12 - 1]
    store = Local(with_slots(*range(end), *behind))
    assert list(slots_after(store, FORM, end - 1)) == behind
    assert [name for name, _ in store.calls] == ["list"]


@pytest.mark.parametrize(("low", "looked_for", "listings"), [(-1, 0, 1), (99, 0, 1), (LONG, 10_000, 1)])
def test_many_new_slots_are_listed_once(low: int, looked_for: int, listings: int) -> None:
    """So that a log without an index is not looked through name by name."""
    store = Local(with_slots(*range(25_000)))
    assert list(slots_after(store, FORM, low)) == list(range(low + 1, 25_000))
    assert store.asked("exists") <= looked_for
    assert store.asked("list") <= listings


@pytest.mark.parametrize("hinted", [True, False])
@pytest.mark.parametrize("size", [1, 400, LONG])
def test_the_end_of_a_short_log_takes_a_listing(size: int, *, hinted: bool) -> None:
    """That is less work than to look for all that may be behind it: a short archive makes few calls."""
    store = Local(with_slots(*range(size)))
    assert find_last(store, FORM, lambda *_: True, size if hinted else 0)[0] == size - 1
    assert store.asked("list") == 1
    assert store.asked("exists") <= (2 if hinted else 2 * LONG.bit_length())


@pytest.mark.parametrize("hinted", [True, False])
def test_an_end_is_found_without_a_listing(*, hinted: bool) -> None:
    """In a folder that takes as many calls at any age of a long log, but for a logarithm of them without a hint."""
    counts = []
    for size in (LONG + 1, 10 * LONG):
        store = Local(with_slots(*range(size)))
        assert find_last(store, FORM, lambda *_: True, size - 100 if hinted else 0)[0] == size - 1
        assert store.asked("list") == 0
        counts.append(len(store.calls))
    assert counts[1] <= counts[0] + (0 if hinted else 16)


@dataclass(frozen=True)
class Chain:
    """A log: its statements' bytes, its archive's id and its keys."""

    log: Log
    archive: str
    keys: Trust = field(repr=False)
    statements: list[bytes] = field(repr=False)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    growing = Growing(tmp_path_factory.mktemp("chain"))
    growing.append(40)
    store, log = open_store(str(growing.folder)), parse_log_text(growing.log)
    assert log is not None
    data = [store.read(manifest_key(log, slot), limit=limits.FILE_BYTES) for slot in range(growing.size)]
    return Chain(log, read_archive(store).id, open_trust([f"file:{growing.keyring}"]), data)


@pytest.mark.parametrize("kind", [Local, MemoryStore])
@given(data=st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_garbage_behind_an_end_moves_no_end(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, kind: type[MemoryStore], data: st.DataObject
) -> None:
    """Wherever it lies and whatever is guessed: that which follows at once is passed over, and no other counts."""
    monkeypatch.setattr(last_slot, "_LISTED", 4)
    monkeypatch.setattr(slots, "_FEW", data.draw(st.sampled_from([0, 9, LONG]), "listed"))
    end = data.draw(st.integers(0, len(chain.statements)), "end")
    # A search without a guess looks at slots that are two less than a power of two.
    garbage = st.integers(0, 120) | st.integers(2, 12).map(lambda power: 2**power - 2)
    slots_with = dict.fromkeys(data.draw(st.sets(garbage.filter(lambda slot: slot >= end)), "garbage"), b"garbage")
    slots_with |= dict(enumerate(chain.statements[:end]))
    store = kind({manifest_key(chain.log, slot): content for slot, content in slots_with.items()})
    form = statements_of(chain.log)
    judge = Judge(store, chain.log, form, chain.archive, chain.keys)
    tip = find_end(store, form, judge.holds, data.draw(st.integers(0, 99), "hint"))
    size = next(slot for slot in itertools.count() if slot not in slots_with)
    assert (tip.head.size, tip.size, len(tip.passed_over)) == (end, size, size - end)
    assert not tip.is_last or max(slots_with, default=-1) < size


@pytest.mark.parametrize("kind", [Local, MemoryStore])
def test_much_garbage_behind_an_end_costs_little(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, kind: type[MemoryStore]
) -> None:
    """However many slots have some, a search reads a few of them: those within what may be passed over."""
    monkeypatch.setattr(last_slot, "_LISTED", 4)
    form, calls = statements_of(chain.log), []
    for many in (1_000, 10_000):
        contents = dict.fromkeys(range(42, 42 + 4 * many, 4), b"garbage") | dict(enumerate(chain.statements))
        store = kind({manifest_key(chain.log, slot): content for slot, content in contents.items()})
        judge = Judge(store, chain.log, form, chain.archive, chain.keys)
        assert find_end(store, form, judge.holds).head.size == len(chain.statements)
        calls.append(sum(name != "exists" for name, _ in store.calls))
    assert calls[1] < calls[0] + 40


@pytest.mark.parametrize("kind", [Local, MemoryStore])
def test_a_large_object_behind_an_end_is_not_read_whole(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, kind: type[MemoryStore]
) -> None:
    """It follows nothing, so that it is too large to be passed over ends no search."""
    monkeypatch.setattr(reader, "_MOST_HASHED", 1_000)
    monkeypatch.setattr(last_slot, "_LISTED", 4)
    form, large = statements_of(chain.log), bytes(limits.FILE_BYTES + 1)
    for slot in (42, 46, 50, 62):
        contents = dict(enumerate(chain.statements)) | {slot: large}
        store = kind({manifest_key(chain.log, number): content for number, content in contents.items()})
        judge = Judge(store, chain.log, form, chain.archive, chain.keys)
        assert find_end(store, form, judge.holds).size == len(chain.statements)


def test_a_link_or_a_folder_is_no_slot(tmp_path: Path) -> None:
    """What has the name of a slot and is no plain file ends a log, as in a listing."""
    store = FolderStore(str(tmp_path))
    for number in range(3):
        store.create(manifest_key(LOG, number), b"garbage")
    store.create(f"{manifest_key(LOG, 3)}/x", b"")
    assert list(slots_after(store, FORM, -1)) == [0, 1, 2]


def test_checkpoints_show_what_is_far_behind_a_hole(
    aged: tuple[AgedStore, AgedStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a long log is not listed, in a folder, a writer refuses all the same, and a reader is warned."""
    monkeypatch.setattr(slots, "_FEW", 500)
    copy_to_folder(aged[0], tmp_path, 0)
    end = aged[0].spec.statements
    # Fewer are left than between two of the slots that are looked for.
    for number in range(1000, end - 30):
        (tmp_path / manifest_key(LOG, number)).unlink()
    store, trust = FolderStore(str(tmp_path)), open_trust([aged[0].keys])
    judge = Judge(store, LOG, FORM, aged[0].spec.archive, trust)
    assert list(slots_after(store, FORM, 990)) == list(range(991, 1000))
    with pytest.raises(HeadRollback, match="the head has size 1000, but there is a checkpoint"):
        find_checked_tip(store, LOG, FORM, judge, trust)
    message = beyond_end(store, LOG, FORM, judge, 1000, ())
    assert message is not None
    assert f"a checkpoint knows size {end}" in message
