"""Keeps how far the roll has followed the history of signed times, so that the next one reads what came since.

A signed note holds what `tasks.roll.clock.History` had believed after a number of audits. Rules:

- A note counts only if both of our keys signed it, and if the audits are the same ones: their tree has the root that it
  names. Without such a note the history is followed from its beginning.
- It is written by the first roll, and then once in `EVERY` audits. So there are few, and few audits are read again.
"""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

import msgspec

from custody.archive import signed_notes
from custody.archive.reader import read_audit
from custody.archive.trusted import Judge
from custody.errors import CustodyError, FormatError, KeyUnavailable, ObjectMissing, SignatureInvalid
from custody.format.envelope import Hex, Int, Time, Uuid
from custody.format.times import format_time
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import Head
from tasks.settings import Settings

logger = logging.getLogger("custody.roll")

FORMAT: Literal["custody/roll-clock/1"] = "custody/roll-clock/1"
FOLDER = "reports/clock/"
EVERY = 30
"""Audits between two notes."""
_TRIED = 20
"""Notes that are read, the newest first, until one counts."""
_DIGITS = 12


class Followed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was believed after a number of audits; line 1 of a note.

    Attributes:
        archive: the archive's id.
        sealed_at: when it was signed.
        audits: how many audits were followed.
        root: of the tree over them.
        time: the latest time that was believed.
        next: how many statements of each log were followed.
    """

    format: Literal["custody/roll-clock/1"] = FORMAT
    archive: Uuid
    sealed_at: Time
    audits: Int
    root: Hex
    time: Time
    next: dict[str, Int]


def read_followed(store: Store, archive: str, trust: Trust, audits: Head, judge: Judge) -> Followed | None:
    """Return the newest note that counts; None if there is none.

    Args:
        store: the archive.
        archive: its id.
        trust: the keys.
        audits: the head of the log of audits.
        judge: of that log.

    Raises:
        StoreError: the store does not answer.
    """
    names = (info.key.removeprefix(FOLDER) for info in store.list(FOLDER))
    sizes = sorted({int(name) for name in names if len(name) == _DIGITS and name.isdecimal() and name.isascii()})
    for size in [size for size in sizes if size <= audits.size][: -_TRIED - 1 : -1]:
        with suppress(FormatError, ObjectMissing, SignatureInvalid, KeyUnavailable):
            note = signed_notes.read(store, _key(size), Followed, FORMAT, trust)
            root = audits.root.hex() if size == audits.size else _root_before(store, size, judge)
            if (note.archive, note.audits, note.root) == (archive, size, root):
                return note
    return None


def _root_before(store: Store, sequence: int, judge: Judge) -> str:
    """Return the root of the audits before one, as that one states it."""
    return read_audit(store, sequence, judge.is_of_place).statement.tree.root


def keep_followed(settings: Settings, store: Store, note: Followed, known: Followed | None) -> None:
    """Write a note, if there is none, or not one of nearly as many audits. If that fails, the next roll reads more."""
    if known is not None and note.audits - known.audits < EVERY:
        return
    now = datetime.now(UTC)
    try:
        made = msgspec.structs.replace(note, sealed_at=format_time(now))
        store.create(_key(note.audits), signed_notes.seal(made, FORMAT, settings.signers(now).both()))
    except CustodyError as error:
        logger.warning("the next roll reads the audits from their beginning again: %s", error)


def _key(audits: int) -> str:
    return f"{FOLDER}{audits:0{_DIGITS}}"
