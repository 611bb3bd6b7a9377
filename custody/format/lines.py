"""Checks which lines are events by FORMAT.md: all of a batch at once for the verifier, one value for the writer.

A batch takes one of two paths, and the verdict is the same on both:

- **fast**: msgspec decodes `event_type` and `timestamp` of all lines in one call. Tests over the whole batch then rule
  out what msgspec lets pass: two documents on one line, and one document on two lines. In values that it skips it also
  lets pass bad UTF-8, nesting beyond the limit, and either of the two keys a second time.
- **slow**: the standard library's parser reads each line for which the fast path cannot vouch. The slow path decides;
  the fast path only ever answers "certainly an event".
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec

from custody.errors import FormatError
from custody.format import limits
from custody.format.strict_json import check_depth
from custody.format.times import EPOCH, YEAR_10000

_PART = 1_048_576
"""Bytes of a batch that are tried at once."""
_CHUNK = 32
"""Lines that are tried together once their batch has failed the fast path."""
_UNIFORM = 4
"""Times from which on it is worth while to compare their layouts, rather than to parse each."""

_OPENERS = frozenset(b"{[\n")
_TO_BRACES = bytes.maketrans(b"[", b"{")
_MANY_OPENERS = b"{" * (limits.EVENT_DEPTH + 1)
_NO_OPENER = bytes(byte for byte in range(256) if byte not in _OPENERS)
# What a batch's frame keeps: all that JSON is built of but strings and scalars, newlines, and of the letters of our two
# keys those that are rare. In it "event_type": reads vyp: and "timestamp": reads mmp:, whatever white space there is.
_FRAME = frozenset(b"{}[]:,\nvypm")
_NO_FRAME = bytes(byte for byte in range(256) if byte not in _FRAME)
_TO_ZERO = str.maketrans("123456789", "000000000")
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
# What fromisoformat lets in differs from one Python to the next: 24:00 is refused here.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T(?!24)[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?"
    r"(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_TEMPLATE = re.compile(r"0000-00-00T00:00:00(?:\.0+)?(?:Z|[+-]00:00)")
# A pair of surrogates, or half of one. An escaped backslash is passed over.
_SURROGATES = re.compile(
    rb"(\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
# Letters and `_` stand at 0x5f to 0x7a: only these escapes can spell a key of ours in another way.
_LETTER_ESCAPES = (b"\\u005", b"\\u006", b"\\u007")


class Time(NamedTuple):
    """An exact moment: tuples compare as moments do."""

    seconds: int
    """Since 1970, in UTC."""
    fraction: str
    """Decimal digits after the point, without trailing zeros: as strings they compare as fractions do."""

    @property
    def microseconds(self) -> tuple[int, bool]:
        """Whole microseconds since 1970, and whether there is more behind them."""
        return self.seconds * 1_000_000 + int(self.fraction[:6].ljust(6, "0")), len(self.fraction) > len("000000")

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.seconds, UTC)
        shown = self.fraction if len(self.fraction) <= len("000000000000") else self.fraction[:12] + "…"
        return f"{moment:%Y-%m-%dT%H:%M:%S}{'.' + shown if shown else ''}Z"


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no event."""

    line: int
    """Counted from 0 within the batch."""
    byte: int
    """Where the line begins in the batch."""
    reason: str


@dataclass(frozen=True, slots=True)
class Lines:
    """The verdict on the lines of a batch."""

    count: int
    """Lines, a last one without its newline counted."""
    types: Mapping[str, int]
    """Events of each type."""
    first: Time | None
    """The earliest event's own time; None where no line is an event."""
    last: Time | None
    faults: Sequence[Fault]


class Envelope(msgspec.Struct, gc=False):
    """The two fields of every event."""

    event_type: str
    timestamp: str


class _KnownEnvelope(msgspec.Struct, gc=False):
    """An event of our own types. msgspec makes one string of each type for all lines, so it is hashed once."""

    event_type: Literal[
        "query_executed", "auth_attempt", "authz_check", "api_key_operation", "security_event", "config_change"
    ]
    timestamp: str


_decode_lines = msgspec.json.Decoder(Envelope).decode_lines
_decode_known_lines = msgspec.json.Decoder(_KnownEnvelope).decode_lines
_event_type = attrgetter("event_type")
_timestamp = attrgetter("timestamp")


def check(payload: bytes) -> Lines:
    """Check each line of a batch's inflated bytes against FORMAT.md's definition of an event.

    Beyond `limits.BATCH_EVENTS` lines only the count is taken, and one fault says so.
    """
    if len(payload) <= _PART and (known := _fast(payload)) and known.count <= limits.BATCH_EVENTS:
        return known
    if (count := payload.count(b"\n") + (not payload.endswith(b"\n"))) > limits.BATCH_EVENTS:
        reason = f"{count} lines in one batch (limit {limits.BATCH_EVENTS})"
        return Lines(count, {}, None, None, [Fault(limits.BATCH_EVENTS, 0, reason)])
    return _piecewise(payload)


def certain(payload: bytes, count: int) -> bool:
    """Return whether the payload, in which msgspec found `count` objects, also passes the checks that msgspec skips.

    One object is on each line, each has `event_type` and `timestamp` once, nesting keeps to the limit, and all is
    UTF-8. If this returns False, the slow path must decide.

    Args:
        payload: lines, each with its newline.
        count: objects, each with both keys; one at least.
    """
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            return False
    frame = payload.translate(None, _NO_FRAME)
    openers = frame.translate(_TO_BRACES, _NO_OPENER)
    # As many documents as lines, and none crosses a newline: within a document a newline, which no string holds, has
    # beside it a bracket, comma or colon, and not a closing brace before it and an opening one behind it. So each line
    # has a document, and none has two.
    if openers.count(b"\n") != count or frame.count(b"}\n{") != count - 1:
        return False
    # Both keys stand in each line: as often as there are lines is once in each. Other text may read in the frame as a
    # key does, and then the bytes themselves are asked; but no key is lost in it, unless it is spelled in another way.
    if frame.count(b"vyp:") != count and payload.count(b'"event_type"') != count:
        return False
    if frame.count(b"mmp:") != count and payload.count(b'"timestamp"') != count:
        return False
    # One byte is found many times as fast as four.
    if b"\\" in payload and any(escape in payload for escape in _LETTER_ESCAPES):
        return False
    # Openers bound the depth from above, those within strings counted too.
    return _MANY_OPENERS not in openers


def check_line(line: bytes) -> tuple[str, Time]:
    """Return the type and the time of one event, given without its newline. This is the slow path.

    Raises:
        FormatError: it is no event; the message says why.
    """
    if len(line) > limits.EVENT_BYTES:
        raise FormatError(oversize(len(line)))
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: byte 0x{line[error.start]:02x} at {error.start}") from None
    if text.startswith("\ufeff"):
        raise FormatError("starts with a byte order mark")
    check_depth(line, limits.EVENT_DEPTH)
    members = _read_members(text)
    event_type = _only(members, "event_type")
    if fault := type_fault(event_type):
        raise FormatError(fault)
    timestamp = _only(members, "timestamp")
    time = parse_time(timestamp)
    if time is None:
        raise FormatError(
            f"timestamp {shorten(timestamp)} is not an RFC 3339 time with zone, such as 2026-01-31T23:59:59.123Z,"
            " of the years 1970 to 9999"
        )
    return event_type, time


def without_half_characters(text: bytes) -> bytes:
    """Return JSON in which each half of a surrogate pair is the sign for an unknown character.

    FORMAT.md allows an event to have such halves, as JSON does. msgspec and DuckDB refuse them.
    """
    return _SURROGATES.sub(lambda match: match[1] or rb"\ufffd", text) if b"\\u" in text else text


def oversize(size: int) -> str:
    """Return why a value of so many bytes is no event."""
    return f"the value has {size} bytes, more than the {limits.EVENT_BYTES} of an event"


def parse_time(text: str) -> Time | None:
    """Return the moment that an event's `timestamp` names, None where it is not of FORMAT.md's form."""
    match = _TIME.fullmatch(text)
    if not match:
        return None
    try:
        moment = datetime.fromisoformat(match[1] + "+00:00") - EPOCH
    except ValueError:
        return None
    seconds = moment.days * 86_400 + moment.seconds
    if match[3]:
        offset = int(match[4]) * 3600 + int(match[5]) * 60
        seconds += offset if match[3] == "-" else -offset
    if not 0 <= seconds < YEAR_10000:
        return None
    return Time(seconds, (match[2] or "").rstrip("0"))


def _parts(payload: bytes) -> Iterator[bytes]:
    """Cut a batch between lines, because the tests below copy some of the bytes."""
    start = 0
    while start < len(payload):
        end = payload.rfind(b"\n", start, start + _PART) + 1 or payload.find(b"\n", start + _PART) + 1 or len(payload)
        yield payload[start:end]
        start = end


def _piecewise(payload: bytes) -> Lines:
    """Find the lines at fault: try the fast path on parts, then on chunks of a bad part, then check single lines."""
    types: Counter[str] = Counter()
    times: list[Time] = []
    faults: list[Fault] = []
    number = byte = 0

    def vouch(part: bytes) -> bool:
        nonlocal number, byte
        known = _fast(part)
        if known is None:
            return False
        types.update(known.types)
        times.extend(time for time in (known.first, known.last) if time is not None)
        number += known.count
        byte += len(part)
        return True

    for part in _parts(payload):
        if vouch(part):
            continue
        lines = io.BytesIO(part).readlines()
        for start in range(0, len(lines), _CHUNK):
            chunk = lines[start : start + _CHUNK]
            if vouch(b"".join(chunk)):
                continue
            for line in chunk:
                try:
                    type_, time = check_line(line.removesuffix(b"\n"))
                    types[type_] += 1
                    times.append(time)
                    if not line.endswith(b"\n"):
                        faults.append(Fault(number, byte, "the last line does not end in a newline"))
                except FormatError as error:
                    faults.append(Fault(number, byte, str(error)))
                number += 1
                byte += len(line)
    return Lines(number, types, min(times, default=None), max(times, default=None), faults)


def _fast(payload: bytes) -> Lines | None:
    """Return what the lines are if every line is certainly an event, None if the slow path must decide."""
    if len(payload) > limits.EVENT_BYTES or not payload.endswith(b"\n"):
        return None
    events: Sequence[_KnownEnvelope | Envelope]
    try:
        try:
            events = _decode_known_lines(payload)
        except msgspec.ValidationError:
            events = _decode_lines(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not events or not certain(payload, len(events)):
        return None
    bounds = time_bounds(list(map(_timestamp, events)))
    if bounds is None:
        return None
    types = Counter(map(_event_type, events))
    if isinstance(events[0], Envelope) and any(map(type_fault, types)):
        return None
    return Lines(len(events), types, *bounds, ())


def type_fault(name: str) -> str | None:
    """Return why a string is not the type of an event, None if it may be one."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "event_type holds a lone surrogate"
    if 0 < size <= limits.EVENT_TYPE_BYTES:
        return None
    return f"event_type has {size} bytes (1 to {limits.EVENT_TYPE_BYTES})"


def time_bounds(texts: Sequence[str]) -> tuple[Time, Time] | None:
    """Return the earliest and the latest of some times, None if any is not of the form."""
    # Few are sooner parsed one by one.
    if len(texts) >= _UNIFORM and (bounds := _uniform_bounds(texts)):
        return bounds
    groups: dict[tuple[int, str], list[str]] = {}
    for text in texts:
        groups.setdefault((len(text), text[-6:] if text[-1:] != "Z" else "Z"), []).append(text)
    times: list[Time] = []
    for group in groups.values():
        if len(group) >= _UNIFORM and (uniform := _uniform_bounds(group)):
            times.extend(uniform)
            continue
        for text in group:
            time = parse_time(text)
            if time is None:
                return None
            times.append(time)
    return min(times), max(times)


def _uniform_bounds(texts: Sequence[str]) -> tuple[Time, Time] | None:
    """Return the bounds of times that are all written alike, None where they are not, or where one is no time.

    Times of one layout and one offset compare as their texts do. So only the two outermost are parsed; of those between
    it is enough that the dates and hours are real, and minutes and seconds below 60.
    """
    template = texts[0].translate(_TO_ZERO)
    if not _TEMPLATE.fullmatch(template):
        return None
    # A time that held a newline would add one to those that join them, and the whole could not equal the template.
    text = "\n".join(texts)
    if not text.isascii():
        return None
    joined = text.encode()
    if joined.translate(_DIGITS_TO_ZERO) + b"\n" != (template.encode() + b"\n") * len(texts):
        return None
    stride = len(template) + 1
    if joined[14::stride].strip(b"012345") or joined[17::stride].strip(b"012345"):
        return None
    if not template.endswith("Z") and len({text[-6:] for text in texts}) > 1:
        return None
    # Times come nearly sorted, and are sorted sooner than their least and greatest are found.
    ordered = sorted(texts)
    low, high = ordered[0], ordered[-1]
    if low[:13] != high[:13] and not all(parse_time(f"{hour}:00:00Z") for hour in {text[:13] for text in texts}):
        return None
    first, last = parse_time(low), parse_time(high)
    return (first, last) if first and last else None


class _Members(list[tuple[str, Any]]):
    """The members of a JSON object, names that stand twice too."""


_JSON_KINDS = {list: "array", str: "string", bool: "boolean", type(None): "null", int: "number"}


def _read_members(text: str) -> _Members:
    """Return the members of the object that a text is."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        # Numbers may be of any size and none is looked at, so none is converted.
        value = json.loads(text, object_pairs_hook=_Members, parse_constant=refuse, parse_int=len, parse_float=len)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from None
    if not isinstance(value, _Members):
        raise FormatError(f"a JSON {_JSON_KINDS[type(value)]}, not an object")
    return value


def _only(members: _Members, name: str) -> str:
    """Return the value of the one member of a name, a string."""
    values = [value for key, value in members if key == name]
    if len(values) != 1:
        raise FormatError(f"{name} stands {len(values)} times" if values else f"{name} is missing")
    if not isinstance(values[0], str):
        raise FormatError(f"{name} is not a string")
    return values[0]


def shorten(text: str) -> str:
    """Return a text from an event as a message shows it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
