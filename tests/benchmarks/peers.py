"""How fast the drain is next to others that read Kafka into files: `uv run python -m tests.benchmarks.peers`.

All drain the same topic of four partitions on one broker beside them, in turn, for some rounds. Machines are noisy, so
the ratios of a round are what lasts. Nobody's start counts:

- custody with one process, and with a process a core. Processes that it starts itself count whole.
- `kcat | pigz -1`, from Debian's packages of these names: as little as can be done. All partitions in one stream.
- Kafka Connect with Kafka's own file sink, from Maven: plain lines, neither gzip nor S3. Its S3 sinks do more.
- Quix Streams' file sink, from PyPI, in an environment of its own (`uv`): gzip JSONL.
- the plain consumer of `tests.benchmarks.drain`.

The slower ones get a share of the events. A peer that this machine lacks is left out, with the reason. The last archive
is verified at the end, each event parsed. Needs Java and Maven, as the tests do. Judges nothing.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil
from rich.console import Console
from rich.table import Table

from custody.keys.keyring import new_keyring
from tasks.drain.run import drain_logs
from tasks.settings import Settings
from tests.benchmarks.drain import PARTITIONS, SEED, load, new_archive, run_baseline, verify
from tests.servers.kafka import CACHE, VERSION, KafkaServer, fetch_jars, find_java

TOPIC = "audit.benchmark"
QUIX = "quixstreams==3.28.1"
SECONDS = 900
_LOOK_SECONDS = 0.01
_SAMPLE_SECONDS = 0.5


class UnavailableError(Exception):
    """This machine cannot run a peer; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of a peer took.

    Attributes:
        events: how many it drained.
        wall: seconds, without its start.
        cpu: seconds of the processor of all its processes, without its start.
        peak: bytes of memory of all its processes together, start included.
    """

    events: int
    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True, slots=True)
class Site:
    """What peers drain, and where to."""

    bootstrap: str
    events: int
    size: int
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that drains a topic.

    Attributes:
        name: what the table calls it.
        proves: what its output proves.
        share: the part of the events that it gets.
        run: drains so many events into an empty folder.
    """

    name: str
    proves: str
    share: float
    run: Callable[[Site, Path, int], Figures]


# --- measuring


@contextmanager
def watched(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[list[int]]:
    """Sample the memory of a process and its children; the list has the greatest sum at its end."""
    peak, over = [0], Event()

    def watch() -> None:
        root = psutil.Process(process.pid)
        while not over.wait(_SAMPLE_SECONDS):
            total = 0
            for each in tree(root):
                try:
                    total += each.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it; none once it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def own_figures(command: list[str], environment: dict[str, str], events: int, folder: Path | None = None) -> Figures:
    """Run a program that prints, as its last line, its own events, wall and processor seconds as JSON."""
    with (
        subprocess.Popen(
            command, env=os.environ | environment, cwd=folder, stdout=subprocess.PIPE, text=True
        ) as process,
        watched(process) as peak,
    ):
        out, _ = process.communicate(timeout=SECONDS)
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed with exit code {process.returncode}")
    told = json.loads(out.splitlines()[-1])
    if told["events"] < events:
        raise SystemExit(f"{command[:4]} drained {told['events']} of {events} events")
    return Figures(told["events"], told["wall"], told["cpu"], peak[0])


def used(*whose: int) -> float:
    """Return the processor seconds of this process, of its children that have ended, or of both."""
    usages = [resource.getrusage(who) for who in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# --- the peers


def custody(workers: str) -> Callable[[Site, Path, int], Figures]:
    """Return the run of custody with so many processes."""

    def run(site: Site, folder: Path, events: int) -> Figures:
        environment = new_archive(folder / "archive", site.environment) | {
            "CUSTODY_DRAIN__WORKERS": workers,
            "CUSTODY_DRAIN__COMPRESSION": "fast",
        }
        return own_figures([sys.executable, "-m", "tests.benchmarks.peers", "--role", "custody"], environment, events)

    return run


def drain_here() -> dict[str, float]:
    """Drain as `custody drain --once` does, and return the figures."""
    settings, whose = Settings(), (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    begin, cpu = time.perf_counter(), used(*whose)
    results = drain_logs(settings, once=True)
    wall, cpu = time.perf_counter() - begin, used(*whose) - cpu
    if problems := [result.problem for result in results if result.outcome != "drained"]:
        raise SystemExit(f"the drain failed: {problems}")
    return {"events": sum(result.events for result in results), "wall": wall, "cpu": cpu}


def kcat(site: Site, folder: Path, events: int) -> Figures:
    """Read all partitions with kcat, and compress the stream with pigz."""
    for program in ("kcat", "pigz"):
        if shutil.which(program) is None:
            raise UnavailableError(f"there is no {program}: install Debian's package")
    output = folder / "events.jsonl.gz"
    read = f"kcat -C -q -e -b {site.bootstrap} -t {TOPIC} -o beginning -X auto.offset.reset=earliest"
    begin, cpu = time.perf_counter(), used(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(["/bin/sh", "-c", f"{read} | pigz -1 > {output}"]) as process, watched(process) as peak:
        process.wait(SECONDS)
        wall, cpu = time.perf_counter() - begin, used(resource.RUSAGE_CHILDREN) - cpu
    lines = int(subprocess.check_output(["/bin/sh", "-c", f"pigz -dc {output} | wc -l"]))
    if lines != events:
        raise SystemExit(f"kcat drained {lines} of {events} events")
    return Figures(events, wall, cpu, peak[0])


_CONNECT_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>local</groupId><artifactId>connect</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>connect-file</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""


def connect(site: Site, folder: Path, _: int) -> Figures:
    """Run Kafka Connect with its file sink, from its first line in the file to its last."""
    jars = fetch_jars(CACHE / f"connect-{VERSION}", _CONNECT_POM)
    output = folder / "events.jsonl"
    converter = "org.apache.kafka.connect.converters.ByteArrayConverter"
    # The file sink prints what it gets, and so it must get text.
    lines = "org.apache.kafka.connect.storage.StringConverter"
    worker = {
        "bootstrap.servers": site.bootstrap,
        "key.converter": converter,
        "value.converter": lines,
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 1000,
        # What is on the class path: to scan folders for plugins takes minutes.
        "plugin.discovery": "service_load",
        "listeners": "http://127.0.0.1:0",
        "consumer.auto.offset.reset": "earliest",
        "consumer.max.poll.records": 10_000,
    }
    sink = {
        "name": f"sink-{folder.name}",
        "connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector",
        "tasks.max": 1,
        "topics": TOPIC,
        "file": output,
    }
    for name, properties in (("worker", worker), ("sink", sink)):
        (folder / name).write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    java = [find_java(), "-Xmx1g", "-cp", f"{jars}/*", "org.apache.kafka.connect.cli.ConnectStandalone"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*java, str(folder / "worker"), str(folder / "sink")], stdout=log, stderr=log)
    with process, watched(process) as peak:
        try:
            # Nobody's start counts.
            until_written(output, 1, process)
            begin, cpu, first = time.perf_counter(), cpu_of(process), output.stat().st_size
            until_written(output, site.size + site.events, process)
            wall, cpu = time.perf_counter() - begin, cpu_of(process) - cpu
        finally:
            process.kill()
    whole = site.size + site.events
    return Figures(round(site.events * (whole - first) / whole), wall, cpu, peak[0])


def until_written(output: Path, size: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file has so many bytes."""
    deadline = time.monotonic() + SECONDS
    while not output.exists() or output.stat().st_size < size:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"Kafka Connect ended, or wrote too little: {(output.parent / 'log').read_text()[-2000:]}")
        time.sleep(_LOOK_SECONDS)


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Return the processor seconds of a running process."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


_QUIX_PROGRAM = """
import json, resource, sys, time
from quixstreams import Application
from quixstreams.sinks.community.file.formats import JSONFormat
from quixstreams.sinks.community.file.local import LocalFileSink

bootstrap, topic, group, events = sys.argv[1:]
application = Application(
    bootstrap, consumer_group=group, auto_offset_reset="earliest", auto_create_topics=False, loglevel="ERROR"
)
frame = application.dataframe(application.topic(topic, value_deserializer="json"))
frame.sink(LocalFileSink(directory="events", format=JSONFormat(compress=True)))

def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

begin, cpu = time.perf_counter(), used()
application.run(count=int(events), collect=False)
print(json.dumps({"events": int(events), "wall": time.perf_counter() - begin, "cpu": used() - cpu}))
"""


def quix(site: Site, folder: Path, events: int) -> Figures:
    """Run Quix Streams' file sink, in an environment of its own."""
    uv = shutil.which("uv")
    if uv is None:
        raise UnavailableError("there is no uv, which makes its environment")
    python = [uv, "run", "--quiet", "--no-project", "--python", platform.python_version(), "--with", QUIX, "python"]
    (folder / "program.py").write_text(_QUIX_PROGRAM)
    arguments = [str(folder / "program.py"), site.bootstrap, TOPIC, f"quix-{folder.name}", str(events)]
    return own_figures([*python, *arguments], {}, events, folder)


def plain(site: Site, folder: Path, events: int) -> Figures:
    """Run the plain consumer."""
    environment = site.environment | {"CUSTODY_ARCHIVE": str(folder / "plain")}
    command = [sys.executable, "-m", "tests.benchmarks.peers", "--role", "plain", "--limit", str(events)]
    return own_figures(command, environment, events)


ONE, ALL = "custody, one process", "custody, a process a core"
PEERS = (
    Peer(ONE, "all that FORMAT.md says", 1.0, custody("1")),
    Peer(ALL, "the same", 1.0, custody("auto")),
    Peer("kcat | pigz -1", "nothing; partitions are mixed", 1.0, kcat),
    Peer(f"Kafka Connect {VERSION}, file sink", "nothing; plain lines", 1.0, connect),
    Peer(f"Quix Streams {QUIX.partition('==')[2]}, file sink", "nothing", 0.1, quix),
    Peer("plain consumer, gzip -9", "nothing", 0.1, plain),
)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="of the peers, those whose names have this in them; custody is always measured")
    parser.add_argument("--role", choices=["custody", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(drain_here() if options.role == "custody" else run_baseline(options.limit)))
        return
    console = Console(highlight=False, width=140)
    peers = [peer for peer in PEERS if peer.name in {ONE, ALL} or not options.only or options.only in peer.name]
    with (
        tempfile.TemporaryDirectory(prefix="custody-peers-") as name,
        KafkaServer(Path(name) / "kafka", heap="1g", measured=True) as kafka,
    ):
        site = prepare(kafka, Path(name), options.events)
        console.print(
            f"{site.events:,} events of {site.size / site.events:.0f} bytes in {PARTITIONS} partitions (lz4); seed"
            f" {SEED}; Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
        )
        figures = measure(console, site, peers, Path(name), options.rounds)
        report(console, peers, figures)
        console.print(f"load {os.getloadavg()[0]:.1f} after")


def prepare(kafka: KafkaServer, folder: Path, events: int) -> Site:
    """Load the topic, make keys, and read all once, so that the broker is warm."""
    kafka.create_topic(TOPIC, PARTITIONS)
    size = load(kafka, TOPIC, events)
    os.sync()
    new_keyring(folder / "keyring.json", datetime.now(UTC))
    environment = {
        "CUSTODY_KEYS": f"file:{folder / 'keyring.json'}",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "CUSTODY_KAFKA__TOPICS": TOPIC,
    }
    site = Site(kafka.bootstrap, events, size, environment)
    with tempfile.TemporaryDirectory(dir=folder) as warm:
        custody("auto")(site, Path(warm), events)
    return site


def measure(console: Console, site: Site, peers: list[Peer], folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """Run all peers in turn, each round in another order, and verify the last archive."""
    figures: dict[str, list[Figures]] = defaultdict(list)
    missing: set[str] = set()
    for number in range(rounds):
        for peer in [*peers[number % len(peers) :], *peers[: number % len(peers)]]:
            if peer.name in missing:
                continue
            output = folder / f"{number}-{peers.index(peer)}"
            output.mkdir()
            try:
                figures[peer.name].append(peer.run(site, output, int(site.events * peer.share)))
            except UnavailableError as error:
                missing.add(peer.name)
                console.print(f"{peer.name} is left out: {error}")
            if number == rounds - 1 and peer.name == ALL:
                checked = verify(site.environment | {"CUSTODY_ARCHIVE": str(output / "archive")})
                console.print(f"custody verify: {site.events / checked['wall']:,.0f} events/s, every event parsed")
            shutil.rmtree(output)
    return figures


def report(console: Console, peers: list[Peer], figures: dict[str, list[Figures]]) -> None:
    """Print the table: medians, and medians of the ratios of rounds."""
    table = Table(
        "median of the rounds",
        "events/s",
        "events per CPU second",
        "peak MiB",
        "a process a core / this",
        "one process / this",
        "one process / this, per CPU second",
        "proves",
    )
    for column in table.columns[1:-1]:
        column.justify = "right"
    for peer in peers:
        runs = figures.get(peer.name)
        if not runs:
            continue
        ratios = [
            ratio(figures[ALL], runs, lambda run: run.wall),
            ratio(figures[ONE], runs, lambda run: run.wall),
            ratio(figures[ONE], runs, lambda run: run.cpu),
        ]
        table.add_row(
            peer.name,
            f"{median(run.events / run.wall for run in runs):,.0f}",
            f"{median(run.events / run.cpu for run in runs):,.0f}",
            f"{max(run.peak for run in runs) / 2**20:,.0f}",
            *ratios,
            peer.proves,
        )
    console.print(table)


def ratio(ours: list[Figures], theirs: list[Figures], seconds: Callable[[Figures], float]) -> str:
    """Return how many times as fast ours are: the median of the rounds, and their range."""
    ratios = [
        (one.events / seconds(one)) / (other.events / seconds(other)) for one, other in zip(ours, theirs, strict=True)
    ]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
