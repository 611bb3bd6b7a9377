"""Rules in SQL: what a file is, what its SELECT may read and call, and that it ends."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from custody.errors import ConfigurationError
from tasks.detect import folder, memory, views
from tasks.detect.rule import Rule, RuleFailed, run_rule

COLUMNS = 'api_key_id, time, log, "offset", time AS since, 1 AS metric'
HEADER = """\
/*
title: An own event
id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9aff
description: An own event.
level: low
falsepositives: [none]
advice: Look.
group-by: [api_key_id]
window: 0
tests:
  - name: fires
    events: [{event_type: own, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1}]
    fires: [{api_key_id: key-1}]
  - name: does not
    events: [{event_type: other, timestamp: "2026-03-01T10:00:00Z", api_key_id: key-1}]
    fires: []
*/
"""
LINES = HEADER.count("\n")


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with views.connect() as opened:
        yield opened


def loaded(tmp_path: Path, sql: str, header: str = HEADER) -> Rule:
    """Return the rule of a file with a SELECT."""
    path = tmp_path / "test.sql"
    path.write_text(header + sql)
    return folder.load_file(path)


def test_a_file_is_a_rule(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """What its comment says, and its SELECT without the semicolon; its own tests run."""
    rule = loaded(
        tmp_path, f"-- what it is: own;\nSELECT {COLUMNS} FROM events WHERE event_type = 'own'; -- the end;\n"
    )
    assert (rule.kind, rule.name, rule.level, rule.group_by) == ("sql", "test", "low", ("api_key_id",))
    assert (rule.window, rule.cool_down, rule.threshold) == (timedelta(0), timedelta(hours=1), None)
    assert rule.hits == rule.query
    assert list(folder.problems_of(rule, connection)) == []


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM\nread_csv('/etc/passwd')", "line 2: the SELECT calls read_csv"),
        ("SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))", "line 1: the SELECT calls read_text"),
        ("SELECT * FROM '/etc/passwd'", "line 1: the SELECT reads /etc/passwd"),
        ("SELECT * FROM glob('/*')", "calls glob"),
        ("SELECT * FROM query('SELECT 1')", "calls query"),
        ("SELECT * FROM query_table('events')", "calls query_table"),
        ("COPY events TO '/tmp/events'", "one SELECT"),
        ("COPY (SELECT 1) TO '/tmp/events'", "one SELECT"),
        ("EXPORT DATABASE '/tmp/events'", "one SELECT"),
        ("ATTACH '/tmp/events'", "one SELECT"),
        ("INSTALL httpfs", "one SELECT"),
        ("LOAD httpfs", "one SELECT"),
        ("PRAGMA version", "one SELECT"),
        ("CALL pragma_version()", "one SELECT"),
        ("SET threads = 9", "one SELECT"),
        ("CREATE TABLE own AS SELECT 1", "one SELECT"),
        ("DELETE FROM minutes", "one SELECT"),
        ("EXPLAIN SELECT 1", "one SELECT"),
        ("DESCRIBE events", "is no"),
        ("SELECT * FROM (SUMMARIZE events)", "is no"),
        ("PIVOT events ON status", "one SELECT"),
        ("WITH own AS (DELETE FROM minutes RETURNING *) SELECT * FROM own", "is no SELECT"),
        (f"SELECT {COLUMNS} FROM events; SELECT 1", "one SELECT"),
        (f"SELECT {COLUMNS} FROM events; DROP VIEW events", "one SELECT"),
        ("", "one SELECT"),
        ("-- nothing", "one SELECT"),
        ("SELECT\n\nFROM WHERE", "line 3: Parser Error"),
        ("SELECT 1\nFROM event", "line 2: the SELECT reads event, which is no view: events"),
        ("SELECT 1 FROM all_events", "reads all_events"),
        ("SELECT 1 FROM memory.main.events", "of a schema"),
        ("SELECT 1 FROM information_schema.tables", "of a schema"),
        ("SELECT 1 FROM duckdb_tables", "reads duckdb_tables"),
        ("SELECT 1 FROM duckdb_settings()", "calls duckdb_settings"),
        ("WITH duckdb_tables AS (SELECT 1) SELECT 1 FROM (SELECT * FROM duckdb_tables)", "which a view has"),
        ("WITH events AS (SELECT 1) SELECT 1 FROM events", "which a view has"),
        (f"SELECT {COLUMNS} FROM events\nWHERE getenv('HOME') = '/root'", "line 2: the SELECT calls getenv"),
        (f"SELECT {COLUMNS} FROM events WHERE current_setting('threads') = 1", "calls current_setting"),
        (f"SELECT {COLUMNS} FROM events WHERE getvariable('x') = 1", "calls getvariable"),
        (f"SELECT {COLUMNS} FROM events WHERE time < now()", "calls now"),
        (f"SELECT {COLUMNS} FROM events WHERE time < current_timestamp", "has current_timestamp"),
        (f"SELECT {COLUMNS} FROM events WHERE time < CURRENT_DATE", "has CURRENT_DATE"),
        (f"SELECT {COLUMNS} FROM events WHERE ago(INTERVAL 1 HOUR) < time", "calls ago"),
        (f"SELECT {COLUMNS} FROM events WHERE age(time) < INTERVAL 1 HOUR", "age"),
        (f"SELECT {COLUMNS} FROM events WHERE random() < 0.5", "calls random"),
        (f"SELECT {COLUMNS} FROM events ORDER BY uuid()", "calls uuid"),
        (f"SELECT {COLUMNS} FROM events WHERE pg_sleep(9) IS NULL", "calls pg_sleep"),
        (f"SELECT {COLUMNS} FROM events TABLESAMPLE 10%", "takes a sample"),
        (f"SELECT {COLUMNS} FROM events WHERE api_key_id = ?", "is a parameter"),
        (f"SELECT {COLUMNS} FROM events WHERE api_key_id = $key", "is a parameter"),
        ('SELECT api_key_id, time, log, "offset", time AS since FROM events', "metric"),
        ('SELECT api_key_id, time, log, "offset", time AS since, status AS metric FROM events', "metric is VARCHAR"),
        ('SELECT api_key_id, time, log, log AS "offset", time AS since, 1 AS metric FROM events', "offset is VARCHAR"),
        (f"SELECT {COLUMNS}\nFROM events\nWHERE nothing = 1", "line 3: Binder Error"),
    ],
)
def test_what_a_select_may_not_do(tmp_path: Path, sql: str, message: str) -> None:
    """It reads known views alone, and calls what depends on its arguments alone. The file's line is named."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, sql)
    number = message.removeprefix("line ").partition(":")[0]
    if message.startswith("line "):
        message = message.replace(f"line {number}", f"line {LINES + int(number)}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        f"WITH own AS (SELECT * FROM events) SELECT {COLUMNS} FROM own",
        f"WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 9) SELECT {COLUMNS} FROM events",
        f"SELECT {COLUMNS} FROM events, LATERAL (SELECT unnest([1, 2])), range(3)",
        f"SELECT {COLUMNS} FROM (FROM events) UNPIVOT (size FOR what IN (complexity, result_rows))",
        f"SELECT {COLUMNS} FROM events SEMI JOIN seen ON seen.key = api_key_id",
        f"SELECT {COLUMNS} FROM (SELECT {COLUMNS} FROM events UNION ALL SELECT {COLUMNS} FROM kept)",
        f"SELECT {COLUMNS} FROM events, json_each(event) WHERE event ->> '$.aliases' > '3'",
        f"SELECT {COLUMNS} FROM events WHERE regexp_matches(network, '^10') AND split_part(network, '.', 1) LIKE '1%'",
        f"SELECT {COLUMNS} FROM events QUALIFY row_number() OVER (PARTITION BY log ORDER BY time) = 1",
    ],
)
def test_what_a_select_may_do(tmp_path: Path, sql: str) -> None:
    """SQL as analysts write it."""
    assert loaded(tmp_path, sql).kind == "sql"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/*\n", "\n/*\n", "line 1: a rule in SQL begins with a comment"),
        ("\n*/\n", "\n", "line 1: the comment ends"),
        ("Look.", "Look */ here.", "line 1: the comment ends"),
        ("advice: Look.", "advice: Look: here.", "no YAML in line 7"),
        ("advice: Look.", "advice: Look.\ntitle: again", "'title' is there twice"),
        ("level: low", "level: urgent", "'level' is 'urgent'"),
        ("level: low", "severity: low", "severity is not known"),
        ("advice: Look.\n", "", "'advice' is missing"),
        ("4d5e3f0a", "4D5E3F0A", "UUID"),
        ("window: 0\n", "", "window is None"),
        ("window: 0", "window: false", "window is False"),
        ("window: 0", "window: 5m", "has 'evidence'"),
        ("window: 0", "window: 8d\nevidence: SELECT 1", "more than 7 days"),
        ("window: 0", "window: 0\nevidence: SELECT 1 FROM now", "one without has none"),
        ("window: 0", "window: 5m\nevidence: SELECT 1 FROM now", "evidence: Binder Error"),
        ("window: 0", "window: 5m\nevidence: COPY events TO 'x'", "evidence: a rule is one SELECT"),
        ("window: 0", "window: 0\nmeasure: loudness", "'measure' is 'loudness'"),
        ("window: 0", "window: 0\nmeasure: rows\ncool-down: 3h", "cool-down of 2h"),
        ("window: 0", "window: 0\nthreshold: many", "no number"),
        ("group-by: [api_key_id]", "group-by: [colour]", "colour"),
        ("group-by: [api_key_id]", "group-by: [api_key_id, API_key_id]", "twice"),
        ("group-by: [api_key_id]", "group-by: [metric]", "names metric"),
        ("    fires: [{api_key_id: key-1}]", "    fires: []", "must fire"),
        ("event_type: other,", "event_type: other, event: own,", ""),
        ("tests:", "examples:", "examples is not known"),
        ("window: 0\n", "window: 0\n---\n", "one YAML document"),
    ],
)
def test_a_comment_that_is_not_understood(tmp_path: Path, old: str, new: str, message: str) -> None:
    """A rule that is half understood would be silent about what it misses."""
    assert old in HEADER
    sql = f"SELECT {COLUMNS} FROM events WHERE event_type = 'own'"
    if not message:
        assert loaded(tmp_path, sql, HEADER.replace(old, new, 1)).tests
        return
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, sql, HEADER.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_rule_without_both_kinds_of_tests_does_not_load(tmp_path: Path) -> None:
    """Nor one whose tests have a key that is not known."""
    sql = f"SELECT {COLUMNS} FROM events WHERE event_type = 'own'"
    with pytest.raises(ConfigurationError, match="events that must not"):
        loaded(tmp_path, sql, HEADER.replace("    fires: []\n", "    fires: [{api_key_id: key-1}]\n"))
    with pytest.raises(ConfigurationError, match="'tests' is a list"):
        loaded(tmp_path, sql, HEADER[: HEADER.index("tests:")] + "*/\n")
    with pytest.raises(ConfigurationError, match="may have 'before'"):
        loaded(tmp_path, sql, HEADER.replace("    fires: []\n", "    fires: []\n    memory: []\n"))


def test_what_came_before_is_remembered_and_does_not_fire(
    tmp_path: Path, connection: duckdb.DuckDBPyConnection
) -> None:
    """By the code of live runs: `before` makes no match, and a rule with a window sees it in `events`."""
    header = HEADER.replace(
        "    fires: [{api_key_id: key-1}]",
        '    before: [{event_type: own, timestamp: "2026-03-01T09:59:00Z", api_key_id: key-1}]\n'
        "    fires: [{api_key_id: key-1}]",
    )
    new = "NOT EXISTS (SELECT * FROM seen WHERE kind = 'newest')"
    rule = loaded(tmp_path, f"SELECT {COLUMNS} FROM events WHERE event_type = 'own' AND {new}", header)
    assert list(folder.problems_of(rule, connection)) == ["test 'fires': did not fire for api_key_id key-1"]
    evidence = """window: 5m\nevidence: SELECT api_key_id, time, log, "offset" FROM events WHERE event_type = 'own'"""
    counted = f"SELECT {COLUMNS} FROM events QUALIFY count(*) FILTER (event_type = 'own') OVER (ORDER BY time) = 2"
    rule = loaded(tmp_path, counted, header.replace("window: 0", evidence))
    assert list(folder.problems_of(rule, connection)) == []


def test_a_rule_that_does_not_end_is_interrupted(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """The message names it, and the connection goes on."""
    endless = "WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT (n + 1) % 9 FROM up)"
    rule = loaded(tmp_path, f"{endless} SELECT {COLUMNS} FROM events WHERE (SELECT count(*) FROM up) > 0")
    views.of_mappings(connection, rule.tests[0].events)
    with pytest.raises(RuleFailed, match=r"rule test: it takes more than 0\.1 s"):
        run_rule(connection, rule, seconds=0.1)
    assert connection.execute("SELECT count(*) FROM events").fetchall() == [(1,)]


def test_what_fails_at_run_time_names_the_rule(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """A text that is no number, for instance."""
    rule = loaded(tmp_path, f"SELECT {COLUMNS} FROM events WHERE CAST(api_key_id AS BIGINT) = 1")
    views.of_mappings(connection, rule.tests[0].events)
    with pytest.raises(RuleFailed, match="rule test: DuckDB cannot run it: Conversion Error"):
        run_rule(connection, rule)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/never'",
        "ATTACH '/tmp/never'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET threads = 9",
        "RESET lock_configuration",
        "SELECT * FROM secret_table",
        "SELECT getenv('HOME')",
    ],
)
def test_a_connection_for_rules_reaches_nothing(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Even if what a SELECT may do were looked at wrongly. Variables of Python are no tables."""
    secret_table = pa.table({"secret": [1]})
    with pytest.raises(duckdb.Error):
        connection.execute(sql)
    assert secret_table.num_rows == 1


def test_all_views_that_are_named_are_there(connection: duckdb.DuckDBPyConnection) -> None:
    """Nothing that a rule may name fails only once it runs."""
    memory.create_empty(connection)
    for name in memory.VIEWS:
        connection.execute(f"SELECT * FROM {name}").fetchall()
