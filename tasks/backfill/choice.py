"""Which events of a batch are copied, by their own time and type."""

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
        """Return a batch's chosen events, None if there are none.

        Raises:
            FormatError: the batch is not as its statement says.
        """
        try:
            payload = inflate_batch(batch, member)
        except FormatError as error:
            raise FormatError(f"batch {batch.number} is not the one that its statement names: {error}") from None
        found, offsets = payload.split(b"\n"), offsets_of(statement, batch)
        if found.pop() or len(found) != len(offsets):
            raise FormatError(f"batch {batch.number} of {log} has {len(found)} lines for {len(offsets)} offsets")
        places = self._places(statement, batch, payload, found)
        if places is None:
            return Content(statement, batch, member, payload, found, offsets, whole=True)
        if not places:
            return None
        chosen = [found[place] for place in places], [offsets[place] for place in places]
        return Content(statement, batch, member, payload, *chosen, whole=len(places) == len(found))

    def _places(
        self, statement: Statement, batch: Batch, payload: bytes, found: Sequence[bytes]
    ) -> Sequence[int] | None:
        """Return which lines are chosen, None for all."""
        inside = parse_time(batch.min_time) >= self._since and parse_time(batch.max_time) < self._until
        all_types = not self._types or statement.types.keys() <= self._types
        if self._all or (inside and all_types):
            return None
        first, end = self._bounds
        return [
            place
            for place, (kind, text) in enumerate(_envelopes(payload, found))
            if (all_types or kind in self._types) and (inside or first <= _microseconds(text) < end)
        ]


def _envelopes(payload: bytes, found: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield type and time of each line: its text, or what the slow path has made of it."""
    try:
        rows = _decode_lines(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        rows = []
    if len(rows) == len(found):
        yield from ((one.event_type, one.timestamp) for one in rows)
    else:
        yield from map(lines.check_line, found)


def _microseconds(moment: str | lines.Time) -> int:
    """Return whole microseconds since 1970: what is behind them changes nothing, for bounds have no more digits."""
    parsed = lines.parse_time(moment) if isinstance(moment, str) else moment
    if parsed is None:
        raise FormatError(f"an event's time is {str(moment)[:60]!r}")
    return parsed.microseconds[0]
