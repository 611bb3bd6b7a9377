"""Follows a log statement by statement, past those that are missing or cannot be read. Each of these is named."""

from custody.archive.forms import statements_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.slots import slots_after
from custody.errors import FormatError, ObjectMissing
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.store.protocol import Store


def next_statement(
    store: Store, log: Log, sequence: int, holds: Holds[Manifest], *, holes: bool
) -> tuple[Statement | None, dict[int, str]]:
    """Return the first readable statement from a sequence on, and the problems of those before it.

    Args:
        store: the archive.
        log: the log.
        sequence: where to begin.
        holds: whether an entry is valid where it stands.
        holes: whether to list later manifests if one is missing; otherwise the log ends there.

    Raises:
        StoreError: the store does not answer.
    """
    unread: dict[int, str] = {}
    while True:
        try:
            return read_manifest(store, log, sequence, holds).statement, unread
        except FormatError as error:
            unread[sequence] = str(error)
            sequence += 1
        except ObjectMissing:
            following = next_listed(store, log, sequence) if holes else None
            if following is None:
                return None, unread
            # It may have been put meanwhile, and others behind it.
            if not store.exists(layout.manifest_key(log, sequence)):
                span = f"sequence {sequence}" if following == sequence + 1 else f"{sequence} to {following - 1}"
                unread[sequence] = f"manifests of {log} are missing ({span}), but later ones exist"
                sequence = following


def next_listed(store: Store, log: Log, sequence: int) -> int | None:
    """Return the first later sequence that has a manifest; None if there is none."""
    return next(slots_after(store, statements_of(log), sequence), None)
