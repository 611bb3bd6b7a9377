"""A copy is a valid archive at any moment, is made of nothing but the first's bytes, and never replaces anything."""

import dataclasses
import itertools
import os
import shutil
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from custody.archive import copy as copying
from custody.archive.copy import Copied, Progress, copy_archive
from custody.archive.copy_heads import signed_heads
from custody.errors import (
    ConfigurationError,
    ObjectArchived,
    ObjectMissing,
    TerminalStoreError,
    TransientStoreError,
)
from custody.findings import Severity
from custody.format import layout
from custody.keys.trust import Trust, open_trust
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, S3Options, Store
from custody.verify.run import verify
from tests.helpers.archives import Builder, Edit
from tests.helpers.memory import MemoryStore
from tests.helpers.reading import read_bucket, read_folder
from tests.helpers.sample import Growing
from tests.helpers.scene import Scene, build
from tests.servers.s3 import MotoServer, SeaweedServer

SHORTER = {"orphan", "empty", "pending-checkpoint", "unchecked-signature"}
"""What a shorter archive, or one that is being written, may be told of."""
UNTIL_LATER = {("segment-missing", "old/0"), ("statement", "audit@2/0")}
"""What the scene's logs were told of before they had a later statement: one that lets records go that have expired, and
one that passes over a slot."""


class Died(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """An archive with all that one may hold, a topic's later epoch, a slot that was passed over, and litter too."""
    made = build(tmp_path_factory.mktemp("scene"))
    main = made.main
    size, root = main.head
    previous = {"epoch": 1, "size": size, "root": root.hex()}
    later = Builder(made.root, epoch=2, previous_epoch=previous, clock=main.clock)
    made.logs[later.name] = later
    later.append()
    later.pass_over()
    later.append(5)
    later.checkpoint()
    made.audit()
    made.put("events/.DS_Store", b"litter")
    made.put("a note", b"")
    return made


def objects_of(scene: Scene) -> dict[str, bytes]:
    return {key: scene.read(key) for key in scene.listed()}


def run(source: Store, target: Store, progress: Callable[[Progress], None] | None = None) -> Copied:
    return copy_archive(source, target, elsewhere=source.url == target.url == "memory:", progress=progress)


def told(store: Store, scene: Scene) -> set[str]:
    """Verify, and return the findings that a shorter archive would not give."""
    report = verify(store, scene.trust, now=scene.now, workers=0, **scene.options)
    return {
        finding.finding
        for finding in report.findings
        if finding.finding not in SHORTER and (finding.finding, finding.log) not in UNTIL_LATER
    }


def reasons(done: Copied) -> dict[str, str]:
    """Return by key why what was refused was."""
    return {refusal.key: refusal.reason for refusal in done.refused}


def test_a_copy_is_byte_for_byte_the_first(scene: Scene, tmp_path: Path) -> None:
    """All that lies under the root is copied, litter and tables too, and verification says the same of both."""
    source, target = open_store(str(scene.root)), open_store(str(tmp_path / "copy"))
    steps: list[Progress] = []
    done = run(source, target, steps.append)
    assert read_folder(tmp_path / "copy") == objects_of(scene)
    assert (done.objects, done.present, done.refused, done.exit_code) == (len(scene.listed()), 0, [], 0)
    assert (steps[-1].objects, steps[-1].stored) == (done.objects - 1, steps[-1].total)
    reports = [verify(store, scene.trust, now=scene.now, workers=0) for store in (source, target)]
    assert [str(finding) for finding in reports[0].findings] == [str(finding) for finding in reports[1].findings]
    assert reports[0].logs == reports[1].logs


def test_a_second_run_copies_what_is_new(tmp_path: Path) -> None:
    """A run after the first has grown is replication: only what is new is read and put."""
    growing = Growing(tmp_path)
    growing.append(3)
    source, target = MemoryStore(read_folder(growing.folder)), MemoryStore()
    run(source, target)
    before = set(source.objects)
    growing.append(2)
    source.objects, source.calls, target.calls = read_folder(growing.folder), [], []
    done = run(source, target)
    new = set(source.objects) - before
    assert {key for name, key in target.calls if name == "create"} == new
    assert (done.objects, done.present) == (len(new), len(before))
    assert target.objects == source.objects
    read = {key for name, key in source.calls if name == "read"}
    # Besides, the newest statement of each side, by which both have one history.
    assert read - new == {layout.ARCHIVE, max(key for key in before if key.startswith(layout.MANIFESTS))}


def death(at: int) -> Callable[[str, str], None]:
    """Return what ends the process at a call, and at each later one: several threads are at work."""
    numbers = itertools.count()

    def die(_name: str, _key: str) -> None:
        if next(numbers) >= at:
            raise Died

    return die


@pytest.mark.parametrize("side", ["put", "read"])
def test_killed_at_any_call(scene: Scene, side: str) -> None:
    """Killed at any put or read, the copy is a valid archive that is only shorter, and the next run completes it."""
    source, whole = MemoryStore(objects_of(scene)), MemoryStore()
    run(source, whole)
    store = whole if side == "put" else source
    number = len(store.calls)
    assert number > len(source.objects)
    stopped = 0
    for at in range(number):
        target, read = MemoryStore(), MemoryStore(source.objects)
        broken = target if side == "put" else read
        broken.before = death(at)
        with pytest.raises(Died):
            run(read, target)
        # A process that is killed has no threads left. Here some may still be at work on what is broken.
        target = MemoryStore(dict(target.objects))
        stopped += 0 < len(target.objects) < len(source.objects)
        assert set(target.objects.items()) <= set(source.objects.items())
        if target.objects:
            assert told(target, scene) <= {"foreign", "new-epoch", "passed-over"}, at
        done = run(source, target)
        assert target.objects == source.objects
        assert done.exit_code == 0
    assert stopped > 0.8 * len(source.objects)


class Growers:
    """Writers of an archive that append each time somebody asks its store anything."""

    def __init__(self, folder: Path, epochs: bool) -> None:
        self.main = Builder(folder).init()
        self.main.append()
        self.other = Builder(folder, partition=1)
        self.other.append()
        self.epochs = epochs
        self.lock = threading.Lock()

    def write(self, *_: object) -> None:
        with self.lock:
            for log in (self.main, self.other):
                log.append(3, quarantine=[1])
                log.checkpoint()
            if self.epochs:
                size, root = self.main.head
                previous = {"epoch": self.main.epoch, "size": size, "root": root.hex()}
                epoch = self.main.epoch + 1
                self.main = Builder(self.main.root, epoch=epoch, previous_epoch=previous, clock=self.main.clock)
                self.main.append()


class Asked:
    """A store that lets somebody do something before each listing, and before the first reads."""

    def __init__(self, store: Store, before: Callable[[], None]) -> None:
        self._store, self._before = store, before
        self._calls = itertools.count()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in {"read", "list"}:
            return value

        def call(*arguments: Any, **more: Any) -> Any:
            if name == "list" or next(self._calls) < 5:
                self._before()
            return value(*arguments, **more)

        return call


@pytest.mark.parametrize("epochs", [False, True])
def test_copied_while_writers_append(tmp_path: Path, epochs: bool) -> None:
    """What refers to others is listed before them: no copy of a growing archive lacks what it names, epochs too."""
    growers = Growers(tmp_path / "archive", epochs)
    trust = build(tmp_path / "other").trust
    trust = dataclasses.replace(trust, archive=None)
    source, target = open_store(str(tmp_path / "archive")), open_store(str(tmp_path / "copy"))
    for _ in range(2):
        run(Asked(source, growers.write), target)
        now = growers.main.clock
        report = verify(target, trust, now=now, workers=0)
        wrong = {finding.finding for finding in report.findings} - SHORTER - {"new-epoch"}
        assert wrong == set(), [str(finding) for finding in report.findings]
    run(source, target)
    assert read_folder(tmp_path / "copy") == read_folder(tmp_path / "archive")


@pytest.mark.parametrize("kinds", ["folder-s3", "s3-s3", "s3-folder"])
def test_between_folders_and_buckets(
    scene: Scene, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str
) -> None:
    """Any store can be copied to any other, and the target's own lock is set on all evidence."""
    seaweed.use(monkeypatch)
    client, bucket = seaweed.client(), seaweed.make_bucket(object_lock=True)
    plain = S3Options(endpoint_url=seaweed.endpoint_url)
    locked = dataclasses.replace(plain, retention_mode="GOVERNANCE", retention_days=3)
    kind, _, other = kinds.partition("-")
    source = open_store(str(scene.root))
    if kind == "s3":
        first = open_store(f"s3://{seaweed.make_bucket()}/first", plain)
        run(source, first)
        source = first
    where = f"s3://{bucket}/second" if other == "s3" else str(tmp_path / "copy")
    target = open_store(where, locked)
    assert run(source, target).exit_code == 0
    got = read_bucket(client, bucket, "second/") if other == "s3" else read_folder(tmp_path / "copy")
    assert got == objects_of(scene)
    again = run(source, target)
    assert (again.objects, again.present) == (0, len(got))
    for key in got if other == "s3" else ():
        lock = target.capabilities.locks.lock(key) if target.capabilities.locks else None
        assert (lock is not None) == key.startswith(layout.EVIDENCE), key
    for store in {source, target}:
        store.close()
    client.close()


def test_archived_objects_are_named_and_the_rest_is_copied(
    scene: Scene, moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object in an archive storage class is named with what to do; once it is restored, the next run copies it."""
    moto.use(monkeypatch)
    client, bucket = moto.client(), moto.make_bucket()
    cold = scene.main.statements[-1]["segment"]["key"]
    for key, data in objects_of(scene).items():
        client.put_object(
            Bucket=bucket, Key=f"a/{key}", Body=data, StorageClass="DEEP_ARCHIVE" if key == cold else "STANDARD"
        )
    source = open_store(f"s3://{bucket}/a", S3Options(endpoint_url=moto.endpoint_url))
    target = open_store(str(tmp_path / "copy"))
    done = run(source, target)
    assert reasons(done) == {cold: "archived"}
    assert "custody backfill" in done.refused[0].message
    assert done.exit_code == Severity.UNVERIFIABLE
    assert read_folder(tmp_path / "copy") == {key: data for key, data in objects_of(scene).items() if key != cold}
    client.restore_object(Bucket=bucket, Key=f"a/{cold}", RestoreRequest={"Days": 1})
    assert run(source, target).exit_code == 0
    assert read_folder(tmp_path / "copy") == objects_of(scene)
    client.close()
    source.close()


def test_names_that_lead_out_of_the_target(
    scene: Scene, moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys with `..`, absolute ones and those of staged files are named, and nothing is written outside the target."""
    moto.use(monkeypatch)
    client, bucket = moto.client(), moto.make_bucket()
    bad = ["events/../../../escaped", "/absolute", ".staging/1-1", "manifests/", "tables//x", "manifests/../up"]
    clash = ["a note/inside", "x" * 300]
    litter = {"a note", clash[0]}
    for key, data in {**objects_of(scene), **dict.fromkeys([*bad, *clash], b"hostile")}.items():
        client.put_object(Bucket=bucket, Key=f"a/{key}", Body=data)
    inside = tmp_path / "deep" / "er"
    source = open_store(f"s3://{bucket}/a", S3Options(endpoint_url=moto.endpoint_url))
    done = run(source, open_store(str(inside)))
    # Of a file and a folder that have one name, there can be one.
    (clashed,) = litter & set(reasons(done))
    assert reasons(done) == {**dict.fromkeys(bad, "name"), clashed: "unwritten", clash[1]: "unwritten"}
    assert done.exit_code == Severity.POLICY
    made = read_folder(tmp_path / "deep")
    assert len(made) == len(objects_of(scene))
    assert {key: data for key, data in made.items() if key.removeprefix("er/") not in litter} == {
        f"er/{key}": data for key, data in objects_of(scene).items() if key not in litter
    }
    assert not Path("/absolute").exists()
    client.close()
    source.close()


def test_what_is_no_file_is_not_followed(scene: Scene, tmp_path: Path) -> None:
    """Symbolic links and pipes in a folder are not objects: nothing that they lead to gets into the copy."""
    here = scene.copy(tmp_path / "archive")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    (here.root / "tables/link").symlink_to(secret / "file")
    (here.root / "events/link").symlink_to(secret)
    os.mkfifo(here.root / "events/pipe")
    (here.root / os.fsdecode(b"tables/\xff")).write_bytes(b"a name that is no text")
    done = run(open_store(str(here.root)), open_store(str(tmp_path / "copy")))
    assert reasons(done) == {"tables/\\xff": "missing"}
    assert read_folder(tmp_path / "copy") == objects_of(scene)


def test_symbolic_links_in_the_target(scene: Scene, tmp_path: Path) -> None:
    """Nothing is written through a symbolic link that somebody put into the target."""
    target, outside = open_store(str(tmp_path / "copy")), tmp_path / "outside"
    outside.mkdir()
    target.create(layout.ARCHIVE, scene.read(layout.ARCHIVE))
    (tmp_path / "copy/events").symlink_to(outside)
    with pytest.raises(TerminalStoreError, match="symbolic link"):
        run(open_store(str(scene.root)), target)
    assert list(outside.iterdir()) == []


def test_a_target_that_is_not_this_archives(scene: Scene, tmp_path: Path) -> None:
    """Another archive, or anything else that is there already, is refused before anything is written."""
    source = open_store(str(scene.root))
    Builder(tmp_path / "other", archive="5a0c7a1e-1111-4222-8333-94b1ce1d2f3b").init().append()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("mine")
    large = tmp_path / "large"
    large.mkdir()
    (large / layout.ARCHIVE).write_bytes(bytes(100_000))
    for folder, why in (("other", "another archive"), ("home", "'letter'"), ("large", "another archive")):
        before = read_folder(tmp_path / folder)
        with pytest.raises(ConfigurationError, match=why):
            run(source, open_store(str(tmp_path / folder)))
        assert read_folder(tmp_path / folder) == before


def test_one_inside_the_other(scene: Scene, tmp_path: Path) -> None:
    """An archive is not copied onto itself, nor into itself, nor around itself, by whatever name."""
    here = scene.copy(tmp_path / "deep/archive")
    (tmp_path / "alias").symlink_to(here.root)
    before = read_folder(tmp_path)
    for other in (here.root, here.root / "copy", tmp_path / "deep", tmp_path / "alias", tmp_path / "alias/tables"):
        with pytest.raises(ConfigurationError, match="inside the other"):
            run(open_store(str(here.root)), open_store(str(other)))
        # A folder has no endpoint.
        with pytest.raises(ConfigurationError, match="inside the other"):
            copy_archive(open_store(str(here.root)), open_store(str(other)), elsewhere=True)
    assert read_folder(tmp_path) == before
    run(open_store(str(here.root)), open_store(str(tmp_path / "deep/archive-2")))


def test_a_source_that_is_no_archive(tmp_path: Path) -> None:
    """Without an `archive.json`, or with one that is none, nothing is copied."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none/file").write_text("x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / layout.ARCHIVE).write_text("{}\n{}\n")
    for folder in ("none", "bad", "missing"):
        with pytest.raises(ConfigurationError):
            run(open_store(str(tmp_path / folder)), open_store(str(tmp_path / "copy")))
    assert not (tmp_path / "copy").exists()


def test_nothing_is_overwritten(scene: Scene) -> None:
    """An object with other bytes is named with both archives, stays as it is, and the exit code says how bad it is."""
    source, target = MemoryStore(objects_of(scene)), MemoryStore()
    segment = scene.main.statements[-1]["segment"]["key"]
    target.objects = {layout.ARCHIVE: source.objects[layout.ARCHIVE], segment: b"other", "a note": b"other"}
    done = run(source, target)
    assert reasons(done) == {segment: "differs", "a note": "differs"}
    assert {refusal.key: refusal.severity for refusal in done.refused} == {
        segment: Severity.TAMPERED,
        "a note": Severity.POLICY,
    }
    assert done.exit_code == Severity.TAMPERED
    assert target.objects == {**source.objects, segment: b"other", "a note": b"other"}


def test_written_by_another_meanwhile(scene: Scene) -> None:
    """A put that another one wins is no success, and nothing of that log is put after it."""
    source, target = MemoryStore(objects_of(scene)), MemoryStore()
    taken = scene.main.key(3)

    def take(name: str, key: str) -> None:
        if (name, key) == ("create", taken):
            target.objects[taken] = b"other"

    target.before = take
    done = run(source, target)
    assert reasons(done) == {taken: "differs"}
    assert done.exit_code == Severity.TAMPERED
    prefix = layout.log_prefix(layout.Log("audit", 0))
    assert [key for key in sorted(target.objects) if key.startswith(prefix)] == [scene.main.key(n) for n in range(4)]


def named(writer: str) -> Edit:
    """Return what names the writer of a statement."""
    return lambda fields: fields.update(writer=writer)


@pytest.mark.parametrize("same_size", [True, False])
def test_two_histories_are_not_mixed(scene: Scene, tmp_path: Path, same_size: bool) -> None:
    """Where a promoted copy and the first both went on, nothing of that log is put onto the other's history."""
    first, second = scene.copy(tmp_path / "first"), scene.copy(tmp_path / "second")
    for number, (made, steps) in enumerate(((second, 1), (first, 3))):
        for _ in range(steps):
            name = f"{number}" if same_size else "x" * number
            made.logs["orders/0"].append(4, edit=named(name))
    source, target = open_store(str(first.root)), open_store(str(second.root))
    before = read_folder(second.root)
    done = run(source, target)
    (fork,) = [refusal for refusal in done.refused if refusal.reason == "fork"]
    assert fork.key == first.logs["orders/0"].key(len(second.logs["orders/0"].entries) - 1)
    assert source.url in fork.message
    assert target.url in fork.message
    assert done.exit_code == Severity.TAMPERED
    assert read_folder(second.root) == before


def test_a_source_that_went_back(scene: Scene) -> None:
    """If the copy has statements that the first lacks, the run says so: they were deleted, or both were exchanged."""
    source, target = MemoryStore(objects_of(scene)), MemoryStore(objects_of(scene))
    gone = scene.main.key(len(scene.main.entries) - 1)
    del source.objects[gone], source.objects["a note"]
    done = run(source, target)
    assert reasons(done) == {gone: "ahead"}
    assert (done.exit_code, done.only_in_target) == (Severity.INCOMPLETE, 1)
    assert target.objects == objects_of(scene)


class Bad:
    """A store of which some objects cannot be read."""

    def __init__(self, store: Store, error: Callable[[str], Exception | bytes], *keys: str) -> None:
        self._store, self._error, self._keys = store, error, keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, **more: Any) -> bytes:
        if key in self._keys:
            answer = self._error(key)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return self._store.read(key, **more)


@pytest.mark.parametrize(
    ("error", "reason", "severity"),
    [
        (TerminalStoreError, "unreadable", Severity.UNVERIFIABLE),
        (ObjectArchived, "archived", Severity.UNVERIFIABLE),
        (ObjectMissing, "missing", Severity.INCOMPLETE),
        (lambda _: b"shorter", "changed", Severity.UNVERIFIABLE),
    ],
)
def test_objects_that_cannot_be_read(scene: Scene, error: Any, reason: str, severity: Severity) -> None:
    """One object that cannot be read keeps no other from being copied: all the rest is saved, and it is named."""
    source, target = MemoryStore(objects_of(scene)), MemoryStore()
    key = scene.main.key(1)
    done = run(Bad(source, error, key), target)
    assert reasons(done) == {key: reason}
    assert done.exit_code == severity
    assert target.objects == {other: data for other, data in source.objects.items() if other != key}


def test_a_store_that_does_not_answer(scene: Scene) -> None:
    """An outage ends the run with the store's error, and the next run goes on."""
    source, target = MemoryStore(objects_of(scene)), MemoryStore()
    with pytest.raises(TransientStoreError):
        run(Bad(source, TransientStoreError, scene.main.key(2)), target)
    kept = dict(target.objects)
    assert kept
    assert run(source, target).objects == len(source.objects) - len(kept)


def test_an_object_that_is_too_large(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no archive can hold is not read into memory, and is named."""
    monkeypatch.setattr(copying, "MOST_BYTES", 100_000)
    large = {"tables/large": bytes(100_001), layout.audit_object_key("a" * 64): bytes(100_001)}
    source, target = MemoryStore({**objects_of(scene), **large}), MemoryStore()
    done = run(source, target)
    assert reasons(done) == dict.fromkeys(large, "large")
    assert done.exit_code == Severity.UNVERIFIABLE
    assert not {key for name, key in source.calls if name == "read"} & set(large)


class Endless:
    """A store that lists very many objects."""

    def __init__(self, store: Store, count: int) -> None:
        self._store, self._count = store, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str = "", **more: Any) -> Iterator[ObjectInfo]:
        yield from self._store.list(prefix, **more)
        if not prefix:
            for number in range(self._count):
                yield ObjectInfo(f"../{number:0100}", 1)
                yield ObjectInfo(f"events/{number:0100}", 1 << 40)


def test_a_huge_listing(scene: Scene) -> None:
    """A hostile listing costs disk, and no more memory the longer it is; all of it is counted, and some is named."""
    peaks = []
    for count in (1_000, 10_000):
        source, target = MemoryStore(objects_of(scene)), MemoryStore()
        tracemalloc.start()
        done = run(Endless(source, count), target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.counts == {"name": count, "large": count}
        assert len(done.refused) == 2_000
        assert target.objects == source.objects
    assert peaks[1] < peaks[0] + 500_000, peaks


def test_no_room_for_the_listings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the temporary folder is full, the error says which, and what was copied stays."""
    connect = sqlite3.connect

    def small(name: str) -> sqlite3.Connection:
        made = connect(name)
        made.execute("PRAGMA max_page_count = 8")
        return made

    target = MemoryStore()
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", small)
        with pytest.raises(ConfigurationError, match=r"full.*TMPDIR"):
            run(Endless(MemoryStore(objects_of(scene)), 1_000), target)
    assert run(MemoryStore(objects_of(scene)), target).exit_code == 0
    assert target.objects == objects_of(scene)


def test_memory_and_requests_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large objects are not all in memory at once, and no log has two statements on the way."""
    monkeypatch.setattr(copying, "_BYTES_AHEAD", 3_000_000)
    more = {layout.audit_object_key(f"{number:064x}"): os.urandom(1_000_000) for number in range(12)}
    source, target = MemoryStore({**objects_of(scene), **more}), MemoryStore()
    lock = threading.Lock()
    busy: set[str] = set()
    most, chained = 0, 0
    met = threading.Barrier(3, timeout=60)

    class Watched(MemoryStore):
        def create(self, key: str, data: bytes) -> None:
            nonlocal most, chained
            with lock:
                busy.add(key)
                most = max(most, sum(len(source.objects[one]) for one in busy))
                chained = max(chained, len([one for one in busy if one.startswith("manifests/audit/0/")]))
            if len(data) == 1_000_000:
                # Three at a time there are, and no fourth.
                met.wait()
            target.create(key, data)
            with lock:
                busy.discard(key)

    run(source, Watched(target.objects))
    assert 3_000_000 - 10_000 <= most <= 3_000_000
    assert chained == 1
    assert target.objects == source.objects


def test_the_heads_of_the_first(scene: Scene) -> None:
    """Signed heads are the newest checkpoint and the newest entry; with public keys alone the checkpoint."""
    store = MemoryStore(objects_of(scene))
    archive = scene.trust.archive.id if scene.trust.archive else ""
    heads = {(log, head.size, head.root) for log, head in signed_heads(store, archive, scene.trust) if head}
    assert {(log, head.size, head.root) for log, head in scene.heads.items()} <= heads
    public = dataclasses.replace(
        scene.trust, keys={id_: key for id_, key in scene.trust.keys.items() if key.algorithm == "Ed25519"}
    )
    of_main = [head.size for log, head in signed_heads(store, archive, public) if log == "audit/0" and head]
    assert of_main == [max(layout.parse_checkpoint_key(key)[1] for key in scene.listed("checkpoints/audit/0/"))]  # type: ignore[index]
    assert {head for _, head in signed_heads(store, archive, Trust())} == {None}


def test_a_copy_that_is_cut_off_is_found_by_the_heads_of_the_first(tmp_path: Path) -> None:
    """A whole log that is gone from the copy, with all that signs it, is missed by the first's heads alone."""
    growing = Growing(tmp_path)
    growing.append(3)
    trust, now = open_trust([f"file:{growing.keyring}"]), datetime.now(UTC)
    source, target = open_store(str(growing.folder)), open_store(str(tmp_path / "copy"))
    run(source, target)
    archive = str(verify(source, trust, now=now, workers=0).archive)
    heads = [(log, head) for log, head in signed_heads(source, archive, trust) if head]
    shutil.rmtree(tmp_path / "copy/manifests")
    for folder in (tmp_path / "copy").iterdir():
        if folder.is_dir() and folder.name != ".staging":
            shutil.rmtree(folder)
    assert verify(target, trust, now=now, workers=0).exit_code == Severity.NOTICE
    report = verify(target, trust, now=now, workers=0, more_heads=heads)
    assert report.exit_code == Severity.TAMPERED
    assert {finding.finding for finding in report.findings} == {"head-rollback"}


def next_slot(growing: Growing, kind: str) -> str:
    """Return the key of the next slot of the log of statements, of audits, or of checkpoints."""
    log = layout.parse_log_text(growing.log)
    assert log
    if kind == "checkpoints":
        return layout.checkpoint_key(log, growing.size + 1)
    return layout.audit_key(0) if kind == "audits" else layout.manifest_key(log, growing.size)


def forged(growing: Growing) -> bytes:
    """Return a statement for the next slot, well-formed but for its signature, which an attacker made up."""
    other = growing.copy(growing.root.parent / "forger")
    other.append(1)
    line, signatures = (other.folder / next_slot(growing, "manifests")).read_bytes().splitlines(keepends=True)
    value = signatures.partition(b'"value":"')[2]
    return line + signatures.replace(value[:20], value[:20][::-1])


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("kind", ["manifests", "audits", "checkpoints"])
def test_an_unsigned_object_in_the_next_slot_stays_behind(tmp_path: Path, kind: str, keyed: bool) -> None:
    """Whoever can write into the first, without a key, stops no replica: what nobody signed is named, and left."""
    growing = Growing(tmp_path / "good")
    growing.append(2)
    trust = open_trust([f"file:{growing.keyring}"]) if keyed else None
    source, target = open_store(str(growing.folder)), open_store(str(tmp_path / "copy"))
    key = next_slot(growing, kind)
    (growing.folder / key).parent.mkdir(parents=True, exist_ok=True)
    (growing.folder / key).write_bytes(b"x")
    for _ in range(2):
        done = copy_archive(source, target, trust=trust)
        assert (reasons(done), done.exit_code) == ({key: "unsigned"}, Severity.POLICY)
        assert {**read_folder(tmp_path / "copy"), key: b"x"} == read_folder(growing.folder)
    (growing.folder / key).unlink()
    growing.append(2)
    assert copy_archive(source, target, trust=trust).exit_code == 0
    assert read_folder(tmp_path / "copy") == read_folder(growing.folder)


def test_a_slot_that_is_passed_over_is_copied(tmp_path: Path) -> None:
    """Once a signed statement passes over garbage, both are copied: the copy has the tree of the first."""
    growing = Growing(tmp_path / "good")
    growing.append(2)
    trust = open_trust([f"file:{growing.keyring}"])
    source, target = open_store(str(growing.folder)), open_store(str(tmp_path / "copy"))
    (growing.folder / next_slot(growing, "manifests")).write_bytes(b"x")
    copy_archive(source, target, trust=trust)
    growing.append(1)
    assert copy_archive(source, target, trust=trust).exit_code == 0
    assert read_folder(tmp_path / "copy") == read_folder(growing.folder)
    assert verify(target, trust, now=datetime.now(UTC), workers=0).exit_code == Severity.NOTICE


def test_a_forged_statement(tmp_path: Path) -> None:
    """With keys a forged statement stays behind. Without, it is copied, and then named for what it is: no fork."""
    growing = Growing(tmp_path / "good")
    growing.append(2)
    trust = open_trust([f"file:{growing.keyring}"])
    source = open_store(str(growing.folder))
    keyed, keyless = open_store(str(tmp_path / "keyed")), open_store(str(tmp_path / "keyless"))
    key = next_slot(growing, "manifests")
    (growing.folder / key).write_bytes(forged(growing))
    assert reasons(copy_archive(source, keyed, trust=trust)) == {key: "unsigned"}
    assert copy_archive(source, keyless).exit_code == 0
    (growing.folder / key).unlink()
    # It is there alone, and then in place of a good one.
    for steps, severity in ((0, Severity.INCOMPLETE), (2, Severity.TAMPERED)):
        growing.append(steps)
        done = copy_archive(source, keyless, trust=trust)
        assert (reasons(done), done.exit_code) == ({key: "unsigned"}, severity)
        assert keyless.url in done.refused[0].message
    assert copy_archive(source, keyed, trust=trust).exit_code == 0
    assert read_folder(tmp_path / "keyed") == read_folder(growing.folder)


def test_public_keys_copy_what_a_head_covers(scene: Scene, tmp_path: Path) -> None:
    """An auditor without secrets copies statements up to the newest signed head, and the copy lacks nothing it names.

    A forged statement after that head stays behind. The run after the next checkpoint copies what was signed.
    """
    here = scene.copy(tmp_path / "first")
    main = here.logs["orders/0"]
    secret = {id_: dataclasses.replace(key, material=None) for id_, key in here.trust.keys.items()}
    public = {id_: key for id_, key in here.trust.keys.items() if key.algorithm == "Ed25519"}
    trust = dataclasses.replace(here.trust, keys=secret | public)
    main.checkpoint()
    main.append(3)
    source, target = open_store(str(here.root)), open_store(str(tmp_path / "copy"))
    archive = trust.archive.id if trust.archive else ""

    def copied() -> Copied:
        known = [(log, head) for log, head in signed_heads(source, archive, trust) if head]
        return copy_archive(source, target, trust=trust, known=known)

    last = main.key(len(main.entries) - 1)
    done = copied()
    assert [refusal.key for refusal in done.refused if refusal.key.startswith("manifests/orders/")] == [last]
    assert done.counts == {"unsigned": len(done.refused)}
    assert done.exit_code == Severity.NOTICE
    assert "head-rollback" not in {
        finding.finding for finding in verify(target, trust, now=here.now, workers=0).findings
    }
    main.checkpoint()
    copied()
    assert last in read_folder(tmp_path / "copy")


@pytest.mark.parametrize("inside", [True, False])
def test_one_place_behind_two_endpoints(
    scene: Scene, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """Two endpoints that lead to one bucket are noticed, and the archive is not copied into itself."""
    seaweed.use(monkeypatch)
    client, bucket = seaweed.client(), seaweed.make_bucket()
    options = S3Options(endpoint_url=seaweed.endpoint_url)
    source = open_store(f"s3://{bucket}/a", options)
    copy_archive(open_store(str(scene.root)), source)
    before = read_bucket(client, bucket, "a/")
    target = open_store(f"s3://{bucket}/a/copy" if inside else f"s3://{bucket}/a", options)
    with pytest.raises(ConfigurationError, match="inside the other"):
        copy_archive(source, target, elsewhere=True)
    more = {f"copy/{layout.ARCHIVE}": before[layout.ARCHIVE]} if inside else {}
    assert read_bucket(client, bucket, "a/") == before | more
    source.close()
    target.close()
    client.close()
