"""Holds Elasticsearch against the archive: by counts of each log and hour, and by document where that is due.

What it lacks is indexed again, and said; what it has too many, or changed, is said and left as it is, for evidence.
Only statements before a log's cursor count, and of those only such that have not aged out: the rest is not promised
yet, or no longer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from elasticsearch import NotFoundError

from custody.archive import find_head, read_manifest
from custody.findings import Finding, finding
from custody.layout import Log
from custody.manifest import Statement, parse_time
from custody.store import Store
from tasks.documents import OFFSET, PARTITION, TOPIC, Documents, index_day, read_documents, restored_name
from tasks.search import Search

_PAGE = 1000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Document:
    """A document as Elasticsearch has it."""

    index: str
    offset: int
    source: Mapping[str, Any]


def reconcile(
    search: Search, store: Store, archive: str, log: Log, first: int, end: int, now: datetime, *, content: bool
) -> Iterator[Finding]:
    """Compare the documents of a log's statements `[first, end)` with the archive.

    Args:
        search: Elasticsearch.
        store: the archive.
        archive: its id.
        log: the log.
        first: the first statement.
        end: the end; what is not indexed yet is left out.
        now: the time, aware.
        content: compare each document, and not only how many there are.

    Raises:
        SearchError: Elasticsearch does not answer.
        CustodyError: the archive does not give a statement or segment; verification says more.
    """
    end = min(end, search.cursor(archive, log).sequence)
    oldest = now - timedelta(days=search.settings.days)
    statements = [read_manifest(store, log, sequence).statement for sequence in range(first, end)]
    wanted = [one for one in statements if parse_time(one.sealed_at) >= oldest]
    if not wanted:
        return
    # What was indexed within the last second is there, and not seen yet.
    with search.errors("a refresh"):
        search.client.options(ignore_status=404).indices.refresh(index=f"{search.prefix},{search.rejected}")
    hours = [list(group) for _, group in groupby(wanted, lambda one: one.sealed_at[:13])]
    ranges = [(hour[0].first_offset, hour[-1].next_offset) for hour in hours]
    found = _count(search, search.prefix, _of(log), OFFSET, ranges)
    rejected = _count(search, search.rejected, [{"term": {"log": str(log)}}], "offset", ranges)
    for hour, count, refused in zip(hours, found, rejected, strict=True):
        expected = sum(batch.events for one in hour for batch in one.batches)
        if content or count + refused != expected:
            for statement in hour:
                yield from _compare(search, store, log, statement, oldest)


def find_strays(search: Search, store: Store, logs: Sequence[Log]) -> Iterator[Finding]:
    """Find documents that are of no statement: of no log of the archive, beyond a log's head, or of no origin at all.

    Raises:
        SearchError: Elasticsearch does not answer.
        CustodyError: the archive does not give a head.
    """
    with search.errors("the logs that it has events of"):
        try:
            strays, found = search.logs_in(search.prefix)
        except NotFoundError:
            return
    known = {(log.name, log.partition): log for log in logs}
    if strays:
        yield finding("index-extra", f"{strays} documents of {search.prefix} do not say where in the archive they are")
    for one in found:
        log = known.get((one.name, one.partition))
        name = f"{one.name}/{one.partition}"
        if log is None:
            what = f"{one.count} documents are of a log that the archive does not have"
            yield finding("index-extra", what, log=name[:300])
            continue
        head = find_head(store, log)
        beyond = _count(search, search.prefix, _of(log), OFFSET, [(head.next_offset or 0, 2**62)])[0]
        # A drain may have gone on meanwhile.
        beyond = beyond if beyond and find_head(store, log, head.size).size == head.size else 0
        if beyond:
            what = f"{beyond} documents are of offsets that the log has not reached"
            yield finding("index-extra", what, log=name, offset=head.next_offset or 0)


def _of(log: Log) -> list[dict[str, Any]]:
    return [{"term": {TOPIC: log.name}}, {"term": {PARTITION: log.partition}}]


def _count(
    search: Search, index: str, query: list[dict[str, Any]], field: str, ranges: Sequence[tuple[int, int]]
) -> list[int]:
    """Return how many documents there are with an offset in each range."""
    filters = [{"range": {field: {"gte": first, "lt": end}}} for first, end in ranges]
    with search.errors(f"counts of {index}"):
        try:
            answer = search.client.search(
                index=index,
                size=0,
                query={"bool": {"filter": query}},
                aggs={"counts": {"filters": {"filters": filters}}},
            )
        except NotFoundError:
            return [0] * len(ranges)
    return [bucket["doc_count"] for bucket in answer["aggregations"]["counts"]["buckets"]]


def _compare(search: Search, store: Store, log: Log, statement: Statement, oldest: datetime) -> Iterator[Finding]:
    """Compare each document of a statement with its event."""
    there: dict[int, list[_Document]] = {}
    for document in _documents(search, search.prefix, _of(log), OFFSET, statement):
        there.setdefault(document.offset, []).append(document)
    refused = {
        document.offset
        for document in _documents(search, search.rejected, [{"term": {"log": str(log)}}], "offset", statement)
    }
    where: dict[str, Any] = {"log": str(log), "sequence": statement.sequence}
    edited: list[tuple[int, str]] = []
    lacking: list[tuple[Documents, list[int]]] = []
    for expected in read_documents(store, search.prefix, search.settings.days, log, statement):
        missing = []
        for place, offset in enumerate(expected.offsets):
            found = there.get(offset, [])
            index = json.loads(expected.actions[place])["create"]["_index"]
            day = index_day(search.prefix, index)
            if not found:
                if offset not in refused and (day is None or day > oldest.date()):
                    missing.append(place)
                continue
            # Of two that claim an offset, the one in its place is held to be the event.
            one = found.pop(next((number for number, it in enumerate(found) if it.index == index), 0))
            # As text, since in Python 0 is False and 1.0 is 1, and for a search they are not.
            if _text(one.source) != _text(json.loads(expected.sources[place])):
                edited.append((offset, "its content is another"))
            elif one.index != index and (day is None or one.index != restored_name(search.prefix, day)):
                edited.append((offset, f"it lies in {one.index[:100]}, not in {index}"))
        if missing:
            lacking.append((expected, missing))
    extra = sorted(offset for offset, left in there.items() for _ in left)
    if extra:
        what = f"{len(extra)} documents are of no event, or doubled ({_some(extra)})"
        yield finding("index-extra", what, offset=extra[0], **where)
    if edited:
        what = f"{len(edited)} documents are not the events archived ({_some([one for one, _ in edited])})"
        yield finding("index-edited", f"{what}: {edited[0][1]}", offset=edited[0][0], **where)
    if lacking:
        offsets = [expected.offsets[place] for expected, places in lacking for place in places]
        created = search.create(log, Documents.join([one.at(places) for one, places in lacking])).created
        what = f"{len(offsets)} events were not in Elasticsearch ({_some(offsets)}); {created} are indexed again"
        yield finding("index-missing", what, offset=offsets[0], **where)


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _documents(
    search: Search, index: str, query: list[dict[str, Any]], field: str, statement: Statement
) -> Iterator[_Document]:
    """Yield the documents of a statement's offsets, in order."""
    begin, seen = statement.first_offset, set[tuple[str, str]]()
    while begin < statement.next_offset:
        asked = [*query, {"range": {field: {"gte": begin, "lt": statement.next_offset}}}]
        with search.errors(f"documents of {index}"):
            try:
                answer = search.client.search(
                    index=index, size=_PAGE, query={"bool": {"filter": asked}}, sort=[{field: "asc"}]
                )
            except NotFoundError:
                return
            hits = answer["hits"]["hits"]
        for hit in hits:
            if (hit["_index"], hit["_id"]) not in seen:
                yield _Document(hit["_index"], int(hit["sort"][0]), hit["_source"])
        if len(hits) < _PAGE:
            return
        # The next page begins where this one ended, since several documents may claim one offset.
        last = int(hits[-1]["sort"][0])
        seen = {(hit["_index"], hit["_id"]) for hit in hits if int(hit["sort"][0]) == last}
        begin = last if last > begin else begin + 1


def _some(offsets: Sequence[int]) -> str:
    shown = ", ".join(map(str, offsets[:_SHOWN]))
    return f"offset{'s' if len(offsets) > 1 else ''} {shown}{', …' if len(offsets) > _SHOWN else ''}"
