"""The keyring: a file of a writer's keys, in plain form or encrypted with a passphrase (FORMAT.md, Keyring).

A secret is kept in a `Secret`, which never appears in a repr, a format, a log line, `asdict` or an error. In a
rotation, the new key starts before the old one ends. So there is always a valid key, and a run that began with the old
key can finish with it.
"""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from custody.errors import ConfigurationError
from custody.format.times import format_time
from custody.keys.encryption import EncryptedFile, decrypt, encrypt
from custody.keys.entry import KeyEntry, key_material, key_span
from custody.keys.files import (
    check_private,
    decode_document,
    encode_base64,
    locked,
    open_plain,
    read_all,
    refuse_other,
    write,
)
from custody.keys.key import ALGORITHMS, BEGINNING, Ed25519Key, HmacKey, Key, KeyAlgorithm, LeafKey, holds
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
        descriptor = open_plain(path, "keyring")
        try:
            return _read_keyring(descriptor, path, passphrase)
        finally:
            os.close(descriptor)

    @classmethod
    def parse(cls, data: bytes, what: str = "the keyring", passphrase: str | None = None) -> "Keyring":
        """Parse a keyring's bytes.

        Args:
            data: the file's bytes.
            what: the name of the file in errors.
            passphrase: decrypts it; ignored if the keyring is not encrypted.

        Raises:
            ConfigurationError: the bytes are not a keyring, or the passphrase is missing or wrong.
        """
        document = decode_document(data, what, _AnyKeyringFile)
        if not isinstance(document.scrypt, msgspec.UnsetType):
            data = decrypt(decode_document(data, what, EncryptedFile), what, passphrase)
            what = f"{what}, decrypted"
        keys: dict[str, Key] = {}
        for entry in decode_document(data, what, _KeyringFile).keys:
            key = _key(entry, what)
            if key.key_id in keys:
                raise ConfigurationError(f"{what}: two keys have the id {key.key_id!r}; each key needs its own id")
            keys[key.key_id] = key
        return cls(tuple(keys.values()))

    @classmethod
    def new(cls, now: datetime, algorithms: Sequence[KeyAlgorithm] = ALGORITHMS) -> "Keyring":
        """Return a keyring with one new key of each algorithm, valid from `now`."""
        return cls(tuple(_new_key(algorithm, now) for algorithm in algorithms))

    def add(self, algorithm: KeyAlgorithm, now: datetime) -> "Keyring":
        """Return the keyring with one more key, valid from `now`. The others stay as they are."""
        return Keyring((*self.keys, _new_key(algorithm, now)))

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
        ring = Keyring(tuple(kept))
        # An algorithm whose keys have all ended gets a new key too. An algorithm that never had a key gets none.
        for algorithm in ALGORITHMS:
            if any(key.algorithm == algorithm for key in self.keys):
                ring = ring.add(algorithm, now)
        return ring

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
        entries = []
        for key in self.keys:
            entry: dict[str, str | None] = {
                "id": key.key_id,
                "algorithm": key.algorithm,
                "from": format_time(key.from_) if key.from_ else None,
                "to": format_time(key.to) if key.to else None,
            }
            if isinstance(key, Ed25519Key):
                entry["private"] = encode_base64(key.private.reveal())
                entry["public"] = encode_base64(key.public)
            else:
                entry["secret"] = encode_base64(key.secret.reveal())
            entries.append(entry)
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
        write(path, self.encode(passphrase), create=create)


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
    with locked(path) as descriptor:
        before = _read_keyring(descriptor, path, passphrase)
        after = before.rotate(now or datetime.now(UTC), overlap)
        after.save(path, passphrase)
    return after, after.keys[len(before.keys) :]


def _new_key(algorithm: KeyAlgorithm, now: datetime) -> Key:
    match algorithm:
        case "HMAC-SHA256":
            return HmacKey(f"hmac-{secrets.token_hex(6)}", Secret(secrets.token_bytes(32)), now)
        case "SHAKE-256":
            return LeafKey(f"leaves-{secrets.token_hex(6)}", Secret(secrets.token_bytes(32)), now)
        case "Ed25519":
            private = Ed25519PrivateKey.generate()
            return Ed25519Key(
                f"ed25519-{secrets.token_hex(6)}",
                Secret(private.private_bytes_raw()),
                private.public_key().public_bytes_raw(),
                now,
            )


def _read_keyring(descriptor: int, path: Path, passphrase: str | None) -> Keyring:
    what = f"keyring {path}"
    try:
        check_private(os.fstat(descriptor), what)
    except ConfigurationError:
        _refuse_trust(os.pread(descriptor, KEYRING_LIMIT, 0), what)
        raise
    data = read_all(descriptor, KEYRING_LIMIT, what)
    _refuse_trust(data, what)
    return Keyring.parse(data, what, passphrase)


def _refuse_trust(data: bytes, what: str) -> None:
    refuse_other(data, what, "custody/trust/1", "it is a trust.json, not a keyring: give it with --trust")


_KEYRING: Literal["custody/keyring/1"] = "custody/keyring/1"


class _AnyKeyringFile(msgspec.Struct):
    format: Literal["custody/keyring/1"]
    scrypt: object = msgspec.UNSET


class _KeyringFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    keys: list[KeyEntry]


def _key(entry: KeyEntry, what: str) -> Key:
    secret, private, public = key_material(entry, what)
    begin, end = key_span(entry, what)
    if secret:
        form = HmacKey if entry.algorithm == "HMAC-SHA256" else LeafKey
        return form(entry.id, Secret(secret), begin, end)
    if private and public:
        return Ed25519Key(entry.id, Secret(private), public, begin, end)
    wanted = "'secret'" if entry.algorithm != "Ed25519" else "'private' and 'public'"
    raise ConfigurationError(f"{what}: the key {entry.id!r} lacks {wanted}")
