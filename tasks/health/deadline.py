"""Limits how long an answer of the archive's storage is waited for.

Rules:
- Work runs in threads that end with the process, because a call that hangs cannot be ended.
- A storage that gave no answer once is not asked again: everything after it fails at once.
- A slow storage is no silent one: each answer to a request begins the wait anew (`Deadline.watch`).
- Once the results are not wanted any more, the threads begin no other item, and requests to a closed store fail.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from custody.errors import CustodyError, TransientStoreError
from custody.store.protocol import Capabilities, ObjectInfo, ObjectStatus, Store

SECONDS = 10.0
"""How long an answer of the storage is waited for."""
_THREADS = 8
"""Logs that are read at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Deadline:
    """Runs steps that ask the storage, as long as it answers.

    Attributes:
        seconds: how long an answer of a store that is watched, or else the end of a step, is waited for; None without
            a limit.
        passed: whether one took longer.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.passed = seconds, False
        self._begun = time.monotonic()

    def watch(self, store: Store) -> Store:
        """Return a store, each answer of which begins the wait anew. After a late one, it is not asked again."""
        return _Watched(store, self)

    def begin(self) -> None:
        """Begin the wait anew."""
        self._begun = time.monotonic()

    def error(self) -> TransientStoreError:
        """Return the error for what was not answered."""
        return TransientStoreError(f"the archive's storage did not answer within {self.seconds or 0:g} s")

    def call(self, step: Callable[[], Result]) -> Result:
        """Return a step's result.

        Raises:
            TransientStoreError: an answer was late, or an earlier one was.
            Exception: what the step raises.
        """
        ((_, result),) = self.each(lambda _: step(), [None])
        return result

    def each(self, step: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result, several at the same time, as they end.

        Raises:
            TransientStoreError: for longer than the limit there was no answer, or an earlier one was late.
            Exception: what a step raises.
        """
        if self.passed:
            raise self.error()
        unwanted = threading.Event()
        waiting, ended = queue.SimpleQueue[Item](), queue.SimpleQueue[tuple[Item, Future[Result]]]()
        for item in items:
            waiting.put(item)

        def work() -> None:
            with suppress(queue.Empty):
                while not unwanted.is_set():
                    item, future = waiting.get_nowait(), Future[Result]()
                    try:
                        future.set_result(step(item))
                    except Exception as error:  # noqa: BLE001 - `result` raises it again
                        future.set_exception(error)
                    ended.put((item, future))

        for _ in range(min(_THREADS, len(items))):
            threading.Thread(target=work, name="health", daemon=True).start()
        try:
            for _ in items:
                item, future = self._await(ended)
                yield item, future.result()
        finally:
            unwanted.set()

    def _await(self, ended: "queue.SimpleQueue[Result]") -> Result:
        """Return what ends next, as long as the storage answers."""
        self.begin()
        while True:
            left = None if self.seconds is None else self._begun + self.seconds - time.monotonic()
            if left is not None and left <= 0:
                self.passed = True
                raise self.error()
            with suppress(queue.Empty):
                return ended.get(timeout=left)


class _Watched:
    """A store that begins a deadline's wait anew with each answer."""

    def __init__(self, store: Store, deadline: Deadline) -> None:
        self._store, self._deadline, self._closed = store, deadline, False

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    @contextmanager
    def _answer(self) -> Iterator[None]:
        """Begin the wait anew once there is an answer; a refusal is one too.

        Raises:
            TransientStoreError: the store is closed, or gave a late answer before.
        """
        if self._closed:
            raise TransientStoreError("the archive's storage is closed")
        if self._deadline.passed:
            raise self._deadline.error()
        try:
            yield
        except TransientStoreError:
            raise
        except CustodyError:
            self._deadline.begin()
            raise
        self._deadline.begin()

    def create(self, key: str, data: bytes) -> None:
        with self._answer():
            self._store.create(key, data)

    def read(self, key: str, *, limit: int, start: int = 0, size: int | None = None, restored: bool = False) -> bytes:
        with self._answer():
            return self._store.read(key, limit=limit, start=start, size=size, restored=restored)

    def exists(self, key: str) -> bool:
        with self._answer():
            return self._store.exists(key)

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        with self._answer():
            return self._store.level(prefix)

    def list(
        self, prefix: str = "", *, after: str = "", through: str = "", without: Collection[str] = ()
    ) -> Iterator[ObjectInfo]:
        objects = self._store.list(prefix, after=after, through=through, without=without)
        while True:
            with self._answer():
                info = next(objects, None)
            if info is None:
                return
            yield info

    def status(self, key: str) -> ObjectStatus:
        with self._answer():
            return self._store.status(key)

    def remove(self, key: str) -> None:
        with self._answer():
            self._store.remove(key)

    def close(self) -> None:
        self._closed = True
        self._store.close()
