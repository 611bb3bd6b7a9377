"""Reads where logs end by the newest audit that a trusted key signed.

Where a signature of a statement cannot be checked, such as with public keys alone, nothing but this may steer a search:
`guesses` takes any audit, and whoever can write into the store can put one.
"""

from collections.abc import Mapping

from custody.archive.forms import AUDITS
from custody.archive.reader import find_end
from custody.archive.trusted import Judge
from custody.errors import CustodyError, TransientStoreError
from custody.format import layout
from custody.format.audit import SignedAudit
from custody.keys.trust import Trust
from custody.store.protocol import Store


def audited_sizes(store: Store, archive: str, trust: Trust, hint: int = 0) -> Mapping[str, int]:
    """Return the size of each log at the newest audit whose signature was checked and is good.

    It is empty if there is none, or if no key at hand can check it: then a search begins without a hint.

    Args:
        store: the archive's storage.
        archive: the archive's id. The audit of another archive with the same keys says nothing about this one.
        trust: the available keys.
        hint: a number of audits that there may be.

    Raises:
        StoreError: the store does not answer.
    """
    if not trust.keys:
        return {}
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)

    def is_signed(audit: SignedAudit, sequence: int) -> bool:
        return judge.is_of_place(audit, sequence) and judge.verdict(audit, sequence).counts

    try:
        newest = find_end(store, AUDITS, is_signed, hint).newest
    except TransientStoreError:
        raise
    except CustodyError:
        return {}
    return {name: head.size for name, head in newest.statement.heads.items()} if newest else {}
