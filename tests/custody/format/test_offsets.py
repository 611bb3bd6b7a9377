"""Offsets and lines: whoever asks, and in whichever direction, gets the same answer, at a bounded cost."""

from itertools import islice
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.archive.reader import read_manifest
from custody.format import limits
from custody.format.manifest import Batch, Range, Statement, Unreadable
from custody.format.offsets import (
    Measure,
    kind_of,
    line_of,
    line_offsets,
    offset_of,
    offsets_of,
    reason_of,
    unlined_ranges,
)
from tests.helpers.leafy import Leafy
from tests.helpers.reading import anything


@pytest.fixture
def statement(tmp_path: Path) -> Statement:
    """Return a statement that has an offset of each kind."""
    made = Leafy(tmp_path / "of")
    made.append(range(10))
    unreadable = [Unreadable(14, 15, "of no known codec")]
    made.append([10, 13, 15], skipped=[(11, 12)], quarantined=[(12, 13)], unreadable=unreadable)
    return read_manifest(made.store, made.log, 1, anything).statement


def test_what_a_statement_says_of_an_offset(statement: Statement) -> None:
    """Each offset is one of five things, or nothing; lines leave out what has none."""
    kinds = {offset: kind_of(statement, offset) for offset in range(9, 17)}
    assert kinds[9] is kinds[16] is None
    assert [kinds[offset] for offset in range(10, 16)] == [
        "event",
        "skipped",
        "quarantined",
        "event",
        "unreadable",
        "event",
    ]
    places = [line_of(statement, offset) for offset in (10, 13, 15)]
    assert [place and place[1] for place in places] == [0, 1, 2]
    assert line_of(statement, 12) is None
    assert reason_of(statement, 12) == "the record is no event, and is in quarantine"
    assert reason_of(statement, 17) == "the statement does not account for it"


def test_both_directions(statement: Statement) -> None:
    """Lines lead to offsets as offsets lead to lines."""
    (batch,) = statement.batches
    assert list(offsets_of(statement, batch)) == [10, 13, 15]
    unlined = unlined_ranges(statement)
    assert unlined == [(11, 12), (12, 13), (14, 15)]
    assert [offset_of(batch, unlined, line) for line in range(3)] == [10, 13, 15]
    # A line too many has an offset too: a finding names it.
    assert offset_of(batch, unlined, 4) == 17


@st.composite
def _accounts(draw: st.DrawFn) -> tuple[list[Range], set[int], int]:
    """Draw sorted, disjoint ranges, what they hold, and an offset that none holds."""
    edges = sorted(draw(st.sets(st.integers(0, 60), max_size=16)))
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    inside = {offset for start, end in ranges for offset in range(start, end)}
    first = draw(st.integers(0, 70).filter(lambda offset: offset not in inside))
    return ranges, inside, first


def _batch(first: int, end: int, events: int) -> Batch:
    time = "2026-03-01T00:00:00.000000Z"
    return Batch(0, first, end, events, 0, 1, 1, "0" * 64, time, time, None, None)


@given(_accounts())
def test_any_ranges(account: tuple[list[Range], set[int], int]) -> None:
    """However the ranges lie, lines take the offsets outside of them in order, and spans are measured right."""
    ranges, inside, first = account
    expected = [offset for offset in range(first, first + 200) if offset not in inside][:20]
    batch = _batch(first, expected[-1] + 1, 20)
    assert list(islice(line_offsets(batch, ranges), 20)) == expected
    assert [offset_of(batch, ranges, line) for line in range(20)] == expected
    measure = Measure(ranges)
    for end in range(first, 70):
        assert measure(first, end) == len(inside & set(range(first, end)))


def test_nothing_is_as_large_as_a_claim(statement: Statement) -> None:
    """A batch that claims all offsets there are costs no more than the largest one that may be."""
    claimed = msgspec.structs.replace(statement, skipped=[(11, 12)], batches=[_batch(10, 2**63 - 1, 3)])
    (batch,) = claimed.batches
    assert len(offsets_of(claimed, batch)) == limits.BATCH_EVENTS + 1
    assert line_of(claimed, 2**63 - 2) is not None
