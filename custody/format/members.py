"""Gzip members: batches to members and back, with every bound checked (FORMAT.md, Segment; RFC 1952).

There are two ways to make one, and a reader cannot tell which was taken:

- fast: by isal, several times faster than zlib at about the same ratio
- dense: by libdeflate, a sixth smaller at four to five times the time of isal; by zlib where libdeflate is missing

The output of isal depends on the processor, so two machines may store the same events in other bytes: what is compared
across machines is what a member inflates to.
"""

import os
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from queue import SimpleQueue
from typing import Any

from isal import igzip, igzip_lib, isal_zlib

from custody.errors import FormatError
from custody.format import limits
from custody.format.manifest import Batch

DEFAULT_LEVEL = 1
_DENSE_LEVEL = 6
"""Of libdeflate, and of zlib in its place. Level 8 of libdeflate saves 4 % more in two and a half times the time."""
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""How each member begins: deflate, no flags (so no file name), mtime 0."""

_WORTH_A_THREAD = 64 * 1024
"""Bytes from which on to hash beside compressing saves more than the hand-over costs."""
_CHUNK = 1_048_576
_LEAST_WINDOW, _MOST_WINDOW = 1024, 65_536
"""Bytes that an inflater is given at once: first and at most."""
_InflateError: Any = igzip_lib.error  # isal's stub gives its error no type


@dataclass(frozen=True, slots=True)
class Member:
    """One gzip member: its bytes, and the size and hex SHA-256 of what it inflates to."""

    data: bytes
    inflated: int
    sha256: str


def pack(payload: bytes, level: int = DEFAULT_LEVEL, *, dense: bool = False) -> Member:
    """Compress one batch's lines into a gzip member with mtime 0 and no file name.

    Args:
        payload: the lines, each with its newline.
        level: isal's, 0 (fastest) to 3 (smallest).
        dense: take more time for fewer bytes, and no level of isal.
    """
    if len(payload) < _WORTH_A_THREAD:
        return Member(_compress(payload, level, dense), len(payload), sha256(payload).hexdigest())
    digest = _submit(payload)
    data = _compress(payload, level, dense)
    return Member(data, len(payload), digest.get())


def has_libdeflate() -> bool:
    """Return whether dense members are made by libdeflate, and not by zlib."""
    return _libdeflate() is not None


def _compress(payload: bytes, level: int, dense: bool) -> bytes:
    if not dense:
        data: bytes = igzip.compress(payload, level, mtime=0)
        return data
    libdeflate = _libdeflate()
    return bytes(libdeflate(payload, _DENSE_LEVEL)) if libdeflate else zlib.compress(payload, _DENSE_LEVEL, wbits=31)


@cache
def _libdeflate() -> Callable[[bytes, int], bytearray] | None:
    """Return libdeflate's compressor, if it is installed (extra `dense`). Who verifies needs none, and loads none."""
    try:
        from deflate import gzip_compress
    except ImportError:
        return None
    return gzip_compress


def inflate(member: bytes, stated: int) -> bytes:
    """Return what one whole gzip member holds.

    Args:
        member: the stored bytes, of one member and nothing else.
        stated: how many bytes it should inflate to; never more than one beyond this are inflated.

    Raises:
        FormatError: it is not one whole member (other header, bad CRC or length, cut short, something left over), or
            does not inflate to the size stated.
    """
    if not member.startswith(HEADER):
        raise FormatError("the gzip member does not begin as it should (deflate, no flags, mtime 0)")
    # The same machine as zlib's interface has, with less copying.
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    try:
        payload: bytes = inflater.decompress(member, stated + 1)
    except _InflateError as error:
        raise FormatError(f"the gzip member is damaged: {error}") from None
    if len(payload) > stated:
        raise FormatError(f"the gzip member inflates to more than the {stated} bytes stated")
    if not inflater.eof:
        raise FormatError("the gzip member is cut short")
    if inflater.unused_data:
        raise FormatError(f"{len(inflater.unused_data)} bytes follow the end of the gzip member")
    if len(payload) != stated:
        raise FormatError(f"the gzip member inflates to {len(payload)} bytes, not the {stated} stated")
    return payload


def inflate_batch(batch: Batch, member: bytes) -> bytes:
    """Return a batch's lines: its stored member inflated, and compared with what its statement says.

    Raises:
        FormatError: it is not the batch stated, or beyond the limits; then it is not inflated.
    """
    payload = inflate_unchecked(batch, member)
    if sha256(payload).hexdigest() != batch.sha256:
        raise FormatError("the gzip member inflates to bytes of another SHA-256 than stated")
    return payload


def inflate_unchecked(batch: Batch, member: bytes) -> bytes:
    """Return what a batch's stored member inflates to, of the size stated, whatever its SHA-256 is.

    Raises:
        FormatError: it is no whole member of that size, or beyond the limits; then it is not inflated.
    """
    if batch.inflated > limits.BATCH_BYTES:
        raise FormatError(f"{batch.inflated} bytes inflated are stated (limit {limits.BATCH_BYTES}): not inflated")
    if batch.size > limits.MEMBER_BYTES:
        raise FormatError(f"a member of {batch.size} bytes is stated (limit {limits.MEMBER_BYTES}): not inflated")
    if len(member) < batch.size:
        raise FormatError(f"the object ends {batch.size - len(member)} bytes before the gzip member does")
    return inflate(member, batch.inflated)


def inflate_stream(
    pieces: Iterator[bytes], limit: int, *, single: bool = False, any_header: bool = False
) -> Iterator[bytes]:
    """Inflate gzip members that stand one after another, in chunks.

    Args:
        pieces: the stored bytes, cut anywhere.
        limit: how many bytes may be inflated.
        single: whether there must be one member only.
        any_header: whether members may have flags and times, as other programs write them.

    Raises:
        FormatError: they do not inflate, do not end, begin otherwise than ours, go beyond the limit, or are more than a
            single one. It is raised after the last chunk that could be inflated.
    """
    inflater: Any = None
    ended = 0
    header = b""
    for piece in pieces:
        data, position, pending = header + piece, 0, False
        header = b""
        while position < len(data) or pending:
            if inflater is None:
                if single and ended:
                    raise FormatError("bytes follow the end of the gzip member")
                if len(data) - position < len(HEADER):
                    header = data[position:]
                    break
                if not any_header and not data.startswith(HEADER, position):
                    raise FormatError("a gzip member does not begin as it should (deflate, no flags, mtime 0)")
                inflater, window = isal_zlib.decompressobj(wbits=31), _LEAST_WINDOW
            # What an inflater leaves is copied, so it gets little at once: members may be very small, or inflate a lot.
            given = data[position : position + window]
            window = min(2 * window, _MOST_WINDOW)
            try:
                chunk: bytes = inflater.decompress(given, _CHUNK)
            except _InflateError as error:
                raise FormatError(f"a gzip member is damaged: {error}") from None
            limit -= len(chunk)
            if limit < 0:
                raise FormatError("it inflates to more than is stated or allowed")
            yield chunk
            left = len(inflater.unused_data if inflater.eof else inflater.unconsumed_tail)
            position += len(given) - left
            if inflater.eof:
                inflater, pending = None, False
                ended += 1
            else:
                # All input may be taken in while output still waits for room.
                pending = len(chunk) == _CHUNK
                if not chunk and given and left == len(given):
                    raise FormatError("a gzip member is damaged")
    if header or inflater is not None or not ended:
        raise FormatError("the last gzip member is cut short")


# --- hashing in a thread

_Asked = SimpleQueue[tuple[bytes, SimpleQueue[str]]]

_lock = threading.Lock()
_asked: _Asked | None = None


def _submit(payload: bytes) -> SimpleQueue[str]:
    """Begin to hash beside this thread: neither needs the interpreter's lock for it.

    An executor's futures would cost three times as much to hand over, a third of what is saved.

    Returns:
        a queue that gets the hex SHA-256.
    """
    global _asked
    answer: SimpleQueue[str] = SimpleQueue()
    with _lock:
        if _asked is None:
            _asked = SimpleQueue()
            threading.Thread(target=_serve, args=(_asked,), name="sha256", daemon=True).start()
        _asked.put((payload, answer))
    return answer


def _serve(asked: _Asked) -> None:
    while True:
        payload, answer = asked.get()
        answer.put(sha256(payload).hexdigest())


def _begin_again() -> None:
    global _asked, _lock
    _asked, _lock = None, threading.Lock()


# A child has its parent's queue, and not its thread.
os.register_at_fork(after_in_child=_begin_again)
