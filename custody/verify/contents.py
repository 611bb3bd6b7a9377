"""Rules 7 and 8 of FORMAT.md, Verification: the stored bytes of segments and quarantine objects, and the lines in them.

This part runs in worker processes. It takes what a statement says of its objects, reads them through the store, and
returns findings and figures. Every size in a statement is a claim: objects are read in pieces, and nothing is inflated
past what is stated, nor past the format's limits. It is one module because segments and quarantine objects are read,
inflated and bounded by the same code.
"""

import binascii
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Protocol

import msgspec
from isal import igzip_lib, isal_zlib

from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.findings import Finding, finding, loss_digest
from custody.format import leaves, limits, lines
from custody.format.envelope import INT_MAX, Hex, Int
from custody.format.manifest import Batch, QuarantineRef, Range, SegmentRef
from custody.format.times import parse_time
from custody.store.protocol import Store

PIECE = 8 * 1_048_576
"""Bytes of an object that are read at once, unless one member is larger."""

_CHUNK = 1_048_576
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_InflateError: Any = igzip_lib.error
# Deflate, no flags (so no file name), mtime 0: RFC 1952.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"


class Work(msgspec.Struct, frozen=True):
    """What one statement says of its objects."""

    log: str
    sequence: int
    first_offset: int
    next_offset: int
    segment: SegmentRef | None
    batches: Sequence[Batch]
    types: dict[str, int]
    quarantine: QuarantineRef | None
    unlined: Sequence[Range]
    """Offsets of the range that have no line in the segment: skipped, quarantined. Sorted."""
    overdue: bool = False
    """Whether the objects should have been deleted by now."""
    sealed_at: str = ""
    archive: str = ""
    """The archive's id, as stated."""

    @property
    def weight(self) -> int:
        """Bytes to inflate, as stated."""
        return sum(batch.inflated for batch in self.batches) + (self.quarantine.inflated if self.quarantine else 0)


@dataclass(slots=True)
class Outcome:
    """What was found in a statement's objects."""

    work: Work
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Keys of objects that are not there: whether they may be gone is for the log to say."""
    events: int = 0
    stored: int = 0
    inflated: int = 0


class Sink(Protocol):
    """Takes the bytes that verification has inflated, so that what is made of them reads them no second time."""

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Take a batch of JSON lines whose bytes are those stated. Batches come in order of their log."""
        ...


Salts = Callable[[Work, Batch], bytes | None]
"""Returns the salts of a batch's events, None where there are none, or their secret is not at hand."""


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
    for ref, read in (
        (work.segment, partial(_check_segment, sink=sink, salts=salts)),
        (work.quarantine, _check_quarantine),
    ):
        if ref is None:
            continue
        try:
            read(store, work, outcome)
        except ObjectMissing:
            outcome.missing.append(ref.key)
        except ObjectArchived:
            outcome.findings.append(_check_archived(store, work, ref))
        except CustodyError as error:
            what = f"the object cannot be read: {error}"
            outcome.findings.append(finding("unreadable", what, log=work.log, sequence=work.sequence, key=ref.key))
    return outcome


def _check_archived(store: Store, work: Work, ref: SegmentRef | QuarantineRef) -> Finding:
    """Hold an object that cannot be read without a restore to the digest that the store keeps (rule 9)."""
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


def inflate(member: bytes, stated: int) -> bytes:
    """Inflate exactly one whole gzip member of a stated size.

    Raises:
        FormatError: it is not one, or not of that size; no more than one byte beyond the size was inflated.
    """
    if not member.startswith(_HEADER):
        raise FormatError("it does not begin as a gzip member (deflate, no flags, mtime 0)")
    # The same machine as zlib's interface has, with less copying.
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    try:
        data: bytes = inflater.decompress(member, stated + 1)
    except _InflateError as error:
        raise FormatError(f"it does not inflate: {error}") from None
    if len(data) > stated:
        raise FormatError(f"it inflates to more than the {stated} bytes stated")
    if not inflater.eof:
        raise FormatError("it is cut short")
    if inflater.unused_data:
        raise FormatError(f"{len(inflater.unused_data)} bytes stand behind its end")
    if len(data) != stated:
        raise FormatError(f"it inflates to {len(data)} bytes ({stated} stated)")
    return data


def _check_segment(store: Store, work: Work, outcome: Outcome, sink: Sink | None, salts: Salts | None) -> None:
    ref = work.segment
    if ref is None:
        return
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
            payload = _batch_payload(batch, data)
        except FormatError as error:
            broken.append(batch.number)
            faults.append(_at(work, "gzip", f"the batch's gzip member is not as stated: {error}", batch))
            continue
        outcome.inflated += len(payload)
        outcome.events += batch.events
        outcome.findings.extend(_check_lines(work, batch, payload, types))
        if salts is not None and batch.leaves is not None and (made := salts(work, batch)) is not None:
            outcome.findings.extend(_check_leaves(work, batch, payload, made))
        if sink is not None:
            sink.add(work, batch, payload)
        # Large ones shall not stand beside the next.
        del payload
    outcome.stored += read
    whole = read == ref.size and not store.read(ref.key, limit=1, start=ref.size, size=1)
    if whole and digest.hexdigest() == ref.sha256:
        outcome.findings.extend(faults)
        if not outcome.findings and types != work.types:
            stated, found = _brief(work.types), _brief(types)
            message = "the types of the events are not those stated"
            outcome.findings.append(_at(work, "event", message, None, expected=stated, found=found))
        return
    outcome.findings.append(_diagnose(store, work, ref, broken))


def _at(work: Work, name: str, message: str, batch: Batch | None, **more: Any) -> Finding:
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


def _brief(types: dict[str, int] | Counter[str]) -> str:
    shown = ", ".join(f"{name[:60]!a}: {count}" for name, count in sorted(types.items())[:12])
    return f"{{{shown}{', …' if len(types) > 12 else ''}}}"


def _members(store: Store, ref: SegmentRef, batches: Sequence[Batch]) -> Iterator[tuple[Batch | None, bytes]]:
    """Yield the segment's bytes from its first to its last stated one, member by member, each with its batch.

    Where the statement's members do not tile the segment, or one is beyond the limits, bytes come without a batch: they
    are hashed and not inflated. Stops early where the object does.
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


def _batch_payload(batch: Batch, member: bytes) -> bytes:
    if batch.inflated > limits.BATCH_BYTES:
        raise FormatError(f"{batch.inflated} bytes inflated are stated (limit {limits.BATCH_BYTES}): not inflated")
    if batch.size > limits.MEMBER_BYTES:
        raise FormatError(f"a member of {batch.size} bytes is stated (limit {limits.MEMBER_BYTES}): not inflated")
    if len(member) < batch.size:
        raise FormatError(f"the object ends {batch.size - len(member)} bytes before it does")
    payload = inflate(member, batch.inflated)
    if sha256(payload).hexdigest() != batch.sha256:
        raise FormatError("it inflates to bytes of another SHA-256 than stated")
    return payload


def _check_lines(work: Work, batch: Batch, payload: bytes, types: Counter[str]) -> Iterator[Finding]:
    found = lines.check(payload)
    types.update(found.types)
    if found.faults:
        fault = found.faults[0]
        more = f" (and {len(found.faults) - 1} lines more of this batch)" if len(found.faults) > 1 else ""
        yield _at(
            work,
            "gzip" if _is_oversize(payload, fault.byte) else "event",
            f"line {fault.line + 1} of the batch is no event: {fault.reason}{more}",
            batch,
            offset=offset_of(work, batch, fault.line),
            byte=fault.byte,
        )
    if found.count != batch.events:
        yield _at(
            work, "event", "the batch has another number of lines than stated", batch,
            expected=str(batch.events), found=str(found.count),
        )  # fmt: skip
    if found.faults or found.count != batch.events:
        return
    for name, stated, time in (("min_time", batch.min_time, found.first), ("max_time", batch.max_time, found.last)):
        if time is None:
            continue
        micros, more_behind = time.microseconds
        off = (parse_time(stated) - _EPOCH) // _MICROSECOND - micros
        if not -1000 <= off <= 1000 or (off == -1000 and more_behind):
            yield _at(
                work,
                "event",
                f"{name} is more than 1 ms off the outermost event",
                batch,
                expected=stated,
                found=str(time),
            )


def _check_leaves(work: Work, batch: Batch, payload: bytes, salts: bytes) -> Iterator[Finding]:
    """Compare a batch's `leaves` with its events. One that has another number of events than stated says so already."""
    events = leaves.split(payload)
    if batch.leaves is None or len(salts) != leaves.SALT_BYTES * len(events):
        return
    root = leaves.root(events, salts)
    if root != batch.leaves.sha256:
        yield _at(
            work, "leaves", "the batch's leaves are not those of its events", batch,
            expected=f"SHA-256 {batch.leaves.sha256}", found=root,
        )  # fmt: skip


def _is_oversize(payload: bytes, start: int) -> bool:
    """Say whether a line is longer than an event may be: no writer inflates to that, so it is the member's fault."""
    end = payload.find(b"\n", start, start + limits.EVENT_BYTES + 1)
    return end < 0 and len(payload) > start + limits.EVENT_BYTES


def offset_of(work: Work, batch: Batch, line: int) -> int:
    """Return the offset of a line of a batch: its lines take the offsets in order, but for those without a line."""
    offset = batch.first_offset + line
    for start, end in work.unlined[max(bisect_left(work.unlined, (batch.first_offset, 0)) - 1, 0) :]:
        if end <= batch.first_offset:
            continue
        if start > offset:
            break
        offset += end - start
    return offset


def _diagnose(store: Store, work: Work, ref: SegmentRef, broken: Sequence[int]) -> Finding:
    """Say what was done to a segment whose bytes are not those stated."""
    digest = sha256()
    size = 0
    for data in read_pieces(store, ref.key, limits.SEGMENT_BYTES):
        digest.update(data)
        size += len(data)
    added = size - ref.size
    intact = _events_intact(store, work, ref)
    if added and (not intact or _is_stuffed(store, work, ref, added)):
        what = f"{added} bytes were added to the object" if added > 0 else f"{-added} bytes of the object are missing"
        return _at(
            work, "segment-size", what, None,
            expected=f"{ref.size} bytes", found=f"{size} bytes", sha256=digest.hexdigest(),
        )  # fmt: skip
    what = "the stored bytes are not those stated"
    if intact:
        damaged = None
        what += "; the events are intact (recompressed, or only gzip headers changed)"
    else:
        numbers = ", ".join(map(str, broken[:10])) + (", …" if len(broken) > 10 else "")
        damaged = next((batch for batch in work.batches if batch.number in broken), None)
        what += f"; {len(broken)} of {len(work.batches)} batches are damaged ({numbers}), the others are intact"
    return _at(
        work, "segment-hash", what, damaged,
        expected=f"SHA-256 {ref.sha256}", found=digest.hexdigest(), sha256=digest.hexdigest(),
    )  # fmt: skip


def read_pieces(store: Store, key: str, limit: int) -> Iterator[bytes]:
    """Yield an object's bytes, whatever its size, up to a limit."""
    position = 0
    while position < limit:
        data = store.read(key, limit=PIECE, start=position, size=min(PIECE, limit - position))
        if not data:
            return
        yield data
        position += len(data)


def inflate_stream(pieces: Iterator[bytes], limit: int, *, single: bool = False) -> Iterator[bytes]:
    """Inflate gzip members that stand one after another (or a single one), in chunks, to no more than a limit.

    Raises:
        FormatError: they do not inflate, do not end, go beyond the limit, or are more than a single one.
    """
    inflater: Any = None
    ended = 0
    for piece in pieces:
        data, pending = piece, False
        while data or pending:
            if single and ended:
                raise FormatError("bytes stand behind the end of its gzip member")
            inflater = inflater or isal_zlib.decompressobj(wbits=31)
            before = len(data)
            try:
                chunk: bytes = inflater.decompress(data, _CHUNK)
            except _InflateError as error:
                raise FormatError(f"it does not inflate: {error}") from None
            limit -= len(chunk)
            if limit < 0:
                raise FormatError("it inflates to more than stated")
            yield chunk
            if inflater.eof:
                data, inflater, pending = inflater.unused_data, None, False
                ended += 1
            else:
                # All input may be taken in while output still waits for room.
                data, pending = inflater.unconsumed_tail, len(chunk) == _CHUNK
                if not chunk and before and len(data) == before:
                    raise FormatError("it does not inflate")
    if inflater is not None or not ended:
        raise FormatError("it is cut short")


def _events_intact(store: Store, work: Work, ref: SegmentRef) -> bool:
    """Say whether the object, whatever its bytes, still inflates to exactly the batches stated."""
    batches = sorted(work.batches, key=lambda batch: batch.start)
    wanted = iter(batches)
    batch = next(wanted, None)
    digest = sha256()
    missing = batch.inflated if batch else 0
    try:
        pieces = read_pieces(store, ref.key, limits.SEGMENT_BYTES)
        for chunk in inflate_stream(pieces, sum(one.inflated for one in batches)):
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
    """Say whether all members are there as stated, and bytes were only put before, between or behind them."""
    shift = 0
    for batch in sorted(work.batches, key=lambda batch: batch.start):
        if batch.size > limits.MEMBER_BYTES or added < 0:
            return False
        for step in (shift, added):
            member = store.read(ref.key, limit=batch.size, start=batch.start + step, size=batch.size)
            try:
                _batch_payload(batch, member)
            except FormatError:
                continue
            shift = step
            break
        else:
            return False
    return True


class LeftOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that a quarantine object does not hold: how many, and their SHA-256 in hex."""

    size: Int
    sha256: Hex


class Omitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was left out of a quarantined record that is too large: each None where it was not."""

    key: LeftOut | None
    value: LeftOut | None
    headers: LeftOut | None
    """Of the headers' JSON."""


class _Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offset: Int
    timestamp: Annotated[int, msgspec.Meta(ge=-(2**63), le=INT_MAX)] | None
    key: str | None
    value: str | None
    headers: list[tuple[str, str | None]]
    error: str
    omitted: Omitted | None


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A line of a quarantine object."""

    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    omitted: Omitted | None = None


_decode_quarantined = msgspec.json.Decoder(_Quarantined).decode


def parse_quarantined(line: bytes) -> QuarantinedRecord:
    """Parse a line of a quarantine object.

    Raises:
        FormatError: it is not of FORMAT.md's form.
    """
    try:
        record = _decode_quarantined(line)
        json.loads(line, object_pairs_hook=_refuse_repeated)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"it is no quarantined record: {str(error)[:200]}") from None
    found = QuarantinedRecord(
        record.offset,
        record.timestamp,
        _bytes(record.key),
        _bytes(record.value),
        tuple((name, _bytes(value)) for name, value in record.headers),
        record.omitted,
    )
    _check_omitted(record, found)
    return found


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a field stands twice")


def _check_omitted(record: _Quarantined, found: QuarantinedRecord) -> None:
    """Check that bytes were left out of a record that is too large, and of no other, and that nothing replaces them.

    Raises:
        FormatError: it is not so.
    """
    kept = len(found.key or b"") + len(found.value or b"")
    if record.headers:
        kept += len(json.dumps(record.headers, separators=(",", ":")))
    if kept > limits.QUARANTINE_RECORD:
        raise FormatError(
            f"it is no quarantined record: it holds {kept} bytes of key, value and headers (limit"
            f" {limits.QUARANTINE_RECORD})"
        )
    omitted = found.omitted
    if omitted is None:
        return
    for name, left_out, kept_too in (
        ("key", omitted.key, found.key is not None),
        ("value", omitted.value, found.value is not None),
        ("headers", omitted.headers, bool(found.headers)),
    ):
        if left_out and kept_too:
            raise FormatError(f"it is no quarantined record: {name} is there, and omitted")
    size = kept + sum(one.size for one in (omitted.key, omitted.value, omitted.headers) if one)
    if size <= limits.QUARANTINE_RECORD:
        raise FormatError(
            f"it is no quarantined record: it omits some of its {size} bytes (limit {limits.QUARANTINE_RECORD})"
        )


def _bytes(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FormatError("it is no quarantined record: a value is not base64") from None


def quarantine_lines(store: Store, key: str, size: int, inflated: int, *, exact: bool = True) -> Iterator[bytes]:
    """Yield the lines of a quarantine object, without newlines, reading in pieces.

    Args:
        store: where it lies.
        key: its key.
        size: bytes stored, as stated.
        inflated: bytes inflated, as stated.
        exact: whether `inflated` is the size, rather than a bound of it.

    Raises:
        FormatError: it is not one gzip member of lines within the limits.
        StoreError: it cannot be read.
    """
    if size > limits.QUARANTINE_BYTES or inflated > limits.QUARANTINE_INFLATED:
        raise FormatError(f"{size} bytes stored and {inflated} inflated are beyond the limits: not inflated")
    rest = b""
    total = 0
    for chunk in inflate_stream(_checked_header(read_pieces(store, key, size)), inflated, single=True):
        total += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            _check_length(line)
            yield line
        _check_length(rest)
    if rest:
        raise FormatError("the last line does not end in a newline")
    if exact and total != inflated:
        raise FormatError(f"it inflates to {total} bytes ({inflated} stated)")


def _check_length(line: bytes) -> None:
    if len(line) > limits.QUARANTINE_LINE:
        raise FormatError(f"a line has more than {limits.QUARANTINE_LINE} bytes")


def _checked_header(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass pieces on, and refuse what does not begin as a gzip member of ours."""
    for number, piece in enumerate(pieces):
        if not number and not piece.startswith(_HEADER):
            raise FormatError("it does not begin as a gzip member (deflate, no flags, mtime 0)")
        yield piece


def _check_quarantine(store: Store, work: Work, outcome: Outcome) -> None:
    ref = work.quarantine
    if ref is None:
        return
    digest = sha256()
    size = 0
    for data in read_pieces(store, ref.key, limits.QUARANTINE_BYTES + 1):
        digest.update(data)
        size += len(data)
    outcome.stored += size
    where: dict[str, Any] = {"log": work.log, "sequence": work.sequence, "key": ref.key, "sha256": digest.hexdigest()}
    if not size:
        # An object of no bytes reads as one that is there: say what it is, below.
        store.read(ref.key, limit=1, size=1)
    if size != ref.size:
        outcome.findings.append(
            finding("segment-size", "the quarantine object has another size than stated",
                    expected=f"{ref.size} bytes", found=f"{size} bytes", **where)
        )  # fmt: skip
        return
    if digest.hexdigest() != ref.sha256:
        outcome.findings.append(
            finding("segment-hash", "the bytes of the quarantine object are not those stated",
                    expected=f"SHA-256 {ref.sha256}", found=digest.hexdigest(), **where)
        )  # fmt: skip
        return
    offsets = (offset for start, end in ref.offsets for offset in range(start, end))
    records = 0
    for line in _until_fault(quarantine_lines(store, ref.key, ref.size, ref.inflated), outcome, where):
        records += 1
        outcome.inflated += len(line) + 1
        offset = next(offsets, None)
        try:
            found = parse_quarantined(line).offset
        except FormatError as error:
            outcome.findings.append(finding("quarantine", f"line {records}: {error}", offset=offset, **where))
            return
        if found != offset:
            outcome.findings.append(
                finding("quarantine", f"line {records} holds another record than stated", offset=offset,
                        expected=f"offset {offset}", found=f"offset {found}", **where)
            )  # fmt: skip
            return
    if outcome.findings and outcome.findings[-1].key == ref.key:
        return
    missed = next(offsets, None)
    if missed is not None or records != ref.records:
        outcome.findings.append(
            finding("quarantine", "the quarantine object holds fewer records than stated", offset=missed,
                    expected=f"{ref.records} records", found=f"{records} records", **where)
        )  # fmt: skip


def _until_fault(lines_: Iterator[bytes], outcome: Outcome, where: dict[str, Any]) -> Iterator[bytes]:
    """Pass lines on, and turn the fault that ends them into a finding."""
    try:
        yield from lines_
    except FormatError as error:
        outcome.findings.append(finding("gzip", f"the quarantine object: {error}", **where))
