"""A spool keeps what was synced, in order and within its bound, and trusts nothing that it finds on disk."""

import errno
import fcntl
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from custody.emit import spool as spool_module
from custody.emit import spool_budget, spool_folders, spool_segment, spool_writer
from custody.emit.errors import AuditError
from custody.emit.spool import ADOPTED_AT_ONCE, Spool
from custody.emit.spool_segment import HEAD_BYTES, LINE_BYTES, RECORD_BYTES, frame, head
from tests.helpers.disk import Disk
from tests.helpers.spooling import LIMIT, drain, lines, orphan, segment


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing: what a crash leaves is tested in test_spool_crashes.py."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 200 bytes: five or six lines."""
    for module in (spool_module, spool_segment, spool_writer):
        monkeypatch.setattr(module, "SEGMENT_BYTES", 200)


@pytest.fixture
def spool(root: Path) -> Iterator[Spool]:
    with Spool(root, LIMIT) as opened:
        yield opened


def files(root: Path) -> list[Path]:
    """Return all segments below a root, in order of their names."""
    return sorted(path for path in root.rglob("*") if path.is_file())


def put(spool: Spool, content: list[bytes]) -> None:
    """Append and sync."""
    assert spool.append(content) == len(content)
    spool.sync()


@pytest.mark.usefixtures("small")
def test_lines_come_back_in_order_across_segments(spool: Spool, root: Path) -> None:
    """What goes in comes out, once, in order, in batches of at most the limit."""
    content = lines(40)
    for start in range(0, 40, 8):
        put(spool, content[start : start + 8])
    assert len(files(root)) > 3
    assert all(path.stat().st_size <= 200 for path in files(root))
    assert spool.waiting == 40
    assert drain(spool, 3) == content
    assert (spool.waiting, files(root)) == (0, [])


def test_nothing_is_replayed_before_it_is_synced(spool: Spool) -> None:
    """A line that a crash could still lose is not delivered, so that a number is never given twice."""
    spool.append(lines(2))
    assert spool.peek(10).lines == ()
    spool.sync()
    spool.append(lines(1, 2))
    assert spool.peek(10).lines == tuple(lines(2))
    spool.sync()
    assert drain(spool) == lines(3)


@pytest.mark.usefixtures("small")
def test_new_lines_go_behind(spool: Spool) -> None:
    """Also while a batch is on its way, and after a part of it is done."""
    put(spool, lines(4))
    batch = spool.peek(3)
    put(spool, lines(4, 4))
    spool.done(batch, 2)
    assert spool.peek(10).lines == tuple(lines(2, 2))
    assert drain(spool) == lines(6, 2)


def test_a_batch_is_done_once(spool: Spool) -> None:
    """A batch that was done already, or that is not the next any more, takes nothing else away."""
    put(spool, lines(4))
    batch = spool.peek(2)
    spool.done(batch)
    spool.done(batch)
    assert spool.peek(9).lines == tuple(lines(2, 2))
    spool.done(spool.peek(9))
    spool.done(batch)
    assert spool.waiting == 0


def test_a_segment_stays_until_all_of_it_is_done(spool: Spool, root: Path) -> None:
    """Its last line takes it off the disk, and no earlier one."""
    put(spool, lines(3))
    for number in range(3):
        assert len(files(root)) == 1
        assert spool.peek(1).lines == tuple(lines(1, number))
        spool.done(spool.peek(1))
    assert files(root) == []


def test_only_the_owner_reads_it(spool: Spool, root: Path) -> None:
    """Folders have mode 0700 and segments 0600."""
    put(spool, lines(1))
    (file,) = files(root)
    assert [path.stat().st_mode & 0o777 for path in (root, file.parent, file)] == [0o700, 0o700, 0o600]


def test_a_batch_shows_no_line() -> None:
    """The repr of a batch, which a log may have, has no event in it."""
    assert "secret" not in repr(spool_module.Batch((b"secret",), "a/b", 0))


def test_a_line_that_is_too_large_is_refused(spool: Spool) -> None:
    """With all lines that come with it; the largest event is taken."""
    with pytest.raises(AuditError, match="larger than the limit") as caught:
        spool.append([b"", bytes(LINE_BYTES + 1)])
    assert caught.value.kind == "Spool"
    put(spool, [bytes(LINE_BYTES)] * 9)
    assert [len(line) for line in drain(spool)] == [LINE_BYTES] * 9


def test_a_closed_spool_says_so(root: Path) -> None:
    """No call on a closed spool does anything."""
    spool = Spool(root, LIMIT)
    spool.close()
    spool.close()
    with pytest.raises(AuditError, match="closed"):
        spool.append([])
    assert list(root.iterdir()) == []


def test_an_audit_error_survives_a_process_pool() -> None:
    """An error can be pickled, with its kind and the backends that have the event."""
    error = pickle.loads(pickle.dumps(AuditError("Spool", "full", ("Kafka",))))  # noqa: S301 - our own bytes
    assert (error.kind, str(error), error.accepted) == ("Spool", "full", ("Kafka",))


def test_a_root_is_made_with_all_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is synced: after a crash the first line is found."""
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    with Spool(tmp_path / "a" / "b" / "spool", LIMIT):
        assert synced == [tmp_path / name for name in ("", "a", "a/b", "a/b/spool")]


def test_a_root_that_cannot_be_listed_takes_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that fails took no line at all."""
    monkeypatch.setattr(spool_budget, "os", Disk(1, errno.EIO))
    with pytest.raises(AuditError, match="cannot list it"):
        spool.append([b"x" * 1000] * 2000)
    spool.sync()
    assert (spool.waiting, spool.peek(1).lines) == (0, ())


# Adoption.


def test_orphans_go_first_the_oldest_first(root: Path) -> None:
    """What a process left is replayed before this one's own lines, in order of the processes' starts."""
    for start in (10, 9, 200):
        orphan(root, segment(lines(2, start)), name=f"host-7-{start}")
    with Spool(root, LIMIT) as spool:
        put(spool, lines(2))
        assert drain(spool) == [*lines(2, 9), *lines(2, 10), *lines(2, 200), *lines(2)]
        assert [path.name for path in root.iterdir()] == [spool._own.name]
        assert spool.counters()["adopted"] == 3


def test_a_folder_in_use_is_not_adopted(root: Path) -> None:
    """It is adopted once its process has let go of it, by one only."""
    with Spool(root, LIMIT) as first, Spool(root, LIMIT) as second, Spool(root, LIMIT) as third:
        put(first, lines(3))
        assert second.adopt() == 0
        first.close()
        assert [second.adopt(), third.adopt(), second.adopt()] == [1, 0, 0]
        assert drain(third) == []
        assert drain(second) == lines(3)


def test_a_segment_that_is_replayed_comes_first_also_after_an_adoption(root: Path) -> None:
    """An adoption in the middle of a segment changes no order in it."""
    with Spool(root, LIMIT) as spool:
        put(spool, lines(4))
        spool.done(spool.peek(1))
        orphan(root, segment(lines(2, 100)))
        assert spool.adopt() == 1
        assert drain(spool, 2) == [*lines(3, 1), *lines(2, 100)]


def test_a_process_holds_a_limited_number_of_folders(root: Path) -> None:
    """Many orphans take no file descriptor each; the next are adopted when these are replayed."""
    for start in range(ADOPTED_AT_ONCE + 3):
        orphan(root, segment(lines(1, start)), name=f"host-7-{start}")
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == lines(ADOPTED_AT_ONCE)
        assert spool.adopt() == 3
        assert drain(spool) == lines(3, ADOPTED_AT_ONCE)


def test_a_new_folder_that_another_process_takes_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a folder and locking it, another process may adopt it, and remove it."""
    with Spool(root, LIMIT) as other:
        make = os.mkdir
        stolen: list[str] = []

        def steal(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            make(name, mode, dir_fd=dir_fd)
            if dir_fd is not None and len(stolen) < 2:
                stolen.append(name)
                other.adopt()

        monkeypatch.setattr(os, "mkdir", steal)
        with Spool(root, LIMIT) as spool:
            assert len(stolen) == 2
            assert spool._own.name not in stolen
            put(spool, lines(1))
            assert other.adopt() == 0


def test_a_folder_that_was_replaced_is_not_adopted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening a folder and locking it, its heir may have removed it, and its name may be another's."""
    folder = orphan(root, segment(lines(2)))
    lock = fcntl.flock

    def replace(descriptor: int, operation: int) -> None:
        if folder.exists() and os.fstat(descriptor).st_ino == folder.stat().st_ino:
            folder.rename(root.parent / "removed")
            orphan(root)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace)
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == []
    assert folder.exists(), "it was not ours to remove"


def test_eight_threads_adopt_each_orphan_once(root: Path) -> None:
    """Whoever asks at the same time, each folder has one owner."""
    for start in range(12):
        orphan(root, segment(lines(2, 2 * start)), name=f"host-7-{start}")
    names = sorted(path.name for path in root.iterdir())
    barrier = threading.Barrier(8)
    spools: list[Spool] = []

    def open_spool() -> None:
        barrier.wait()
        spools.append(Spool(root, LIMIT))

    threads = [threading.Thread(target=open_spool) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for spool in spools for folder in spool._adopted) == names
    assert sorted(line for spool in spools for line in drain(spool)) == sorted(lines(24))
    for spool in spools:
        spool.close()
    assert list(root.iterdir()) == []


# Damage.

CONTENT = lines(4)


def test_trap_8_cut_at_every_byte_all_whole_lines_replay(root: Path) -> None:
    """A torn tail costs what is torn, and no exception. Nothing else is lost, and the file goes."""
    whole = segment(CONTENT)
    for cut in range(len(whole)):
        orphan(root, whole[:cut], segment(lines(1, 9)), name=f"host-7-{cut}")
        with Spool(root, LIMIT) as spool:
            replayed = drain(spool)
            assert replayed[-1:] == lines(1, 9)
            expected = sum(cut >= len(segment(CONTENT[:count])) for count in range(1, 5))
            assert replayed[:-1] == CONTENT[:expected]
            assert not spool.counters()["bad_segments"]
    assert list(root.iterdir()) == []


def test_every_byte_flipped_no_wrong_line_and_no_exception(root: Path) -> None:
    """The lines before the damage replay, the segment is put aside and counted, and the next segment replays."""
    whole = segment(CONTENT)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        orphan(root, bytes(flipped), segment(lines(1, 9)), name=f"host-7-{position}")
        with Spool(root, LIMIT) as spool:
            replayed = drain(spool)
            assert replayed[-1:] == lines(1, 9)
            expected = max(sum(position >= len(segment(CONTENT[:count])) for count in range(5)) - 1, 0)
            assert replayed[:-1] == CONTENT[:expected]
            assert spool.counters()["bad_segments"] == 1
        (aside,) = (root / "bad").iterdir()
        assert aside.read_bytes() == flipped
        assert f"host-7-{position}.000000000001.segment." in aside.name
        aside.unlink()


@pytest.mark.usefixtures("small")
def test_damage_of_an_own_segment_is_found_too(spool: Spool, root: Path) -> None:
    """A synced segment that lost its end is damaged, not torn: a crash cannot have done it."""
    put(spool, lines(8))
    first = files(root)[0]
    os.truncate(first, first.stat().st_size - 1)
    held = len(spool_segment.parse(first.read_bytes()).lines)
    assert drain(spool) == lines(held) + lines(7 - held, held + 1)
    assert spool.counters()["bad_segments"] == 1
    assert spool.waiting == 0


@pytest.mark.usefixtures("small")
def test_a_segment_that_others_delete_is_passed_over(spool: Spool, root: Path) -> None:
    """Before it is read, or before it is done. It is counted."""
    put(spool, lines(12))
    first, second, *_ = files(root)
    first.unlink()
    batch = spool.peek(100)
    second.unlink()
    spool.done(batch)
    drain(spool)
    assert spool.counters()["lost_segments"] == 2
    assert spool.waiting == 0


def test_another_version_is_left_for_its_reader(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of a newer version stays, is counted, and is read by code that knows it. Others of its folder go on."""
    newer = head(2) + frame(b"newer")
    folder = orphan(root, newer, segment(lines(1)))
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == lines(1)
        spool.adopt()
        assert spool.counters()["unknown_segments"] == 1
        assert [path.read_bytes() for path in folder.iterdir()] == [newer]
    monkeypatch.setattr(spool_segment, "READABLE", {1, 2})
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == [b"newer"]
    assert not folder.exists()


def test_links_pipes_folders_and_foreign_files_are_left_alone(root: Path, tmp_path: Path) -> None:
    """Nothing but a regular file with a segment's name is opened for reading, and nothing else is deleted."""
    secret = tmp_path / "secret"
    secret.write_bytes(segment([b"secret"]))
    folder = orphan(root)
    (folder / "000000000001.segment").symlink_to(secret)
    os.mkfifo(folder / "000000000002.segment")
    (folder / "000000000003.segment").mkdir()
    (folder / "notes.txt").write_text("keep")
    (folder / f"{5:012}.segment".replace("0", "\N{ARABIC-INDIC DIGIT ZERO}")).write_bytes(segment([b"secret"]))
    (root / "host-1-2").symlink_to(tmp_path)
    (root / "host-1-3").write_text("a file")
    (root / "host-1-4\n").mkdir()
    (root / os.fsdecode(b"\xff")).mkdir()
    others = orphan(root, segment([b"secret"]), name="host-1-5")
    others.chmod(0o777)
    (others / "000000000001.segment").chmod(0o666)
    before = sorted(root.rglob("*"))
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == []
        assert spool.counters()["foreign_files"] == 7
    assert sorted(root.rglob("*")) == before
    others.chmod(0o700)
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == [], "others may have written it"


def test_a_link_is_not_the_folder_of_damaged_segments(root: Path, tmp_path: Path) -> None:
    """A damaged segment stays where it is if `bad` is a link; the lines behind it are replayed all the same."""
    orphan(root, b"damaged", segment(lines(2)))
    (root / "bad").symlink_to(tmp_path)
    with Spool(root, LIMIT) as spool:
        with pytest.raises(AuditError, match="cannot delete it"):
            spool.peek(10)
        assert drain(spool) == lines(2)
        assert spool.adopt() == 0, "it would be replayed again and again"
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_lengths_on_disk_take_no_memory(root: Path) -> None:
    """A length of 4 GiB with the right check, and a file of a terabyte, cost no more than a segment."""
    folder = orphan(root, segment([b""])[:-12] + bytes.fromhex("ffffffffffffffff00000000"), segment(lines(1)))
    os.truncate(folder / "000000000002.segment", 1 << 40)
    tracemalloc.start()
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == lines(1)
        assert spool.counters()["bad_segments"] == 2
    assert tracemalloc.get_traced_memory()[1] < 3 * spool_segment.SEGMENT_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_root_that_others_may_write_to_is_refused(root: Path, mode: int) -> None:
    """They could plant events. The error says what to do."""
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(AuditError, match=r"other users may write to it .*mode 0700"):
        Spool(root, LIMIT)


def test_a_root_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may write to it whenever they like."""
    root.mkdir(mode=0o700)
    status = root.stat()
    monkeypatch.setattr(os, "geteuid", lambda: status.st_uid + 1)
    fields = list(status)
    fields[4] = status.st_uid + 2
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result(fields))
    with pytest.raises(AuditError, match="other users may write to it"):
        Spool(root, LIMIT)


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    """With the reason, and no traceback of the operating system's."""
    root.write_text("")
    with pytest.raises(AuditError, match="cannot open it: Not a directory"):
        Spool(root, LIMIT)


# The bound.


def test_at_the_bound_it_says_how_many_it_took(root: Path) -> None:
    """Those it took are kept, the files stay below the bound, and what is done makes room."""
    with Spool(root, 10_000) as spool:
        content = [b"x" * 100] * 60
        assert spool.append(content) == 60
        spool.sync()
        took = spool.append(content)
        assert took == (10_000 - HEAD_BYTES) // (100 + RECORD_BYTES) - 60
        assert spool.append(content) == 0
        spool.sync()
        assert sum(path.stat().st_size for path in files(root)) <= 10_000
        assert len(drain(spool)) == 60 + took
        assert spool.append(content) == 60


def test_the_bound_is_for_all_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees what the others wrote, and what they made room for; also orphans and `bad/` count."""
    monkeypatch.setattr(spool_budget, "LISTED_EVERY", 0)
    limit = 100_000
    orphan(root, segment([b"o" * 1000] * 20))
    (root / "bad").mkdir()
    (root / "bad" / "kept").write_bytes(bytes(20_000))
    with Spool(root, limit) as first, Spool(root, limit) as second, Spool(root, limit) as third:
        spools = (first, second, third)
        took = -1
        while took:
            took = 0
            for spool in spools:
                took += spool.append([b"x" * 1000])
                spool.sync()
        used = sum(path.stat().st_size for path in files(root))
        assert limit - 2000 < used <= limit + len(spools) * (limit // 64 + 1000 + 3 * HEAD_BYTES)
        drain(first)
        assert second.append([b"x" * 1000]) == 1


def test_the_bound_is_checked_cheaply(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders are listed once for many lines, and a full spool does not list them at each call."""
    listed: list[int] = []
    size_below = spool_budget._size_below

    def listing(root: int) -> int:
        listed.append(root)
        return size_below(root)

    monkeypatch.setattr(spool_budget, "_size_below", listing)
    monkeypatch.setattr(spool_budget, "LISTED_EVERY", 3600)
    with Spool(root, 1 << 20) as spool:
        while spool.append([b"x" * 1000]):
            spool.sync()
        for _ in range(1000):
            assert spool.append([b"x" * 1000]) == 0
        assert len(listed) <= 1 + 64


# The disk refuses.


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("ENOSPC", "free some space"),
        ("EDQUOT", "free some space"),
        ("EROFS", "mount the file system writable"),
        ("EIO", "check the disk"),
        ("EACCES", "give the folder to the user"),
    ],
)
def test_what_the_disk_refuses_is_said_with_a_remedy(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch, error: str, remedy: str
) -> None:
    """Nothing of the group stays, what was synced does, and the next group is taken when the disk takes it again."""
    put(spool, lines(3))
    before = [path.read_bytes() for path in files(root)]
    monkeypatch.setattr(spool_writer, "os", Disk(1, getattr(errno, error)))
    spool.append(lines(3, 100))
    with pytest.raises(AuditError, match=remedy) as caught:
        spool.sync()
    assert caught.value.kind == "Spool"
    assert str(root) in str(caught.value)
    assert [path.read_bytes() for path in files(root)] == before
    put(spool, lines(3, 3))
    assert drain(spool) == lines(6)
    assert spool.counters()["bytes"] == 0


def test_a_limit_of_a_files_size_is_said(root: Path) -> None:
    """A real limit of the operating system (`ulimit -f`), reached in the middle of a group."""
    script = (
        "import resource, sys\n"
        "from custody.emit.errors import AuditError\n"
        "from custody.emit.spool import Spool\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        f"spool = Spool(sys.argv[1], {LIMIT})\n"
        "spool.append([b'kept'])\n"
        "spool.sync()\n"
        "spool.append([b'x' * 1000] * 100)\n"
        "try:\n    spool.sync()\nexcept AuditError as error:\n    print(error)\n"
        "spool.append([b'later'])\n"
        "spool.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    assert "ulimit -f" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000
    assert sum(path.stat().st_size for path in files(root)) < 100
    with Spool(root, LIMIT) as spool:
        assert drain(spool) == [b"kept", b"later"]


def test_too_many_open_files_lose_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that cannot be opened now is read later, in its turn."""
    put(spool, lines(3))
    monkeypatch.setattr(spool_folders, "os", Disk(1, errno.EMFILE))
    with pytest.raises(AuditError, match="ulimit -n"):
        spool.peek(1)
    assert drain(spool) == lines(3)


class Model(RuleBasedStateMachine):
    """A spool, and a list for what it should have: `waiting` of its own process, `left` by processes that ended."""

    @initialize()
    def open(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for name in ("fsync", "fdatasync"):
            self._patch.setattr(os, name, lambda _: None)
        for module in (spool_module, spool_segment, spool_writer):
            self._patch.setattr(module, "SEGMENT_BYTES", 200)
        self._patch.setattr(spool_module, "ADOPTED_AT_ONCE", 1000)
        self._folder = tempfile.TemporaryDirectory()
        self._root = Path(self._folder.name) / "spool"
        self._spool = Spool(self._root, LIMIT)
        self._number = 0
        self._unsynced: list[bytes] = []
        self._waiting: list[bytes] = []
        self._left: list[bytes] = []
        self._done_of_segment: list[bytes] = []

    @rule(count=st.integers(0, 12))
    def append(self, count: int) -> None:
        assert self._spool.append(lines(count, self._number)) == count
        self._unsynced += lines(count, self._number)
        self._number += count

    @rule()
    def sync(self) -> None:
        self._spool.sync()
        self._waiting += self._unsynced
        self._unsynced = []

    @rule()
    def sync_in_vain(self) -> None:
        self._patch.setattr(spool_writer, "os", Disk(1, errno.ENOSPC))
        if self._unsynced:
            with pytest.raises(AuditError):
                self._spool.sync()
        self._patch.setattr(spool_writer, "os", os)
        self._unsynced = []

    @rule(limit=st.integers(1, 8), share=st.integers(0, 8))
    def deliver(self, limit: int, share: int) -> None:
        batch = self._spool.peek(limit)
        expected = self._left + self._waiting
        assert list(batch.lines) == expected[: len(batch.lines)]
        assert bool(batch.lines) == bool(expected)
        delivered = batch.lines[:share]
        self._spool.done(batch, share)
        reading = self._spool._reading
        self._done_of_segment = [*self._done_of_segment, *delivered] if reading else []
        from_left = min(len(delivered), len(self._left))
        del self._left[:from_left]
        del self._waiting[: len(delivered) - from_left]

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        """End the process: what was done of a segment that is not done as a whole is replayed."""
        if kill:
            self._spool.abandon()
        else:
            self._spool.close()
            self._waiting += self._unsynced
        self._left = self._done_of_segment + self._left + self._waiting
        self._unsynced, self._waiting, self._done_of_segment = [], [], []
        self._spool = Spool(self._root, LIMIT)

    @rule()
    def adopt(self) -> None:
        assert self._spool.adopt() == 0

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "_spool"):
            assert self._spool.waiting == len(self._unsynced) + len(self._waiting)

    def teardown(self) -> None:
        if hasattr(self, "_spool"):
            self._spool.close()
            self._patch.undo()
            self._folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(stateful_step_count=30)


def test_refused_lines_lie_in_bad_and_are_not_replayed(spool: Spool, root: Path) -> None:
    """They are whole there, in a segment that only the owner reads, and count towards the bound."""
    put(spool, lines(2))
    before = spool.counters()["bytes"]
    assert spool.keep_refused(lines(3, 10)) == 3
    assert spool.keep_refused([]) == 0
    (kept,) = (root / "bad").iterdir()
    assert kept.read_bytes() == segment(lines(3, 10))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert spool.counters()["bytes"] - before == kept.stat().st_size
    assert drain(spool) == lines(2)


@pytest.mark.parametrize("call", ["create", "write", "fsync"])
def test_refused_lines_that_the_disk_does_not_take_leave_nothing(
    spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The error says so, no part of a file stays, and the room is given back."""
    spool.keep_refused(lines(1))
    before = (spool.counters(), sorted((root / "bad").iterdir()))
    calls = Disk()
    monkeypatch.setattr(spool_folders, "os", calls)
    spool.keep_refused(lines(1))
    (latest,) = {*(root / "bad").iterdir()} - {*before[1]}
    latest.unlink()
    spool._budget.freed(len(segment(lines(1))))
    for at in [index for index, name in enumerate(calls.calls, 1) if name == call]:
        monkeypatch.setattr(spool_folders, "os", Disk(at, errno.ENOSPC))
        with pytest.raises(AuditError, match="free some space"):
            spool.keep_refused(lines(1))
        assert (spool.counters(), sorted((root / "bad").iterdir())) == before


def test_a_segment_that_could_not_be_closed_is_closed_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error its number may be another file's. Its lines are synced, so they are replayed."""
    put(spool, lines(2))
    closed: list[int] = []

    def fails(descriptor: int) -> None:
        closed.append(descriptor)
        os.close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(spool_writer, "os", Mock(close=fails))
        with pytest.raises(AuditError, match="close a segment"):
            spool.peek(10)
        assert spool.peek(10).lines == tuple(lines(2))
    assert len(closed) == 1


def test_a_fork_in_the_middle_of_an_adoption_leaves_the_child_no_lock(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could adopt the folder as long as the child lives."""
    name = orphan(root, segment(lines(3))).name
    opened = os.open(root, os.O_RDONLY)
    children: list[tuple[int, int]] = []

    def forks(*_: object) -> None:
        reading, writing = os.pipe()
        ready, is_ready = os.pipe()
        if not (child := os.fork()):
            os.close(writing)
            os.write(is_ready, b".")
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        assert os.read(ready, 1) == b"."
        os.close(ready)
        os.close(is_ready)
        children.append((child, writing))

    monkeypatch.setattr(spool_folders, "_list_segments", forks)
    folder = spool_folders.adopt_folder(opened, name)
    assert folder is not None
    monkeypatch.undo()
    spool_folders.let_go(folder.descriptor)
    try:
        again = spool_folders.adopt_folder(opened, name)
        assert again is not None, "the child has the lock"
        assert len(again.segments) == 1
        spool_folders.let_go(again.descriptor)
    finally:
        for child, writing in children:
            os.close(writing)
            os.waitpid(child, 0)
        os.close(opened)
