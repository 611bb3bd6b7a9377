"""Alerts of rules on the integrity report: from archived events alone, bounded, and harmless."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.report import detections
from custody.report.facts import Facts
from custody.report.page import render
from tasks.detect.views import OWN
from tests.helpers.alerts import START, alert_event, archived
from tests.helpers.reporting import HOSTILE, Elements, audited, gathered, settings_of
from tests.helpers.sample import Growing
from tests.helpers.sample import event as of_an_application


def facts_of(growing: Growing) -> Facts:
    """Return the facts about an archive, after an audit."""
    settings = settings_of(growing.folder, growing.keyring, report=False)
    audited(settings)
    return gathered(settings)


def test_each_alert_is_a_row_as_it_was_last(tmp_path: Path) -> None:
    """Repeats, and events that come in another order, change nothing. The newest alert stands first."""
    other: dict[str, Any] = {"id": "b" * 32, "group": (), "last": START + timedelta(hours=1)}
    storm: dict[str, Any] = {"id": "c" * 32, "group": (), "storm": True, "matches": 25, "last": START}
    facts = facts_of(
        archived(
            tmp_path,
            [
                of_an_application(0),
                alert_event(),
                alert_event("over", matches=13),
                alert_event("grown", matches=13),
                alert_event(),
            ],
            [alert_event(**other), of_an_application(1), alert_event("storm", 25, **storm)],
        )
    )
    assert [(row.event, row.title, row.group, row.matches, row.state, row.others) for row in facts.detections.rows] == [
        ("audit.grows/0@5", "Many failed logins", "", 12, "open", 0),
        ("audit.grows/0@2", "Many failed logins", "api_key_id key-1", 13, "over", 0),
        ("audit.grows/0@7", "Many failed logins", "", 25, "storm", 25),
    ]
    text = Elements(render(facts)).text
    times = "2026-03-01 10:00:00 UTC 2026-03-01 10:05:00 UTC"
    assert f"high Many failed logins failed-logins : api_key_id key-1 {times} 13 over audit.grows/0@2" in text
    assert "storm: 25 alerts at once, recorded and not sent singly audit.grows/0@7" in text


def test_without_an_alert_there_is_a_sentence(tmp_path: Path) -> None:
    """Security events of an application are none, whatever they call themselves and have in their details."""
    own = {"event_type": "own", "timestamp": "2026-03-01T10:00:00Z", "alert_type": "custody.x", "details": {}}
    inner = {**json.loads(alert_event()), "alert_type": "mine", "details": {"alert_type": "custody.x"}}
    facts = facts_of(archived(tmp_path, [*map(of_an_application, range(6)), *map(_compact, (own, inner))]))
    assert facts.detections == detections.Detections()
    assert "No alert of a rule is archived in this period" in Elements(render(facts)).text


def _compact(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"matches": -1},
        {"matches": 10**400},
        {"kind": "ended"},
        {"alert_id": "x" * 1000},
        {"group": {"a": 1}},
        {"first": None},
    ],
)
def test_forged_events_are_no_rows(tmp_path: Path, changed: dict[str, Any]) -> None:
    """What is not of the form is passed over, and the page is made."""
    forged = json.loads(alert_event())
    forged["details"] |= changed
    assert facts_of(archived(tmp_path, [_compact(forged), alert_event()])).detections.rows[0].matches == 12


def test_hostile_texts_are_texts_and_short(tmp_path: Path) -> None:
    forged = json.loads(alert_event())
    forged["alert_type"] += HOSTILE
    forged["details"] |= {"title": HOSTILE * 100, "group": {HOSTILE: HOSTILE * 100}, "first": HOSTILE, "last": HOSTILE}
    page = render(facts_of(archived(tmp_path, [_compact(forged)])))
    assert b"<img src=x" not in page
    assert b"\x1b" not in page
    assert page.count(b"onerror") < 60


def test_of_many_alerts_the_newest_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custody.report.page.DETECTIONS_SHOWN", 3)
    lines = [alert_event(id=f"{number:032x}", last=START + timedelta(minutes=number)) for number in range(5)]
    facts = facts_of(archived(tmp_path, lines))
    assert "These are 3 of 5 alerts" in Elements(render(facts)).text
    assert [row.event[-2:] for row in facts.detections.rows] == ["@4", "@3", "@2", "@1", "@0"]


@pytest.mark.parametrize("limit", [("STATEMENTS", 2), ("_BYTES", 2_500)])
def test_of_many_statements_the_newest_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    """The page says from when on, and the newest statement is always among them."""
    growing = archived(tmp_path, *([alert_event(id=f"{number:032x}")] for number in range(6)))
    monkeypatch.setattr(detections, *limit)
    facts = facts_of(growing)
    shown = sorted(int(row.event.partition("@")[2]) for row in facts.detections.rows)
    assert shown == list(range(6))[-len(shown) :]
    assert 1 <= len(shown) < 5
    since = growing.sealed_at(shown[0])
    assert facts.detections.since is not None
    assert f"only those sealed at {since:%Y-%m-%d %H:%M:%S} UTC or later" in Elements(render(facts)).text


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    """A segment that is damaged or gone hides no alert of another, and shows no byte that was not signed."""
    growing = archived(tmp_path, *([alert_event(id=f"{number:032x}")] for number in range(3)))
    settings = settings_of(growing.folder, growing.keyring, report=False)
    audited(settings)
    first, second, _ = sorted((growing.folder / "events").rglob("*.gz"))
    first.unlink()
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.unlink()
    second.write_bytes(bytes(data))
    facts = gathered(settings)
    assert ([row.event for row in facts.detections.rows], facts.detections.unread) == (["audit.grows/0@2"], 2)
    assert "Not looked into: 2 statements" in Elements(render(facts)).text


def test_only_the_period_counts(tmp_path: Path) -> None:
    growing = archived(tmp_path, [alert_event(id="b" * 32)], [alert_event()])
    settings = settings_of(growing.folder, growing.keyring, report=False)
    audited(settings)
    facts = gathered(settings, since=growing.sealed_at(1))
    assert [row.event for row in facts.detections.rows] == ["audit.grows/0@1"]


def test_alerts_are_named_as_rules_name_them() -> None:
    """What is left out of the rules' events is what the report looks for."""
    assert detections.OWN == OWN
