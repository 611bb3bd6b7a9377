"""The file beside the metrics that carries totals from run to run.

Rules:
- All of it can be lost. The totals of logs are read from the archive again; those of runs begin again at 0, which
  Prometheus takes for a restart.
- One process at a time changes it and writes the text file, under one lock. So no total is ever exported that is
  smaller than one before.
- It has names of logs, flows, steps, servers and types of errors, and numbers. Nothing in it is secret.
"""

import fcntl
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from custody.errors import CustodyError
from custody.format import limits
from custody.store.durable import replace_file
from custody.store.retries import Retries
from custody.tlog.head import KnownHead
from tasks.metrics.catalogue import BUCKETS
from tasks.metrics.run import Run

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0
"""How long a process waits for another one to write its metrics."""


class LogTotals(msgspec.Struct, forbid_unknown_fields=True):
    """What the first statements of a log account for.

    Attributes:
        size: slots of the log that were read.
        root: root of the tree over them, in hex; empty while more is to be read.
        events: events by type.
        raw: bytes of events as JSONL.
        gz: bytes of segments as stored.
        quarantined: records in quarantine.
        reasons: these records by kind of reason. A file of an older version lacks them: then the log is counted again.
        complete: whether all statements were read once. Until then nothing is exported.
    """

    size: int = 0
    root: str = ""
    events: dict[str, int] = {}
    raw: int = 0
    gz: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = {}
    complete: bool = False


class StepTotals(msgspec.Struct, forbid_unknown_fields=True):
    """Durations of a step: how many are in each bucket, and their sum."""

    flow: str
    step: str
    counts: list[int]
    sum: float = 0.0


class RetryTotals(msgspec.Struct, forbid_unknown_fields=True):
    """How many calls to a server were made again after a type of error."""

    backend: str
    error_type: str
    count: int = 0


class State(msgspec.Struct, forbid_unknown_fields=True):
    """All that is carried from run to run.

    Attributes:
        archive: the archive's id; empty as long as it is not known.
        since: when this state began, in seconds since 1970.
        logs: totals by log.
        steps: durations of steps.
        retries: calls that runs made again.
        last_success: when each flow last ended well, in seconds since 1970.
    """

    archive: str
    since: float
    logs: dict[str, LogTotals] = {}
    steps: list[StepTotals] = []
    retries: list[RetryTotals] = []
    last_success: dict[str, float] = {}

    def add_retries(self, counts: Retries) -> None:
        """Add calls that were made again."""
        for (backend, error_type), many in sorted(counts.items()):
            same = (each for each in self.retries if (each.backend, each.error_type) == (backend, error_type))
            totals = next(same, None)
            if totals is None:
                totals = RetryTotals(backend, error_type)
                self.retries.append(totals)
            totals.count += many

    def add(self, run: Run) -> None:
        """Add the steps and the success of a run."""
        for name, seconds in run.steps:
            step = next((step for step in self.steps if (step.flow, step.step) == (run.flow, name)), None)
            if step is None:
                step = StepTotals(run.flow, name, [0] * (len(BUCKETS) + 1))
                self.steps.append(step)
            step.counts[bisect_left(BUCKETS, seconds)] += 1
            step.sum += seconds
        if run.succeeded_at is not None:
            self.last_success[run.flow] = max(run.succeeded_at, self.last_success.get(run.flow, 0.0))


@contextmanager
def open_state(path: Path) -> Iterator[State]:
    """Yield the state under its lock, and write it back unless an error is raised.

    Args:
        path: its file. Folders are made.

    Raises:
        CustodyError: the file cannot be read or written, or another process has held the lock for `LOCK_SECONDS`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise not_written(path, error) from None
    try:
        _lock(descriptor, path, LOCK_SECONDS)
        state = _read(path)
        yield state
        try:
            replace_file(path, msgspec.json.encode(state))
        except OSError as error:
            raise not_written(path, error) from None
    finally:
        os.close(descriptor)


def counted_heads(path: Path) -> dict[str, KnownHead]:
    """Return the heads of the logs that were counted whole; none if the file cannot be used.

    A head counts if a trusted key signed its statement, and the next slot is empty. So who can change this file and the
    archive can make metrics show an older end.
    """
    try:
        logs = msgspec.json.decode(path.read_bytes(), type=State).logs
        roots = {
            log: (totals.size, bytes.fromhex(totals.root))
            for log, totals in logs.items()
            if totals.root and 0 < totals.size <= limits.INT_MAX
        }
    except (OSError, ValueError):
        return {}
    return {log: KnownHead(size, root, str(path)) for log, (size, root) in roots.items()}


def not_written(path: Path, error: OSError) -> CustodyError:
    """Return the error for a file that cannot be written: no number, and no name of a temporary file."""
    return CustodyError(f"{path} cannot be written: {error.strerror}")


def _lock(descriptor: int, path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise CustodyError(f"another process has held {path}.lock for {seconds:.0f} s") from None
            time.sleep(0.05)
        else:
            return


def _read(path: Path) -> State:
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
        if all(len(step.counts) == len(BUCKETS) + 1 for step in state.steps):
            return state
        problem = "it has other buckets"
    except FileNotFoundError:
        return State("", time.time())
    except OSError as error:
        raise CustodyError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        problem = str(error)
    logger.warning("%s is not used, and its totals are counted again: %s", path, problem)
    return State("", time.time())
