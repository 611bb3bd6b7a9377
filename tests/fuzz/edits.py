"""Small edits that turn good bytes into bad ones: of bytes, of spans, and of JSON's tokens."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

TOKENS = (
    b"null",
    b"true",
    b"-1",
    b"-0",
    b"0",
    b"1",
    b"1.0",
    b"1e400",
    b"9223372036854775807",
    b"9223372036854775808",
    b"3" * 400,
    b'""',
    b'"x"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"NaN",
    b"Infinity",
    b"[]",
    b"{}",
    b"[0,0]",
    b"[" * 80 + b"]" * 80,
    b'{"a":' * 70 + b"1" + b"}" * 70,
    b'"2026-02-30T00:00:00.000000Z"',
    b'"9999-12-31T23:59:59.999999Z"',
    b'"0000-00-00T00:00:00.000000Z"',
    b"\n",
    b"\r\n",
    b"\x00",
    b"\xef\xbb\xbf",
    b" ",
    b",",
    b'"',
    b"\\",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff",
    b"\x01\x00\x00\xff\xff",
    b"\x03\x00",
    bytes(64),
    b"../",
    b"@2",
    "— ".encode(),
    b"A" * 43 + b"=",
)
"""What parsers trip over."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.){0,400}"|-?[0-9.eE+-]+|true|false|null|[\[\]{}:,]')
SIZE_LIMIT = 1 << 16


class Edit(NamedTuple):
    """One edit. Places are shares of the whole, in 65536ths, so that an edit means something for bytes of any size."""

    kind: int
    place: int
    size: int
    token: int


KINDS = 10


def apply(data: bytes, edits: Sequence[Edit], others: Sequence[bytes] = ()) -> bytes:
    """Return data after the edits, one after the other; some take spans from other data."""
    for edit in edits:
        data = _apply(data, edit, others)[:SIZE_LIMIT]
    return data


def _apply(data: bytes, edit: Edit, others: Sequence[bytes]) -> bytes:
    start = len(data) * edit.place >> 16
    end = min(len(data), start + 1 + (edit.size & 63))
    token = TOKENS[edit.token % len(TOKENS)]
    match edit.kind % KINDS:
        case 0 if data:
            at = min(start, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << (edit.size & 7))]) + data[at + 1 :]
        case 1:
            return data[:start] + data[end:]
        case 2:
            return data[:end] + data[start:end] + data[end:]
        case 3:
            return data[:start] + token + data[start:]
        case 4:
            return data[:start]
        case 5:
            return data[:start] + bytes([edit.token & 255]) * (end - start) + data[end:]
        case 6 if others:
            other = others[edit.token % len(others)]
            cut = len(other) * edit.size >> 16
            return data[:start] + other[cut:]
        case 7 | 8:
            return _replace_token(data, edit, token)
        case 9:
            return _swap_tokens(data, edit)
    return data + token


def _replace_token(data: bytes, edit: Edit, token: bytes) -> bytes:
    found = list(_TOKEN.finditer(data[:SIZE_LIMIT]))
    if not found:
        return token + data
    chosen = found[len(found) * edit.place >> 16]
    return data[: chosen.start()] + token + data[chosen.end() :]


def _swap_tokens(data: bytes, edit: Edit) -> bytes:
    found = list(_TOKEN.finditer(data[:SIZE_LIMIT]))
    if not found:
        return data[::-1]
    one, other = sorted((len(found) * edit.place >> 16, len(found) * edit.size >> 16))
    if one == other:
        return data
    first, second = found[one], found[other]
    return b"".join(
        (data[: first.start()], second[0], data[first.end() : second.start()], first[0], data[second.end() :])
    )


def draw(dice: random.Random) -> list[Edit]:
    """Return a few edits, one more often than many."""
    number = 1 + min(dice.getrandbits(3), dice.getrandbits(3), dice.getrandbits(3))
    return [
        Edit(dice.randrange(KINDS), dice.getrandbits(16), dice.getrandbits(16), dice.getrandbits(16))
        for _ in range(number)
    ]
