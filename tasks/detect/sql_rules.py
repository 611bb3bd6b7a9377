"""SQL rules: a comment with YAML, and one SELECT of DuckDB over known views. Editors take the file for the SQL it is.

    /*
    title: …
    id: 4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a10
    description: …
    level: medium
    falsepositives: […]
    advice: …
    group-by: [api_key_id]
    window: 0           # how far back a match reaches: `events` has what `evidence` gives of so long ago
    cool-down: 2h       # 1h if not given
    threshold: 20       # for the text of an alert, if there is one number
    measure: denials    # what minutes of the group's key do not become the norm of while there is an alert
    evidence: SELECT …  # with a window: the single events that matches consist of, which are kept so long
    tests: […]          # as those of Sigma rules, and each may have `before`: events that came earlier
    */
    SELECT api_key_id, time, log, "offset", time AS since, 1 AS metric FROM events WHERE …

The columns are those of `tasks.detect.rule`, the views those of `tasks.detect.memory` and `tasks.detect.views`. A rule
reads nothing else: no file, no network, no setting, no clock, nothing random. The same events give the same matches,
however they are cut into steps, if each event's match depends on older events and on what is remembered of them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Final

import duckdb

from custody.errors import ConfigurationError
from tasks.detect import memory
from tasks.detect.examples import tests_of
from tasks.detect.header import LONGEST, columns_of_group, identity, level, text, texts, timespan
from tasks.detect.rule import COOL_DOWN, Rule, quoted

_KEYS: Final = frozenset(
    re.findall(
        "[a-z-]+",
        "title id description level falsepositives advice group-by window cool-down threshold measure evidence tests"
        " references author date modified status tags license",
    )
)
_BEGIN, _END = "/*", "*/"
_LINE: Final = re.compile(r"LINE ([0-9]+):")
_TABLE_FUNCTIONS: Final = frozenset(("unnest", "range", "generate_series", "json_each", "json_tree"))
_MACROS: Final = re.compile(
    r"list_.*|array_.*|json|split_part|nullif|fdiv|fmod|if|histogram|days_in_month|date_add|geomean|wavg"
)
"""Functions that are written in SQL. DuckDB does not say which of these ask for a setting or the time."""
_WORDS: Final = frozenset(
    f"current_{name}" for name in ("catalog", "date", "role", "schema", "time", "timestamp", "user")
) | {"localtime", "localtimestamp", "session_user", "user"}
"""Functions that are called without parentheses."""
_CLOCK: Final = frozenset(("age", "current_localtime", "current_localtimestamp", "get_current_timestamp"))
"""Functions that ask for the time, at least with some arguments, though DuckDB calls them stable."""
_SOURCES: Final = frozenset(("BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "TABLE_FUNCTION", "EXPRESSION_LIST", "PIVOT"))
_NODES: Final = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
_OF_MATCH: Final[Mapping[str, str]] = {
    "time": "TIMESTAMP",
    "log": "VARCHAR",
    "offset": "BIGINT",
    "since": "TIMESTAMP",
    "metric": "DOUBLE",
}
_OF_EVENT: Final = tuple(_OF_MATCH)[:3]
_MOST: Final = timedelta(hours=2)
"""The longest cool-down of a rule with a measure: later, its minutes are settled (`memory.SETTLED`)."""


def split(content: str) -> tuple[str, str]:
    """Return the YAML and the SQL of a file, each with empty lines before it, so that its lines have their numbers.

    Raises:
        ConfigurationError: it does not begin with a comment.
    """
    lines = content.splitlines()
    if not lines or lines[0].rstrip() != _BEGIN:
        raise ConfigurationError(f"line 1: a rule in SQL begins with a comment of YAML: the first line is {_BEGIN}")
    ends = [number for number, line in enumerate(lines) if line.rstrip() == _END]
    if not ends or any(_END in line for line in lines[1 : ends[0]]):
        raise ConfigurationError(f"line 1: the comment ends with a line that is {_END}, and has no other {_END}")
    return "\n".join(["", *lines[1 : ends[0]]]), "\n" * (ends[0] + 1) + "\n".join(lines[ends[0] + 1 :])


def rule_of(name: str, header: Mapping[str, Any], sql: str, connection: duckdb.DuckDBPyConnection) -> Rule:
    """Return the rule of a file.

    Args:
        name: the file's name, without its ending.
        header: its YAML.
        sql: its SQL, with empty lines before it as `split` puts them.
        connection: has all views, without a row.

    Raises:
        ConfigurationError: it is no rule, or something is not understood.
    """
    if unknown := sorted(set(header) - _KEYS):
        raise ConfigurationError(f"{', '.join(unknown)} is not known: a rule in SQL has {', '.join(sorted(_KEYS))}")
    group_by = columns_of_group(header)
    window = _window(header)
    query = _checked(connection, sql, (*group_by, *_OF_MATCH))
    hits = query
    if ("evidence" in header) != bool(window):
        raise ConfigurationError(
            "a rule with a window has 'evidence', and one without has none: its step is all it sees"
        )
    if window:
        try:
            hits = _checked(connection, text(header, "evidence"), (*group_by, *_OF_EVENT))
        except ConfigurationError as error:
            raise ConfigurationError(f"evidence: {error}") from None
    return Rule(
        id=identity(header),
        name=name,
        title=text(header, "title"),
        level=level(header),
        description=text(header, "description"),
        false_positives=tuple(texts(header.get("falsepositives", []), "falsepositives")),
        advice=text(header, "advice"),
        group_by=group_by,
        window=window,
        query=query,
        hits=hits,
        threshold=_threshold(header),
        cool_down=_cool_down(header),
        measure=_measure(header),
        kind="sql",
        tests=tests_of(header.get("tests"), group_by, before=True),
    )


def _window(header: Mapping[str, Any]) -> timedelta:
    given = header.get("window")
    window = timedelta(0) if given == 0 and not isinstance(given, bool) else timespan(given, "window")
    if window > LONGEST:
        raise ConfigurationError(f"the window is {window}, more than {LONGEST}: read what is remembered for longer")
    return window


def _cool_down(header: Mapping[str, Any]) -> timedelta:
    cool_down = timespan(header["cool-down"], "cool-down") if "cool-down" in header else COOL_DOWN
    if "measure" in header and cool_down > _MOST:
        raise ConfigurationError("a rule with a measure has a cool-down of 2h at most")
    return cool_down


def _threshold(header: Mapping[str, Any]) -> float | None:
    given = header.get("threshold")
    if given is not None and (isinstance(given, bool) or not isinstance(given, int | float)):
        raise ConfigurationError(f"'threshold' is {given!r}, and no number")
    return given


def _measure(header: Mapping[str, Any]) -> str | None:
    given = header.get("measure")
    if given is not None and given not in memory.MEASURES:
        raise ConfigurationError(f"'measure' is {given!r}: {', '.join(memory.MEASURES)} are known")
    return given


def _checked(connection: duckdb.DuckDBPyConnection, sql: str, columns: tuple[str, ...]) -> str:
    """Return SQL without what ends it, once it is known to be one SELECT that reads views alone.

    Raises:
        ConfigurationError: it is something else, or lacks columns.
    """
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigurationError(_shown(error)) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise ConfigurationError("a rule is one SELECT, and no other statement")
    query = _without_end(sql)
    parsed = json.loads(connection.execute("SELECT json_serialize_sql($sql)", {"sql": query}).fetchall()[0][0])
    if parsed["error"]:
        raise ConfigurationError(f"the SELECT is not understood: {parsed['error_message']}")
    _Check(query).tree(parsed)
    shown = ", ".join(map(quoted, columns))
    try:
        described = connection.execute(f"DESCRIBE SELECT {shown} FROM ({query}\n)").fetchall()
    except duckdb.Error as error:
        raise ConfigurationError(_shown(error)) from None
    for column, kind, *_ in described:
        wanted = _OF_MATCH.get(column)
        if column == "metric" and kind not in {"DOUBLE", "BIGINT", "INTEGER", "HUGEINT", "FLOAT"}:
            raise ConfigurationError(f"the column metric is {kind}: write metric::DOUBLE")
        if wanted and column != "metric" and kind != wanted:
            raise ConfigurationError(f"the column {column} is {kind}, and must be {wanted}")
    return query


def _without_end(sql: str) -> str:
    """Return a statement without the semicolon at its end: what goes into another SELECT has none."""
    data = sql.encode()
    for at, kind in reversed(duckdb.tokenize(sql)):
        if data[at : at + 1] == b";":
            data = data[:at] + b" " + data[at + 1 :]
        elif kind != duckdb.token_type.comment:
            break
    return data.decode()


class _Check:
    """Looks at each part of a SELECT."""

    def __init__(self, sql: str) -> None:
        self._sql = sql.encode()
        self._functions, self._views = _known()
        self._named: set[str] = set()

    def tree(self, parsed: Any) -> None:
        """Check a statement as `json_serialize_sql` gives it.

        Raises:
            ConfigurationError: something in it is not allowed.
        """
        nodes = list(_nodes(parsed))
        for node in nodes:
            self._named |= {str(each["key"]).lower() for each in (node.get("cte_map") or {}).get("map", ())}
        if taken := sorted(self._named & self._views):
            raise ConfigurationError(f"WITH has the name {taken[0]}, which a view has: choose another one")
        for node in nodes:
            self._node(node)

    def _node(self, node: Mapping[str, Any]) -> None:
        kind = node.get("type")
        if isinstance(source := node.get("from_table"), Mapping) and source["type"] not in _SOURCES:
            raise self._refused(source, "is no table, view or SELECT")
        for key in ("node", "query_node"):
            if isinstance(inner := node.get(key), Mapping) and inner["type"] not in _NODES:
                raise self._refused(inner, "is no SELECT")
        if node.get("sample"):
            raise self._refused(node, "takes a sample: a rule gives the same for the same events")
        if node.get("class") == "PARAMETER":
            raise self._refused(node, "is a parameter, and nothing gives its value")
        if kind == "COLUMN_REF" and len(node["column_names"]) == 1 and node["column_names"][0].lower() in _WORDS:
            raise self._refused(node, f"has {node['column_names'][0]}: rules know no clock and no user")
        if kind == "BASE_TABLE":
            self._table(node)
        elif kind == "TABLE_FUNCTION":
            self._function(node["function"], _TABLE_FUNCTIONS, node)
        elif kind == "SHOW_REF":
            raise self._refused(node, "is no SELECT")
        elif "function_name" in node and not node.get("is_operator"):
            # The call of a table function is looked at with the table.
            self._function(node, self._functions | _TABLE_FUNCTIONS, node)

    def _table(self, node: Mapping[str, Any]) -> None:
        name = str(node["table_name"])
        if node["schema_name"] or node["catalog_name"]:
            raise self._refused(node, f"reads {name} of a schema: name a view alone")
        if name.lower() not in {*memory.VIEWS, *self._named}:
            raise self._refused(node, f"reads {name}, which is no view: {', '.join(memory.VIEWS)} are")

    def _function(self, node: Mapping[str, Any], known: frozenset[str], position: Mapping[str, Any]) -> None:
        name = str(node["function_name"])
        if node["schema"] or node["catalog"] or name.lower() not in known:
            raise self._refused(position, f"calls {name}: rules call functions that depend on their arguments alone")

    def _refused(self, node: Mapping[str, Any], why: str) -> ConfigurationError:
        at = node.get("query_location", len(self._sql))
        number = self._sql[:at].count(b"\n") + 1
        return ConfigurationError((f"line {number}: " if at < len(self._sql) else "") + f"the SELECT {why}")


@cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Return the functions that rules may call, and the names of views that are there."""
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(
            "SELECT lower(function_name), function_type, bool_and(stability IS NULL OR stability = 'CONSISTENT')"
            " FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'window', 'macro') GROUP BY ALL"
        ).fetchall()
        internal = connection.execute("SELECT lower(view_name) FROM duckdb_views() WHERE internal").fetchall()
    refused = {
        name for name, kind, is_stable in rows if not is_stable or (kind == "macro" and not _MACROS.fullmatch(name))
    }
    return frozenset(name for name, _, _ in rows) - refused - _CLOCK, frozenset(
        {*memory.VIEWS, *(name for (name,) in internal)}
    )


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all maps in a value, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _shown(error: duckdb.Error) -> str:
    """Return an error of DuckDB in one line, with the line of the file first."""
    message = str(error)
    line = _LINE.search(message)
    first = message.splitlines()[0] if message else type(error).__name__
    # Line 1 is our SELECT around that of the file.
    return f"line {line[1]}: {first}" if line and line[1] != "1" else first
