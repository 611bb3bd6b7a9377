"""A query of several logs in a bucket reads some objects before their turn: it gives the rows and warnings of a folder.

The bucket is a folder that passes for one.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import custody
from custody.store.folder import FolderStore
from tests.helpers.remote import URL, pass_for_a_bucket
from tests.helpers.sample import Growing, event

LENGTHS = (3, 1, 6, 2, 5)
TABLES = ("events", "manifests", "batches", "quarantined", "warnings")
BEGUN = datetime.now(UTC) - timedelta(minutes=60)


def content(offset: int) -> bytes:
    """Return an event; now and then a record that is none."""
    return b"no event" if offset % 7 == 3 else event(offset)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of five logs, of which two at a time are asked for. Some segments are too large for that."""
    logs = [Growing(tmp_path, partition, BEGUN) for partition in range(len(LENGTHS))]
    for log, length in zip(logs, LENGTHS, strict=True):
        log.append(length, content)
        log.append(1, each=60)
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{logs[0].keyring}")
    monkeypatch.setattr("custody.query.reading._LOGS", 2)
    monkeypatch.setattr("custody.query.reading._SMALL_BYTES", 1000)
    sizes = [path.stat().st_size for path in logs[0].folder.glob("events/**/*.gz")]
    assert min(sizes) < 1000 < max(sizes)
    return logs[0].folder


def rows(archive: str, **period: Any) -> dict[str, list[tuple[Any, ...]]]:
    connection = custody.connect(archive, **period)
    made = {table: connection.table(table).order("ALL").fetchall() for table in TABLES}
    connection.close()
    return made


@pytest.mark.parametrize("since", [None, BEGUN + timedelta(minutes=2, seconds=30)], ids=["all", "since"])
@pytest.mark.parametrize("damaged", [False, True])
def test_rows_and_warnings_are_those_of_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, since: datetime | None, damaged: bool
) -> None:
    """Whatever is damaged, and whatever the period is. Of what is sound, nothing is read twice."""
    if damaged:
        segments = sorted(folder.glob("events/**/*audit.grows-0-*"))
        segments[0].unlink()
        segments[1].write_bytes(b"\0" * segments[1].stat().st_size)
        (folder / "manifests/audit.grows/1/000000000000.json").write_bytes(b"{}\n{}\n")
        (folder / "manifests/audit.grows/2/000000000002.json").unlink()
        next(folder.glob("quarantine/**/*audit.grows-4-*")).unlink()
    expected = rows(str(folder), since=since)
    assert len(expected["events"]) > 100
    assert bool(expected["warnings"]) == damaged
    reads: Counter[str] = Counter()
    real = FolderStore.read

    def read(store: FolderStore, key: str, **how: Any) -> bytes:
        reads[key] += 1
        return real(store, key, **how)

    monkeypatch.setattr(FolderStore, "read", read)
    pass_for_a_bucket(monkeypatch, folder)
    assert rows(URL, since=since) == expected
    asked = {key: times for key, times in reads.items() if key.startswith(("manifests/", "events/", "quarantine/"))}
    assert len(asked) > 20
    assert damaged or set(asked.values()) == {1}
