"""A writer whose sink collects lines: all of custody's own way, and nothing behind it. It cannot show a slow broker."""

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from custody.emit.errors import Kind
from custody.emit.queue import Limits
from custody.emit.quiet import QuietLog
from custody.emit.sink import Report, Sink
from custody.emit.writer import Options, QueuedWriter

_MARKERS = ("emitter_started", "emitter_stopped")


class _Collecting:
    def __init__(self, lines: list[bytes], opened: threading.Event) -> None:
        self._lines, self._opened = lines, opened

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        if not self._opened.is_set():
            return 0
        self._lines += lines
        for line in lines:
            report(line, "delivered")
        return len(lines)

    def poll(self, seconds: float) -> None:
        if not self._opened.is_set():
            self._opened.wait(seconds)

    def close(self, seconds: float) -> None:
        """Nothing is on its way."""


class CollectingWriter(QueuedWriter):
    """Collects the lines that it sends."""

    kind: Kind = "Kafka"

    def __init__(self, queue: Limits | None = None) -> None:
        """Collect from now on."""
        self.lines: list[bytes] = []
        self.opened = threading.Event()
        self.opened.set()
        super().__init__(Options(service="shop", queue=queue or Limits(), on_full="fail"))

    def open_sink(self, quiet: QuietLog) -> Sink:  # noqa: ARG002
        """Return the list as a sink."""
        return _Collecting(self.lines, self.opened)

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

    def one(self) -> dict[str, Any]:
        """Wait for the one event that there is."""
        (event,) = self.take(1)
        return event
