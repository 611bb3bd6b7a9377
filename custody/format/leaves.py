"""Commitments to each event of a batch alone (FORMAT.md, Leaves). Pure.

An event costs two calls of hashlib and one concatenation. `map` drives them without a loop in Python, and one squeeze
of SHAKE-256 gives the salts of a whole batch.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256, shake_256
from operator import add
from typing import Protocol

from custody.errors import counted
from custody.format.manifest import Leaves

SALT_BYTES = 16
HASH_BYTES = 32
_DOMAIN = b"custody/salts/1\n"
_digest = type(sha256()).digest


class Secret(Protocol):
    """Bytes that are shown only to who asks for them."""

    def reveal(self) -> bytes:
        """Return the bytes."""
        ...


class LeafKey(Protocol):
    """The secret that the salts of leaves are made from, and its id."""

    @property
    def key_id(self) -> str:
        """The id by which a batch's `leaves` names it."""
        ...

    @property
    def secret(self) -> Secret:
        """The secret."""
        ...


def salts(secret: Secret, archive: str, log: str, number: int, count: int) -> bytes:
    """Return the salts of the first `count` events of a batch, one after another.

    Args:
        secret: the secret that the batch's `leaves` names.
        archive: the archive's id.
        log: `<log>/<partition>`.
        number: the batch's number.
        count: events.
    """
    context = f"\n{archive}\n{log}\n{number}\n".encode()
    return shake_256(b"".join((_DOMAIN, secret.reveal(), context))).digest(SALT_BYTES * count)


def hashes(events: Sequence[bytes], salts: bytes) -> bytes:
    """Return the leaf hashes of a batch's events, one after another.

    Args:
        events: the events as archived, without newlines.
        salts: as many salts.
    """
    # Fails where there are not as many, which `map` would pass over.
    return _hash_all(struct.unpack(f"{SALT_BYTES}s" * len(events), salts), events)


def leaf_hash(salt: bytes, event: bytes) -> bytes:
    """Return the leaf hash of one event, which has no newline."""
    return sha256(salt + event).digest()


def root(events: Sequence[bytes], salts: bytes) -> str:
    """Return what `leaves.sha256` is for a batch of these events; arguments as for `hashes`."""
    return sha256(hashes(events, salts)).hexdigest()


def split(payload: bytes) -> list[bytes]:
    """Return a batch's events without their newlines."""
    events = payload.split(b"\n")
    # What follows the last newline is empty.
    del events[-1:]
    return events


@dataclass(frozen=True, slots=True)
class LeafMaker:
    """Makes the `leaves` of one log's batches.

    Attributes:
        key: the secret and its id.
        archive: the archive's id.
        log: `<log>/<partition>`.
    """

    key: LeafKey
    archive: str
    log: str

    def begin(self, number: int, most: int) -> "OpenLeaves":
        """Begin a batch.

        Args:
            number: the batch's number.
            most: how many events it may have.
        """
        made = salts(self.key.secret, self.archive, self.log, number, most)
        return OpenLeaves(self.key.key_id, struct.unpack(f"{SALT_BYTES}s" * most, made))


class OpenLeaves:
    """The leaves of a batch that still grows. Of its events only the hashes are kept."""

    __slots__ = ("_count", "_digest", "_key", "_salts")

    def __init__(self, key: str, salts: Sequence[bytes]) -> None:
        self._key = key
        self._salts = salts
        self._count = 0
        self._digest = sha256()

    def add(self, events: Sequence[bytes]) -> None:
        """Add the next events, without newlines."""
        each = self._salts[self._count : self._count + len(events)]
        if len(each) != len(events):
            raise ValueError(f"a batch was begun for at most {counted(len(self._salts), 'event')}")
        self._count += len(events)
        self._digest.update(_hash_all(each, events))

    def end(self) -> Leaves:
        """Return the `leaves` of the batch."""
        return Leaves(self._key, self._digest.hexdigest())


def _hash_all(salts: Sequence[bytes], events: Sequence[bytes]) -> bytes:
    return b"".join(map(_digest, map(sha256, map(add, salts, events))))
