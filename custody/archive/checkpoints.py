"""The checkpoints of an archive: find the newest valid one of a log, and write a new one of its head."""

from custody.archive.forms import form_of
from custody.archive.reader import checkpoint_sizes, read_checkpoints
from custody.archive.trusted import Judge, find_signed_end
from custody.archive.writer import put_checkpoint
from custody.errors import ConfigurationError
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.checkpoint import Note, NoteSigner


def newest_checkpoint(store: Store, log: Log, archive: str, trust: Trust | None = None) -> Note | None:
    """Return a log's largest checkpoint, None if it has none.

    Args:
        store: the archive.
        log: the log.
        archive: the archive's id.
        trust: only checkpoints that these keys signed are returned; without it, any well-formed one.

    Raises:
        StoreError: the store does not give it.
    """
    sizes = reversed(checkpoint_sizes(store, log))
    if trust is None:
        notes = read_checkpoints(store, log, sizes)
    else:
        notes = Judge(store, log, form_of(log), archive, trust).checkpoints(sizes)
    return next((note for note, _ in notes), None)


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
