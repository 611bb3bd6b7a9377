"""The assembler as a state machine: whatever comes in what order, each offset is accounted for once, within limits."""

import base64
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from custody.archive import assemble
from custody.archive.assemble import (
    TIME_APPEND,
    TIME_CREATE,
    TIME_NOT_AVAILABLE,
    Assembler,
    RecordApart,
    quarantine_line,
)
from custody.archive.writer import Entry, LogWriter, create_archive
from custody.findings import Severity
from custody.format import limits, quarantine
from custody.format.envelope import Tree
from custody.format.events import reason
from custody.format.leaves import LeafMaker
from custody.format.lines import parse_time
from custody.format.manifest import (
    LastRecord,
    Leaves,
    LogId,
    QuarantineRef,
    SegmentRef,
    Statement,
    Unreadable,
    check_ranges,
    encode,
)
from custody.format.members import inflate
from custody.format.quarantine import parse_quarantined
from custody.format.times import format_us
from custody.keys.key import LeafKey
from custody.keys.keyring import new_keyring
from custody.keys.open import open_signers
from custody.keys.secret import Secret
from custody.keys.trust import open_trust
from custody.store.open import open_store
from custody.verify.run import verify
from flows.operate.sample import sample_events
from tasks.drain.tuning import rare_collections
from tests.helpers.archives import leaves_hash
from tests.helpers.corpus import TIME, at, sized

SECRET = Secret(bytes(32))
LEAVES = LeafMaker(LeafKey("leaves-a", SECRET), "7f1e4c52-0b1f-4f0e-9c33-3a1f3f0f7a11", "audit/0")
GOOD = list(sample_events(300, 3, datetime(2026, 3, 1, tzinfo=UTC)))
BAD: list[bytes | None] = [None, b"", b"text", b"{}", b"\xff\n", GOOD[0][:-1]]
QUARANTINE_BYTES = 2000
QUARANTINE_RECORD = 150
"""So small that some records keep to it, and of others something is left out."""
ADMITTED = {"offset-lost", "offset-unreadable"}
"""Findings that a statement admits."""
Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record."""

    at: int
    content: bytes | None
    stamp: tuple[int, int] = (TIME_CREATE, 1_772_366_400_000)
    name: bytes | None = None
    more: Headers | None = None
    epoch: int | None = 3

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

    def __len__(self) -> int:
        return len(self.value() or b"")

    def leader_epoch(self) -> int | None:
        return self.epoch


@dataclass
class Model:
    """What was done since the last cut, kept as plainly as possible."""

    start: int
    position: int
    records: list[Record] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    unreadable: set[int] = field(default_factory=set)
    lost: tuple[int, int] | None = None
    batch: int = 0
    """The number of the first batch."""
    leaves: LeafMaker | None = None


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
    """Compare an entry with what was done."""
    fine = [record for record in model.records if reason(record.content) is None]
    bad = [record for record in model.records if reason(record.content) is not None]
    assert (entry.first_offset, entry.next_offset) == (model.start, model.position)
    assert list(entry.skipped) == spans(sorted(model.skipped))
    assert entry.lost == model.lost
    assert [offset for span in entry.unreadable for offset in range(span.from_, span.to)] == sorted(model.unreadable)
    assert list(entry.quarantined) == spans([record.at for record in bad])
    check_ranges("skipped", list(entry.skipped))
    check_ranges("quarantined", list(entry.quarantined))
    if model.records:
        first = model.records[0]
        assert (entry.first_record, entry.last_record) == (first.at, model.records[-1].at)
        assert entry.leader_epoch == (None if model.records[-1].epoch == -1 else model.records[-1].epoch)
        assert entry.first_record_ms == (None if first.stamp[0] == TIME_NOT_AVAILABLE else first.stamp[1])
    judge_batches(entry, fine, batch_events, model)
    judge_quarantine(entry, bad)


def judge_batches(entry: Entry, fine: Sequence[Record], batch_events: int, model: Model) -> None:
    rest, place, types = list(fine), 0, dict[str, int]()
    assert len(entry.members) == len(entry.batches)
    for number, (batch, member) in enumerate(zip(entry.batches, entry.members, strict=True), model.batch):
        mine, rest = rest[: batch.events], rest[batch.events :]
        assert 1 <= batch.events == len(mine) <= batch_events
        assert (batch.number, batch.start, batch.size) == (number, place, len(member))
        place += len(member)
        assert (batch.first_offset, batch.next_offset) == (mine[0].at, mine[-1].at + 1)
        payload = inflate(member, batch.inflated)
        lines = payload.splitlines(keepends=True)
        if model.leaves is None:
            assert batch.leaves is None
        else:
            made = leaves_hash(
                model.leaves.key.secret.reveal(),
                model.leaves.archive,
                model.leaves.log,
                number,
                payload.removesuffix(b"\n").split(b"\n"),
            )
            assert batch.leaves is not None
            assert (batch.leaves.key, batch.leaves.sha256) == (model.leaves.key.key_id, made)
        assert lines == [(record.content or b"").replace(b"\n", b" ") + b"\n" for record in mine]
        assert batch.events == 1 or batch.inflated <= assemble.CUT_BYTES + batch_events
        parsed = [json.loads(line) for line in lines]
        times = [time.microseconds for one in parsed if (time := parse_time(one["timestamp"]))]
        assert batch.min_time == format_us(min(floor for floor, _ in times))
        assert batch.max_time == format_us(max(floor + beyond for floor, beyond in times))
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
    headers = [[name, encoded(value)] for name, value in record.more or []]
    parts = {
        "key": record.name or b"",
        "value": record.content or b"",
        "headers": json.dumps(headers, separators=(",", ":")).encode() if headers else b"",
    }
    omitted: dict[str, Any] = dict.fromkeys(parts)
    while sum(map(len, parts.values())) > limits.QUARANTINE_RECORD:
        largest = max(parts, key=lambda name: len(parts[name]))
        part = parts.pop(largest)
        omitted[largest] = {"size": len(part), "sha256": sha256(part).hexdigest()}
    expected: dict[str, Any] = {
        "offset": record.at,
        "timestamp": None if missing else record.stamp[1],
        "key": None if omitted["key"] else encoded(record.name),
        "value": None if omitted["value"] else encoded(record.content),
        "headers": [] if omitted["headers"] else headers,
        "error": (reason(record.content) or "")[: assemble.REASON_CHARACTERS],
        "omitted": omitted if any(omitted.values()) else None,
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
        found = parse_quarantined(line.removesuffix(b"\n"))
        assert found.offset == record.at
        if found.omitted is None:
            assert (found.key, found.value, list(found.headers)) == (record.name, record.content, record.more or [])


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


def as_read_apart(record: Record) -> RecordApart:
    """Return a record as the process hands it back that reads apart."""
    problem = reason(record.content)
    line = None if problem is None else quarantine_line(record, record.content, problem)
    return RecordApart(record.at, record.stamp, record.epoch, None if line else record.content, line)


class Machine(RuleBasedStateMachine):
    """Adds, skips, losses and cuts in any order, with so small limits of quarantine that they are met.

    What is cut is appended to a log, and in the end verified.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(assemble, "CUT_QUARANTINE_BYTES", QUARANTINE_BYTES)
        self.patch.setattr(limits, "QUARANTINE_RECORD", QUARANTINE_RECORD)
        self.folder = tempfile.TemporaryDirectory()
        keyring = Path(self.folder.name) / "keyring.json"
        new_keyring(keyring, datetime.now(UTC))
        signers = open_signers(f"file:{keyring}", datetime.now(UTC))
        self.trust = open_trust([f"file:{keyring}"])
        self.store = open_store(str(Path(self.folder.name) / "archive"))
        archive = create_archive(self.store, signers.both).id
        log_id = LogId("cluster", "audit", None, 0, 1)
        self.writer = LogWriter(self.store, archive, log_id, signer=signers.hmac(), trust=self.trust, writer="a test")
        self.writer.open()
        assert signers.leaves is not None
        self.leaves = LeafMaker(signers.leaves, archive, "audit/0")
        self.asked = 0
        self.events = 0
        self.leader = 2

    def number(self) -> int:
        self.asked += 1
        return self.writer.next_batch()

    @initialize(start=st.integers(0, 2**40), batch_events=st.integers(1, 12), leaves=st.booleans())
    def begin(self, start: int, batch_events: int, leaves: bool) -> None:
        self.batch_events = batch_events
        maker = self.leaves if leaves else None
        self.assembler = Assembler(
            start, batch_events=batch_events, segment_bytes=20_000, level=1, number=self.number, leaves=maker
        )
        self.model = Model(start, start, leaves=maker)
        self.writer.append(self.assembler.cut())
        assert not self.asked

    @rule(
        values=st.lists(
            st.tuples(contents, stamps, st.none() | st.binary(max_size=3) | st.just(b"k" * 200), headers),
            min_size=1,
            max_size=30,
        ),
        epoch=st.sampled_from([None, -1, 0, 1]),
        apart=st.booleans(),
    )
    def add(
        self,
        values: list[tuple[bytes | None, tuple[int, int], bytes | None, Headers | None]],
        epoch: int | None,
        *,
        apart: bool,
    ) -> None:
        # A leader's epoch grows, or the broker does not say it.
        self.leader += epoch if epoch in {0, 1} else 0
        leader = epoch if epoch in {None, -1} else self.leader
        records = [Record(self.model.position + place, *value, epoch=leader) for place, value in enumerate(values)]
        full = self.assembler.full
        taken = self.assembler.add(list(map(as_read_apart, records)) if apart else records)
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

    @rule(count=st.integers(1, 5), error=st.text() | st.just("é" * 300))
    def admit(self, count: int, error: str) -> None:
        self.assembler.admit(self.model.position + count, error)
        self.model.unreadable |= set(range(self.model.position, self.model.position + count))
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
        entry = self.assembler.cut()
        judge(entry, self.model, self.batch_events)
        self.writer.append(entry)
        self.events += sum(batch.events for batch in entry.batches)
        position, batch = self.model.position, self.model.batch + len(entry.batches)
        self.model = Model(position, position, batch=batch, leaves=self.model.leaves)
        assert self.asked == bool(batch)

    @invariant()
    def tells_where_it_is(self) -> None:
        assert self.assembler.position == self.model.position
        assert self.assembler.is_empty is (self.model.position == self.model.start)
        assert self.assembler.has_records is bool(self.model.records or self.model.lost or self.model.unreadable)
        size = sum(len(one.content or b"") + 1 for one in self.model.records if reason(one.content) is None)
        aside = sum(quarantine_size(one) for one in self.model.records if reason(one.content) is not None)
        assert self.assembler.full is (size >= 20_000 or aside >= QUARANTINE_BYTES)
        assert self.assembler.held_bytes >= aside

    def teardown(self) -> None:
        try:
            if hasattr(self, "assembler"):
                self.cut()
                self.verify()
        finally:
            self.patch.undo()
            self.folder.cleanup()

    def verify(self) -> None:
        report = verify(self.store, self.trust, now=datetime.now(UTC), workers=0)
        wrong = [one for one in report.findings if one.severity > Severity.NOTICE]
        assert [one for one in wrong if one.finding not in ADMITTED] == []
        assert sum(log.events for log in report.logs) == self.events


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25)


def new(start: int = 0, *, batch_events: int = 1000, segment_bytes: int = 2**24) -> Assembler:
    return Assembler(start, batch_events=batch_events, segment_bytes=segment_bytes, level=1)


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
    assert entry.batches[0].inflated == assemble.CUT_BYTES
    assert all(batch.inflated <= assemble.CUT_BYTES for batch in entry.batches)


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


@pytest.mark.parametrize("step", [1, 7, 500])
def test_types_on_either_side(step: int) -> None:
    """A statement names as many types as the format allows, and the next statement goes on with the next type."""
    number = 2 * limits.TYPES + 30
    values = [json.dumps({"event_type": f"type {turn // 2}", "timestamp": TIME}).encode() for turn in range(2 * number)]
    values[5:5] = [b"no event", GOOD[0]]
    entries = run(values, step, batch_events=400)
    assert [len(entry.types) for entry in entries[:-1]] == [limits.TYPES] * 2
    assert sum(sum(entry.types.values()) for entry in entries) == len(values) - 1
    assert sum(len(entry.quarantined) for entry in entries) == 1
    assert [entry.first_offset for entry in entries[1:]] == [entry.next_offset for entry in entries[:-1]]
    assert sum(batch.events for entry in entries for batch in entry.batches) == len(values) - 1


def test_own_types() -> None:
    """Events of own types are archived, or quarantined with the reason if the writer is strict."""
    own = json.dumps({"event_type": "user_login", "timestamp": TIME, "user": "ada"}).encode()
    records = [Record(offset, value) for offset, value in enumerate([GOOD[0], own, GOOD[1]])]
    lenient, strict = (
        Assembler(0, batch_events=9, segment_bytes=2**20, level=1, own_types=own_types) for own_types in (True, False)
    )
    for assembler in (lenient, strict):
        assert assembler.add(records) == 3
    entry = lenient.cut()
    assert (entry.types["user_login"], entry.quarantined) == (1, [])
    entry = strict.cut()
    assert "user_login" not in entry.types
    assert entry.quarantined == [(1, 2)]
    line = json.loads(inflate(entry.quarantine or b"", entry.quarantine_inflated))
    assert line["error"].startswith("event_type 'user_login' is not one of query_executed,")


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
    assert assembler.held_bytes > assemble.CUT_QUARANTINE_BYTES


@pytest.mark.parametrize("step", [1, 7, 50])
def test_more_quarantine_than_fits(step: int) -> None:
    """However much comes at a time, a statement's quarantine is bounded, and what does not fit waits for the next."""
    value = GOOD[0] * 5000
    assert len(value) > 1_500_000
    entries = run([GOOD[1], value, GOOD[2]] * 17, step)
    assert len(entries) > 2
    assert sum(batch.events for entry in entries for batch in entry.batches) == 34
    assert [entry.first_offset for entry in entries[1:]] == [entry.next_offset for entry in entries[:-1]]
    assert all(entry.quarantine_inflated <= assemble.CUT_QUARANTINE_BYTES + 2 * len(value) for entry in entries)


# --- what a producer chooses costs time and memory in proportion to its size


EVENT = GOOD[next(place for place, value in enumerate(GOOD) if b'"query_executed"' in value)]


def with_field(name: str, value: str) -> bytes:
    """Return an event with a field's JSON replaced, or added at the end."""
    fields = {key: json.dumps(old) for key, old in json.loads(EVENT).items()} | {name: value}
    return ("{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}").encode()


VALUES: dict[str, Callable[[int], bytes]] = {
    "string without end": lambda size: b'"' + b'\\"' * (size // 2),
    "string without end, then openers": lambda size: b'"' + b'\\"' * (size // 2) + b"[" * 99,
    "openers, then a string without end": lambda size: b"[" * 99 + b'"' + b'\\"' * (size // 2) + b"\\",
    "backslashes": lambda size: b'{"a":"' + b"\\" * size,
    "quotes and openers": lambda size: b'"' * size + b"[" * 99,
    "arrays": lambda size: b"[" * size,
    "objects": lambda size: b'{"a":' * (size // 5),
    "zeros": bytes,
    "blanks": lambda size: b" " * size,
    "byte order marks": lambda size: b"\xef\xbb\xbf" * (size // 3),
    "no UTF-8 at the end": lambda size: with_field("x", '"' + "a" * size + '"')[:-2] + b'\xff"}',
    "openers in a string": lambda size: with_field("x", '"' + "[{" * (size // 2) + '"'),
    "shallow arrays": lambda size: with_field("x", "[" + ",".join(["[" * 50 + "]" * 50] * (size // 101)) + "]"),
    "keys": lambda size: EVENT[:-1] + b"".join(b',"%08d":0' % at for at in range(size // 13)) + b"}",
    "one key": lambda size: EVENT[:-1] + b',"k":0' * (size // 6) + b"}",
    "timestamps": lambda size: EVENT[:-1] + b',"timestamp":"2026"' * (size // 18) + b"}",
    "newlines": lambda size: with_field("x", "\n" * size + "1"),
    "surrogates": lambda size: with_field("x", '"' + "\\ud800" * (size // 6) + '"'),
    "escapes": lambda size: with_field("x", '"' + "\\u0065" * (size // 6) + '"'),
    "digits": lambda size: with_field("x", "9" * size),
    "digits of a count": lambda size: with_field("complexity", "9" * size),
    "digits of a float": lambda size: with_field("execution_time", "0." + "9" * size),
    "exponent": lambda size: with_field("execution_time", "1e" + "9" * size),
    "fraction": lambda size: with_field("timestamp", '"2026-03-01T12:00:00.' + "1" * size + 'Z"'),
    "no time": lambda size: with_field("timestamp", '"' + "2026-03-01T" * (size // 11) + '"'),
    "type": lambda size: with_field("event_type", '"' + "a" * size + '"'),
    "colons of an address": lambda size: with_field("client_ip", '"' + ":" * size + '"'),
    "dots of an address": lambda size: with_field("client_ip", '"' + "1." * (size // 2) + '"'),
    "digits of an address": lambda size: with_field("client_ip", '"1.1.1.' + "1" * size + '"'),
    "zone of an address": lambda size: with_field("client_ip", '"fe80::1%' + "a" * size + '"'),
}


def alone(shape: Callable[[int], bytes], size: int) -> list[Record]:
    return [Record(0, shape(size))]


RECORDS: dict[str, Callable[[int], list[Record]]] = {
    **{name: partial(alone, shape) for name, shape in VALUES.items()},
    "key": lambda size: [Record(0, None, name=b"\xff" * size)],
    "header name": lambda size: [Record(0, None, more=[("\ud7ff" * size, b"")])],
    "header value": lambda size: [Record(0, None, more=[("h", b"\xff" * size)])],
    "headers": lambda size: [Record(0, None, more=[("", None)] * (size // 10))],
    "small records": lambda size: [Record(at, b"{}") for at in range(size // 50)],
    "tombstones": lambda size: [Record(at, None) for at in range(size // 50)],
    "unlike reasons": lambda size: [Record(at, b'{"event_type":"%d"}' % at) for at in range(size // 50)],
    "unlike types": lambda size: [Record(at, with_field("event_type", f'"{at}"')) for at in range(size // 50)],
    "every other one": lambda size: [Record(at, EVENT if at % 2 else b"{") for at in range(size // 50)],
    "every hundredth": lambda size: [Record(at, EVENT if at % 100 else b"{") for at in range(size // 50)],
    "unlike times": lambda size: [Record(at, EVENT, (TIME_CREATE, 2**62 - at * at)) for at in range(size // 50)],
    "unlike addresses": lambda size: [
        Record(at, with_field("client_ip", f'"10.{at >> 16}.{at >> 8 & 255}.{at & 255}"')) for at in range(size // 500)
    ],
}
SMALL = 2**16
TWICE_LINEAR = 8.0
"""How many times as long, or as large, four times the input may be."""


def consume(records: Sequence[Record]) -> None:
    """Take records to an entry, as a drain does."""
    assembler = new()
    while records:
        records = records[assembler.add(records[:500]) :]
        if assembler.full:
            assembler.cut()
    assembler.cut()


def spent(records: Sequence[Record], most: float) -> float:
    """Return the processor time that records take: the least of some attempts, until one is below `most`."""
    least = float("inf")
    for _ in range(5):
        # As in a drain: what a collection costs depends on all that the process holds.
        with rare_collections():
            begun = time.process_time()
            consume(records)
            least = min(least, time.process_time() - begun)
        if least <= most:
            break
    return least


@pytest.mark.parametrize("shape", RECORDS)
def test_time_grows_with_the_size_at_most(shape: str) -> None:
    """Four times the bytes, or the records, take about four times the processor time: no square of anything."""
    small, large = RECORDS[shape](SMALL), RECORDS[shape](4 * SMALL)
    consume(small)
    base = max(spent(small, 0), 0.0005)
    assert spent(large, TWICE_LINEAR * base) <= TWICE_LINEAR * base


@pytest.mark.parametrize("shape", RECORDS)
def test_memory_grows_with_the_size_at_most(shape: str) -> None:
    """What records take beside themselves is in proportion to them."""
    peaks = []
    for size in (SMALL // 4, SMALL):
        records = RECORDS[shape](size)
        consume(records[:10])
        tracemalloc.start()
        consume(records)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    small, large = peaks
    assert large <= TWICE_LINEAR * max(small, SMALL)
    assert large <= 64 * SMALL


class WithoutHeaders(Record):
    """A record with a header whose name is not UTF-8, as confluent-kafka gives it."""

    def headers(self) -> Headers | None:
        raise SystemError("returned a result with an exception set")


def test_headers_that_cannot_be_read() -> None:
    """Headers that the client library cannot give are left out, and the line says so."""
    assembler = new()
    assembler.add([WithoutHeaders(0, b"no event"), WithoutHeaders(1, GOOD[0])])
    entry = assembler.cut()
    assert entry.quarantine is not None
    line = json.loads(inflate(entry.quarantine, entry.quarantine_inflated))
    assert line["headers"] == []
    assert line["error"] == f"{reason(b'no event')}; its headers are left out, since a name among them is not UTF-8"
    assert entry.batches[0].events == 1


LARGE = limits.QUARANTINE_RECORD


@pytest.mark.parametrize(
    ("key", "value", "header", "omitted"),
    [
        (None, LARGE, None, set()),
        (None, LARGE + 1, None, {"value"}),
        (0, LARGE, None, set()),
        (1, LARGE, None, {"value"}),
        (LARGE, 1, None, {"key"}),
        (LARGE, LARGE, 10, {"key", "value"}),
        (LARGE // 2, LARGE // 2 + 1, None, {"value"}),
        (3, 5, 6_291_450, {"headers"}),
        (3, 5, 6_291_426, set()),
        (3, 5, 20_000_000, {"headers"}),
        (30_000_000, 40_000_000, 50_000_000, {"key", "value", "headers"}),
    ],
)
def test_large_records(key: int | None, value: int, header: int | None, omitted: set[str]) -> None:
    """Of a record beyond 8 MiB the largest parts are left out, until the rest keeps to it; their digests stay."""
    assembler = new()
    name = None if key is None else b"k" * key
    more: Headers = [] if header is None else [("h\xe9", b"h" * header), ("none", None)]
    record = Record(0, b"v" * value, name=name, more=more)
    assembler.add([record])
    entry = assembler.cut()
    assert entry.quarantine is not None
    line = inflate(entry.quarantine, entry.quarantine_inflated)
    assert line == quarantined_line(record)
    found = parse_quarantined(line.removesuffix(b"\n"))
    assert {one for one in ("key", "value", "headers") if getattr(found.omitted, one, None)} == omitted
    assert len(line) <= limits.QUARANTINE_LINE


@pytest.mark.parametrize("size", [2**25, 2**26])
def test_memory_of_large_records(size: int) -> None:
    """A record that is left out costs no copy of it, however large its key, value and headers are."""
    record = Record(0, b"v" * size, name=b"k" * size, more=[("n" * size, None), ("h", b"h" * size)])
    encode = partial(
        quarantine.encode_quarantined, 0, None, record.key(), record.value(), record.headers() or [], "no event"
    )
    encode()
    tracemalloc.start()
    try:
        line = encode()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(line) < 500
    assert peak < 2 * limits.QUARANTINE_RECORD


def test_longest_line() -> None:
    """No record makes a line beyond the format's limit: headers count as their JSON does, and reasons are cut."""
    event = json.loads(at("2026-03-01T12:00:00Z")) | {"event_type": "auth_attempt", "status": "\x01" * 100_000}
    value = json.dumps(event).encode()
    # Each header is 6,010 bytes of JSON.
    record = Record(0, value, more=[("\x01" * 1000, None)] * ((LARGE - len(value) - 2) // 6010))
    assembler = new()
    assembler.add([record])
    entry = assembler.cut()
    line = inflate(entry.quarantine or b"", entry.quarantine_inflated)
    assert line == quarantined_line(record)
    assert json.loads(line)["omitted"] is None
    assert len(line) <= limits.QUARANTINE_LINE
    assert len(json.loads(line)["error"]) <= assemble.REASON_CHARACTERS


def test_largest_statement() -> None:
    """What is cut where a cut is asked for fits into a statement, whatever its numbers, names and errors are."""
    far = 2**62
    assembler = Assembler(
        far, batch_events=1, segment_bytes=2**40, level=1, number=lambda: far,
        leaves=LeafMaker(LeafKey("k" * 100, SECRET), LEAVES.archive, LEAVES.log),
    )  # fmt: skip
    value = at("2026-03-01T12:00:00.123456Z")
    for turn in range(assemble.RANGES // 2):
        # The drain reads 500 records at a time, and asks after each.
        batches = 1 if turn < assemble.BATCHES - 1 else 500 if turn == assemble.BATCHES - 1 else 0
        start = assembler.position
        bad = [Record(start, None), Record(start + 1, None)]
        assembler.add(bad[:1])
        assembler.skip(start + 2)
        start = assembler.position
        if batches:
            stamp = (TIME_CREATE, 2**62)
            assembler.add([Record(start + place, value, stamp) for place in range(batches)])
    entry = assembler.cut()
    unreadable = [
        Unreadable(far, far + 1, f"{turn:04}" + "\x01" * 252) for turn in range(limits.UNREADABLE_RANGES // 2)
    ]
    statement = Statement(
        archive=LEAVES.archive, log=LogId("c" * 100, "t" * 249, "i" * 100, 2**31, 2**31), sequence=999_999_999_999,
        tree=Tree(999_999_999_999, "ab" * 32, ["ab" * 32] * 40), previous_epoch=None, first_offset=far, next_offset=far,
        last_record=LastRecord(far, 2**31 - 1), skipped=list(entry.skipped) * 2, lost=(far, far + 1),
        unreadable=unreadable, passed_over=["ab" * 32] * limits.PASSED_OVER, sealed_at="x" * 27,
        writer="w" * 1000, segment=SegmentRef("s" * 400, 2**28, "ab" * 32), batches=list(entry.batches),
        quarantine=QuarantineRef("q" * 400, 2**26, "ab" * 32, 2**29, far, list(entry.quarantined) * 2), expired=None,
        types={f"{number:03}" + "\x01" * (limits.EVENT_TYPE_BYTES - 3): far for number in range(limits.TYPES)},
    )  # fmt: skip
    assert len(entry.batches) == assemble.BATCHES + 499
    assert statement.quarantine
    assert len(statement.skipped) == len(statement.quarantine.offsets) == assemble.RANGES
    assert len(encode(statement)) < limits.STATEMENT_BYTES


def test_numbers() -> None:
    """Batches are numbered over the log, from where it is asked for at the first one, and never asked for again."""
    asked: list[None] = []

    def number() -> int:
        asked.append(None)
        return 41

    assembler = Assembler(0, batch_events=2, segment_bytes=2**20, level=1, number=number)
    assembler.add([Record(0, None)])
    assembler.cut()
    assert not asked
    for start in (1, 6):
        assembler.add([Record(start + place, GOOD[place]) for place in range(5)])
        assert len(asked) == 1
    assert [batch.number for batch in assembler.cut().batches] == [41, 42, 43, 44, 45]
    assembler.add([Record(11, GOOD[0])])
    assert [batch.number for batch in assembler.cut().batches] == [46]
    assert len(asked) == 1


def test_leaves() -> None:
    """Each batch commits to its own events, as archived; without a secret nothing is committed to."""
    values: list[bytes | None] = [json.dumps(json.loads(GOOD[0]), indent=1).encode(), *GOOD[1:7], None, GOOD[8]]
    assembler = Assembler(0, batch_events=3, segment_bytes=2**20, level=1, number=lambda: 5, leaves=LEAVES)
    assembler.add([Record(offset, value) for offset, value in enumerate(values)])
    entry = assembler.cut()
    assert [batch.events for batch in entry.batches] == [3, 3, 2]
    for number, batch, member in zip((5, 6, 7), entry.batches, entry.members, strict=True):
        events = inflate(member, batch.inflated).splitlines()
        made = leaves_hash(SECRET.reveal(), LEAVES.archive, LEAVES.log, number, events)
        assert batch.leaves == Leaves("leaves-a", made)
    (plain,) = run(values, 3)
    assert {batch.leaves for batch in plain.batches} == {None}


def test_leaves_hold_no_events() -> None:
    """For leaves no event is kept a second time until its batch is closed."""
    assembler = Assembler(0, batch_events=1000, segment_bytes=2**24, level=1, leaves=LEAVES)
    tracemalloc.start()
    try:
        for offset in range(7):
            assembler.add([Record(offset, sized(500_000))])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # The first record is kept for its time.
    assert 7 * 500_000 < held < 9 * 500_000


@pytest.mark.parametrize(("epochs", "expected"), [([3, 4], 4), ([None], None), ([-1], None), ([5, -1], None), ([0], 0)])
def test_leader_epoch(epochs: list[int | None], expected: int | None) -> None:
    """An entry has the leader epoch of the last record taken, and none where the broker gives none."""
    assembler = new()
    for offset, epoch in enumerate(epochs):
        assembler.add([Record(offset, GOOD[0], epoch=epoch)])
    assembler.skip(10)
    assert assembler.cut().leader_epoch == expected
    assert assembler.cut().leader_epoch is None


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
