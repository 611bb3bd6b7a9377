"""Correlations of Sigma, written as SQL with sliding windows.

`Hits` are the inputs and outputs of each step: events, or matches of a correlation, each with the columns of a group,
`time`, `log` and `offset`, and `since`, the time of its oldest event. So a correlation can count the matches of another
one. Order is that of time, then of log and offset, so that it is the same in each run over the same archive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from custody.errors import ConfigurationError
from tasks.detect.detection import column
from tasks.detect.rule import quoted

COMPARE: Final[Mapping[str, str]] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "eq": "="}
_ORDER: Final = 'time, log, "offset"'


@dataclass(frozen=True, slots=True)
class Condition:
    """What a count is compared with.

    Attributes:
        compare: operators of `COMPARE`, and the numbers.
        field: whose different values are counted; None if events are.
    """

    compare: Mapping[str, int]
    field: str | None

    @property
    def least(self) -> float | None:
        """The lowest count that fits; None if 0 does: nothing happens then at which it could be looked for."""
        lowest = max(
            self.compare.get("gte", 0), self.compare.get("eq", 0), self.compare["gt"] + 1 if "gt" in self.compare else 0
        )
        return lowest or None

    @property
    def most(self) -> float:
        """The highest count that fits."""
        highest = [self.compare[name] for name in ("lte", "eq") if name in self.compare]
        return min([*highest, self.compare["lt"] - 1 if "lt" in self.compare else math.inf])

    @property
    def sql(self) -> str:
        """The comparison of `metric`."""
        return " AND ".join(f"metric {COMPARE[name]} {value}" for name, value in self.compare.items())


@dataclass(frozen=True, slots=True)
class Hits:
    """What was found so far, as SQL.

    Attributes:
        group_by: columns of the group.
        source: what one selects from: `events` and its condition, or a query.
        events: the single events of which matches consist.
        matches: what `Rule.query` is, if this is the whole rule.
        is_events: whether `source` still has all fields of events.
    """

    group_by: tuple[str, ...]
    source: str
    events: str
    matches: str
    is_events: bool

    @classmethod
    def of_events(cls, where: str) -> "Hits":
        """Return the events for which a condition is true."""
        source = f"(SELECT * FROM events WHERE {where})"
        return cls((), source, source, source, is_events=True)


def grouped(hits: Hits, group_by: Sequence[str], fields: Sequence[str] | None = None) -> Hits:
    """Return hits with the columns of a group, without those that have none.

    Args:
        hits: events, or matches of a correlation.
        group_by: names of the group's columns.
        fields: the field of each, where it has another name.

    Raises:
        ConfigurationError: a correlation's matches do not have a column.
    """
    fields = group_by if fields is None else fields
    if not hits.is_events and (missing := [field for field in fields if field not in hits.group_by]):
        raise ConfigurationError(f"a correlation of a correlation groups by its columns, and {missing[0]!r} is none")
    made = [column(field) if hits.is_events else quoted(field) for field in fields]
    columns = "".join(f"{sql} AS {quoted(f'g_{name}')}, " for sql, name in zip(made, group_by, strict=True))
    where = " AND ".join(f"{sql} IS NOT NULL" for sql in made) or "true"
    named = "".join(f"{quoted(f'g_{name}')} AS {quoted(name)}, " for name in group_by)
    rest = "*, time AS since" if hits.is_events else 'time, log, "offset", since'
    source = f"(SELECT {columns}{rest} FROM {hits.source} WHERE {where})"
    events = f'(SELECT {columns}time, log, "offset" FROM {hits.events} WHERE {where})'
    shown = f'SELECT {named}time, log, "offset" FROM {events}'
    matches = f'SELECT {named}time, log, "offset", since, 1 AS metric FROM {source}'
    return Hits(tuple(group_by), source, shown, matches, is_events=hits.is_events)


def counted(inputs: Sequence[Hits], group_by: tuple[str, ...], window: timedelta, condition: Condition) -> Hits:
    """Return where, within a window, there are so many events, or so many values of a field."""
    keys = _keys(group_by)
    value = "0 AS value"
    if condition.field is not None:
        if not all(hits.is_events for hits in inputs):
            raise ConfigurationError("matches of a correlation have no field whose values could be counted")
        value = f"{column(condition.field)} AS value"
    union = " UNION ALL ".join(
        f'SELECT {keys}{value}, time, log, "offset", since FROM {hits.source}' for hits in inputs
    )
    metric = "count(DISTINCT value)" if condition.field is not None else "count(*)"
    windowed = (
        f'SELECT {keys}time, log, "offset", {metric} OVER recent AS metric, min(since) OVER recent AS since'
        f" FROM ({union}) WINDOW recent AS ({_partition(group_by)} ORDER BY time {_range(window)})"
    )
    return _made(group_by, inputs, f"SELECT * FROM ({windowed}) WHERE {condition.sql}")


def together(inputs: Sequence[Hits], group_by: tuple[str, ...], window: timedelta) -> Hits:
    """Return where, within a window, each of the inputs has a hit, in any order."""
    keys = _keys(group_by)
    # Of hits of one input, the latest one has also the latest `since`.
    lasts = ", ".join(f"max(since) FILTER (which = {at}) OVER recent AS since{at}" for at in range(len(inputs)))
    oldest = f"least({', '.join(f'since{at}' for at in range(len(inputs)))})"
    windowed = (
        f'SELECT {keys}time, log, "offset", {lasts} FROM ({_union(inputs, keys)})'
        f" WINDOW recent AS ({_partition(group_by)} ORDER BY time {_range(window)})"
    )
    all_there = " AND ".join(f"since{at} IS NOT NULL" for at in range(len(inputs)))
    metric = f"{len(inputs)} AS metric, {oldest} AS since"
    return _made(group_by, inputs, f'SELECT {keys}time, log, "offset", {metric} FROM ({windowed}) WHERE {all_there}')


def in_order(inputs: Sequence[Hits], group_by: tuple[str, ...], window: timedelta) -> Hits:
    """Return where, within a window, each of the inputs has a hit, in their order.

    Of each step, the latest possible beginning is kept: if that is not within the window, no other one is. `began` is
    when the first input had its hit; `since` may be earlier, if that is a match of a correlation.
    """
    keys = _keys(group_by)
    step = f'SELECT {keys}time, log, "offset", time AS began, since FROM {inputs[0].source}'
    for hits in inputs[1:]:
        union = (
            f"SELECT *, false AS ends FROM ({step}) UNION ALL"
            f' SELECT {keys}time, log, "offset", NULL AS began, since, true AS ends FROM {hits.source}'
        )
        windowed = (
            f'SELECT {keys}time, log, "offset", ends, max(began) OVER earlier AS began,'
            f" least(since, max(since) FILTER (NOT ends) OVER earlier) AS since FROM ({union}) WINDOW earlier AS ("
            f"{_partition(group_by)} ORDER BY {_ORDER}, ends DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        )
        near = f"began IS NOT NULL AND time - began <= {_interval(window)}"
        step = f'SELECT {keys}time, log, "offset", began, since FROM ({windowed}) WHERE ends AND {near}'
    return _made(group_by, inputs, f"SELECT *, {len(inputs)} AS metric FROM ({step})")


def _made(group_by: tuple[str, ...], inputs: Sequence[Hits], sql: str) -> Hits:
    named = "".join(f"{quoted(f'g_{name}')} AS {quoted(name)}, " for name in group_by)
    source = f'(SELECT {named}time, log, "offset", since, metric FROM ({sql}))'
    events = " UNION ALL ".join(hits.events for hits in inputs)
    return Hits(group_by, source, f"({events})", f"SELECT * FROM {source}", is_events=False)


def _union(inputs: Sequence[Hits], keys: str) -> str:
    return " UNION ALL ".join(
        f'SELECT {keys}{at} AS which, time, log, "offset", since FROM {hits.source}' for at, hits in enumerate(inputs)
    )


def _keys(group_by: Sequence[str]) -> str:
    return "".join(f"{quoted(f'g_{name}')}, " for name in group_by)


def _partition(group_by: Sequence[str]) -> str:
    return f"PARTITION BY {', '.join(quoted(f'g_{name}') for name in group_by)}" if group_by else ""


def _range(window: timedelta) -> str:
    return f"RANGE BETWEEN {_interval(window)} PRECEDING AND CURRENT ROW"


def _interval(window: timedelta) -> str:
    return f"INTERVAL {int(window.total_seconds())} SECONDS"
