"""Rules 7 to 9 of FORMAT.md, Verification: the stored bytes of a statement's objects, and the lines in them.

This part runs in worker processes. It takes what a statement says of its objects, reads them through the store, and
returns findings and figures. Every size in a statement is a claim: objects are read in pieces, and nothing is inflated
past what is stated, nor past the format's limits.
"""

from collections.abc import Sequence
from typing import Any

from custody.errors import CustodyError, ObjectArchived, ObjectMissing
from custody.findings import Finding, finding, loss_digest
from custody.format.manifest import QuarantineRef, SegmentRef
from custody.store.protocol import Store
from custody.verify.quarantine import check_quarantine
from custody.verify.segments import check_segment
from custody.verify.work import Outcome, Salts, Sink, Work


def check_all(store: Store, works: Sequence[Work], salts: Salts | None = None) -> list[Outcome]:
    """Check the objects of several statements."""
    return [check(store, work, salts=salts) for work in works]


def check(store: Store, work: Work, sink: Sink | None = None, salts: Salts | None = None) -> Outcome:
    """Check the objects of one statement. Whatever the store or the bytes do, the outcome says it.

    Args:
        store: where they lie.
        work: what the statement says of them.
        sink: takes each batch that inflates to the bytes stated.
        salts: gives the salts by which `leaves` are checked; without it they are not.
    """
    outcome = Outcome(work)
    for ref in (work.segment, work.quarantine):
        if ref is None:
            continue
        try:
            if isinstance(ref, SegmentRef):
                check_segment(store, work, ref, outcome, sink, salts)
            else:
                check_quarantine(store, work, ref, outcome)
        except ObjectMissing:
            outcome.missing.append(ref.key)
        except ObjectArchived:
            outcome.findings.append(_check_archived(store, work, ref))
        except CustodyError as error:
            what = f"the object cannot be read: {error}"
            outcome.findings.append(finding("unreadable", what, log=work.log, sequence=work.sequence, key=ref.key))
    return outcome


def _check_archived(store: Store, work: Work, ref: SegmentRef | QuarantineRef) -> Finding:
    """Compare an object that cannot be read without a restore with the digest that the store keeps (rule 9)."""
    where: dict[str, Any] = {"log": work.log, "sequence": work.sequence, "key": ref.key}
    try:
        status = store.status(ref.key)
    except CustodyError as error:
        return finding("unreadable", f"the archived object cannot be looked at: {error}", **where)
    if status.size != ref.size:
        what = "the archived object has another size than stated"
        expected, found = f"{ref.size} bytes", f"{status.size} bytes"
        digest = status.sha256 or loss_digest(ref.key, expected, found)
        return finding("segment-size", what, expected=expected, found=found, sha256=digest, **where)
    if status.sha256 is None:
        what = f"the object is archived ({status.storage_class}), and the store keeps no SHA-256 of it"
        return finding("unreadable", what, **where)
    if status.sha256 != ref.sha256:
        what = "the store's SHA-256 of the archived object is not the one stated"
        return finding(
            "segment-hash", what, expected=f"SHA-256 {ref.sha256}", found=status.sha256, sha256=status.sha256, **where
        )
    what = f"the object is archived ({status.storage_class}): checked by the SHA-256 that the store keeps"
    return finding("deferred", what, **where)
