"""Locks that a forked child can take.

At a fork, another thread of the parent may hold a lock. The child has no such thread, so nobody would release it there.
"""

import os
import threading
import weakref


class ForkLock:
    """A lock of which each process has its own: in a child of `fork` it is free."""

    def __init__(self) -> None:
        """Make a free lock."""
        self._lock = threading.Lock()
        _locks.add(self)

    @property
    def here(self) -> threading.Lock:
        """This process's lock. Whoever forks while it holds one releases the one that it took."""
        return self._lock

    def renew(self) -> None:
        """Begin with a free lock."""
        self._lock = threading.Lock()


_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_after_fork_in_child)
