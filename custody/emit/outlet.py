"""Brings what a request kept to a writer, and never waits.

Where requests are refused rather than served without an event, each request, and each operation of a WebSocket, has
its place in the queue before the application is called.
"""

from typing import Literal

from custody.emit.errors import AuditError
from custody.emit.queue import Build
from custody.emit.quiet import QuietLog
from custody.emit.writer import AuditWriter

OnAuditFailure = Literal["serve", "refuse"]
"""What happens to a request for which the queue has no room."""


class Counts:
    """What a middleware counts, in this process, on the thread of its event loop."""

    def __init__(self) -> None:
        self.refused = self.unaudited = 0


class Outlet:
    """The way of requests to the writer. It keeps no places, so that all may have the same one."""

    __slots__ = ("_counts", "_quiet", "_writer")

    def __init__(self, writer: AuditWriter, counts: Counts, quiet: QuietLog) -> None:
        self._writer, self._counts, self._quiet = writer, counts, quiet

    def may_begin(self) -> bool:
        """Return whether what begins now may begin: always, with an event or without."""
        return True

    def put(self, build: Build, size: int) -> bool:
        """Put what makes events into the queue, and return whether there was room."""
        try:
            return self._writer.offer(build, size)
        except AuditError as error:
            # The writer was closed meanwhile, or one of several: the others have it.
            return bool(error.accepted)

    def put_last(self, build: Build, size: int) -> None:
        """Put the last of a request into the queue; where there is no room, count it as lost."""
        if not self.put(build, size):
            self.lose()

    def lose(self) -> None:
        """Count a request, or a part of a connection, that has no event."""
        self._writer.drop()
        self._counts.unaudited += 1
        self._quiet.warn("unaudited", "a request has no audit event: the writer's queue is full, or it is closed")


class ReservingOutlet(Outlet):
    """One request's way to the writer, which keeps a place in the queue for all that begins."""

    __slots__ = ("_places",)

    def __init__(self, writer: AuditWriter, counts: Counts, quiet: QuietLog) -> None:
        super().__init__(writer, counts, quiet)
        self._places = 0

    def may_begin(self) -> bool:
        """Keep a place for what begins now, and return whether it may begin."""
        if self._writer.reserve():
            self._places += 1
            return True
        self._counts.refused += 1
        self._quiet.warn("refused", "a request was refused: the queue of the audit writer is full, or it is closed")
        return False

    def put(self, build: Build, size: int) -> bool:
        """Put what makes events into the queue, and return whether there was room.

        The first place that was kept is left for `put_last`: it is the end's, whatever comes before.
        """
        return self._put_reserved(build, size) if self._places > 1 else super().put(build, size)

    def put_last(self, build: Build, size: int) -> None:
        """Put the last of a request into the queue, as `Outlet.put_last`, and give places back."""
        if not (self._put_reserved(build, size) if self._places else super().put(build, size)):
            self.lose()
        while self._places:
            self._places -= 1
            self._writer.release()

    def _put_reserved(self, build: Build, size: int) -> bool:
        self._places -= 1
        try:
            self._writer.submit(build, size, reserved=True)
        except AuditError as error:
            return bool(error.accepted)
        return True
