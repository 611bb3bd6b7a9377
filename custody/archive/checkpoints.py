"""The checkpoints of an archive: find the newest valid one of a log, and write a new one of its head."""

from custody.archive.forms import form_of
from custody.archive.reader import checkpoint_sizes, read_checkpoint
from custody.archive.trusted import Judge, find_signed_end
from custody.archive.writer import put_checkpoint
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.checkpoint import Note, NoteSigner


def newest_checkpoint(store: Store, log: Log, archive: str, trust: Trust | None = None) -> Note | None:
    """Return a log's largest checkpoint, None where it has none.

    Args:
        store: the archive.
        log: the log.
        archive: the archive's id.
        trust: only checkpoints that these keys signed are returned; without it, any well-formed one.

    Raises:
        StoreError: the store does not give it.
    """
    judge = Judge(store, log, form_of(log), archive, trust) if trust else None
    for size in reversed(checkpoint_sizes(store, log)):
        try:
            note, found = read_checkpoint(store, log, size)
        except (FormatError, ObjectMissing):
            continue
        if judge is None or judge.counts_checkpoint(note, found):
            return note
    return None


def write_checkpoint(store: Store, log: Log, archive: str, trust: Trust, signer: NoteSigner) -> Note | None:
    """Sign a log's present head, write it, and return it. None if an invalid object is under its key.

    Raises:
        ConfigurationError: the log has no statement yet.
        HeadRollback: the head's statement does not count, or another root was signed for this size before.
        KeyUnavailable: the head's signature cannot be checked now, or the signer cannot sign.
        StoreError: the store does not take it.
    """
    form = form_of(log)
    judge = Judge(store, log, form, archive, trust)
    tip = find_signed_end(store, form, judge)
    if not tip.head.size:
        raise ConfigurationError(f"{log} has no statement yet")
    return put_checkpoint(store, archive, log, tip.head, signer, judge)
