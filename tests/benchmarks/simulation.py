"""What a million events a second need for seven years: `uv run python -m tests.benchmarks.simulation`.

It reckons; nothing runs for hours. What goes into it was measured by the benchmarks here (`docs/figures.md`) and by
`tests/test_scale.py`, or is stated with its source: prices by a file, limits as AWS documents them, and assumptions.
`docs/scale.md` has what it prints for 1,000,000 events/s on 1,000 partitions.

A night's audit asks a bucket for this:

- The manifest of a new statement twice, because few are kept for workers (`tasks.audit.kept`), and its segment once.
- Of an old statement in its turn, the manifest, and the segment if that is in no archive storage class. Else S3 refuses
  to give it, and is asked for the digest that it keeps: two requests.
- The keys of the turn, with all versions: workers list those of manifests, and one process those of segments.
"""

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, cast

from rich.filesize import decimal

from custody.archive.forms import statements_of
from custody.archive.last_slot import find_last
from custody.archive.slots import sequence_of
from custody.format.layout import Log
from custody.settings import TierSettings
from custody.store.protocol import ObjectInfo, Store
from custody.verify.contents import _SEVERAL, _SMALL
from custody.verify.records import NAME_BYTES
from tasks.audit.pieces import _LARGE_LOGS
from tasks.audit.plan import _SHARES_A_WORKER
from tasks.settings import AuditSettings, DrainSettings
from tests.benchmarks.cost import CHECKPOINT, DAY, MONTH, statements

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures.md"
PRICES = ROOT / "docs" / "examples" / "s3-prices.toml"
TIERS, AUDIT, DRAIN = TierSettings(), AuditSettings(), DrainSettings()
"""The defaults."""
LIFE_DAYS = TIERS.life_days
MANIFEST_BYTES, MANIFEST_BATCH_BYTES = 1_050, 358
"""Bytes of a manifest without batches, and of each batch in it."""
LISTED_MS = 0.03
"""Of a core for each key of a listing, of versions too, for boto3 parses XML: where a request takes 1.25."""
ARCHIVED_READS, PIECE_LISTS = 1, 6
"""Requests for a segment in an archive storage class; and of a piece that is read again: listings, and its result."""
RESULT_BYTES = 3_300
"""Of memory for a piece's result, pickled and not, without names of objects."""
PUTS_SECOND, GETS_SECOND, LISTED = 3_500, 5_500, 1_000
"""What S3 takes at least for one prefix in a second, and keys in a listing's page, as AWS documents them."""
WORKERS, SOME = (8, 32, 128, 512), 128
"""Of an audit; and where a row is of one number of them."""
MEMORY_GB, _GB = 32, 1_000_000_000
_CORES = 2
"""Of the machine on which the figures were measured."""

MEASURED = {
    "event": (r"events of (\d+) bytes", "bytes of an event", "Drain"),
    "fast": (r"compression ratio \| ([\d.]+)", "compression while a log catches up", "Drain"),
    "drained": (r"events per CPU second \| ([\d,]+)", "events drained by a second of a core", "Drain"),
    "opened": (r"a log with nothing new takes ([\d.]+) ms", "ms of a core for each log in a drain", "Many logs"),
    "sealed": (r"a statement takes ([\d.]+) ms", "ms of a core for each statement in a drain", "Many logs"),
    "audited": (r"wrote ([\d,]+) events per CPU second", "events audited by a second of a core, tables made", "Query"),
    "verified": (r"from a folder \| ([\d,]+) events", "events verified in a second by two cores", "Verify"),
    "manifests": (r"`--chain-only` \| ([\d,]+) manifests", "manifests verified in a second by two cores", "Verify"),
    "asked": (r"boto3 needs ([\d.]+) to ([\d.]+) ms", "ms of a core for a request to S3", "Waiting for a bucket"),
    "table": (r"tables take (\d+) bytes an event", "bytes of tables for an event", "Query"),
    "indexed": (r"in the same run \| ([\d,]+)", "events that a node indexes in a second", "Index and backfill"),
}
"""By name, where docs/figures.md has a figure, what it is, and below which heading. Of two numbers, the mean counts."""


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
        values[name] = mean(float(number.replace(",", "")) for number in match.groups())
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
        first = 0 if (before := sequence_of(after)) is None else before + 1
        self.requests += 1
        for sequence in range(first, self._size):
            # A page begins behind the last key of the one before.
            self.requests += sequence > first and (sequence - first) % LISTED == 0
            yield ObjectInfo(f"{prefix}{sequence:012}.json", 0)


def requests_for_the_end(size: int, hint: int = 0) -> int:
    """Return how many requests custody's own search needs to find the end of a log, its newest manifest included."""
    slots = _Slots(size)
    find_last(cast("Store", slots), statements_of(Log("audit.events", 0)), lambda *_: True, hint)
    return slots.requests + 1


class Work(NamedTuple):
    """A part of a night's audit.

    Attributes:
        seconds: of a core, without those of requests.
        manifests: reads of manifests.
        segments: requests for segments.
        warm: those of them that are reads from STANDARD_IA.
        lists: pages of listings, and puts of results. S3 bills both alike.
        keys: in these pages.
    """

    seconds: float = 0
    manifests: float = 0
    segments: float = 0
    warm: float = 0
    lists: float = 0
    keys: float = 0


def together(*several: Mapping[str, Work]) -> Work:
    """Return all parts as one."""
    return Work(*map(sum, zip(*(work for parts in several for work in parts.values()), strict=True)))


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
        tables: `audit.tables`.
        reread: `audit.reread_days`.
    """

    events: int
    partitions: int
    figures: Mapping[str, float]
    prices: Mapping[str, Any]
    request_ms: float = 20
    broker_mb: float = 100
    linger: float = 0
    tables: bool = True
    reread: int = AUDIT.reread_days

    @cached_property
    def statements_day(self) -> float:
        """Statements of all logs in a day."""
        return statements(self.events / self.partitions, self.linger) * self.partitions * DAY

    @cached_property
    def bytes_day(self) -> dict[str, float]:
        """Bytes of a day."""
        events = self.events * DAY
        manifests = self.statements_day * MANIFEST_BYTES + events / DRAIN.batch_events * MANIFEST_BATCH_BYTES
        return {
            "events": events * self.figures["event"],
            "segments": events * self.figures["event"] / self.figures["fast"],
            "manifests": manifests,
            "tables": events * self.figures["table"] if self.tables else 0.0,
        }

    def classes(self, day: int = LIFE_DAYS) -> tuple[int, int, int]:
        """Return of how many days segments are in STANDARD, STANDARD_IA and DEEP_ARCHIVE, after so many days."""
        # S3 leaves small objects where they are.
        moved = self.bytes_day["segments"] / self.statements_day >= self.prices["rules"]["least_moved"]
        warm, cold = (min(day, TIERS.warm_days), min(day, TIERS.cold_days)) if moved else (day, day)
        return warm, cold - warm, day - cold

    def stored(self, day: int) -> dict[str, float]:
        """Return the bytes in each place after so many days."""
        names = ("segments, STANDARD", "segments, STANDARD_IA", "segments, DEEP_ARCHIVE")
        kept = {name: self.bytes_day["segments"] * of for name, of in zip(names, self.classes(day), strict=True)}
        return kept | {f"{name}, STANDARD": self.bytes_day[name] * day for name in ("manifests", "tables")}

    def storage_month(self, day: int) -> dict[str, float]:
        """Return what each place costs in a month after so many days, with what S3 adds for each cold object."""
        storage, rules = self.prices["storage"], self.prices["rules"]
        costs = {place: size / _GB * storage[place.split(", ")[1]] for place, size in self.stored(day).items()}
        added = rules["overhead_cold"] * storage["DEEP_ARCHIVE"] + rules["overhead_standard"] * storage["STANDARD"]
        costs["segments, DEEP_ARCHIVE"] += self.statements_day * self.classes(day)[2] / _GB * added
        return costs

    def storage(self) -> dict[str, float]:
        """Return what each place costs in seven years."""
        months = [self.storage_month(day) for day in range(1, LIFE_DAYS + 1)]
        return {place: sum(month[place] for month in months) * DAY / MONTH for place in months[0]}

    def requests(self) -> dict[str, float]:
        """Return what requests cost in seven years."""
        prices, moves, made = self.prices["requests"], self.prices["moves"], self.statements_day * LIFE_DAYS
        # A checkpoint of a log an hour, and one of each audit.
        notes = min(made, self.partitions * LIFE_DAYS * DAY / CHECKPOINT) + self.partitions * LIFE_DAYS
        nights = together(*(of(day) for day in range(1, LIFE_DAYS + 1) for of in (self.shared, self.alone)))
        read = nights.warm / self.statements_day * self.bytes_day["segments"] / _GB * self.prices["read"]["STANDARD_IA"]
        plain, moved = nights.manifests + nights.segments - nights.warm, made if any(self.classes()[1:]) else 0
        return {
            "puts": (2 * made + notes) / 1000 * prices["put"],
            "moves between classes": moved / 1000 * (moves["STANDARD_IA"] + moves["DEEP_ARCHIVE"]),
            "reads of audits": (plain * prices["get"] + nights.warm * prices["get_warm"]) / 1000,
            "listings and results of audits": nights.lists / 1000 * prices["put"],
            "bytes that audits read from STANDARD_IA": read,
        }

    def total(self) -> float:
        """Return what all of it costs in seven years."""
        return sum(self.storage().values()) + sum(self.requests().values())

    def again(self, days: int = LIFE_DAYS) -> float:
        """Return how many statements of so many days an audit reads again."""
        return self.statements_day * days / self.reread

    def shared(self, day: int = LIFE_DAYS) -> dict[str, Work]:
        """Return what the workers of an audit share after so many days."""
        made, again, (warm, cool, cold) = self.statements_day, self.again(day), map(self.again, self.classes(day))
        each = self.events * DAY / made * _CORES / self.figures["verified"]
        first = self.events * DAY / self.figures["audited"] if self.tables else made * each
        manifests, lists = again * _CORES / self.figures["manifests"], again / AUDIT.piece_statements * PIECE_LISTS
        return {
            "new events": Work(first, made, made),
            "old events": Work((warm + cool) * each, 0, warm + cool, cool),
            "segments in DEEP_ARCHIVE": Work(segments=cold * ARCHIVED_READS),
            "old manifests and their listings": Work(manifests, again, 0, 0, lists, 2 * again),
        }

    def alone(self, day: int = LIFE_DAYS) -> dict[str, Work]:
        """Return what one process of an audit does after so many days, whatever workers there are."""
        made, listed = self.statements_day, 2 * self.again(day)
        seconds = made * _CORES / self.figures["manifests"]
        return {
            "survey of new statements": Work(seconds, made, lists=2 * made / LISTED, keys=2 * made),
            "listing of a share": Work(lists=listed / LISTED, keys=listed),
        }

    def core(self, work: Work) -> float:
        """Return the seconds of a core that work needs, with those of requests."""
        requests = work.manifests + work.segments + work.lists
        return work.seconds + (requests * self.figures["asked"] + work.keys * LISTED_MS) / 1000

    def lasts(self, work: Work) -> float:
        """Return how long one process takes. It asks for half of its pages, those of versions, one by one."""
        return self.core(work) + work.lists / 2 * self.request_ms / 1000

    def reading(self, workers: int, day: int = LIFE_DAYS) -> float:
        """Return how long so many workers take, if S3 takes all requests.

        A worker has up to three logs of its share in hand. Of each, it asks for one large segment after the other.
        """
        work = together(self.shared(day))
        size = (self.bytes_day["segments"] + self.bytes_day["events"]) / self.statements_day
        waits = (work.segments / (_SEVERAL if size <= _SMALL else 1) + work.lists) * self.request_ms / 1000
        logs = min(_LARGE_LOGS, max(1.0, self.partitions / (workers * _SHARES_A_WORKER)))
        return max(self.core(work), (self.core(work) + waits) / logs) / workers

    def takes(self, workers: int, day: int = LIFE_DAYS) -> tuple[float, float]:
        """Return how long the workers take, if all segments are of one prefix, and how long the audit."""
        read = max(self.reading(workers, day), together(self.shared(day)).segments / GETS_SECOND)
        return read, read + self.lasts(together(self.alone(day)))

    def memory(self) -> float:
        """Return the bytes of memory for all results of an audit."""
        pieces = (self.statements_day + self.again()) / AUDIT.piece_statements
        # Names of objects are in each result, pickled and not.
        return pieces * RESULT_BYTES + self.again() * 2 * NAME_BYTES


# --- the tables, as Markdown


def table(head: str, rows: Iterable[str]) -> Iterator[str]:
    """Yield a table."""
    yield f"| {head} |"
    yield "|" + "---|" * (head.count("|") + 1)
    yield from (f"| {row} |" for row in rows)


def size(value: float) -> str:
    """Return bytes in a unit that fits."""
    return decimal(round(value))


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


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
        f"ms of a core for a key in a listing | {LISTED_MS:g} | a test measures",
        f"requests for a segment in DEEP_ARCHIVE, for an old piece | {ARCHIVED_READS}, {PIECE_LISTS} | a test counts",
        f"bytes of memory for a piece's result | {RESULT_BYTES:,} | a test measures",
        f"puts, gets a second and prefix | {PUTS_SECOND:,}, {GETS_SECOND:,} | AWS's documentation",
        f"a request to S3 | {scale.request_ms:g} ms | assumed: `--request-ms`",
        f"what a broker gives to consumers | {scale.broker_mb:g} MB/s | assumed: `--broker-mb`",
        f"prices | us-east-1, {scale.prices['date']} | [s3-prices.toml](examples/s3-prices.toml): `--prices`",
    ]
    yield from table("input | value | source", rows)


def amounts(scale: Scale) -> Iterator[str]:
    """Yield what is written."""
    made, sizes = scale.statements_day, scale.bytes_day
    facts = [
        ("events", scale.events * DAY, number),
        ("statements", made, number),
        ("puts: a segment and a manifest each", 2 * made, number),
        *((f"bytes of {name}", value, size) for name, value in sizes.items()),
    ]
    rows = (f"{name} | {show(value)} | {show(value * LIFE_DAYS)}" for name, value, show in facts)
    yield from table("what | in a day | in seven years", rows)
    yield ""
    each = f"A segment has {size(sizes['segments'] / made)}, a manifest {size(sizes['manifests'] / made)}."
    yield f"A log gets {number(made / scale.partitions / 1440)} statements a minute. {each}"


def costs(scale: Scale) -> Iterator[str]:
    """Yield the costs by tier, and those of requests."""
    whole, last, held = scale.storage(), scale.storage_month(LIFE_DAYS), scale.stored(LIFE_DAYS)
    rows = [f"{place} | {size(held[place])} | {money(last[place])} | {money(whole[place])}" for place in whole]
    rows += [f"{name} | | | {money(value)}" for name, value in scale.requests().items()]
    rows.append(f"all | {size(sum(held.values()))} | {money(sum(last.values()))} | {money(scale.total())}")
    yield from table("what | after seven years | then a month | in seven years", rows)


def audits(scale: Scale) -> Iterator[str]:
    """Yield the time of a night's audit, by workers."""
    work = together(scale.shared())
    parts = ", ".join(f"{number(scale.core(part))} for {name}" for name, part in scale.shared().items() if any(part))
    steps = ", ".join(f"{name}, {span(scale.lasts(part))}" for name, part in scale.alone().items())
    yield f"A night after seven years needs, in seconds of a core with those of requests: {parts}."
    yield f"One process alone does: {steps}."
    yield f"Workers also read {size(scale.bytes_day['tables'] * LIFE_DAYS / scale.reread)} of tables again."
    yield ""

    def row(workers: int) -> str:
        read, whole = scale.takes(workers)
        rates = f"{number(work.segments / read)} | {number(work.manifests / read)}"
        return f"{workers} | {number(scale.core(work) / read)} | {span(read)} | {span(whole)} | {rates}"

    head = "workers | cores in use | they read for | an audit takes | requests for segments a second | for manifests"
    yield from table(head, map(row, WORKERS))
    yield ""
    held = next((n for n in range(1, 1025) if scale.reading(n) * GETS_SECOND < work.segments), None)
    late = next((day for day in range(1, LIFE_DAYS + 1) if scale.takes(WORKERS[-1], day)[1] > DAY), None)
    yield f"Workers from which on one prefix gives no more reads: {held or 'none'}."
    yield f"Days until an audit by {WORKERS[-1]} workers takes more than one: {late or 'none in seven years'}."


def heads(scale: Scale) -> Iterator[str]:
    """Yield what it takes to find where logs end."""
    end = round(scale.statements_day / scale.partitions * LIFE_DAYS)

    def row(name: str, hint: int) -> str:
        requests = requests_for_the_end(end, hint)
        each, logs = requests * scale.request_ms / 1000, scale.partitions
        return f"{name} | {requests} | {each:.2g} s | {span(each * logs)} | {span(each * logs / 32)}"

    rows = [
        row(f"nothing is known of a log of {number(end)} statements", 0),
        row("the newest audit is a day old", round(end * (1 - 1 / LIFE_DAYS))),
        row("the head in Kafka's group is right, as it is for each drain", end),
    ]
    yield from table("the end of a log, if | requests | a log | all in a row | all, 32 at once", rows)


def breaks(scale: Scale) -> Iterator[str]:
    """Yield how much is used of what there is, and the answer if it is too much. The fullest first."""
    work, alone, second = together(scale.shared()), together(scale.alone()), scale.statements_day / DAY
    segments, manifests = work.segments / DAY, (work.manifests + alone.manifests) / DAY
    seconds, hours, awake = scale.core(work), scale.lasts(alone), min(1.0, DRAIN.seconds / 60)
    sealing = second * scale.figures["sealed"] + scale.partitions / 60 * scale.figures["opened"]
    drain = (scale.events / scale.figures["drained"] + sealing / 1000) / awake
    each, megabytes = scale.events / scale.partitions, scale.events * scale.figures["event"] / 1e6
    results, memory, flush = scale.memory(), MEMORY_GB * _GB, scale.partitions / PUTS_SECOND
    fewer = "`drain.linger_seconds`, a longer `audit.reread_days`, several archives"
    rate, of = f"{scale.events:,} events/s", f"of {MEMORY_GB} GB"
    rows = [
        (scale.events / scale.figures["indexed"], "Elasticsearch, a node", rate, "index what people search; nodes"),
        (seconds / DAY, "an audit's workers, a core for a day", f"{number(seconds)} s", "`audit.workers` on Dask"),
        (hours / DAY, "what one process of an audit does, in a day", span(hours), fewer),
        (segments / GETS_SECOND, "requests for segments, one prefix, all day", f"{number(segments)}/s", fewer),
        (manifests / GETS_SECOND, "reads of manifests, all day", f"{number(manifests)}/s", "S3 splits them, by log"),
        (results / memory, f"results of an audit, {of}", size(results), fewer),
        (drain, f"a drain, a core for {DRAIN.seconds:g} of 60 s", rate, "`drain.workers`, on Dask beyond a machine"),
        (megabytes / scale.broker_mb, "Kafka, a broker", f"{number(megabytes)} MB/s", "brokers, compression"),
        (flush, "puts, if all logs flush at once", f"{scale.partitions:,}/s", "several archives"),
        (second / PUTS_SECOND, "puts, evenly", f"{number(second)}/s", "several archives"),
        (each / scale.figures["drained"], "a partition, one core", f"{number(each)} events/s", "more partitions"),
    ]
    shown = (f"{name} | {used} | {number(share)} times | {answer}" for share, name, used, answer in sorted(rows)[::-1])
    yield from table("one of | is asked for | that is | the answer", shown)


def answers(scale: Scale) -> Iterator[str]:
    """Yield what changes with a setting."""
    ways = {
        "as above": scale,
        "`audit.tables = false`: tables on demand, by a backfill": replace(scale, tables=False),
        "and `drain.linger_seconds = 300`": replace(scale, tables=False, linger=300),
        "and `audit.reread_days = 90`": replace(scale, tables=False, linger=300, reread=90),
    }

    def row(name: str, way: Scale) -> str:
        work = together(way.shared())
        times = f"{span(way.lasts(together(way.alone())))} | {span(way.takes(SOME)[1])}"
        loads = f"{number(scale.core(work) / DAY)} | {number(work.segments / DAY / GETS_SECOND)} times"
        money_ = f"{money(sum(way.storage_month(LIFE_DAYS).values()))} | {money(way.total())}"
        return f"{name} | {number(way.statements_day)} | {times} | {loads} | {size(way.memory())} | {money_}"

    head = "setting | statements a day | audit: one process | in all | cores | segments of a prefix | results"
    yield from table(f"{head} | then a month | in seven years", map(row, ways, ways.values()))


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
    lines = [line for heading, part in PARTS.items() for line in ("", f"## {heading}", "", *part(scale))]
    yield from lines[1:]


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
