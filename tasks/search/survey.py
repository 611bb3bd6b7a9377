"""Checks what an audit's survey can see in Elasticsearch: cursors, and documents that belong to no statement.

Whoever can write to Elasticsearch can also change its cursors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

from elasticsearch import NotFoundError

from custody.archive.reader import Holds, Tip, find_tip
from custody.archive.search import at_or_behind, find_statement, sealed_from
from custody.errors import ObjectMissing, counted
from custody.findings import Finding, Severity, finding
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from custody.store.protocol import Store
from tasks.search.client import Search
from tasks.search.documents import LEEWAY, OFFSET, index_day, is_restored, out_of_range_name
from tasks.search.indices import read_cursor, unlike_indices
from tasks.search.queries import TooManyLogs, below, count_documents, count_in_ranges, logs_in, of_log
from tasks.search.reconcile import skip_damaged


@dataclass(frozen=True, slots=True)
class Survey:
    """The checks. They raise SearchError or TransientStoreError if Elasticsearch or the archive does not answer.

    Attributes:
        search: Elasticsearch.
        store: the archive.
        archive: its id.
        logs: the logs.
        now: the time, timezone-aware.
        holds: for a log, returns whether a statement is valid in its slot.
    """

    search: Search
    store: Store
    archive: str
    logs: Sequence[Log]
    now: datetime
    holds: Callable[[Log], Holds[Manifest]]

    def check_indices(self) -> Iterator[Finding]:
        """Report indices that are not as the template makes them."""
        for name, (difference, left_out) in unlike_indices(self.search).items():
            if difference:
                message = f"the index {name[:100]} is not as the template makes it: {difference}"
                yield finding("unreadable", message + ("; its documents were not compared" if left_out else ""))

    def check_cursors(self, marks: dict[str, int]) -> Iterator[Finding]:
        """Report cursors that cannot be true, went back, or are far behind.

        Args:
            marks: for each log, how many statements audits have found indexed; is updated, and never decreases.
        """
        for log in self.logs:
            cursor = read_cursor(self.search, self.archive, log)
            name, before = str(log), marks.get(str(log), 0)
            claim = f"{self.search.cursors} says that {counted(cursor or 0, 'statement is', 'statements are')} indexed"
            with skip_damaged():
                # The manifest is sealed before its events are indexed.
                if cursor is None:
                    message = f"the log's document in {self.search.cursors} is not a cursor"
                    yield finding("index-edited", message, log=name)
                elif cursor and not self.store.exists(layout.manifest_key(log, cursor - 1)):
                    yield finding("index-edited", f"{claim}, but the log has fewer", log=name)
                else:
                    marks[name] = max(before, cursor)
                    late = self._lateness(log, cursor, before)
                    if late:
                        yield finding("index-missing", f"{claim}, {late}", severity=Severity.NOTICE, log=name)
            with skip_damaged():
                marks[name] = max(marks.get(name, 0), self._last_indexed(log))

    def _lateness(self, log: Log, cursor: int, before: int) -> str | None:
        """Return why a cursor is late, or None. Somebody may hold it back to hide deleted documents."""
        if cursor < before:
            return (
                f"but an audit has seen {before:,}: Elasticsearch was lost or restored from an older snapshot, or"
                " somebody set the cursor back"
            )
        end = find_tip(self.store, log, self.holds(log), cursor).head.size
        try:
            # If the slot was passed over, the statement after it waits.
            _, following = at_or_behind(self.store, log, cursor, end, self.holds(log))
        except ObjectMissing:
            return None
        waiting = (self.now - parse_time(following.statement.sealed_at)).total_seconds()
        if abs(waiting) <= self.search.settings.behind_seconds:
            return None
        # Who chose a time of the future must not hide with it that the statement waits.
        return f"and the next one was sealed {abs(waiting):,.0f} s {'before' if waiting > 0 else 'after'} this audit"

    def _last_indexed(self, log: Log) -> int:
        """Return the sequence of the statement to which the last document of a log belongs.

        All statements before it are indexed. It may itself be incomplete, while several requests for it are running.
        """
        end = _end_offset(find_tip(self.store, log, self.holds(log)))
        last = {"last": {"max": {"field": OFFSET}}}
        with self.search.errors(f"the last document of {log}"):
            try:
                answer = self.search.find(index=self.search.prefix, size=0, query=below(log, end), aggs=last)
            except NotFoundError:
                return 0
            offset = answer["aggregations"]["last"]["value"]
        statement = None if offset is None else find_statement(self.store, log, int(offset), self.holds(log))
        return statement[0] if statement else 0

    def find_strays(self) -> Iterator[Finding]:
        """Report documents that belong to no statement with which they are compared.

        Such documents have no origin, or name an unknown log, or an offset outside the log, or they belong to
        statements sealed too long ago for their index. Restored events, and those that the next roll deletes, may be of
        any age. A log whose manifests cannot be read is skipped.
        """
        prefix = self.search.prefix
        with self.search.errors("the logs that it has events of"):
            try:
                strays, indexed = logs_in(self.search, prefix)
            except NotFoundError:
                return
            except TooManyLogs as error:
                yield finding("index-extra", str(error))
                return
        known = {(log.name, log.partition): log for log in self.logs}
        if strays:
            many = counted(strays, f"document of {prefix} does", f"documents of {prefix} do")
            yield finding("index-extra", f"{many} not say where in the archive to look")
        for documents in indexed:
            log = known.get((documents.name, documents.partition))
            if log is None:
                many = counted(documents.count, "document is", "documents are")
                message = f"{many} of a log that the archive does not have"
                yield finding("index-extra", message, log=f"{documents.name}/{documents.partition}"[:300])
                continue
            with skip_damaged():
                tip = find_tip(self.store, log, self.holds(log))
                yield from self._beyond(log, tip)
                yield from self._before(log, tip, documents.first)

    def _beyond(self, log: Log, tip: Tip[Manifest]) -> Iterator[Finding]:
        """Report documents of offsets that a log has not reached."""
        end = _end_offset(tip)
        beyond = count_in_ranges(self.search, self.search.prefix, of_log(log), OFFSET, [(end, 2**62)])[0]
        # A drain may have added statements meanwhile.
        if beyond and find_tip(self.store, log, self.holds(log), tip.size).size == tip.size:
            message = f"{counted(beyond, 'document is', 'documents are')} of offsets that the log has not reached"
            yield finding("index-extra", message, log=str(log), offset=end)

    def _before(self, log: Log, tip: Tip[Manifest], lowest: int) -> Iterator[Finding]:
        """Report documents of offsets that are too old for their index. `lowest` is the log's lowest offset there."""
        prefix, oldest = self.search.prefix, self.now - timedelta(days=self.search.settings.days)
        # Events that were sealed since then are compared one by one.
        compared = sealed_from(self.store, log, lowest, oldest, self.holds(log))
        if lowest >= compared:
            return
        indices = {"indices": {"terms": {"field": "_index", "size": 10_000}}}
        with self.search.errors(f"finding the oldest documents of {log}"):
            answer = self.search.find(index=prefix, size=0, query=below(log, compared), aggs=indices)
            names = [str(bucket["key"]) for bucket in answer["aggregations"]["indices"]["buckets"]]
        for name in names:
            day = index_day(prefix, name)
            if is_restored(prefix, name) or name == out_of_range_name(prefix) or (day and day < oldest.date()):
                first, why = self._begin(log, tip), "before the log begins"
            else:
                # A day's events were sealed on the day before or later; otherwise they are out of range.
                since = oldest if day is None else min(datetime.combine(day, time(), UTC) - LEEWAY, oldest)
                why = f"sealed before {since:%F %T} UTC, too old for that index"
                first = sealed_from(self.store, log, lowest, since, self.holds(log))
            many = count_documents(self.search, name, below(log, first))
            if many:
                message = f"{counted(many, 'document is', 'documents are')} of offsets {why}: {name[:100]}"
                yield finding("index-extra", message, log=str(log), offset=first)

    def _begin(self, log: Log, tip: Tip[Manifest]) -> int:
        """Return the first offset of a log; 0 if it has no statement."""
        size = tip.head.size
        return at_or_behind(self.store, log, 0, size, self.holds(log))[1].statement.first_offset if size else 0


def _end_offset(tip: Tip[Manifest]) -> int:
    """Return the first offset that a log has not reached."""
    return tip.newest.statement.next_offset if tip.newest else 0
