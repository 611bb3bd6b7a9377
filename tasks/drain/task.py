"""The drain as a Prefect task. It has no retries: a run works from the archive's head, and so does the next one.

Rules for all `task.py`, the only modules of `tasks` that import Prefect:

- A task is coarse, since Prefect takes some 50 ms for each: a share of the logs, never a segment or an event.
- Nothing is cached or kept: these tasks have side effects, and what they return stays in the run.
- A task reads the settings where it runs. They hold secrets, and Prefect keeps or sends what a task is given.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.drain.follow import drain_and_index
from tasks.drain.log_run import LogResult, TopicPartition
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult


@task(name="drain-share", cache_policy=NO_CACHE, persist_result=False, retries=0)
def drain_share(
    places: Sequence[TopicPartition], once: bool, seconds: float | None
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain and index some of the logs."""
    return drain_and_index(Settings(), places, once=once, seconds=seconds)
