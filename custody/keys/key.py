"""The kinds of key in a keyring, and when a key is valid.

A key is valid in `[from, to)`. Keys cannot be pickled, because secrets cannot: a worker process opens keys again from
the same arguments.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.keys.secret import Secret

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""The start of a key without a `from`."""

KeyAlgorithm = Literal["HMAC-SHA256", "Ed25519", "SHAKE-256"]
"""The algorithms of a keyring's keys: the first two sign, the third makes the salts of leaves."""
ALGORITHMS: tuple[KeyAlgorithm, ...] = ("HMAC-SHA256", "Ed25519", "SHAKE-256")


@dataclass(frozen=True, slots=True)
class HmacKey:
    """An HMAC-SHA256 key with its secret. Anyone who has the secret can sign, and so forge."""

    key_id: str
    secret: Secret
    from_: datetime | None = None
    to: datetime | None = None

    algorithm: ClassVar[Literal["HMAC-SHA256"]] = "HMAC-SHA256"

    def sign(self, message: bytes) -> bytes:
        """Return the message's HMAC."""
        return hmac.digest(self.secret.reveal(), message, "sha256")


@dataclass(frozen=True, slots=True)
class Ed25519Key:
    """An Ed25519 key with its private part. With only `public`, one can check but not forge."""

    key_id: str
    private: Secret
    public: bytes
    from_: datetime | None = None
    to: datetime | None = None

    algorithm: ClassVar[Literal["Ed25519"]] = "Ed25519"

    def sign(self, message: bytes) -> bytes:
        """Return the message's signature."""
        return Ed25519PrivateKey.from_private_bytes(self.private.reveal()).sign(message)


@dataclass(frozen=True, slots=True)
class LeafKey:
    """The leaf secret, from which the salts of leaves are made. It signs nothing; it is needed to check leaves."""

    key_id: str
    secret: Secret
    from_: datetime | None = None
    to: datetime | None = None

    algorithm: ClassVar[Literal["SHAKE-256"]] = "SHAKE-256"


Key = HmacKey | Ed25519Key | LeafKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public facts of a key, without its secret."""

    id: str
    algorithm: KeyAlgorithm
    from_: datetime | None = None
    to: datetime | None = None
    public: bytes | None = None
    """The public part of an Ed25519 key."""


def holds(begin: datetime | None, end: datetime | None, moment: datetime) -> bool:
    """Return whether a moment is in the half-open span `[begin, end)`. None means no limit."""
    return (begin is None or begin <= moment) and (end is None or moment < end)
