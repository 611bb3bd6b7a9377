"""Runs tasks in parallel, on the task runner that a setting names."""

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

from prefect import Task, flow
from prefect.futures import wait
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from custody.errors import ConfigurationError, counted
from tasks.settings import TaskRunner as Kind

R = TypeVar("R")


def run_parallel(task: Task[..., R], arguments: Sequence[tuple[Any, ...]], kind: Kind, workers: int) -> list[R]:
    """Run a task once for each tuple of arguments, in a flow of its own, and return the results in order."""

    # It has no parameters, because Prefect stores those of flows.
    @flow(
        name=f"{task.name}-parallel",
        flow_run_name=f"{task.name}, {counted(len(arguments), 'share')} on {workers} {kind}",
        persist_result=False,
        retries=0,
        task_runner=task_runner(kind, workers),
    )
    def parallel() -> list[R]:
        futures = [task.submit(*each) for each in arguments]
        wait(futures)
        return [future.result() for future in futures]

    return parallel()


def task_runner(kind: Kind, workers: int) -> TaskRunner[Any]:
    """Return a task runner.

    Args:
        kind: threads, processes, or a cluster of Dask or Ray.
        workers: tasks at the same time, for threads and processes.

    Raises:
        ConfigurationError: it needs a package that is not installed.
    """
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if kind == "processes":
        return ProcessPoolTaskRunner(max_workers=workers)
    module, name = {"dask": ("prefect_dask", "DaskTaskRunner"), "ray": ("prefect_ray", "RayTaskRunner")}[kind]
    try:
        runner: TaskRunner[Any] = getattr(importlib.import_module(module), name)()
    except ImportError:
        raise ConfigurationError(
            f"the task runner {kind!r} needs the package prefect-{kind}: install it, or set 'threads'"
        ) from None
    return runner
