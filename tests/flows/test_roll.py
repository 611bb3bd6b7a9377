"""The flow and the command that roll: what people see of it, and of what failed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from custody.cli.main import main
from flows.roll import roll
from tasks.settings import Settings
from tests.helpers.environment import shifted, use_archive
from tests.helpers.sample import Growing
from tests.servers.ports import free_ports


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """An archive of ten days ago, with a retention of nine days. The settings name it."""
    growing = Growing(tmp_path / "old", begun=datetime.now(UTC) - timedelta(days=10), retention_days=1)
    growing.append(3)
    use_archive(monkeypatch, growing.folder, growing.keyring)
    monkeypatch.setenv("CUSTODY_TIERS__LIFE_DAYS", "9")
    monkeypatch.chdir(tmp_path)
    return growing


def segments(growing: Growing) -> list[Path]:
    return list((growing.folder / "events").rglob("*.gz"))


def artifacts(run: Any) -> dict[str | None, Any]:
    """Return the artifacts of a run that ended in this state. Other tests publish some of the same keys."""
    with get_client(sync_client=True) as client:
        published = client.read_artifacts()
    return {artifact.key: artifact for artifact in published if artifact.flow_run_id == run.state_details.flow_run_id}


@pytest.mark.usefixtures("prefect_server")
def test_the_flow(old: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run changes nothing. A run expires evidence, signs what it did, and shows it and the usage.

    An Elasticsearch that is down fails the run, and keeps nothing else from being done.
    """
    dry = roll(dry_run=True, return_state=True)
    assert (dry.is_completed(), len(segments(old))) == (True, 3)
    assert "4 planned" in str(dry.message)
    assert "expire" in str(artifacts(dry)["roll"].data)
    assert "events/" in str(artifacts(dry)["tiers"].data)

    (port,) = free_ports(1)
    with monkeypatch.context() as patched:
        patched.setenv("CUSTODY_SEARCH__URL", f"http://127.0.0.1:{port}")
        failed = roll(return_state=True)
    assert failed.is_failed()
    assert f"{port} does not answer" in str(failed.message)
    assert segments(old) == []
    assert (old.folder / "audits" / f"{0:012}.json").exists()

    again = roll(return_state=True)
    assert (again.is_completed(), again.message) == (True, "Roll: 0 done.")
    assert not (old.folder / "audits" / f"{1:012}.json").exists()


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("kind", ["garbage", "clock"])
def test_what_must_not_expire_fails_the_roll(
    old: Growing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A statement that nobody signed, or a clock years ahead, fails the flow and the command, and deletes nothing."""
    if kind == "garbage":
        path = old.folder / "manifests" / old.log / f"{1:012}.json"
        path.unlink()
        path.write_bytes(b"no manifest")
    else:
        ahead = shifted(timedelta(days=3650))
        monkeypatch.setattr("flows.roll.datetime", ahead)
        monkeypatch.setattr("flows.operate.cli.datetime", ahead)
    why = {"garbage": "no trusted key signed", "clock": "the host's clock says"}[kind]
    state = roll(return_state=True)
    assert (state.is_failed(), why in str(state.message)) == (True, True)
    with pytest.raises(SystemExit) as ended:
        main(["roll"])
    assert (ended.value.code, why in capsys.readouterr().err) == (1, True)
    assert len(segments(old)) == 3


def test_the_command(old: Growing, capsys: pytest.CaptureFixture[str]) -> None:
    """`custody roll` does the same here and now."""
    for arguments, left, said in ((["--dry-run"], 3, "planned"), ([], 0, "done"), ([], 0, "Nothing to do")):
        with pytest.raises(SystemExit) as ended:
            main(["roll", *arguments])
        assert not ended.value.code
        assert len(segments(old)) == left
        assert said in capsys.readouterr().out
    assert Settings().tiers.life_days == 9


def test_the_command_without_elasticsearch(
    old: Growing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Elasticsearch is down, the command fails, but evidence still expires, and the record is signed."""
    (port,) = free_ports(1)
    monkeypatch.setenv("CUSTODY_SEARCH__URL", f"http://127.0.0.1:{port}")
    with pytest.raises(SystemExit) as ended:
        main(["roll"])
    assert ended.value.code == 1
    assert f"{port} does not answer" in capsys.readouterr().err
    assert segments(old) == []
    assert (old.folder / "audits" / f"{0:012}.json").exists()
