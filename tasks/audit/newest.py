"""Finds the newest audit."""

from collections.abc import Sequence

from custody.archive.forms import AUDITS
from custody.archive.reader import Tip
from custody.archive.resume import find_checked_tip
from custody.archive.trusted import Judge
from custody.format import layout
from custody.format.audit import Audit, SignedAudit
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead


def find_audits(store: Store, archive: str, trust: Trust, known: Sequence[KnownHead] = ()) -> Tip[SignedAudit]:
    """Return the tip of the audits, after which the next one is signed. Raises as `find_checked_tip`."""
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return find_checked_tip(store, layout.AUDIT_LOG, AUDITS, judge, trust, known)


def clean_audit(store: Store, archive: str, trust: Trust, tip: Tip[SignedAudit]) -> Audit | None:
    """Return the newest audit; None if there is none, or if a key signed it outside its span.

    Args:
        store: the archive.
        archive: its id.
        trust: the keys.
        tip: the tip of the audits that trusted keys signed.
    """
    if tip.newest is None:
        return None
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)
    return tip.newest.statement if judge.verdict(tip.newest, tip.head.size - 1).clean else None
