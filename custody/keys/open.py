"""Opens a writer's keys by URI: `file:` is a keyring, `aws-kms:` a key in AWS KMS. For verifiers, see `trust.py`."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from custody.errors import ConfigurationError
from custody.keys.key import Key, PublicKey, two_keys
from custody.keys.keyring import Keyring
from custody.keys.kms import KEY_ARN, KmsEd25519Key, KmsKey
from custody.keys.signers import Signers

__all__ = ["open_public", "open_signers"]


def open_signers(uri: str, now: datetime, passphrase: str | None = None, checkpoint_uri: str | None = None) -> Signers:
    """Return the keys that sign at `now`: the newest one of each algorithm.

    Args:
        uri: `file:keyring.json`, `file:///etc/custody/keyring.json`, `aws-kms:///alias/NAME`, `aws-kms:///ARN`.
        now: the time, with its zone.
        passphrase: decrypts an encrypted keyring.
        checkpoint_uri: where the Ed25519 key and the leaf secret are, if not in `uri`.

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
    """Return the public facts of a writer's keys, also old ones. The arguments are those of `open_signers`.

    Raises:
        ConfigurationError: a URI, keyring or key cannot be used, or one id names two keys.
        KeyUnavailable: KMS does not answer.
    """
    keys: dict[str, PublicKey] = {}
    for source in filter(None, (uri, checkpoint_uri)):
        for key in open_keys(source, passphrase):
            # An HMAC key in `checkpoint_uri` signs nothing.
            if source == uri or key.algorithm != "HMAC-SHA256":
                public = PublicKey(key.key_id, key.algorithm, key.from_, key.to, key.public)
                if keys.setdefault(key.key_id, public) != public:
                    raise two_keys(key.key_id, "`keys` and `checkpoint_keys`")
    return list(keys.values())


def open_keys(uri: str, passphrase: str | None, *, resolve: bool = True) -> Sequence[Key | KmsKey | KmsEd25519Key]:
    """Return the keys of a URI, also old ones.

    Args:
        uri: as for `open_signers`.
        passphrase: decrypts an encrypted keyring.
        resolve: ask KMS also for the kind of a key that is named by its ARN; otherwise it is an HMAC key.

    Raises:
        ConfigurationError: the URI, keyring or key cannot be used.
        KeyUnavailable: KMS does not answer.
    """
    scheme, rest = split_uri(uri)
    if scheme == "file":
        return Keyring.load(Path(rest), passphrase).keys
    return [KmsKey.open(rest) if resolve or not KEY_ARN.fullmatch(rest) else KmsKey(rest)]


def keyring_path(uri: str) -> Path | None:
    """Return the keyring's path in a key URI, None if it is a URI of a key in KMS.

    Raises:
        ConfigurationError: it is not a key URI.
    """
    scheme, rest = split_uri(uri)
    return Path(rest) if scheme == "file" else None


def split_uri(uri: str) -> tuple[Literal["file", "aws-kms"], str]:
    """Split a key URI into its scheme, and the path or the KMS key's name."""
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in {"file", "aws-kms"}:
        # The given text is not repeated: it may be the secret itself, given by mistake.
        raise ConfigurationError(
            "a key URI is file:keyring.json, file:///etc/custody/keyring.json or aws-kms:///alias/NAME;"
            " the given one begins with neither file: nor aws-kms:"
        )
    if rest.startswith("//") and not rest.startswith("///"):
        raise ConfigurationError(f"a key URI has no host: write {scheme}:/// with three slashes")
    if scheme == "file":
        path = unquote(rest.removeprefix("//"))
        if not path or "\0" in path:
            raise ConfigurationError("a file: key URI needs a path, such as file:keyring.json")
        return "file", path
    return "aws-kms", unquote(rest.removeprefix("//").removeprefix("/"))
