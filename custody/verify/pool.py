"""Checks the objects of statements, in groups: in this process, or in worker processes a few at a time.

Worker processes never get a secret. If the leaf secret of a batch is available, this process makes the salts and sends
them along: 16 bytes per event. They reveal nothing about the secret, and making them costs a tenth of the check.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Self

from custody.errors import FormatError
from custody.format import leaves, limits
from custody.format.manifest import Batch
from custody.keys.secret import Secret
from custody.store.protocol import Store
from custody.verify.contents import Archived, check_several
from custody.verify.work import Outcome, Sink, Work

_GROUP_BYTES = 16 * 1_048_576
_GROUP_WORKS = 64
_SALTED_EVENTS = 1_000_000
"""The most events in a group for which salts are sent (16 MB). Beyond it, this process makes them batch by batch."""

_Name = tuple[str, str, str, int, int]
_Made = dict[_Name, bytes]


class Pool:
    """Has the objects of statements checked, in groups."""

    def __init__(
        self,
        store: Store,
        workers: int,
        take: Callable[[Outcome], None],
        sink: Sink | None = None,
        leaves: Mapping[str, Secret] | None = None,
    ) -> None:
        """Start the worker processes.

        Args:
            store: the archive.
            workers: how many processes; 0 for none.
            take: gets each outcome.
            sink: gets inflated batches; only without worker processes.
            leaves: leaf secrets by key id (`Trust.leaves`). The leaves of batches with another key are not checked.
        """
        self._store = store
        self._leaves = leaves or {}
        self._sink = sink
        self._take = take
        self._archived: Archived = set()
        self._bound = 2 * workers
        self._group: list[Work] = []
        self._weight = 0
        self._pending: dict[Future[list[Outcome]], list[Work]] = {}
        self._processes = _processes(workers, store) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._processes:
                self._processes.shutdown(cancel_futures=True)

    def finish(self) -> None:
        """Check all that waits, and wait for it."""
        self._send()
        while self._pending:
            self._collect()

    def put(self, work: Work) -> None:
        """Queue a statement's objects for checking."""
        self._group.append(work)
        self._weight += work.weight
        if self._weight >= _GROUP_BYTES or len(self._group) >= _GROUP_WORKS:
            self._send()

    def _send(self) -> None:
        group, self._group, self._weight = self._group, [], 0
        if not group:
            return
        made = self._made(group)
        if self._processes is not None and made is not None:
            try:
                self._pending[self._processes.submit(_check_in_worker, group, made)] = group
            except (BrokenProcessPool, OSError):
                # A process cannot be started: this machine may have no room for temporary files.
                self._processes = None
            else:
                while len(self._pending) > self._bound:
                    self._collect()
                return
        self._check_here(group)

    def _collect(self) -> None:
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            group = self._pending.pop(future)
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                # A worker was killed, or could not be started: do its work here.
                self._processes = None
                self._check_here(group)
                continue
            for outcome in outcomes:
                self._take(outcome)

    def _check_here(self, group: Sequence[Work]) -> None:
        salts = self._salts if self._leaves else None
        for outcome in check_several(self._store, group, self._sink, salts, archived=self._archived):
            self._take(outcome)

    def _made(self, group: Sequence[Work]) -> _Made | None:
        """Return the salts of a group's batches, None if there are too many to send."""
        wanted = [(work, batch) for work in group for batch in work.batches] if self._leaves else []
        wanted = [(work, batch) for work, batch in wanted if batch.leaves and batch.leaves.key in self._leaves]
        if sum(batch.events for _, batch in wanted) > _SALTED_EVENTS:
            return None
        made = ((_name(work, batch), self._salts(work, batch)) for work, batch in wanted)
        return {name: salts for name, salts in made if salts is not None}

    def _salts(self, work: Work, batch: Batch) -> bytes | None:
        secret = self._leaves.get(batch.leaves.key) if batch.leaves else None
        # The number of events is only a claim of the statement.
        if secret is None or batch.events > limits.BATCH_EVENTS:
            return None
        return leaves.salts(secret, work.archive, work.log, batch.number, batch.events)


def _processes(workers: int, store: Store) -> ProcessPoolExecutor | None:
    """Return worker processes, None if this machine cannot have any: no shared memory, or too few open files."""
    # Not forked from this process: it may have threads.
    context = multiprocessing.get_context("forkserver")
    try:
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=(store,))
    except (OSError, ImportError, NotImplementedError):
        return None


def _name(work: Work, batch: Batch) -> _Name:
    """Return all that a batch's salts depend on."""
    return work.archive, work.log, batch.leaves.key if batch.leaves else "", batch.number, batch.events


_worker_store: Store | None = None
_worker_archived: Archived = set()


def _open(store: Store) -> None:
    """Start a worker. The store arrives as its URL and options, and is opened again."""
    global _worker_store
    _worker_store = store


def _check_in_worker(works: Sequence[Work], made: _Made) -> list[Outcome]:
    if _worker_store is None:
        raise FormatError("this process was not started as a worker")
    outcomes = check_several(
        _worker_store, works, salts=lambda work, batch: made.get(_name(work, batch)), archived=_worker_archived
    )
    return list(outcomes)
