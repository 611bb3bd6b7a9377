"""What was done to a segment whose bytes are not the stated ones: bytes added or missing, or batches damaged."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from custody.errors import FormatError
from custody.findings import Finding, finding
from custody.format import limits
from custody.format.manifest import Batch, SegmentRef
from custody.format.members import inflate_batch, inflate_stream
from custody.store.pieces import read_pieces
from custody.store.protocol import Store
from custody.verify.work import Work


def segment_finding(work: Work, name: str, message: str, batch: Batch | None, **more: Any) -> Finding:
    """Return a finding about a statement's segment, or about one of its batches."""
    ref = work.segment
    return finding(
        name,
        message,
        log=work.log,
        sequence=work.sequence,
        batch=batch.number if batch else None,
        offset=more.pop("offset", batch.first_offset if batch else None),
        key=ref.key if ref else None,
        sha256=more.pop("sha256", ref.sha256 if ref else None),
        **more,
    )


def diagnose(store: Store, work: Work, ref: SegmentRef, broken: Sequence[int]) -> Finding:
    """Return a finding that says what was done to a segment.

    Args:
        store: the archive.
        work: what its statement says.
        ref: the segment.
        broken: numbers of the batches that do not match the statement.

    Raises:
        StoreError: it cannot be read.
    """
    digest = sha256()
    size = 0
    for data in read_pieces(store, ref.key, limits.SEGMENT_BYTES):
        digest.update(data)
        size += len(data)
    added = size - ref.size
    intact = _events_intact(store, work, ref)
    if added and (not intact or _is_stuffed(store, work, ref, added)):
        message = (
            f"{added} bytes were added to the object" if added > 0 else f"{-added} bytes of the object are missing"
        )
        return segment_finding(
            work, "segment-size", message, None,
            expected=f"{ref.size} bytes", found=f"{size} bytes", sha256=digest.hexdigest(),
        )  # fmt: skip
    message = "the stored bytes are not those stated"
    if intact:
        damaged = None
        message += "; the events are intact (recompressed, or only gzip headers changed)"
    else:
        numbers = ", ".join(map(str, broken[:10])) + (", …" if len(broken) > 10 else "")
        damaged = next((batch for batch in work.batches if batch.number in broken), None)
        message += f"; {len(broken)} of {len(work.batches)} batches are damaged ({numbers}), the others are intact"
    return segment_finding(
        work, "segment-hash", message, damaged,
        expected=f"SHA-256 {ref.sha256}", found=digest.hexdigest(), sha256=digest.hexdigest(),
    )  # fmt: skip


def _events_intact(store: Store, work: Work, ref: SegmentRef) -> bool:
    """Return whether the object, whatever its bytes, still inflates to exactly the stated batches."""
    batches = sorted(work.batches, key=lambda batch: batch.start)
    wanted = iter(batches)
    batch = next(wanted, None)
    digest = sha256()
    missing = batch.inflated if batch else 0
    try:
        pieces = read_pieces(store, ref.key, limits.SEGMENT_BYTES)
        for chunk in inflate_stream(pieces, sum(batch.inflated for batch in batches), any_header=True):
            rest = memoryview(chunk)
            while rest:
                if batch is None:
                    return False
                digest.update(rest[:missing])
                rest, missing = rest[missing:], max(missing - len(rest), 0)
                if not missing:
                    if digest.hexdigest() != batch.sha256:
                        return False
                    batch = next(wanted, None)
                    digest = sha256()
                    missing = batch.inflated if batch else 0
    except FormatError:
        return False
    return batch is None


def _is_stuffed(store: Store, work: Work, ref: SegmentRef, added: int) -> bool:
    """Return whether all members are as stated, and bytes were only added before, between or after them."""
    shift = 0
    for batch in sorted(work.batches, key=lambda batch: batch.start):
        if batch.size > limits.MEMBER_BYTES or added < 0:
            return False
        for step in (shift, added):
            member = store.read(ref.key, limit=batch.size, start=batch.start + step, size=batch.size)
            try:
                inflate_batch(batch, member)
            except FormatError:
                continue
            shift = step
            break
        else:
            return False
    return True
