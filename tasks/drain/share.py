"""The process that drains a share of the logs for a run in another process (`tasks.drain.processes`).

Run as `python -m tasks.drain.share DESCRIPTOR`, with the number of a connection that the other process opened.
"""

import logging
import logging.handlers
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from custody.errors import CustodyError
from custody.store import retries
from tasks.drain.processes import Outcome, Task
from tasks.drain.run import drain_and_index
from tasks.drain.signals import GRACE_SECONDS, stop_on_signals


class _GiveBack(logging.handlers.QueueHandler):
    """Sends records through a connection, and is the only one that sends there."""

    def __init__(self, connection: Connection) -> None:
        # `prepare` makes records that can be sent; `enqueue` is all that uses the queue.
        super().__init__(None)  # type: ignore[arg-type]
        self._connection = connection

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record. Without the other process nobody reads it."""
        with suppress(OSError):
            self._connection.send(record)

    def end(self, outcome: Outcome) -> None:
        """Send what was done, after all records so far."""
        self.acquire()
        try:
            with suppress(OSError):
                self._connection.send(outcome)
        finally:
            self.release()


def _drain(task: Task) -> Outcome:
    try:
        drained, indexed = drain_and_index(
            task.settings, task.partitions, once=task.once, seconds=task.seconds, share_of=task.processes
        )
    except CustodyError as error:
        return Outcome(repeated=retries.take(), problem=str(error))
    return Outcome(drained, indexed, retries.take())


def _end_with(connection: Connection) -> None:
    """Stop once the other process says so, or is gone."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def main(descriptor: int) -> None:
    """Do the task that comes through a connection."""
    connection = Connection(descriptor)
    with stop_on_signals(signal.SIGTERM, signal.SIGINT, grace=GRACE_SECONDS):
        task: Task = connection.recv()
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        give_back = _GiveBack(connection)
        logging.basicConfig(level=task.level, handlers=[give_back])
        give_back.end(_drain(task))
    # All is archived and said: nothing is left that is worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    with suppress(EOFError):
        main(int(sys.argv[1]))
