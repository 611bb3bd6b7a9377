"""What compression and small statements cost: `uv run python -m tests.benchmarks.cost`.

1. Compresses the sample in batches, fast and dense by turns, and by zlib, which stands in for libdeflate where that is
   not installed. Reckons what a denser archive saves in seven years.
2. Writes statements of some sizes by the writer's own code, and reckons what logs of some volumes cost in seven years,
   without `drain.linger_seconds` and with it: objects, and money by a file of prices (docs/examples/s3-prices.toml).

Only what a log adds by its statements is counted: puts, storage, moves between classes, and the nightly audits that
read all within `audit.reread_days`. Not counted are restores, tables, listings, and Kafka. Judges nothing.
"""

import argparse
import math
import tempfile
import time
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from custody.archive.assemble import Assembler
from custody.archive.reader import read_archive
from custody.archive.writer import LogWriter, create_archive
from custody.format.manifest import LogId
from custody.format.members import has_libdeflate, pack
from custody.keys.keyring import new_keyring
from custody.keys.trust import open_trust
from custody.store.open import open_store
from flows.operate.sample import sample_events
from tasks.settings import Settings
from tests.benchmarks.verify import Message

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
SEED = 17
YEARS, DAY = 7, 86_400
SECONDS = YEARS * 365 * DAY
MONTH = 365 * DAY / 12
RATE = 1_000
"""Events a second, where costs are reckoned for one rate."""
VOLUMES = (100, 1_440, 10_000, 100_000, 1_000_000, 10_000_000)
"""Events a day of a log."""
LINGERS = (0, 300, 900, 3_600)
CHECKPOINT = HEARTBEAT = 3_600
"""As `custody init` writes them."""
_GB, _MOST_EVENTS = 1_000_000_000, 20_000
_NOTE_BYTES = 400
"""About the size of a checkpoint."""

# --- compression


def batches(events: Sequence[bytes], size: int) -> list[bytes]:
    """Return the lines of batches of so many events."""
    return [b"".join(event + b"\n" for event in events[at : at + size]) for at in range(0, len(events), size)]


def by_zlib(payload: bytes) -> bytes:
    """Compress and hash as a drain without libdeflate."""
    sha256(payload)
    return zlib.compress(payload, 6, wbits=31)


def compression(console: Console, number: int, rounds: int) -> None:
    """Compress by turns, and print sizes, times, and what they come to in seven years."""
    payloads = batches(list(sample_events(number, SEED, BEGIN)), 1_000)
    ways: dict[str, Callable[[bytes], bytes]] = {
        "fast": lambda payload: pack(payload).data,
        "dense": lambda payload: pack(payload, dense=True).data,
        "dense without libdeflate": by_zlib,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    stored: dict[str, int] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            stored[name] = sum(len(way(payload)) for payload in payloads)
            times[name].append(time.process_time() - begun)
    raw, fast = sum(map(len, payloads)), median(times["fast"])
    title = (
        f"Batches of 1,000 of the sample, hashed too; {RATE:,} events/s for {YEARS} years; median of {rounds} rounds"
    )
    table = Table("", "smaller by", "µs an event", "of the time of fast", "more of a core", "TB", title=title)
    for name in ways:
        taken = median(times[name])
        ratio = median(one / other for one, other in zip(times[name], times["fast"], strict=True))
        table.add_row(
            name,
            f"{raw / stored[name]:.2f}",
            f"{taken / number * 1e6:.2f}",
            f"{ratio:.1f}",
            f"{(taken - fast) / number * RATE:.2%}",
            f"{stored[name] / number * RATE * SECONDS / 1e12:.1f}",
        )
    console.print(table)
    console.print(f"libdeflate is {'' if has_libdeflate() else 'not '}installed\n")


# --- statements


@dataclass(frozen=True, slots=True)
class Statement:
    """What a statement of so many events takes: bytes of its segment and of its manifest."""

    segment: int
    manifest: int


def write(counts: Sequence[int]) -> Iterator[Statement]:
    """Write a statement of each number of events, and yield their sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ring = new_keyring(folder / "keyring.json", datetime.now(UTC))
        signers, store = ring.signers(datetime.now(UTC)), open_store(str(folder / "archive"))
        create_archive(store, signers.both)
        archive = read_archive(store).id
        trust, identity = open_trust([f"file:{folder / 'keyring.json'}"]), LogId("cluster", "audit.quiet", "id", 0, 1)
        writer = LogWriter(store, archive, identity, signer=signers.hmac(), trust=trust, writer="custody/benchmark")
        writer.open()
        assembler = Assembler(0, batch_events=1_000, segment_bytes=2**40, level=1, dense=True, number=writer.next_batch)
        events, offset = list(sample_events(_MOST_EVENTS, SEED, BEGIN)), 0
        for sequence, count in enumerate(counts):
            assembler.add([Message(offset + at, events[at]) for at in range(count)])
            offset += count
            statement = writer.append(assembler.cut()).statement
            manifest = folder / "archive" / "manifests" / "audit.quiet" / "0" / f"{sequence:012}.json"
            yield Statement(statement.segment.size if statement.segment else 0, manifest.stat().st_size)


@cache
def sizes() -> Mapping[int, Statement]:
    """Return what statements of some numbers of events take."""
    counts = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, _MOST_EVENTS)
    return dict(zip(counts, write(counts), strict=True))


def size_of(events: float) -> Statement:
    """Return what a statement of so many events takes, between the two sizes that were written."""
    known = sorted(sizes())
    below = max((count for count in known if count <= events), default=known[0])
    above = min((count for count in known if count >= events), default=known[-1])
    if events >= known[-1]:
        share = events / known[-1]
        return Statement(round(sizes()[known[-1]].segment * share), round(sizes()[known[-1]].manifest * share))
    share = (events - below) / (above - below) if above > below else 0.0
    one, two = sizes()[below], sizes()[above]
    return Statement(
        round(one.segment + share * (two.segment - one.segment)),
        round(one.manifest + share * (two.manifest - one.manifest)),
    )


def statements(rate: float, linger: float) -> float:
    """Return how many statements with events a log gets in a second.

    A run each minute archives what waited, and then, for `drain.seconds`, what has come since `flush_seconds`. With
    linger, one statement comes in the first run after that time and the next event.
    """
    drain = Settings().drain
    if linger:
        often = 1 / (linger + 30 + 1 / rate)
    else:
        gap = 60 - drain.seconds
        often = (1 - math.exp(-rate * gap) + drain.seconds / (drain.flush_seconds + 1 / rate)) / 60
    raw = sum(map(len, sample_events(100, SEED, BEGIN))) / 100
    return max(often, rate * raw / drain.segment_bytes)


def months(begin: float, end: float) -> float:
    """Return the months between two days."""
    return max(0.0, end - begin) * DAY / MONTH


def cost(statement: Statement, prices: Mapping[str, Any]) -> dict[str, float]:
    """Return what a statement costs while it is kept, by what it is for."""
    tiers, days = Settings().tiers, Settings().audit.reread_days
    storage, requests, moves, rules = (prices[name] for name in ("storage", "requests", "moves", "rules"))
    life = YEARS * 365
    size = statement.segment
    costs = {
        "puts": 2 * requests["put"] / 1_000,
        "manifest kept": statement.manifest / _GB * storage["STANDARD"] * months(0, life),
        "moves": 0.0,
        "overhead": 0.0,
    }
    if size < rules["least_moved"]:
        costs["segment kept"] = size / _GB * storage["STANDARD"] * months(0, life)
        costs["audits"] = 2 * life / days * requests["get"] / 1_000
        return costs
    warm, cold = tiers.warm_days, tiers.cold_days
    costs["segment kept"] = (
        size
        / _GB
        * (
            storage["STANDARD"] * months(0, warm)
            + storage["STANDARD_IA"] * months(warm, cold)
            + storage["DEEP_ARCHIVE"] * months(cold, life)
        )
    )
    overhead = rules["overhead_cold"] * storage["DEEP_ARCHIVE"] + rules["overhead_standard"] * storage["STANDARD"]
    costs["overhead"] = overhead / _GB * months(cold, life)
    costs["moves"] = (moves["STANDARD_IA"] + moves["DEEP_ARCHIVE"]) / 1_000
    # In the cold class an audit reads the manifest, and asks for the segment's digest.
    gets = (2 * life - (cold - warm)) / days * requests["get"] + (cold - warm) / days * requests["get_warm"]
    costs["audits"] = gets / 1_000 + (cold - warm) / days * size / _GB * prices["read"]["STANDARD_IA"]
    return costs


def single(console: Console, prices: Mapping[str, Any]) -> None:
    """Print what statements of some sizes cost, each a million times."""
    names = ["puts", "audits", "manifest kept", "segment kept", "moves", "overhead"]
    title = f"A million statements, kept for {YEARS} years, in {prices['currency']} (prices of {prices['date']})"
    table = Table("events each", "segment", "manifest", *names, "all", title=title)
    for events in (1, 10, 100, 1_000, _MOST_EVENTS):
        statement = size_of(events)
        costs = cost(statement, prices)
        shown = [f"{costs[name] * 1e6:,.1f}" for name in names]
        sums = f"{sum(costs.values()) * 1e6:,.0f}"
        table.add_row(f"{events:,}", f"{statement.segment:,}", f"{statement.manifest:,}", *shown, sums)
    console.print(table)


def logs(console: Console, prices: Mapping[str, Any]) -> None:
    """Print what logs of some volumes cost in all, with some times of lingering."""
    title = f"One log for {YEARS} years: objects in millions, cost in {prices['currency']}, by drain.linger_seconds"
    table = Table("events a day", *(f"linger {linger:,} s" for linger in LINGERS), title=title)
    for volume in VOLUMES:
        table.add_row(f"{volume:,}", *(_cell(volume / DAY, linger, prices) for linger in LINGERS))
    console.print(table)


def _cell(rate: float, linger: float, prices: Mapping[str, Any]) -> str:
    often = statements(rate, linger)
    statement = size_of(rate / often)
    number = often * SECONDS
    # An hour without an event, and an hour that brought one.
    heartbeats = math.exp(-rate * HEARTBEAT) * SECONDS / HEARTBEAT
    checkpoints = min(often, 1 / CHECKPOINT) * SECONDS
    put, kept = prices["requests"]["put"] / 1_000, prices["storage"]["STANDARD"] * months(0, YEARS * 365) / _GB
    small = cost(Statement(0, size_of(1).manifest), prices)
    money = number * sum(cost(statement, prices).values())
    money += heartbeats * (put + small["manifest kept"] + small["audits"] / 2) + checkpoints * (
        put + _NOTE_BYTES * kept
    )
    return f"{(2 * number + heartbeats + checkpoints) / 1e6:.2f}  {money:,.0f}"


def main() -> None:
    """Compress, write, reckon, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, default=Path("docs/examples/s3-prices.toml"))
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    prices = tomllib.loads(given.prices.read_text())
    console = Console()
    steps = (partial(compression, console, given.events, given.rounds), partial(single, console, prices))
    for step in (*steps, partial(logs, console, prices)):
        step()


if __name__ == "__main__":
    main()
