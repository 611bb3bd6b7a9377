"""What a writer sends to: Kafka, Elasticsearch, or an archive.

One thread uses a sink. It reports what became of each line, later or at once, and never blocks longer than it is told.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog

Outcome = Literal["delivered", "failed", "refused"]
"""What became of a line. `failed`: it may be delivered later. `refused`: this line never will be."""
Report = Callable[[bytes, Outcome], None]


class Sink(Protocol):
    """A place for encoded, numbered events, one JSON object each."""

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Begin to send lines in their order, and return how many were taken.

        Each line that was taken is reported exactly once: by this call, by `poll`, or by `close`. Fewer are taken while
        too many are on their way. Whoever raises has taken none.
        """
        ...

    def poll(self, seconds: float) -> None:
        """Report what became of lines, and wait no longer than this for the first."""
        ...

    def close(self, seconds: float) -> None:
        """Wait no longer than this, then report every line that is still on its way as failed, and end."""
        ...


OPEN_SECONDS: Final = 0.5
"""How long a sink that could not be opened is left alone."""


class SteadySink:
    """A sink that is opened as soon as it can be, and that never raises: while it cannot be used, it takes nothing."""

    def __init__(self, open_sink: Callable[[], Sink], quiet: QuietLog) -> None:
        """Take what opens the sink, and may raise an AuditError as often as it likes."""
        self._open_sink, self._quiet = open_sink, quiet
        self._sink: Sink | None = None
        self._open_at = 0.0

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Begin to send lines, as `Sink.send`."""
        try:
            if self._sink is None and self._open_at <= time.monotonic():
                self._sink = self._open_sink()
            return self._sink.send(lines, report) if self._sink else 0
        except Exception as error:  # noqa: BLE001 - a client library may raise anything
            self._open_at = time.monotonic() + OPEN_SECONDS
            self._warn(error)
            return 0

    def poll(self, seconds: float) -> None:
        """Report what became of lines, as `Sink.poll`."""
        try:
            if self._sink is not None:
                self._sink.poll(seconds)
                return
        except Exception as error:  # noqa: BLE001 - likewise
            self._warn(error)
        time.sleep(seconds)

    def close(self, seconds: float) -> None:
        """Wait no longer than this, and end, as `Sink.close`."""
        try:
            if self._sink is not None:
                self._sink.close(seconds)
        except Exception as error:  # noqa: BLE001 - likewise
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        self._quiet.warn("sink", f"audit events cannot be sent now: {explain(error)}")


def explain(error: BaseException) -> str:
    """Return an error as a log may have it: the text of another error than ours may have an event's values in it."""
    if isinstance(error, AuditError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    origin = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{origin}"
