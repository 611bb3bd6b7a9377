"""The kinds of key that a keyring holds, and when one is valid.

A key's span is half-open, `[from, to)`. A key is not pickled, since its secret refuses to be: a worker process opens
keys again from the same arguments.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.keys.secret import Secret

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""When a key begins that names no time."""

KeyAlgorithm = Literal["HMAC-SHA256", "Ed25519", "SHAKE-256"]
"""What a keyring's keys are for: the first two sign, the third makes the salts of leaves."""
ALGORITHMS: tuple[KeyAlgorithm, ...] = ("HMAC-SHA256", "Ed25519", "SHAKE-256")


@dataclass(frozen=True, slots=True)
class HmacKey:
    """An HMAC-SHA256 key with its secret: signs, and lets whoever holds it forge."""

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
    """An Ed25519 key with its private half. Whoever holds only `public` can check, and cannot forge."""

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
    """The secret that the salts of leaves are made from. It signs nothing; whoever holds it can check leaves."""

    key_id: str
    secret: Secret
    from_: datetime | None = None
    to: datetime | None = None

    algorithm: ClassVar[Literal["SHAKE-256"]] = "SHAKE-256"


Key = HmacKey | Ed25519Key | LeafKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What everybody may know of a key: no secret."""

    id: str
    algorithm: KeyAlgorithm
    from_: datetime | None = None
    to: datetime | None = None
    public: bytes | None = None
    """The public half of an Ed25519 key."""


def holds(begin: datetime | None, end: datetime | None, moment: datetime) -> bool:
    """Tell whether a half-open span holds a moment; None is without an end."""
    return (begin is None or begin <= moment) and (end is None or moment < end)
