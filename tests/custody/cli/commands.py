"""Runs the command line in a test's own process, as a user would run it in an empty folder."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from custody.cli.main import main
from tests.helpers.environment import clear_settings


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def make_command(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Return the command line, without a variable of ours."""
    clear_settings(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(int(ended.value.code or 0), out.decode(), err.decode())

    return run
