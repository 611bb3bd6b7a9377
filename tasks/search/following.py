"""Follows a log statement by statement, past those that are missing or cannot be read. Each of these is named.

From a remote store, a few statements are read ahead, each with its segment: a request is nearly all waiting.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import NamedTuple

from custody.archive.forms import statements_of
from custody.archive.reader import Holds, read_manifest
from custody.archive.slots import slots_after
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.store.ahead import in_order
from custody.store.protocol import Store, is_local


class New(NamedTuple):
    """A statement, and its segment's bytes if they were read ahead."""

    statement: Statement
    segment: bytes | None


class Following:
    """The statements of one log, in order."""

    def __init__(
        self,
        store: Store,
        log: Log,
        holds: Holds[Manifest],
        begin: int,
        end: int | None,
        threads: Executor,
        *,
        ahead: int,
        most: int,
    ) -> None:
        """Set up. Reads nothing.

        Args:
            store: the archive.
            log: the log.
            holds: whether an entry is valid where it stands.
            begin: the first slot that may be asked for.
            end: no slot from this one on is read ahead. None if it is not known where the log ends.
            threads: read ahead.
            ahead: how many statements wait.
            most: bytes of a segment up to which it is read ahead.
        """
        self._store, self._log, self._holds, self._most = store, log, holds, most
        self._wanted = begin
        self._is_known = end is not None
        """Whether the next slot is known to be taken, or likely."""
        # In a folder nothing is read ahead.
        slots = self._slots(begin if is_local(store) else end)
        self._read_ahead = in_order(threads, self._read, slots, ahead)

    def next(self, sequence: int, *, holes: bool) -> tuple[New | None, dict[int, str]]:
        """Return the first readable statement from a sequence on, and the problems of those before it.

        Args:
            sequence: where to begin, behind the statement that was returned last.
            holes: as for `next_statement`.

        Raises:
            StoreError: the store does not answer.
        """
        self._wanted = sequence
        if self._is_known:
            for number, new in self._read_ahead:
                if number == sequence and new is not None:
                    return new, {}
                if number >= sequence:
                    break
        statement, unread = next_statement(self._store, self._log, sequence, self._holds, holes=holes)
        # Most logs have nothing new. Where there is a statement, more may follow.
        self._is_known = self._is_known or statement is not None
        return None if statement is None else New(statement, None), unread

    def _slots(self, end: int | None) -> Iterator[int]:
        """Yield what to read ahead: from the slot on that is wanted, which may be far behind those that are waiting."""
        number = self._wanted
        while end is None or number < end:
            yield number
            number = max(number + 1, self._wanted)

    def _read(self, sequence: int) -> tuple[int, New | None]:
        try:
            return sequence, read_new(self._store, self._log, sequence, self._holds, self._most)
        except CustodyError:
            # Nobody may want this slot. Who does reads it again.
            return sequence, None


def read_new(store: Store, log: Log, sequence: int, holds: Holds[Manifest], most: int) -> New | None:
    """Return a slot's statement, with the bytes of its segment unless these are more than `most`, or than it states.

    None if there is no valid statement.

    Raises:
        StoreError: the store does not answer.
    """
    try:
        statement = read_manifest(store, log, sequence, holds).statement
    except (FormatError, ObjectMissing):
        return None
    segment: bytes | None = None
    if statement.segment is not None and statement.segment.size <= most:
        # Who needs it reads it again then, and names what is wrong.
        with suppress(FormatError, ObjectMissing, ObjectArchived):
            segment = store.read(statement.segment.key, limit=statement.segment.size)
    return New(statement, segment)


def read_segment(store: Store, key: str) -> bytes:
    """Return a segment's bytes.

    Raises:
        FormatError: it is larger than a segment may be.
        StoreError: it cannot be read; ObjectMissing and ObjectArchived say why.
    """
    return store.read(key, limit=limits.SEGMENT_BYTES)


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
