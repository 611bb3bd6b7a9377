"""Daemon threads for the calls of a sink that wait for a server, so that the writer's thread never does.

A thread cannot be started while the interpreter ends. Then a job is done on the thread that starts it.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from custody.emit.quiet import THREAD, QuietLog, ends_here

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Done(Generic[Job, Result]):
    """A job, and its result; None if it raised what it should not have raised."""

    job: Job
    result: Result | None


class Background(Generic[Job, Result]):
    """Does jobs on threads. One thread starts jobs and receives what is done."""

    def __init__(self, do: Callable[[Job], Result], threads: int, quiet: QuietLog) -> None:
        """Start the threads, if the interpreter still lets it.

        Args:
            do: does a job. Several threads call it at once, if there are several.
            threads: how many jobs are done at the same time.
            quiet: for what `do` should not have raised.
        """
        self._do, self._quiet = do, quiet
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done[Job, Result]] = queue.SimpleQueue()
        self._under_way: dict[int, Job] = {}
        self._threads = 0
        self._limit = threads
        try:
            for _ in range(threads):
                threading.Thread(target=self._run, name=f"{THREAD}-call", daemon=True).start()
                self._threads += 1
        except RuntimeError:
            # Raised while the interpreter ends.
            pass

    @property
    def under_way(self) -> list[Job]:
        """Jobs that were started, and not received."""
        return list(self._under_way.values())

    @property
    def is_free(self) -> bool:
        """Whether a thread is free for another job."""
        return len(self._under_way) < self._limit

    def start(self, job: Job) -> None:
        """Begin a job."""
        self._under_way[id(job)] = job
        if self._threads:
            self._jobs.put(job)
        else:
            self._done.put(self._carry_out(job))

    def receive(self, seconds: float) -> Done[Job, Result] | None:
        """Return the next job that is done, None if none is within this time."""
        try:
            done = self._done.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        del self._under_way[id(done.job)]
        return done

    def close(self) -> None:
        """End the threads after the jobs that they have begun."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._done.put(self._carry_out(job))

    def _carry_out(self, job: Job) -> Done[Job, Result]:
        try:
            return Done(job, self._do(job))
        except BaseException as error:
            # The thread must go on, whatever a client library raises.
            if not ends_here(error):
                raise
            # Its text may have a credential, or values of events.
            self._quiet.warn("call", f"sending audit events raised {type(error).__name__}; they are sent again")
            return Done(job, None)
