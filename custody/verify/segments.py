"""Rules 7 and 8 for a segment: its bytes, its members, and their lines. If the bytes differ, the finding says how."""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from threading import Lock
from typing import Any

from custody.errors import FormatError, counted
from custody.findings import Finding, finding
from custody.format import leaves, limits, lines
from custody.format.manifest import Batch, SegmentRef
from custody.format.members import inflate_batch, inflate_stream
from custody.format.offsets import offset_of
from custody.format.times import microseconds_of, parse_time
from custody.store.pieces import PIECE, read_pieces
from custody.store.protocol import Store
from custody.verify.work import Outcome, Salts, Sink, Work

_diagnosing = Lock()
"""An object is read whole to say what was done to it, and may be much larger than stated: one at a time."""


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
            faults.append(_finding(work, "gzip", f"the batch does not match the statement: {error}", batch))
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
    outcome.stored += min(read, ref.size)
    if read == ref.size and digest.hexdigest() == ref.sha256:
        outcome.findings.extend(faults)
        if not outcome.findings and types != work.types:
            stated, actual = _brief(work.types), _brief(types)
            message = "the event types are not the stated ones"
            outcome.findings.append(_finding(work, "event", message, None, expected=stated, found=actual))
        return
    with _diagnosing:
        outcome.findings.append(_diagnose(store, work, ref, broken))


def _brief(types: dict[str, int] | Counter[str]) -> str:
    shown = ", ".join(f"{name[:60]!a}: {count}" for name, count in sorted(types.items())[:12])
    return f"{{{shown}{', …' if len(types) > 12 else ''}}}"


def _members(store: Store, ref: SegmentRef, batches: Sequence[Batch]) -> Iterator[tuple[Batch | None, bytes]]:
    """Yield the segment's bytes, member by member, each with its batch. Members are read together, up to `PIECE` bytes.

    If the stated members do not cover the segment exactly, or one exceeds the limits, bytes come without a batch: they
    are hashed but not inflated. Stops early if the object is too short. If it is longer than stated, one byte more
    comes: the last read asks for it, so that a small segment takes one request.
    """
    segment = _Segment(store, ref)
    size = 0
    tiles = True
    run: list[Batch] = []
    for batch in [*batches, None]:
        tiles = tiles and batch is not None and batch.start == segment.position + size
        fits = batch is not None and batch.size <= limits.MEMBER_BYTES and batch.inflated <= limits.BATCH_BYTES
        if tiles and fits and batch is not None and size + batch.size <= PIECE:
            run.append(batch)
            size += batch.size
            continue
        if run:
            data = segment.read(size)
            at = 0
            for member in run:
                yield member, data[at : at + member.size]
                at += member.size
            if len(data) != size:
                yield None, data[size:]
                return
            run, size = [], 0
        if batch is None or not tiles:
            break
        if fits:
            run, size = [batch], batch.size
            continue
        yield batch, b""
        end = segment.position + batch.size
        while segment.position < end and (data := segment.read(min(PIECE, end - segment.position))):
            yield None, data
    while data := segment.read(min(PIECE, limits.SEGMENT_BYTES - segment.position)):
        yield None, data


class _Segment:
    """Reads a segment from its beginning to its stated end, and one byte beyond, which no whole segment has."""

    def __init__(self, store: Store, ref: SegmentRef) -> None:
        self._store, self._ref = store, ref
        self.position = 0
        """How many bytes were read."""
        self._over = False

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer if the object ends before. The last read returns the byte beyond too."""
        left = self._ref.size - self.position
        if self._over or size <= 0 or left < 0:
            return b""
        wanted = left + 1 if size >= left else size
        data = self._store.read(self._ref.key, limit=wanted, start=self.position, size=wanted)
        self.position += len(data)
        self._over = len(data) < wanted or wanted > left
        return data


def _check_lines(work: Work, batch: Batch, payload: bytes, types: Counter[str]) -> Iterator[Finding]:
    checked = lines.check(payload)
    types.update(checked.types)
    if checked.faults:
        fault = checked.faults[0]
        more = (
            f" (and {counted(len(checked.faults) - 1, 'more line')} of this batch)" if len(checked.faults) > 1 else ""
        )
        yield _finding(
            work,
            "gzip" if _is_oversize(payload, fault.byte) else "event",
            f"line {fault.line + 1} of the batch is not an event: {fault.reason}{more}",
            batch,
            offset=offset_of(batch, work.unlined, fault.line),
            byte=fault.byte,
        )
    if checked.count != batch.events:
        yield _finding(
            work, "event", "the batch does not have the stated number of lines", batch,
            expected=str(batch.events), found=str(checked.count),
        )  # fmt: skip
    if checked.faults or checked.count != batch.events:
        return
    for name, stated, time in (("min_time", batch.min_time, checked.first), ("max_time", batch.max_time, checked.last)):
        if time is None:
            continue
        micros, more_behind = time.microseconds
        off = microseconds_of(parse_time(stated)) - micros
        if not -1000 <= off <= 1000 or (off == -1000 and more_behind):
            message = f"{name} is more than 1 ms off the outermost event"
            yield _finding(work, "event", message, batch, expected=stated, found=str(time))


def _check_leaves(work: Work, batch: Batch, payload: bytes, salts: bytes) -> Iterator[Finding]:
    """Compare a batch's `leaves` with its events. A wrong number of events is already reported."""
    events = leaves.split(payload)
    if batch.leaves is None or len(salts) != leaves.SALT_BYTES * len(events):
        return
    root = leaves.root(events, salts)
    if root != batch.leaves.sha256:
        yield _finding(
            work, "leaves", "the batch's leaves are not those of its events", batch,
            expected=f"SHA-256 {batch.leaves.sha256}", found=root,
        )  # fmt: skip


def _is_oversize(payload: bytes, start: int) -> bool:
    """Return whether a line is longer than an event may be. No writer makes such a batch, so the member is at fault.

    The search ends at the limit.
    """
    end = payload.find(b"\n", start, start + limits.EVENT_BYTES + 1)
    return end < 0 and len(payload) > start + limits.EVENT_BYTES


def _finding(work: Work, name: str, message: str, batch: Batch | None, **more: Any) -> Finding:
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


def _diagnose(store: Store, work: Work, ref: SegmentRef, broken: Sequence[int]) -> Finding:
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
            f"{counted(added, 'byte was', 'bytes were')} added to the object"
            if added > 0
            else f"{counted(-added, 'byte of the object is', 'bytes of the object are')} missing"
        )
        return _finding(
            work, "segment-size", message, None,
            expected=f"{ref.size} bytes", found=f"{size} bytes", sha256=digest.hexdigest(),
        )  # fmt: skip
    message = "the object's SHA-256 is not the one in the manifest"
    if intact:
        damaged = None
        message += "; the events are intact (recompressed, or only gzip headers changed)"
    else:
        numbers = ", ".join(map(str, broken[:10])) + (", …" if len(broken) > 10 else "")
        damaged = next((batch for batch in work.batches if batch.number in broken), None)
        whole = len(work.batches)
        message += f"; damaged: {len(broken)} of {counted(whole, 'batch', 'batches')} (number {numbers})"
        message += "; the others are intact" if len(broken) < whole else ""
    return _finding(
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
