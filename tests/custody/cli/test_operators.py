"""The operator's part: found beside the package in a checkout, whatever else has the names of its packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from custody.cli import operators
from custody.errors import ConfigurationError
from custody.settings import Settings
from tests.helpers.environment import clear_settings
from tests.helpers.foreign import make_foreign, was_imported

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the search path, the current folder and the environment as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)


def test_a_checkout_is_known_by_what_lies_beside_the_package(tmp_path: Path) -> None:
    """A folder where packages are installed is none, even with packages of these names."""
    assert operators.checkout() == ROOT
    assert operators.checkout(make_foreign(tmp_path) / "custody") is None


@pytest.mark.parametrize(
    "command", [("--help",), ("roll", "--help"), ("config",), ("status",), ("verify", "nowhere", "--kafka")]
)
def test_foreign_packages_are_never_imported(tmp_path: Path, command: tuple[str, ...]) -> None:
    """The operator's commands are the checkout's, though other packages come first on the path and in the folder."""
    foreign = make_foreign(tmp_path / "foreign")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PYTHON"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(foreign), str(ROOT)])
    # An archive that cannot be read ends the command before it asks a broker.
    environment["CUSTODY_ARCHIVE"] = "s3://"
    done = subprocess.run(
        [sys.executable, "-m", "custody", *command],
        cwd=foreign,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not was_imported(foreign)
    assert "is for operators" not in done.stderr
    assert "Traceback" not in done.stderr
    if command == ("--help",):
        for name in operators.COMMANDS:
            assert name in done.stdout
    elif command == ("config",):
        assert "kafka.group" in done.stdout


def test_the_readme_has_what_users_are_sent_to() -> None:
    """The section that each operator's command names with the wheel alone is there."""
    section = operators.WHERE.partition("README: ")[2].rstrip(")")
    assert f"\n## {section}\n" in (ROOT / "README.md").read_text()


def test_what_has_taken_the_names_already_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a program has loaded a package of that name before, no module of it is used."""
    foreign = make_foreign(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tasks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(foreign))
    import tasks

    assert Path(str(tasks.__file__)).parent.parent == foreign
    with pytest.raises(ConfigurationError, match="another one of that name is loaded"):
        operators.load("tasks.settings", "`custody config`")
    assert "tasks.settings" not in sys.modules
    monkeypatch.delitem(sys.modules, "tasks")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout without the operator's packages says which command installs them."""
    monkeypatch.delitem(sys.modules, "tasks.audit.recheck", raising=False)
    monkeypatch.delitem(sys.modules, "tasks.drain.kafka", raising=False)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigurationError, match=r"needs confluent_kafka, .*uv sync"):
        operators.load("tasks.audit.recheck", "`custody verify --kafka`")


def test_the_settings_are_those_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`custody config` shows the operator's in a checkout, and the auditor's with the wheel alone."""
    assert "kafka" in operators.known_settings().model_fields
    monkeypatch.setattr(operators, "checkout", lambda: None)
    assert operators.known_settings() is Settings
