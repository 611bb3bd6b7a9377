"""Brings Elasticsearch up to what the archive holds: each log from its cursor to its head, statement by statement.

The archive is what is indexed, and not what came from Kafka: so it makes no difference whether Elasticsearch was down
for a second or a week, lost, or restored from an old snapshot. Cursors are Elasticsearch's word: one that cannot be
true is not believed, and what others would hide is the nightly audit's to see (`tasks.reconcile`).

A `Follower` does so beside a drain, right after each manifest, in a thread that the drain never waits for but at its
end.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from custody import layout
from custody.archive import find_head, list_logs, read_archive, read_manifest, sealed_from
from custody.checkpoints import choose_logs
from custody.errors import CustodyError, ObjectArchived, ObjectMissing
from custody.layout import Log
from custody.manifest import Statement, parse_time
from custody.settings import Settings
from custody.store import Store, open_store
from tasks.documents import Documents, read_documents
from tasks.search import Cursor, Search, Sent

GRACE_SECONDS = 10.0
"""How long the end of a drain waits for the last events to be indexed."""
_LOOK_SECONDS = 5.0
_CURSOR_SECONDS = 2.0
_REQUESTS = 2
"""Bulk requests under way at a time."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class IndexResult:
    """What was indexed of a log.

    Attributes:
        log: its name.
        sequence: the first statement that is not indexed.
        created: events that were not there.
        there: events that were there already.
        rejected: events that Elasticsearch did not take.
        behind: seconds since the oldest statement that is not indexed was sealed; 0 if there is none.
        problem: what went wrong, and what to do.
    """

    log: str
    sequence: int = 0
    created: int = 0
    there: int = 0
    rejected: int = 0
    behind: float = 0.0
    problem: str | None = None


class Indexer:
    """Indexes logs of one archive."""

    def __init__(self, settings: Settings, store: Store, search: Search, archive: str) -> None:
        """Begin; nothing is asked yet."""
        self._settings, self._store, self._search, self._archive = settings.search, store, search, archive
        self._cursors: dict[Log, Cursor] = {}
        self.untrue: dict[Log, str] = {}
        """By log, what was wrong with the cursor that stood in Elasticsearch, and what was done."""

    def index(self, log: Log, result: IndexResult, go_on: Callable[[], bool] = lambda: True) -> None:
        """Index a log from its cursor to its head.

        Args:
            log: the log.
            result: is brought up to date after each statement.
            go_on: is asked before each statement.

        Raises:
            SearchError: Elasticsearch does not take it.
            StoreError, FormatError: the archive does not give it.
        """
        known = self._cursors.get(log)
        written = known or self._written(log)
        cursor = known or self._begin(log, written)
        sealed_at, since = None, time.monotonic()
        try:
            while go_on():
                result.sequence = cursor.sequence
                try:
                    statement = read_manifest(self._store, log, cursor.sequence).statement
                except ObjectMissing:
                    result.behind = 0.0
                    break
                result.behind = (datetime.now(UTC) - parse_time(statement.sealed_at)).total_seconds()
                sent = self._index(log, statement)
                sent.add_to(result)
                indexed = cursor.indexed + sent.created + sent.there
                cursor = Cursor(cursor.sequence + 1, indexed, cursor.rejected + sent.rejected)
                sealed_at = statement.sealed_at
                if time.monotonic() - since > _CURSOR_SECONDS:
                    self._search.put_cursor(self._archive, log, cursor, sealed_at)
                    written, since = cursor, time.monotonic()
        except CustodyError:
            # What was done may be done again; what is there changes nothing.
            self._cursors.pop(log, None)
            raise
        if cursor != written:
            self._search.put_cursor(self._archive, log, cursor, sealed_at)
        self._cursors[log] = cursor

    def _written(self, log: Log) -> Cursor | None:
        """Return the cursor that stands in Elasticsearch; None if it cannot be true, which is noted.

        Whoever can write there could end all indexing by one that is far ahead. What lies before a cursor has a
        manifest, so one request tells.
        """
        cursor = self._search.cursor(self._archive, log)
        if cursor is None:
            said = "is no cursor"
        elif cursor.sequence and not self._store.exists(layout.manifest_key(log, cursor.sequence - 1)):
            said = f"says that {cursor.sequence:,} statements are indexed, and the log has fewer"
        else:
            return cursor
        self.untrue[log] = (
            f"what {self._search.cursors} has of {log} {said}: all of the last {self._settings.days} days is indexed"
            " again, and what is there stays as it is; find out who wrote it, and run `custody audit --full`"
        )
        logger.warning("%s", self.untrue[log])
        return None

    def _begin(self, log: Log, written: Cursor | None) -> Cursor:
        """Return where to go on: at the cursor, but behind all that is so old that the next roll would delete it."""
        cursor = written or Cursor()
        oldest = datetime.now(UTC) - timedelta(days=self._settings.days)
        try:
            sealed_at = read_manifest(self._store, log, cursor.sequence).statement.sealed_at
        except ObjectMissing:
            return cursor
        if parse_time(sealed_at) >= oldest:
            return cursor
        first = sealed_from(self._store, log, find_head(self._store, log, cursor.sequence).size, oldest)
        return replace(cursor, sequence=first)

    def _index(self, log: Log, statement: Statement) -> Sent:
        total = Sent()
        # While some requests are under way, the next is made.
        with ThreadPoolExecutor(_REQUESTS) as senders:
            under_way: deque[Future[Sent]] = deque()
            try:
                for made in self._gather(log, statement):
                    if len(under_way) == _REQUESTS:
                        under_way.popleft().result().add_to(total)
                    under_way.append(senders.submit(self._search.create, log, made))
            except ObjectArchived as error:
                logger.warning("%s: %s; `custody backfill` brings it back", log, error)
            for sent in under_way:
                sent.result().add_to(total)
        return total

    def _gather(self, log: Log, statement: Statement) -> Iterator[Documents]:
        """Yield the documents of a statement, as many at a time as go into a request."""
        waiting: list[Documents] = []
        size = 0
        for made in read_documents(self._store, self._search.prefix, self._settings.days, log, statement):
            waiting.append(made)
            size += sum(map(len, made.sources))
            if size >= self._settings.bulk_bytes:
                yield Documents.join(waiting)
                waiting, size = [], 0
        if waiting:
            yield Documents.join(waiting)


def index_logs(settings: Settings, wanted: Sequence[str] = ()) -> list[IndexResult]:
    """Index logs up to their heads (`custody index`).

    Args:
        settings: the settings.
        wanted: logs, as LOG/PARTITION; all if empty.

    Returns:
        One result a log; one that failed has its problem there, and the others were indexed.

    Raises:
        ConfigurationError: there is no archive, no such log, or no Elasticsearch in the settings.
        StoreError: the archive does not answer at all.
        SearchError: Elasticsearch does not answer at all.
    """
    results = []
    with closing(open_store(settings.archive, settings.s3)) as store, closing(Search(settings.search)) as search:
        logs = choose_logs(store, wanted)
        search.prepare()
        indexer = Indexer(settings, store, search, read_archive(store).archive)
        for log in logs:
            result = IndexResult(str(log))
            try:
                indexer.index(log, result)
            except CustodyError as error:
                result.problem = str(error)
            else:
                result.problem = indexer.untrue.get(log)
            results.append(result)
    return results


class Follower:
    """Indexes beside a drain, in a thread of its own."""

    def __init__(self, settings: Settings, places: Sequence[tuple[str, int]] | None = None) -> None:
        """Begin to index.

        Args:
            settings: the settings; they name an Elasticsearch.
            places: topics and partitions, all if None.
        """
        self._settings, self._places = settings, None if places is None else set(places)
        self._sealed: set[Log] = set()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._results: dict[Log, IndexResult] = {}
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def sealed(self, log: Log) -> None:
        """Take note that a log has a new statement; never waits."""
        with self._changed:
            self._sealed.add(log)
            self._changed.notify()

    def end(self) -> list[IndexResult]:
        """Index what was sealed, for a little while at most, and return what was done."""
        with self._changed:
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._changed.notify()
        self._thread.join(GRACE_SECONDS + 1)
        with self._changed:
            results = [replace(result) for result in self._results.values()]
        if self._problem is not None:
            results = results or [IndexResult("*")]
            for result in results:
                result.problem = result.problem or self._problem
        return sorted(results, key=lambda one: one.log)

    def _go_on(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    def _run(self) -> None:
        while self._go_on():
            try:
                with (
                    closing(open_store(self._settings.archive, self._settings.s3)) as store,
                    closing(Search(self._settings.search)) as search,
                ):
                    search.prepare()
                    self._problem = None
                    self._follow(store, Indexer(self._settings, store, search, read_archive(store).archive))
                    return
            except CustodyError as error:
                self._problem = str(error)
            with self._changed:
                if self._deadline is not None:
                    return
                self._changed.wait_for(lambda: self._deadline is not None, _LOOK_SECONDS)

    def _follow(self, store: Store, indexer: Indexer) -> None:
        due = {log for log in list_logs(store) if self._places is None or (log.topic, log.partition) in self._places}
        while True:
            with self._changed:
                due |= self._sealed
                self._sealed = set()
                ending = self._deadline is not None
            failed = {log for log in sorted(due) if not self._index(indexer, log)}
            if ending or not self._go_on():
                return
            with self._changed:
                self._changed.wait_for(lambda: self._sealed or self._deadline is not None, _LOOK_SECONDS)
            due = failed

    def _index(self, indexer: Indexer, log: Log) -> bool:
        with self._changed:
            result = self._results.setdefault(log, IndexResult(str(log)))
        try:
            indexer.index(log, result, self._go_on)
        except CustodyError as error:
            result.problem = str(error)
            return False
        result.problem = indexer.untrue.get(log)
        return True
