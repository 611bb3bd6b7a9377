"""What rules remember between runs: tables that grow with keys and sources, and not with events.

Each is an Arrow table. SQL rules read them as views of the same names, and see what was known before the events of this
step; `now` and `missing` are after them. All of it can be made again from the archive (`custody detect rebuild`).

- `kept`: events that a later match may still need: those in `hits` of a rule with a window, for as long as the longest
  window and `SLACK`. It has the columns of `events`.
- `minutes`: measures of the last hours, by minute: `key_kind`, `key`, `measure`, `minute`, `value`, and whether the
  minute is inside of an alert of the same key and measure.
- `peaks`: the largest minute of each hour, for 30 days: `key_kind`, `key`, `measure`, `hour`, `peak`. Minutes inside
  of an alert are not in it, or an attack would become the norm. An hour comes into it 2 to 3 hours after it began, or
  earlier where `minutes` has too many rows.
- `seen`: `kind`, `key`, `value`, `first_seen`, `last_seen`. `network` is where a key was used, `key` is that it was.
- `operations`: of each key the last `api_key_operation`: `api_key_id`, `operation`, `time`, `log`, `offset`, `network`.
- `sources`: see `tasks.detect.sources`, like the view `missing`.
- `uses`: the rows of `events` in which a key worked: what merely claims to be a key is not remembered.
- `now`: one row: `until` and `head_age` as given; `newest`, the time of the newest event up to `until`; `before`, what
  `newest` was in the last step with a fresh head, NULL without one. What happens when nothing comes is found once if a
  rule takes moments after `before` and up to `newest`, and only when `head_age` is at most 600.

Measures of `api_key_id`: `denials` and `queries` count events; `complexity`, `aliases` and `rows` are of the largest
query. Of `service`: `silence`, how many seconds passed after an event in that minute until the next one.

Who can write events could make as many keys as they like. So each table has a largest number of rows. Where there are
more, the oldest go: the oldest events, minutes and hours, the networks and sources that were not seen for longest, the
oldest operations but revocations last. Rules know less then: they miss something, or find something new that is not. A
flood of events that a rule with a window keeps is an alert of its own, and may hide what is slow.

Who can write events can also give them any time. One of the year 9999 would stay the newest for ever, and hide all that
is real. So an event more than `AHEAD` after all that is known is remembered with the time until which events are known.
Rows of the tables with such a time can only be forged: they are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from custody.format.limits import MIB
from custody.format.times import EPOCH
from custody.query.parquet import size_of
from tasks.detect import sources
from tasks.detect.alerts import AHEAD, Alert
from tasks.detect.rule import Rule, RuleFailed, group_value, limited
from tasks.detect.views import COLUMNS, NEW, drop_known, make_events, of_mappings, plain

SLACK: Final = timedelta(minutes=15)
"""How late events may be until the archive is read again for them."""
BASELINE: Final = timedelta(days=30)
"""How long peaks are kept."""
FORGOTTEN: Final = timedelta(days=90)
"""After how long without an event a network, a key and a source are forgotten."""
SETTLED: Final = timedelta(hours=2)
"""How old an hour's end is when its peaks are taken: until then, an alert may still take minutes out of them."""
SPAN: Final = timedelta(hours=12)
"""How long the events of a step may reach, so that no rule's baseline lies within its own step."""
BEGINNING: Final = plain(EPOCH)
FRESH: Final = 600
"""Seconds of the oldest head that is fresh. With an older one, what seems to be missing may only be on its way."""
MOST_KEPT: Final = 200_000
MOST_KEPT_BYTES: Final = 256 * MIB
"""Of events that are kept, as `size_of` counts."""
MOST_MINUTES: Final = 1_000_000
MOST_PEAKS: Final = 3_000_000
MOST_SEEN: Final = 500_000
MOST_OPERATIONS: Final = 500_000
MOST_SOURCES: Final = 20_000
MOST_VALUES: Final = 1_000
"""Networks of a key."""

MINUTES: Final = pa.schema(
    [
        ("key_kind", pa.string()),
        ("key", pa.string()),
        ("measure", pa.string()),
        ("minute", pa.timestamp("us")),
        ("value", pa.float64()),
        ("alerted", pa.bool_()),
    ]
)
PEAKS: Final = pa.schema(
    [
        ("key_kind", pa.string()),
        ("key", pa.string()),
        ("measure", pa.string()),
        ("hour", pa.timestamp("us")),
        ("peak", pa.float64()),
    ]
)
SEEN: Final = pa.schema(
    [
        ("kind", pa.string()),
        ("key", pa.string()),
        ("value", pa.string()),
        ("first_seen", pa.timestamp("us")),
        ("last_seen", pa.timestamp("us")),
    ]
)
OPERATIONS: Final = pa.schema(
    [
        ("api_key_id", pa.string()),
        ("operation", pa.string()),
        ("time", pa.timestamp("us")),
        ("log", pa.string()),
        ("offset", pa.int64()),
        ("network", pa.string()),
    ]
)
_TYPES: Final = {"BOOLEAN": pa.bool_(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "TIMESTAMP": pa.timestamp("us")}
KEPT: Final = pa.schema([(name, _TYPES.get(kind, pa.string())) for name, kind in COLUMNS.items()])
MEASURES: Final = ("denials", "queries", "complexity", "aliases", "rows", "silence")
"""What may stand as a rule's `measure`."""
_SUCCESS = (
    "(event_type = 'query_executed' OR event_type = 'auth_attempt' AND status = 'success'"
    " OR event_type = 'authz_check' AND permission_granted) AND api_key_id IS NOT NULL"
)

_ALERTS = pa.schema(
    [("key", pa.string()), ("measure", pa.string()), ("first", pa.timestamp("us")), ("last", pa.timestamp("us"))]
)
_IS_AHEAD = f"time > $now::TIMESTAMP + INTERVAL {int(AHEAD.total_seconds())} SECONDS"
_COUNTED = "('denials', 'queries')"
_NEWEST = "newest"
_MEASURED = f"""
SELECT 'api_key_id' AS key_kind, key, measure, minute, value, false AS alerted FROM (
    SELECT api_key_id AS key, date_trunc('minute', time) AS minute,
        nullif(count(*) FILTER (event_type = 'authz_check' AND NOT permission_granted), 0)::DOUBLE AS denials,
        nullif(count(*) FILTER (event_type = 'query_executed'), 0)::DOUBLE AS queries,
        max(complexity) FILTER (event_type = 'query_executed')::DOUBLE AS complexity,
        max(TRY_CAST(json_extract_string(event, '$.aliases') AS DOUBLE)) FILTER (event_type = 'query_executed')
            AS aliases,
        max(result_rows) FILTER (event_type = 'query_executed')::DOUBLE AS rows
    FROM {NEW} WHERE event_type IN ('authz_check', 'query_executed') AND api_key_id IS NOT NULL GROUP BY ALL
) UNPIVOT (value FOR measure IN (denials, queries, complexity, aliases, rows))
"""
_MERGED = f"""
WITH now_minutes AS MATERIALIZED (FROM ({_MEASURED}) UNION ALL FROM ({sources.SILENCES}))
FROM minutes ANTI JOIN now_minutes USING (key_kind, key, measure, minute)
UNION ALL SELECT key_kind, key, measure, minute,
    CASE WHEN measure IN {_COUNTED} THEN sum(value) ELSE max(value) END, bool_or(alerted)
FROM (FROM now_minutes UNION ALL FROM minutes SEMI JOIN now_minutes USING (key_kind, key, measure, minute))
GROUP BY key_kind, key, measure, minute
"""
_ALERTED = f"""
UPDATE merged_minutes SET alerted = true FROM alert_spans AS spans
WHERE spans.key = {group_value("merged_minutes.key")} AND spans.measure = merged_minutes.measure
    AND minute BETWEEN date_trunc('minute', spans.first) AND spans.last
"""
_DUE = """
CREATE OR REPLACE TEMP TABLE due_hours AS
SELECT key_kind, key, measure, date_trunc('hour', minute) AS hour, max(value) AS peak
FROM merged_minutes WHERE minute < $settled AND NOT alerted GROUP BY ALL
"""
_PEAKS = """
WITH recent AS (FROM peaks WHERE hour >= $oldest)
FROM recent ANTI JOIN due_hours USING (key_kind, key, measure, hour)
UNION ALL SELECT key_kind, key, measure, hour, max(peak)
FROM (FROM due_hours UNION ALL FROM recent SEMI JOIN due_hours USING (key_kind, key, measure, hour))
WHERE hour >= $oldest GROUP BY ALL
"""
_SEEN = f"""
SELECT kind, key, value, min(first_seen) AS first_seen, max(last_seen) AS last_seen FROM (
    FROM seen WHERE last_seen >= $forgotten
    UNION ALL SELECT 'key', api_key_id, '', min(time), max(time) FROM {NEW}
        WHERE {_SUCCESS} GROUP BY ALL
    UNION ALL SELECT 'network', api_key_id, network, min(time), max(time) FROM {NEW}
        WHERE {_SUCCESS} AND network IS NOT NULL GROUP BY ALL
    UNION ALL SELECT '{_NEWEST}', '', '', newest, newest FROM now WHERE newest IS NOT NULL AND head_age <= {FRESH}
) GROUP BY kind, key, value
QUALIFY row_number() OVER (PARTITION BY kind, key ORDER BY max(last_seen) DESC, value) <= {MOST_VALUES} OR kind = 'key'
ORDER BY kind = '{_NEWEST}' DESC, last_seen DESC, kind, key, value LIMIT $most
"""
_OPERATIONS = f"""
SELECT * FROM (
    FROM operations UNION ALL SELECT api_key_id, operation, time, log, "offset", network FROM {NEW}
    WHERE event_type = 'api_key_operation' AND api_key_id IS NOT NULL
) QUALIFY row_number() OVER (PARTITION BY api_key_id ORDER BY time DESC, log DESC, "offset" DESC) = 1
ORDER BY operation = 'revoked' DESC, time DESC, api_key_id LIMIT $most
"""


_TIMES: Final = {
    "kept": "time",
    "minutes": "minute",
    "peaks": "hour",
    "seen": "last_seen",
    "operations": "time",
    "sources": "last_seen",
}
"""Which column of each table says how new a row is."""
VIEWS: Final = ("events", "uses", "kept", "minutes", "peaks", "seen", "operations", "sources", "missing", "now")
"""What SQL rules may read."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The tables; see the module. A run makes new ones, and changes none."""

    kept: pa.Table
    minutes: pa.Table
    peaks: pa.Table
    seen: pa.Table
    operations: pa.Table
    sources: pa.Table


def empty() -> Memory:
    """Return what is known before the first event."""
    schemas = (KEPT, MINUTES, PEAKS, SEEN, OPERATIONS, sources.SCHEMA)
    return Memory(*(schema.empty_table() for schema in schemas))


def create(
    connection: duckdb.DuckDBPyConnection,
    memory: Memory,
    *,
    until: datetime,
    head_age: float,
    known_until: datetime | None = None,
) -> int:
    """Make the views that SQL rules read, besides `events`. The step's events are in the connection already.

    Of these, repeats of events that are kept are removed. A repeat in a later step of an event that no rule with a
    window needs counts again.

    Args:
        connection: has the step's events: see `tasks.detect.views`.
        memory: what is known before them.
        until: how far the archive is known, as a time of events.
        head_age: seconds since the archive got its newest statement.
        known_until: the newest time of an event that is known at all; `until` if not given.

    Returns:
        How many events had a time of the future.
    """
    now = plain(known_until or until)
    for name, column in _TIMES.items():
        connection.register(name, _without_future(getattr(memory, name), column, now))
    ((ahead,),) = connection.execute(f"SELECT count(*) FROM {NEW} WHERE {_IS_AHEAD}", {"now": now}).fetchall()
    if memory.kept.num_rows:
        drop_known(connection)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE now AS SELECT $until::TIMESTAMP AS until, $head_age::DOUBLE AS head_age, before,"
        f" greatest(before, (SELECT max(time) FROM {NEW} WHERE time <= $until::TIMESTAMP)) AS newest"
        f" FROM (SELECT max(last_seen) AS before FROM seen WHERE kind = '{_NEWEST}')",
        {"until": plain(until), "head_age": head_age},
    )
    connection.execute(f"CREATE OR REPLACE TEMP VIEW uses AS SELECT * FROM events WHERE {_SUCCESS}")
    connection.execute(sources.VIEW)
    return int(ahead)


def create_empty(connection: duckdb.DuckDBPyConnection) -> None:
    """Make all views, `events` too, without a row: to see whether a rule's SQL can be run."""
    of_mappings(connection, [])
    create(connection, empty(), until=BEGINNING, head_age=0)


def remember(
    connection: duckdb.DuckDBPyConnection,
    memory: Memory,
    rules: Sequence[Rule],
    alerts: Iterable[Alert],
    failed: dict[str, str],
    *,
    until: datetime,
    known_until: datetime | None = None,
) -> Memory:
    """Return what is known after the step's events. Those of the future get the time until which events are known.

    Args:
        connection: has the step's events, and the views that `create` made of `memory`. The view `events` is then that
            of the step's events alone.
        memory: what was known before them.
        rules: what is needed of events, and which measures alerts are about.
        alerts: what must not become the norm.
        failed: gets the rules whose events could not be found, and why: their later matches may lack some.
        until: how far the archive is known, as a time of events.
        known_until: the newest time of an event that is known at all; `until` if not given.
    """
    now = plain(known_until or until)
    connection.execute(f"UPDATE {NEW} SET time = $now::TIMESTAMP WHERE {_IS_AHEAD}", {"now": now})
    until = plain(until)
    kept = _kept(connection, rules, failed, until)
    minutes, peaks = _measured(connection, memory, rules, alerts, until)
    forgotten = until - FORGOTTEN
    return Memory(
        kept=kept,
        minutes=minutes,
        peaks=peaks,
        seen=_table(connection, _SEEN, SEEN, {"forgotten": forgotten, "most": MOST_SEEN}),
        operations=_table(connection, _OPERATIONS, OPERATIONS, {"most": MOST_OPERATIONS}),
        sources=_table(connection, sources.AFTER, sources.SCHEMA, {"forgotten": forgotten, "most": MOST_SOURCES}),
    )


def _kept(
    connection: duckdb.DuckDBPyConnection, rules: Sequence[Rule], failed: dict[str, str], until: datetime
) -> pa.Table:
    """Return the events that matches of rules with windows may still need."""
    windowed = [rule for rule in rules if rule.window]
    if not windowed:
        return KEPT.empty_table()
    make_events(connection, f"SELECT * FROM {NEW}")
    hits = []
    for rule in windowed:
        # Rows that are there twice are of no use, and could fill the memory.
        columns = f'SELECT DISTINCT log, "offset" FROM ({rule.hits}\n)'
        try:
            with limited(connection, rule.name):
                hits.append(connection.sql(columns).to_arrow_table())
        except RuleFailed as error:
            failed.setdefault(rule.name, str(error))
    oldest = until - max(rule.window for rule in windowed) - SLACK
    connection.register("kept_hits", pa.concat_tables(hits) if hits else _PLACES.empty_table())
    sql = (
        f"SELECT * FROM (FROM kept UNION ALL SELECT * FROM {NEW}"
        ' WHERE (log, "offset") IN (SELECT (log, "offset") FROM kept_hits)) WHERE time >= $oldest'
    )
    kept = _table(connection, sql, KEPT, {"oldest": oldest})
    connection.unregister("kept_hits")
    return _fitting(_newest(kept, "time", MOST_KEPT), "time", MOST_KEPT_BYTES)


def _measured(
    connection: duckdb.DuckDBPyConnection,
    memory: Memory,
    rules: Sequence[Rule],
    alerts: Iterable[Alert],
    until: datetime,
) -> tuple[pa.Table, pa.Table]:
    """Return `minutes` and `peaks`. Most steps change no peak: then it is the same table as before."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE merged_minutes AS {_MERGED}")
    connection.register("alert_spans", _spans(rules, alerts))
    connection.execute(_ALERTED)
    connection.unregister("alert_spans")
    settled = {"settled": _settled(connection, until)}
    minutes = _table(connection, "FROM merged_minutes WHERE minute >= $settled", MINUTES, settled)
    minutes = _newest(minutes, "minute", MOST_MINUTES)
    if not connection.execute(_DUE, settled).fetchall()[0][0]:
        return minutes, memory.peaks
    peaks = _table(connection, _PEAKS, PEAKS, {"oldest": until - BASELINE})
    return minutes, _newest(peaks, "hour", MOST_PEAKS)


def _settled(connection: duckdb.DuckDBPyConnection, until: datetime) -> datetime:
    """Return until when minutes become peaks. Where there are too many, some do early: else nothing would be usual."""
    settled = (until - SETTLED).replace(minute=0, second=0, microsecond=0)
    newer = "FROM merged_minutes WHERE minute >= $settled"
    (count,) = connection.execute(f"SELECT count(*) {newer}", {"settled": settled}).fetchall()[0]
    if count <= MOST_MINUTES:
        return settled
    # A quarter of them, because peaks are all made again.
    sql = f"SELECT minute {newer} ORDER BY minute DESC OFFSET $most LIMIT 1"
    early = connection.execute(sql, {"settled": settled, "most": MOST_MINUTES - MOST_MINUTES // 4}).fetchall()
    newest: datetime = early[0][0]
    return newest + timedelta(minutes=1)


def _spans(rules: Sequence[Rule], alerts: Iterable[Alert]) -> pa.Table:
    """Return from when to when there were alerts about a key and a measure."""
    measures = {rule.name: rule.measure for rule in rules if rule.measure is not None}
    rows = [
        {"key": value, "measure": measures[alert.rule], "first": plain(alert.first), "last": plain(alert.last)}
        for alert in alerts
        if alert.rule in measures
        for _, value in alert.group
    ]
    return pa.Table.from_pylist(rows, schema=_ALERTS)


_PLACES = pa.schema([("log", pa.string()), ("offset", pa.int64())])


def _table(
    connection: duckdb.DuckDBPyConnection, sql: str, schema: pa.Schema, values: Mapping[str, Any] | None = None
) -> pa.Table:
    return connection.sql(sql, params=values).to_arrow_table().cast(schema)


def _without_future(table: pa.Table, time: str, now: datetime) -> pa.Table:
    """Return a table without the rows that are more than `AHEAD` later than now; mostly, it is the same table."""
    # Differences are compared, because a sum may be after the year 9999.
    newest = pc.max(table[time]).as_py()
    if newest is None or newest - now <= AHEAD:
        return table
    return table.filter(pc.less_equal(table[time], pa.scalar(now + AHEAD, pa.timestamp("us"))))


def _newest(table: pa.Table, time: str, most: int) -> pa.Table:
    """Return a table with the newest of its rows, if there are too many."""
    return table if table.num_rows <= most else table.sort_by([(time, "descending")]).slice(0, most)


def _fitting(table: pa.Table, time: str, most: int) -> pa.Table:
    """Return a table with the newest of its rows, if it has more bytes than so many."""
    if size_of(table) <= most:
        return table
    table = table.sort_by([(time, "descending")]).combine_chunks()
    texts = [pc.fill_null(pc.binary_length(column), 0) for column in table.columns if pa.types.is_string(column.type)]
    sizes = pc.cumulative_sum(reduce(pc.add, texts, pa.repeat(8 * table.num_columns, table.num_rows)))
    return table.slice(0, pc.sum(pc.less_equal(sizes, most)).as_py())
