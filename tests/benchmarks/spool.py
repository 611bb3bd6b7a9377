"""How fast a spool takes and gives events: `uv run python -m tests.benchmarks.spool`.

Groups are synced to a real disk, each by fdatasync. Reports; judges nothing. `--folder` names the disk to measure.
"""

import argparse
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


def main() -> None:
    """Write, replay, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the default is the one of temporary files")
    options = parser.parse_args()
    events = list(sample_events(1000, SEED, datetime(2026, 1, 1, tzinfo=UTC)))
    mean = sum(map(len, events)) / len(events)
    print(f"events of {mean:,.0f} bytes in the mean")
    with tempfile.TemporaryDirectory(dir=options.folder) as name, Spool(Path(name) / "spool", 1 << 34) as spool:
        for group in GROUPS:
            rounds = max(options.events // 1000 if group == 1000 else min(options.events // group, 1000), 1)
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


if __name__ == "__main__":
    main()
