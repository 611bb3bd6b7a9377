"""Finds the statements of a log that have an offset or a time.

Searches for an offset take O(log n) reads. Clocks go wrong, so times follow no order: searches for a time read every
manifest that may have been sealed then. Which these are, the index by time says (`time_index`); without one, or where
it covers nothing, they are all. All searches step over slots without a valid entry in the same way: if a later entry
passes over it, they do too. The parameter `holds` is that of `reader`.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from custody.archive.hints import unmisled
from custody.archive.reader import Holds, find_tip, manifests_from, read_manifest
from custody.archive.time_index import EMPTY, TimeIndex
from custody.errors import ConfigurationError, FormatError, ObjectMissing
from custody.format import limits
from custody.format.layout import Log
from custody.format.manifest import Manifest, Statement
from custody.format.offsets import kind_of, reason_of
from custody.format.times import parse_time
from custody.store.ahead import call_ahead
from custody.store.protocol import Store

_SLOW = 1
"""Guesses in a row, each of which left more than half, after which the next one is in the middle."""


def first_sequence(
    store: Store,
    log: Log,
    size: int,
    wanted: Callable[[Statement], bool],
    holds: Holds[Manifest],
) -> int:
    """Return the first wanted one of a log's `size` sequences, `size` if there is none, in O(log n) reads.

    Args:
        store: the archive.
        log: the log.
        size: how many slots are searched.
        wanted: false for all statements before some sequence, true from there on.
        holds: whether an entry is valid where it stands.

    Raises:
        ObjectMissing: a manifest that was needed does not exist.
        FormatError: a manifest does not parse, or is not valid in its slot.
        StoreError: the store does not give it.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        number, entry = at_or_behind(store, log, middle, size, holds)
        if wanted(entry.statement):
            high = middle
        else:
            low = number + 1
    return low


def at_or_behind(store: Store, log: Log, sequence: int, end: int, holds: Holds[Manifest]) -> tuple[int, Manifest]:
    """Return the manifest of a sequence. If its slot was passed over, return the one that passes over it.

    Args:
        store: the archive.
        log: the log.
        sequence: of the slot.
        end: how many slots the log has.
        holds: whether an entry is valid where it stands.

    Raises:
        ObjectMissing: the manifest is not there, and was not passed over.
        FormatError: it does not parse, or is not valid there, and was not passed over.
        StoreError: the store does not give it.
    """
    try:
        return sequence, read_manifest(store, log, sequence, holds)
    except (ObjectMissing, FormatError) as error:
        last = min(end, sequence + 1 + limits.PASSED_OVER)
        for number, entry in manifests_from(store, log, sequence + 1, last, holds):
            if number - len(entry.statement.passed_over) <= sequence:
                return number, entry
            raise error from None
        raise


def sealed_between(
    store: Store,
    log: Log,
    size: int,
    since: datetime | None,
    until: datetime | None,
    holds: Holds[Manifest],
    *,
    first: int = 0,
    index: TimeIndex = EMPTY,
) -> Sequence[int]:
    """Return which of a log's sequences `[first, size)` were sealed from `since` on and before `until`, in order.

    If there is a bound, it reads the manifests of which the index does not say enough. Nothing else is sound: days in
    keys are Kafka's, and a copy of an archive has new dates. A slot that was passed over goes with the statement that
    passes over it. Any other slot without a valid statement is included, because its time is not known. Raises
    StoreError if the store does not give one.
    """
    if since is None and until is None:
        return range(first, size)
    chosen: list[int] = []
    for slots, span in index.ranges(log, first, size, lambda span: span.sealed_within(since, until)):
        if span is not None and not span.sealed_within(since, until):
            continue
        if span is not None and span.all_sealed_within(since, until):
            chosen += slots
            continue
        for sequence, statement in _statements(store, log, slots, holds):
            if statement is not None:
                sealed_at = parse_time(statement.sealed_at)
                if (since and sealed_at < since) or (until and sealed_at >= until):
                    while chosen and chosen[-1] >= sequence - len(statement.passed_over):
                        chosen.pop()
                    continue
            chosen.append(sequence)
    return chosen


def sealed_from(
    store: Store, log: Log, first: int, moment: datetime, holds: Holds[Manifest], index: TimeIndex = EMPTY
) -> int:
    """Return where, from an offset on, a log's first statement sealed at or after a time begins; else the log's end.

    Reads each manifest up to there, unless the index says that it was sealed before. So a statement that a wrong clock
    sealed long ago makes no later one old. Raises as `first_sequence`.
    """
    tip = find_tip(store, log, holds)
    size = tip.head.size
    start = first_sequence(store, log, size, lambda statement: statement.next_offset > first, holds)
    position: int | None = None
    for slots, span in index.ranges(log, start, size, lambda span: span.sealed_within(moment, None)):
        if span is not None and not span.sealed_within(moment, None):
            if position is not None and span.first_offset != position:
                raise _no_statement(log, slots.start, position)
            position = span.next_offset if slots.stop == span.end else None
            continue
        for sequence, statement in _statements(store, log, slots, holds):
            if statement is None:
                continue
            if position is not None and statement.first_offset != position:
                raise _no_statement(log, sequence, position)
            if parse_time(statement.sealed_at) >= moment:
                return statement.first_offset
            position = statement.next_offset
    return tip.newest.statement.next_offset if tip.newest else 0


def _no_statement(log: Log, sequence: int, position: int) -> FormatError:
    return FormatError(f"no valid statement of {log} before sequence {sequence} has offset {position}")


def _statements(
    store: Store, log: Log, sequences: range, holds: Holds[Manifest]
) -> Iterator[tuple[int, Statement | None]]:
    """Yield some sequences with their statements, None for slots without a valid one. Raises StoreError."""

    def read(sequence: int) -> tuple[int, Statement | None]:
        try:
            return sequence, read_manifest(store, log, sequence, holds).statement
        except (ObjectMissing, FormatError):
            return sequence, None

    return call_ahead(store, read, sequences)


def unknown_offset(log: Log, offset: int) -> ConfigurationError:
    """Return the error for an offset that no statement accounts for."""
    return ConfigurationError(
        f"no statement of {log} accounts for offset {offset}; `custody show {log}` shows its head"
    )


def no_event(log: Log, sequence: int, statement: Statement, offset: int) -> ConfigurationError:
    """Return the error for an offset at which a statement has no event: it names the statement, and says why."""
    kept = kind_of(statement, offset) == "quarantined"
    advice = f"`custody show {log}@{offset}` shows the record" if kept else f"`custody show {log}/{sequence}` shows it"
    return ConfigurationError(
        f"{log} has no event at offset {offset}: {reason_of(statement, offset)}, by statement {sequence}; {advice}"
    )


def find_statement(
    store: Store, log: Log, offset: int, holds: Holds[Manifest], near: int = 0
) -> tuple[int, Manifest] | None:
    """Return the sequence and manifest that account for an offset, None if none does. Raises as `first_sequence`.

    Args:
        store: the archive.
        log: the log.
        offset: of the record in Kafka.
        holds: whether an entry is valid where it stands.
        near: a size that the log may have, from who is trusted: see `hints`. A wrong one only costs requests.
    """

    def search(near: int) -> tuple[int, Manifest] | None:
        end = _entry_before(store, log, near, holds)
        if end is None or end[1].statement.next_offset <= offset:
            tip = find_tip(store, log, holds, near)
            if tip.newest is None:
                return None
            end = tip.head.size - 1, tip.newest
        return _accounting(store, log, offset, end, holds)

    return unmisled(search, near, lambda accounting: accounting is not None)


def _entry_before(store: Store, log: Log, size: int, holds: Holds[Manifest]) -> tuple[int, Manifest] | None:
    """Return the last entry of a tree of this size, None if it is none or there is no such tree."""
    if not size:
        return None
    try:
        return size - 1, read_manifest(store, log, size - 1, holds)
    except (ObjectMissing, FormatError):
        return None


def _accounting(
    store: Store, log: Log, offset: int, end: tuple[int, Manifest], holds: Holds[Manifest]
) -> tuple[int, Manifest] | None:
    """Return the statement that accounts for an offset: the one at the end, or one before it.

    It looks where the offset would be if all statements had as many. At a steady rate that takes a few reads however
    long the log is. Where this does not get on, it halves what is left, so that it takes O(log n) in any case.
    """
    last, entry = end
    if entry.statement.first_offset <= offset:
        return end if offset < entry.statement.next_offset else None
    # The statement is one of `[low, high)`, which have the offsets `[begin, stop)`.
    low, high = 0, last - len(entry.statement.passed_over)
    begin, stop = 0, entry.statement.first_offset
    guess, slow = 0, 0
    while low < high and begin <= offset < stop:
        width = high - low
        number, entry = at_or_behind(store, log, guess, last + 1, holds)
        statement = entry.statement
        if statement.next_offset <= offset:
            low, begin = number + 1, statement.next_offset
        elif statement.first_offset > offset:
            high, stop = min(guess, number - len(statement.passed_over)), statement.first_offset
        else:
            return number, entry
        slow = 0 if 2 * (high - low) <= width else slow + 1
        share = (1, 2) if slow > _SLOW else (offset - begin, max(stop - begin, 1))
        guess = low + (high - low) * share[0] // share[1]
    return None
