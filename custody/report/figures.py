"""Figures of statements by the time at which they were sealed: by hour, day or month, so that a page stays short. Pure.

Figures are kept by the hour and joined at the end, because the period is not known before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Literal

from custody.archive.rows import Row
from custody.verify.statement import Totals

State = Literal["verified", "pending", "damaged", "expired"]
Unit = Literal["hour", "day", "month"]

_NAMES: Mapping[Unit, str] = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
_HOURS_OF = timedelta(days=2)
_DAYS_OF = timedelta(days=62)
_TYPES_KEPT = 10_000
"""Event types that are counted by name. Their names come from events, so there may be any number."""
OTHER = "other types"


@dataclass(slots=True)
class Tally(Totals):
    """Sums over statements, also by the state in which each is."""

    verified: int = 0
    pending: int = 0
    damaged: int = 0
    expired: int = 0

    def add(self, other: "Tally") -> None:
        """Add another tally."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class Bucket:
    """An hour, a day or a month.

    Attributes:
        start: when it begins.
        end: when the next one begins.
        tally: of the statements that were sealed in it.
        wait: the longest time in seconds that a record waited, from its Kafka time until it was sealed; None if Kafka
            gave no times.
    """

    start: datetime
    end: datetime
    tally: Tally = field(default_factory=Tally)
    wait: float | None = None

    def name(self, unit: Unit) -> str:
        """Return the month, the day or the hour for people, no finer than the unit."""
        return f"{self.start:{_NAMES[unit]}}"

    def join(self, tally: Tally, wait: float | None) -> None:
        """Add figures."""
        self.tally.add(tally)
        waits = [each for each in (self.wait, wait) if each is not None]
        self.wait = max(waits, default=None)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over statements that were sealed in the same hour, and are in the same state.

    Attributes:
        hour: when it begins.
        tally: what they account for.
        types: their events by type.
        first: when the first one was sealed.
        last: when the last one was sealed.
        wait: as of a bucket.
    """

    hour: datetime
    tally: Tally
    types: Mapping[str, int]
    first: datetime
    last: datetime
    wait: float | None


_COUNTS = ("events", "quarantined", "skipped", "lost", "unreadable", "stored", "inflated")
_sealed_at = attrgetter("sealed_at")


def sum_by_hour(stated: Iterable[tuple[State, Row]]) -> Iterator[Sums]:
    """Yield the sums of statements by hour and state. Many are summed together in a tenth of the time of one by one."""
    groups: dict[tuple[datetime, State], list[Row]] = {}
    for state, row in stated:
        groups.setdefault((_STARTS["hour"](row.sealed_at), state), []).append(row)
    for (hour, state), rows in groups.items():
        yield _summed(hour, state, rows)


def _summed(hour: datetime, state: State, rows: Sequence[Row]) -> Sums:
    tally = Tally(statements=len(rows), **{name: sum(map(attrgetter(name), rows)) for name in _COUNTS})
    setattr(tally, state, len(rows))
    types: Counter[str] = Counter()
    for row in rows:
        for kind, count in row.types.items():
            types[kind] += count
    waits = [row.sealed_at - row.kafka_time for row in rows if row.kafka_time]
    wait = max(waits).total_seconds() if waits else None
    times = list(map(_sealed_at, rows))
    return Sums(hour, tally, types, min(times), max(times), wait)


@dataclass(slots=True)
class Figures:
    """Figures of all statements that were read."""

    total: Tally = field(default_factory=Tally)
    types: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None
    _hours: dict[datetime, Bucket] = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Add statements."""
        self.first = min(self.first or sums.first, sums.first)
        self.last = max(self.last or sums.last, sums.last)
        self.total.add(sums.tally)
        self.types.update(sums.types)
        if len(self.types) > _TYPES_KEPT:
            kept = self.types.most_common(_TYPES_KEPT // 2)
            rest = self.types.total() - sum(count for _, count in kept)
            self.types = Counter(dict(kept))
            self.types[OTHER] += rest
        _join(self._hours, "hour", sums.hour, sums.tally, sums.wait)

    @property
    def unit(self) -> Unit:
        """The span of a bucket: an hour for up to two days, a day for up to two months, else a month."""
        if self.first is None or self.last is None:
            return "day"
        span = self.last - self.first
        return "hour" if span <= _HOURS_OF else "day" if span <= _DAYS_OF else "month"

    def buckets(self) -> list[Bucket]:
        """Return the buckets that have statements, in order."""
        joined: dict[datetime, Bucket] = {}
        for start, hour in self._hours.items():
            _join(joined, self.unit, start, hour.tally, hour.wait)
        return [joined[start] for start in sorted(joined)]

    def top_types(self, shown: int) -> list[tuple[str, int]]:
        """Return the most common event types, and the sum of all others last."""
        names = {name: count for name, count in self.types.items() if name != OTHER}
        # By name where counts are equal, whatever was added first.
        ordered = sorted(names.items(), key=lambda each: (-each[1], each[0]))
        most = ordered if len(names) <= shown else ordered[: shown - 1]
        rest = self.types.total() - sum(count for _, count in most)
        return [*most, *([(OTHER, rest)] if rest else [])]


_STARTS: Mapping[Unit, Callable[[datetime], datetime]] = {
    "hour": lambda moment: moment.replace(minute=0, second=0, microsecond=0),
    "day": lambda moment: moment.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda moment: moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}


def _join(buckets: dict[datetime, Bucket], unit: Unit, moment: datetime, tally: Tally, wait: float | None) -> None:
    start = _STARTS[unit](moment)
    if start not in buckets:
        buckets[start] = Bucket(start, _end(start, unit))
    buckets[start].join(tally, wait)


def _end(start: datetime, unit: Unit) -> datetime:
    try:
        if unit == "month":
            return (start + timedelta(days=32)).replace(day=1)
        return start + timedelta(hours=1 if unit == "hour" else 24)
    except OverflowError:
        return start
