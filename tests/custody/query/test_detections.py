"""The view `detections`: each alert of a rule once, as it was last."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.helpers.alerts import START, alert_event, archived
from tests.helpers.querying import ask, audit
from tests.helpers.sample import event

ROWS = (
    "SELECT alert_id[1], level, rule, title, subject, first, last, matches, metric, threshold, state, others, evidence,"
    ' advice, log, "offset" FROM detections ORDER BY last DESC'
)


def test_each_alert_is_a_row_as_it_was_last(tmp_path: Path) -> None:
    """Repeats, and events that come in another order, change nothing; nor do an audit's tables."""
    other: dict[str, Any] = {"id": "b" * 32, "group": (), "last": START + timedelta(hours=1)}
    storm: dict[str, Any] = {"id": "c" * 32, "group": (), "storm": True, "matches": 25, "last": START}
    growing = archived(
        tmp_path,
        [event(0), alert_event(), alert_event("over", matches=13), alert_event("grown", matches=13), alert_event()],
        [alert_event(**other), event(1), alert_event("storm", 25, **storm)],
    )
    same = ("high", "failed-logins", "Many failed logins")
    key, places, later = '{"api_key_id":"key-1"}', '["audit.grows/0@7"]', START + timedelta(minutes=5)

    def rest(*values: Any) -> tuple[Any, ...]:
        return (*values, places, "Look.", "audit.grows/0")

    wanted = [
        ("b", *same, "{}", START, other["last"], 12, 31.0, None, *rest("open", 0), 5),
        ("a", *same, key, START, later, 13, 31.0, None, *rest("over", 0), 2),
        ("c", *same, "{}", START, START, 25, 31.0, None, *rest("storm", 25), 7),
    ]
    assert ask(growing.folder, ROWS) == wanted
    audit(growing.folder, growing.keyring)
    assert ask(growing.folder, ROWS) == wanted


def test_forged_and_foreign_events_break_no_query(tmp_path: Path) -> None:
    """What is not of the form has no value where a type does not fit, and no row without an alert."""
    forged = json.loads(alert_event())
    forged["details"] = {
        "alert_id": "x",
        "matches": "many",
        "first": "yesterday",
        "others": -1.5,
        "group": [1],
        "kind": 7,
    }
    foreign = {**forged, "alert_type": "custodyx"}
    nameless = {**forged, "details": {}}
    lines = [json.dumps(fields).encode() for fields in (forged, foreign, nameless)]
    growing = archived(tmp_path, [*lines, *map(event, range(6))])
    sql = "SELECT alert_id, matches, first, state, subject FROM detections"
    assert ask(growing.folder, sql) == [("x", None, None, "open", "[1]")]
    assert isinstance(ask(growing.folder, "SELECT max(time) FROM events")[0][0], datetime)
