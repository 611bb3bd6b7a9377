"""The one door to storage: create-only puts and bounded reads of an archive in a folder or in S3.

Rules:

1. Never overwrite: every object is created by one conditional put (S3 `If-None-Match: *`) or one exclusive link. There
   is no call here that changes an object.
2. Never take a put for done before it is durable, nor for failed before that is known: where a put's outcome is unknown
   (time-out, cut connection, 5xx, 409) or the key is taken (412), the object is read back. The same bytes are success,
   others are `ObjectExists`, and only where there is nothing is the put sent again.
3. Never read more than the caller's limit, whatever the object's size turns out to be.
4. Never let a lower library's error through: each becomes one of `custody.errors`, terminal or transient.
5. Never show a credential: URLs that hold one are refused, and what libraries and servers say is clipped and cleaned.
6. Never judge bytes: a store hands over what it holds, and the verifier finds out what it is worth.

What only some stores can do is a small protocol of its own: `store.capabilities` has an object for each that this store
has, and None for the others. A folder has none. It is an attribute, and no question about a class, so that a wrapper
which passes on what it does not know has its store's capabilities, and the type checker knows each caller.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, Protocol

from custody.errors import FormatError, ObjectExists, ObjectMissing

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
"""Where a folder keeps objects that are not finished. No reader looks there."""
_KEY_BYTES = 1024
_DETAIL_CHARACTERS = 300
ARCHIVED_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes that cannot be read without a restore."""
Tier = Literal["standard", "bulk"]
"""How a restore is made: within some hours, or cheaply within two days."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object.

    Attributes:
        key: relative to the archive's root.
        size: in bytes.
        storage_class: of S3; None in a folder.
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
        storage_class: of S3, `STANDARD` where it names none; None in a folder.
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
        """What this store can do besides."""

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
        """Return whether there is an object under the key."""

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        """Return the folders, sorted and without a slash, and the objects right under a prefix.

        Raises:
            FormatError: the prefix is neither empty nor ends in `/`.
        """

    def list(self, prefix: str = "", *, after: str = "", without: Collection[str] = ()) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with `prefix` and is greater than `after`, each once, in any order.

        Of the folders right under the root, each with its slash, those in `without` are left out.

        Keys compare by their bytes. Objects that come or go meanwhile may or may not be seen.
        """

    def status(self, key: str) -> ObjectStatus:
        """Return what the store says of an object besides its bytes.

        Raises:
            ObjectMissing: there is no such object.
        """

    def remove(self, key: str) -> None:
        """Delete an object for good, every version of it; one that is not there is success.

        Only what a signed statement has called expired may be removed, and tables, which can be made again.

        Raises:
            TerminalStoreError: it is locked, or may not be deleted.
        """

    def close(self) -> None:
        """Give up connections. The store is not used afterwards."""


def is_local(store: Store) -> bool:
    """Return whether a store is a folder: many requests at once, or a listing in parts, gain nothing there."""
    return store.url.startswith("file:")


class Versions(Protocol):
    """Keeps what was written over or deleted."""

    def history(self, prefix: str = "") -> Iterator[Version]:
        """Yield all versions and delete markers of keys that have more than one plain object."""

    def has_history(self, key: str) -> bool:
        """Return whether there is a version or a delete marker of the key, besides an object without versions."""

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """Return the store as it shows when of some keys these versions are read, whatever lies over them."""


class ObjectLocks(Protocol):
    """Keeps objects from being deleted for a time."""

    def lock(self, key: str) -> tuple[str, datetime] | None:
        """Return mode and end of an object's Object Lock, None where it has none.

        `status` says the same to who may see it, and leaves the lock out to who may not: this tells one from the other.

        Raises:
            ObjectMissing: there is no such object, in a bucket that knows locks.
            TerminalStoreError: the lock may not be looked at.
        """


class Restores(Protocol):
    """Has objects that cannot be read until a copy was made."""

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        """Ask for a readable copy of an archived object; one that is there, or under way, is success. Costs money.

        Args:
            key: the object, which stays as it is.
            days: how long the copy stays once it is made, 1 or more.
            tier: how soon it is made, and at what price.

        Raises:
            ObjectMissing: there is no such object.
            TransientStoreError: it is not known whether it was asked for. Trying again is safe.
        """


class Lifecycle(Protocol):
    """Moves or deletes objects by rules of its own."""

    def rules(self) -> Sequence[LifecycleRule] | None:
        """Return the rules in force for objects of this archive, None where the server knows no such thing."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do besides. None where it cannot."""

    versions: Versions | None = None
    locks: ObjectLocks | None = None
    restores: Restores | None = None
    lifecycle: Lifecycle | None = None


def check_key(key: str) -> None:
    """Refuse what is no object's key, so that none leads out of the root or is understood differently by two stores."""
    parts = key.split("/")
    if (
        any(part in {"", ".", ".."} for part in parts)
        or parts[0] == STAGING
        or "\0" in key
        or not is_unicode(key)
        or len(key.encode()) > _KEY_BYTES
    ):
        raise FormatError(
            f"{legible(key)!r} is no object's key: no name in it may be empty, '.' or '..', nor the first {STAGING}"
        )


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that is not the beginning of some key."""
    if prefix:
        check_key(prefix + "x" if prefix.endswith("/") else prefix)


def check_folder(prefix: str) -> None:
    """Refuse a prefix that is no folder."""
    check_prefix(prefix)
    if prefix and not prefix.endswith("/"):
        raise FormatError(f"{legible(prefix)!r} is no folder: its prefix ends in '/'")


def is_unicode(text: str) -> bool:
    """Return whether a text can be written in UTF-8: a file's name that is none comes with surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def legible(text: str) -> str:
    """Return foreign text fit for a message: short, printable, and without what may be a credential in a URL."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * _DETAIL_CHARACTERS])
    text = " ".join(text.split())
    return text if len(text) <= _DETAIL_CHARACTERS else text[:_DETAIL_CHARACTERS] + "…"


def too_large(where: str, limit: int) -> FormatError:
    """Return the error for an object that has more bytes than its reader takes."""
    return FormatError(f"{where} has more than the {limit:,} bytes that may be read of it: it is not what it should be")


def occupied(where: str) -> ObjectExists:
    """Return the error for a key that other bytes have."""
    return ObjectExists(f"{where} already holds other bytes: somebody else was first, and nothing is overwritten")


def no_object(where: str) -> ObjectMissing:
    """Return the error for a key that nothing has."""
    return ObjectMissing(f"there is no object {where}")
