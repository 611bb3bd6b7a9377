"""What a million events a second need for seven years: `uv run python -m tests.benchmarks.simulation`.

It reckons; nothing runs for hours. What goes into it was measured by the benchmarks here (`docs/figures.md`), or is
stated with its source: prices by a file, limits as AWS documents them, and three assumptions that `--help` names.
`docs/scale.md` has what it prints for 1,000,000 events/s on 1,000 partitions.
"""

import argparse
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, cast

from custody.archive.forms import statements_of
from custody.archive.reader import last_taken
from custody.archive.slots import sequence_of
from custody.format.layout import Log
from custody.settings import TierSettings
from custody.store.protocol import ObjectInfo, Store
from tasks.settings import AuditSettings, DrainSettings
from tests.benchmarks.cost import DAY, MONTH, statements

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures.md"
PRICES = ROOT / "docs" / "examples" / "s3-prices.toml"
TIERS, AUDIT, DRAIN = TierSettings(), AuditSettings(), DrainSettings()
"""The defaults."""
LIFE_DAYS = TIERS.life_days
MANIFEST_BYTES, MANIFEST_BATCH_BYTES = 1_050, 358
"""Bytes of a manifest without batches, and of each batch in it."""
PUTS_SECOND, GETS_SECOND, LISTED = 3_500, 5_500, 1_000
"""What S3 takes at least for one prefix in a second, and keys in a listing's page, as AWS documents them."""
WORKERS = (8, 32, 128, 512)
_GB = 1_000_000_000
_CORES = 2
"""Of the machine on which the figures were measured."""

MEASURED = {
    "event": (r"events of (\d+) bytes", "bytes of an event", "Drain"),
    "fast": (r"compression ratio \| ([\d.]+)", "compression while a log catches up", "Drain"),
    "drained": (r"events per CPU second \| ([\d,]+)", "events drained by a second of a core", "Drain"),
    "opened": (
        r"a log with nothing new takes ([\d.]+) ms",
        "ms of a core for each log in a run of the drain",
        "Many logs",
    ),
    "sealed": (r"a statement takes ([\d.]+) ms", "ms of a core for each statement in a drain", "Many logs"),
    "audited": (r"wrote ([\d,]+) events per CPU second", "events audited by a second of a core, tables made", "Query"),
    "verified": (r"from a folder \| ([\d,]+) events", "events verified in a second by two cores", "Verify"),
    "manifests": (r"`--chain-only` \| ([\d,]+) manifests", "manifests verified in a second by two cores", "Verify"),
    "table": (r"tables take (\d+) bytes an event", "bytes of tables for an event", "Query"),
    "indexed": (
        r"`parallel_bulk` in the same run \| ([\d,]+)",
        "events indexed in a second by one node",
        "Index and backfill",
    ),
}
"""By name, where docs/figures.md has a figure, what it is, and below which heading."""


def measured(text: str) -> dict[str, float]:
    """Return the figures of a page.

    Raises:
        SystemExit: the page lacks one.
    """
    values = {}
    for name, (pattern, meaning, heading) in MEASURED.items():
        match = re.search(pattern, text)
        if match is None:
            raise SystemExit(f"docs/figures.md ({heading}) has no figure {pattern!r}: {meaning}")
        values[name] = float(match[1].replace(",", ""))
    return values


class _Slots:
    """A log of so many statements that nobody wrote. It counts the requests for its keys."""

    url = "s3://simulated"

    def __init__(self, size: int) -> None:
        self._size, self.requests = size, 0

    def exists(self, key: str) -> bool:
        self.requests += 1
        return cast("int", sequence_of(key)) < self._size

    def list(self, prefix: str = "", *, after: str = "", **_: object) -> Iterator[ObjectInfo]:
        first = sequence_of(after)
        for sequence in count(0 if first is None else first + 1):
            if sequence % LISTED == 0 or sequence == (first or -1) + 1:
                self.requests += 1
            if sequence >= self._size:
                return
            yield ObjectInfo(f"{prefix}{sequence:012}.json", 0)


def requests_for_the_end(size: int, hint: int = 0) -> int:
    """Return how many requests custody's own search needs to find the end of a log, its newest manifest included."""
    slots = _Slots(size)
    last_taken(cast("Store", slots), statements_of(Log("audit.events", 0)), lambda *_: True, hint)
    return slots.requests + 1


@dataclass(frozen=True)
class Scale:
    """What is reckoned with. Rates and times are of all partitions together, if nothing else is said.

    Attributes:
        events: events a second.
        partitions: partitions, which share them evenly.
        figures: the measured figures, by name.
        prices: as docs/examples/s3-prices.toml has them.
        request_ms: the time of a request to S3.
        broker_mb: megabytes a second that a broker gives to consumers.
        linger: `drain.linger_seconds`.
        tables: whether audits make tables.
        ratio: compression; that of a drain that catches up if None.
    """

    events: int
    partitions: int
    figures: Mapping[str, float]
    prices: Mapping[str, Any]
    request_ms: float = 20
    broker_mb: float = 100
    linger: float = 0
    tables: bool = True
    ratio: float | None = None

    @cached_property
    def statements_day(self) -> float:
        """Statements of all logs in a day."""
        return statements(self.events / self.partitions, self.linger) * self.partitions * DAY

    @property
    def events_day(self) -> float:
        """Events of a day."""
        return self.events * DAY

    @property
    def segments_day(self) -> float:
        """Bytes of a day's segments."""
        return self.events_day * self.figures["event"] / (self.ratio or self.figures["fast"])

    @property
    def manifests_day(self) -> float:
        """Bytes of a day's manifests."""
        batches = self.events_day / DRAIN.batch_events
        return self.statements_day * MANIFEST_BYTES + batches * MANIFEST_BATCH_BYTES

    @property
    def tables_day(self) -> float:
        """Bytes of a day's tables."""
        return self.events_day * self.figures["table"] if self.tables else 0.0

    @property
    def drain_cores(self) -> float:
        """Cores that the drain needs on average, with a run each minute."""
        statements = self.statements_day / DAY * self.figures["sealed"]
        logs = self.partitions / 60 * self.figures["opened"]
        return self.events / self.figures["drained"] + (statements + logs) / 1000

    @property
    def per_core(self) -> float:
        """Manifests that a core verifies in a second."""
        return self.figures["manifests"] / _CORES

    def stored(self, day: int) -> dict[str, float]:
        """Return the bytes in each place after so many days."""
        warm, cold = min(day, TIERS.warm_days), min(day, TIERS.cold_days)
        return {
            "segments, STANDARD": self.segments_day * warm,
            "segments, STANDARD_IA": self.segments_day * (cold - warm),
            "segments, DEEP_ARCHIVE": self.segments_day * (day - cold),
            "manifests, STANDARD": self.manifests_day * day,
            "tables, STANDARD": self.tables_day * day,
        }

    def storage_month(self, day: int) -> dict[str, float]:
        """Return what each place costs in a month after so many days, with what S3 adds for each cold object."""
        storage, rules = self.prices["storage"], self.prices["rules"]
        costs = {place: size / _GB * storage[place.split(", ")[1]] for place, size in self.stored(day).items()}
        objects = self.statements_day * max(0, day - TIERS.cold_days) / _GB
        added = rules["overhead_cold"] * storage["DEEP_ARCHIVE"] + rules["overhead_standard"] * storage["STANDARD"]
        costs["segments, DEEP_ARCHIVE"] += objects * added
        return costs

    def storage(self) -> dict[str, float]:
        """Return what each place costs in seven years."""
        months = [self.storage_month(day) for day in range(1, LIFE_DAYS + 1)]
        return {place: sum(month[place] for month in months) * DAY / MONTH for place in months[0]}

    def requests(self) -> dict[str, float]:
        """Return what requests cost in seven years."""
        prices, moves = self.prices["requests"], self.prices["moves"]
        made = self.statements_day * LIFE_DAYS / 1000
        # An audit reads a statement when it is new, and then within audit.reread_days: a manifest, and a segment that
        # is in no archive storage class.
        turns = LIFE_DAYS / 2 / AUDIT.reread_days
        segments = TIERS.cold_days / AUDIT.reread_days
        warm = self.segments_day / _GB * (TIERS.cold_days - TIERS.warm_days) * self.prices["read"]["STANDARD_IA"]
        return {
            "puts": 2 * made * prices["put"],
            "moves between classes": made * (moves["STANDARD_IA"] + moves["DEEP_ARCHIVE"]),
            "gets of audits": made * (2 + turns + segments) * prices["get"],
            "bytes that audits read from STANDARD_IA": warm / AUDIT.reread_days * LIFE_DAYS,
        }

    def total(self) -> float:
        """Return what all of it costs in seven years."""
        return sum(self.storage().values()) + sum(self.requests().values())

    def audit_seconds(self) -> dict[str, float]:
        """Return what a night's audit needs after seven years, in seconds of a core."""
        days = AUDIT.reread_days
        per_event = 1 / self.figures["audited"] if self.tables else _CORES / self.figures["verified"]
        return {
            "new events": self.events_day * per_event,
            "old events": self.events_day * TIERS.cold_days / days * _CORES / self.figures["verified"],
            "old manifests": self.statements_day * LIFE_DAYS / days / self.per_core,
        }

    def audit_alone(self) -> dict[str, float]:
        """Return the seconds of what one process of an audit does after seven years, whatever workers there are."""
        pages = self.statements_day * LIFE_DAYS / AUDIT.reread_days / LISTED
        return {
            "survey of new statements": self.statements_day / self.per_core,
            "listing of a share": pages * self.request_ms / 1000,
        }


# --- the tables, as Markdown


def table(head: str, rows: Iterator[str]) -> Iterator[str]:
    """Yield a table."""
    yield f"| {head} |"
    yield "|" + "---|" * (head.count("|") + 1)
    yield from (f"| {row} |" for row in rows)


def size(value: float) -> str:
    """Return bytes in a unit that fits, with three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{round(value, 2 - math.floor(math.log10(value))):,.0f}" if value >= 100 else f"{value:.3g}"


def money(value: float) -> str:
    """Return an amount in thousands."""
    return f"${value / 1000:,.0f}k"


def span(seconds: float) -> str:
    """Return a time in a unit that fits."""
    for unit, length in (("days", DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def inputs(scale: Scale) -> Iterator[str]:
    """Yield what was measured, and from where it is."""
    rows = [
        f"{meaning} | {scale.figures[name]:,.10g} | [figures](figures.md#{heading.lower().replace(' ', '-')})"
        for name, (_, meaning, heading) in MEASURED.items()
    ]
    rows += [
        f"bytes of a manifest | {MANIFEST_BYTES:,} and {MANIFEST_BATCH_BYTES} a batch | the writer; a test compares",
        f"puts, gets a second and prefix | {PUTS_SECOND:,}, {GETS_SECOND:,} | AWS's documentation",
        f"a request to S3 | {scale.request_ms:g} ms | assumed: `--request-ms`",
        f"what a broker gives to consumers | {scale.broker_mb:g} MB/s | assumed: `--broker-mb`",
        f"prices | us-east-1, {scale.prices['date']} | [s3-prices.toml](examples/s3-prices.toml): `--prices`",
    ]
    yield from table("input | value | source", iter(rows))


def amounts(scale: Scale) -> Iterator[str]:
    """Yield what is written."""
    made = scale.statements_day
    facts = [
        ("events", scale.events_day, number),
        ("bytes of them", scale.events_day * scale.figures["event"], size),
        ("statements", made, number),
        ("puts: a segment and a manifest each", 2 * made, number),
        ("bytes of segments", scale.segments_day, size),
        ("bytes of manifests", scale.manifests_day, size),
        ("bytes of tables", scale.tables_day, size),
    ]
    yield from table(
        "what | in a day | in seven years",
        (f"{name} | {show(value)} | {show(value * LIFE_DAYS)}" for name, value, show in facts),
    )
    yield ""
    yield (
        f"A log gets {number(made / scale.partitions / 1440)} statements a minute. A segment has"
        f" {size(scale.segments_day / made)}, a manifest {size(scale.manifests_day / made)}."
    )


def costs(scale: Scale) -> Iterator[str]:
    """Yield the costs by tier, and those of requests."""
    whole = scale.storage()
    last, held = scale.storage_month(LIFE_DAYS), scale.stored(LIFE_DAYS)
    rows = [f"{place} | {size(held[place])} | {money(last[place])} | {money(whole[place])}" for place in whole]
    rows += [f"{name} | | | {money(value)}" for name, value in scale.requests().items()]
    rows.append(f"all | {size(sum(held.values()))} | {money(sum(last.values()))} | {money(scale.total())}")
    yield from table("what | after seven years | then a month | in seven years", iter(rows))


def audits(scale: Scale) -> Iterator[str]:
    """Yield the time of a night's audit, by workers."""
    needed, alone = scale.audit_seconds(), scale.audit_alone()
    yield (
        "A night after seven years needs, in seconds of a core: "
        + ", ".join(f"{number(seconds)} for {name}" for name, seconds in needed.items())
        + "."
    )
    yield "One process alone does: " + ", ".join(f"{name}, {span(seconds)}" for name, seconds in alone.items()) + "."
    yield ""
    gets = (scale.statements_day * (1 + TIERS.cold_days / AUDIT.reread_days)) / sum(needed.values())

    def row(workers: int) -> str:
        seconds = sum(needed.values()) / workers + sum(alone.values())
        return f"{workers} | {span(seconds)} | {number(gets * workers)}"

    yield from table("workers, each a core | an audit takes | segments read a second", map(row, WORKERS))


def heads(scale: Scale) -> Iterator[str]:
    """Yield what it takes to find where logs end."""
    end = round(scale.statements_day / scale.partitions * LIFE_DAYS)

    def row(name: str, requests: int) -> str:
        one = requests * scale.request_ms / 1000
        return (
            f"{name} | {requests} | {one:.2g} s | {span(one * scale.partitions)} | {span(one * scale.partitions / 32)}"
        )

    rows = [
        row(f"nothing is known of a log of {number(end)} statements", requests_for_the_end(end)),
        row("the newest audit is a day old", requests_for_the_end(end, round(end * (1 - 1 / LIFE_DAYS)))),
        row("the head in Kafka's group is right, as it is for each drain", requests_for_the_end(end, end)),
    ]
    yield from table("the end of a log, if | requests | a log | all in a row | all, 32 at once", iter(rows))


def limits(scale: Scale) -> list[tuple[float, str, str, str]]:
    """Return how much is used of what there is, what that is, and the answer if it is too much. The fullest first."""
    second, awake = scale.statements_day / DAY, min(1.0, DRAIN.seconds / 60)
    audit = sum(scale.audit_seconds().values())
    alone = sum(scale.audit_alone().values())
    rows = [
        (
            scale.events / scale.figures["indexed"],
            "Elasticsearch, a node",
            f"{scale.events:,} events/s",
            "index topics that people search, or one node for each share; the archive does not wait for it",
        ),
        (audit / DAY, "the audit's workers, a core for the whole day", f"{number(audit)} s", "`audit.workers` on Dask"),
        (
            alone / DAY,
            "what one process of an audit does, in a day",
            span(alone),
            "fewer statements (`drain.linger_seconds`); several archives, each with its audit",
        ),
        (
            scale.drain_cores / awake,
            f"a drain, a core for {DRAIN.seconds:g} of 60 s",
            f"{scale.events:,} events/s, {number(second)} statements/s",
            "`drain.workers`: shares of logs, on Dask beyond one machine",
        ),
        (
            scale.events * scale.figures["event"] / 1e6 / scale.broker_mb,
            "Kafka, a broker",
            f"{number(scale.events * scale.figures['event'] / 1e6)} MB/s to one consumer group, uncompressed",
            "brokers, and records compressed by the producers",
        ),
        (
            scale.partitions / PUTS_SECOND,
            "puts of a prefix, if all logs flush in one second",
            f"{scale.partitions:,}/s",
            "several archives, each with topics and a prefix of its own",
        ),
        (second / PUTS_SECOND, "puts of a prefix, evenly", f"{number(second)}/s", "the same"),
        (
            scale.events / scale.partitions / scale.figures["drained"],
            "a partition, which one core drains",
            f"{scale.events / scale.partitions:,.0f} events/s",
            "more partitions",
        ),
    ]
    return sorted(rows, reverse=True)


def breaks(scale: Scale) -> Iterator[str]:
    """Yield the limits, the fullest first."""
    rows = (f"{name} | {used} | {number(share)} times | {answer}" for share, name, used, answer in limits(scale))
    yield from table("one of | is asked for | that is | the answer", rows)


def answers(scale: Scale) -> Iterator[str]:
    """Yield what changes with a setting."""
    ways = {
        "as above": scale,
        "`audit.tables = false`: tables on demand, by a backfill": replace(scale, tables=False),
        "the same, and `drain.linger_seconds = 300`": replace(scale, tables=False, linger=300),
    }
    rows = (
        f"{name} | {number(way.statements_day)} | {size(way.segments_day / way.statements_day)} |"
        f" {span(sum(way.audit_alone().values()))} | {number(sum(way.audit_seconds().values()) / DAY)} |"
        f" {money(sum(way.storage_month(LIFE_DAYS).values()))} | {money(way.total())}"
        for name, way in ways.items()
    )
    yield from table(
        "setting | statements a day | a segment | audit: one process | audit: cores | then a month | in seven years",
        rows,
    )


PARTS = {
    "What goes in": inputs,
    "What is written": amounts,
    "What it costs": costs,
    "How long an audit takes": audits,
    "How a log's end is found": heads,
    "What breaks first": breaks,
    "What settings change": answers,
}


def page(scale: Scale) -> Iterator[str]:
    """Yield all tables, each below its heading."""
    for place, (heading, part) in enumerate(PARTS.items()):
        yield from ([] if place == 0 else [""])
        yield f"## {heading}"
        yield ""
        yield from part(scale)


def default() -> Scale:
    """Return the scale of docs/scale.md."""
    return Scale(1_000_000, 1_000, measured(FIGURES.read_text()), tomllib.loads(PRICES.read_text()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reckon and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="events a second")
    parser.add_argument("--partitions", type=int, default=1_000)
    parser.add_argument("--request-ms", type=float, default=20, help="the time of a request to S3")
    parser.add_argument("--broker-mb", type=float, default=100, help="megabytes a second that a broker gives")
    parser.add_argument("--prices", type=Path, default=PRICES)
    given = parser.parse_args(arguments)
    prices, figures = tomllib.loads(given.prices.read_text()), measured(FIGURES.read_text())
    scale = Scale(given.events, given.partitions, figures, prices, given.request_ms, given.broker_mb)
    print("\n".join(page(scale)))


if __name__ == "__main__":
    main()
