"""A spool loses nothing that was synced, whichever call to the operating system fails, or is the last of all."""

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from custody.emit import spool as spool_module
from custody.emit import spool_budget, spool_folders, spool_segment, spool_writer
from custody.emit.errors import AuditError
from custody.emit.spool import Spool
from tests.helpers.disk import CHANGES, Crash, Disk, Left, write_image
from tests.helpers.spooling import LIMIT, drain, lines, orphan, segment

LEFT: tuple[Left, ...] = ("synced", "half", "zeros", "all")
ORPHANED = lines(12, 100)
IN_DAMAGED = lines(2, 200)
DAMAGED = segment(IN_DAMAGED) + b"damage" * 3
UNDELETED = lines(4, 13)
"""Lines of the last segment, which is delivered in part when the process ends."""


@dataclass
class Story:
    """What an application knows of its lines."""

    synced: list[bytes] = field(default_factory=lambda: ORPHANED + IN_DAMAGED)
    appended: list[bytes] = field(default_factory=lambda: ORPHANED + IN_DAMAGED)
    delivered: list[bytes] = field(default_factory=list)
    failed_to_delete: int = 0
    failed_to_open: int = 0


def prepare(root: Path) -> None:
    """Write an orphan of three segments, and one with a damaged segment."""
    orphan(root, *(segment(ORPHANED[start : start + 4]) for start in (0, 4, 8)))
    orphan(root, DAMAGED, name="host-1-2")


def live(root: Path, story: Story) -> Iterator[Spool]:
    """Run through a process's life: append, sync, replay, adopt, close. Go on behind every AuditError."""
    while True:
        try:
            spool = Spool(root, LIMIT)
            break
        except AuditError:
            story.failed_to_open += 1
    yield spool
    for group in (lines(3), lines(9, 3), lines(1, 12)):
        write(spool, story, group)
        deliver(spool, story, 5)
    deliver(spool, story, 20)
    write(spool, story, UNDELETED)
    deliver(spool, story, 1)
    with contextlib.suppress(AuditError):
        spool.adopt()
    with contextlib.suppress(AuditError):
        spool.close()


def write(spool: Spool, story: Story, group: list[bytes]) -> None:
    """Append and sync a group, and once more if it was refused."""
    story.appended += group
    before = sizes(spool)
    try:
        assert spool.append(group) == len(group)
        spool.sync()
    except AuditError:
        assert sizes(spool) == before, "something half-written stays"
        assert spool.append(group) == len(group)
        spool.sync()
    story.synced += group


def deliver(spool: Spool, story: Story, count: int) -> None:
    """Deliver some lines."""
    for _ in range(count):
        try:
            batch = spool.peek(2)
            story.delivered += batch.lines
            spool.done(batch)
        except AuditError:
            story.failed_to_delete += 1


def sizes(spool: Spool) -> int:
    """Return the bytes of all segments of a spool's own folder."""
    folder = Path(spool._path) / spool._own.name
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 200 bytes, so that a group fills several."""
    for module in (spool_module, spool_segment, spool_writer):
        monkeypatch.setattr(module, "SEGMENT_BYTES", 200)


@contextlib.contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Replace the operating system by `disk` for the spool."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (spool_module, spool_budget, spool_folders, spool_writer):
            patch.setattr(module, "os", disk)
        yield


def run(root: Path, disk: Disk) -> tuple[Story, bool]:
    """Run the story on a disk, until its end or a crash, and return whether it crashed."""
    prepare(root)
    disk.known(root)
    story = Story()
    spools: list[Spool] = []
    crashed = False
    try:
        with using(disk):
            spools += live(root, story)
    except Crash:
        crashed = True
    for spool in spools:
        spool.abandon()
    # A process that is gone has no file open. One that goes on has closed all.
    left = open_below(root) - disk.kept
    assert crashed or not left, disk.calls
    for descriptor in left:
        os.close(descriptor)
    return story, crashed


def open_below(root: Path) -> set[int]:
    """Return the descriptors of open files below a root, those of deleted files too."""
    opened = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().is_relative_to(root):
                opened.add(int(link.name))
    return opened


def replay(root: Path) -> list[bytes]:
    """Return what another process gets out of a root."""
    disk = Disk()
    with using(disk), Spool(root, LIMIT) as spool:
        replayed = drain(spool)
    disk.forget()
    return replayed


def calls(tmp_path: Path) -> list[str]:
    """Return the calls of a run without a fault."""
    disk = Disk()
    _, crashed = run(tmp_path / "dry", disk)
    disk.forget()
    assert not crashed
    assert {"mkdir", "write", "fdatasync", "unlink", "rename", "rmdir"} <= set(disk.calls)
    assert replay(tmp_path / "dry") == UNDELETED
    return disk.calls


def test_trap_10_a_crash_at_any_call_loses_nothing_that_was_synced(tmp_path: Path) -> None:
    """Whatever the disk kept of what was not synced: names or none, bytes, half of them, zeros or none."""
    for call, name in enumerate(calls(tmp_path), 1):
        if name not in CHANGES:
            # A crash here leaves what a crash at the next change leaves.
            continue
        disk = Disk(call)
        root = tmp_path / "crashed"
        story, crashed = run(root, disk)
        assert crashed
        images = [disk.left(root, left, names_synced=synced) for left in LEFT for synced in (True, False)]
        disk.forget()
        shutil.rmtree(root)
        for number, image in enumerate(images):
            if image in images[:number]:
                continue
            assert any(DAMAGED in files.values() for files in image.values()), "nobody could look at the damage"
            write_image(root, image)
            replayed = replay(root)
            assert set(story.synced) - set(story.delivered) <= set(replayed), (call, name, number)
            assert set(replayed) <= set(story.appended)
            assert in_order(replayed), (call, name, number)
            shutil.rmtree(root)


def test_trap_10_an_error_of_any_call_loses_nothing_and_is_an_audit_error(tmp_path: Path) -> None:
    """The process goes on, and each synced line is delivered or still there, in order. No other error comes out.

    A segment that the disk does not read is put aside, whole.
    """
    for call, name in enumerate(calls(tmp_path), 1):
        disk = Disk(call, errno.EIO)
        root = tmp_path / "failed"
        story, _ = run(root, disk)
        disk.forget()
        rest = replay(root)
        repeated = Counter(story.delivered + rest) - Counter(story.synced)
        assert story.failed_to_delete or set(repeated) <= set(UNDELETED), call
        assert in_order(rest), call
        lost = set(story.synced) - set(story.delivered) - set(rest)
        assert not lost or (name == "read" and lost <= put_aside(root)), call
        assert set(story.delivered) | set(rest) <= set(story.synced), call
        shutil.rmtree(root)


def put_aside(root: Path) -> set[bytes]:
    """Return the lines in `bad/`."""
    return {line for path in (root / "bad").iterdir() for line in spool_segment.parse(path.read_bytes()).lines}


def in_order(replayed: list[bytes]) -> bool:
    """Return whether the lines of each process are in the order of their numbers."""
    numbers = [int(line.split(b":")[1].split(b",")[0]) for line in replayed]
    sources = [[n for n in numbers if low <= n < low + 100] for low in (0, 100, 200)]
    return all(source == sorted(source) for source in sources)
