"""The one door to storage: create-only puts and bounded reads of an archive in a folder or in S3.

Rules:

1. Never overwrite: every object is created by one conditional put (S3 `If-None-Match: *`) or one exclusive link. There
   is no call here that changes an object.
2. Never report success before a put is durable, nor failure before it is certain. If the outcome is unknown (time-out,
   cut connection, 5xx, 409) or the key is taken (412), the object is read back. The same bytes are success, other bytes
   are `ObjectExists`. The put is sent again only if there is no object.
3. Never read more than the caller's limit, whatever the object's size is.
4. Never raise a lower library's error: each is converted to one of `custody.errors`, terminal or transient.
5. Never show a credential: a URL that contains one is refused, and messages of libraries and servers are cleaned.
6. Never check contents: a store returns the bytes that it has, and the verifier checks them.

Each capability that only some stores have is a small protocol. `store.capabilities` has an object for each capability
of this store, and None for the others; a folder has none. It is an attribute, so a wrapper that delegates to a store
has that store's capabilities.
"""

import contextlib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Literal, Protocol
from urllib.parse import urlsplit

from custody.errors import FormatError, ObjectExists, ObjectMissing, legible
from custody.format.patterns import possessive

__all__ = [
    "Capabilities",
    "Lifecycle",
    "LifecycleRule",
    "ObjectInfo",
    "ObjectLocks",
    "ObjectStatus",
    "Restores",
    "S3Options",
    "Store",
    "Version",
    "Versions",
]

STAGING = ".staging"
"""Where a folder keeps unfinished objects. No reader looks there."""
_KEY_BYTES = 1024
# Names of ASCII that do not begin with a dot.
_USUAL_NAME = r"[\w@=-][\w@=.-]*+"
_USUAL_KEY = re.compile(rf"(?=.{{1,{_KEY_BYTES}}}\Z){_USUAL_NAME}{possessive(f'/{_USUAL_NAME}')}", re.ASCII)
CLOCK_SLACK = timedelta(minutes=5)
"""A difference between clocks that is reported. Time synchronization keeps hosts within a second."""
READABLE = "others on the network can read or change what is sent"
"""Why a connection by http:// is warned of."""
ARCHIVED_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes that cannot be read without a restore."""
Tier = Literal["standard", "bulk"]
"""The speed of a restore: within hours, or cheaper within two days."""


class ObjectInfo:
    """An object in a listing. Two are equal if they have one key and one size.

    Attributes:
        key: relative to the archive's root.
        storage_class: of S3; None in a folder.
    """

    __slots__ = ("_size", "key", "storage_class")

    def __init__(self, key: str, size: int | Callable[[], int], storage_class: str | None = None) -> None:
        """Make it. A `size` that takes a call to the system is given as a function: most readers want only keys."""
        self.key, self._size, self.storage_class = key, size, storage_class

    @property
    def size(self) -> int:
        """Bytes. A folder looks when it is asked, and has 0 for an object that is gone by then; raises StoreError."""
        return self._size if isinstance(self._size, int) else self._size()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectInfo) and (self.key, self.size) == (other.key, other.size)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"ObjectInfo({self.key!r}, {self.size}, {self.storage_class!r})"


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """An object's metadata in the store.

    Attributes:
        size: in bytes.
        created: when this version was put.
        storage_class: of S3, `STANDARD` if it names none; None in a folder.
        restored: whether a readable copy of an archived object exists.
        restoring: whether such a copy is being made.
        sha256: hex digest that the store computed at the put, None if it has none.
        lock_mode: mode of the Object Lock, None if there is no retention.
        lock_until: the end of the retention.
        legal_hold: whether there is a legal hold.
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
        """Whether it is in a storage class that cannot be read without a restore."""
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
    """The store's digest of the bytes: if versioning was suspended, several versions have the same id."""


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule by which the bucket moves or deletes objects.

    Attributes:
        id: its name.
        prefix: of the bucket's keys that it applies to.
        filtered: whether it also depends on tags or sizes.
        moves: days since the put, each with the storage class moved to, in order.
        deletes: whether it deletes objects, or versions of them.
    """

    id: str
    prefix: str
    filtered: bool
    moves: tuple[tuple[int, str], ...]
    deletes: bool


@dataclass(frozen=True, slots=True)
class S3Options:
    """Settings of an archive in S3. Credentials come from the standard AWS settings.

    Attributes:
        endpoint_url: URL of an S3-compatible server, if it is not AWS.
        region: if the standard AWS settings do not have it.
        sse_kms_key: id, ARN or alias of the KMS key that encrypts objects.
        expected_bucket_owner: account id; a bucket of another account is refused.
        retention_mode: Object Lock mode that each put of evidence sets, with `retention_days`.
        retention_days: days of the lock, from the put.
        legal_hold: whether each put of evidence sets a legal hold.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    endpoint_url: str | None = None
    region: str | None = None
    sse_kms_key: str | None = None
    expected_bucket_owner: str | None = None
    retention_mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    retention_days: int | None = None
    legal_hold: bool = False


class Store(Protocol):
    """Objects under one root. Implementations are thread-safe and pickle as their URL and options."""

    @property
    def url(self) -> str:
        """The root, as a URL without credentials."""

    @property
    def capabilities(self) -> "Capabilities":
        """What only some stores can do."""

    def create(self, key: str, data: bytes) -> None:
        """Create an object, and return when it is durable. If it exists with the same bytes, this is success.

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
        """Return the object's bytes `[start:start + size]`, as a slice does: fewer bytes if the object ends before.

        Raises:
            ObjectMissing: there is no such object.
            ObjectArchived: it is in an archive storage class. With `restored`: and there is no restored copy.
            FormatError: the bytes are more than `limit`. At most one byte beyond the limit is read.
        """

    def exists(self, key: str) -> bool:
        """Return whether there is an object under the key."""

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Return the folders, sorted and without a slash, and the objects directly under a prefix.

        Raises:
            FormatError: the prefix is neither empty nor ends in `/`.
        """

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix` and is greater than `after`, each once, in any order.

        With `through`, keys greater than that are left out, and a bucket is not listed further. `without` has folders
        directly under the root, each with its slash, whose objects are left out. Keys compare by their bytes. Objects
        that are created or deleted meanwhile may be missing.
        """

    def status(self, key: str) -> ObjectStatus:
        """Return an object's metadata.

        Raises:
            ObjectMissing: there is no such object.
        """

    def remove(self, key: str) -> None:
        """Delete an object with all its versions. If there is none, this is success.

        Call this only for objects that a signed statement calls expired, and for tables, which can be made again.

        Raises:
            TerminalStoreError: it is locked, or there is no permission to delete it.
        """

    def close(self) -> None:
        """Close the connections. The store cannot be used afterwards."""


def is_local(store: Store) -> bool:
    """Return whether a store is a folder. There, parallel requests and a listing in parts are not faster."""
    return store.url.startswith("file:")


def host_ahead(store: Store) -> timedelta | None:
    """Return how far the host's clock is ahead of the store's, by its last answer; None if no time is told.

    A folder tells none: its times are the host's, or those of a file server that cannot be told from it.
    """
    clock = store.capabilities.clock
    return clock.ahead() if clock else None


class Versions(Protocol):
    """Keeps objects that were overwritten or deleted."""

    def history(self, prefix: str = "", *, after: str = "", through: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object; keys as in `list`."""

    def has_history(self, key: str) -> bool:
        """Return whether there is a version or a delete marker of the key, besides an object without versions."""

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """Return a view of the store in which these versions of some keys are the present ones."""


class ObjectLocks(Protocol):
    """Keeps objects from being deleted for a time."""

    def lock(self, key: str) -> tuple[str, datetime] | None:
        """Return mode and end of an object's Object Lock, None if it has none.

        Without permission, `status` omits the lock, which looks like "no lock". This call fails instead.

        Raises:
            ObjectMissing: there is no such object, in a bucket with locks.
            TerminalStoreError: there is no permission to see the lock.
        """


class Restores(Protocol):
    """Makes readable copies of archived objects."""

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        """Request a readable copy of an archived object. If it exists or is being made, this is success. Costs money.

        Args:
            key: the object, which stays as it is.
            days: how long the copy is kept, 1 or more.
            tier: its speed, and so its price.

        Raises:
            ObjectMissing: there is no such object.
            TransientStoreError: it is not known whether the request arrived. Trying again is safe.
        """


class Lifecycle(Protocol):
    """Moves or deletes objects by rules."""

    def rules(self) -> Sequence[LifecycleRule] | None:
        """Return the enabled rules for the archive's objects, None if the server has no lifecycle rules."""


class Clock(Protocol):
    """Tells the store's time."""

    def ahead(self) -> timedelta | None:
        """Return how far the host's clock is ahead of the store's, by its last answer; None if that told no time."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What only some stores can do. None if this one cannot."""

    versions: Versions | None = None
    locks: ObjectLocks | None = None
    restores: Restores | None = None
    lifecycle: Lifecycle | None = None
    clock: Clock | None = None


def check_key(key: str) -> None:
    """Raise an error for a key that leads out of the root, or that two stores would understand differently."""
    if _USUAL_KEY.fullmatch(key):
        # A third of the time, for nearly all keys.
        return
    parts = key.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or parts[0] == STAGING
        or "\0" in key
        or not is_unicode(key)
        or len(key.encode()) > _KEY_BYTES
    ):
        raise FormatError(
            f"{legible(key)!r} is not an object's key: no name in it may be empty, '.' or '..', or begin with {STAGING}"
        )


def is_beyond(key: str, through: str) -> bool:
    """Return whether a listing that has come to a key has passed all keys up to `through`, in bytes or path order.

    A server may sort keys by their bytes, or folder by folder: then "a/b" comes before "a-b".
    """
    return key > through and key.split("/") > through.split("/")


def check_prefix(prefix: str) -> None:
    """Raise an error for a prefix with which no key can begin."""
    if prefix:
        check_key(prefix + "x" if prefix.endswith("/") else prefix)


def check_folder(prefix: str) -> None:
    """Raise an error for a prefix that is not a folder."""
    check_prefix(prefix)
    if prefix and not prefix.endswith("/"):
        raise FormatError(f"{legible(prefix)!r} is not a folder: want a prefix that ends in '/'")


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded in UTF-8. A file name that is not UTF-8 has surrogates, and cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain(url: str) -> bool:
    """Return whether a URL is http:// to another machine."""
    parts = urlsplit(url)
    return parts.scheme.lower() == "http" and not is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def too_large(where: str, limit: int) -> FormatError:
    """Return the error for an object that is larger than the reader's limit."""
    return FormatError(f"{where} is larger than the limit of {limit:,} bytes")


def occupied(where: str) -> ObjectExists:
    """Return the error for a key that exists with other bytes."""
    return ObjectExists(f"{where} already exists with other bytes: another writer was first. Nothing is overwritten")


def no_object(where: str) -> ObjectMissing:
    """Return the error for a missing object."""
    return ObjectMissing(f"there is no object {where}")
