"""Batches to gzip members and back, with every bound checked (FORMAT.md, Segment; RFC 1952).

Members are made by isal, several times faster than zlib at the same ratio. Its output depends on the processor, so two
machines may store the same events in other bytes: what is compared across machines is what a member inflates to.
"""

import zlib
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from isal import igzip, isal_zlib

from custody.errors import FormatError
from custody.format import hasher

DEFAULT_LEVEL = 1
_WORTH_A_THREAD = 64 * 1024
"""Bytes from which on to hash beside compressing saves more than the hand-over costs."""

_DAMAGED: tuple[Any, ...] = (zlib.error, isal_zlib.error)  # isal's stub gives its error no type


@dataclass(frozen=True, slots=True)
class Member:
    """One gzip member: its bytes, and the size and hex SHA-256 of what it inflates to."""

    data: bytes
    inflated: int
    sha256: str


def pack(payload: bytes, level: int = DEFAULT_LEVEL) -> Member:
    """Compress one batch's lines into a gzip member with mtime 0 and no file name.

    Args:
        payload: the lines, each with its newline.
        level: isal's, 0 (fastest) to 3 (smallest).
    """
    if len(payload) < _WORTH_A_THREAD:
        return Member(igzip.compress(payload, level, mtime=0), len(payload), sha256(payload).hexdigest())
    digest = hasher.submit(payload)
    data = igzip.compress(payload, level, mtime=0)
    return Member(data, len(payload), digest.get())


def inflate(member: bytes, stated: int) -> bytes:
    """Return what one whole gzip member holds.

    Args:
        member: the stored bytes, of one member and nothing else.
        stated: how many bytes it should inflate to; never more than one beyond this are inflated.

    Raises:
        FormatError: it is not one whole member (bad header, CRC or length, cut short, something left over), or does not
            inflate to the size stated.
    """
    machine = isal_zlib.decompressobj(wbits=31)
    try:
        payload: bytes = machine.decompress(member, stated + 1)
    except _DAMAGED as error:
        raise FormatError(f"the gzip member is damaged: {error}") from None
    if len(payload) > stated:
        raise FormatError(f"the gzip member inflates to more than the {stated} bytes stated")
    if not machine.eof:
        raise FormatError("the gzip member is cut short")
    if machine.unused_data:
        raise FormatError(f"{len(machine.unused_data)} bytes follow the end of the gzip member")
    if len(payload) != stated:
        raise FormatError(f"the gzip member inflates to {len(payload)} bytes, not the {stated} stated")
    return payload
