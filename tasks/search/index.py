"""Indexes archived events in Elasticsearch: each log from its cursor to its head, statement by statement.

Events are read from the archive, not from Kafka. So it makes no difference whether Elasticsearch was down, lost, or
restored from an old snapshot. Cursors are stored in Elasticsearch, and others may change them. A cursor that cannot be
true is ignored; the nightly audit finds what a wrong one hides (`tasks.search.reconcile`).

A damaged statement does not stop the indexing. The result names a manifest that is missing or cannot be read, and a
segment that is lost, differs from its statement or has an invalid line; later statements are still indexed.

Several logs are indexed at once: of each new statement, nearly all the time goes by waiting for answers.
"""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice

from custody.archive import time_index
from custody.archive.reader import choose_logs, list_logs, read_archive
from custody.archive.search import sealed_between
from custody.archive.time_index import TimeIndex
from custody.archive.trusted import check_keys, standing, unverified
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing, SearchError, counted
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.search.bulk import Bulk, StoppedError, describe_rejected
from tasks.search.client import Search
from tasks.search.documents import read_documents
from tasks.search.following import Following, New, next_listed
from tasks.search.indices import prepare, put_cursor, read_cursor, read_cursors
from tasks.settings import Settings

AT_ONCE = 8
"""Logs that are indexed at once."""
_CURSOR_SECONDS = 2.0
_CURSORS = 500
"""Cursors that are read in one request."""
_AHEAD = 200
"""Statements whose times are read at once, behind one that is too old."""
_WAITING, _SEGMENT_BYTES = 4, 2 * limits.MIB
"""Statements of a log that are read ahead, and bytes of a segment up to which it is too: 8 MiB a log at most."""

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
        reasons: their number by reason.
        listed: the index that lists them.
        behind: seconds since the oldest statement that is not indexed was sealed; 0 if there is none.
        problem: what went wrong, what was skipped, and what to do.
    """

    log: str
    sequence: int = 0
    created: int = 0
    there: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    listed: str = ""
    behind: float = 0.0
    problem: str | None = None

    @property
    def rejections(self) -> str:
        """How many events Elasticsearch rejected, why, and where to look."""
        return describe_rejected(self, self.listed)


class Indexer:
    """Indexes logs of one archive. Threads may share it, each with logs of its own."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        search: Search,
        archive: str,
        trust: Trust,
        threads: Executor,
        problems: Sequence[str] = (),
        stopped: threading.Event | None = None,
    ) -> None:
        """Prepare; no request is made yet.

        Args:
            settings: the settings.
            store: the archive.
            search: Elasticsearch.
            archive: the archive's id.
            trust: the keys at hand.
            threads: read ahead.
            problems: what becomes part of each result's problem.
            stopped: once it is set, no more events are sent. What was not sent is left to the next run.
        """
        self._stopped = stopped or threading.Event()
        self._threads = threads
        self._problems = problems
        self._settings, self._store, self._search, self._archive = settings.search, store, search, archive
        self._bulk = Bulk(search, self._stopped)
        self._holds, self._trust = standing(store, archive, trust), trust
        for _, message in unverified(trust, {}):
            logger.warning("unverified: %s", message)
        self._cursors: dict[Log, int] = {}
        self._read: dict[Log, int] = {}
        """Cursors that were read together, and not looked at yet."""
        self._untrue: dict[Log, str] = {}
        """Cursors that cannot be true."""
        self._skipped: dict[Log, dict[int, str]] = defaultdict(dict)
        """Statements that could not be indexed, and why."""
        self._passing = threading.Lock()
        self._ended: set[Log] = set()
        """Logs whose end was compared with a listing. That costs more than a read, so it is done once."""

    def read_cursors(self, logs: Iterable[Log]) -> None:
        """Read the cursors of many logs with few requests. What is there and no cursor is read again, with its log."""
        left = iter(logs)
        while some := list(islice(left, _CURSORS)):
            try:
                self._read |= read_cursors(self._search, self._archive, some)
            except SearchError as error:
                logger.debug("each log's cursor is read alone: %s", error)
                return

    def index(
        self, log: Log, result: IndexResult, go_on: Callable[[], bool] = lambda: True, end: int | None = None
    ) -> bool:
        """Index a log from its cursor to its head.

        Args:
            log: the log.
            result: updated after each statement; it also gets the problem, if there is one.
            go_on: called before each statement; indexing stops if it returns False.
            end: the log's size, if somebody who is trusted has just found it. What is there later waits.

        Returns:
            False if Elasticsearch or the archive failed, so that it should be tried again.
        """
        failure, reached = None, False
        result.listed = self._search.rejected
        try:
            reached = self._follow(log, result, go_on, end)
        except CustodyError as error:
            # Indexing a statement again does no harm.
            self._cursors.pop(log, None)
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - it must not end the indexing of other logs
            if self._stopped.is_set():
                # The interpreter may be at its end, and give no thread any more.
                return True
            # Not again before the log grows: an error in our code does not go away by waiting.
            result.problem = unforeseen(error)
            return True
        problem = "; ".join(filter(None, [failure, self._untrue.get(log), self._skips(log), *self._problems]))
        # Where time ran out, what went wrong before is not over.
        result.problem = problem or (None if reached else result.problem)
        return failure is None

    def _follow(self, log: Log, result: IndexResult, go_on: Callable[[], bool], end: int | None) -> bool:
        """Index a log from its cursor on. Return whether its head was reached."""
        reached = False
        oldest = datetime.now(UTC) - timedelta(days=self._settings.days)
        written = self._cursors[log] if log in self._cursors else self._read_cursor(log, end)
        sequence, skipped, since = written or 0, self._skipped[log], time.monotonic()
        holds = self._holds(log)
        following = Following(
            self._store, log, holds, sequence, end, self._threads, ahead=_WAITING, most=_SEGMENT_BYTES
        )
        while go_on() and not self._stopped.is_set():
            result.sequence = sequence
            if sequence == end:
                result.behind, reached = 0.0, True
                break
            new, unread = following.next(sequence, holes=log not in self._ended)
            if new is not None and parse_time(new.statement.sealed_at) < oldest:
                # The next roll would delete its events again.
                sequence = self._pass_old(log, new.statement.sequence + 1, oldest)
                continue
            for number in unread.keys() - skipped.keys():
                logger.warning("%s: %s", log, unread[number], extra={"log": log, "sequence": number})
            skipped |= unread
            if new is None:
                if not unread:
                    self._ended.add(log)
                result.behind, reached = 0.0, True
                break
            statement = new.statement
            result.sequence = statement.sequence
            # A time of the future does not tell how long it waits. It must not hide that it does.
            result.behind = abs((datetime.now(UTC) - parse_time(statement.sealed_at)).total_seconds())
            try:
                self._index(log, new, result)
            except StoppedError:
                break
            # Slots without a statement are a problem until a signed statement passes over them. Lost segments are one
            # until a signed statement says that they expired.
            passed_over = range(statement.sequence - len(statement.passed_over), statement.sequence)
            expired = range(*statement.expired or (0, 0))
            for number in [number for number in skipped if number in passed_over or number in expired]:
                del skipped[number]
            sequence = statement.sequence + 1
            if time.monotonic() - since > _CURSOR_SECONDS:
                put_cursor(self._search, self._archive, log, sequence)
                written, since = sequence, time.monotonic()
        if sequence != written:
            put_cursor(self._search, self._archive, log, sequence)
        self._cursors[log] = sequence
        return reached

    def _skips(self, log: Log) -> str | None:
        """Return what was skipped of a log."""
        skipped = self._skipped[log]
        if not skipped:
            return None
        more = f", and {counted(len(skipped) - 1, 'more problem')} like this" if len(skipped) > 1 else ""
        return (
            f"not indexed: {skipped[min(skipped)]}{more}. Run `custody verify` for details. After the objects are"
            " restored, `custody audit --full` indexes their events"
        )

    def _read_cursor(self, log: Log, end: int | None) -> int | None:
        """Return the cursor in Elasticsearch; None, with a warning, if it cannot be true.

        Otherwise a cursor set far ahead could stop all indexing. The statement before a cursor must have a manifest,
        which one request shows, unless the log is known to be as long. If it was lost, later ones must exist.
        """
        cursor = self._read.pop(log) if log in self._read else read_cursor(self._search, self._archive, log)
        if cursor is None:
            problem = "is not a cursor"
        elif (
            cursor > (end or 0)
            and not self._store.exists(layout.manifest_key(log, cursor - 1))
            and next_listed(self._store, log, cursor - 1) is None
        ):
            problem = f"says that {counted(cursor, 'statement is', 'statements are')} indexed, but the log has fewer"
        else:
            return cursor
        self._untrue[log] = (
            f"the document of {log} in {self._search.cursors} {problem}: events of the last {self._settings.days} days"
            " are indexed again, and existing documents stay as they are; find out who wrote it, and run"
            " `custody audit --full`"
        )
        logger.warning("%s", self._untrue[log])
        return None

    def _pass_old(self, log: Log, sequence: int, oldest: datetime) -> int:
        """Return a sequence from one on; all statements before it are too old.

        Each statement is read of which the index by time does not say that: a wrong clock may have sealed an old one
        among recent ones.
        """
        # One log after the other: many statements are read at once.
        with self._passing:
            if self._stopped.is_set():
                return sequence
            index = self._time_index
            end = max(sequence + _AHEAD, index.end(log))
            young = sealed_between(self._store, log, end, oldest, None, self._holds(log), first=sequence, index=index)
            return next(iter(young), end)

    @cached_property
    def _time_index(self) -> TimeIndex:
        return time_index.find(self._store, self._archive, self._trust)

    def _index(self, log: Log, new: New, result: IndexResult) -> None:
        statement, segment = new
        documents = read_documents(self._store, self._search.prefix, self._settings.days, log, statement, segment)
        try:
            self._bulk.send(log, documents, result)
        except ObjectArchived as error:
            where = {"log": log, "sequence": statement.sequence}
            logger.warning("%s: %s; `custody backfill` restores it", log, error, extra=where)
        except (FormatError, ObjectMissing) as error:
            # Permanent: record it and continue with the next statement.
            self._skipped[log][statement.sequence] = f"sequence {statement.sequence} of {log}: {error}"
            where = {"log": log, "sequence": statement.sequence}
            logger.warning("%s", self._skipped[log][statement.sequence], extra=where)


@contextmanager
def open_indexer(settings: Settings, stopped: threading.Event) -> Iterator[tuple[Store, Indexer]]:
    """Open the archive and Elasticsearch, prepare its indices, and yield the archive's store and its indexer."""
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_archive(store)
        trust = settings.trust_at_hand()
        check_keys(store, file, trust)
        with closing(Search(settings.search)) as search:
            search.reach()
            threads = ThreadPoolExecutor(2 * AT_ONCE, "read-ahead")
            try:
                yield store, Indexer(settings, store, search, file.id, trust, threads, prepare(search), stopped)
            finally:
                threads.shutdown(cancel_futures=True)


def index_logs(settings: Settings, wanted: Sequence[str] = ()) -> list[IndexResult]:
    """Index logs up to their heads (`custody index`).

    Args:
        settings: the settings.
        wanted: `<log>/<partition>`, or `<log>` for all its partitions; all if empty.

    Returns:
        One result a log. A log that failed has the problem in its result; the others were indexed.

    Raises:
        ConfigurationError: there is no archive, no such log, no Elasticsearch in the settings, or the keys are those of
            another archive.
        StoreError: the archive does not answer at all.
        SearchError: Elasticsearch does not answer at all.
    """
    stopped = threading.Event()
    with open_indexer(settings, stopped) as (store, indexer):
        results = {log: IndexResult(str(log)) for log in choose_logs(list_logs(store), wanted)}
        indexer.read_cursors(results)
        with ThreadPoolExecutor(AT_ONCE, "index") as threads:
            try:
                begun = [threads.submit(indexer.index, log, result) for log, result in results.items()]
                for future in begun:
                    future.result()
            finally:
                stopped.set()
                threads.shutdown(cancel_futures=True)
    return list(results.values())


def logs_to_index(settings: Settings, wanted: Sequence[str] = ()) -> list[str]:
    """Return the names of the logs that `index_logs` would index.

    Raises:
        ConfigurationError: there is no archive, or no such log.
        StoreError: the archive does not answer.
    """
    with closing(open_store(settings.archive, settings.s3)) as store:
        read_archive(store)
        return [str(log) for log in choose_logs(list_logs(store), wanted)]


def unforeseen(error: Exception) -> str:
    """Log an unexpected error with its traceback, and return a message about it."""
    logger.error("unexpected error while indexing", exc_info=error)
    return (
        f"unexpected error while indexing ({type(error).__name__}): the log has the traceback, please"
        " report it; `custody index` tries again"
    )
