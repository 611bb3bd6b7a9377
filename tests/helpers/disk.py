"""The operating system as a module calls it: fails or crashes at the n-th call, and knows what a crash leaves on disk.

Put one in place of a module's `os`. No sync reaches the real disk, so that thousands of runs are cheap.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Left = Literal["synced", "half", "zeros", "all"]
"""What a crash leaves of bytes that were written and not synced."""

Image = dict[str, dict[str, bytes]]
"""The folders of a root, and their files."""

CHANGES = frozenset({"create", "mkdir", "write", "fdatasync", "fsync", "ftruncate", "unlink", "rename", "rmdir"})
"""Calls that change what is on disk. To open a file with O_CREAT is to `create` it."""
CALLS = frozenset({*CHANGES, "open", "read", "listdir", "scandir", "stat", "fstat"})


class Crash(BaseException):
    """The machine stopped."""


class Disk:
    """Passes calls on to `os`, counts them, and remembers which contents and names were synced."""

    def __init__(self, fail_at: int = 0, error: int | None = None) -> None:
        """Take the number of the call that fails, from 1 on, and its error number. Without one the machine crashes."""
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._error = error
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._kept: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._wrapped(name, call) if name in CALLS else call

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.calls.append("create" if name == "open" and args[1] & os.O_CREAT else name)
            fails = len(self.calls) == self._fail_at
            if fails and name == "write":
                os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            if fails and self._error is not None:
                raise OSError(self._error, os.strerror(self._error))
            if fails or (self._fail_at and self._error is None and len(self.calls) > self._fail_at):
                raise Crash
            if name in {"fsync", "fdatasync"}:
                return self._sync(*args)
            result = call(*args, **options)
            if name == "open":
                self._keep(result)
            return result

        return wrapped

    def _keep(self, descriptor: int) -> None:
        """Open a file once more, so that its inode's number is not given to another."""
        inode = os.fstat(descriptor).st_ino
        if inode not in self._kept:
            self._kept[inode] = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = names(descriptor)
        else:
            self._contents[status.st_ino] = content(self._kept[status.st_ino])

    def known(self, root: Path) -> None:
        """Take all that is below a folder as synced."""
        for path in (root, *root.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            self._keep(descriptor)
            self._sync(descriptor)
            os.close(descriptor)

    def left(self, root: Path, left: Left, *, names_synced: bool) -> Image:
        """Return what a crash leaves of `root`: its synced names or its present ones, and their contents."""
        present = {path.stat().st_ino: self._present(path) for path in root.iterdir()}
        listed = self._names.get(root.stat().st_ino, {}) if names_synced else self._present(root)
        folders = self._names if names_synced else present
        return {
            name: {file: self._left(inode, left) for file, inode in folders.get(folder, {}).items()}
            for name, folder in listed.items()
        }

    def _left(self, inode: int, left: Left) -> bytes:
        synced = self._contents.get(inode, b"")
        now = content(self._kept[inode])
        if not now.startswith(synced):
            # Cut back, and that was not synced.
            return synced
        rest = now[len(synced) :]
        return synced + {"synced": b"", "half": rest[: len(rest) // 2], "zeros": bytes(len(rest)), "all": rest}[left]

    @staticmethod
    def _present(path: Path) -> dict[str, int]:
        return {child.name: child.stat().st_ino for child in path.iterdir()}

    @property
    def kept(self) -> set[int]:
        """Return the descriptors of what is kept open."""
        return set(self._kept.values())

    def forget(self) -> None:
        """Close what was kept open."""
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()


def write_image(root: Path, image: Image) -> None:
    """Write folders and files, as their owner would."""
    root.mkdir(mode=0o700)
    for name, files in image.items():
        (root / name).mkdir(mode=0o700)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
            (root / name / file).chmod(0o600)


def names(descriptor: int) -> dict[str, int]:
    """Return the names in an open folder, and their inodes."""
    return {name: os.stat(name, dir_fd=descriptor).st_ino for name in os.listdir(descriptor)}


def content(descriptor: int) -> bytes:
    """Return all bytes of an open file."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
