"""Indexes archived events in Elasticsearch: each log from its cursor to its head, statement by statement.

Events are read from the archive, not from Kafka. So it makes no difference whether Elasticsearch was down, lost, or
restored from an old snapshot. Cursors are stored in Elasticsearch, and others may change them. A cursor that cannot be
true is ignored; the nightly audit finds what a wrong one hides (`tasks.search.reconcile`).

A damaged statement does not stop the indexing. The result names a manifest that is missing or cannot be read, and a
segment that is lost, differs from its statement or has an invalid line; later statements are still indexed.

A `Follower` indexes while a drain runs, right after each manifest, in a thread of its own. The drain waits for it only
at its end. It tells the follower where its logs end, so that nothing is asked of the archive but what is to be indexed.
If it takes long to open them, the follower begins without that.
"""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import chain

from custody.archive import time_index
from custody.archive.reader import choose_logs, list_logs, read_archive
from custody.archive.search import sealed_between
from custody.archive.time_index import TimeIndex
from custody.archive.trusted import check_keys, standing, unverified
from custody.errors import CustodyError, FormatError, ObjectArchived, ObjectMissing, counted
from custody.format import layout, limits
from custody.format.layout import Log
from custody.format.times import parse_time
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.search.bulk import Bulk, describe_rejected
from tasks.search.client import Search
from tasks.search.documents import read_documents
from tasks.search.following import Following, New, next_listed
from tasks.search.indices import prepare, put_cursor, read_cursor
from tasks.settings import Settings

GRACE_SECONDS = 10.0
"""How long the end of a drain waits for the last events to be indexed."""
ALL_LOGS = "all logs"
"""The log in a result that is of no one log: nothing could be indexed."""
_LOOK_SECONDS = 5.0
_CURSOR_SECONDS = 2.0
_AHEAD = 200
"""Statements whose times are read at once, behind one that is too old."""
_WAITING, _SEGMENT_BYTES = 8, 2 * limits.MIB
"""Statements that are read ahead, and bytes of a segment up to which it is too: they take 16 MiB at most."""

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
    """Indexes logs of one archive."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        search: Search,
        archive: str,
        trust: Trust,
        threads: Executor,
        problems: Sequence[str] = (),
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
        """
        self._threads = threads
        self._problems = problems
        self._settings, self._store, self._search, self._archive = settings.search, store, search, archive
        self._bulk = Bulk(search)
        self._holds, self._trust = standing(store, archive, trust), trust
        for _, message in unverified(trust, {}):
            logger.warning("unverified: %s", message)
        self._cursors: dict[Log, int] = {}
        self._untrue: dict[Log, str] = {}
        """Cursors that cannot be true."""
        self._skipped: dict[Log, dict[int, str]] = defaultdict(dict)
        """Statements that could not be indexed, and why."""
        self._ended: set[Log] = set()
        """Logs whose end was compared with a listing. That costs more than a read, so it is done once."""

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
        failure = None
        result.listed = self._search.rejected
        try:
            self._follow(log, result, go_on, end)
        except CustodyError as error:
            # Indexing a statement again does no harm.
            self._cursors.pop(log, None)
            failure = str(error)
        except Exception as error:  # noqa: BLE001 - it must not end the indexing of other logs
            # Not again before the log grows: an error in our code does not go away by waiting.
            result.problem = _unforeseen(error)
            return True
        result.problem = (
            "; ".join(filter(None, [failure, self._untrue.get(log), self._skips(log), *self._problems])) or None
        )
        return failure is None

    def _follow(self, log: Log, result: IndexResult, go_on: Callable[[], bool], end: int | None) -> None:
        oldest = datetime.now(UTC) - timedelta(days=self._settings.days)
        written = self._cursors[log] if log in self._cursors else self._read_cursor(log, end)
        sequence, skipped, since = written or 0, self._skipped[log], time.monotonic()
        holds = self._holds(log)
        following = Following(
            self._store, log, holds, sequence, end, self._threads, ahead=_WAITING, most=_SEGMENT_BYTES
        )
        while go_on():
            result.sequence = sequence
            if sequence == end:
                result.behind = 0.0
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
                result.behind = 0.0
                break
            statement = new.statement
            result.sequence = statement.sequence
            # A time of the future does not tell how long it waits. It must not hide that it does.
            result.behind = abs((datetime.now(UTC) - parse_time(statement.sealed_at)).total_seconds())
            self._index(log, new, result)
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
        cursor = read_cursor(self._search, self._archive, log)
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
def _open(settings: Settings) -> Iterator[tuple[Store, Indexer]]:
    """Open the archive and Elasticsearch, prepare its indices, and yield the archive's store and its indexer."""
    with closing(open_store(settings.archive, settings.s3)) as store:
        file = read_archive(store)
        trust = settings.trust_at_hand()
        check_keys(store, file, trust)
        with closing(Search(settings.search)) as search:
            search.reach()
            with ThreadPoolExecutor(_WAITING, "read-ahead") as threads:
                yield store, Indexer(settings, store, search, file.id, trust, threads, prepare(search))


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
    with _open(settings) as (store, indexer):
        results = {log: IndexResult(str(log)) for log in choose_logs(list_logs(store), wanted)}
        for log, result in results.items():
            indexer.index(log, result)
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


class Follower:
    """Indexes while a drain runs, in a thread of its own."""

    def __init__(self, settings: Settings, partitions: Sequence[tuple[str, int]] | None = None) -> None:
        """Begin to index.

        Args:
            settings: the settings; they name an Elasticsearch.
            partitions: the topic partitions; all if None.
        """
        self._settings, self._partitions = settings, None if partitions is None else set(partitions)
        self._left: set[tuple[str, int]] = set()
        self._ends: dict[Log, int] = {}
        """Sizes of logs, by the drain."""
        self._opened = False
        self._sealed: set[Log] = set()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._results: dict[Log, IndexResult] = {}
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def opened(self, ends: Mapping[Log, int]) -> None:
        """Take the sizes of the logs that the drain has opened."""
        with self._changed:
            self._ends, self._opened = {**ends, **self._ends}, True
            self._changed.notify()

    def sealed(self, log: Log, size: int) -> None:
        """Note that a log has a new statement, and how many it has now. Never waits."""
        with self._changed:
            self._sealed.add(log)
            self._ends[log] = size
            self._changed.notify()

    def leave(self, partitions: Sequence[tuple[str, int]]) -> None:
        """Leave the logs of partitions to another process that indexes them."""
        with self._changed:
            self._left.update(partitions)

    def end(self) -> list[IndexResult]:
        """Index the last statements, for at most `GRACE_SECONDS`, and return the results."""
        with self._changed:
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._changed.notify()
        self._thread.join(GRACE_SECONDS + 1)
        with self._changed:
            results = [replace(result) for result in self._results.values()]
        problem = self._problem
        if self._thread.is_alive():
            # It looks at the time before each statement, so a request is without an answer.
            problem = problem or (
                f"Elasticsearch at {self._settings.search.url} has not answered for {GRACE_SECONDS:.0f} s: the next run"
                " continues"
            )
        if problem is not None:
            results = results or [IndexResult(ALL_LOGS)]
            for result in results:
                result.problem = result.problem or problem
        return sorted(results, key=lambda result: result.log)

    def _go_on(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline

    def _is_ours(self, log: Log) -> bool:
        return (log.topic, log.partition) not in self._left and self._go_on()

    def _run(self) -> None:
        while self._go_on():
            try:
                with _open(self._settings) as (store, indexer):
                    self._problem = None
                    self._follow(store, indexer)
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
        """Index each log once, since an earlier run may have left statements, and then what is sealed or failed.

        A log that has a new statement goes before the others: they may be many, and people wait for what is new. The
        others have no order, so that runs without time for all do not leave out the same ones each time.
        """
        chosen, is_last = self._partitions, False
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._deadline is not None, _LOOK_SECONDS)
        waiting = {log for log in list_logs(store) if chosen is None or (log.topic, log.partition) in chosen}
        failed: set[Log] = set()
        while self._go_on():
            with self._changed:
                log = next(iter(self._sealed or waiting), None)
                if log is None:
                    if is_last:
                        return
                    self._changed.wait_for(lambda: self._sealed or self._deadline is not None, _LOOK_SECONDS)
                    is_last = self._deadline is not None
                    waiting, failed = failed, set()
                    continue
                end = self._ends.get(log)
                for logs in (self._sealed, waiting, failed):
                    logs.discard(log)
                result = self._results.setdefault(log, IndexResult(str(log))) if self._is_ours(log) else None
            if result is not None and not indexer.index(log, result, partial(self._is_ours, log), end):
                failed.add(log)


def joined(*parts: Sequence[IndexResult]) -> list[IndexResult]:
    """Return one result a log. Of a log that two processes indexed, the later one knows how far it is."""
    results: dict[str, IndexResult] = {}
    for result in chain.from_iterable(parts):
        earlier = results.get(result.log)
        if earlier is not None and result.log != ALL_LOGS:
            result = replace(
                result,
                created=earlier.created + result.created,
                there=earlier.there + result.there,
                rejected=earlier.rejected + result.rejected,
                reasons=earlier.reasons + result.reasons,
            )
        results[result.log] = result
    return sorted(results.values(), key=lambda result: result.log)


def _unforeseen(error: Exception) -> str:
    """Log an unexpected error with its traceback, and return a message about it."""
    logger.error("unexpected error while indexing", exc_info=error)
    return (
        f"unexpected error while indexing ({type(error).__name__}): the log has the traceback, please"
        " report it; `custody index` tries again"
    )
