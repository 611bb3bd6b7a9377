"""Rules 7 and 8 for a segment: its bytes, its members, and their lines. If the bytes differ, `diagnose` says how."""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256

from custody.errors import FormatError
from custody.findings import Finding
from custody.format import leaves, limits, lines
from custody.format.manifest import Batch, SegmentRef
from custody.format.members import inflate_batch
from custody.format.offsets import offset_of
from custody.format.times import microseconds_of, parse_time
from custody.store.pieces import PIECE
from custody.store.protocol import Store
from custody.verify.diagnose import diagnose, segment_finding
from custody.verify.work import Outcome, Salts, Sink, Work


def check_segment(
    store: Store, work: Work, ref: SegmentRef, outcome: Outcome, sink: Sink | None, salts: Salts | None
) -> None:
    """Check a statement's segment, and add findings and figures to the outcome.

    Raises:
        StoreError: it cannot be read.
    """
    digest = sha256()
    read = 0
    faults: list[Finding] = []
    broken: list[int] = []
    types: Counter[str] = Counter()
    for batch, data in _members(store, ref, sorted(work.batches, key=lambda batch: batch.start)):
        digest.update(data)
        read += len(data)
        if batch is None:
            continue
        try:
            payload = inflate_batch(batch, data)
        except FormatError as error:
            broken.append(batch.number)
            faults.append(segment_finding(work, "gzip", f"the batch does not match the statement: {error}", batch))
            continue
        outcome.inflated += len(payload)
        outcome.events += batch.events
        outcome.findings.extend(_check_lines(work, batch, payload, types))
        if salts is not None and batch.leaves is not None and (made := salts(work, batch)) is not None:
            outcome.findings.extend(_check_leaves(work, batch, payload, made))
        if sink is not None:
            sink.add(work, batch, payload)
        # Free a large payload before the next one is read.
        del payload
    outcome.stored += read
    whole = read == ref.size and not store.read(ref.key, limit=1, start=ref.size, size=1)
    if whole and digest.hexdigest() == ref.sha256:
        outcome.findings.extend(faults)
        if not outcome.findings and types != work.types:
            stated, found = _brief(work.types), _brief(types)
            message = "the event types are not the stated ones"
            outcome.findings.append(segment_finding(work, "event", message, None, expected=stated, found=found))
        return
    outcome.findings.append(diagnose(store, work, ref, broken))


def _brief(types: dict[str, int] | Counter[str]) -> str:
    shown = ", ".join(f"{name[:60]!a}: {count}" for name, count in sorted(types.items())[:12])
    return f"{{{shown}{', …' if len(types) > 12 else ''}}}"


def _members(store: Store, ref: SegmentRef, batches: Sequence[Batch]) -> Iterator[tuple[Batch | None, bytes]]:
    """Yield the segment's bytes, up to the stated size, member by member, each with its batch.

    If the stated members do not cover the segment exactly, or one exceeds the limits, bytes come without a batch: they
    are hashed but not inflated. Stops early if the object is too short.
    """
    position = size = 0
    tiles = True
    run: list[Batch] = []
    for batch in [*batches, None]:
        tiles = tiles and batch is not None and batch.start == position + size
        fits = batch is not None and batch.size <= limits.MEMBER_BYTES and batch.inflated <= limits.BATCH_BYTES
        if tiles and fits and batch is not None and size + batch.size <= PIECE:
            run.append(batch)
            size += batch.size
            continue
        if run:
            data = store.read(ref.key, limit=size, start=position, size=size)
            at = 0
            for one in run:
                yield one, data[at : at + one.size]
                at += one.size
            position += size
            if len(data) < size:
                return
            run, size = [], 0
        if batch is None or not tiles:
            break
        if fits:
            run, size = [batch], batch.size
            continue
        yield batch, b""
        end = position + batch.size
        while position < end:
            data = store.read(ref.key, limit=PIECE, start=position, size=min(PIECE, end - position))
            yield None, data
            position += len(data)
            if not data:
                return
    while position < min(ref.size, limits.SEGMENT_BYTES):
        data = store.read(ref.key, limit=PIECE, start=position, size=min(PIECE, ref.size - position))
        yield None, data
        position += len(data)
        if not data:
            return


def _check_lines(work: Work, batch: Batch, payload: bytes, types: Counter[str]) -> Iterator[Finding]:
    found = lines.check(payload)
    types.update(found.types)
    if found.faults:
        fault = found.faults[0]
        more = f" (and {len(found.faults) - 1} more lines of this batch)" if len(found.faults) > 1 else ""
        yield segment_finding(
            work,
            "gzip" if _is_oversize(payload, fault.byte) else "event",
            f"line {fault.line + 1} of the batch is not an event: {fault.reason}{more}",
            batch,
            offset=offset_of(batch, work.unlined, fault.line),
            byte=fault.byte,
        )
    if found.count != batch.events:
        yield segment_finding(
            work, "event", "the batch does not have the stated number of lines", batch,
            expected=str(batch.events), found=str(found.count),
        )  # fmt: skip
    if found.faults or found.count != batch.events:
        return
    for name, stated, time in (("min_time", batch.min_time, found.first), ("max_time", batch.max_time, found.last)):
        if time is None:
            continue
        micros, more_behind = time.microseconds
        off = microseconds_of(parse_time(stated)) - micros
        if not -1000 <= off <= 1000 or (off == -1000 and more_behind):
            message = f"{name} is more than 1 ms off the outermost event"
            yield segment_finding(work, "event", message, batch, expected=stated, found=str(time))


def _check_leaves(work: Work, batch: Batch, payload: bytes, salts: bytes) -> Iterator[Finding]:
    """Compare a batch's `leaves` with its events. A wrong number of events is already reported."""
    events = leaves.split(payload)
    if batch.leaves is None or len(salts) != leaves.SALT_BYTES * len(events):
        return
    root = leaves.root(events, salts)
    if root != batch.leaves.sha256:
        yield segment_finding(
            work, "leaves", "the batch's leaves are not those of its events", batch,
            expected=f"SHA-256 {batch.leaves.sha256}", found=root,
        )  # fmt: skip


def _is_oversize(payload: bytes, start: int) -> bool:
    """Return whether a line is longer than an event may be. No writer makes such a batch, so the member is at fault.

    The search ends at the limit.
    """
    end = payload.find(b"\n", start, start + limits.EVENT_BYTES + 1)
    return end < 0 and len(payload) > start + limits.EVENT_BYTES
