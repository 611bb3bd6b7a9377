"""Asks a store for several objects at once: the time of a request to a remote store is nearly all waiting."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Any, Self, TypeVar, cast

from custody.errors import CustodyError
from custody.format.limits import MIB
from custody.store.over import Over
from custody.store.protocol import ObjectInfo, Store, is_local

AHEAD = 32
"""Items that wait in front of the one whose result is taken."""

_BEHIND = 8
"""Objects that stay although they were asked for."""
MOST_LISTED = 999
"""Objects of a listing up to which it is kept. One more, in the same request, shows whether there are others."""
_MOST_KEPT = 100_000
"""Objects of all listings that are kept: 30 MB."""
_MOST_BYTES = 32 * MIB
"""Bytes of all objects that are kept."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_order(threads: Executor, function: Callable[[_T], _R], items: Iterable[_T], ahead: int = AHEAD) -> Iterator[_R]:
    """Yield what a function returns for each item, in their order. It is called in threads, for a few items ahead.

    Unlike `Executor.map` it takes items as results are taken: there may be millions. An error comes in its turn, also
    one of the items themselves.

    Args:
        threads: call the function.
        function: takes an item.
        items: what it is called for.
        ahead: how many items may be begun that were not taken yet.
    """
    left = iter(items)
    begun: deque[Future[_R]] = deque()
    failure: Exception | None = None
    try:
        while True:
            try:
                while failure is None and len(begun) < ahead:
                    begun.append(threads.submit(function, next(left)))
            except StopIteration:
                left = iter(())
            except Exception as error:  # noqa: BLE001 - it is raised below, behind what was begun before
                failure = error
            if begun:
                yield begun.popleft().result()
            elif failure is not None:
                raise failure
            else:
                return
    finally:
        for future in begun:
            future.cancel()


def call_ahead(store: Store, function: Callable[[_T], _R], items: Iterable[_T], ahead: int = AHEAD) -> Iterator[_R]:
    """Yield what a function returns for each item, as `in_order`, in threads of its own.

    From a folder, one after the other: there that is not slower.

    Args:
        store: what the function reads from.
        function: takes an item.
        items: what it is called for.
        ahead: how many items may be begun that were not taken yet.
    """
    if is_local(store):
        yield from map(function, items)
        return
    threads = ThreadPoolExecutor(ahead)
    try:
        yield from in_order(threads, function, items, ahead)
    finally:
        # Who was interrupted does not wait for answers that nobody will take.
        threads.shutdown(wait=False, cancel_futures=True)


class ReadAhead(Over):
    """A store that reads whole objects before they are asked for, once it was told which. It is of one thread.

    Who gets it need not know: what was not expected is read as from the store itself. In a folder, all is.
    """

    def __init__(self, store: Store, limit: int) -> None:
        """Set up. Reads nothing.

        Args:
            store: the store.
            limit: with which the objects will be read.
        """
        super().__init__(store)
        self._limit = limit
        self._threads = None if is_local(store) else ThreadPoolExecutor(AHEAD)
        self._expected: Iterator[str] = iter(())
        self._begun: dict[str, Future[bytes]] = {}
        self._waiting: set[str] = set()
        """Those of the keys in `_begun` that were not asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def expect(self, keys: Iterable[str]) -> None:
        """Read these objects ahead from now on, in this order, and no others."""
        self._expected = iter(keys)
        self._waiting.clear()

    def read(self, key: str, *, limit: int, **part: Any) -> bytes:
        """Return an object, or a part of it, as the store does."""
        if self._threads is None or part or limit != self._limit:
            return self._store.read(key, limit=limit, **part)
        self._waiting.discard(key)
        for expected in islice(self._expected, AHEAD - len(self._waiting)):
            self._begun[expected] = self._threads.submit(self._store.read, expected, limit=limit)
            self._waiting.add(expected)
        self._waiting.discard(key)
        future = self._begun.get(key)
        # Some that were asked for stay: who looks at what follows an entry may have been before who reads that.
        while len(self._begun) > AHEAD + _BEHIND:
            oldest = next(iter(self._begun))
            self._waiting.discard(oldest)
            del self._begun[oldest]
        return self._store.read(key, limit=limit) if future is None else future.result()


class AskAhead(Over):
    """A store that was asked in threads beforehand. It gives each answer once.

    Answers are objects, listings, and whether an object exists. Who gets it need not know: what nobody
    has asked is asked of the store itself.
    """

    def __init__(self, store: Store) -> None:
        """Begin without an answer."""
        super().__init__(store)
        self.forget()

    def forget(self) -> None:
        """Drop all answers that were not given."""
        self._answers: dict[tuple[str, ...], Any] = {}
        self._asking = cast("Store", _Asking(self._store, self._answers))

    def ask(self, questions: Callable[[Store, _T], object], items: Iterable[_T]) -> None:
        """Ask some questions for each item. Errors are not kept: who asks in earnest gets them.

        Args:
            questions: asks what will be asked for an item.
            items: for which it asks.
        """
        if is_local(self._store):
            return

        def ask(item: _T) -> None:
            with suppress(CustodyError):
                questions(self._asking, item)

        for _ in call_ahead(self._store, ask, items):
            pass

    def read(self, key: str, *, limit: int, **part: Any) -> bytes:
        """Return an object, or a part of it, as the store does."""
        other = part.keys() - {"start", "size"}
        known: bytes | None = None if other else self._answers.pop(("read", key), None)
        if known is None:
            return self._store.read(key, limit=limit, **part)
        start, size = part.get("start", 0), part.get("size")
        wanted = known[start : None if size is None else start + size]
        # The store refuses what is larger.
        return wanted if len(wanted) <= limit else self._store.read(key, limit=limit, **part)

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        known: bool | None = self._answers.pop(("exists", key), None)
        return self._store.exists(key) if known is None else known

    def list(self, prefix: str = "", *, after: str = "", **more: Any) -> Iterator[ObjectInfo]:
        """Yield the objects with a prefix, behind a key."""
        known: Sequence[ObjectInfo] | None = None if more else self._answers.pop(("list", prefix, after), None)
        return self._store.list(prefix, after=after, **more) if known is None else iter(known)


class _Asking:
    """Asks a store, and keeps the answers, as far as there is room."""

    def __init__(self, store: Store, answers: dict[tuple[str, ...], Any]) -> None:
        self._store, self._answers = store, answers
        self._listed, self._bytes, self._lock = _MOST_KEPT, _MOST_BYTES, Lock()

    @property
    def url(self) -> str:
        return self._store.url

    def read(self, key: str, *, limit: int) -> bytes:
        answer = self._store.read(key, limit=limit)
        with self._lock:
            if len(answer) <= self._bytes:
                self._bytes -= len(answer)
                self._answers["read", key] = answer
        return answer

    def exists(self, key: str) -> bool:
        answer = self._answers["exists", key] = self._store.exists(key)
        return answer

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        listed = self._store.list(prefix, after=after)
        first = list(islice(listed, MOST_LISTED + 1))
        with self._lock:
            # What is longer than a page is not kept: it takes many requests in any case.
            if len(first) <= min(MOST_LISTED, self._listed):
                self._listed -= len(first)
                self._answers["list", prefix, after] = first
        return iter(first)
