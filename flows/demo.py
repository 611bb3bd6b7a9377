"""The main job here and now: an embedded Kafka, drained by the real flow into a folder, verified, and tampered with.

The Kafka is librdkafka's mock cluster, which lives in this process and keeps a few MiB a partition: events go in by
rounds, each drained before the next. Prefect runs as it does elsewhere, with a database of its own that goes with the
process. The archive and its keyring stay in the folder; a second run adds another topic to them.
"""

import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from custody import layout, render
from custody.archive import create_archive, read_manifest
from custody.errors import CustodyError, ObjectMissing, TransientSourceError
from custody.keys import new_keyring
from custody.layout import Log
from custody.store import open_store
from custody.trust import open_trust
from custody.verify import Report, verify
from flows.render import drain_table, size
from flows.sample import invalid_values, sample_events
from tasks.drain import LogResult

PARTITIONS = 4
"""What the mock cluster gives a topic that is made by producing to it."""
ROUND = 60_000
"""Events in a round; the mock cluster keeps twice as many."""
INVALID_EVERY = 500
_SEED = 1


@dataclass(slots=True)
class _Totals:
    """What the rounds add up to."""

    produced: int = 0
    seconds: float = 0.0
    events: int = 0
    quarantined: int = 0
    segments: int = 0
    lost: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, results: tuple[LogResult, ...], seconds: float) -> None:
        self.seconds += seconds
        for name in ("events", "quarantined", "segments", "lost", "bytes_in", "bytes_out"):
            setattr(self, name, getattr(self, name) + sum(getattr(result, name) for result in results))


def demo(folder: Path, events: int) -> None:
    """Run the demo.

    Args:
        folder: where the archive and the keyring go, or are already.
        events: how many events to produce; some invalid records come on top.

    Raises:
        CustodyError: something did not come out as promised; the message says what.
    """
    console = Console(highlight=False, soft_wrap=True)
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    archive, keyring = folder / "archive", folder / "keyring.json"
    if not keyring.exists():
        new_keyring(keyring, datetime.now(UTC))
    create_archive(open_store(str(archive)))
    topic = f"demo-{datetime.now(UTC):%y%m%d-%H%M%S}"
    producer = Producer(
        {"bootstrap.servers": "embedded", "test.mock.num.brokers": 1, "compression.type": "zstd", "linger.ms": 20},
        logger=_quiet(),
    )
    servers = ",".join(f"{one.host}:{one.port}" for one in producer.list_topics(timeout=10).brokers.values())
    with _environment(archive, keyring, servers, topic):
        totals, results = _rounds(console, producer, topic, events)
    report = _verify(console, archive, keyring)
    console.print(drain_table(results))
    console.print(_summary(totals, report))
    _check(totals, report, archive, [Log(topic, partition) for partition in range(PARTITIONS)])
    _tamper(console, archive, keyring, Log(topic, 0))
    _say_what_next(console, folder, time.monotonic() - begin)


def _quiet() -> logging.Logger:
    # The mock cluster announces itself as a warning, and says each time that a client leaves.
    logger = logging.getLogger("custody.demo.kafka")
    logger.setLevel(logging.CRITICAL)
    return logger


@contextmanager
def _environment(archive: Path, keyring: Path, servers: str, topic: str) -> Iterator[None]:
    """Set what the flow reads, and nothing that the user has set for something else, for as long as the demo runs."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="custody-demo-", ignore_cleanup_errors=True) as name:
        config = Path(name) / "custody.toml"
        config.touch()
        for variable in list(os.environ):
            if variable.upper().startswith(("CUSTODY_", "PREFECT_")):
                del os.environ[variable]
        os.environ |= {
            "CUSTODY_CONFIG": str(config),
            "CUSTODY_ARCHIVE": str(archive.resolve()),
            "CUSTODY_KEYS": f"file:{keyring.resolve()}",
            "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": servers,
            "CUSTODY_KAFKA__TOPICS": topic,
            "PREFECT_HOME": name,
            "PREFECT_LOGGING_LEVEL": "ERROR",
            "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _rounds(console: Console, producer: Producer, topic: str, events: int) -> tuple[_Totals, list[LogResult]]:
    """Produce and drain in turn, so that the embedded Kafka never has to drop what is not drained."""
    totals, logs = _Totals(), dict[str, LogResult]()
    values = sample_events(events, _SEED, datetime.now(UTC))
    left = events
    with console.status("Starting Prefect …") as status:
        # Prefect reads its environment when it is imported.
        from flows.drain import drain

        while left:
            now = min(ROUND, left)
            left -= now
            status.update(f"Producing {now:,} events of six types to the embedded Kafka …")
            totals.produced += _produce(producer, topic, [next(values) for _ in range(now)])
            status.update(f"Draining by the Prefect flow … ({totals.events:,} of {events:,} events archived)")
            state: Any = drain(once=True, return_state=True)
            if not state.is_completed():
                raise CustodyError(f"the drain did not complete: {state.message}")
            run = state.result()
            totals.add(run.results, run.seconds)
            for result in run.results:
                _accumulate(logs, result)
            console.print(
                f"Drained {totals.events:,} events, and {totals.quarantined:,} invalid records to quarantine,"
                f" in {totals.seconds:.1f} s."
            )
    return totals, [logs[name] for name in sorted(logs)]


def _accumulate(logs: dict[str, LogResult], result: LogResult) -> None:
    if earlier := logs.get(result.log):
        for name in ("events", "quarantined", "skipped", "lost", "segments", "statements"):
            setattr(result, name, getattr(result, name) + getattr(earlier, name))
    logs[result.log] = result


def _produce(producer: Producer, topic: str, values: list[bytes]) -> int:
    """Produce events over the partitions, with an invalid record among them now and then; return the records."""
    bad = invalid_values()
    mixed: list[bytes] = []
    for number, value in enumerate(values):
        if number % INVALID_EVERY == INVALID_EVERY - 1:
            mixed.append(bad[number // INVALID_EVERY % len(bad)])
        mixed.append(value)
    for number, value in enumerate(mixed):
        producer.produce(topic, value, partition=number % PARTITIONS)
        if number % 1000 == 0:
            producer.poll(0)
    if producer.flush(30):
        raise TransientSourceError("the embedded Kafka did not take all events within 30 s: is the machine very busy?")
    return len(mixed)


def _verify(console: Console, archive: Path, keyring: Path) -> Report:
    with console.status("Verifying: every signature, every hash, every line …"):
        return verify(open_store(str(archive)), open_trust([f"file:{keyring}"]), now=datetime.now(UTC))


def _summary(totals: _Totals, report: Report) -> Table:
    table = render.table("!", "#")
    table.show_header = False
    for name, value in (
        ("events", f"{totals.events:,}"),
        ("quarantined", f"{totals.quarantined:,}"),
        ("segments", f"{totals.segments:,}"),
        ("bytes in", size(totals.bytes_in)),
        ("bytes out", size(totals.bytes_out)),
        ("ratio", f"{totals.bytes_in / max(1, totals.bytes_out):.2f}"),
        ("events/s", f"{totals.events / totals.seconds:,.0f}" if totals.seconds else "-"),
        ("verdict", report.verdict),
    ):
        table.add_row(name, value)
    return table


def _check(totals: _Totals, report: Report, archive: Path, logs: list[Log]) -> None:
    """Hold the run to its promise, by what went in and what the verifier read."""
    if totals.lost:
        raise CustodyError(
            f"the embedded Kafka dropped {totals.lost:,} records before they were drained: the machine is too slow for"
            " this many at once; run the demo with fewer --events"
        )
    read = {log.log: log for log in report.logs}
    found = sum(read[str(log)].events + read[str(log)].quarantined for log in logs)
    if report.exit_code not in {0, 3} or found != totals.produced:
        raise CustodyError(
            f"{totals.produced:,} records were produced and {found:,} are archived; verification says:"
            f" {report.verdict}. This is a bug: please report it with the folder {archive}"
        )


def _tamper(console: Console, archive: Path, keyring: Path, log: Log) -> None:
    """Copy the archive aside, flip one byte in a segment of the copy, and show what verification says."""
    with tempfile.TemporaryDirectory(prefix="custody-tampered-") as name:
        copy = Path(name) / "archive"
        shutil.copytree(archive, copy)
        key = _a_segment(copy, log)
        path = copy / key
        data = bytearray(path.read_bytes())
        at = random.Random(_SEED).randrange(len(data))  # noqa: S311 - any byte will do
        data[at] ^= 0x01
        path.write_bytes(data)
        console.print(
            f"\nNow one bit is flipped in a copy: byte {at:,} of {key}\n$ custody verify COPY", soft_wrap=True
        )
        report = _verify(console, copy, keyring)
        for part in render.report(report):
            console.print(part, soft_wrap=False)
        console.print(f"exit code {report.exit_code}")
        if report.exit_code != 13:
            raise CustodyError("the flipped bit was not noticed: this is a bug, please report it")


def _a_segment(archive: Path, log: Log) -> str:
    store = open_store(str(archive))
    for sequence in range(1_000):
        segment = read_manifest(store, log, sequence).statement.segment
        if segment is not None:
            return segment.key
    raise ObjectMissing(f"{layout.log_prefix(log)} names no segment")


def _say_what_next(console: Console, folder: Path, seconds: float) -> None:
    keyring = folder / "keyring.json"
    console.print(
        f"""
Done in {seconds:.0f} s. The archive and its keyring are in {folder}/. Look around:
  custody verify {folder}/archive --keys file:{keyring}
  zcat $(find {folder}/archive/events -name '*.gz' | head -1) | head -3

Point it at a real broker and at S3:
  export CUSTODY_KAFKA__BOOTSTRAP_SERVERS=broker:9092 CUSTODY_KAFKA__TOPICS=audit.events
  export CUSTODY_ARCHIVE=s3://BUCKET/PREFIX
  custody init && custody drain --once && custody verify
Then 'custody up' drains every minute."""
    )
    sys.stdout.flush()
