"""The end of an emitted event, `,"source":"…","source_seq":N}`, and what becomes of it in a document. Pure.

A quote within a JSON string is escaped. So these bytes before an event's last brace are members of the event itself,
whatever its strings are.
"""

import re

from custody.format.sources import NUMBER, SOURCE

SOURCE_ID = "id"
"""The field below `source` that has an emitter's source."""

_BEGINS = b',"source":"'
_TAIL = re.compile(rb',"source":("(?:[^"\\]|\\.)*"),"source_seq":([1-9][0-9]{0,18})\}')


def is_numbered(payload: bytes) -> bool:
    """Return whether a batch may have emitted events."""
    return _BEGINS in payload


def tail_of(line: bytes) -> re.Match[bytes] | None:
    """Return the end of an emitted event; None if a line does not end as one."""
    begin = line.rfind(_BEGINS)
    return _TAIL.fullmatch(line, begin) if begin > 0 else None


def without_tail(line: bytes) -> bytes:
    """Return an event without its source and number, if it ends with them."""
    tail = tail_of(line)
    return line[: tail.start()] + b"}" if tail else line


def opened_line(line: bytes) -> bytes:
    """Return an event as a document, without its end."""
    tail = tail_of(line)
    if tail is None:
        return line[:-1]
    return b'%b%b,"%b":%b' % (line[: tail.start()], source_member(tail), NUMBER.encode(), tail[2])


def source_member(tail: re.Match[bytes]) -> bytes:
    """Return the member of a document that has the source of an emitted event."""
    return b',"%b":{"%b":%b}' % (SOURCE.encode(), SOURCE_ID.encode(), tail[1])
