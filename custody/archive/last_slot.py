"""Finds the last slot of a log that has an object, before the first one that has none.

Anyone who can write into the store can put an object into any slot. So what is found may be garbage behind an empty
slot: `reader.find_end` looks.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from custody.archive.slots import slots_after
from custody.errors import FormatError, ObjectMissing
from custody.format import limits
from custody.store.protocol import Store, is_local
from custody.tlog.log import Entry, Form

E = TypeVar("E", bound=Entry)
_Holds = Callable[[E, int], bool]

ANYWHERE: Final = limits.INT_MAX
"""Above the number of each slot."""
_LISTED = 3000
"""Slots that are listed, in three requests, before their end is searched for: nightly audits of eight years."""


def find_last(store: Store, form: Form[E], holds: _Holds[E], hint: int = 0, before: int = ANYWHERE) -> tuple[int, bool]:
    """Return the last slot that is taken before an empty one, and whether it was seen that no later one has an object.

    The slot is -1 if none is taken. An empty one that a later entry passes over ends nothing.

    A listing returns as many slots at once as ten requests would find. In a folder it goes through all entries, and
    other requests are cheap. Elsewhere the first listing shows whether the slot before the hint is taken.

    Args:
        store: the archive.
        form: of the log.
        holds: whether an entry is valid where it stands.
        hint: the probable size of the log. A wrong one only costs requests.
        before: only slots before this one are looked at.

    Raises:
        StoreError: the store does not answer.
    """
    find = partial(before_hole, lambda sequence: sequence < before and store.exists(form.key(sequence)))
    low = find(hint) if is_local(store) else max(hint - 2, -1)
    hinted = low >= 0 and not is_local(store)
    while True:
        last, further, is_last = _listed_after(store, form, low, holds, before)
        if hinted and last == low:
            low, hinted = -1, False
            continue
        hinted = False
        if further is None and last - low < _LISTED:
            return last, is_last
        low = find((last if further is None else further) + 1, near=1 if is_local(store) else _LISTED)


def before_hole(exists: Callable[[int], bool], hint: int = 0, near: int = 1) -> int:
    """Return a number at most `near` before the first hole, by asking `exists`; -1 if there may be none.

    With `near` 1 it is the last number before the hole. `hint` may be the one after the last.
    """
    low = hint - 1 if hint > 0 and exists(hint - 1) else -1
    step = near
    while exists(low + step):
        low += step
        step *= 2
    high = low + step
    while high - low > near:
        middle = (low + high) // 2
        low, high = (middle, high) if exists(middle) else (low, middle)
    return low


def _listed_after(store: Store, form: Form[E], low: int, holds: _Holds[E], before: int) -> tuple[int, int | None, bool]:
    """Return the last slot that is taken after `low`, and the first entry that passes over empty ones after that.

    And whether no later slot has an object. `low` is a slot that is taken, or -1. At most `_LISTED` slots after it are
    looked at, and none from `before` on.
    """
    last, is_last = low, True
    for number in slots_after(store, form, low):
        if number >= before or number > last + 1 + limits.PASSED_OVER or last - low == _LISTED:
            return last, None, False
        if number == last + 1:
            last = number
            continue
        is_last = False
        entry = valid_entry(store, form, number, holds)
        if entry is not None and number - len(entry.statement.passed_over) <= last + 1:
            return last, number, False
    return last, None, is_last


def parse_valid(form: Form[E], data: bytes, sequence: int, holds: _Holds[E]) -> E | None:
    """Return the entry in a slot's bytes, if it is valid there."""
    try:
        entry = form.parse(data)
    except FormatError:
        return None
    return entry if holds(entry, sequence) else None


def valid_entry(store: Store, form: Form[E], sequence: int, holds: _Holds[E]) -> E | None:
    """Return the entry in a slot, if one is there and valid. Raises StoreError if the store does not answer."""
    try:
        return parse_valid(form, store.read(form.key(sequence), limit=limits.FILE_BYTES), sequence, holds)
    except (ObjectMissing, FormatError):
        return None
