"""Adversarial shapes of any size, and whether processor time grows no faster than they do.

A shape is bytes of about a given size that one kind of parser takes too long for: a search that fails late, a copy for
each item, a number that is converted, nesting. What grows with the square of the size takes 16 times as long for four
times the size; what is linear takes four times as long. At one size a linear check may need its first fresh pages of
memory, which cost more than the work: such a step comes once, and what is quadratic grows at each doubling.
"""

import gc
import gzip
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO
from itertools import pairwise
from statistics import median
from zipfile import ZipFile

Shape = Callable[[int], bytes]
BASE = 32 * 1024
"""The smallest size that is measured; the largest is four times as large."""
_MOST = 8.0
"""How many times as long four times the size may take: twice what is linear, half of what is quadratic."""
_DOUBLINGS = 3
"""How often the size is doubled where four times the size took too long. Most doublings decide."""
_EACH = 3.25
"""How many times as long twice the size may take: what is linear takes 2, and up to 3 where caches are shared and too
small; what is quadratic takes 4."""
_ATTEMPTS = 3
_FLOOR = 0.0004
"""Seconds of processor time below which a measurement is noise."""
_REPEATS = 7


def _list(item: Callable[[int], bytes]) -> Shape:
    """Return the shape of a JSON array of many items."""
    return lambda size: b"[" + b",".join(map(item, range(size // len(item(99_999))))) + b"]"


def _object(name: Callable[[int], bytes], more: bytes = b"") -> Shape:
    """Return the shape of a JSON object of many names."""
    return lambda size: b"{" + b",".join(b"%b:0" % name(at) for at in range(size // 12)) + more + b"}"


def _repeat(item: bytes, before: bytes = b"", behind: bytes = b"") -> Shape:
    return lambda size: before + item * (size // len(item)) + behind


def _zip(size: int) -> bytes:
    made = BytesIO()
    with ZipFile(made, "w") as file:
        for number in range(size // 120):
            file.writestr(f"{number}", b"")
    return made.getvalue()


_EMPTY = gzip.compress(b"", 1, mtime=0)
_EVENT = b'{"event_type":"a","timestamp":"2026-03-01T00:00:00Z"}\n'
_SIGNATURE = b'{"key":"%d","algorithm":"HMAC-SHA256","value":"AAAA"}'

SHAPES: Mapping[str, Shape] = {
    "string without end": _repeat(b"a", b'"'),
    "string without end, quotes": _repeat(b'\\"', b'"'),
    "string without end, then openers": _repeat(b'\\"', b'"', b"[" * 99),
    "string without end, half an escape": _repeat(b'\\"', b'"' + b"[" * 99, b"\\"),
    "escapes": _repeat(b"\\u0061", b'"', b'"'),
    "backslashes": _repeat(b"\\\\", b'"', b'"'),
    "lone surrogates": _repeat(b"\\ud800", b'"', b'"'),
    "no UTF-8": _repeat(b"\xff", b'"', b'"'),
    "long characters": _repeat("😀".encode(), b'"', b'"'),
    "openers in a string": _repeat(b"[{", b'"', b'"'),
    "base64": _repeat(b"AAAA", b'"', b'"'),
    "padding": _repeat(b"=", b'"AAAA', b'"'),
    "quotes": _repeat(b'"'),
    "arrays without end": _repeat(b"["),
    "objects without end": _repeat(b'{"a":'),
    "arrays": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "objects": lambda size: b'{"a":' * (size // 6) + b"0" + b"}" * (size // 6),
    "closers": _repeat(b"]}"),
    "many keys": _object(lambda at: b'"%07d"' % at),
    "one key, many times": _object(lambda _: b'"aaaaaaa"'),
    "many keys, the last one twice": _object(lambda at: b'"%07d"' % at, b',"a":0,"a":0'),
    "keys that differ at their ends": lambda size: _object(lambda at: b'"%b%02d"' % (b"k" * 900, at))(size // 100),
    "long key": _repeat(b"k", b'{"', b'":0}'),
    "long number": _repeat(b"9"),
    "long negative number": _repeat(b"9", b"-"),
    "long fraction": _repeat(b"9", b"0."),
    "long exponent": _repeat(b"9", b"1e"),
    "many numbers": _list(lambda at: b"%d" % at),
    "long numbers": _list(lambda _: b"9" * 5_000),
    "many ranges": _list(lambda at: b"[%d,%d]" % (3 * at, 3 * at + 1)),
    "many empty objects": _list(lambda _: b"{}"),
    "many hashes": _list(lambda _: b'"%b"' % (b"0" * 64)),
    "many signatures": lambda size: b'{"signatures":' + _list(lambda at: _SIGNATURE % at)(size) + b"}",
    "signature lines": lambda size: b"a\n1\nAA==\n\n" + "— a AAAAAAAA\n".encode() * (size // 15),
    "dashes": _repeat("— ".encode()),
    "blank": _repeat(b" "),
    "blank, then a document": _repeat(b" ", b"", b"{}"),
    "a document, then blank": _repeat(b" ", b"{}"),
    "lines": _repeat(b"{}\n"),
    "empty lines": _repeat(b"\n"),
    "carriage returns": _repeat(b"\r\n"),
    "events": _repeat(_EVENT),
    "events of many types": lambda size: b"".join(
        _EVENT.replace(b'"a"', b'"%d"' % at) for at in range(size // len(_EVENT))
    ),
    "an event with a long time": _repeat(b"0", b'{"event_type":"a","timestamp":"2026-03-01T00:00:00.', b'Z"}\n'),
    "many unlike times": lambda size: b"".join(
        _EVENT.replace(b"00Z", b"00.%bZ" % (b"1" * (at % 400 + 1))) for at in range(size // 250)
    ),
    "verdicts": _repeat(b'{"kind":"finding","finding":"empty","severity":"notice","message":"a"}\n'),
    "zeros": _repeat(b"\0"),
    "slashes": _repeat(b"/"),
    "folders": _repeat(b"a/"),
    "parents": _repeat(b"../"),
    "ones with hyphens": _repeat(b"1-"),
    "at signs": _repeat(b"a@2"),
    "plus signs": _repeat(b"a+"),
    "empty members": _repeat(_EMPTY),
    "a long line, then empty members": lambda size: (
        gzip.compress(b"a" * (7 * size), 1, mtime=0) + _repeat(_EMPTY)(size)
    ),
    "members of one byte": _repeat(gzip.compress(b"a", 1, mtime=0)),
    "members": _repeat(gzip.compress(_EVENT, 1, mtime=0)),
    "a member that inflates": lambda size: gzip.compress(bytes(8 * size), 1, mtime=0),
    "a member of lines": lambda size: gzip.compress(_EVENT * (size // 4), 1, mtime=0),
    "a member without its end": lambda size: gzip.compress(_repeat(_EVENT)(4 * size), 0, mtime=0)[:size],
    "many files": _zip,
}


def inflating(block: bytes, times: int) -> bytes:
    """Return a gzip member of a block very many times, and never hold more than one of them."""
    packer = zlib.compressobj(9, wbits=-15)
    crc = 0
    parts = [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"]
    for _ in range(times):
        parts.append(packer.compress(block))
        crc = zlib.crc32(block, crc)
    parts.append(packer.flush() + struct.pack("<II", crc, len(block) * times & 0xFFFFFFFF))
    return b"".join(parts)


@cache
def bombs() -> Mapping[str, bytes]:
    """Return small gzip data of 512 MiB each, far more than a door may hold: as one member, and as many."""
    events = _EVENT * ((1 << 20) // len(_EVENT))
    return {
        "a bomb of zeros": inflating(bytes(1 << 20), 512),
        "a bomb of events": inflating(events, 512),
        "a bomb of members": gzip.compress(events * 8, 9, mtime=0) * 64,
    }


def check_growth(check: Callable[[bytes], object], make: Shape) -> None:
    """Assert that what is checked takes time in proportion to its size.

    Args:
        check: takes the bytes.
        make: returns bytes of about a size.
    """
    # What does not grow is not asked for more than once.
    if _seconds(check, make(4 * BASE)) <= _MOST * max(_seconds(check, make(BASE)), _FLOOR):
        return
    sizes = [make(BASE << doubling) for doubling in range(_DOUBLINGS + 1)]
    shown = []
    for _ in range(_ATTEMPTS):
        times = [min(_seconds(check, data) for _ in range(_REPEATS)) for data in sizes]
        factors = [after / max(before, _FLOOR) for before, after in pairwise(times)]
        if median(factors) <= _EACH:
            return
        each = zip(times, sizes, strict=True)
        shown.append(", ".join(f"{1000 * seconds:.1f} ms for {len(data):,}" for seconds, data in each))
    raise AssertionError(f"it grows faster than its input: {'; '.join(shown)}")


def _seconds(check: Callable[[bytes], object], data: bytes) -> float:
    # A collection of all objects comes now and then, and takes as long as this process has others.
    gc.disable()
    try:
        began = time.process_time()
        check(data)
        return time.process_time() - began
    finally:
        gc.enable()
