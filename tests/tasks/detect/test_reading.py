"""What a run of detection asks the archive for, by log: as little for many logs as can be."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from custody.archive.reader import read_archive
from custody.format.layout import manifest_key, parse_log_text
from custody.keys.trust import Trust, open_trust
from custody.store.open import open_store
from tasks.detect.reading import Reading
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

LOGS = 3
STATEMENTS = 5
BEGUN = datetime(2026, 3, 2, 12, tzinfo=UTC)


class Archive:
    """An archive of several logs in memory, which counts its calls about statements."""

    def __init__(self, folder: Path) -> None:
        self.logs = [Growing(folder, partition, BEGUN) for partition in range(LOGS)]
        for log in self.logs:
            log.append(STATEMENTS)
        self.folder, self.trust = self.logs[0].folder, open_trust([f"file:{self.logs[0].keyring}"])
        self.id = read_archive(open_store(str(self.folder))).id

    def store(self) -> MemoryStore:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return MemoryStore({path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files})

    def read(
        self, store: MemoryStore, positions: dict[str, int], trust: Trust | None = None
    ) -> tuple[list[tuple[str, int]], Reading, Counter[str]]:
        """Return where each log is after all chunks, the reading, and the calls about statements."""
        reading = Reading(store, self.id, trust or self.trust)
        store.calls.clear()
        reached = dict(positions)
        day = timedelta(days=1)
        for chunk in reading.chunks(positions, None, slack=day, late=day):
            reached |= chunk.positions
        calls = Counter(name for name, key in store.calls if key.startswith("manifests/audit.grows/"))
        return sorted(reached.items()), reading, calls


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
    """After its last statement a log is not looked at again: what is sealed meanwhile is for the next run."""
    reached, reading, calls = archive.read(archive.store(), {log.log: position for log in archive.logs})
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})
    assert calls == {"list": LOGS + 1, "read": LOGS * (STATEMENTS - position)}


@pytest.mark.parametrize("listed", [1, 2, 3, 100])
def test_more_than_is_listed_at_once(archive: Archive, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is read to the last statement, however many there are."""
    monkeypatch.setattr("tasks.detect.reading._LISTED", listed)
    reached, reading, _ = archive.read(archive.store(), {})
    assert (reached, reading.problems) == (sorted((log.log, STATEMENTS) for log in archive.logs), {})


@pytest.mark.parametrize("listed", [1, 2, 3, 100])
def test_what_cannot_be_read_is_named(archive: Archive, listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole, garbage, garbage at the end, and a position beyond the end are problems, and stop nothing."""
    monkeypatch.setattr("tasks.detect.reading._LISTED", listed)
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
