"""How fast Elasticsearch is filled, and how soon an event is found: `uv run python -m tests.benchmarks.index`.

On a real Elasticsearch, and for the last part a real Kafka, beside it on the same machine:

1. an archive in a folder is indexed, in turns with `elasticsearch.helpers.parallel_bulk` on the same events;
2. the same archive is indexed in a node with memory for little more than one request, which refuses many;
3. 1000 documents are sent at a time, and each request is timed;
4. archived events are copied to Elasticsearch and to a folder (`custody backfill`);
5. the drain's speed with an Elasticsearch that is down, next to none;
6. 1000 events a second are produced for some minutes, drained each minute as the schedule does, and looked for.

Reports; judges nothing. Needs Java (21 for Elasticsearch 9) and Maven, as the tests do.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

from elasticsearch import Elasticsearch
from elasticsearch.helpers import parallel_bulk
from rich.console import Console

from custody.archive.reader import list_logs, read_manifest
from custody.errors import ObjectMissing
from custody.format.layout import Log
from custody.format.limits import SEGMENT_BYTES
from custody.format.members import inflate
from custody.keys.keyring import new_keyring
from custody.store import retries
from custody.store.open import open_store
from flows.operate.sample import sample_events
from tasks.search.bulk import Bulk, Sent
from tasks.search.client import Search
from tasks.search.documents import ORIGIN, Documents
from tasks.search.index import index_logs
from tasks.search.indices import prepare
from tasks.settings import SearchSettings, Settings
from tests.benchmarks import verify
from tests.helpers.reading import anything
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer
from tests.servers.ports import free_ports

SEED = 20261124
PARTITIONS = 4


def search_settings(server: ElasticsearchServer, prefix: str) -> SearchSettings:
    """Return settings for indices of their own. The sample's events are of one day, whenever this runs."""
    return SearchSettings(url=server.url, prefix=prefix, replicas=0, days=36_500)


def run_custody(archive: Path, keyring: Path, server: ElasticsearchServer, prefix: str) -> float:
    """Index an archive, and return the seconds it took."""
    given = Settings(archive=str(archive), keys=f"file:{keyring}", search=search_settings(server, prefix))
    begin = time.perf_counter()
    for result in index_logs(given):
        if result.problem:
            raise SystemExit(result.problem)
    return time.perf_counter() - begin


def run_helper(archive: Path, server: ElasticsearchServer, prefix: str) -> float:
    """Index an archive as one would with the client's helper: parse each event, add what it needs, hand it over."""
    with contextlib.closing(Search(search_settings(server, prefix))) as search:
        prepare(search)
        client = search.client
        store = open_store(str(archive))

        def actions() -> Iterator[dict[str, Any]]:
            for log in list_logs(store):
                for sequence in range(1 << 40):
                    try:
                        statement = read_manifest(store, log, sequence, anything).statement
                    except ObjectMissing:
                        break
                    if statement.segment is None:
                        continue
                    data = store.read(statement.segment.key, limit=SEGMENT_BYTES)
                    for batch in statement.batches:
                        payload = inflate(data[batch.start : batch.start + batch.size], batch.inflated)
                        for offset, line in enumerate(payload.splitlines(), batch.first_offset):
                            event = json.loads(line)
                            event[ORIGIN] = {
                                "topic": log.name,
                                "partition": log.partition,
                                "batch": batch.number,
                                "segment": statement.segment.key,
                                "offset": offset,
                            }
                            yield {
                                "_op_type": "create",
                                "_index": f"{prefix}-{event['timestamp'][:10].replace('-', '.')}",
                                "_id": f"{log.name}-{log.partition}-{offset}",
                                "_source": event,
                            }

        begin = time.perf_counter()
        for done, answer in parallel_bulk(client, actions(), thread_count=2, chunk_size=5000):
            if not done:
                raise SystemExit(str(answer))
        return time.perf_counter() - begin


def run_refused(archive: Path, keyring: Path, events: int, memory: str, console: Console) -> None:
    """Index in a node that has memory for few requests at a time, and print what it refused and how requests shrank."""
    sizes: list[int] = []
    ask = Bulk._ask

    def watched(bulk: Bulk, lines: Sequence[bytes]) -> Any:
        sizes.append(sum(map(len, lines)))
        return ask(bulk, lines)

    with (
        ElasticsearchServer(measured=True, settings={"indexing_pressure.memory.limit": memory}) as server,
        contextlib.closing(Elasticsearch(server.url)) as client,
    ):
        retries.take()
        with patch.object(Bulk, "_ask", watched):
            seconds = run_custody(archive, keyring, server, "refused")
        refused = retries.take()["elasticsearch", "429"]
        client.indices.refresh(index="refused-2*")
        count = client.count(index="refused-2*")["count"]
    if count != events:
        raise SystemExit(f"the node that refuses holds {count} of {events} events")
    largest, typical = max(sizes) / 1024, median(sizes) / 1024
    console.print(
        f"with indexing_pressure.memory.limit {memory}: {events / seconds:,.0f} events/s, all there; {refused} of"
        f" {len(sizes)} requests were sent again after 429; KiB of a request: {largest:,.0f} at most, {typical:,.0f}"
        " in the median"
    )


def run_requests(server: ElasticsearchServer, prefix: str) -> list[float]:
    """Send 1000 documents at a time, and return the seconds of each."""
    with contextlib.closing(Search(search_settings(server, prefix))) as search:
        prepare(search)
        bulk, log, seconds = Bulk(search), Log("audit.latency", 0), []
        values = list(sample_events(40_000, SEED, datetime.now(UTC), 1000))
        for start in range(0, len(values), 1000):
            found = Documents(
                [
                    b'{"create":{"_index":"%b-2026.01.01","_id":"%d"}}' % (prefix.encode(), start + n)
                    for n in range(1000)
                ],
                values[start : start + 1000],
                range(start, start + 1000),
            )
            begin = time.perf_counter()
            bulk.create(log, found, Sent())
            seconds.append(time.perf_counter() - begin)
    # The first ones make the index and warm up the server.
    return seconds[10:]


def run_drains(kafka: KafkaServer, folder: Path, events: int, console: Console) -> None:
    """Drain the same events in turns without an Elasticsearch and with one that is down, and print both speeds."""
    from tests.benchmarks.drain import load

    topic = kafka.create_topic("audit.down", PARTITIONS)
    load(kafka, topic, events)
    (port,) = free_ports(1)
    speeds: dict[str, list[float]] = {"none": [], "down": []}
    for number in range(6):
        name = "down" if number % 2 else "none"
        environment = environment_of(folder / f"drain-{number}", kafka, topic)
        if name == "down":
            environment["CUSTODY_SEARCH__URL"] = f"http://127.0.0.1:{port}"
        command(environment, "init")
        begin = time.perf_counter()
        command(environment, "drain", "--once")
        speeds[name].append(events / (time.perf_counter() - begin))
    ratio = median(speeds["down"]) / median(speeds["none"])
    console.print(
        f"drain of {events:,} events, start included: {median(speeds['none']):,.0f} events/s without Elasticsearch,"
        f" {median(speeds['down']):,.0f} with one that is down: {ratio:.2f} of it (medians of three, in turns)"
    )


def environment_of(folder: Path, kafka: KafkaServer, topic: str) -> dict[str, str]:
    """Return the variables of an installation in a folder of its own."""
    folder.mkdir()
    new_keyring(folder / "keyring.json", datetime.now(UTC))
    return {
        **os.environ,
        "CUSTODY_ARCHIVE": str(folder / "archive"),
        "CUSTODY_KEYS": f"file:{folder / 'keyring.json'}",
        "CUSTODY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "CUSTODY_KAFKA__TOPICS": topic,
    }


def command(environment: dict[str, str], *arguments: str) -> None:
    """Run custody as a user does."""
    program = str(Path(sys.executable).with_name("custody"))
    subprocess.run([program, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=900)


def run_backfill(server: ElasticsearchServer, folder: Path, events: int, console: Console) -> None:
    """Copy archived events to Elasticsearch and to a folder, as a user does, and print both speeds."""
    folder.mkdir()
    keyring, _ = verify.build(str(folder / "archive"), folder, events)
    environment = {
        **os.environ,
        "CUSTODY_ARCHIVE": str(folder / "archive"),
        "CUSTODY_KEYS": f"file:{keyring}",
        "CUSTODY_SEARCH__URL": server.url,
        "CUSTODY_SEARCH__PREFIX": "backfilled",
        "CUSTODY_SEARCH__REPLICAS": "0",
    }
    days = ("--since", f"{verify.BEGIN:%Y-%m-%d}", "--until", f"{verify.BEGIN + timedelta(days=1):%Y-%m-%d}")
    for target, more in (("elasticsearch", ()), ("folder", ("--folder", str(folder / "copied")))):
        begin = time.perf_counter()
        command(environment, "backfill", *days, "--to", target, *more)
        seconds = time.perf_counter() - begin
        speed = f"{events / seconds:,.0f} events/s, start included"
        console.print(f"backfill of {events:,} events to {target}: {seconds:.1f} s, {speed}")
    with contextlib.closing(Elasticsearch(server.url)) as client:
        client.indices.refresh(index="backfilled*")
        found = client.count(index="backfilled")["count"]
    if found != events:
        raise SystemExit(f"the backfill left {found} of {events} events")


def run_latency(
    kafka: KafkaServer, server: ElasticsearchServer, folder: Path, minutes: int, rate: int, late: float
) -> list[float]:
    """Produce, drain each minute, look; return the seconds from Kafka's timestamp to being found, of each event.

    A drain starts up to `late` seconds after its minute, as on a worker that is busy.
    """
    topic = kafka.create_topic("audit.latency", PARTITIONS)
    prefix = server.unused_prefix()
    environment = {
        **environment_of(folder / "latency", kafka, topic),
        "CUSTODY_SEARCH__URL": server.url,
        "CUSTODY_SEARCH__PREFIX": prefix,
        "CUSTODY_SEARCH__REPLICAS": "0",
    }
    command(environment, "init")
    produced: list[dict[int, float]] = [{} for _ in range(PARTITIONS)]
    ended = threading.Event()

    def produce() -> None:
        producer = kafka.producer(**{"linger.ms": 5})
        values = sample_events(minutes * 60 * rate, SEED, datetime.now(UTC), rate)
        begin = time.time()

        def delivered(error: Any, message: Any) -> None:
            if error is None:
                produced[message.partition()][message.offset()] = message.timestamp()[1] / 1000

        for number, value in enumerate(values):
            delay = begin + number / rate - time.time()
            if delay > 0:
                producer.poll(0)
                time.sleep(min(delay, 0.05))
            producer.produce(topic, value, partition=number % PARTITIONS, on_delivery=delivered)
        producer.flush()
        ended.set()

    def drain() -> None:
        delays = Random(SEED)
        minute = time.time() // 60 * 60
        while not ended.is_set():
            minute += 60
            # One that takes longer than its minute makes the next one later still.
            time.sleep(max(minute + delays.uniform(0, late) - time.time(), 0))
            command(environment, "drain")
        command(environment, "drain", "--once")

    threads = [threading.Thread(target=produce), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    client = Elasticsearch(server.url)
    seen = [-1] * PARTITIONS
    waited: list[float] = []
    deadline = time.monotonic() + minutes * 60 + 180
    while time.monotonic() < deadline and (threads[1].is_alive() or len(waited) < minutes * 60 * rate):
        for partition in range(PARTITIONS):
            with contextlib.suppress(Exception):
                answer = client.search(
                    index=prefix,
                    size=0,
                    query={"bool": {"filter": [{"term": {f"{ORIGIN}.partition": partition}}]}},
                    aggs={
                        "last": {"max": {"field": f"{ORIGIN}.offset"}},
                        "all": {"value_count": {"field": f"{ORIGIN}.offset"}},
                    },
                )["aggregations"]
                # As many as the last offset says: what is in between is there, too.
                if answer["last"]["value"] is not None and answer["all"]["value"] == answer["last"]["value"] + 1:
                    now, last = time.time(), int(answer["last"]["value"])
                    waited += [now - produced[partition][o] for o in range(seen[partition] + 1, last + 1)]
                    seen[partition] = last
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    client.close()
    # The first minute waits for a drain to begin at all.
    return waited[60 * rate :]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000, help="indexed, in turns with parallel_bulk")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", default="6mb", help="for requests, of the node that refuses; empty leaves it out")
    parser.add_argument("--backfilled", type=int, default=1_000_000, help="restored from the archive; 0 leaves it out")
    parser.add_argument("--drained", type=int, default=3_000_000, help="for the drain beside a server that is down")
    parser.add_argument("--minutes", type=int, default=5, help="of latency; 0 leaves it out")
    parser.add_argument("--rate", type=int, default=1000, help="events a second")
    parser.add_argument("--late", type=float, default=0.0, help="seconds that a drain starts after its minute, at most")
    options = parser.parse_args()
    console = Console(highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="custody-benchmark-") as name,
        ElasticsearchServer(heap="1g", measured=True) as server,
    ):
        folder = Path(name)
        archive = folder / "archive"
        keyring, _ = verify.build(str(archive), folder, options.events)
        speeds: dict[str, list[float]] = {"custody": [], "parallel_bulk": []}
        # The server compiles what it runs often: the first round is not counted.
        run_helper(archive, server, "warm")
        for number in range(options.rounds):
            ours, theirs = f"ours-{number}", f"theirs-{number}"
            speeds["custody"].append(options.events / run_custody(archive, keyring, server, ours))
            speeds["parallel_bulk"].append(options.events / run_helper(archive, server, theirs))
            client = Elasticsearch(server.url)
            for prefix in (ours, theirs):
                client.indices.refresh(index=f"{prefix}-2*")
                count = client.count(index=f"{prefix}-2*")["count"]
                if count != options.events:
                    raise SystemExit(f"{prefix} holds {count} of {options.events} events")
                client.indices.delete(index=f"{prefix}*")
            client.close()
        ratio = median(speeds["custody"]) / median(speeds["parallel_bulk"])
        console.print(
            f"{options.events:,} events into Elasticsearch beside it: {median(speeds['custody']):,.0f} events/s,"
            f" parallel_bulk {median(speeds['parallel_bulk']):,.0f}: {ratio:.2f} times (medians of {options.rounds})"
        )
        if options.memory:
            run_refused(archive, keyring, options.events, options.memory, console)
        seconds = run_requests(server, "latency-1000")
        longest = max(seconds) * 1000
        console.print(
            f"1000 documents: {median(seconds) * 1000:.0f} ms (median of {len(seconds)}), {longest:.0f} at most"
        )
        if options.backfilled:
            run_backfill(server, folder / "backfill", options.backfilled, console)
        with KafkaServer(folder / "kafka", heap="1g", measured=True) as kafka:
            if options.drained:
                run_drains(kafka, folder, options.drained, console)
            if options.minutes:
                waited = run_latency(kafka, server, folder, options.minutes, options.rate, options.late)
                cuts = quantiles(waited, n=100)
                console.print(
                    f"found after, at {options.rate:,} events/s and a drain each minute"
                    + (f", up to {options.late:g} s late" if options.late else "")
                    + f" (load {os.getloadavg()[0]:.1f}): median {median(waited):.1f} s,"
                    f" 99 % {cuts[98]:.1f} s, at most {max(waited):.1f} s ({len(waited):,} events)"
                )


if __name__ == "__main__":
    main()
