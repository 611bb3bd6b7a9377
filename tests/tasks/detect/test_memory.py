"""What rules remember: the same for any cut of the events into steps, and bounded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from custody.query.parquet import size_of
from tasks.detect import folder, memory, sources, views
from tasks.detect.alerts import Alert
from tasks.detect.memory import Memory
from tasks.detect.rule import Rule, run_rule
from tasks.detect.step import Outcome, step

START = datetime(2026, 3, 1, 10)  # noqa: DTZ001 - as times are in DuckDB
SHIPPED = folder.load([folder.SHIPPED])
IN_SQL = [rule for rule in SHIPPED if rule.kind == "sql"]
Event = Mapping[str, Any]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with views.connect() as opened:
        yield opened


def event(seconds: float, kind: str = "query_executed", **fields: Any) -> dict[str, Any]:
    """Return an event, so many seconds after the start."""
    common = {"api_key_id": "key-1", "client_ip": "192.0.2.1"}
    return {"event_type": kind, "timestamp": f"{(START + timedelta(seconds=seconds)).isoformat()}Z", **common, **fields}


def denials(seconds: float, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return denials within a minute."""
    return [event(seconds + n / 100, "authz_check", permission_granted=False, **fields) for n in range(count)]


def time_of(each: Event) -> datetime:
    return datetime.fromisoformat(each["timestamp"]).replace(tzinfo=None)


def after(
    connection: duckdb.DuckDBPyConnection,
    known: Memory,
    events: Sequence[Event],
    *,
    rules: Sequence[Rule] = (),
    alerts: Sequence[Alert] = (),
    first: int = 0,
    until: datetime = memory.BEGINNING,
) -> Memory:
    """Return what is remembered after events, as a live step does it."""
    views.collected(events, first).create(connection)
    for newest in views.spans(connection, memory.SPAN):
        until = max(until, newest)
        memory.create(connection, known, until=until, head_age=0)
        known = memory.remember(connection, known, rules, alerts, {}, until=until)
    return known


def rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a table, in an order of their own."""
    return sorted(table.to_pylist(), key=repr)


def alert_of(rule: Rule, group: Mapping[str, str], first: datetime, last: datetime) -> Alert:
    return Alert(
        id="0" * 32, rule=rule.name, rule_id=rule.id, title=rule.title, level=rule.level, group=tuple(group.items()),
        first=first, last=last, matches=1, metric=1, told=1, evidence=(), cool_down=3600,
    )  # fmt: skip


def test_minutes_add_up_and_become_the_peak_of_their_hour(connection: duckdb.DuckDBPyConnection) -> None:
    """Counts are added, sizes are not; an hour is settled two hours after its end."""
    known = after(connection, memory.empty(), [event(0, complexity=7), *denials(1, 3)])
    known = after(connection, known, [event(30, complexity=5, aliases=4, result_rows=2), event(59), *denials(70, 2)])
    values = {(row["measure"], row["minute"].minute): row["value"] for row in rows(known.minutes)}
    assert values == {
        ("queries", 0): 3, ("complexity", 0): 7, ("aliases", 0): 4, ("rows", 0): 2,
        ("denials", 0): 3, ("denials", 1): 2,
    }  # fmt: skip
    assert known.peaks.num_rows == 0
    unchanged = after(connection, known, [event(2 * 3600, api_key_id=None)])
    assert unchanged.peaks is known.peaks
    known = after(connection, known, [event(3 * 3600, api_key_id=None)])
    assert known.minutes.num_rows == 0
    assert {row["measure"]: row["peak"] for row in rows(known.peaks)} == {
        "queries": 3, "complexity": 7, "aliases": 4, "rows": 2, "denials": 3,
    }  # fmt: skip
    assert {row["hour"] for row in rows(known.peaks)} == {START}


def test_an_attack_does_not_become_the_norm(connection: duckdb.DuckDBPyConnection) -> None:
    """Minutes inside of an alert of the same key and measure are in no peak; those of others are."""
    rule = next(rule for rule in SHIPPED if rule.name == "denials-above-usual")
    events = [*denials(0, 50), *denials(60, 2), *denials(0, 9, api_key_id="key-2"), event(5), *denials(300, 4)]
    alert = alert_of(rule, {"api_key_id": "key-1"}, START, START + timedelta(seconds=90))
    known = after(connection, memory.empty(), events, rules=[rule], alerts=[alert])
    known = after(connection, known, [event(4 * 3600, api_key_id=None)], rules=[rule])
    assert {(row["key"], row["measure"], row["peak"]) for row in rows(known.peaks)} >= {
        ("key-1", "denials", 4), ("key-2", "denials", 9), ("key-1", "queries", 1),
    }  # fmt: skip


def test_peaks_are_kept_for_thirty_days_and_what_was_seen_for_ninety(connection: duckdb.DuckDBPyConnection) -> None:
    """An operation is never forgotten: a key that was revoked years ago is still revoked."""
    known = after(connection, memory.empty(), [event(0), event(1, "api_key_operation", operation="revoked")])
    assert {row["kind"] for row in rows(known.seen)} == {"key", "network", "newest"}
    day = 86_400
    known = after(connection, known, [event(29 * day, api_key_id="key-2")])
    assert {row["key"] for row in rows(known.peaks)} == {"key-1"}
    known = after(connection, known, [event(31 * day, api_key_id="key-2")])
    assert {row["key"] for row in rows(known.peaks)} == {"key-2"}
    known = after(connection, known, [event(91 * day, api_key_id="key-3", source="a/b/c-1", source_seq=1)])
    assert {row["key"] for row in rows(known.seen)} == {"key-2", "key-3", ""}
    known = after(connection, known, [event(900 * day, api_key_id=None)])
    assert (known.sources.num_rows, known.seen.num_rows) == (0, 1)
    assert [(row["api_key_id"], row["operation"]) for row in rows(known.operations)] == [("key-1", "revoked")]


def test_only_keys_that_work_are_remembered(connection: duckdb.DuckDBPyConnection) -> None:
    """Or anyone could fill the memory with keys that they make up."""
    events = [
        event(0, "auth_attempt", status="failure", api_key_id="made-up"),
        *denials(1, 1, api_key_id="denied"),
        event(2, "auth_attempt", status="success", client_ip="::ffff:203.0.113.77"),
    ]
    known = after(connection, memory.empty(), events)
    assert {(row["kind"], row["key"], row["value"]) for row in rows(known.seen)} == {
        ("key", "key-1", ""), ("network", "key-1", "203.0.113.0/24"), ("newest", "", ""),
    }  # fmt: skip


def test_networks_of_a_key_are_bounded(connection: duckdb.DuckDBPyConnection) -> None:
    """The oldest go, and those of other keys stay."""
    many = [event(n, client_ip=f"10.{n // 256}.{n % 256}.1") for n in range(1, memory.MOST_VALUES + 10)]
    known = after(connection, memory.empty(), [event(0, api_key_id="key-2"), *many])
    networks = [row for row in rows(known.seen) if row["kind"] == "network" and row["key"] == "key-1"]
    assert len(networks) == memory.MOST_VALUES
    assert min(row["first_seen"] for row in networks) == START + timedelta(seconds=10)
    assert [row["value"] for row in rows(known.seen) if row["key"] == "key-2"] == ["", "192.0.2.0/24"]


def test_each_table_is_bounded(connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest rows stay; of operations, what revoked a key stays longer than the rest."""
    for name in Memory.__slots__:
        monkeypatch.setattr(memory, f"MOST_{name.upper()}", 2)
    done = [(0, "revoked", "key-1"), (1, "created", "key-2"), (2, "created", "key-3")]
    events = [
        *(event(at, "api_key_operation", operation=operation, api_key_id=key) for at, operation, key in done),
        *(event(5 * 3600 + n, "auth_attempt", status="failure") for n in range(4)),
        *(event(3600 * n, source=f"a/{n}/1-1", source_seq=1) for n in range(6)),
    ]
    known = after(connection, memory.empty(), events, rules=SHIPPED)
    counts = {name: getattr(known, name).num_rows for name in Memory.__slots__}
    # Both rows of the minute before became peaks.
    assert counts == {**dict.fromkeys(Memory.__slots__, 2), "minutes": 1}
    assert [row["offset"] for row in rows(known.kept)] == [5, 6]
    assert {row["minute"] for row in rows(known.minutes)} == {START + timedelta(hours=5)}
    assert {row["hour"] for row in rows(known.peaks)} == {START + timedelta(hours=4)}
    assert {(row["kind"], row["last_seen"]) for row in rows(known.seen)} >= {
        ("newest", START + timedelta(hours=5, seconds=3))
    }
    assert {row["api_key_id"] for row in rows(known.operations)} == {"key-1", "key-3"}
    assert {row["source"] for row in rows(known.sources)} == {"a/4/1-1", "a/5/1-1"}


@pytest.mark.parametrize("bound", [0, 5_000, 10_000, 10**9])
def test_large_events_are_bounded_by_their_bytes(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    """The newest stay, as many as fit: what is remembered of a flood of large events can be written and read."""
    monkeypatch.setattr(memory, "MOST_KEPT_BYTES", bound)
    events = [event(n, "auth_attempt", status="failure", failure_reason=f"é{'x' * 1_000}") for n in range(10)]
    known = after(connection, memory.empty(), events, rules=SHIPPED)
    kept = sorted(row["offset"] for row in rows(known.kept))
    assert kept == list(range(10 - len(kept), 10))
    assert size_of(known.kept) <= bound
    assert len(kept) == 10 or len(kept) * 3_500 > bound - 3_500
    assert known.kept.schema == memory.KEPT


def test_minutes_that_are_too_many_become_peaks_early(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5,000 busy keys there are more minutes than are kept. Else nothing would be usual for them."""
    monkeypatch.setattr(memory, "MOST_MINUTES", 8)
    events = [each for minute in range(10) for each in denials(60 * minute, minute + 1)]
    known = after(connection, memory.empty(), events)
    assert [row["value"] for row in rows(known.minutes)] == [5, 6, 7, 8, 9, 10]
    assert [row["peak"] for row in rows(known.peaks)] == [4]


def test_events_are_kept_as_long_as_a_window_needs_them(connection: duckdb.DuckDBPyConnection) -> None:
    """Only hits of rules with windows, for the longest window and fifteen minutes."""
    rules = [rule for rule in SHIPPED if rule.name in {"failed-logins-by-key", "denials-above-usual"}]
    events = [event(0, "auth_attempt", status="failure"), event(1, "auth_attempt", status="success"), *denials(2, 3)]
    known = after(connection, memory.empty(), events, rules=rules)
    assert [(row["log"], row["offset"]) for row in rows(known.kept)] == [("test/0", 0)]
    assert known.kept.schema == memory.KEPT
    for seconds, kept in ((20 * 60, 1), (20 * 60 + 1, 0)):
        later = after(connection, known, [event(seconds)], rules=rules, first=5)
        assert later.kept.num_rows == kept


def test_an_event_that_is_sent_again_counts_once(connection: duckdb.DuckDBPyConnection) -> None:
    """In the same step or a later one. What has the same id and is not the same is another event: it is not hidden."""
    rule = next(rule for rule in SHIPPED if rule.name == "failed-logins-by-key")
    failed = [event(n, "auth_attempt", status="failure", event_id=f"id-{n}") for n in range(6)]

    def matches(known: Memory, events: Sequence[Event]) -> int:
        views.collected(events, 100).create(connection)
        memory.create(connection, known, until=START, head_age=0)
        views.make_events(connection, views.AND_KEPT)
        return len(run_rule(connection, rule))

    known = after(connection, memory.empty(), failed, rules=[rule])
    assert matches(memory.empty(), [*failed, *failed]) == 0
    assert matches(known, failed) == 0
    assert matches(known, [{**each, "failure_reason": "other"} for each in failed]) == 4
    assert matches(memory.empty(), [event(n, "auth_attempt", status="failure") for n in range(5) for _ in "12"]) == 2


@given(
    order=st.permutations(range(1, 13)), lost=st.sets(st.integers(2, 11)), cuts=st.sets(st.integers(0, 12), max_size=2)
)
@example(order=[1, 5, 3, 2, 4, *range(6, 13)], lost={7}, cuts={2, 3})
@example(order=[3, 1, *range(4, 13), 2], lost={2}, cuts={1})
@settings(max_examples=12)  # a step plans its SQL anew: 20 ms
def test_missing_numbers(
    connection: duckdb.DuckDBPyConnection, order: list[int], lost: set[int], cuts: set[int]
) -> None:
    """Whatever the order in which numbers come: those between the lowest and the highest that did not come."""
    came = [number for number in order if number not in lost]
    events = [event(at, source="a/b/c-1", source_seq=number) for at, number in enumerate(came)]
    known = memory.empty()
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(events)), len(events)]
    for begin, end in pairwise(bounds):
        views.collected(events[begin:end], begin).create(connection)
        memory.create(connection, known, until=START, head_age=0)
        table = connection.sql(sources.AFTER, params={"forgotten": START, "most": 9}).to_arrow_table()
        known = replace(known, sources=table.cast(sources.SCHEMA))
    (source,) = known.sources.to_pylist()
    missing = {number for row in source["missing"] for number in range(row["first"], row["last"] + 1)}
    assert missing == set(range(min(came), max(came))) - set(came)
    assert (source["first_seq"], source["last_seq"]) == (min(came), max(came))
    for row in source["missing"]:
        assert came[row["offset"]] > row["last"]
        assert row["since"] == START + timedelta(seconds=row["offset"])


def test_ranges_of_missing_numbers_are_bounded(connection: duckdb.DuckDBPyConnection) -> None:
    """The highest are kept; a number of 2^63-1 is one more number."""
    many = [event(n, source="a/b/c-1", source_seq=2 * n + 1) for n in range(sources.MOST_RANGES + 50)]
    known = after(connection, memory.empty(), [*many, event(999, source="a/b/c-1", source_seq=2**63 - 1)])
    (source,) = known.sources.to_pylist()
    assert len(source["missing"]) == sources.MOST_RANGES
    assert source["missing"][-1]["last"] == 2**63 - 2


HISTORY = [
    *(event(day * 86_400, api_key_id=key) for day in range(12) for key in ("key-1", "key-2")),
    *denials(5 * 86_400 + 60, 12),
    *(event(n * 3600, "own", source=f"{name}/one/1-1", source_seq=n + 1, api_key_id=None)
      for n in range(11 * 24, 12 * 24) for name in ("api", "web")),
    *(event(0, "own", source=f"{name}/one/1-1", source_seq=11 * 24, api_key_id=None) for name in ("api", "web")),
]  # fmt: skip
"""Twelve days in which two keys and two services become known."""
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["denials", "queries", "large", "elsewhere", "revoked", "rotated", "api", "web", "hole"]),
        st.sampled_from(["key-1", "key-2", "key-3"]),
        st.integers(0, 3000),
    ),
    max_size=14,
)


@pytest.fixture(scope="module")
def warm(connection: duckdb.DuckDBPyConnection) -> Memory:
    return after(connection, memory.empty(), sorted(HISTORY, key=time_of))


def acted(acts: Sequence[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """Return the events of what happens on the thirteenth day."""
    events: list[dict[str, Any]] = []
    at, number = 12 * 86_400.0, {"api": 300, "web": 300}
    for act, key, pause in acts:
        at += pause + 0.001
        if act in {"denials", "queries"}:
            many = denials(at, 13) if act == "denials" else [event(at + n / 1000) for n in range(61)]
            events += [{**each, "api_key_id": key} for each in many]
        elif act in number:
            number[act] += 1
            events.append(event(at, "own", source=f"{act}/one/1-1", source_seq=number[act], api_key_id=None))
        elif act == "hole":
            number["api"] += 3
        elif act in {"revoked", "rotated"}:
            events.append(event(at, "api_key_operation", operation=act, api_key_id=key))
        else:
            address = "203.0.113.1" if act == "elsewhere" else "192.0.2.1"
            size = {"complexity": 5000, "aliases": 90, "result_rows": 50_000} if act == "large" else {}
            events.append({**event(at, api_key_id=key, client_ip=address), **size})
        at = max(at, (time_of(events[-1]) - START).total_seconds()) if events else at
    return events


@given(acts=ACTS, cuts=st.sets(st.integers(1, 300), max_size=4))
@example(acts=[("denials", "key-1", 0), ("denials", "key-1", 0)], cuts={14, 20})
@example(acts=[("web", "key-1", 3000)] * 6, cuts={2, 4})
@example(acts=[("hole", "", 1), ("api", "", 1), ("web", "", 3000), ("web", "", 3000), ("web", "", 9)], cuts={2, 3})
@example(
    acts=[("revoked", "key-2", 1), ("rotated", "key-1", 1), ("elsewhere", "key-1", 99), ("elsewhere", "key-2", 1)],
    cuts={2, 3},
)
@settings(max_examples=4)  # a step plans the SQL of all rules anew: 100 ms
def test_cuts_change_nothing(warm: Memory, acts: list[tuple[str, str, int]], cuts: set[int]) -> None:
    """However events are cut into steps: the same alerts with the same evidence, and the same is remembered."""
    events = acted(acts)
    whole = stepped(warm, events, [0, len(events)])
    parts = stepped(warm, events, [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)])
    # A notice has the metric as it is by then, which is all that a cut may change.
    assert [replace(each, told=0) for each in parts.alerts] == [replace(each, told=0) for each in whole.alerts]
    for name in Memory.__slots__:
        assert rows(getattr(parts.memory, name)) == rows(getattr(whole.memory, name)), name


def stepped(known: Memory, events: Sequence[Event], bounds: Sequence[int]) -> Outcome:
    """Return what steps come to."""
    until = START + timedelta(days=12)
    outcome = Outcome(known, (), (), {}, {}, {})
    for begin, end in pairwise(bounds):
        until = max([until, *map(time_of, events[begin:end])])
        new = views.collected(events[begin:end], begin)
        outcome = step(IN_SQL, outcome.memory, outcome.alerts, new, until=until, head_age=0, storm=100)
        assert not outcome.failed
    return outcome


FUTURE = [
    {**each, "timestamp": "9998-12-31T23:59:59Z"}
    for each in (
        event(0, "auth_attempt", status="failure"),
        event(0, client_ip="203.0.113.1", source="a/b/c-1", source_seq=1),
        *denials(0, 1),
        event(0, "api_key_operation", operation="rotated"),
    )
]
"""What every table remembers something of."""


def test_events_of_the_future_blind_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count as of now, and what comes later is newer: where there are too many rows, they go."""
    for name in ("KEPT", "MINUTES", "PEAKS", "SEEN", "OPERATIONS", "SOURCES"):
        monkeypatch.setattr(memory, f"MOST_{name}", 3)
    known, first = memory.empty(), 0
    for seconds, more in ((0, FUTURE), (10, []), (4 * 3600, FUTURE), (8 * 3600, [])):
        real = [
            {**each, "timestamp": event(seconds + number)["timestamp"], "api_key_id": "key-2"}
            for number, each in enumerate(FUTURE)
        ]
        until = START + timedelta(seconds=seconds + len(FUTURE))
        outcome = step(SHIPPED, known, (), views.collected([*more, *real], first), until=until, head_age=0, storm=100)
        assert outcome.ahead == len(more)
        assert not outcome.failed
        known, first = outcome.memory, first + 100
        for name, column in memory._TIMES.items():
            assert all(row[column] <= until for row in rows(getattr(known, name))), name
    newest = {name: max(row[column] for row in rows(getattr(known, name))) for name, column in memory._TIMES.items()}
    later = START + timedelta(hours=8)
    assert all(time >= later for name, time in newest.items() if name != "peaks")
    assert newest["peaks"] == START + timedelta(hours=4)


def test_a_revocation_counts_after_an_operation_of_the_future() -> None:
    """Else who can write one event could keep a stolen key out of sight for ever."""
    revoked, used = event(60, "api_key_operation", operation="revoked"), event(600)
    known = memory.empty()
    alerts: tuple[Alert, ...] = ()
    for first, (each, until) in enumerate(((FUTURE[-1], START), (revoked, time_of(revoked)), (used, time_of(used)))):
        outcome = step(IN_SQL, known, (), views.collected([each], first), until=until, head_age=0, storm=100)
        known, alerts = outcome.memory, outcome.alerts
    assert "revoked-key" in {alert.rule for alert in alerts}


@pytest.mark.parametrize("name", Memory.__slots__)
def test_rows_of_the_future_are_left_out(connection: duckdb.DuckDBPyConnection, warm: Memory, name: str) -> None:
    """A state that was forged, or made by something else, may have them."""
    rules = [rule for rule in SHIPPED if rule.name == "failed-logins-by-key"]
    kinds = {"auth_attempt": {"status": "failure"}, "api_key_operation": {"operation": "created"}}
    more = [event(12 * 86_400, kind, **fields) for kind, fields in kinds.items()]
    table = getattr(after(connection, warm, more, rules=rules), name)
    column = memory._TIMES[name]
    until = max(row[column] for row in rows(table))
    at = table.schema.get_field_index(column)
    late = pa.array([datetime(9998, 1, 1)] * table.num_rows, pa.timestamp("us"))  # noqa: DTZ001 - as in DuckDB
    both = pa.concat_tables([table, table.set_column(at, table.schema.field(at), late)])
    views.of_mappings(connection, [])
    memory.create(connection, replace(warm, **{name: both}), until=until, head_age=0)
    assert connection.sql(f"SELECT count(*) FROM {name}").fetchall() == [(table.num_rows,)]
