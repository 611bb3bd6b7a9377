"""Spans of the index by time: consecutive statements of a log, with bounds of their times, and their sums. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from custody.errors import FormatError
from custody.format import limits
from custody.format.audit import ObjectRef
from custody.format.envelope import Int
from custody.format.manifest import Statement
from custody.format.times import YEAR_10000_US, microseconds_of, parse_time

EVENT_SLACK = 1_000
"""A batch's times may be 1 ms off (FORMAT.md, Manifest). In microseconds."""

_YEARS = microseconds_of(datetime(1, 1, 1, tzinfo=UTC)), YEAR_10000_US - 1
_INT64 = -(2**63), limits.INT_MAX
"""Timestamps of Kafka may be any."""

Bounds = tuple[int, int]
"""The smallest and the largest value."""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Statements `[first, end)` of a log, which an audit read together.

    Attributes:
        log: `<log>/<partition>`.
        first: sequence of the first slot.
        end: sequence after the last one.
        sealed: when the statements were sealed, in µs since 1970; None if not all of them could be read.
        event_times: bounds of the events' own times, in µs since 1970, at most 1 ms off; None without events.
        kafka_times: bounds of the records' Kafka timestamps, in ms since 1970; None if there is none.
        first_offset: the first offset that the statements account for.
        next_offset: the offset after the last one.
        events: how many events they have.
        quarantined: how many records are in quarantine.
        stored: bytes of their objects, as stored.
        inflated: bytes of their events.
        tables: the signed list of the tables of their events; None if there is none.
        manifests: a Parquet file with the rows of the view `manifests`, and with events by type; None if there is none.
        batches: one with the rows of the view `batches`; None if there is none, or no batch.
    """

    log: str
    first: Int
    end: Int
    sealed: Bounds | None = None
    event_times: Bounds | None = None
    kafka_times: Bounds | None = None
    first_offset: Int = 0
    next_offset: Int = 0
    events: Int = 0
    quarantined: Int = 0
    stored: Int = 0
    inflated: Int = 0
    tables: ObjectRef | None = None
    manifests: ObjectRef | None = None
    batches: ObjectRef | None = None

    def sealed_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether a statement may have been sealed from `since` on and before `until`."""
        return self.sealed is None or _overlaps(self.sealed, since, until, 0)

    def events_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether an event may have a time of its own from `since` on and before `until`."""
        if self.sealed is None:
            return True
        return self.event_times is not None and _overlaps(self.event_times, since, until, EVENT_SLACK)

    def all_sealed_within(self, since: datetime | None, until: datetime | None) -> bool:
        """Return whether it is known that all statements were sealed from `since` on and before `until`."""
        if self.sealed is None:
            return False
        low, high = self.sealed
        return (since is None or low >= microseconds_of(since)) and (until is None or high < microseconds_of(until))


def _overlaps(bounds: Bounds, since: datetime | None, until: datetime | None, slack: int) -> bool:
    low, high = bounds[0] - slack, bounds[1] + slack
    return (since is None or high >= microseconds_of(since)) and (until is None or low < microseconds_of(until))


class SpanMaker:
    """Makes the span of a log's slots `[first, end)` from their statements, taken in order.

    It has times only if the statements are those of all of these slots. A slot that one of them passes over has none.
    """

    def __init__(self, log: str, first: int, end: int) -> None:
        self._next = first
        self._whole = True
        self._made = Span(log=log, first=first, end=end)

    def add(self, statement: Statement) -> None:
        """Add the next statement."""
        made, batches, quarantine = self._made, statement.batches, statement.quarantine
        begin = max(statement.sequence - len(statement.passed_over), made.first)
        self._whole = self._whole and begin == self._next
        self._next = statement.sequence + 1
        times = [microseconds_of(parse_time(text)) for batch in batches for text in (batch.min_time, batch.max_time)]
        kafka = [each for batch in batches if (time := batch.kafka_time) for each in (time.min, time.max)]
        self._made = msgspec.structs.replace(
            made,
            sealed=_widened(made.sealed, [microseconds_of(parse_time(statement.sealed_at))]),
            event_times=_widened(made.event_times, times),
            kafka_times=_widened(made.kafka_times, kafka),
            first_offset=statement.first_offset if made.sealed is None else made.first_offset,
            next_offset=statement.next_offset,
            events=made.events + sum(batch.events for batch in batches),
            quarantined=made.quarantined + (quarantine.records if quarantine else 0),
            stored=made.stored + sum(ref.size for ref in (statement.segment, quarantine) if ref),
            inflated=made.inflated + sum(batch.inflated for batch in batches),
        )

    def span(self) -> Span:
        """Return the span, without tables."""
        made = self._made
        whole = self._whole and self._next == made.end
        return made if whole else Span(log=made.log, first=made.first, end=made.end)


def _joined(first: Span, second: Span) -> Span:
    """Return two adjacent spans as a run, without tables."""
    if first.sealed is None or second.sealed is None:
        return Span(log=first.log, first=first.first, end=second.end)
    return Span(
        log=first.log,
        first=first.first,
        end=second.end,
        sealed=_widened(first.sealed, second.sealed),
        event_times=_widened(first.event_times, second.event_times or ()),
        kafka_times=_widened(first.kafka_times, second.kafka_times or ()),
        first_offset=first.first_offset,
        next_offset=second.next_offset,
        events=first.events + second.events,
        quarantined=first.quarantined + second.quarantined,
        stored=first.stored + second.stored,
        inflated=first.inflated + second.inflated,
    )


def runs_of(spans: Iterable[Span]) -> list[Span]:
    """Return the runs of spans: adjacent ones of a log as one, without tables."""
    runs: list[Span] = []
    for span in sorted(spans, key=order):
        if runs and (runs[-1].log, runs[-1].end) == (span.log, span.first):
            runs[-1] = _joined(runs[-1], span)
        else:
            runs.append(msgspec.structs.replace(span, tables=None, manifests=None, batches=None))
    return runs


def order(span: Span) -> tuple[str, int]:
    """Return by what spans are sorted."""
    return span.log, span.first


def _widened(bounds: Bounds | None, values: Sequence[int]) -> Bounds | None:
    values = [*(bounds or ()), *values]
    return (min(values), max(values)) if values else None


class Contradiction(FormatError):
    """What was signed contradicts itself."""


def check(span: Span) -> None:
    """Raise Contradiction if a span contradicts itself."""
    if span.first >= span.end or span.first_offset > span.next_offset:
        raise Contradiction(f"the span {span.first} to {span.end} of {span.log[:300]!r} is empty or reversed")
    for bounds, (low, high) in ((span.sealed, _YEARS), (span.event_times, _YEARS), (span.kafka_times, _INT64)):
        if bounds and bounds[0] > bounds[1]:
            raise Contradiction(f"the span {span.first} to {span.end} of {span.log[:300]!r} has reversed times")
        if bounds and not low <= bounds[0] <= bounds[1] <= high:
            raise Contradiction(
                f"the span {span.first} to {span.end} of {span.log[:300]!r} has times that none may have"
            )
    if span.sealed is None and (span.event_times or span.manifests or span.batches):
        raise Contradiction(f"the span {span.first} to {span.end} of {span.log[:300]!r} has no times, but their tables")
    if span.batches and not span.manifests:
        raise Contradiction(f"the span {span.first} to {span.end} of {span.log[:300]!r} has batches of no statements")
