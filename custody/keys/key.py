"""The keys of a keyring, how files list them (FORMAT.md, Keyring, Trust), and when a key is valid.

A key is valid in `[from, to)`. Keys cannot be pickled, because secrets cannot: a worker process opens keys again from
the same arguments.
"""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.errors import ConfigurationError
from custody.format.envelope import Time
from custody.format.times import format_time
from custody.keys.files import decode_base64, encode_base64, parse_moment
from custody.keys.secret import Secret

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""The start of a key without a `from`."""

KeyAlgorithm = Literal["HMAC-SHA256", "Ed25519", "SHAKE-256"]
"""The algorithms of a keyring's keys: the first two sign, the third makes the salts of leaves."""
ALGORITHMS: tuple[KeyAlgorithm, ...] = ("HMAC-SHA256", "Ed25519", "SHAKE-256")


@dataclass(frozen=True, slots=True)
class _SecretKey:
    """A key with its secret part."""

    key_id: str
    secret: Secret
    from_: datetime | None = None
    to: datetime | None = None

    @property
    def public(self) -> bytes | None:
        """The public part, None if the algorithm has none."""
        return None


@dataclass(frozen=True, slots=True)
class HmacKey(_SecretKey):
    """An HMAC-SHA256 key. Anyone who has the secret can sign, and so forge."""

    algorithm: ClassVar[Literal["HMAC-SHA256"]] = "HMAC-SHA256"

    def sign(self, message: bytes) -> bytes:
        """Return the message's HMAC."""
        return hmac.digest(self.secret.reveal(), message, "sha256")


@dataclass(frozen=True, slots=True)
class Ed25519Key(_SecretKey):
    """An Ed25519 key. With only `public`, one can check but not forge."""

    algorithm: ClassVar[Literal["Ed25519"]] = "Ed25519"

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public part."""
        return public_part(self.secret.reveal())

    def sign(self, message: bytes) -> bytes:
        """Return the message's signature."""
        return Ed25519PrivateKey.from_private_bytes(self.secret.reveal()).sign(message)


@dataclass(frozen=True, slots=True)
class LeafKey(_SecretKey):
    """The leaf secret, from which the salts of leaves are made. It signs nothing; it is needed to check leaves."""

    algorithm: ClassVar[Literal["SHAKE-256"]] = "SHAKE-256"


Key = HmacKey | Ed25519Key | LeafKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public facts of a key, without its secret."""

    key_id: str
    algorithm: KeyAlgorithm
    from_: datetime | None = None
    to: datetime | None = None
    public: bytes | None = None
    """The public part of an Ed25519 key."""


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A key as keyrings and `trust.json` list it. Its parts are in base64."""

    id: str
    algorithm: KeyAlgorithm
    from_: Time | None
    to: Time | None
    secret: str | msgspec.UnsetType = msgspec.UNSET
    private: str | msgspec.UnsetType = msgspec.UNSET
    public: str | msgspec.UnsetType = msgspec.UNSET


def decode_key(entry: KeyEntry, subject: str) -> tuple[PublicKey, Secret | None]:
    """Return the public facts of a listed key, and its secret or private part if that is given.

    Raises:
        ConfigurationError: the entry is malformed or contradicts itself; the message begins with `subject`.
    """
    if not 0 < len(entry.id) <= 256 or not entry.id.isprintable():
        raise ConfigurationError(f"{subject}: every key id must have 1 to 256 printable characters")
    parts: dict[str, bytes] = {}
    for name, text in (("secret", entry.secret), ("private", entry.private), ("public", entry.public)):
        if isinstance(text, msgspec.UnsetType):
            continue
        if (name == "secret") == (entry.algorithm == "Ed25519"):
            raise ConfigurationError(
                f"{subject}: the key {entry.id!r} is {entry.algorithm}, so it must not have {name!r}"
            )
        parts[name] = decode_base64(text, subject, f"{name!r} of key {entry.id!r}", 32)
    private, public = parts.get("private"), parts.get("public")
    if private and public != public_part(private):
        raise ConfigurationError(f"{subject}: 'public' of key {entry.id!r} does not belong to its 'private'")
    begin = parse_moment(entry.from_, subject, f"from of key {entry.id!r}")
    end = parse_moment(entry.to, subject, f"to of key {entry.id!r}")
    if begin and end and begin > end:
        raise ConfigurationError(f"{subject}: the key {entry.id!r} ends before it begins")
    secret = parts.get("secret", private)
    return PublicKey(entry.id, entry.algorithm, begin, end, public), Secret(secret) if secret else None


def encode_key(key: Key | PublicKey, secret: Secret | None = None) -> dict[str, str | None]:
    """Return a key as a file lists it: with `secret` as a keyring does, without it as `trust.json` does."""
    entry: dict[str, str | None] = {
        "id": key.key_id,
        "algorithm": key.algorithm,
        "from": format_time(key.from_) if key.from_ else None,
        "to": format_time(key.to) if key.to else None,
    }
    if secret:
        entry["private" if key.public else "secret"] = encode_base64(secret.reveal())
    if key.public:
        entry["public"] = encode_base64(key.public)
    return entry


def public_part(private: bytes) -> bytes:
    """Return the public part of an Ed25519 key's private part."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def holds(begin: datetime | None, end: datetime | None, moment: datetime) -> bool:
    """Return whether a moment is in the half-open span `[begin, end)`. None means no limit."""
    return (begin is None or begin <= moment) and (end is None or moment < end)


def two_keys(key_id: str, sources: str) -> ConfigurationError:
    """Return the error for an id that names different keys in these sources."""
    return ConfigurationError(
        f"the key id {key_id!r} names two different keys in {sources}; an id names one key for ever, so find out which"
        " source is wrong"
    )
