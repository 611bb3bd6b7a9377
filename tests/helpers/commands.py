"""Runs the command line in a test's own process, as a user would run it in an empty folder."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from custody.cli.main import main
from tests.helpers.environment import clear_settings


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def custody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """The command line, run in the test's folder and without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(int(ended.value.code or 0), out.decode(), err.decode())

    return run
