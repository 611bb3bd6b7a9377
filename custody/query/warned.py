"""What is unverified, damaged or ignored: rows of the table `warnings`, which are logged too."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from custody.format.layout import Log
from custody.format.times import parse_time

logger = logging.getLogger(__name__)

KINDS = ("damaged", "unverified", "archived", "ignored")
"""The worst first."""
Row = tuple[str, str | None, str]
"""A kind, a log, and a message."""


@dataclass(frozen=True, slots=True)
class Period:
    """The times at which the statements were sealed that are read.

    Attributes:
        since: the first one; None for all from the beginning.
        until: the first one that is later; None for all up to now.
    """

    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all statements are read."""
        return self.since is None and self.until is None

    def has(self, sealed_at: str | datetime) -> bool:
        """Return whether a statement that was sealed then is read."""
        moment = parse_time(sealed_at) if isinstance(sealed_at, str) else sealed_at
        return (self.since is None or moment >= self.since) and (self.until is None or moment < self.until)


class Warnings:
    """Collects warnings, from several threads, and logs each once."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = Lock()
        # In order, without a second one; a search of a list would grow with each.
        self._rows: dict[Row, None] = {}
        self._unverified: list[Row] = []
        self._new: list[Row] = []
        self._marked = False

    def add(self, kind: str, log: Log | None, message: str) -> None:
        """Add a warning, unless it is there."""
        row = (kind, str(log) if log else None, message)
        with self._lock:
            if row not in self._rows:
                self._rows[row] = None
                self._new.append(row)
                self._marked = self._marked or kind == "unverified"

    def set_unverified(self, rows: Sequence[tuple[Log | None, str]]) -> None:
        """Replace what is unverified: it is counted over all that was read."""
        made = [("unverified", str(log) if log else None, message) for log, message in rows]
        with self._lock:
            self._new += [row for row in made if row not in self._unverified]
            self._unverified = made

    def publish(self) -> None:
        """Log what is new, the worst first."""
        with self._lock:
            new, self._new = self._new, []
        for kind, log, message in sorted(new, key=_rank):
            logger.warning("%s: %s%s", kind, f"{log}: " if log else "", message)

    @property
    def rows(self) -> list[Row]:
        """All of them, the worst first."""
        with self._lock:
            return sorted([*self._rows, *self._unverified], key=_rank)

    @property
    def are_unverified(self) -> bool:
        """Whether something that was read so far is unverified."""
        return self._marked or bool(self._unverified)


def _rank(row: Row) -> int:
    return KINDS.index(row[0])
