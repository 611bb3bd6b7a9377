"""How fast the drain is, next to a plain one, on a real broker: `uv run python -m tests.benchmarks.drain`.

Loads a real Kafka with events over four partitions, or as many as `--partitions` says; then drains them in a child
process into a folder, several times, each with the plain baseline before and after it on a share of the same events,
since machines are noisy and ratios are what lasts. Then verifies an archive, every event parsed. Needs Java and Maven,
as the tests do. Reports the median of the rounds, and the range of their ratios; judges nothing.

With `--leaves` it drains in pairs instead, with `drain.event_leaves` and without, and reports what that costs.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from confluent_kafka import TopicPartition
from rich.console import Console
from rich.table import Table

from custody.archive import assemble, writer
from custody.format import members
from custody.format.leaves import OpenLeaves
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.store.open import open_store
from flows.operate.sample import sample_events
from tasks.drain import loop
from tasks.drain import run as drain
from tasks.drain.kafka import PARTITION_EOF, Feed
from tasks.settings import Settings
from tests.servers.kafka import KafkaServer

PARTITIONS = 4
SEED = 20261124
BASELINE_SHARE = 0.1


def load(kafka: KafkaServer, topic: str, events: int, partitions: int = PARTITIONS) -> int:
    """Produce events round robin, and return their bytes."""
    producer = kafka.producer(
        **{
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 500_000,
        }
    )
    size = 0
    for number, value in enumerate(sample_events(events, SEED, datetime(2026, 11, 24, tzinfo=UTC), 5000)):
        size += len(value)
        producer.produce(topic, value, partition=number % partitions)
        if number % 5000 == 0:
            producer.poll(0)
            while len(producer) > 200_000:
                producer.poll(0.05)
    producer.flush()
    return size


class Stages:
    """Where a run spends its time: seconds within calls of each stage, and of the processor where it can be told."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of a function or method."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                with self._lock:
                    self.wall[stage] += time.perf_counter() - begin

        setattr(owner, name, timed)


def measure(step: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Run a step in this process and return its figures."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    figures: dict[str, Any] = dict(step())
    figures["wall"] = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["peak_mib"] = after.ru_maxrss / 1024
    return figures


def run_custody() -> dict[str, Any]:
    """Drain as `custody drain --once` does."""
    stages = Stages()
    stages.watch(Feed, "read", "fetch and decompress, in librdkafka (waiting included)")
    stages.watch(assemble, "check", "check events against their types")
    stages.watch(members, "pack", "SHA-256 and gzip")
    stages.watch(OpenLeaves, "add", "hash events one by one (drain.event_leaves)")
    stages.watch(writer.LogWriter, "append", "put segments and manifests (beside the others)")

    def step() -> dict[str, float]:
        results = drain.drain_logs(Settings(), once=True)
        problems = [result.problem for result in results if result.outcome != "drained"]
        if problems:
            raise SystemExit(f"the drain failed: {problems}")
        return {
            "events": sum(result.events for result in results),
            "quarantined": sum(result.quarantined for result in results),
            "segments": sum(result.segments for result in results),
            "bytes_in": sum(result.bytes_in for result in results),
            "bytes_out": sum(result.bytes_out for result in results),
        }

    figures = measure(step)
    figures["stages"] = dict(stages.wall)
    return figures


def run_baseline(limit: int) -> dict[str, Any]:
    """Drain as a plain consumer does: parse, serialise, gzip -9, one put for each 1000 events. Nothing is proved."""
    settings = Settings()
    target = open_store(settings.archive)
    kafka = settings.kafka.librdkafka()
    partitions = drain.find_partitions(settings)

    def step() -> dict[str, float]:
        waiting: dict[int, list[str]] = defaultdict(list)
        events = bytes_in = bytes_out = ended = 0
        with Feed(kafka, "baseline", [TopicPartition(*partition, 0) for partition in partitions]) as feed:
            while ended < len(partitions) and events < limit:
                for message in feed.read(2000, 0.1):
                    error = message.error()
                    if error is not None:
                        ended += error.code() == PARTITION_EOF
                        continue
                    lines = waiting[message.partition()]
                    lines.append(json.dumps(json.loads(message.value() or b"null")))
                    if len(lines) == 1000:
                        payload = ("\n".join(lines) + "\n").encode()
                        data = gzip.compress(payload, 9)
                        target.create(f"baseline/{message.partition()}-{message.offset():020}.jsonl.gz", data)
                        events, bytes_in, bytes_out = events + 1000, bytes_in + len(payload), bytes_out + len(data)
                        lines.clear()
        return {"events": events, "bytes_in": bytes_in, "bytes_out": bytes_out}

    return measure(step)


def run_read() -> dict[str, Any]:
    """Read all records and do nothing with them: what Kafka and librdkafka alone cost. It warms up the broker, too."""
    settings = Settings()
    kafka = settings.kafka.librdkafka()
    partitions = drain.find_partitions(settings)

    def step() -> dict[str, float]:
        events = ended = 0
        with Feed(kafka, "read", [TopicPartition(*partition, 0) for partition in partitions]) as feed:
            while ended < len(partitions):
                for message in feed.read(loop.READ_RECORDS, 0.1):
                    if message.error() is None:
                        events += 1
                    else:
                        ended += 1
        return {"events": events}

    return measure(step)


def child(role: str, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run a role in a fresh process, and return the figures that it prints."""
    command = [sys.executable, "-m", "tests.benchmarks.drain", "--role", role, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True, timeout=900)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def baseline(folder: Path, environment: dict[str, str], limit: str) -> dict[str, Any]:
    """Run the plain baseline into a folder that does not stay."""
    figures = child("baseline", {**environment, "CUSTODY_ARCHIVE": str(folder)}, "--limit", limit)
    shutil.rmtree(folder)
    return figures


def verify(environment: dict[str, str]) -> dict[str, float]:
    """Verify the archive by the command line, in a process of its own."""
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("custody")), "verify", "--json"],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=False,
        timeout=900,
    )
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"the archive does not verify: exit code {done.returncode}\n{done.stdout.decode()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def new_archive(archive: str, environment: dict[str, str]) -> dict[str, str]:
    """Write `archive.json` into a folder or bucket, and return the environment of a drain into it."""
    signers = open_signers(environment["CUSTODY_KEYS"], datetime.now(UTC))
    writer.create_archive(open_store(archive, Settings().s3), signers.both)
    return {**environment, "CUSTODY_ARCHIVE": archive}


def compare_leaves(console: Console, folder: Path, environment: dict[str, str], rounds: int) -> None:
    """Drain in pairs, one with leaves and one without, each first in turn, and print what leaves cost."""
    costs: list[dict[str, float]] = []
    for number in range(rounds):
        cost = {}
        for leaves in ("true", "false") if number % 2 else ("false", "true"):
            place = folder / f"archive-{number}-{leaves}"
            figures = child("custody", {**new_archive(str(place), environment), "CUSTODY_DRAIN__EVENT_LEAVES": leaves})
            cost[leaves] = figures["cpu"] / figures["events"] * 1e9
            shutil.rmtree(place)
        costs.append(cost)
        console.print(
            f"pair {number}: {cost['false']:,.0f} ns of CPU an event without leaves, {cost['true']:,.0f} with them:"
            f" ratio {cost['true'] / cost['false']:.3f}"
        )
    plain, leafy = (median(cost[leaves] for cost in costs) for leaves in ("false", "true"))
    ratio = median(cost["true"] / cost["false"] for cost in costs)
    console.print(f"median: {plain:,.0f} ns without leaves, {leafy:,.0f} with them; ratio of pairs {ratio:.3f}")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=PARTITIONS)
    parser.add_argument("--leaves", action="store_true", help="measure what drain.event_leaves costs, in pairs")
    parser.add_argument("--role", choices=["custody", "baseline", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        roles: dict[str, Callable[[], dict[str, Any]]] = {
            "custody": run_custody,
            "read": run_read,
            "baseline": lambda: run_baseline(options.limit),
        }
        print(json.dumps(roles[options.role]()))
        return

    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="custody-benchmark-") as name:
        folder = Path(name)
        with KafkaServer(folder / "kafka", heap="1g", measured=True) as kafka:
            topic = kafka.create_topic("audit.benchmark", options.partitions)
            begin = time.perf_counter()
            size = load(kafka, topic, options.events, options.partitions)
            # What the broker has not written out yet would be written while the drain is measured.
            os.sync()
            console.print(
                f"{options.events:,} events of {size / options.events:.0f} bytes, {options.partitions} partitions, lz4,"
                f" loaded in {time.perf_counter() - begin:.0f} s; seed {SEED}; Python {platform.python_version()},"
                f" {os.cpu_count()} cores"
            )
            new_keyring(folder / "keyring.json", datetime.now(UTC))
            common = {
                "CUSTODY_KEYS": f"file:{folder / 'keyring.json'}",
                "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
                "CUSTODY_KAFKA__TOPICS": topic,
                # One process; `tests.benchmarks.peers` has them all.
                "CUSTODY_DRAIN__WORKERS": "1",
            }
            limit = str(int(options.events * BASELINE_SHARE))
            read = child("read", {**common, "CUSTODY_ARCHIVE": str(folder / "none")})
            if options.leaves:
                compare_leaves(console, folder, common, options.rounds)
                return
            plain, custody = [baseline(folder / "plain-0", common, limit)], []
            for number in range(options.rounds):
                ours = new_archive(str(folder / f"archive-{number}"), common)
                custody.append(child("custody", ours))
                plain.append(baseline(folder / f"plain-{number + 1}", common, limit))
                if number:
                    shutil.rmtree(folder / f"archive-{number - 1}")
        checked = verify(ours)
    report(console, custody, plain, read, checked)


def report(
    console: Console,
    custody: list[dict[str, Any]],
    plain: list[dict[str, Any]],
    read: dict[str, Any],
    checked: dict[str, float],
) -> None:
    """Print the figures."""
    for figures in (*custody, *plain, read):
        figures["events/s"] = figures["events"] / figures["wall"]
        figures["events per CPU second"] = figures["events"] / figures["cpu"]
        figures["CPU s per million events"] = figures["cpu"] / figures["events"] * 1e6
    for figures in (*custody, *plain):
        figures["compression ratio"] = figures["bytes_in"] / figures["bytes_out"]
    table = Table(f"median of {len(custody)} rounds", "custody drain", "plain baseline", "ratio", "of rounds")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, form in (("events/s", ",.0f"), ("events per CPU second", ",.0f"), ("CPU s per million events", ".2f")):
        # Each round's baseline is the mean of the one before and the one after.
        bases = [(one[label] + other[label]) / 2 for one, other in pairwise(plain)]
        ratios = [one[label] / base for one, base in zip(custody, bases, strict=True)]
        table.add_row(
            label,
            format(median(one[label] for one in custody), form),
            format(median(bases), form),
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    for label, key, form in (
        ("peak memory, MiB", "peak_mib", ".0f"),
        ("compression ratio", "compression ratio", ".2f"),
    ):
        table.add_row(label, *(format(max(one[key] for one in runs), form) for runs in (custody, plain)), "", "")
    console.print(table)
    console.print("Where the drain's time goes, in ns an event by the wall clock:")
    stages = {name: median(one["stages"][name] / one["events"] for one in custody) for name in custody[0]["stages"]}
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        console.print(f"  {seconds * 1e9:>6,.0f}  {stage}")
    console.print(
        f"Reading from Kafka alone, nothing done: {read['events/s']:,.0f} events/s,"
        f" {read['events per CPU second']:,.0f} per CPU second"
    )
    console.print(
        f"custody verify: {custody[0]['events'] / checked['wall']:,.0f} events/s, every event parsed;"
        f" {checked['wall']:.1f} s, start included"
    )


if __name__ == "__main__":
    main()
