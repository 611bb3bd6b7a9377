"""Sets of numbers of a source in little memory: 1,024 numbers are one integer of 1,024 bits. Pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

_CHUNK = 1024
_FULL = (1 << _CHUNK) - 1
_RUN = re.compile("1+")


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Numbers of consecutive chunks; `bits` is empty if all of them are in the set."""

    chunk: int
    many: int
    bits: bytes


@dataclass(slots=True)
class Room:
    """How many more chunks several sets may have together: a producer may scatter its numbers."""

    left: int


class Numbers:
    """A set of numbers from 1 on."""

    __slots__ = ("_chunks",)

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._chunks: dict[int, int] = {}
        for part in parts:
            bits = int.from_bytes(part.bits, "little") if part.bits else _FULL
            self._chunks.update(dict.fromkeys(range(part.chunk, part.chunk + part.many), bits))

    def add(self, number: int, room: Room) -> bool | None:
        """Add a number. Return whether it is new; None if there is no room for it."""
        chunk, bit = (number - 1) // _CHUNK, 1 << (number - 1) % _CHUNK
        bits = self._chunks.get(chunk)
        if bits is None:
            if room.left <= 0:
                return None
            room.left -= 1
            bits = 0
        self._chunks[chunk] = bits | bit
        return not bits & bit

    def merge(self, other: "Numbers") -> Iterator[tuple[int, int]]:
        """Add another set, and yield the runs `(first, last)` of numbers that both have."""
        for chunk, bits in other._chunks.items():  # noqa: SLF001 - of the same class
            mine = self._chunks.get(chunk, 0)
            self._chunks[chunk] = mine | bits
            if mine & bits:
                yield from _runs(chunk, mine & bits)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the runs `(first, last)` of consecutive numbers, in order."""
        begun: tuple[int, int] | None = None
        for chunk in sorted(self._chunks):
            for first, last in _runs(chunk, self._chunks[chunk]):
                if begun and begun[1] + 1 == first:
                    begun = begun[0], last
                    continue
                if begun:
                    yield begun
                begun = first, last
        if begun:
            yield begun

    def parts(self) -> list[Part]:
        """Return the set as values to be stored."""
        made: list[Part] = []
        for chunk in sorted(self._chunks):
            bits = self._chunks[chunk]
            before = made[-1] if made else None
            if bits != _FULL:
                made.append(Part(chunk, 1, bits.to_bytes(_CHUNK // 8, "little")))
            elif before and not before.bits and before.chunk + before.many == chunk:
                made[-1] = Part(before.chunk, before.many + 1, b"")
            else:
                made.append(Part(chunk, 1, b""))
        return made


def _runs(chunk: int, bits: int) -> Iterator[tuple[int, int]]:
    start = chunk * _CHUNK + 1
    if bits == _FULL:
        yield start, start + _CHUNK - 1
        return
    for match in _RUN.finditer(f"{bits:b}"[::-1]):
        yield start + match.start(), start + match.end() - 1
