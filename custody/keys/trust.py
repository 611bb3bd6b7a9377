"""What a verifier trusts: an archive's pin, keys, known heads, witnesses, accepted findings (FORMAT.md, Trust).

It comes from outside the archive: from keyrings, keys in KMS, and a `trust.json`, merged by `open_trust`. The files are
written by `trust_file.py`.

Rules:
1. "The signature is wrong" (`SignatureInvalid`) and "it could not be checked" (`KeyUnavailable`) are different errors.
2. Trust with secrets cannot be pickled: a worker process opens it again from the same arguments.
3. KMS is called only if a key URI names a KMS key. A `trust.json` has only the id of such a key, so an auditor with
   public keys needs no AWS account.
"""

import hmac
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from custody.errors import ConfigurationError, CustodyError, FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import Accepted
from custody.format.archive_file import Days, Pin
from custody.format.envelope import Algorithm, HeadRef, Hex, Int, Uuid
from custody.format.layout import parse_log_text
from custody.keys.files import check_private, decode_document, opened, parse_moment, read_all
from custody.keys.key import BEGINNING, Ed25519Key, HmacKey, KeyEntry, LeafKey, decode_key, holds, two_keys
from custody.keys.kms import KEY_ARN, KmsEd25519Key, KmsKey
from custody.keys.open import keyring_path, open_keys, split_uri
from custody.keys.secret import Secret
from custody.tlog.checkpoint import COSIGNATURE, NoteKey
from custody.tlog.head import Head

__all__ = ["Trust", "TrustedKey", "open_trust"]

TRUST_LIMIT = 64 * 1024 * 1024
_SOURCES = "the keyrings and trust given"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that a verifier trusts, with the material that it has."""

    id: str
    algorithm: Algorithm
    from_: datetime | None = None
    to: datetime | None = None
    until: Mapping[str, Head] | None = None
    """Where a leaked key ends, by `<log>/<partition>`: it counts only within these heads. In a log that is not named it
    ends at size 0. None: the key has not ended."""
    material: Secret | bytes | KmsKey | None = field(default=None, repr=False)
    """The HMAC secret, the public Ed25519 key, the KMS key to call, or None."""
    sources: tuple[str, ...] = field(default=(), compare=False)
    """The files and URIs that name it. They decide nothing."""

    @property
    def checkable(self) -> bool:
        """Whether a signature can be checked here."""
        return self.material is not None

    @property
    def began(self) -> datetime:
        """When the key starts: of two keys of one algorithm, the older one started earlier.

        The signing key never goes back to an older one: along a log, this time never decreases.
        """
        return self.from_ or BEGINNING

    @property
    def ended(self) -> datetime | None:
        """When the key ends, None if it has no end."""
        return self.to

    @property
    def public(self) -> bytes | None:
        """The public part of an Ed25519 key."""
        return self.material if isinstance(self.material, bytes) else None

    def holds(self, moment: datetime) -> bool:
        """Return whether this moment is in the key's span `[from, to)`."""
        return holds(self.from_, self.to, moment)

    def verify(self, message: bytes, value: bytes) -> None:
        """Check a signature, and no other part of the policy.

        Only `custody.tlog.signatures` calls this, and `custody check`, which tries a key and decides nothing by it.

        Raises:
            SignatureInvalid: it is wrong.
            KeyUnavailable: the key's material is not available, or KMS does not answer.
        """
        good = True
        match self.material:
            case Secret() as secret:
                good = hmac.compare_digest(hmac.digest(secret.reveal(), message, "sha256"), value)
            case bytes() as public:
                try:
                    Ed25519PublicKey.from_public_bytes(public).verify(value, message)
                except InvalidSignature:
                    good = False
            case KmsKey() as kms:
                kms.check(message, value)
            case None:
                raise KeyUnavailable(
                    f"the secret of the key {self.id!r} is not available, so its signatures cannot be checked here"
                )
        if not good:
            raise SignatureInvalid(f"the signature of key {self.id!r} is not over this message")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a verifier trusts, from outside the archive. With secrets it cannot be pickled: call `open_trust` again."""

    archive: Pin | None = None
    """The archive's pin, None before the first verification."""
    keys: Mapping[str, TrustedKey] = field(default_factory=dict)
    leaves: Mapping[str, Secret] = field(default_factory=dict)
    """Leaf secrets, by key id."""
    heads: Mapping[str, Head] = field(default_factory=dict)
    """Known heads, by `<log>/<partition>`."""
    witnesses: tuple[NoteKey, ...] = ()
    quorum: int = 0
    """How many witnesses must cosign a checkpoint so that it counts."""
    retention_days: int | None = None
    accepted: tuple[Accepted, ...] = ()
    sources: tuple[str, ...] = field(default=(), compare=False)
    """Where it comes from, for errors: paths of keyrings and of `trust.json`, URIs of keys in KMS."""

    @property
    def at_hand(self) -> Mapping[str, TrustedKey]:
        """The keys, with only the ids of KMS keys, so that a check makes no calls."""
        return {
            id_: replace(key, material=None) if isinstance(key.material, KmsKey) else key
            for id_, key in self.keys.items()
        }

    def checks_all(self, algorithms: Collection[Algorithm]) -> bool:
        """Return whether all its keys of some algorithms, one at least, can check signatures here."""
        keys = [key for key in self.keys.values() if key.algorithm in algorithms]
        return bool(keys) and all(key.checkable for key in keys)


def open_trust(
    keys: Sequence[str] = (),
    trust: Path | None = None,
    passphrase: str | None = None,
    checkpoint_keys: str | None = None,
    refused: list[CustodyError] | None = None,
) -> Trust:
    """Merge keyrings, KMS keys and a `trust.json` into what a verifier trusts.

    A key that is in several sources must be the same key in all of them. It is valid only when all of them say so.

    Args:
        keys: URIs as for `open_signers`.
        trust: path of a `trust.json`.
        passphrase: decrypts encrypted keyrings.
        checkpoint_keys: URI of a keyring or KMS key whose Ed25519 keys and leaf secrets are also trusted.
        refused: gets the error for each key that KMS does not resolve, and the other keys are trusted. None: raise it.

    Raises:
        ConfigurationError: a source cannot be used, or two contradict each other.
        KeyUnavailable: KMS does not answer when it must resolve a name that is not an ARN.
    """
    opened = Trust() if trust is None else load_trust(trust)
    merged = {id_: replace(key, sources=(str(trust),)) for id_, key in opened.keys.items()}
    leaves = dict(opened.leaves)
    if any(split_uri(uri)[0] == "aws-kms" for uri in keys):
        merged = {key.id: _ask_kms(key) for key in merged.values()}
    for uri, all_of_it in [*((uri, True) for uri in keys), *([(checkpoint_keys, False)] if checkpoint_keys else [])]:
        try:
            # An ARN needs no look-up: an auditor may have permission only to verify.
            keys_of_uri = open_keys(uri, passphrase, resolve=not all_of_it)
        except KeyUnavailable as error:
            if refused is None:
                raise
            refused.append(error)
            continue
        for key in keys_of_uri:
            if isinstance(key, LeafKey):
                if leaves.setdefault(key.key_id, key.secret) != key.secret:
                    raise two_keys(key.key_id, _SOURCES)
            elif all_of_it or key.algorithm == "Ed25519":
                trusted = replace(_trusted(key), sources=(uri.removeprefix("file:"),))
                merged[trusted.id] = _merge(merged.get(trusted.id, trusted), trusted)
    uris = (*keys, *([checkpoint_keys] if checkpoint_keys else []))
    sources = (*(str(keyring_path(uri) or uri) for uri in uris), *([str(trust)] if trust else []))
    return replace(opened, keys=merged, leaves=leaves, sources=tuple(dict.fromkeys(sources)))


def check_writer(trust: Trust, path: Path) -> None:
    """Check that the keys that sign may be those of the archive that a `trust.json` is about.

    A key that was added by a rotation need not be in it yet. But then those before are in both.

    Args:
        trust: what `open_trust` made of the keys that sign and that file.
        path: the file.

    Raises:
        ConfigurationError: it lists keys, and none of those that sign.
    """
    listed = [key for key in trust.keys.values() if str(path) in key.sources]
    if listed and all(len(key.sources) == 1 for key in listed):
        others = " and ".join(source for source in trust.sources if source != str(path))
        raise ConfigurationError(
            f"{path} lists no key of {others}, so these may not be the keys of this archive: correct `keys`, or `trust`"
        )


def _trusted(key: HmacKey | Ed25519Key | KmsKey | KmsEd25519Key) -> TrustedKey:
    material = key.secret if isinstance(key, HmacKey) else key if isinstance(key, KmsKey) else key.public
    return TrustedKey(key.key_id, key.algorithm, key.from_, key.to, material=material)


def _ask_kms(key: TrustedKey) -> TrustedKey:
    """Return the key with its KMS client if `trust.json` has only its ARN, else the key as it is."""
    if key.material is None and KEY_ARN.fullmatch(key.id):
        return replace(key, material=KmsKey(key.id))
    return key


def _merge(key: TrustedKey, other: TrustedKey) -> TrustedKey:
    """Merge what two sources say about one key: the stricter limits apply."""
    first, second = key.material, other.material
    # Two KMS keys with one id have one ARN, so they are the same key.
    same = first == second or None in (first, second) or (isinstance(first, KmsKey) and isinstance(second, KmsKey))
    if key.algorithm != other.algorithm or not same:
        raise two_keys(key.id, _SOURCES)
    begin = max((moment for moment in (key.from_, other.from_) if moment), default=None)
    end = min((moment for moment in (key.to, other.to) if moment), default=None)
    until = merge_until(key.id, key.until, other.until)
    material = second if first is None else first
    sources = tuple(dict.fromkeys((*key.sources, *other.sources)))
    return replace(key, from_=begin, to=end, until=until, material=material, sources=sources)


def merge_until(
    key_id: str, heads: Mapping[str, Head] | None, other: Mapping[str, Head] | None
) -> Mapping[str, Head] | None:
    """Return where a key ended by two sources: the smaller head of each log, none if a source lacks the log.

    Raises:
        ConfigurationError: they have two roots for one size.
    """
    if heads is None or other is None:
        return other if heads is None else heads
    until = {}
    for log in sorted(heads.keys() & other.keys()):
        first, second = heads[log], other[log]
        if first.size == second.size and first.root != second.root:
            raise ConfigurationError(
                f"the key {key_id!r} ends at two different heads of {log}, both of size {first.size}; keep the"
                " right one"
            )
        until[log] = min(first, second, key=lambda head: head.size)
    return until


class _TrustKey(KeyEntry, forbid_unknown_fields=True, rename={"from_": "from"}):
    until: dict[str, HeadRef] | None = None


class _Pin(msgspec.Struct, forbid_unknown_fields=True):
    id: Uuid
    sha256: Hex


class _TrustFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["custody/trust/1"]
    archive: _Pin | None = None
    keys: list[_TrustKey] = []
    heads: dict[str, HeadRef] = {}
    witnesses: list[str] = []
    quorum: Int = 0
    retention_days: Days | None = None
    accepted: list[Accepted] = []


def load_trust(path: Path) -> Trust:
    """Read a `trust.json`.

    Raises:
        ConfigurationError: it cannot be used.
    """
    subject = f"trust {path}"
    with opened(path, "trust") as descriptor:
        return read_trust(*read_all(descriptor, TRUST_LIMIT, subject), subject)


def read_trust(data: bytes, status: os.stat_result, subject: str) -> Trust:
    """Parse a `trust.json`. If it has secrets, check that others cannot read it.

    Args:
        data: the file's bytes.
        status: the file's status, for its mode.
        subject: the name of the file in errors.

    Raises:
        ConfigurationError: it is malformed, or others can read its secrets.
    """
    document = decode_document(data, subject, _TrustFile)
    if any(msgspec.UNSET is not secret for entry in document.keys for secret in (entry.secret, entry.private)):
        check_private(status, subject)
    return _trust(document, subject)


def _trust(document: _TrustFile, subject: str) -> Trust:
    keys: dict[str, TrustedKey] = {}
    leaves: dict[str, Secret] = {}
    ids: set[str] = set()
    for entry in document.keys:
        key, secret = decode_key(entry, subject)
        if entry.id in ids:
            raise ConfigurationError(f"{subject}: two keys have the id {entry.id!r}; each key needs its own id")
        ids.add(entry.id)
        if key.algorithm == "SHAKE-256":
            if entry.until is not None:
                raise ConfigurationError(f"{subject}: the key {entry.id!r} signs nothing, so it must not have 'until'")
            if secret:
                leaves[entry.id] = secret
            continue
        if key.algorithm == "Ed25519" and not key.public:
            raise ConfigurationError(f"{subject}: the key {entry.id!r} lacks 'public'")
        until = None if entry.until is None else _heads(entry.until, f"{subject}: until of key {entry.id!r}")
        keys[entry.id] = TrustedKey(entry.id, key.algorithm, key.from_, key.to, until, key.public or secret)
    for accepted in document.accepted:
        _check_accepted(accepted, subject)
    witnesses = _witnesses(document.witnesses, keys, subject)
    if document.quorum > len(witnesses):
        raise ConfigurationError(
            f"{subject}: quorum is {document.quorum}, but there are {len(witnesses)} witnesses:"
            " no checkpoint could count"
        )
    return Trust(
        archive=Pin(document.archive.id, document.archive.sha256) if document.archive else None,
        keys=keys,
        leaves=leaves,
        witnesses=witnesses,
        quorum=document.quorum,
        heads=_heads(document.heads, f"{subject}: heads"),
        retention_days=document.retention_days,
        accepted=tuple(document.accepted),
    )


def _heads(heads: Mapping[str, HeadRef], subject: str) -> dict[str, Head]:
    for log in heads:
        _check_log(log, subject)
    return {log: Head(head.size, bytes.fromhex(head.root)) for log, head in heads.items()}


def _check_log(text: str, subject: str) -> None:
    if parse_log_text(text) is None:
        raise ConfigurationError(
            f"{subject}: {text[:300]!r} is not the name of a log; write TOPIC/PARTITION or TOPIC@EPOCH/PARTITION"
        )


def _check_accepted(entry: Accepted, subject: str) -> None:
    if (entry.sequence is None) == (entry.key is None) or (entry.key is None and entry.log is None):
        raise ConfigurationError(
            f"{subject}: an accepted finding needs 'log' and 'sequence', or 'key'; {entry.finding[:100]!r} has neither"
        )
    if not (entry.finding and entry.reason and entry.by):
        raise ConfigurationError(
            f"{subject}: an accepted finding needs a name ('finding'), a reason ('reason') and a person ('by')"
        )
    if entry.log is not None:
        _check_log(entry.log, f"{subject}: accepted")
    parse_moment(entry.at, subject, "at of an accepted finding")


def _witnesses(vkeys: Sequence[str], keys: Mapping[str, TrustedKey], subject: str) -> tuple[NoteKey, ...]:
    """Return the witnesses of C2SP vkeys: keys of type 4, which sign a time and a note."""
    witnesses = []
    signing = {key.public: key.id for key in keys.values() if key.public is not None}
    for vkey in vkeys:
        try:
            key = NoteKey.parse(vkey)
        except FormatError as error:
            raise ConfigurationError(f"{subject}: a witness is not a C2SP vkey: {error}") from None
        if key.type != COSIGNATURE:
            raise ConfigurationError(
                f"{subject}: the witness {key.name!r} has a key for notes, not for cosignatures (type 4): use the vkey"
                " that `custody witness` prints"
            )
        if key.public in signing:
            raise ConfigurationError(
                f"{subject}: the witness {key.name!r} has the key of {signing[key.public]!r}: a writer of the"
                " log cannot be its witness"
            )
        witnesses.append(key)
    if len({key.name for key in witnesses}) < len(witnesses) or len({key.public for key in witnesses}) < len(witnesses):
        raise ConfigurationError(f"{subject}: the same witness is listed twice; list each witness once")
    return tuple(witnesses)
