"""Find where a log ends, and check this end before anything is appended.

A writer that continues a shortened log signs a second history. So the end is compared with every known head, and with
all objects after the end. Unsigned data decides nothing here. A log that gets nothing does not need all of that
(`find_known_tip`).
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

from custody.archive.beyond import MOST_BEYOND, beyond_hole
from custody.archive.reader import Tip, checkpoint_sizes, read_entry, read_valid, tip_behind
from custody.archive.trusted import Judge, find_signed_end, known_heads
from custody.errors import FormatError, HeadRollback, ObjectMissing
from custody.format import layout
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from custody.tlog.log import Entry, Form

logger = logging.getLogger(__name__)

_NOT_READ = "the others were not read; find out who wrote them"

E = TypeVar("E", bound=Entry)


def find_checked_tip(
    store: Store, log: Log, form: Form[E], judge: Judge, trust: Trust, known: Sequence[KnownHead] = ()
) -> Tip[E]:
    """Find where a log ends, and check it.

    Args:
        store: the archive.
        log: the log.
        form: the form of its entries.
        judge: of this log.
        trust: has known heads, and ends of keys.
        known: other known heads.

    Raises:
        HeadRollback: the end contradicts what is known: see the message.
        KeyUnavailable: the signature of the newest entry cannot be checked now.
        FormatError: the newest entry's tree does not hold together.
        StoreError: the store does not answer.
    """
    known = _all_known(log, trust, known)
    hint = max((head.size for head in known), default=0)
    try:
        tip = _past_history(store, form, judge, find_signed_end(store, form, judge, hint))
        _check_nothing_beyond(store, log, form, judge, tip)
        for head in known:
            check_known(judge, tip, head)
    except HeadRollback as error:
        raise rollback(store, log, str(error)) from None
    for digest in tip.passed_over:
        logger.warning(
            "%s: a slot after the head has no valid %s (SHA-256 %s): the next append passes over it",
            log,
            form.noun,
            digest,
        )
    return tip


def find_known_tip(
    store: Store, log: Log, form: Form[E], judge: Judge, trust: Trust, known: Sequence[KnownHead]
) -> Tip[E] | None:
    """Return the largest known head of a log if its statement is there and the next slot is empty; else None.

    It takes two requests; more if a key was replaced (`Judge.newer_before`). Nothing behind the next slot is looked at,
    and smaller heads are not compared: `find_checked_tip` does that, before anything is appended. Args are those of
    `find_checked_tip`.

    Raises:
        KeyUnavailable: the signature of the newest entry cannot be checked now.
        StoreError: the store does not answer.
    """
    known = _all_known(log, trust, known)
    size = max((head.size for head in known), default=0)
    roots = {head.root for head in known if head.size == size}
    if not size:
        return None
    with suppress(FormatError, HeadRollback, ObjectMissing):
        entry = read_valid(store, form, size - 1, judge.holds)
        tip = tip_behind(form, entry, size - 1)
        is_known = roots == {tip.head.root} and judge.newer_before(entry, size - 1) is None
        if is_known and not store.exists(form.key(size)):
            return tip
    return None


def _all_known(log: Log, trust: Trust, known: Sequence[KnownHead]) -> list[KnownHead]:
    return [*known, *(KnownHead(head.size, head.root, origin) for origin, head in known_heads(trust, log))]


def rollback(store: Store, log: Log, message: str) -> HeadRollback:
    """Return the error for a log that contradicts what is known, with what to do."""
    return HeadRollback(
        f"{log}: {message}. Nothing is appended, so that no second history is signed."
        f" Run 'custody verify' on {store.url}, and restore what is missing before the next run."
    )


def _past_history(store: Store, form: Form[E], judge: Judge, tip: Tip[E]) -> Tip[E]:
    """Pass over slots for which a bucket keeps old versions, but no valid entry.

    A delete marker without a version proves nothing: to put one, no object and no key is needed. If there was an entry,
    a known head or a checkpoint shows it.

    Raises:
        HeadRollback: there was a valid entry.
    """
    versions_of = store.capabilities.versions
    while versions_of is not None:
        key = form.key(tip.size)
        # If it exists, another writer has just put it, and our own put will lose.
        if not versions_of.has_history(key) or store.exists(key):
            return tip
        versions = [version for version in versions_of.history(key) if version.key == key and not version.marker]
        if not versions:
            logger.warning("%s has a delete marker, but no version: find out who put the marker", key)
            return tip
        # A listing has the newest first, but the first one put is the evidence.
        digest, entry = read_entry(versions_of.at_versions({key: versions[-1]}), form, tip.size, judge.holds)
        if entry is not None:
            raise HeadRollback(f"{key} was deleted: the bucket still has a version of it")
        tip = tip.pass_over(digest)
    return tip


def _check_nothing_beyond(store: Store, log: Log, form: Form[E], judge: Judge, tip: Tip[E]) -> None:
    """Check that there is nothing signed after the tip: no entries after a hole, no larger checkpoints.

    Anyone can put objects there, so only the first ones are read.
    """
    for count, sequence in enumerate(beyond_hole(store, form, tip)):
        key = form.key(sequence)
        if count == MOST_BEYOND:
            logger.warning("%s: more than %d %ss are after the head: %s", log, MOST_BEYOND, form.noun, _NOT_READ)
            break
        with suppress(ObjectMissing, FormatError):
            read_valid(store, form, sequence, judge.holds)
            raise HeadRollback(f"{form.key(tip.size)} is missing, but {key} exists")
        logger.warning("%s is not a valid %s, and is after the head: find out who wrote it", key, form.noun)
    # A checkpoint that covers a passed-over slot means that the slot once had an entry.
    for count, size in enumerate(checkpoint_sizes(store, log, tip.head.size)):
        if count == MOST_BEYOND:
            logger.warning("%s: more than %d checkpoints are after the head: %s", log, MOST_BEYOND, _NOT_READ)
            break
        if size > tip.size and store.exists(form.key(size - 1)) and store.exists(form.key(tip.size)):
            # Another writer has put statements since the tip was found.
            continue
        key = layout.checkpoint_key(log, size)
        if any(judge.checkpoints([size])):
            raise HeadRollback(f"the head has size {tip.size}, but there is a checkpoint {key}")
        logger.warning("%s is not a valid checkpoint, and is after the head: find out who wrote it", key)


def check_known(judge: Judge, tip: Tip[E], known: KnownHead) -> None:
    """Check that the end of a log continues a known head. Raises HeadRollback if it does not."""
    if known.size > tip.head.size:
        raise HeadRollback(
            f"the head has size {tip.head.size}, but the head known from {known.origin} has size {known.size}"
        )
    if known.root is None:
        return
    root = tip.head.root
    if known.size < tip.head.size:
        try:
            root = judge.proofs.root(known.size)
        except FormatError as error:
            raise HeadRollback(f"the root at size {known.size} cannot be computed: {error}") from None
    if root != known.root:
        raise HeadRollback(
            f"at size {known.size} the root is {root.hex()}, but the one known from {known.origin} is"
            f" {known.root.hex()}: the log was forked"
        )
