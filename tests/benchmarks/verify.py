"""How fast `custody verify` is: `uv run python -m tests.benchmarks.verify`.

Writes archives of four logs by the writer's own code, without Kafka: one of many events in a folder, one of fewer on a
real S3 server beside it (SeaweedFS), one of many small statements for the chain alone. Then verifies each as a user
would, by the command line, and reports rates, the processors' time and the memory of all its processes together.
Reports; judges nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from custody.archive.assemble import TIME_CREATE, Assembler
from custody.archive.reader import read_archive
from custody.archive.writer import LogWriter, create_archive
from custody.format.leaves import LeafMaker
from custody.format.manifest import LogId
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.store.protocol import Store
from flows.operate.sample import sample_events
from tasks.settings import Settings
from tests.servers.s3 import SeaweedServer

LOGS = 4
SEED = 20261124
BEGIN = datetime(2026, 11, 24, tzinfo=UTC)
DAY_EVENTS = 86_000_000
SMALL_EVENTS = 5
"""Events of each of the many small statements."""
_TOPIC = "audit.benchmark"
_READ = 1000
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Message:
    """A Kafka record, as the assembler takes it."""

    at: int
    content: bytes

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return self.content

    def key(self) -> None:
        return None

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return TIME_CREATE, int(BEGIN.timestamp() * 1000) + self.at // 5

    def leader_epoch(self) -> int:
        return 0


class Unsynced:
    """A folder that is written without waiting for the disk: a hundred thousand small objects are to be made soon."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def create(self, key: str, data: bytes) -> None:
        """Create an object."""
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def records(number: int, seed: int) -> Iterator[Message]:
    """Yield the records of a log."""
    for offset, content in enumerate(sample_events(number, seed, BEGIN, 5000)):
        yield Message(offset, content)


def write_log(url: str, keyring: Path, partition: int, events: int, *, small: bool, leaves: bool) -> int:
    """Write a log of an archive that was made, and return the bytes of its events."""
    store: Any = open_store(url, Settings().s3)
    if small:
        store = Unsynced(store, Path(url))
    uri = f"file:{keyring}"
    statements = 0
    archive, signers = read_archive(store).id, open_signers(uri, datetime.now(UTC))
    writer = LogWriter(
        store,
        archive,
        LogId("cluster", _TOPIC, "topic-id", partition, 1),
        signer=signers.hmac(),
        trust=open_trust([uri]),
        writer="custody/benchmark",
        clock=lambda: BEGIN + timedelta(seconds=statements),
    )
    writer.open()
    drain = Settings().drain
    assembler = Assembler(
        0,
        batch_events=drain.batch_events,
        segment_bytes=drain.segment_bytes,
        level=drain.level,
        number=writer.next_batch,
        leaves=LeafMaker(signers.leaves, archive, str(writer.log)) if leaves and signers.leaves else None,
    )
    source = records(events, SEED + partition)
    size = 0
    while some := list(islice(source, SMALL_EVENTS if small else _READ)):
        size += sum(len(record.content) + 1 for record in some)
        assembler.add(some)
        if small or assembler.full:
            writer.append(assembler.cut())
            statements += 1
    if not assembler.is_empty:
        writer.append(assembler.cut())
    return size


def build(url: str, folder: Path, events: int, *, small: bool = False, leaves: bool = False) -> tuple[Path, int]:
    """Write an archive, two logs at a time, and return its keyring and the bytes of its events."""
    keyring = folder / "keyring.json"
    new_keyring(keyring, BEGIN - timedelta(days=1))
    create_archive(open_store(url, Settings().s3), open_signers(f"file:{keyring}", datetime.now(UTC)).both)
    size = 0
    command = [sys.executable, "-m", "tests.benchmarks.verify", "--role", "write", "--url", url, "--keyring", keyring]
    share = str(events // LOGS)
    flags = [*(["--small"] if small else []), *(["--leaves"] if leaves else [])]
    for begin in range(0, LOGS, 2):
        children = [
            subprocess.Popen(
                [*map(str, command), "--partition", str(partition), "--events", share, *flags],
                stdout=subprocess.PIPE,
            )
            for partition in range(begin, begin + 2)
        ]
        for child in children:
            output, _ = child.communicate()
            if child.returncode:
                raise SystemExit(f"the archive could not be written: exit code {child.returncode}")
            size += json.loads(output)
    # What is not written out yet would be written while verification is measured.
    os.sync()
    return keyring, size


class Watch:
    """Sums the memory and the processors' time of a process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.peak_mib = 0.0
        self.processes = 0
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    @property
    def cpu(self) -> float:
        """Seconds of the processors, of all processes together."""
        return sum(self._seconds.values())

    def _run(self) -> None:
        family = [self._root]
        turn = 0
        while not self._ended.wait(_SAMPLE_SECONDS):
            try:
                if turn % 5 == 0:
                    family = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                pass
            turn += 1
            resident = alive = 0
            for one in family:
                try:
                    times = one.cpu_times()
                    self._seconds[one.pid] = times.user + times.system
                    resident += one.memory_info().rss
                    alive += 1
                except psutil.Error:
                    continue
            self.peak_mib = max(self.peak_mib, resident / 1_048_576)
            self.processes = max(self.processes, alive)


def verify(url: str, keyring: Path, *options: str, expect: Mapping[str, int]) -> dict[str, float]:
    """Verify an archive by the command line, hold the result against what was written, and return the figures."""
    command = [str(Path(sys.executable).with_name("custody")), "verify", url, "--keys", f"file:{keyring}", "--json"]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen([*command, *options], stdout=output) as child:
            watch = Watch(child.pid)
            child.wait()
            wall = time.perf_counter() - begin
            watch.stop()
        output.seek(0)
        lines = [json.loads(line) for line in output]
    logs = [line for line in lines if line["kind"] == "log"]
    found = {name: sum(log[name] for log in logs) for name in expect}
    if child.returncode or found != dict(expect):
        raise SystemExit(f"{url} does not verify: exit code {child.returncode}, {found}: {lines[:3]}")
    statements = sum(log["statements"] for log in logs)
    return {"wall": wall, "cpu": watch.cpu, "peak_mib": watch.peak_mib, "statements": statements}


def events_table(rows: Sequence[tuple[str, int, dict[str, float]]]) -> Table:
    """Return the figures of whole verifications."""
    table = Table("every line and hash", "events/s", "CPU µs an event", "peak MiB", "a day of 86 M")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, events, figures in rows:
        rate = events / figures["wall"]
        table.add_row(
            f"{label}: {events:,} events in {figures['wall']:.1f} s",
            f"{rate:,.0f}",
            f"{figures['cpu'] / events * 1e6:.2f}",
            f"{figures['peak_mib']:.0f}",
            f"{DAY_EVENTS / rate:.0f} s",
        )
    return table


def chain_table(rows: Sequence[tuple[str, dict[str, float]]]) -> Table:
    """Return the figures of chains alone."""
    table = Table("manifests, signatures, trees; no segment", "manifests/s", "CPU µs a manifest", "peak MiB")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, figures in rows:
        table.add_row(
            f"{label}: {figures['statements']:,.0f} manifests in {figures['wall']:.1f} s",
            f"{figures['statements'] / figures['wall']:,.0f}",
            f"{figures['cpu'] / figures['statements'] * 1e6:.0f}",
            f"{figures['peak_mib']:.0f}",
        )
    return table


def run_folder(folder: Path, events: int, console: Console, *, leaves: bool) -> tuple[str, int, dict[str, float]]:
    """Measure an archive in a folder."""
    folder.mkdir()
    url = str(folder / "archive")
    keyring, size = build(url, folder, events, leaves=leaves)
    console.print(f"folder: {events:,} events of {size / events:.0f} bytes written; seed {SEED}")
    return "file://", events, verify(url, keyring, expect={"events": events})


def run_s3(folder: Path, events: int, console: Console, *, leaves: bool) -> tuple[str, int, dict[str, float]]:
    """Measure an archive on an S3 server of this machine."""
    folder.mkdir()
    with SeaweedServer(folder / "seaweed") as server:
        url = f"s3://{server.make_bucket()}/archive"
        os.environ.update({**server.environment(), "CUSTODY_S3__ENDPOINT_URL": server.endpoint_url})
        keyring, size = build(url, folder, events, leaves=leaves)
        console.print(f"S3: {events:,} events of {size / events:.0f} bytes written; seed {SEED}")
        return "s3:// (SeaweedFS beside it)", events, verify(url, keyring, expect={"events": events})


def run_chain(folder: Path, manifests: int, console: Console) -> tuple[str, dict[str, float]]:
    """Measure the chain alone."""
    folder.mkdir()
    url = str(folder / "archive")
    events = manifests * SMALL_EVENTS
    keyring, _ = build(url, folder, events, small=True)
    console.print(f"chain: {manifests:,} statements of {SMALL_EVENTS} events written; seed {SEED}")
    figures = verify(url, keyring, "--chain-only", expect={"statements": manifests})
    return "HMAC-SHA256", figures


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="in the folder")
    parser.add_argument("--s3-events", type=int, default=4_000_000, help="on the S3 server; 0 leaves it out")
    parser.add_argument("--manifests", type=int, default=100_000, help="of the chain; 0 leaves it out")
    parser.add_argument("--leaves", action="store_true", help="commit to each event alone")
    parser.add_argument("--folder", type=Path, help="where to write; it must not exist, and is kept")
    parser.add_argument("--role", choices=["write"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--keyring", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--partition", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        written = write_log(
            options.url,
            options.keyring,
            options.partition,
            options.events,
            small=options.small,
            leaves=options.leaves,
        )
        print(written)
        return

    console = Console(highlight=False)
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="custody-benchmark-") as name:
        folder = options.folder or Path(name)
        folder.mkdir(exist_ok=not options.folder)
        whole = (
            [run_folder(folder / "folder", options.events, console, leaves=options.leaves)] if options.events else []
        )
        if options.s3_events:
            whole.append(run_s3(folder / "s3", options.s3_events, console, leaves=options.leaves))
        chains = [run_chain(folder / "chain", options.manifests, console)] if options.manifests else []
    if whole:
        console.print(events_table(whole))
    if chains:
        console.print(chain_table(chains))


if __name__ == "__main__":
    main()
