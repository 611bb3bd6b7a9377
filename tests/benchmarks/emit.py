"""What emitting costs an application: `uv run --group dev python -m tests.benchmarks.emit`.

Starts a real broker. Reports; judges nothing. The rates are of one process, with the writer's thread beside the thread
that writes, until everything is acknowledged. The parts: the spool alone, the writer, and the middleware.
"""

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from custody.emit.builders import AuditEvent, query_executed
from custody.emit.encode import encode
from custody.emit.kafka import KafkaWriter
from custody.emit.queue import Limits
from custody.emit.redact import Redaction
from custody.emit.writer import Options
from tests.benchmarks import middleware, spool
from tests.servers.kafka import KafkaServer

SETTLE_SECONDS = 120.0


def event(number: int) -> AuditEvent:
    """Return an event as a GraphQL server has it."""
    return query_executed(
        api_key_id=f"key-{number % 500}",
        client_ip=f"10.0.{number % 256}.{number % 251}",
        request_id=f"0198c7a2-5d53-7c0b-8a51-{number:012x}",
        query_hash=f"sha256:{number % 300:064x}",
        complexity=number % 90,
        execution_time=number % 700 / 7,
        result_rows=number % 100,
    )


def rate(writer: KafkaWriter, items: Iterable[Callable[[], object]]) -> tuple[int, float, float]:
    """Call each, wait until all is acknowledged, and return how many, and seconds of wall and processor time."""
    began, used = time.monotonic(), time.process_time()
    number = 0
    for item in items:
        item()
        number += 1
    left = writer.flush(SETTLE_SECONDS)
    assert left == 0, f"{left} events were not delivered"
    return number, time.monotonic() - began, time.process_time() - used


def percentiles(seconds: list[float]) -> str:
    """Return the median, the 99th percentile and the largest, in microseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e6:.1f} µs, p99 {cuts[98] * 1e6:.1f} µs, largest {max(seconds) * 1e3:.1f} ms"


def call_times(call: Callable[[], object], number: int, pause: float) -> list[float]:
    """Return the seconds of each call, with a pause between them as between requests."""
    taken = []
    for _ in range(number):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
        time.sleep(pause)
    return taken


def main() -> None:
    """Start a broker, write, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--pairs", type=int, default=2_000)
    parser.add_argument("--disk", type=Path, help="the disk of the spool; that of temporary files by default")
    options = parser.parse_args()
    spool.report(options.disk, options.events)
    with tempfile.TemporaryDirectory() as name, KafkaServer(Path(name) / "kafka", measured=True) as server:
        report(server, Path(name), options.events)
        middleware.end_to_end(server, Path(name), options.pairs)
        middleware.on_the_path(server, Path(name), options.requests)


def report(server: KafkaServer, folder: Path, events: int) -> None:
    """Write to a broker, then without it, and print what that took."""
    topic = server.create_topic("emit")
    options = Options(service="bench", spool=folder / "spool", on_full="wait", wait_seconds=60, queue=Limits(50_000))
    client = {"bootstrap.servers": server.bootstrap}
    writer = KafkaWriter(topic, client, options)
    rate(writer, [lambda: writer.write(event(0))] * 1_000)

    whole = (lambda number=number: writer.write(event(number)) for number in range(events))
    number, wall, used = rate(writer, whole)
    print(f"build, redact, check, produce: {number / wall:,.0f} events/s, {used / number * 1e6:.1f} µs of CPU an event")
    submitted = (lambda number=number: submit(writer, number) for number in range(events))
    number, wall, used = rate(writer, submitted)
    print(f"on the writer's thread: {number / wall:,.0f} events/s, {used / number * 1e6:.1f} µs of CPU an event")
    checked = [encode(event(number), Redaction()) for number in range(1_000)]
    ready = (lambda line=line: writer.write(line) for line in itertools.islice(itertools.cycle(checked), 2 * events))
    number, wall, used = rate(writer, ready)
    print(f"write of checked bytes: {number / wall:,.0f} events/s, {used / number * 1e6:.1f} µs of CPU an event")
    print(f"submit, broker up: {percentiles(call_times(lambda: submit(writer, 1), 5_000, 0.0002))}")

    server.stop()
    print(f"submit, broker down: {percentiles(call_times(lambda: submit(writer, 1), 5_000, 0.0002))}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(events):
        writer.write(checked[number % 1_000])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"broker down, {events:,} events more: {grown:,.0f} MiB more memory at its peak, {writer.counters()}")
    server.start()
    began = time.monotonic()
    left = writer.flush(SETTLE_SECONDS)
    print(f"broker back: all delivered in {time.monotonic() - began:.1f} s, {left} left")
    print(writer.close(10))


def submit(writer: KafkaWriter, number: int) -> None:
    """Do what the middleware does on a request's path."""
    writer.submit(lambda: [event(number)], 500)


if __name__ == "__main__":
    main()
