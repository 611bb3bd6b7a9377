"""Verifies chains by worker processes' own code in threads of this process: what passes between them is the same."""

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from custody.verify import chains, run
from custody.verify.report import Report


@contextmanager
def in_threads() -> Iterator[None]:
    """Give each log to a worker, however short it is. Workers are threads, which start at once."""

    def start(self: Any) -> Connection:
        here, other = multiprocessing.Pipe()

        def work() -> None:
            with other:
                chains._work(other, self._given)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._workers[here] = thread
        return here

    # A process that does not end is ended; a thread must end by itself.
    patience = patch.object(chains, "_END_SECONDS", 60.0)
    with patience, patch.object(chains.Chains, "_start", start), patch.object(run, "LEAST_MANIFESTS", 0):
        yield


def what_it_says(report: Report) -> Report:
    """Return a report without when it was made."""
    return replace(report, made=None)  # type: ignore[arg-type]
