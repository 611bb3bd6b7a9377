"""A drain in a process of its own, of which each call to the outside is numbered, and one may be the last or fail.

The product knows nothing of this: calls are wrapped here, in the child. `Plan.at` counts them from 0.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from custody.errors import CustodyError
from custody.store import durable, folder, s3
from tasks.drain import appends, loop, resume
from tasks.drain.kafka import Broker, Feed
from tasks.drain.run import drain_logs
from tasks.settings import Settings

STORE_CALLS = ("create", "read", "exists", "list", "level")
FILE_STEPS = ("mkdir", "open", "write", "fsync", "link", "unlink")
KAFKA_CALLS = ("cluster", "topics", "topic_id", "all_bounds", "bounds", "remembered", "commit")


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens at which call.

    Attributes:
        at: the number of the call.
        what: the process is killed with -9 before or after it, or it fails.
        errno: the error that it fails with.
        steps: count and break only the steps of the file store, and not the calls that they are part of.
    """

    at: int = -1
    what: Literal["nothing", "kill-before", "kill-after", "fail"] = "nothing"
    errno: int = 0
    steps: bool = False


def finish(process: Any, report: Path, seconds: float, what: str) -> tuple[int | None, dict[str, Any]]:
    """Wait for a child process; return its exit code, and its report if it lived to write one."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{what} did not end within {seconds} s")
    code = process.exitcode
    process.close()
    return code, json.loads(report.read_text()) if report.exists() else {}


class _Breaker:
    """Counts calls and carries the plan out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names: list[str] = []
        self._lock = threading.Lock()

    def wrap(self, owner: Any, name: str, label: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            return self.run(label, lambda: inner(*arguments, **named))

        setattr(owner, name, call)

    def run(self, label: str, call: Callable[[], Any]) -> Any:
        with self._lock:
            here = len(self.names) == self.plan.at
            self.names.append(label)
        if here and self.plan.what == "kill-before":
            os.kill(os.getpid(), signal.SIGKILL)
        if here and self.plan.what == "fail":
            raise OSError(self.plan.errno, os.strerror(self.plan.errno))
        result = call()
        if here and self.plan.what == "kill-after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class _Os:
    """The module `os` as the store sees it, with some of its functions counted."""

    def __init__(self, breaker: _Breaker) -> None:
        self._breaker = breaker

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in FILE_STEPS:
            return real
        return lambda *arguments, **named: self._breaker.run(f"os.{name}", lambda: real(*arguments, **named))


def _break_calls(breaker: _Breaker) -> None:
    for module in (folder, durable):
        setattr(module, "os", _Os(breaker))  # noqa: B010 - a module of which the type checker knows that it is none
    if breaker.plan.steps:
        return
    for kind in (folder.FolderStore, s3.S3Store):
        for name in STORE_CALLS:
            breaker.wrap(kind, name, f"store.{name}")
    breaker.wrap(s3.S3Versions, "has_history", "store.has_history")
    for name in KAFKA_CALLS:
        breaker.wrap(Broker, name, f"kafka.{name}")
    read = Feed.read

    def counted(self: Feed, records: int, seconds: float) -> Any:
        messages = read(self, records, seconds)
        # Reads that bring nothing are as many as the clock makes them, and change nothing.
        return breaker.run("kafka.read", lambda: messages) if messages else messages

    setattr(Feed, "read", counted)  # noqa: B010 - the type checker knows that a method is not to be assigned


def run(environment: Mapping[str, str], plan: Plan, report: Path) -> None:
    """Drain until caught up, and leave the calls and the results in a file.

    Args:
        environment: the settings, as variables.
        plan: what happens on the way.
        report: JSON with `calls`, `results` and `error`; not there if the process was killed.
    """
    os.environ.update(environment)
    # One log after the other, so that the same number is the same call in every run.
    resume.OPENERS = appends.UPLOADERS = 1
    # Few records a read, so that a run cuts several segments.
    loop.READ_RECORDS = 8
    breaker = _Breaker(plan)
    if plan.at >= 0 or plan.what == "nothing":
        _break_calls(breaker)
    found: dict[str, Any] = {"results": [], "error": None}
    try:
        found["results"] = [asdict(result) for result in drain_logs(Settings(), once=True)]
    except CustodyError as error:
        # No log could be opened at all: said as one of ours, as the command line says it.
        found["error"] = str(error)
    report.write_text(json.dumps({"calls": breaker.names, **found}))


def run_freely(environment: Mapping[str, str], report: Path) -> None:
    """Drain until caught up as an operator would, nothing wrapped, and leave the results in a file."""
    os.environ.update(environment)
    results = drain_logs(Settings(), once=True)
    report.write_text(json.dumps({"results": [asdict(result) for result in results]}))
