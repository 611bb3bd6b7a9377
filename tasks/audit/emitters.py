"""Collects the numbers of sources while an audit reads events (`custody.format.sources`).

Memory is bounded for any events: a piece has at most `SOURCES` sources and `CHUNKS` chunks of numbers, and all pieces
of an audit hand on at most about `HANDED_ON` sources, and as many scattered chunks. What is beyond is counted. No gap
is reported then of such a source; and if there was no room for its name, of any source: it may be none.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from custody.format import lines
from custody.format.manifest import Batch
from custody.format.sources import NUMBER, STARTED, STOPPED, number_of, sources_of
from custody.format.times import format_us
from custody.verify.work import Work
from tasks.audit.numbers import Numbers, Part, Room

SOURCES = 10_000
"""Sources of a piece."""
CHUNKS = 100_000
"""Chunks of numbers of a piece, each of 1,024 numbers: some 20 MB."""
HANDED_ON = 500_000
SPANS = 16
"""Parts of a piece's statements in which a source's numbers are looked for again."""
REPEATS = 1_000
"""Repeated numbers that a piece names."""

_NAME = f'"{NUMBER}"'.encode()
_HOSTILE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Row(msgspec.Struct, gc=False):
    event_type: str
    timestamp: str
    source: msgspec.Raw = msgspec.Raw(b"")
    source_seq: msgspec.Raw = msgspec.Raw(b"")


_rows = msgspec.json.Decoder(_Row)


class SeenSpan(msgspec.Struct, array_like=True):
    """Statements `first` to `last`, with numbers of a source from `low` to `high`, and when the last one was sealed."""

    first: int
    last: int
    low: int
    high: int
    sealed_at: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a piece has of a source.

    Attributes:
        source: its name.
        events: how many events it has with a number.
        numbers: their numbers.
        repeated: how many events have a number that an earlier one in the piece has.
        repeats: the first such numbers.
        started: the time of its `emitter_started`, None if it is not in the piece.
        stopped: the time of its `emitter_stopped`.
        first_sealed: when the first statement was sealed that has an event of it.
        spans: where its numbers are.
        partial: whether not all of its numbers were kept.
    """

    source: str
    events: int
    numbers: list[Part]
    repeated: int
    repeats: list[int]
    started: str | None
    stopped: str | None
    first_sealed: str
    spans: list[SeenSpan]
    partial: bool


@dataclass(slots=True)
class _Collected:
    """A source, while it is collected."""

    first_sealed: str
    events: int = 0
    numbers: Numbers = field(default_factory=Numbers)
    repeated: int = 0
    repeats: list[int] = field(default_factory=list)
    started: str | None = None
    stopped: str | None = None
    spans: list[SeenSpan] = field(default_factory=list)
    partial: bool = False

    def add(self, number: int, work: Work, room: Room) -> None:
        self.events += 1
        added = self.numbers.add(number, room)
        if added is None:
            self.partial = True
            return
        if not added:
            self.repeated += 1
            if len(self.repeats) < REPEATS:
                self.repeats.append(number)
        span = self.spans[-1] if self.spans else None
        if span is None or span.last != work.sequence:
            span = SeenSpan(work.sequence, work.sequence, number, number, work.sealed_at)
            self.spans.append(span)
            if len(self.spans) >= 4 * SPANS:
                self.spans = fewer(self.spans)
        elif number > span.high:
            span.high = number
        elif number < span.low:
            span.low = number


def fewer(spans: list[SeenSpan]) -> list[SeenSpan]:
    """Return spans with neighbours joined, so that there are at most `SPANS`."""
    step = max(1, -(-len(spans) // SPANS))
    groups = [spans[start : start + step] for start in range(0, len(spans), step)]
    return [
        SeenSpan(
            group[0].first,
            group[-1].last,
            min(span.low for span in group),
            max(span.high for span in group),
            max(span.sealed_at for span in group),
        )
        for group in groups
    ]


def numbered(payload: bytes) -> Iterator[tuple[int, str, int, _Row]]:
    """Yield line, source, number and row of each event that has both, of a batch of lines."""
    if _NAME not in payload:
        return
    rows: list[_Row | None]
    try:
        rows = list(_rows.decode_lines(payload))
    except _HOSTILE:
        # Half characters, or a line that only the holder of a key can have signed.
        rows = [_row(line) for line in payload.split(b"\n")[:-1]]
    names: dict[bytes, str | None] = {}
    for line, row in enumerate(rows):
        number = number_of(bytes(row.source_seq)) if row else None
        if row is None or number is None:
            continue
        raw = bytes(row.source)
        if raw not in names:
            (names[raw],) = sources_of([raw])
        if (source := names[raw]) is not None:
            yield line, source, number, row


def moment_of(row: _Row) -> str | None:
    """Return an event's own time in UTC; None if it has none."""
    time = lines.parse_time(row.timestamp)
    return None if time is None else format_us(time.microseconds[0])


def _row(line: bytes) -> _Row | None:
    with suppress(*_HOSTILE):
        row: _Row = _rows.decode(lines.without_half_characters(line))
        return row
    return None


class Collector:
    """Collects sources from batches that a verification has read."""

    def __init__(self, first: int = 0, pieces: int = 1) -> None:
        """Begin.

        Args:
            first: statements before this one were counted by an earlier audit.
            pieces: how many pieces of the audit collect.
        """
        self._first = first
        self._share = max(HANDED_ON // max(pieces, 1), 1)
        self._sources: dict[str, _Collected] = {}
        self._room = Room(CHUNKS)
        self.left_out = 0
        """Events of sources that there was no room for."""
        self.unnamed = False
        """Whether some of these sources are in no result."""

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:  # noqa: ARG002 - as a sink
        """Add a batch of JSON lines."""
        if work.sequence < self._first:
            return
        for _, name, number, row in numbered(payload):
            source = self._sources.get(name)
            if source is None:
                if len(self._sources) >= min(SOURCES, self._share):
                    self.left_out += 1
                    self.unnamed = True
                    continue
                source = self._sources[name] = _Collected(work.sealed_at)
            source.add(number, work, self._room)
            if row.event_type == STARTED:
                source.started = moment_of(row)
            elif row.event_type == STOPPED:
                source.stopped = moment_of(row)

    def take(self) -> list[Seen]:
        """Return what was collected, by name. The most scattered numbers are left out if they are too many."""
        parts = {name: source.numbers.parts() for name, source in self._sources.items()}
        room = self._share
        for name in sorted(parts, key=lambda name: len(parts[name])):
            room -= len(parts[name])
            if room < 0:
                self._sources[name].partial = True
                self.left_out += self._sources[name].events
                parts[name] = []
        return [
            Seen(
                source=name,
                events=source.events,
                numbers=parts[name],
                repeated=source.repeated,
                repeats=source.repeats,
                started=source.started,
                stopped=source.stopped,
                first_sealed=source.first_sealed,
                spans=fewer(source.spans),
                partial=source.partial,
            )
            for name, source in sorted(self._sources.items())
        ]


class Sinks:
    """Gives each batch to several sinks."""

    def __init__(self, *sinks: Any) -> None:
        self._sinks = sinks

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch to each."""
        for sink in self._sinks:
            sink.add(work, batch, payload)
