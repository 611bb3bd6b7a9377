"""Notices of rules as Prefect's events: which of them people hear of, and what they read."""

import inspect
from dataclasses import replace
from datetime import timedelta
from typing import Any, get_args

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from prefect.events import Event
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

import flows.publish
from flows.alert import alert
from flows.operate.deploy import DEPLOYMENTS
from tasks.detect.alerts import Kind, Notice, Place
from tests.helpers.alerts import ALERT

TRIGGERS = [
    trigger
    for deployment in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
    for trigger in deployment.get("triggers", [])
]


def notice(kind: Kind, key: str = "key-1") -> Notice:
    storm = kind == "storm"
    group = () if storm else (("api_key_id", key),)
    made = replace(ALERT, group=group, evidence=(Place("audit.events/0", 7),), storm=storm)
    return Notice("1" * 32, kind, made, "Rotate the key.", 12 if storm else 0, 10.0)


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """The events that are emitted, as a server takes them."""
    events: list[Event] = []

    def emit(event: str, *, resource: dict[str, str], payload: dict[str, Any]) -> None:
        events.append(Event.model_validate({"event": event, "resource": resource, "payload": payload}))

    monkeypatch.setattr(flows.publish, "emit_event", emit)
    return events


@pytest.mark.parametrize("kind", get_args(Kind))
def test_people_hear_of_all_but_what_is_over(emitted: list[Event], kind: Kind) -> None:
    """Of Prefect's triggers, one waits for such an event, and its text is whole."""
    flows.publish.emit_notices([notice(kind)])
    (event,) = emitted
    received = ReceivedEvent.model_validate(event.model_dump())
    heard = [
        trigger
        for trigger in TRIGGERS
        if (made := EventTrigger.model_validate({"type": "event", **_trigger(trigger)})).expects(received.event)
        and made.covers_resources(received.resource, [])
    ]
    assert [trigger["name"] for trigger in heard] == ([] if kind == "over" else ["custody-attack-suspected"])
    for trigger in heard:
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        texts = {
            name: environment.from_string(text).render(event=event) for name, text in trigger["parameters"].items()
        }
        inspect.signature(alert.fn).bind(**texts)
        assert texts["title"].startswith("custody: Many failed logins (high")
        for part in (
            "To do: Rotate the key.",
            "custody evidence audit.events/0@7",
            f"alert.{'a' * 32}",
            "failed-logins",
        ):
            assert part in texts["details"]
        assert ("12 alerts at once" if kind == "storm" else "api_key_id key-1: 12 matches") in texts["details"]


def _trigger(trigger: dict[str, Any]) -> dict[str, Any]:
    """Return what a server keeps of a trigger of a deployment."""
    return {
        name: value if name != "within" else timedelta(seconds=value)
        for name, value in trigger.items()
        if name in {"posture", "match", "expect", "for_each", "threshold", "within"}
    }


def test_what_a_client_chose_moves_no_terminal(emitted: list[Event]) -> None:
    """Control characters and line ends of a group's values are escaped, and values stay short."""
    flows.publish.emit_notices([notice("opened", "\x1b[2J\nkey" + "k" * 100_000)])
    (event,) = emitted
    assert "\\x1b[2J\\nkey" in event.payload["summary"]
    assert all(text.isprintable() and len(text) < 3_000 for text in event.payload.values())
