"""An archive in a folder; the rules are those of `protocol.py`. For small installations, and tests."""

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from custody.errors import (
    ConfigurationError,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TransientStoreError,
    legible,
)
from custody.format.times import moment_of
from custody.store.caller import user
from custody.store.durable import create_file, make_folders, sync_folder
from custody.store.protocol import (
    STAGING,
    Capabilities,
    ObjectInfo,
    ObjectStatus,
    check_folder,
    check_key,
    check_prefix,
    is_unicode,
    no_object,
    occupied,
    too_large,
)

_ABANDONED_SECONDS = 24 * 3600
_FOLDERS_KNOWN = 100_000
_CHUNK = 1 << 20


class FolderStore:
    """An archive in a folder. Symbolic links beneath the root are never followed."""

    capabilities = Capabilities()

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)
        self.url = Path(self._root).as_uri()
        with _os_errors("open", self._root), _missing_ignored():
            if not stat.S_ISDIR(os.lstat(self._root).st_mode):
                raise ConfigurationError(
                    f"the archive's root {self._root} is not a folder; name one, or a path that is free"
                )
        # Folders whose entry in their parent is on disk, so that each process syncs it once.
        self._synced: set[str] = set()
        # Folders to which no symbolic link leads, so that each is checked once, and not for each object.
        self._plain: set[str] = set()
        self._base = self._root.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self._root,)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _os_errors("write", path):
            try:
                self._create(path, data)
            except FileNotFoundError:
                # Somebody removed a folder or the staged file meanwhile: make them again, once.
                self._synced.clear()
                self._create(path, data)

    def _create(self, path: str, data: bytes) -> None:
        folder = os.path.dirname(path)  # noqa: PTH120 - a hot path
        self._make_folder(folder)
        staged = self._stage(data)
        try:
            try:
                os.link(staged, path, follow_symlinks=False)
            except FileExistsError:
                self._accept_existing(path, data)
            sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108

    def _stage(self, data: bytes) -> str:
        """Write and sync the bytes in the staging folder, under a unique name."""
        folder = f"{self._base}/{STAGING}"
        if folder not in self._synced:
            self._make_folder(folder)
            _remove_abandoned(folder)
        path = f"{folder}/{os.getpid()}-{uuid.uuid4().hex}"
        create_file(path, data)
        return path

    def _accept_existing(self, path: str, data: bytes) -> None:
        """Accept an existing object with identical bytes. Sync it: its writer may have crashed before syncing."""
        try:
            descriptor, status = self._open(path)
        except ObjectMissing as error:
            raise TerminalStoreError(
                f"cannot write {path}: something that is not a plain file has this name; move it away"
            ) from error
        try:
            if status.st_size != len(data) or _read_descriptor(descriptor, 0, len(data) + 1, len(data)) != data:
                raise occupied(path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it, and sync the entry of each in its parent.

        An existing folder is synced too: the process that made it may have crashed before its entry was on disk.
        """
        if folder in self._synced:
            return
        parent = os.path.dirname(folder)  # noqa: PTH120
        if folder == self._root:
            if not os.path.isdir(folder):  # noqa: PTH112
                make_folders(folder)
        else:
            self._make_folder(parent)
            try:
                os.mkdir(folder)  # noqa: PTH102
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise TerminalStoreError(
                        f"cannot write beneath {folder}: a file or a symbolic link (not followed) is there; move it"
                    ) from None
            sync_folder(parent)
        if len(self._synced) > _FOLDERS_KNOWN:
            self._synced.clear()
        self._synced.add(folder)

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,  # noqa: ARG002 - nothing in a folder is archived
    ) -> bytes:
        path = self._path(key)
        try:
            descriptor, status = self._open(path)
            try:
                if size is None and status.st_size - start > limit:
                    raise too_large(path, limit)
                if size is None and not start and 0 < status.st_size <= _CHUNK:
                    # A small object at once. One byte more shows that it has not grown.
                    data = os.pread(descriptor, status.st_size + 1, 0)
                    if len(data) == status.st_size:
                        return data
                most = limit + 1 if size is None else min(size, limit + 1)
                data = _read_descriptor(descriptor, start, most, status.st_size - start)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Not `_os_errors`: a tenth of what reading a manifest takes.
            raise _from_os(error, "read", path) from error
        if len(data) > limit:
            raise too_large(path, limit)
        return data

    def _open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a plain file to which no symbolic link leads. Return its descriptor and status.

        Raises:
            ObjectMissing: there is none.
        """
        try:
            if not self._in_plain_folder(path):
                raise ObjectMissing(f"there is no object {path}: a symbolic link leads there, which is not followed")
            # Non-blocking, because the name may be that of a pipe.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
            raise ObjectMissing(f"there is no object {path}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ObjectMissing(f"there is no object {path}: it is not a plain file")
        return descriptor, status

    def exists(self, key: str) -> bool:
        path = self._path(key)
        try:
            return self._look(path) is not None
        except OSError as error:
            # Not `_os_errors`: slots are looked for by the thousand.
            raise _from_os(error, "look for", path) from error

    def _look(self, path: str) -> os.stat_result | None:
        """Return the status of a plain file to which no symbolic link leads, None if there is none."""
        try:
            if self._in_plain_folder(path):
                status = os.lstat(path)
                return status if stat.S_ISREG(status.st_mode) else None
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
        return None

    def _in_plain_folder(self, path: str) -> bool:
        """Return whether no symbolic link leads to the object's folder. The object itself may still be one."""
        folder = path[: path.rindex("/")]
        if folder in self._plain:
            return True
        if os.path.realpath(folder) != folder:
            return False
        if len(self._plain) > _FOLDERS_KNOWN:
            self._plain.clear()
        self._plain.add(folder)
        return True

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        check_folder(prefix)
        folders, objects = [], []
        for entry in self._scan(prefix):
            with _os_errors("list", entry.path):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_text(entry.name))
                elif entry.is_file(follow_symlinks=False):
                    objects.append(ObjectInfo(prefix + _text(entry.name), partial(_size_of, entry)))
        return sorted(folders), objects

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        top, slash, tail = prefix.rpartition("/")
        begin = top + slash
        folders = [begin]
        while folders:
            folder = folders.pop()
            shown = _text(folder)
            low = after.removeprefix(shown) if after.startswith(shown) else ""
            wanted = tail if folder == begin else ""
            # A folder that was met on the way is no symbolic link. To ask about each takes longer than to list it.
            for entry in self._scan(folder, plain=folder != begin):
                name = entry.name
                if not name.startswith(wanted) and name.isascii():
                    # Nearly all names of a folder that many logs share. Others may be shown with this beginning.
                    continue
                if name < low and not low.startswith(name):
                    # Most names of an old log. A folder with this name has no key above `after` either.
                    continue
                key = shown + _text(name)
                if not key.startswith(prefix):
                    continue
                try:
                    if entry.is_file(follow_symlinks=False):
                        if key > after and (not through or key <= through):
                            yield ObjectInfo(key, partial(_size_of, entry))
                    elif entry.is_dir(follow_symlinks=False):
                        # A folder's keys all begin with its name and a slash. If that sorts before `after` and is not
                        # the beginning of `after`, all of them sort before it.
                        inside = key + "/"
                        starts = inside > after or after.startswith(inside)
                        if starts and (not through or inside <= through) and inside not in without:
                            folders.append(folder + name + "/")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _from_os(error, "list", entry.path) from error

    def _scan(self, folder: str, *, plain: bool = False) -> Iterator[os.DirEntry[str]]:
        """Yield a folder's entries, without the staging folder. None if it is missing, or behind a symbolic link.

        That no symbolic link leads to it is known if it is `plain`.
        """
        path = f"{self._base}/{folder}".rstrip("/") or "/"
        with _os_errors("list", path), _missing_ignored():
            if plain or os.path.realpath(path) == path:
                with os.scandir(path) as entries:
                    yield from entries if folder else (entry for entry in entries if entry.name != STAGING)

    def status(self, key: str) -> ObjectStatus:
        path = self._path(key)
        with _os_errors("look at", path):
            status = self._look(path)
        if not status:
            raise no_object(path)
        return ObjectStatus(status.st_size, moment_of(status.st_mtime))

    def remove(self, key: str) -> None:
        path = self._path(key)
        with _os_errors("delete", path), _missing_ignored():
            if self._in_plain_folder(path):
                os.unlink(path)  # noqa: PTH108 - as its neighbours

    def close(self) -> None:
        """Do nothing: a folder has no connections."""

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self._base}/{key}"


def _size_of(entry: os.DirEntry[str]) -> int:
    """Return the size of a listed file in bytes, 0 if it is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _from_os(error, "look at", entry.path) from error


def _text(name: str) -> str:
    """Return a file's name as text. Bytes that are not UTF-8 are escaped, so that it can be shown: it is not a key."""
    return name if is_unicode(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_descriptor(descriptor: int, start: int, size: int, available: int) -> bytes:
    """Return up to `size` bytes from `start`. By the file system's status, there are `available` bytes."""
    chunks = []
    while size > 0:
        # One byte more than there is, so that a small object costs one call, and memory of its size alone.
        wanted = min(size, available + 1 if available >= 0 else _CHUNK, 16 * _CHUNK)
        chunk = os.pread(descriptor, wanted, start)
        if chunk:
            chunks.append(chunk)
        start += len(chunk)
        size -= len(chunk)
        available -= len(chunk)
        if not chunk or (len(chunk) < wanted and available <= 0):
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _remove_abandoned(folder: str) -> None:
    """Remove staged files older than a day, which crashed writers left. No object is ever there."""
    oldest = time.time() - _ABANDONED_SECONDS
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)  # noqa: PTH108


# No such name, a file in place of a folder, or a symbolic link, which is not followed.
_MISSING_ERRNO = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""ENXIO: it is a socket, or a device that is not there."""


_ERRNO_ADVICE = {
    errno.ENOSPC: "the disk is full: make room; nothing was lost, and the next run continues",
    errno.EDQUOT: "the quota is used up: make room; nothing was lost, and the next run continues",
    errno.EACCES: "give it the folder, or run as the folder's owner",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENAMETOOLONG: "the file system does not allow names this long: use a shorter root or another file system",
    errno.EPERM: "the file is immutable or another's, or the file system has no hard links, which an archive needs",
    errno.EOPNOTSUPP: "the file system cannot do it; an archive needs one with hard links",
    errno.EXDEV: f"{STAGING} must be on the same file system as the rest of the archive",
    errno.EIO: "the disk fails: check it before anything else is written",
    errno.ENOTDIR: "a file has the name of a folder that is needed; move it away",
    errno.EISDIR: "a folder has the name of a file that is needed; move it away",
    errno.EINVAL: "the file system cannot do it; use another one",
    errno.ENOSYS: "the file system cannot do it; use another one",
    errno.EFBIG: "the file system allows no file of this size; use another one",
    errno.ELOOP: "too many symbolic links lead there; name the folder itself",
}


@contextlib.contextmanager
def _os_errors(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _from_os(error, doing, path) from error


@contextlib.contextmanager
def _missing_ignored() -> Iterator[None]:
    """Ignore the error for a missing file, and leave the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING_ERRNO:
            raise


def _from_os(error: OSError, doing: str, path: str) -> StoreError:
    """Convert an error of the operating system. It is terminal if there is advice for it."""
    message = f"cannot {doing} {legible(path)}: {error.strerror or type(error).__name__}"
    if advice := _ERRNO_ADVICE.get(error.errno or 0):
        if error.errno in {errno.EACCES, errno.EPERM}:
            advice = f"refused to {user()}: {advice}"
        return TerminalStoreError(f"{message} ({advice})")
    return TransientStoreError(f"{message} (it may pass; try again)")
