"""The view `sources`: what was lost and repeated, exactly, whatever a producer wrote into these fields."""

import json
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.format.limits import INT_MAX
from custody.query import sources, tables
from tests.helpers.emitted import SOURCE, emitted, life
from tests.helpers.querying import ask, audit, row
from tests.helpers.sample import Growing

NUMBERS = st.one_of(
    st.integers(1, 80),
    st.integers(INT_MAX - 40, INT_MAX),
    st.integers(1, INT_MAX),
    st.sampled_from([None, 0, -1, -INT_MAX - 1]),
)
COUNTED = "SELECT source, first, last, events, missing, holes, repeats FROM sources ORDER BY source"


def test_the_counts_are_those_of_a_list() -> None:
    """Whatever numbers there are, the view has what counting them one by one gives."""
    # Hypothesis keeps what a fixture gives until the process ends, which DuckDB complains about.
    with duckdb.connect(config={"threads": 1}) as table:
        table.execute("CREATE TABLE events (source VARCHAR, source_seq BIGINT, event_type VARCHAR, time TIMESTAMP)")
        table.execute(sources.VIEW)

        @given(st.lists(st.tuples(st.sampled_from("abc"), NUMBERS), max_size=60))
        def check(pairs: list[tuple[str, int | None]]) -> None:
            columns = [[source for source, _ in pairs], [number for _, number in pairs]]
            table.execute("DELETE FROM events")
            table.execute("INSERT INTO events SELECT unnest($1::VARCHAR[]), unnest($2::BIGINT[]), 'x', NULL", columns)
            wanted = [counted(source, pairs) for source in sorted({*dict(pairs)})]
            assert table.execute(COUNTED).fetchall() == wanted

        check()


def counted(source: str, pairs: list[tuple[str, int | None]]) -> tuple[Any, ...]:
    """Return the row of a source, counted one by one."""
    events = [number if number and number > 0 else None for name, number in pairs if name == source]
    numbers = sorted(number for number in set(events) if number is not None)
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    missing, holes = sum(step - 1 for step in steps), sum(step > 1 for step in steps)
    repeats = sum(many - 1 for number, many in Counter(events).items() if number is not None)
    return source, min(numbers, default=None), max(numbers, default=None), len(events), missing, holes, repeats


def test_a_life_is_a_row(tmp_path: Path) -> None:
    """A source has its markers' times; one that did not stop is silent since its last event. Tables change nothing."""
    lines = [*life(10), *life(10, "shop/web-2/1-1", stopped=False)]
    del lines[14:16]
    growing = Growing(tmp_path)
    growing.append(1, lines.__getitem__, each=len(lines))
    wanted = [
        (SOURCE, 1, 10, 10, 0, 0, 0, True, True, True),
        ("shop/web-2/1-1", 1, 10, 8, 2, 1, 0, True, False, False),
    ]
    sql = (
        "SELECT source, first, last, events, missing, holes, repeats, started = first_time, stopped IS NOT NULL,"
        " silent_since IS NULL FROM sources ORDER BY source"
    )
    assert ask(growing.folder, sql) == wanted
    audit(growing.folder, growing.keyring)
    assert ask(growing.folder, sql) == wanted
    assert ask(growing.folder, "SELECT count(DISTINCT event_id) FROM events") == [(18,)]


HOSTILE: list[Any] = [
    None, 5, -1, 0, 1.5, 1e300, True, "5", "", "x" * 300, "\x00", "half \ud800", "a\nb", [1], {"ip": "192.0.2.1"}, [],
    INT_MAX, INT_MAX + 1, -INT_MAX - 1, 10**4000, "'; DROP TABLE events; --",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["query_executed", "own"])
def test_no_value_is_an_error(kind: str) -> None:
    """Any JSON under these names makes no error, no number that it is not, and hides no other field."""
    for value in HOSTILE:
        for name in ("source", "source_seq", "event_id"):
            line = json.dumps({**json.loads(emitted(7, kind=kind)), name: value}).encode()
            made = row(line)
            assert (made["event_type"], made["time"].year) == (kind, datetime.now(UTC).year)
            is_text = isinstance(value, str) and value and len(value) <= 256
            if name == "source":
                assert (made["source"] is not None) == bool(is_text)
            if name == "source_seq":
                assert made["source_seq"] == (value if type(value) is int and 0 < value <= INT_MAX else None)
            # DuckDB takes half a character for broken JSON: such an event is kept whole, too.
            assert (made["event"] is None) == (kind == "query_executed" and value != "half \ud800")


def test_a_huge_source_is_no_source(tmp_path: Path) -> None:
    """A source of 1 MiB, and numbers at both ends, are answered as quickly as any others."""
    lines = [emitted(number) for number in (1, INT_MAX, INT_MAX, 3)] + [emitted(1, "x" * 1_000_000)]
    growing = Growing(tmp_path)
    growing.append(1, lines.__getitem__, each=len(lines))
    assert ask(growing.folder, COUNTED) == [(SOURCE, 1, INT_MAX, 4, INT_MAX - 3, 2, 1)]


def test_tables_without_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that were made before there were the columns are read beside others: there they are NULL."""
    new = {"event_id", "source", "source_seq", "operation_type"}
    growing = Growing(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tables, "SCHEMA", pa.schema([field for field in tables.SCHEMA if field.name not in new]))
        for kind, names in tables._KINDS.items():
            patched.setitem(tables._KINDS, kind, [name for name in names if name not in new])
        growing.append(1, life(5).__getitem__, each=5)
        audit(growing.folder, growing.keyring)
    growing.append(1, lambda offset: emitted(offset + 1), each=5)
    assert ask(growing.folder, COUNTED) == [(SOURCE, 6, 10, 5, 0, 0, 0)]
