"""Alerts of rules, as they are archived."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.detect.alerts import Alert, Kind, Notice, Place
from tasks.detect.publish import event_of
from tests.helpers.sample import Growing

START = datetime(2026, 3, 1, 10, tzinfo=UTC).replace(tzinfo=None)
ALERT = Alert(
    id="a" * 32,
    rule="failed-logins",
    rule_id="4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a01",
    title="Many failed logins",
    level="high",
    group=(("api_key_id", "key-1"),),
    first=START,
    last=START + timedelta(minutes=5),
    matches=12,
    metric=31,
    told=31,
    evidence=(Place("audit.grows/0", 7),),
    cool_down=3600,
)


def alert_event(kind: Kind = "opened", others: int = 0, **changed: Any) -> bytes:
    """Return the event of a notice about an alert with some fields changed."""
    alert = replace(ALERT, **changed)
    return event_of(Notice(f"{alert.id}-{kind}", kind, alert, "Look.", others))


def archived(root: Path, *statements: Sequence[bytes]) -> Growing:
    """Return an archive with these statements."""
    growing = Growing(root)
    lines = [line for statement in statements for line in statement]
    for statement in statements:
        growing.append(1, lines.__getitem__, each=len(statement))
    return growing
