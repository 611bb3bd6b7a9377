"""Reads what lies behind an empty slot at a log's end: there should be nothing, and anyone can put objects there."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from custody.archive.reader import Holds, Tip, read_valid
from custody.archive.slots import slots_after
from custody.errors import FormatError, ObjectMissing
from custody.format import limits
from custody.store.protocol import Store
from custody.tlog.log import Entry, Form

MOST_BEYOND = limits.PASSED_OVER
"""Objects after an empty slot that are read to see whether one is valid."""

E = TypeVar("E", bound=Entry)


def after_hole(store: Store, form: Form[E], tip: Tip[E], holds: Holds[E]) -> int | None:
    """Return the sequence of a valid entry after an empty slot at a log's tip; None if there is none.

    Raises:
        StoreError: the store does not answer.
    """
    for sequence in islice(beyond_hole(store, form, tip), MOST_BEYOND):
        with suppress(FormatError, ObjectMissing):
            read_valid(store, form, sequence, holds)
            return sequence
    return None


def beyond_hole(store: Store, form: Form[E], tip: Tip[E]) -> Iterator[int]:
    """Yield the sequences of the objects after an empty slot at a log's tip, in order. They may be garbage."""
    if tip.is_last:
        return
    for sequence in slots_after(store, form, tip.size):
        # A writer at work may have put one more since the tip was found.
        if store.exists(form.key(tip.size)):
            return
        yield sequence
