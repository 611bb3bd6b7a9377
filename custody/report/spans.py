"""Which statements of a log were read, and by which audit last. Pure.

Audits are added from the newest back. So of each audit only the statements count that no later audit read again.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Span = tuple[int, int]
"""Statements `[first, end)`."""


def subtract(span: Span, others: Iterable[Span]) -> list[Span]:
    """Return the parts of a span that are in none of the others, which are sorted and disjoint."""
    first, end = span
    parts = []
    for begin, stop in others:
        if stop <= first:
            continue
        if begin >= end:
            break
        if begin > first:
            parts.append((first, begin))
        first = max(first, stop)
    if first < end:
        parts.append((first, end))
    return parts


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the spans sorted, disjoint, and merged as far as possible."""
    merged: list[Span] = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif first < end:
            merged.append((first, end))
    return merged


def common(spans: Iterable[Span], bound: Span) -> list[Span]:
    """Return the parts of spans that are within a bound."""
    cut = ((max(first, bound[0]), min(end, bound[1])) for first, end in spans)
    return [span for span in cut if span[0] < span[1]]


def contains(spans: Sequence[Span], number: int) -> bool:
    """Return whether a number is in one of the spans, which are sorted and disjoint."""
    index = bisect_right(spans, number, key=lambda span: span[0]) - 1
    return index >= 0 and number < spans[index][1]


def length(spans: Iterable[Span]) -> int:
    """Return how many statements are in disjoint spans."""
    return sum(end - first for first, end in spans)


@dataclass(slots=True)
class LastRead:
    """Statements of one log that audits have read."""

    all: list[Span] = field(default_factory=list)
    parts: list[tuple[Span, int]] = field(default_factory=list)
    """Parts, each with the sequence of the last audit that read it."""

    def add(self, spans: Iterable[Span], audit: int) -> list[Span]:
        """Add what an older audit read. Return the parts that no later audit has read."""
        own = [part for span in merge(spans) for part in subtract(span, self.all)]
        self.parts += [(part, audit) for part in own]
        self.all = merge([*self.all, *own])
        return own

    def newest(self) -> int | None:
        """Return the last audit that read any of it, None if none did."""
        return max((audit for _, audit in self.parts), default=None)
