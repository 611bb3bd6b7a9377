"""Divides the logs of a run into shares, one for each process, by how much each log has to read.

Rules:
- A process more must be worth its start, so every share has `WORTH_A_PROCESS` offsets to read. A run with less than two
  such shares stays in one process.
- A log is never divided: its records are archived in order.
- Memory is bounded for all processes together. Of the events that a drain holds, each process gets an equal part. What
  hostile batches need comes on top, in any of them: so by default there are as many as have room for that
  (`WORST_BYTES`), and one at least.
"""

from collections.abc import Sequence

from custody.format.limits import MIB
from tasks.drain import machine
from tasks.drain.log_run import LogRun
from tasks.settings import DrainSettings

WORTH_A_PROCESS = 1_000_000
"""Offsets to read, as two to four seconds of work: starting a process costs a fifth of that."""
MOST_PROCESSES = 16
"""The most processes by default. With more of them, each could hold less than a segment."""
WORST_BYTES = 3 * 1024 * MIB
"""Memory that a process needs at worst (docs/large-records.md)."""


def most_processes(options: DrainSettings) -> int:
    """Return how many processes a drain may use on this machine. Shares of another task runner have one each."""
    if options.workers == "auto":
        return max(1, min(machine.cores(), machine.memory() // WORST_BYTES, MOST_PROCESSES))
    return options.workers if options.task_runner == "processes" else 1


def divide(runs: Sequence[LogRun], most: int) -> list[list[LogRun]]:
    """Divide logs into as many shares as are worth a process.

    The first share is the largest. It also has all logs that wait for nothing.

    Args:
        runs: the logs of a run, opened.
        most: the most shares.
    """
    waiting = [(max(0, run.target - run.assembler.position), run) for run in runs]
    behind = sorted([each for each in waiting if each[0]], key=lambda each: -each[0])
    idle = [run for offsets, run in waiting if not offsets]
    for number in range(min(most, len(behind), sum(offsets for offsets, _ in behind) // WORTH_A_PROCESS), 1, -1):
        shares: list[list[LogRun]] = [[] for _ in range(number)]
        loads = [0] * number
        # The largest log first, each to the share that has the least.
        for offsets, run in behind:
            lightest = loads.index(min(loads))
            shares[lightest].append(run)
            loads[lightest] += offsets
        if min(loads) >= WORTH_A_PROCESS:
            largest = shares.pop(loads.index(max(loads)))
            return [[*largest, *idle], *shares]
    return [list(runs)]
