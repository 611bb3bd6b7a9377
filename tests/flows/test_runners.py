"""Runs in shares: one that is stopped ends with its processes, and a share that fails hides no other's result.

Longer than 5 seconds, because processes start, and each imports Prefect.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import task
from prefect.settings import PREFECT_API_URL

from custody.errors import CustodyError, ObjectMissing
from flows.backfill import backfill
from flows.runners import run_parallel
from tasks.drain.signals import GRACE_SECONDS
from tests.helpers.backfill import DAY, NIGHT, hourly, lines_in
from tests.helpers.environment import use_archive
from tests.helpers.sample import Growing

ROOT = Path(__file__).resolve().parents[2]
ENDING_SECONDS = GRACE_SECONDS + 10
"""What a run may take to end after a signal, on a slow machine."""

# A file, because processes of a pool read it too.
WAITING = """
import sys, time
from pathlib import Path
from prefect import flow, task
from flows.runners import run_parallel

@task
def wait(mark):
    Path(mark).touch()
    time.sleep(120)

@flow
def run():
    run_parallel(wait, [("share-1",), ("share-2",)], sys.argv[1], 2)

if __name__ == "__main__":
    run()
"""
COPYING = """
import sys, time
from datetime import datetime, timedelta, UTC
import tasks.backfill.copy as module
from flows.backfill import backfill

choose = module.choose

def slowly(*arguments):
    time.sleep(3)
    return choose(*arguments)

module.choose = slowly

if __name__ == "__main__":
    begin = datetime(2026, 2, 28, tzinfo=UTC)
    backfill(begin, begin + timedelta(days=9), target="folder", folder="out")
"""


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    """An archive of 20 statements, that the settings name."""
    growing = Growing(tmp_path / "written")
    growing.append(20, hourly)
    use_archive(monkeypatch, growing.folder, growing.keyring)
    monkeypatch.setenv("CUSTODY_BACKFILL__WORKERS", "2")
    monkeypatch.chdir(tmp_path)
    return growing


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the current folder. It and all that it started are ended."""
    Path("program.py").write_text(program)
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py", *arguments]
    with (
        Path("log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as child,
    ):
        try:
            yield child
        finally:
            # Nothing is left if all is well.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def until(there: Any, seconds: float = 90) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.1)


@pytest.mark.usefixtures("prefect_server", "grown")
@pytest.mark.parametrize(
    ("runner", "kind"), [("threads", signal.SIGTERM), ("processes", signal.SIGTERM), ("processes", signal.SIGKILL)]
)
def test_a_run_ends_with_its_processes(runner: str, kind: signal.Signals) -> None:
    """A signal ends a run and all its processes within seconds, even if its shares look at no stop."""
    with running(WAITING, runner) as child:
        until(lambda: Path("share-1").exists() and Path("share-2").exists())
        started = psutil.Process(child.pid).children(recursive=True)
        assert (runner == "threads") == (started == [])
        child.send_signal(kind)
        assert child.wait(ENDING_SECONDS) in {-kind, 128 + kind}, Path("log").read_text()
        _, alive = psutil.wait_procs(started, timeout=ENDING_SECONDS)
        assert not alive


@pytest.mark.usefixtures("prefect_server", "grown")
@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
def test_a_backfill_that_is_stopped(runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends a backfill in shares within seconds. What was copied stays, and the next run goes on from there."""
    monkeypatch.setenv("CUSTODY_BACKFILL__TASK_RUNNER", runner)
    out = tmp_path / "out"

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl.gz")}

    with running(COPYING) as child:
        until(lambda: len(files()) >= 2)
        started = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(signal.SIGTERM)
        ended_by = {-signal.SIGTERM, 128 + signal.SIGTERM}
        assert child.wait(ENDING_SECONDS) in ended_by, Path("log").read_text()
        _, alive = psutil.wait_procs(started, timeout=ENDING_SECONDS)
        assert not alive
    before = files()
    assert 2 <= len(before) < 20
    monkeypatch.setenv("CUSTODY_BACKFILL__TASK_RUNNER", "threads")
    parameters: Any = {"since": DAY - NIGHT, "until": DAY + timedelta(days=8), "target": "folder", "folder": str(out)}
    ended = backfill(**parameters, return_state=True)
    assert ended.is_completed(), ended.message
    assert before.items() <= files().items()
    assert lines_in(out) == [hourly(offset) for offset in range(100)]


@task
def told(text: str) -> str:
    """Return a text, or fail."""
    if text == "gone":
        raise ObjectMissing("the object is gone")
    if text == "nested":
        raise RecursionError("nested\ntoo deep")
    return text


@pytest.mark.usefixtures("prefect_server")
def test_a_share_that_fails_hides_no_result(caplog: pytest.LogCaptureFixture) -> None:
    """The results of the other shares come back, with the error in one line; and each error, if all fail.

    The log has the traceback of an error that nobody foresaw.
    """
    first, gone, second, nested = run_parallel(told, [("first",), ("gone",), ("second",), ("nested",)], "threads", 2)
    assert (first, second) == ("first", "second")
    assert isinstance(gone, ObjectMissing)
    assert isinstance(nested, CustodyError)
    assert str(nested) == "RecursionError: nested too deep"
    unforeseen = [record for record in caplog.records if record.getMessage() == "a share failed"]
    assert [record.exc_info and record.exc_info[0] for record in unforeseen] == [RecursionError]
    gone, nested = run_parallel(told, [("gone",), ("nested",)], "threads", 2)
    assert (type(gone), type(nested)) == (ObjectMissing, CustodyError)


@pytest.mark.usefixtures("prefect_server")
def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """A share whose process is killed fails in one line, and leaves the results that came before."""

    # Not of this module, which processes cannot import by its name.
    @task
    def ending(other: Path, name: str) -> str:
        if name == "killed":
            while not other.exists():
                time.sleep(0.1)
            # Its result is taken meanwhile.
            time.sleep(4)
            os.kill(os.getpid(), signal.SIGKILL)
        other.touch()
        return name

    done, killed = run_parallel(ending, [(tmp_path / "done", "done"), (tmp_path / "done", "killed")], "processes", 2)
    assert done == "done"
    assert "a process that ran a share of the work was killed" in str(killed)
