"""The one door to storage: what a folder, a real S3 server and moto promise alike, and what each says when it fails."""

import contextlib
import errno
import itertools
import os
import pickle
import random
import socket
import stat
import string
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError
from hypothesis import given, settings
from hypothesis import strategies as st

import custody.store.s3
import custody.store.s3_client
from custody.errors import (
    ConfigurationError,
    CustodyError,
    FormatError,
    NoBucket,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TransientStoreError,
)
from custody.store.open import open_store
from custody.store.protocol import ObjectInfo, S3Options, Store
from custody.store.s3_errors import KeyRefused
from tests.servers.ports import free_ports
from tests.servers.proxy import FAULTS, Fault, FaultyProxy
from tests.servers.s3 import MotoServer, SeaweedServer

KEY = "events/2026/01/02/03/04/05-orders-0.jsonl.gz"
SECRET = "hunter2-do-not-show"

Open = Callable[..., Store]


@pytest.fixture(params=["file", "seaweed", "moto"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_store(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Open a store with nothing in it, each time another."""
    opened: list[Store] = []

    def make(**bucket: Any) -> Store:
        if backend == "file":
            opened.append(open_store(str(tmp_path / "archives" / str(len(opened)))))
        else:
            server = request.getfixturevalue(backend)
            server.use(monkeypatch)
            url = f"s3://{server.make_bucket(**bucket)}/some/archive"
            opened.append(open_store(url, S3Options(endpoint_url=server.endpoint_url)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(new_store: Open) -> Store:
    return new_store()


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "archive"))


def names(store: Store, prefix: str) -> list[str]:
    """Return the next path components under a prefix."""
    folders, objects = store.level(prefix)
    return sorted([*folders, *(info.key[len(prefix) :] for info in objects)])


def has_history(store: Store, key: str) -> bool:
    """Return whether a store keeps versions of a key: no folder does."""
    versions = store.capabilities.versions
    return versions is not None and versions.has_history(key)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts, nor long for an answer."""
    monkeypatch.setattr(custody.store.s3_client, "_READ_SECONDS", 1.0)
    monkeypatch.setattr(custody.store.s3, "_BACKOFF_SECONDS", (0.001, 0.001))
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


# --- what every store promises ---------------------------------------------------------------------------------------


def test_same_bytes_again_are_success_and_others_are_not(store: Store) -> None:
    """A key holds its first bytes for ever: the same again succeed, others are refused and change nothing."""
    store.create(KEY, b"first")
    store.create(KEY, b"first")
    for other in (b"", b"firs", b"First", b"first and more"):
        with pytest.raises(ObjectExists):
            store.create(KEY, other)
    assert store.read(KEY, limit=100) == b"first"


# moto looks and puts in two steps, without a lock.
@pytest.mark.parametrize("backend", ["file", "seaweed"])
def test_one_writer_wins_a_race(store: Store) -> None:
    """Of sixteen writers at once, one wins, each other one is told, and the winner's bytes are what is there."""
    start = threading.Barrier(16)

    def write(number: int) -> bytes | None:
        data = bytes([number]) * 50_000
        start.wait()
        try:
            store.create(KEY, data)
        except ObjectExists:
            return None
        return data

    with ThreadPoolExecutor(16) as pool:
        winners = [data for data in pool.map(write, range(16)) if data]
    assert winners == [store.read(KEY, limit=50_000)]


def test_writers_of_the_same_bytes_all_succeed(store: Store) -> None:
    """Sixteen writers of the same bytes all return success: a put that is repeated does no harm."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.create(KEY, b"same" * 1000), range(16)))
    assert store.read(KEY, limit=4000) == b"same" * 1000


@pytest.mark.parametrize("data", [b"", b"x", b"hello world"])
def test_reads_slice(store: Store, data: bytes) -> None:
    """A read returns what a slice would, beyond the end, too."""
    store.create(KEY, data)
    for start, size in itertools.product((0, 1, 5, 11, 12), (None, 0, 1, 3, 100)):
        expected = data[start:] if size is None else data[start : start + size]
        assert store.read(KEY, limit=11, start=start, size=size) == expected, (start, size)


def test_a_read_is_bounded(store: Store) -> None:
    """What is larger than the limit is a FormatError, whole or in part; what is as large is not."""
    store.create(KEY, b"0123456789")
    assert store.read(KEY, limit=10) == b"0123456789"
    assert store.read(KEY, limit=3, start=7) == b"789"
    assert store.read(KEY, limit=3, start=2, size=3) == b"234"
    for limit, start, size in ((9, 0, None), (0, 0, None), (3, 6, None), (2, 0, 3), (0, 9, 1)):
        with pytest.raises(FormatError, match="larger than the limit"):
            store.read(KEY, limit=limit, start=start, size=size)


def test_what_is_missing_is_missing(store: Store) -> None:
    """A store that nothing was written to is empty, not an error."""
    for key in (KEY, "archive.json"):
        assert not store.exists(key)
        for size in (None, 0, 5):
            with pytest.raises(ObjectMissing):
                store.read(key, limit=5, size=size)
        assert not has_history(store, key)
    assert list(store.list()) == list(store.list("events/")) == []
    assert names(store, "") == names(store, "manifests/") == []


def test_the_beginning_of_a_key_is_no_object(store: Store) -> None:
    """Neither a key's folder nor the beginning of its name is an object."""
    store.create("manifests/orders/0/000000000000.json", b"x")
    assert store.exists("manifests/orders/0/000000000000.json")
    for key in ("manifests", "manifests/orders/0", "manifests/orders/0/0000", "manifests/orders/0/000000000000.json/x"):
        assert not store.exists(key)
        with pytest.raises(ObjectMissing):
            store.read(key, limit=5)


def test_listing_finds_each_object_after_a_key_once(store: Store) -> None:
    """A listing holds each key that begins with the prefix and is greater by bytes, once, with its size."""
    generator = random.Random(5)
    sizes: dict[str, int] = {}
    for number in range(70):
        parts = [
            "".join(generator.choices("ab-.0é%+ @", k=generator.randint(1, 3))) for _ in range(generator.randint(1, 3))
        ]
        key = "/".join(["manifests", *(f"{part}x" for part in parts[:-1]), f"{parts[-1]}_"])
        if key not in sizes:
            store.create(key, b"x" * number)
            sizes[key] = number
    afters = [
        "",
        "a",
        "manifests",
        "manifests/",
        "manifests/a",
        "manifests/a-",
        "manifests/b.x/",
        "n",
        *list(sizes)[::4],
    ]
    for prefix in ("", "manifests/", "manifests/a", "manifests/ax/", "manifests/0", "other/"):
        for after in afters:
            expected = {key: size for key, size in sizes.items() if key.startswith(prefix) and key > after}
            found = list(store.list(prefix, after=after))
            assert len(found) == len(expected), (prefix, after)
            assert {info.key: info.size for info in found} == expected, (prefix, after)
    ends = list(sizes)[::9]
    for prefix, after, through in itertools.product(("", "manifests/", "manifests/ax/"), ("", *ends), ("a", *ends)):
        expected_keys = [key for key in sizes if key.startswith(prefix) and after < key <= through]
        found_keys = [info.key for info in store.list(prefix, after=after, through=through)]
        assert sorted(found_keys) == sorted(expected_keys), (prefix, after, through)


def test_listing_goes_on_after_a_thousand(store: Store) -> None:
    """A listing holds what does not fit on one page of the server's answer."""
    keys = [f"manifests/orders/0/{number:012}.json" for number in range(1010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.create(key, b"{}"), keys))
    assert sorted(info.key for info in store.list("manifests/")) == keys
    assert sorted(info.key for info in store.list("manifests/orders/0/", after=keys[997])) == keys[998:]
    within = store.list("manifests/orders/0/", after=keys[2], through=keys[5])
    assert sorted(info.key for info in within) == keys[3:6]
    assert names(store, "manifests/orders/0/") == [key.rpartition("/")[2] for key in keys]


def test_names_are_the_next_components(store: Store) -> None:
    """`names` tells the topics without reading what is beneath them."""
    for log in ("orders/0", "orders/1", "orders@2/0", "a.b-c/0"):
        store.create(f"manifests/{log}/000000000000.json", b"")
    store.create("archive.json", b"{}")
    assert names(store, "") == ["archive.json", "manifests"]
    assert names(store, "manifests/") == ["a.b-c", "orders", "orders@2"]
    assert names(store, "manifests/orders/") == ["0", "1"]
    with pytest.raises(FormatError):
        names(store, "manifests/orders")


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../../b", "a/./b", ".", "a\0b", "a/\ud800", ".staging/a", "x" * 1025]
)
def test_what_is_no_key_is_refused(store: Store, key: str) -> None:
    """A key from a hostile manifest leads nowhere outside the root, and no store is even asked for it."""
    for call in (
        lambda: store.create(key, b""),
        lambda: store.read(key, limit=1),
        lambda: store.exists(key),
    ):
        with pytest.raises(FormatError, match="not an object's key"):
            call()


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../", ".staging/", "a/.."])
def test_what_is_no_prefix_is_refused(store: Store, prefix: str) -> None:
    """Nor does a listing lead outside."""
    with pytest.raises(FormatError):
        list(store.list(prefix))


def test_stores_are_reopened_by_pickle(store: Store) -> None:
    """A worker process gets the same archive with the same options, without any connection of ours."""
    store.create(KEY, b"data")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    try:
        assert copy.url == store.url
        assert copy.read(KEY, limit=4) == b"data"
    finally:
        copy.close()


def test_any_size_round_trips(store: Store) -> None:
    """A segment's bytes come back as they went in, whatever they are."""
    data = random.Random(1).randbytes(9_000_001)
    store.create(KEY, data)
    assert store.read(KEY, limit=len(data)) == data
    assert store.read(KEY, limit=10, start=8_999_995) == data[8_999_995:]


@given(
    key=st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=40),
        min_size=1,
        max_size=5,
    ).map("/".join),
    data=st.binary(max_size=2000),
)
@settings(deadline=None, max_examples=150)
def test_any_key_round_trips_in_a_folder(tmp_path_factory: pytest.TempPathFactory, key: str, data: bytes) -> None:
    """Every key that is not refused as none is listed as it was written, and holds its bytes; no other error is met."""
    store = open_store(str(tmp_path_factory.mktemp("any")))
    try:
        store.create(key, data)
    except FormatError:
        assert any(part in {".", ".."} for part in key.split("/")) or key.split("/")[0] == ".staging"
        return
    assert store.read(key, limit=len(data)) == data
    assert list(store.list()) == [ObjectInfo(key, len(data))]


# --- URLs and options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/dir",
        "file://host/dir",
        "file:",
        "file:///a?b",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://bucket//prefix",
        "s3://bucket/a/../b",
        f"s3://key:{SECRET}@bucket/prefix",
        f"https://key:{SECRET}@host/",
        "a\0b",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    """The error says what is wanted, and repeats no credential."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "host:9000"},
        {"endpoint_url": "ftp://host"},
        {"endpoint_url": f"https://key:{SECRET}@host"},
        {"endpoint_url": "http://host:99999"},
        {"retention_mode": "GOVERNANCE"},
        {"retention_days": 1},
        {"retention_mode": "FOREVER", "retention_days": 1},
        {"retention_mode": "COMPLIANCE", "retention_days": 0},
        {"expected_bucket_owner": "me"},
        {"region": "no region"},
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, Any]) -> None:
    """A wrong setting is named when the store is opened, not when the first object is put."""
    with pytest.raises(ConfigurationError) as caught:
        open_store("s3://bucket", S3Options(**options))
    assert SECRET not in str(caught.value)


def test_a_folder_has_one_url_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path, a file URL and an absolute path of the same folder are the same store, from anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "an archive").mkdir()
    expected = (tmp_path.resolve() / "an archive").as_uri()
    for url in ("an archive", "./an archive/", "file:an%20archive", expected, str(tmp_path / "an archive")):
        assert open_store(url).url == expected


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """The archive's root is a folder or free."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="not a folder"):
        open_store(str(tmp_path / "file"))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_first_put(tmp_path: Path) -> None:
    """To look into an archive that is not there does not make it."""
    store = open_store(str(tmp_path / "a" / "b"))
    assert not list(store.list())
    assert not store.exists("archive.json")
    assert not list(tmp_path.iterdir())
    store.create("archive.json", b"{}")
    assert (tmp_path / "a" / "b" / "archive.json").read_bytes() == b"{}"


def test_everything_is_synced_before_it_counts(folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are synced before the name appears, then its folder, and the entry of each folder above."""
    steps: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(f"sync {path.relative_to(tmp_path.resolve())}")
        real_sync(descriptor)

    def link(source: str, target: str, **options: Any) -> None:
        steps.append("link")
        real_link(source, target, **options)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", link)
    folder.create("a/b/c", b"data")
    at = steps.index("link")
    assert {"sync .", "sync archive", "sync archive/a"} <= set(steps[:at])
    assert steps[at - 1].startswith("sync archive/.staging/")
    assert steps[at + 1 :] == ["sync archive/a/b"]

    # A writer that found the object there does not know whether who made it lived to sync it.
    steps.clear()
    folder.create("a/b/c", b"data")
    assert "sync archive/a/b/c" in steps
    assert steps[-1] == "sync archive/a/b"

    # Nor does one that finds the folders there.
    steps.clear()
    open_store(str(tmp_path / "archive")).create("a/b/d", b"data")
    assert {"sync archive", "sync archive/a"} <= set(steps)


def test_unfinished_objects_are_nobodys(folder: Store, tmp_path: Path) -> None:
    """What lies in the staging area is not listed; after a day it is removed, and what is younger is left alone."""
    folder.create("a", b"")
    staging = tmp_path / "archive" / ".staging"
    assert not list(staging.iterdir())
    (staging / "young").write_bytes(b"x")
    (staging / "old").write_bytes(b"x")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(staging / "old", (long_ago, long_ago))
    again = open_store(folder.url)
    again.create("b", b"")
    assert sorted(info.key for info in again.list()) == ["a", "b"]
    assert names(again, "") == ["a", "b"]
    assert [path.name for path in staging.iterdir()] == ["young"]


def test_a_size_is_looked_up_when_it_is_asked_for(folder: Store) -> None:
    """A listing of names looks at no object. One that is gone by the time of the question has no bytes."""
    for name in ("kept", "gone"):
        folder.create(f"events/{name}", b"12345")
    listed = {info.key: info for info in folder.list("events/")}
    folder.remove("events/gone")
    assert listed["events/kept"].size == 5
    assert listed["events/gone"].size == 0


def test_symbolic_links_are_not_followed(folder: Store, tmp_path: Path) -> None:
    """A link in a hostile copy shows nothing of the machine that verifies it, and a put does not leave the archive."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    folder.create("events/real", b"x")
    root = tmp_path / "archive"
    (root / "events" / "file").symlink_to(tmp_path / "outside" / "secret")
    (root / "events" / "folder").symlink_to(tmp_path / "outside")
    (root / "events" / "loop").symlink_to("loop")
    for key in ("events/file", "events/folder/secret", "events/loop", "events/loop/x"):
        assert not folder.exists(key)
        with pytest.raises(ObjectMissing):
            folder.read(key, limit=10)
    assert [info.key for info in folder.list()] == ["events/real"]
    assert list(folder.list("events/folder/")) == []
    assert names(folder, "events/") == ["real"]
    for key in ("events/folder/new", "events/file"):
        with pytest.raises(TerminalStoreError):
            folder.create(key, b"x")
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]


def test_what_is_no_plain_file_is_no_object(folder: Store, tmp_path: Path) -> None:
    """A pipe does not hang the verifier, and a name that is no text does not crash it."""
    folder.create("events/real", b"x")
    os.mkfifo(tmp_path / "archive" / "events" / "pipe")
    Path(os.fsdecode(os.fsencode(str(tmp_path / "archive" / "events")) + b"/bad\xff")).write_bytes(b"x")
    assert not folder.exists("events/pipe")
    with pytest.raises(ObjectMissing):
        folder.read("events/pipe", limit=1)
    found = [info.key for info in folder.list()]
    assert len(found) == 2
    assert "\n".join(found).encode()
    assert [info.key for info in folder.list("events/bad\\x")] == [key for key in found if "bad" in key]
    assert [info.key for info in folder.list("events/re")] == ["events/real"]
    for key in found:
        assert folder.exists(key) == (key == "events/real")


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "loop"])
def test_what_is_no_plain_file_in_a_slot_does_not_pass(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A write to the name of something that is no plain file fails for good, and says that it must be moved away."""
    folder.create("events/real", b"x")
    path = tmp_path / "archive" / "events" / "slot"
    # The path of a socket must be short.
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listening:
        match kind:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "socket":
                listening.bind("slot")
            case "loop":
                path.symlink_to(path)
        with pytest.raises(ObjectMissing):
            folder.read("events/slot", limit=1)
        with pytest.raises(TerminalStoreError, match="move it away"):
            folder.create("events/slot", b"y")


def test_folders_that_vanish_are_made_again(folder: Store, tmp_path: Path) -> None:
    """Somebody who tidies up empty folders does not stop the writer."""
    folder.create("a/b", b"x")
    (tmp_path / "archive" / "a" / "b").unlink()
    (tmp_path / "archive" / "a").rmdir()
    (tmp_path / "archive" / ".staging").rmdir()
    folder.create("a/b", b"x")
    assert folder.read("a/b", limit=1) == b"x"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "link", "mkdir"])
def test_every_failure_of_a_write_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whatever the operating system refuses, the error is ours, nothing unfinished shows, and the next try succeeds."""
    transient = {errno.EAGAIN, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT, errno.EINTR}
    terminal = {errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EDQUOT, errno.EIO}
    real = getattr(os, call)
    for code in sorted(errno.errorcode):
        root = tmp_path / f"archive{code}"
        store = open_store(str(root))
        store.create("events/first", b"x")
        failures = [OSError(code, os.strerror(code), "a file")]

        def fail(*arguments: Any, failures: list[OSError] = failures, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return real(*arguments, **options)

        raised: list[StoreError] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                store.create("events/a/second", b"data")
            except StoreError as error:
                raised.append(error)
        assert not failures, "the call was never made"
        if code in transient | terminal:
            expected = TransientStoreError if code in transient else TerminalStoreError
            assert [type(error) for error in raised] == [expected]
        assert all("cannot write" in str(error) for error in raised)
        assert {info.key for info in store.list()} <= {"events/first", "events/a/second"}
        assert not list((root / ".staging").iterdir())
        store.create("events/a/second", b"data")
        assert store.read("events/a/second", limit=4) == b"data"


@pytest.mark.parametrize("call", ["open", "pread", "scandir", "lstat"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.EMFILE])
def test_every_failure_of_a_read_is_ours(folder: Store, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    """An object that cannot be read is not taken for one that is missing."""
    folder.create("a/b", b"x")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), "a file")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        uses: dict[str, Callable[[], Any]] = {
            "open": lambda: folder.read("a/b", limit=1),
            "pread": lambda: folder.read("a/b", limit=1),
            "scandir": lambda: list(folder.list()),
            "lstat": lambda: folder.exists("a/b"),
        }
        with pytest.raises(StoreError) as caught:
            uses[call]()
    assert not isinstance(caught.value, ObjectMissing)
    assert isinstance(caught.value, TransientStoreError) == (code in {errno.ESTALE, errno.EMFILE})


class _Unknown:
    """An entry of a folder on a file system that does not say what its entries are, and then does not answer."""

    def __init__(self, entry: "os.DirEntry[str]") -> None:
        self.name, self.path = entry.name, entry.path

    def is_dir(self, **_: bool) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.path)

    is_file = stat = is_dir


def test_an_entry_that_cannot_be_looked_at_is_no_missing_one(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing whose entries cannot be told apart is an error of ours, and no shorter listing."""
    folder.create("a/b", b"x")
    scan = os.scandir

    class Scan(list[_Unknown]):
        def __init__(self, path: str) -> None:
            with scan(path) as entries:
                super().__init__(map(_Unknown, entries))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Scan)
    for ask in (folder.level, lambda prefix: list(folder.list(prefix))):
        with pytest.raises(TransientStoreError, match="cannot list"):
            ask("a/")


def test_a_name_too_long_for_the_disk_is_refused(folder: Store) -> None:
    """A name of more than 255 bytes gets a clear error, not a traceback."""
    with pytest.raises(TerminalStoreError, match="name"):
        folder.create("a/" + "x" * 256, b"")


def test_a_file_in_the_way_is_refused(folder: Store) -> None:
    """A folder cannot hold both `a` and `a/b`; the error says so."""
    folder.create("a", b"x")
    with pytest.raises(TerminalStoreError, match="move it"):
        folder.create("a/b", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_terminal(folder: Store, tmp_path: Path) -> None:
    """Missing permission is said, with what to do."""
    folder.create("a/b", b"x")
    (tmp_path / "archive" / "a").chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(TerminalStoreError, match="Permission"):
            folder.create("a/c", b"x")
    finally:
        (tmp_path / "archive" / "a").chmod(stat.S_IRWXU)


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["seaweed", "moto"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SeaweedServer | MotoServer:
    chosen: SeaweedServer | MotoServer = request.getfixturevalue(request.param)
    chosen.use(monkeypatch)
    return chosen


def test_history_is_seen_in_a_bucket_with_versions(server: SeaweedServer | MotoServer) -> None:
    """A version and a delete marker are history of their key, of no other, and stay so when the object is gone."""
    bucket = server.make_bucket(versioned=True)
    store = open_store(f"s3://{bucket}/p", S3Options(endpoint_url=server.endpoint_url))
    store.create("manifests/a/0/000000000001.json", b"x")
    store.create("manifests/a/0/000000000001.json.more", b"x")
    assert has_history(store, "manifests/a/0/000000000001.json")
    assert not has_history(store, "manifests/a/0/000000000001.jso")
    assert not has_history(store, "manifests/a/0/000000000002.json")
    client = server.client()
    client.delete_object(Bucket=bucket, Key="p/manifests/a/0/000000000001.json")
    client.close()
    assert not store.exists("manifests/a/0/000000000001.json")


def test_versions_are_listed_between_two_keys(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of versions begins behind a key, also one that is not there, and ends with another."""
    # Not moto: it leaves out the first version behind a key that is not there.
    seaweed.use(monkeypatch)
    bucket, client = seaweed.make_bucket(versioned=True), seaweed.client()
    store = open_store(f"s3://{bucket}/p", S3Options(endpoint_url=seaweed.endpoint_url))
    keys = [f"manifests/a/0/{number:012}.json" for number in range(4)]
    for key in (keys[1], keys[2]):
        store.create(key, b"x")
    client.delete_object(Bucket=bucket, Key=f"p/{keys[1]}")
    client.close()
    versions = store.capabilities.versions
    assert versions is not None
    for after, through, seen in (
        *(("", "", True), (keys[0], keys[1], True), (keys[1], "", False), ("", keys[0], False)),
        *((keys[0], keys[3], True), (keys[2], keys[3], False), ("", "manifests/a/00", True)),
    ):
        history = {version.key for version in versions.history("manifests/a/0/", after=after, through=through)}
        assert history == ({keys[1]} if seen else set()), (after, through)
    assert has_history(store, "manifests/a/0/000000000001.json")
    store.close()


def test_an_object_without_versions_has_no_history(server: SeaweedServer | MotoServer) -> None:
    """Where the bucket keeps no versions there is no history to see."""
    store = open_store(f"s3://{server.make_bucket()}", S3Options(endpoint_url=server.endpoint_url))
    store.create("archive.json", b"x")
    assert not has_history(store, "archive.json")
    store.close()


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_each_put_of_evidence_is_locked(server: SeaweedServer | MotoServer, mode: Any) -> None:
    """Evidence is put under retention and legal hold as set; what can be rebuilt is not."""
    bucket = server.make_bucket(object_lock=True)
    options = S3Options(endpoint_url=server.endpoint_url, retention_mode=mode, retention_days=30, legal_hold=True)
    store = open_store(f"s3://{bucket}/p", options)
    client = server.client()
    for key in ("archive.json", "events/a", "quarantine/a", "manifests/a", "checkpoints/a", "audits/a"):
        store.create(key, b"x")
        head = client.head_object(Bucket=bucket, Key=f"p/{key}")
        assert head["ObjectLockMode"] == mode
        assert abs(head["ObjectLockRetainUntilDate"] - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
        assert head["ObjectLockLegalHoldStatus"] == "ON"
    for key in ("tables/a", "reports/a"):
        store.create(key, b"x")
        assert "ObjectLockMode" not in client.head_object(Bucket=bucket, Key=f"p/{key}")
    client.close()
    store.close()


def test_the_server_keeps_the_digest(server: SeaweedServer | MotoServer) -> None:
    """Each object is stored with the SHA-256 that we computed, for checks without reading it."""
    bucket = server.make_bucket()
    store = open_store(f"s3://{bucket}", S3Options(endpoint_url=server.endpoint_url))
    store.create("events/a", b"hello")
    client = server.client()
    head = client.head_object(Bucket=bucket, Key="events/a", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    client.close()
    store.close()


def test_settings_go_with_every_call(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected owner guards each call, and the KMS key each put."""
    moto.use(monkeypatch)
    options = S3Options(
        endpoint_url=moto.endpoint_url, sse_kms_key="alias/archive", expected_bucket_owner="123456789012"
    )
    store: Any = open_store(f"s3://{moto.make_bucket()}/p", options)
    sent: list[tuple[str, dict[str, Any]]] = []
    for client in (store._bucket.reader, store._bucket.writer):
        client.meta.events.register(
            "provide-client-params.s3", lambda params, model, **_: sent.append((model.name, dict(params)))
        )
    store.create("events/a", b"x")
    store.read("events/a", limit=1)
    store.exists("missing")  # once a store asks whether there is a bucket at all
    list(store.list())
    names(store, "")
    has_history(store, "events/a")
    store.close()
    assert {name for name, _ in sent} == {
        "PutObject", "GetObject", "HeadObject", "HeadBucket", "ListObjectsV2", "ListObjectVersions",
    }  # fmt: skip
    for name, params in sent:
        assert params["ExpectedBucketOwner"] == "123456789012", name
    put = next(params for name, params in sent if name == "PutObject")
    assert (put["ServerSideEncryption"], put["SSEKMSKeyId"]) == ("aws:kms", "alias/archive")
    assert (put["IfNoneMatch"], put["ChecksumAlgorithm"]) == ("*", "SHA256")


@pytest.mark.parametrize("object_lock", [True, False], ids=["with Object Lock", "without"])
def test_no_lock(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, *, object_lock: bool) -> None:
    """An object without a lock has none, whether its bucket knows locks or not."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket(object_lock=object_lock)
    store = open_store(f"s3://{bucket}", S3Options(endpoint_url=seaweed.endpoint_url))
    store.create("events/a", b"x")
    locks = store.capabilities.locks
    assert locks is not None
    assert locks.lock("events/a") is None
    if object_lock:
        with pytest.raises(ObjectMissing):
            locks.lock("events/b")
    store.close()


def test_bytes_damaged_on_the_way_are_not_stored(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses an upload that has not the digest, which is worth another try."""
    seaweed.use(monkeypatch)
    monkeypatch.setattr(custody.store.s3, "_BACKOFF_SECONDS", (0.001, 0.001))
    store: Any = open_store(f"s3://{seaweed.make_bucket()}", S3Options(endpoint_url=seaweed.endpoint_url))
    damaged: list[bool] = []

    def damage(request: Any, **_: Any) -> None:
        if not damaged:
            damaged.append(True)
            request.headers.replace_header("x-amz-checksum-sha256", "A" * 43 + "=")

    store._bucket.writer.meta.events.register("before-sign.s3.PutObject", damage)
    try:
        store.create("events/a", b"x")
    except TerminalStoreError:
        assert not store.exists("events/a")
    else:
        assert store.read("events/a", limit=1) == b"x"
    assert damaged
    store.close()


def _calls(store: Store) -> dict[str, Callable[[], Any]]:
    return {
        "create": lambda: store.create("events/new", b"x"),
        "read": lambda: store.read("events/a", limit=1),
        "exists": lambda: store.exists("events/a"),
        "list": lambda: list(store.list()),
        "names": lambda: names(store, ""),
        "has_history": lambda: has_history(store, "events/a"),
    }


@pytest.mark.parametrize("secret", [SECRET, "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY12"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_terminal(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    """Every call says that the server refuses us, and none shows what we tried."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket()
    monkeypatch.setenv(name, secret)
    store = open_store(f"s3://{bucket}", S3Options(endpoint_url=seaweed.endpoint_url))
    for what, call in _calls(store).items():
        with pytest.raises(TerminalStoreError, match=r"HTTP 403.*check the credentials") as caught:
            call()
        # An answer to HEAD has no body, and so no code.
        bare = what in {"exists", "has_history"} and not isinstance(caught.value, KeyRefused)
        assert isinstance(caught.value, KeyRefused) or (bare and "or a policy" in str(caught.value)), what
        assert secret not in "".join(traceback.format_exception(caught.value)), what
    store.close()


def test_no_credentials_are_terminal(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chain finds no credentials the error says where to put them."""
    seaweed.use(monkeypatch)
    bucket = seaweed.make_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(f"s3://{bucket}", S3Options(endpoint_url=seaweed.endpoint_url))
    for call in _calls(store).values():
        with pytest.raises(TerminalStoreError, match="AWS_ACCESS_KEY_ID"):
            call()
    store.close()


def test_no_bucket_is_terminal(server: SeaweedServer | MotoServer) -> None:
    """A bucket that does not exist is never taken for an empty archive."""
    store = open_store("s3://there-is-no-such-bucket", S3Options(endpoint_url=server.endpoint_url))
    for call in _calls(store).values():
        with pytest.raises(TerminalStoreError, match=r"no (such )?bucket"):
            call()
    store.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_a_server_that_is_down_is_transient(moto: MotoServer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whether nobody listens or nobody answers, it may pass, and the error names the server and the remedy."""
    moto.use(monkeypatch)
    monkeypatch.setattr(custody.store.s3, "_PUT_PATIENCE", 0)
    with socket.socket() as deaf:
        if kind == "silent":
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(100)
            port = deaf.getsockname()[1]
        else:
            port = free_ports(1)[0]
        store = open_store("s3://bucket", S3Options(endpoint_url=f"http://127.0.0.1:{port}"))
        for call in _calls(store).values():
            with pytest.raises(TransientStoreError) as caught:
                call()
            assert f"the archive's storage at http://127.0.0.1:{port} does not answer (" in str(caught.value)
            assert str(caught.value).endswith("): check that it runs, and s3.endpoint_url")
        store.close()


def test_objects_survive_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real server acknowledged is there when it was killed and started again, and the store goes on."""
    server = SeaweedServer(tmp_path)
    server.use(monkeypatch)
    with server:
        store = open_store(f"s3://{server.make_bucket()}", S3Options(endpoint_url=server.endpoint_url))
        for number in range(20):
            store.create(f"events/{number}", b"x" * 1000)
        server.kill()
        server.start()
        for number in range(20):
            assert store.read(f"events/{number}", limit=1000) == b"x" * 1000
        store.close()


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(seaweed: SeaweedServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(seaweed.endpoint_url) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedServer) -> str:
    return seaweed.make_bucket()


@pytest.fixture
def flaky(
    proxy: FaultyProxy,
    seaweed: SeaweedServer,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Store]:
    """A store behind the proxy that holds one object."""
    request.getfixturevalue("impatient")
    seaweed.use(monkeypatch)
    proxy.reset()
    store = open_store(f"s3://{bucket}/{uuid.uuid4()}", S3Options(endpoint_url=proxy.endpoint_url))
    store.create("events/a", b"data")
    store.exists("missing")  # once a store asks whether there is a bucket at all
    yield store
    store.close()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("there", [None, b"new", b"old"], ids=["free", "same", "other"])
def test_a_put_with_one_fault_ends_as_one_without(
    flaky: Store, proxy: FaultyProxy, fault: Fault, there: bytes | None
) -> None:
    """Whichever of its calls fails, and before or after its effect, a put ends as it would have without the fault."""
    for at in range(3):
        key = f"events/{at}"
        if there is not None:
            flaky.create(key, there)
        proxy.reset({at: fault})
        if there == b"old":
            with pytest.raises(ObjectExists):
                flaky.create(key, b"new")
        else:
            flaky.create(key, b"new")
        proxy.reset()
        assert flaky.read(key, limit=3) == (there or b"new")


@pytest.mark.parametrize("fault", [*FAULTS, Fault("cut", effect=True)], ids=str)
@pytest.mark.parametrize("call", ["read", "range", "exists", "list", "names", "has_history"])
def test_a_read_with_one_fault_is_right_or_an_error(flaky: Store, proxy: FaultyProxy, fault: Fault, call: str) -> None:
    """A read after a passing fault gives what is there; an answer that makes no sense for it is an error."""
    calls: dict[str, tuple[Callable[[], Any], Any]] = {
        "read": (lambda: flaky.read("events/a", limit=10), b"data"),
        "range": (lambda: flaky.read("events/a", limit=10, start=1, size=2), b"at"),
        "exists": (lambda: flaky.exists("events/a"), True),
        "list": (lambda: list(flaky.list()), [ObjectInfo("events/a", 4)]),
        "names": (lambda: names(flaky, ""), ["events"]),
        "has_history": (lambda: has_history(flaky, "events/a"), False),
    }
    use, expected = calls[call]
    proxy.reset({0: fault})
    if fault.kind in {"409", "412"}:
        with pytest.raises(TransientStoreError):
            use()
    else:
        assert use() == expected
        assert len(proxy.calls) == (1 if fault.kind == "cut" and call == "exists" else 2)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_put_whose_faults_do_not_pass_is_transient(
    flaky: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """A put that never comes to a known end says so, after a bounded number of calls; it never claims success."""
    monkeypatch.setattr(custody.store.s3, "_PUT_ATTEMPTS", 2)
    proxy.reset(always=fault)
    with pytest.raises(TransientStoreError, match="not known"):
        flaky.create("events/b", b"data")
    assert len(proxy.calls) <= 8
    proxy.reset()
    flaky.create("events/b", b"data")
    assert flaky.read("events/b", limit=4) == b"data"


def test_a_put_is_never_sent_again_unseen(flaky: Store, proxy: FaultyProxy) -> None:
    """After a put of unknown outcome comes a look, not another put."""
    proxy.reset({0: Fault("500", effect=True)})
    flaky.create("events/b", b"data")
    assert [call.partition(" ")[0] for call in proxy.calls] == ["PUT", "GET"]


# --- every error of the library --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsent() -> Iterator[Store]:
    """A store whose calls never reach a server, for each is made to fail before it is sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        store = open_store("s3://bucket", S3Options(endpoint_url="http://127.0.0.1:9"))
    yield store
    store.close()


@contextlib.contextmanager
def _failing(store: Any, make: Callable[[], Exception]) -> Iterator[None]:
    """Raise an exception in each call of the store, where botocore would send the request."""

    def fail(**_: Any) -> None:
        raise make()

    clients = (store._bucket.reader, store._bucket.writer)
    for client in clients:
        client.meta.events.register("before-call.s3", fail)
    try:
        yield
    finally:
        for client in clients:
            client.meta.events.unregister("before-call.s3", fail)


def _descendants(kind: type[Exception]) -> list[type[Exception]]:
    children = [child for child in kind.__subclasses__() if child.__module__.startswith("botocore")]
    return sorted({kind, *children, *(one for child in children for one in _descendants(child))}, key=str)


def _instance(kind: type[Exception]) -> Exception:
    """Make an exception of a botocore class, with a credential wherever its message takes something."""
    if issubclass(kind, aws.ClientError):
        answer: Any = {"Error": {"Code": "Odd", "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        return kind(answer, "PutObject")
    if issubclass(kind, aws.WaiterError):
        return kind(name="object", reason="r", last_response={})
    template = str(getattr(kind, "fmt", ""))
    fields = {name.partition(".")[0].partition("[")[0] for _, name, _, _ in string.Formatter().parse(template) if name}
    return kind(**dict.fromkeys(fields, f"https://user:{SECRET}@proxy"))


TRANSIENT = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.ChecksumError,
    aws.FlexibleChecksumError,
    aws.IncompleteReadError,
    aws.MetadataRetrievalError,
    aws.CredentialRetrievalError,
)


@pytest.mark.parametrize(
    "kind", _descendants(aws.BotoCoreError) + _descendants(aws.ClientError), ids=lambda k: k.__name__
)
def test_every_error_of_botocore_is_ours(unsent: Store, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """Each error class of botocore becomes one of ours, transient where it may pass, without credentials."""
    monkeypatch.setattr(custody.store.s3, "_BACKOFF_SECONDS", (0.0, 0.0))
    with _failing(unsent, lambda: _instance(kind)):
        for call in _calls(unsent).values():
            with pytest.raises(TransientStoreError if issubclass(kind, TRANSIENT) else TerminalStoreError) as caught:
                call()
            assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ResponseParserError("invalid XML"), True),
        (ConnectionResetError(104, "reset"), True),
        (ValueError("invalid timestamp"), True),
        (KeyError("Contents"), True),
        (aws.SSLError(endpoint_url="https://s3", error=Exception("[SSL: CERTIFICATE_VERIFY_FAILED]")), False),
        (aws.SSLError(endpoint_url="https://s3", error=Exception("EOF occurred")), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_from_beneath_botocore_are_ours(
    unsent: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, transient: bool
) -> None:
    """What slips through botocore from the socket or a parser is ours as well."""
    monkeypatch.setattr(custody.store.s3, "_BACKOFF_SECONDS", (0.0, 0.0))
    with _failing(unsent, lambda: error):
        for call in _calls(unsent).values():
            with pytest.raises(TransientStoreError if transient else TerminalStoreError):
                call()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (301, "PermanentRedirect", TerminalStoreError),
        (400, "AuthorizationHeaderMalformed", TerminalStoreError),
        (400, "BadDigest", TransientStoreError),
        (400, "ExpiredToken", TerminalStoreError),
        (400, "IncompleteBody", TransientStoreError),
        (400, "InvalidArgument", TerminalStoreError),
        (400, "InvalidRequest", TerminalStoreError),
        (400, "InvalidToken", TerminalStoreError),
        (400, "KMS.DisabledException", TerminalStoreError),
        (400, "KMS.ThrottlingException", TransientStoreError),
        (400, "KeyTooLongError", TerminalStoreError),
        (400, "RequestTimeout", TransientStoreError),
        (403, "AccessDenied", TerminalStoreError),
        (403, "InvalidAccessKeyId", TerminalStoreError),
        (403, "InvalidObjectState", ObjectArchived),
        (403, "RequestTimeTooSkewed", TerminalStoreError),
        (403, "SignatureDoesNotMatch", TerminalStoreError),
        (404, "NoSuchBucket", NoBucket),
        (404, "NoSuchKey", ObjectMissing),
        (405, "MethodNotAllowed", TerminalStoreError),
        (408, "", TransientStoreError),
        (409, "OperationAborted", TransientStoreError),
        (412, "PreconditionFailed", TransientStoreError),
        (429, "TooManyRequests", TransientStoreError),
        (500, "InternalError", TransientStoreError),
        (501, "NotImplemented", TerminalStoreError),
        (502, "", TransientStoreError),
        (503, "ServiceUnavailable", TransientStoreError),
        (503, "SlowDown", TransientStoreError),
        (0, "503", TransientStoreError),
        (0, "", TerminalStoreError),
    ],
)
def test_every_answer_of_s3_is_ours(unsent: Store, status: int, code: str, expected: type[CustodyError]) -> None:
    """An answer that says no is terminal or transient by its code and status, and names both."""
    answer: Any = {
        "Error": {"Code": code, "Message": "m\x1b[2J" * 900},
        "ResponseMetadata": {"HTTPStatusCode": status} if status else {},
    }
    with _failing(unsent, lambda: aws.ClientError(answer, "GetObject")), pytest.raises(expected) as caught:
        unsent.read("events/a", limit=1)
    assert type(caught.value).__mro__.index(expected) <= 1
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    if expected not in {ObjectMissing, NoBucket}:
        assert code in str(caught.value)


def test_what_a_credential_helper_prints_is_not_shown(
    moto: MotoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A helper that fails may print anything; the error names the helper and nothing of that."""
    moto.use(monkeypatch)
    config = tmp_path / "config"
    config.write_text(f'[default]\ncredential_process = sh -c "echo {SECRET} >&2; exit 1"\n')
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises((StoreError, ConfigurationError)) as caught:
        open_store("s3://bucket", S3Options(endpoint_url=moto.endpoint_url)).read("archive.json", limit=1)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
