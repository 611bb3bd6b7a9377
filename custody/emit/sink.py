"""What a writer sends to: Kafka, Elasticsearch, or an archive.

One thread uses a sink. It reports what became of each line, later or at once, and never blocks longer than it is told.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

Outcome = Literal["delivered", "failed", "refused"]
"""What became of a line. `failed`: it may be delivered later. `refused`: this line never will be."""
Report = Callable[[bytes, Outcome], None]


class Sink(Protocol):
    """A place for encoded, numbered events, one JSON object each."""

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Begin to send lines in their order, and return how many were taken.

        Each line that was taken is reported exactly once: by this call, by `poll`, or by `close`. Fewer are taken while
        too many are on their way.
        """
        ...

    def poll(self, seconds: float) -> None:
        """Report what became of lines, and wait no longer than this for the first."""
        ...

    def close(self, seconds: float) -> None:
        """Wait no longer than this, then report every line that is still on its way as failed, and end."""
        ...
