"""Drains, and indexes at the same time if the settings name an Elasticsearch. Only then is its slow client imported."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.drain.log_run import LogResult, TopicPartition
from tasks.drain.run import drain_logs
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult


def drain_and_index(
    settings: Settings,
    partitions: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain partitions, and index their new events at the same time.

    Args:
        settings: the settings.
        partitions: the partitions; all that the settings name if None.
        once: as in `drain_logs`.
        seconds: as in `drain_logs`.

    Raises:
        CustodyError: as `drain_logs`. Problems with Elasticsearch do not fail a drain; they are in the results.
    """
    if settings.search.url is None:
        return drain_logs(settings, partitions, once=once, seconds=seconds), []
    from tasks.search.index import Follower

    follower = Follower(settings, partitions)
    try:
        drained = drain_logs(settings, partitions, once=once, seconds=seconds, sealed=follower.sealed)
    finally:
        indexed = follower.end()
    return drained, indexed
