"""Finds the newest audit that read anything: what it hands on is in the objects that it refers to."""

from custody.archive.forms import AUDITS
from custody.archive.reader import read_audit
from custody.archive.trusted import Judge
from custody.errors import FormatError, ObjectMissing
from custody.format import layout
from custody.format.audit import Audit
from custody.keys.trust import Trust
from custody.store.protocol import Store

_ROLLS = 1_000
"""The most records of the roll between two audits."""


def is_of_roll(audit: Audit) -> bool:
    """Return whether an audit only records what the roll did. Each other one counts its findings, also if none."""
    return "findings" not in audit.counts


def newest_reading(store: Store, archive: str | None, trust: Trust, size: int, *, signed: bool = True) -> Audit | None:
    """Return the newest of the first `size` audits that counts and is no record of a roll; None if there is none.

    Args:
        store: the archive.
        archive: its id; None if it is not known and not checked.
        trust: the keys.
        size: how many audits there are.
        signed: whether only an audit counts that a trusted key signed; otherwise any of this archive and slot does.
    """
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    for sequence in range(size - 1, max(size - 1 - _ROLLS, -1), -1):
        try:
            entry = read_audit(store, sequence, judge.is_of_place)
        except (ObjectMissing, FormatError):
            continue
        if not is_of_roll(entry.statement) and (not signed or judge.verdict(entry, sequence).clean):
            return entry.statement
    return None
