"""Makes the task runner that a setting names."""

import importlib
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from custody.errors import ConfigurationError
from tasks.settings import TaskRunner as Kind


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
