"""Rules 7 to 9 of FORMAT.md, Verification: the stored bytes of a statement's objects, and the lines in them.

This part runs in worker processes. It reads a statement's objects through the store, and returns findings and figures.
Every size in a statement is only a claim: objects are read in pieces, and never inflated beyond the stated size or the
format's limits.
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
    """Check the objects of one statement. Never raises; problems are in the outcome.

    Args:
        store: the archive.
        work: what the statement says about them.
        sink: gets each batch that inflates to the stated bytes.
        salts: returns the salts to check `leaves` with; without it, leaves are not checked.
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
            message = f"the object cannot be read: {error}"
            outcome.findings.append(finding("unreadable", message, log=work.log, sequence=work.sequence, key=ref.key))
    return outcome


def _check_archived(store: Store, work: Work, ref: SegmentRef | QuarantineRef) -> Finding:
    """Check an object that must be restored before reading, by the digest that the store keeps (rule 9)."""
    where: dict[str, Any] = {"log": work.log, "sequence": work.sequence, "key": ref.key}
    try:
        status = store.status(ref.key)
    except CustodyError as error:
        return finding(
            "unreadable", f"the status of the object, in an archive storage class, cannot be read: {error}", **where
        )
    if status.size != ref.size:
        message = "the object, in an archive storage class, does not have the stated size"
        expected, found = f"{ref.size} bytes", f"{status.size} bytes"
        digest = status.sha256 or loss_digest(ref.key, expected, found)
        return finding("segment-size", message, expected=expected, found=found, sha256=digest, **where)
    if status.sha256 is None:
        message = (
            f"the object is in an archive storage class ({status.storage_class}), and the store has no SHA-256 of it"
        )
        return finding("unreadable", message, **where)
    if status.sha256 != ref.sha256:
        message = "the store's SHA-256 of the object, in an archive storage class, is not the stated one"
        return finding(
            "segment-hash",
            message,
            expected=f"SHA-256 {ref.sha256}",
            found=status.sha256,
            sha256=status.sha256,
            **where,
        )
    message = (
        f"the object is in an archive storage class ({status.storage_class}): only the store's SHA-256 was checked"
    )
    return finding("deferred", message, **where)
