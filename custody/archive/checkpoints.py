"""Writes checkpoints: heads of logs, signed for whoever has only public keys (FORMAT.md, Tree and checkpoint)."""

import logging

from custody.archive.forms import form_of
from custody.archive.trusted import Judge, find_signed_end
from custody.errors import ConfigurationError, HeadRollback, ObjectExists
from custody.format import layout
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog import checkpoint
from custody.tlog.checkpoint import Note, NoteSigner
from custody.tlog.head import Head

logger = logging.getLogger(__name__)


def put_checkpoint(store: Store, archive: str, log: Log, head: Head, signer: NoteSigner, judge: Judge) -> Note | None:
    """Sign a log's head and write it as a checkpoint. An existing checkpoint with the same root is success.

    Returns:
        The checkpoint in the archive. None if an invalid object is under its key: this size gets no checkpoint, but the
        next one does.

    Raises:
        HeadRollback: another root was signed for this size before.
        KeyUnavailable: the signer cannot sign now.
        FormatError: the key cannot sign checkpoints.
        StoreError: the store does not take it.
    """
    key = layout.checkpoint_key(log, head.size)
    note = checkpoint.sign_checkpoint(signer, archive, log, head)
    try:
        store.create(key, note.encode())
    except ObjectExists:
        signed, parsed = next(judge.checkpoints([head.size]), (None, None))
        if signed is None or parsed is None:
            logger.warning("%s is taken by an object that no trusted key signed: this size gets no checkpoint", key)
            return None
        if parsed.root != head.root:
            raise HeadRollback(
                f"{key} has another root than the log has now: run `custody verify`, and keep both as evidence"
            ) from None
        return signed
    return note


def write_checkpoint(
    store: Store, log: Log, archive: str, trust: Trust, signer: NoteSigner, hint: int = 0
) -> Note | None:
    """Sign a log's present head, write it, and return it. None if an invalid object is under its key.

    Args:
        store: the archive.
        log: the log.
        archive: the archive's id.
        trust: the keys that sign statements.
        signer: signs the checkpoint.
        hint: a size that the log may have; a wrong one only costs requests.

    Raises:
        ConfigurationError: the log has no statement yet.
        HeadRollback: the head's statement does not count, or another root was signed for this size before.
        KeyUnavailable: the head's signature cannot be checked now, or the signer cannot sign.
        StoreError: the store does not take it.
    """
    form = form_of(log)
    judge = Judge(store, log, form, archive, trust)
    tip = find_signed_end(store, form, judge, hint)
    if not tip.head.size:
        raise ConfigurationError(f"{log} has no statement yet")
    return put_checkpoint(store, archive, log, tip.head, signer, judge)
