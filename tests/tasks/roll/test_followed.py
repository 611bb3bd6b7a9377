"""A roll reads the audits and statements that came since the last one, and believes what that one believed."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from custody.archive import signed_notes
from custody.format.layout import Log
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from tasks.roll.expire import expire, read_clocks
from tasks.roll.followed import EVERY, FOLDER, FORMAT, Followed
from tasks.settings import Settings
from tests.helpers.aged import DAY, AgedStore, check_flat, use_aged
from tests.helpers.misled import mislead

Aged = tuple[AgedStore, AgedStore]


@pytest.fixture
def copies(aged: Aged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aged:
    """Archives of two days and of twenty, into which a roll may put."""
    use_aged(monkeypatch)
    young, old = (AgedStore.opened(shutil.copytree(store.folder, tmp_path / store.folder.name)) for store in aged)
    return young, old


def settings(store: AgedStore) -> Settings:
    return Settings(archive=store.url, keys=store.keys)


def test_a_roll_costs_the_same_at_ten_times_the_age(copies: Aged) -> None:
    """It reads neither old audits nor old statements again."""
    for store in copies:
        read_clocks(settings(store), keep=True)

    def roll(store: AgedStore) -> None:
        assert list(expire(settings(store), datetime.now(UTC), dry_run=True)) == []

    check_flat(roll, *copies)
    assert copies[1].requests.total < 60


def test_a_note_is_written_once_in_many_audits(copies: Aged) -> None:
    """The first roll writes one, the next ones do not, and a dry run never does."""
    store = copies[1]
    read_clocks(settings(store))
    assert list(store.list(FOLDER)) == []
    for _ in range(2):
        read_clocks(settings(store), keep=True)
        assert [info.key for info in store.list(FOLDER)] == [f"{FOLDER}{store.spec.statements // DAY:012}"]
    assert EVERY > 1


def test_what_nobody_signed_stops_no_roll(copies: Aged) -> None:
    """An audit without a valid signature, and an object where it says that the log ends, change no clock."""
    store = copies[0]
    before = read_clocks(settings(store))
    mislead(store, Log("audit", 0), [5000], b"garbage")
    assert read_clocks(settings(store)) == before
    assert list(expire(settings(store), datetime.now(UTC), dry_run=True)) == []


def resigned(note: Followed, keys: str, **changes: object) -> bytes:
    signers = open_signers(keys, datetime.now(UTC))
    return signed_notes.seal(msgspec.structs.replace(note, **changes), FORMAT, signers.both())


def other_keys(store: AgedStore, note: Followed, folder: Path) -> bytes:
    new_keyring(folder / "other.json", store.spec.begin)
    return resigned(note, f"file:{folder / 'other.json'}")


BAD: dict[str, Callable[[AgedStore, Followed, Path], bytes]] = {
    "garbage": lambda *_: b"garbage",
    "keys that nobody trusts": other_keys,
    "another archive": lambda store, note, _: resigned(note, store.keys, archive="0" * 14 + "4" + "0" * 21),
    "other audits": lambda store, note, _: resigned(note, store.keys, root="0" * 64),
    "another number of audits": lambda store, note, _: resigned(note, store.keys, audits=note.audits - 1),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_note_that_does_not_count_is_not_believed(copies: Aged, tmp_path: Path, kind: str) -> None:
    """The history is followed from its beginning, as if there were no note."""
    store = copies[0]
    given = settings(store)
    without = read_clocks(given)
    store.requests.clear()
    read_clocks(given)
    many = store.requests.total
    read_clocks(given, keep=True)
    (info,) = store.list(FOLDER)
    line = store.read(info.key, limit=info.size).split(b"\n")[0]
    # A note that was believed would be seen by its time.
    note = msgspec.structs.replace(msgspec.json.decode(line, type=Followed), time="2000-01-01T00:00:00.000000Z")
    store.remove(info.key)
    store.create(info.key, resigned(note, store.keys))
    assert read_clocks(given) != without
    store.remove(info.key)
    store.create(info.key, BAD[kind](store, note, tmp_path))
    store.requests.clear()
    assert read_clocks(given) == without
    assert store.requests.total >= many
