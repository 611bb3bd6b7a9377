"""Follows a log's new statements for detection: those that are listed, some hundred at a time."""

from concurrent.futures import Executor
from itertools import islice
from typing import Final

from custody.archive.forms import statements_of
from custody.archive.reader import Holds
from custody.archive.slots import slots_after
from custody.format import limits
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.store.ahead import AHEAD
from custody.store.protocol import Store
from tasks.search.following import Following, New

_LISTED: Final = 999
"""Slots of a log that are listed at once. One more, in the same request, shows whether there are others."""
_WAITING: Final = 64 * limits.MIB
"""Bytes of segments, of all logs, that were read ahead and wait. Each log's next one may wait besides."""
SHARE: Final = _WAITING // AHEAD
"""Bytes of a segment up to which it is read ahead, if as many wait as may."""


class Listed:
    """The statements of one log from a sequence on, as far as they are listed now."""

    def __init__(
        self, store: Store, log: Log, holds: Holds[Manifest], begin: int, logs: int, threads: Executor
    ) -> None:
        """List the log's slots from one before a sequence on.

        Args:
            store: the archive.
            log: the log.
            holds: whether an entry is valid where it stands.
            begin: the first sequence.
            logs: how many logs are followed at once.
            threads: read ahead.

        Raises:
            StoreError: the store does not answer.
        """
        self._store, self._log, self._holds, self._threads = store, log, holds, threads
        # While one is looked at, another one is read.
        self._ahead = max(2, AHEAD // logs)
        self._most = _WAITING // (self._ahead * logs)
        self._list(begin)

    def _list(self, begin: int) -> None:
        several = list(islice(slots_after(self._store, statements_of(self._log), max(begin - 2, -1)), _LISTED + 1))
        self.last = several[-1] if several else -1
        """The last slot that was listed; -1 without any."""
        self._is_all = len(several) <= _LISTED
        self._following = Following(
            self._store,
            self._log,
            self._holds,
            begin,
            self.last + 1,
            self._threads,
            ahead=self._ahead,
            most=self._most,
        )

    def next(self, sequence: int) -> tuple[New | None, dict[int, str]]:
        """Return the next statement from a sequence on, and the problems of slots before it. Most logs have none.

        Raises:
            StoreError: the store does not answer.
        """
        if sequence > self.last:
            if self._is_all:
                return None, {}
            self._list(sequence)
        return self._following.next(sequence, holes=True)
