"""Alerts: each thing is told once, however runs are cut."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.detect import alerts
from tasks.detect.alerts import Alert, Judged, NotAnAlert, Notice, Place
from tasks.detect.rule import VALUE, Group, Match, Rule, group_value, run_rule

START = datetime(2026, 3, 1, 10)  # noqa: DTZ001 - as DuckDB gives times
MINUTE = timedelta(minutes=1)
RULE = Rule(
    id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a01",
    name="failed-logins",
    title="Many failed logins",
    level="high",
    description="Many failed logins.",
    false_positives=(),
    advice="Look at the key.",
    group_by=("api_key_id",),
    window=timedelta(0),
    query="",
    hits="",
)
OTHER = replace(RULE, id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a02", name="denials")


def at(minutes: float, key: str = "key-1", metric: float = 1, since: float | None = None) -> Match:
    """Return a match that is completed so many minutes after the start."""
    group: Group = (("api_key_id", key),)
    begun = START + (minutes if since is None else since) * MINUTE
    return Match(START + minutes * MINUTE, "audit/0", round(minutes * 1000), group, begun, metric)


def run(
    *matches: Match,
    known: Sequence[Alert] = (),
    until: float | None = None,
    storm: int = 20,
    is_new: Callable[[Match], bool] = lambda _: True,
    evidence: Callable[[Rule, Match], Sequence[Place]] = lambda _, match: [Place(match.log, match.offset)],
    rule: Rule = RULE,
    **more: Any,
) -> Judged:
    """Return what comes of matches; the archive is known until the last of them, or until so many minutes."""
    end = START + until * MINUTE if until is not None else max(match.time for match in matches)
    return alerts.judge(known, [(rule, matches)], evidence, until=end, storm=storm, counted_from=is_new, **more)


def kinds(judged: Judged) -> list[str]:
    return [notice.kind for notice in judged.notices]


class TestMatches:
    def test_within_the_cool_down_they_are_one_alert(self) -> None:
        judged = run(at(0, metric=5, since=-3), at(60, metric=7), at(120, metric=6))
        (alert,) = judged.alerts
        assert (alert.matches, alert.metric) == (3, 7)
        assert (alert.first, alert.last) == (START - 3 * MINUTE, START + 120 * MINUTE)
        assert kinds(judged) == ["opened"]
        assert judged.notices[0].advice == RULE.advice

    def test_after_the_cool_down_one_is_a_new_alert(self) -> None:
        judged = run(at(0), at(60.1))
        assert len(judged.alerts) == 2
        assert kinds(judged) == ["opened", "over", "opened"]

    def test_of_other_groups_and_rules_are_other_alerts(self) -> None:
        first = run(at(0), at(1, "key-2"))
        both = run(at(2), known=first.alerts, rule=OTHER)
        assert len({alert.id for alert in both.alerts}) == 3
        assert kinds(both) == ["opened"]

    def test_a_late_one_before_the_first_joins_and_the_id_stays(self) -> None:
        known = run(at(30))
        late = run(at(0), known=known.alerts, until=30)
        assert [(alert.id, alert.first, alert.matches) for alert in late.alerts] == [(known.alerts[0].id, START, 2)]
        assert late.notices == ()

    def test_a_late_one_between_two_alerts_makes_no_third_and_joins_none_to_the_other(self) -> None:
        known = run(at(0), at(100)).alerts
        late = run(at(55), known=known, until=100)
        assert [(alert.id, alert.matches) for alert in late.alerts] == [(known[0].id, 1), (known[1].id, 2)]
        assert "opened" not in kinds(late)
        later = run(at(110), known=late.alerts)
        assert [alert.matches for alert in later.alerts] == [1, 3]

    def test_that_an_earlier_run_counted_change_only_the_metric(self) -> None:
        known = run(at(0, metric=2), at(5, metric=3)).alerts
        again = run(at(0, metric=2), at(5, metric=4), known=known, is_new=lambda _: False)
        assert again.alerts == (replace(known[0], metric=4),)
        assert again.notices == ()

    def test_that_an_earlier_run_missed_open_an_alert(self) -> None:
        judged = run(at(0), at(5), until=10, is_new=lambda _: False)
        assert [(alert.matches, alert.last) for alert in judged.alerts] == [(2, START + 5 * MINUTE)]
        assert kinds(judged) == ["opened"]

    def test_doubled_ones_count_once(self) -> None:
        assert run(at(0), at(0), at(1), at(1)) == run(at(0), at(1))

    def test_windows_longer_than_the_cool_down_give_ids_of_their_own(self) -> None:
        """Both alerts begin with the same event, and the old match, found again, belongs to the first."""
        judged = run(at(0, since=-5), at(90, since=-5, metric=9))
        assert len({alert.id for alert in judged.alerts}) == 2
        again = run(at(0, since=-5, metric=2), known=judged.alerts, until=90, is_new=lambda _: False)
        assert sorted((alert.last, alert.metric) for alert in again.alerts) == [
            (START, 2),
            (START + 90 * MINUTE, 9),
        ]

    def test_of_the_future_keep_no_alert_open(self) -> None:
        """They count once, as if they were now. A clock that is a little ahead is believed."""
        years = 60 * 24 * 365 * 10.0
        judged = run(at(0), at(years, since=years), until=1)
        assert [(alert.matches, alert.last) for alert in judged.alerts] == [(2, START + MINUTE)]
        again = run(at(years, since=years), known=judged.alerts, until=90, is_new=lambda _: False)
        assert kinds(again) == ["over"]
        assert kinds(run(at(100), known=again.alerts)) == ["opened"]
        assert run(at(10), until=1).alerts[0].last == START + 10 * MINUTE

    def test_a_metric_that_is_no_number_counts_as_zero(self) -> None:
        judged = run(at(0, metric=float("nan")), at(1, metric=float("inf")))
        assert judged.alerts[0].metric == 0


class TestGroups:
    def test_have_bounded_values_and_stay_two(self) -> None:
        """A key of any length is in no state, event or message as a whole. SQL finds what was made of it."""
        keys = ["k" * VALUE, *("\N{PILE OF POO}" * VALUE + end for end in ("", "a", "b"))]
        with duckdb.connect() as connection:
            connection.execute("CREATE TABLE given AS SELECT unnest($keys) AS api_key_id", {"keys": keys})
            columns = "TIMESTAMP '2026-03-01 10:00' AS time, 'audit/0' AS log, 0 AS offset, time AS since, 1 AS metric"
            matches = run_rule(connection, replace(RULE, query=f"SELECT *, {columns} FROM given"))
            in_sql = connection.execute(f"SELECT {group_value('api_key_id')} FROM given").fetchall()
        values = [value for match in matches for _, value in match.group]
        assert keys[0] in values
        assert sorted(values) == sorted(value for (value,) in in_sql)
        assert len(set(values)) == len({alert.id for alert in run(*matches).alerts}) == 4
        assert max(map(len, values)) == VALUE


class TestEvidence:
    def test_is_the_first_20_places_and_is_kept_from_the_beginning(self) -> None:
        asked = []

        def evidence(_: Rule, match: Match) -> Sequence[Place]:
            asked.append(match)
            return [Place("audit/0", match.offset - 1), Place("audit/0", match.offset)]

        known = run(*(at(minute) for minute in range(8)), evidence=evidence).alerts
        judged = run(*(at(minute) for minute in range(8, 20)), known=known, evidence=evidence)
        assert len(known[0].evidence) == 16
        assert judged.alerts[0].evidence == tuple(
            Place("audit/0", minute * 1000 + place) for minute in range(10) for place in (-1, 0)
        )
        assert len(asked) == 10

    def test_without_an_answer_is_the_event_that_completed_the_match(self) -> None:
        assert run(at(3), evidence=lambda *_: ()).alerts[0].evidence == (Place("audit/0", 3000),)


class TestNotices:
    def test_growth_is_told_at_each_power_of_ten_of_the_first_metric_once(self) -> None:
        known = run(at(0, metric=3)).alerts
        told = []
        for minute, metric in enumerate((29, 30, 31, 299, 50_000, 50_000, 29_999_999), 1):
            judged = run(at(minute, metric=metric), known=known)
            known = judged.alerts
            told += [(metric, notice.kind, notice.id) for notice in judged.notices]
        assert [(metric, kind) for metric, kind, _ in told] == [
            (30, "grown"),
            (50_000, "grown"),
            (29_999_999, "grown"),
        ]
        assert len({name for *_, name in told}) == 3

    def test_a_first_metric_of_zero_grows_at_ten(self) -> None:
        known = run(at(0, metric=0)).alerts
        assert kinds(run(at(1, metric=9), known=known)) == []
        assert kinds(run(at(1, metric=10), known=known)) == ["grown"]

    def test_over_is_told_once_the_cool_down_has_passed(self) -> None:
        known = run(at(0), at(1)).alerts
        assert kinds(run(known=known, until=61)) == []
        ended = run(known=known, until=61.1)
        assert kinds(ended) == ["over"]
        assert ended.notices[0].alert.matches == 2
        assert kinds(run(known=ended.alerts, until=90)) == []

    def test_a_late_match_makes_an_alert_over_once_more(self) -> None:
        ended = run(at(0), until=90)
        again = run(at(5), known=ended.alerts, until=90)
        assert kinds(again) == ["over"]
        assert again.notices[0].alert.matches == 2
        assert again.notices[0].id != ended.notices[-1].id

    @pytest.mark.parametrize("time", [datetime.max, datetime.min])  # noqa: DTZ901
    def test_times_at_the_ends_of_the_calendar_are_times(self, time: datetime) -> None:
        match = replace(at(0), time=time, since=time)
        judged = alerts.judge((), [(RULE, [match])], lambda *_: (), until=time, storm=1, counted_from=lambda _: True)
        assert kinds(judged) == ["opened"]

    def test_of_a_rule_that_is_gone_over_is_told_without_advice(self) -> None:
        known = run(at(0)).alerts
        ended = run(known=known, until=90, rule=OTHER)
        assert [(notice.kind, notice.advice) for notice in ended.notices] == [("over", "")]

    def test_the_same_run_again_gives_the_same_ids(self) -> None:
        assert run(at(0), at(70), until=200) == run(at(0), at(70), until=200)


class TestStorm:
    def keys(self, minute: float, number: int, name: str = "k") -> list[Match]:
        return [at(minute, f"{name}{key:03}") for key in range(number)]

    def test_new_alerts_beyond_storm_are_one_notice(self) -> None:
        judged = run(*self.keys(0, 50))
        *single, notice = judged.notices
        assert [each.kind for each in single] == ["opened"] * 20
        assert (notice.kind, notice.others, notice.alert.group, notice.alert.storm) == ("storm", 30, (), True)
        assert notice.alert.evidence == (Place("audit/0", 0),)
        assert judged.suppressed == {RULE.name: 30}
        assert sum(alert.recorded_only for alert in judged.alerts) == 30

    def test_alerts_of_many_minutes_are_none_however_long_a_run_reaches(self) -> None:
        """A rebuild and a backtest take hours at once. What was told one by one is no storm there."""
        judged = run(*(at(minute / 2, f"k{minute}") for minute in range(30)), storm=5)
        assert kinds(judged) == ["opened"] * 30
        near = run(*(at(minute / 5, f"k{minute}") for minute in range(30)), storm=5)
        assert kinds(near) == ["opened"] * 5 + ["storm"]

    def test_just_storm_new_alerts_are_told(self) -> None:
        judged = run(*self.keys(0, 20))
        assert kinds(judged) == ["opened"] * 20
        assert judged.suppressed == {}

    def test_one_that_goes_on_is_one_alert_that_grows_and_is_over(self) -> None:
        judged, told = Judged((), ()), []
        for minute in range(12):
            judged = run(*self.keys(minute, 21, f"{minute}-"), known=judged.alerts)
            told += kinds(judged)
        assert told == ["opened"] * 20 + ["storm", "grown", "grown"]
        ended = run(known=judged.alerts, until=72)
        storms = [notice for notice in ended.notices if notice.alert.storm]
        assert [(notice.kind, notice.others, notice.alert.matches) for notice in storms] == [("over", 232, 232)]
        assert all(alert.over for alert in ended.alerts)

    def test_few_new_alerts_join_it_but_do_not_keep_it_alive(self) -> None:
        known = run(*self.keys(0, 21)).alerts
        joined = run(at(59, "late"), known=known)
        assert kinds(joined) == []
        assert joined.suppressed == {RULE.name: 1}
        after = run(at(61, "new"), known=joined.alerts)
        assert Counter(kinds(after)) == {"opened": 1, "over": 21}

    def test_a_storm_of_one_rule_silences_no_other(self) -> None:
        known = run(*self.keys(0, 21)).alerts
        assert kinds(run(at(1), known=known, rule=OTHER)) == ["opened"]

    def test_asks_for_no_evidence_but_that_of_alerts_that_are_told(self) -> None:
        asked = []

        def evidence(_: Rule, match: Match) -> Sequence[Place]:
            asked.append(match.group)
            return ()

        judged = run(*self.keys(7, 50), evidence=evidence)
        assert len(asked) == 20
        assert {alert.evidence for alert in judged.alerts} == {(Place("audit/0", 7000),)}


class TestMemory:
    def test_what_is_over_is_forgotten_after_its_time(self) -> None:
        known = run(at(0), until=90).alerts
        assert run(known=known, until=100, remember=100 * MINUTE).alerts == known
        assert run(known=known, until=101, remember=100 * MINUTE).alerts == ()

    def test_what_is_not_over_stays_if_there_are_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(alerts, "KNOWN", 3)
        ended = run(at(0, "a"), at(1, "b"), until=90).alerts
        judged = run(at(91, "c"), at(92, "d"), known=ended)
        assert [dict(alert.group)["api_key_id"] for alert in judged.alerts] == ["b", "c", "d"]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.sampled_from("abc"),
        st.integers(1, 400),
        st.integers(0, 90),
        st.sampled_from([RULE, OTHER]),
        st.booleans(),
    ),
    max_size=40,
)


@given(STEPS)
def test_runs_may_be_cut_anywhere(steps: list[tuple[int, str, int, int, Rule, bool]]) -> None:
    """A backtest in one piece and live runs, which find the last day's matches again, give the same alerts."""
    minute, rows = 0, []
    for number, (gap, key, metric, back, rule, cut) in enumerate(steps):
        minute += gap
        match = replace(at(minute, key, metric, minute - back), offset=number)
        rows.append((rule, match, cut))
    check_cuts(rows, storm=1000)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 20, 61, 1000, 4000]), st.integers(0, 40), st.booleans()), max_size=60),
    st.integers(1, 4),
)
def test_runs_may_be_cut_anywhere_in_a_storm(steps: list[tuple[int, int, bool]], storm: int) -> None:
    second, rows = 0, []
    for number, (gap, key, cut) in enumerate(steps):
        second += gap
        rows.append((RULE, replace(at(second / 60, f"k{key}"), offset=number), cut))
    check_cuts(rows, storm=storm)


def check_cuts(rows: Sequence[tuple[Rule, Match, bool]], *, storm: int) -> None:
    """Check that alerts and notices are the same with and without the cuts, each behind a match."""

    def judge(known: Sequence[Alert], first: int, end: int, until: datetime) -> Judged:
        shown = rows[max(0, first - 15) : end]
        matches = [(rule, [match for other, match, _ in shown if other is rule]) for rule in (RULE, OTHER)]
        return alerts.judge(
            known,
            matches,
            lambda _, match: [Place(match.log, match.offset)],
            until=until,
            storm=storm,
            counted_from=lambda match: match.offset >= first,
        )

    cuts = [0, *(at for at, (*_, cut) in enumerate(rows, 1) if cut), len(rows)]
    end = (rows[-1][1].time if rows else START) + 1000 * MINUTE
    whole = judge((), 0, len(rows), end)
    judged = Judged((), ())
    told: list[Notice] = []
    for first, last in itertools.pairwise(cuts):
        judged = judge(judged.alerts, first, last, rows[last - 1][1].time if last else START)
        told += judged.notices
    judged = judge(judged.alerts, len(rows), len(rows), end)
    told += judged.notices

    assert judged.alerts == tuple(
        replace(alert, told=mine.told) for alert, mine in zip(whole.alerts, judged.alerts, strict=True)
    )
    assert counted(told) == counted(whole.notices)
    assert {notice.id for notice in whole.notices} <= {notice.id for notice in told}


def counted(notices: Sequence[Notice]) -> Counter[tuple[str, str]]:
    return Counter((notice.kind, notice.alert.id) for notice in notices if notice.kind != "grown")


class TestJson:
    def test_gives_the_same_alerts_and_notices(self) -> None:
        judged = run(at(0, metric=1.5), at(70), *(at(1, f"k{key}") for key in range(21)), until=300)
        for alert in judged.alerts:
            assert Alert.from_json(alert.to_json()) == alert
        for notice in judged.notices:
            assert Notice.from_json(notice.to_json()) == notice

    @pytest.mark.parametrize(
        "changed",
        [
            {"id": ...},
            {"level": "bad"},
            {"first": "yesterday"},
            {"matches": 1.5},
            {"matches": "1"},
            {"group": [["a"]]},
            {"evidence": [{"log": "audit/0"}]},
            {"evidence": [{"log": "audit/0", "offset": 1, "more": 1}]},
            {"metric": None},
            {"unknown": 1},
        ],
    )
    def test_of_another_shape_is_refused(self, changed: dict[str, Any]) -> None:
        fields = {**run(at(0)).alerts[0].to_json(), **changed}
        fields = {name: value for name, value in fields.items() if value is not ...}
        with pytest.raises(NotAnAlert, match="make the state again"):
            Alert.from_json(fields)
        with pytest.raises(NotAnAlert, match="make the state again"):
            Notice.from_json({**run(at(0)).notices[0].to_json(), "alert": fields})

    @pytest.mark.parametrize("value", [None, [], "alert", 1])
    def test_of_no_object_is_refused(self, value: object) -> None:
        with pytest.raises(NotAnAlert):
            Alert.from_json(value)
