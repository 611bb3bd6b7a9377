"""Each event of the six types is a valid event of OCSF 1.7.0, and nothing of it is lost."""

import json
import types
import typing
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Any, Literal

import duckdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.format import events
from custody.format.events import EVENT_TYPES
from custody.format.layout import Log
from custody.query import ocsf, tables
from tests.helpers.corpus import CASES, EVENTS
from tests.helpers.ocsf import check_ocsf, from_columns, nulls
from tests.helpers.querying import BATCH, WORK

OTHERWISE = {"timestamp", "permission_granted", "severity", "status"}
"""Fields whose values have other words in OCSF."""


# --- random events


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a field, by its definition."""
    bounds: dict[str, Any] = {}
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metas = typing.get_args(annotation)
        for meta in metas:
            bounds |= {f"{name}_value": getattr(meta, at) for name, at in _BOUNDS if getattr(meta, at) is not None}
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return st.one_of(*map(_values, typing.get_args(annotation)))
    if typing.get_origin(annotation) is Literal:
        return st.sampled_from(typing.get_args(annotation))
    if annotation is int:
        return st.integers(**bounds)
    if annotation is float:
        return st.floats(**bounds, allow_nan=False, allow_infinity=False)
    return {str: _texts, bool: st.booleans(), type(None): st.none(), list[Any]: st.lists(_json, max_size=3)}.get(
        annotation, st.dictionaries(_texts, _json, max_size=3)
    )


_BOUNDS = (("min", "ge"), ("max", "le"))
_texts = st.sampled_from(["", "created", "blocked", "alerted", "custody.storm", 'it\'s "so"\n\x7f']) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | _texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_texts, inner, max_size=2),
    max_leaves=4,
)
_FIRST, _LAST = (datetime.fromisoformat(text) for text in ("1970-01-01", "9999-12-30"))
_FIELDS = {
    "timestamp": st.datetimes(_FIRST, _LAST, timezones=st.just(UTC)).map(datetime.isoformat),
    "client_ip": st.ip_addresses().map(str)
    | st.ip_addresses(v=6).map(lambda at: at.exploded.upper())
    | st.ip_addresses(v=4).map(lambda at: IPv6Address(f"::ffff:{at}").exploded[:30] + str(at)),
    "details": st.dictionaries(st.sampled_from(["kind", "alert_id", "title", "x"]), _json | st.just("over")),
}
_MORE: dict[str, st.SearchStrategy[Any]] = {
    "event_id": _texts.filter(bool),
    "source": st.just("web/1/7"),
    "source_seq": st.integers(1, 9),
}
_OPERATIONS = {"operation_type": st.sampled_from(["query", "mutation", "subscription", "Query"])}


def _event(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    hints = typing.get_type_hints(EVENT_TYPES[kind], include_extras=True)
    fields = {name: _FIELDS.get(name, _values(hint)) for name, hint in hints.items() if not name.startswith("_")}
    more = _MORE | (_OPERATIONS if kind == "query_executed" else {})
    return st.fixed_dictionaries({"event_type": st.just(kind), **fields}, optional=more)


valid = st.sampled_from(list(EVENT_TYPES)).flatmap(_event)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection with the view over `rows`: to make it costs more than to ask."""
    with duckdb.connect() as made:
        made.register("rows", tables.SCHEMA.empty_table())
        made.execute("CREATE VIEW events AS SELECT *, current_date AS day FROM rows")
        made.execute(ocsf.view())
        yield made


def mapped(connection: duckdb.DuckDBPyConnection, lines: list[bytes], *, valid: bool = True) -> list[dict[str, Any]]:
    """Return events as OCSF, as the view does with the rows that tables have of them."""
    refused = events.check(lines).refused
    assert valid == (not refused), refused
    rows = tables.Rows(Log("audit", 0))
    rows.add(
        WORK, msgspec.structs.replace(BATCH, next_offset=10 + len(lines)), b"".join(line + b"\n" for line in lines)
    )
    connection.register("rows", rows.take())
    asked = connection.execute('SELECT * FROM ocsf ORDER BY "offset"')
    names = [each[0] for each in asked.description or ()]
    made: list[dict[str, Any]] = []
    for values in asked.fetchall():
        row = dict(zip(names, values, strict=True))
        made.append(json.loads(row["json"]))
        assert from_columns(row) == made[-1]
    return made


def leaves(value: Any) -> Iterator[Any]:
    """Yield all values in an event."""
    yield value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)


# Few examples of many events: a query takes longer than a row.
@settings(max_examples=5)
@given(st.lists(valid, min_size=30, max_size=60))
def test_each_event_is_valid_and_whole(connection: duckdb.DuckDBPyConnection, several: list[dict[str, Any]]) -> None:
    """Random events of all types are valid OCSF, have no nulls, and all of their values."""
    for number, (event, made) in enumerate(
        zip(several, mapped(connection, [json.dumps(event).encode() for event in several]), strict=True)
    ):
        check_ocsf(made)
        assert list(nulls(made)) == []
        metadata = made["metadata"]
        assert (metadata["log_name"], metadata["sequence"]) == ("audit/0", 10 + number)
        assert metadata["event_code"] == event["event_type"]
        assert metadata["uid"] == event.get("event_id", f"audit/0@{10 + number}")
        at = datetime.fromisoformat(made["time_dt"])
        assert at == datetime.fromisoformat(event["timestamp"])
        assert made["time"] == (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        values = list(leaves(made))
        for name, value in event.items():
            assert value is None or name in OTHERWISE or value in values, (name, value, made)


def test_edge_cases_are_valid(connection: duckdb.DuckDBPyConnection) -> None:
    """Each edge case of an event of the six types is valid OCSF: half characters, huge numbers, deep nesting."""
    lines = [case.line for case in CASES if case.writer_accepts and not case.own_type]
    assert len(lines) > len(EVENT_TYPES)
    for made in mapped(connection, lines):
        check_ocsf(made)
        assert list(nulls(made)) == []


def test_what_does_not_map_has_no_row(connection: duckdb.DuckDBPyConnection) -> None:
    """Neither an event of an own type, nor one that lacks what each valid event has, is a row."""
    own = dict(EVENTS["auth_attempt"], event_type="mine")
    assert mapped(connection, [json.dumps(own).encode()]) == []
    for name in ("client_ip", "timestamp"):
        # Only the holder of a key can archive such a line.
        line = json.dumps(EVENTS["auth_attempt"] | {name: None}).encode()
        assert mapped(connection, [line], valid=False) == []


NUMBERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("query_executed", {}, {"class_uid": 6003, "activity_id": 99, "severity_id": 1, "status_id": 1, "duration": 3}),
    ("query_executed", {"operation_type": "query"}, {"activity_id": 2, "activity_name": "Read", "type_uid": 600302}),
    ("query_executed", {"operation_type": "subscription"}, {"activity_id": 2, "activity_name": "Read"}),
    ("query_executed", {"operation_type": "mutation"}, {"activity_id": 99, "activity_name": "GraphQL mutation"}),
    ("query_executed", {"operation_type": 7}, {"activity_id": 99, "activity_name": "GraphQL operation"}),
    ("authz_check", {}, {"activity_id": 99, "action_id": 2, "disposition_id": 2, "status_id": 2}),
    ("authz_check", {"permission_granted": True}, {"action_id": 1, "disposition_id": 1, "status_id": 1}),
    ("auth_attempt", {}, {"class_uid": 3002, "activity_id": 1, "status_id": 2, "status_detail": "expired"}),
    ("auth_attempt", {"status": "success"}, {"status_id": 1, "auth_protocol_id": 99}),
    ("auth_attempt", {"api_key_id": None}, {"user": {"uid": "unknown", "type_id": 0, "type": "Unknown"}}),
    ("api_key_operation", {"operation": "created"}, {"class_uid": 3004, "activity_id": 1}),
    ("api_key_operation", {"operation": "rotated"}, {"activity_id": 3}),
    ("api_key_operation", {"operation": "revoked"}, {"activity_id": 4}),
    ("config_change", {"operation": "Created"}, {"class_uid": 3004, "activity_id": 1, "comment": "approved"}),
    ("config_change", {"operation": "deleted"}, {"activity_id": 4}),
    ("config_change", {"operation": "tuned"}, {"activity_id": 3}),
    ("security_event", {"severity": "low"}, {"class_uid": 2004, "activity_id": 1, "severity_id": 2, "action_id": 0}),
    ("security_event", {"severity": "medium", "action_taken": "Blocked"}, {"severity_id": 3, "disposition_id": 2}),
    ("security_event", {"severity": "critical", "action_taken": "told ops"}, {"severity_id": 5, "action_id": 99}),
    ("security_event", {"details": {"kind": "over"}}, {"activity_id": 1, "status_id": 1, "is_alert": True}),
    *(
        (
            "security_event",
            {"alert_type": "custody.a-rule", "action_taken": "alerted", "details": {"kind": kind, "alert_id": "a1"}},
            {"activity_id": number, "action_id": 3, "disposition_id": 19},
        )
        for kind, number in (("opened", 1), ("grown", 2), ("over", 3), ("storm", 1))
    ),
]
"""An event's type and what it has, and what a tool looks for."""


def test_numbers_that_tools_look_for(connection: duckdb.DuckDBPyConnection) -> None:
    """Class, activity, outcome and severity are what the event says."""
    lines = [json.dumps(EVENTS[kind] | fields).encode() for kind, fields, _ in NUMBERS]
    for made, (kind, fields, expected) in zip(mapped(connection, lines), NUMBERS, strict=True):
        check_ocsf(made)
        assert {name: made.get(name) for name in expected} == expected, (kind, fields)
        if "alert_id" in fields.get("details", {}):
            # All notices of an alert are one finding.
            assert made["finding_info"]["uid"] == "a1"
