"""Lets one process of a run after the other do what may take gigabytes of memory."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tasks.drain.signals import stop_requested

_LOOK_SECONDS = 0.1


@contextmanager
def turn(lock: Path | None) -> Iterator[None]:
    """Wait until no other process of the run has its turn, or a stop is requested.

    Args:
        lock: a file that all processes of the run know; None if there is one process. The kernel unlocks it for a
            process that dies.
    """
    if lock is None:
        yield
        return
    with lock.open("ab") as file:
        while not _is_locked(file) and not stop_requested.wait(_LOOK_SECONDS):
            pass
        yield


def _is_locked(file: IO[bytes]) -> bool:
    """Lock a file, and return whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
