"""The statement, its exact bytes, and strict parsing (FORMAT.md, Manifest). Pure.

What the fields *mean* (that ranges join, that trees follow) is checked by the verifier.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from custody.errors import FormatError
from custody.format import envelope, limits
from custody.format.envelope import Hex, Int, SignedFile, Tree
from custody.format.times import check_time

__all__ = ["Batch", "Manifest", "QuarantineRef", "SegmentRef", "Statement", "parse"]


FORMAT: Literal["custody/manifest/1"] = "custody/manifest/1"
DIRECT = "direct"
"""The cluster's name in logs that were never in Kafka."""

Range = tuple[Int, Int]
"""Offsets or sequences `[from, to)`."""


# Times, digests and the archive's id are plain strings here: `parse` checks them many at once, in half the time that a
# pattern at each field takes.
class LogId(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Which records a log is of. The same in all statements of a log."""

    cluster: str
    topic: str
    topic_id: str | None
    partition: Int
    epoch: Annotated[int, msgspec.Meta(ge=1, le=limits.INT_MAX)]


class PreviousEpoch(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The head of the partition's newest earlier epoch."""

    epoch: Annotated[int, msgspec.Meta(ge=1, le=limits.INT_MAX)]
    size: Int
    root: str


class LastRecord(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The last record that was read: by it a partition that was truncated is noticed, even if it has grown again."""

    offset: Int
    leader_epoch: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Unreadable(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Offsets `[from, to)` that the broker holds and no client could decode."""

    from_: Int
    to: Int
    error: str


class Leaves(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A commitment to each event of a batch alone (FORMAT.md, Leaves): by which secret, and its SHA-256 in hex."""

    key: str
    sha256: Hex


class SegmentRef(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The object that holds the batches: its key, its size and SHA-256 as stored."""

    key: str
    size: Int
    sha256: str


class KafkaTime(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Bounds of a batch's Kafka timestamps, in ms since 1970."""

    type: Literal["create", "append", "mixed"]
    min: Int
    max: Int


class Batch(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One gzip member of the segment and the events in it."""

    number: Int
    first_offset: Int
    next_offset: Int
    events: Int
    start: Int
    size: Int
    inflated: Int
    sha256: str
    min_time: str
    max_time: str
    kafka_time: KafkaTime | None
    leaves: Leaves | None


class QuarantineRef(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The object that holds the quarantined records, and which offsets they are."""

    key: str
    size: Int
    sha256: str
    inflated: Int
    records: Int
    offsets: list[Range]


class Statement(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, kw_only=True):
    """What a manifest says: a range of offsets of a log is accounted for. FORMAT.md has the meaning of each field."""

    format: Literal["custody/manifest/1"] = FORMAT
    archive: str
    log: LogId
    sequence: Int
    tree: Tree
    previous_epoch: PreviousEpoch | None
    first_offset: Int
    next_offset: Int
    last_record: LastRecord | None
    skipped: list[Range]
    lost: Range | None
    unreadable: list[Unreadable]
    passed_over: list[str]
    sealed_at: str
    writer: str
    segment: SegmentRef | None
    batches: list[Batch]
    quarantine: QuarantineRef | None
    expired: Range | None
    types: dict[str, Int]


Manifest = SignedFile[Statement]
"""A parsed manifest."""

_statement_decoder = msgspec.json.Decoder(Statement)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def encode(statement: Statement) -> bytes:
    """Return the statement's line, compact and in ASCII, without the newline.

    Raises:
        FormatError: the statement is beyond a limit of the format.
    """
    subject = f"statement {statement.sequence} of {statement.log.topic}/{statement.log.partition}"
    return envelope.encode_line(statement, subject, ": cut segments earlier")


def parse(data: bytes) -> Manifest:
    """Parse a manifest strictly.

    Raises:
        FormatError: the bytes are not a manifest of this format; the message says which rule they break.
    """
    return parse_each([data])[0]


def parse_each(files: Sequence[bytes]) -> list[Manifest]:
    """Parse manifests strictly, in less time than one by one, and return them in order.

    Raises:
        FormatError: one of them is not of this format. Which one, only parsing one by one says.
    """
    return envelope.parse_files(files, _parse_statements, FORMAT)


def parse_statement(line: bytes) -> Statement:
    """Parse line 1 strictly; raises as `parse`."""
    return _parse_statements([line])[0]


def _parse_statements(lines: Sequence[bytes]) -> list[Statement]:
    statements: list[Statement] = envelope.decode_each(_statement_decoder, lines, "the statement")
    for statement in statements:
        _check(statement)
    envelope.check_hashes("the statement", [hash_ for statement in statements for hash_ in _hashes(statement)])
    return statements


def _check(statement: Statement) -> None:
    """Check what types cannot say of a statement's fields, but for digests."""
    if statement.skipped:
        check_ranges("skipped", statement.skipped)
    if statement.quarantine:
        check_ranges("quarantine.offsets", statement.quarantine.offsets)
    if statement.unreadable:
        _check_unreadable(statement.unreadable)
    for name, pair in (("lost", statement.lost), ("expired", statement.expired)):
        if pair and pair[0] >= pair[1]:
            raise FormatError(f"the statement: {name} is an empty or reversed range {list(pair)}")
    if not _UUID.fullmatch(statement.archive):
        raise FormatError(f"the statement: archive {statement.archive[:100]!r} is no UUID in lower case")
    envelope.check_passed_over("the statement", statement.passed_over, statement.sequence)
    check_time("the statement: sealed_at", statement.sealed_at)
    for batch in statement.batches:
        check_time("the statement: min_time", batch.min_time)
        check_time("the statement: max_time", batch.max_time)
    if len(statement.types) > limits.TYPES:
        raise FormatError(f"the statement: types has {len(statement.types)} entries (limit {limits.TYPES})")
    # Code points sort as their UTF-8 bytes do.
    if list(statement.types) != sorted(statement.types):
        raise FormatError("the statement: types are not sorted by name")
    if not all(statement.types.values()):
        raise FormatError("the statement: types holds a zero")


def _hashes(statement: Statement) -> list[str]:
    """Return all digests of a statement but those of leaves, which few have and their type checks."""
    hashes = [statement.tree.root, *statement.tree.compact_range, *statement.passed_over]
    if statement.previous_epoch:
        hashes.append(statement.previous_epoch.root)
    if statement.segment:
        hashes.append(statement.segment.sha256)
    hashes += [batch.sha256 for batch in statement.batches]
    if statement.quarantine:
        hashes.append(statement.quarantine.sha256)
    return hashes


def _check_unreadable(ranges: list[Unreadable]) -> None:
    if len(ranges) > limits.UNREADABLE_RANGES:
        raise FormatError(f"the statement: unreadable has {len(ranges)} ranges (limit {limits.UNREADABLE_RANGES})")
    end = 0
    for span in ranges:
        if span.from_ >= span.to or span.from_ < end:
            raise FormatError(f"the statement: unreadable has [{span.from_},{span.to}) empty, unsorted or overlapping")
        if len(span.error.encode(errors="surrogatepass")) > limits.UNREADABLE_ERROR:
            raise FormatError(f"the statement: an error in unreadable has more than {limits.UNREADABLE_ERROR} bytes")
        end = span.to


def check_ranges(name: str, ranges: list[Range]) -> None:
    """Check that a list of ranges is of the format: sorted, disjoint, not empty, merged, within the limit.

    Raises:
        FormatError: it is not.
    """
    if len(ranges) > limits.RANGES:
        raise FormatError(f"the statement: {name} has {len(ranges)} ranges (limit {limits.RANGES})")
    end = -1
    for start, stop in ranges:
        if start >= stop or start <= end:
            raise FormatError(f"the statement: {name} has [{start},{stop}) empty, unsorted, touching or overlapping")
        end = stop
