"""Indexing as Prefect tasks. None is retried: the next run continues from the cursors."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.search.index import IndexResult, index_logs, logs_to_index
from tasks.settings import Settings


@task(name="find-logs", cache_policy=NO_CACHE, persist_result=False, retries=0)
def find_logs(wanted: Sequence[str]) -> list[str]:
    """Find the logs to index."""
    return logs_to_index(Settings(), wanted)


@task(name="index-share", cache_policy=NO_CACHE, persist_result=False, retries=0)
def index_share(logs: Sequence[str]) -> list[IndexResult]:
    """Index a share of the logs up to their heads."""
    return index_logs(Settings(), logs)
