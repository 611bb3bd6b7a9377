"""Tunes CPython and glibc for the drain. Importing this module changes nothing."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_COLLECT_AFTER = 50_000
_KEEP_BYTES = 64 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Raise the GC threshold: a few reads allocate enough records to trigger a collection that finds no cycles."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory until the process ends.

    By default glibc returns each batch's pages to the kernel, and page faults for the next batch cost up to 7 % of the
    time.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
