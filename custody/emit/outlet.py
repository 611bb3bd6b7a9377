"""Brings what a request kept to a writer, and never waits.

Each request, or each operation of a WebSocket, has a place in the queue before it is put there. With `refuse`, the
place is kept before the application is called.
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
    """One request's way to the writer."""

    __slots__ = ("_counts", "_places", "_quiet", "_refuse", "_writer")

    def __init__(self, writer: AuditWriter, counts: Counts, quiet: QuietLog, *, refuse: bool) -> None:
        self._writer, self._counts, self._quiet, self._refuse = writer, counts, quiet, refuse
        self._places = 0

    def may_begin(self) -> bool:
        """Keep a place for what begins now, and return whether it may begin."""
        if not self._refuse:
            return True
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
        return self._put(build, size, reserved=self._places > 1)

    def _put(self, build: Build, size: int, *, reserved: bool) -> bool:
        try:
            if not reserved:
                return self._writer.offer(build, size)
            self._places -= 1
            self._writer.submit(build, size, reserved=True)
        except AuditError as error:
            # The writer was closed meanwhile, or one of several: the others have it.
            return bool(error.accepted)
        return True

    def put_last(self, build: Build, size: int) -> None:
        """Put the last of a request into the queue; where there is no room, count it as lost. Give places back."""
        if not self._put(build, size, reserved=self._places > 0):
            self.lose()
        while self._places:
            self._places -= 1
            self._writer.release()

    def lose(self) -> None:
        """Count a request, or a part of a connection, that has no event."""
        self._writer.drop()
        self._counts.unaudited += 1
        self._quiet.warn("unaudited", "a request has no audit event: the writer's queue is full, or it is closed")
