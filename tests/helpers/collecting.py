"""A writer that keeps the events of a server under test: all of custody's own way, with a sink in memory behind it."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, Self

from custody.emit.queue import Limits
from custody.emit.writer import Options
from tests.helpers.emitting import MemoryWriter

_MARKERS = ("emitter_started", "emitter_stopped")


class CollectingWriter(MemoryWriter):
    """Keeps the lines that it sends. While its sink is `away`, its queue fills."""

    def __init__(self, queue: Limits | None = None) -> None:
        """Keep lines from now on."""
        super().__init__(Options(service="shop", queue=queue or Limits(), on_full="fail"))
        self.lines = self.sink.delivered

    def fill(self) -> None:
        """Stop the sink and fill the queue, so that a request finds no room."""
        self.sink.away = True
        # The worker takes from the queue until it has to hold a line itself.
        while self.reserve():
            self.submit(list, 1, reserved=True)
            self.flush(0.02)

    def events(self) -> list[dict[str, Any]]:
        """Return the events that have come, but for the markers of the source."""
        return [event for event in map(json.loads, list(self.lines)) if event["event_type"] not in _MARKERS]

    def take(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many events, and return them and forget them. It fails if there are more."""
        deadline = time.monotonic() + 10
        while len(events := self.events()) < count and time.monotonic() < deadline:
            time.sleep(0.002)
        self.lines.clear()
        assert len(events) == count, f"{len(events)} events instead of {count}: {events}"
        return events

    @contextlib.contextmanager
    def used_by_one(self) -> Iterator[Self]:
        """Yield the writer to a test, which must have no event left when it ends."""
        self.lines.clear()
        yield self
        assert self.events() == []

    def one(self) -> dict[str, Any]:
        """Wait for the one event that there is."""
        (event,) = self.take(1)
        return event
