"""What a run of a flow measures of itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.drain.signals import stop_requested


class Run:
    """The steps of one run, with their durations."""

    def __init__(self, flow: str) -> None:
        """Begin a run of a flow."""
        self.flow = flow
        self.steps: list[tuple[str, float]] = []
        self.succeeded_at: float | None = None
        self.stopped = False

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step, also one that fails, and note whether a stop was requested during it."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.steps.append((name, time.monotonic() - begin))
            self.stopped = self.stopped or stop_requested.is_set()

    def succeed(self) -> None:
        """Note that the run ended well, now."""
        self.succeeded_at = time.time()
