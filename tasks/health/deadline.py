"""Limits how long an answer of the archive's storage is waited for.

Rules:
- Work runs in threads that end with the process, because a call that hangs cannot be ended.
- A storage that gave no answer once is not asked again: everything after it fails at once.
- A slow storage is no silent one: each log that was read begins the wait anew.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from custody.errors import TransientStoreError

SECONDS = 10.0
"""How long a step, or a log, may take."""
_THREADS = 8
"""Logs that are read at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Deadline:
    """Runs steps that ask the storage, each for a limited time.

    Attributes:
        seconds: how long a step, or a log, may take; None without a limit.
        passed: whether one took longer.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds, self.passed = seconds, False

    def error(self) -> TransientStoreError:
        """Return the error for what was not answered."""
        return TransientStoreError(f"the archive's storage did not answer within {self.seconds or 0:g} s")

    def call(self, step: Callable[[], Result]) -> Result:
        """Return a step's result.

        Raises:
            TransientStoreError: it did not end in time, or an earlier one did not.
            Exception: what the step raises.
        """
        ((_, result),) = self.each(lambda _: step(), [None])
        return result

    def each(self, step: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield each item with its result, several at the same time, as they end.

        Raises:
            TransientStoreError: for longer than the limit none ended, or an earlier step was late.
            Exception: what a step raises.
        """
        if self.passed:
            raise self.error()
        waiting, ended = queue.SimpleQueue[Item](), queue.SimpleQueue[tuple[Item, Future[Result]]]()
        for item in items:
            waiting.put(item)

        def work() -> None:
            with suppress(queue.Empty):
                while not self.passed:
                    item, future = waiting.get_nowait(), Future[Result]()
                    try:
                        future.set_result(step(item))
                    except Exception as error:  # noqa: BLE001 - `result` raises it again
                        future.set_exception(error)
                    ended.put((item, future))

        for _ in range(min(_THREADS, len(items))):
            threading.Thread(target=work, name="health", daemon=True).start()
        for _ in items:
            try:
                item, future = ended.get(timeout=self.seconds)
            except queue.Empty:
                self.passed = True
                raise self.error() from None
            yield item, future.result()
