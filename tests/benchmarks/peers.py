"""How fast the drain is next to others that read Kafka into files or S3: `uv run python -m tests.benchmarks.peers`.

All drain the same topic of four partitions on one broker beside them, in turn, for some rounds. Machines are noisy, so
the ratios of a round are what lasts. Nobody's start counts:

- custody with one process, and with a process a core, to a folder and to S3. Processes that it starts count whole.
- `kcat | pigz -1`, from Debian's packages of these names: as little as can be done. All partitions in one stream.
- Kafka Connect with Kafka's own file sink and with Camel's S3 sink, both from Maven (`tests.benchmarks.connect`).
- Quix Streams' file sink, from PyPI, in an environment of its own (`uv`): gzip JSONL.
- the plain consumer of `tests.benchmarks.drain`.

S3 is SeaweedFS beside them; what it takes itself counts for nobody. The slower ones get a share of the events. A peer
that this machine lacks is left out, with the reason. The last archives are verified at the end, each event parsed.
Needs Java and Maven, as the tests do. Judges nothing.
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
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from custody.keys.keyring import new_keyring
from tasks.drain.run import drain_logs
from tasks.settings import Settings
from tests.benchmarks.connect import CAMEL, camel_sink, file_sink
from tests.benchmarks.drain import PARTITIONS, SEED, load, new_archive, run_baseline, verify
from tests.benchmarks.peer import SECONDS, TOPIC, Figures, Peer, Site, UnavailableError, own_figures, used, watched
from tests.servers.kafka import VERSION, KafkaServer, KafkaUnavailableError
from tests.servers.s3 import SeaweedServer

QUIX = "quixstreams==3.28.1"


def archive(folder: Path, *, s3: bool) -> str:
    """Return the address of the archive that a run of custody writes."""
    return f"s3://custody-{folder.name}/archive" if s3 else str(folder / "archive")


def custody(workers: str, *, s3: bool = False) -> Callable[[Site, Path, int], Figures]:
    """Return the run of custody with so many processes."""

    def run(site: Site, folder: Path, events: int) -> Figures:
        if s3:
            site.s3.client().create_bucket(Bucket=f"custody-{folder.name}")
        environment = new_archive(archive(folder, s3=s3), site.environment) | {
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


TO_FOLDER = "custody, one process", "custody, a process a core"
TO_S3 = "custody to S3, one process", "custody to S3, a process a core"
PEERS = (
    Peer(TO_FOLDER[0], "all that FORMAT.md says", 1.0, custody("1"), TO_FOLDER),
    Peer(TO_FOLDER[1], "the same", 1.0, custody("auto"), TO_FOLDER),
    Peer("kcat | pigz -1", "nothing; partitions are mixed", 1.0, kcat, TO_FOLDER),
    Peer(f"Kafka Connect {VERSION}, file sink", "nothing; plain lines", 1.0, file_sink, TO_FOLDER),
    Peer(f"Quix Streams {QUIX.partition('==')[2]}, file sink", "nothing", 0.1, quix, TO_FOLDER),
    Peer("plain consumer, gzip -9", "nothing", 0.1, plain, TO_FOLDER),
    Peer(TO_S3[0], "all that FORMAT.md says", 1.0, custody("1", s3=True), TO_S3),
    Peer(TO_S3[1], "the same", 1.0, custody("auto", s3=True), TO_S3),
    Peer(f"Kafka Connect {VERSION}, Camel {CAMEL}'s S3 sink", "nothing; no newlines, no gzip", 0.25, camel_sink, TO_S3),
)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="of the peers, those whose names have this in them, and custody beside them")
    parser.add_argument("--role", choices=["custody", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(drain_here() if options.role == "custody" else run_baseline(options.limit)))
        return
    console = Console(highlight=False, width=140)
    wanted = [peer for peer in PEERS if not options.only or options.only in peer.name]
    peers = [peer for peer in PEERS if peer in wanted or any(peer.name in each.beside for each in wanted)]
    with (
        tempfile.TemporaryDirectory(prefix="custody-peers-") as name,
        KafkaServer(Path(name) / "kafka", heap="1g", measured=True) as kafka,
        SeaweedServer(Path(name) / "seaweed") as s3,
    ):
        os.environ.update({**s3.environment(), "CUSTODY_S3__ENDPOINT_URL": s3.endpoint_url})
        site = prepare(kafka, s3, Path(name), options.events)
        console.print(
            f"{site.events:,} events of {site.size / site.events:.0f} bytes in {PARTITIONS} partitions (lz4); seed"
            f" {SEED}; Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
        )
        figures = measure(console, site, peers, Path(name), options.rounds)
        report(console, peers, figures)
        console.print(f"load {os.getloadavg()[0]:.1f} after")


def prepare(kafka: KafkaServer, s3: SeaweedServer, folder: Path, events: int) -> Site:
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
    site = Site(kafka.bootstrap, s3, events, size, environment)
    with tempfile.TemporaryDirectory(dir=folder) as warm:
        custody("auto")(site, Path(warm), events)
    return site


def measure(console: Console, site: Site, peers: list[Peer], folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """Run all peers in turn, each round in another order, and verify the last archives."""
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
            except (UnavailableError, KafkaUnavailableError) as error:
                missing.add(peer.name)
                console.print(f"{peer.name} is left out: {error}")
            if number == rounds - 1 and peer.name in {TO_FOLDER[1], TO_S3[1]}:
                url = archive(output, s3=peer.name == TO_S3[1])
                checked = verify(site.environment | {"CUSTODY_ARCHIVE": url})
                rate = site.events / checked["wall"]
                console.print(f"custody verify of {peer.name}: {rate:,.0f} events/s, every event parsed")
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
        one, all_cores = (figures[name] for name in peer.beside)
        ratios = [
            ratio(all_cores, runs, lambda run: run.wall),
            ratio(one, runs, lambda run: run.wall),
            ratio(one, runs, lambda run: run.cpu),
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
