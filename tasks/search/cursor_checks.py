"""Compares cursors with the archive: whoever can write to Elasticsearch can also change its cursors."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from elasticsearch import NotFoundError

from custody.archive.reader import (
    Holds,
    at_or_behind,
    find_statement,
    find_tip,
)
from custody.errors import ObjectMissing
from custody.findings import Finding, Severity, finding
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from custody.store.protocol import Store
from tasks.search.client import Search
from tasks.search.compare import end_offset, skip_damaged
from tasks.search.cursors import read_cursor
from tasks.search.documents import (
    OFFSET,
)
from tasks.search.queries import of_log


def check_cursors(
    search: Search,
    store: Store,
    archive: str,
    logs: Sequence[Log],
    now: datetime,
    marks: dict[str, int],
    holds: Callable[[Log], Holds[Manifest]],
) -> Iterator[Finding]:
    """Report cursors that cannot be true, went back, or are far behind.

    Args:
        search: Elasticsearch.
        store: the archive.
        archive: its id.
        logs: the logs.
        now: the time, aware.
        marks: by log, how many statements audits have found indexed; is updated, and never decreases.
        holds: returns, of a log, whether a statement is valid where it stands.

    Raises:
        SearchError: Elasticsearch does not answer.
        TransientStoreError: the archive does not answer.
    """
    for log in logs:
        cursor = read_cursor(search, archive, log)
        name, before = str(log), marks.get(str(log), 0)
        with skip_damaged():
            # The manifest is sealed before its events are indexed.
            if cursor is None:
                yield finding("index-edited", f"the log's document in {search.cursors} is not a cursor", log=name)
            elif cursor.sequence and not store.exists(layout.manifest_key(log, cursor.sequence - 1)):
                what = f"{search.cursors} says that {cursor.sequence:,} statements are indexed, but the log has fewer"
                yield finding("index-edited", what, log=name)
            else:
                marks[name] = max(before, cursor.sequence)
                yield from _late(search, store, log, cursor.sequence, before, now, holds(log))
        with skip_damaged():
            marks[name] = max(marks.get(name, 0), _reached(search, store, log, holds(log)))


def _late(
    search: Search, store: Store, log: Log, indexed: int, before: int, now: datetime, holds: Holds[Manifest]
) -> Iterator[Finding]:
    """Report a log whose indexing is late: somebody may hold back a cursor to hide deleted documents."""
    cursor = f"{search.cursors} says that {indexed:,} statements are indexed"
    if indexed < before:
        what = (
            f"{cursor}, but an audit has seen {before:,}: Elasticsearch was lost or restored from an older snapshot, or"
            " somebody set the cursor back"
        )
        yield finding("index-missing", what, severity=Severity.NOTICE, log=str(log))
        return
    try:
        # Where the slot was passed over, the statement behind it waits.
        _, following = at_or_behind(store, log, indexed, find_tip(store, log, holds, indexed).head.size, holds)
    except ObjectMissing:
        return
    waiting = now - parse_time(following.statement.sealed_at)
    if waiting > timedelta(seconds=search.settings.behind_seconds):
        what = f"{cursor}, and the next one was sealed {waiting.total_seconds():,.0f} s before this audit"
        yield finding("index-missing", what, severity=Severity.NOTICE, log=str(log))


def _reached(search: Search, store: Store, log: Log, holds: Holds[Manifest]) -> int:
    """Return the sequence of the statement to which the last document of a log belongs.

    All statements before it are indexed. It may itself be incomplete, while several requests for it are running.
    """
    end = end_offset(find_tip(store, log, holds))
    within = [*of_log(log), {"range": {OFFSET: {"lt": end}}}]
    with search.errors(f"the last document of {log}"):
        try:
            answer = search.find(
                index=search.prefix,
                size=0,
                query={"bool": {"filter": within}},
                aggs={"last": {"max": {"field": OFFSET}}},
            )
        except NotFoundError:
            return 0
        last = answer["aggregations"]["last"]["value"]
    found = None if last is None else find_statement(store, log, int(last), holds)
    return found[0] if found else 0
