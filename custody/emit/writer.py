"""What an application writes audit events with.

    with KafkaWriter("audit", {"bootstrap.servers": "…"}, Options(service="shop")) as writer:
        writer.write(own("order.paid", amount=7))

A writer may be made before a fork (gunicorn's `preload_app`): each process gets its own queue, thread, connection and
source at its first event. At the interpreter's exit, open writers are closed: they deliver for `close_seconds`, spool
the rest, and say on stderr what was left.
"""

import asyncio
import atexit
import contextlib
import math
import os
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, get_args

from custody.emit.builders import AuditEvent
from custody.emit.delivery import Delivery, Gather
from custody.emit.encode import RESERVED, CheckedLine, encode
from custody.emit.errors import AuditError, Kind
from custody.emit.identity import Source
from custody.emit.queue import Build, Item, Limits, Queue
from custody.emit.quiet import QuietLog
from custody.emit.redact import Redaction
from custody.emit.sink import Sink, SteadySink
from custody.emit.spool import Spool
from custody.emit.spool_folders import open_root
from custody.emit.worker import COUNTERS as WORKER_COUNTERS
from custody.emit.worker import Left, Worker
from custody.errors import ConfigurationError, counted, escape
from custody.format.limits import EVENT_BYTES
from custody.format.lines import oversize

__all__ = ["AuditWriter", "Options"]

COUNTERS: Final = (*WORKER_COUNTERS, "turned_away")
"""Names of all counters of a writer."""

OnFull = Literal["wait", "fail", "drop"]
"""What happens to an event for which the queue has no room."""
_WAIT_STEP = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a writer treats events, whatever it sends to.

    Attributes:
        service: the application's name, such as `orders-api`.
        instance: one of several that run it; the host's name if None.
        spool: the folder for events that cannot be sent at once; None if there is no disk for it, and then they wait in
            memory. Each kind of writer and each destination has a folder of its own there.
        spool_bytes: the size of such a folder at most, for all processes of the host.
        queue: how much waits in memory.
        on_full: `wait` for room for `wait_seconds`, then as `fail`; `fail` with an AuditError; `drop` and count. On the
            thread of an event loop `write` never waits, so there `wait` is `fail`: an AsyncWriter waits.
        wait_seconds: how long `wait` waits.
        close_seconds: how long `close` and the interpreter's exit deliver. To spool the rest takes 3 s more at most.
        redaction: what is hidden.
    """

    service: str
    instance: str | None = None
    spool: Path | None = None
    spool_bytes: int = 1 << 30
    queue: Limits = field(default_factory=Limits)
    on_full: OnFull = "wait"
    wait_seconds: float = 1.0
    close_seconds: float = 5.0
    redaction: Redaction = field(default_factory=Redaction)

    def __post_init__(self) -> None:
        """Check the options, and make the folder's path absolute: the process may change its working directory.

        Raises:
            ConfigurationError: a value is none that the option has.
        """
        if self.on_full not in get_args(OnFull):
            raise ConfigurationError(f"on_full is one of {', '.join(get_args(OnFull))}: choose one of them")
        for name in ("wait_seconds", "close_seconds"):
            # Not `< 0`, which is false for what is no number.
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} is a number of seconds, 0 or more: set it to one")
        if self.spool_bytes <= 0:
            raise ConfigurationError("spool_bytes is a number of bytes above 0: set it to one, or leave the spool out")
        if self.spool is not None:
            object.__setattr__(self, "spool", Path(self.spool).absolute())


class AuditWriter(ABC):
    """Takes audit events. Its methods may be called from any thread."""

    @abstractmethod
    def write(self, event: AuditEvent | CheckedLine) -> None:
        """Take an event. It is sent later.

        Args:
            event: what a builder made, or what `encode` made of it.

        Raises:
            AuditError: the event is not valid (`Serialization`, with the reason that the drain would give), there is no
                room for it, or the writer is closed.
        """

    @abstractmethod
    async def write_async(self, event: AuditEvent | CheckedLine) -> None:
        """Take an event; as `write`. Where that would wait, the event loop goes on."""

    @abstractmethod
    def size(self, event: AuditEvent) -> int:
        """Return how many bytes an event takes.

        Raises:
            AuditError: the event is not valid (`Serialization`). That is not counted: see `refuse`.
        """

    @abstractmethod
    def refuse(self) -> None:
        """Count an event that is not valid, and of whose refusal the one who sent it is told. It takes no number."""

    @abstractmethod
    def has_room(self, size: int) -> bool:
        """Return whether `write` would find room for so many bytes now."""

    @abstractmethod
    def submit(self, build: Build, size: int, *, reserved: bool = False) -> None:
        """Take what makes events, and call it on another thread. Whatever it raises counts as a refused event.

        Args:
            build: returns the events.
            size: about how many bytes it keeps.
            reserved: `reserve` has kept a place for it.

        Raises:
            AuditError: there is no room for it, or the writer is closed.
        """

    @abstractmethod
    def offer(self, build: Build, size: int) -> bool:
        """Take what makes events as `submit`, if there is room now, and return whether there was. Counts nothing else.

        Raises:
            AuditError: the writer is closed.
        """

    @abstractmethod
    def reserve(self) -> bool:
        """Keep a place in the queue for a `submit` that comes later, and return whether there is room."""

    @abstractmethod
    def release(self) -> None:
        """Give back a reserved place that is not needed."""

    @abstractmethod
    def drop(self, events: int = 1) -> None:
        """Count events that happened and were not written. Their numbers are left out, so the archive has a hole."""

    @abstractmethod
    def flush(self, seconds: float) -> int:
        """Wait until all events are delivered, for so long at most, and return how many are not."""

    @abstractmethod
    def close(self, seconds: float | None = None) -> Left:
        """Take no more events, deliver for so long, spool the rest, and return what was left.

        Args:
            seconds: how long; `Options.close_seconds` if None.
        """

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Return counts of this process: see docs/emit.md for each."""

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the writer."""
        self.close()


class QueuedWriter(AuditWriter):
    """A writer with a queue and a thread in each process that uses it. What it sends to is a subclass's."""

    kind: Kind
    """Which AuditError it raises."""
    gather: Gather | None = None
    """How long each event waits in the spool; None if it goes there only while something is slow."""

    def __init__(self, options: Options, destination: str) -> None:
        """Set up. No thread runs, and nothing is connected, before the first event.

        Args:
            options: how events are treated.
            destination: where they go, such as a topic. What others of this kind left in the spool is sent there if
                they had the same one.

        Raises:
            AuditError: the spool's folder cannot be used.
        """
        self.options = options
        self._source = Source(options.service, options.instance)
        self._worker: Worker | None = None
        self._closed = False
        self._refused = self._turned_away = 0
        self.spool: Path | None = None
        """The folder of this kind and destination below `Options.spool`."""
        if options.spool is not None:
            self.spool = options.spool / f"{self.kind}-{sha256(destination.encode()).hexdigest()[:16]}"
            for folder in (options.spool, self.spool):
                os.close(open_root(str(folder)))
        with _lock:
            # Nobody would close it any more.
            self._closed = _exiting
            _writers.add(self)
            _with_closed.add(self)

    @abstractmethod
    def open_sink(self, quiet: QuietLog) -> Sink:
        """Return what this process sends to.

        Raises:
            AuditError: it cannot be made now.
        """

    def write(self, event: AuditEvent | CheckedLine) -> None:
        """Take an event; as `AuditWriter.write`."""
        line = self._checked(event)
        self._offer(line, len(line))

    async def write_async(self, event: AuditEvent | CheckedLine) -> None:
        """Take an event; as `AuditWriter.write_async`."""
        line = self._checked(event)
        deadline = time.monotonic() + self.options.wait_seconds
        while not self.offer(line, len(line)):
            if self.options.on_full != "wait" or time.monotonic() >= deadline:
                self.turn_away()
                return
            await asyncio.sleep(_WAIT_STEP)

    def size(self, event: AuditEvent) -> int:
        """Return how many bytes an event takes; as `AuditWriter.size`."""
        return len(self._encoded(event))

    def refuse(self) -> None:
        """Count an event that is not valid; as `AuditWriter.refuse`."""
        with _lock:
            self._refused += 1

    def _checked(self, event: AuditEvent | CheckedLine) -> CheckedLine:
        try:
            return self._encoded(event)
        except AuditError:
            self.refuse()
            raise

    def _encoded(self, event: AuditEvent | CheckedLine) -> CheckedLine:
        """Return an event as the line that the queue takes.

        Raises:
            AuditError: the event is not valid (`Serialization`).
        """
        if not isinstance(event, bytes):
            return encode(event, self.options.redaction)
        if len(event) + RESERVED > EVENT_BYTES:
            # The spool would refuse it later, and all that is behind it.
            raise AuditError("Serialization", oversize(len(event) + RESERVED))
        return event

    def submit(self, build: Build, size: int, *, reserved: bool = False) -> None:
        """Take what makes events, and call it on the writer's thread; as `AuditWriter.submit`."""
        self._offer(build, size, reserved=reserved)

    def reserve(self) -> bool:
        """Keep a place in the queue; as `AuditWriter.reserve`."""
        return self._in_this_process().queue.reserve()

    def release(self) -> None:
        """Give back a reserved place; as `AuditWriter.release`."""
        self._in_this_process().queue.release()

    def drop(self, events: int = 1) -> None:
        """Count events that were not written; as `AuditWriter.drop`."""
        self._in_this_process().queue.drop(events)

    def flush(self, seconds: float) -> int:
        """Wait until all events are delivered; as `AuditWriter.flush`."""
        worker, deadline = self._worker, time.monotonic() + seconds
        if worker is None:
            return 0
        while (left := worker.unsettled()) and time.monotonic() < deadline:
            worker.hurry()
            time.sleep(_WAIT_STEP)
        return left

    def close(self, seconds: float | None = None) -> Left:
        """Close the writer; as `AuditWriter.close`. A second call waits for the first, and returns the same."""
        with _lock:
            worker, self._closed = self._worker, True
        left = Left(0, 0)
        if worker is not None:
            left = worker.close(self.options.close_seconds if seconds is None else seconds)
        # Only now: the interpreter's exit waits for a close that another thread has begun.
        _writers.discard(self)
        return left

    def stop(self) -> None:
        """Take no more events, and begin to close. Does not wait, so that several writers close at the same time."""
        if self._worker is not None:
            self._worker.stop(self.options.close_seconds)

    def counters(self) -> dict[str, int]:
        """Return counts of this process; as `AuditWriter.counters`."""
        # Who reads metrics starts no thread, and makes no source of a process that emits nothing.
        worker = self._worker
        counters = worker.counters() if worker is not None else dict.fromkeys(WORKER_COUNTERS, 0)
        return {**counters, "refused": counters["refused"] + self._refused, "turned_away": self._turned_away}

    @property
    def source(self) -> str:
        """The source of this process's events, as `service/instance/pid-start`."""
        return self._in_this_process().source

    def has_room(self, size: int) -> bool:
        """Return whether there is room for so many bytes; as `AuditWriter.has_room`."""
        return self._in_this_process().queue.has_room(size)

    def after_fork(self) -> None:
        """Begin anew in a child process: the parent sends what the parent has taken."""
        self._refused = self._turned_away = 0
        if self._worker is not None:
            # Its destructors would wait for threads that the child does not have.
            _of_parents.append(self._worker)
            self._worker = None

    def _in_this_process(self) -> Worker:
        worker = self._worker
        if worker is not None and (worker.runs or self._closed):
            return worker
        with _lock:
            worker = self._worker
            if worker is None:
                worker = self._worker = self._new_worker()
                if self._closed:
                    worker.close_unused()
            if not (self._closed or worker.runs):
                worker.start()
                _close_with_multiprocessing()
            return worker

    def _new_worker(self) -> Worker:
        return Worker(str(self._source), self.options.redaction, Queue(self.options.queue), self._open_delivery)

    def _open_delivery(self, quiet: QuietLog) -> Delivery:
        spool, limit = self.spool, self.options.spool_bytes
        sink = SteadySink(lambda: self.open_sink(quiet), quiet)
        open_spool = None if spool is None else lambda: Spool(spool, limit)
        return Delivery(sink, open_spool, quiet, gather=self.gather)

    def offer(self, build: Item, size: int, *, reserved: bool = False) -> bool:
        """Append to the queue if there is room, and return whether there was; as `AuditWriter.offer`."""
        worker = self._worker
        # A request's path: a call less.
        queue = (worker if worker is not None and worker.runs else self._in_this_process()).queue
        if queue.offer(build, size, reserved=reserved):
            return True
        if queue.closed:
            raise AuditError(self.kind, "the writer is closed; write before `close`, or make a new one")
        return False

    def turn_away(self) -> None:
        """Count an event for which there was no room, and raise the error for it unless `on_full` is `drop`.

        Raises:
            AuditError: `on_full` is not `drop`.
        """
        queue = self._in_this_process().queue
        if self.options.on_full == "drop":
            queue.drop()
            return
        with _lock:
            self._turned_away += 1
        raise AuditError(
            self.kind,
            f"the queue is full ({counted(len(queue), 'event')}, {queue.bytes:,} bytes), because {self.kind} is slow or"
            " away and the spool is full or there is none; the event was not taken",
        )

    def _offer(self, item: Item, size: int, *, reserved: bool = False) -> None:
        if self.offer(item, size, reserved=reserved):
            return
        deadline = time.monotonic() + self.options.wait_seconds
        waits = self.options.on_full == "wait" and not _in_event_loop()
        while waits and time.monotonic() < deadline:
            time.sleep(_WAIT_STEP)
            if self.offer(item, size):
                return
        self.turn_away()


def _in_event_loop() -> bool:
    """Return whether this thread runs an event loop, which a sleep here would hold up with all its requests."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_lock = threading.RLock()
_writers: set[QueuedWriter] = set()
"""Those that are not closed: also those that the application has forgotten."""
_with_closed: weakref.WeakSet[QueuedWriter] = weakref.WeakSet()
"""All, because a child of `fork` must not use what a closed one has of the parent either."""
_exiting = False
_of_parents: list[Worker] = []
"""Workers of parent processes, which must not be collected here."""
_with_multiprocessing: list[object] = []
"""What closes them where multiprocessing forked this process: asked for once, not at each event without a thread."""


def _after_fork_in_child() -> None:
    _lock.release()
    _with_multiprocessing.clear()
    for writer in list(_with_closed):
        writer.after_fork()


def _close_at_exit() -> None:
    global _exiting
    with _lock:
        _exiting = True
        writers = list(_writers)
    for writer in writers:
        writer.stop()
    for writer in writers:
        try:
            left = writer.close()
        except BaseException as error:  # noqa: BLE001 - a second Ctrl-C; the other writers have their turn
            _say(f"{type(error).__name__} came before all were sent; what {writer.kind} has not got may be lost")
            continue
        if left.spooled or left.lost:
            spooled = f"{counted(left.spooled, 'is', 'are')} in the spool {writer.spool} until the next process"
            lost = f"{counted(left.lost, 'is', 'are')} lost: {writer.kind} did not take them in time, nor a spool"
            _say("; ".join([spooled] * bool(left.spooled) + [lost] * bool(left.lost)))


def _close_with_multiprocessing() -> None:
    """Close writers when this process ends, if multiprocessing forked it: such a process skips `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None and not _with_multiprocessing:
        _with_multiprocessing.append(sys.modules["multiprocessing.util"].Finalize(None, _close_at_exit, exitpriority=0))


def _say(text: str) -> None:
    # A daemon may have closed it, or have none.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"custody: audit events at exit: {escape(text)}\n")


# Held while the process forks, so that the child's set of writers is whole.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)
