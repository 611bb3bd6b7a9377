"""How fast a spool takes and gives events: a part of `tests.benchmarks.emit`.

Groups are synced to a real disk, each by fdatasync.
"""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from custody.emit.spool import Spool
from flows.operate.sample import sample_events

SEED = 16
GROUPS = (1, 100, 1000)
REPLAYED = 200
"""Lines of a batch, as a writer takes them."""


def report(disk: Path | None, number: int) -> None:
    """Write, replay, print.

    Args:
        disk: a folder on the disk to measure; None for the one of temporary files.
        number: how many events.
    """
    events = list(sample_events(1000, SEED, datetime(2026, 1, 1, tzinfo=UTC)))
    mean = sum(map(len, events)) / len(events)
    print(f"spool, events of {mean:,.0f} bytes in the mean")
    with tempfile.TemporaryDirectory(dir=disk) as name, Spool(Path(name) / "spool", 1 << 34) as spool:
        for group in GROUPS:
            rounds = max(number // 1000 if group == 1000 else min(number // group, 1000), 1)
            began = time.perf_counter()
            for _ in range(rounds):
                spool.append(events[:group])
                spool.sync()
            seconds = time.perf_counter() - began
            print(
                f"write in groups of {group:,}: {rounds * group / seconds:,.0f} events/s, {seconds / rounds:.4f} s each"
            )
        began = time.perf_counter()
        replayed = 0
        while (batch := spool.peek(REPLAYED)).lines:
            replayed += len(batch.lines)
            spool.done(batch)
        print(f"replay and delete: {replayed / (time.perf_counter() - began):,.0f} events/s")
