"""Indexes while a drain runs, right after each manifest, in threads of its own.

The drain waits for the follower only at its end. It tells it where its logs end, so that nothing is asked of the
archive but what is to be indexed. If it takes long to open them, the follower begins without that.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from custody.archive.reader import list_logs
from custody.errors import CustodyError
from custody.format.layout import Log
from tasks.search.index import AT_ONCE, Indexer, IndexResult, open_indexer, unforeseen
from tasks.settings import Settings

GRACE_SECONDS = 10.0
"""How long the end of a drain waits for the last events to be indexed."""
ALL_LOGS = "all logs"
"""The log in a result that is of no one log: nothing could be indexed."""
_ENDING_SECONDS = 2.0
"""How long requests that are under way then may still take."""
_LOOK_SECONDS = 5.0


class Follower:
    """Indexes while a drain runs, in threads of its own."""

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
        self._since: dict[Log, float] = {}
        """When the last statement of a log was sealed."""
        self._opened = False
        self._sealed: set[Log] = set()
        self._begun: set[Log] = set()
        """Logs that are being indexed."""
        self._failed: set[Log] = set()
        self._changed = threading.Condition()
        self._ending = False
        """Whether the drain has ended, and waits."""
        self._stopped = threading.Event()
        """Set when it waits no longer."""
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
            self._since[log] = time.monotonic()
            self._ends[log] = size
            self._changed.notify()

    def leave(self, partitions: Sequence[tuple[str, int]]) -> None:
        """Leave the logs of partitions to another process that indexes them."""
        with self._changed:
            self._left.update(partitions)

    def end(self) -> list[IndexResult]:
        """Index the last statements, for at most `GRACE_SECONDS`, and return the results."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(GRACE_SECONDS)
        self._stopped.set()
        self._thread.join(_ENDING_SECONDS)
        is_alive = self._thread.is_alive()
        with self._changed:
            results = {log: replace(result, reasons=Counter(result.reasons)) for log, result in self._results.items()}
            self._note_left(results)
            problem, concerned = self._problem, list(results.values())
            if is_alive and problem is None:
                # No more requests are begun, so one is without an answer.
                problem = (
                    f"Elasticsearch at {self._settings.search.url}, or the archive, has not answered for"
                    f" {GRACE_SECONDS:.0f} s: the next run continues"
                )
                begun = [results[log] for log in self._begun if log in results]
                concerned = begun or [result for result in concerned if result.behind]
        for result in concerned:
            result.problem = result.problem or problem
        if problem is not None and not results:
            return [IndexResult(ALL_LOGS, problem=problem)]
        return sorted(results.values(), key=lambda result: result.log)

    def _note_left(self, results: dict[Log, IndexResult]) -> None:
        """Note how long the logs are behind for which there was no time. They may have no result yet."""
        now = time.monotonic()
        for log, since in self._since.items():
            if self._is_ours(log):
                result = results.setdefault(log, IndexResult(str(log)))
                if result.sequence < self._ends[log]:
                    result.behind = result.behind or now - since

    def _is_ours(self, log: Log) -> bool:
        return (log.topic, log.partition) not in self._left

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with open_indexer(self._settings, self._stopped) as (store, indexer):
                    self._problem = None
                    with self._changed:
                        self._changed.wait_for(lambda: self._opened or self._ending, _LOOK_SECONDS)
                    chosen = self._partitions
                    logs = {log for log in list_logs(store) if chosen is None or (log.topic, log.partition) in chosen}
                    indexer.read_cursors(logs)
                    self._follow(logs, indexer)
                    return
            except CustodyError as error:
                self._problem = str(error)
            except Exception as error:  # noqa: BLE001 - nobody else would see it
                self._problem = unforeseen(error)
                return
            with self._changed:
                if self._ending:
                    return
                self._changed.wait_for(lambda: self._ending, _LOOK_SECONDS)

    def _follow(self, waiting: set[Log], indexer: Indexer) -> None:
        """Index each log once, since an earlier run may have left statements, and then what is sealed or failed.

        A log that has a new statement goes before the others: they may be many, and people wait for what is new. The
        others have no order, so that runs without time for all do not leave out the same ones each time.
        """
        is_last = False
        while not self._stopped.is_set():
            with self._changed:
                log = next((log for log in chain(self._sealed, waiting) if log not in self._begun), None)
                if len(self._begun) == AT_ONCE or (log is None and self._begun):
                    self._changed.wait(_LOOK_SECONDS)
                    continue
                if log is None:
                    if is_last:
                        return
                    self._changed.wait_for(lambda: self._sealed or self._ending, _LOOK_SECONDS)
                    is_last = self._ending
                    waiting, self._failed = self._failed, set()
                    continue
                for logs in (self._sealed, waiting, self._failed):
                    logs.discard(log)
                self._begun.add(log)
                arguments = (log, self._ends.get(log), indexer)
            # The interpreter does not wait for it at its end. It is started without the lock: who seals must not wait.
            thread = threading.Thread(target=self._index, args=arguments, name=f"index {log}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # This machine gives no more threads.
                self._index(*arguments)
        with self._changed:
            # There is no time left. Each of them looks at that before its next statement.
            self._changed.wait_for(lambda: not self._begun)

    def _index(self, log: Log, end: int | None, indexer: Indexer) -> None:
        """Index a log up to its end."""
        done = True
        with self._changed:
            result = self._results.setdefault(log, IndexResult(str(log))) if self._is_ours(log) else None
        try:
            if result is not None:
                done = indexer.index(log, result, partial(self._is_ours, log), end)
        except Exception as error:  # noqa: BLE001 - nobody else would see it
            if result is not None:
                result.problem = unforeseen(error)
        finally:
            with self._changed:
                self._begun.discard(log)
                if not done:
                    self._failed.add(log)
                self._changed.notify()


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
