"""The operator's commands, without Kafka and Prefect: what they show and refuse before either is needed."""

import json
import shutil
from pathlib import Path

import pytest

from custody import cli
from custody.errors import TransientSourceError
from tasks.kafka import Broker
from tests.environment import clear_settings
from tests.sample import Sample, make_archive


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Write an archive that tests only read."""
    return make_archive(tmp_path_factory.mktemp("sample"))


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample: Sample) -> None:
    """Point at the archive, and at a broker that does not answer, without the ten seconds that it takes to know."""

    def silent(broker: Broker) -> str:
        raise TransientSourceError(f"{broker} does not answer")

    monkeypatch.setattr(Broker, "cluster", silent)
    clear_settings(monkeypatch)
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(sample.folder))
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def test_status_shows_heads_while_kafka_is_away(capsys: pytest.CaptureFixture[str], sample: Sample) -> None:
    """The heads come from the archive, so they are there when the broker is not; the lag is then unknown."""
    assert run("status", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert (row["log"], row["size"], row["root"]) == (str(sample.log), sample.head.size, sample.head.root)
    assert row["lag"] is None
    assert run("status") == 0
    assert str(sample.log) in capsys.readouterr().out


def test_status_names_a_log_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sample: Sample, tmp_path: Path
) -> None:
    """A damaged manifest is said, with a failing exit code, and hides no other log."""
    folder = tmp_path / "damaged"
    shutil.copytree(sample.folder, folder)
    newest = max((folder / "manifests").rglob("*.json"))
    newest.write_bytes(b"not a manifest")
    monkeypatch.setenv("CUSTODY_ARCHIVE", str(folder))
    assert run("status") == 1
    assert newest.name in capsys.readouterr().err


@pytest.mark.parametrize("command", [("drain", "--once"), ("status",), ("new-life", "audit.events")])
def test_wrong_setting_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """An operator's command refuses a wrong setting in one line, without waiting for Prefect."""
    monkeypatch.setenv("CUSTODY_DRAIN__BATCH_EVENTS", "20000")
    assert run(*command) == 2
    assert capsys.readouterr().err.startswith("custody: CUSTODY_DRAIN__BATCH_EVENTS")


def test_help_lists_operators_commands_beside_the_auditors(capsys: pytest.CaptureFixture[str]) -> None:
    """In a checkout there is one command line for both."""
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in (*cli.OPERATORS_COMMANDS, "verify", "show", "keys", "config", "init"):
        assert command in shown
