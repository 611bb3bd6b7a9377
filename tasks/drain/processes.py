"""Drains shares of the logs in processes of their own, beside this one.

Rules:
- A process gets its task through a connection, because settings may hold secrets: no argument and no new variable has
  them. Variables of this process are given to it.
- What it logs comes back through the connection, and is logged here: each line is in this run's log, in its format.
- It ends with this process: the connection's end is a request to stop, as SIGTERM is. A stop of this one is passed on,
  also while others are being started.
- If this process cannot take what another gives back, whatever the error is, it closes the connection: the other one
  stops, and neither waits for the other.
- A process that goes on for long after the run's time, if the run has one, is stopped. One that does not end then is
  killed: it holds nobody up for ever. Nobody but its reader waits for it to take its task.
- A process that dies loses nothing, and its logs are failed results: the next run continues from the archive's heads.
- What cannot be started stays with this process.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Self

from custody.errors import CustodyError, legible
from custody.store import retries
from custody.store.retries import Retries
from tasks.drain.context import Context
from tasks.drain.log_run import LogResult, LogRun, TopicPartition
from tasks.drain.signals import GRACE_SECONDS, stop_requested
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult

_LOOK_SECONDS = 0.1
_OVERTIME_SECONDS = 120.0
"""How long after its time a process may still start, finish its open segments and index, before it is stopped."""
_ENDING_SECONDS = GRACE_SECONDS + 5.0
"""How long it may take to end after a stop, before it is killed: it ends itself after `GRACE_SECONDS`."""
_NEXT = "What it archived stays, and the next run continues from there"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """What a process is to do.

    Attributes:
        settings: the settings.
        partitions: the partitions of its share.
        once: as in `drain_logs`.
        seconds: as in `drain_logs`.
        processes: how many share the run's logs, and its memory.
        level: the lowest level of the lines that it gives back.
    """

    settings: Settings
    partitions: Sequence[TopicPartition]
    once: bool
    seconds: float | None
    processes: int
    level: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a process did.

    Attributes:
        drained: one result a log.
        indexed: one result a log, if it indexed.
        repeated: calls that it made again.
        problem: why no log was drained, or None.
    """

    drained: "Sequence[LogResult]" = ()
    indexed: "Sequence[IndexResult]" = ()
    repeated: Retries | None = None
    problem: str | None = None


def task_for(context: Context, share: Sequence[LogRun], *, once: bool, deadline: float, index: bool) -> Task:
    """Return the task of a process.

    Args:
        context: the run's.
        share: the logs of its share.
        once: as in `drain_logs`.
        deadline: when the run ends, by the monotonic clock.
        index: whether the process indexes what it archives.
    """
    settings = context.settings
    if not index:
        settings = settings.model_copy(update={"search": settings.search.model_copy(update={"url": None})})
    return Task(
        settings,
        [run.topic_partition for run in share],
        once,
        None if deadline == float("inf") else max(0.0, deadline - time.monotonic()),
        context.processes,
        min(logging.getLogger(name).getEffectiveLevel() for name in ("custody", "tasks")),
    )


class Processes:
    """The processes of one run."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []
        self._over = threading.Event()
        # In this run's context: what a flow logs goes to its page.
        watch = copy_context().run
        self._watch = threading.Thread(target=watch, args=(self._stop_with_run,), name="stop", daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        # After `collect` all have ended. Without it the run has failed, and they stop.
        self._over.set()
        self._watch.join()
        for process in self._processes:
            process.stop()
        for process in self._processes:
            process.close()

    def start(self, task: Task, runs: Sequence[LogRun]) -> bool:
        """Start a process, and return whether that was possible. Once the run must stop, none is started.

        Args:
            task: what it does.
            runs: the logs of its share, as this process opened them.
        """
        if stop_requested.is_set():
            return False
        try:
            process = _Process(task, runs)
        except OSError as error:
            logger.warning("no process can be started for %d logs, so this one drains them: %s", len(runs), error)
            return False
        self._processes.append(process)
        return True

    def collect(self) -> "tuple[list[LogResult], list[IndexResult]]":
        """Wait until all have ended, and return what they did. Logs of a process that died are failed results."""
        drained: list[LogResult] = []
        indexed: list[IndexResult] = []
        for process in self._processes:
            outcome = process.wait()
            drained += process.results()
            indexed += outcome.indexed
            if outcome.repeated:
                retries.add(outcome.repeated)
        return drained, indexed

    def _stop_with_run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            # Not only once: another process may be being started.
            for process in list(self._processes):
                if stop_requested.is_set():
                    process.stop()
                else:
                    process.stop_if_late()


class _Process:
    """A process that drains a share."""

    def __init__(self, task: Task, runs: Sequence[LogRun]) -> None:
        self._runs = runs
        self._connection, theirs = Pipe()
        with theirs:
            # In a session of its own: Ctrl-C comes to this process alone, which passes it on. -P: no module comes from
            # the current folder.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.drain.share", str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._latest = float("inf") if task.seconds is None else time.monotonic() + task.seconds + _OVERTIME_SECONDS
        self._outcome: Outcome | None = None
        self._problem: str | None = None
        self._stopped: float | None = None
        self._has_task = False
        self._killed = False
        self._closing = threading.Lock()
        # In this run's context: what a flow logs goes to its page.
        self._reader = threading.Thread(target=copy_context().run, args=(self._talk, task), name="share", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Ask it to finish its open segments and end."""
        with self._closing, suppress(OSError):
            if self._stopped is None:
                self._stopped = time.monotonic()
                # Until then the task is being sent: the reader passes this on behind it.
                if self._has_task:
                    self._connection.send(None)

    def stop_if_late(self) -> None:
        """Stop it if it goes on for long after the run's time."""
        if self._stopped is None and time.monotonic() >= self._latest:
            self.stop()
            logger.warning("a process for %d logs goes on long after the run's time: it is stopped", len(self._runs))

    def wait(self) -> Outcome:
        """Wait until it has ended, and return what it did."""
        self.close()
        return self._outcome or Outcome(problem=self._problem or _how_it_ended(self._process.wait()))

    def close(self) -> None:
        """Wait until it has ended, and kill it if it does not end after a stop. After that, nobody waits again."""
        while self._reader.is_alive() and not self._killed:
            self._reader.join(_LOOK_SECONDS)
            if self._stopped is not None and time.monotonic() >= self._stopped + _ENDING_SECONDS:
                self._kill()

    def _kill(self) -> None:
        """End it where it stands. What it archived stays."""
        self._problem = f"the process that drained it did not end after a stop, and was killed. {_NEXT}"
        self._killed = True
        self._process.kill()
        # The connection ends with it. A line that cannot be logged is not waited for.
        self._reader.join(_ENDING_SECONDS)

    def results(self) -> list[LogResult]:
        """Return one result for each log of its share."""
        outcome = self.wait()
        results = {result.log: result for result in outcome.drained}
        for run in self._runs:
            name = run.result.log
            if name in results:
                # A log that is new was begun here.
                results[name].statements += run.result.statements
                continue
            run.result.stop(CustodyError(f"{name}: {outcome.problem}"))
            results[name] = run.result
        return list(results.values())

    def _talk(self, task: Task) -> None:
        """Give it its task, and take what it gives back until it ends."""
        try:
            self._give(task)
            while (given := self._receive()) is not None:
                if isinstance(given, Outcome):
                    self._outcome = given
                elif (origin := logging.getLogger(given.name)).isEnabledFor(given.levelno):
                    origin.handle(given)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other process must not wait for this one
            why = legible(f"{type(error).__name__}: {error}")
            self._problem = f"what its process gave back could not be taken: {why}. {_NEXT}"
        finally:
            # Where nobody reads, it would wait for ever to send. Nobody may send meanwhile: the number is used anew.
            with self._closing:
                self._connection.close()
            self._process.wait()

    def _give(self, task: Task) -> None:
        """Send its task, and the stop that came meanwhile. A process that is gone takes none."""
        with suppress(OSError):
            self._connection.send(task)
            with self._closing:
                self._has_task = True
                if self._stopped is not None:
                    self._connection.send(None)

    def _receive(self) -> Outcome | logging.LogRecord | None:
        """Return what comes next; None once the connection has ended."""
        try:
            given: Outcome | logging.LogRecord = self._connection.recv()
        except (EOFError, OSError):
            return None
        return given


def _how_it_ended(code: int) -> str:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return (
        f"the process that drained it ended {how}. {_NEXT}. If it happens again, look at this machine's memory, or set"
        " drain.workers to 1"
    )
