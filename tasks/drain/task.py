"""The drain as a Prefect task. It has no retries: the next run starts at the archive's head anyway.

Rules for all `task.py`, the only modules of `tasks` that import Prefect:

- A task is coarse, because Prefect needs about 50 ms for each: a share of the logs, never a segment or an event.
- Nothing is cached or persisted: these tasks have side effects, and their results are used only in the same run.
- A task reads the settings itself. They contain secrets, and Prefect stores or sends a task's parameters.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.drain.log_run import LogResult, TopicPartition
from tasks.drain.run import drain_and_index
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult


@task(name="drain-share", cache_policy=NO_CACHE, persist_result=False, retries=0)
def drain_share(
    partitions: Sequence[TopicPartition], once: bool, seconds: float | None
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain and index a share of the logs."""
    return drain_and_index(Settings(), partitions, once=once, seconds=seconds)
