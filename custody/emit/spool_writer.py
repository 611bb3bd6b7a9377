"""Appends groups of records to the segments of this process's folder: after an error nothing of a group is left."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from custody.emit.spool_folders import Folder, Segment
from custody.emit.spool_segment import HEAD_BYTES, SEGMENT_BYTES, head, split


@dataclass(slots=True)
class _Open:
    """A segment that is written to. All of its `size` bytes are synced."""

    name: str
    descriptor: int
    size: int = 0
    records: int = 0

    def append(self, data: bytes, records: int) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self.descriptor)
        self.size += len(data)
        self.records += records


class SegmentWriter:
    """Writes the segments of one folder, one after the other."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._open: _Open | None = None
        self._serial = 0

    def commit(self, records: Sequence[bytes]) -> int:
        """Write and sync all records, and return the bytes of the heads of new segments.

        Raises:
            OSError: none of the records is in a segment, and the next ones go to a new segment.
        """
        before = self._open
        size, held = (before.size, before.records) if before else (0, 0)
        new: list[_Open] = []
        try:
            bodies = split(records, SEGMENT_BYTES - size if before else 0)
            if before and bodies[0]:
                before.append(b"".join(bodies[0]), len(bodies[0]))
            for body in bodies[1:]:
                new.append(self._create())
                new[-1].append(head() + b"".join(body), len(body))
                # After the file's content: a name on disk has its records.
                os.fsync(self._folder.descriptor)
        except BaseException:
            # A sync that failed is not tried again: the system may have forgotten the bytes that it could not write.
            self._cut_back(new, size)
            if before:
                before.size, before.records = size, held
            self.seal()
            raise
        for segment in new:
            self.seal()
            self._open = segment
        return len(new) * HEAD_BYTES

    def seal(self) -> None:
        """End the segment that is written to, so that it can be read. All of it is synced already."""
        segment, self._open = self._open, None
        if segment:
            self._folder.segments.append(Segment(segment.name, segment.size, segment.records))
            # Last, and once only: after an error the number may be another file's.
            os.close(segment.descriptor)

    def _create(self) -> _Open:
        self._serial += 1
        name = f"{self._serial:012}.segment"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return _Open(name, os.open(name, flags, 0o600, dir_fd=self._folder.descriptor))

    def _cut_back(self, new: list[_Open], size: int) -> None:
        """Take what a commit wrote off the disk again. Where that fails too, this process does not read it back."""
        if self._open:
            with contextlib.suppress(OSError):
                os.ftruncate(self._open.descriptor, size)
        for segment in new:
            with contextlib.suppress(OSError):
                os.close(segment.descriptor)
            with contextlib.suppress(OSError):
                os.unlink(segment.name, dir_fd=self._folder.descriptor)
