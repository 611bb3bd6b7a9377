"""The thread of a writer: it takes from the queue, builds, redacts, checks, numbers, and delivers.

Each event that passes the check gets the next number of this source. What is refused takes no number. What is dropped
takes one, so the archive has a hole for it. The first event of a source is `emitter_started`, the last one
`emitter_stopped`.

A thread cannot be started while the interpreter ends. Then `close` does the work on the thread that calls it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from custody.emit.builders import AuditEvent, own
from custody.emit.delivery import COUNTED, Delivery
from custody.emit.encode import encode, encode_all, number
from custody.emit.errors import AuditError
from custody.emit.queue import Item, Queue
from custody.emit.quiet import QuietLog
from custody.emit.redact import Redaction
from custody.version import version

STEP_ITEMS = 200
"""Items taken at once: with more, this thread would keep others from the interpreter for too long."""
STOP_SECONDS = 2.0
"""How much longer than its own limit the thread may take to end."""
COUNTERS = (*COUNTED, "written", "queued", "queued_bytes", "dropped")
"""Names of all counters of a writer."""
_BUSY_SECONDS, _IDLE_SECONDS = 0.02, 0.5


@dataclass(frozen=True, slots=True)
class Left:
    """What was not delivered when a writer was closed.

    Attributes:
        spooled: events in the spool, which the next process of this host sends.
        lost: events that are nowhere.
    """

    spooled: int
    lost: int


class Worker:
    """The thread of one writer in one process."""

    def __init__(
        self, source: str, redaction: Redaction, queue: Queue, open_delivery: Callable[[QuietLog], Delivery]
    ) -> None:
        """Set up. Nothing is opened before `start`."""
        self.source, self.queue = source, queue
        self._redaction, self._open_delivery = redaction, open_delivery
        self._quiet = QuietLog()
        self._delivery: Delivery | None = None
        self._numbered = 0
        self._close_seconds = 0.0
        self._left = Left(0, 0)
        self._thread: threading.Thread | None = None
        self._refused = self._lost = 0

    def start(self) -> None:
        """Start the thread, if the interpreter still lets it."""
        thread = threading.Thread(target=self._run, name="custody-emit", daemon=True)
        # Raised while the interpreter ends: `close` does the work then.
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._thread = thread

    def close(self, seconds: float) -> Left:
        """Take no more events, deliver for so long, spool the rest, and return what was left."""
        self._close_seconds = seconds
        self.queue.close()
        if self._thread is None:
            self._run()
        else:
            self._thread.join(seconds + STOP_SECONDS)
            if self._thread.is_alive():
                return Left(0, self.unsettled())
        return self._left

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
        }
        delivered = delivery.counters() if delivery else dict.fromkeys(COUNTED, 0)
        return {
            **delivered,
            **counters,
            "refused": self._refused + delivered["refused"],
            "lost": self._lost + delivered["lost"],
        }

    def _run(self) -> None:
        self._delivery = self._open()
        if self._delivery is None:
            items, dropped = self.queue.take(len(self.queue))
            self._lost += len(items) + dropped
            self._left = Left(0, self._lost)
            return
        self._number(self._delivery, [encode(own("emitter_started", emitter=f"custody/{version()}"), self._redaction)])
        while not self.queue.closed:
            self._step(self._delivery)
        self._finish(self._delivery, time.monotonic() + self._close_seconds)

    def _open(self) -> Delivery | None:
        """Open sink and spool, again and again while that fails; return None once the queue is closed and it failed."""
        while True:
            closed = self.queue.closed
            try:
                return self._open_delivery(self._quiet)
            except AuditError as error:
                self._quiet.warn("open", str(error))
                if closed:
                    return None
                self.queue.wait_for_close(_IDLE_SECONDS)

    def _step(self, delivery: Delivery) -> None:
        """Pass on what is in the queue; wait a little where there is nothing."""
        items, dropped = self.queue.take(STEP_ITEMS) if delivery.takes else ([], 0)
        self._pass_on(delivery, items, dropped)
        if len(items) == STEP_ITEMS:
            delivery.step(0)
        elif delivery.unsettled:
            delivery.step(_BUSY_SECONDS)
        else:
            delivery.step(0)
            self.queue.wait(_IDLE_SECONDS)

    def _finish(self, delivery: Delivery, deadline: float) -> None:
        """Pass on the rest of the queue, write the last event, and close."""
        while len(self.queue) and time.monotonic() < deadline:
            self._step(delivery)
        items, dropped = self.queue.take(len(self.queue))
        # There was no time for these: their numbers are left out, as those of dropped events.
        self._lost += len(items)
        self._numbered += len(items) + dropped
        stopped = own("emitter_stopped", dropped=self.queue.dropped, lost=self._lost)
        self._number(delivery, [encode(stopped, self._redaction)])
        spooled = delivery.close(max(0.0, deadline - time.monotonic()))
        self._left = Left(spooled, self._lost + delivery.lost)

    def _pass_on(self, delivery: Delivery, items: Iterable[Item], dropped: int) -> None:
        lines: list[bytes] = []
        for item in items:
            if isinstance(item, bytes):
                lines.append(item)
            else:
                self._build(item, lines)
        self._number(delivery, lines)
        # Behind the lines: they were in the queue before it was full.
        self._numbered += dropped

    def _build(self, build: Callable[[], Iterable[AuditEvent]], lines: list[bytes]) -> None:
        """Add the lines of what a request's function makes; whatever it raises refuses the event."""
        try:
            encoded = encode_all(list(build()), self._redaction)
        except Exception as error:  # noqa: BLE001 - an application's function may raise anything
            # Its text may have what was in the request.
            self._refuse(f"making it raised {type(error).__name__}")
            return
        for line in encoded:
            if isinstance(line, AuditError):
                self._refuse(str(line))
            else:
                lines.append(line)

    def _number(self, delivery: Delivery, lines: Iterable[bytes]) -> None:
        numbered = []
        for line in lines:
            self._numbered += 1
            numbered.append(number(line, self.source, self._numbered))
        if numbered:
            delivery.deliver(numbered)

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        self._quiet.warn("invalid", f"an audit event was refused: {reason}")
