"""The assembler as a state machine: whatever comes in what order, each offset is accounted for once, within limits."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from custody.archive import Entry
from custody.events import parse_time, reason
from custody.manifest import check_ranges, format_us
from custody.segment import inflate
from flows.sample import sample_events
from tasks import assemble
from tasks.assemble import TIME_APPEND, TIME_CREATE, TIME_NOT_AVAILABLE, Assembler
from tests.corpus import at, sized

GOOD = list(sample_events(300, 3, datetime(2026, 3, 1, tzinfo=UTC)))
BAD: list[bytes | None] = [None, b"", b"text", b"{}", b"\xff\n", GOOD[0][:-1]]
QUARANTINE_BYTES = 2000
Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record."""

    at: int
    content: bytes | None
    stamp: tuple[int, int] = (TIME_CREATE, 1_772_366_400_000)
    name: bytes | None = None
    more: Headers | None = None

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes | None:
        return self.content

    def key(self) -> bytes | None:
        return self.name

    def headers(self) -> Headers | None:
        return self.more

    def timestamp(self) -> tuple[int, int]:
        return self.stamp


@dataclass
class Model:
    """What was done since the last cut, kept as plainly as possible."""

    start: int
    position: int
    records: list[Record] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    lost: tuple[int, int] | None = None


def spans(offsets: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for offset in sorted(offsets):
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found


def encoded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def judge(entry: Entry, model: Model, batch_events: int) -> None:
    """Hold an entry against what was done."""
    fine = [record for record in model.records if reason(record.content) is None]
    bad = [record for record in model.records if reason(record.content) is not None]
    assert (entry.first_offset, entry.next_offset) == (model.start, model.position)
    assert list(entry.skipped) == spans(sorted(model.skipped))
    assert entry.lost == model.lost
    assert list(entry.quarantined) == spans([record.at for record in bad])
    check_ranges("skipped", list(entry.skipped))
    check_ranges("quarantined", list(entry.quarantined))
    if model.records:
        first = model.records[0]
        assert (entry.first_record, entry.last_record) == (first.at, model.records[-1].at)
        assert entry.first_record_ms == (None if first.stamp[0] == TIME_NOT_AVAILABLE else first.stamp[1])
    judge_batches(entry, fine, batch_events)
    judge_quarantine(entry, bad)


def judge_batches(entry: Entry, fine: Sequence[Record], batch_events: int) -> None:
    rest, place, types = list(fine), 0, dict[str, int]()
    assert len(entry.members) == len(entry.batches)
    for number, (batch, member) in enumerate(zip(entry.batches, entry.members, strict=True)):
        mine, rest = rest[: batch.events], rest[batch.events :]
        assert 1 <= batch.events == len(mine) <= batch_events
        assert (batch.number, batch.start, batch.size) == (number, place, len(member))
        place += len(member)
        assert (batch.first_offset, batch.next_offset) == (mine[0].at, mine[-1].at + 1)
        lines = inflate(member, batch.inflated).splitlines(keepends=True)
        assert lines == [(record.content or b"").replace(b"\n", b" ") + b"\n" for record in mine]
        assert batch.events == 1 or batch.inflated <= assemble.BATCH_BYTES + batch_events
        parsed = [json.loads(line) for line in lines]
        bounds = [parse_time(one["timestamp"]) for one in parsed]
        assert batch.min_time == format_us(min(bound[0] for bound in bounds if bound))
        assert batch.max_time == format_us(max(bound[1] for bound in bounds if bound))
        for one in parsed:
            types[one["event_type"]] = types.get(one["event_type"], 0) + 1
        known = [record.stamp for record in mine if record.stamp[0] != TIME_NOT_AVAILABLE and record.stamp[1] >= 0]
        if not known:
            assert batch.kafka_time is None
            continue
        assert batch.kafka_time is not None
        kinds = {kind for kind, _ in known}
        name = "mixed" if len(kinds) > 1 else {TIME_CREATE: "create", TIME_APPEND: "append"}[kinds.pop()]
        stamps = [stamp for _, stamp in known]
        assert (batch.kafka_time.type, batch.kafka_time.min, batch.kafka_time.max) == (name, min(stamps), max(stamps))
    assert rest == []
    assert dict(entry.types) == types


def quarantined_line(record: Record) -> bytes:
    missing = record.stamp[0] == TIME_NOT_AVAILABLE or record.stamp[1] == -1
    expected: dict[str, Any] = {
        "offset": record.at,
        "timestamp": None if missing else record.stamp[1],
        "key": encoded(record.name),
        "value": encoded(record.content),
        "headers": [[name, encoded(value)] for name, value in record.more or []],
        "error": reason(record.content),
    }
    return json.dumps(expected, separators=(",", ":")).encode() + b"\n"


def quarantine_size(record: Record) -> int:
    return len(quarantined_line(record))


def judge_quarantine(entry: Entry, bad: Sequence[Record]) -> None:
    if not bad:
        assert (entry.quarantine, entry.quarantine_inflated) == (None, 0)
        return
    assert entry.quarantine is not None
    lines = inflate(entry.quarantine, entry.quarantine_inflated).splitlines(keepends=True)
    for line, record in zip(lines, bad, strict=True):
        assert line == quarantined_line(record)


def numbered(number: int) -> bytes | None:
    """Return one of many contents: by number, since hypothesis writes out what it chooses from."""
    kind, place = divmod(number, len(GOOD))
    if kind == 0:
        return GOOD[place]
    return json.dumps(json.loads(GOOD[place]), indent=1).encode() if kind == 1 else BAD[place % len(BAD)]


contents = st.integers(0, 3 * len(GOOD) - 1).map(numbered)
stamps = st.one_of(
    st.tuples(st.sampled_from([TIME_CREATE, TIME_APPEND]), st.integers(1_772_366_400_000, 1_772_366_400_005)),
    st.tuples(st.sampled_from([TIME_CREATE, TIME_NOT_AVAILABLE]), st.sampled_from([-1, -5, 0, 2**63 - 1, -(2**63)])),
)
headers = st.none() | st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=3)


class Machine(RuleBasedStateMachine):
    """Adds, skips, losses and cuts in any order, with so small a limit of quarantine that it is met."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(assemble, "QUARANTINE_BYTES", QUARANTINE_BYTES)

    @initialize(start=st.integers(0, 2**40), batch_events=st.integers(1, 12))
    def begin(self, start: int, batch_events: int) -> None:
        self.batch_events = batch_events
        self.assembler = Assembler(start, batch_events=batch_events, segment_bytes=20_000, level=1)
        self.model = Model(start, start)

    @rule(
        values=st.lists(
            st.tuples(contents, stamps, st.none() | st.binary(max_size=3), headers), min_size=1, max_size=30
        )
    )
    def add(self, values: list[tuple[bytes | None, tuple[int, int], bytes | None, Headers | None]]) -> None:
        records = [Record(self.model.position + place, *value) for place, value in enumerate(values)]
        full = self.assembler.full
        taken = self.assembler.add(records)
        assert 1 <= taken <= len(records)
        if taken < len(records):
            assert self.assembler.full
            assert full or reason(records[taken - 1].content) is not None
        self.model.records += records[:taken]
        self.model.position += taken

    @rule(count=st.integers(1, 5))
    def skip(self, count: int) -> None:
        self.assembler.skip(self.model.position + count)
        self.model.skipped |= set(range(self.model.position, self.model.position + count))
        self.model.position += count

    @precondition(lambda self: self.model.start == self.model.position)
    @rule(count=st.integers(1, 1000))
    def lose(self, count: int) -> None:
        self.assembler.lose(self.model.position + count)
        self.model.lost = (self.model.position, self.model.position + count)
        self.model.position += count

    @precondition(lambda self: self.model.start != self.model.position)
    @rule(count=st.integers(1, 5))
    def lose_late(self, count: int) -> None:
        with pytest.raises(ValueError, match="cut first"):
            self.assembler.lose(self.model.position + count)

    @rule(gap=st.integers(-3, 3).filter(bool))
    def add_with_a_gap(self, gap: int) -> None:
        with pytest.raises(ValueError, match="not accounted for"):
            self.assembler.add([Record(self.model.position + gap, GOOD[0])])

    @rule()
    def cut(self) -> None:
        judge(self.assembler.cut(), self.model, self.batch_events)
        self.model = Model(self.model.position, self.model.position)

    @invariant()
    def tells_where_it_is(self) -> None:
        assert self.assembler.position == self.model.position
        assert self.assembler.is_empty is (self.model.position == self.model.start)
        assert self.assembler.has_records is bool(self.model.records or self.model.lost)
        size = sum(len(one.content or b"") + 1 for one in self.model.records if reason(one.content) is None)
        aside = sum(quarantine_size(one) for one in self.model.records if reason(one.content) is not None)
        assert self.assembler.full is (size >= 20_000 or aside >= QUARANTINE_BYTES)
        assert self.assembler.held_bytes >= aside

    def teardown(self) -> None:
        if hasattr(self, "assembler"):
            self.cut()
        self.patch.undo()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25)


def new(start: int = 0, **options: int) -> Assembler:
    return Assembler(start, **{"batch_events": 1000, "segment_bytes": 2**24, "level": 1} | options)


def run(values: Sequence[bytes | None], step: int, **options: int) -> list[Entry]:
    """Add records in steps, cutting where the assembler asks for it, as the drain does."""
    assembler, entries = new(**options), []
    records = [Record(offset, value) for offset, value in enumerate(values)]
    for place in range(0, len(records), step):
        some = records[place : place + step]
        while some:
            some = some[assembler.add(some) :]
            if assembler.full:
                entries.append(assembler.cut())
    return [*entries, assembler.cut()]


@given(st.lists(contents, min_size=1, max_size=100), st.integers(1, 100), st.integers(1, 20))
@settings(max_examples=40)
def test_steps_make_no_difference(values: list[bytes | None], step: int, batch_events: int) -> None:
    """What is archived does not depend on how many records came at a time."""
    assert run(values, step, batch_events=batch_events) == run(values, len(values), batch_events=batch_events)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_batches_by_bytes(step: int) -> None:
    """A batch is closed before it would pass 4 MiB, and an event that leaves no room stands alone."""
    sizes = [2**20, 2**20, 2**20, 2**20 - 4, 2**20, 300, 2**20, 2**20, 2**20, 700_000, 700_000]
    (entry,) = run([sized(size) for size in sizes], step)
    assert [batch.events for batch in entry.batches] == [4, 4, 3]
    assert entry.batches[0].inflated == assemble.BATCH_BYTES
    assert all(batch.inflated <= assemble.BATCH_BYTES for batch in entry.batches)


def test_segment_bytes_on_either_side() -> None:
    """A cut is asked for at `segment_bytes` of JSONL, newlines counted, and not a byte before."""
    for size, full in ((998, False), (999, True), (1000, True)):
        assembler = new(segment_bytes=1000)
        assembler.add([Record(0, sized(size))])
        assert assembler.full is full


def test_ranges_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut is asked for before the format's limit of skipped ranges, and of quarantined ones."""
    monkeypatch.setattr(assemble, "RANGES", 5)
    for bad in (True, False):
        assembler = new()
        for place in range(5):
            assert not assembler.full
            assembler.add([Record(2 * place, GOOD[0])])
            if bad:
                assembler.add([Record(2 * place + 1, b"no event")])
            else:
                assembler.skip(2 * place + 2)
        assert assembler.full


def test_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut is asked for before a statement with very many batches passes the format's limit."""
    monkeypatch.setattr(assemble, "BATCHES", 7)
    assert [len(entry.batches) for entry in run(GOOD[:20], 1, batch_events=1)] == [7, 7, 6]
    assert [len(entry.batches) for entry in run(GOOD[:20], 10, batch_events=1)] == [10, 10, 0]


def test_large_keys_and_headers() -> None:
    """What is held counts: values, keys and headers of what is no event; of an event nothing but its value is held."""
    assembler = new()
    large = b"x" * 2**20
    for offset in range(50):
        assembler.add([Record(offset, GOOD[0], name=large, more=[("h", large)])])
        assert not assembler.full
    assert assembler.held_bytes < 2**20
    for offset in range(50, 54):
        assert not assembler.full
        assembler.add([Record(offset, None, name=large, more=[("h", large), ("h", large)])])
    assert assembler.full
    assert assembler.held_bytes > assemble.QUARANTINE_BYTES


@pytest.mark.parametrize("step", [1, 7, 50])
def test_more_quarantine_than_fits(step: int) -> None:
    """However much comes at a time, a statement's quarantine is bounded, and what does not fit waits for the next."""
    value = GOOD[0] * 5000
    assert len(value) > 1_500_000
    entries = run([GOOD[1], value, GOOD[2]] * 17, step)
    assert len(entries) > 2
    assert sum(batch.events for entry in entries for batch in entry.batches) == 34
    assert [entry.first_offset for entry in entries[1:]] == [entry.next_offset for entry in entries[:-1]]
    assert all(entry.quarantine_inflated <= assemble.QUARANTINE_BYTES + 2 * len(value) for entry in entries)


class Unreadable(Record):
    """A record with a header whose name is not UTF-8, as confluent-kafka gives it."""

    def headers(self) -> Headers | None:
        raise SystemError("returned a result with an exception set")


def test_headers_that_cannot_be_read() -> None:
    """Headers that the client library cannot give are left out, and the line says so."""
    assembler = new()
    assembler.add([Unreadable(0, b"no event"), Unreadable(1, GOOD[0])])
    entry = assembler.cut()
    assert entry.quarantine is not None
    line = json.loads(inflate(entry.quarantine, entry.quarantine_inflated))
    assert line["headers"] == []
    assert line["error"] == f"{reason(b'no event')}; its headers are left out, since a name among them is not UTF-8"
    assert entry.batches[0].events == 1


def test_bounds_of_times() -> None:
    """A batch's bounds hold its events' own times, to the microsecond and outwards."""
    (entry,) = run([at("2026-03-01T12:00:00.0000015Z"), at("2026-03-01T13:59:59.9999991+02:00")], 2)
    assert entry.batches[0].min_time == "2026-03-01T11:59:59.999999Z"
    assert entry.batches[0].max_time == "2026-03-01T12:00:00.000002Z"


def test_nothing() -> None:
    """A cut where nothing came is an entry of an empty range."""
    entry = new(7).cut()
    assert (entry.first_offset, entry.next_offset, entry.lost, entry.quarantine) == (7, 7, None, None)
    assert not any([entry.skipped, entry.members, entry.batches, entry.quarantined, entry.types])
