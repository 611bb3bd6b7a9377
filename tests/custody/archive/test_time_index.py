"""The time index names what an audit has read, in few objects, and never hides what it does not know."""

import gzip
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from random import Random
from threading import Barrier
from time import sleep
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive import time_index, time_merge, time_parts
from custody.archive.reader import Tip
from custody.archive.time_index import EMPTY, TimeIndex
from custody.archive.time_merge import extend
from custody.archive.time_parts import FOLDER, Contents, Part
from custody.archive.time_spans import Bounds, Span, SpanMaker, check, runs_of
from custody.errors import FormatError
from custody.format.audit import Audit, ObjectRef
from custody.format.envelope import HeadRef, Tree
from custody.format.layout import Log
from custody.format.manifest import Batch, KafkaTime, LogId, SegmentRef, Statement
from custody.format.times import EPOCH, MICROSECOND, format_us
from tests.helpers.archives import ARCHIVE_ID
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import audit_of

LOGS = (Log("audit", 0, 1), Log("audit", 1, 1), Log("other", 0, 2))
NOW = datetime(2026, 3, 1, tzinfo=UTC)
Night = tuple[tuple[int, ...], tuple[Bounds | None, ...]]
_bounds = st.tuples(st.integers(0, 10**15), st.integers(0, 10**15)).map(lambda pair: (min(pair), max(pair)))


def night(ends: dict[Log, int], sizes: Sequence[int], times: Sequence[Bounds | None]) -> list[Span]:
    """Return the spans of a night, which continue each log."""
    spans = []
    for log, size, sealed in zip(LOGS, sizes, times, strict=True):
        if size:
            first = ends.get(log, 0)
            ends[log] = first + size
            spans.append(Span(log=str(log), first=first, end=first + size, sealed=sealed, events=size))
    return spans


_nights = st.lists(
    st.tuples(st.tuples(*[st.integers(0, 3)] * len(LOGS)), st.tuples(*[st.none() | _bounds] * len(LOGS))), max_size=30
)


def put(
    store: MemoryStore,
    nights: Iterable[Sequence[Span]],
    index: TimeIndex = EMPTY,
    replaced: Collection[tuple[str, int]] = (),
    logs: Iterable[Log] = LOGS,
) -> TimeIndex:
    """Add the spans of some nights, each by an audit of its own, and return the index as a reader gets it."""
    for number, spans in enumerate(nights):
        ref, made = extend(ARCHIVE_ID, number, index, spans, replaced)
        store.objects |= made
        index = time_index.read(store, audit(ref, logs=logs))
        assert index.problems == []
    return index


def spans_of(index: TimeIndex, log: Log) -> Sequence[Span]:
    """Return all spans of a log. A lost part is one without times."""
    return index.overlapping(log, None, None)


def audit(ref: ObjectRef | None, size: int = 10**9, logs: Iterable[Log] = LOGS) -> Audit:
    """Return an audit that refers to a map."""
    heads = {str(log): HeadRef(size, "00" * 32) for log in logs}
    return audit_of(ARCHIVE_ID, Tip(), NOW, heads=heads, objects=[ref] if ref else [], counts={"findings": 0})


def statement(sequence: int, low: int, high: int, passed: int) -> Statement:
    """Return a statement with one batch, sealed at the time of its last event."""
    return Statement(
        archive=ARCHIVE_ID,
        log=LogId("cluster", "audit", None, 0, 1),
        sequence=sequence,
        tree=Tree(sequence, "00" * 32, []),
        previous_epoch=None,
        first_offset=2 * sequence,
        next_offset=2 * sequence + 2,
        last_record=None,
        skipped=[],
        lost=None,
        unreadable=[],
        passed_over=["00" * 32] * passed,
        sealed_at=format_us(high),
        writer="a test",
        segment=SegmentRef("a", 5, "00" * 32),
        batches=[Batch(0, 0, 2, 2, 0, 5, 9, "", format_us(low), format_us(high), KafkaTime("create", 1, 2), None)],
        quarantine=None,
        expired=None,
        types={"a": 2},
    )


@contextmanager
def small(spans: int = 2, gathered: int = 2) -> Iterator[None]:
    """Make parts small, so that a few nights make an index of several levels."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("SMALL", 0), ("MOST_SPANS", spans), ("EACH_LOG", 1), ("GATHERED", gathered)):
            patched.setattr(time_merge, name, value)
        yield


@pytest.mark.parametrize("limits", [nullcontext, small])
@given(nights=_nights)
def test_merging_any_sequence_of_nights_gives_the_spans_of_one_object(
    limits: Callable[[], AbstractContextManager[None]], nights: list[Night]
) -> None:
    """However nights are merged and gathered, a reader gets each span once, in order, and nothing else."""
    ends: dict[Log, int] = {}
    added = [night(ends, *each) for each in nights]
    store = MemoryStore()
    with limits():
        index = put(store, added)
    at_once = put(MemoryStore(), [[span for spans in added for span in spans]])
    read = time_index.read(store, audit(index.ref))
    for log in LOGS:
        assert spans_of(read, log) == spans_of(at_once, log)
        assert read.problems == []
        assert read.end(log) == ends.get(log, 0)
        assert list(read.gaps(log, 0, 200)) == [range(ends.get(log, 0), 200)]
        assert all(read.between(log, span.end - 1, span.end) == [span] for span in spans_of(read, log))


@pytest.mark.parametrize("shrinking", [False, True])
def test_the_number_of_objects_grows_with_the_logarithm(monkeypatch: pytest.MonkeyPatch, shrinking: bool) -> None:
    """A thousand nights are a few objects, also if each night is a little smaller than the one before."""
    monkeypatch.setattr(time_merge, "SMALL", 0)
    monkeypatch.setattr(time_merge, "MOST_SPANS", 10_000)
    written, index, store = 0, EMPTY, MemoryStore()
    ends: dict[Log, int] = {}
    for number in range(400):
        spans = []
        for _ in range((400 - number) // 20 + 1 if shrinking else 4):
            spans += night(ends, (1, 0, 0), ((number, number), None, None))
        before = len(store.objects)
        index = put(store, [spans], index)
        assert len(store.objects) == before + 2
        written += index.parts[-1].many
        sizes = [part.many for part in index.parts]
        assert all(older > 2 * newer for older, newer in pairwise(sizes))
    total = sum(part.many for part in index.parts)
    assert total == ends[LOGS[0]]
    assert len(index.parts) <= 8
    assert written <= 12 * total


def test_small_objects_are_one() -> None:
    """While the index is small, one object has all of it: each request counts for more than its bytes."""
    ends: dict[Log, int] = {}
    index = put(MemoryStore(), [night(ends, (1, 1, 0), (None, None, None)) for _ in range(50)])
    assert len(index.parts) == 1


def test_an_audit_with_nothing_new_refers_to_the_same_objects() -> None:
    """Nothing is written then."""
    index = put(MemoryStore(), [night({}, (1, 1, 1), (None, None, None))])
    assert extend(ARCHIVE_ID, 7, index, []) == (index.ref, {})


def test_very_many_spans_are_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No part is so large that reading it costs much, and the oldest are not written again."""
    monkeypatch.setattr(time_merge, "MOST_SPANS", 10)
    monkeypatch.setattr(time_merge, "EACH_LOG", 5)
    spans = [Span(log=str(LOGS[0]), first=at, end=at + 1, sealed=(at, at)) for at in range(95)]
    store = MemoryStore()
    index = put(store, [spans, *([Span(log=str(LOGS[0]), first=at, end=at + 1)] for at in range(95, 120))])
    assert [part.many for part in index.parts] == [10] * 12
    assert [span.first for span in spans_of(index, LOGS[0])] == list(range(120))


def test_only_parts_are_read_that_a_time_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map says of the others between which times they are, and that they leave no gap."""
    monkeypatch.setattr(time_merge, "MOST_SPANS", 10)
    monkeypatch.setattr(time_merge, "EACH_LOG", 5)
    spans = [Span(log=str(LOGS[0]), first=at, end=at + 1, sealed=(at, at + 3)) for at in range(100)]
    store = MemoryStore()
    of = put(store, [spans]).ref
    store.calls.clear()
    index = time_index.read(store, audit(of))
    since, until = EPOCH + MICROSECOND * 55, EPOCH + MICROSECOND * 56
    assert [span.first for span in index.overlapping(LOGS[0], since, until)] == [52, 53, 54, 55]
    assert list(index.gaps(LOGS[0], 0, 101)) == [range(100, 101)]
    ranges = index.ranges(LOGS[0], 0, 101, lambda span: span.sealed_within(since, until))
    wanted = [slots.start for slots, span in ranges if span is None or span.sealed_within(since, until)]
    assert wanted == [52, 53, 54, 55, 100]
    assert len(store.calls) == 2


def test_what_a_reader_of_a_day_gets_grows_with_the_logarithm() -> None:
    """At ten times the nights, the map has twice as many runs at most, and a night is as many objects below it."""
    runs, objects, many = [], [], [Log("audit", partition) for partition in range(40)]

    def of_night(number: int) -> list[Span]:
        sealed = (number * 10, number * 10 + 9)
        return [Span(log=str(log), first=number, end=number + 1, sealed=sealed) for log in many]

    for nights in (60, 600):
        store = MemoryStore()
        with small(spans=80, gathered=4):
            index = put(store, (of_night(number) for number in range(nights)), logs=many)
        for number in range(0, nights, 7):
            read = time_index.read(store, audit(index.ref, logs=many))
            store.calls.clear()
            moment = EPOCH + MICROSECOND * (number * 10 + 5)
            for log in many:
                assert [span.first for span in read.overlapping(log, moment, moment + MICROSECOND)] == [number]
            objects.append(len(store.calls))
        runs.append(sum(len(part.runs) for part in index.parts))
    levels = max(part.level for part in index.parts)
    assert levels >= 3
    assert runs[1] <= 2 * runs[0]
    assert max(objects) <= levels + 1


def test_the_map_does_not_grow_with_spans_that_are_made_again() -> None:
    """As when tables expire: a span takes the place of the one before, in however old a part."""
    many, chance = [Log("audit", partition) for partition in range(5)], Random(20261130)
    runs = []
    for replacing in (False, True):
        store, index = MemoryStore(), EMPTY
        with small(spans=20, gathered=4):
            for number in range(150):
                new = [Span(log=str(log), first=number, end=number + 1, sealed=(number, number)) for log in many]
                again = {(str(chance.choice(many)), chance.randrange(number)) for _ in range(3 if number else 0)}
                again = again if replacing else set()
                new += [Span(log=log, first=at, end=at + 1, sealed=(at, at), events=number) for log, at in again]
                index = put(store, [new], index, again, logs=many)
        assert all([span.first for span in spans_of(index, log)] == list(range(150)) for log in many)
        runs.append(sum(len(part.runs) for part in index.parts))
    assert runs[0] == runs[1]


def test_spans_of_years_that_are_added_at_once_are_parted_by_time() -> None:
    """As after `audit --full`: a reader of a day does not get all parts because each has all times of some logs."""
    many = [Log("audit", partition) for partition in range(10)]
    spans = [Span(log=str(log), first=at, end=at + 1, sealed=(at, at)) for log in many for at in range(200)]
    store = MemoryStore()
    with small(spans=40, gathered=100):
        index = put(store, [spans], logs=many)
    assert len(index.parts) == 50
    assert all(len(part.runs) == len(many) for part in index.parts)
    store.calls.clear()
    read = time_index.read(store, audit(index.ref, logs=many))
    moment = EPOCH + MICROSECOND * 100
    assert all([span.first for span in read.overlapping(log, moment, moment + MICROSECOND)] == [100] for log in many)
    assert len(store.calls) == 2


def test_no_part_is_larger_than_a_reader_takes() -> None:
    """However many logs there are: these spans have long names, and all that a span may have."""
    random = Random(20261130)
    name = "l" * 200

    def number(digits: int) -> int:
        return random.randrange(10 ** (digits - 1), 10**digits)

    def file(log: str) -> ObjectRef:
        digest = random.randbytes(32).hex()
        return ObjectRef(f"{FOLDER}statements/{log}-{number(12)}-{number(12)}-{digest[:16]}", number(7), digest)

    def span(log: str) -> Span:
        first, offset, low = number(10), number(13), number(16)
        return Span(
            log=log,
            first=first,
            end=first + 500,
            sealed=(low, low + number(11)),
            event_times=(low, low + number(11)),
            kafka_times=(low, low + number(11)),
            first_offset=offset,
            next_offset=offset + number(9),
            events=number(9),
            quarantined=number(6),
            stored=number(12),
            inflated=number(13),
            tables=file(log),
            manifests=file(log),
            batches=file(log),
        )

    spans = [span(f"{name}/{partition}") for partition in range(1_000)]
    data = time_parts.encode(ARCHIVE_ID, time_parts.FORMAT, spans)
    share = len(spans) / time_merge.MOST_OF_ALL
    assert len(data) < share * time_parts.SIZE_LIMIT
    assert len(gzip.decompress(data)) < share * time_parts.INFLATED_LIMIT


def test_the_map_of_ten_thousand_logs_is_no_larger_than_a_reader_takes() -> None:
    """After seven years of three spans a night, with the most lines that each log may have."""
    many, random = 10_000, Random(20261130)
    parts = 3 * 365 * 7 * many // min(time_merge.EACH_LOG * many, time_merge.MOST_OF_ALL)
    lines = 0
    while parts >= 2 * time_merge.GATHERED:
        lines, parts = lines + 2 * time_merge.GATHERED - 1, parts // time_merge.GATHERED
    lines += parts
    assert 20 < lines < 50

    def run(partition: int) -> Span:
        first, low, events = random.randrange(10**7), random.randrange(10**15, 10**16), random.randrange(10**10)
        times = (low, low + random.randrange(10**13))
        stored = random.randrange(10**11)
        return Span(
            log=f"audit.events/{partition}",
            first=first,
            end=first + random.randrange(10**6),
            sealed=times,
            event_times=(times[0] - random.randrange(10**7), times[1] - random.randrange(10**7)),
            kafka_times=(times[0] // 1000, times[1] // 1000),
            first_offset=random.randrange(10**11),
            next_offset=10**11 + events,
            events=events,
            stored=stored,
            inflated=4 * stored + random.randrange(10**6),
        )

    part = Part(ObjectRef("reports/index/a", 1, "00" * 32), 1, [run(partition) for partition in range(1_000)])
    data = time_parts.encode(ARCHIVE_ID, time_parts.MAP_FORMAT, [part])
    assert len(data) / len(part.runs) * lines * many < time_parts.SIZE_LIMIT


def _large() -> tuple[MemoryStore, TimeIndex, dict[Log, int]]:
    """Return an index of two parts: the first has all but the last span of the first log."""
    store, ends = MemoryStore(), dict[Log, int]()
    many = [span for at in range(900) for span in night(ends, (1, 1, 0), ((at, at + at % 97), (at, at), None))]
    return store, put(store, [many, night(ends, (1, 0, 0), ((5, 6), None, None))]), ends


HARMS = {
    "missing": None,
    "empty": b"",
    "no gzip": b"no gzip",
    "half": gzip.compress(b"{}\n", mtime=0)[:-4],
    "no head": gzip.compress(b"{}\n", mtime=0),
    "another archive": gzip.compress(b'{"format":"custody/time-index/1","archive":"another"}\n', mtime=0),
    "no span": gzip.compress(b'{"format":"custody/time-index/1","archive":"%b"}\n[]\n' % ARCHIVE_ID.encode(), mtime=0),
    "zeros": gzip.compress(bytes(1_000_000), mtime=0),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("of", ["map", "part"])
@pytest.mark.parametrize("harm", HARMS)
def test_what_is_missing_or_damaged_hides_nothing(harm: str, of: str, signed: bool) -> None:
    """What a part covered overlaps every time, and is read one by one; without a map, all is. A problem names it."""
    store, index, ends = _large()
    data = HARMS[harm]
    ref = index.parts[0].ref if of == "part" else index.ref
    assert ref is not None
    del store.objects[ref.key]
    if data is not None:
        store.objects[ref.key] = data
        # Whoever holds the audit's key can sign a damaged one.
        ref = ObjectRef(ref.key, len(data), sha256(data).hexdigest()) if signed else ref
    first = index.parts[0]
    parts = [Part(ref, first.many, first.runs), *index.parts[1:]]
    read = time_index.read(store, audit(mapped(store, parts) if of == "part" else ref))
    since, until = EPOCH + MICROSECOND * 10, EPOCH + MICROSECOND * 20
    for log in LOGS[:2]:
        lost = [(span.first, span.end) for span in read.overlapping(log, since, until)]
        assert lost == ([(0, 900)] if of == "part" else [])
        assert list(read.gaps(log, 0, ends[log])) == ([] if of == "part" else [range(ends[log])])
        single = [at for slots, span in read.ranges(log, 0, ends[log], lambda _: True) if span is None for at in slots]
        assert single == list(range(900 if of == "part" else ends[log]))
        assert [(run.first, run.end) for run in read.lost(log, 0, 5)] == lost
    assert [ref.key in problem for problem in read.problems] == [True]
    assert bool(read.missing) == (data is None)


def _gathered() -> tuple[MemoryStore, TimeIndex]:
    """Return an index of one log with thirty spans: the oldest eight are in one part of level 2."""
    store = MemoryStore()
    with small():
        index = put(store, ([span] for span in _ones(30)))
    assert [part.level for part in index.parts] == [2, 2, 1, 1, 0, 0, 0]
    return store, index


def _ones(count: int) -> Iterator[Span]:
    for at in range(count):
        yield Span(log=str(LOGS[0]), first=at, end=at + 1, sealed=(at, at), events=1)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_gathered_part_that_is_missing_or_damaged_hides_nothing(harm: str, level: int) -> None:
    """At whatever level it is: what it covered is read one by one, and the rest is known."""
    store, index = _gathered()
    part = index.parts[0]
    while part.level > level:
        part = index.contents(part).lower[0]
    del store.objects[part.ref.key]
    if (data := HARMS[harm]) is not None:
        store.objects[part.ref.key] = data
    read = time_index.read(store, audit(index.ref))
    of = list(read.ranges(LOGS[0], 0, 32, lambda _: True))
    (run,) = part.runs
    assert of[0] == (range(run.end), None)
    assert [slots.start for slots, span in of[1:-1] if span] == list(range(run.end, 30))
    assert of[-1] == (range(30, 32), None)
    assert [(lost.first, lost.end) for lost in read.lost(LOGS[0], 0, 32)] == [(0, run.end)]
    assert [part.ref.key in problem for problem in read.problems] == [True]
    # An audit that reads these statements again leaves the lost part out, and keeps the others.
    again = put(store, [list(_ones(run.end))], read, {(str(LOGS[0]), 0)})
    assert [span.first for span in spans_of(again, LOGS[0])] == list(range(30))
    assert again.problems == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"many": 9}, "not those of the map"),
        ({"runs": [Span(log=str(LOGS[0]), first=0, end=8, sealed=(3, 7), events=8)]}, "not those of the map"),
        ({"level": 1}, "not of a lower level"),
        ({"level": 0}, "another form"),
    ],
)
def test_a_gathered_part_that_contradicts_its_map_is_found(change: dict[str, Any], said: str) -> None:
    """Its line stands for what is not read. A part within itself would be read without end."""
    store, index = _gathered()
    first, *others = index.parts
    read = time_index.read(store, audit(mapped(store, [msgspec.structs.replace(first, **change), *others])))
    assert [slots for slots, span in read.ranges(LOGS[0], 0, 30, lambda _: True) if span is None] == [range(8)]
    assert [said in problem for problem in read.problems] == [True]


FAR = 2**62, 2**62
TIMES: list[dict[str, Any]] = [
    {"sealed": FAR},
    {"sealed": (2**70, 2**70)},
    {"sealed": (-(2**62), 1)},
    {"event_times": FAR},
    {"event_times": (1, 2**70)},
    {"kafka_times": (1, 2**70)},
    {"kafka_times": (-(2**70), 1)},
]


@pytest.mark.parametrize("times", TIMES)
def test_times_that_none_may_have_are_found(times: dict[str, Any]) -> None:
    """They cannot be reckoned with: the part is lost, and its statements are read one by one."""
    store, ends = MemoryStore(), dict[Log, int]()
    (part,) = put(store, [night(ends, (3, 3, 0), ((1, 2), (1, 2), None))]).parts
    runs = [msgspec.structs.replace(run, **times) for run in part.runs]
    read = time_index.read(store, audit(mapped(store, [Part(part.ref, part.many, runs)])))
    assert read.problems
    assert [slots for slots, span in read.ranges(LOGS[0], 0, 3, lambda _: True) if span is None] == [range(3)]


def test_all_times_of_kafka_may_be() -> None:
    """An application may give its records any timestamp."""
    check(Span(log="a/0", first=0, end=1, sealed=(1, 2), kafka_times=(-(2**63), 2**63 - 1)))


@pytest.mark.parametrize("lie", ["before", "after"])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_lines_that_name_one_object_a_lie_is_found(lie: str, first: int) -> None:
    """What the object has is compared with each of them, whichever is needed first."""
    store, ends = MemoryStore(), dict[Log, int]()
    (part,) = put(store, [night(ends, (3, 3, 0), ((1, 2), (1, 2), None))]).parts
    false = Part(part.ref, 1, [Span(log=str(LOGS[1]), first=0, end=3, sealed=(900, 901))])
    true = Part(part.ref, part.many, [run for run in part.runs if lie == "after" or run.log != str(LOGS[1])])
    read = time_index.read(store, audit(mapped(store, [false, true] if lie == "before" else [true, false])))
    for log in (LOGS[first], LOGS[1 - first]):
        list(read.ranges(log, 0, 3, lambda _: True))
    assert read.contradictions or [span.sealed for span in spans_of(read, LOGS[1])] == [(1, 2)]


def test_slots_that_a_run_has_and_its_part_has_not_are_read_one_by_one() -> None:
    """As of two lines of a map that name one part: what it has is compared with the first line that is needed."""
    store, ends = MemoryStore(), dict[Log, int]()
    index = put(store, [night(ends, (3, 3, 0), ((1, 2), (1, 2), None))])
    (part,) = index.parts
    other = Part(part.ref, 1, [Span(log=str(LOGS[2]), first=0, end=4, sealed=(1, 2))])
    read = time_index.read(store, audit(mapped(store, [part, other])))
    assert [span.first for span in spans_of(read, LOGS[0])] == [0]
    assert list(read.ranges(LOGS[2], 0, 4, lambda _: True)) == [(range(4), None)]
    (run,) = read.runs(LOGS[2])
    assert [(each.span.first, each.span.end, each.span.sealed, each.lost) for each in read.inside(run)] == [
        (0, 4, None, True)
    ]


def test_a_map_of_too_many_levels_is_refused() -> None:
    """Who holds the audit's key could make one in which a reader goes down without end."""
    store, index = _gathered()
    deep = msgspec.structs.replace(index.parts[0], level=21)
    read = time_index.read(store, audit(mapped(store, [deep])))
    assert read.parts == ()
    assert "level" in read.problems[0]


@given(st.sets(st.integers(0, 29), max_size=6))
def test_spans_of_gathered_parts_can_be_replaced(replaced: set[int]) -> None:
    """Each span that is made again is there once, in the place of the one before, and each other one as before."""
    store, index = _gathered()
    log = str(LOGS[0])
    new = [Span(log=log, first=at, end=at + 1, sealed=(at, at), events=7) for at in replaced]
    with small():
        after = put(store, [new], index, {(log, at) for at in replaced})
    assert [span.events for span in spans_of(after, LOGS[0])] == [7 if at in replaced else 1 for at in range(30)]
    assert [span.first for span in spans_of(after, LOGS[0])] == list(range(30))
    assert [(part.level, part.many, len(part.runs)) for part in after.parts] == [
        (part.level, part.many, len(part.runs)) for part in index.parts
    ]


def test_a_part_that_is_there_again_doubles_nothing() -> None:
    """An audit's pieces did without it. When their spans are added, it can be read: known ones stay."""
    store, log = MemoryStore(), str(LOGS[0])
    spans = [Span(log=log, first=at, end=at + 5, sealed=(at, at)) for at in (0, 5, 10)]
    index = put(store, [spans])
    new = Span(log=log, first=5, end=10, sealed=(5, 5), events=3)
    after = put(store, [[new]], index, {(log, 0)})
    assert [(span.first, span.events) for span in spans_of(after, LOGS[0])] == [(5, 0), (10, 0)]


def test_what_replaces_a_lost_part_is_parts_of_the_usual_size() -> None:
    """A lost map may stand for many parts. Their spans are added as others are, not as one part."""
    store, index = _gathered()
    del store.objects[index.parts[0].ref.key]
    read = time_index.read(store, audit(index.ref))
    with small():
        after = put(store, [list(_ones(8))], read, {(str(LOGS[0]), 0)})
    assert [span.first for span in spans_of(after, LOGS[0])] == list(range(30))
    assert all(part.many <= 2 or part.level for part in after.parts)


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)))
def test_spans_can_be_left_out_and_come_back(left: set[int], back: set[int]) -> None:
    """As if an audit could not read their statements, and a later one could."""
    store, index = _gathered()
    log = str(LOGS[0])
    with small():
        fewer = put(store, [[]], index, {(log, at) for at in left})
        assert [span.first for span in spans_of(fewer, LOGS[0])] == sorted(set(range(30)) - left)
        again = put(store, [[span for span in _ones(30) if span.first in left & back]], fewer)
    assert [span.first for span in spans_of(again, LOGS[0])] == sorted(set(range(30)) - (left - back))


def mapped(store: MemoryStore, parts: Sequence[Part]) -> ObjectRef:
    """Put a map of these parts."""
    data = time_parts.encode(ARCHIVE_ID, time_parts.MAP_FORMAT, parts)
    ref = ObjectRef("reports/index/0-map", len(data), sha256(data).hexdigest())
    store.objects[ref.key] = data
    return ref


def test_another_object_than_the_signed_one_is_not_used() -> None:
    """Whoever may write into the store cannot put an index of his own under a signed name."""
    store, index, _ = _large()
    _, others = extend(ARCHIVE_ID, 0, EMPTY, [Span(log=str(LOGS[0]), first=0, end=5_000, sealed=(0, 0))])
    ref = index.parts[0].ref
    store.objects[ref.key] = next(iter(others.values())).ljust(ref.size, b"\0")
    read = time_index.read(store, audit(index.ref))
    assert not any(span.sealed for span in spans_of(read, LOGS[0])[:-1])
    assert read.problems


@pytest.mark.parametrize("change", [{"end": 9}, {"sealed": (0, 1)}, {"events": 1}])
def test_a_map_that_says_something_else_than_its_parts_is_found(change: dict[str, Any]) -> None:
    """A run stands for spans that are not read. When they are, it must be theirs."""
    store, index, _ = _large()
    first = index.parts[0]
    runs = [msgspec.structs.replace(first.runs[0], **change), *first.runs[1:]]
    read = time_index.read(store, audit(mapped(store, [Part(first.ref, first.many, runs), *index.parts[1:]])))
    assert spans_of(read, LOGS[0])[0].sealed is None
    assert "not those of the map" in read.problems[0]


def test_an_index_ends_at_the_heads_that_the_audit_signed() -> None:
    """What goes beyond them may be of another history: it is not used at all."""
    store, index, ends = _large()
    read = time_index.read(store, audit(index.ref, size=600))
    assert read.problems
    assert list(read.gaps(LOGS[0], 0, ends[LOGS[0]])) == [range(ends[LOGS[0]])]


def test_spans_that_are_replaced_are_left_out() -> None:
    """Only the parts that have them are written again, and a part that is lost is left out."""
    store, index, _ = _large()
    log, before = str(LOGS[0]), set(store.objects)
    new = [Span(log=log, first=7, end=8, sealed=(1, 1))]
    after = put(store, [new], index, {(log, 7)})
    assert spans_of(after, LOGS[0])[7] == new[0]
    assert [*spans_of(after, LOGS[0])][:7] == [*spans_of(index, LOGS[0])][:7]
    assert len(set(store.objects) - before) == 2
    store.objects[index.parts[0].ref.key] = b"lost"
    read = time_index.read(store, audit(index.ref))
    after = put(store, [new], read, {(log, 0)})
    assert [span.first for span in spans_of(after, LOGS[0])] == [7, 900]


def test_of_spans_that_overlap_the_later_is_left_out() -> None:
    """No statement is in two spans."""
    spans = [Span(log=str(LOGS[0]), first=first, end=end, sealed=(0, 0)) for first, end in ((0, 5), (3, 9), (9, 11))]
    refs = [ObjectRef(f"reports/index/{span.first}", 1, "00" * 32) for span in spans]
    parts = [Part(ref, 1, [span]) for ref, span in zip(refs, spans, strict=True)]
    index = TimeIndex(parts, lambda part: Contents(spans=part.runs))
    assert [(span.first, span.end) for span in spans_of(index, LOGS[0])] == [(0, 5), (9, 11)]
    assert list(index.gaps(LOGS[0], 0, 12)) == [range(5, 9), range(11, 12)]


@pytest.mark.parametrize(
    ("bounds", "kept", "gaps"),
    [
        (((0, 10), (5, 15), (10, 20), (15, 20), (20, 30)), [(0, 10), (10, 20)], [range(20, 30)]),
        (((0, 10), (0, 5), (7, 15)), [(0, 5), (7, 15)], [range(5, 7), range(15, 30)]),
        (((0, 4), (3, 5), (5, 6), (5, 8), (8, 9)), [(0, 4), (5, 6), (6, 9)], [range(4, 5), range(9, 30)]),
    ],
)
def test_of_spans_that_overlap_in_one_part_no_statement_is_in_two(
    bounds: Sequence[tuple[int, int]], kept: list[tuple[int, int]], gaps: list[range]
) -> None:
    """What the left out ones alone have is in no span."""
    log = LOGS[0]
    spans = [Span(log=str(log), first=first, end=end, sealed=(0, 0)) for first, end in bounds]
    ref = ObjectRef("reports/index/0", 1, "00" * 32)
    index = TimeIndex([Part(ref, len(spans), runs_of(spans))], lambda _: Contents(spans=spans))
    assert [(span.first, span.end) for span in spans_of(index, log)] == kept
    assert [(each.span.first, each.span.end) for run in index.runs(log) for each in index.inside(run)] == kept
    assert list(index.gaps(log, 0, 30)) == gaps


@given(st.lists(st.none() | _bounds, min_size=1), _bounds)
def test_a_span_overlaps_what_its_statements_may_lie_in(bounds: list[Bounds | None], times: Bounds) -> None:
    """A span is left out only if it is known that none of its statements is within the times."""
    since, until = (EPOCH + MICROSECOND * each for each in times)
    spans = [Span(log=str(LOGS[0]), first=at, end=at + 1, sealed=each) for at, each in enumerate(bounds)]
    index = put(MemoryStore(), [spans])
    chosen = {span.first for span in index.overlapping(LOGS[0], since, until)}
    for at, each in enumerate(bounds):
        within = each is None or any(times[0] <= moment < times[1] for moment in each)
        assert at in chosen or not within
        assert at not in chosen or each is None or (each[0] < times[1] and each[1] >= times[0])


def test_times_of_events_may_be_a_millisecond_off() -> None:
    """A batch's times are rounded in its statement, so an event at the bound is not lost."""
    span = Span(log=str(LOGS[0]), first=0, end=1, sealed=(0, 0), event_times=(10_000_000, 20_000_000))
    moment = EPOCH + timedelta(seconds=20)
    assert span.events_within(moment + timedelta(milliseconds=1), None)
    assert not span.events_within(moment + timedelta(milliseconds=1, microseconds=1), None)
    assert span.events_within(None, EPOCH + timedelta(seconds=10, microseconds=-999))
    assert not span.events_within(None, EPOCH + timedelta(seconds=10, milliseconds=-1))


def parse(lines: bytes) -> None:
    """Parse the lines of a part, as a reader does."""
    for span in time_parts.parse(gzip.compress(lines), ARCHIVE_ID, time_parts.FORMAT, msgspec.json.Decoder(Span)):
        check(span)


@pytest.mark.parametrize(
    "fields",
    [
        {"end": 0},
        {"end": 1, "sealed": (2, 1)},
        {"end": 1, "sealed": (1, 2), "event_times": (2, 1)},
        {"end": 1, "event_times": (1, 2)},
        {"end": 1, "manifests": ObjectRef("reports/index/x", 1, "00" * 32)},
        {"end": 1, "sealed": (1, 2), "batches": ObjectRef("reports/index/x", 1, "00" * 32)},
        {"end": 1, "first_offset": 2, "next_offset": 1},
        {"end": 1, "more": 1},
        {"end": -1},
        {"end": 1, "log": 5},
    ],
)
def test_a_span_of_another_form_is_refused(fields: dict[str, object]) -> None:
    """A fault in one line makes the whole object useless: what wrote it is not known."""
    line = msgspec.json.encode({"log": str(LOGS[0]), "first": 0} | fields)
    head = b'{"format":"custody/time-index/1","archive":"%b"}\n' % ARCHIVE_ID.encode()
    with pytest.raises(FormatError):
        parse(head + line + b"\n")


def test_an_object_that_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than the limit is inflated."""
    monkeypatch.setattr(time_parts, "INFLATED_LIMIT", 1_000)
    with pytest.raises(FormatError, match="1000 bytes"):
        parse(b"\n" * 2_000)


@given(st.lists(st.tuples(st.integers(0, 2), _bounds), min_size=1, max_size=20))
def test_a_span_is_made_of_all_its_statements_or_has_no_times(shapes: list[tuple[int, Bounds]]) -> None:
    """Slots that a later statement passes over belong to it. If one is missing, nothing is known of the span."""
    statements, sequence = [], 0
    for passed, (low, high) in shapes:
        statements.append(statement(sequence + passed, low, high, passed))
        sequence += passed + 1
    maker = SpanMaker("audit/0", 0, sequence)
    for each in statements:
        maker.add(each)
    made = maker.span()
    lows, highs = [low for _, (low, _) in shapes], [high for _, (_, high) in shapes]
    assert made.sealed == (min(highs), max(highs))
    assert made.event_times == (min(lows), max(highs))
    assert made.kafka_times == (1, 2)
    assert (made.first_offset, made.next_offset) == (statements[0].first_offset, statements[-1].next_offset)
    assert (made.events, made.stored, made.inflated) == (2 * len(shapes), 5 * len(shapes), 9 * len(shapes))
    for missing in range(len(statements)):
        maker = SpanMaker("audit/0", 0, sequence)
        for each in statements[:missing] + statements[missing + 1 :]:
            maker.add(each)
        assert maker.span() == Span(log="audit/0", first=0, end=sequence)


def test_threads_may_share_an_index() -> None:
    """A part is read once, and nobody sees half of what is in it."""
    many = [Log("audit", partition) for partition in range(50)]
    spans = [
        Span(log=str(log), first=first, end=first + 1, sealed=(0, 1), events=1) for log in many for first in range(20)
    ]
    read, at_once = 0, Barrier(8, timeout=60)

    def slowly(_: Part) -> Contents:
        nonlocal read
        read += 1
        sleep(0.05)
        return Contents(spans=spans)

    ref = ObjectRef("reports/index/part", 1, "00" * 32)
    index = TimeIndex([Part(ref, len(spans), list(runs_of(spans)))], slowly)

    def look(_: int) -> list[int]:
        at_once.wait()
        return [len(index.between(log, 0, 20)) for log in many]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(look, range(8))) == [[20] * len(many)] * 8
    assert (read, index.problems) == (1, [])
