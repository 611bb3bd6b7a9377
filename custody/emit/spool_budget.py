"""Bounds the bytes below a spool's root. Own ones are counted, those of other processes listed now and then."""

import contextlib
import os
import time
from typing import Final

from custody.emit.spool_folders import BAD
from custody.format.limits import MIB

LISTED_EVERY: Final = 0.1
"""Seconds after which a full spool is listed again: another process may have made room."""
ASIDE_SHARE: Final = 4
"""Refused lines take at most one part in so many of the limit. Nobody deletes them, and the others need room."""


class Budget:
    """Bytes that may still be taken.

    Another process's bytes are seen when this one has taken a 64th of the limit, and at most a mebibyte, since it
    listed the root. So the limit may be exceeded by that much for each process, by what each has not synced, and by
    the 16 bytes of each segment's head.
    """

    def __init__(self, root: int, limit: int) -> None:
        """Take the open folder of all processes' spools, and its limit in bytes."""
        self._root = root
        self._limit, self._aside_limit = limit, limit // ASIDE_SHARE
        self._step = min(MIB, limit // 64)
        self.unsynced = 0
        """Bytes that were taken, and are on no disk yet."""
        self._taken = 0
        self._used = self._aside = 0
        self._listed_at = -LISTED_EVERY
        self._list()

    @property
    def used(self) -> int:
        """Bytes below the root, as far as they are known, and the unsynced ones."""
        return self._used

    def look(self, size: int) -> None:
        """List the root if that is due, before about as many bytes are taken.

        Raises:
            OSError: it cannot be listed.
        """
        full = self._used + size > self._limit
        if self._taken + size > self._step or (full and time.monotonic() - self._listed_at >= LISTED_EVERY):
            self._list()

    def take(self, size: int) -> bool:
        """Take room for bytes that are not synced yet, and return whether there was enough."""
        if self._used + size > self._limit:
            return False
        self.unsynced += size
        self._used += size
        self._taken += size
        return True

    def look_aside(self, size: int) -> None:
        """List the root if that is due, before about as many bytes of refused lines are taken.

        Raises:
            OSError: it cannot be listed.
        """
        if self._aside + size > self._aside_limit and time.monotonic() - self._listed_at >= LISTED_EVERY:
            self._list()

    def take_aside(self, size: int) -> bool:
        """Take room for refused lines that are not synced yet, and return whether there was enough."""
        if self._aside + size > self._aside_limit or not self.take(size):
            return False
        self._aside += size
        return True

    def synced(self, heads: int) -> None:
        """Count the bytes that were taken as written, with heads of as many bytes."""
        self._used += heads
        self.unsynced = 0

    def give_back(self) -> None:
        """Give back what was taken and could not be written."""
        self._used -= self.unsynced
        self.unsynced = 0

    def freed(self, size: int) -> None:
        """Count bytes that were deleted."""
        self._used -= size

    def _list(self) -> None:
        self._listed_at = time.monotonic()
        self._taken = 0
        self._used = self.unsynced + _size_below(self._root)
        self._aside = 0
        with contextlib.suppress(OSError):
            self._aside = _size_in(BAD, self._root)


def _size_below(root: int) -> int:
    """Return the bytes of all files in the folders of a root. What others delete meanwhile counts as nothing."""
    size = 0
    with os.scandir(root) as folders:
        for folder in folders:
            if not folder.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                size += _size_in(folder.name, root)
    return size


def _size_in(name: str, root: int) -> int:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        size = 0
        with os.scandir(descriptor) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    size += file.stat(follow_symlinks=False).st_size
        return size
    finally:
        os.close(descriptor)
