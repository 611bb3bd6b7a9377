"""A key as keyrings and `trust.json` list it (FORMAT.md, Keyring, Trust)."""

from datetime import datetime
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.errors import ConfigurationError
from custody.format.envelope import Time
from custody.keys.files import decode_base64, parse_moment
from custody.keys.key import KeyAlgorithm


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A key as keyrings and `trust.json` list it. Its parts are in base64."""

    id: str
    algorithm: KeyAlgorithm
    from_: Time | None
    to: Time | None
    secret: str | msgspec.UnsetType = msgspec.UNSET
    private: str | msgspec.UnsetType = msgspec.UNSET
    public: str | msgspec.UnsetType = msgspec.UNSET


def key_span(entry: KeyEntry, what: str) -> tuple[datetime | None, datetime | None]:
    """Return when a key begins and ends.

    Raises:
        ConfigurationError: a time is malformed, or the key ends before it begins; the message begins with `what`.
    """
    begin = parse_moment(entry.from_, what, f"from of key {entry.id!r}")
    end = parse_moment(entry.to, what, f"to of key {entry.id!r}")
    if begin and end and begin > end:
        raise ConfigurationError(f"{what}: the key {entry.id!r} ends before it begins")
    return begin, end


def _check_id(entry: KeyEntry, what: str) -> None:
    if not 0 < len(entry.id) <= 256 or not entry.id.isprintable():
        raise ConfigurationError(f"{what}: every key id must have 1 to 256 printable characters")


def _given(
    entry: KeyEntry, what: str, name: Literal["secret", "private", "public"], *, allowed: bool = True
) -> bytes | None:
    text: str | msgspec.UnsetType = getattr(entry, name)
    if isinstance(text, msgspec.UnsetType):
        return None
    if not allowed:
        raise ConfigurationError(f"{what}: the key {entry.id!r} is {entry.algorithm}, so it must not have {name!r}")
    return decode_base64(text, what, f"{name!r} of key {entry.id!r}", 32)


def key_material(entry: KeyEntry, what: str) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return a key's secret, private and public part. None for those that are not given or not of its algorithm."""
    _check_id(entry, what)
    symmetric = entry.algorithm != "Ed25519"
    secret = _given(entry, what, "secret", allowed=symmetric)
    private = _given(entry, what, "private", allowed=not symmetric)
    public = _given(entry, what, "public", allowed=not symmetric)
    if private and public != Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw():
        raise ConfigurationError(f"{what}: 'public' of key {entry.id!r} does not belong to its 'private'")
    return secret, private, public
