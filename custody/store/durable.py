"""Writes files durably on POSIX: after a crash a file is complete or missing. Contents and names are synced."""

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, create: bool = False) -> None:
    """Replace a file in one step. After a crash, the complete old or new file is there.

    Args:
        path: the file. A symbolic link is replaced, and not its target.
        data: the whole content.
        mode: of the file, whatever the umask.
        create: raise FileExistsError instead of replacing a file.

    Raises:
        OSError: it was not replaced, or its name may not be on disk yet.
    """
    staged = str(path.with_name(f".{path.name}.{secrets.token_hex(6)}"))
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    finish_file(descriptor, staged, path, data, mode=mode, create=create)


def finish_file(descriptor: int, staged: str, path: Path, data: bytes, *, mode: int, create: bool = False) -> None:
    """Write and sync a staged file, give it its name, and close it. No staged file is left after an error.

    The file is closed last, so that a lock on it lasts until it has its name.

    Args:
        descriptor: of the staged file, open for writing.
        staged: its path, on the same file system as `path`.
        path: its final name.
        data: the whole content.
        mode: of the file, whatever the umask.
        create: raise FileExistsError instead of replacing a file.

    Raises:
        OSError: as for `replace_file`.
    """
    try:
        try:
            _write_all(descriptor, data)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            if create:
                os.link(staged, path)
            else:
                os.replace(staged, path)  # noqa: PTH105 - as its neighbours
        finally:
            os.close(descriptor)
    finally:
        # After a rename there is none.
        with contextlib.suppress(OSError):
            os.unlink(staged)  # noqa: PTH108
    sync_folder(str(path.parent))


def create_file(path: str, data: bytes) -> None:
    """Create a file, write and sync it. After an error there is no file. The name is not synced.

    Raises:
        FileExistsError: the name is taken.
        OSError: the file could not be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108
        raise


def make_folders(folder: str) -> None:
    """Make a folder and the missing folders above it, from the top, and sync each name."""
    parent = os.path.dirname(folder)  # noqa: PTH120
    if not os.path.isdir(parent):  # noqa: PTH112
        make_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
    sync_folder(parent)


def sync_folder(folder: str) -> None:
    """Sync the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
