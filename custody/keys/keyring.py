"""The keyring: a file of a writer's keys, in plain form or encrypted with a passphrase (FORMAT.md, Keyring).

A secret is kept in a `Secret`, which never appears in a repr, a format, a log line, `asdict` or an error. In a
rotation, the new key starts before the old one ends. So there is always a valid key, and a run that began with the old
key can finish with it.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from custody.errors import ConfigurationError
from custody.format.times import format_time
from custody.keys.encryption import EncryptedFile, decrypt, encrypt
from custody.keys.files import check_private, decode_document, locked, opened, read_all, write
from custody.keys.key import (
    ALGORITHMS,
    BEGINNING,
    Ed25519Key,
    HmacKey,
    Key,
    KeyAlgorithm,
    KeyEntry,
    LeafKey,
    decode_key,
    encode_key,
    holds,
)
from custody.keys.secret import Secret
from custody.keys.signers import Signers

__all__ = ["Keyring", "new_keyring", "rotate_keyring"]

OVERLAP = timedelta(minutes=10)
"""How long a rotated key may still sign: longer than any drain that uses it can run."""

KEYRING_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Keyring:
    """A writer's keys, in the order of the file."""

    keys: tuple[Key, ...]

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> "Keyring":
        """Read a keyring, encrypted or not.

        Raises:
            ConfigurationError: it does not exist, others can read it, it is malformed, or the passphrase is missing or
                wrong.
        """
        with opened(path, "keyring") as descriptor:
            return _read_keyring(descriptor, path, passphrase)

    @classmethod
    def parse(cls, data: bytes, subject: str = "the keyring", passphrase: str | None = None) -> "Keyring":
        """Parse a keyring's bytes.

        Args:
            data: the file's bytes.
            subject: the name of the file in errors.
            passphrase: decrypts it; ignored if the keyring is not encrypted.

        Raises:
            ConfigurationError: the bytes are not a keyring, or the passphrase is missing or wrong.
        """
        document = decode_document(data, subject, _AnyKeyringFile)
        if not isinstance(document.scrypt, msgspec.UnsetType):
            data = decrypt(decode_document(data, subject, EncryptedFile), subject, passphrase)
            subject = f"{subject}, decrypted"
        keys: dict[str, Key] = {}
        for entry in decode_document(data, subject, _KeyringFile).keys:
            key = _key(entry, subject)
            if key.key_id in keys:
                raise ConfigurationError(f"{subject}: two keys have the id {key.key_id!r}; each key needs its own id")
            keys[key.key_id] = key
        return cls(tuple(keys.values()))

    @classmethod
    def new(cls, now: datetime, algorithms: Sequence[KeyAlgorithm] = ALGORITHMS) -> "Keyring":
        """Return a keyring with one new key of each algorithm, valid from `now`."""
        return cls(tuple(_new_key(algorithm, now) for algorithm in algorithms))

    def rotate(self, now: datetime, overlap: timedelta = OVERLAP) -> "Keyring":
        """Return the keyring with a new key, valid from `now`, for each algorithm that has a key at `now`.

        Valid keys end at `now` + `overlap`, or earlier if they have an earlier end. They stay in the keyring for ever,
        to check the statements that they signed.

        Raises:
            ConfigurationError: a key starts after `now`: the clock went back, and the new key would not be the newest.
        """
        later = [key.key_id for key in self.keys if key.from_ and key.from_ > now]
        if later:
            raise ConfigurationError(
                f"the key {later[0]!r} starts after {format_time(now)}, so a key made now would not be the newest;"
                " correct this machine's clock, then rotate"
            )
        end = now + overlap
        kept = [replace(key, to=end) if key.to is None or key.to > end else key for key in self.keys]
        # An algorithm whose keys have all ended gets a new key too. An algorithm that never had a key gets none.
        had = {key.algorithm for key in self.keys}
        return Keyring((*kept, *(_new_key(algorithm, now) for algorithm in ALGORITHMS if algorithm in had)))

    def newest(self, algorithm: KeyAlgorithm, now: datetime) -> Key | None:
        """Return the newest key of an algorithm that is valid at `now`, None if there is none."""
        valid = [key for key in self.keys if key.algorithm == algorithm and holds(key.from_, key.to, now)]
        # If two start at the same time, the later one in the file wins.
        return max(reversed(valid), key=lambda key: key.from_ or BEGINNING) if valid else None

    def signers(self, now: datetime) -> "Signers":
        """Return the keys that sign at `now`: for each algorithm, the newest valid one."""
        hmac_key, ed25519, leaves = (self.newest(algorithm, now) for algorithm in ALGORITHMS)
        return Signers(
            hmac_key if isinstance(hmac_key, HmacKey) else None,
            ed25519 if isinstance(ed25519, Ed25519Key) else None,
            leaves if isinstance(leaves, LeafKey) else None,
        )

    def encode(self, passphrase: str | None = None) -> bytes:
        """Return the file's bytes, with the secrets; encrypted if there is a passphrase.

        Raises:
            ConfigurationError: the passphrase is empty, or the keyring too large.
        """
        entries = [encode_key(key, key.secret) for key in self.keys]
        data = json.dumps({"format": _KEYRING, "keys": entries}, indent=1).encode() + b"\n"
        if passphrase is not None:
            outer = {"format": _KEYRING, **encrypt(data, passphrase)}
            data = json.dumps(outer, indent=1).encode() + b"\n"
        if len(data) > KEYRING_LIMIT:
            raise ConfigurationError(
                f"the keyring would have {len(data)} bytes (limit {KEYRING_LIMIT}); start a new one"
            )
        return data

    def save(self, path: Path, passphrase: str | None = None, *, create: bool = False) -> None:
        """Write the keyring with mode 0600. After a crash, the complete old or new file is there.

        Args:
            path: the file, in an existing folder.
            passphrase: encrypts it.
            create: raise an error if the file exists.

        Raises:
            ConfigurationError: it cannot be written, or exists already.
        """
        write(path, self.encode(passphrase), create=create, subject="keyring")


def is_encrypted(path: Path) -> bool:
    """Return whether a keyring needs a passphrase.

    Raises:
        ConfigurationError: it is not a keyring.
    """
    with opened(path, "keyring") as descriptor:
        data, _ = read_all(descriptor, KEYRING_LIMIT, f"keyring {path}")
    return not isinstance(decode_document(data, f"keyring {path}", _AnyKeyringFile).scrypt, msgspec.UnsetType)


def new_keyring(
    path: Path, now: datetime, passphrase: str | None = None, algorithms: Sequence[KeyAlgorithm] = ALGORITHMS
) -> Keyring:
    """Make a keyring file with new keys (`custody keys new`). Never replaces a file, whose secrets would be lost.

    Raises:
        ConfigurationError: the file exists already, or cannot be written.
    """
    ring = Keyring.new(now, algorithms)
    ring.save(path, passphrase, create=True)
    return ring


def rotate_keyring(
    path: Path, now: datetime | None = None, passphrase: str | None = None, overlap: timedelta = OVERLAP
) -> tuple[Keyring, tuple[Key, ...]]:
    """Rotate a keyring file (`custody keys rotate`), under a lock: two rotations at once add one key each.

    Args:
        path: the keyring.
        now: the start of the new keys; None for the time at which the lock was taken.
        passphrase: decrypts the keyring, and encrypts the new file, even if the old one was not encrypted.
        overlap: how long the replaced keys may still sign.

    Returns:
        The keyring as written, and its new keys.

    Raises:
        ConfigurationError: the keyring cannot be read, rotated or written.
    """
    with locked(path, "keyring") as descriptor:
        before = _read_keyring(descriptor, path, passphrase)
        after = before.rotate(now or datetime.now(UTC), overlap)
        after.save(path, passphrase)
    return after, after.keys[len(before.keys) :]


def _new_key(algorithm: KeyAlgorithm, now: datetime) -> Key:
    return _FORMS[algorithm](f"{_ID_STARTS[algorithm]}-{secrets.token_hex(6)}", Secret(secrets.token_bytes(32)), now)


def _read_keyring(descriptor: int, path: Path, passphrase: str | None) -> Keyring:
    subject = f"keyring {path}"
    data, status = read_all(descriptor, KEYRING_LIMIT, subject)
    keyring = Keyring.parse(data, subject, passphrase)
    check_private(status, subject)
    return keyring


_FORMS: dict[KeyAlgorithm, type[Key]] = {"HMAC-SHA256": HmacKey, "Ed25519": Ed25519Key, "SHAKE-256": LeafKey}
_ID_STARTS: dict[KeyAlgorithm, str] = {"HMAC-SHA256": "hmac", "Ed25519": "ed25519", "SHAKE-256": "leaves"}
_KEYRING: Literal["custody/keyring/1"] = "custody/keyring/1"


class _AnyKeyringFile(msgspec.Struct):
    format: Literal["custody/keyring/1"]
    scrypt: object = msgspec.UNSET


class _KeyringFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    keys: list[KeyEntry]


def _key(entry: KeyEntry, subject: str) -> Key:
    key, secret = decode_key(entry, subject)
    if secret is None:
        wanted = "'secret'" if entry.algorithm != "Ed25519" else "'private' and 'public'"
        raise ConfigurationError(f"{subject}: the key {entry.id!r} lacks {wanted}")
    return _FORMS[key.algorithm](key.key_id, secret, key.from_, key.to)
