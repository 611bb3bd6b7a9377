"""Runs over an archive in a folder: nothing is lost and nobody is told twice, wherever a run ends."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.reader import read_archive
from custody.errors import CustodyError, TerminalStoreError, TransientStoreError
from custody.format import layout, manifest
from custody.format.layout import Log
from custody.store.open import open_store
from tasks.detect import replay
from tasks.detect import run as detection
from tasks.detect.alerts import Alert, Notice
from tasks.detect.positions import FOLDER, Late
from tasks.detect.publish import Sent
from tasks.detect.rule import Rule
from tasks.detect.sigma import rule_of
from tasks.detect.state import State, States
from tasks.detect.step import step
from tasks.settings import DetectSettings, Settings
from tests.helpers.sample import Growing

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LATER = NOW + detection.TELLING + timedelta(seconds=30)
"""When no run waits any longer for one that was killed."""
BEGUN = NOW - timedelta(minutes=50)
LOG = Log("audit.grows", 0)
TEST = {"event_type": "auth_attempt", "timestamp": "2026-03-01T10:00:00Z", "api_key_id": "k", "status": "failure"}


def rule(name: str, number: int, **more: Any) -> Rule:
    """Return a rule about failed logins, of which three by a key within five minutes are too many."""
    single = {
        "title": "Failed logins",
        "name": "failed",
        "logsource": {"product": "custody", "service": "audit"},
        "detection": {"selection": {"event_type": "auth_attempt", "status": "failure"}, "condition": "selection"},
    }
    whole = {
        "title": name,
        "id": f"4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a{number:02}",
        "description": "A test.",
        "level": "high",
        "correlation": {
            "type": "event_count",
            "rules": ["failed"],
            "group-by": ["api_key_id"],
            "timespan": "5m",
            "condition": {"gte": 3},
        },
        "custody": {
            "advice": "Look.",
            "tests": [
                {"name": "fires", "events": [{**TEST, "repeat": 3}], "fires": [{"api_key_id": "k"}]},
                {"name": "does not", "events": [TEST], "fires": []},
            ],
            **more,
        },
    }
    return rule_of(name, [single, whole])


FAILURES = rule("failures", 1)


def failure(minutes: float, key: str = "key-1", since: datetime = BEGUN) -> bytes:
    stamp = (since + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")
    event = {"event_type": "auth_attempt", "timestamp": stamp, "api_key_id": key, "status": "failure"}
    return json.dumps({**event, "request_id": "r", "client_ip": "192.0.2.1", "failure_reason": None,
                       "key_version": None, "key_age_days": None}).encode()  # fmt: skip


class Killed(BaseException):
    """The process ended here."""


@dataclass
class World:
    """An archive, its settings, and who was told.

    Attributes:
        sent: ids of notices that Kafka took, in order.
        heard: ids of notices of which people heard.
        notices: the notices, by id.
    """

    growing: Growing
    sent: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    notices: dict[str, Notice] = field(default_factory=dict)
    settings: DetectSettings = field(default_factory=DetectSettings)

    def append(self, *statements: Sequence[bytes]) -> None:
        """Append statements of events, a minute apart."""
        for events in statements:
            at = self.growing.events
            self.growing.append(1, dict(enumerate(events, at)).__getitem__, each=len(events))

    def detect(self, now: datetime = NOW, run: Callable[..., detection.Result] = detection.detect) -> detection.Result:
        return run(self.given(), announce=self.announce, send=self.send, now=now)

    def given(self) -> Settings:
        keys = f"file:{self.growing.keyring}"
        return Settings(archive=str(self.growing.folder), keys=keys, detect=self.settings)

    def announce(self, notices: Sequence[Notice]) -> None:
        self.heard += [notice.id for notice in notices]
        self.notices |= {notice.id: notice for notice in notices}

    def send(self, notices: Sequence[Notice]) -> Sent:
        self.sent += [notice.id for notice in notices]
        return Sent(frozenset(notice.id for notice in notices))

    def state(self) -> State:
        store = open_store(str(self.growing.folder))
        state = States(store, read_archive(store).id).newest()
        assert state is not None
        return state

    def copy(self, folder: Path) -> "World":
        """Return a copy of it, in which nobody was told anything."""
        shutil.copytree(self.growing.folder, folder / "archive")
        growing = Growing.__new__(Growing)
        growing.__dict__.update(self.growing.__dict__)
        growing.root, growing.folder = folder, folder / "archive"
        return World(growing, settings=self.settings)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> list[Rule]:
    """The rules of the runs."""
    made = [FAILURES]
    monkeypatch.setattr(detection, "rules_of", lambda _: tuple(made))
    return made


@pytest.fixture
def world(tmp_path: Path, rules: list[Rule]) -> World:
    """An archive without a statement."""
    assert rules
    return World(Growing(tmp_path / "world", begun=BEGUN))


def minutes_of(*minutes: float, key: str = "key-1") -> list[bytes]:
    return [failure(minute, key) for minute in minutes]


def alerts_of(state: State) -> list[Alert]:
    """Return the alerts without what depends on when people were told first."""
    return [replace(alert, told=0) for alert in state.alerts]


def kinds(world: World) -> list[tuple[str, str]]:
    """Return the kind and key of each notice that was sent, in order."""
    notices = [world.notices[name] for name in world.sent]
    return [(notice.kind, dict(notice.alert.group).get("api_key_id", "")) for notice in notices]


def test_an_attack_is_told_once(world: World) -> None:
    """By whatever run it is seen: people hear of it once, and a run with nothing new writes nothing."""
    world.append(minutes_of(0, 1), minutes_of(2))
    first = world.detect()
    assert (first.events, len(first.opened), first.told, first.problems) == (3, 1, 1, [])
    assert kinds(world) == [("opened", "key-1")]
    number = world.state().number
    again = world.detect()
    assert (again.events, again.opened, again.steps) == (0, [], 0)
    assert world.state().number == number
    world.append(minutes_of(3, 4))
    more = world.detect()
    assert (more.events, more.opened, more.matches) == (2, [], {"failures": 2})
    assert world.heard == world.sent
    (alert,) = world.state().alerts
    assert [place.offset for place in alert.evidence] == [0, 1, 2, 3, 4]
    assert alert.matches == 3


def test_runs_may_be_missed(world: World, tmp_path: Path) -> None:
    """One run over all statements finds what a run after each of them does: the same alerts, with the same evidence."""
    statements = [minutes_of(minute, minute + 0.5, key=f"key-{minute % 2}") for minute in range(8)]
    world.append(*statements)
    whole, each = world.copy(tmp_path / "whole"), World(Growing(tmp_path / "each", begun=BEGUN))
    whole.detect()
    for statement in statements:
        each.append(statement)
        each.detect()
    assert alerts_of(whole.state()) == alerts_of(each.state())
    assert len(whole.state().alerts) == 2
    assert sorted(whole.sent) == sorted(each.sent)


def test_doubled_events_open_no_second_alert(world: World) -> None:
    """Whether a producer sent them twice in one run or later."""
    world.append(minutes_of(0, 1, 2))
    world.detect()
    world.append(minutes_of(0, 1, 2))
    world.detect()
    assert kinds(world) == [("opened", "key-1")]
    assert len(world.state().alerts) == 1


class Breaking:
    """A store, and those who are told, of which one call does not return."""

    def __init__(self, world: World, at: int, *, done: bool = False, error: BaseException | None = None) -> None:
        self.world, self.at, self.done, self.error = world, at, done, error or Killed()
        self.calls: list[str] = []

    def store(self, url: str, options: Any) -> Any:
        self.inner = open_store(url, options)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create(self, key: str, data: bytes) -> None:
        self._call(f"create {key[:40]}", lambda: self.inner.create(key, data))

    def remove(self, key: str) -> None:
        self._call(f"remove {key[:40]}", lambda: self.inner.remove(key))

    def announce(self, notices: Sequence[Notice]) -> None:
        self._call("announce", lambda: self.world.announce(notices))

    def send(self, notices: Sequence[Notice]) -> Sent:
        sent: Sent = self._call("send", lambda: self.world.send(notices))
        return sent

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if len(self.calls) - 1 != self.at:
            return call()
        if self.done:
            call()
        raise self.error

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(detection, "open_store", self.store)
            detection.detect(self.world.given(), announce=self.announce, send=self.send, now=NOW)


@pytest.fixture
def before(world: World) -> World:
    """A state with one alert, and statements that no run has read, with another attack."""
    world.append(minutes_of(0, 1, 2))
    world.detect()
    world.append(minutes_of(3, 4), minutes_of(5, 6, 7, key="key-2"))
    return world


def test_a_run_may_be_killed_anywhere(before: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call that changes something, before or after it was carried out: the next run makes it good.

    What was sent is sent again, with the same id, only if the run ended after that and before its next state.
    """
    whole = before.copy(tmp_path / "whole")
    undisturbed = Breaking(whole, -1)
    undisturbed.run(monkeypatch)
    assert Counter(whole.heard) == Counter(whole.sent)
    assert kinds(whole) == [("opened", "key-2")]
    expected, calls = whole.state(), undisturbed.calls
    assert calls.count("send") == calls.count("announce") == 1
    assert sum(call.startswith("create reports/detect/0") for call in calls) == 2
    for at, call in enumerate(calls):
        # After a call and before the next one is the same, but for those that tell somebody, and the last one.
        for done in {False, call in {"send", "announce"} or at == len(calls) - 1}:
            world = before.copy(tmp_path / f"{at}-{done}")
            with pytest.raises(Killed):
                Breaking(world, at, done=done).run(monkeypatch)
            world.detect(LATER)
            state, where = world.state(), (at, call, done)
            assert state.alerts == expected.alerts, where
            assert state.facts.positions == expected.facts.positions, where
            assert state.outbox == (), where
            assert set(world.sent) == set(world.heard) == set(whole.sent), where
            committed = [number for number, name in enumerate(calls) if name.startswith("create reports/detect/0")]
            told = {name: calls.index(name) for name in ("send", "announce")}
            repeated = {name for name, number in told.items() if number + (not done) <= at <= committed[1]}
            assert (len(world.sent) == 2, len(world.heard) == 2) == ("send" in repeated, "announce" in repeated), where
            shutil.rmtree(world.growing.root)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("kind", [TransientStoreError, TerminalStoreError])
def test_a_commit_of_unknown_outcome(
    before: World, monkeypatch: pytest.MonkeyPatch, kind: type[CustodyError], *, done: bool
) -> None:
    """The run fails, also if its state was created after all; the next one tells, once."""
    probe = Breaking(before.copy(before.growing.root / "probe"), -1)
    probe.run(monkeypatch)
    at = next(at for at, call in enumerate(probe.calls) if call.startswith("create reports/detect/0"))
    before.sent.clear()
    before.heard.clear()
    with pytest.raises(kind):
        Breaking(before, at, done=done, error=kind("no answer")).run(monkeypatch)
    assert before.sent == []
    before.detect(LATER)
    assert kinds(before) == [("opened", "key-2")]


def test_of_two_runs_at_once_one_throws_its_work_away(before: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of them tells, and it fails none of them."""
    results: list[detection.Result] = []

    def run_step(*given: Any, **named: Any) -> Any:
        if not results:
            results.append(detection.Result())
            results.append(before.detect())
        return step(*given, **named)

    before.sent.clear()
    before.heard.clear()
    monkeypatch.setattr(detection, "step", run_step)
    result = before.detect()
    assert (result.superseded, result.problems, results[1].superseded) == (True, [], False)
    assert kinds(before) == [("opened", "key-2")]
    assert before.heard == before.sent
    assert before.detect().events == 0


def test_a_run_leaves_alone_what_another_one_tells(before: World) -> None:
    """Nobody was killed, and nobody hears twice. A run that does not come back is waited for only so long."""
    before.sent.clear()
    before.heard.clear()
    others: list[detection.Result] = []

    def send(notices: Sequence[Notice]) -> Sent:
        others.append(before.detect(NOW + timedelta(minutes=1)))
        with pytest.raises(CustodyError, match="in two minutes"):
            before.detect(NOW + timedelta(minutes=1), run=detection.rebuild)
        return before.send(notices)

    result = detection.detect(before.given(), announce=before.announce, send=send, now=NOW)
    assert (result.superseded, [other.superseded for other in others]) == (False, [True])
    assert kinds(before) == [("opened", "key-2")]
    assert before.heard == before.sent
    assert (before.state().facts.telling_until, before.detect().steps) == (0, 0)


def test_a_claim_of_the_far_future_stops_no_run(before: World) -> None:
    store = open_store(str(before.growing.folder))
    states = States(store, read_archive(store).id)
    state = states.newest()
    assert state is not None
    states.commit(state.with_facts(telling_until=2**62), NOW)
    assert len(before.detect().opened) == 1


def test_kafka_that_is_down_loses_nothing(before: World) -> None:
    """People hear at once, the run says that alerts wait, and Kafka gets them when it is back."""
    before.sent.clear()
    before.heard.clear()
    down = Sent(frozenset(), CustodyError("no answer from Kafka"))
    for heard in (1, 1):
        result = detection.detect(before.given(), announce=before.announce, send=lambda _: down, now=NOW)
        assert result.problems == ["alerts wait to be sent to Kafka: no answer from Kafka"]
        assert len(before.heard) == heard
    assert before.detect().problems == []
    assert kinds(before) == [("opened", "key-2")]
    assert len(before.heard) == 1


def test_a_notice_of_which_no_event_can_be_made_is_given_up(before: World) -> None:
    """One run says so, and then it waits no longer. A rebuild does not send it either."""

    def send(notices: Sequence[Notice]) -> Sent:
        return Sent(frozenset(), unfit={notice.id: "no such time" for notice in notices})

    result = detection.detect(before.given(), send=send, now=NOW)
    assert result.problems == ["1 notice given up, of which no event can be made: no such time"]
    assert before.state().outbox == ()
    before.sent.clear()
    assert (before.detect().problems, before.detect(run=detection.rebuild).told, before.sent) == ([], 0, [])


def test_late_events_are_looked_at_with_those_of_their_time(world: World) -> None:
    """An hour later, the third failure of an attack arrives: the alert has all three as evidence, and is told once."""
    world.append(minutes_of(0, 1), *(minutes_of(minute, key=f"key-{minute}") for minute in range(10, 50, 10)))
    assert world.detect().opened == []
    world.append(minutes_of(2, 49))
    result = world.detect()
    assert (len(result.opened), result.late) == (1, 0)
    (alert,) = world.state().alerts
    assert [place.offset for place in alert.evidence] == [0, 1, 6]
    assert world.state().facts.late == ()
    world.append(minutes_of(50, key="key-9"))
    assert world.detect().opened == []
    assert kinds(world)[0] == ("opened", "key-1")
    assert Counter(world.sent).most_common(1)[0][1] == 1


def test_events_that_come_far_too_late_are_counted(world: World) -> None:
    """They come later than `detect.late_hours`, and open no alert: the run says how many there are."""
    world.append(minutes_of(-2000, -1999), minutes_of(0))
    world.detect()
    world.append(minutes_of(-1998, 1))
    result = world.detect()
    assert (result.opened, result.late, world.state().facts.totals.late) == ([], 1, 1)


def test_yesterday_is_looked_at_again(world: World, rules: list[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rule missed because it failed comes out in the night after, and nothing else."""
    world.append(minutes_of(0, 1, 2), minutes_of(3, 4, 5, key="key-2"))
    good = list(rules)
    rules[:] = []
    world.detect()
    assert world.state().alerts == ()
    rules[:] = good
    world.append(minutes_of(30, key="key-3"))
    assert world.detect().opened == []
    assert world.detect(NOW + timedelta(hours=12, minutes=30)).opened == []
    # In parts, as large archives are, and with the next run going on where one ended.
    monkeypatch.setattr(replay, "MOST", 3)
    monkeypatch.setattr(detection, "LOOK_SECONDS", 1e-9)
    results = [world.detect(NOW + timedelta(hours=13, minutes=minute)) for minute in range(15)]
    assert len([result for result in results if result.steps]) > 1
    opened = [alert for result in results for alert in result.opened]
    assert sorted(dict(alert["group"])["api_key_id"] for alert in opened) == ["key-1", "key-2"]
    assert world.detect(NOW + timedelta(hours=15)).steps == 0


def test_late_events_take_no_time_from_the_night(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run does a part of both, however much came late."""
    world.append(minutes_of(*range(0, 50, 5), key="key-1"))
    world.detect()
    store = open_store(str(world.growing.folder))
    states = States(store, read_archive(store).id)
    state, at = states.newest(), BEGUN.replace(tzinfo=None)
    assert state is not None
    states.commit(state.with_facts(late=(Late(at, at + timedelta(minutes=45)),)), NOW)
    monkeypatch.setattr(replay, "MOST", 1)
    monkeypatch.setattr(detection, "LOOK_SECONDS", 1e-9)
    before = world.state().facts
    assert before.looked_again is not None
    world.detect(NOW + timedelta(hours=14))
    facts = world.state().facts
    assert facts.looked_again is not None
    assert facts.looked_again > before.looked_again
    assert facts.late != before.late


def test_a_day_that_no_run_looked_at_again_is_named_once(world: World) -> None:
    world.append(minutes_of(0))
    assert world.detect().problems == []
    (problem,) = world.detect(NOW + timedelta(days=3)).problems
    assert problem.startswith("no run looked again at 2026-03-02T00:00Z to 2026-03-04T00:00Z")
    assert world.detect(NOW + timedelta(days=3)).problems == []


def test_a_first_run_tells_nobody_of_the_past(tmp_path: Path, rules: list[Rule]) -> None:
    """Old alerts are recorded. One that lasts until now is told, and what is older than the warm-up is not read."""
    assert rules
    old = NOW - timedelta(days=2)
    world = World(Growing(tmp_path / "old", begun=NOW - timedelta(days=60)))
    world.append(minutes_of(0))
    world.growing.heartbeat(old)
    world.append([failure(minute, "gone", old) for minute in range(4)])
    world.append([failure(minute, "lasts", old) for minute in range(4)])
    steps = [failure(60 * hour + minute, "lasts", old) for hour in range(1, 2 * 24 - 1) for minute in (0, 1, 2)]
    rules[:] = [rule("failures", 1, **{"cool-down": "1h"})]
    world.growing.heartbeat(NOW - timedelta(minutes=10))
    world.append(steps)
    result = world.detect()
    assert result.events == len(steps) + 8
    assert len(result.opened) == 2
    assert kinds(world)[0] == ("opened", "lasts")
    assert "gone" not in {key for _, key in kinds(world)}
    assert {dict(alert.group)["api_key_id"]: alert.recorded_only for alert in world.state().alerts} == {
        "lasts": False,
        "gone": True,
    }


def test_what_cannot_be_read_is_named_and_passed(world: World) -> None:
    """A segment that is lost, one that was changed, and a manifest that is missing: the others are looked at."""
    world.append(minutes_of(0, 1), minutes_of(2), minutes_of(3), minutes_of(4, 5), minutes_of(6, 7, 8, key="key-2"))
    for sequence, damage in ((0, "lost"), (1, "changed")):
        statement = manifest.parse((world.growing.folder / layout.manifest_key(LOG, sequence)).read_bytes()).statement
        assert statement.segment is not None
        path = world.growing.folder / statement.segment.key
        path.chmod(0o600)
        path.unlink() if damage == "lost" else path.write_bytes(b"x" * statement.segment.size)
    (world.growing.folder / layout.manifest_key(LOG, 2)).unlink()
    result = world.detect()
    assert [problem.partition(":")[0] for problem in result.problems] == ["not looked at"] * 3
    assert "sequence 0 of audit.grows/0" in result.problems[1] + result.problems[0] + result.problems[2]
    assert "(sequence 2)" in "".join(result.problems)
    assert kinds(world) == [("opened", "key-2")]
    # It was said once, and the next run goes on behind them.
    assert world.detect().problems == []


def test_a_position_that_cannot_be_true(world: World, tmp_path: Path) -> None:
    """A state that is further than the archive hides nothing: each run says so, and a rebuild helps."""
    world.append(minutes_of(0, 1))
    world.detect()
    shorter = world.copy(tmp_path / "shorter")
    world.append(minutes_of(2), minutes_of(3))
    world.detect()
    shutil.rmtree(shorter.growing.folder / FOLDER)
    shutil.copytree(world.growing.folder / FOLDER, shorter.growing.folder / FOLDER)
    for _ in range(2):
        (problem,) = shorter.detect().problems
        assert "custody detect rebuild" in problem
    assert shorter.detect(run=detection.rebuild).problems == []
    assert shorter.detect().problems == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_rebuild_makes_the_same_again(before: World, caplog: pytest.LogCaptureFixture, *, damaged: bool) -> None:
    """What was told is not told again, unless the old state cannot be read: then a warning says so."""
    before.detect()
    state, sent = before.state(), list(before.sent)
    if damaged:
        for path in (before.growing.folder / FOLDER).glob("0*"):
            path.chmod(0o600)
            path.write_bytes(b"{}")
        with pytest.raises(CustodyError, match="run `custody detect rebuild`"):
            before.detect()
    result = before.detect(run=detection.rebuild)
    assert (result.problems, result.events) == ([], 8)
    made = before.state()
    assert alerts_of(made) == alerts_of(state)
    assert (made.facts.positions, made.memory) == (state.facts.positions, state.memory)
    assert before.sent == (sent * 2 if damaged else sent)
    assert ("some may be sent again" in caplog.text) == damaged
    assert before.detect().steps == 0


def test_a_rule_that_fails_does_not_keep_the_others_from_running(world: World, rules: list[Rule]) -> None:
    """It is named, each time, and counted."""
    rules.insert(0, replace(rule("broken", 2), query="SELECT no_such_column FROM events"))
    world.append(minutes_of(0, 1, 2))
    result = world.detect()
    assert list(result.failed) == ["broken"]
    assert "a rule failed: rule broken" in result.problems[0]
    assert kinds(world) == [("opened", "key-1")]
    assert world.state().facts.totals.failures == {"broken": 1, "failures": 0}
    assert world.state().facts.totals.alerts == {"broken/high": 0, "failures/high": 1}
