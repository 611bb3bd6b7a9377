"""What detection costs, and how often it is wrong: `uv run python -m tests.benchmarks.detect`, in two minutes.

1. A minute of 60,000 events through all shipped rules, with 30 days of state of 200 and of 5,000 keys: the state is
   read from a folder, the events are decoded, the rules run, and the new state is written: in seconds of processor.
2. Four weeks of an ordinary shop of 200 keys (`tests.helpers.fortnight`) without attacks: alerts by rule and day.

Reports; judges nothing.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median
from unittest.mock import patch

from duckdb import DuckDBPyConnection
from rich.console import Console
from rich.table import Table

from custody.store.open import open_store
from tasks.detect import folder, memory
from tasks.detect import step as steps
from tasks.detect.rule import Match, Rule, run_rule
from tasks.detect.state import State, States
from tasks.detect.step import step
from tests.helpers import fortnight, remembered
from tests.helpers.detecting import STORM, Live
from tests.helpers.fortnight import DAY, HOUR, Shop

EVENTS = 60_000
DAYS = 30
ARCHIVE = "benchmark"
console = Console()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="minutes of events; the first one is not counted")
    parser.add_argument("--keys", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.keys is not None:
        run_minutes(given.keys, given.rounds)
        return
    load = os.getloadavg()[0]
    for keys in (200, 5_000):
        # Each in a process of its own, for its peak of memory.
        command = [sys.executable, "-m", "tests.benchmarks.detect", "--keys", str(keys), "--rounds", str(given.rounds)]
        subprocess.run(command, check=True)
    show_fortnight()
    console.print(f"load: {load:.1f} before, {os.getloadavg()[0]:.1f} after")


def run_minutes(keys: int, rounds: int) -> None:
    """Run some minutes of events, each as a run of its own does, and print what they cost."""
    rules = folder.load([folder.SHIPPED])
    known = remembered.remembered(keys, DAYS)
    costs = _Costs()
    with tempfile.TemporaryDirectory() as place:
        States(open_store(place), ARCHIVE).commit(State(memory=known), datetime.now(UTC))
        rows = {name: getattr(known, name).num_rows for name in memory.Memory.__slots__}
        del known
        begin = _peak()
        for number in range(rounds):
            lines = remembered.minute_of(EVENTS, keys, number=number)
            states = States(open_store(place), ARCHIVE)
            with costs.of("the state is read"):
                state = states.newest()
            assert state is not None
            with costs.of("events are decoded"):
                events = remembered.decoded(lines, number=number)
            until = remembered.NOW + timedelta(minutes=number + 1)
            with costs.of("rules and memory"), patch.object(steps, "run_rule", costs.run_rule):
                outcome = step(rules, state.memory, state.alerts, events, until=until, head_age=5.0, storm=STORM)
            assert not outcome.failed
            with costs.of("the state is written"):
                states.commit(replace(state, memory=outcome.memory, alerts=outcome.alerts), datetime.now(UTC))
    costs.show(f"{EVENTS:,} events, {keys:,} keys, {DAYS} days")
    console.print(f"rows of state: {', '.join(f'{name} {count:,}' for name, count in rows.items())}")
    console.print(f"peak memory: {_peak():,} MiB; {begin:,} MiB before, when the state was made")


class _Costs:
    """Seconds of processor time, by what they were spent on. What is a part of another begins with a space."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Measure."""
        begin = time.process_time()
        yield
        self._seconds.setdefault(name, []).append(time.process_time() - begin)

    def run_rule(self, connection: DuckDBPyConnection, rule: Rule) -> list[Match]:
        """Run a rule."""
        with self.of(f"  {rule.name}"):
            return run_rule(connection, rule)

    def show(self, title: str) -> None:
        """Print a table, without the first round."""
        table = Table("", "seconds, median", "of", title=title)
        counted = {name: seconds[1:] for name, seconds in self._seconds.items()}
        for name, seconds in counted.items():
            table.add_row(name, f"{median(seconds):.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}")
        parts = [seconds for name, seconds in counted.items() if not name.startswith(" ")]
        whole = [sum(each) for each in zip(*parts, strict=True)]
        table.add_row("together", f"{median(whole):.2f}", f"{min(whole):.2f} to {max(whole):.2f}")
        console.print(table)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def show_fortnight() -> None:
    """Run the shop's four weeks without attacks, and print the alerts."""
    rules = folder.load([folder.SHIPPED])
    shop = Shop()
    archived = fortnight.sent(shop)
    live, end = Live(), shop.days * DAY + HOUR
    live.run(rules, archived, [*fortnight.cuts(end, (), quiet=4 * HOUR), end])
    opened = [each for each in live.notices if each.kind in {"opened", "storm"}]
    days = Counter((each.alert.rule, each.alert.last >= fortnight.time_of(shop.learnt * DAY)) for each in opened)
    table = Table("rule", "first two weeks", "the fortnight after", "a day")
    for rule in rules:
        before, after = days[rule.name, False], days[rule.name, True]
        table.add_row(rule.name, str(before), str(after), f"{after / (shop.days - shop.learnt):.2f}")
    console.print(table)
    for each in opened:
        console.print(f"{each.alert.last:%d %B %H:%M} {each.alert.rule} {dict(each.alert.group)} {each.alert.metric:g}")
    console.print(f"{len(archived):,} events, seed {shop.seed}")


if __name__ == "__main__":
    main()
