"""A file is replaced whole, or it is as it was, and nothing unfinished is left."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from custody.store.durable import create_file, make_folders, replace_file


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that matter, in order; `fsync` says of what."""
    seen: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **more: Any) -> Any:
            seen.append(f"fsync {Path(f'/proc/self/fd/{arguments[0]}').readlink().name}" if name == "fsync" else name)
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link"):
        spy(name)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_synced_in_order(tmp_path: Path, calls: list[str]) -> None:
    """The bytes are synced before the file has its name, and the name is synced after it."""
    replace_file(tmp_path / "file", b"new")
    assert [call.split(".")[0].rstrip() for call in calls] == ["fsync", "replace", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_and_bytes(tmp_path: Path, umask: int) -> None:
    """The new bytes replace the old ones, with the mode that was asked for, whatever the umask."""
    path = tmp_path / "file"
    path.write_bytes(b"a longer old file")
    before = os.umask(umask)
    try:
        replace_file(path, b"new", mode=0o640)
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_create_refuses(tmp_path: Path) -> None:
    """What is there already is not replaced where a file is to be made."""
    path = tmp_path / "file"
    replace_file(path, b"first", create=True)
    with pytest.raises(FileExistsError):
        replace_file(path, b"second", create=True)
    with pytest.raises(FileExistsError):
        create_file(str(path), b"third")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_what_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A full disk or a failing one leaves the old file, and no other."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            replace_file(path, b"new")
        if step != "replace":
            with pytest.raises(OSError, match="No space"):
                create_file(str(tmp_path / "other"), b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_folders(tmp_path: Path) -> None:
    """All folders that are missing are made; one that is there already is none too many."""
    for _ in range(2):
        make_folders(str(tmp_path / "a" / "b" / "c"))
    assert (tmp_path / "a" / "b" / "c").is_dir()
