"""Runs tasks in parallel, on the task runner that a setting names."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from prefect import Task, flow
from prefect.futures import wait
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from custody.errors import ConfigurationError, counted
from tasks.settings import Settings
from tasks.spread import TaskRunner as Kind

R = TypeVar("R")
T = TypeVar("T")


class _Here(Generic[T]):
    """Values that stay in this process: pickled, it has none. A flow is sent along with each of its tasks."""

    def __init__(self, values: Sequence[T] = ()) -> None:
        self._values = values

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)

    def __reduce__(self) -> tuple[type["_Here[T]"], tuple[()]]:
        return type(self), ()


def run_parallel(task: Task[..., R], arguments: Sequence[tuple[Any, ...]], kind: Kind, workers: int) -> list[R]:
    """Run a task once for each tuple of arguments, in a flow of its own, and return the results in order.

    Raises:
        CustodyError: the task runner or its cluster cannot be used. Errors of the task are raised too.
    """
    runner, shares = task_runner(kind, workers), _Here(arguments)

    # It has no parameters, because Prefect stores those of flows.
    @flow(
        name=f"{task.name}-parallel",
        flow_run_name=f"{task.name}, {counted(len(arguments), 'share')} on {workers} {kind}",
        persist_result=False,
        retries=0,
        task_runner=runner,
    )
    def parallel() -> list[R]:
        futures = [task.submit(*each) for each in shares]
        wait(futures)
        return [future.result() for future in futures]

    if kind != "dask":
        return parallel()
    from flows.cluster import cluster_errors

    with cluster_errors():
        return parallel()


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
        return ProcessPoolTaskRunner(max_workers=workers)
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
