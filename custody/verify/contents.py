"""Rules 7 to 9 of FORMAT.md, Verification: the stored bytes of a statement's objects, and the lines in them.

This part runs in worker processes. It reads a statement's objects through the store, and returns findings and figures.
Every size in a statement is only a claim: objects are read in pieces, and never inflated beyond the stated size or the
format's limits.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.findings import Finding, finding, loss_digest
from custody.format import limits
from custody.format.manifest import Batch, QuarantineRef, SegmentRef
from custody.format.quarantine import parse_quarantined, quarantine_lines
from custody.store.ahead import call_ahead
from custody.store.pieces import read_pieces
from custody.store.protocol import ObjectStatus, Store
from custody.verify.segments import check_segment
from custody.verify.work import Outcome, Salts, Sink, Work

_SMALL = 4 * limits.MIB
"""Bytes of a statement's objects, stored and inflated, up to which they are read ahead. To transfer and to check more
takes longer than to wait for an answer."""
_SEVERAL = 16
"""Statements whose objects are read at once."""
Archived = set[tuple[str, type[SegmentRef | QuarantineRef]]]
"""Logs and kinds of objects of which the last one was in an archive storage class."""


class _Held:
    """Holds the batches of a statement for a sink, which gets them in its turn."""

    def __init__(self) -> None:
        self._batches: list[tuple[Batch, bytes]] = []

    def add(self, _: Work, batch: Batch, payload: bytes) -> None:
        self._batches.append((batch, payload))

    def give(self, work: Work, sink: Sink) -> None:
        """Pass the batches on."""
        for batch, payload in self._batches:
            sink.add(work, batch, payload)


def check_several(
    store: Store,
    works: Sequence[Work],
    sink: Sink | None = None,
    salts: Salts | None = None,
    archived: Archived | None = None,
) -> Iterator[Outcome]:
    """Check the objects of several statements, and yield the outcomes in their order; as `check`.

    From a remote store, the small ones are read at once. What the sink gets comes in order all the same.
    """

    def begin(work: Work) -> tuple[Outcome, _Held] | None:
        """Check what is small. None for the others, in their turn."""
        if _stored(work) + work.weight > _SMALL:
            return None
        held = _Held()
        return check(store, work, held if sink else None, salts, archived), held

    for work, begun in zip(works, call_ahead(store, begin, works, _SEVERAL), strict=True):
        if begun is None:
            yield check(store, work, sink, salts, archived)
            continue
        outcome, held = begun
        if sink:
            held.give(work, sink)
        yield outcome


def _stored(work: Work) -> int:
    return sum(ref.size for ref in (work.segment, work.quarantine) if ref)


def check(
    store: Store,
    work: Work,
    sink: Sink | None = None,
    salts: Salts | None = None,
    archived: Archived | None = None,
) -> Outcome:
    """Check the objects of one statement. Never raises; problems are in the outcome.

    Args:
        store: the archive.
        work: what the statement says about them.
        sink: gets each batch that inflates to the stated bytes.
        salts: returns the salts to check `leaves` with; without it, leaves are not checked.
        archived: logs and kinds of objects of which the last one was in an archive storage class. The next one most
            likely is too, so its status is asked for first: one request instead of two. Kept up to date.
    """
    outcome = Outcome(work)
    archived = set() if archived is None else archived
    for ref in (work.segment, work.quarantine):
        if ref is None:
            continue
        try:
            if (status := _status_if_archived(store, work, ref, archived)) is not None:
                outcome.findings.append(_archived(work, ref, status))
                continue
            if isinstance(ref, SegmentRef):
                check_segment(store, work, ref, outcome, sink, salts)
            else:
                _check_quarantine(store, work, ref, outcome)
        except ObjectMissing:
            outcome.missing.append(ref.key)
        except ObjectArchived:
            outcome.findings.append(_check_archived(store, work, ref, archived))
        except CustodyError as error:
            message = f"the object cannot be read: {error}"
            outcome.findings.append(finding("unreadable", message, log=work.log, sequence=work.sequence, key=ref.key))
    return outcome


def _status_if_archived(
    store: Store, work: Work, ref: SegmentRef | QuarantineRef, archived: Archived
) -> ObjectStatus | None:
    """Return the status of an archived object, if the log's last one of its kind was archived; None: it is to be read.

    Raises:
        ObjectMissing: there is none.
    """
    if (work.log, type(ref)) not in archived:
        return None
    try:
        status = store.status(ref.key)
    except ObjectMissing:
        raise
    except CustodyError:
        # To read it says what is wrong.
        return None
    if status.archived:
        return status
    archived.discard((work.log, type(ref)))
    return None


def _check_archived(store: Store, work: Work, ref: SegmentRef | QuarantineRef, archived: Archived) -> Finding:
    """Check an object that the store did not give, because it must be restored before."""
    try:
        status = store.status(ref.key)
    except CustodyError as error:
        message = f"the status of the object, in an archive storage class, cannot be read: {error}"
        return finding("unreadable", message, log=work.log, sequence=work.sequence, key=ref.key)
    if status.archived:
        archived.add((work.log, type(ref)))
    return _archived(work, ref, status)


def _archived(work: Work, ref: SegmentRef | QuarantineRef, status: ObjectStatus) -> Finding:
    """Check an object in an archive storage class by the digest that the store keeps (rule 9)."""
    where: dict[str, Any] = {"log": work.log, "sequence": work.sequence, "key": ref.key}
    if status.size != ref.size:
        message = "the object, in an archive storage class, does not have the stated size"
        expected, actual = f"{ref.size} bytes", f"{status.size} bytes"
        digest = status.sha256 or loss_digest(ref.key, expected, actual)
        return finding("segment-size", message, expected=expected, found=actual, sha256=digest, **where)
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


def _check_quarantine(store: Store, work: Work, ref: QuarantineRef, outcome: Outcome) -> None:
    """Check a statement's quarantine object, and add findings and figures to the outcome.

    Raises:
        StoreError: it cannot be read.
    """
    digest = sha256()
    size = 0
    # Kept for the second pass if it is the whole object.
    first = b""
    for data in read_pieces(store, ref.key, limits.QUARANTINE_BYTES + 1):
        first = first or data
        digest.update(data)
        size += len(data)
    outcome.stored += size
    where: dict[str, Any] = {"log": work.log, "sequence": work.sequence, "key": ref.key, "sha256": digest.hexdigest()}
    if not size:
        # An empty object is read like any other; the size check below reports it.
        store.read(ref.key, limit=1, size=1)
    if size != ref.size:
        outcome.findings.append(
            finding("segment-size", "the quarantine object does not have the stated size",
                    expected=f"{ref.size} bytes", found=f"{size} bytes", **where)
        )  # fmt: skip
        return
    if digest.hexdigest() != ref.sha256:
        outcome.findings.append(
            finding("segment-hash", "the bytes of the quarantine object are not the stated ones",
                    expected=f"SHA-256 {ref.sha256}", found=digest.hexdigest(), **where)
        )  # fmt: skip
        return
    pieces = iter([first]) if len(first) == size else read_pieces(store, ref.key, ref.size)
    fault = _check_records(pieces, ref, outcome, where)
    if fault is not None:
        outcome.findings.append(fault)


def _check_records(
    pieces: Iterator[bytes], ref: QuarantineRef, outcome: Outcome, where: dict[str, Any]
) -> Finding | None:
    """Return the first finding about the records of a quarantine object's bytes, None if there is none."""
    offsets = (offset for start, end in ref.offsets for offset in range(start, end))
    records = 0
    try:
        for line in quarantine_lines(pieces, ref.size, ref.inflated):
            records += 1
            outcome.inflated += len(line) + 1
            offset = next(offsets, None)
            try:
                stored = parse_quarantined(line).offset
            except FormatError as error:
                return finding("quarantine", f"line {records}: {error}", offset=offset, **where)
            if stored != offset:
                message = f"line {records} is not the stated record"
                return finding("quarantine", message, offset=offset, expected=f"offset {offset}",
                               found=f"offset {stored}", **where)  # fmt: skip
    except FormatError as error:
        return finding("gzip", f"the quarantine object: {error}", **where)
    missed = next(offsets, None)
    if missed is None and records == ref.records:
        return None
    return finding("quarantine", "the quarantine object has fewer records than stated", offset=missed,
                   expected=f"{ref.records} records", found=f"{records} records", **where)  # fmt: skip
