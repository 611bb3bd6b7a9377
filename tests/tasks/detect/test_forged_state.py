"""The state of detection is not signed: what somebody without a key can hide by it, and what finds it all the same."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from custody.archive.reader import read_archive
from custody.format.times import format_time
from custody.store.open import open_store
from tasks.detect import folder
from tasks.detect.alerts import Notice
from tasks.detect.backtest import backtest
from tasks.detect.positions import state_key
from tasks.detect.publish import Sent
from tasks.detect.run import detect, rebuild, rules_of
from tasks.detect.state import State, States
from tasks.settings import DetectSettings, Settings
from tests.helpers.sample import Growing

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
RULE = "failed-logins-by-key"


@dataclass
class Scene:
    """An archive over which detection ran before an attack was archived, and who was told since."""

    growing: Growing
    settings: Settings
    told: list[Notice] = field(default_factory=list)

    def send(self, notices: Sequence[Notice]) -> Sent:
        self.told += notices
        return Sent(frozenset(notice.id for notice in notices))

    def forge(self, forged: State) -> None:
        """Put a state, as anybody can who may write to the archive."""
        store = open_store(str(self.growing.folder))
        states = States(store, read_archive(store).id)
        states.newest()
        states.commit(forged, NOW)

    def write(self, **facts: object) -> None:
        """Write facts into the newest state that no run would write."""
        key = self.growing.folder / state_key(self.state().number)
        document = json.loads(key.read_bytes())
        document["facts"] |= facts
        key.chmod(0o600)
        key.write_text(json.dumps(document))

    def state(self) -> State:
        store = open_store(str(self.growing.folder))
        state = States(store, read_archive(store).id).newest()
        assert state is not None
        return state


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Twelve failed logins of a key in two minutes, archived after the last run."""
    growing = Growing(tmp_path / "scene", begun=NOW - timedelta(minutes=30))
    rules = tmp_path / "rules"
    rules.mkdir()
    shutil.copy(folder.SHIPPED / f"{RULE}.yml", rules)
    settings = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        detect=DetectSettings(rules=[str(rules)], warm_up_days=1),
    )
    made = Scene(growing, settings)
    growing.append(2, lambda offset: login(offset, "success"))
    detect(settings, send=made.send, now=NOW - timedelta(minutes=28))
    growing.append(2, lambda offset: login(offset, "failure"), each=6)
    return made


def login(offset: int, status: str) -> bytes:
    event = {
        "event_type": "auth_attempt",
        "timestamp": format_time(NOW - timedelta(minutes=29) + timedelta(seconds=5 * offset)),
        "request_id": "r",
        "api_key_id": "key-1",
        "client_ip": "192.0.2.1",
        "status": status,
        "failure_reason": None,
        "key_version": None,
        "key_age_days": None,
    }
    return json.dumps(event).encode()


def test_a_position_behind_an_attack_hides_it_until_the_night(scene: Scene) -> None:
    """A run reads nothing that a position calls read. The night's look reads yesterday, whatever positions say."""
    state = scene.state()
    scene.forge(state.with_facts(positions={scene.growing.log: scene.growing.size}))
    detect(scene.settings, send=scene.send, now=NOW)
    assert scene.told == []
    # What comes later moves the known time on, as on any day.
    night = NOW.replace(hour=2) + timedelta(days=1)
    scene.growing.heartbeat(night)
    detect(scene.settings, send=scene.send, now=night)
    assert {(notice.alert.rule, notice.alert.group) for notice in scene.told} == {(RULE, (("api_key_id", "key-1"),))}


def test_an_alert_that_claims_to_be_known_is_found_without_the_state(scene: Scene) -> None:
    """A forged alert takes in the matches of the attack. A backtest names it as not sent, and a rebuild sends it."""
    honest = State()
    copied = scene.growing.copy(scene.growing.root / "copied")
    there = scene.settings.model_copy(update={"archive": str(copied.folder)})
    alerts = detect(there, send=lambda notices: Sent(frozenset(n.id for n in notices)), now=NOW).opened
    assert [alert["rule"] for alert in alerts] == [RULE]
    store = open_store(str(copied.folder))
    known = States(store, read_archive(store).id).newest() or honest
    hidden = tuple(replace(alert, recorded_only=True, metric=1e9, told=1e9) for alert in known.alerts)
    scene.forge(replace(scene.state(), alerts=hidden))
    night = NOW.replace(hour=2) + timedelta(days=1)
    scene.growing.heartbeat(night)
    for now in (NOW, night):
        detect(scene.settings, send=scene.send, now=now)
    assert scene.told == []
    result = backtest(scene.settings, rules_of(scene.settings), NOW - timedelta(hours=1), NOW)
    assert [(rule.sent, rule.only_found) for rule in result.rules] == [(0, [hidden[0].id])]
    rebuild(scene.settings, send=scene.send, now=NOW)
    assert {notice.alert.id for notice in scene.told if notice.kind == "opened"} == {hidden[0].id}


@pytest.mark.parametrize("name", ["told_from", "looked_again", "until"])
def test_times_of_the_future_hide_nothing(scene: Scene, name: str) -> None:
    """The state before counts, which knows no such time: the attack is told, and the run names what it passed over."""
    scene.forge(scene.state())
    scene.write(**{name: "9999-12-31T23:59:59", "positions": {scene.growing.log: scene.growing.size}})
    result = detect(scene.settings, send=scene.send, now=NOW)
    assert [notice.alert.rule for notice in scene.told] == [RULE]
    assert name in result.problems[0]
