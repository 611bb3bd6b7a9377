"""No false alarm from what is written between two listings of a verification; and no name that a listing loses."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.keys.trust import Trust, open_trust
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, Store
from custody.verify.report import Report
from custody.verify.run import verify
from custody.verify.scope import Scope
from tests.helpers.archives import Builder
from tests.helpers.sample import Growing
from tests.helpers.scene import KEYS


class Meanwhile:
    """A store to which something is written right before a listing begins."""

    def __init__(self, store: Store, prefix: str, write: Callable[[], object]) -> None:
        self._store = store
        self._prefix = prefix
        self._write: Callable[[], object] | None = write
        self.url = store.url

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        if prefix == self._prefix and self._write:
            write, self._write = self._write, None
            write()
        return self._store.list(prefix, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def judge(growing: Growing, around: Callable[[Store], Store] = lambda store: store, **more: Any) -> Report:
    trust = open_trust([f"file:{growing.keyring}"])
    return verify(around(open_store(str(growing.folder))), trust, now=datetime.now(UTC), workers=0, **more)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("contents", [True, False], ids=["whole", "chain alone"])
@pytest.mark.parametrize("prefix", ["", "manifests/", "audits/"])
@pytest.mark.parametrize("what", ["a log goes on", "a log begins"])
def test_written_between_listings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, prefix: str, *, contents: bool, live: bool
) -> None:
    """Whatever a drain writes while the archive is listed, and whichever part is listed then, nothing is alarmed."""
    # So many statements are written: they are looked for from where the log ended, and not from its beginning.
    monkeypatch.setattr("custody.verify.orphans._LATER_LIMIT", 4)
    growing = Growing(tmp_path)
    growing.append(3)
    writing = growing if what == "a log goes on" else Growing(tmp_path, partition=1, begun=growing.begun)

    def around(store: Store) -> Store:
        return Meanwhile(store, prefix, lambda: writing.append(4))

    report = judge(growing, around, scope=Scope(contents=contents), live=live)
    assert [str(one) for one in report.findings] == []
    assert judge(growing).exit_code == 0


@pytest.mark.parametrize("first", [0, 100])
def test_one_event_written_meanwhile(tmp_path: Path, first: int) -> None:
    """The event right behind what a log held when it was listed, be it the first one ever, alarms nothing either."""
    writing = Builder(tmp_path, next_offset=first).init()
    writing.append(0)
    store: Any = Meanwhile(open_store(str(tmp_path)), "", lambda: writing.append(1))
    report = verify(store, Trust(keys=KEYS), now=writing.clock, workers=0, scope=Scope(contents=False))
    assert [str(one) for one in report.findings] == []


@pytest.mark.parametrize(
    "folder",
    [b"x\xff", b"events/x\xff", b"events/2026/x\xff/y", b"quarantine/\xfe", b"manifests/x\xff/0", b"audits/\xff"],
)
@pytest.mark.parametrize("contents", [True, False], ids=["whole", "chain alone"])
def test_folders_that_are_no_text(tmp_path: Path, folder: bytes, *, contents: bool) -> None:
    """An object in a folder whose name is no UTF-8 is found as any other foreign one, by a name that can be read."""
    growing = Growing(tmp_path)
    growing.append(2)
    path = growing.folder / os.fsdecode(folder)
    path.mkdir(parents=True)
    (path / "planted").touch()
    report = judge(growing, scope=Scope(contents=contents))
    assert [one.finding for one in report.findings] == ["foreign"]
    assert report.findings[0].key == folder.decode("utf-8", "backslashreplace") + "/planted"
    assert report.exit_code == 10
