"""The thread of a writer: it takes from the queue, builds, redacts, checks, numbers, and delivers.

Each event that passes the check gets the next number of this source. What is dropped or refused here takes one too, so
the archive has a hole for it: nobody else is told. What `write` refuses takes none. The first event of a source is
`emitter_started`, the last one `emitter_stopped`.

A thread cannot be started while the interpreter ends. Then `close` does the work on the thread that calls it.

Nothing that goes wrong ends the thread: it is counted in `faults`, logged, and the next step is taken.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from custody.emit.builders import AuditEvent, own
from custody.emit.delivery import COUNTED, Delivery
from custody.emit.encode import CheckedLine, encode, encode_all, number
from custody.emit.errors import AuditError
from custody.emit.queue import Build, Dropped, Item, Queue
from custody.emit.quiet import THREAD, QuietLog, ends_here
from custody.emit.redact import Redaction
from custody.emit.sink import explain
from custody.version import version

STEP_ITEMS = 200
"""Items taken at once: with more, this thread would keep others from the interpreter for too long."""
SPOOL_SECONDS = 1.0
"""How much longer than its limit `close` brings what is in the queue into the spool."""
STOP_SECONDS = 3.0
"""How much longer than its limit `close` may take in all."""
COUNTERS = (*COUNTED, "written", "queued", "queued_bytes", "dropped", "faults")
"""Names of a worker's counters."""
GATHER_SECONDS = 0.005
"""How long events gather before they are taken: to wake up for each would cost more than all that is done with it."""
_BUSY_SECONDS, _IDLE_SECONDS = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class Left:
    """What was not delivered when a writer was closed.

    Attributes:
        spooled: events in the spool, which the next process of this host sends. Some of them may have been delivered
            just now, if there was no time for all of a batch: they are sent again.
        lost: events that are nowhere.
    """

    spooled: int
    lost: int


class Worker:
    """The thread of one writer in one process."""

    def __init__(
        self, source: str, redaction: Redaction, queue: Queue, open_delivery: Callable[[QuietLog], Delivery]
    ) -> None:
        """Set up. Nothing is opened before `start`. What opens the delivery should not raise."""
        self.source, self.queue = source, queue
        self._redaction, self._open_delivery = redaction, open_delivery
        self._quiet = QuietLog()
        self._delivery: Delivery | None = None
        self._numbered = 0
        self._stop_at = 0.0
        self._left: Left | None = None
        self._thread: threading.Thread | None = None
        self._here, self._ran_here = threading.RLock(), False
        self._refused = self._lost = self._faults = 0

    @property
    def runs(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread, if the interpreter lets it. Otherwise it may be tried again; `close` does the work."""
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter ends, or the process has too many threads.
            self._thread = None

    def stop(self, seconds: float) -> None:
        """Take no more events, and end after so many seconds, or sooner. Does not wait."""
        if not self.queue.closed:
            self._stop_at = time.monotonic() + seconds
            self.queue.close()

    def close_unused(self) -> None:
        """Take no events at all: nothing is opened, and there is nothing to do for `close`."""
        self.queue.close()
        self._left, self._ran_here = Left(0, 0), True

    def close(self, seconds: float) -> Left:
        """Take no more events, deliver for so long, spool the rest, and return what was left."""
        self.stop(seconds)
        if self._thread is None:
            self._run_here()
        elif self._thread is not threading.current_thread():
            self._thread.join(max(0.0, self._stop_at - time.monotonic()) + STOP_SECONDS)
            if not self._thread.is_alive():
                self._finish_here()
        # A thread that has not ended will not end in time: what it still has is lost with the process.
        return self._left or Left(0, self.unsettled())

    def _run_here(self) -> None:
        """Do the thread's work, once, on the first thread that closes."""
        with self._here:
            if not self._ran_here:
                self._ran_here = True
                self._run()

    def _finish_here(self) -> None:
        """Do what is left of the thread's work, once, if something has ended the thread all the same."""
        with self._here:
            if self._left is None and self._delivery is not None and not self._ran_here:
                self._ran_here = True
                self._finish(self._delivery)

    def unsettled(self) -> int:
        """Return how many events are neither delivered nor refused."""
        return self.queue.open_items + (self._delivery.unsettled if self._delivery else 0)

    def hurry(self) -> None:
        """Send now what gathers in the spool."""
        if self._delivery is not None:
            self._delivery.urgent = True

    def counters(self) -> dict[str, int]:
        """Return how many events are where, and what became of the others."""
        queue, delivery = self.queue, self._delivery
        counters = {
            "written": queue.written,
            "queued": queue.open_items,
            "queued_bytes": queue.bytes,
            "dropped": queue.dropped,
            "refused": self._refused,
            "lost": self._lost,
            "faults": self._faults,
        }
        delivered = delivery.counters() if delivery else dict.fromkeys(COUNTED, 0)
        return {
            **delivered,
            **counters,
            "refused": self._refused + delivered["refused"],
            "lost": self._lost + delivered["lost"],
        }

    def _run(self) -> None:
        delivery = self._open()
        if delivery is None:
            self._lost += _events(self.queue.take(len(self.queue)))
            self.queue.passed_on()
            self._left = Left(0, self._lost)
            return
        self._delivery = delivery
        started = own("emitter_started", emitter=f"custody/{version()}")
        self._go_on(lambda: self._pass_on(delivery, [encode(started, self._redaction)]))
        while not self.queue.closed:
            self._go_on(lambda: self._step(delivery))
        self._finish(delivery)

    def _open(self) -> Delivery | None:
        """Return where events go: as often as that raises, which it should not; None once the queue is closed."""
        while True:
            closed = self.queue.closed
            try:
                return self._open_delivery(self._quiet)
            except BaseException as error:  # noqa: BLE001 - this thread must not end
                self._caught(error)
                if closed:
                    return None
                self.queue.wait_for_close(_IDLE_SECONDS)

    def _go_on(self, work: Callable[[], None]) -> None:
        """Do something, and go on whatever it raises: nobody else would hear of it."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - this thread must not end
            self._caught(error)
            # Not at once again: it may well raise each time.
            self.queue.wait_for_close(_BUSY_SECONDS)

    def _caught(self, error: BaseException) -> None:
        """Count and log an error, so that the thread goes on; raise it if it is for an application's thread."""
        if not ends_here(error):
            raise error
        self._faults += 1
        self._quiet.warn("fault", f"audit events: {explain(error)}; this is a fault of custody, and events go on")

    def _step(self, delivery: Delivery) -> None:
        """Pass on what is in the queue; wait a little where there is nothing."""
        items = self.queue.take(STEP_ITEMS) if delivery.takes else []
        self._pass_on(delivery, items)
        if len(items) >= STEP_ITEMS:
            delivery.step(0)
        elif items:
            delivery.step(0)
            self.queue.wait_for_close(GATHER_SECONDS)
        elif delivery.unsettled:
            delivery.step(_BUSY_SECONDS)
        else:
            delivery.step(0)
            self.queue.wait(_IDLE_SECONDS)

    def _finish(self, delivery: Delivery) -> None:
        """Pass on the rest of the queue, write the last event, and close."""
        self._go_on(lambda: self._pass_on_rest(delivery))
        # There was no time or room for these: their numbers are left out, as those of dropped events.
        self._go_on(lambda: self._give_up(self.queue.take(len(self.queue))))
        self._go_on(lambda: delivery.put_last(self._stopped()))
        try:
            spooled = delivery.close(max(0.0, self._stop_at - time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - the caller must get to know what is lost
            self._caught(error)
            self._left = Left(0, self.unsettled() + self._lost + delivery.lost)
        else:
            self._left = Left(spooled, self._lost + delivery.lost)

    def _pass_on_rest(self, delivery: Delivery) -> None:
        """Deliver what is in the queue while there is time, and bring what is left into the spool."""
        while len(self.queue) and time.monotonic() < self._stop_at:
            self._go_on(lambda: self._step(delivery))
        if len(self.queue) and delivery.spool_only():
            self._go_on(lambda: self._spool_rest(delivery))

    def _stopped(self) -> bytes:
        """Return the source's last event."""
        self._numbered += 1
        stopped = own("emitter_stopped", dropped=self.queue.dropped, lost=self._lost)
        return number(encode(stopped, self._redaction), self.source, self._numbered)

    def _spool_rest(self, delivery: Delivery) -> None:
        """Bring what is in the queue into the spool, without a try to send it."""
        deadline = self._stop_at + SPOOL_SECONDS
        while len(self.queue) and delivery.takes and time.monotonic() < deadline:
            self._pass_on(delivery, self.queue.take(STEP_ITEMS))

    def _pass_on(self, delivery: Delivery, items: Sequence[Item | Dropped]) -> None:
        """Number what the items make, and deliver it. If that fails, the items are lost, and their numbers left out."""
        try:
            lines: list[bytes] = []
            seq = self._numbered
            for made in self._made(items):
                if isinstance(made, Dropped):
                    seq += made.events
                else:
                    seq += 1
                    lines.append(number(made, self.source, seq))
        except BaseException:
            self._give_up(items)
            raise
        self._numbered = seq
        if lines:
            delivery.deliver(lines)
        self.queue.passed_on()

    def _give_up(self, items: Sequence[Item | Dropped]) -> None:
        """Count items as lost, and leave their numbers out. A request's events count as one: nobody has made them."""
        self._lost += _events(items)
        self._numbered += sum(item.events if isinstance(item, Dropped) else 1 for item in items)
        self.queue.passed_on()

    def _made(self, items: Sequence[Item | Dropped]) -> Iterator[bytes | Dropped]:
        """Yield what items make, in their order, with a mark for each event that is refused."""
        for item in items:
            if isinstance(item, bytes | Dropped):
                yield item
            else:
                yield from self._built(item)

    def _built(self, build: Build) -> Iterator[CheckedLine | Dropped]:
        """Yield the lines of what a request's function makes. Whatever it raises refuses what it had not made yet."""
        events: list[AuditEvent] = []
        failed = False
        try:
            # Not `extend`, which drops what came before the error.
            for event in build():
                events.append(event)  # noqa: PERF402
        except BaseException as error:  # noqa: BLE001 - asyncio's CancelledError and SystemExit would end this thread
            # Its text may have what was in the request.
            self._refuse(f"making it raised {type(error).__name__}")
            failed = True
        for batch in _batches(events):
            for line in self._encoded(batch):
                if isinstance(line, AuditError):
                    self._refuse(str(line))
                    yield Dropped(1)
                else:
                    yield line
        if failed:
            yield Dropped(1)

    def _encoded(self, batch: Sequence[AuditEvent]) -> list[CheckedLine | AuditError]:
        """Return the lines of events, and an error for each that has none. What is no event refuses itself alone."""
        try:
            return encode_all(batch, self._redaction)
        except BaseException as error:  # noqa: BLE001 - as above
            if len(batch) > 1:
                return [line for event in batch for line in self._encoded([event])]
            return [AuditError("Serialization", f"encoding it raised {type(error).__name__}")]

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        self._quiet.warn("invalid", f"an audit event was refused: {reason}")


def _events(items: Sequence[Item | Dropped]) -> int:
    """Return how many events items are at least, without the marks."""
    return sum(not isinstance(item, Dropped) for item in items)


def _batches(events: Sequence[AuditEvent]) -> Iterator[Sequence[AuditEvent]]:
    for start in range(0, len(events), STEP_ITEMS):
        yield events[start : start + STEP_ITEMS]
