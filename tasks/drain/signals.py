"""Ending the runs in this process cleanly: by a signal, or by whoever sets `stop_requested`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

stop_requested = threading.Event()
"""Once it is set, runs in this process finish the segments in hand and end."""


@contextmanager
def stop_on_signals(*kinds: signal.Signals) -> Iterator[None]:
    """Request a stop when a signal comes, SIGTERM if none is named. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.signal(kind, lambda *_: stop_requested.set()) for kind in kinds or (signal.SIGTERM,)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        stop_requested.clear()
