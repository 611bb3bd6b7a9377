"""Batches to gzip members and back, with every bound checked (FORMAT.md, Segment; RFC 1952).

Members are made by isal, several times faster than zlib at the same ratio. Its output depends on the processor, so two
machines may store the same events in other bytes: what is compared across machines is what a member inflates to.
"""

import os
import threading
import zlib
from dataclasses import dataclass
from hashlib import sha256
from queue import SimpleQueue
from typing import Any

from isal import igzip, isal_zlib

from custody.errors import FormatError

BATCH_LIMIT = 16 * 1024 * 1024
"""Inflated bytes in a batch of more than one event."""
BATCH_EVENTS_LIMIT = 10_000
SEGMENT_LIMIT = 256 * 1024 * 1024
"""Stored bytes in a segment."""
QUARANTINE_LIMIT = 64 * 1024 * 1024
"""Stored bytes in a quarantine object."""
QUARANTINE_INFLATED_LIMIT = 512 * 1024 * 1024
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
    digest = _hasher.submit(payload)
    data = igzip.compress(payload, level, mtime=0)
    return Member(data, len(payload), digest.get())


class _Hasher:
    """A thread that hashes while its callers compress: neither needs the interpreter's lock for it.

    An executor's futures would cost three times as much, a third of what is saved.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: SimpleQueue[tuple[bytes, SimpleQueue[str]]] | None = None

    def submit(self, payload: bytes) -> SimpleQueue[str]:
        """Begin; the queue returned gets the hex SHA-256."""
        answer: SimpleQueue[str] = SimpleQueue()
        with self._lock:
            if self._asked is None:
                self._asked = SimpleQueue()
                threading.Thread(target=self._serve, args=(self._asked,), name="sha256", daemon=True).start()
            self._asked.put((payload, answer))
        return answer

    @staticmethod
    def _serve(asked: "SimpleQueue[tuple[bytes, SimpleQueue[str]]]") -> None:
        while True:
            payload, answer = asked.get()
            answer.put(sha256(payload).hexdigest())


def _begin_again() -> None:
    global _hasher
    _hasher = _Hasher()


_hasher = _Hasher()
# A child has its parent's queue, and not its thread.
os.register_at_fork(after_in_child=_begin_again)


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
