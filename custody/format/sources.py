"""The numbers that emitters give to their events: `source`, `source_seq`, and the two events at a source's ends. Pure.

A source is one process of an application: `service/instance/pid-start`. It numbers its events 1, 2, 3 … So a number
that is missing is an event that was lost before Kafka, and a number that is there twice was sent again. No type defines
these fields: producers choose them, and nothing has checked them. A value that breaks a rule below names nothing.

- `source` is a string of 1 to 256 characters.
- `source_seq` is an integer from 1 to 2^63-1, written without fraction and exponent.
"""

from collections.abc import Sequence

import msgspec

from custody.format import limits, lines

EVENT_ID, SOURCE, NUMBER = "event_id", "source", "source_seq"
STARTED, STOPPED = "emitter_started", "emitter_stopped"
"""Types of a source's first event, and of its last one."""
SOURCE_LENGTH = 256
"""Characters of the longest source."""

_DIGITS = len(str(limits.INT_MAX))
_texts: msgspec.json.Decoder[list[str | None]] = msgspec.json.Decoder(list[str | None])
_HOSTILE = (msgspec.MsgspecError, ValueError, RecursionError)


def service_of(source: str) -> str:
    """Return the service that a source names."""
    return source.partition("/")[0]


def texts_of(values: Sequence[bytes]) -> list[str | None]:
    """Return the text of each JSON value; None for a value that is no string. Half characters are replaced."""
    strings = [value if value[:1] == b'"' else b"null" for value in values]
    try:
        return _texts.decode(b"[%b]" % b",".join(strings))
    except _HOSTILE:
        return [_text_of(value) for value in strings]


def sources_of(values: Sequence[bytes]) -> list[str | None]:
    """Return the source that each JSON value names; None for a value that names none."""
    # A string of N characters has at least N bytes, and at most six for each: longer ones are not decoded.
    longest = 6 * SOURCE_LENGTH + 2
    return [
        text if text and len(text) <= SOURCE_LENGTH else None
        for text in texts_of([value if len(value) <= longest else b"" for value in values])
    ]


def number_of(value: bytes) -> int | None:
    """Return the number that a JSON value is; None for a value that is none."""
    if not value.isdigit() or len(value) > _DIGITS:
        return None
    number = int(value)
    return number if 1 <= number <= limits.INT_MAX else None


def numbers_of(values: Sequence[bytes]) -> list[int | None]:
    """Return the number that each JSON value is; None for a value that is none."""
    return list(map(number_of, values))


def _text_of(value: bytes) -> str | None:
    try:
        return _texts.decode(b"[%b]" % lines.without_half_characters(value))[0]
    except _HOSTILE:
        return None
