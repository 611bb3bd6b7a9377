"""A step: rules over new events and what is remembered, in one connection of DuckDB. It reads no store, and no clock.

- A rule without a window sees the new events in the view `events`. A rule with one sees what is `kept` too.
- Of that, a Sigma rule sees in `step` only what is within its window of its own new events. It is not run without any.
- Rules in SQL also see what was remembered before the new events (`tasks.detect.memory`).
- A rule that fails, or takes too long, is in `failed`. The others go on.
- All times are those of events, in UTC and without a zone, as in the views.
- Events may be cut into steps anywhere: the same alerts come out.

`look_again` does the same for events of the past that an earlier step may not have seen together. What it remembers
is for the next part of that past alone.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from typing import Final

import duckdb

from custody.errors import legible
from tasks.detect import memory as memories
from tasks.detect.alerts import Alert, Judged, Notice, Place, judge
from tasks.detect.memory import Memory
from tasks.detect.rule import EVIDENCE, Group, Match, Rule, RuleFailed, limited, quoted, read_rows, run_rule
from tasks.detect.views import COLUMNS, NEW, Events, connect, make_events

_COLUMNS: Final = ", ".join(map(quoted, COLUMNS))
_OF_HIT: Final = ("time", "log", "offset")
_NEW_ONLY: Final = f"SELECT {_COLUMNS} FROM {NEW}"
_KEPT: Final = f'SELECT {_COLUMNS} FROM kept ANTI JOIN {NEW} USING (log, "offset")'

Found = Sequence[tuple[Rule, Sequence[Match]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to.

    Attributes:
        memory: what is remembered after it.
        alerts: all alerts that may still change.
        notices: what is to be told.
        failed: the rules that failed, and why.
        matches: how many matches each rule had that no earlier step counted.
        suppressed: of each rule, how many new alerts are recorded and not told, because it stormed.
        ahead: how many new events had a time of the future. They are remembered as if they were of now.
    """

    memory: Memory
    alerts: tuple[Alert, ...]
    notices: tuple[Notice, ...]
    failed: Mapping[str, str]
    matches: Mapping[str, int]
    suppressed: Mapping[str, int]
    ahead: int = 0


def step(
    rules: Sequence[Rule],
    memory: Memory,
    alerts: Sequence[Alert],
    events: Events,
    *,
    until: datetime,
    head_age: float,
    storm: int,
    kept_from: datetime | None = None,
) -> Outcome:
    """Return what rules find in new events, and what is remembered after them.

    Args:
        rules: the rules.
        memory: what was remembered before.
        alerts: alerts that may still change.
        events: the new events.
        until: the newest time of an event that is known, these included.
        head_age: how many seconds ago the archive was known to have all: rules about silence need it.
        storm: how many new alerts of a rule are told.
        kept_from: how far back `memory.kept` has all events that are needed; None if it has all there are. Matches of
            windows that reach further back are left to `look_again`.
    """
    with connect() as connection:
        evaluation = _Evaluation(connection, events, memory, until, head_age)
        every = evaluation.run(rules, only_new=True)
        found = [(rule, _on_time(rule, matches, kept_from)) for rule, matches in every]
        judged = evaluation.judge(alerts, found, until, storm, evaluation.is_new)
        failed = evaluation.failed
        remembered = memories.remember(connection, memory, rules, judged.alerts, failed, until=until)
    counts = {rule.name: sum(map(evaluation.is_new, matches)) for rule, matches in found}
    return Outcome(remembered, judged.alerts, judged.notices, failed, counts, judged.suppressed, evaluation.ahead)


def look_again(
    rules: Sequence[Rule],
    memory: Memory,
    alerts: Sequence[Alert],
    events: Events,
    *,
    wanted: Callable[[Match], bool],
    until: datetime,
    known_until: datetime,
    storm: int,
) -> Outcome:
    """Return what rules find in events of the past. Alerts that were missing come out; others stay as they are.

    Args:
        rules: rules whose matches depend on events alone.
        memory: what was remembered of earlier events of the same past; empty at its begin.
        alerts: alerts that may still change.
        events: the next events of that past, by time.
        wanted: which matches count: the others come again, or are of no interest.
        until: the time until which all events of that past were given.
        known_until: the newest time of an event that is known at all.
        storm: as in `step`.
    """
    with connect() as connection:
        evaluation = _Evaluation(connection, events, memory, until, 0.0, known_until)
        every = evaluation.run(rules, only_new=False)
        found = [(rule, [match for match in matches if wanted(match)]) for rule, matches in every]
        judged = evaluation.judge(alerts, found, known_until, storm, lambda _: False)
        failed = evaluation.failed
        remembered = memories.remember(connection, memory, rules, (), failed, until=until, known_until=known_until)
    return Outcome(remembered, judged.alerts, judged.notices, failed, {}, judged.suppressed)


def _on_time(rule: Rule, matches: Sequence[Match], kept_from: datetime | None) -> Sequence[Match]:
    if kept_from is None or not rule.window:
        return matches
    return [match for match in matches if match.time >= kept_from + rule.window]


class _Evaluation:
    """The views of a step, and what rules find in them."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        events: Events,
        memory: Memory,
        until: datetime,
        head_age: float,
        known_until: datetime | None = None,
    ) -> None:
        self._connection = connection
        self.failed: dict[str, str] = {}
        """The rules of which something could not be run, and why."""
        events.create(connection)
        self.ahead = memories.create(connection, memory, until=until, head_age=head_age, known_until=known_until)
        self._reaches: dict[str, _Reach] = {}
        self._new = _places(connection)
        self._hits: dict[str, dict[Group, list[tuple[datetime, str, int]]]] = {}

    def run(self, rules: Sequence[Rule], *, only_new: bool) -> list[tuple[Rule, list[Match]]]:
        """Return the matches of each rule that could be run. The others are in `failed`.

        Args:
            rules: the rules.
            only_new: whether matches that no new event changes may be left out.
        """
        found = []
        for rule in rules:
            try:
                found.append((rule, self._matches(rule, only_new=only_new)))
            except RuleFailed as error:
                self.failed[rule.name] = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other rules look for attacks
                self.failed[rule.name] = f"rule {rule.name}: {type(error).__name__}: {legible(str(error))}"
        return found

    def _matches(self, rule: Rule, *, only_new: bool) -> list[Match]:
        # Only of Sigma rules it is known that they match where a hit is. SQL may look for something else near by.
        if not (only_new and rule.window and rule.kind == "sigma"):
            self._show(rule)
            return run_rule(self._connection, rule)
        reach = self._reach(rule)
        if reach is None:
            return []
        self._reaches[rule.name] = reach
        self._show(rule)
        # Earlier ones were found in their own step. Of their events, some may not be among these.
        query = f"SELECT * FROM ({rule.query}) WHERE time >= '{reach.first}'::TIMESTAMP"
        return run_rule(self._connection, replace(rule, query=query))

    def _reach(self, rule: Rule) -> "_Reach | None":
        """Return what the new events of a rule may change; None if it has none."""
        make_events(self._connection, _NEW_ONLY)
        window = f"INTERVAL {int(rule.window.total_seconds())} SECONDS"
        # Sums are computed in SQL, where there are years before 1 and after 9999.
        columns = f"min(time)::VARCHAR, (min(time) - {window})::VARCHAR, (max(time) + {window})::VARCHAR"
        # No event is of a later year than 9999.
        of_events = "HAVING count(*) = 0 OR max(time) < TIMESTAMP '10000-01-01'"
        try:
            with limited(self._connection, rule.name):
                rows = self._connection.execute(f"SELECT {columns} FROM ({rule.hits}) {of_events}").fetchall()
        except RuleFailed:
            rows = []
        if not rows:
            # Its hits are no events, so any new event may be one of it.
            rows = self._connection.execute(f"SELECT {columns} FROM events").fetchall()
        first, low, high = rows[0]
        return None if first is None else _Reach(first, low, high)

    def judge(
        self,
        alerts: Sequence[Alert],
        found: Found,
        until: datetime,
        storm: int,
        is_new: Callable[[Match], bool],
    ) -> Judged:
        """Return the alerts that the matches come to."""
        return judge(alerts, found, self.evidence, until=until, storm=storm, counted_from=is_new)

    def is_new(self, match: Match) -> bool:
        """Return whether a new event completes a match."""
        return match.offset in self._new.get(match.log, ())

    def evidence(self, rule: Rule, match: Match) -> list[Place]:
        """Return where the events of a match are archived, the oldest first, `EVIDENCE` at most."""
        if rule.name not in self._hits:
            self._hits[rule.name] = self._read_hits(rule)
        hits = self._hits[rule.name].get(match.group, [])
        begin = bisect_left(hits, match.since, key=itemgetter(0))
        chosen = [hit for hit in hits[begin : begin + EVIDENCE] if hit[0] <= match.time]
        return [Place(log, offset) for _, log, offset in chosen] or [Place(match.log, match.offset)]

    def _read_hits(self, rule: Rule) -> dict[Group, list[tuple[datetime, str, int]]]:
        """Return the single events of a rule by group, in order: one query for all of its matches."""
        self._show(rule)
        hits: defaultdict[Group, list[tuple[datetime, str, int]]] = defaultdict(list)
        try:
            with limited(self._connection, rule.name):
                # An event may be a hit of several parts of a rule.
                columns = ", ".join(map(quoted, (*rule.group_by, *_OF_HIT)))
                sql = f"SELECT DISTINCT {columns} FROM ({rule.hits}\n) WHERE time IS NOT NULL"
                for group, (time, log, offset) in read_rows(self._connection, rule, sql, _OF_HIT):
                    hits[group].append((time, log, offset))
        except RuleFailed as error:
            # The match itself is evidence enough for an alert.
            self.failed.setdefault(rule.name, str(error))
            return {}
        return {group: sorted(places) for group, places in hits.items()}

    def _show(self, rule: Rule) -> None:
        """Make the view `events` what a rule sees."""
        if not rule.window:
            make_events(self._connection, _NEW_ONLY)
            return
        reach = self._reaches.get(rule.name)
        where = f" WHERE time BETWEEN '{reach.low}'::TIMESTAMP AND '{reach.high}'::TIMESTAMP" if reach else ""
        make_events(self._connection, f"{_KEPT}{where} UNION ALL {_NEW_ONLY}")


@dataclass(frozen=True, slots=True)
class _Reach:
    """What new events of a rule may change.

    Attributes:
        first: the time of the oldest one, as SQL has it. What matched before is as it was.
        low: from when on events may be of a match with one of them.
        high: until when.
    """

    first: str
    low: str
    high: str


def _places(connection: duckdb.DuckDBPyConnection) -> dict[str, Collection[int]]:
    """Return the offsets of the new events of each log."""
    rows = connection.execute(f'SELECT log, list("offset") FROM {NEW} GROUP BY log').fetchall()
    return {log: frozenset(offsets) for log, offsets in rows}
