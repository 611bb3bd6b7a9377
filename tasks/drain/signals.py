"""Ends the runs in this process cleanly, after a signal or after `stop_requested` was set.

A drain that does not end by itself within `GRACE_SECONDS` is ended where it stands. Nothing is lost: the archive is the
state, and the next run continues from its head.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GRACE_SECONDS = 10.0
"""How long a drain may take to finish its open segments after a signal."""

stop_requested = threading.Event()
"""Once it is set, runs in this process finish their open segments and end."""


def may_go_on() -> bool:
    """Return whether no stop was requested in this process. Unlike the event, it can be sent to another one."""
    return not stop_requested.is_set()


@contextmanager
def stop_on_signals(*kinds: signal.Signals, grace: float | None = None) -> Iterator[None]:
    """Request a stop when a signal arrives, by default SIGTERM. Does nothing outside the main thread.

    Args:
        kinds: the signals.
        grace: seconds after which the process ends anyway, whatever it is doing; None to let it take its time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = kinds or (signal.SIGTERM,)
    before = {kind: signal.signal(kind, lambda *_: stop_requested.set()) for kind in kinds}
    try:
        if grace is None:
            yield
        else:
            with _watchdog(kinds, grace):
                yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        stop_requested.clear()


@contextmanager
def _watchdog(kinds: tuple[signal.Signals, ...], grace: float) -> Iterator[None]:
    """End the process some seconds after a signal, unless the context is left before."""
    # Python calls a handler only between two steps of the main thread, which may hang in a call of librdkafka. The
    # number of the signal is written to this pipe at once.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        received, deadline = 0, 0.0
        while True:
            left = max(0.0, deadline - time.monotonic()) if received else None
            if not select.select([reading], [], [], left)[0]:
                text = f"custody: ended {grace:g} s after a signal; the next run continues\n"
                # Whatever became of stderr, the process ends.
                with suppress(OSError):
                    os.write(2, text.encode())
                os._exit(128 + received)
            number = os.read(reading, 1)
            if not number:
                return
            if number[0] in kinds and not received:
                received, deadline = number[0], time.monotonic() + grace
                stop_requested.set()

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writing)
        thread.join()
        os.close(reading)
