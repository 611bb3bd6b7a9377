"""The folders of a spool on disk: opened without following a link, held by a lock, each name checked."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from custody.emit.errors import AuditError
from custody.emit.spool_segment import HEAD_BYTES, is_unknown

BAD: Final = "bad"
"""The folder of damaged segments, below the root."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}-[0-9]{1,10}-([0-9]{1,20})")
_SEGMENT_NAME = re.compile(r"[0-9]{12}\.segment")
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: to open a named pipe would wait for its writer.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

_ATTEMPTS = 100

_REMEDIES = {
    errno.ENOSPC: "free some space, or lower the spool's limit in bytes",
    errno.EDQUOT: "free some space, or lower the spool's limit in bytes",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`) to 8 MiB or more",
    errno.EROFS: "mount the file system writable, or put the spool elsewhere",
    errno.EACCES: "give the folder to the user that runs this process",
    errno.EPERM: "give the folder to the user that runs this process",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOENT: "do not delete the spool's folders while a process uses them; restart this process",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that nobody writes to any more."""

    name: str
    size: int
    records: int = 0
    """Its records, where this process wrote it."""


@dataclass(eq=False, slots=True)
class Folder:
    """The folder of one process, which nobody else uses as long as `descriptor` is open."""

    name: str
    descriptor: int
    segments: deque[Segment] = field(default_factory=deque)
    unknown: int = 0
    """Segments of a version that this code does not know."""
    foreign: int = 0
    """Entries that no process of ours made."""
    stuck: bool = False
    """Whether a segment that is done could not be deleted."""


@contextlib.contextmanager
def explained(path: str, action: str) -> Iterator[None]:
    """Raise an AuditError, with a remedy, for an error of the operating system.

    Raises:
        AuditError: `Spool`, in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and its file system")
        raise AuditError("Spool", f"spool {path}: cannot {action}: {error.strerror or error}; {remedy}") from error


def open_root(path: str) -> int:
    """Open the folder of all processes' spools for one kind and destination, or the one above; make it if missing.

    Raises:
        AuditError: `Spool`: it cannot be used, or another user may write to it.
    """
    with explained(path, "open it"):
        _make_path(Path(path))
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            status = os.fstat(root)
        except BaseException:
            os.close(root)
            raise
    if not _is_private(status):
        os.close(root)
        owner = f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        remedy = "use a folder of this process's user with mode 0700"
        raise AuditError("Spool", f"spool {path}: other users may write to it ({owner}); {remedy}")
    return root


def make_folder(root: int) -> Folder:
    """Make this process's folder, lock it, and sync its name.

    Another process may take the folder for an orphan before the lock is ours. Then make another.

    Raises:
        OSError: it could not be made.
    """
    host = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename)[:64] or "host"
    start = time.time_ns()
    for attempt in range(_ATTEMPTS):
        name = f"{host}-{os.getpid()}-{start + attempt}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root)
            folder = _lock_folder(root, name)
            if folder is None:
                continue
            try:
                os.fsync(root)
            except BaseException:
                release_folder(root, folder)
                raise
            return folder
    raise OSError(errno.EACCES, "a new folder could not be locked, or is not this user's alone")


def adopt_folder(root: int, name: str) -> Folder | None:
    """Return the folder of a process that has ended, locked and listed, or None if it is in use, or none of ours.

    Raises:
        OSError: it could not be locked or listed.
    """
    folder = _lock_folder(root, name)
    if folder is not None:
        try:
            _list_segments(folder)
        except BaseException:
            let_go(folder.descriptor)
            raise
    return folder


_locked: set[int] = set()
"""Descriptors of the folders that this process has locked, or is about to."""


def _lock_folder(root: int, name: str) -> Folder | None:
    """Return a process's folder, locked, or None if another process has it, or it is no folder of ours.

    Raises:
        OSError: it could not be opened or locked for another reason.
    """
    try:
        descriptor = os.open(name, _OPEN_FOLDER, dir_fd=root)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
            return None
        raise
    _locked.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        # Who had it before us may have removed it, and only then have let go of its lock.
        ours = os.path.samestat(status, os.stat(name, dir_fd=root, follow_symlinks=False))
        if ours and _is_private(status):
            return Folder(name, descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        let_go(descriptor)
        raise
    let_go(descriptor)
    return None


def let_go(descriptor: int) -> None:
    """Close a process's folder, and with it its lock."""
    _locked.discard(descriptor)
    os.close(descriptor)


def let_go_in_child() -> None:
    """Close what another thread of the parent had locked at a fork, and no spool had yet."""
    while _locked:
        with contextlib.suppress(OSError):
            os.close(_locked.pop())


def folder_names(root: int) -> tuple[list[str], int]:
    """Return the names of processes' folders, the oldest first, and the number of entries that are none."""
    names = []
    foreign = 0
    for name in os.listdir(root):
        match = _FOLDER_NAME.fullmatch(name)
        if match:
            names.append((int(match[1]), name))
        elif name != BAD:
            foreign += 1
    return [name for _, name in sorted(names)], foreign


def _list_segments(folder: Folder) -> None:
    """Note the segments of a folder that another process left, and count what else it has."""
    for name in sorted(os.listdir(folder.descriptor)):  # noqa: PTH208 - by its descriptor
        start, size = read_segment(folder, name, HEAD_BYTES) if _SEGMENT_NAME.fullmatch(name) else (None, 0)
        if start is None:
            folder.foreign += 1
        elif is_unknown(start):
            folder.unknown += 1
        else:
            folder.segments.append(Segment(name, size))


def read_segment(folder: Folder, name: str, limit: int) -> tuple[bytes | None, int]:
    """Return the first bytes of a segment, and its size. The bytes are None if it is no file of ours.

    Raises:
        OSError: this process has too many open files, or too little memory.
    """
    try:
        descriptor = os.open(name, _OPEN_FILE, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise
        return None, 0
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            return None, 0
        return _read(descriptor, limit), status.st_size
    finally:
        os.close(descriptor)


def put_aside(root: int, folder: Folder, name: str, end: int) -> None:
    """Move a damaged segment to `bad/`. Its new name has the number of its first byte that is not as it was written.

    Raises:
        OSError: it was not moved.
    """
    with _bad(root) as bad:
        target = f"{folder.name}.{name}.{end}.{secrets.token_hex(4)}"
        os.rename(name, target, src_dir_fd=folder.descriptor, dst_dir_fd=bad)
        os.fsync(bad)
        os.fsync(folder.descriptor)


def keep_aside(root: int, name: str, data: bytes) -> None:
    """Write a new file to `bad/`. Its name goes on with random characters.

    Raises:
        OSError: it was not written.
    """
    with _bad(root) as bad:
        target = f"{name}.{secrets.token_hex(8)}"
        file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=bad)
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.fsync(bad)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(target, dir_fd=bad)
            raise


@contextlib.contextmanager
def _bad(root: int) -> Iterator[int]:
    """Open `bad/`, which is made if it is missing."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(BAD, 0o700, dir_fd=root)
        os.fsync(root)
    bad = os.open(BAD, _OPEN_FOLDER, dir_fd=root)
    try:
        yield bad
    finally:
        os.close(bad)


def release_folder(root: int, folder: Folder) -> None:
    """Remove a folder if it is empty, and let go of its lock."""
    try:
        with contextlib.suppress(OSError):
            os.rmdir(folder.name, dir_fd=root)
    finally:
        let_go(folder.descriptor)


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022


def _read(descriptor: int, limit: int) -> bytes:
    """Return up to `limit` bytes, fewer if the file ends or the disk cannot read on."""
    pieces = []
    while limit:
        try:
            piece = os.read(descriptor, limit)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _make_path(path: Path) -> None:
    """Make a folder and those above it that are missing, and sync their names."""
    for folder in reversed([each for each in (path, *path.parents) if not each.exists()]):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
