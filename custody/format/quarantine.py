"""Quarantine objects: one gzip member of lines, each a record that is no event (FORMAT.md, Objects)."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from custody.errors import FormatError
from custody.format import limits
from custody.format.envelope import Hex, Int, decode_strictly
from custody.format.members import inflate_stream

Header = tuple[str, bytes | None]
"""A Kafka header's name and value."""

_PIECE = 768 * 1024
"""Bytes of a header that are encoded at once; a multiple of 3, so that base64 can be cut there."""


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


class QuarantinedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a quarantine object."""

    offset: Int
    timestamp: Annotated[int, msgspec.Meta(ge=-(2**63), le=limits.INT_MAX)] | None
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    error: str
    """Empty in a record that was parsed: it is for people, and nothing compares it."""
    omitted: Omitted | None


_decoder = msgspec.json.Decoder(QuarantinedRecord)


# --- reading


def quarantine_lines(pieces: Iterator[bytes], size: int, inflated: int, *, exact: bool = True) -> Iterator[bytes]:
    """Yield the lines of a quarantine object, without newlines.

    Args:
        pieces: its bytes, cut anywhere; none is taken where it is beyond the limits.
        size: bytes stored, as stated.
        inflated: bytes inflated, as stated.
        exact: whether `inflated` is the size, rather than a bound of it.

    Raises:
        FormatError: it is not one gzip member of lines within the limits.
    """
    if size > limits.QUARANTINE_BYTES or inflated > limits.QUARANTINE_INFLATED:
        raise FormatError(f"{size} bytes stored and {inflated} inflated are beyond the limits: not inflated")
    held: list[bytes] = []
    total = start = 0
    for chunk in inflate_stream(pieces, inflated, single=True):
        held.append(chunk)
        # A long line comes in many chunks, and is put together once.
        if b"\n" in chunk:
            *whole, rest = b"".join(held).split(b"\n")
            for line in whole:
                _check_length(len(line))
                yield line
            held, start = [rest], total + len(chunk) - len(rest)
        total += len(chunk)
        _check_length(total - start)
    if total > start:
        raise FormatError("the last line does not end in a newline")
    if exact and total != inflated:
        raise FormatError(f"it inflates to {total} bytes ({inflated} stated)")


def _check_length(size: int) -> None:
    if size > limits.QUARANTINE_LINE:
        raise FormatError(f"a line has more than {limits.QUARANTINE_LINE} bytes")


def parse_quarantined(line: bytes) -> QuarantinedRecord:
    """Parse a line of a quarantine object.

    Raises:
        FormatError: it is not of FORMAT.md's form.
    """
    record: QuarantinedRecord = decode_strictly(_decoder, line, "it is no quarantined record")
    if fault := _omission_fault(record):
        raise FormatError(f"it is no quarantined record: {fault}")
    # Writers of other versions may give other reasons: records that differ in no more are equal.
    return msgspec.structs.replace(record, error="")


def _omission_fault(record: QuarantinedRecord) -> str | None:
    """Return why a record may not omit what it does: None if it is too large otherwise, and holds nothing twice."""
    kept = len(record.key or b"") + len(record.value or b"")
    if record.headers:
        kept += sum(map(len, _headers_json(record.headers)))
    if kept > limits.QUARANTINE_RECORD:
        return f"it holds {kept} bytes of key, value and headers (limit {limits.QUARANTINE_RECORD})"
    omitted = record.omitted
    if omitted is None:
        return None
    for name in ("key", "value", "headers"):
        if getattr(omitted, name) and getattr(record, name) not in {None, ()}:
            return f"{name} is there, and omitted"
    size = kept + sum(part.size for part in (omitted.key, omitted.value, omitted.headers) if part)
    if size <= limits.QUARANTINE_RECORD:
        return f"it omits some of its {size} bytes (limit {limits.QUARANTINE_RECORD})"
    return None


# --- writing


def encode_quarantined(
    offset: int,
    timestamp: int | None,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[Header],
    error: str,
) -> bytes:
    """Return a record's line in a quarantine object, without its newline.

    Of a record that is too large the largest parts are left out, so few that the rest keeps to the limit.

    Args:
        offset: its offset.
        timestamp: its time in ms since 1970, if it has one.
        key: its key.
        value: its value.
        headers: its headers.
        error: why it is no event, for people.
    """
    plain = {"key": key, "value": value}
    headers_json, omitted = _leave_out(plain, headers)
    pieces = [b'{"offset":%d,"timestamp":%b' % (offset, _json(timestamp))]
    for name, part in plain.items():
        pieces.append(b',"%b":' % name.encode())
        null = part is None or (omitted is not None and omitted[name])
        pieces += [b"null"] if null else [b'"', base64.b64encode(part or b""), b'"']
    pieces += [b',"headers":', *(headers_json or [b"[]"])]
    pieces.append(b',"error":%b,"omitted":%b}' % (_json(error), _json(omitted)))
    return b"".join(pieces)


def _leave_out(
    plain: Mapping[str, bytes | None], headers: Sequence[Header]
) -> tuple[list[bytes], dict[str, dict[str, Any] | None] | None]:
    """Return the headers' JSON in pieces, empty if it is left out, and what is left out of a record: None if nothing.

    Args:
        plain: the record's key and value.
        headers: its headers.
    """
    sizes = {name: len(part or b"") for name, part in plain.items()}
    sizes["headers"] = 0
    digest = sha256()
    # Only as much of them is held as may be kept.
    held: list[bytes] = []
    for piece in _headers_json(headers) if headers else ():
        digest.update(piece)
        sizes["headers"] += len(piece)
        if sizes["headers"] <= limits.QUARANTINE_RECORD:
            held.append(piece)
    omitted: dict[str, dict[str, Any] | None] = dict.fromkeys(sizes)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sum(sizes.values()) <= limits.QUARANTINE_RECORD:
            break
        made = digest if name == "headers" else sha256(plain[name] or b"")
        omitted[name] = {"size": sizes.pop(name), "sha256": made.hexdigest()}
    return [] if omitted["headers"] else held, omitted if any(omitted.values()) else None


def _headers_json(headers: Iterable[Header]) -> Iterator[bytes]:
    """Yield the JSON of a record's headers in pieces: a header may be larger than what may be held twice."""
    opening = b"[["
    for name, value in headers:
        yield opening + b'"'
        for start in range(0, len(name), _PIECE):
            yield _json(name[start : start + _PIECE])[1:-1]
        yield b'",'
        if value is None:
            yield b"null"
        else:
            yield b'"'
            for start in range(0, len(value), _PIECE):
                yield base64.b64encode(memoryview(value)[start : start + _PIECE])
            yield b'"'
        opening = b"],["
    yield b"]]"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
