"""Signers, chosen by URI scheme: `file:` keyrings and `aws-kms:` keys, and the secret of leaves (FORMAT.md, Keyring).

Rules:
1. A secret lives in a `Secret`, which shows itself to nobody: not in a repr, a format, a log line, `asdict` or an
   error. It refuses to be pickled, and so do keys: a worker process opens them again from the same arguments (under a
   millisecond; a keyring under a passphrase costs one scrypt).
2. A key's span is half-open, `[from, to)`. Rotation opens the new span before it ends the old one, so that no instant
   is without a key, and a run that began with the old key may end with it.

`open_signers` is for a writer; `Keyring`, `new_keyring`, `rotate_keyring` and `open_public` are for `custody keys`.
What a verifier trusts is opened by `trust.py`. It is one module because every function here opens, makes or changes
the same form of keyring, and no secret has to leave it.
"""

import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import scrypt
from pathlib import Path
from typing import ClassVar, Literal, NoReturn, Protocol
from urllib.parse import unquote

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from custody.errors import ConfigurationError, KeyUnavailable
from custody.format.envelope import Signer, Time
from custody.format.times import format_time
from custody.keys.files import (
    check_private,
    decode_base64,
    decode_document,
    encode_base64,
    locked,
    open_plain,
    parse_moment,
    read_all,
    refuse_other,
    write,
)
from custody.keys.kms import KmsEd25519Key, KmsKey

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""When a key begins that names no time."""

KeyAlgorithm = Literal["HMAC-SHA256", "Ed25519", "SHAKE-256"]
"""What a keyring's keys are for: the first two sign, the third makes the salts of leaves."""
ALGORITHMS: tuple[KeyAlgorithm, ...] = ("HMAC-SHA256", "Ed25519", "SHAKE-256")

OVERLAP = timedelta(minutes=10)
"""How long a rotated key may still sign: longer than a drain that is at work, and holds it, goes on."""

KEYRING_LIMIT = 1024 * 1024

_SCRYPT = {"n": 2**16, "r": 8, "p": 2}
_SCRYPT_MEMORY = 256 * 1024 * 1024
_SCRYPT_WORK = 2**22


class PublicSigner(Signer, Protocol):
    """An Ed25519 key that can sign, and whose public half is known."""

    @property
    def public(self) -> bytes:
        """The 32 bytes of its public half."""
        ...


class Secret:
    """Bytes that never appear in a repr, log or pickle."""

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
            data = _decrypt(decode_document(data, what, _EncryptedFile), what, passphrase)
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
    def new(cls, now: datetime, algorithms: Sequence[KeyAlgorithm] = ALGORITHMS) -> "Keyring":
        """Make a keyring of one new key of each algorithm, valid from `now`."""
        return cls(tuple(_new_key(algorithm, now) for algorithm in algorithms))

    def add(self, algorithm: KeyAlgorithm, now: datetime) -> "Keyring":
        """Return the keyring with one new key more, valid from `now`; the others stay as they are."""
        return Keyring((*self.keys, _new_key(algorithm, now)))

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
        ring = Keyring(tuple(kept))
        # What nothing is left of, as after a time without any key, begins anew; what was never there stays away.
        for algorithm in ALGORITHMS:
            if any(key.algorithm == algorithm for key in self.keys):
                ring = ring.add(algorithm, now)
        return ring

    def newest(self, algorithm: KeyAlgorithm, now: datetime) -> Key | None:
        """Return the newest key of an algorithm whose span holds `now`, None if there is none."""
        valid = [key for key in self.keys if key.algorithm == algorithm and holds(key.from_, key.to, now)]
        # Of two that began together, the one further down in the file.
        return max(reversed(valid), key=lambda key: key.from_ or BEGINNING) if valid else None

    def signers(self, now: datetime) -> "Signers":
        """Return the keys that sign at `now`: the newest of each algorithm whose span holds it."""
        hmac_key, ed25519, leaves = (self.newest(algorithm, now) for algorithm in ALGORITHMS)
        return Signers(
            hmac_key if isinstance(hmac_key, HmacKey) else None,
            ed25519 if isinstance(ed25519, Ed25519Key) else None,
            leaves if isinstance(leaves, LeafKey) else None,
        )

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
            if isinstance(key, Ed25519Key):
                entry["private"] = encode_base64(key.private.reveal())
                entry["public"] = encode_base64(key.public)
            else:
                entry["secret"] = encode_base64(key.secret.reveal())
            entries.append(entry)
        data = json.dumps({"format": _KEYRING, "keys": entries}, indent=1).encode() + b"\n"
        if passphrase is not None:
            if not passphrase:
                raise ConfigurationError(
                    "the keyring's passphrase is empty; set one, or unset CUSTODY_KEYRING_PASSPHRASE"
                )
            salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
            ciphertext = AESGCM(_stretch(passphrase, salt, **_SCRYPT)).encrypt(nonce, data, None)
            parameters = {"salt": encode_base64(salt), **_SCRYPT}
            outer = {
                "format": _KEYRING,
                "scrypt": parameters,
                "nonce": encode_base64(nonce),
                "ciphertext": encode_base64(ciphertext),
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


def new_keyring(
    path: Path, now: datetime, passphrase: str | None = None, algorithms: Sequence[KeyAlgorithm] = ALGORITHMS
) -> Keyring:
    """Make a keyring file with new keys (`custody keys new`). Never replaces one: its secrets would be lost.

    Raises:
        ConfigurationError: there is a file already, or it cannot be written.
    """
    ring = Keyring.new(now, algorithms)
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


@dataclass(frozen=True, slots=True)
class Signers:
    """What a writer signs with at one time.

    Attributes:
        statements: the HMAC-SHA256 key: manifests, and beside the Ed25519 key audits and `archive.json`.
        checkpoints: the Ed25519 key.
        leaves: the secret of leaves; None where there is none.
    """

    statements: Signer | None = None
    checkpoints: PublicSigner | None = None
    leaves: LeafKey | None = None

    def hmac(self) -> Signer:
        """Return the key that signs statements.

        Raises:
            KeyUnavailable: there is none now.
        """
        if self.statements is None:
            raise KeyUnavailable(
                "no HMAC-SHA256 key is valid now, so nothing can be signed; run `custody keys rotate`, or correct the"
                " setting `keys`"
            )
        return self.statements

    def ed25519(self) -> PublicSigner:
        """Return the key that signs checkpoints.

        Raises:
            KeyUnavailable: there is none now.
        """
        if self.checkpoints is None:
            raise KeyUnavailable(
                "no Ed25519 key is valid now, and checkpoints, audits and archive.json need one: run `custody keys"
                " rotate` if the keyring had one, else name a keyring or KMS key that has one in the setting"
                " `checkpoint_keys` (`custody keys new` makes the keyring)"
            )
        return self.checkpoints

    def both(self) -> tuple[Signer, Signer]:
        """Return the keys that sign audits and `archive.json`; raises as `hmac` and `ed25519`."""
        return self.hmac(), self.ed25519()


def open_signers(uri: str, now: datetime, passphrase: str | None = None, checkpoint_uri: str | None = None) -> Signers:
    """Open what signs at `now`: of each algorithm the newest key.

    Args:
        uri: `file:keyring.json`, `file:///etc/custody/keyring.json`, `aws-kms:///alias/NAME`, `aws-kms:///ARN`.
        now: the time, aware.
        passphrase: opens an encrypted keyring.
        checkpoint_uri: where the Ed25519 key and the secret of leaves are, if not there as well.

    Raises:
        ConfigurationError: a URI, keyring or key cannot be used.
        KeyUnavailable: KMS does not answer.
    """
    signers = _open(uri, now, passphrase)
    if checkpoint_uri is None:
        return signers
    other = _open(checkpoint_uri, now, passphrase)
    return Signers(signers.statements, other.checkpoints, other.leaves or signers.leaves)


def _open(uri: str, now: datetime, passphrase: str | None) -> Signers:
    scheme, rest = split_uri(uri)
    if scheme == "file":
        return Keyring.load(Path(rest), passphrase).signers(now)
    key = KmsKey.open(rest)
    return Signers(checkpoints=key) if isinstance(key, KmsEd25519Key) else Signers(statements=key)


def open_public(uri: str, passphrase: str | None = None, checkpoint_uri: str | None = None) -> list[PublicKey]:
    """Return what everybody may know of a writer's keys, old ones included; the arguments are those of `open_signers`.

    Raises:
        ConfigurationError: a URI, keyring or key cannot be used, or one id names two keys.
        KeyUnavailable: KMS does not answer.
    """
    keys = {key.id: key for key in _open_public(uri, passphrase)}
    # Of `checkpoint_uri` an HMAC key signs nothing.
    others = _open_public(checkpoint_uri, passphrase) if checkpoint_uri else []
    for key in others:
        if key.algorithm != "HMAC-SHA256" and keys.setdefault(key.id, key) != key:
            raise ConfigurationError(
                f"the key id {key.id!r} names two different keys in `keys` and `checkpoint_keys`; an id names one key"
                " for ever, so find out which source is wrong"
            )
    return list(keys.values())


def _open_public(uri: str, passphrase: str | None) -> list[PublicKey]:
    scheme, rest = split_uri(uri)
    if scheme == "file":
        return [
            PublicKey(key.key_id, key.algorithm, key.from_, key.to, key.public if isinstance(key, Ed25519Key) else None)
            for key in Keyring.load(Path(rest), passphrase).keys
        ]
    key = KmsKey.open(rest)
    return [PublicKey(key.key_id, key.algorithm, public=key.public if isinstance(key, KmsEd25519Key) else None)]


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
    try:
        check_private(os.fstat(descriptor), what)
    except ConfigurationError:
        _refuse_trust(os.pread(descriptor, KEYRING_LIMIT, 0), what)
        raise
    data = read_all(descriptor, KEYRING_LIMIT, what)
    _refuse_trust(data, what)
    return Keyring.parse(data, what, passphrase)


def _refuse_trust(data: bytes, what: str) -> None:
    refuse_other(data, what, "custody/trust/1", "it is a trust.json, and no keyring: give it with --trust")


_KEYRING: Literal["custody/keyring/1"] = "custody/keyring/1"


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A key as keyrings and `trust.json` list it, its halves in base64."""

    id: str
    algorithm: KeyAlgorithm
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


class _EncryptedFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    scrypt: _Scrypt
    nonce: str
    ciphertext: str


def _decrypt(file: _EncryptedFile, what: str, passphrase: str | None) -> bytes:
    if not passphrase:
        raise ConfigurationError(f"{what}: is encrypted, and there is no passphrase; set CUSTODY_KEYRING_PASSPHRASE")
    n, r, p = file.scrypt.n, file.scrypt.r, file.scrypt.p
    if (
        not (2**14 <= n <= 2**24 and n & (n - 1) == 0 and 1 <= r <= 64 and 1 <= p <= 64)
        or 128 * n * r > _SCRYPT_MEMORY
        or n * r * p > _SCRYPT_WORK
    ):
        raise ConfigurationError(
            f"{what}: scrypt's n, r and p are out of bounds (n a power of two from 2¹⁴, 128·n·r at most 2²⁸, n·r·p 2²²)"
        )
    salt = decode_base64(file.scrypt.salt, what, "scrypt.salt")
    nonce = decode_base64(file.nonce, what, "nonce", 12)
    text = decode_base64(file.ciphertext, what, "ciphertext")
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
    symmetric = entry.algorithm != "Ed25519"
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
        form = HmacKey if entry.algorithm == "HMAC-SHA256" else LeafKey
        return form(entry.id, Secret(secret), begin, end)
    if private and public:
        return Ed25519Key(entry.id, Secret(private), public, begin, end)
    wanted = "'secret'" if entry.algorithm != "Ed25519" else "'private' and 'public'"
    raise ConfigurationError(f"{what}: the key {entry.id!r} lacks {wanted}")
