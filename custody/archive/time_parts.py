"""The objects of the index by time: parts and maps, as signed bytes, and what they have.

A part of level 0 has spans. The object of another part is a map of parts of lower levels, for which it stands. The map
to which an audit refers has the parts of all levels for which no other one stands.
"""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec

from custody.archive.time_spans import Contradiction, Span, check, order, runs_of
from custody.errors import FormatError
from custody.format import limits
from custody.format.audit import ObjectRef
from custody.format.envelope import Int
from custody.store.protocol import Store

FORMAT: Literal["custody/time-index/1"] = "custody/time-index/1"
MAP_FORMAT: Literal["custody/time-index-map/1"] = "custody/time-index-map/1"
FOLDER = "reports/index/"
SIZE_LIMIT = 64 * limits.MIB
INFLATED_LIMIT = 256 * limits.MIB
_LEVELS = 20
"""More than there can be: each has eight times as many spans as the one below it."""


class Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """A part of the index, as a line of a map.

    Attributes:
        ref: the object with its spans, or with parts of the levels below.
        many: how many spans it has in all.
        runs: its spans, adjacent ones of a log as one.
        level: 0 if the object has spans; otherwise it is a map.
    """

    ref: ObjectRef
    many: Int
    runs: list[Span]
    level: Annotated[int, msgspec.Meta(ge=0, le=_LEVELS)] = 0


class Run(NamedTuple):
    """Adjacent spans of a log as one, or a span itself.

    Attributes:
        span: what is known of all of them.
        part: the part that has them; None if this is one span.
        lost: whether their part could not be read, so that nothing is known but which statements they have.
    """

    span: Span
    part: Part | None = None
    lost: bool = False


class Contents(NamedTuple):
    """What the object of a part has: parts of lower levels, or spans."""

    lower: Sequence[Part] = ()
    spans: Sequence[Span] = ()


class _Head(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: str
    archive: str


_head: msgspec.json.Decoder[_Head] = msgspec.json.Decoder(_Head)
_span: msgspec.json.Decoder[Span] = msgspec.json.Decoder(Span)
_part: msgspec.json.Decoder[Part] = msgspec.json.Decoder(Part)
L = TypeVar("L")


def read_map(store: Store, archive: str, ref: ObjectRef) -> list[Part]:
    """Return the parts of a map.

    Raises:
        FormatError: it is not the object that was signed, or no map of this archive.
        ObjectMissing, ObjectArchived: it is not there.
        StoreError: the store does not answer.
    """
    parts = parse(_signed(store, ref), archive, MAP_FORMAT, _part)
    for part in parts:
        for run in part.runs:
            check(run)
    return parts


def read_part(store: Store, archive: str, part: Part) -> Contents:
    """Return what a part has, which is what its line in the map says.

    Raises as `read_map`.
    """
    if part.level:
        lower = read_map(store, archive, part.ref)
        if any(each.level >= part.level for each in lower):
            raise Contradiction("it has parts that are not of a lower level")
        _compare(part, sum(each.many for each in lower), [run for each in lower for run in each.runs])
        return Contents(lower=lower)
    spans = parse(_signed(store, part.ref), archive, FORMAT, _span)
    for span in spans:
        check(span)
    _compare(part, len(spans), spans)
    return Contents(spans=spans)


def _compare(part: Part, many: int, spans: Sequence[Span]) -> None:
    if many != part.many or runs_of(spans) != part.runs:
        raise Contradiction("its spans are not those of the map that names it")
    for before, after in pairwise(sorted(spans, key=order)):
        if after.log == before.log and after.first < before.end:
            # Who goes down from a run, and who only looks at it, would take different ones.
            raise Contradiction(f"two of its spans have statement {after.first} of {after.log[:300]!r}")


def make_part(name: str, archive: str, spans: Sequence[Span]) -> tuple[Part, bytes]:
    """Return a part of some spans, and the bytes of its object."""
    data = encode(archive, FORMAT, spans)
    return Part(_reference(name, data), len(spans), runs_of(spans)), data


def make_map(name: str, archive: str, parts: Sequence[Part]) -> tuple[ObjectRef, bytes]:
    """Return the reference to a map, and its bytes."""
    data = encode(archive, MAP_FORMAT, parts)
    return _reference(name, data), data


def make_upper(name: str, archive: str, parts: Sequence[Part]) -> tuple[Part, bytes]:
    """Return a part that stands for some parts, one level above them, and the bytes of its object, a map."""
    ref, data = make_map(name, archive, parts)
    runs = runs_of(run for part in parts for run in part.runs)
    level = 1 + max(part.level for part in parts)
    return Part(ref, sum(part.many for part in parts), runs, level), data


def _signed(store: Store, ref: ObjectRef) -> bytes:
    if ref.size > SIZE_LIMIT:
        raise FormatError(f"it is larger than {SIZE_LIMIT} bytes")
    data = store.read(ref.key, limit=ref.size)
    if sha256(data).hexdigest() != ref.sha256:
        raise FormatError("it differs from the signed digest")
    return data


def encode(archive: str, form: str, lines: Iterable[Span | Part]) -> bytes:
    """Return the bytes of an object: gzip of JSON lines, a head and then the lines."""
    encoded = map(msgspec.json.encode, (_Head(form, archive), *lines))
    return gzip.compress(b"\n".join(encoded) + b"\n", compresslevel=6, mtime=0)


def parse(data: bytes, archive: str, form: str, decoder: "msgspec.json.Decoder[L]") -> list[L]:
    """Return the lines of an object behind its head.

    Raises:
        FormatError: the bytes are no such object, or one of another archive.
    """
    lines = iter(_inflate(data).splitlines())
    try:
        head = _head.decode(next(lines, b""))
        parsed = [decoder.decode(line) for line in lines]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"it has another form: {error}") from None
    if (head.format, head.archive) != (form, archive):
        raise FormatError("it is of another format, or of another archive")
    return parsed


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        lines = inflater.decompress(data, INFLATED_LIMIT)
    except zlib.error as error:
        raise FormatError(f"it is no gzip: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise FormatError(f"it is more than one whole gzip member of {INFLATED_LIMIT} bytes, or less")
    return lines


def _reference(name: str, data: bytes) -> ObjectRef:
    digest = sha256(data).hexdigest()
    return ObjectRef(f"{FOLDER}{name}-{digest[:16]}.jsonl.gz", len(data), digest)
