"""Each flow measures its steps, and exports at its end, whether it did well or not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.audit import audit
from flows.backfill import backfill
from flows.drain import drain
from flows.roll import roll
from tasks.health import kafka as health_kafka
from tests.helpers.environment import clear_settings
from tests.helpers.metrics import values_of
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports

STEPS = {
    ("drain", "find"),
    ("audit", "survey"),
    ("audit", "read"),
    ("audit", "sign"),
    ("roll", "roll"),
    ("roll", "usage"),
    ("backfill", "plan"),
}


@pytest.mark.usefixtures("prefect_server")
def test_each_flow_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has each step that was taken, and the success of each flow but the drain's, whose broker is down."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(health_kafka, "REQUEST_SECONDS", 0.5)
    growing = Growing(tmp_path / "site")
    growing.append(3)
    (port,) = free_ports(1)
    for name, value in {
        "ARCHIVE": str(growing.folder),
        "KEYS": f"file:{growing.keyring}",
        "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
        "AUDIT__REPORT": "false",
        "AUDIT__TABLES": "false",
        "METRICS__FILE": str(tmp_path / "custody.prom"),
    }.items():
        monkeypatch.setenv(f"CUSTODY_{name}", value)
    now = datetime.now(UTC)
    states: list[State[Any]] = [
        drain(once=True, return_state=True),
        audit(return_state=True),
        roll(dry_run=True, return_state=True),
        backfill(now - timedelta(days=1), now, dry_run=True, target="folder", folder="copies", return_state=True),
    ]
    assert [state.is_completed() for state in states] == [False, True, True, True], states
    values = values_of((tmp_path / "custody.prom").read_bytes())
    assert {key[1:] for key in values if key[0] == "custody_step_duration_seconds_count"} == STEPS
    success = {key[1] for key in values if key[0] == "custody_last_success_timestamp_seconds"}
    assert success == {"audit", "roll", "backfill"}
    assert (values[("custody_audit_ok",)], values[("custody_audit_age_seconds",)] < 600) == (1, True)
