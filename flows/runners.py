"""Runs tasks in parallel, on the task runner that a setting names.

Rules:
- A share that fails ends no other, and hides no other's result.
- SIGTERM ends a run within `GRACE_SECONDS`. A share that looks at `stop_requested` has half of that to end by itself;
  another one ends with its process. Only workers of a Dask cluster do their shares to the end.
- Processes that a run started end with it, whatever ended the run.
"""

import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from prefect import Task, flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from custody.errors import ConfigurationError, CustodyError, counted, legible
from tasks.drain.signals import GRACE_SECONDS, stop_on_signals, stop_requested
from tasks.settings import Settings
from tasks.spread import TaskRunner as Kind

R = TypeVar("R")
T = TypeVar("T")


class _Here(list[T]):
    """Values that stay in this process: pickled, it has none. A flow is sent along with each of its tasks."""

    def __reduce__(self) -> tuple[type["_Here[T]"], tuple[()]]:
        return type(self), ()


class _Processes(ProcessPoolTaskRunner):
    """Prefect's runner of processes, which end with the run. Prefect would wait until they have done all."""

    def __enter__(self) -> Self:
        # Only now: a flow is sent with its runner, and this pipe is of this run alone. If the run is killed, the system
        # closes it.
        watched, self._run = Pipe(duplex=False)
        self._initializer, self._initargs = _end_with, (watched,)
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if kind is not None:
            self._run.close()
        super().__exit__(kind, *more)
        self._run.close()


def _end_with(run: Connection) -> None:
    """Watch a run in a process that it started. Once the run has ended, stop the share, and then end the process."""

    def watch() -> None:
        with suppress(EOFError, OSError):
            run.recv()
        stop_requested.set()
        # The run's process waits for this one, and has time left to say how it ended.
        time.sleep(GRACE_SECONDS / 2)
        os._exit(1)

    threading.Thread(target=watch, name="end", daemon=True).start()


def run_parallel(
    task: Task[..., R], arguments: Sequence[tuple[Any, ...]], kind: Kind, workers: int
) -> list[R | CustodyError]:
    """Run a task once for each tuple of arguments, in a flow of its own.

    Returns:
        The results, in order. Where a share failed, its error.

    Raises:
        CustodyError: the task runner or its cluster cannot be used.
    """
    runner, shares, taken = task_runner(kind, workers), _Here(arguments), _Here[R | CustodyError]()
    unusable = _Here[CustodyError]()
    errors: Callable[[], AbstractContextManager[None]] = nullcontext
    if kind == "dask":
        from flows.cluster import cluster_errors

        errors = cluster_errors

    # It has no parameters, because Prefect stores those of flows.
    @flow(
        name=f"{task.name}-parallel",
        flow_run_name=f"{task.name}, {counted(len(arguments), 'share')} on {workers} {kind}",
        persist_result=False,
        retries=0,
        task_runner=runner,
    )
    def parallel() -> State[Any]:
        try:
            futures = [task.submit(*each) for each in shares]
            for future in futures:
                ended = _take(future, errors)
                taken.append(ended)
        except CustodyError as error:
            # The cluster cannot be opened.
            unusable.append(error)
            return Failed(message=str(error))
        failed = [each for each in taken if isinstance(each, CustodyError)]
        return Failed(message=f"{counted(len(failed), 'share')} failed") if failed else Completed()

    with stop_on_signals(grace=GRACE_SECONDS):
        state: State[Any] = parallel(return_state=True)
    if unusable:
        raise unusable[0]
    if len(taken) < len(shares):
        # An error that nobody foresaw.
        state.result()
    return taken


def _take(future: PrefectFuture[T], errors: Callable[[], AbstractContextManager[None]]) -> T | CustodyError:
    """Wait for a share, and return its result, or the error that ended it."""
    try:
        with errors():
            return future.result()
    except CustodyError as error:
        return error
    except BrokenProcessPool:
        return CustodyError(
            "a process that ran a share of the work was killed: look at this machine's memory. Nothing is lost: the"
            " next run continues"
        )
    except Exception as error:  # noqa: BLE001 - the results of the other shares are wanted, whatever the error is
        # Of a task that may be tried again, Prefect logs no traceback.
        get_run_logger().exception("a share failed")
        return CustodyError(legible(f"{type(error).__name__}: {error}"))


def task_runner(kind: Kind, workers: int) -> TaskRunner[Any]:
    """Return a task runner.

    Args:
        kind: threads, processes, dask, or the class of another one.
        workers: tasks at the same time. Another class is given nothing.

    Raises:
        ConfigurationError: it needs a package that is not installed, or the cluster cannot be used.
    """
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if kind == "processes":
        return _Processes(max_workers=workers)
    if kind == "dask":
        try:
            from flows.cluster import cluster_runner
        except ImportError:
            raise ConfigurationError(
                "the task runner 'dask' needs the package prefect-dask: install the extra custody-archive[dask], or set"
                " 'threads' or 'processes'"
            ) from None
        return cluster_runner(Settings().dask, workers)
    module, _, name = kind.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"the task runner {kind!r} cannot be imported: {error}") from None
    if not isinstance(made, TaskRunner):
        raise ConfigurationError(f"{kind!r} is not a task runner of Prefect's")
    runner: TaskRunner[Any] = made
    return runner
