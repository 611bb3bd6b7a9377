"""The statement, its exact bytes, sealing and strict parsing (FORMAT.md, Manifest). Pure.

A manifest is two lines: the statement, and the signatures over its digest. Readers hash the bytes as stored, so a
parsed manifest keeps them. Parsing is strict: unknown, missing, doubled or reordered fields, wrong types, integers
outside 0 to 2⁶³-1, floats, deep nesting, trailing bytes and sizes beyond the limits are all a `FormatError`, and
nothing else is ever raised. What the fields *mean* (that ranges join, that trees follow) is the verifier's to judge.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any, Literal, Protocol

import msgspec

from custody.errors import FormatError

STATEMENT_LIMIT = 8 * 1024 * 1024
"""Bytes in line 1."""
SIGNATURES_LIMIT = 16 * 1024
"""Bytes in line 2."""
MANIFEST_LIMIT = STATEMENT_LIMIT + SIGNATURES_LIMIT + 2
RANGES_LIMIT = 50_000
"""Entries in `skipped`, and in `quarantine.offsets`."""
NESTING_LIMIT = 8
INT_MAX = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FORMAT: Literal["custody/manifest/1"] = "custody/manifest/1"

Int = Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Time = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")]
Range = tuple[Int, Int]
"""Offsets or sequences `[from, to)`."""
Algorithm = Literal["HMAC-SHA256", "Ed25519"]


class LogId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which records a log is of. The same in all statements of a log."""

    cluster: str
    topic: str
    topic_id: str | None
    partition: Int
    life: Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]


# Times, digests and the archive's id are plain strings here: `parse` holds them to their form, many at once, in half
# the time that a pattern at each field takes.
class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tree of the statements before this one: its size, its root, and its edge, all hashes in hex."""

    size: Int
    root: str
    edge: list[str]


class After(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The head of the partition's newest earlier life."""

    life: Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]
    size: Int
    root: str


class SegmentRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object that holds the batches: its key, its size and SHA-256 as stored."""

    key: str
    size: Int
    sha256: str


class KafkaTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of a batch's Kafka timestamps, in ms since 1970."""

    type: Literal["create", "append", "mixed"]
    min: Int
    max: Int


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class QuarantineRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object that holds the quarantined records, and which offsets they are."""

    key: str
    size: Int
    sha256: str
    inflated: Int
    records: Int
    offsets: list[Range]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a manifest says: a range of offsets of a log is accounted for. FORMAT.md has the meaning of each field."""

    format: Literal["custody/manifest/1"] = FORMAT
    archive: str
    log: LogId
    sequence: Int
    tree: Tree
    after: After | None
    first_offset: Int
    next_offset: Int
    skipped: list[Range]
    lost: Range | None
    sealed_at: str
    writer: str
    segment: SegmentRef | None
    batches: list[Batch]
    quarantine: QuarantineRef | None
    expired: Range | None
    types: dict[str, Int]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature of line 2; the value in base64."""

    key: str
    algorithm: Algorithm
    value: str


class _Signatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signatures: list[Signature]


class Signer(Protocol):
    """A key that can sign."""

    @property
    def key_id(self) -> str:
        """The key's name in signatures."""
        ...

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm of the key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Sign; raises KeyUnavailable."""
        ...


class Manifest(msgspec.Struct, frozen=True):
    """A parsed manifest, with the statement's bytes exactly as stored."""

    statement: Statement
    line: bytes
    """Line 1 without its newline: what leaves and signatures are made over."""
    signatures: tuple[tuple[Signature, bytes], ...]
    """Each signature with its value decoded."""


_encoder = msgspec.json.Encoder()
_statement_decoder = msgspec.json.Decoder(Statement)
_signatures_decoder = msgspec.json.Decoder(_Signatures)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEX = re.compile(r"[0-9a-f]{64}")
_HEX_LENGTHS = frozenset([64])
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?!24)[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)


def message(line: bytes, what: str = FORMAT) -> bytes:
    r"""Return what is signed: `what`, newline, hex SHA-256 of the statement, newline; 84 bytes for a manifest."""
    return f"{what}\n{sha256(line).hexdigest()}\n".encode()


def encode(statement: Statement) -> bytes:
    """Return the statement's line, compact and in ASCII, without the newline.

    Raises:
        FormatError: the statement is beyond a limit of the format.
    """
    line = to_ascii(_encoder.encode(statement))
    if len(line) > STATEMENT_LIMIT:
        raise FormatError(
            f"statement {statement.sequence} of {statement.log.topic}/{statement.log.partition} would have"
            f" {len(line)} bytes (limit {STATEMENT_LIMIT}): cut segments earlier"
        )
    return line


def to_ascii(line: bytes) -> bytes:
    """Return compact JSON in ASCII, as we write it."""
    return line if line.isascii() else json.dumps(json.loads(line), separators=(",", ":")).encode()


def seal(line: bytes, signers: Iterable[Signer], what: str = FORMAT) -> bytes:
    """Return the whole two-line file for a statement's line, signed by each signer.

    Raises:
        KeyUnavailable: a signer cannot sign now.
    """
    text = message(line, what)
    signatures = [
        Signature(signer.key_id, signer.algorithm, base64.b64encode(signer.sign(text)).decode()) for signer in signers
    ]
    second = json.dumps({"signatures": [msgspec.structs.asdict(s) for s in signatures]}, separators=(",", ":"))
    return line + b"\n" + second.encode() + b"\n"


def parse(data: bytes) -> Manifest:
    """Parse a manifest strictly.

    Raises:
        FormatError: the bytes are not a manifest of this format; the message says which rule they break.
    """
    line, second = split_lines(data)
    statement: Statement = decode_strictly(_statement_decoder, line, "the statement")
    if statement.skipped:
        check_ranges("skipped", statement.skipped)
    if statement.quarantine:
        check_ranges("quarantine.offsets", statement.quarantine.offsets)
    for name, pair in (("lost", statement.lost), ("expired", statement.expired)):
        if pair and pair[0] >= pair[1]:
            raise FormatError(f"the statement: {name} is an empty or reversed range {list(pair)}")
    if not _UUID.fullmatch(statement.archive):
        raise FormatError(f"the statement: archive {statement.archive[:100]!r} is no UUID in lower case")
    check_hashes("the statement", _hashes(statement))
    check_time("sealed_at", statement.sealed_at)
    for batch in statement.batches:
        check_time("min_time", batch.min_time)
        check_time("max_time", batch.max_time)
    if list(statement.types) != sorted(statement.types):
        raise FormatError("the statement: types are not sorted by name")
    if not all(statement.types.values()):
        raise FormatError("the statement: types holds a zero")
    return Manifest(statement, line, parse_signatures(second))


def _hashes(statement: Statement) -> list[str]:
    """Return all digests of a statement."""
    found = [statement.tree.root, *statement.tree.edge]
    if statement.after:
        found.append(statement.after.root)
    if statement.segment:
        found.append(statement.segment.sha256)
    found += [batch.sha256 for batch in statement.batches]
    if statement.quarantine:
        found.append(statement.quarantine.sha256)
    return found


def check_hashes(what: str, hashes: Sequence[str]) -> None:
    """Hold digests to their form: SHA-256 in lower case hex.

    Raises:
        FormatError: one is not; the message begins with `what`.
    """
    text = "".join(hashes)
    try:
        # In two thirds of the time that one pattern over all takes. White space and capitals do not come back.
        held = bytes.fromhex(text).hex() == text and _HEX_LENGTHS.issuperset(map(len, hashes))
    except ValueError:
        held = False
    if not held:
        wrong = next(one for one in hashes if not _HEX.fullmatch(one))
        raise FormatError(f"{what}: {wrong[:100]!r} is no SHA-256 in lower case hex")


def split_lines(data: bytes) -> tuple[bytes, bytes]:
    """Split a two-line file into its lines, without newlines, and hold their limits.

    Raises:
        FormatError: there are not exactly two lines, each with a newline, or one is too long.
    """
    if len(data) > MANIFEST_LIMIT:
        raise FormatError(f"the file has {len(data)} bytes (limit {MANIFEST_LIMIT})")
    first = data.find(b"\n")
    if first < 0 or data.find(b"\n", first + 1) != len(data) - 1:
        raise FormatError("the file is not two lines that each end in a newline")
    line, second = data[:first], data[first + 1 : -1]
    if len(line) > STATEMENT_LIMIT:
        raise FormatError(f"line 1 has {len(line)} bytes (limit {STATEMENT_LIMIT})")
    if len(second) > SIGNATURES_LIMIT:
        raise FormatError(f"line 2 has {len(second)} bytes (limit {SIGNATURES_LIMIT})")
    return line, second


def parse_signatures(second: bytes) -> tuple[tuple[Signature, bytes], ...]:
    """Parse line 2.

    Raises:
        FormatError: it is malformed, or holds two signatures of one key. That an HMAC-SHA256 signature is among them is
            not asked here: a statement whose signatures were removed parses, and has no valid signature.
    """
    listed: list[Signature] = decode_strictly(_signatures_decoder, second, "the signatures").signatures
    if len({signature.key for signature in listed}) != len(listed):
        raise FormatError("the signatures: a key signs twice")
    decoded = []
    for signature in listed:
        try:
            value = base64.b64decode(signature.value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError(f"the signatures: the value of key {signature.key!r} is not base64") from error
        if base64.b64encode(value).decode() != signature.value:
            raise FormatError(f"the signatures: the value of key {signature.key!r} is not canonical base64")
        decoded.append((signature, value))
    return tuple(decoded)


def decode_strictly(decoder: msgspec.json.Decoder[Any], line: bytes, what: str) -> Any:
    """Decode `line` so that fields are exactly the type's, in its order, once each.

    Raises:
        FormatError: they are not; the message begins with `what`.
    """
    try:
        value = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, ValueError) as error:
        raise FormatError(f"{what}: {error}") from None
    # Our own form is canonical: encoding what was decoded gives the same bytes, so nothing stood there twice, in
    # another order, or beside. Another writer's white space or escapes take the slow way.
    if _encoder.encode(value) != line:
        _check_shape(line, value, what)
    return value


_Pairs = list[tuple[str, "Any"]]


def _check_shape(line: bytes, value: object, what: str) -> None:
    """Compare names and their order, at every level, between the bytes and what was decoded from them."""

    def pairs(found: _Pairs) -> dict[str, Any]:
        names = [name for name, _ in found]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError(f"{what}: the field {twice!r} stands twice")
        return dict(found)

    def integer(text: str) -> int:
        # "-0" is an integer for a decoder, and has a sign.
        if text.startswith("-"):
            raise FormatError(f"{what}: a number has a sign")
        return int(text)

    def other(text: str) -> None:
        raise FormatError(f"{what}: {text[:40]!r} is no integer")

    try:
        if not line.isascii():
            line.decode()
        if _depth(line) > NESTING_LIMIT:
            raise FormatError(f"{what}: nested deeper than {NESTING_LIMIT}")
        shape = json.loads(
            line.decode(), object_pairs_hook=pairs, parse_int=integer, parse_float=other, parse_constant=other
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: {error}") from None
    # By way of bytes, for `to_builtins` would leave ranges tuples, which no list equals.
    expected = msgspec.json.decode(_encoder.encode(value))
    if _names(shape) != _names(expected) or shape != expected:
        raise FormatError(f"{what}: fields are missing, unknown or out of order")


def _depth(line: bytes) -> int:
    """Return an upper bound of how deep the JSON nests, strings counted too: enough for statements of ours."""
    deepest = depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', line):
        token = match[0]
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


def _names(value: object) -> object:
    if isinstance(value, dict):
        return [(name, _names(inner)) for name, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_names(inner) for inner in value]
    return None


def check_ranges(name: str, ranges: list[Range]) -> None:
    """Hold a list of ranges to the format: sorted, disjoint, not empty, merged, within the limit.

    Raises:
        FormatError: it is not.
    """
    if len(ranges) > RANGES_LIMIT:
        raise FormatError(f"the statement: {name} has {len(ranges)} ranges (limit {RANGES_LIMIT})")
    end = -1
    for start, stop in ranges:
        if start >= stop or start <= end:
            raise FormatError(f"the statement: {name} has [{start},{stop}) empty, unsorted, touching or overlapping")
        end = stop


def check_time(name: str, text: str) -> datetime:
    """Parse a time that custody writes.

    Raises:
        FormatError: no such date or time of day.
    """
    try:
        return parse_time(text)
    except ValueError:
        raise FormatError(
            f"the statement: {name} {text[:100]!r} is no time of the form YYYY-MM-DDTHH:MM:SS.ffffffZ"
        ) from None


def format_time(moment: datetime) -> str:
    """Return an aware datetime as custody writes times: UTC, six digits, `Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def format_us(microseconds: int) -> str:
    """Return a time given in µs since 1970 as custody writes times."""
    return format_time(_EPOCH + timedelta(microseconds=microseconds))


# A statement's times are read more than once, and batches of one moment have the same.
@lru_cache(maxsize=1024)
def parse_time(text: str) -> datetime:
    """Return the aware datetime of a time that custody wrote.

    Raises:
        ValueError: it is not of that form.
    """
    # What fromisoformat lets in differs from one Python to the next: 24:00, a comma, other digits.
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text[:100]!r} is not of the form YYYY-MM-DDTHH:MM:SS.ffffffZ")
    return datetime.fromisoformat(text)
