"""What a run of detection asks the archive for, by log: as little for many logs as can be."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.reader import read_archive
from custody.archive.slots import sequence_of
from custody.format.layout import manifest_key, parse_log_text
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.detect.reading import Reading
from tests.helpers.memory import MemoryStore
from tests.helpers.remote import Together
from tests.helpers.sample import Growing

LOGS = 3
STATEMENTS = 5
BEGUN = datetime(2026, 3, 2, 12, tzinfo=UTC)


class Archive:
    """An archive of several logs, which is read from memory."""

    def __init__(self, folder: Path, logs: int = LOGS, statements: int = STATEMENTS) -> None:
        self.logs = [Growing(folder, partition, BEGUN) for partition in range(logs)]
        for log in self.logs:
            log.append(statements)
        self.folder, self.trust = self.logs[0].folder, open_trust([f"file:{self.logs[0].keyring}"])
        self.id = read_archive(open_store(str(self.folder))).id

    def store(self) -> MemoryStore:
        return MemoryStore.of_folder(self.folder)

    def reach(self, store: Store, positions: dict[str, int]) -> tuple[list[tuple[str, int]], Reading]:
        """Return where each log is after all chunks, and the reading."""
        reading = Reading(store, self.id, self.trust)
        reached = dict(positions)
        day = timedelta(days=1)
        for chunk in reading.chunks(positions, None, slack=day, late=day):
            reached |= chunk.positions
        return sorted(reached.items()), reading

    def read(
        self, store: MemoryStore, positions: dict[str, int]
    ) -> tuple[list[tuple[str, int]], Reading, Counter[str]]:
        """Return the same, and the calls about statements."""
        store.calls.clear()
        reached, reading = self.reach(store, positions)
        calls = Counter(name for name, key in store.calls if key.startswith("manifests/audit.grows/"))
        return reached, reading, calls


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(tmp_path_factory.mktemp("detect") / "site")


def test_a_log_without_news_takes_one_listing(archive: Archive) -> None:
    """It shows that nothing follows, nothing lies behind a hole, and that the position is true."""
    at_end = {log.log: STATEMENTS for log in archive.logs}
    reached, reading, calls = archive.read(archive.store(), at_end)
    assert (reached, reading.problems) == (sorted(at_end.items()), {})
    # One more lists the logs.
    assert calls == {"list": LOGS + 1}


@pytest.mark.parametrize("position", range(STATEMENTS))
def test_what_is_new_takes_a_read_each(archive: Archive, position: int) -> None:
    """After its last statement a log is not looked at again."""
    reached, reading, calls = archive.read(archive.store(), {log.log: position for log in archive.logs})
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})
    assert calls == {"list": LOGS + 1, "read": LOGS * (STATEMENTS - position)}


def test_what_is_sealed_meanwhile_is_for_the_next_run(archive: Archive) -> None:
    """A statement that comes after the listing is not lost."""
    store = archive.store()
    late = {key: store.objects.pop(key) for key in list(store.objects) if key.endswith(f"{STATEMENTS - 1:012}.json")}
    assert len(late) == LOGS

    def seal(what: str, key: str) -> None:
        if what == "read" and key.startswith("manifests/"):
            store.objects.update(late)

    store.before = seal
    first, reading, _ = archive.read(store, {})
    assert (first, reading.problems) == (sorted((log.log, STATEMENTS - 1) for log in archive.logs), {})
    second, reading, _ = archive.read(store, dict(first))
    assert (second, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})


@pytest.mark.parametrize("few", [0, 5000])
@pytest.mark.parametrize("position", [0, 1, STATEMENTS - 1, STATEMENTS])
def test_a_folder(archive: Archive, position: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder the same is found, whether it is listed or its slots are looked for."""
    monkeypatch.setattr("custody.archive.slots._FEW", few)
    positions = {log.log: position for log in archive.logs}
    reached, reading = archive.reach(open_store(str(archive.folder)), positions)
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})


def test_the_statement_before_a_position_is_gone(archive: Archive) -> None:
    """Later ones show that the position is true."""
    store = archive.store()
    log = parse_log_text(archive.logs[0].log)
    assert log is not None
    del store.objects[manifest_key(log, 2)]
    reached, reading, _ = archive.read(store, {str(log): 3})
    assert reading.problems == {}
    assert dict(reached)[str(log)] == STATEMENTS


@pytest.mark.parametrize("listed", [1, 100])
def test_a_slot_that_was_passed_over(tmp_path: Path, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed statement that passes over it ends the problem."""
    monkeypatch.setattr("tasks.detect.listed._LISTED", listed)
    archive = Archive(tmp_path / "site")
    growing = archive.logs[0]
    log = parse_log_text(growing.log)
    assert log is not None
    (archive.folder / manifest_key(log, STATEMENTS)).write_bytes(b"garbage")
    growing.append(2)
    reached, reading, _ = archive.read(archive.store(), {growing.log: STATEMENTS})
    assert reading.problems == {}
    assert dict(reached)[growing.log] == STATEMENTS + 3


@pytest.mark.parametrize("listed", [1, 2, 3, 100])
def test_more_than_is_listed_at_once(archive: Archive, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is read to the last statement, however many there are."""
    monkeypatch.setattr("tasks.detect.listed._LISTED", listed)
    reached, reading, _ = archive.read(archive.store(), {})
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})


@pytest.mark.parametrize("listed", [1, 2, 3, 100])
def test_what_cannot_be_read_is_named(archive: Archive, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole, garbage, garbage at the end, and a position beyond the end are problems, and stop nothing."""
    monkeypatch.setattr("tasks.detect.listed._LISTED", listed)
    store = archive.store()
    first, second, third = (log for log in map(parse_log_text, (each.log for each in archive.logs)) if log is not None)
    del store.objects[manifest_key(first, 2)]
    store.objects[manifest_key(first, STATEMENTS)] = b"garbage"
    store.objects[manifest_key(second, 3)] = b"garbage"
    positions = {str(first): 1, str(second): 3, str(third): STATEMENTS + 2}
    reached, reading, _ = archive.read(store, positions)
    assert reached == [(str(first), STATEMENTS), (str(second), STATEMENTS), (str(third), STATEMENTS + 2)]
    assert sorted(reading.problems) == [
        (str(first), 2), (str(first), STATEMENTS), (str(second), 3), (str(third), STATEMENTS + 2),
    ]  # fmt: skip
    assert "fewer: find out who wrote it" in reading.problems[str(third), STATEMENTS + 2]


def test_many_logs_are_read_together(tmp_path: Path) -> None:
    """However many logs there are, while one statement is looked at, others are on the way."""
    archive = Archive(tmp_path / "site", logs=20)
    store, together = archive.store(), Together("manifests/")
    real = store.read

    def read(key: str, **how: Any) -> bytes:
        # The first statement of each log is read in another way.
        late = key.startswith("manifests/") and sequence_of(key) not in {None, 0, 1}
        return together.ask(key, lambda: real(key, **how)) if late else real(key, **how)

    store.read = read  # type: ignore[method-assign]
    reached, reading, _ = archive.read(store, {log.log: 1 for log in archive.logs})
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})
    assert together.one_by_one == []
