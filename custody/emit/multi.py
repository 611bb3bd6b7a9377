"""Writes each event to several places, such as Kafka and Elasticsearch."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import TypeVar

from custody.emit.builders import AuditEvent
from custody.emit.encode import CheckedLine
from custody.emit.errors import AuditError
from custody.emit.queue import Build
from custody.emit.worker import Left
from custody.emit.writer import AuditWriter, QueuedWriter
from custody.errors import ConfigurationError

__all__ = ["MultiWriter"]

T = TypeVar("T")


class MultiWriter(AuditWriter):
    """Gives each event to all of its writers, one after the other, and fails at the first that does not take it.

    The error's `accepted` names the writers that have the event already. Writing it again doubles it there. So write
    the same event object again: it keeps its `event_id`, by which the repeat is recognised.

    A writer takes an event into its queue. What happens later, to one backend that is away for instance, is a matter of
    that writer and its spool: see its counters.
    """

    def __init__(self, writers: Mapping[str, AuditWriter]) -> None:
        """Set up.

        Args:
            writers: by names of your choice, in the order in which they get each event. Closing this closes them.

        Raises:
            ConfigurationError: there is none, or two have the same spool and destination.
        """
        if not writers:
            raise ConfigurationError("a MultiWriter needs at least one writer")
        self.writers = dict(writers)
        spools = {
            name: writer.spool
            for name, writer in writers.items()
            if isinstance(writer, QueuedWriter) and writer.spool is not None
        }
        for first, second in combinations(spools, 2):
            if spools[first] == spools[second]:
                raise ConfigurationError(
                    f"the writers {first} and {second} have the same spool and destination: each would send what the"
                    " other one left: give each a folder of its own"
                )

    def write(self, event: AuditEvent | CheckedLine) -> None:
        """Give an event to each writer; as `AuditWriter.write`.

        Raises:
            AuditError: of the first writer that did not take it. `accepted` names those that did.
        """
        self._give(lambda writer: writer.write(event))

    async def write_async(self, event: AuditEvent | CheckedLine) -> None:
        """Give an event to each writer; as `AuditWriter.write_async`.

        Raises:
            AuditError: as `write`.
        """
        accepted: list[str] = []
        for name, writer in self.writers.items():
            with _naming(name, accepted):
                await writer.write_async(event)

    def submit(self, build: Build, size: int, *, reserved: bool = False) -> None:
        """Give what makes events to each writer; as `AuditWriter.submit`. It is called once, for all of them.

        With places that were reserved, each writer gets it, whatever another one does: it fails only for those that
        were closed meanwhile. Where others have it, it counts as dropped for those alone.

        Raises:
            AuditError: as `write`. With reserved places, of the first writer that did not take it.
        """
        once = _Once(build)
        if not reserved:
            self._give(lambda writer: writer.submit(once, size))
            return
        accepted: list[str] = []
        failed: list[tuple[str, AuditWriter, AuditError]] = []
        for name, writer in self.writers.items():
            try:
                writer.submit(once, size, reserved=True)
            except AuditError as error:
                failed.append((name, writer, error))
            else:
                accepted.append(name)
        if accepted:
            for _, writer, _ in failed:
                writer.drop()
        for name, _, failure in failed:
            with _naming(name, accepted):
                raise failure

    def offer(self, build: Build, size: int) -> bool:
        """Give what makes events to each writer, or to none if one has no room; as `AuditWriter.offer`.

        Raises:
            AuditError: as `submit` with reserved places.
        """
        if not self.reserve():
            return False
        self.submit(build, size, reserved=True)
        return True

    def size(self, event: AuditEvent) -> int:
        """Return how many bytes an event takes at most; as `AuditWriter.size`."""
        return max(writer.size(event) for writer in self.writers.values())

    def refuse(self) -> None:
        """Count an event that is not valid, for each writer."""
        for writer in self.writers.values():
            writer.refuse()

    def has_room(self, size: int) -> bool:
        """Return whether each writer has room for so many bytes."""
        return all(writer.has_room(size) for writer in self.writers.values())

    def reserve(self) -> bool:
        """Keep a place in each writer's queue, or in none; as `AuditWriter.reserve`."""
        kept: list[AuditWriter] = []
        for writer in self.writers.values():
            if not writer.reserve():
                for other in kept:
                    other.release()
                return False
            kept.append(writer)
        return True

    def release(self) -> None:
        """Give the place in each writer's queue back."""
        for writer in self.writers.values():
            writer.release()

    def drop(self, events: int = 1) -> None:
        """Count events that were not written, for each writer."""
        for writer in self.writers.values():
            writer.drop(events)

    def flush(self, seconds: float) -> int:
        """Wait until all writers have delivered their events, for so long at most; return how many are not, in all."""
        return sum(self._at_once(lambda writer: writer.flush(seconds)))

    def close(self, seconds: float | None = None) -> Left:
        """Close all writers at the same time, and return what was left, in all; as `AuditWriter.close`."""
        left = self._at_once(lambda writer: writer.close(seconds))
        return Left(sum(each.spooled for each in left), sum(each.lost for each in left))

    def counters(self) -> dict[str, int]:
        """Return the sums of all writers' counts. An event counts once for each writer."""
        total: Counter[str] = Counter()
        for writer in self.writers.values():
            total.update(writer.counters())
        return dict(total)

    def _give(self, give: Callable[[AuditWriter], None]) -> None:
        accepted: list[str] = []
        for name, writer in self.writers.items():
            with _naming(name, accepted):
                give(writer)

    def _at_once(self, do: Callable[[AuditWriter], T]) -> list[T]:
        writers = list(self.writers.values())
        with ThreadPoolExecutor(len(writers)) as pool:
            try:
                return [future.result() for future in [pool.submit(do, writer) for writer in writers]]
            except RuntimeError:
                # No thread can be started while the interpreter ends. What was closed already stays so.
                return [do(writer) for writer in writers]


@contextmanager
def _naming(name: str, accepted: list[str]) -> Iterator[None]:
    """Note the writer as one that has the event, or raise its error with its name and with those that have it.

    Raises:
        AuditError: the writer did not take the event.
    """
    try:
        yield
    except AuditError as error:
        accepted += error.accepted
        has = f" ({', '.join(accepted)} took it)" if accepted else ""
        raise AuditError(error.kind, f"{name}: {error}{has}", tuple(accepted)) from error
    accepted.append(name)


class _Once:
    """Makes the events for the first writer that asks, and gives the same ones to the others.

    Each gets what was made before an error, and then the error.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._is_made = False
        self._made: list[AuditEvent] = []
        self._error: BaseException | None = None

    def __call__(self) -> Iterable[AuditEvent]:
        with self._lock:
            if not self._is_made:
                self._is_made = True
                self._make()
        yield from self._made
        if self._error is not None:
            raise self._error

    def _make(self) -> None:
        try:
            # Not `extend`, which drops what came before the error.
            for event in self._build():
                self._made.append(event)
        except BaseException as error:  # noqa: BLE001 - each writer raises it
            self._error = error
