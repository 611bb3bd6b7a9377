"""A backtest gives the alerts that live runs gave over the same archive, and says where the two differ."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from custody.errors import ConfigurationError
from custody.format.times import format_time
from tasks.detect import backtest as past
from tasks.detect import folder
from tasks.detect.alerts import Notice
from tasks.detect.backtest import Progress, RuleResult, backtest
from tasks.detect.publish import Sent, event_of
from tasks.detect.rule import Rule
from tasks.detect.run import detect
from tasks.settings import Settings
from tests.helpers.commands import Command, custody
from tests.helpers.sample import Growing

__all__ = ["custody"]

EACH = 5
"""Events of a minute."""
MINUTES = 160
PART = 40
"""Minutes that come between two live runs."""
BURSTS = {"key-1": range(30, 34), "key-2": range(78, 82), "key-3": range(130, 134)}
"""By key, the minutes in which its logins fail. The second burst is cut by two runs."""
RULES = ("failed-logins-by-key", "change-without-approval")
"""The rules that fire."""
CHANGE = 60
"""The minute in which a setting is changed without approval."""


@dataclass(frozen=True, slots=True)
class Live:
    """An archive over which live runs went, and the ids of the alerts that these sent, by rule."""

    growing: Growing
    settings: Settings
    sent: dict[str, set[str]]

    def moment(self, minute: int) -> datetime:
        """Return when a minute's statement is sealed, at the earliest."""
        return self.growing.begun + timedelta(minutes=minute)


def line(begun: datetime, minute: int, number: int) -> bytes:
    """Return an event of a minute: a login, that fails in a burst, or the change of a setting."""
    key = next((key for key, minutes in BURSTS.items() if minute in minutes), None)
    common = {
        "timestamp": format_time(begun + timedelta(minutes=minute, seconds=-50 + 9 * number)),
        "request_id": f"r-{minute}-{number}",
        # Each from an address of its own network, so that no rule about addresses fires.
        "api_key_id": key or "key-0",
        "client_ip": f"198.{18 + minute // 100}.{minute % 100}.{number + 1}",
    }
    if minute == CHANGE and not number:
        fields = {"resource": "limits", "operation": "update", "changed_by": "bob", "changes": {}}
        return json.dumps({**common, "event_type": "config_change", "approval_status": "none", **fields}).encode()
    login = {"event_type": "auth_attempt", "key_version": 1, "key_age_days": 3}
    result = {"status": "failure" if key else "success", "failure_reason": "expired" if key else None}
    return json.dumps({**common, **login, **result}).encode()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Write an archive in parts, with a live run after each, whose notices are archived with the next part."""
    begun = datetime.now(UTC) - timedelta(minutes=MINUTES + 60)
    growing = Growing(tmp_path_factory.mktemp("past"), begun=begun)
    settings = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    waiting: list[bytes] = []
    sent: dict[str, set[str]] = {}
    minute = 0

    def send(notices: Sequence[Notice]) -> Sent:
        for notice in notices:
            waiting.append(event_of(notice))
            sent.setdefault(notice.alert.rule, set()).add(notice.alert.id)
        return Sent(frozenset(notice.id for notice in notices))

    def content(offset: int) -> bytes:
        del offset
        return next(lines)

    def part(begin: int) -> Iterator[bytes]:
        for at in range(begin, begin + PART):
            yield from (line(begun, at, number) for number in range(EACH))

    for minute in range(0, MINUTES, PART):
        lines = part(minute)
        growing.append(PART, content, each=EACH)
        detect(settings, send=send, now=growing.sealed_at(minute + PART))
        # A statement of what was sent. It is sealed in the minute after.
        told, waiting[:] = [*waiting], []
        if told:
            lines = iter(told)
            growing.append(1, content, each=len(told))
            growing.begun -= timedelta(minutes=1)
    growing.begun = begun
    return Live(growing, settings, sent)


def run(live: Live, since: int, until: int, rules: Sequence[Rule] | None = None) -> dict[str, RuleResult]:
    """Return what a backtest over minutes gives, by rule."""
    chosen = rules or folder.load([folder.SHIPPED])
    result = backtest(live.settings, chosen, live.moment(since), live.moment(until))
    assert not result.problems
    return {each.rule: each for each in result.rules}


def objects(archive: Path) -> set[tuple[Path, int]]:
    """Return the files of an archive, and when each was written."""
    return {(path, path.stat().st_mtime_ns) for path in archive.rglob("*") if path.is_file()}


def test_a_backtest_gives_the_alerts_of_live_runs(live: Live) -> None:
    """The same rules over the same archive give the same alerts by id, whatever runs each of them was cut into."""
    assert set(live.sent) == set(RULES)
    before = objects(live.growing.folder)
    results = run(live, 0, MINUTES + 10)
    assert objects(live.growing.folder) == before, "a backtest writes nothing"
    for name, each in results.items():
        assert each.alerts == each.sent == len(live.sent.get(name, ())), name
        assert (each.only_sent, each.only_found, each.failed) == ([], [], None), name
    by_key = results["failed-logins-by-key"]
    assert {example.alert_id for example in by_key.examples} == live.sent["failed-logins-by-key"]
    assert [dict(example.group) for example in by_key.examples] == [{"api_key_id": key} for key in BURSTS]
    assert (by_key.alerts, by_key.groups, sum(by_key.by_day.values())) == (3, 3, 3)
    # A minute's events are at offsets of their own, behind those that tell of alerts before them.
    assert by_key.examples[0].evidence[0] == f"{live.growing.log}@{30 * EACH}"


def test_small_chunks_give_the_same(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by chunks, and the alerts do not depend on how large these are."""
    monkeypatch.setattr("tasks.detect.reading.MOST", 150)
    steps: list[Progress] = []
    rules = [rule for rule in folder.load([folder.SHIPPED]) if rule.name in RULES]
    result = backtest(live.settings, rules, live.moment(0), live.moment(MINUTES + 10), steps.append)
    assert len(steps) >= MINUTES * EACH // 150
    assert steps == sorted(steps, key=lambda step: step.events)
    assert {each.rule: each.alerts for each in result.rules} == {name: len(ids) for name, ids in live.sent.items()}
    assert not any(each.only_sent or each.only_found for each in result.rules)


def test_only_the_range_counts(live: Live) -> None:
    """What was archived before the range is known, but neither found nor missed in it; so is what came after it."""
    results = run(live, 50, 120, [rule for rule in folder.load([folder.SHIPPED]) if rule.name in RULES])
    by_key = results["failed-logins-by-key"]
    assert [dict(example.group) for example in by_key.examples] == [{"api_key_id": "key-2"}]
    assert (by_key.sent, by_key.only_sent, by_key.only_found) == (1, [], [])
    assert results["change-without-approval"].alerts == 1
    with pytest.raises(ConfigurationError, match="later than"):
        run(live, 10, 10)


def test_other_rules_differ_from_what_was_sent(live: Live) -> None:
    """An alert that was sent and that a changed rule does not find is named, and one that it finds in addition."""
    shipped = {rule.name: rule for rule in folder.load([folder.SHIPPED])}
    by_key = shipped["failed-logins-by-key"]
    blind = replace(by_key, query=f"{by_key.query} LIMIT 0")
    wider = replace(shipped["change-without-approval"], id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9aee", name="changes")
    broken = replace(blind, id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9aed", name="broken", query="FROM nothing")
    results = run(live, 0, MINUTES + 10, [blind, wider, broken])
    assert (results[blind.name].alerts, set(results[blind.name].only_sent)) == (0, live.sent[blind.name])
    assert (results["changes"].alerts, results["changes"].sent, len(results["changes"].only_found)) == (1, 0, 1)
    assert "nothing" in str(results["broken"].failed)


def test_late_events_are_looked_at_with_those_of_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six failures, and six of the same minute that are archived half an hour later, are one alert: live and here.

    Its id depends on how runs are cut. It is the same alert all the same.
    """
    begun = datetime.now(UTC) - timedelta(hours=2)
    growing = Growing(tmp_path / "late", begun=begun)
    settings = Settings(archive=str(growing.folder), keys=f"file:{growing.keyring}")
    (rule,) = [rule for rule in folder.load([folder.SHIPPED]) if rule.name == "failed-logins-by-key"]
    told: list[bytes] = []

    def send(notices: Sequence[Notice]) -> Sent:
        told.extend(event_of(notice) for notice in notices if notice.alert.rule == rule.name)
        return Sent(frozenset(notice.id for notice in notices))

    minute = min(BURSTS["key-1"])
    for at in (minute, 55, minute):
        assert not told, "neither part alone is an alert"
        # The statements are sealed after the newest of the events.
        lines = [line(begun - timedelta(hours=1), at, number) for number in range(3)]
        growing.append(2, lambda offset, lines=lines: lines[offset % len(lines)], each=3)  # type: ignore[misc]
        detect(settings, send=send)
    growing.append(1, lambda _: told[0], each=1)
    # As many chunks as runs: no step has all that happened in that minute.
    monkeypatch.setattr("tasks.detect.reading.MOST", 6)
    (result,) = backtest(settings, [rule], begun, begun + timedelta(hours=1)).rules
    assert (result.alerts, result.sent, result.only_sent, result.only_found) == (1, 1, [], [])


def test_a_backtest_is_shown(live: Live, custody: Command) -> None:
    """The command prints each rule with its examples and their evidence, and what was sent; `--json` has all of it."""
    rules = [part for name in RULES for part in ("--rules", folder.SHIPPED / f"{name}.yml")]
    archive = ("--archive", live.growing.folder, "--keys", live.growing.keyring)
    span = ("--since", format_time(live.moment(50)), "--until", format_time(live.moment(MINUTES + 10)))
    shown = custody("detect", "backtest", *span, *rules, *archive)
    assert shown.code == 0
    document = json.loads(custody("detect", "backtest", *span, *rules, *archive, "--json").out)
    assert {each["rule"]: each["alerts"] for each in document["rules"]} == dict(zip(RULES, (2, 1), strict=True))
    for each in document["rules"]:
        for example in each["examples"]:
            line = next(line for line in shown.out.splitlines() if example["alert_id"] in line)
            assert example["evidence"][0] in line
            assert all(value in line for value in example["group"].values())
    assert f"3 alerts in {document['events']:,} events, 3 sent then" in shown.out
    wrong = custody("detect", "backtest", "--since", "now", "--until", "2d", *archive)
    assert (wrong.code, "later than" in wrong.err) == (2, True)


def test_an_alert_is_explained_from_the_state_and_from_what_was_sent(
    live: Live, custody: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert's id gives what happened, and the commands that prove it; also when detection has forgotten it."""
    alert = min(live.sent["change-without-approval"])
    monkeypatch.setenv("CUSTODY_KEYS", f"file:{live.growing.keyring}")
    archive = ("--archive", live.growing.folder)
    known = custody("detect", "explain", alert, *archive)
    assert (known.code, "the state of detection" in known.out) == (0, True)
    proof = f"custody evidence {live.growing.log}@"
    copied = tmp_path / "copy"
    shutil.copytree(live.growing.folder, copied, ignore=shutil.ignore_patterns("detect"))
    sent = custody("detect", "explain", alert, *archive, "--archive", copied)
    assert (sent.code, "the archived event " in sent.out) == (0, True), sent.err
    for told in (known, sent):
        assert "change-without-approval (high): A setting was changed without approval" in told.out
        assert "resource limits, changed_by bob" in told.out
        (command,) = [line for line in told.out.splitlines() if proof in line]
    at = command.split()[2]
    there = ("--archive", copied)
    assert custody("checkpoint", "--write", live.growing.log, *there).code == 0
    assert custody("evidence", at, "-o", tmp_path / "evidence.zip", "--whole-batch", *there).code == 0
    document = json.loads(custody("detect", "explain", alert, *archive, "--json").out)
    assert (document["details"]["evidence"], document["over"]) == ([at], True)
    unknown = custody("detect", "explain", alert[:4] + 28 * "0", *archive)
    assert (unknown.code, alert in unknown.err) == (2, True)


def test_events_that_look_like_alerts_are_no_error() -> None:
    """Whoever may write events can write what looks like an alert that was sent: it is none, or it counts as one."""
    details = {"kind": "storm", "alert_id": "a", "rule_id": "b", "group": {}, "first": "2026-03-01T10:00:00Z"}
    sent = {"event_type": "security_event", "alert_type": "custody.x", "details": details}

    class Lines:
        def own(self) -> Iterator[str]:
            wrong = ("custody.", {"kind": 1}, {**details, "first": "2026-03-01T10:00:00"}, {**details, "group": [1]})
            yield from (json.dumps({**sent, "details": each}) for each in wrong)
            yield json.dumps({**sent, "event_type": "other"})
            yield "[" * 100_000 + '"custody.'
            yield json.dumps(sent)

    (known,) = past._sent(Lines())  # type: ignore[arg-type]
    assert known == ("b", "a", ("{}", datetime(2026, 3, 1, 10)))  # noqa: DTZ001 - as the views have times
