"""Drains, and indexes beside it where the settings name an Elasticsearch: its client, slow to load, is loaded then."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.drain.log_run import LogResult, TopicPartition
from tasks.drain.run import drain_logs
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult


def drain_and_index(
    settings: Settings,
    places: Sequence[TopicPartition] | None = None,
    *,
    once: bool = False,
    seconds: float | None = None,
) -> "tuple[list[LogResult], list[IndexResult]]":
    """Drain partitions, and index what is archived of them at once.

    Args:
        settings: the settings.
        places: the partitions; all that the settings name if None.
        once: as in `drain_logs`.
        seconds: as in `drain_logs`.

    Raises:
        CustodyError: what `drain_logs` raises. Elasticsearch fails no drain: its problems stand in the results.
    """
    if settings.search.url is None:
        return drain_logs(settings, places, once=once, seconds=seconds), []
    from tasks.search.index import Follower

    follower = Follower(settings, places)
    try:
        drained = drain_logs(settings, places, once=once, seconds=seconds, sealed=follower.sealed)
    finally:
        indexed = follower.end()
    return drained, indexed
