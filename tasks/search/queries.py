"""Queries that list, count and delete the documents of logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from elasticsearch import NotFoundError

from custody.errors import SearchError
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search.client import Search
from tasks.search.documents import OFFSET, PARTITION, TOPIC

_DELETED = 200
_PAGE = 1000
_LOGS = 10_000


class TooManyLogs(SearchError):
    """Documents of an index claim more logs than can be listed."""


@dataclass(frozen=True, slots=True)
class LogDocuments:
    """The documents of one log in an index: how many, and their first and last offset."""

    name: str
    partition: int
    first: int
    last: int
    count: int


def logs_in(search: Search, index: str) -> tuple[int, list[LogDocuments]]:
    """Return how many documents of an index do not say where in the archive they are, and the others by log.

    Raises:
        TooManyLogs: there are documents of more logs than can be listed.
        SearchError: not all documents can be searched.
        ApiError, TransportError: the client's own; see `errors`.
    """
    search.refresh(index)
    sources = [{"topic": {"terms": {"field": TOPIC}}}, {"partition": {"terms": {"field": PARTITION}}}]
    # Count documents, not values: a document that claims two offsets, or two logs, counts once.
    placed = {"bool": {"filter": [{"exists": {"field": name}} for name in (TOPIC, PARTITION, OFFSET)]}}
    spans = {"first": {"min": {"field": OFFSET}}, "last": {"max": {"field": OFFSET}}}
    logs = {"composite": {"size": _LOGS, "sources": sources}, "aggs": spans}
    # One search for all numbers, because documents may be added meanwhile.
    aggs = {"placed": {"filter": placed, "aggs": {"logs": logs}}}
    answer = search.find(index=index, size=0, track_total_hits=True, aggs=aggs)
    within = answer["aggregations"]["placed"]
    if sum(bucket["doc_count"] for bucket in within["logs"]["buckets"]) < within["doc_count"] and (
        len(within["logs"]["buckets"]) >= _LOGS
    ):
        raise TooManyLogs(f"documents of {index} claim to be of more than {_LOGS:,} logs: find out who wrote them")
    by_log = [
        LogDocuments(
            str(bucket["key"]["topic"]),
            int(bucket["key"]["partition"]),
            int(bucket["first"]["value"]),
            int(bucket["last"]["value"]),
            int(bucket["doc_count"]),
        )
        for bucket in within["logs"]["buckets"]
    ]
    return answer["hits"]["total"]["value"] - within["doc_count"], by_log


def refused_logs(search: Search) -> dict[str, int]:
    """Return the lowest offset of a rejected event for each log that has one, by the log's name.

    Raises:
        SearchError: some shards do not answer.
        ApiError, TransportError: the client's own; see `errors`.
    """
    search.refresh(search.rejected)
    logs = {"terms": {"field": "log", "size": _LOGS}, "aggs": {"first": {"min": {"field": "offset"}}}}
    answer = search.find(index=search.rejected, size=0, query={"exists": {"field": "offset"}}, aggs={"logs": logs})
    buckets = answer["aggregations"]["logs"]["buckets"]
    return {str(bucket["key"]): int(bucket["first"]["value"]) for bucket in buckets}


def count_documents(search: Search, index: str, query: Mapping[str, Any]) -> int:
    """Return how many documents of an index a query finds.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses.
    """
    with search.errors(f"a count of {index}"):
        answer = search.find(index=index, size=0, track_total_hits=True, query=query)
        return int(answer["hits"]["total"]["value"])


def delete_documents(search: Search, index: str, query: Mapping[str, Any]) -> None:
    """Delete the documents of an index that a query finds.

    Raises:
        SearchError: Elasticsearch does not answer, or does not delete them.
    """
    # By id: delete-by-query is a module that not every server has.
    with search.errors(f"deleting documents of {index}"):
        while True:
            hits = search.find(index=index, size=_PAGE, query=query, source=False, sort=["_doc"])["hits"]["hits"]
            deletes = [{"delete": {"_index": hit["_index"], "_id": hit["_id"]}} for hit in hits]
            if not deletes:
                return
            done = search.client.bulk(operations=deletes, refresh=True, filter_path="items.*.status")
            if not any(item["delete"]["status"] == _DELETED for item in done["items"]):
                status = done["items"][0]["delete"]["status"]
                raise SearchError(
                    f"Elasticsearch at {search.settings.url} does not delete documents of {index} (status {status}):"
                    " see its log, then run the roll again"
                )


def of_log(log: Log) -> list[dict[str, Any]]:
    """Return the filters of a query for a log's documents."""
    return [{"term": {TOPIC: log.name}}, {"term": {PARTITION: log.partition}}]


def below(log: Log, offset: int) -> dict[str, Any]:
    """Return the query for a log's documents below an offset."""
    return {"bool": {"filter": [*of_log(log), {"range": {OFFSET: {"lt": offset}}}]}}


def refused_of(log: Log) -> list[dict[str, Any]]:
    """Return the filters of a query for a log's rejected events."""
    return [{"term": {"log": str(log)}}]


def refused_below(log: Log, offset: int, since: datetime) -> dict[str, Any]:
    """Return the query for a log's rejected events below an offset, except those rejected since a moment."""
    lately = {"range": {"at": {"gte": format_time(since)}}}
    return {"bool": {"filter": [*refused_of(log), {"range": {"offset": {"lt": offset}}}], "must_not": [lately]}}


def count_in_ranges(
    search: Search, index: str, query: list[dict[str, Any]], field: str, ranges: Sequence[tuple[int, int]]
) -> list[int]:
    """Return how many documents there are with an offset in each range."""
    filters = [{"range": {field: {"gte": first, "lt": end}}} for first, end in ranges]
    aggs = {"counts": {"filters": {"filters": filters}}}
    with search.errors(f"counts of {index}"):
        try:
            answer = search.find(index=index, size=0, query={"bool": {"filter": query}}, aggs=aggs)
        except NotFoundError:
            return [0] * len(ranges)
    return [bucket["doc_count"] for bucket in answer["aggregations"]["counts"]["buckets"]]
