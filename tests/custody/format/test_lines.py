"""What is an event, to the verifier: the corpus, and that both paths give one verdict."""

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.format import lines
from tests.helpers.corpus import CASES, EVENTS, TIME, Case, at, compact, nested, sized

GOOD = [compact(event) for event in EVENTS.values()]


def slow(payload: bytes) -> tuple[int, Counter[str], object, object, list[tuple[int, int]]]:
    """The verdict of the slow path alone, line by line."""
    types: Counter[str] = Counter()
    times = []
    faults = []
    byte = 0
    parts = payload.split(b"\n")
    whole = parts.pop() == b""
    if not whole:
        parts = payload.split(b"\n")
    for number, line in enumerate(parts):
        try:
            type_, time = lines.check_line(line)
            types[type_] += 1
            times.append(time)
            if not whole and number == len(parts) - 1:
                faults.append((number, byte))
        except FormatError:
            faults.append((number, byte))
        byte += len(line) + 1
    return len(parts), types, min(times, default=None), max(times, default=None), faults


def both(payload: bytes) -> lines.Lines:
    """Check a payload and hold the verdict against the slow path's."""
    found = lines.check(payload)
    got = (found.count, found.types, found.first, found.last, [(fault.line, fault.byte) for fault in found.faults])
    assert got == slow(payload)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus_alone(case: Case) -> None:
    """Each edge case gets FORMAT.md's verdict on the fast path and on the slow one."""
    found = both(case.line + b"\n")
    assert (not found.faults) is case.line_is_event, case.reason


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus_among_good_lines(case: Case) -> None:
    """An edge case is found, and it alone, among good events, wherever it stands."""
    around = GOOD * 15
    for place in (0, 41, len(around)):
        batch = [*around[:place], case.line, *around[place:]]
        found = both(b"".join(line + b"\n" for line in batch))
        assert found.count == len(batch)
        assert [fault.line for fault in found.faults] == ([] if case.line_is_event else [place])


def test_whole_corpus_as_one_batch() -> None:
    """Every faulty line is reported, with its number, place and a reason a person can read."""
    payload = b"".join(case.line + b"\n" for case in CASES)
    found = both(payload)
    assert [fault.line for fault in found.faults] == [i for i, case in enumerate(CASES) if not case.line_is_event]
    for fault in found.faults:
        assert payload[fault.byte :].startswith(CASES[fault.line].line + b"\n")
        assert 5 < len(fault.reason) < 200
        fault.reason.encode()


def test_documents_that_cross_lines() -> None:
    """Two documents on one line and one over two lines do not make up for each other."""
    head, tail = GOOD[0][:-1] + b',"a":{"b":{}', b"}}"
    for payload in (
        GOOD[1] + GOOD[2] + b"\n" + head + b"\n" + tail + b"\n",
        head + b"\n" + tail + b"\n" + GOOD[1] + GOOD[2] + b"\n",
        GOOD[1] + b"\n\n" + GOOD[2] + GOOD[3] + b"\n",
    ):
        assert len(both(payload).faults) >= 2


@pytest.mark.parametrize("payload", [b"", b"\n", b"\n\n", b"{}", b" ", b"\r\n"])
def test_trifles(payload: bytes) -> None:
    """Payloads of nearly nothing are judged, not stumbled over."""
    both(payload)


def test_missing_last_newline() -> None:
    """A last event without its newline counts as an event and is a fault."""
    found = both(GOOD[0] + b"\n" + GOOD[1])
    assert found.count == 2
    assert sum(found.types.values()) == 2
    assert [(fault.line, fault.byte) for fault in found.faults] == [(1, len(GOOD[0]) + 1)]
    assert "newline" in found.faults[0].reason


def test_bound_on_lines() -> None:
    """A batch of millions of lines is counted, and not read."""
    found = lines.check(b"\n" * 5_000_000)
    assert found.count == 5_000_000
    assert len(found.faults) == 1


def test_hot_path_takes_ordinary_batches() -> None:
    """Ordinary events, and every way to write times and text that is common, stay on the fast path."""
    start = datetime(2026, 3, 1, 23, 59, 30, tzinfo=UTC)
    for form in ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f+02:00"):
        batch = [
            compact(EVENTS[name] | {"timestamp": (start + timedelta(seconds=i)).strftime(form), "note": f"é \\ \n {i}"})
            for i in range(200)
            for name in EVENTS
        ]
        found = lines._fast(b"".join(line + b"\n" for line in batch))
        assert found is not None
        assert found.types == dict.fromkeys(EVENTS, 200)


@pytest.mark.parametrize("text", [TIME, *(f"2026-03-01T12:34:56.{'1' * n}Z" for n in (1, 3, 9, 20))])
def test_time_is_exact(text: str) -> None:
    """Fractions of any length compare exactly."""
    time = lines.parse_time(text)
    assert time is not None
    longer = lines.parse_time(text[:-1] + "01Z")
    assert longer is not None
    assert time < longer
    assert lines.parse_time(text[:-1] + "000Z") == time


@given(st.integers(86_400, 253_402_200_000), st.integers(0, 999_999), st.integers(-1439, 1439))
def test_time_agrees_with_datetime(seconds: int, micros: int, offset: int) -> None:
    """A time with an offset is the moment that the standard library says it is."""
    moment = datetime(1970, 1, 1) + timedelta(seconds=seconds, microseconds=micros)  # noqa: DTZ001
    sign = "-" if offset < 0 else "+"
    text = f"{moment.isoformat(timespec='microseconds')}{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    time = lines.parse_time(text)
    assert time is not None
    expected = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert time.microseconds == (expected // timedelta(microseconds=1), False)


times = st.builds(
    "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{}{}".format,
    st.sampled_from([1969, 1970, 2024, 2026, 9999]),
    st.integers(0, 13),
    st.integers(0, 32),
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from(["", ".5", ".123", ".000", ".1234567891", "."]),
    st.sampled_from(["Z", "Z", "+00:00", "-23:59", "+24:00", "z", ""]),
)
near_times = st.builds(
    "2026-03-01T{:02}:{:02}:{:02}{}{}".format,
    st.sampled_from([12, 12, 12, 13, 23, 24]),
    st.sampled_from([0, 10, 59, 59, 60]),
    st.integers(0, 59),
    st.sampled_from([".123", ".999"]),
    st.sampled_from(["Z", "Z", "Z", "+01:00"]),
)


@given(st.lists(times | near_times, min_size=1, max_size=12))
@example(["2026-03-01T12:00:00Z2", "026-03-01T12:00:00Z"])
@example(["2026-03-01T12:00:00Z\n2026-03-01T12:00:00Z", ""])
def test_times_of_a_batch(texts: list[str]) -> None:
    """Bounds of a batch's times are those of its times one by one."""
    each = [lines.parse_time(text) for text in texts]
    expected = None if None in each else (min(filter(None, each)), max(filter(None, each)))
    assert lines.time_bounds(texts) == expected


keys = st.sampled_from(["a", "event_type", "timestamp"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A corpus case or a good event with some of its bytes changed, cut, doubled, or others put between."""
    value = bytearray(draw(st.sampled_from([case.line for case in CASES if len(case.line) < 1000])))
    for _ in range(draw(st.integers(0, 3))):
        if not value:
            break
        place = draw(st.integers(0, len(value) - 1))
        piece = draw(
            st.sampled_from(
                [b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b".", b"e", b"1", b" ", b"\t", b"\r",
                 b"\\u0065", b"\\ud800", b"\\udc00", b"\\u00e9", b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xc3\xa9", b"\n",
                 b'"event_type"', b'"timestamp"', b"null", b"true", b"NaN", b"\xef\xbb\xbf", b'{"a":', b"[[", b"01"]
            ) | st.binary(max_size=2)
        )  # fmt: skip
        value[place : place + draw(st.integers(0, 2))] = piece
    return bytes(value)


@settings(max_examples=1500, deadline=None)
@given(st.lists(mutated(), min_size=1, max_size=4))
def test_both_paths_agree_on_broken_lines(batch: list[bytes]) -> None:
    """Whatever is done to a batch, the fast path and the slow one say the same."""
    both(b"".join(line + b"\n" for line in batch))


@settings(max_examples=300, deadline=None)
@given(json_values, st.sampled_from(list(EVENTS)))
def test_both_paths_agree_on_any_field(value: object, type_: str) -> None:
    """Whatever JSON stands in another field (NaN included, which Python writes), both paths say the same."""
    both(json.dumps(EVENTS[type_] | {"extra": value}).encode() + b"\n")


_TOKENS = {
    "flat": ["{", '"event_type"', ":", '"a"', ",", '"timestamp"', ":", f'"{TIME}"', "}"],
    "brackets in strings": [
        *("{", '"event_type"', ":", '"}"', ",", '"timestamp"', ":", f'"{TIME}"', ",", '"{"', ":", '"}"', ",", '"}"'),
        *(":", '"{"', "}"),
    ],
    "nested": [
        *("{", '"a"', ":", "[", "{", "}", ",", "{", '"{"', ":", "[", "]", "}", ",", '"}"', ",", '"{"', "]", ","),
        *('"event_type"', ":", '"a"', ",", '"timestamp"', ":", f'"{TIME}"', ",", '"b"', ":", "{", "}", "}"),
    ],
    "a key twice": [
        *("{", '"event_type"', ":", '"a"', ",", '"timestamp"', ":", f'"{TIME}"', ",", '"event_type"', ":", '"b"', "}"),
    ],
    "a key within": [
        *("{", '"event_type"', ":", '"a"', ",", '"timestamp"', ":", f'"{TIME}"', ",", '"a"', ":", "{"),
        *('"timestamp"', ":", "1", ",", '"event_type"', ":", "null", "}", "}"),
    ],
    "keys that read alike": [
        *("{", '"survey_type"', ":", "1", ",", '"memory_map"', ":", "2", ",", '"mmp:vyp:"', ":", '"mmp:vyp:"', ","),
        *('"event_type"', ":", '"a"', ",", '"timestamp"', ":", f'"{TIME}"', "}"),
    ],
    "no type": ["{", '"timestamp"', ":", f'"{TIME}"', ",", '"a"', ":", '"event_type"', "}"],
    "nothing": [],
}


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_both_paths_agree_on_lines_broken_anywhere(data: st.DataObject) -> None:
    """Wherever newlines and white space stand between tokens, each line is judged for itself.

    There are mostly as many newlines as documents, so that lines that are shared could make up for those crossed.
    """
    names = data.draw(st.lists(st.sampled_from(list(_TOKENS)), min_size=1, max_size=5))
    tokens = [token for name in names for token in _TOKENS[name]]
    ends = [sum(len(_TOKENS[name]) for name in names[: place + 1]) for place in range(len(names))]
    gaps = data.draw(st.lists(st.sampled_from(ends) | st.integers(0, len(tokens)), max_size=len(names) + 1))
    if data.draw(st.booleans()):
        gaps = [*ends[: -len(gaps) or None], *gaps]
    space = data.draw(st.sampled_from(["", "", " ", "\t", "\r"]))
    text = ""
    for place in range(len(tokens) + 1):
        text += "\n" * gaps.count(place) + (space + tokens[place] if place < len(tokens) else "")
    both(text.encode() + b"\n" * data.draw(st.integers(0, 1)))


@pytest.mark.parametrize("name", [name for name in _TOKENS if name not in {"a key twice", "no type", "nothing"}])
def test_unusual_events_are_events(name: str) -> None:
    """Brackets and keys within strings, and keys that resemble ours, are no fault, however many lines hold them."""
    line = "".join(_TOKENS[name]).encode() + b"\n"
    assert not both(line * 100 + GOOD[0] + b"\n").faults


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_both_paths_agree_on_noise(payload: bytes) -> None:
    """Bytes of any kind are judged, and never raise."""
    both(payload)


def test_long_batches_keep_the_limit() -> None:
    """A line over 1 MiB is found in a batch of many."""
    rows = [sized(1_048_576), nested(64), sized(1_048_577), at(TIME)]
    found = both(b"".join(row + b"\n" for row in rows))
    assert [fault.line for fault in found.faults] == [2]


def test_shuffled_corpus() -> None:
    """The verdict on a line does not depend on its neighbours."""
    generator = random.Random(7)
    cases = [case for case in CASES if len(case.line) < 10_000]
    for _ in range(20):
        some = generator.sample(cases, 40)
        found = both(b"".join(case.line + b"\n" for case in some))
        assert [fault.line for fault in found.faults] == [i for i, case in enumerate(some) if not case.line_is_event]
