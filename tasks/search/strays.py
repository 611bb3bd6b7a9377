"""Finds documents that belong to no statement with which they are compared."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta

from elasticsearch import NotFoundError

from custody.archive.reader import (
    Holds,
    Tip,
    at_or_behind,
    find_tip,
    sealed_from,
)
from custody.findings import Finding, finding
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.store.protocol import Store
from tasks.search.client import Search
from tasks.search.compare import end_offset, skip_damaged
from tasks.search.documents import (
    LEEWAY,
    OFFSET,
    index_day,
    is_restored,
    out_of_range_name,
)
from tasks.search.queries import below, count_documents, count_in_ranges, logs_in, of_log


def find_strays(
    search: Search, store: Store, logs: Sequence[Log], now: datetime, holds: Callable[[Log], Holds[Manifest]]
) -> Iterator[Finding]:
    """Report documents that belong to no statement with which they are compared.

    Such documents have no origin, or name an unknown log, or an offset outside the log, or they belong to statements
    sealed too long ago for their index. Restored events, and those that the next roll deletes, may be of any age. A log
    whose manifests cannot be read is skipped.

    Args:
        search: Elasticsearch.
        store: the archive.
        logs: all logs of the archive.
        now: the time, timezone-aware.
        holds: for a log, returns whether a statement is valid in its slot.

    Raises:
        SearchError: Elasticsearch does not answer.
        TransientStoreError: the archive does not answer.
    """
    with search.errors("the logs that it has events of"):
        try:
            strays, found = logs_in(search, search.prefix)
        except NotFoundError:
            return
    known = {(log.name, log.partition): log for log in logs}
    if strays:
        yield finding("index-extra", f"{strays} documents of {search.prefix} do not say where in the archive they are")
    for documents in found:
        log = known.get((documents.name, documents.partition))
        if log is None:
            what = f"{documents.count} documents are of a log that the archive does not have"
            yield finding("index-extra", what, log=f"{documents.name}/{documents.partition}"[:300])
            continue
        with skip_damaged():
            tip = find_tip(store, log, holds(log))
            yield from _beyond(search, store, log, tip, holds(log))
            yield from _before(search, store, log, tip, documents.first, now, holds(log))


def _beyond(search: Search, store: Store, log: Log, tip: Tip[Manifest], holds: Holds[Manifest]) -> Iterator[Finding]:
    """Report documents of offsets that a log has not reached."""
    end = end_offset(tip)
    beyond = count_in_ranges(search, search.prefix, of_log(log), OFFSET, [(end, 2**62)])[0]
    # A drain may have added statements meanwhile.
    if beyond and find_tip(store, log, holds, tip.size).size == tip.size:
        what = f"{beyond} documents are of offsets that the log has not reached"
        yield finding("index-extra", what, log=str(log), offset=end)


def _before(
    search: Search, store: Store, log: Log, tip: Tip[Manifest], lowest: int, now: datetime, holds: Holds[Manifest]
) -> Iterator[Finding]:
    """Report documents of offsets that are too old for their index.

    Args:
        search: Elasticsearch.
        store: the archive.
        log: the log.
        tip: where it ends.
        lowest: the lowest offset that Elasticsearch has of it.
        now: the time, aware.
        holds: whether a statement is valid where it stands.
    """
    oldest = now - timedelta(days=search.settings.days)

    def sealed(moment: datetime) -> int:
        return _first_offset(store, log, tip, sealed_from(store, log, tip.head.size, moment, holds), holds)

    # Events that were sealed since then are compared one by one.
    compared = sealed(oldest)
    if lowest >= compared:
        return
    asked = [*of_log(log), {"range": {OFFSET: {"lt": compared}}}]
    with search.errors(f"finding the oldest documents of {log}"):
        answer = search.find(
            index=search.prefix,
            size=0,
            query={"bool": {"filter": asked}},
            aggs={"indices": {"terms": {"field": "_index", "size": 10_000}}},
        )
        names = [str(bucket["key"]) for bucket in answer["aggregations"]["indices"]["buckets"]]
    for name in names:
        day = index_day(search.prefix, name)
        if (
            is_restored(search.prefix, name)
            or name == out_of_range_name(search.prefix)
            or (day and day < oldest.date())
        ):
            first, why = _first_offset(store, log, tip, 0, holds), "before the log begins"
        else:
            # A day's events were sealed on the day before or later; otherwise they are out of range.
            since = oldest if day is None else min(datetime.combine(day, time(), UTC) - LEEWAY, oldest)
            first, why = sealed(since), f"sealed before {since:%F %T} UTC, too old for that index"
        many = count_documents(search, name, below(log, first))
        if many:
            what = f"{many} documents of {name[:100]} are of offsets {why}"
            yield finding("index-extra", what, log=str(log), offset=first)


def _first_offset(store: Store, log: Log, tip: Tip[Manifest], sequence: int, holds: Holds[Manifest]) -> int:
    """Return the first offset of a log's statement; the log's end if there is no such statement."""
    if sequence < tip.head.size:
        return at_or_behind(store, log, sequence, tip.head.size, holds)[1].statement.first_offset
    return end_offset(tip)
