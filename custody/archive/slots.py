"""Finds which slots of a log have an object.

A bucket lists keys in order, from any key on. A folder returns all of its names in any order, which takes the longer
the older the archive is; to look for one name takes microseconds. So in a folder, the slots of a long log are looked
for one by one. What lies behind a hole is found if it is within as many slots as an entry may pass over. Farther away
only some slots are looked for, and all are listed if one of these has an object. The nightly audit lists the folder
when it reads a log's first statements again, and `custody verify` always does: they find the rest.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from operator import attrgetter
from typing import Any

from custody.format import layout, limits
from custody.store.protocol import Store, is_local
from custody.tlog.log import Form

_LOOKED_FOR = 10_000
"""Slots that are looked for one by one. If there are more, all are listed."""
_FEW = 5000
"""Below so many slots, a folder is listed: that takes less time than to look for those behind the end."""
_FAR = 1 << 16
"""Up to this distance behind a hole, each 64th slot is looked for: what is left of a log there is seldom shorter."""
_SORTED = 1 << 20
"""Slots of a listing that are kept in memory."""
_MOST = 10**12
"""Above the largest number that a key can have."""


def sequence_of(key: str) -> int | None:
    """Return the sequence in the key of a manifest or an audit."""
    parsed = layout.parse_manifest_key(key)
    return parsed[1] if parsed else layout.parse_audit_key(key)


def slots_after(store: Store, form: Form[Any], low: int) -> Iterator[int]:
    """Yield the slots after `low` that have an object, in order. `low` may be -1. The objects may be garbage.

    In a folder, what lies far behind a hole of a long log may be left out.

    Raises:
        StoreError: the store does not answer.
    """
    if not is_local(store):
        yield from _listed(store, form, low)
        return
    if low >= _FEW:
        last, number = low, low + 1
        while number <= min(last + 1 + limits.PASSED_OVER, low + _LOOKED_FOR):
            if store.exists(form.key(number)):
                last = number
                yield number
            number += 1
        if number <= low + _LOOKED_FOR and not _is_far_behind(store, form, last):
            return
        low = number - 1
    while True:
        several = nsmallest(_SORTED, _listed(store, form, low))
        yield from several
        if len(several) < _SORTED:
            return
        low = several[-1]


def _listed(store: Store, form: Form[Any], low: int) -> Iterator[int]:
    """Yield the slots after `low` that are listed: in the store's order."""
    for info in store.list(form.prefix, after=form.key(low) if low >= 0 else form.prefix):
        number = sequence_of(info.key)
        if number is not None and number > low:
            yield number


def _is_far_behind(store: Store, form: Form[Any], last: int) -> bool:
    """Return whether one of the slots at distances 1024, 1088, 1152 … 65,536, 131,072, 262,144 … has an object."""
    begin = 1 << limits.PASSED_OVER.bit_length()
    steps = (*range(begin, _FAR, 64), *(1 << power for power in range(_FAR.bit_length() - 1, _MOST.bit_length())))
    return any(store.exists(form.key(last + step)) for step in steps if last + step < _MOST)


def end_of(store: Store, form: Form[Any]) -> Callable[[int], bool]:
    """Return what says whether no slot after one has an object. Within a hole it looks for what follows only once."""
    met = -1

    def is_last(number: int) -> bool:
        nonlocal met
        # Threads may ask at once: each answers by what it has seen itself.
        following = met
        if number >= following:
            met = following = next(slots_after(store, form, number), -1)
        return following < 0

    return is_last


class Slots:
    """The slots of a log that have an object, in ranges that were looked for. The objects may be garbage."""

    def __init__(self, store: Store, form: Form[Any], ranges: Iterable[range]) -> None:
        """Look for disjoint ranges of slots; adjacent ones at once. Raises StoreError if the store does not answer."""
        runs: list[range] = []
        for each in sorted(filter(None, ranges), key=attrgetter("start")):
            if runs and runs[-1].stop == each.start:
                runs[-1] = range(runs[-1].start, each.stop)
            else:
                runs.append(each)
        self._starts = [run.start for run in runs]
        self._used = [_used(store, form, run) for run in runs]

    def __contains__(self, slot: int) -> bool:
        """Return whether a slot was looked for, and has an object."""
        index = bisect_right(self._starts, slot) - 1
        if index < 0:
            return False
        used, position = self._used[index], slot - self._starts[index]
        return position < len(used) and bool(used[position])


def _used(store: Store, form: Form[Any], run: range) -> bytearray:
    if is_local(store):
        return bytearray(store.exists(form.key(slot)) for slot in run)
    # A byte for each: there may be millions.
    used = bytearray(len(run))
    after = form.key(run.start - 1) if run.start else form.prefix
    for info in store.list(form.prefix, after=after, through=form.key(run.stop - 1)):
        slot = sequence_of(info.key)
        if slot is not None and slot in run:
            used[slot - run.start] = 1
    return used
