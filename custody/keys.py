"""Signers and trust, chosen by URI scheme: `file:` keyrings and `aws-kms:` HMAC keys (FORMAT.md, Keyring and Trust).

Rules:
1. A secret lives in a `Secret`, which shows itself to nobody: not in a repr, a format, a log line, `asdict` or an
   error. It refuses to be pickled, and so do keys and trust: a worker process opens them again from the same
   arguments (under a millisecond; a keyring under a passphrase costs one scrypt).
2. "The signature is wrong" (`SignatureInvalid`) and "it could not be checked" (`KeyUnavailable`) are different errors.
3. A key's span is half-open, `[from, to)`. Rotation opens the new span before it ends the old one, so that no instant
   is without a key, and a run that began with the old key may end with it.
4. A keyring is read from one descriptor, whose mode is looked at first, and replaced by one rename of a synced file.
5. Whatever bytes a file holds, reading it gives a value or a `ConfigurationError` that names the file and not the
   secret.

Public names: `open_signers` for a writer; `open_trust`, `Trust`, `TrustedKey`, `Head`, `Accepted` for a verifier;
`accept` for `custody accept`; `Keyring`, `HmacKey`, `Ed25519Key`, `new_keyring`, `rotate_keyring` for `custody keys`;
`KmsKey`; `Secret`.
"""

import base64
import binascii
import contextlib
import fcntl
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import scrypt, sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar
from urllib.parse import unquote

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from custody.errors import ConfigurationError, KeyUnavailable, SignatureInvalid
from custody.layout import parse_log_text
from custody.manifest import Algorithm, Hex, Int, Signer, Time, Uuid, format_time, parse_time

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

__all__ = [
    "Accepted",
    "Ed25519Key",
    "Head",
    "HmacKey",
    "Keyring",
    "KmsKey",
    "Secret",
    "Trust",
    "TrustedKey",
    "accept",
    "keyring_path",
    "new_keyring",
    "open_signers",
    "open_trust",
    "rotate_keyring",
]

OVERLAP = timedelta(minutes=10)
"""How long a rotated key may still sign: longer than a drain that is at work, and holds it, goes on."""

KEYRING_LIMIT = 1024 * 1024
TRUST_LIMIT = 64 * 1024 * 1024

_SCRYPT = {"n": 2**16, "r": 8, "p": 2}
_SCRYPT_MEMORY = 256 * 1024 * 1024
_SCRYPT_WORK = 2**22
_Form = TypeVar("_Form")
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]{1,128}")
_KMS_NAME = re.compile(
    r"(?:arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:)?(?:alias/[A-Za-z0-9/_-]{1,250}|(?:key/)?[A-Za-z0-9-]{1,128})"
)


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
        descriptor = _open(path, "keyring")
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
        document = _document(data, what, _AnyKeyringFile)
        if not isinstance(document.scrypt, msgspec.UnsetType):
            data = _decrypt(_document(data, what, _SealedFile), what, passphrase)
            what = f"{what}, decrypted"
        keys: dict[str, Key] = {}
        for entry in _document(data, what, _KeyringFile).keys:
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
        if any(key.algorithm == "Ed25519" and _holds(key.from_, key.to, now) for key in self.keys):
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
            valid = [key for key in self.keys if key.algorithm == algorithm and _holds(key.from_, key.to, now)]
            if valid:
                # Of two that began together, the one further down in the file.
                chosen.append(max(reversed(valid), key=lambda key: key.from_ or _BEGINNING))
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
                entry["secret"] = _base64(key.secret.reveal())
            else:
                entry["private"] = _base64(key.private.reveal())
                entry["public"] = _base64(key.public)
            entries.append(entry)
        data = json.dumps({"format": _KEYRING, "keys": entries}, indent=1).encode() + b"\n"
        if passphrase is not None:
            if not passphrase:
                raise ConfigurationError(
                    "the keyring's passphrase is empty; set one, or unset CUSTODY_KEYRING_PASSPHRASE"
                )
            salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
            sealed = AESGCM(_stretch(passphrase, salt, **_SCRYPT)).encrypt(nonce, data, None)
            parameters = {"salt": _base64(salt), **_SCRYPT}
            outer = {"format": _KEYRING, "scrypt": parameters, "nonce": _base64(nonce), "sealed": _base64(sealed)}
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
        _write(path, self.encode(passphrase), create=create)


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
    with _locked(path) as descriptor:
        before = _read_keyring(descriptor, path, passphrase)
        after = before.rotate(now or datetime.now(UTC), overlap)
        after.save(path, passphrase)
    return after, after.keys[len(before.keys) :]


class KmsKey:
    """An HMAC_256 key in AWS KMS, called by its ARN. Its secret never leaves KMS."""

    __slots__ = ("_client", "_lock", "key_id")

    algorithm: Literal["HMAC-SHA256"] = "HMAC-SHA256"

    def __init__(self, arn: str, client: "KMSClient | None" = None) -> None:
        self.key_id = arn
        self._client = client
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"KmsKey({self.key_id!r})"

    def __reduce_ex__(self, protocol: object) -> tuple[type["KmsKey"], tuple[str]]:
        return KmsKey, (self.key_id,)

    @classmethod
    def open(cls, name: str) -> "KmsKey":
        """Resolve an alias, id or ARN to the key.

        Raises:
            ConfigurationError: the name is malformed, boto3 or a region is missing, or it is no key for HMAC_SHA_256.
            KeyUnavailable: KMS does not answer, or says no.
        """
        match = _KMS_NAME.fullmatch(name)
        if not match:
            raise ConfigurationError(
                "an aws-kms key is named aws-kms:///alias/NAME, aws-kms:///KEY-ID or aws-kms:///ARN; what was given is"
                " none of these"
            )
        client = _kms_client(match["region"])
        with _kms_errors("DescribeKey", name):
            found = client.describe_key(KeyId=name)["KeyMetadata"]
            arn = found["Arn"]
        if (found.get("KeySpec"), found.get("KeyUsage")) != ("HMAC_256", "GENERATE_VERIFY_MAC"):
            raise ConfigurationError(
                f"the KMS key {name} is {found.get('KeySpec', 'of another kind')}, and cannot make HMAC_SHA_256;"
                " create one with key spec HMAC_256 and usage GENERATE_VERIFY_MAC"
            )
        return cls(arn, client)

    def _kms(self) -> "KMSClient":
        with self._lock:
            if self._client is None:
                match = _KEY_ARN.fullmatch(self.key_id)
                try:
                    self._client = _kms_client(match["region"] if match else None)
                except ConfigurationError as error:
                    raise KeyUnavailable(f"the KMS key {self.key_id} cannot be asked: {error}") from None
            return self._client

    def sign(self, message: bytes) -> bytes:
        """Return the message's HMAC.

        Raises:
            KeyUnavailable: KMS does not answer, or says no.
        """
        client = self._kms()
        with _kms_errors("GenerateMac", self.key_id):
            answer = client.generate_mac(Message=message, KeyId=self.key_id, MacAlgorithm="HMAC_SHA_256")
            key_id, value = answer["KeyId"], answer["Mac"]
        # Real KMS answers with the ARN, its stand-ins with the id at its end.
        if key_id not in {self.key_id, self.key_id.rpartition("/")[2]} or len(value) != 32:
            raise KeyUnavailable(
                f"KMS answered GenerateMac for {self.key_id} with another key or length; nothing was signed"
            )
        return value

    def check(self, message: bytes, value: bytes) -> None:
        """Let KMS check a message's HMAC.

        Raises:
            SignatureInvalid: it is wrong.
            KeyUnavailable: KMS does not answer, or says no.
        """
        if len(value) != 32:
            raise SignatureInvalid(
                f"the signature of key {self.key_id!r} has {len(value)} bytes, and an HMAC-SHA256 has 32"
            )
        client = self._kms()
        with _kms_errors("VerifyMac", self.key_id):
            answer = client.verify_mac(Message=message, KeyId=self.key_id, MacAlgorithm="HMAC_SHA_256", Mac=value)
        if answer.get("MacValid") is not True:
            raise SignatureInvalid(f"the signature of key {self.key_id!r} is not over this statement")


@dataclass(frozen=True, slots=True)
class Head:
    """The size of a log's tree and its root."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """A finding that somebody has judged. It names an object by `log` and `sequence`, or by `key`."""

    finding: str
    reason: str
    by: str
    at: str
    log: str | None = None
    sequence: int | None = None
    key: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that a verifier trusts, with what it has of it."""

    id: str
    algorithm: Algorithm
    from_: datetime | None = None
    to: datetime | None = None
    until: Mapping[str, Head] = field(default_factory=dict)
    """Where a leaked key ends, by `<log>/<partition>`: beyond that head it counts for nothing."""
    material: Secret | bytes | KmsKey | None = field(default=None, repr=False)
    """The HMAC secret, the public Ed25519 key, the KMS key to ask, or nothing."""

    @property
    def checkable(self) -> bool:
        """Whether there is anything to check a signature with."""
        return self.material is not None

    @property
    def began(self) -> datetime:
        """When the key's span begins: of two keys of one algorithm the older one began earlier.

        "The signing key never goes back to an older one": in a log, this never falls from one statement to the next.
        """
        return self.from_ or _BEGINNING

    def holds(self, moment: datetime) -> bool:
        """Whether the key's span `[from, to)` holds this moment."""
        return _holds(self.from_, self.to, moment)

    def verify(self, message: bytes, value: bytes) -> None:
        """Check a signature. Neither span nor `until` is looked at here.

        Raises:
            SignatureInvalid: it is wrong.
            KeyUnavailable: there is nothing to check it with, or KMS does not answer.
        """
        match self.material:
            case Secret() as secret:
                good = hmac.compare_digest(hmac.digest(secret.reveal(), message, "sha256"), value)
            case bytes() as public:
                try:
                    Ed25519PublicKey.from_public_bytes(public).verify(value, message)
                except InvalidSignature:
                    good = False
                else:
                    good = True
            case KmsKey() as kms:
                return kms.check(message, value)
            case None:
                raise KeyUnavailable(
                    f"the secret of the key {self.id!r} is not at hand, so its signatures cannot be checked here"
                )
        if not good:
            raise SignatureInvalid(f"the signature of key {self.id!r} is not over this statement")
        return None


@dataclass(frozen=True, slots=True)
class Trust:
    """What a verifier is given from outside the archive. Not picklable with secrets in it: call `open_trust` again."""

    archive: str | None = None
    keys: Mapping[str, TrustedKey] = field(default_factory=dict)
    checkpoint: tuple[str, ...] = ()
    """C2SP vkeys."""
    heads: Mapping[str, Head] = field(default_factory=dict)
    """The last heads seen, by `<log>/<partition>`."""
    retention_days: int | None = None
    accepted: tuple[Accepted, ...] = ()


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
    scheme, rest = _split_uri(uri)
    if scheme == "file":
        return Keyring.load(Path(rest), passphrase).signers(now)
    return [KmsKey.open(rest)]


def open_trust(keys: Sequence[str] = (), trust: Path | None = None, passphrase: str | None = None) -> Trust:
    """Merge keyrings, KMS keys and a `trust.json` into what a verifier trusts.

    A key that several name must be the same key in all. It is then valid where all say so.

    Args:
        keys: URIs as `open_signers` takes them.
        trust: path of a `trust.json`.
        passphrase: opens encrypted keyrings.

    Raises:
        ConfigurationError: a source cannot be used, or two contradict each other.
        KeyUnavailable: KMS does not answer when a name that is not a key's ARN must be resolved.
    """
    opened = Trust() if trust is None else _load_trust(trust)
    merged = dict(opened.keys)
    for uri in keys:
        scheme, rest = _split_uri(uri)
        if scheme == "file":
            found = [_trusted(key) for key in Keyring.load(Path(rest), passphrase).keys]
        else:
            # An auditor may be allowed to verify and nothing else: an ARN needs no look-up.
            kms = KmsKey(rest) if _KEY_ARN.fullmatch(rest) else KmsKey.open(rest)
            found = [TrustedKey(kms.key_id, kms.algorithm, material=kms)]
        for key in found:
            merged[key.id] = _merge(merged[key.id], key) if key.id in merged else key
    return replace(opened, keys=merged)


def accept(path: Path, judged: Sequence[Accepted]) -> int:
    """Add judged findings to a `trust.json` (`custody accept`), alone and in one step; all else in it stays.

    Args:
        path: the file; its mode stays, too.
        judged: what to add. What is there already, whoever judged it, is not added again.

    Returns:
        How many were added.

    Raises:
        ConfigurationError: the file cannot be used or written, or an entry is none.
    """
    what = f"trust {path}"
    with _locked(path, "trust") as descriptor:
        data = _read_all(descriptor, TRUST_LIMIT, what)
        before = _read_trust(data, os.fstat(descriptor), what)
        there = {_place(one) for one in before.accepted}
        added = [one for one in judged if _place(one) not in there]
        document = json.loads(data)
        document.setdefault("accepted", []).extend(
            {name: value for name in _ACCEPTED_FIELDS if (value := getattr(one, name)) is not None} for one in added
        )
        try:
            after = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            raise ConfigurationError(f"{what}: a reason or a name holds characters that are not Unicode text") from None
        if len(after) > TRUST_LIMIT:
            raise ConfigurationError(f"{what}: would be larger than {TRUST_LIMIT} bytes")
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        _read_trust(after, os.fstat(descriptor), what)
        _write(path, after, create=False, what="trust", mode=mode)
    return len(added)


def keyring_path(uri: str) -> Path | None:
    """Return the keyring that a key URI names, None where it names a key in a KMS.

    Raises:
        ConfigurationError: it is no key URI.
    """
    scheme, rest = _split_uri(uri)
    return Path(rest) if scheme == "file" else None


def _trusted(key: Key) -> TrustedKey:
    material = key.secret if isinstance(key, HmacKey) else key.public
    return TrustedKey(key.key_id, key.algorithm, key.from_, key.to, material=material)


def _merge(one: TrustedKey, other: TrustedKey) -> TrustedKey:
    """Join what two sources say of one key: the strictest of both."""
    same = one.algorithm == other.algorithm
    if isinstance(one.material, KmsKey) and isinstance(other.material, KmsKey):
        material: Secret | bytes | KmsKey | None = one.material
    else:
        material = other.material if one.material is None else one.material
        same = same and (None in (one.material, other.material) or one.material == other.material)
    if not same:
        raise ConfigurationError(
            f"the key id {one.id!r} names two different keys in the keyrings and trust given; an id names one key for"
            " ever, so find out which source is wrong"
        )
    until = dict(one.until)
    for log, head in other.until.items():
        known = until.get(log, head)
        if known.size == head.size and known.root != head.root:
            raise ConfigurationError(
                f"the key {one.id!r} ends at two different heads of {log}; keep the one that is right"
            )
        until[log] = min(known, head, key=lambda each: each.size)
    begins = [moment for moment in (one.from_, other.from_) if moment]
    ends = [moment for moment in (one.to, other.to) if moment]
    return replace(one, from_=max(begins, default=None), to=min(ends, default=None), until=until, material=material)


def _holds(begin: datetime | None, end: datetime | None, moment: datetime) -> bool:
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


def _split_uri(uri: str) -> tuple[Literal["file", "aws-kms"], str]:
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


# --- files ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path, what: str = "keyring") -> Iterator[int]:
    """Open a keyring or trust for reading, under a lock on the file that has the name now.

    A rotation replaces the file, so whoever waited for the lock may hold that of the old one, and has to look again.
    """
    while True:
        descriptor = _open(path, what)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                current = os.path.samestat(path.stat(), os.fstat(descriptor))
            except OSError:
                current = False
            if current:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _read_keyring(descriptor: int, path: Path, passphrase: str | None) -> Keyring:
    what = f"keyring {path}"
    _check_private(os.fstat(descriptor), what)
    return Keyring.parse(_read_all(descriptor, KEYRING_LIMIT, what), what, passphrase)


def _open(path: Path, what: str) -> int:
    try:
        # Not blocking, so that a pipe under that name is refused rather than waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        advice = "; make one with `custody keys new`" if what == "keyring" else ""
        raise ConfigurationError(f"{what} {path}: there is no such file{advice}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise ConfigurationError(f"{what} {path}: cannot be opened: {reason}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigurationError(f"{what} {path}: is not a regular file")
    return descriptor


def _check_private(status: os.stat_result, what: str) -> None:
    if status.st_mode & 0o077:
        raise ConfigurationError(
            f"{what}: others can read or write it (mode {stat.S_IMODE(status.st_mode):04o}) and it holds secrets;"
            " run `chmod 600` on it, and think about whether they have been read"
        )


def _read_all(descriptor: int, limit: int, what: str) -> bytes:
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{what}: cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigurationError(f"{what}: is larger than {limit} bytes")
    return data


def _write(path: Path, data: bytes, *, create: bool, what: str = "keyring", mode: int = 0o600) -> None:
    # Beside a symbolic link's target, so that the link stays.
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError):
        raise ConfigurationError(f"{what} {path}: cannot be written: no file can have that name") from None
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            if create:
                os.link(temporary, path)
            else:
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise ConfigurationError(
            f"keyring {path}: is there already, and replacing it would lose its keys; run `custody keys rotate`, or"
            " choose another name"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{what} {path}: cannot be written: {error.strerror}") from None


# --- parsing -------------------------------------------------------------------------------------------------------

_KEYRING: Literal["custody/keyring/1"] = "custody/keyring/1"


class _Key(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    id: str
    algorithm: Algorithm
    from_: Time | None
    to: Time | None
    secret: str | msgspec.UnsetType = msgspec.UNSET
    private: str | msgspec.UnsetType = msgspec.UNSET
    public: str | msgspec.UnsetType = msgspec.UNSET


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    size: Int
    root: Hex


class _TrustKey(_Key, forbid_unknown_fields=True, rename={"from_": "from"}):
    until: dict[str, _Head] | None = None


class _AnyKeyringFile(msgspec.Struct):
    format: Literal["custody/keyring/1"]
    scrypt: object = msgspec.UNSET


class _KeyringFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/keyring/1"]
    keys: list[_Key]


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


class _Accepted(msgspec.Struct, forbid_unknown_fields=True):
    finding: str
    reason: str
    by: str
    at: Time
    log: str | None = None
    sequence: Int | None = None
    key: str | None = None
    sha256: Hex | None = None


class _TrustFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/trust/1"]
    archive: Uuid | None = None
    keys: list[_TrustKey] = []
    checkpoint: list[str] = []
    heads: dict[str, _Head] = {}
    retention_days: Int | None = None
    accepted: list[_Accepted] = []


def _document(data: bytes, what: str, form: type[_Form]) -> _Form:
    """Decode a file strictly. No message repeats a value: it might be a secret in the wrong place."""
    try:
        value = msgspec.json.decode(data, type=form)
        json.loads(data, object_pairs_hook=_once)
    except _TwiceError as error:
        raise ConfigurationError(f"{what}: {error}") from None
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at ")
        if reason.startswith("Invalid enum value"):
            reason = "a value that is not one of those allowed"
        elif reason.startswith("Object contains unknown field"):
            reason = "a field that does not belong there"
        raise ConfigurationError(f"{what}: {reason}{f' at {place}' if place else ''}") from None
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        reason = (
            str(error)
            if isinstance(error, msgspec.DecodeError)
            else "it is not UTF-8 or holds a number that is too long"
        )
        raise ConfigurationError(f"{what}: {reason}") from None
    except RecursionError:
        raise ConfigurationError(f"{what}: it is nested too deep") from None
    return value


class _TwiceError(Exception):
    """A name stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _TwiceError("a field stands twice in one object")


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
    salt = _bytes(sealed.scrypt.salt, what, "scrypt.salt")
    nonce = _bytes(sealed.nonce, what, "nonce", 12)
    text = _bytes(sealed.sealed, what, "sealed")
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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str, what: str, name: str, size: int | None = None) -> bytes:
    """Decode canonical base64 of so many bytes, without ever repeating it."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{what}: {name} is not base64") from None
    if _base64(data) != text:
        raise ConfigurationError(f"{what}: {name} is not canonical base64")
    if size is not None and len(data) != size:
        raise ConfigurationError(f"{what}: {name} has {len(data)} bytes, and {size} are wanted")
    return data


def _moment(text: str | None, what: str, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise ConfigurationError(f"{what}: {name} is no time of the form YYYY-MM-DDTHH:MM:SS.ffffffZ") from None


def _span(entry: _Key, what: str) -> tuple[datetime | None, datetime | None]:
    begin = _moment(entry.from_, what, f"from of key {entry.id!r}")
    end = _moment(entry.to, what, f"to of key {entry.id!r}")
    if begin and end and begin > end:
        raise ConfigurationError(f"{what}: the key {entry.id!r} ends before it begins")
    return begin, end


def _check_id(entry: _Key, what: str) -> None:
    if not 0 < len(entry.id) <= 256 or not entry.id.isprintable():
        raise ConfigurationError(f"{what}: a key id has 1 to 256 printable characters, and one has not")


def _given(
    entry: _Key, what: str, name: Literal["secret", "private", "public"], *, allowed: bool = True
) -> bytes | None:
    text: str | msgspec.UnsetType = getattr(entry, name)
    if isinstance(text, msgspec.UnsetType):
        return None
    if not allowed:
        raise ConfigurationError(f"{what}: the key {entry.id!r} is {entry.algorithm}, and such a key has no {name!r}")
    return _bytes(text, what, f"{name!r} of key {entry.id!r}", 32)


def _material(entry: _Key, what: str) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return a key's secret, private and public half, as far as they are given and belong to its algorithm."""
    _check_id(entry, what)
    symmetric = entry.algorithm == "HMAC-SHA256"
    secret = _given(entry, what, "secret", allowed=symmetric)
    private = _given(entry, what, "private", allowed=not symmetric)
    public = _given(entry, what, "public", allowed=not symmetric)
    if private and public != Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw():
        raise ConfigurationError(f"{what}: 'public' of key {entry.id!r} does not belong to its 'private'")
    return secret, private, public


def _key(entry: _Key, what: str) -> Key:
    secret, private, public = _material(entry, what)
    begin, end = _span(entry, what)
    if secret:
        return HmacKey(entry.id, Secret(secret), begin, end)
    if private and public:
        return Ed25519Key(entry.id, Secret(private), public, begin, end)
    wanted = "'secret'" if entry.algorithm == "HMAC-SHA256" else "'private' and 'public'"
    raise ConfigurationError(f"{what}: the key {entry.id!r} lacks {wanted}")


def _load_trust(path: Path) -> Trust:
    what = f"trust {path}"
    descriptor = _open(path, "trust")
    try:
        data = _read_all(descriptor, TRUST_LIMIT, what)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return _read_trust(data, status, what)


def _read_trust(data: bytes, status: os.stat_result, what: str) -> Trust:
    """Parse a `trust.json`, and refuse one with secrets that others can read."""
    document = _document(data, what, _TrustFile)
    if any(msgspec.UNSET is not secret for entry in document.keys for secret in (entry.secret, entry.private)):
        _check_private(status, what)
    return _trust(document, what)


def _trust(document: _TrustFile, what: str) -> Trust:
    keys: dict[str, TrustedKey] = {}
    for entry in document.keys:
        secret, _, public = _material(entry, what)
        if entry.id in keys:
            raise ConfigurationError(f"{what}: the key id {entry.id!r} stands twice; every key has an id of its own")
        if entry.algorithm == "Ed25519" and not public:
            raise ConfigurationError(f"{what}: the key {entry.id!r} lacks 'public'")
        begin, end = _span(entry, what)
        material: Secret | bytes | KmsKey | None = Secret(secret) if secret else public
        if material is None and _KEY_ARN.fullmatch(entry.id):
            material = KmsKey(entry.id)
        keys[entry.id] = TrustedKey(
            entry.id,
            entry.algorithm,
            begin,
            end,
            _heads(entry.until or {}, f"{what}: until of key {entry.id!r}"),
            material,
        )
    for vkey in document.checkpoint:
        _check_vkey(vkey, what)
    return Trust(
        archive=document.archive,
        keys=keys,
        checkpoint=tuple(document.checkpoint),
        heads=_heads(document.heads, f"{what}: heads"),
        retention_days=document.retention_days,
        accepted=tuple(_accepted(entry, what) for entry in document.accepted),
    )


def _heads(heads: Mapping[str, _Head], what: str) -> dict[str, Head]:
    for log in heads:
        _check_log(log, what)
    return {log: Head(head.size, bytes.fromhex(head.root)) for log, head in heads.items()}


def _check_log(text: str, what: str) -> None:
    if parse_log_text(text) is None:
        raise ConfigurationError(f"{what}: {text[:300]!r} names no log; write TOPIC/PARTITION or TOPIC@LIFE/PARTITION")


def _accepted(entry: _Accepted, what: str) -> Accepted:
    if (entry.sequence is None) == (entry.key is None) or (entry.key is None and entry.log is None):
        raise ConfigurationError(
            f"{what}: an accepted finding names 'log' and 'sequence', or 'key', and {entry.finding[:100]!r} does not"
        )
    if not (entry.finding and entry.reason and entry.by):
        raise ConfigurationError(f"{what}: an accepted finding says which ('finding'), why ('reason') and who ('by')")
    if entry.log is not None:
        _check_log(entry.log, f"{what}: accepted")
    _moment(entry.at, what, "at of an accepted finding")
    return Accepted(entry.finding, entry.reason, entry.by, entry.at, entry.log, entry.sequence, entry.key, entry.sha256)


_ACCEPTED_FIELDS = ("finding", "log", "sequence", "key", "sha256", "reason", "by", "at")


def _place(one: Accepted) -> tuple[object, ...]:
    """Return what an entry accepts, whoever judged it."""
    return one.finding, one.log, one.sequence, one.key, one.sha256


def _check_vkey(vkey: str, what: str) -> None:
    """Hold a C2SP signed-note verifier key to its form: `<name>+<hash>+<base64(0x01 ‖ public key)>`."""
    name, _, rest = vkey.partition("+")
    stated, _, encoded = rest.partition("+")
    if not name or any(character.isspace() for character in name) or not re.fullmatch(r"[0-9a-f]{8}", stated):
        raise ConfigurationError(f"{what}: a checkpoint key is not of the form NAME+HASH+KEY (a C2SP vkey)")
    key = _bytes(encoded, what, f"the checkpoint key of {name!r}", 33)
    if key[0] != 1:
        raise ConfigurationError(f"{what}: the checkpoint key of {name!r} is not of type 1 (Ed25519)")
    try:
        digest = sha256(name.encode() + b"\n" + key).hexdigest()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what}: the name of a checkpoint key is not UTF-8") from None
    if digest[:8] != stated:
        raise ConfigurationError(f"{what}: the hash in the checkpoint key of {name!r} does not belong to its key")


# --- AWS KMS -------------------------------------------------------------------------------------------------------


def _kms_client(region: str | None) -> "KMSClient":
    """Return a KMS client from the standard AWS settings, AWS_ENDPOINT_URL_KMS and AWS_ENDPOINT_URL among them."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ModuleNotFoundError:
        raise ConfigurationError("aws-kms keys need boto3, which is not installed: pip install 'custody[s3]'") from None
    # Short, because a drain has less than a minute, and a statement that was not signed is signed by the next run.
    config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
    try:
        return boto3.session.Session().client("kms", region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(
            f"AWS is not configured for KMS ({type(error).__name__}): set AWS_REGION, and check AWS_PROFILE and any"
            " AWS_ENDPOINT_URL"
        ) from None


_KMS_ADVICE = {
    "NotFoundException": "there is no such key in this account and region",
    "AccessDeniedException": "these credentials may not do that; allow it in the key's policy or by IAM",
    "DisabledException": "the key is disabled; enable it",
    "KMSInvalidStateException": "the key is not usable now; it may be waiting for its deletion",
    "InvalidKeyUsageException": "it is no key for HMAC; create one with key spec HMAC_256",
    "ThrottlingException": "AWS asks for fewer calls; try again later",
}


@contextlib.contextmanager
def _kms_errors(operation: str, name: str) -> Iterator[None]:
    """Turn what botocore raises into our errors. Its own texts may quote signed requests, so they are left out."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        if code == "KMSInvalidMacException":
            raise SignatureInvalid(f"the signature of key {name!r} is not over this statement") from None
        advice = _KMS_ADVICE.get(code, "look the code up in the AWS KMS API reference")
        raise KeyUnavailable(f"KMS refused {operation} for {name} ({code}): {advice}") from None
    except (BotoCoreError, HTTPClientError) as error:
        raise KeyUnavailable(
            f"KMS did not answer {operation} for {name} ({type(error).__name__}): check the network,"
            " the credentials and the endpoint"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        # Something that is not KMS answered.
        raise KeyUnavailable(
            f"the answer to KMS {operation} for {name} makes no sense ({type(error).__name__}): check the endpoint"
        ) from None
