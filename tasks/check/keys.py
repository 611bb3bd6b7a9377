"""Checks the keys: each signs and is verified, none ends soon, and auditors' trust.json lists those that sign."""

import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from custody.cli.keys import trust_path
from custody.errors import ConfigurationError, CustodyError, KeyUnavailable, SignatureInvalid
from custody.format.envelope import Signer
from custody.format.times import duration_text, format_time
from custody.keys.key import PublicKey
from custody.keys.keyring import is_encrypted
from custody.keys.open import keyring_path, open_public
from custody.keys.signers import Signers
from custody.keys.trust import Trust, load_trust
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

SOON = timedelta(days=30)
"""A key that ends earlier than this is a warning."""

_report = Reporter("keys")
_ROTATE = "run 'custody keys rotate', then 'custody keys export' for auditors"


def probe_message() -> bytes:
    """Return a message to sign. It begins with a name of its own, so it can stand for nothing else (FORMAT.md)."""
    return b"custody/check/1\n" + secrets.token_hex(32).encode() + b"\n"


def check(settings: Settings, now: datetime) -> Iterator[Line]:
    """Yield what the keys can do."""
    try:
        signers, trust = settings.signers(now), settings.own_trust()
    except (ConfigurationError, KeyUnavailable) as error:
        yield _unusable(settings, error)
        return
    publics = {key.key_id: key for key in open_public(settings.keys, settings.passphrase(), settings.checkpoint_keys)}
    signing: list[str] = []
    for open_signer in (signers.hmac, signers.ed25519):
        try:
            signer = open_signer()
        except KeyUnavailable as error:
            yield _report.failed(open_signer.__name__, str(error), _ROTATE)
            continue
        signing.append(signer.key_id)
        yield _try(signer, trust)
        yield from _end(publics.get(signer.key_id), now)
    yield from _leaves(settings, signers)
    yield from _trust_file(settings, signing)
    yield from _passphrase(settings)


def _unusable(settings: Settings, error: CustodyError) -> Line:
    path = keyring_path(settings.keys)
    remedy = "correct the settings keys, checkpoint_keys, trust and keyring_passphrase"
    message = str(error)
    if path is not None and not path.exists():
        remedy = "set keys to the keys that sign; a new archive gets its keys from 'custody init'"
        # The error has a remedy too, which makes other keys than those of the archive.
        message = message.partition("; ")[0]
        if "keys" not in settings.model_fields_set:
            remedy = "run 'custody init', or set keys to the keys that sign"
    return _report.failed("keys", message, remedy, passing=isinstance(error, KeyUnavailable))


def _try(signer: Signer, trust: Trust) -> Line:
    """Return whether a key signs, and its signature is verified as a verifier does."""
    subject = signer.algorithm
    message = probe_message()
    try:
        trust.keys[signer.key_id].verify(message, signer.sign(message))
    except SignatureInvalid as error:
        return _report.failed(subject, f"the key does not verify what it signed: {error}", "use another key")
    except KeyUnavailable as error:
        return _report.failed(subject, str(error), "check the KMS, its permissions and the network", passing=True)
    return _report.ok(subject, f"{signer.key_id} signs, and its signature verifies")


def _end(key: PublicKey | None, now: datetime) -> Iterator[Line]:
    """Yield a warning if a key that signs ends soon."""
    if key is not None and key.to is not None and key.to - now < SOON:
        left = duration_text((key.to - now).total_seconds())
        message = f"{key.key_id} ends at {format_time(key.to)}, in {left}: nothing can be signed then"
        yield _report.warning(key.algorithm, message, _ROTATE)


def _leaves(settings: Settings, signers: Signers) -> Iterator[Line]:
    if settings.drain.event_leaves and signers.leaves is None:
        message = "drain.event_leaves is on, but the keys have no leaf secret: batches get no leaves"
        yield _report.warning("leaf secret", message, _ROTATE)


def _trust_file(settings: Settings, signing: list[str]) -> Iterator[Line]:
    """Yield whether the trust.json that auditors get lists the keys that sign."""
    path = trust_path(settings)
    if not path.exists():
        yield _report.warning(
            "trust.json", f"{path} does not exist: auditors need it", f"run 'custody keys export -o {path}'"
        )
        return
    try:
        listed = load_trust(path).keys
    except ConfigurationError as error:
        yield _report.failed("trust.json", str(error), "correct it, or write a new one with 'custody keys export'")
        return
    missing = [key for key in signing if key not in listed]
    if missing:
        message = f"{path} lacks {', '.join(missing)}: auditors will see signatures that they cannot verify"
        remedy = f"run 'custody keys export -o {path}', and give it to auditors"
        yield _report.warning("trust.json", message, remedy)
    else:
        yield _report.ok("trust.json", f"{path} lists the keys that sign")


def _passphrase(settings: Settings) -> Iterator[Line]:
    """Yield a warning if a passphrase is set, and no keyring is encrypted."""
    uris = filter(None, (settings.keys, settings.checkpoint_keys))
    paths: list[Path] = [path for path in map(keyring_path, uris) if path is not None]
    if settings.passphrase() is not None and not any(map(is_encrypted, paths)):
        message = "keyring_passphrase is set, but no keyring is encrypted: their secrets are readable in the file"
        remedy = "run 'custody keys rotate', which encrypts the new file, and delete copies of the old one"
        yield _report.warning("keyring_passphrase", message, remedy)
