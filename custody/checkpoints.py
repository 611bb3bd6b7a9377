"""The checkpoints of an archive: the newest of a log, a new one of its head, and who signs them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from custody import checkpoint, layout
from custody.archive import find_head, list_logs, put_checkpoint, read_archive
from custody.checkpoint import Note
from custody.errors import ConfigurationError, KeyUnavailable, SignatureInvalid
from custody.keys import open_signers
from custody.layout import Log
from custody.manifest import Signer, message
from custody.settings import Settings
from custody.store import Store
from custody.trust import Trust, open_trust


def choose_logs(store: Store, wanted: Sequence[str]) -> list[Log]:
    """Return the logs that are named `<log>/<partition>`, all if none is.

    Raises:
        ConfigurationError: the archive has none of that name.
    """
    there = {str(log): log for log in list_logs(store)}
    for name in wanted:
        if name not in there:
            raise ConfigurationError(f"the archive has no log {name!r}; `custody status` lists them")
    return [there[name] for name in wanted] if wanted else list(there.values())


def find_signer(signers: Sequence[Signer]) -> Signer | None:
    """Return the key that signs checkpoints, the Ed25519 one; None where there is none."""
    return next((one for one in signers if one.algorithm == "Ed25519"), None)


def open_signer(settings: Settings, now: datetime) -> Signer:
    """Return the key that signs checkpoints.

    Raises:
        ConfigurationError: there is none.
        KeyUnavailable: none is valid now.
    """
    uri = settings.checkpoint_keys or settings.keys
    signer = find_signer(open_signers(uri, now, settings.passphrase()))
    if signer is None:
        raise ConfigurationError(
            f"checkpoints are signed with Ed25519, and {uri} has no such key: make a keyring (`custody keys new`) and"
            " name it in checkpoint_keys"
        )
    return signer


def trust_own(trust: Trust, settings: Settings) -> Trust:
    """Return the trust with the public keys of the setting `checkpoint_keys`: for checkpoints, and for nothing else.

    Raises:
        ConfigurationError: that keyring cannot be read.
    """
    if settings.checkpoint_keys is None:
        return trust
    ring = open_trust([settings.checkpoint_keys], passphrase=settings.passphrase())
    own = (key.vkey for key in checkpoint.checkpoint_keys(ring).values())
    return replace(trust, checkpoint=tuple(dict.fromkeys((*trust.checkpoint, *own))))


def newest_checkpoint(store: Store, log: Log) -> Note | None:
    """Return a log's largest checkpoint, None where it has none.

    Raises:
        FormatError: it is none.
        StoreError: the store does not give it.
    """
    parsed = (layout.parse_checkpoint_key(info.key) for info in store.list(layout.checkpoint_prefix(log)))
    size = max((one[1] for one in parsed if one), default=None)
    if size is None:
        return None
    return checkpoint.parse_note(store.read(layout.checkpoint_key(log, size), limit=checkpoint.NOTE_LIMIT))


def write_checkpoint(store: Store, log: Log, trust: Trust, signer: Signer) -> Note:
    """Sign a log's head as it is now, and write it.

    Raises:
        SignatureInvalid: the head's statement is not signed by a trusted key.
        HeadRollback: another root was signed for this size before.
        StoreError: the store does not take it.
    """
    head = find_head(store, log)
    if head.newest is None:
        raise ConfigurationError(f"{log} has no statement yet")
    text = message(head.newest.line)
    held = False
    for signature, value in head.newest.signatures:
        key = trust.keys.get(signature.key)
        if key is None or key.algorithm != signature.algorithm:
            raise SignatureInvalid(f"the head of {log} is signed by {signature.key[:100]!r}, which is not trusted")
        try:
            key.verify(text, value)
        except KeyUnavailable:
            continue
        held = True
    if not held:
        raise SignatureInvalid(f"no signature of the head of {log} could be checked")
    archive = read_archive(store).archive
    return put_checkpoint(store, archive, log, head.size, bytes.fromhex(head.root), signer)
