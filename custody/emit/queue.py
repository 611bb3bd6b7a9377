"""The bounded queue between an application's threads and a writer's one thread.

Appending is all that a request waits for. The queue is bounded in items and in bytes. Where events are dropped it has a
mark, so that their numbers can be left out there.

Python may call a destructor or a signal's handler inside of any method here, on the same thread. If that writes an
event too, it must not wait for itself: so the lock may be taken twice, and the thread is woken by a SimpleQueue.
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from custody.emit.builders import AuditEvent
from custody.emit.encode import CheckedLine
from custody.errors import ConfigurationError

__all__ = ["Limits"]

Build = Callable[[], Iterable[AuditEvent]]
"""Makes the events of a request, on the writer's thread."""
Item = CheckedLine | Build


@dataclass(slots=True)
class Dropped:
    """A mark in the queue: so many events were dropped between the items before and behind it."""

    events: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a queue takes.

    Attributes:
        events: how many items.
        bytes: their size. For what makes events it is the size that the caller gives.
    """

    events: int = 100_000
    bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ConfigurationError: one is below 0.
        """
        if self.events < 0 or self.bytes < 0:
            raise ConfigurationError("the limits of a queue are 0 or more: set them so")


class Queue:
    """Items for one thread, offered by any thread."""

    def __init__(self, limits: Limits) -> None:
        """Set up an empty queue."""
        self._limits = limits
        self._lock = threading.RLock()
        self._items: deque[tuple[Item | Dropped, int]] = deque()
        self._waits = self._bytes = self._reserved = self._taken = 0
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._waiting = False
        self.closed = False
        self.written = self.dropped = 0

    def __len__(self) -> int:
        """Return how many items wait. Marks are none."""
        return self._waits

    @property
    def open_items(self) -> int:
        """Items that wait, or were taken and are not passed on."""
        with self._lock:
            return self._waits + self._taken

    @property
    def bytes(self) -> int:
        """The size of the items that wait."""
        return self._bytes

    def offer(self, item: Item, size: int, *, reserved: bool = False) -> bool:
        """Append an item if there is room, and return whether there was.

        Args:
            item: an encoded event, or what makes events.
            size: its bytes.
            reserved: `reserve` has kept a place for it. It is taken even if it exceeds the limit of bytes.
        """
        with self._lock:
            if reserved:
                self._reserved = max(self._reserved - 1, 0)
            # As `has_room`, without a call: this is a request's path.
            waits, limits = self._waits, self._limits
            room = reserved or (
                waits + self._reserved < limits.events and (not waits or self._bytes + size <= limits.bytes)
            )
            if self.closed or not room:
                return False
            # A signal's handler may raise after a call, and nowhere between these: so the only call comes last.
            self._waits += 1
            self._bytes += size
            self.written += 1
            self._items.append((item, size))
        if self._waiting:
            self._waiting = False
            self._wake.put(None)
        return True

    def reserve(self) -> bool:
        """Keep a place for an item that comes later, and return whether there was room."""
        with self._lock:
            if self.closed or not self.has_room(0):
                return False
            self._reserved += 1
            return True

    def release(self) -> None:
        """Give a reserved place back. One that was reserved before a fork is not of this queue."""
        with self._lock:
            self._reserved = max(self._reserved - 1, 0)

    def drop(self, events: int = 1) -> None:
        """Count events that are not written, though they happened. Their numbers are left out here."""
        with self._lock:
            self.dropped += events
            last = self._items[-1][0] if self._items else None
            if isinstance(last, Dropped):
                # So there are never more marks than items.
                last.events += events
            else:
                self._items.append((Dropped(events), 0))

    def take(self, most: int) -> list[Item | Dropped]:
        """Remove the oldest items, with the marks between and behind them, and return them.

        They count as open until `passed_on`.
        """
        with self._lock:
            taken: list[Item | Dropped] = []
            self._taken = 0
            while self._items and (self._taken < most or isinstance(self._items[0][0], Dropped)):
                item, size = self._items.popleft()
                taken.append(item)
                self._bytes -= size
                self._taken += not isinstance(item, Dropped)
            self._waits -= self._taken
        return taken

    def passed_on(self) -> None:
        """Count what was taken as no longer here: somebody else counts it now."""
        self._taken = 0

    def wait(self, seconds: float) -> None:
        """Return when there is an item, when the queue is closed, or after a time."""
        self._waiting = True
        if not self._waits and not self.closed:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=seconds)
        self._waiting = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._wake.get_nowait()

    def wait_for_close(self, seconds: float) -> None:
        """Return when the queue is closed, or after a time."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Take no more items."""
        with self._lock:
            self.closed = True
        self._closing.set()
        self._wake.put(None)

    def has_room(self, size: int) -> bool:
        """Return whether an item of so many bytes would be taken now."""
        return self._waits + self._reserved < self._limits.events and (
            not self._waits or self._bytes + size <= self._limits.bytes
        )
