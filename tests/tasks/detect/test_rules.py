"""Rules: their own tests, what is refused, and pySigma with its SQLite backend as an oracle.

pySigma is for tests alone. Its SQLite backend compares groups without regard to case, and wants each step of an order
later than the one before; the random events here have lower-case values and times of their own, so both must agree.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sigma.backends.sqlite.sqlite import sqliteBackend
from sigma.collection import SigmaCollection

from custody.errors import ConfigurationError
from tasks.detect import folder, views
from tasks.detect.rule import Rule, run_rule
from tasks.detect.sigma import rule_of

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
FIRES = [
    {"event_type": "auth_attempt", "timestamp": "2026-03-01T10:00:00Z", "api_key_id": "key-1", "status": "failure"}
]
NOT = [{"event_type": "auth_attempt", "timestamp": "2026-03-01T10:00:00Z", "api_key_id": "key-1"}]
SHIPPED = folder.load([folder.SHIPPED])


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with views.connect() as opened:
        yield opened


def rule_with(**changed: Any) -> dict[str, Any]:
    """Return a rule about single events that loads, with some of its keys changed."""
    rule = {
        "title": "A failed login",
        "id": "4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9aff",
        "description": "A failed login.",
        "level": "low",
        "logsource": {"product": "custody", "service": "audit"},
        "detection": {"selection": {"event_type": "auth_attempt", "status": "failure"}, "condition": "selection"},
        "custody": {
            "group-by": ["api_key_id"],
            "advice": "Look.",
            "tests": [
                {"name": "fires", "events": FIRES, "fires": [{"api_key_id": "key-1"}]},
                {"name": "does not", "events": NOT, "fires": []},
            ],
        },
    }
    return {name: value for name, value in {**rule, **changed}.items() if value is not ...}


def found(connection: duckdb.DuckDBPyConnection, search: Any, events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return which of the events a search finds, by their numbers."""
    detection = {"selection": search, "condition": "selection"}
    views.of_mappings(connection, events)
    return [match.offset for match in run_rule(connection, rule_of("test", [rule_with(detection=detection)]))]


def event(number: int = 0, **fields: Any) -> dict[str, Any]:
    """Return an event of an own type with a key, so that it is in a group."""
    stamp = (START + timedelta(seconds=number)).isoformat()
    return {"event_type": "own", "timestamp": stamp, "api_key_id": "key-1", **fields}


def of(*addresses: str) -> list[dict[str, Any]]:
    """Return events from addresses."""
    return [event(number, client_ip=address) for number, address in enumerate(addresses)]


@pytest.mark.parametrize("rule", SHIPPED, ids=lambda rule: rule.name)
def test_a_shipped_rule_does_what_its_file_says(connection: duckdb.DuckDBPyConnection, rule: Rule) -> None:
    """Its tests hold, and it tells people what they need."""
    assert [*folder.problems_of(rule, connection)] == []
    assert rule.false_positives
    assert rule.advice.endswith(".")


@pytest.mark.parametrize("rule", SHIPPED, ids=lambda rule: rule.name)
def test_a_test_of_a_rule_that_does_not_hold_is_named(connection: duckdb.DuckDBPyConnection, rule: Rule) -> None:
    """The same tests, each expecting the opposite, all fail."""
    test = rule.tests[0]
    wrong = replace(test, fires=() if test.fires else ((("x", "y"),),))
    (problem,) = folder.problems_of(replace(rule, tests=(wrong,)), connection)
    assert test.name in problem


@pytest.mark.parametrize(
    ("search", "events", "expected"),
    [
        ({"colour": "Red"}, [event(colour="rED"), event(1, colour="redd"), event(2)], [0]),
        ({"colour|cased": "Red"}, [event(colour="rED"), event(1, colour="Red")], [1]),
        ({"colour": "r*d"}, [event(colour="rind"), event(1, colour="red"), event(2, colour="reds")], [0, 1]),
        ({"colour": "r?d"}, [event(colour="rind"), event(1, colour="red")], [1]),
        ({"colour": r"r\*d"}, [event(colour="r*d"), event(1, colour="red")], [0]),
        ({"colour": r"100\%*"}, [event(colour="100\\%x"), event(1, colour="1000")], [0]),
        ({"colour": "100%_*"}, [event(colour="100%_x"), event(1, colour="100abc")], [0]),
        ({"colour|contains": "e_"}, [event(colour="me_ow"), event(1, colour="meow")], [0]),
        ({"colour|startswith": ["re", "bl"]}, [event(colour="red"), event(1, colour="BLUE"), event(2)], [0, 1]),
        ({"colour|endswith": "D"}, [event(colour="red"), event(1, colour="blue")], [0]),
        ({"colour|contains|all": ["r", "d"]}, [event(colour="red"), event(1, colour="rose")], [0]),
        ({"colour|re": "^r.d$"}, [event(colour="red"), event(1, colour="Red")], [0]),
        ({"colour|re|i": "^r.d$"}, [event(colour="red"), event(1, colour="Red")], [0, 1]),
        ({"colour": None}, [event(colour="red"), event(1), event(2, colour=None)], [1, 2]),
        ({"colour|exists": True}, [event(colour="red"), event(1)], [0]),
        ({"colour|exists": False}, [event(colour="red"), event(1)], [1]),
        ({"colour": ""}, [event(colour=""), event(1)], [0]),
        ({"size|gte": 10}, [event(size=10), event(1, size=9.5), event(2, size="11"), event(3, size="x")], [0, 2]),
        ({"size|lt": "2.5"}, [event(size=2), event(1, size=3), event(2)], [0]),
        ({"size": 10}, [event(size=10), event(1, size=100), event(2, size="10")], [0, 2]),
        ({"size": 1.0}, [event(size=1), event(1, size=1.0), event(2, size=1.5), event(3, size="x"), event(4)], [0, 1]),
        ({"size": -2}, [event(size=-2.0), event(1, size=2)], [0]),
        ({"size": 2**53 + 1}, [event(size=2**53 + 1), event(1, size=2**53)], [0]),
        ({"is_new": True}, [event(is_new=True), event(1, is_new=False), event(2, is_new="true")], [0, 2]),
        ({"box.size": 3}, [event(box={"size": 3}), event(1, **{"box.size": 3})], [0]),
        ({"it's": 1}, [], ConfigurationError),
        ([{"colour": "red"}, {"size": 1}], [event(colour="red"), event(1, size=1), event(2)], [0, 1]),
        ({"colour": "o'brien"}, [event(colour="O'Brien")], [0]),
        ({"client_ip|cidr": "192.0.2.0/24"}, of("192.0.2.77", "::ffff:192.0.2.1", "192.0.3.1", "x"), [0, 1]),
        ({"client_ip|cidr": "2001:db8::/32"}, of("2001:0DB8:0:0::5", "2001:db9::"), [0]),
        ({"client_ip|cidr": "0.0.0.0/0"}, of("1.2.3.4", "2001:db8::1"), [0]),
    ],
)  # fmt: skip
def test_searches(
    connection: duckdb.DuckDBPyConnection, search: Any, events: list[dict[str, Any]], expected: Any
) -> None:
    """What a search finds, by the specification: case, wildcards, escapes, numbers, addresses, and what is missing."""
    if expected is ConfigurationError:
        with pytest.raises(ConfigurationError):
            found(connection, search, events)
        return
    assert found(connection, search, events) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("red and big", [3]),
        ("red or big", [1, 2, 3]),
        ("red and not big", [1]),
        ("not (red or big)", [0]),
        ("not red and not big", [0]),
        ("red or big and not red", [1, 2, 3]),
        ("1 of them", [1, 2, 3]),
        ("all of them", [3]),
        ("1 of r*", [1, 3]),
        ("all of *", [3]),
        ("NOT red AND big", [2]),
    ],
)
def test_conditions(connection: duckdb.DuckDBPyConnection, condition: str, expected: list[int]) -> None:
    """`not` binds closest, then `and`, then `or`. Of an event that lacks a field, `not` is true."""
    views.of_mappings(connection, [event(0), event(1, colour="red"), event(2, size=9), event(3, colour="red", size=9)])
    detection = {"red": {"colour": "red"}, "big": {"size|gt": 5}, "condition": condition}
    if "big" not in condition and "them" not in condition and "*" not in condition:
        del detection["big"]
    if condition == "1 of r*":
        del detection["big"]
    rule = rule_of("test", [rule_with(detection=detection)])
    assert [match.offset for match in run_rule(connection, rule)] == expected


SELECTION = {"event_type": "auth_attempt"}
ONE_THAT_FIRES = {"name": "n", "events": FIRES, "fires": [{"api_key_id": "key-1"}]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"detection": {"s": SELECTION, "condition": "s | count() > 5"}}, "counting is done by a correlation"),
        ({"detection": {"s": SELECTION, "condition": "s and"}}, "ends too early"),
        ({"detection": {"s": SELECTION, "condition": "(s"}}, "ends too early"),
        ({"detection": {"s": SELECTION, "condition": "s s"}}, "not understood at 's'"),
        ({"detection": {"s": SELECTION, "condition": "t"}}, "has 't'"),
        ({"detection": {"s": SELECTION, "t": SELECTION, "condition": "s"}}, "does not use t"),
        ({"detection": {"s": SELECTION, "condition": "2 of s*"}}, "'2 of'"),
        ({"detection": {"s": SELECTION, "condition": "1 of x*"}}, "fits no search"),
        ({"detection": {"s": SELECTION, "condition": ["s"]}}, "list of conditions"),
        ({"detection": {"s": SELECTION, "condition": "(" * 60 + "s" + ")" * 60}}, "nested"),
        ({"detection": {"s": SELECTION, "timeframe": "5m", "condition": "s"}}, "older Sigma"),
        ({"detection": {"s": ["word"], "condition": "s"}}, "words without a field"),
        ({"detection": {"s": {}, "condition": "s"}}, "no field"),
        ({"detection": {"s": {"a|base64": "x"}, "condition": "s"}}, "'base64' is not known"),
        ({"detection": {"s": {"a|contains|re": "x"}, "condition": "s"}}, "do not go together"),
        ({"detection": {"s": {"result_rows|gt|cased": 5}, "condition": "s"}}, "do not go together"),
        ({"detection": {"s": {"a": date(2026, 3, 1)}, "condition": "s"}}, "in quotes"),
        ({"detection": {"s": {"a|contains": None}, "condition": "s"}}, "no text"),
        ({"detection": {"s": {"resource|cidr": "10.0.0.0/8"}, "condition": "s"}}, "only client_ip"),
        ({"detection": {"s": {"client_ip|cidr": "ten"}, "condition": "s"}}, "no network"),
        ({"detection": {"s": {"result_rows|gt": "many"}, "condition": "s"}}, "no number"),
        ({"detection": {"s": {"permission_granted": "yes"}, "condition": "s"}}, "true or false"),
        ({"detection": {"s": {"a": []}, "condition": "s"}}, "values"),
        ({"detection": {"s": {"a|exists": [True, False]}, "condition": "s"}}, "no list"),
        ({"detection": {"s": {"a|contains|all": "x"}, "condition": "s"}}, "several values"),
        ({"detection": {"s": {"a|all": ["x", "y"]}, "condition": "s"}}, "several values"),
        ({"detection": {"s": {"result_rows|gt|all": [1, 2]}, "condition": "s"}}, "several values"),
        ({"detection": {"s": {"Client_IP": "x"}, "condition": "s"}}, "write client_ip"),
        ({"custody": {"advice": "x", "group-by": ["client_ip", "client_ip"], "tests": []}}, "twice"),
        ({"custody": {"advice": "x", "group-by": ["api_key_id", "Api_Key_Id"], "tests": []}}, "twice"),
        *(({"custody": {"advice": "x", "group-by": [name], "tests": []}}, f"names {name}")
          for name in ("time", "log", "offset", "since", "metric", "Time")),
        ({"custody": {"advice": "x", "tests": [{**ONE_THAT_FIRES, "events": [{**FIRES[0], "repeat": True}],
                                                "fires": []}]}}, "'repeat' is True"),
        ({"logsource": {"product": "windows"}}, "logsource"),
        ({"id": "7"}, "UUID"),
        ({"level": "urgent"}, "level"),
        ({"title": ...}, "title"),
        ({"custody": ...}, "custody"),
        ({"severity": "high"}, "severity is not known"),
        ({"custody": {"advice": "x", "tests": []}}, "must fire"),
        ({"custody": {"advice": "x", "group-by": ["api_key_id"], "tests": [ONE_THAT_FIRES]}}, "must fire"),
        ({"custody": {"advice": "x", "silence": "1h", "tests": []}}, "custody"),
        ({"correlation": {"type": "event_count"}, "detection": ..., "logsource": ...}, "no rules"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_an_error(changed: dict[str, Any], message: str) -> None:
    """A rule that is half understood would be silent about what it misses."""
    with pytest.raises(ConfigurationError) as caught:
        rule_of("test", [rule_with(**changed)])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        ({"type": "value_sum"}, "value_sum"),
        ({"timespan": "5 minutes"}, "such as 5m"),
        ({"timespan": "8d"}, "needs a rule in SQL"),
        ({"condition": {"lte": 5}}, "without any event"),
        ({"condition": {"gte": 0}}, "without any event"),
        ({"condition": {"gte": 5, "field": "client_ip"}}, "has no 'field'"),
        ({"condition": {"gte": True}}, "no number"),
        ({"condition": "failed and not success"}, "needs a condition"),
        ({"type": "temporal"}, "all rules must match"),
        ({"type": "value_count"}, "needs 'field'"),
        ({"rules": ["nobody"]}, "not in this file"),
        ({"rules": ["failed", "failed"]}, "twice"),
        ({"generate": True}, "generate"),
        ({"sliding": True}, "sliding"),
        ({"aliases": {"who": {"other": "client_ip"}}}, "none of the rules"),
        ({"aliases": {"who": {"failed": "client_ip"}}}, "not in 'group-by'"),
        ({"aliases": {"who": {}}, "group-by": ["who"]}, "no field for failed"),
        (
            {
                "aliases": {"who": {"failed": "client_ip"}},
                "group-by": ["who"],
                "type": "value_count",
                "condition": {"gte": 2, "field": "who"},
            },
            "'who' is an alias",
        ),
        ({"group-by": ["client_ip", "client_ip"]}, "twice"),
        ({"group-by": ["time"]}, "names time"),
        ({"condition": {"gte": 5, "lt": 3}}, "never true"),
        ({"condition": {"eq": 5, "lte": 4}}, "never true"),
        ({"condition": {"gt": 4, "lt": 5}}, "never true"),
    ],
)
def test_correlations_that_are_not_understood(correlation: dict[str, Any], message: str) -> None:
    """Each kind of correlation takes what the specification gives it, and nothing else."""
    spec = {
        "type": "event_count",
        "rules": ["failed"],
        "group-by": ["api_key_id"],
        "timespan": "5m",
        "condition": {"gte": 2},
    }
    base = {name: value for name, value in rule_with().items() if name not in {"id", "level", "description", "custody"}}
    top = rule_with(detection=..., logsource=..., correlation={**spec, **correlation})
    top["custody"] = {name: value for name, value in top["custody"].items() if name != "group-by"}
    with pytest.raises(ConfigurationError) as caught:
        rule_of("test", [{**base, "name": "failed"}, {**top, "title": "Many"}])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("search", "message"),
    [({"colour|re": "(?=x)"}, "invalid perl operator"), ({"colour|re": "("}, "missing"), ({"time|gt": 5}, "Cannot")],
)
def test_what_duckdb_does_not_take_is_no_rule(tmp_path: Path, search: Any, message: str) -> None:
    """It would fail in each run: so it does not load."""
    detection = {"selection": search, "condition": "selection"}
    (tmp_path / "rule.yml").write_text(yaml.safe_dump(rule_with(detection=detection)))
    with pytest.raises(ConfigurationError) as caught:
        folder.load_file(tmp_path / "rule.yml")
    assert message in str(caught.value)


def test_only_the_alert_says_what_to_do() -> None:
    """What a document says that is a part of it would be ignored."""
    part = rule_with(id=..., name="failed")
    correlation = {"type": "event_count", "rules": ["failed"], "timespan": "5m", "condition": {"gte": 2}}
    top = rule_with(detection=..., logsource=..., correlation=correlation)
    with pytest.raises(ConfigurationError, match="and in no other"):
        rule_of("test", [part, top])


def test_documents_without_a_title_are_different_ones() -> None:
    """What refers to itself is known by what it is: parts of an alert need no title."""
    base = {
        name: value for name, value in rule_with(name="failed").items() if name in {"name", "logsource", "detection"}
    }
    spec = {"type": "event_count", "group-by": ["api_key_id"], "timespan": "5m", "condition": {"gte": 2}}
    chain: list[dict[str, Any]] = [
        {"name": "second", "correlation": {**spec, "rules": ["failed"]}},
        {"name": "third", "correlation": {**spec, "rules": ["second"]}},
    ]
    top = rule_with(detection=..., logsource=..., correlation={**spec, "rules": ["third"]})
    top["custody"] = {name: value for name, value in top["custody"].items() if name != "group-by"}
    assert rule_of("test", [base, *chain, top]).window == timedelta(minutes=15)
    chain[0]["correlation"]["rules"] = ["third"]
    with pytest.raises(ConfigurationError, match="'third' refers to itself"):
        rule_of("test", [*chain, top])


CORRELATIONS: dict[str, dict[str, Any]] = {
    "count": {"type": "event_count", "rules": ["failed"], "condition": {"gte": 3}},
    "values": {"type": "value_count", "rules": ["failed"], "condition": {"gte": 3, "field": "client_ip"}},
    "together": {"type": "temporal", "rules": ["failed", "worked"]},
    "ordered": {"type": "temporal_ordered", "rules": ["failed", "worked"]},
    "three": {"type": "temporal_ordered", "rules": ["failed", "worked", "denied"]},
    "chain": {"type": "temporal_ordered", "rules": ["burst", "worked"]},
}
BASES: dict[str, dict[str, Any]] = {
    "failed": {"event_type": "auth_attempt", "status": "failure"},
    "worked": {"event_type": "auth_attempt", "status": "success"},
    "denied": {"event_type": "authz_check", "permission_granted": False},
}


def synthetic(kind: str) -> list[dict[str, Any]]:
    """Return the documents of a rule with a correlation."""
    spec = {**CORRELATIONS[kind], "group-by": ["api_key_id"], "timespan": "60s"}
    source = {"product": "custody", "service": "audit"}
    used = [*spec["rules"]] if kind != "chain" else ["failed", "worked"]
    made: list[dict[str, Any]] = [
        {"title": name, "name": name, "logsource": source, "detection": {"s": BASES[name], "condition": "s"}}
        for name in used
    ]
    if kind == "chain":
        burst = {
            "type": "event_count",
            "rules": ["failed"],
            "group-by": ["api_key_id"],
            "timespan": "30s",
            "condition": {"gte": 2},
        }
        made.append({"title": "burst", "name": "burst", "correlation": burst})
    top = rule_with(detection=..., logsource=..., correlation=spec)
    top["custody"] = {name: value for name, value in top["custody"].items() if name != "group-by"}
    return [*made, {**top, "title": kind}]


ATTEMPTS = st.lists(
    st.tuples(
        st.sampled_from(["failed", "worked", "denied"]),
        st.sampled_from(["key-1", "key-2", None]),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
        st.integers(0, 40),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", CORRELATIONS)
@given(steps=ATTEMPTS)
@settings(max_examples=40)
def test_groups_are_those_of_pysigma(kind: str, steps: list[tuple[str, str | None, str, int]]) -> None:
    """Which groups fire, on random events: windows that slide, orders, and chains."""
    events, at = [], START
    for what, key, address, seconds in steps:
        at += timedelta(seconds=seconds, milliseconds=1)
        events.append({**BASES[what], "timestamp": at.isoformat(), "api_key_id": key, "client_ip": address})
    documents = synthetic(kind)
    with views.connect() as connection:
        views.of_mappings(connection, events)
        fired = {match.group[0][1] for match in run_rule(connection, rule_of("test", documents))}
    assert fired == by_pysigma(documents, events)


def test_a_match_begins_at_the_oldest_event_of_its_parts(connection: duckdb.DuckDBPyConnection) -> None:
    """An alert names all ten failures, and not only the one at which there were enough."""
    (rule,) = [rule for rule in SHIPPED if rule.name == "failures-then-success"]
    views.of_mappings(connection, rule.tests[0].events)
    (match,) = run_rule(connection, rule)
    assert (f"{match.since:%H:%M}", f"{match.time:%H:%M}") == ("10:00", "10:20")
    hits = connection.execute(f"SELECT time FROM ({rule.hits}) WHERE time BETWEEN $1 AND $2", [match.since, match.time])
    assert len(hits.fetchall()) == 11


@pytest.mark.parametrize(
    ("spec", "since"),
    [
        ({"type": "event_count", "rules": ["burst"], "condition": {"gte": 2}}, 0),
        ({"type": "temporal", "rules": ["burst", "worked"]}, 10),
        ({"type": "temporal_ordered", "rules": ["burst", "worked"]}, 10),
        ({"type": "temporal_ordered", "rules": ["burst", "worked", "denied"]}, 10),
        ({"type": "temporal_ordered", "rules": ["denied", "burst"]}, 10),
    ],
)
def test_a_correlation_of_a_correlation_begins_with_its_events(
    connection: duckdb.DuckDBPyConnection, spec: dict[str, Any], since: int
) -> None:
    """Failures after 0, 10 and 40 s are two bursts within 30 s. The last one is what the others are near to."""
    middle = "denied" if spec["rules"][0] == "denied" else "worked"
    kinds = ["failed", "failed", middle, "failed", "worked", "denied"]
    seconds = [0, 10, 20, 40, 45, 50]
    events = [event(at, **BASES[kind]) for kind, at in zip(kinds, seconds, strict=True)]
    *_, burst = synthetic("chain")[:-1]
    bases = [document for document in synthetic("three")[:-1] if document["name"] in {*spec["rules"], "failed"}]
    top = {**synthetic("chain")[-1], "correlation": {**spec, "group-by": ["api_key_id"], "timespan": "60s"}}
    views.of_mappings(connection, events)
    matches = run_rule(connection, rule_of("test", [*bases, burst, top]))
    assert matches[-1].since == (START + timedelta(seconds=since)).replace(tzinfo=None)


@pytest.mark.parametrize("rule", [rule for rule in SHIPPED if rule.kind == "sigma"], ids=lambda rule: rule.name)
def test_shipped_rules_are_sigma(rule: Rule) -> None:
    """Others can convert them. pySigma parses each, and finds what must fire in its tests, and nothing in the rest."""
    documents = folder.documents((folder.SHIPPED / f"{rule.name}.yml").read_text())
    if "correlation" not in documents[-1]:
        # The group is an addition of ours, so only whether it fires can be compared.
        for test in rule.tests:
            assert bool(by_pysigma(documents, test.events, group=False)) == bool(test.fires), test.name
        return
    for test in rule.tests:
        assert by_pysigma(documents, test.events) == {group[0][1] for group in test.fires}, test.name


def _lower(name: str, value: Any) -> Any:
    return value.lower() if isinstance(value, str) and name != "timestamp" else value


def by_pysigma(
    documents: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], *, group: bool = True
) -> set[Any]:
    """Return the groups that pySigma finds by SQLite; without a group, the numbers of events."""
    names = ["event_type", "timestamp", "api_key_id", "client_ip", "status", "permission_granted", "key_age_days"]
    names += ["approval_status", "resource", "changed_by", "introspection"]
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE logs ({', '.join(names)})")
    # Its `=` is not as the specification says: it regards case.
    rows = [[_lower(name, each.get(name)) for name in names] for each in events]
    database.executemany(f"INSERT INTO logs VALUES ({', '.join('?' * len(names))})", rows)
    text = yaml.safe_dump_all([dict(document) for document in documents])
    groups = set()
    backend = sqliteBackend()  # type: ignore[no-untyped-call]
    for query in backend.convert(SigmaCollection.from_yaml(text)):
        cursor = database.execute(str(query).replace("<TABLE_NAME>", "logs"))
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            named = dict(zip(columns, row, strict=True))
            groups.add(
                json.loads(named["group_keys"])["api_key_id" if "api_key_id" in named["group_keys"] else "client_ip"]
                if group
                else row
            )
    database.close()
    return groups
