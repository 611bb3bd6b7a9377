"""Indexes archived events in Elasticsearch: each log from its cursor to its head, statement by statement.

Events are read from the archive, not from Kafka. So it makes no difference whether Elasticsearch was down, lost, or
restored from an old snapshot. Cursors are stored in Elasticsearch, and others may change them. A cursor that cannot be
true is ignored; the nightly audit finds what a wrong one hides (`tasks.search.reconcile`).

A damaged statement does not stop the indexing. The result names a manifest that is missing or cannot be read, and a
segment that is lost, differs from its statement or has an invalid line; later statements are still indexed.

A `Follower` indexes while a drain runs, right after each manifest, in a thread of its own. The drain waits for it only
at its end.
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
        there: events that were already there.
        rejected: events that Elasticsearch rejected.
        behind: seconds since the oldest statement that is not indexed was sealed; 0 if there is none.
        problem: what went wrong, what was skipped, and what to do.
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
        """Prepare; no request is made yet."""
        self._settings, self._store, self._search, self._archive = settings.search, store, search, archive
        self._bulk = Bulk(search)
        self._holds = standing(store, archive, settings.trust_at_hand())
        self._cursors: dict[Log, Cursor] = {}
        self._untrue: dict[Log, str] = {}
        self._unread: dict[Log, dict[int, str]] = {}
        self._lost: dict[Log, dict[int, str]] = {}
        self._ended: set[Log] = set()
        """Logs whose end was compared with a listing. That costs more than a read, so it is done once."""

    def index(self, log: Log, result: IndexResult, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Index a log from its cursor to its head.

        Args:
            log: the log.
            result: updated after each statement; it also gets the problem, if there is one.
            go_on: called before each statement; indexing stops if it returns False.

        Returns:
            False if Elasticsearch or the archive failed, so that it should be tried again.
        """
        try:
            self._follow(log, result, go_on)
        except CustodyError as error:
            # Indexing a statement again does no harm.
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
                # Such a slot has no statement. It was a problem until the writer signed that it was passed over.
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
                # The expiry is stated after the statements that expired.
                first, end = statement.expired
                for sequence in [number for number in lost if first <= number < end]:
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
        """Return the problems of a log that did not stop its indexing."""
        problems = [self._untrue[log]] if log in self._untrue else []
        passed = self._unread.get(log, {}) | self._lost.get(log, {})
        if passed:
            more = f", and {len(passed) - 1:,} more problems like this" if len(passed) > 1 else ""
            problems.append(
                f"not indexed: {passed[min(passed)]}{more}. Run `custody verify` for details. After the objects are"
                " restored, `custody audit --full` indexes their events"
            )
        return "; ".join(problems) or None

    def _written(self, log: Log) -> Cursor | None:
        """Return the cursor in Elasticsearch; None, with a warning, if it cannot be true.

        Otherwise a cursor set far ahead could stop all indexing. The statement before a cursor must have a manifest,
        which one request shows. If that manifest was lost, later ones must exist.
        """
        cursor = read_cursor(self._search, self._archive, log)
        if cursor is None:
            problem = "is not a cursor"
        elif cursor.sequence and not self._reaches(log, cursor.sequence - 1):
            problem = f"says that {cursor.sequence:,} statements are indexed, but the log has fewer"
        else:
            return cursor
        self._untrue[log] = (
            f"the document of {log} in {self._search.cursors} {problem}: events of the last {self._settings.days} days"
            " are indexed again, and existing documents stay as they are; find out who wrote it, and run"
            " `custody audit --full`"
        )
        logger.warning("%s", self._untrue[log])
        return None

    def _reaches(self, log: Log, sequence: int) -> bool:
        return self._store.exists(layout.manifest_key(log, sequence)) or self._listed(log, sequence) is not None

    def _begin(self, log: Log, written: Cursor | None) -> Cursor:
        """Return where to continue: at the cursor, but after statements so old that the next roll would delete them."""
        cursor = written or Cursor()
        oldest = datetime.now(UTC) - timedelta(days=self._settings.days)

        def old(sequence: int) -> int | None:
            # A statement that cannot be read counts as old as the next one that can.
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
        """Return the first readable statement from a sequence on, and the problems of those before it.

        Args:
            log: the log.
            sequence: where to begin.
            holes: whether to list later manifests if one is missing; otherwise the log ends there.
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
                    passed[sequence] = f"manifests of {log} are missing ({span}), but later ones exist"
                    sequence = following
            else:
                return statement, passed

    def _listed(self, log: Log, sequence: int) -> int | None:
        """Return the first later sequence whose manifest is listed; None if there is none."""
        listed = self._store.list(layout.log_prefix(log), after=layout.manifest_key(log, sequence))
        numbers = (parsed[1] for info in listed if (parsed := layout.parse_manifest_key(info.key)))
        return min((number for number in numbers if number > sequence), default=None)

    def _index(self, log: Log, statement: Statement, lost: dict[int, str]) -> Sent:
        total = Sent()
        # While some requests are running, the next one is prepared.
        with ThreadPoolExecutor(_REQUESTS) as senders:
            under_way: deque[Future[Sent]] = deque()
            try:
                for made in self._gather(log, statement):
                    if len(under_way) == _REQUESTS:
                        under_way.popleft().result().add_to(total)
                    under_way.append(senders.submit(self._bulk.create, log, made))
            except ObjectArchived as error:
                logger.warning("%s: %s; `custody backfill` restores it", log, error)
            except (FormatError, ObjectMissing) as error:
                # Permanent: record it and continue with the next statement.
                lost[statement.sequence] = f"sequence {statement.sequence} of {log}: {error}"
                logger.warning("%s", lost[statement.sequence])
            for sent in under_way:
                sent.result().add_to(total)
        return total

    def _gather(self, log: Log, statement: Statement) -> Iterator[Documents]:
        """Yield the documents of a statement, about one bulk request at a time."""
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
        One result a log. A log that failed has the problem in its result; the others were indexed.

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
    """Indexes while a drain runs, in a thread of its own."""

    def __init__(self, settings: Settings, partitions: Sequence[tuple[str, int]] | None = None) -> None:
        """Begin to index.

        Args:
            settings: the settings; they name an Elasticsearch.
            partitions: the topic partitions; all if None.
        """
        self._settings, self._partitions = settings, None if partitions is None else set(partitions)
        self._sealed: set[Log] = set()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._results: dict[Log, IndexResult] = {}
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def sealed(self, log: Log) -> None:
        """Note that a log has a new statement. Never waits."""
        with self._changed:
            self._sealed.add(log)
            self._changed.notify()

    def end(self) -> list[IndexResult]:
        """Index the last statements, for at most `GRACE_SECONDS`, and return the results."""
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
        return sorted(results, key=lambda result: result.log)

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
        chosen = self._partitions
        due = {log for log in list_logs(store) if chosen is None or (log.topic, log.partition) in chosen}
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
            # Not again before the log grows: an error in our code does not go away by waiting.
            return True


def _unforeseen(error: Exception) -> str:
    """Log an unexpected error with its traceback, and return a message about it."""
    logger.error("unexpected error while indexing during the drain", exc_info=error)
    return (
        f"unexpected error while indexing during the drain ({type(error).__name__}): the log has the traceback, please"
        " report it; `custody index` tries again"
    )
