"""`CUSTODY_LOG_FORMAT=json`: each line of the log is one JSON document, of the same fields."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FIELDS = ["time", "level", "logger", "message", "run", "flow", "log", "sequence"]
HOSTILE = '\x1b]0;title\x07\x9b2J\u202e\n{"forged": 1}'


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def lines_of(script: str) -> list[dict[str, Any]]:
    ran = run(script, CUSTODY_LOG_FORMAT="json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert all(list(line) == FIELDS for line in lines)
    return lines


BEGIN = "import logging\nfrom custody.cli.log_lines import use_format\nuse_format(lambda: ('r', 'drain'))\n"


def test_a_record_is_a_line() -> None:
    """It says when, how bad, who, what, and of which run, log and statement. Other attributes are left out."""
    extra = "{'log': 'a/0', 'sequence': 7, 'password': 'canary'}"
    (line,) = lines_of(f"{BEGIN}logging.getLogger('tasks.x').warning('lost %d', 5, extra={extra})")
    moment = line.pop("time")
    assert moment.endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "tasks.x",
        "message": "lost 5",
        "run": "r",
        "flow": "drain",
        "log": "a/0",
        "sequence": 7,
    }


def test_foreign_text_adds_no_line() -> None:
    """Control characters and newlines, of a message or a traceback, are in a string of the same line."""
    script = (
        f"{BEGIN}\ntry:\n    raise LookupError({HOSTILE!r})\nexcept LookupError:\n    logging.exception({HOSTILE!r})"
    )
    (line,) = lines_of(script)
    assert line["message"].startswith(HOSTILE)
    assert "LookupError" in line["message"]
    ran = run(script, CUSTODY_LOG_FORMAT="json")
    assert ran.stderr.removesuffix("\n").isprintable()


def test_what_is_not_known_is_null() -> None:
    """A line has all of its fields, and what is no number is no sequence."""
    script = BEGIN.replace("('r', 'drain')", "(None, None)") + "logging.warning('x', extra={'sequence': 'y'})"
    (line,) = lines_of(script)
    assert [line[name] for name in FIELDS[4:]] == [None] * 4


def test_the_drain_names_the_log() -> None:
    """What stops a log is logged with its name as a field of its own."""
    script = (
        f"{BEGIN}from custody.errors import CustodyError\nfrom tasks.drain.log_run import LogResult\n"
        "LogResult('a/0').stop(CustodyError('no disk'))"
    )
    (line,) = lines_of(script)
    assert (line["level"], line["log"], line["message"]) == ("error", "a/0", "no disk")


def test_a_flow_logs_lines_too() -> None:
    """Prefect's loggers and ours write the same lines, once each, after the flow's module was loaded."""
    script = (
        "import logging, flows.drain\n"
        "logging.getLogger('prefect.flows').error(':warning: [bold]%s', 'x')\n"
        "logging.getLogger('tasks.drain').warning('y')"
    )
    lines = lines_of(script)
    assert [line["message"] for line in lines] == [":warning: [bold]x", "y"]


@pytest.mark.parametrize(("variable", "code"), [("text", 0), ("xml", 2)])
def test_the_variable(variable: str, code: int, tmp_path: Path) -> None:
    """A command refuses another value in one line. `text` is what it does without."""
    script = f"import os; os.chdir({str(tmp_path)!r})\nfrom custody.cli.main import main\nmain(['config', '--json'])"
    ran = run(script, CUSTODY_LOG_FORMAT=variable)
    assert ran.returncode == code
    assert ("CUSTODY_LOG_FORMAT is 'xml'; it must be text or json" in ran.stderr) == (variable == "xml")
    assert ran.stderr.count("\n") <= 1
