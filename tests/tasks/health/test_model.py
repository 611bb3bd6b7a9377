"""The values of an installation's health: its level, and the one document of `custody status --json`."""

import json
from datetime import UTC, datetime

from tasks.health.model import AuditHealth, Health, LogHealth, Problem, Recent, ServerHealth, worst

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
KAFKA = ServerHealth("kafka:9092", reachable=True)
LATE = Problem("warning", "index-late", "audit/0", "late", "wait")
LAG = Problem("failed", "lag", "audit/1", "far behind", "run the drain")
NOBODY = Problem("warning", "alerts-nobody", "alerts", "nobody is alerted", "set alert.urls")


def test_the_worst_problem_is_the_level() -> None:
    """One failed log fails the whole, and the worst problems come first."""
    healthy = Health("archive", NOW, KAFKA, logs=(LogHealth("audit/0"),))
    assert (healthy.level, healthy.problems) == ("ok", ())
    logs = (LogHealth("audit/0", problems=(LATE,)), LogHealth("audit/1", problems=(LAG,)), LogHealth("audit/2"))
    health = Health("archive", NOW, KAFKA, logs=logs, general=(NOBODY,))
    assert [log.level for log in logs] == ["warning", "failed", "ok"]
    assert health.level == "failed"
    assert health.problems == (LAG, NOBODY, LATE)
    assert worst([LATE, NOBODY]) == "warning"


def test_a_share_needs_records() -> None:
    """Without a record there is no share; it never divides by zero, nor does it look like 0 %."""
    assert Recent(statements=3).quarantined_share is None
    assert Recent(events=3, quarantined=1).quarantined_share == 0.25


def test_the_document_has_each_value_once() -> None:
    """It is JSON; problems are in one list, and each log has its level."""
    audit = AuditHealth(3, "notices", "2026-11-28T02:17:00Z", 35_000.0, 2)
    log = LogHealth("audit/1", recent=Recent(1, 9, 1), problems=(LAG,))
    document = json.loads(
        json.dumps(Health("archive", NOW, KAFKA, logs=(log,), audit=audit, alerts=("1 (slack)",)).to_dict())
    )
    assert document["level"] == "failed"
    assert document["at"] == "2026-11-28T12:00:00.000000Z"
    assert [problem["kind"] for problem in document["problems"]] == ["lag"]
    assert document["logs"][0]["level"] == "failed"
    assert document["logs"][0]["recent"]["quarantined_share"] == 0.1
    assert document["audit"]["verdict"] == "notices"
    assert not {"general"} & document.keys()
    assert not {"problems"} & document["logs"][0].keys()
