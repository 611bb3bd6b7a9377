"""A rule: what it looks for, in SQL, and what people need to know about it. It is the same for both kinds of files.

`query` is one SELECT of DuckDB over the views of `tasks.detect.views`. It gives a row for each match:

- a column for each of `group_by`, none of them NULL,
- `time`, `log`, `offset`: of the event that completes the match,
- `since`: the time of the match's oldest event,
- `metric`: what was counted or compared.

`hits` is a SELECT of the single events that matches consist of, with the same columns but `since` and `metric`. An
alert's evidence is taken from it. Live runs, backtests and the tests in rule files use the same code: `run_rule`.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final, Literal

import duckdb

from custody.errors import CustodyError, legible

Level = Literal["low", "medium", "high", "critical"]
LEVELS: Final[tuple[Level, ...]] = ("low", "medium", "high", "critical")
COOL_DOWN: Final = timedelta(minutes=60)
EVIDENCE: Final = 20
"""Events that an alert names at most."""

VALUE: Final = 256
"""Characters of a group's value at most. Groups are in each state, in events and in messages."""
_DIGITS: Final = 32
"""Of the SHA-256 of a longer one, so that two of them stay two groups."""

SECONDS: Final = 30.0
"""How long a rule may take for the events of a step."""
ROWS: Final = 1_000_000
"""Rows that a rule's SQL may give for the events of a step: all are in memory, and each takes some hundred bytes."""

Group = tuple[tuple[str, str], ...]
"""The columns of a group and their values, as text."""


OF_MATCH: Final[Mapping[str, Any]] = {
    "time": datetime,
    "log": str,
    "offset": int,
    "since": datetime,
    "metric": (int, float, Decimal),
}
"""The columns of each match, and their types in Python."""
_AT_ONCE: Final = 10_000


class RuleFailed(CustodyError):
    """A rule's SQL cannot be run. The message names the rule."""


@dataclass(frozen=True, slots=True)
class RuleTest:
    """Events, and whether the rule must fire on them.

    Attributes:
        name: what is tested.
        events: the events, in the order in which they are archived.
        fires: groups that must fire, each as the columns of `group_by`; empty if nothing may fire.
        before: events that came earlier, and are remembered.
    """

    name: str
    events: tuple[Mapping[str, Any], ...] = field(repr=False)
    fires: tuple[Group, ...]
    before: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule that was loaded.

    Attributes:
        id: a UUID, which stays the same when the rule is changed.
        name: the file's name, without its ending.
        title: one line for people.
        level: how bad a match is.
        description: what it looks for.
        false_positives: harmless reasons for a match.
        advice: what to do about an alert.
        group_by: columns of `query`. Matches of one group are one alert.
        window: how far back a match reaches. Zero for a rule about single events.
        query: SQL that gives matches.
        hits: SQL that gives the events of which they consist.
        threshold: what `metric` is compared with, for the text of an alert; None if the SQL decides.
        cool_down: how long a group must be quiet until a new match is a new alert.
        measure: what `metric` is about, of `tasks.detect.memory.MEASURES`: minutes inside of alerts do not become the
            norm of the group's key.
        kind: whether the file is a Sigma rule or SQL.
        tests: what must fire and what must not.
    """

    id: str
    name: str
    title: str
    level: Level
    description: str
    false_positives: tuple[str, ...]
    advice: str
    group_by: tuple[str, ...]
    window: timedelta
    query: str = field(repr=False)
    hits: str = field(repr=False)
    threshold: float | None = None
    cool_down: timedelta = COOL_DOWN
    measure: str | None = None
    kind: Literal["sigma", "sql"] = "sigma"
    tests: tuple[RuleTest, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A row of a rule's query. Matches are in the order of their times, then of their places in the archive."""

    time: datetime
    log: str
    offset: int
    group: Group
    since: datetime
    metric: float


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, rule: str, seconds: float | None = None) -> Iterator[None]:
    """Run SQL of a rule, and interrupt it when it takes longer than so many seconds, `SECONDS` by default.

    Raises:
        RuleFailed: DuckDB cannot run it, or it took too long.
    """
    seconds = SECONDS if seconds is None else seconds
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        connection.interrupt()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.Error as error:
        why = (
            f"it takes more than {seconds:g} s" if is_late.is_set() else f"DuckDB cannot run it: {legible(str(error))}"
        )
        raise RuleFailed(f"rule {rule}: {why}") from None
    finally:
        timer.cancel()


def run_rule(connection: duckdb.DuckDBPyConnection, rule: Rule, seconds: float | None = None) -> list[Match]:
    """Return the matches of a rule over the views of a connection, in order.

    Raises:
        RuleFailed: DuckDB cannot run its SQL, it takes too long, or gives what `read_rows` refuses.
    """
    with limited(connection, rule.name, seconds):
        rows = read_rows(connection, rule, rule.query, OF_MATCH)
        matches = [
            Match(time, log, offset, group, since, float(metric)) for group, (time, log, offset, since, metric) in rows
        ]
    return sorted(matches)


def read_rows(
    connection: duckdb.DuckDBPyConnection, rule: Rule, sql: str, names: Collection[str]
) -> Iterator[tuple[Group, Sequence[Any]]]:
    """Yield the group of each row of a rule's SQL, and its values of some other columns. Rows without a group are none.

    Args:
        connection: has the views.
        rule: the rule.
        sql: its `query` or `hits`.
        names: the other columns, of `OF_MATCH`.

    Raises:
        RuleFailed: a value is NULL or no moment that Python knows, or there are more than `ROWS` rows.
    """
    columns = ", ".join(map(quoted, (*rule.group_by, *names)))
    kinds = [OF_MATCH[name] for name in names]
    width, count = len(rule.group_by), 0
    cursor = connection.execute(f"SELECT {columns} FROM ({sql}\n) LIMIT {ROWS + 1}")
    while rows := cursor.fetchmany(_AT_ONCE):
        count += len(rows)
        if count > ROWS:
            raise RuleFailed(f"rule {rule.name}: its SQL gives more than {ROWS:,} rows: make its conditions narrower")
        for row in rows:
            keys, values = row[:width], row[width:]
            if None in keys:
                # SQL of a user may leave them in. Events without a key, for instance, are no group.
                continue
            for name, kind, value in zip(names, kinds, values, strict=True):
                if not isinstance(value, kind):
                    raise RuleFailed(
                        f"rule {rule.name}: {_wrong(name, value)}: change its SQL so that each row has one"
                    )
            yield tuple(zip(rule.group_by, map(text_of, keys), strict=True)), values


def _wrong(name: str, value: Any) -> str:
    if value is None:
        return f"a row of its SQL has no {name}"
    # DuckDB's times reach from 290308 BC to the year 294246. It gives those that Python does not know as text.
    return f"a row of its SQL has the {name} {legible(str(value))}, which is not of the years 1 to 9999"


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def text_of(value: Any) -> str:
    """Return a value of a group as text. Of a long one, that is its begin and a digest."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) <= VALUE:
        return text
    return f"{text[: VALUE - _DIGITS - 1]}…{sha256(text.encode(errors='replace')).hexdigest()[:_DIGITS]}"


def group_value(column: str) -> str:
    """Return SQL for what `text_of` makes of a column of text."""
    return (
        f"CASE WHEN length({column}) <= {VALUE} THEN {column}"
        f" ELSE left({column}, {VALUE - _DIGITS - 1}) || '…' || left(sha256({column}), {_DIGITS}) END"
    )
