"""Ends the runs in this process cleanly, after a signal or after `stop_requested` was set."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

stop_requested = threading.Event()
"""Once it is set, runs in this process finish their open segments and end."""


@contextmanager
def stop_on_signals(*kinds: signal.Signals) -> Iterator[None]:
    """Request a stop when a signal arrives, by default SIGTERM. Does nothing outside the main thread."""
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
