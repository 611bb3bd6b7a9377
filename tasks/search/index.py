"""Brings Elasticsearch up to what the archive holds: each log from its cursor to its head, statement by statement.

The archive is what is indexed, and not what came from Kafka: so it makes no difference whether Elasticsearch was down
for a second or a week, lost, or restored from an old snapshot. Cursors are Elasticsearch's word: one that cannot be
true is not believed, and what others would hide is the nightly audit's to see (`tasks.search.reconcile`).

Nothing stalls behind a statement that is bad: a manifest that is missing or cannot be read, and a segment that is lost,
is not what was signed or has a line that is no event, is named in the result, and what comes behind it is indexed.

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

from custody.archive.reader import choose_logs, list_logs, read_archive, read_manifest
from custody.archive.trusted import standing
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Statement
from custody.format.times import parse_time
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.search.bulk import Bulk, Sent
from tasks.search.client import Search
from tasks.search.cursors import Cursor, put_cursor, read_cursor
from tasks.search.documents import Documents, read_documents
from tasks.search.indices import prepare
from tasks.settings import Settings

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
        problem: what went wrong, what was passed over, and what to do.
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
        self._bulk = Bulk(search)
        self._holds = standing(store, archive, settings.trust_at_hand())
        self._cursors: dict[Log, Cursor] = {}
        self._untrue: dict[Log, str] = {}
        self._unread: dict[Log, dict[int, str]] = {}
        self._lost: dict[Log, dict[int, str]] = {}
        self._ended: set[Log] = set()
        """Logs whose end was held against a listing: it costs more than a read, and is done once."""

    def index(self, log: Log, result: IndexResult, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Index a log from its cursor to its head.

        Args:
            log: the log.
            result: is brought up to date after each statement; what went wrong is said there.
            go_on: is asked before each statement.

        Returns:
            False where Elasticsearch does not take it, or the archive does not give it, for now.
        """
        try:
            self._follow(log, result, go_on)
        except CustodyError as error:
            # What was done may be done again; what is there changes nothing.
            self._cursors.pop(log, None)
            result.problem = "; ".join(filter(None, [str(error), self._problem(log)]))
            return False
        result.problem = self._problem(log)
        return True

    def _follow(self, log: Log, result: IndexResult, go_on: Callable[[], bool]) -> None:
        known = self._cursors.get(log)
        written = known or self._written(log)
        cursor = known or self._begin(log, written)
        unread, lost = self._unread.setdefault(log, {}), self._lost.setdefault(log, {})
        sealed_at, since = None, time.monotonic()
        while go_on():
            result.sequence = cursor.sequence
            statement, passed = self._next(log, cursor.sequence, holes=log not in self._ended)
            for sequence in passed.keys() - unread.keys():
                logger.warning("%s: %s", log, passed[sequence])
            unread |= passed
            for sequence in _passed_over(statement):
                # It held no statement, and was an alarm until the writer signed so.
                unread.pop(sequence, None)
            if statement is None:
                if not passed:
                    self._ended.add(log)
                result.behind = 0.0
                break
            result.sequence = statement.sequence
            result.behind = (datetime.now(UTC) - parse_time(statement.sealed_at)).total_seconds()
            sent = self._index(log, statement, lost)
            sent.add_to(result)
            if statement.expired is not None:
                # It is said behind those that it is about.
                for sequence in [one for one in lost if statement.expired[0] <= one < statement.expired[1]]:
                    del lost[sequence]
            indexed = cursor.indexed + sent.created + sent.there
            cursor = Cursor(statement.sequence + 1, indexed, cursor.rejected + sent.rejected)
            sealed_at = statement.sealed_at
            if time.monotonic() - since > _CURSOR_SECONDS:
                put_cursor(self._search, self._archive, log, cursor, sealed_at)
                written, since = cursor, time.monotonic()
        if cursor != written:
            put_cursor(self._search, self._archive, log, cursor, sealed_at)
        self._cursors[log] = cursor

    def _problem(self, log: Log) -> str | None:
        """Return what was wrong with a log, so far as it does not keep others from being indexed."""
        said = [self._untrue[log]] if log in self._untrue else []
        passed = self._unread.get(log, {}) | self._lost.get(log, {})
        if passed:
            more = f", and so of {len(passed) - 1:,} more places" if len(passed) > 1 else ""
            said.append(
                f"not indexed, and passed over: {passed[min(passed)]}{more}; `custody verify` says more; once it is"
                " restored, `custody audit --full` has it indexed"
            )
        return "; ".join(said) or None

    def _written(self, log: Log) -> Cursor | None:
        """Return the cursor that stands in Elasticsearch; None if it cannot be true, which is noted.

        Whoever can write there could end all indexing by one that is far ahead. What lies before a cursor has a
        manifest, so one request tells; where it was lost, those behind it do.
        """
        cursor = read_cursor(self._search, self._archive, log)
        if cursor is None:
            said = "is no cursor"
        elif cursor.sequence and not self._reaches(log, cursor.sequence - 1):
            said = f"says that {cursor.sequence:,} statements are indexed, and the log has fewer"
        else:
            return cursor
        self._untrue[log] = (
            f"what {self._search.cursors} has of {log} {said}: all of the last {self._settings.days} days is indexed"
            " again, and what is there stays as it is; find out who wrote it, and run `custody audit --full`"
        )
        logger.warning("%s", self._untrue[log])
        return None

    def _reaches(self, log: Log, sequence: int) -> bool:
        return self._store.exists(layout.manifest_key(log, sequence)) or self._listed(log, sequence) is not None

    def _begin(self, log: Log, written: Cursor | None) -> Cursor:
        """Return where to go on: at the cursor, but behind all that is so old that the next roll would delete it."""
        cursor = written or Cursor()
        oldest = datetime.now(UTC) - timedelta(days=self._settings.days)

        def old(sequence: int) -> int | None:
            # Those that cannot be read are as old as the next one that can.
            statement, _ = self._next(log, sequence, holes=True)
            return statement.sequence if statement and parse_time(statement.sealed_at) < oldest else None

        statement, passed = self._next(log, cursor.sequence, holes=True)
        if statement is None and not passed:
            self._ended.add(log)
        if statement is None or parse_time(statement.sealed_at) >= oldest:
            return cursor
        low, step = statement.sequence, 1
        while (found := old(low + step)) is not None:
            low, step = found, step * 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            found = old(middle)
            low, high = (low, middle) if found is None or found >= high else (found, high)
        return replace(cursor, sequence=high)

    def _next(self, log: Log, sequence: int, *, holes: bool) -> tuple[Statement | None, dict[int, str]]:
        """Return the first statement from a sequence on that can be read, and what is wrong with those before it.

        Args:
            log: the log.
            sequence: where to begin.
            holes: whether a manifest that is missing is held against a listing; else the log ends there.
        """
        passed: dict[int, str] = {}
        while True:
            try:
                statement = read_manifest(self._store, log, sequence, self._holds(log)).statement
            except FormatError as error:
                passed[sequence] = str(error)
                sequence += 1
            except ObjectMissing:
                following = self._listed(log, sequence) if holes else None
                if following is None:
                    return None, passed
                # It may have been put meanwhile, and others behind it.
                if not self._store.exists(layout.manifest_key(log, sequence)):
                    span = f"sequence {sequence}" if following == sequence + 1 else f"{sequence} to {following - 1}"
                    passed[sequence] = f"of {log} manifests are missing ({span}), and later ones are there"
                    sequence = following
            else:
                return statement, passed

    def _listed(self, log: Log, sequence: int) -> int | None:
        """Return the first sequence behind one of which a manifest is listed, None if there is none."""
        listed = self._store.list(layout.log_prefix(log), after=layout.manifest_key(log, sequence))
        numbers = (parsed[1] for info in listed if (parsed := layout.parse_manifest_key(info.key)))
        return min((number for number in numbers if number > sequence), default=None)

    def _index(self, log: Log, statement: Statement, lost: dict[int, str]) -> Sent:
        total = Sent()
        # While some requests are under way, the next is made.
        with ThreadPoolExecutor(_REQUESTS) as senders:
            under_way: deque[Future[Sent]] = deque()
            try:
                for made in self._gather(log, statement):
                    if len(under_way) == _REQUESTS:
                        under_way.popleft().result().add_to(total)
                    under_way.append(senders.submit(self._bulk.create, log, made))
            except ObjectArchived as error:
                logger.warning("%s: %s; `custody backfill` brings it back", log, error)
            except (FormatError, ObjectMissing) as error:
                # It will not be otherwise at the next try, and is not to stop all that comes behind it.
                lost[statement.sequence] = f"sequence {statement.sequence} of {log}: {error}"
                logger.warning("%s", lost[statement.sequence])
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


def _passed_over(statement: Statement | None) -> range:
    """Return the slots that a statement passes over."""
    return range(statement.sequence - len(statement.passed_over), statement.sequence) if statement else range(0)


def index_logs(settings: Settings, wanted: Sequence[str] = ()) -> list[IndexResult]:
    """Index logs up to their heads (`custody index`).

    Args:
        settings: the settings.
        wanted: `<log>/<partition>`, or `<log>` for all its partitions; all if empty.

    Returns:
        One result a log; one that failed has its problem there, and the others were indexed.

    Raises:
        ConfigurationError: there is no archive, no such log, or no Elasticsearch in the settings.
        StoreError: the archive does not answer at all.
        SearchError: Elasticsearch does not answer at all.
    """
    results = []
    with closing(open_store(settings.archive, settings.s3)) as store, closing(Search(settings.search)) as search:
        logs = choose_logs(list_logs(store), wanted)
        prepare(search)
        indexer = Indexer(settings, store, search, read_archive(store).id)
        for log in logs:
            result = IndexResult(str(log))
            indexer.index(log, result)
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
                    prepare(search)
                    self._problem = None
                    self._follow(store, Indexer(self._settings, store, search, read_archive(store).id))
                    return
            except CustodyError as error:
                self._problem = str(error)
            except Exception as error:  # noqa: BLE001 - nobody else would see it
                self._problem = _unforeseen(error)
                return
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
            return indexer.index(log, result, self._go_on)
        except Exception as error:  # noqa: BLE001 - it must not end the indexing of other logs
            result.problem = _unforeseen(error)
            # Not again before the log grows: it is an error of ours, which waiting does not mend.
            return True


def _unforeseen(error: Exception) -> str:
    """Log an error that is not one of ours with its traceback, and return what is said of it."""
    logger.error("indexing beside the drain met an error that custody does not foresee", exc_info=error)
    return (
        f"indexing beside the drain met an error that custody does not foresee ({type(error).__name__}): the log has"
        " its traceback, which we ask you to report; `custody index` tries again"
    )
