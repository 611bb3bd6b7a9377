"""Find where a log ends, and check it by all that is known of it, before anything is appended.

A writer that goes on behind a shortened log signs a second history. So the end that it finds is held against every
head that somebody remembers, and against what lies behind the end. What is not signed steers nothing here.
"""

import logging
from collections.abc import Sequence
from typing import TypeVar

from custody.archive.reader import Tip, checkpoint_sizes, read_checkpoint, read_entry, sequence_of
from custody.archive.trusted import Judge, find_signed_end
from custody.errors import FormatError, HeadRollback, ObjectMissing
from custody.format import layout
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from custody.tlog.log import Entry, Form

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Entry)


def find_checked_tip(
    store: Store, log: Log, form: Form[E], judge: Judge, trust: Trust, known: Sequence[KnownHead] = ()
) -> Tip[E]:
    """Find where a log ends, and check it.

    Args:
        store: the archive.
        log: the log.
        form: what it is as a signed log.
        judge: of this log.
        trust: whose heads, and ends of keys, are known too.
        known: what others remember of its head.

    Raises:
        HeadRollback: the end is not what it must be: see the message.
        KeyUnavailable: the signature of the newest entry cannot be checked now.
        FormatError: the newest entry's tree does not hold together.
        StoreError: the store does not answer.
    """
    known = [*known, *_trusted_heads(log, trust)]
    hint = max((head.size for head in known), default=0)
    try:
        tip = find_signed_end(store, form, judge, hint)
        tip = _past_history(store, form, judge, tip)
    except HeadRollback as error:
        raise rollback(store, log, str(error)) from None
    _check_nothing_beyond(store, log, form, judge, tip)
    for head in known:
        _check_known(store, log, judge, tip, head)
    for digest in tip.passed_over:
        logger.warning("%s: a slot behind the head holds no valid %s (SHA-256 %s): passed over", log, form.noun, digest)
    return tip


def rollback(store: Store, log: Log, what: str) -> HeadRollback:
    """Return the error that says that a log is not what it must be, and what to do."""
    return HeadRollback(
        f"{log}: {what}. Nothing is appended, so that no second history is signed."
        f" Run 'custody verify' on {store.url}, and bring back what is missing before the next run."
    )


def _trusted_heads(log: Log, trust: Trust) -> list[KnownHead]:
    """Return the heads that trust.json names of a log, and those at which keys ended."""
    name = str(log)
    heads = [("trust.json", trust.heads.get(name))]
    heads += [(f"the end of the key {key.id!r}", key.until.get(name)) for key in trust.keys.values() if key.until]
    return [KnownHead(head.size, head.root, origin) for origin, head in heads if head is not None]


def _past_history(store: Store, form: Form[E], judge: Judge, tip: Tip[E]) -> Tip[E]:
    """Pass over slots of which a bucket keeps a version, or a delete marker, and nothing that counts.

    Raises:
        HeadRollback: an entry that counts was there once.
    """
    versions_of = store.capabilities.versions
    while versions_of is not None:
        key = form.key(tip.size)
        # Where it exists, another writer has just put it, and our own put will lose to it.
        if not versions_of.has_history(key) or store.exists(key):
            return tip
        versions = [one for one in versions_of.history(key) if one.key == key and not one.marker]
        if not versions:
            raise HeadRollback(f"{key} was there once: the bucket keeps a delete marker of it, and no version")
        # A listing names the newest first, and the first one put is the evidence.
        digest, there = read_entry(versions_of.at_versions({key: versions[-1]}), form, tip.size, judge.holds)
        if there is not None:
            raise HeadRollback(f"{key} was there once: the bucket keeps a version of it")
        tip = tip.pass_over(digest)
    return tip


def _check_nothing_beyond(store: Store, log: Log, form: Form[E], judge: Judge, tip: Tip[E]) -> None:
    """Check that nothing signed lies behind the tip: entries behind a hole, checkpoints of a larger size."""
    start = form.key(tip.size - 1) if tip.size else form.prefix
    for info in store.list(form.prefix, after=start):
        sequence = sequence_of(info.key)
        # One more may have been put by a writer at work since the head was found; only a hole is wrong.
        if sequence is None or sequence <= tip.size or store.exists(form.key(tip.size)):
            continue
        try:
            _, beyond = read_entry(store, form, sequence, judge.holds)
        except (ObjectMissing, FormatError):
            continue
        if beyond is not None:
            raise rollback(store, log, f"{form.key(tip.size)} is missing although {info.key} is there")
        logger.warning("%s is no valid %s, and lies behind the head: find out who wrote it", info.key, form.noun)
    # A checkpoint of a slot that is passed over says that it once held an entry.
    for size in checkpoint_sizes(store, log, tip.head.size):
        if size > tip.size and store.exists(form.key(size - 1)):
            continue
        try:
            counts = judge.counts_checkpoint(*read_checkpoint(store, log, size))
        except (ObjectMissing, FormatError):
            counts = False
        key = layout.checkpoint_key(log, size)
        if counts:
            raise rollback(store, log, f"the head has size {tip.size} although the checkpoint {key} is there")
        logger.warning("%s is no checkpoint that counts, and lies behind the head: find out who wrote it", key)


def _check_known(store: Store, log: Log, judge: Judge, tip: Tip[E], known: KnownHead) -> None:
    if known.size > tip.head.size:
        raise rollback(store, log, f"the head has size {tip.head.size}, and {known.origin} remembers {known.size}")
    if known.root is None:
        return
    if known.size == tip.head.size:
        root = tip.head.root
    else:
        try:
            root = judge.proofs.root(known.size)
        except FormatError as error:
            raise rollback(store, log, f"the root at size {known.size} is not known: {error}") from None
    if root != known.root:
        raise rollback(
            store,
            log,
            f"at size {known.size} the root is {root.hex()}, and {known.origin} remembers {known.root.hex()}:"
            " the log was forked",
        )
