"""What commands cost with the number of logs: `uv run python -m tests.benchmarks.logs`.

Loads a real Kafka with the same events over 10, 100 and 1,000 partitions, drains each topic into a folder, and runs the
commands that go through all logs, each in a process of its own. A second drain has nothing new, and a third as many
events again. Prints their processor and wall time, start included, and what a log and a statement take in a drain.

Then it counts what runs without news ask S3 for (SeaweedFS), with 10 logs and with 20: the difference is what each log
costs with each run, whether there are events or not.

At last it drains a new statement for each of 500 logs into S3, where each answer comes 20 ms later, without an
Elasticsearch and with one: the indexer beside the drain should not be what the drain waits for. Needs Java (21 for
Elasticsearch 9) and Maven, as the tests do. Judges nothing.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from elasticsearch import Elasticsearch
from rich.console import Console
from rich.table import Table

from custody.archive.reader import list_logs
from custody.format.layout import log_prefix
from custody.keys.keyring import new_keyring
from custody.store.open import open_store
from tests.benchmarks.drain import load, new_archive
from tests.benchmarks.peer import used
from tests.benchmarks.simulation import PRICES
from tests.benchmarks.waiting import run
from tests.helpers.aged import Requests
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.s3 import SeaweedServer

LOGS = (10, 100, 1000)
SECONDS = 600
QUIET, AGAIN = "drain --once, nothing new", "drain --once, as many events again"
STEPS: Mapping[str, tuple[str, ...]] = {
    "drain --once, all events": ("drain", "--once"),
    QUIET: ("drain", "--once"),
    "status": ("status",),
    "verify --chain-only": ("verify", "--chain-only"),
    "audit, the first": ("audit",),
    "audit, nothing new": ("audit",),
    "query: count(*)": ("query", "SELECT count(*) FROM events"),
}
"""The commands in the order in which they run, by what the table calls them."""
INDEXED, DELAY = 500, 0.02
"""Logs with a new statement each, and seconds by which each answer of S3 comes later."""
FEW, MORE = 10, 20
"""Logs in S3."""
ASKING = (("drain", "--once"), ("detect", "run"), ("metrics",))
"""What an installation does each minute: the drain, detection, and metrics, which a run exports at its end."""
YEAR_RUNS = 365 * 24 * 60
DEAR = frozenset({"LIST", "VERSIONS", "PUT"})
"""Requests at the price of a put. The others have that of a get."""
NO_INDEX = 3
"""The exit code of `custody status` where there is no Elasticsearch."""


def measure(command: tuple[str, ...], environment: Mapping[str, str]) -> tuple[float, float]:
    """Run a command of custody; return its seconds of the processor, and of the wall clock."""
    begin, cpu = time.perf_counter(), used(resource.RUSAGE_CHILDREN)
    program = str(Path(sys.executable).with_name("custody"))
    done = subprocess.run(
        [program, *command], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if done.returncode != (NO_INDEX if command == ("status",) else 0):
        raise SystemExit(f"custody {' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return used(resource.RUSAGE_CHILDREN) - cpu, time.perf_counter() - begin


def requests_of(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Counter[str]:
    """Return the requests to S3 that a command makes, by kind. It runs once before, so that nothing is new."""
    for number in range(2):
        journal = folder / f"requests-{number}"
        journal.unlink(missing_ok=True)
        counted = [sys.executable, "-m", "tests.benchmarks.counted", str(journal), *command]
        subprocess.run(counted, env=os.environ | environment, capture_output=True, check=True, timeout=SECONDS)
    return Counter(Requests.of_journal(journal).by_kind)


def requests_table(folder: Path, kafka: KafkaServer, keys: Mapping[str, str], prices: Mapping[str, float]) -> Table:
    """Count the requests of runs without news, and return what each log adds to them."""
    each: dict[tuple[str, ...], list[Counter[str]]] = {command: [] for command in ASKING}
    with SeaweedServer(folder / "seaweed") as server:
        for logs in (FEW, MORE):
            topic = kafka.create_topic(f"audit.requests{logs}", logs)
            load(kafka, topic, logs * FEW, logs)
            client = {"CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "CUSTODY_KAFKA__TOPICS": topic}
            server_at = {"CUSTODY_S3__ENDPOINT_URL": server.endpoint_url, **server.environment()}
            # Without a state that stays, metrics count the whole archive again.
            counted = {"CUSTODY_METRICS__STATE": str(folder / f"metrics-{logs}.json")}
            archive = f"s3://{server.make_bucket(versioned=True)}/archive"
            os.environ.update(server_at)
            environment = new_archive(archive, {**keys, **client, **server_at, **counted})
            measure(("drain", "--once"), environment)
            measure(("audit",), environment)
            for command, counts in each.items():
                counts.append(requests_of(command, environment, folder))
    table = Table(
        "a run with nothing new, to S3", f"requests of {FEW} logs", "each log more", "a log and year, each minute"
    )
    for command, (few, more) in each.items():
        kinds = sorted(few.keys() | more.keys())
        # What a run asks for whatever its logs are differs by one or two.
        added = {kind: round((more[kind] - few[kind]) / (MORE - FEW)) for kind in kinds}
        cost = sum(count * prices["put" if kind in DEAR else "get"] / 1000 for kind, count in added.items())
        shown = (", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind]) for counts in (few, added))
        table.add_row(" ".join(command), *shown, f"${cost * YEAR_RUNS:.2f}")
    return table


def indexed_table(folder: Path, kafka: KafkaServer, keys: Mapping[str, str], logs: int) -> Table:
    """Drain a new statement for each of some logs into S3, without an Elasticsearch and with one."""
    table = Table(
        f"{logs:,} logs with a new statement each; {1000 * DELAY:.0f} ms an answer of S3", "requests", "s", "indexed"
    )
    with SeaweedServer(folder / "indexed") as server, ElasticsearchServer(heap="1g", measured=True) as elastic:
        os.environ.update(server.environment())
        os.environ["CUSTODY_S3__ENDPOINT_URL"] = server.endpoint_url
        for number, label in enumerate(("without Elasticsearch", "with Elasticsearch")):
            topic = kafka.create_topic(f"audit.indexed{number}", logs)
            search = (
                {"CUSTODY_SEARCH__URL": elastic.url, "CUSTODY_SEARCH__REPLICAS": "0", "CUSTODY_SEARCH__PREFIX": "many"}
                if number
                else {}
            )
            client = {"CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "CUSTODY_KAFKA__TOPICS": topic}
            environment = new_archive(
                f"s3://{server.make_bucket(versioned=True)}/archive", {**keys, **client, **search}
            )
            for _ in range(2):
                # The second time, each log has a cursor and a statement before.
                load(kafka, topic, 20 * logs, logs)
                requests, seconds = run(("drain", "--once"), environment, folder / "requests", DELAY)
            table.add_row(label, f"{requests:,}", f"{seconds:.1f}", share_found(elastic, 40 * logs) if number else "")
    return table


def share_found(server: ElasticsearchServer, events: int) -> str:
    """Return the part of the events that are in Elasticsearch."""
    with closing(Elasticsearch(server.url)) as client:
        client.indices.refresh(index="many*")
        return f"{client.count(index='many')['count'] / events:.0%}"


def count_statements(archive: str) -> int:
    """Return how many statements all logs of an archive have."""
    store = open_store(archive)
    return sum(1 for log in list_logs(store) for _ in store.list(log_prefix(log)))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=_numbers, default=list(LOGS), help="numbers of partitions, with commas between")
    parser.add_argument("--prices", type=Path, default=PRICES)
    parser.add_argument("--events", type=int, default=100_000, help="of all partitions together")
    parser.add_argument("--indexed", type=int, default=INDEXED, help="logs of the last part; 0 leaves it out")
    options = parser.parse_args()
    if len(set(options.logs)) < 2:
        parser.error("--logs needs two different numbers: what a log takes is their difference")
    console = Console(highlight=False, width=160)
    load_before = os.getloadavg()[0]
    rows: dict[str, list[str]] = {title: [] for title in (*STEPS, AGAIN)}
    counts: list[tuple[int, int, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="custody-logs-") as name:
        folder = Path(name)
        new_keyring(folder / "keyring.json", datetime.now(UTC))
        keys = {"CUSTODY_KEYS": f"file:{folder / 'keyring.json'}", "CUSTODY_DRAIN__WORKERS": "1"}
        with KafkaServer(folder / "kafka", heap="1g", measured=True) as kafka:
            for logs in options.logs:
                topic = kafka.create_topic(f"audit.logs{logs}", logs)
                load(kafka, topic, options.events, logs)
                archive = str(folder / f"archive-{logs}")
                client = {"CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap, "CUSTODY_KAFKA__TOPICS": topic}
                environment = new_archive(archive, keys | client)
                took = {title: measure(command, environment) for title, command in STEPS.items()}
                before = count_statements(archive)
                load(kafka, topic, options.events, logs)
                took[AGAIN] = measure(STEPS[QUIET], environment)
                for title, (cpu, wall) in took.items():
                    rows[title] += [f"{cpu:.2f}", f"{wall:.2f}"]
                counts.append((logs, count_statements(archive) - before, took[QUIET][0], took[AGAIN][0]))
            prices = tomllib.loads(options.prices.read_text(encoding="utf-8"))["requests"]
            requests = requests_table(folder, kafka, keys, prices)
            indexed = indexed_table(folder, kafka, keys, options.indexed) if options.indexed else None
    title = f"{options.events:,} events in all; seconds of the processor and of the wall clock"
    table = Table(title, *(f"{logs:,} logs: {what}" for logs in options.logs for what in ("CPU", "wall")))
    for label, cells in rows.items():
        table.add_row(label, *cells)
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load_before:.1f} before")
    console.print(table)
    (few, few_new, few_quiet, few_again), (many, many_new, many_quiet, many_again) = min(counts), max(counts)
    a_log = (many_quiet - few_quiet) / (many - few)
    a_statement = ((many_again - many_quiet) - (few_again - few_quiet)) / (many_new - few_new)
    console.print(f"in a drain, a log with nothing new takes {1000 * a_log:.1f} ms of the processor")
    console.print(f"in a drain, a statement takes {1000 * a_statement:.1f} ms of the processor, with its checkpoint")
    console.print(requests)
    if indexed is not None:
        console.print(indexed)


if __name__ == "__main__":
    main()
