"""A child of `fork` finds no lock taken that a thread of its parent held."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from custody import emit
from custody.emit.entries import Entries
from custody.emit.forks import ForkLock
from custody.emit.quiet import QuietLog

PACKAGE = Path(emit.__file__).parent
QUIET, ENTRIES = QuietLog(), Entries()
FRAISEQL = {"timestamp": "2026-11-28T12:00:00Z", "operation": "query", "query": "{ a }"}


@pytest.mark.parametrize(
    ("lock", "use"),
    [
        (QUIET._lock, lambda: QUIET.warn("kind", "message")),
        (ENTRIES._lock, lambda: ENTRIES.event(dict(FRAISEQL))),
    ],
    ids=["quiet", "entries"],
)
def test_trap_2_a_lock_that_another_thread_held_is_free_in_the_child(lock: ForkLock, use: Callable[[], object]) -> None:
    """What is made before gunicorn's `preload_app` forks is used in each worker."""
    with lock.here:
        child = os.fork()
        if child == 0:
            # The system's alarm ends a child that hangs.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            code = 1
            try:
                use()
                code = 0
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not lock.here.locked()


def test_each_lock_of_the_package_is_renewed_at_a_fork() -> None:
    """A bare lock stands only where the module itself cares for forks, or in what lives for one event."""
    bare = {path.name for path in PACKAGE.glob("*.py") if re.search(r"threading\.R?Lock\(\)", path.read_text())}
    # A queue and its worker are made anew in each process.
    assert bare - {"forks.py", "identity.py", "writer.py"} == {"multi.py", "queue.py", "worker.py"}
