"""The writer's verdict on values, many at once or each alone, held against the corpus and against the verifier."""

import ipaddress
import json
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from custody.format import events, lines
from custody.format.events import EVENT_TYPES, Checked, check, reason
from flows.operate.sample import invalid_values, sample_events
from tests.helpers.corpus import BASE, CASES, EVENT_LIMIT, EVENTS, TIME, Case, at, compact, nested, sized
from tests.helpers.own import SHAPES, own_event

GOOD = list(sample_events(400, 7, datetime(2026, 3, 1, 12, 59, 59, 900_000, tzinfo=UTC)))
OWN = [own_event(offset) for offset in range(len(SHAPES))]
SMALL_CASES = [case for case in CASES if len(case.value) < 20_000]


def agree(values: Sequence[bytes | None]) -> Checked:
    """Check values together, hold the verdict against the one on each alone, and against the verifier's."""
    checked = check(values)
    reasons = [reason(value) for value in values]
    assert checked.refused == tuple((index, why) for index, why in enumerate(reasons) if why is not None)
    taken = [value for value, why in zip(values, reasons, strict=True) if why is None and value is not None]
    assert checked.payload == b"".join(value.replace(b"\n", b" ") + b"\n" for value in taken)
    assert checked.events == len(taken)
    assert checked.types == Counter(json.loads(value, parse_int=len)["event_type"] for value in taken)
    for why in reasons:
        assert why is None or (why.strip() and why.encode())
    if taken:
        seen = lines.check(checked.payload)
        assert not seen.faults
        assert seen.types == checked.types
        assert seen.first is not None
        assert seen.last is not None
        (low, _), (high, beyond) = seen.first.microseconds, seen.last.microseconds
        assert checked.earliest == low
        assert checked.latest in {high, high + beyond}
        assert high <= checked.latest
    return checked


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus_alone(case: Case) -> None:
    """Each edge case gets the verdict that the corpus gives: the writer takes nothing that FORMAT.md calls no event."""
    checked = agree([case.value])
    assert case.writer_accepts in {None, checked.events == 1}, case.reason
    assert case.is_event or not checked.events


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_corpus_among_good_values(case: Case) -> None:
    """An edge case is judged alike wherever it stands among good events, and costs none of them their place."""
    alone = reason(case.value)
    for place in (0, 33, 64):
        values = [*GOOD[:place], case.value, *GOOD[place:64]]
        checked = check(values)
        assert checked.refused == (() if alone is None else ((place, alone),))
        kept = values if alone is None else values[:place] + values[place + 1 :]
        assert checked.payload == b"".join(value.replace(b"\n", b" ") + b"\n" for value in kept)


def test_whole_corpus_at_once() -> None:
    """The whole corpus in one run, in several orders, gets the verdicts of its values."""
    values: list[bytes | None] = [case.value for case in SMALL_CASES]
    for seed in range(3):
        random.Random(seed).shuffle(values)
        agree([*values, None, *GOOD[:7]])


def test_ordinary_events_are_all_taken() -> None:
    """Made-up events are taken, all of them; made-up mistakes are refused, each for a reason of its own."""
    assert agree(list(GOOD)).events == len(GOOD)
    reasons = [reason(value) for value in invalid_values()]
    assert None not in reasons
    assert len(set(reasons)) == len(reasons)


def _mutate(value: bytes, how: tuple[int, int, bytes]) -> bytes:
    place, cut, put = how
    place %= len(value) + 1
    return value[:place] + put + value[place + cut :]


pieces = st.sampled_from(
    [
        b"",
        b"\n",
        b"}",
        b"{",
        b'"',
        b"\\",
        b"\\u00",
        b",",
        b" ",
        b"\x00",
        b"\xff",
        b"\t",
        b"}\n{",
        b"}{",
        b"[" * 70,
        BASE,
    ]
)
mutated = st.builds(
    _mutate,
    st.sampled_from(GOOD + OWN + [compact(event) for event in EVENTS.values()]),
    st.tuples(st.integers(0, 2000), st.integers(0, 8), pieces | st.binary(max_size=4)),
)
values_strategy = st.lists(
    st.one_of(
        st.sampled_from(GOOD),
        st.sampled_from(OWN),
        mutated,
        st.sampled_from([case.value for case in SMALL_CASES]),
        st.binary(max_size=40),
        st.none(),
    ),
    max_size=40,
)


@given(values_strategy)
@settings(max_examples=500)
@example([])
@example([None])
@example([b""])
@example([BASE[:-1] + b',"a":"}', b'{","b":1}', BASE + BASE])
@example([BASE[:-1] + b',"a":{"b":1}', b"{}}", BASE + BASE])
@example([BASE + b"\n" + BASE, b"\n"])
def test_any_mixture(values: list[bytes | None]) -> None:
    """The verdict on many values is the verdict on each, whatever they are, in whatever order, and nothing raises."""
    agree(values)


def test_documents_that_cross_values() -> None:
    """A document over two values and two documents in one do not make up for each other."""
    head, tail = BASE[:-1] + b',"a":{"b":{}', b"}}"
    for values in (
        [head, tail, BASE + BASE],
        [BASE + b" " + BASE, head, tail],
        [BASE + b"\n" + BASE, b" "],
        [BASE[: len(BASE) // 2], BASE[len(BASE) // 2 :]],
        [BASE[:-1], b"}" + BASE],
        [BASE[:-1] + b',"a":"}', b'{"}', BASE],
    ):
        assert agree(list(values)).events <= 1
        assert agree([*GOOD[:50], *values, *GOOD[50:100]]).events in {100, 101}


def test_newlines() -> None:
    """A newline between tokens becomes a space; one inside a string makes the value no event."""
    between = json.dumps(EVENTS["config_change"], indent=1).encode()
    assert between.count(b"\n") > 5
    assert agree([BASE, between]).payload == BASE + b"\n" + between.replace(b"\n", b" ") + b"\n"
    inside = BASE[:-1] + b',"a":"x\ny"}'
    assert [index for index, _ in agree([BASE, inside, between]).refused] == [1]


@given(st.lists(st.tuples(st.sampled_from(GOOD[:40]), st.integers(0, 800)), min_size=1, max_size=12))
def test_newlines_anywhere(many: list[tuple[bytes, int]]) -> None:
    """With newlines in any of many values, in the first or in later ones, the verdict is that on each value alone."""
    agree([value[:place] + b"\n" + value[place:] if place <= len(value) else value for value, place in many])


def test_names_in_other_spellings() -> None:
    """A name that is spelt with escapes is that name: it may not stand twice, nor be missing."""
    twice = BASE[:-1] + rb',"event\u005ftype":"auth_attempt"}'
    assert [index for index, _ in agree([BASE, twice]).refused] == [1]
    assert "2 times" in str(reason(twice))
    once = BASE.replace(b"event_type", rb"event\u005ftype")
    assert agree([once, BASE, once]).events == 3


def test_limits() -> None:
    """The limits of size and depth hold to the byte and to the level, alone and among others."""
    for good, bad in ((sized(EVENT_LIMIT), sized(EVENT_LIMIT + 1)), (nested(64), nested(65))):
        assert agree([good]).events == 1
        assert [index for index, _ in agree([BASE, good, bad, BASE]).refused] == [2]


def _is_address(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text).packed)
    except ValueError:
        return False


NO_ADDRESSES = ["", "localhost", "192.0.2.256", "192.0.2.01", "192.0.2.1\n", "fe80::1%eth0", "1.2.3", "::1::", "\ud800"]


@given(st.lists(st.ip_addresses().map(str) | st.sampled_from(NO_ADDRESSES), max_size=12))
def test_addresses_at_once(texts: list[str]) -> None:
    """Many addresses are taken if each is one, whether or not they came before; what was refused stays refused."""
    for asked in (texts, texts, texts[:5]):
        assert events.are_addresses(asked) == all(map(_is_address, asked))


WRONG: dict[type, list[object]] = {
    str: [None, 1, True, [], {}, 1.5],
    int: [None, "1", True, [], {}, 1.5, -1],
    float: [None, "1", True, [], {}, -0.5],
    bool: [None, 1, 0, "true", []],
    list: [None, "x", 1, {}, True],
    dict: [None, "x", 1, [], True],
}
NULLABLE = {
    ("auth_attempt", "failure_reason"),
    ("auth_attempt", "key_version"),
    ("auth_attempt", "key_age_days"),
    ("authz_check", "field_name"),
    ("security_event", "action_taken"),
}
UNSIGNED = {"complexity", "execution_time", "result_rows"}
FIELDS = [(name, field) for name, fields in EVENTS.items() for field in fields]


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda part: part)
def test_each_field_of_each_type(name: str, field: str) -> None:
    """Each field of each type has to be there and of its type, null only where it may; the reason names the field."""
    event = EVENTS[name]
    missing = compact({key: value for key, value in event.items() if key != field})
    assert field in str(reason(missing))
    nullable = field == "api_key_id" or (name, field) in NULLABLE
    kind = {"field_name": str, "action_taken": str, "execution_time": float}.get(field, type(event[field]))
    for wrong in WRONG[kind]:
        value = compact(event | {field: wrong})
        if (wrong is None and nullable) or (wrong == -1 and field not in UNSIGNED):
            assert reason(value) is None
        else:
            why = str(reason(value))
            assert reason(value) is not None
            assert field in why, why
            agree([BASE, value, BASE])


def test_types_are_those_of_the_issue() -> None:
    """The six types of the corpus are the six that the writer knows."""
    assert set(EVENT_TYPES) == set(EVENTS)


def test_strict_writer() -> None:
    """A strict writer takes the same events but those of own types, and says which types it knows."""
    for case in CASES:
        strict, lenient = reason(case.value, own_types=False), reason(case.value)
        assert (strict != lenient) == case.own_type, case.name
        if case.own_type:
            assert strict is not None
            assert "is not one of query_executed, auth_attempt" in strict
            assert check([BASE, case.value, BASE], own_types=False).refused == ((1, strict),)
            assert check([BASE, case.value, BASE]).events == 3


def test_own_types_among_the_six() -> None:
    """Events of own types cost those of the six nothing of their rules, in whatever mixture they come."""
    own = compact({"event_type": "user_login", "timestamp": TIME, "user": "ada", "client_ip": 17})
    wrong = compact(EVENTS["auth_attempt"] | {"status": "maybe"})
    no_address = BASE.replace(b"192.0.2.17", b"nowhere")
    assert no_address != BASE
    assert agree([own] * 50).types == {"user_login": 50}
    assert agree([own, BASE] * 50).types == {"user_login": 50, "query_executed": 50}
    for bad in (wrong, no_address, own.replace(b"user_login", b""), own.replace(TIME.encode(), b"now"), b"{}", b"x"):
        values = [own, BASE] * 20
        values[17] = bad
        assert [index for index, _ in agree(values).refused] == [17]


def test_own_types_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with own types among the six is checked together, and no value alone."""
    monkeypatch.setattr(events, "_read", None)
    own = [value.replace(b'"event_type":"', b'"event_type":"own_') for value in GOOD]
    assert check(own).events == len(own)
    mixed = [value for pair in zip(own, GOOD, strict=True) for value in pair]
    assert check(mixed, lines=True).lines == mixed


# --- bounds of time

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

stamps = st.builds(
    lambda moment, digits, offset: (moment, digits, offset),
    st.integers(86_400, 253_402_214_400).map(lambda seconds: EPOCH + timedelta(seconds=seconds)),
    st.text("0123456789", max_size=12),
    st.one_of(st.none(), st.integers(-23 * 60 - 59, 23 * 60 + 59)),
)


def _written(moment: datetime, digits: str, offset: int | None) -> tuple[str, Fraction]:
    """Return a time as RFC 3339 text, and exactly, in µs since 1970."""
    local = moment + timedelta(minutes=offset or 0)
    zone = "Z" if offset is None else f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    text = f"{local:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + (f".{digits}" if digits else "") + zone
    seconds = (moment - EPOCH) // timedelta(seconds=1)
    return text, Fraction(seconds) * 1_000_000 + Fraction(int(digits or 0), 10 ** len(digits)) * 1_000_000


@given(stamps)
def test_time_to_the_microsecond(stamp: tuple[datetime, str, int | None]) -> None:
    """The bounds of a time are the microseconds around it, and the time itself where it is a whole one."""
    text, exact = _written(*stamp)
    checked = check([at(text)])
    assert (checked.earliest, checked.latest) == (exact.__floor__(), exact.__ceil__())


@given(st.lists(stamps, min_size=1, max_size=12))
@settings(max_examples=60)
def test_bounds_of_many_times(many: list[tuple[datetime, str, int | None]]) -> None:
    """The bounds of many events' times are those of the outermost, however each is written."""
    written = [_written(*stamp) for stamp in many]
    checked = agree([at(text) for text, _ in written])
    assert checked.earliest == min(exact for _, exact in written).__floor__()
    assert checked.latest == max(exact for _, exact in written).__ceil__()


@given(st.lists(st.integers(0, 3_600_000_000 - 1), min_size=1, max_size=30), st.sampled_from([0, 3, 6, 9]))
@settings(max_examples=60)
def test_bounds_of_times_written_alike(micros: list[int], digits: int) -> None:
    """Times of one hour in one layout, as applications write them, have exact bounds too."""
    begin = datetime(2026, 3, 1, 12, tzinfo=UTC)
    found = []
    for micro in micros:
        fraction = f"{micro % 1_000_000:06}123"[:digits]
        found.append(_written(begin + timedelta(seconds=micro // 1_000_000), fraction, None))
    checked = agree([at(text) for text, _ in found])
    assert checked.earliest == min(exact for _, exact in found).__floor__()
    assert checked.latest == max(exact for _, exact in found).__ceil__()


def test_minutes_and_seconds_beyond_59_among_times_written_alike() -> None:
    """An impossible time between two possible ones of the same hour is found, though neither outermost."""
    for bad in ("2026-03-01T12:34:60.000000Z", "2026-03-01T12:99:30.000000Z", "2026-03-01T12:34:56.00000:Z"):
        values = [at("2026-03-01T12:00:00.000000Z"), at(bad), at("2026-03-01T12:59:59.000000Z"), at(TIME)]
        assert [index for index, _ in agree(values).refused] == [1]
