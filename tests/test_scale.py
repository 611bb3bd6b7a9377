"""The simulation of docs/scale.md takes what was measured, and any scale. tests/test_reference.py compares the page.

What it says of audits is compared with audits: what they ask of a bucket, what a listing costs, and what is in memory.
"""

import gc
import pickle
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

import msgspec
import pytest

import flows.audit
from custody.errors import ObjectArchived
from custody.format import layout
from custody.format.layout import Log
from custody.store.protocol import ObjectStatus, S3Options
from custody.store.s3 import S3Store, S3Versions
from custody.verify import contents
from custody.verify.records import NAME_BYTES
from tasks.audit import kept as keeping
from tasks.audit.kept import Kept
from tasks.audit.pieces import PieceResult, verify_pieces
from tasks.audit.plan import Piece, Plan, Request, plan_audit
from tasks.settings import AuditSettings, Settings
from tests.benchmarks import simulation
from tests.benchmarks.cost import DAY, write
from tests.benchmarks.simulation import (
    ARCHIVED_READS,
    GETS_SECOND,
    LIFE_DAYS,
    LISTED,
    LISTED_MS,
    MANIFEST_BATCH_BYTES,
    MANIFEST_BYTES,
    MEASURED,
    PIECE_LISTS,
    RESULT_BYTES,
    SOME,
    WORKERS,
    Scale,
    _Slots,
    requests_for_the_end,
    together,
)
from tests.helpers.nights import LockingStore, Nights, Spread, opened
from tests.servers.s3 import SeaweedServer

LOG = Log("audit.events", 0)
STATEMENTS, KEYS = 24, 200


@pytest.fixture
def large() -> Scale:
    """The scale of the page."""
    return simulation.default()


def test_manifests_have_the_sizes_that_are_reckoned_with() -> None:
    """The writer's own manifests, of a batch and of twenty, are within 5 % of the constants."""
    for batches, made in zip((1, 20), write((1_000, 20_000)), strict=True):
        assert made.manifest == pytest.approx(MANIFEST_BYTES + batches * MANIFEST_BATCH_BYTES, rel=0.05)


def test_a_figure_that_is_missing_is_named() -> None:
    """A page of figures that says something in other words is an error, and never a zero."""
    page = simulation.FIGURES.read_text()
    assert set(simulation.measured(page)) == set(MEASURED)
    with pytest.raises(SystemExit, match=r"Query.*bytes of tables for an event"):
        simulation.measured(page.replace("tables take 39 bytes", "tables have 39 bytes"))


def test_of_two_figures_the_mean_counts() -> None:
    """What a request costs is between two figures of the page."""
    page = simulation.FIGURES.read_text()
    assert simulation.measured(page)["asked"] == 1.25
    assert simulation.measured(page.replace("needs 1 to 1.5 ms", "needs 2 to 4 ms"))["asked"] == 3


# --- the end of a log


def test_the_end_is_found_by_custodys_own_search() -> None:
    """It needs as many requests as there are doublings, and few where something is known."""
    assert requests_for_the_end(10_000_000, 10_000_000) <= 3
    assert requests_for_the_end(10_000_000) - requests_for_the_end(10_000) == pytest.approx(20, abs=2)


@pytest.mark.parametrize("after", [None, 0, 1, 998, 999, 1_000])
@pytest.mark.parametrize(
    ("keys", "pages"), [(0, 1), (1, 1), (LISTED, 1), (LISTED + 1, 2), (2 * LISTED, 2), (2 * LISTED + 1, 3)]
)
def test_a_listing_costs_a_request_for_each_page(after: int | None, keys: int, pages: int) -> None:
    """A page has 1,000 keys from the first one on, wherever the listing begins. One without keys is a request too."""
    slots = _Slots(keys if after is None else after + 1 + keys)
    key = "" if after is None else layout.manifest_key(LOG, after)
    assert len(list(slots.list(layout.log_prefix(LOG), after=key))) == keys
    assert slots.requests == pages


# --- amounts and money


def test_a_larger_scale_costs_more(capsys: pytest.CaptureFixture[str], large: Scale) -> None:
    """The command prints all tables for any scale; ten times the events are about ten times the bytes and cores."""
    simulation.main(["--events", "1000", "--partitions", "4"])
    printed = capsys.readouterr().out
    assert [line[3:] for line in printed.splitlines() if line.startswith("## ")] == list(simulation.PARTS)
    small = replace(large, events=100_000)
    assert large.bytes_day["segments"] == pytest.approx(10 * small.bytes_day["segments"])
    assert large.shared()["new events"].seconds == pytest.approx(10 * small.shared()["new events"].seconds)
    assert large.total() > 4 * small.total()
    # The same number of statements, and so of requests.
    assert large.requests()["puts"] == pytest.approx(small.requests()["puts"], rel=0.01)


def test_small_segments_stay_where_they_are(large: Scale) -> None:
    """S3 moves no object below `least_moved`: it stays in STANDARD, and audits read it again as long as it lives."""
    small = replace(large, events=1_000, partitions=200)
    held = small.stored(LIFE_DAYS)
    assert held["segments, STANDARD"] == pytest.approx(small.bytes_day["segments"] * LIFE_DAYS)
    assert (held["segments, STANDARD_IA"], held["segments, DEEP_ARCHIVE"]) == (0, 0)
    assert small.storage_month(LIFE_DAYS)["segments, DEEP_ARCHIVE"] == 0
    costs = small.requests()
    assert (costs["moves between classes"], costs["bytes that audits read from STANDARD_IA"]) == (0, 0)
    old = small.shared()["old events"]
    assert old.segments == pytest.approx(small.again())
    assert old.warm == 0
    # With a smaller limit they move.
    rules = small.prices["rules"] | {"least_moved": 1}
    moving = replace(small, prices={**small.prices, "rules": rules})
    assert moving.requests()["moves between classes"] > 0
    assert moving.stored(LIFE_DAYS)["segments, DEEP_ARCHIVE"] > 0


def test_each_request_has_the_price_of_its_class(large: Scale) -> None:
    """Reads from STANDARD_IA cost `get_warm`, other reads `get`, listings and checkpoints as much as puts."""

    def priced(**prices: float) -> dict[str, float]:
        free = dict.fromkeys(large.prices["requests"], 0.0)
        return replace(large, prices={**large.prices, "requests": free | prices}).requests()

    nights = together(*(of(day) for day in range(1, LIFE_DAYS + 1) for of in (large.shared, large.alone)))
    assert 0 < nights.warm < nights.segments
    assert priced(get_warm=1)["reads of audits"] == pytest.approx(nights.warm / 1000)
    others = nights.manifests + nights.segments - nights.warm
    assert priced(get=1)["reads of audits"] == pytest.approx(others / 1000)
    costs = priced(put=1)
    assert costs["listings and results of audits"] == pytest.approx(nights.lists / 1000)
    objects, checkpoints = 2 * large.statements_day, (24 + 1) * large.partitions
    assert costs["puts"] == pytest.approx((objects + checkpoints) * LIFE_DAYS / 1000)


# --- how long an audit takes


def test_requests_take_the_time_of_a_processor(large: Scale) -> None:
    """Each request of workers and of the one process takes `asked`, and each key that is listed `LISTED_MS`."""
    free = replace(large, figures={**large.figures, "asked": 0})
    for work in (*large.shared().values(), *large.alone().values()):
        requests = work.manifests + work.segments + work.lists
        assert requests > 0
        assert large.core(work) - free.core(work) == pytest.approx(requests * large.figures["asked"] / 1000)
        assert free.core(work) == pytest.approx(work.seconds + work.keys * LISTED_MS / 1000)
    assert large.alone()["listing of a share"].keys == pytest.approx(2 * large.statements_day * LIFE_DAYS / 30)


def test_no_number_of_workers_gets_more_than_a_prefix_gives(large: Scale) -> None:
    """More workers read faster, until all segments are asked for at the limit of one prefix."""
    segments = together(large.shared()).segments
    times = [large.takes(workers)[0] for workers in WORKERS]
    assert times == sorted(times, reverse=True)
    assert all(segments / seconds <= GETS_SECOND * 1.000_001 for seconds in times)
    assert segments / times[-1] == pytest.approx(GETS_SECOND)
    assert large.takes(2 * WORKERS[-1]) == large.takes(WORKERS[-1])


def test_a_worker_waits_where_segments_are_large(large: Scale) -> None:
    """Small segments are asked for at once. Of a large one each log waits, and a worker has three logs at most."""
    assert large.reading(8) > 2 * together(large.shared()).seconds / 8
    patient = replace(large, request_ms=0)
    work = large.core(together(large.shared()))
    assert patient.reading(8) == pytest.approx(work / 8)
    small = replace(large, events=10_000)
    waits = small.reading(1) - replace(small, request_ms=0).reading(1)
    assert waits < together(small.shared()).segments * 0.02 / 3


# --- what the page says of it


def test_what_breaks_is_what_the_page_says(large: Scale) -> None:
    """These go beyond what there is, in this order. Elasticsearch and the drain do so from the first day on."""
    rows = [row.strip("| ").split(" | ") for row in simulation.breaks(large)][2:]
    shares = {name: float(times.removesuffix(" times").replace(",", "")) for name, _, times, _ in rows}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert [name for name, share in shares.items() if share > 1] == [
        "an audit's workers, a core for a day",
        "Elasticsearch, a node",
        "a drain, a core for 45 of 60 s",
        "Kafka, a broker",
        "reads of manifests, all day",
        "requests for segments, one prefix, all day",
    ]
    assert large.takes(WORKERS[-1], 365)[1] < DAY < large.takes(WORKERS[-1])[1]


def test_settings_keep_an_audit_within_a_day(large: Scale) -> None:
    """Fewer statements do it, barely, and with a longer turn by far. So does an archive of a tenth of the logs."""
    lingering = replace(large, tables=False, linger=300)
    assert DAY / 2 < lingering.takes(SOME)[1] < DAY
    assert replace(lingering, reread=90).takes(SOME)[1] < DAY / 2
    assert replace(large, events=100_000, partitions=100).takes(SOME)[1] < DAY


def test_what_most_goes_into(large: Scale) -> None:
    """Tables cost more than all else, two fifths of an audit's cores go into requests, and results are names."""
    assert large.storage()["tables, STANDARD"] > large.total() / 2
    work = together(large.shared())
    assert 0.37 < 1 - work.seconds / large.core(work) < 0.43
    assert large.again() * 2 * NAME_BYTES > large.memory() / 2


# --- what audits do


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[LockingStore, Spread, datetime]:
    """A log in a bucket that was audited, and is read again as a whole in the next night."""
    store = LockingStore()
    grown = Spread(tmp_path_factory.mktemp("scale"), store)
    grown.append(STATEMENTS)
    now = datetime.now(UTC)
    with opened(store):
        assert Nights(store, given(grown), now).audit().verdict == "notices"
    return store, grown, now + timedelta(days=2)


def given(grown: Spread, piece: int = 500, *, tables: bool = False) -> Settings:
    audit = AuditSettings(piece_statements=piece, reread_days=1, tables=tables)
    return Settings(archive="s3://memory/archive", keys=f"file:{grown.keyring}", audit=audit)


Read = Callable[[int], Sequence[PieceResult]]


@contextmanager
def reading(
    aged: tuple[LockingStore, Spread, datetime], kind: type[LockingStore]
) -> Iterator[tuple[LockingStore, Read]]:
    """Give a copy of the store, and what reads all of its statements again, in pieces of a size."""
    store = kind(dict(aged[0].objects))

    def read(piece: int) -> Sequence[PieceResult]:
        settings = given(aged[1], piece)
        plan = plan_audit(settings, Request(), aged[2])
        store.calls.clear()
        return list(verify_pieces(settings, plan, plan.pieces))

    with opened(store):
        yield store, read


def test_an_old_statement_takes_two_reads_and_its_piece_six_requests_more(
    aged: tuple[LockingStore, Spread, datetime],
) -> None:
    """A manifest and a segment each; of each piece five listings, those of versions too, and the put of its result."""
    counts: dict[int, Counter[str]] = {}
    for piece in (2, 4):
        with reading(aged, LockingStore) as (store, read):
            assert sum(result.counts["statements"] for result in read(piece)) == STATEMENTS
            counts[piece] = store.kinds()
    # The next piece begins with a manifest that the one before has read; one is behind the last.
    assert counts[2]["read manifests"] == counts[4]["read manifests"] <= STATEMENTS + 1
    assert counts[2]["read events"] == counts[4]["read events"] == STATEMENTS
    more = {kind: counts[2][kind] - counts[4][kind] for kind in counts[2]}
    assert more.pop("read archive.json") + more.pop("read reports") <= 2 * STATEMENTS
    assert sum(more.values()) == PIECE_LISTS * STATEMENTS / 4, more


class Deep(LockingStore):
    """A bucket whose segments are in an archive storage class. It notes how many are asked for at once."""

    together = most = 0
    lock = Lock()  # type: ignore[assignment]

    def read(self, key: str, **how: Any) -> bytes:
        if not key.startswith(layout.EVENTS):
            return super().read(key, **how)
        self._call("read", key)
        with Deep.lock:
            Deep.together += 1
            Deep.most = max(Deep.most, Deep.together)
        time.sleep(0.005)
        with Deep.lock:
            Deep.together -= 1
        raise ObjectArchived(f"{key} is in an archive storage class")

    def status(self, key: str) -> ObjectStatus:
        digest = sha256(self.objects[key]).hexdigest()
        return replace(super().status(key), storage_class="DEEP_ARCHIVE", sha256=digest)


@pytest.mark.parametrize("is_large", [False, True])
def test_an_archived_segment_takes_one_request(
    aged: tuple[LockingStore, Spread, datetime], monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """A look at its digest. The first ones are read in vain before: one, or sixteen small ones at once."""
    Deep.most = 0
    if is_large:
        monkeypatch.setattr(contents, "_SMALL", 0)
    with reading(aged, Deep) as (store, read):
        (result,) = read(500)
        assert [problem["finding"] for problem in result.findings] == ["deferred"]
        assert store.kinds()["status events"] == ARCHIVED_READS * STATEMENTS
        assert store.kinds()["read events"] <= (1 if is_large else contents._SEVERAL)
    assert (Deep.most == 1) is is_large


def test_a_new_manifest_is_read_twice_if_it_is_not_kept(
    aged: tuple[LockingStore, Spread, datetime], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The survey reads it, and the piece again; its segment is read once."""
    monkeypatch.setattr(keeping, "FILE_BYTES", 0)
    store = LockingStore()
    grown = Spread(tmp_path, store)
    grown.append(STATEMENTS)
    with opened(store):
        Nights(store, given(grown), aged[2]).audit()
    reads = Counter(key for name, key in store.calls if name == "read")
    manifests = [reads[layout.manifest_key(Log("audit.grows", 0), sequence)] for sequence in range(1, STATEMENTS - 1)]
    assert set(manifests) == {2}
    assert {many for key, many in reads.items() if key.startswith(layout.EVENTS)} == {1}


@pytest.mark.parametrize("tables", [False, True])
def test_without_tables_there_are_no_rows_of_statements(tmp_path: Path, tables: bool) -> None:
    """`audit.tables` decides about both. Tables are read again in their turn."""
    store = LockingStore()
    grown = Spread(tmp_path, store)
    grown.append(STATEMENTS)
    now, settings = datetime.now(UTC), given(grown, tables=tables)
    with opened(store):
        plan = plan_audit(settings, Request(), now)
        (result,) = verify_pieces(settings, plan, plan.pieces)
        assert [bool(span.manifests) for span in result.spans] == [tables]
        assert bool(result.objects) is tables
        nights = Nights(store, settings, now)
        nights.audit()
        nights.audit(2)
    assert any(name == "read" and key.startswith("tables/day=") for name, key in store.calls) is tables


# --- what a listing costs


def test_a_key_of_a_listing_takes_a_part_of_the_time_of_a_request(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3's client takes for a page of 1,000 keys some eighty times as long as for a small object.

    That is why one process takes so long for a listing. The constant may be four times wrong: processors differ.
    """
    seaweed.use(monkeypatch)
    bucket, client = seaweed.make_bucket(versioned=True), seaweed.client()
    keys = [layout.records_key("events", LOG, at, at, 1_790_000_000_000 + at, f"{at:064x}") for at in range(KEYS)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: client.put_object(Bucket=bucket, Key=f"a/{key}", Body=bytes(6_000)), keys))
    store = S3Store(f"s3://{bucket}/a", S3Options(endpoint_url=seaweed.endpoint_url))
    assert sorted(info.key for info in store.list(layout.EVENTS)) == sorted(keys)

    def took(call: Callable[[], object], times: int) -> float:
        begun = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - begun) / times

    gc.collect()
    rounds = [
        (
            took(lambda: store.read(keys[0], limit=10_000), 30),
            took(lambda: list(store.list(layout.EVENTS)), 2),
            took(lambda: list(S3Versions(store._bucket).history(layout.EVENTS)), 2),
        )
        for _ in range(5)
    ]
    wanted = LISTED_MS / simulation.default().figures["asked"]
    for listing in (1, 2):
        of_key = median((each[listing] - each[0]) / each[0] for each in rounds) / KEYS
        assert wanted / 4 < of_key < 4 * wanted


# --- what is in memory


def test_a_result_takes_as_much_memory_as_is_reckoned_with(aged: tuple[LockingStore, Spread, datetime]) -> None:
    """The results of pieces with one finding each, pickled and not, within 15 %; and a name for each object in them."""
    with reading(aged, Deep) as (_, read):
        results = read(1)
        assert {len(result.names) for result in read(2)} == {2 * NAME_BYTES}
    # Sizes of a piece are large numbers elsewhere.
    results = [
        msgspec.structs.replace(each, counts=dict.fromkeys(each.counts, 10**9 + at)) for at, each in enumerate(results)
    ]
    packed = pickle.dumps(results)
    del results
    gc.collect()
    tracemalloc.start()
    try:
        loaded = pickle.loads(packed)  # noqa: S301 - made above
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (size + len(packed)) / len(loaded) - 2 * NAME_BYTES == pytest.approx(RESULT_BYTES, rel=0.15)


def test_each_share_is_sent_with_its_own_pieces_alone(
    aged: tuple[LockingStore, Spread, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is sent to all workers grows with the pieces, and not with the workers as well."""
    with reading(aged, LockingStore):
        plan = plan_audit(given(aged[1], 1), Request(), aged[2])
    many = tuple(Piece("audit.events/7", at, at + 500, "again") for at in range(12_000_000, 14_000_000, 500))
    sent: list[tuple[Plan, Sequence[Piece], Any]] = []

    def run(_: object, shares: Sequence[Any], *__: object) -> list[Any]:
        sent.extend(shares)
        return []

    monkeypatch.setattr(flows.audit, "run_parallel", run)
    with Kept() as kept:
        flows.audit._read(given(aged[1]), msgspec.structs.replace(plan, pieces=many), kept)
    assert len(sent) == 8 * AuditSettings().workers
    assert [each.pieces for each, _, _ in sent] == [()] * len(sent)
    assert [piece for _, pieces, _ in sent for piece in pieces] == list(many)
