"""Quarantine objects: one gzip member of lines, each a record that is no event (FORMAT.md, Objects)."""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from custody.errors import FormatError
from custody.format import limits
from custody.format.envelope import Hex, Int
from custody.format.members import inflate_stream
from custody.format.strict_json import unique

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


class _Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offset: Int
    timestamp: Annotated[int, msgspec.Meta(ge=-(2**63), le=limits.INT_MAX)] | None
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
    headers: tuple[Header, ...]
    omitted: Omitted | None = None


_decode = msgspec.json.Decoder(_Quarantined).decode


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
    rest = b""
    total = 0
    for chunk in inflate_stream(pieces, inflated, single=True):
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


def parse_quarantined(line: bytes) -> QuarantinedRecord:
    """Parse a line of a quarantine object.

    Raises:
        FormatError: it is not of FORMAT.md's form.
    """
    try:
        record = _decode(line)
        json.loads(line, object_pairs_hook=unique)
    except (msgspec.MsgspecError, ValueError, RecursionError, FormatError) as error:
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


def _check_omitted(record: _Quarantined, found: QuarantinedRecord) -> None:
    """Check that bytes were left out of a record that is too large, and of no other, and that nothing replaces them.

    Raises:
        FormatError: it is not so.
    """
    kept = len(found.key or b"") + len(found.value or b"")
    if record.headers:
        kept += len(_json(record.headers))
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
    size = kept + sum(part.size for part in (omitted.key, omitted.value, omitted.headers) if part)
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
    parts = _Parts(key, value, headers)
    return b"".join(
        (
            b'{"offset":%d,"timestamp":' % offset,
            _json(timestamp),
            *parts.pieces(),
            b',"error":',
            _json(error),
            b',"omitted":',
            _json(parts.omitted),
            b"}",
        )
    )


class _Parts:
    """What a record has that may be of any size: key, value and headers.

    Attributes:
        omitted: as the line has it: None, or what was left out of a record that is too large.
    """

    def __init__(self, key: bytes | None, value: bytes | None, headers: Sequence[Header]) -> None:
        self._plain = {"key": key, "value": value}
        # Their JSON, as long as it is small enough to be kept.
        self._headers: list[bytes] = []
        sizes = {name: len(part or b"") for name, part in self._plain.items()}
        digest = sha256()
        sizes["headers"] = 0
        for piece in _headers_json(headers) if headers else ():
            digest.update(piece)
            sizes["headers"] += len(piece)
            if sizes["headers"] <= limits.QUARANTINE_RECORD:
                self._headers.append(piece)
        self.omitted: dict[str, dict[str, Any] | None] | None = None
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if sum(sizes.values()) <= limits.QUARANTINE_RECORD:
                break
            self.omitted = self.omitted or dict.fromkeys(("key", "value", "headers"))
            made = digest if name == "headers" else sha256(self._plain[name] or b"")
            self.omitted[name] = {"size": sizes.pop(name), "sha256": made.hexdigest()}

    def pieces(self) -> Iterator[bytes]:
        """Yield the line's three fields."""
        left_out = {name for name, part in (self.omitted or {}).items() if part is not None}
        for name, part in self._plain.items():
            yield b',"%s":' % name.encode()
            yield from (b"null",) if part is None or name in left_out else (b'"', base64.b64encode(part), b'"')
        yield b',"headers":'
        yield from self._headers if self._headers and "headers" not in left_out else (b"[]",)


def _headers_json(headers: Iterable[Header]) -> Iterator[bytes]:
    """Yield the JSON of a record's headers in pieces: a header may be larger than what may be held twice."""
    opening = b"[["
    for name, value in headers:
        yield opening + b'"'
        for at in range(0, len(name), _PIECE):
            yield _json(name[at : at + _PIECE])[1:-1]
        yield b'",'
        if value is None:
            yield b"null"
        else:
            yield b'"'
            for at in range(0, len(value), _PIECE):
                yield base64.b64encode(memoryview(value)[at : at + _PIECE])
            yield b'"'
        opening = b"],["
    yield b"]]"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
