"""Runs rules again over a range of the past, part by part: after late events, at night, and in backtests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from tasks.detect import memory
from tasks.detect.alerts import Alert
from tasks.detect.positions import Late
from tasks.detect.reading import MOST, Past, Reading
from tasks.detect.rule import Match, Rule
from tasks.detect.step import Outcome, look_again

REACH: Final = timedelta(days=1)
"""How far back from the range events are read, also for rules with longer windows."""


def reach_of(rules: Sequence[Rule]) -> timedelta:
    """Return how far matches of rules reach, as far as they are looked at again."""
    return min(max((rule.window for rule in rules), default=timedelta(0)), REACH)


def replay(
    reading: Reading,
    rules: Sequence[Rule],
    positions: Mapping[str, int],
    alerts: Callable[[], Sequence[Alert]],
    *,
    first: datetime,
    end: datetime,
    wanted: Callable[[Match], bool],
    known_until: datetime | None,
    storm: int,
) -> Iterator[tuple[datetime, Outcome]]:
    """Yield after each part until when the range was looked at, and what came of it.

    Args:
        reading: the archive's events.
        rules: rules whose matches depend on events alone.
        positions: how far each log was read: what is behind does not count.
        alerts: returns the alerts that may still change, those of the part before too.
        first: the range's begin.
        end: its end.
        wanted: which matches count.
        known_until: the newest time of an event that is known at all.
        storm: as in `step`.
    """
    remembered, low = memory.empty(), first
    for part, until in _parts(reading.past(positions, first - reach_of(rules), end), end):

        def counts(match: Match, low: datetime = low, until: datetime = until) -> bool:
            return low <= match.time < until and wanted(match)

        outcome = look_again(
            rules,
            remembered,
            alerts(),
            reading.read_past(part),
            wanted=counts,
            until=until,
            known_until=known_until or until,
            storm=storm,
        )
        remembered, low = outcome.memory, max(low, until)
        yield low, outcome


def touches(late: Late) -> Callable[[Match], bool]:
    """Return whether a match may have a late event."""
    return lambda match: match.since <= late.last and match.time >= late.first


def _parts(past: Sequence[Past], end: datetime) -> Iterator[tuple[Sequence[Past], datetime]]:
    """Yield statements in parts of at most `MOST` events, and until when all events are given with each of them."""
    part: list[Past] = []
    events = 0
    for each in past:
        if part and events + each.events > MOST and each.first > part[0].first:
            yield part, min(each.first, end)
            part, events = [], 0
        part.append(each)
        events += each.events
    yield part, end
