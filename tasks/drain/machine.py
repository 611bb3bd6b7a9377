"""Returns what this process may use of its machine: cores and memory, by its affinity and by its control groups.

A container's limits are those of its control group, or of one around it. Both versions of control groups are read; a
machine can have both at once. What cannot be read is no limit.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Return how many cores this process may use."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([number, *_quotas()]))


def memory() -> int:
    """Return how many bytes of memory this process may use: all of the machine, or what its control groups allow."""
    limits = [_number(text) for text in _read("", "memory.max")]
    limits += [_number(text) for text in _read("memory", "memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def _quotas() -> Iterator[int]:
    """Yield the quotas of processor time, in whole cores."""
    for text in [*_read("", "cpu.max"), *_read("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us")]:
        quota, _, period = text.partition(" ")
        cores, each = _number(quota), _number(period)
        if cores is not None and each:
            yield cores // each


def _number(text: str) -> int | None:
    """Return a limit; None if it is none, such as `max` or `-1`."""
    return int(text) if text.isdecimal() else None


def _read(controller: str, *names: str) -> Iterator[str]:
    """Yield what files say in this process's control group and in those around it, several with a space between.

    Args:
        controller: of version 1; empty for version 2, which has one tree for all.
        names: of the files.
    """
    with suppress(OSError, ValueError):
        for line in _OWN.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller not in controllers.split(","):
                continue
            # In a container the path may be that on the host, of which only the container's own group is there.
            for folder in [own := Path(path), *own.parents]:
                with suppress(OSError, ValueError):
                    files = [_CGROUPS / controller / folder.relative_to("/") / name for name in names]
                    yield " ".join(file.read_text(encoding="ascii").strip() for file in files)
