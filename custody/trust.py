"""What a verifier trusts: keys with their spans, vkeys of checkpoints, heads, judged findings (FORMAT.md, Trust).

It comes from outside the archive: from keyrings, keys in a KMS, and a `trust.json`, merged by `open_trust`.

Rules:
1. "The signature is wrong" (`SignatureInvalid`) and "it could not be checked" (`KeyUnavailable`) are different errors.
2. Trust with secrets in it is not pickled: a worker process opens it again from the same arguments.
"""

import hmac
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from custody.errors import ConfigurationError, KeyUnavailable, SignatureInvalid
from custody.keyfiles import (
    check_private,
    decode_base64,
    decode_document,
    locked,
    open_plain,
    parse_moment,
    read_all,
    write,
)
from custody.keys import BEGINNING, HmacKey, Key, KeyEntry, Keyring, Secret, holds, key_material, key_span, split_uri
from custody.kms import KEY_ARN, KmsKey
from custody.layout import parse_log_text
from custody.manifest import Algorithm, Hex, Int, Time, Uuid

TRUST_LIMIT = 64 * 1024 * 1024


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
        return self.from_ or BEGINNING

    def holds(self, moment: datetime) -> bool:
        """Whether the key's span `[from, to)` holds this moment."""
        return holds(self.from_, self.to, moment)

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
        scheme, rest = split_uri(uri)
        if scheme == "file":
            found = [_trusted(key) for key in Keyring.load(Path(rest), passphrase).keys]
        else:
            # An auditor may be allowed to verify and nothing else: an ARN needs no look-up.
            kms = KmsKey(rest) if KEY_ARN.fullmatch(rest) else KmsKey.open(rest)
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
    with locked(path, "trust") as descriptor:
        data = read_all(descriptor, TRUST_LIMIT, what)
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
        write(path, after, create=False, what="trust", mode=mode)
    return len(added)


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


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    size: Int
    root: Hex


class _TrustKey(KeyEntry, forbid_unknown_fields=True, rename={"from_": "from"}):
    until: dict[str, _Head] | None = None


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


def _load_trust(path: Path) -> Trust:
    what = f"trust {path}"
    descriptor = open_plain(path, "trust")
    try:
        data = read_all(descriptor, TRUST_LIMIT, what)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return _read_trust(data, status, what)


def _read_trust(data: bytes, status: os.stat_result, what: str) -> Trust:
    """Parse a `trust.json`, and refuse one with secrets that others can read."""
    document = decode_document(data, what, _TrustFile)
    if any(msgspec.UNSET is not secret for entry in document.keys for secret in (entry.secret, entry.private)):
        check_private(status, what)
    return _trust(document, what)


def _trust(document: _TrustFile, what: str) -> Trust:
    keys: dict[str, TrustedKey] = {}
    for entry in document.keys:
        secret, _, public = key_material(entry, what)
        if entry.id in keys:
            raise ConfigurationError(f"{what}: the key id {entry.id!r} stands twice; every key has an id of its own")
        if entry.algorithm == "Ed25519" and not public:
            raise ConfigurationError(f"{what}: the key {entry.id!r} lacks 'public'")
        begin, end = key_span(entry, what)
        material: Secret | bytes | KmsKey | None = Secret(secret) if secret else public
        if material is None and KEY_ARN.fullmatch(entry.id):
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
    parse_moment(entry.at, what, "at of an accepted finding")
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
    key = decode_base64(encoded, what, f"the checkpoint key of {name!r}", 33)
    if key[0] != 1:
        raise ConfigurationError(f"{what}: the checkpoint key of {name!r} is not of type 1 (Ed25519)")
    try:
        digest = sha256(name.encode() + b"\n" + key).hexdigest()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what}: the name of a checkpoint key is not UTF-8") from None
    if digest[:8] != stated:
        raise ConfigurationError(f"{what}: the hash in the checkpoint key of {name!r} does not belong to its key")
