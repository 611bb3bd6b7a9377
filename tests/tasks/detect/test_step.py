"""A step: wherever events are cut, the same alerts come out, and one rule does not end the others."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.format.manifest import Batch
from custody.verify.work import Work
from tasks.detect import memory, step
from tasks.detect import rule as rules
from tasks.detect.alerts import Alert
from tasks.detect.memory import Memory
from tasks.detect.rule import OF_MATCH, Match, Rule, run_rule
from tasks.detect.sigma import rule_of
from tasks.detect.views import Events

START = datetime(2026, 3, 1, 10, tzinfo=UTC).replace(tzinfo=None)
TEST = {"event_type": "own", "timestamp": "2026-03-01T10:00:00Z", "api_key_id": "k", "colour": "red"}


def rule(name: str, number: int, **correlation: Any) -> Rule:
    """Return a rule about red events, or about a correlation of them."""
    logsource = {"product": "custody", "service": "audit"}
    more = {
        "title": name,
        "id": f"4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a{number:02}",
        "description": "A test.",
        "level": "low",
        "custody": {
            "group-by": ["api_key_id"],
            "advice": "Look.",
            "tests": [
                {"name": "fires", "events": [{**TEST, "repeat": 3}], "fires": [{"api_key_id": "k"}]},
                {"name": "does not", "events": [{**TEST, "colour": "grey"}], "fires": []},
            ],
        },
    }
    detection = {"selection": {"colour": "red"}, "condition": "selection"}
    if not correlation:
        return rule_of(name, [{**more, "logsource": logsource, "detection": detection}])
    del more["custody"]["group-by"]  # type: ignore[attr-defined]
    parts = [
        {
            "title": colour,
            "name": colour,
            "logsource": logsource,
            "detection": {"selection": {"colour": colour}, "condition": "selection"},
        }
        for colour in correlation["rules"]
    ]
    return rule_of(
        name,
        [
            *parts,
            {**more, "correlation": {"group-by": ["api_key_id"], "timespan": "2m", **correlation}},
        ],
    )


RULES = (
    rule("single", 1),
    rule("many", 2, type="event_count", rules=["red"], condition={"gte": 3}),
    rule("both", 3, type="temporal", rules=["red", "blue"]),
    rule("ordered", 4, type="temporal_ordered", rules=["red", "blue"]),
)


def events_of(given: Sequence[dict[str, Any]], first: int) -> Events:
    """Return archived events, the first one at an offset."""
    payload = b"".join(json.dumps(each).encode() + b"\n" for each in given)
    count, collected = len(given), Events()
    batch = Batch(0, first, first + count, count, 0, 0, len(payload), "", "", "", None, None)
    collected.add(Work("a/0", 0, first, first + count, None, (batch,), {}, None, ()), batch, payload)
    return collected


def event(second: int, key: str = "k", colour: str = "red") -> dict[str, Any]:
    time = (START + timedelta(seconds=second)).isoformat() + "Z"
    return {"event_type": "own", "timestamp": time, "api_key_id": key, "colour": colour}


def run(
    rules: Sequence[Rule], given: Sequence[dict[str, Any]], cuts: Sequence[int]
) -> Iterator[tuple[step.Outcome, Memory]]:
    """Run a step for each part of events, and yield what it came to."""
    known, alerts = memory.empty(), ()
    for begin, end in zip((0, *cuts), (*cuts, len(given)), strict=True):
        until = START + timedelta(hours=1) if not given[:end] else time_of(given[end - 1])
        outcome = step.step(
            rules, known, alerts, events_of(given[begin:end], begin), until=until, head_age=0.0, storm=100
        )
        known, alerts = outcome.memory, outcome.alerts  # type: ignore[assignment]
        yield outcome, known


def time_of(given: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(given["timestamp"]).replace(tzinfo=None)


def shown(alerts: Sequence[Alert]) -> list[Any]:
    """Return what must be the same however events are cut."""
    return [
        (alert.id, alert.rule, alert.group, alert.first, alert.last, alert.matches, alert.evidence) for alert in alerts
    ]


@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.sampled_from("ab"), st.sampled_from(["red", "blue", "grey"])),
        min_size=1,
        max_size=16,
    ),
    st.sets(st.integers(0, 16), max_size=3),
)
def test_events_may_be_cut_anywhere(steps: list[tuple[int, str, str]], cuts: set[int]) -> None:
    """One step over all, or several: the same alerts, with the same ids, matches and evidence."""
    second, given = 0, []
    for more, key, colour in steps:
        second += more
        given.append(event(second, key, colour))
    *_, (whole, _) = run(RULES, given, [])
    *_, (parts, _) = run(RULES, given, sorted(cut for cut in cuts if cut < len(given)))
    assert shown(parts.alerts) == shown(whole.alerts)
    assert not whole.failed


def test_evidence_is_the_events_of_a_match() -> None:
    """Those of its group, from the oldest on, 20 at most, and none of before."""
    given = [event(0), *(event(600 + number, key) for number in range(30) for key in "kx")]
    ((outcome, _),) = run(RULES[1:2], given, [])
    places = {dict(alert.group)["api_key_id"]: [each.offset for each in alert.evidence] for alert in outcome.alerts}
    assert places == {"k": [*range(1, 41, 2)], "x": [*range(2, 42, 2)]}
    assert outcome.matches == {"many": 56}


def test_a_rule_that_raises_or_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others run, before it and after it."""
    monkeypatch.setattr(rules, "SECONDS", 0.2)
    endless = (
        'SELECT api_key_id, time, log, "offset", time AS since, 1 AS metric FROM events,'
        " range(10000000000) AS numbers WHERE numbers.range % 7 = 8"
    )
    broken = [
        replace(RULES[0], name="broken", id="b", query="SELECT nothing FROM events"),
        replace(RULES[0], name="reads", id="r", query="SELECT * FROM read_csv('/etc/passwd')"),
        replace(RULES[0], name="endless", id="e", query=endless),
        replace(RULES[0], name="divides", id="d", query="SELECT error('no') AS x FROM events"),
    ]
    ((outcome, known),) = run([RULES[0], *broken, RULES[1]], [event(0), event(1), event(2)], [])
    assert set(outcome.failed) == {"broken", "reads", "endless", "divides"}
    assert outcome.failed["endless"] == "rule endless: it takes more than 0.2 s"
    assert sorted(alert.rule for alert in outcome.alerts) == ["many", "single"]
    assert known.kept.num_rows == 3


def test_half_a_character_hides_nothing() -> None:
    """DuckDB refuses JSON with half of a surrogate pair, and FORMAT.md allows it. Rules see such events too."""
    halves = ["\ud800", "\udc00", "\ud800\ud800x", "\udc00\ud800", "\\\ud800", "\\ud800", "\U0001f600", "\x00"]
    given = [{**event(number), "note": [half], half: 1} for number, half in enumerate(halves)]
    ((outcome, known),) = run(RULES, [*given, event(30, "x"), event(31, "x", "blue")], [])
    assert outcome.failed == {}
    assert outcome.matches == {"single": 9, "many": 6, "both": 1, "ordered": 1}
    texts = known.kept.column("event").to_pylist()
    notes = [json.loads(text)["note"][0] for text in texts if "note" in text]
    assert sorted(notes) == sorted(
        half.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for half in halves
    )


def of_rows(name: str, number: int, **columns: str) -> Rule:
    """Return a rule whose rows have other values: DuckDB knows of none, Python must."""
    values = {"time": "time", "log": "log", "offset": '"offset"', "since": "time", "metric": "1", **columns}
    query = "SELECT api_key_id, " + ", ".join(f'{sql} AS "{column}"' for column, sql in values.items()) + " FROM events"
    return replace(RULES[0], name=name, id=str(number), query=query, hits=query)


def test_a_rule_whose_rows_have_no_value_fails_alone() -> None:
    """What it had given would end the run, or stay in the state for good."""
    nulls = [of_rows(name, number, **{name: "NULL"}) for number, name in enumerate(OF_MATCH)]
    years = [of_rows(f"{name}-{sql}", 9, **{name: f"TIMESTAMP '{sql}'"}) for name in ("time", "since")
             for sql in ("290000-01-01", "0044-03-15 (BC)")]  # fmt: skip
    ((outcome, _),) = run([RULES[0], *nulls, *years, RULES[1]], [event(0), event(1), event(2)], [])
    for name in OF_MATCH:
        assert outcome.failed[name].startswith(f"rule {name}: a row of its SQL has no {name}: ")
    for each in years:
        assert "not of the years 1 to 9999" in outcome.failed[each.name]
    assert len(outcome.failed) == len(nulls) + len(years)
    assert sorted(alert.rule for alert in outcome.alerts) == ["many", "single"]


def test_whatever_a_rule_raises_is_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even what is a bug of ours."""

    def raising(connection: Any, tried: Rule) -> Any:
        if tried.name == "many":
            raise TypeError("no\x1b")
        return rules.run_rule(connection, tried)

    monkeypatch.setattr(step, "run_rule", raising)
    ((outcome, _),) = run([RULES[1], RULES[0]], [event(0)], [])
    assert outcome.failed == {"many": "rule many: TypeError: no\\x1b"}
    assert [alert.rule for alert in outcome.alerts] == ["single"]


def test_a_rule_with_too_many_rows_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be in memory at once. Rows without a group count: they take as much."""
    monkeypatch.setattr(rules, "ROWS", 3)
    enough = of_rows("enough", 1)
    many = replace(of_rows("too-many", 2), query=f"{enough.query} UNION ALL SELECT NULL, * EXCLUDE (api_key_id) FROM"
                   f" ({enough.query}) LIMIT 4")  # fmt: skip
    ((outcome, _),) = run([many, enough], [event(0), event(1), event(2)], [])
    assert outcome.failed == {"too-many": "rule too-many: its SQL gives more than 3 rows: make its conditions narrower"}
    assert outcome.matches == {"enough": 3}


@pytest.mark.parametrize("hits", ["SELECT nothing FROM events", "SELECT * REPLACE (NULL AS log) FROM events",
                                  'SELECT * REPLACE (NULL AS "offset") FROM events',
                                  "SELECT * REPLACE (TIMESTAMP '290000-01-01' AS time) FROM events"])  # fmt: skip
def test_hits_that_fail_leave_the_match_as_evidence(hits: str) -> None:
    """An alert is never lost because its evidence cannot be read, and names nothing that is no event.

    The rule has failed nevertheless: what it needs in later steps may not be kept.
    """
    ((outcome, _),) = run([replace(RULES[1], hits=hits)], [event(0), event(1), event(2)], [])
    (alert,) = outcome.alerts
    assert [(each.log, each.offset) for each in alert.evidence] == [("a/0", 2)]
    assert list(outcome.failed) == ["many"]


def test_hits_that_do_not_end_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both where evidence is read, and where events are kept: what other rules need is kept."""
    monkeypatch.setattr(rules, "SECONDS", 0.2)
    endless = "SELECT events.* FROM events, range(10000000000) AS numbers WHERE numbers.range % 7 = 8"
    given = [event(0), event(1), event(2)]
    ((outcome, known),) = run([replace(RULES[1], name="endless", id="e", hits=endless), RULES[1]], given, [])
    places = {alert.rule: [each.offset for each in alert.evidence] for alert in outcome.alerts}
    assert places == {"endless": [2], "many": [0, 1, 2]}
    assert known.kept.num_rows == 3
    assert outcome.failed == {"endless": "rule endless: it takes more than 0.2 s"}


def test_hits_that_fail_before_there_is_a_match_are_told() -> None:
    """Without the events of this step a match of later steps would be missed, and nobody would know."""
    hits = "SELECT * FROM events WHERE CAST(api_key_id AS INT) = 1"
    ((outcome, known),) = run([replace(RULES[1], hits=hits)], [event(0)], [])
    assert (outcome.alerts, known.kept.num_rows) == ((), 0)
    assert list(outcome.failed) == ["many"]


def test_matches_that_reach_behind_what_is_kept_wait() -> None:
    """Only a rule with a window leaves them to the second look: others see each event alone."""
    given = [event(0), event(1), event(2)]
    outcome = step.step(
        RULES[:2],
        memory.empty(),
        (),
        events_of(given, 0),
        until=START + timedelta(hours=1),
        head_age=0.0,
        storm=100,
        kept_from=START,
    )
    assert [alert.rule for alert in outcome.alerts] == ["single"]
    again = step.look_again(
        RULES[1:2],
        memory.empty(),
        outcome.alerts,
        events_of(given, 0),
        wanted=lambda _: True,
        until=START + timedelta(minutes=1),
        known_until=START + timedelta(hours=1),
        storm=100,
    )
    assert sorted(alert.rule for alert in again.alerts) == ["many", "single"]


def seen_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return a map that will have how many events each rule saw that was run."""
    counts: dict[str, int] = {}

    def counted(connection: duckdb.DuckDBPyConnection, given: Rule) -> list[Match]:
        counts[given.name] = connection.execute("SELECT count(*) FROM events").fetchall()[0][0]
        return run_rule(connection, given)

    monkeypatch.setattr("tasks.detect.step.run_rule", counted)
    return counts


@pytest.mark.parametrize(
    ("new", "counts"),
    [
        ([], {"single": 0}),
        ([event(90, colour="grey")], {"single": 1}),
        # The blue ones of ten minutes ago are out of reach.
        ([event(90)], {"single": 1, "many": 31, "both": 31, "ordered": 31}),
        ([event(90, colour="blue")], {"single": 1, "both": 31, "ordered": 31}),
    ],
)
def test_a_rule_reads_what_its_new_events_may_change(
    monkeypatch: pytest.MonkeyPatch, new: list[dict[str, Any]], counts: dict[str, int]
) -> None:
    """However much is kept: what is out of reach of its window is not read, and nothing if it has no new event."""
    kept = [*(event(number - 600, colour="blue") for number in range(50)), *(event(number) for number in range(30))]
    *_, (_, known) = run(RULES, kept, [])
    assert known.kept.num_rows == 80
    seen = seen_by(monkeypatch)
    until = START + timedelta(seconds=90)
    step.step(RULES, known, (), events_of(new, 100), until=until, head_age=0.0, storm=100)
    assert seen == counts


def test_a_late_event_completes_a_match_of_kept_ones() -> None:
    """That the newest of its events is known already does not hide it."""
    given = [event(0), event(110), event(50)]
    *_, (whole, _) = run(RULES[1:2], given, [])
    *_, (parts, _) = run(RULES[1:2], given, [2])
    assert len(whole.alerts) == 1
    assert shown(parts.alerts) == shown(whole.alerts)


def test_what_is_out_of_reach_makes_no_match() -> None:
    """A kept event whose own window is no longer read would look as if it were alone."""
    alone = replace(rule("alone", 5, type="event_count", rules=["red"], condition={"eq": 1}), cool_down=timedelta(0))
    given = [event(0), event(100), event(200)]
    *_, (whole, _) = run([alone], given, [])
    *_, (parts, _) = run([alone], given, [2])
    assert [alert.first for alert in whole.alerts if not alert.storm] == [START]
    assert [(each.first, each.last) for each in parts.alerts] == [(each.first, each.last) for each in whole.alerts]


def test_a_second_look_remembers_later_times_as_they_are() -> None:
    """Its events may reach far behind what it has all of. Of the future is what no event is known of."""
    again = step.look_again(
        RULES[1:2],
        memory.empty(),
        (),
        events_of([event(1800), event(9000)], 0),
        wanted=lambda _: True,
        until=START,
        known_until=START + timedelta(hours=1),
        storm=100,
    )
    times = sorted(again.memory.kept["time"].to_pylist())
    assert times == [START + timedelta(minutes=30), START + timedelta(hours=1)]
