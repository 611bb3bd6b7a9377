"""Log lines that come at most once a minute for each kind, with the number of those that were left out.

A broker that is away, or a field that is always wrong, must not fill an application's log.
"""

import logging
import threading
import time
from collections.abc import Callable

from custody.emit.forks import ForkLock

SECONDS = 60.0
"""How long a kind is quiet after a line."""
KINDS = 100
"""How many kinds are remembered."""

THREAD = "custody-emit"
"""How the names of threads begin that a writer starts."""

logger = logging.getLogger("custody.emit")


def ends_here(error: BaseException) -> bool:
    """Return whether an error goes no further than where it was caught.

    On a writer's thread, nobody would hear of it. On an application's, a Ctrl-C or an exit is the application's.
    """
    return isinstance(error, Exception) or threading.current_thread().name.startswith(THREAD)


class QuietLog:
    """Logs the first line of each kind, and the next one a minute later."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up; `clock` returns seconds."""
        self._clock = clock
        self._lock = ForkLock()
        self._kinds: dict[str, tuple[float, int]] = {}
        """When each kind was logged, and how many were left out since, in that order."""

    def warn(self, kind: str, message: str) -> None:
        """Log a warning, unless one of its kind was logged in the last minute."""
        self.log(logging.WARNING, kind, message)

    def log(self, level: int, kind: str, message: str) -> None:
        """Log a line, unless one of its kind was logged in the last minute."""
        now = self._clock()
        with self._lock.here:
            logged, left_out = self._kinds.pop(kind, (now - SECONDS, 0))
            if now - logged < SECONDS:
                self._kinds[kind] = (logged, left_out + 1)
                return
            while len(self._kinds) >= KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = (now, 0)
        more = f" (and {left_out} more like it in the last minutes)" if left_out else ""
        # A handler of the application that fails must not stop its audit events.
        try:
            logger.log(level, "%s%s", message, more)
        except BaseException as error:
            if not ends_here(error):
                raise
