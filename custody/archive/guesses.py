"""Guesses where logs end, so that finding it takes the same few requests at any age.

Nothing here is checked: a wrong guess only costs requests. It may steer no more than where a listing begins, or where a
search does that takes no entry without a good signature: `hints`. For all other searches there is `audited`.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime

from custody.archive.forms import AUDITS
from custody.archive.last_slot import find_last
from custody.archive.reader import checkpoint_sizes, read_valid
from custody.errors import CustodyError, TransientStoreError
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.times import parse_time
from custody.store.protocol import Store, is_local

_NIGHTS = 500
"""Audits that may be missing, or that somebody made by hand: a page of a listing has twice as many."""
_FIRST_STRETCH = 2_000
"""Statements whose checkpoints are listed first: a page of a listing has them, even if each has one."""
_WIDER = 16
"""How many times as long the next stretch is, if none of its checkpoints was the right one."""


def claimed_sizes(store: Store, hint: int = 0) -> Mapping[str, int]:
    """Return the size of each log at the newest audit, whoever signed it, and that of the log of audits.

    It is empty if the newest audit cannot be read. `hint` is a number of audits that there may be.

    Raises:
        StoreError: the store does not answer.
    """
    sequence, _ = find_last(store, AUDITS, lambda *_: True, hint)
    try:
        audit = read_valid(store, AUDITS, sequence, lambda *_: True) if sequence >= 0 else None
    except TransientStoreError:
        raise
    except CustodyError:
        return {}
    sizes = {name: head.size for name, head in audit.statement.heads.items()} if audit else {}
    return sizes | {str(layout.AUDIT_LOG): sequence + 1}


def nightly_audits(created: str, now: datetime) -> int:
    """Return a number of audits that an archive has if it was audited each night, within some hundred."""
    return max((now - parse_time(created)).days - _NIGHTS, 0)


def checkpoints_on(store: Store, log: Log, after: int) -> Iterator[int]:
    """Yield the sizes above `after` that have an object among a log's checkpoints, the smallest first.

    No more is listed than what is asked for. Raises StoreError if the store does not answer.
    """
    if is_local(store):
        yield from checkpoint_sizes(store, log, after)
    else:
        yield from _sizes_up_to(store, log, after, limits.INT_MAX)


def checkpoints_back(store: Store, log: Log, near: int) -> Iterator[int]:
    """Yield the sizes that have an object among a log's checkpoints, the largest first.

    Args:
        store: the archive.
        log: the log.
        near: a size that the log may have.

    Raises:
        StoreError: the store does not answer.
    """
    if is_local(store):
        # A listing goes through all of a folder's entries, wherever it begins.
        yield from reversed(checkpoint_sizes(store, log))
        return
    start = max(near - _FIRST_STRETCH, -1)
    yield from reversed(checkpoint_sizes(store, log, start))
    stretch = _FIRST_STRETCH
    while start >= 0:
        stretch *= _WIDER
        end, start = start, max(start - stretch, -1)
        yield from reversed(list(_sizes_up_to(store, log, start, end)))


def _sizes_up_to(store: Store, log: Log, after: int, until: int) -> Iterator[int]:
    """Yield the sizes above `after`, up to `until`; the store lists in order of keys, which is that of sizes."""
    begin = layout.checkpoint_key(log, after) if after >= 0 else ""
    for info in store.list(layout.checkpoint_prefix(log), after=begin):
        key = layout.parse_checkpoint_key(info.key)
        if key is not None and key[1] > until:
            return
        if key is not None:
            yield key[1]
