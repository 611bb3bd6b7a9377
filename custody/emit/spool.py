"""A bounded queue of lines on disk, for when the broker is slow or away.

Below the root, each process has a folder of its own, `<host>-<pid>-<start>/`, and holds its lock. In it are segments
(spool_segment.py). The rules:

1. A line is safe once `sync` has returned: content first, then the name of a new file.
2. A segment is deleted only when all of its lines are done. After a crash lines may be replayed twice, never lost.
3. A folder without a lock is an orphan. Exactly one process adopts it, and replays it before its own lines.
   So lines of one source stay in order, also where a process closed its spool and opened another.
4. What a crash cut off is ignored. A damaged segment is replayed up to the damage, and moved to `bad/` then.
5. Nothing found on disk is trusted: no link is followed, no length decides how much memory is taken.

The root must be on a disk of this host: locks of network file systems differ.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from custody.emit.errors import AuditError
from custody.emit.spool_budget import Budget
from custody.emit.spool_folders import (
    Folder,
    Segment,
    adopt_folder,
    explained,
    folder_names,
    keep_aside,
    let_go,
    let_go_in_child,
    make_folder,
    open_root,
    put_aside,
    read_segment,
    release_folder,
)
from custody.emit.spool_segment import (
    HEAD_BYTES,
    LINE_BYTES,
    RECORD_BYTES,
    SEGMENT_BYTES,
    State,
    frame,
    head,
    parse,
)
from custody.emit.spool_writer import SegmentWriter

ADOPTED_AT_ONCE: Final = 16
"""Folders of other processes that one process holds. It adopts more when these are replayed."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines to deliver, in order, and where they are from. Without lines, the spool has none that are synced."""

    lines: tuple[bytes, ...] = field(repr=False)
    segment: str
    """Folder and name."""
    start: int
    """The number of the first line in its segment."""


@dataclass(slots=True)
class _Reading:
    """The segment that is replayed, and how many of its lines are done."""

    folder: Folder
    segment: Segment
    lines: tuple[bytes, ...]
    end: int
    state: State
    position: int = 0

    @property
    def name(self) -> str:
        return f"{self.folder.name}/{self.segment.name}"


class Spool:
    """Lines of this process, and of processes that ended before theirs were delivered.

    Not thread-safe: one thread calls it. After a fork the child makes a spool of its own.

    An AuditError of `peek` or `done` is about one segment: the next call goes on with the next one.
    """

    def __init__(self, root: Path | str, bytes_limit: int) -> None:
        """Open the root, adopt orphans, and make this process's folder.

        Args:
            root: the folder of one kind of writer and destination, for all processes of this host. It is made if it is
                missing.
            bytes_limit: of all files below the root together.

        Raises:
            AuditError: `Spool`: the root cannot be written, or other users may write to it.
        """
        self._path = str(root)
        self._pending: list[bytes] = []
        self._waiting = 0
        self._reading: _Reading | None = None
        self._adopted: list[Folder] = []
        self._stuck: list[Folder] = []
        """Adopted folders of which a segment could not be deleted. Locked, so that nobody replays it now."""
        self._counts = dict.fromkeys(("synced", "done", "adopted", "torn_segments", "bad_segments", "lost_segments"), 0)
        self._seen = {"unknown_segments": 0, "foreign_files": 0, "unreadable_folders": 0}
        self._open = True
        self._root = open_root(self._path)
        try:
            with explained(self._path, "write to it"):
                self._budget = Budget(self._root, bytes_limit)
                self._own = make_folder(self._root)
        except BaseException:
            os.close(self._root)
            raise
        self._writer = SegmentWriter(self._own)
        _SPOOLS.add(self)
        try:
            self.adopt()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Lines of this process that are not done. Those of adopted folders are not counted."""
        return self._waiting

    @property
    def has_orphans(self) -> bool:
        """Whether lines of another process are not done."""
        reading = self._reading
        return (reading is not None and reading.folder is not self._own) or any(each.segments for each in self._adopted)

    def counters(self) -> dict[str, int]:
        """Return what was spooled and replayed, and what was wrong on disk, as numbers for metrics."""
        # What is not synced is no promise yet. Another thread may read too few, never too many.
        pending = len(self._pending)
        synced = max(0, self.waiting - pending)
        return {**self._counts, **self._seen, "waiting": synced, "bytes": self._budget.used}

    def append(self, lines: Sequence[bytes]) -> int:
        """Take lines, in order, until the bound is reached, and return how many. They are in memory until `sync`.

        Raises:
            AuditError: `Spool`: a line is larger than an event may be, or the root cannot be listed. None was taken.
        """
        self._check_open()
        if any(len(line) > LINE_BYTES for line in lines):
            raise AuditError("Spool", f"a line is larger than the limit of {LINE_BYTES:,} bytes; send smaller events")
        with explained(self._path, "list it"):
            self._budget.look(sum(map(len, lines)) + len(lines) * RECORD_BYTES)
        records = _framed(lines, self._budget.take)
        self._pending += records
        self._waiting += len(records)
        return len(records)

    def sync(self) -> None:
        """Write the lines that were appended since the last call, so that no crash loses them.

        Raises:
            AuditError: `Spool`: the disk is full or cannot be written. None of these lines is in the spool.
        """
        self._check_open()
        if not self._pending:
            return
        records = self._pending
        with explained(self._path, "write to it"):
            try:
                heads = self._writer.commit(records)
            except BaseException:
                self._budget.give_back()
                self._waiting -= len(records)
                raise
            finally:
                self._pending = []
        self._budget.synced(heads)
        self._counts["synced"] += len(records)

    def peek(self, limit: int) -> Batch:
        """Return the next lines, at most `limit` and of one segment. They stay in the spool until they are done.

        Raises:
            AuditError: `Spool`: a segment could not be read, or has no whole line and could not be deleted.
        """
        self._check_open()
        while self._reading is None:
            origin = self._next()
            if origin is None:
                return Batch((), "", 0)
            self._read(*origin)
        reading = self._reading
        end = reading.position + max(limit, 1)
        return Batch(reading.lines[reading.position : end], reading.name, reading.position)

    def done(self, batch: Batch, count: int | None = None) -> None:
        """Count lines of a batch as delivered: all, or the first `count`. Delete their segment if they were its last.

        A batch that is not the next one any more changes nothing.

        Raises:
            AuditError: `Spool`: the segment could not be deleted. It will be replayed once more by another process.
        """
        self._check_open()
        reading = self._reading
        if reading is None or (reading.name, reading.position) != (batch.segment, batch.start):
            return
        delivered = len(batch.lines[:count])
        reading.position += delivered
        self._waiting -= delivered if reading.folder is self._own else 0
        self._counts["done"] += delivered
        if reading.position == len(reading.lines):
            self._finish(reading)

    def keep_refused(self, lines: Sequence[bytes]) -> int:
        """Write lines that will never be delivered to a segment in `bad/`, and return for how many there was room.

        `bad/` gets no more of them once it takes a quarter of the bound: the lines to deliver need the rest.

        Raises:
            AuditError: `Spool`: the disk is full or cannot be written. None of these lines is kept.
        """
        self.sync()
        with explained(self._path, "list it"):
            self._budget.look_aside(sum(map(len, lines)) + len(lines) * RECORD_BYTES)
        records = _framed(lines, self._budget.take_aside)
        if records:
            with explained(self._path, "write to it"):
                try:
                    keep_aside(self._root, f"{self._own.name}.refused", head() + b"".join(records))
                except BaseException:
                    self._budget.give_back()
                    raise
            self._budget.synced(HEAD_BYTES)
        return len(records)

    def adopt(self) -> int:
        """Take over folders whose processes have ended, the oldest first, and return how many.

        Raises:
            AuditError: `Spool`: the root cannot be listed.
        """
        self._check_open()
        with explained(self._path, "list it"):
            names, foreign = folder_names(self._root)
        held = {folder.name for folder in self._held()}
        seen = {"unknown_segments": 0, "foreign_files": foreign, "unreadable_folders": 0}
        before = len(self._adopted)
        for name in names:
            if len(self._adopted) + len(self._stuck) >= ADOPTED_AT_ONCE:
                break
            try:
                folder = None if name in held else adopt_folder(self._root, name)
            except OSError:
                seen["unreadable_folders"] += 1
                continue
            if folder is None:
                continue
            self._adopted.append(folder)
            if not folder.segments:
                seen["unknown_segments"] += folder.unknown
                seen["foreign_files"] += folder.foreign
                self._leave(folder)
        self._seen = seen
        taken = len(self._adopted) - before
        self._counts["adopted"] += taken
        return taken

    def close(self) -> None:
        """Sync, and let go of all folders. Those with lines left are orphans then.

        Raises:
            AuditError: `Spool`: the lines that were not synced could not be. The spool is closed nevertheless.
        """
        if not self._open:
            return
        try:
            self.sync()
            with explained(self._path, "write to it"):
                self._writer.seal()
        finally:
            self._open = False
            _SPOOLS.discard(self)
            for folder in self._held():
                release_folder(self._root, folder)
            os.close(self._root)

    def abandon(self) -> None:
        """Close all files and do nothing else: in the child of a fork they would keep the parent's locks."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(OSError):
            self._writer.seal()
        with contextlib.suppress(OSError):
            os.close(self._root)
        for folder in self._held():
            with contextlib.suppress(OSError):
                let_go(folder.descriptor)

    def _held(self) -> list[Folder]:
        return [*self._adopted, *self._stuck, self._own]

    def _check_open(self) -> None:
        if not self._open:
            raise AuditError("Spool", f"spool {self._path}: it is closed, or was opened before a fork; open another")

    def _next(self) -> tuple[Folder, Segment] | None:
        """Return the next segment to replay: the oldest orphan's first, this process's own last."""
        if not self._own.segments:
            with explained(self._path, "close a segment"):
                self._writer.seal()
        for folder in (*self._adopted, self._own):
            if folder.segments:
                return folder, folder.segments[0]
        return None

    def _read(self, folder: Folder, segment: Segment) -> None:
        """Read a segment into memory, or pass over it."""
        limit = min(segment.size, SEGMENT_BYTES + 1)
        with explained(f"{self._path}/{folder.name}/{segment.name}", "read it"):
            data = read_segment(folder, segment.name, limit)[0]
        folder.segments.popleft()
        contents = parse(data or b"")
        # Of an own segment, what cannot be read any more. Of an orphan's, nobody knows how many it had.
        self._waiting -= max(segment.records - len(contents.lines), 0)
        if data is None or contents.state is State.UNKNOWN:
            # Deleted or replaced by others, meanwhile.
            self._counts["lost_segments"] += 1
            self._leave(folder)
            return
        # A crash cuts off neither what was synced, nor what could be read when the folder was adopted.
        cut = len(data) < limit or len(contents.lines) < segment.records
        state = State.DAMAGED if cut else contents.state
        self._counts["torn_segments"] += state is State.TORN
        self._counts["bad_segments"] += state is State.DAMAGED
        self._reading = _Reading(folder, segment, contents.lines, contents.end, state)
        if not contents.lines:
            self._finish(self._reading)

    def _finish(self, reading: _Reading) -> None:
        """Delete a segment that is done, or put it aside if it is damaged. Whatever happens, go on behind it."""
        self._reading = None
        folder, name = reading.folder, reading.segment.name
        with explained(f"{self._path}/{reading.name}", "delete it"):
            try:
                if reading.state is State.DAMAGED:
                    put_aside(self._root, folder, name, reading.end)
                else:
                    os.unlink(name, dir_fd=folder.descriptor)
                    self._budget.freed(reading.segment.size)
                    os.fsync(folder.descriptor)
            except FileNotFoundError:
                self._counts["lost_segments"] += 1
            except OSError:
                folder.stuck = True
                raise
            finally:
                self._leave(folder)

    def _leave(self, folder: Folder) -> None:
        """Release an adopted folder that is replayed."""
        if folder is self._own or folder.segments:
            return
        self._adopted.remove(folder)
        if folder.stuck:
            self._stuck.append(folder)
        else:
            release_folder(self._root, folder)


def _framed(lines: Sequence[bytes], take: Callable[[int], bool]) -> list[bytes]:
    """Return the records of lines, until there is no more room to take."""
    records: list[bytes] = []
    for line in lines:
        record = frame(line)
        if not take(len(record)):
            break
        records.append(record)
    return records


_SPOOLS: weakref.WeakSet[Spool] = weakref.WeakSet()


def _abandon_in_child() -> None:
    for spool in list(_SPOOLS):
        spool.abandon()
    let_go_in_child()


os.register_at_fork(after_in_child=_abandon_in_child)
