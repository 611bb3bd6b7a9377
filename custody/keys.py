"""Signers, chosen by URI scheme: `file:` keyrings and `aws-kms:` HMAC keys (FORMAT.md, Keyring).

Rules:
1. A secret lives in a `Secret`, which shows itself to nobody: not in a repr, a format, a log line, `asdict` or an
   error. It refuses to be pickled, and so do keys: a worker process opens them again from the same arguments (under a
   millisecond; a keyring under a passphrase costs one scrypt).
2. A key's span is half-open, `[from, to)`. Rotation opens the new span before it ends the old one, so that no instant
   is without a key, and a run that began with the old key may end with it.

`open_signers` is for a writer; `Keyring`, `new_keyring` and `rotate_keyring` are for `custody keys`. What a verifier
trusts is opened by `trust.py`.
"""

import hmac
import json
import os
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import scrypt
from pathlib import Path
from typing import ClassVar, Literal, NoReturn
from urllib.parse import unquote

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from custody.errors import ConfigurationError, KeyUnavailable
from custody.keyfiles import (
    check_private,
    decode_base64,
    decode_document,
    encode_base64,
    locked,
    open_plain,
    parse_moment,
    read_all,
    write,
)
from custody.kms import KmsKey
from custody.manifest import Algorithm, Signer, Time, format_time

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""When a key begins that names no time."""

OVERLAP = timedelta(minutes=10)
"""How long a rotated key may still sign: longer than a drain that is at work, and holds it, goes on."""


KEYRING_LIMIT = 1024 * 1024


_SCRYPT = {"n": 2**16, "r": 8, "p": 2}


_SCRYPT_MEMORY = 256 * 1024 * 1024


_SCRYPT_WORK = 2**22


class Secret:
    """Bytes that nobody gets to see by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: object) -> "Secret":
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled: open the keyring or trust again where it is needed")


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


Key = HmacKey | Ed25519Key


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of a writer, in the order of the file."""

    keys: tuple[Key, ...]

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> "Keyring":
        """Read a keyring, under a passphrase or not.

        Raises:
            ConfigurationError: it is not there, others can read it, it is malformed, or the passphrase is missing or
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
            what: how errors call it.
            passphrase: opens the encrypted form; not looked at if the keyring is not encrypted.

        Raises:
            ConfigurationError: the bytes are not a keyring, or the passphrase is missing or wrong.
        """
        document = decode_document(data, what, _AnyKeyringFile)
        if not isinstance(document.scrypt, msgspec.UnsetType):
            data = _decrypt(decode_document(data, what, _SealedFile), what, passphrase)
            what = f"{what}, decrypted"
        keys: dict[str, Key] = {}
        for entry in decode_document(data, what, _KeyringFile).keys:
            key = _key(entry, what)
            if key.key_id in keys:
                raise ConfigurationError(
                    f"{what}: the key id {key.key_id!r} stands twice; every key has an id of its own"
                )
            keys[key.key_id] = key
        return cls(tuple(keys.values()))

    @classmethod
    def new(cls, now: datetime, *, ed25519: bool = False) -> "Keyring":
        """Make a keyring of one new HMAC-SHA256 key, and with `ed25519` an Ed25519 key beside it, valid from `now`."""
        ring = cls((_new_hmac(now),))
        return replace(ring, keys=(*ring.keys, _new_ed25519(now))) if ed25519 else ring

    def add(self, algorithm: Algorithm, now: datetime) -> "Keyring":
        """Return the keyring with one new key more, valid from `now`; the others stay as they are."""
        return Keyring((*self.keys, _new_hmac(now) if algorithm == "HMAC-SHA256" else _new_ed25519(now)))

    def rotate(self, now: datetime, overlap: timedelta = OVERLAP) -> "Keyring":
        """Return the keyring with a new key, valid from `now`, for each algorithm that has a key at `now`.

        Keys that were valid end at `now` + `overlap`, or where they ended before that. They stay in the ring for ever:
        statements of their span are checked with them.

        Raises:
            ConfigurationError: a key's span begins after `now`: the clock went back, and the new key would not be the
                newest.
        """
        later = [key.key_id for key in self.keys if key.from_ and key.from_ > now]
        if later:
            raise ConfigurationError(
                f"the key {later[0]!r} begins after {format_time(now)}, so a key made now would not be the newest;"
                " set this machine's clock right, then rotate"
            )
        end = now + overlap
        kept = [replace(key, to=end) if key.to is None or key.to > end else key for key in self.keys]
        algorithms: list[Algorithm] = ["HMAC-SHA256"]
        if any(key.algorithm == "Ed25519" and holds(key.from_, key.to, now) for key in self.keys):
            algorithms.append("Ed25519")
        ring = Keyring(tuple(kept))
        for algorithm in algorithms:
            ring = ring.add(algorithm, now)
        return ring

    def signers(self, now: datetime) -> list[Signer]:
        """Return the newest HMAC-SHA256 key whose span holds `now`, and the newest such Ed25519 key if there is one.

        Raises:
            KeyUnavailable: no HMAC-SHA256 key's span holds `now`.
        """
        chosen: list[Signer] = []
        for algorithm in ("HMAC-SHA256", "Ed25519"):
            valid = [key for key in self.keys if key.algorithm == algorithm and holds(key.from_, key.to, now)]
            if valid:
                # Of two that began together, the one further down in the file.
                chosen.append(max(reversed(valid), key=lambda key: key.from_ or BEGINNING))
            elif algorithm == "HMAC-SHA256":
                raise KeyUnavailable(
                    f"no HMAC-SHA256 key of the keyring is valid at {format_time(now)}, so nothing can be signed;"
                    " run `custody keys rotate`"
                )
        return chosen

    def encode(self, passphrase: str | None = None) -> bytes:
        """Return the file's bytes, encrypted if there is a passphrase. They hold the secrets.

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
            if isinstance(key, HmacKey):
                entry["secret"] = encode_base64(key.secret.reveal())
            else:
                entry["private"] = encode_base64(key.private.reveal())
                entry["public"] = encode_base64(key.public)
            entries.append(entry)
        data = json.dumps({"format": _KEYRING, "keys": entries}, indent=1).encode() + b"\n"
        if passphrase is not None:
            if not passphrase:
                raise ConfigurationError(
                    "the keyring's passphrase is empty; set one, or unset CUSTODY_KEYRING_PASSPHRASE"
                )
            salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
            sealed = AESGCM(_stretch(passphrase, salt, **_SCRYPT)).encrypt(nonce, data, None)
            parameters = {"salt": encode_base64(salt), **_SCRYPT}
            outer = {
                "format": _KEYRING,
                "scrypt": parameters,
                "nonce": encode_base64(nonce),
                "sealed": encode_base64(sealed),
            }
            data = json.dumps(outer, indent=1).encode() + b"\n"
        if len(data) > KEYRING_LIMIT:
            raise ConfigurationError(
                f"the keyring would have {len(data)} bytes (limit {KEYRING_LIMIT}); begin a new one"
            )
        return data

    def save(self, path: Path, passphrase: str | None = None, *, create: bool = False) -> None:
        """Write the keyring, mode 0600, so that after a crash either the old or the new one is there, and whole.

        Args:
            path: where; the folder exists.
            passphrase: encrypts it.
            create: refuse to replace a file.

        Raises:
            ConfigurationError: it cannot be written, or is there already.
        """
        write(path, self.encode(passphrase), create=create)


def new_keyring(path: Path, now: datetime, passphrase: str | None = None, *, ed25519: bool = False) -> Keyring:
    """Make a keyring file with new keys (`custody keys new`). Never replaces one: its secrets would be lost.

    Raises:
        ConfigurationError: there is a file already, or it cannot be written.
    """
    ring = Keyring.new(now, ed25519=ed25519)
    ring.save(path, passphrase, create=True)
    return ring


def rotate_keyring(
    path: Path, now: datetime | None = None, passphrase: str | None = None, overlap: timedelta = OVERLAP
) -> tuple[Keyring, tuple[Key, ...]]:
    """Rotate a keyring file (`custody keys rotate`), alone: of two rotations at once, each adds its key.

    Args:
        path: the keyring.
        now: where the new key's span begins; None for the time when the keyring is this rotation's alone.
        passphrase: opens the keyring, and encrypts what is written, even if it was not encrypted before.
        overlap: how long the keys that are replaced may still sign.

    Returns:
        The keyring as written, and which of its keys are new.

    Raises:
        ConfigurationError: the keyring cannot be read, rotated or written.
    """
    with locked(path) as descriptor:
        before = _read_keyring(descriptor, path, passphrase)
        after = before.rotate(now or datetime.now(UTC), overlap)
        after.save(path, passphrase)
    return after, after.keys[len(before.keys) :]


def open_signers(uri: str, now: datetime, passphrase: str | None = None) -> list[Signer]:
    """Open what signs at `now`: the newest HMAC-SHA256 key, and with a keyring the newest Ed25519 key beside it.

    Args:
        uri: `file:keyring.json`, `file:///etc/custody/keyring.json`, `aws-kms:///alias/NAME`, `aws-kms:///ARN`.
        now: the time, aware.
        passphrase: opens an encrypted keyring.

    Raises:
        ConfigurationError: the URI, the keyring or the key cannot be used.
        KeyUnavailable: no key is valid now, or KMS does not answer.
    """
    scheme, rest = split_uri(uri)
    if scheme == "file":
        return Keyring.load(Path(rest), passphrase).signers(now)
    return [KmsKey.open(rest)]


def keyring_path(uri: str) -> Path | None:
    """Return the keyring that a key URI names, None where it names a key in a KMS.

    Raises:
        ConfigurationError: it is no key URI.
    """
    scheme, rest = split_uri(uri)
    return Path(rest) if scheme == "file" else None


def holds(begin: datetime | None, end: datetime | None, moment: datetime) -> bool:
    """Tell whether a half-open span holds a moment; None is without an end."""
    return (begin is None or begin <= moment) and (end is None or moment < end)


def _new_hmac(now: datetime) -> HmacKey:
    return HmacKey(f"hmac-{secrets.token_hex(6)}", Secret(secrets.token_bytes(32)), now)


def _new_ed25519(now: datetime) -> Ed25519Key:
    private = Ed25519PrivateKey.generate()
    return Ed25519Key(
        f"ed25519-{secrets.token_hex(6)}",
        Secret(private.private_bytes_raw()),
        private.public_key().public_bytes_raw(),
        now,
    )


def split_uri(uri: str) -> tuple[Literal["file", "aws-kms"], str]:
    """Split a key URI into its scheme, and the path or the KMS key's name."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in {"file", "aws-kms"}:
        # What was given is not repeated: somebody may have put the secret itself there.
        raise ConfigurationError(
            "a key is named file:keyring.json, file:///etc/custody/keyring.json or aws-kms:///alias/NAME;"
            " what was given begins with neither file: nor aws-kms:"
        )
    if rest.startswith("//") and not rest.startswith("///"):
        raise ConfigurationError(f"a key URI names no host: write {scheme}:/// with three slashes")
    if scheme == "file":
        path = unquote(rest.removeprefix("//"))
        if not path or "\0" in path:
            raise ConfigurationError("a file: key URI needs a path, such as file:keyring.json")
        return "file", path
    return "aws-kms", unquote(rest.removeprefix("//").removeprefix("/"))


def _read_keyring(descriptor: int, path: Path, passphrase: str | None) -> Keyring:
    what = f"keyring {path}"
    check_private(os.fstat(descriptor), what)
    return Keyring.parse(read_all(descriptor, KEYRING_LIMIT, what), what, passphrase)


_KEYRING: Literal["custody/keyring/1"] = "custody/keyring/1"


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A key as keyrings and `trust.json` list it, its halves in base64."""

    id: str
    algorithm: Algorithm
    from_: Time | None
    to: Time | None
    secret: str | msgspec.UnsetType = msgspec.UNSET
    private: str | msgspec.UnsetType = msgspec.UNSET
    public: str | msgspec.UnsetType = msgspec.UNSET


class _AnyKeyringFile(msgspec.Struct):
    format: Literal["custody/keyring/1"]
    scrypt: object = msgspec.UNSET


class _KeyringFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    keys: list[KeyEntry]


class _Scrypt(msgspec.Struct, forbid_unknown_fields=True):
    salt: str
    n: int
    r: int
    p: int


class _SealedFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    scrypt: _Scrypt
    nonce: str
    sealed: str


def _decrypt(sealed: _SealedFile, what: str, passphrase: str | None) -> bytes:
    if not passphrase:
        raise ConfigurationError(f"{what}: is encrypted, and there is no passphrase; set CUSTODY_KEYRING_PASSPHRASE")
    n, r, p = sealed.scrypt.n, sealed.scrypt.r, sealed.scrypt.p
    if (
        not (2**14 <= n <= 2**24 and n & (n - 1) == 0 and 1 <= r <= 64 and 1 <= p <= 64)
        or 128 * n * r > _SCRYPT_MEMORY
        or n * r * p > _SCRYPT_WORK
    ):
        raise ConfigurationError(
            f"{what}: scrypt's n, r and p are out of bounds (n a power of two from 2¹⁴, 128·n·r at most 2²⁸, n·r·p 2²²)"
        )
    salt = decode_base64(sealed.scrypt.salt, what, "scrypt.salt")
    nonce = decode_base64(sealed.nonce, what, "nonce", 12)
    text = decode_base64(sealed.sealed, what, "sealed")
    if not 16 <= len(salt) <= 64:
        raise ConfigurationError(f"{what}: scrypt.salt has {len(salt)} bytes, and 16 to 64 are wanted")
    try:
        return AESGCM(_stretch(passphrase, salt, n, r, p)).decrypt(nonce, text, None)
    except InvalidTag:
        raise ConfigurationError(f"{what}: the passphrase is wrong, or the file was altered") from None


def _stretch(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # A variable of the environment that is not UTF-8 comes with surrogates.
    try:
        text = passphrase.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigurationError("the keyring's passphrase holds characters that are not Unicode text") from None
    return scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY + 2**26, dklen=32)


def key_span(entry: KeyEntry, what: str) -> tuple[datetime | None, datetime | None]:
    """Return when a key begins and ends.

    Raises:
        ConfigurationError: a time is none, or the key ends before it begins; the message begins with `what`.
    """
    begin = parse_moment(entry.from_, what, f"from of key {entry.id!r}")
    end = parse_moment(entry.to, what, f"to of key {entry.id!r}")
    if begin and end and begin > end:
        raise ConfigurationError(f"{what}: the key {entry.id!r} ends before it begins")
    return begin, end


def _check_id(entry: KeyEntry, what: str) -> None:
    if not 0 < len(entry.id) <= 256 or not entry.id.isprintable():
        raise ConfigurationError(f"{what}: a key id has 1 to 256 printable characters, and one has not")


def _given(
    entry: KeyEntry, what: str, name: Literal["secret", "private", "public"], *, allowed: bool = True
) -> bytes | None:
    text: str | msgspec.UnsetType = getattr(entry, name)
    if isinstance(text, msgspec.UnsetType):
        return None
    if not allowed:
        raise ConfigurationError(f"{what}: the key {entry.id!r} is {entry.algorithm}, and such a key has no {name!r}")
    return decode_base64(text, what, f"{name!r} of key {entry.id!r}", 32)


def key_material(entry: KeyEntry, what: str) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return a key's secret, private and public half, as far as they are given and belong to its algorithm."""
    _check_id(entry, what)
    symmetric = entry.algorithm == "HMAC-SHA256"
    secret = _given(entry, what, "secret", allowed=symmetric)
    private = _given(entry, what, "private", allowed=not symmetric)
    public = _given(entry, what, "public", allowed=not symmetric)
    if private and public != Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw():
        raise ConfigurationError(f"{what}: 'public' of key {entry.id!r} does not belong to its 'private'")
    return secret, private, public


def _key(entry: KeyEntry, what: str) -> Key:
    secret, private, public = key_material(entry, what)
    begin, end = key_span(entry, what)
    if secret:
        return HmacKey(entry.id, Secret(secret), begin, end)
    if private and public:
        return Ed25519Key(entry.id, Secret(private), public, begin, end)
    wanted = "'secret'" if entry.algorithm == "HMAC-SHA256" else "'private' and 'public'"
    raise ConfigurationError(f"{what}: the key {entry.id!r} lacks {wanted}")
