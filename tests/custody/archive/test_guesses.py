"""Where logs end is found with few requests, whatever is guessed."""

import shutil
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path

import pytest

from custody.archive.forms import AUDITS, statements_of
from custody.archive.guesses import checkpoints_back, claimed_sizes
from custody.archive.last_slot import find_last
from custody.archive.reader import checkpoint_sizes
from custody.archive.search import find_statement
from custody.archive.show import show
from custody.archive.trusted import Judge, find_trusted_tip
from custody.format import limits
from custody.format.layout import AUDIT_LOG, Log, checkpoint_key, manifest_key
from custody.keys.trust import open_trust
from custody.store.folder import FolderStore
from custody.store.protocol import Store
from tests.helpers.aged import DAY, EACH, FIRST_OFFSET, AgedStore
from tests.helpers.memory import MemoryStore
from tests.helpers.misled import mislead

LOG = Log("audit", 0)
SIZES = (0, 1, 2, 999, 1000, 1001, 1999, 2000, 3500, 40_000)


def anything(*_: object) -> bool:
    return True


@pytest.mark.parametrize("size", SIZES)
def test_the_last_slot_is_found_whatever_is_guessed(size: int) -> None:
    """A right guess takes one request, a guess of yesterday four at most, and none takes O(log n)."""
    store = MemoryStore({manifest_key(LOG, number): b"garbage" for number in range(size)})
    for hint in {0, 1, size // 2, max(size - DAY, 0), size, size + 1, 10 * size}:
        store.calls.clear()
        assert find_last(store, statements_of(LOG), anything, hint)[0] == size - 1
        assert len(store.calls) <= {max(size - DAY, 0): 4, size: 1 if size else 4}.get(hint, 16)


def test_as_many_slots_as_nights_of_seven_years_are_listed(aged: tuple[AgedStore, AgedStore]) -> None:
    """Without a guess, the end of 2,890 audits or statements takes a request for each 1,000."""
    store = aged[0]
    store.requests.clear()
    assert find_last(store, statements_of(LOG), anything)[0] == store.spec.statements - 1 == 2889
    assert store.requests.by_kind == {"LIST": 3}


def test_a_hole_is_found_where_a_search_would_jump_over_it() -> None:
    """What lies after a hole near the end of a long log is not taken for its end."""
    for size, gap in product((1000, 1500, 3000), (1, 400)):
        taken = [*range(size), *range(size + gap, size + gap + 3000)]
        store = MemoryStore({manifest_key(LOG, number): b"garbage" for number in taken})
        assert find_last(store, statements_of(LOG), anything, size)[0] == size - 1


def test_a_folder_lists_in_any_order(tmp_path: Path) -> None:
    """In a folder the last slot is found too, with garbage after it."""
    store = FolderStore(str(tmp_path))
    for number in [*range(30), 40, 2000, 3000]:
        store.create(manifest_key(LOG, number), b"garbage")
    for hint in (0, 7, 30, 31, 50):
        assert find_last(store, statements_of(LOG), anything, hint)[0] == 29


def test_the_newest_audit_tells_how_long_logs_are(aged: tuple[AgedStore, AgedStore]) -> None:
    """It is that of the newest audit, with the log of audits, and takes two requests at any age."""
    for store in aged:
        store.requests.clear()
        days = store.spec.statements // DAY
        assert claimed_sizes(store) == {str(LOG): days * DAY, str(AUDIT_LOG): days}
        assert store.requests.by_kind == {"LIST": 1, "GET": 1}


def test_an_archive_without_readable_audits_tells_nothing() -> None:
    """Garbage is no guess, and no error."""
    assert claimed_sizes(MemoryStore()) == {str(AUDIT_LOG): 0}
    assert claimed_sizes(MemoryStore({AUDITS.key(0): b"garbage"})) == {}


def test_checkpoints_come_from_the_newest_back(aged: tuple[AgedStore, AgedStore]) -> None:
    """They are all of them, in whatever stretches they are listed; the newest takes one request."""
    store: Store
    for store in aged:
        sizes = checkpoint_sizes(store, LOG)
        for near in (0, 5, sizes[-1] // 2, sizes[-1], 100 * sizes[-1]):
            assert list(checkpoints_back(store, LOG, near)) == sizes[::-1]
        store.requests.clear()
        assert next(checkpoints_back(store, LOG, sizes[-1])) == sizes[-1]
        assert store.requests.by_kind == {"LIST": 1}


def test_checkpoints_of_a_folder_come_from_the_newest_back(tmp_path: Path) -> None:
    """A folder lists in any order."""
    store = FolderStore(str(tmp_path))
    sizes = [1, 60, 5000, 90_000]
    for size in sizes:
        store.create(checkpoint_key(LOG, size), b"garbage")
    assert list(checkpoints_back(store, LOG, 90_000)) == sizes[::-1]


END = 2 * DAY + 10
MISLED: Mapping[str, tuple[Collection[int], bytes]] = {
    "garbage behind a hole": ([5000], b"garbage"),
    "more garbage than may be passed over": (range(5000, 5000 + limits.PASSED_OVER + 2), b"garbage"),
    "garbage at the end and behind a hole": ([END, END + 1, 5000], b"garbage"),
    "a statement of another slot": ([5000], b""),
}


@pytest.mark.parametrize("kind", MISLED)
def test_what_nobody_signed_changes_no_answer(aged: tuple[AgedStore, AgedStore], tmp_path: Path, kind: str) -> None:
    """With an unsigned audit, and with anything in the slot that it leads to, all is found that is found without."""
    store = AgedStore.opened(shutil.copytree(aged[0].folder, tmp_path / "archive"))
    slots, garbage = MISLED[kind]
    mislead(store, LOG, slots, garbage or store.read(manifest_key(LOG, 7), limit=limits.FILE_BYTES))
    trust = open_trust([store.keys])
    hint = claimed_sizes(store)[str(LOG)]
    assert hint == max(slots) + 1
    tip = find_trusted_tip(store, LOG, store.spec.archive, trust, hint)
    assert tip == find_trusted_tip(store, LOG, store.spec.archive, trust)
    assert tip.head.size == END
    holds = Judge(store, LOG, statements_of(LOG), store.spec.archive, trust).may_stand
    offset = FIRST_OFFSET + 7 * EACH
    assert find_statement(store, LOG, offset, holds, hint) == find_statement(store, LOG, offset, holds)
    assert show(store, str(LOG), trust).position["sequence"] == END - 1
    assert show(store, f"{LOG}@{offset}", trust).position["sequence"] == 7
