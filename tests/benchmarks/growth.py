"""What commands cost on an archive of a month, a year and seven years: `uv run python -m tests.benchmarks.growth`.

Each archive has a log of one statement a minute, or several (`--logs`), an hourly checkpoint and a nightly audit, up to
the minute in which it was made. A real broker has a topic that ends where the log does, so there is nothing new. The
commands are those that run each minute or each night, and those of people who look for a day, an event or a proof.

1. `generated`: a store that makes objects when they are asked for, and counts requests (tests/helpers/aged.py). What
   making them takes is part of the processor time; what a client of S3 takes is not.
2. `folder`: files. Segments are written of the first statements and of the last weeks (`--segment-days`): no command
   here looks at the others, and they are two thirds of the files.
3. `S3`: SeaweedFS beside it, and S3's own client. Requests are counted where that client sends them.

Each command is a process of its own, start and imports included. One that takes too long is ended, and not run on an
older archive. The time index covers all but the last day. Its files and the tables of events are there of the last 33
days, and of the first statements. Before a command is measured, what it does each night or minute is done once.
Reports; judges nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import psutil
from confluent_kafka import TopicCollection
from rich.console import Console
from rich.table import Table

from custody.archive.reader import read_archive
from custody.store.open import open_store
from tasks.metrics.state import LogTotals, State
from tasks.search.client import Search
from tasks.search.indices import prepare, put_cursor
from tasks.settings import SearchSettings
from tests.benchmarks.copying import copy_to_folder, copy_to_s3
from tests.helpers import aged
from tests.helpers.aged import DAY, EACH, FIRST_OFFSET, AgedStore, Requests, Source
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import SeaweedServer

AGES = (30, 365, 2555)
"""Days: a month, a year, seven years."""
KINDS = ("GET", "HEAD", "LIST", "VERSIONS", "PUT")
PIECE = 480
"""Statements of a span of the time index, and of a piece of an audit. The setting's default is 500. This one is a third
of a day, so pieces begin at the same times at each age, and as many are read."""
REREAD_DAYS = 36_500
"""So many that an audit reads one piece again at any age: how much is read again is the setting's price, not growth."""
SECONDS = 60
"""The longest time of a command."""
ELSEWHERE = ("status", "drain", "audit", "query", "connect", "evidence")
"""Parts of the titles of commands that are also run in SeaweedFS."""
IN_FOLDER = (*ELSEWHERE, "index", "metrics", "roll", "backfill", "report", "show", "checkpoint")
"""Of those that are also run on files."""
SEGMENT_DAYS = 40
"""Days at the end whose segments are written as files."""
_SLOWEST = 1.2
"""What an operator is promised at ten times the age; more is marked."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive to run commands on.

    Attributes:
        kind: where it lies.
        days: its age.
        store: what it was made from.
        url: its root.
        environment: variables for a command that opens it.
    """

    kind: str
    days: int
    store: AgedStore
    url: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """The name of its log."""
        return f"{self.store.spec.topic}/0"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a command took; `seconds` is None if it was ended."""

    requests: Mapping[str, int]
    read: int
    cpu: float
    seconds: float | None
    peak_mib: float

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the table.

    Attributes:
        title: its name there.
        arguments: those of the command line, with fields of `fields`; `connect` alone is a call from Python.
        codes: exit codes that show that it did its work.
        before: what runs before, so that nothing is new.
        needs: the server that it needs beside the archive.
    """

    title: str
    arguments: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    before: tuple[str, ...] = ()
    needs: Literal["", "kafka", "search"] = ""


COMMANDS = (
    # Nobody is alerted, and the audit is a day old: warnings.
    Command("status", ("status",), codes=(0, 1, 3)),
    Command("drain, nothing new", ("drain", "--once"), before=("drain", "--once"), needs="kafka"),
    Command("audit, nothing new", ("audit",), codes=(0, 3), before=("audit",)),
    Command("index, nothing new", ("index",), before=("index",), needs="search"),
    Command("metrics", ("metrics",)),
    # S3's lifecycle cannot be asked for of a generated archive.
    Command("roll --dry-run", ("roll", "--dry-run"), codes=(0, 1), before=("roll",)),
    Command(
        "backfill of a day, dry",
        (
            *("backfill", "--dry-run", "--since", "{since}", "--until", "{until}"),
            *("--to", "folder", "--folder", "{folder}/copy"),
        ),
    ),
    Command("query of a day", ("query", "SELECT count(*) FROM events WHERE day = '{day}'")),
    Command("connect()", ("connect",)),
    Command("report", ("report", "--output", "{folder}/report.html")),
    Command("show a log", ("show", "{log}")),
    Command("show an event", ("show", "{log}@{offset}")),
    Command("checkpoint", ("checkpoint",)),
    Command("evidence", ("evidence", "{log}", "{offset}", "--output", "{folder}/evidence.zip")),
    Command("verify --state, a day", ("verify", "--state", "{folder}/state.json", "--since", "{since}"), codes=(0, 3)),
    Command("verify --state, chain", ("verify", "--state", "{folder}/state.json", "--chain-only"), codes=(0, 3)),
)


# --- a command, in a process of its own


@dataclass(frozen=True, slots=True)
class Servers:
    """What runs beside the archives; None if it is left out."""

    kafka: KafkaServer | None
    search: ElasticsearchServer | None


def measure(archive: Archive, command: Command, folder: Path, servers: Servers, limit: float) -> Figures:
    """Run a command on an archive in a process of its own, and return what it took."""
    journal = folder / "journal"
    fields = _fields(archive, folder)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("CUSTODY_", "AWS_"))},
        "AWS_EC2_METADATA_DISABLED": "true",
        "CUSTODY_ARCHIVE": archive.url,
        "CUSTODY_KEYS": archive.store.keys,
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": servers.kafka.bootstrap if servers.kafka else "127.0.0.1:1",
        "CUSTODY_KAFKA__TOPICS": archive.store.spec.topic,
        "CUSTODY_AUDIT__REREAD_DAYS": str(REREAD_DAYS),
        "CUSTODY_AUDIT__PIECE_STATEMENTS": str(PIECE),
        "CUSTODY_METRICS__STATE": str(folder / "metrics.json"),
        **archive.environment,
    }
    if command.needs == "search" and servers.search:
        environment["CUSTODY_SEARCH__URL"] = servers.search.url
    for part in filter(None, (command.before, command.arguments)):
        arguments = [argument.format(**fields) for argument in part]
        journal.unlink(missing_ok=True)
        (folder / "evidence.zip").unlink(missing_ok=True)
        call = [sys.executable, "-m", "tests.benchmarks.counted", str(journal), *arguments]
        figures, code, said = _wait(call, environment, folder, journal, limit)
        if code is not None and code not in command.codes:
            raise SystemExit(f"{archive.kind}, {archive.days} days: custody {' '.join(arguments)}: code {code}: {said}")
        if code is None:
            # What comes after a command that was ended is not what it would be after a whole one.
            break
    return figures


def _wait(
    call: Sequence[str], environment: Mapping[str, str], folder: Path, journal: Path, limit: float
) -> tuple[Figures, int | None, str]:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "output").open("wb") as output:
        child = subprocess.Popen(call, env=environment, cwd=folder, stdout=output, stderr=output)
        family = psutil.Process(child.pid)
        peak, code = 0.0, None
        while time.perf_counter() - began < limit:
            with contextlib.suppress(psutil.Error):
                processes = [family, *family.children(recursive=True)]
                peak = max(peak, sum(process.memory_info().rss for process in processes) / 1_048_576)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(0.05)
                break
        else:
            with contextlib.suppress(psutil.Error):
                for process in family.children(recursive=True):
                    process.kill()
            child.kill()
            child.wait()
    seconds = time.perf_counter() - began if code is not None else None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counted = Requests.of_journal(journal) if journal.exists() else Requests()
    said = (folder / "output").read_text(errors="replace")[-2000:]
    return Figures(counted.by_kind, counted.read_bytes, cpu, seconds, peak), code, said


def _fields(archive: Archive, folder: Path) -> dict[str, str]:
    """Return what arguments may name: the newest whole day, and an event in its middle."""
    spec = archive.store.spec
    until = (spec.begin + timedelta(minutes=spec.statements)).replace(hour=0, minute=0)
    since = until - timedelta(days=1)
    sequence = int((since - spec.begin) / timedelta(minutes=1)) + DAY // 2
    return {
        "folder": str(folder),
        "log": archive.log,
        "offset": str(FIRST_OFFSET + sequence * EACH),
        "day": f"{since:%Y-%m-%d}",
        "since": since.isoformat(),
        "until": until.isoformat(),
    }


# --- archives


def build(
    folder: Path, ages: Sequence[int], kafka: KafkaServer | None, *, logs: int = 1, workers: int = 2
) -> list[AgedStore]:
    """Make archives of these ages, several at a time, or find them where they were kept."""
    sources = _topics(kafka, ages, logs) if kafka else {days: Source(_topic(days)) for days in ages}
    end = datetime.now(UTC).replace(second=0, microsecond=0)

    def make(days: int) -> AgedStore:
        at, source = folder / (f"{days}-{logs}" if logs > 1 else f"{days}"), sources[days]
        if not (at / "spec.json").exists() or AgedStore(at).spec.source != source:
            shutil.rmtree(at, ignore_errors=True)
            more = ["--cluster", source.cluster, "--topic-id", source.topic_id or "", "--end", end.isoformat()]
            more += ["--ages", str(days), "--logs", str(logs)]
            call = [sys.executable, "-m", "tests.benchmarks.growth", "--make", str(at), *more]
            subprocess.run(call, check=True)
        return AgedStore(at)

    with ThreadPoolExecutor(workers) as threads:
        # The oldest one takes longest, so it begins first.
        made = dict(zip(sorted(ages, reverse=True), threads.map(make, sorted(ages, reverse=True)), strict=True))
    if kafka:
        _set_ends(kafka, [made[days] for days in ages])
    return [made[days] for days in ages]


def _topic(days: int) -> str:
    return f"audit.{days}-days"


def _topics(kafka: KafkaServer, ages: Sequence[int], logs: int) -> dict[int, Source]:
    """Return the topics of a broker, one for each age; they are made if they are not there."""
    there = kafka.admin.list_topics(timeout=20).topics
    for days in ages:
        if _topic(days) not in there:
            kafka.create_topic(_topic(days), logs)
    cluster = kafka.admin.describe_cluster().result(20).cluster_id
    answers = kafka.admin.describe_topics(TopicCollection([_topic(days) for days in ages]))
    return {days: Source(_topic(days), str(cluster), str(answers[_topic(days)].result(20).topic_id)) for days in ages}


def _set_ends(kafka: KafkaServer, stores: Sequence[AgedStore]) -> None:
    """Let each topic begin and end where its log ends, as if retention had deleted all that was archived."""
    ends = {log: FIRST_OFFSET + store.spec.statements * EACH for store in stores for log in store.spec.names}
    if all(kafka.watermarks(log.topic, log.partition) == (end, end) for log, end in ends.items()):
        return
    kafka.stop()
    for log, end in ends.items():
        folder = kafka.folder / "data" / f"{log.topic}-{log.partition}"
        for path in folder.iterdir():
            if path.name != "partition.metadata":
                path.unlink()
        (folder / f"{end:020}.log").touch()
    data = kafka.folder / "data"
    for name in (".kafka_cleanshutdown", "recovery-point-offset-checkpoint", "log-start-offset-checkpoint"):
        (data / name).unlink(missing_ok=True)
    (data / "replication-offset-checkpoint").unlink(missing_ok=True)
    kafka.start()


def write_states(archive: Archive, folder: Path, elastic: ElasticsearchServer | None) -> None:
    """Write the heads that a verifier saw a day ago, what was counted for metrics by then, and that all is indexed."""
    spec = archive.store.spec
    size = spec.statements - DAY
    heads = {str(log): archive.store.nodes(log).head(size) for log in spec.names}
    totals = LogTotals(size, "", {"query_executed": size * EACH}, size, size, complete=True)
    counted = State(spec.archive, spec.begin.timestamp(), dict.fromkeys(heads, totals))
    (folder / "metrics.json").write_bytes(msgspec.json.encode(counted))
    if elastic:
        with contextlib.closing(Search(SearchSettings(url=elastic.url))) as search:
            prepare(search)
            for log in spec.names:
                put_cursor(search, spec.archive, log, spec.statements)
    pin = read_archive(archive.store).pin
    entry = {
        "archive": {"id": pin.id, "sha256": pin.sha256},
        "heads": {name: {"size": head.size, "root": head.root.hex()} for name, head in heads.items()},
    }
    url = open_store(archive.url).url if archive.kind == "folder" else archive.url
    path = folder / "state.json"
    path.write_text(json.dumps({"format": "custody/state/1", "archives": {url: entry}}))
    path.chmod(0o600)


# --- the table


def table_of(kind: str, days: Sequence[int], rows: Mapping[str, Sequence[Figures]], limit: float) -> Table:
    """Return the table of one kind of store: for each command a row an age."""
    table = Table(f"{kind}: command", "days", *KINDS, "MiB read", "requests", "CPU s", "wall s", "peak MiB", "growth")
    for column in table.columns[1:]:
        column.justify = "right"
    for title, figures in rows.items():
        growths = ["", *(_growth(before, after) for before, after in pairwise(figures))]
        for number, (age, each) in enumerate(zip(days, figures, strict=False)):
            ended = each.seconds is None
            table.add_row(
                title if number == 0 else "",
                f"{age:,}",
                *(f"{each.requests.get(name, 0):,}" if kind != "folder" else "" for name in KINDS),
                f"{each.read / 1_048_576:.1f}" if kind != "folder" else "",
                f"{each.total:,}" if kind != "folder" else "",
                f"{each.cpu:.1f}",
                f"> {limit:.0f}" if ended else f"{each.seconds:.1f}",
                f"{each.peak_mib:.0f}",
                growths[number],
                end_section=number == len(figures) - 1,
            )
    return table


def _growth(before: Figures, after: Figures) -> str:
    """Return how many times the requests and the processor time are, of the age before."""
    if before.seconds is None or after.seconds is None:
        return "ended"
    cpu = after.cpu / max(before.cpu, 0.01)
    requests = after.total / before.total if before.total else 1.0
    mark = " !" if max(cpu, requests) > _SLOWEST else ""
    return f"{requests:.2f}, {cpu:.2f}{mark}" if before.total else f"{cpu:.2f}{mark}"


def run(archives: Sequence[Archive], servers: Servers, titles: Sequence[str], limit: float) -> dict[str, list[Figures]]:
    """Run each command on each archive, and return the figures of each command."""
    rows: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="custody-growth-") as name:
        folders = {archive.days: Path(name) / str(archive.days) for archive in archives}
        for archive in archives:
            folders[archive.days].mkdir()
            write_states(archive, folders[archive.days], servers.search)
        for command in COMMANDS:
            if titles and not any(title in command.title for title in titles):
                continue
            if command.needs and getattr(servers, command.needs) is None:
                continue
            figures: list[Figures] = []
            rows[command.title] = figures
            for archive in archives:
                # What takes too long on an archive takes longer on an older one.
                if not figures or figures[-1].seconds is not None:
                    figures.append(measure(archive, command, folders[archive.days], servers, limit))
            each = ", ".join(f"{took.total:,} requests and {took.cpu:.1f} s of the processor" for took in figures)
            print(f"{archives[0].kind}: {command.title}: {each}", file=sys.stderr, flush=True)
    return rows


def _ages(text: str) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: not whole days from 1 on, with commas between them")
    return list(map(int, parts))


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ages", type=_ages, default=list(AGES), help="days, with commas between them")
    parser.add_argument("--logs", type=int, default=1, help="partitions of the topic, each of which is a log")
    parser.add_argument("--folder-days", type=_ages, default=list(AGES), help="ages that are also written as files")
    parser.add_argument(
        "--segment-days", type=int, default=SEGMENT_DAYS, help="days at the end whose segments are written as files"
    )
    parser.add_argument("--s3-days", type=_ages, default=[3, 30], help="ages that are also put into SeaweedFS")
    parser.add_argument(
        "--commands", type=lambda text: text.split(","), default=[], help="parts of titles; default all"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the longest time of a command")
    parser.add_argument("--keep", type=Path, help="a folder in which archives are kept, and found the next time")
    parser.add_argument(
        "--temp", type=Path, help="where a folder is made for all files: 20 GB and five million of them"
    )
    parser.add_argument("--no-kafka", action="store_true", help="without a broker, and so without the drain")
    parser.add_argument("--no-search", action="store_true", help="without Elasticsearch, and so without the index")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cluster", default="", help=argparse.SUPPRESS)
    parser.add_argument("--topic-id", default="", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=datetime.fromisoformat, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        (days,) = options.ages
        source = Source(_topic(days), options.cluster, options.topic_id)
        aged.make_archive(
            options.make, days * DAY, logs=options.logs, source=source, end=options.end, unaudited=1, span=PIECE
        )
        return
    tempfile.tempdir = str(options.temp.absolute()) if options.temp else None
    with tempfile.TemporaryDirectory(prefix="custody-growth-") as name, contextlib.ExitStack() as stack:
        folder = options.keep or Path(name)
        kafka = search = None
        if not options.no_kafka:
            kafka = KafkaServer(folder.absolute() / "kafka")
            kafka.start()
            stack.callback(kafka.kill)
        if not options.no_search:
            search = stack.enter_context(ElasticsearchServer())
        _report(options, folder.absolute(), Servers(kafka, search), stack)


def _report(options: argparse.Namespace, folder: Path, servers: Servers, stack: contextlib.ExitStack) -> None:
    console = Console(width=200)
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    console.print(f"{machine}, load {os.getloadavg()[0]:.1f} before")
    began = time.perf_counter()
    ages = sorted({*options.ages, *options.folder_days, *options.s3_days})
    stores = dict(zip(ages, build(folder, ages, servers.kafka, logs=options.logs), strict=True))
    console.print(f"made {', '.join(f'{days:,} days' for days in ages)} in {time.perf_counter() - began:.0f} s")
    places: list[tuple[str, Sequence[int], Callable[[int], Archive], Sequence[str]]] = [
        ("generated", options.ages, lambda days: Archive("generated", days, stores[days], stores[days].url), ()),
        (
            "folder",
            options.folder_days,
            lambda days: _in_folder(stores[days], days, folder, options.segment_days),
            IN_FOLDER,
        ),
    ]
    if options.s3_days:
        server = stack.enter_context(SeaweedServer(folder / "seaweed"))
        os.environ.update(server.environment())
        places.append(("S3", options.s3_days, lambda days: _in_s3(stores[days], days, server), ELSEWHERE))
    for kind, days, archive_of, titles in places:
        copying = time.perf_counter()
        archives = [archive_of(each) for each in days]
        if archives and kind != "generated":
            took = time.perf_counter() - copying
            console.print(f"{kind}: copied {', '.join(f'{each:,}' for each in days)} days in {took:.0f} s")
        rows = run(archives, servers, options.commands or titles, options.seconds) if archives else {}
        if rows:
            console.print(table_of(kind, days, rows, options.seconds))
    console.print(f"growth: requests and processor time, as times of the row before; ! above {_SLOWEST}")
    console.print(f"whole run: {time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} after")


def _in_folder(store: AgedStore, days: int, folder: Path, segment_days: int) -> Archive:
    files = folder / f"files-{days}"
    shutil.rmtree(files, ignore_errors=True)
    copy_to_folder(store, files, segment_days)
    return Archive("folder", days, store, str(files))


def _in_s3(store: AgedStore, days: int, server: SeaweedServer) -> Archive:
    url = f"s3://{server.make_bucket(versioned=True)}/archive"
    copy_to_s3(store, url, server.endpoint_url)
    environment = {"CUSTODY_S3__ENDPOINT_URL": server.endpoint_url, **server.environment()}
    return Archive("S3", days, store, url, environment)


if __name__ == "__main__":
    main()
