"""The one door to storage: create-only puts and bounded reads of an archive in a folder or in S3.

Rules:

1. Never overwrite: every object is created by one conditional put (S3 `If-None-Match: *`) or one exclusive link. There
   is no call here that changes an object. A folder's `move` unlinks one only behind a durable copy of the same bytes.
2. Never take a put for done before it is durable, nor for failed before that is known: where a put's outcome is unknown
   (time-out, cut connection, 5xx, 409) or the key is taken (412), the object is read back. The same bytes are success,
   others are `ObjectExists`, and only where there is nothing is the put sent again.
3. Never read more than the caller's limit, whatever the object's size turns out to be.
4. Never let a lower library's error through: each becomes one of `custody.errors`, terminal or transient.
5. Never show a credential: URLs that hold one are refused, and what libraries and servers say is clipped and cleaned.
6. Never judge bytes: a store hands over what it holds, and the verifier finds out what it is worth.

What costs money is asked for by name: `restore` has a readable copy of an archived object made, and the object stays as
it is.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import os
import random
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from custody.errors import (
    ConfigurationError,
    FormatError,
    ObjectArchived,
    ObjectExists,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TierUnmounted,
    TransientStoreError,
)
from custody.layout import ARCHIVE, EVIDENCE, RECORDS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ListObjectVersionsOutputTypeDef

STAGING = ".staging"
"""Where a folder, and each of its tiers, keeps objects that are not finished. No reader looks there."""
TIERS = ".tiers"
"""Where a folder keeps what has grown old: `.tiers/warm/` and `.tiers/cold/`, each of which may be a mount."""
TIER_NAMES = ("warm", "cold")
"""A folder's tiers, the warmest first. An object lies in one place, and only ever goes on to a colder one."""
MARK = ".tier"
"""In a tier that is in use, a file with the same bytes as `.tier-warm` or `.tier-cold` beside `archive.json`.

So a tier that is not mounted can be told from one whose objects are lost.
"""

_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_CONNECTIONS = 64
_READ_ATTEMPTS = 3
_PUT_ATTEMPTS = 5
_PUT_PATIENCE = 60.0
_BACKOFF_SECONDS = (0.1, 2.0)
_ABANDONED_SECONDS = 24 * 3600
_KEY_BYTES = 1024
_DETAIL_CHARACTERS = 300
_FOLDERS_KNOWN = 100_000
ARCHIVED_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes that cannot be read without a restore."""
Tier = Literal["standard", "bulk"]
"""How a restore is made: within some hours, or cheaply within two days."""
_CHUNK = 1 << 20
_MARK_BYTES = 1 << 12
_NO_KEYS = frozenset({STAGING, TIERS, MARK, *(f"{MARK}-{name}" for name in TIER_NAMES)})


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object.

    Attributes:
        key: relative to the archive's root.
        size: in bytes.
        storage_class: of S3; in a folder that of TIER_NAMES which it lies in, None where that is none.
    """

    key: str
    size: int
    storage_class: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """What the store says of an object besides its bytes.

    Attributes:
        size: in bytes.
        created: when this version was put.
        storage_class: of S3, `STANDARD` where it names none; in a folder as in `ObjectInfo`.
        restored: whether a copy of an archived object is there to be read.
        restoring: whether such a copy is being made.
        sha256: hex digest that the store computed when the object was put, None where it keeps none.
        lock_mode: of Object Lock, None where there is no retention.
        lock_until: the end of the retention.
        legal_hold: whether there is one.
    """

    size: int
    created: datetime
    storage_class: str | None = None
    restored: bool = False
    restoring: bool = False
    sha256: str | None = None
    lock_mode: str | None = None
    lock_until: datetime | None = None
    legal_hold: bool = False

    @property
    def archived(self) -> bool:
        """Whether it lies in a class that cannot be read without a restore."""
        return self.storage_class in ARCHIVED_CLASSES


@dataclass(frozen=True, slots=True)
class Version:
    """One version, or one delete marker, of a key that has more than one plain object."""

    key: str
    id: str
    marker: bool
    latest: bool
    size: int
    etag: str = ""
    """The store's name for the bytes: ids alone do not tell them apart where versioning was suspended."""


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule by which the bucket moves or deletes objects.

    Attributes:
        id: its name.
        prefix: of the bucket's keys that it is about.
        filtered: whether tags or sizes narrow it further.
        moves: days since the put and the class moved to, in order.
        deletes: whether it deletes objects, or versions of them.
    """

    id: str
    prefix: str
    filtered: bool
    moves: tuple[tuple[int, str], ...]
    deletes: bool


@dataclass(frozen=True, slots=True)
class S3Options:
    """Settings of an archive in S3; credentials come from the standard AWS chain instead.

    Attributes:
        endpoint_url: of a server that speaks S3, where it is not AWS.
        region: where the AWS chain does not name it.
        sse_kms_key: id, ARN or alias of the KMS key that objects are encrypted with.
        expected_bucket_owner: account id; calls to a bucket of any other account are refused.
        retention_mode: Object Lock mode that each put of evidence sets, with `retention_days`.
        retention_days: how long from the put.
        legal_hold: whether each put of evidence sets a legal hold.
        lifecycle: days and storage class of the moves that the bucket's rules are to make of segments and quarantine;
            None where verification does not look at that.
    """

    endpoint_url: str | None = None
    region: str | None = None
    sse_kms_key: str | None = None
    expected_bucket_owner: str | None = None
    retention_mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    retention_days: int | None = None
    legal_hold: bool = False
    lifecycle: tuple[tuple[int, str], ...] | None = None


class Store(Protocol):
    """Objects under one root. Implementations are thread-safe and pickle as their URL and options.

    Where a tier of a folder is in use and not mounted, segments and quarantine objects that are found nowhere else are
    not missing: whoever asks for one, or for a listing of them, gets `TierUnmounted`. All else goes on.
    """

    @property
    def url(self) -> str:
        """The root, as a URL without credentials."""

    def create(self, key: str, data: bytes) -> None:
        """Create an object and return when it is durable; the same bytes already there are success.

        Raises:
            ObjectExists: the key holds other bytes.
            TransientStoreError: it is not known whether the object was or will be written. Trying again is safe.
            TerminalStoreError: it was not written, and will not be by trying again.
        """

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,
    ) -> bytes:
        """Return the object's bytes `[start:start + size]`, as a slice does: what lies beyond the end is not there.

        Raises:
            ObjectMissing: there is no such object.
            ObjectArchived: it lies in an archived storage class; with `restored`, and no restored copy is there.
            FormatError: it is more than `limit` bytes. No more than one byte beyond the limit is read to know it.
        """

    def exists(self, key: str) -> bool:
        """Say whether there is an object under the key."""

    def names(self, prefix: str) -> list[str]:
        """Return the next path components under a prefix that ends in `/` or is empty, sorted, without a slash."""

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Return the folders, without a slash, and the objects right under a prefix that ends in `/` or is empty."""

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix` and is greater than `after`, each once, in any order.

        Keys compare by their bytes. Objects that come or go meanwhile may or may not be seen.

        Raises:
            TierUnmounted: at the end, once all that is there was listed.
        """

    def status(self, key: str) -> ObjectStatus:
        """Return what the store says of an object besides its bytes.

        Raises:
            ObjectMissing: there is no such object.
        """

    def lock(self, key: str) -> tuple[str, datetime] | None:
        """Return mode and end of an object's Object Lock, None where it has none, as always in a folder.

        `status` says the same to who may see it, and leaves the lock out to who may not: this tells one from the other.

        Raises:
            ObjectMissing: there is no such object, in a bucket that knows locks.
            TerminalStoreError: the lock may not be looked at.
        """

    def restore(self, key: str, *, days: int, tier: "Tier") -> None:
        """Ask for a readable copy of an archived object; one that is there, or under way, is success. Costs money.

        Args:
            key: the object. In a folder nothing is archived, and nothing is done.
            days: how long the copy stays once it is made, 1 or more.
            tier: how soon it is made, and at what price.

        Raises:
            ObjectMissing: there is no such object.
            TransientStoreError: it is not known whether it was asked for. Trying again is safe.
        """

    def history(self, prefix: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object; none in a folder."""

    def at_versions(self, chosen: Mapping[str, Version]) -> "Store":
        """Return this store as it shows when of some keys these versions are read, whatever lies over them."""

    def lifecycle(self) -> Sequence[LifecycleRule] | None:
        """Return the rules in force for objects of this archive, None where the store knows no such thing."""

    def has_history(self, key: str) -> bool:
        """Say whether the store keeps a version or a delete marker of the key, besides an object without versions."""

    def remove(self, key: str) -> None:
        """Delete an object for good, every version of it; one that is not there is success.

        Only what a signed statement has called expired may be removed, and tables, which can be made again.

        Raises:
            TerminalStoreError: it is locked, or may not be deleted.
        """

    def tiers(self) -> Sequence[str]:
        """Return what `move` moves to, the warmest first; none in S3, where rules of the bucket move objects.

        Raises:
            TierUnmounted: one that is in use is not mounted.
            TerminalStoreError: what stands in a tier's place is no folder, or there is a place for tiers, and no tier.
        """

    def move(self, key: str, tier: str) -> None:
        """Move an object to a tier; one that is there already, or in a colder one, is success.

        At any moment it can be read. Killed anywhere, calling again goes on: copies in several places are one object.

        Raises:
            ObjectMissing: there is no such object.
            ObjectExists: it lies in several places, with other bytes in each. All are left, the warmest is read.
            TierUnmounted: a tier that is in use is not mounted.
            TransientStoreError: it was not moved. Trying again is safe.
            TerminalStoreError: likewise, and trying again does not help.
        """

    def close(self) -> None:
        """Give up connections. The store is not used afterwards."""


def open_store(url: str, options: S3Options | None = None) -> Store:
    """Open an archive's root; nothing is created before the first put.

    Args:
        url: `s3://BUCKET/PREFIX`, `file:///DIR`, or a folder's path.
        options: for S3.

    Raises:
        ConfigurationError: the URL or an option cannot be used, or boto3 is not installed.
        StoreError: the file system does not say what is there.
    """
    if "\0" in url or not url:
        raise ConfigurationError("the archive's URL is empty or holds a null byte; want s3://BUCKET/PREFIX or a folder")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", url)
    if scheme is None:
        return _FileStore(url)
    match scheme[1].lower():
        case "file":
            return _FileStore(_folder_of(url))
        case "s3":
            return _S3Store(url, options or S3Options())
        case other:
            raise ConfigurationError(
                f"an archive cannot be kept in {other}://; want s3://BUCKET/PREFIX, file:///DIR, or a folder's path"
            )


def _folder_of(url: str) -> str:
    """Return the path that a file URL names: `file:///absolute`, or `file:relative` to the working folder."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in {"", "localhost"} or not slash:
            raise ConfigurationError(
                "a file URL names no other machine: write file:///absolute/path (three slashes) or file:relative/path"
            )
        rest = slash + path
    if "?" in rest or "#" in rest:
        raise ConfigurationError("a file URL has no '?' or '#' (write them as %3F and %23)")
    path = unquote(rest)
    if not path or "\0" in path:
        raise ConfigurationError("the file URL names no folder; want file:///DIR")
    return path


def _check_key(key: str) -> None:
    """Refuse what is no object's key, so that none leads out of the root or is understood differently by two stores."""
    parts = key.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or parts[0] in _NO_KEYS
        or "\0" in key
        or not _is_unicode(key)
        or len(key.encode()) > _KEY_BYTES
    ):
        raise FormatError(
            f"{_clean(key)!r} is no object's key: no name in it may be empty, '.' or '..', nor the first"
            f" {', '.join(sorted(_NO_KEYS))}"
        )


def _check_prefix(prefix: str) -> None:
    """Refuse a prefix that is not the beginning of some key."""
    if prefix:
        _check_key(prefix + "x" if prefix.endswith("/") else prefix)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _clean(text: str) -> str:
    """Return foreign text fit for a message: short, printable, and without what may be a credential in a URL."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * _DETAIL_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= _DETAIL_CHARACTERS else text[:_DETAIL_CHARACTERS] + "…"


def _too_large(where: str, limit: int) -> FormatError:
    return FormatError(f"{where} has more than the {limit:,} bytes that may be read of it: it is not what it should be")


def _occupied(where: str) -> ObjectExists:
    return ObjectExists(f"{where} already holds other bytes: somebody else was first, and nothing is overwritten")


# ---------------------------------------------------------------------------------------------------------------------
# Folders


class _FileStore:
    """An archive in a folder, and in its tiers. No symbolic link beneath the root is followed, in reading or writing.

    Tiers are looked for once, when the store is opened. They are looked at from warm to cold, the way that objects go,
    so that one which is moved meanwhile is met. The first move to a tier marks it. Where the mark is gone the tier is
    not mounted: nothing is read there or moved, and of no object is it said that it is missing.
    """

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)
        self.url = Path(self._root).as_uri()
        with _os_errors("open", self._root):
            wrong = _is_there(self._root) and not Path(self._root).is_dir()
        if wrong:
            raise ConfigurationError(
                f"the archive's root {self._root} is not a folder; name one, or a path that is free"
            )
        # Folders whose entry in their parent is known to be on disk, so that each is synced once a process.
        self._synced: set[str] = set()
        # Folders that no symbolic link leads to, so that each is looked at once and not for every object in it.
        self._plain: set[str] = set()
        base = self._root.rstrip("/")
        # The class and the folder of each place that objects lie in.
        self._places: tuple[tuple[str | None, str], ...] = ((None, base),)
        # What was put on record of the tiers in use: the bytes of their marks.
        self._marks: dict[str, bytes] = {}
        for name in TIER_NAMES:
            with contextlib.suppress(ObjectMissing):
                self._marks[name] = self._read(self._record(name), _MARK_BYTES, 0, None)
        # Left alone for as long as the store is open, so that a mount that fails keeps nobody from writing.
        self._unmounted = {name: why for name in self._marks if (why := self._why_unmounted(name))}
        if self._marks or _is_folder(f"{base}/{TIERS}"):
            there = (name for name in TIER_NAMES if name not in self._unmounted)
            self._places += tuple((name, self._tier(name)) for name in there)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.url,)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        path, *tiers = self._paths(key)
        with _os_errors("write", path):
            # What lies in the hot part is what is read, whatever a tier has.
            if tiers and not os.path.lexists(path) and self._lies_in(tiers, data):
                return
            try:
                self._create(path, data, tiers)
            except FileNotFoundError:
                # Somebody removed a folder, or our staged file, under our hands: make them again, once.
                self._synced.clear()
                self._create(path, data, tiers)

    def _create(self, path: str, data: bytes, tiers: Sequence[str]) -> None:
        folder = os.path.dirname(path)  # noqa: PTH120 - a hot path
        self._make_folder(folder)
        staged = self._stage(data)
        try:
            try:
                os.link(staged, path, follow_symlinks=False)
            except FileExistsError:
                self._accept_existing(path, data)
            else:
                # The name was free. If that is because a roll had moved the object since we looked, it is in a tier.
                try:
                    self._lies_in(tiers, data)
                except ObjectExists:
                    os.unlink(path)  # noqa: PTH108
                    raise
            _sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108

    def _lies_in(self, tiers: Sequence[str], data: bytes) -> bool:
        """Say whether one of these paths holds the bytes, durably; refuse other bytes there, and what is no object."""
        for path in tiers:
            if not self._in_plain_folder(path):
                raise TerminalStoreError(
                    f"cannot write beside {path}: a symbolic link (not followed) leads there; move it away"
                )
            if _is_there(path):
                self._accept_existing(path, data)
                _sync_folder(os.path.dirname(path))  # noqa: PTH120
                return True
        return False

    def _new_staged(self, place: str) -> tuple[int, str]:
        """Make a file beside the objects of a place, under a name that nobody else has, and open it for writing."""
        folder = f"{place}/{STAGING}"
        if folder not in self._synced:
            self._make_folder(folder)
            _remove_abandoned(folder)
        path = f"{folder}/{os.getpid()}-{uuid.uuid4().hex}"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path

    def _stage(self, data: bytes) -> str:
        """Write and sync the bytes beside the archive's objects."""
        descriptor, path = self._new_staged(self._root)
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
        return path

    def _accept_existing(self, path: str, data: bytes) -> None:
        """Take an object that is already there for ours if its bytes are; sync it, for who wrote it may have died."""
        try:
            descriptor, found = self._open(path)
        except ObjectMissing as error:
            raise TerminalStoreError(
                f"cannot write {path}: what is in its place is no plain file; move it away"
            ) from error
        try:
            if found.st_size != len(data) or _read_descriptor(descriptor, 0, len(data) + 1, len(data)) != data:
                raise _occupied(path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it, and sync the entry of each in its parent.

        One that is already there is synced too: who made it may have died before its entry was on disk.
        """
        if folder in self._synced:
            return
        parent = os.path.dirname(folder)  # noqa: PTH120
        if folder == self._root:
            if not os.path.isdir(folder):  # noqa: PTH112
                _make_root(folder)
        else:
            self._make_folder(parent)
            try:
                os.mkdir(folder)  # noqa: PTH102
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise TerminalStoreError(
                        f"cannot write beneath {folder}: a file or a symbolic link (not followed) is there; move it"
                    ) from None
            _sync_folder(parent)
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
        missing: ObjectMissing | None = None
        for path in self._paths(key):
            try:
                return self._read(path, limit, start, size)
            except ObjectMissing as error:
                missing = missing or error
        self._check_mounted(key)
        raise missing or _missing(key)

    def _read(self, path: str, limit: int, start: int, size: int | None) -> bytes:
        with _os_errors("read", path):
            descriptor, found = self._open(path)
            try:
                if size is None and found.st_size - start > limit:
                    raise _too_large(path, limit)
                most = limit + 1 if size is None else min(size, limit + 1)
                data = _read_descriptor(descriptor, start, most, found.st_size - start)
            finally:
                os.close(descriptor)
        if len(data) > limit:
            raise _too_large(path, limit)
        return data

    def _open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a plain file that no symbolic link leads to, and return what is known of it too.

        Raises:
            ObjectMissing: there is none.
        """
        try:
            if not self._in_plain_folder(path):
                raise ObjectMissing(f"there is no object {path}: a symbolic link stands there, which is not followed")
            # Not blocking: somebody may have put a pipe there.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
            raise ObjectMissing(f"there is no object {path}") from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise ObjectMissing(f"there is no object {path}: what stands there is no plain file")
        return descriptor, found

    def exists(self, key: str) -> bool:
        for path in self._paths(key):
            with _os_errors("look for", path):
                if self._look(path):
                    return True
        self._check_mounted(key)
        return False

    def _look(self, path: str) -> os.stat_result | None:
        """Return what is known of a plain file that no symbolic link leads to; None if there is none."""
        try:
            if not self._in_plain_folder(path):
                return None
            found = os.lstat(path)
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _in_plain_folder(self, path: str) -> bool:
        """Tell whether no symbolic link leads to the object's folder. The object itself may still be one."""
        folder = os.path.dirname(path)  # noqa: PTH120 - a hot path
        if folder in self._plain:
            return True
        if os.path.realpath(folder) != folder:
            return False
        if len(self._plain) > _FOLDERS_KNOWN:
            self._plain.clear()
        self._plain.add(folder)
        return True

    def names(self, prefix: str) -> list[str]:
        _check_prefix(prefix)
        if prefix and not prefix.endswith("/"):
            raise FormatError(f"{_clean(prefix)!r} is no folder: its prefix ends in '/'")
        self._check_mounted(prefix)
        found = [
            _text(entry.name)
            for _, place in self._places
            for entry in self._scan(prefix, place)
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        ]
        return sorted(set(found) if len(self._places) > 1 else found)

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        _check_prefix(prefix)
        self._check_mounted(prefix)
        if len(self._places) > 1:
            inside, plain = self._merge(prefix)
            return [_text(name) for name in sorted(inside)], [plain[name] for name in sorted(plain)]
        folders, objects = [], []
        for entry in self._scan(prefix):
            with _os_errors("list", entry.path):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_text(entry.name))
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    objects.append(ObjectInfo(prefix + _text(entry.name), size))
        return folders, objects

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        _check_prefix(prefix)
        top, slash, _ = prefix.rpartition("/")
        if self._is_tiered(top + slash):
            yield from self._list_tiered(top + slash, prefix, after)
        else:
            yield from self._list_plain(top + slash, prefix, after)
        # All of an archive, or of a part that the roll moves. At the end: what is there can be listed all the same.
        self._check_mounted(prefix or RECORDS[0])

    def _is_tiered(self, folder: str) -> bool:
        """Tell whether objects under a folder may lie in tiers.

        It is so of what the roll moves, whether or not it has yet: it may while we list. Others list as they would
        without tiers, since they may have more objects in one folder than memory should hold in order to merge them.
        """
        if len(self._places) == 1:
            return False
        part = folder.partition("/")[0]
        if not part or folder.startswith(RECORDS):
            return True
        for _, place in self._places[1:]:
            with _os_errors("list", place):
                if _is_there(f"{place}/{part}"):
                    return True
        return False

    def _list_tiered(self, top: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """List what lies in several places, each key once, in byte order of keys but for parts that are not tiered."""
        waiting: list[ObjectInfo | str] = [top]
        while waiting:
            one = waiting.pop()
            if isinstance(one, ObjectInfo):
                yield one
                continue
            if one != top and one.count("/") == 1 and not self._is_tiered(one):
                yield from self._list_plain(one, prefix, after)
                continue
            folders, objects = self._merge(one)
            # Names compare as bytes, a folder's with its slash, as they do in keys.
            found: list[tuple[bytes, ObjectInfo | str]] = [
                (os.fsencode(f"{name}/"), f"{one}{name}/") for name in folders
            ]
            found += [(os.fsencode(name), info) for name, info in objects.items() if info.key > after]
            for _, item in sorted(found, key=lambda pair: pair[0], reverse=True):
                if isinstance(item, ObjectInfo):
                    wanted = item.key.startswith(prefix)
                else:
                    wanted = item.startswith(prefix) and (item > after or after.startswith(item))
                if wanted:
                    waiting.append(item)

    def _merge(self, folder: str) -> tuple[set[str], dict[str, ObjectInfo]]:
        """Return by file name the folders and the objects right under a folder, wherever they lie."""
        folders: set[str] = set()
        objects: dict[str, ObjectInfo] = {}
        for class_, place in self._places:
            for entry in self._scan(folder, place):
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.add(entry.name)
                    elif entry.name not in objects and entry.is_file(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size
                        objects[entry.name] = ObjectInfo(folder + _text(entry.name), size, class_)
                except FileNotFoundError:
                    # Gone, or moved to a tier, which is looked at next.
                    continue
                except OSError as error:
                    raise _from_os(error, "list", entry.path) from error
        return folders, objects

    def _list_plain(self, top: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        folders = [top]
        while folders:
            folder = folders.pop()
            for entry in self._scan(folder):
                name = _text(entry.name)
                key = folder + name
                if not key.startswith(prefix):
                    continue
                try:
                    if entry.is_file(follow_symlinks=False):
                        if key > after:
                            yield ObjectInfo(key, entry.stat(follow_symlinks=False).st_size)
                    elif entry.is_dir(follow_symlinks=False):
                        # A folder's keys all begin with its own name and a slash: if that is below `after` and not the
                        # beginning of it, all of them are.
                        inside = key + "/"
                        if inside > after or after.startswith(inside):
                            folders.append(folder + entry.name + "/")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _from_os(error, "list", entry.path) from error

    def _scan(self, folder: str, place: str | None = None) -> Iterator[os.DirEntry[str]]:
        """Yield a folder's entries but for those that are no keys; none if it is missing or behind a symbolic link."""
        path = f"{self._root if place is None else place}/{folder}".rstrip("/") or "/"
        with _os_errors("list", path):
            if os.path.realpath(path) != path:
                return
            try:
                entries = os.scandir(path)
            except OSError as error:
                if error.errno not in _MISSING_ERRNO:
                    raise
                return
        with entries:
            try:
                for entry in entries:
                    if folder or entry.name not in _NO_KEYS:
                        yield entry
            except OSError as error:
                raise _from_os(error, "list", path) from error

    def status(self, key: str) -> ObjectStatus:
        paths = self._paths(key)
        for (class_, _), path in zip(self._places, paths, strict=True):
            with _os_errors("look at", path):
                found = self._look(path)
            if found:
                return ObjectStatus(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), class_)
        self._check_mounted(key)
        raise _missing(paths[0])

    def lock(self, key: str) -> None:
        """A folder locks nothing."""
        _check_key(key)

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        """Nothing in a folder is archived."""

    def history(self, prefix: str = "") -> Iterator[Version]:
        """A folder keeps no versions."""
        _check_prefix(prefix)
        return iter(())

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """There are none to choose."""
        if chosen:
            raise TerminalStoreError(f"{self.url} is a folder, and keeps no versions")
        return self

    def lifecycle(self) -> None:
        """A folder has no rules."""
        return

    def has_history(self, key: str) -> bool:
        """A folder keeps no versions."""
        _check_key(key)
        return False

    def remove(self, key: str) -> None:
        # A copy in a tier that is not there would come back with it.
        self._check_mounted(key)
        for path in self._paths(key):
            with _os_errors("delete", path):
                try:
                    if self._in_plain_folder(path):
                        os.unlink(path)  # noqa: PTH108 - as its neighbours
                except OSError as error:
                    if error.errno not in _MISSING_ERRNO:
                        raise

    def tiers(self) -> Sequence[str]:
        self._check_mounted(RECORDS[0])
        above = f"{self._root.rstrip('/')}/{TIERS}"
        with _os_errors("look at", above):
            if not _is_there(above):
                return ()
            names = [name for name in TIER_NAMES if _is_there(f"{above}/{name}")]
            for path in (above, *(f"{above}/{name}" for name in names)):
                if not _is_folder(path):
                    raise TerminalStoreError(
                        f"{path} is a file or a symbolic link (not followed): make a folder there, or mount one"
                    )
        if not names:
            raise TerminalStoreError(f"{above} holds no tier: make `warm` or `cold` in it, or remove it")
        return names

    def move(self, key: str, tier: str) -> None:
        paths = self._paths(key)
        if tier not in self.tiers() or len(paths) == 1:
            raise TerminalStoreError(
                f"cannot move {key} to {tier!r}: there was no folder {TIERS}/{tier} in {self._root} when it was opened"
            )
        colder = paths[1 + TIER_NAMES.index(tier) :]
        with _os_errors("move", paths[0]):
            copies = [path for path in paths if self._look(path)]
            if not copies:
                raise _missing(paths[0])
            if len(copies) > 1 and len({self._digest(path) for path in copies}) > 1:
                raise ObjectExists(
                    f"{' and '.join(copies)} hold different bytes, and the first is read: find out by its digest in"
                    " the key or the manifest which one is the object, and move the other away"
                )
            if copies[-1] not in colder:
                place = dict(self._places)[tier]
                self._mark(tier, place)
                self._copy(copies[0], colder[0], place)
                copies.append(colder[0])
            self._make_durable(copies[-1])
            for path in copies[:-1]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108

    def _tier(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{TIERS}/{name}"

    def _record(self, tier: str) -> str:
        return f"{self._root.rstrip('/')}/{MARK}-{tier}"

    def _mark(self, tier: str, place: str) -> None:
        """Mark a tier at its first use, then put that on record; killed in between, the next move goes on.

        The bytes are the same whoever marks it, so that two at once do no harm.
        """
        if tier in self._marks:
            return
        try:
            archive = hashlib.sha256(self.read(ARCHIVE, limit=_CHUNK)).hexdigest()
        except ObjectMissing:
            # There is nothing yet that it could be the tier of.
            return
        path = f"{place}/{MARK}"
        data = f'{{"format":"custody/tier/1","tier":"{tier}","archive":"{archive}"}}\n'.encode()
        try:
            found = self._read(path, _MARK_BYTES, 0, None)
        except ObjectMissing:
            found = self._put_mark(place, path, data)
        if found != data:
            raise TerminalStoreError(
                f"{path} is the mark of another tier, or of another archive's: mount this one's there"
            )
        record = self._record(tier)
        self._create(record, data, ())
        if self._read(record, _MARK_BYTES, 0, None) != data:
            os.unlink(record)  # noqa: PTH108
            raise TransientStoreError(f"{record} does not read as it was written: check its disk; nothing was moved")
        self._marks[tier] = data

    def _put_mark(self, place: str, path: str, data: bytes) -> bytes:
        descriptor, staged = self._new_staged(place)
        try:
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._check_copy(staged, hashlib.sha256(data).digest(), "the tier's mark")
            os.replace(staged, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108
            raise
        _sync_folder(place)
        return data

    def _check_mounted(self, key: str) -> None:
        """Look, before something that may lie in a tier is called missing, whether each tier in use is there.

        Raises:
            TierUnmounted: one is not.
        """
        if not self._marks or not key.startswith(RECORDS):
            return
        for tier in self._marks:
            if why := self._unmounted.get(tier) or self._why_unmounted(tier):
                raise TierUnmounted(why)

    def _why_unmounted(self, tier: str) -> str | None:
        place, record = self._tier(tier), self._record(tier)
        path = f"{place}/{MARK}"
        try:
            if self._read(path, _MARK_BYTES, 0, None) == self._marks[tier]:
                return None
            why = "is not the one of"
        except ObjectMissing:
            why = "is not there, and should be as"
        except (FormatError, StoreError) as error:
            why = f"cannot be read ({error}) and held against"
        return (
            f"the tier {tier!r} is not mounted at {place}: its mark {path} {why} {record}; mount it, and try again"
            f" (if it was copied to another disk without its mark, copy {record} to {path}; if nothing is kept in it"
            f" any more, remove {record})"
        )

    def _copy(self, source: str, path: str, place: str) -> None:
        """Copy an object to a free path of another place; the copy gets its name when it was read and found equal."""
        if _is_there(path):
            raise TerminalStoreError(f"cannot move to {path}: what is in its place is no plain file; move it away")
        self._make_folder(os.path.dirname(path))  # noqa: PTH120
        descriptor, staged = self._new_staged(place)
        try:
            try:
                digest = hashlib.sha256()
                origin, found = self._open(source)
                try:
                    for chunk in _chunks(origin):
                        digest.update(chunk)
                        _write_all(descriptor, chunk)
                finally:
                    os.close(origin)
                os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
                os.fsync(descriptor)
                if hasattr(os, "posix_fadvise"):
                    # So that it is read from the disk below, and not from what we have just written.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
            self._check_copy(staged, digest.digest(), source)
            os.replace(staged, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108
            raise

    def _check_copy(self, path: str, digest: bytes, source: str) -> None:
        if self._digest(path) != digest:
            raise TransientStoreError(
                f"the copy {path} of {source} does not read as it was written: check its disk; the object stays"
            )

    def _digest(self, path: str) -> bytes:
        digest = hashlib.sha256()
        descriptor, _ = self._open(path)
        try:
            for chunk in _chunks(descriptor):
                digest.update(chunk)
        finally:
            os.close(descriptor)
        return digest.digest()

    def _make_durable(self, path: str) -> None:
        """Sync an object and all that leads to it: who copied it may have died."""
        folder = os.path.dirname(path)  # noqa: PTH120
        self._make_folder(folder)
        descriptor, _ = self._open(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(folder)

    def close(self) -> None:
        """There is nothing to give up."""

    def _paths(self, key: str) -> Sequence[str]:
        """Return where an object may lie, the hot part first."""
        _check_key(key)
        if len(self._places) == 1:
            return (f"{self._places[0][1]}/{key}",)
        return tuple(f"{place}/{key}" for _, place in self._places)


def _is_there(path: str) -> bool:
    """Say whether anything has that name; unlike `os.path.lexists` it does not take an error for a no."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in _MISSING_ERRNO:
            raise
        return False
    return True


def _is_folder(path: str) -> bool:
    """Say whether that is a folder, and no symbolic link to one."""
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Yield a file's bytes from its beginning."""
    start = 0
    while chunk := os.pread(descriptor, _CHUNK, start):
        yield chunk
        start += len(chunk)


def _text(name: str) -> str:
    """Return a file's name as text, with bytes that are no UTF-8 spelled out: nobody's key, but one to show."""
    return name if _is_unicode(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_descriptor(descriptor: int, start: int, size: int, there: int) -> bytes:
    """Return up to `size` bytes from `start`, where `there` bytes are by what the file system said."""
    chunks = []
    while size > 0:
        # One byte more than there is, so that a small object costs one call, and memory of its size alone.
        wanted = min(size, there + 1 if there >= 0 else _CHUNK, 16 * _CHUNK)
        chunk = os.pread(descriptor, wanted, start)
        if chunk:
            chunks.append(chunk)
        start += len(chunk)
        size -= len(chunk)
        there -= len(chunk)
        if not chunk or (len(chunk) < wanted and there <= 0):
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _make_root(folder: str) -> None:
    """Make the archive's root and what is missing above it, down from what is there, each entry synced."""
    parent = os.path.dirname(folder)  # noqa: PTH120
    if not os.path.isdir(parent):  # noqa: PTH112
        _make_root(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: str) -> None:
    """Remove what writers that died a day ago left in the staging area. No object is ever there."""
    oldest = time.time() - _ABANDONED_SECONDS
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)  # noqa: PTH108


# Nothing there, a file where a folder is asked for, or a symbolic link, which is not followed.
_MISSING_ERRNO = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_TRANSIENT_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)

_ERRNO_ADVICE = {
    errno.ENOSPC: "the disk is full: make room, nothing was lost and the next run goes on",
    errno.EDQUOT: "the quota is used up: make room, nothing was lost and the next run goes on",
    errno.EACCES: "this user may not: give it the folder, or run as the folder's owner",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENAMETOOLONG: "the file system has no names this long: use a shorter root or another file system",
    errno.EPERM: "the file system refuses it (an archive's needs hard links)",
    errno.EOPNOTSUPP: "the file system cannot do it (an archive's needs hard links)",
    errno.EXDEV: f"{STAGING} must be on the same file system as the rest of the archive",
    errno.EIO: "the disk fails: check it before anything else is written",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away",
}


@contextlib.contextmanager
def _os_errors(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _from_os(error, doing, path) from error


def _from_os(error: OSError, doing: str, path: str) -> StoreError:
    """Return the store's error for one of the operating system's."""
    transient = error.errno in _TRANSIENT_ERRNO
    reason = error.strerror or type(error).__name__
    advice = _ERRNO_ADVICE.get(error.errno or 0, "it may pass; try again" if transient else "see to the file system")
    message = f"cannot {doing} {_clean(path)}: {reason} ({advice})"
    return TransientStoreError(message) if transient else TerminalStoreError(message)


# ---------------------------------------------------------------------------------------------------------------------
# S3


class _CutShortError(TransientStoreError):
    """An answer that had begun well did not arrive whole."""


class _S3Store:
    """An archive in a bucket of AWS S3, or of a server that speaks its protocol."""

    def __init__(self, url: str, options: S3Options, chosen: Mapping[str, Version] | None = None) -> None:
        self._chosen = chosen or {}
        self._bucket, self._prefix = _bucket_of(url)
        _check_options(options)
        self._options = options
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")
        # Every botocore retry sends a call again without looking. Reads may be; a put is not, see `create`.
        self._reader, self._writer = _s3_clients(options, _READ_ATTEMPTS, 1)
        self._bucket_seen = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _S3Store, (self.url, self._options, self._chosen)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        where = self._where(key)
        put = {**self._object(key), **self._protection(key)}
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        started = time.monotonic()
        problem: StoreError | None = None
        for attempt in range(_PUT_ATTEMPTS):
            if attempt:
                _wait(attempt)
            try:
                with _s3_errors("write", where):
                    self._writer.put_object(
                        **put, Body=data, IfNoneMatch="*", ChecksumAlgorithm="SHA256", ChecksumSHA256=digest
                    )
            except (TransientStoreError, ObjectExists) as error:
                problem = error
            else:
                return
            try:
                if self._holds(key, data):
                    return
            except ObjectMissing:
                if isinstance(problem, ObjectExists):
                    problem = TransientStoreError(f"the server says that {where} exists, and that it does not")
            except TransientStoreError as error:
                problem = error
            else:
                raise _occupied(where)
            if time.monotonic() - started > _PUT_PATIENCE:
                break
        raise TransientStoreError(
            f"it is not known whether {where} was written, after {attempt + 1} attempts: {problem}"
        )

    def _holds(self, key: str, data: bytes) -> bool:
        """Say whether the object's bytes are these."""
        try:
            return self.read(key, limit=len(data)) == data
        except FormatError:
            return False

    def _protection(self, key: str) -> dict[str, Any]:
        """Return what a put says about encryption and, of evidence, about Object Lock."""
        options = self._options
        put: dict[str, Any] = {}
        if options.sse_kms_key:
            put |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.sse_kms_key}
        if not key.startswith(EVIDENCE):
            return put
        if options.retention_mode and options.retention_days:
            until = datetime.now(UTC) + timedelta(days=options.retention_days)
            put |= {"ObjectLockMode": options.retention_mode, "ObjectLockRetainUntilDate": until}
        if options.legal_hold:
            put |= {"ObjectLockLegalHoldStatus": "ON"}
        return put

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,
    ) -> bytes:
        if size is not None and size <= 0:
            if not self.exists(key):
                raise _missing(self._where(key))
            return b""
        # botocore's retries end with the answer's head; a body that breaks off is asked for again here.
        for attempt in range(1, _READ_ATTEMPTS):
            try:
                return self._read(key, limit, start, size, restored)
            except _CutShortError:
                _wait(attempt)
        return self._read(key, limit, start, size, restored)

    def _read(self, key: str, limit: int, start: int, size: int | None, restored: bool) -> bytes:
        where = self._where(key)
        span: dict[str, Any] = {}
        if start or size is not None:
            want = limit + 1 if size is None else min(size, limit + 1)
            span["Range"] = f"bytes={start}-{start + want - 1}"
        try:
            with _s3_errors("read", where):
                answer = self._reader.get_object(**self._object(key), **self._version(key), **span)
        except _BeyondEndError:
            return b""
        body = answer["Body"]
        try:
            if not restored and answer.get("StorageClass") in ARCHIVED_CLASSES:
                raise ObjectArchived(f"{where} is in an archived storage class, and only a restored copy can be read")
            if span and "ContentRange" not in answer:
                raise TerminalStoreError(
                    f"cannot read a part of {where}: the server does not do ranges; use one that does"
                )
            length = answer["ContentLength"]
            if length > limit:
                raise _too_large(where, limit)
            try:
                with _s3_errors("read", where):
                    data = body.read(length) if length else b""
            except TransientStoreError as error:
                raise _CutShortError(str(error)) from None
        finally:
            body.close()
        if len(data) != length:
            raise _CutShortError(f"cannot read {where}: {len(data):,} of {length:,} bytes came; try again")
        return data

    def exists(self, key: str) -> bool:
        where = self._where(key)
        try:
            with _s3_errors("look for", where):
                self._reader.head_object(**self._object(key), **self._version(key))
        except ObjectMissing:
            self._check_bucket()
            return False
        return True

    def _check_bucket(self) -> None:
        """Tell a missing object from a missing bucket, for which HEAD has the same answer."""
        if self._bucket_seen:
            return
        where = f"s3://{self._bucket}"
        try:
            with _s3_errors("look for", where):
                self._reader.head_bucket(**self._owned())
        except ObjectMissing:
            raise TerminalStoreError(f"there is no bucket {where}: create it, or correct the archive's URL") from None
        except TerminalStoreError:
            # Who may only read objects may not look at the bucket; then its object's answer has to do.
            pass
        self._bucket_seen = True

    def names(self, prefix: str) -> list[str]:
        _check_prefix(prefix)
        if prefix and not prefix.endswith("/"):
            raise FormatError(f"{_clean(prefix)!r} is no folder: its prefix ends in '/'")
        folders, objects = self.level(prefix)
        return sorted({*folders, *(info.key[len(prefix) :] for info in objects)} - {""})

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        _check_prefix(prefix)
        root, skip = len(self._absolute("")), len(self._absolute(prefix))
        folders: set[str] = set()
        objects: dict[str, ObjectInfo] = {}
        for page in self._pages(prefix, {"Delimiter": "/"}):
            folders.update(common["Prefix"][skip:].rstrip("/") for common in page.get("CommonPrefixes", ()))
            for item in page.get("Contents", ()):
                objects[item["Key"][root:]] = ObjectInfo(
                    item["Key"][root:], item["Size"], item.get("StorageClass", "STANDARD")
                )
        for key, version in self._chosen.items():
            if key.startswith(prefix):
                folder, deeper, _ = key[len(prefix) :].partition("/")
                if deeper:
                    folders.add(folder)
                else:
                    objects[key] = ObjectInfo(key, version.size)
        return sorted(folders), list(objects.values())

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        _check_prefix(prefix)
        if after > prefix and not after.startswith(prefix):
            return
        start = _safe_start(prefix, after)
        recent: set[str] = set()
        for page in self._pages(prefix, {"StartAfter": self._absolute(start)} if start > prefix else {}):
            # A server may repeat keys where one page ends and the next begins.
            seen, recent = recent, set()
            for item in page.get("Contents", ()):
                key = item["Key"][len(self._absolute("")) :]
                if key in self._chosen:
                    continue
                if key > after and key.startswith(prefix) and key not in seen and key not in recent:
                    recent.add(key)
                    yield ObjectInfo(key, item["Size"], item.get("StorageClass", "STANDARD"))
        for key, version in self._chosen.items():
            if key > after and key.startswith(prefix):
                yield ObjectInfo(key, version.size)

    def _version(self, key: str) -> dict[str, Any]:
        return {"VersionId": self._chosen[key].id} if key in self._chosen else {}

    def _pages(self, prefix: str, arguments: dict[str, Any]) -> Iterator["ListObjectsV2OutputTypeDef"]:
        where = f"{self.url}/{prefix}"
        more: dict[str, Any] = {}
        while True:
            with _s3_errors("list", where):
                page = self._reader.list_objects_v2(**self._owned(), **arguments, **more, Prefix=self._absolute(prefix))
            yield page
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return
            if more.get("ContinuationToken") == token:
                raise TerminalStoreError(f"cannot list {where}: the server gives the same page again and again")
            more = {"ContinuationToken": token}

    def has_history(self, key: str) -> bool:
        absolute = self._absolute(key)
        for page in self._version_pages(absolute, self._where(key)):
            if any(marker["Key"] == absolute for marker in page.get("DeleteMarkers", ())):
                return True
            for version in page.get("Versions", ()):
                # An object without a version, and that is there now, is no history: `exists` tells of it.
                plain = version.get("VersionId", "null") == "null" and version.get("IsLatest", True)
                if version["Key"] == absolute and not plain:
                    return True
        return False

    def status(self, key: str) -> ObjectStatus:
        where = self._where(key)
        try:
            with _s3_errors("look at", where):
                call = {**self._object(key), **self._version(key)}
                found: dict[str, Any] = {**self._reader.head_object(**call, ChecksumMode="ENABLED")}
        except ObjectMissing:
            self._check_bucket()
            raise
        digest = found.get("ChecksumSHA256")
        # One of several parts ("…-3") is no digest of the bytes.
        if digest is not None and (found.get("ChecksumType") == "COMPOSITE" or "-" in digest):
            digest = None
        return ObjectStatus(
            size=found["ContentLength"],
            created=found["LastModified"],
            storage_class=found.get("StorageClass", "STANDARD"),
            restored='ongoing-request="false"' in found.get("Restore", ""),
            restoring='ongoing-request="true"' in found.get("Restore", ""),
            sha256=base64.b64decode(digest).hex() if digest is not None else None,
            lock_mode=found.get("ObjectLockMode"),
            lock_until=found.get("ObjectLockRetainUntilDate"),
            legal_hold=found.get("ObjectLockLegalHoldStatus") == "ON",
        )

    def lock(self, key: str) -> tuple[str, datetime] | None:
        where = self._where(key)
        try:
            with _s3_errors(_LOOK_AT_LOCK, where):
                found = self._reader.get_object_retention(**self._object(key), **self._version(key))["Retention"]
        except (_NotImplementedError, _NoLockError):
            return None
        mode, until = found.get("Mode"), found.get("RetainUntilDate")
        return (mode, until) if mode and until else None

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        where = self._where(key)
        asked: Any = {"Days": days, "GlacierJobParameters": {"Tier": tier.capitalize()}}
        try:
            with _s3_errors("restore", where):
                self._reader.restore_object(**self._object(key), **self._version(key), RestoreRequest=asked)
        except _RestoringError:
            return

    def history(self, prefix: str = "") -> Iterator[Version]:
        _check_prefix(prefix)
        skip = len(self._absolute(""))
        held: dict[str, list[Version]] = {}
        for page in self._version_pages(self._absolute(prefix), f"{self.url}/{prefix}"):
            for one in page.get("Versions", ()):
                version = Version(one["Key"][skip:], one["VersionId"], False, one["IsLatest"], one["Size"], one["ETag"])
                held.setdefault(version.key, []).append(version)
            for marker in page.get("DeleteMarkers") or ():
                version = Version(marker["Key"][skip:], marker["VersionId"], True, marker["IsLatest"], 0)
                held.setdefault(version.key, []).append(version)
            # The last key of a page may go on in the next.
            open_key = page.get("NextKeyMarker", "")[skip:] if page.get("IsTruncated") else ""
            for key, versions in held.items():
                if key != open_key and (len(versions) > 1 or versions[0].marker):
                    yield from versions
            held = {open_key: held[open_key]} if open_key in held else {}

    def _version_pages(self, absolute: str, where: str) -> Iterator["ListObjectVersionsOutputTypeDef"]:
        more: dict[str, Any] = {}
        while True:
            try:
                with _s3_errors("list versions of", where):
                    page = self._reader.list_object_versions(**self._owned(), **more, Prefix=absolute)
            except _NotImplementedError:
                return
            yield page
            following = {
                "KeyMarker": page.get("NextKeyMarker", ""),
                "VersionIdMarker": page.get("NextVersionIdMarker", ""),
            }
            following = {name: marker for name, marker in following.items() if marker}
            if not page.get("IsTruncated") or following == more:
                return
            more = following

    def remove(self, key: str) -> None:
        absolute, where = self._absolute(key), self._where(key)
        versions: list[str] = []
        for page in self._version_pages(absolute, where):
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            versions += [one.get("VersionId", "null") for one in found if one["Key"] == absolute]
        with _s3_errors("delete", where):
            # By its version: else a bucket with versions would keep the bytes, under a delete marker.
            for version in versions:
                self._writer.delete_object(**self._object(key), VersionId=version)
            if not versions:
                self._writer.delete_object(**self._object(key))

    def tiers(self) -> Sequence[str]:
        """The bucket's rules move objects."""
        return ()

    def move(self, key: str, tier: str) -> None:
        """Likewise."""
        raise TerminalStoreError(f"cannot move {self._where(key)} to {tier!r}: in S3 the bucket's rules move objects")

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        return _S3Store(self.url, self._options, chosen)

    def lifecycle(self) -> Sequence[LifecycleRule] | None:
        where = f"s3://{self._bucket}"
        try:
            with _s3_errors("read the lifecycle rules of", where):
                found = self._reader.get_bucket_lifecycle_configuration(**self._owned())
        except _NotImplementedError:
            return None
        except _NoLifecycleError:
            return ()
        rules = (_lifecycle_rule(rule) for rule in found.get("Rules", ()) if rule.get("Status") == "Enabled")
        root = self._absolute("")
        return [rule for rule in rules if rule.prefix.startswith(root) or root.startswith(rule.prefix)]

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _absolute(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _where(self, key: str) -> str:
        _check_key(key)
        return f"{self.url}/{key}"

    def _owned(self) -> dict[str, Any]:
        owner = self._options.expected_bucket_owner
        return {"Bucket": self._bucket, "ExpectedBucketOwner": owner} if owner else {"Bucket": self._bucket}

    def _object(self, key: str) -> dict[str, Any]:
        return {**self._owned(), "Key": self._absolute(key)}


def _safe_start(prefix: str, after: str) -> str:
    """Return a StartAfter that loses no key greater than `after`, whether the server sorts by bytes or by path.

    By path "a/b" comes before "a-b", and a server may take StartAfter "a" to mean that folder "a" is done. Cut at the
    first character that sorts before "/", and then one character shorter, what is greater than `after` by bytes is
    greater by path, too, and so is the folder it is in. So a few keys come in vain, ten of a log's manifests at most.
    """
    end = len(prefix)
    while end < len(after) and after[end] >= "/":
        end += 1
    if end > len(prefix) and after[end - 1] != "/":
        end -= 1
    return after[:end]


def _lifecycle_rule(rule: Any) -> LifecycleRule:
    """Return in our terms what boto3 gives of a rule."""
    filter_ = rule.get("Filter") or {}
    both = filter_.get("And") or {}
    moves = {(move.get("Days", 0), move["StorageClass"]) for move in rule.get("Transitions", ())}
    expiration = rule.get("Expiration") or {}
    return LifecycleRule(
        id=_clean(rule.get("ID", "")),
        prefix=filter_.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or "",
        filtered=bool(set(filter_) - {"Prefix", "And"} or set(both) - {"Prefix"}),
        moves=tuple(sorted(moves)),
        deletes=bool({"Days", "Date"} & set(expiration) or rule.get("NoncurrentVersionExpiration")),
    )


def _bucket_of(url: str) -> tuple[str, str]:
    """Return the bucket and the prefix that an S3 URL names."""
    bucket, _, prefix = url[len("s3://") :].partition("/") if url[:5].lower() == "s3://" else ("", "", "")
    if "@" in bucket:
        raise ConfigurationError(
            "the archive's URL holds an '@': credentials do not belong there, set AWS_ACCESS_KEY_ID instead"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[A-Za-z0-9:/_-]+", bucket):
        raise ConfigurationError(f"{_clean(bucket)!r} is no bucket's name; want s3://BUCKET/PREFIX")
    prefix = prefix.removesuffix("/")
    try:
        _check_prefix(prefix)
    except FormatError:
        raise ConfigurationError(
            f"{_clean(prefix)!r} cannot be an archive's prefix: it has no leading or double '/', no '.' and no '..'"
        ) from None
    return bucket, prefix


def _check_options(options: S3Options) -> None:
    if options.endpoint_url is not None:
        try:
            endpoint = urlsplit(options.endpoint_url)
            valid = endpoint.scheme in {"http", "https"} and endpoint.hostname and endpoint.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigurationError(
                f"endpoint_url is {_clean(options.endpoint_url)!r}; want https://HOST or http://HOST:PORT"
            )
        if "@" in endpoint.netloc:
            raise ConfigurationError(
                "endpoint_url holds an '@': credentials do not belong there, set AWS_ACCESS_KEY_ID instead"
            )
    if (options.retention_mode is None) != (options.retention_days is None):
        raise ConfigurationError("retention_mode and retention_days go together: set both or neither")
    if options.retention_mode not in {None, "GOVERNANCE", "COMPLIANCE"}:
        raise ConfigurationError(f"retention_mode is {options.retention_mode!r}; want GOVERNANCE or COMPLIANCE")
    if options.retention_days is not None and not 1 <= options.retention_days <= 36_500:
        raise ConfigurationError(f"retention_days is {options.retention_days}; want 1 to 36500")
    owner = options.expected_bucket_owner
    if owner is not None and not re.fullmatch(r"[0-9]{12}", owner):
        raise ConfigurationError(f"expected_bucket_owner is {_clean(owner)!r}; want an account id of 12 digits")


def _s3_clients(options: S3Options, *attempts: int) -> "list[S3Client]":
    """Return a client for each number of attempts, sending each call at most so often."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(
            "an archive in S3 needs boto3, which is not installed: pip install 'custody[s3]'"
        ) from None
    try:
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            tcp_keepalive=True,
            # A custom server rarely has a name for each bucket.
            s3={"addressing_style": "path"} if options.endpoint_url else {},
            # A digest that does not match is the verifier's finding, with the bytes at hand, not a failed read.
            response_checksum_validation="when_required",
            user_agent_extra="custody",
        )
        # Not boto3's default session, which is no thread's own.
        session = boto3.session.Session()
        return [
            session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                region_name=options.region,
                config=config.merge(Config(retries={"mode": "standard", "total_max_attempts": most})),
            )
            for most in attempts
        ]
    except _s3_failures() as error:
        raise ConfigurationError(f"the AWS settings cannot be used: {_said(error)}") from None


class _NotImplementedError(TerminalStoreError):
    """The server does not know the call."""


class _NoLifecycleError(TerminalStoreError):
    """The bucket has no lifecycle rules."""


class _NoLockError(TerminalStoreError):
    """The object, or its whole bucket, has no Object Lock."""


class _RestoringError(TerminalStoreError):
    """A copy of the archived object is being made already."""


class _BeyondEndError(TerminalStoreError):
    """The range asked for begins behind the object's end."""


_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "InternalFailure",
        "KMS.ThrottlingException",
        "LimitExceededException",
        "OperationAborted",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "TransactionInProgressException",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
# 412: to a call without a condition it makes no sense.
_TRANSIENT_STATUS = frozenset({408, 409, 412, 425, 429})

_LOOK_AT_LOCK = "look at the lock of"
# AWS has a code for an object without a lock, and InvalidRequest for one in a bucket without.
_NO_LOCK_CODES = frozenset({"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"})

_CREDENTIALS_ADVICE = "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or role)"
_EXPIRED_ADVICE = "the credentials have expired: renew them"
_REGION_ADVICE = "the bucket is in another region: set `region` to the bucket's"
_ACCESS_ADVICE = (
    "the bucket's or the identity's policy does not allow it: allow s3:GetObject, s3:PutObject, s3:ListBucket and"
    " s3:ListBucketVersions (without s3:ListBucket a missing object looks like this, too)"
)
_CODE_ADVICE = {
    "AccessDenied": _ACCESS_ADVICE,
    "AllAccessDisabled": _ACCESS_ADVICE,
    "AuthorizationHeaderMalformed": _REGION_ADVICE,
    "ExpiredToken": _EXPIRED_ADVICE,
    "ExpiredTokenException": _EXPIRED_ADVICE,
    "IllegalLocationConstraintException": _REGION_ADVICE,
    "InvalidAccessKeyId": _CREDENTIALS_ADVICE,
    "InvalidToken": _CREDENTIALS_ADVICE,
    "NoSuchBucket": "there is no such bucket: create it, or correct the archive's URL",
    "PermanentRedirect": _REGION_ADVICE,
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "SignatureDoesNotMatch": _CREDENTIALS_ADVICE,
    "301": _REGION_ADVICE,
    "400": f"set `region` to the bucket's, and {_CREDENTIALS_ADVICE}",
    "403": _ACCESS_ADVICE,
}


@functools.cache
def _s3_failures() -> tuple[type[Exception], ...]:
    """Return what boto3 is known to raise. ValueError and LookupError: from answers that do not parse."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, Boto3Error, HTTPError, OSError, ValueError, LookupError)


@contextlib.contextmanager
def _s3_errors(doing: str, where: str) -> Iterator[None]:
    """Turn what boto3 raises into the store's errors. Its own are not chained: they hold the server's whole answer."""
    try:
        yield
    except _s3_failures() as error:
        raise _from_s3(error, doing, where) from None


def _from_s3(error: Exception, doing: str, where: str) -> StoreError:
    """Return the store's error for one of boto3's."""
    from botocore.exceptions import ClientError

    return _from_answer(error, doing, where) if isinstance(error, ClientError) else _from_library(error, doing, where)


def _from_answer(error: Any, doing: str, where: str) -> StoreError:
    """Return the store's error for an answer that says no."""
    answer = error.response.get("Error") or {}
    code = str(answer.get("Code") or "")
    status = (error.response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0
    if not status and re.fullmatch(r"[1-5][0-9][0-9]", code):
        status = int(code)
    if code in {"NoSuchKey", "NoSuchVersion", "404"}:
        return _missing(where)
    if status == 412 and doing == "write":
        return _occupied(where)
    if code == "NoSuchLifecycleConfiguration":
        return _NoLifecycleError(f"{where} has no lifecycle rules")
    if code in _NO_LOCK_CODES and doing == _LOOK_AT_LOCK:
        return _NoLockError(f"{where} has no lock")
    if code == "AccessDenied" and doing == _LOOK_AT_LOCK:
        return TerminalStoreError(f"cannot {doing} {where}: HTTP {status}, {code} (allow s3:GetObjectRetention)")
    if code == "RestoreAlreadyInProgress":
        return _RestoringError(f"{where} is being restored already")
    if code == "AccessDenied" and doing == "restore":
        return TerminalStoreError(f"cannot restore {where}: HTTP {status}, {code} (allow s3:RestoreObject)")
    if code == "InvalidObjectState" and doing == "restore":
        return TerminalStoreError(f"cannot restore {where}: it is in no archived storage class any more; run again")
    if code == "InvalidObjectState":
        return ObjectArchived(f"{where} is in an archived storage class (InvalidObjectState): restore it first")
    said = f"{_clean(code)} {_clean(str(answer.get('Message') or ''))}".strip() or "an answer without a code"
    message = f"cannot {doing} {where}: HTTP {status or '?'}, {said}"
    if code == "InvalidRange" or status == 416:
        return _BeyondEndError(message)
    if code == "NotImplemented" or status == 501:
        return _NotImplementedError(f"{message} (this server lacks what an archive needs; use one that has it)")
    if code in _TRANSIENT_CODES or status >= 500 or (status in _TRANSIENT_STATUS and code not in _CODE_ADVICE):
        return TransientStoreError(f"{message} (it may pass; try again)")
    return TerminalStoreError(f"{message} ({_CODE_ADVICE.get(code, 'trying again does not help')})")


def _from_library(error: Exception, doing: str, where: str) -> StoreError:
    """Return the store's error for a call without an answer, or with one that makes no sense."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    message = f"cannot {doing} {where}: {_said(error)}"
    untrusted = isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
    if untrusted:
        return TerminalStoreError(
            f"{message} (set AWS_CA_BUNDLE to the certificate authority that the server's is from)"
        )
    passing = (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.ChecksumError,
        exceptions.FlexibleChecksumError,
        exceptions.IncompleteReadError,
        exceptions.MetadataRetrievalError,
        exceptions.CredentialRetrievalError,
        ResponseParserError,
        HTTPError,
    )
    # Some of botocore's settings errors are ValueErrors as well; those of no library are a broken answer's.
    beneath = isinstance(error, (OSError, ValueError, LookupError)) and not isinstance(error, exceptions.BotoCoreError)
    if isinstance(error, passing) or beneath:
        return TransientStoreError(f"{message} (it may pass; try again)")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return TerminalStoreError(f"{message} ({_CREDENTIALS_ADVICE})")
    return TerminalStoreError(f"{message} (check the AWS settings and credentials)")


def _said(error: Exception) -> str:
    """Return an error's kind and words, but for those that may quote what a credential helper printed."""
    from botocore.exceptions import CredentialRetrievalError

    kind = type(error).__name__
    if isinstance(error, CredentialRetrievalError):
        return f"{kind}: the provider {_clean(str(error.kwargs.get('provider', '')))!r} gave no credentials"
    return f"{kind}: {_clean(str(error))}"


def _missing(where: str) -> ObjectMissing:
    return ObjectMissing(f"there is no object {where}")


def _wait(attempt: int) -> None:
    """Sleep longer after each attempt, by chance, so that many writers do not come back at once."""
    base, most = _BACKOFF_SECONDS
    time.sleep(random.uniform(0.5, 1) * min(most, base * 4 ** (attempt - 1)))  # noqa: S311 - nothing secret
