"""Rule 7 for a quarantine object: its bytes, its only member, and a valid line for each stated record."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from custody.errors import FormatError
from custody.findings import Finding, finding
from custody.format import limits
from custody.format.manifest import QuarantineRef
from custody.format.quarantine import parse_quarantined, quarantine_lines
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.verify.work import Outcome, Work


def check_quarantine(store: Store, work: Work, ref: QuarantineRef, outcome: Outcome) -> None:
    """Check a statement's quarantine object, and add findings and figures to the outcome.

    Raises:
        StoreError: it cannot be read.
    """
    digest = sha256()
    size = 0
    for data in read_pieces(store, ref.key, limits.QUARANTINE_BYTES + 1):
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
    fault = _check_records(store, ref, outcome, where)
    if fault is not None:
        outcome.findings.append(fault)


def _check_records(store: Store, ref: QuarantineRef, outcome: Outcome, where: dict[str, Any]) -> Finding | None:
    """Return the first finding about the records, None if there is none."""
    offsets = (offset for start, end in ref.offsets for offset in range(start, end))
    records = 0
    try:
        for line in _lines(store, ref):
            records += 1
            outcome.inflated += len(line) + 1
            offset = next(offsets, None)
            try:
                found = parse_quarantined(line).offset
            except FormatError as error:
                return finding("quarantine", f"line {records}: {error}", offset=offset, **where)
            if found != offset:
                message = f"line {records} is not the stated record"
                return finding("quarantine", message, offset=offset, expected=f"offset {offset}",
                               found=f"offset {found}", **where)  # fmt: skip
    except FormatError as error:
        return finding("gzip", f"the quarantine object: {error}", **where)
    missed = next(offsets, None)
    if missed is None and records == ref.records:
        return None
    return finding("quarantine", "the quarantine object has fewer records than stated", offset=missed,
                   expected=f"{ref.records} records", found=f"{records} records", **where)  # fmt: skip


def _lines(store: Store, ref: QuarantineRef) -> Iterator[bytes]:
    return quarantine_lines(read_pieces(store, ref.key, ref.size), ref.size, ref.inflated)
