"""Puts objects without a valid signature that a search may take for the end of a log."""

from collections.abc import Collection

import msgspec

from custody.archive.forms import AUDITS
from custody.archive.last_slot import find_last
from custody.archive.reader import read_audit
from custody.format import envelope, limits
from custody.format.envelope import HeadRef
from custody.format.layout import Log, manifest_key
from custody.store.protocol import Store
from tests.helpers.reading import anything


def mislead(store: Store, log: Log, slots: Collection[int], garbage: bytes) -> None:
    """Put an audit with another's signature, which says that a log ends after the last of some slots, and put those.

    Args:
        store: the archive.
        log: the log.
        slots: to put.
        garbage: what.
    """
    sequence, _ = find_last(store, AUDITS, anything)
    newest = read_audit(store, sequence, anything).statement
    _, signatures = store.read(AUDITS.key(sequence), limit=limits.FILE_BYTES).splitlines(keepends=True)
    heads = {str(log): HeadRef(max(slots) + 1, "0" * 64)}
    forged = msgspec.structs.replace(newest, sequence=sequence + 1, heads=heads)
    store.create(AUDITS.key(sequence + 1), envelope.encode_line(forged) + b"\n" + signatures)
    for slot in slots:
        store.create(manifest_key(log, slot), garbage)
