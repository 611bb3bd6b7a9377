"""Chooses the events of a batch that are copied, by their own time and type."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from custody.errors import FormatError
from custody.format import lines
from custody.format.layout import Log
from custody.format.manifest import Batch, Statement
from custody.format.members import inflate_batch
from custody.format.offsets import offsets_of
from custody.format.times import microseconds_of, parse_time
from tasks.backfill.plan import Request
from tasks.backfill.targets.target import Content


class _Envelope(msgspec.Struct, gc=False):
    event_type: str
    timestamp: str


_decode_lines = msgspec.json.Decoder(_Envelope).decode_lines


class Choice:
    """Chooses events by time and type."""

    def __init__(self, request: Request) -> None:
        # Tables hold whole statements.
        self._all = request.target == "tables"
        self._since, self._until = request.since, request.until
        self._bounds = [microseconds_of(moment) for moment in (request.since, request.until)]
        self._types = frozenset(request.types)

    def choose(self, log: Log, statement: Statement, batch: Batch, member: bytes) -> Content | None:
        """Return a batch's chosen events; None if there are none.

        Raises:
            FormatError: the batch differs from its statement.
        """
        try:
            payload = inflate_batch(batch, member)
        except FormatError as error:
            raise FormatError(f"batch {batch.number} differs from its statement: {error}") from None
        all_lines, offsets = payload.split(b"\n"), offsets_of(statement, batch)
        if all_lines.pop() or len(all_lines) != len(offsets):
            raise FormatError(f"batch {batch.number} of {log} has {len(all_lines)} lines for {len(offsets)} offsets")
        numbers = self._numbers(statement, batch, payload, all_lines)
        if numbers is None:
            return Content(statement, batch, member, payload, all_lines, offsets, whole=True)
        if not numbers:
            return None
        chosen = [all_lines[number] for number in numbers], [offsets[number] for number in numbers]
        return Content(statement, batch, member, payload, *chosen, whole=len(numbers) == len(all_lines))

    def _numbers(
        self, statement: Statement, batch: Batch, payload: bytes, all_lines: Sequence[bytes]
    ) -> Sequence[int] | None:
        """Return the numbers of the chosen lines, counted from 0; None for all lines."""
        inside = parse_time(batch.min_time) >= self._since and parse_time(batch.max_time) < self._until
        all_types = not self._types or statement.types.keys() <= self._types
        if self._all or (inside and all_types):
            return None
        first, end = self._bounds
        return [
            number
            for number, (kind, text) in enumerate(_envelopes(payload, all_lines))
            if (all_types or kind in self._types) and (inside or first <= _microseconds(text) < end)
        ]


def _envelopes(payload: bytes, all_lines: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield type and time of each line; the time as text, or as parsed by the slow path."""
    try:
        rows = _decode_lines(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        rows = []
    if len(rows) == len(all_lines):
        yield from ((row.event_type, row.timestamp) for row in rows)
    else:
        yield from map(lines.check_line, all_lines)


def _microseconds(moment: str | lines.Time) -> int:
    """Return whole microseconds since 1970. Further digits do not matter, because the bounds have none."""
    parsed = lines.parse_time(moment) if isinstance(moment, str) else moment
    if parsed is None:
        raise FormatError(f"an event's time is {str(moment)[:60]!r}")
    return parsed.microseconds[0]
