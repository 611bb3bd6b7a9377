"""What is printed or logged: through one door, harmless, and never what decides an exit code."""

import ast
import contextlib
import inspect
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from custody.cli import main, render
from custody.cli.terminal import echo, escape_logs
from custody.errors import StoreError
from custody.keys.keyring import new_keyring
from flows.operate import cli as operating
from tests.helpers.sample import Sample

ROOT = Path(__file__).parents[3]
DOORS = {"custody/cli/terminal.py", "custody/cli/render.py"}
PIPES = {
    # A program of ours whose output is frames for its parent, never a terminal's.
    "tasks/drain/apart.py": {"stdout"},
    # Lines of JSON in ASCII: control characters are escapes in them.
    "custody/cli/log_lines.py": {"stderr", "stdout", "__stderr__"},
    # An application's exit, whose logging may have ended: numbers, and the application's own path.
    "custody/emit/writer.py": {"stderr"},
}
"""Modules that use a stream themselves, and why."""
PRINTS = {"print", "echo", "secho", "Console", "stdout", "stderr", "__stdout__", "__stderr__"}
HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\nforged"
COMMAND = f'"{sys.executable}" -c "from custody.cli.main import main; main()"'


def printing(tree: ast.AST) -> set[str]:
    """Return the names in a module by which something is printed past our doors."""
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"sys", "typer", "click", "rich"}
    }
    return (names & {"print", "Console"}) | (used & PRINTS)


def test_nothing_else_prints() -> None:
    """Only the two doors print: each other module calls them, so that nothing hostile gets past."""
    assert printing(ast.parse("import sys\nprint(sys.stdout)\ntyper.echo(1)\nConsole()")) == {
        *("print", "stdout", "echo", "Console")
    }
    files = [path for room in ("custody", "tasks", "flows") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    others = {str(path.relative_to(ROOT)): printing(ast.parse(path.read_text())) for path in files}
    assert {name: used for name, used in others.items() if used and name not in DOORS} == PIPES


def test_text_is_harmless_however_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a line nor a table, by its cells or its columns, gives a terminal anything to obey."""
    echo(f"first\n{HOSTILE}")
    table = render.table(f"#{HOSTILE}")
    table.add_row(render.safe(HOSTILE))
    render.console().print(table)
    printed = capsys.readouterr().out
    assert printed.startswith("first\n\\x1b]0;title")
    assert printed.replace("\n", "").isprintable()


def test_logs_are_harmless_for_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    """An argument, a message and a traceback are escaped, in each logger, and add no line to a log."""
    escape_logs()
    with caplog.at_level(logging.INFO):
        for name in ("custody.x", "tasks.y", "elastic_transport"):
            logging.getLogger(name).warning("it failed: %s", HOSTILE)
            logging.getLogger(name).info(HOSTILE)
            logging.getLogger(name).info("kept %d", 5)
        try:
            raise LookupError(HOSTILE)  # noqa: TRY301
        except LookupError:
            logging.getLogger("custody.x").exception("a bug")
    assert caplog.records[2].args == (5,)
    lines = caplog.text.splitlines()
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("forged") for line in lines) == 1, "a traceback has lines, but no other log"


def test_what_tasks_log_is_escaped() -> None:
    """Each process that imports a task escapes its logs, with or without the command line."""
    script = f"import logging, tasks; logging.warning('%s', {HOSTILE!r})"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr.count("\n") == 1
    assert run.stderr.strip().isprintable()


# --- exit codes ------------------------------------------------------------------------------------------------------

ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
REDIRECTIONS = {
    "full": ">/dev/full",
    "all full": ">/dev/full 2>&1",
    "closed": ">&-",
    "all closed": "<&- >&- 2>&-",
    "no reader": "| true",
}


def run(arguments: str, way: str, folder: Path, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a command with its output as `way` says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "PYTHON", "LC_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), **ENCODINGS.get(way, {})}
    # Its exit code is that of the command, not of the pipe's end.
    line = f"set -o pipefail; {COMMAND} {arguments} {REDIRECTIONS.get(way, '')}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        encoding="latin-1",
    )


@pytest.mark.parametrize("way", [*ENCODINGS, *REDIRECTIONS])
def test_a_verdict_never_depends_on_printing(altered: Sample, tmp_path: Path, way: str) -> None:
    """Exit codes say what was found: in any encoding, where nobody reads, and where nothing can be written."""
    segment = next((altered.folder / "events").rglob("*.gz"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    ok = run(f"verify {altered.folder} --keys file:{altered.keyring} --workers 0", way, tmp_path)
    segment.unlink()
    segment.write_bytes(bytes(data))
    bad = run(f"verify {altered.folder} --keys file:{altered.keyring} --workers 0", way, tmp_path)
    assert (ok.returncode, bad.returncode) == (0, 13)
    assert "Traceback" not in ok.stderr + bad.stderr
    if way in ENCODINGS:
        assert "segment-hash" in bad.stdout
    refused = run(f"verify {tmp_path}/nothing", way, tmp_path)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)


@pytest.mark.parametrize("way", ["latin-1", "full", "closed", "no reader"])
def test_a_result_that_could_not_be_written(sample: Sample, tmp_path: Path, way: str) -> None:
    """Where the output is the result, a full disk or a closed stdout is an error; a reader that has enough is none."""
    reason = {"full": "No space left on device", "closed": "it is closed"}.get(way)
    sql = "SELECT chr(8594) || event_type AS a, repeat('x', 1000) FROM events"
    for kind in ("--csv", "--json", ""):
        ended = run(f'query "{sql}" {kind} --archive {sample.folder}', way, tmp_path)
        assert ended.returncode == (1 if reason else 0), (kind, ended.stderr)
        assert "Traceback" not in ended.stderr
        if way in ENCODINGS:
            assert "auth_attempt" in ended.stdout
        elif ended.returncode:
            unverified, line = ended.stderr.splitlines()
            assert unverified.startswith("unverified: no keys are at hand")
            assert line == f"custody: the output could not be written in full: {reason}"
    for command in (
        f"show archive.json --archive {sample.folder}",
        *("config", "config --json", "bucket s3://bucket --wanted"),
    ):
        assert run(command, way, tmp_path).returncode == (1 if reason else 0), command


WITH_JSON: dict[str, Mapping[str, int]] = {
    "verify": {"verify --workers 0": 0, "verify altered --workers 0": 13},
    "check-evidence": {"check-evidence proof --keys {keys}": 0, "check-evidence proof --keys file:others": 12},
    "check-events": {"check-events custody.toml": 1},
    "query": {"query 'FROM manifests'": 0},
    "keys list": {"keys list": 0},
    "config": {"config": 0},
    "status": {"status": 1},
    "checkpoint": {"checkpoint": 0},
    "init": {"init": 0},
    "keys rotate": {"keys rotate": 0},
}
"""For each command that can print JSON: arguments, and the exit code of each."""
ELSEWHERE = {
    "check": "flows.operate.check",
    "deploy": "flows.operate.deploy",
    "detect run": "flows.operate.detect",
    "detect rebuild": "flows.operate.detect",
    "detect lint": "flows.operate.rules",
    "detect backtest": "flows.operate.rules",
    "detect explain": "flows.operate.rules",
}
"""Commands whose module prints their JSON, by the same function."""
VERDICTS = {"verify", "check-evidence", "check-events", "copy", "witness", "audit"}
"""Commands whose exit code is a verdict. The others have failed if nobody got their output."""


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all commands of an app with their names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def test_each_command_that_prints_json_is_tested() -> None:
    """The next test leaves no command out, an operator's neither."""
    every = [*commands(get_command(main.app)), *commands(get_command(operating.app))]
    assert len(every) >= 25
    printing = {name: each for name, each in every if any("--json" in option.opts for option in each.params)}
    assert set(WITH_JSON) <= set(printing)
    # The others change something at each run. They print by the same function as three of these do.
    for name in set(printing) - set(WITH_JSON) - VERDICTS:
        source = inspect.getsource(inspect.unwrap(printing[name].callback))
        assert "print_json(" in source or name in ELSEWHERE, name


@pytest.mark.parametrize("command", WITH_JSON)
def test_lost_output_is_said(altered: Sample, sample: Sample, tmp_path: Path, command: str) -> None:
    """On a full disk stderr says so. There and on a closed pipe, an exit code is still the verdict's."""
    keys = f"file:{sample.keyring}"
    (tmp_path / "custody.toml").write_text(f'archive = "{sample.folder}"\nkeys = "{keys}"\n')
    new_keyring(tmp_path / "others", datetime.now(UTC))
    if command == "check-evidence":
        first = next(iter(sample.events))
        for line in ("checkpoint --write", f"evidence {sample.log} {first} -o proof --whole-batch"):
            made = run(f"{line} --archive altered", "", tmp_path)
            assert made.returncode == 0, made.stderr
    damaged = next((altered.folder / "events").rglob("*.gz"))
    damaged.unlink()
    damaged.write_bytes(b"altered")
    for line, code in WITH_JSON[command].items():
        arguments = f"{line.format(keys=keys)} --json"
        whole = run(arguments, "", tmp_path)
        assert (whole.returncode, "could not be written" in whole.stderr) == (code, False)
        assert json.loads(whole.stdout if command == "config" else whole.stdout.splitlines()[0])
        for how in ("full", "no reader"):
            with broken(how) as stdout:
                lost = run(arguments, "", tmp_path, stdout)
            assert lost.returncode == (1 if how == "full" and command not in VERDICTS else code), how
            said = [said for said in lost.stderr.splitlines() if "the output could not be written in full" in said]
            assert (len(said), "Traceback" in lost.stderr) == (how == "full", False), how


@contextlib.contextmanager
def broken(how: str) -> Iterator[int]:
    """Open a stdout on which nothing can be written: a full disk, or a pipe that nobody reads."""
    if how == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize("arguments", ["keys list", "keys list --json", "status", "status --json"])
def test_a_list_that_could_not_be_written(sample: Sample, tmp_path: Path, arguments: str) -> None:
    """A list is a result too: a full disk is an error, one line."""
    (tmp_path / "custody.toml").write_text(f'archive = "{sample.folder}"\nkeys = "file:{sample.keyring}"\n')
    # Without a broker, the status of an installation is a failure.
    assert run(arguments, "", tmp_path).returncode == (1 if "status" in arguments else 0)
    ended = run(arguments, "full", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "custody: the output could not be written in full: No space left on device"


def test_each_command_names_the_file_that_it_reads(sample: Sample, tmp_path: Path) -> None:
    """The line is on stderr, so that programs that read JSON from stdout are not disturbed, and people see it."""
    (tmp_path / "custody.toml").write_text(f'archive = "{sample.folder}"\nkeys = "file:{sample.keyring}"\n')
    for arguments in ("config", "config --json", "verify --workers 0 --json"):
        ended = run(arguments, "", tmp_path)
        assert (ended.returncode, f"read from {tmp_path}/custody.toml" in ended.stderr) == (0, True)
    for line in run("config --json", "", tmp_path).stdout, run("keys list --json", "", tmp_path).stdout.split("\n")[0]:
        json.loads(line)


def test_no_error_forges_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each problem of an error is one line. A newline that a server put into its text makes no other."""

    def fail(*_: object, **__: object) -> None:
        raise StoreError(f"S3 answers: {HOSTILE}\ncustody: 0 problems, all verified", "a second problem")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as caught:
        main.main(["verify"])
    assert caught.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("custody: S3 answers: \\x1b]0;title")
    assert second == "custody: a second problem"


def test_sql_that_is_no_text(sample: Sample, tmp_path: Path) -> None:
    """Bytes that the locale cannot decode are one line, and no traceback."""
    ended = run(f"query $'SELECT \\xff\\xe9' --archive {sample.folder}", "C", tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_csv_for_terminals_and_spreadsheets(sample: Sample, tmp_path: Path) -> None:
    """A terminal gets no control characters. With --spreadsheet no text is a formula; other CSV is exact."""
    sql = "SELECT chr(27) || ']0;x' || chr(7) AS a, '=1+1' AS \\\"@b\\\", -1 AS c, '-x' AS d"
    exact = run(f'query "{sql}" --csv --archive {sample.folder}', "", tmp_path)
    assert exact.stdout == "a,@b,c,d\n\x1b]0;x\x07,=1+1,-1,-x\n"
    safe = run(f'query "{sql}" --spreadsheet --archive {sample.folder}', "", tmp_path)
    assert safe.stdout == "a,'@b,c,d\n\x1b]0;x\x07,'=1+1,-1,'-x\n"
    ours, theirs = pty.openpty()
    line = f'{COMMAND} query "{sql}" --csv --archive {sample.folder}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, stdout=theirs, check=True, timeout=60)
    os.close(theirs)
    printed = os.read(ours, 4096).decode()
    os.close(ours)
    assert printed.replace("\r\n", "").isprintable()
    assert json.loads(f'"{printed.splitlines()[1].split(",")[0]}"') == "\x1b]0;x\x07"
