"""The flow and the command of a backfill: parameters, what people see, and that no run waits."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from custody.cli.main import main
from flows import backfill as module
from flows.backfill import backfill
from tasks.backfill import task
from tests.helpers.corpus import EVENTS
from tests.helpers.environment import use_archive
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def hourly(offset: int) -> bytes:
    moment = (DAY + timedelta(hours=offset)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({**EVENTS["auth_attempt"], "timestamp": moment, "request_id": f"request-{offset}"}).encode()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """An archive with two days of events, that the settings name."""
    growing = Growing(tmp_path / "written")
    growing.append(10, hourly)
    use_archive(monkeypatch, growing.folder, growing.keyring)
    monkeypatch.chdir(tmp_path)
    return growing


def copied(folder: Path) -> list[bytes]:
    paths = sorted(folder.rglob("*.jsonl.gz"))
    return [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]


@contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lose the server for just the time in which a run schedules the next one."""

    def lost(*given: Any, **more: Any) -> Any:
        client: Any = get_client(sync_client=True)._client
        there, client.base_url = client.base_url, f"http://127.0.0.1:{free_ports(1)[0]}/api"
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                return run_deployment(*given, **more)
        finally:
            client.base_url = there

    with monkeypatch.context() as patched:
        patched.setattr(module, "run_deployment", lost)
        yield


FIRST_DAY = [hourly(offset) for offset in range(24)]


@pytest.mark.usefixtures("prefect_server", "written")
def test_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run says what it would read. A run copies and shows progress. A wrong request fails in one line.

    Deployed, and with restores under way, a run ends at once, and the next one is scheduled with its parameters.
    """
    parameters: dict[str, Any] = {
        "since": DAY,
        "until": DAY + timedelta(days=1),
        "target": "folder",
        "folder": str(tmp_path / "out"),
    }
    dry = backfill(**parameters, dry_run=True, return_state=True)
    assert dry.is_completed()
    assert "Up to 25 events in 5 segments" in str(dry.message)
    assert "Nothing was changed" in str(dry.message)
    assert not (tmp_path / "out").exists()

    wrong = backfill(**{**parameters, "folder": None}, return_state=True)
    assert (wrong.is_failed(), wrong.message) == (
        True,
        "the target is a folder, but none is named: name the folder",
    )

    done = backfill(**parameters, return_state=True)
    assert done.is_completed(), done.message
    assert copied(tmp_path / "out") == FIRST_DAY
    with get_client(sync_client=True) as client:
        run = done.state_details.flow_run_id
        artifacts = {one.key: one for one in client.read_artifacts() if one.flow_run_id == run}
        assert artifacts["backfill-progress"].data == 100
        assert "24 copied" in str(artifacts["backfill-progress"].description)

        # Outside an event loop neither is a coroutine, whatever their types say.
        to_apply = cast("RunnerDeployment", backfill.to_deployment("backfill-ad-hoc"))
        deployment = cast("UUID", to_apply.apply())
        again = {**parameters, "folder": str(tmp_path / "again")}
        created = client.create_flow_run_from_deployment(deployment, parameters=again)
        monkeypatch.setattr(task, "restore", lambda *_: 3)
        state: Any = run_flow(backfill, flow_run=created, parameters=again, return_type="state")
        assert (state.name, "3 segments are being restored" in state.message) == ("Restoring", True)
        (following,) = [one for one in client.read_flow_runs() if one.state and one.state.is_scheduled()]
        assert following.deployment_id == deployment
        assert following.parameters["folder"] == str(tmp_path / "again")
        assert following.expected_start_time is not None
        assert following.expected_start_time > datetime.now(UTC) + timedelta(minutes=50)
        assert not (tmp_path / "again").exists()

        with cut_off(monkeypatch):
            created = client.create_flow_run_from_deployment(deployment, parameters=again)
            alone: Any = run_flow(backfill, flow_run=created, parameters=again, return_type="state")
        assert (alone.name, alone.message.splitlines()) == ("Failed", [alone.message])
        assert "restores were requested, but the next run could not be scheduled" in alone.message
        assert "start the backfill again in some hours" in alone.message

        # Whoever ran it now would wait for its time.
        monkeypatch.setattr(task, "restore", lambda *_: 0)
        assert backfill(**backfill.validate_parameters(following.parameters), return_state=True).is_completed()
    assert copied(tmp_path / "again") == FIRST_DAY


def run(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["backfill", "--since", "2026-03-01", "--until", "2026-03-02", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("written")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`custody backfill` does the same at once. Wrong arguments give one line."""
    arguments = ["--to", "folder", "--folder", str(tmp_path / "out")]
    assert run(*arguments, "--dry-run") == 0
    assert "Up to 25 events" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run(*arguments) == 0
    assert "24 copied" in capsys.readouterr().out
    assert copied(tmp_path / "out") == FIRST_DAY
    # Again is no failure, but a choice of nothing is.
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments[:3], str(tmp_path / "none"), "--type", "config_change") == 1
    assert "nothing was copied: the archive has no such event" in capsys.readouterr().err
    for wrong in (["--to", "moon"], [*arguments, "--tier", "soon"], ["--to", "tables", "--type", "x"], ["--log", "no"]):
        assert run(*wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("custody: ")
        assert said.count("\n") == 1
