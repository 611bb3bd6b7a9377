"""Results for people: readable at any width, nothing left out in silence, no number cut, nothing to obey in them."""

import csv
import io
import json
import re
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from custody.cli.rows import BLOCK, Rows, as_csv, as_grid, as_json, as_lines, as_markdown

NOW = datetime(2026, 5, 3, 14, 30, 5, 123456, tzinfo=UTC)
HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\nforged | `x` <b>"


def rows_of(names: Sequence[str], rows: Sequence[tuple[Any, ...]], limit: int | None = None) -> Rows:
    left = iter(rows)
    return Rows(names, lambda count: list(islice(left, count)), limit)


def grid(names: Sequence[str], rows: Sequence[tuple[Any, ...]], width: int | None, limit: int | None = None) -> str:
    return "".join(as_grid(rows_of(names, rows, limit), width))


WIDE = [f"column_{number}" for number in range(23)]


@pytest.mark.parametrize("width", [20, 40, 80, 120, 160, 300])
def test_columns_that_do_not_fit_are_named(width: int) -> None:
    """At each width, a mark stands where columns are left out, and the foot counts and names them."""
    shown = grid(WIDE, [tuple(f"value {number}" for number in range(23))], width)
    lines = shown.splitlines()
    head, foot = lines[0].split(), " ".join(" ".join(lines[3:]).split())
    assert max(map(cell_len, lines)) <= width
    kept = [name for name in WIDE if name in head]
    assert kept
    assert kept[0] == WIDE[0]
    if len(kept) == len(WIDE):
        assert foot == "1 row"
        return
    assert head.count("…") == 1
    assert f"23 columns ({len(kept)} shown)" in foot
    missing = re.search(r"Not shown: (.*?)\. --line", foot)
    assert missing
    assert set(kept) | set(missing[1].split(", ")) == set(WIDE)


def test_memory_does_not_grow_with_the_rows() -> None:
    """A grid of many rows in a pipe keeps one block of them, and prints all."""
    most = []
    for blocks in (2, 8):
        left = iter(range(blocks * BLOCK))
        rows = Rows(["number"], lambda count, left=left: [(n,) for n in islice(left, count)])  # type: ignore[misc]
        tracemalloc.start()
        try:
            assert sum(1 for _ in as_grid(rows, None)) == blocks * BLOCK + 3
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert most[1] < 1.5 * most[0]


@pytest.mark.parametrize("width", [None, 40])
def test_later_rows_widen_their_columns(width: int | None) -> None:
    """Numbers of later blocks are never cut. Text is cut on a screen alone, and the foot says so."""
    short, long = (1, "x", None), (10**20, "y" * 50, 7)
    lines = grid(["number", "text", "late"], [short] * BLOCK + [long, short], width).splitlines()
    assert lines[0].split() == ["number", "text", "late"]
    *_, before, first, last = (line for line in lines if line.split()[-1] in {"NULL", "7"})
    assert before.split() == last.split() == ["1", "x", "NULL"]
    assert first.split()[0] == str(10**20)
    assert ("y" * 50 in first) == (width is None)
    assert len(last.partition("x")[0]) == len(first.partition("y")[0])
    assert ("text that is cut at …" in lines[-1]) == (width is not None)


def test_text_is_cut_at_a_mark_and_numbers_never() -> None:
    """Long text ends with an ellipsis; integers, decimals and times keep each character, at 20 columns too."""
    values = ("x" * 200, 2**100, Decimal("-12345678901234567890.123"), NOW, "日本語" * 30)
    names = ["text", "huge", "decimal", "time", "wide"]
    whole = ["2026-05-03T14:30:05.123456Z", str(2**100), "-12345678901234567890.123"]
    for width in range(20, 200, 7):
        line = grid(names, [values], width).splitlines()[2]
        for number in re.findall(r"-?[0-9][0-9T:.Z-]+", line):
            assert number in whole
    assert all(number in grid(names, [values], 140) for number in whole)
    assert "xxx…" in grid(names, [values], 140)
    assert cell_len(grid(names, [values], 140).splitlines()[2]) <= 140
    assert grid(["n"], [(2**100,)], 20).splitlines()[2].strip() == str(2**100)


def test_a_pipe_has_all() -> None:
    """Without a width nothing is cut or left out."""
    shown = grid(WIDE, [tuple("x" * 300 for _ in WIDE)] * 100, None)
    assert "…" not in shown
    assert shown.count("x" * 300) == 2300
    assert shown.endswith("\n 100 rows\n")


def test_the_foot_counts_rows() -> None:
    """The first rows are shown, and the foot says of how many."""
    shown = grid(["n"], [(number,) for number in range(25_000)], 80, 3)
    assert shown.splitlines()[2:5] == [" 0", " 1", " 2"]
    assert "25,000 rows (3 shown). --limit 0 shows all rows." in shown
    assert grid(["n"], [], 80).splitlines()[-1] == " 0 rows"


def test_null_differs_from_text() -> None:
    """NULL is no text `-`, and no empty text, in each form."""
    rows = [(None, "-", "")]
    assert grid(["a", "b", "c"], rows, 80).splitlines()[2].split() == ["NULL", "-"]
    assert "".join(as_lines(rows_of(["a", "b", "c"], rows))).splitlines() == ["a = NULL", "b = -", "c = "]
    assert json.loads("".join(as_json(rows_of(["a", "b", "c"], rows), dict))) == {"a": None, "b": "-", "c": ""}


def test_lines_have_each_value_whole() -> None:
    """With a value a line, names stand in a column, rows are apart, and nothing is cut."""
    made = "".join(as_lines(rows_of(["a", "long"], [(1, "x" * 500), (2, "y")])))
    assert made == f"   a = 1\nlong = {'x' * 500}\n\n   a = 2\nlong = y\n"
    assert "".join(as_lines(rows_of(["a"], [(1,), (2,)], 1))).endswith("\n2 rows (1 shown)\n")
    assert "".join(as_lines(rows_of(["a"], []))) == "0 rows\n"


def test_markdown_shows_text_as_it_is() -> None:
    """Text is neither a cell's border nor markup; numbers are right-aligned."""
    made = "".join(as_markdown(rows_of(["a_b", "n"], [("x|y <b> `c` *d* _e_ [f](g) \\", 5)])))
    assert made.splitlines() == [
        "| a_b | n |",
        "|---|---:|",
        r"| x\|y \<b\> \`c\` \*d\* \_e\_ \[f\](g) \\ | 5 |",
    ]


def test_two_columns_of_one_name_are_two() -> None:
    """No column is lost because another has its name."""
    assert json.loads("".join(as_json(rows_of(["a", "a", "a_1"], [(1, 2, 3)]), dict))) == {"a": 1, "a_1": 2, "a_1_1": 3}


def test_json_has_no_numbers_that_json_lacks() -> None:
    """NaN and infinity are text."""
    assert json.loads("".join(as_json(rows_of(["a"], [(float("nan"),)]), dict))) == {"a": "nan"}


@given(st.lists(st.tuples(st.text(), st.none() | st.integers() | st.text()), max_size=5), st.integers(20, 100))
def test_nothing_hostile_gets_through(rows: list[tuple[Any, ...]], width: int) -> None:
    """In what people see, whatever the values are, each row is a line, and all is printable."""
    rows = [*rows, (HOSTILE, HOSTILE)]
    names = ["a", HOSTILE]
    for made in (
        "".join(as_grid(rows_of(names, rows), None)).splitlines()[2:-1],
        "".join(as_grid(rows_of(names, rows), width)).splitlines(),
        "".join(as_markdown(rows_of(names, rows))).splitlines()[2:],
        "".join(as_lines(rows_of(names, rows))).splitlines(),
    ):
        assert all(line.isprintable() for line in made)
    assert len("".join(as_markdown(rows_of(names, rows))).splitlines()) == len(rows) + 2


@pytest.mark.parametrize("spreadsheet", [False, True])
def test_no_cell_ends_its_row(spreadsheet: bool) -> None:
    """Whatever a producer puts into a value, each row is one row for every reader, and none begins a formula."""
    values = ["a\r=1+1", "a\n=1+1", "a\r\n=1+1", "\n=2", "\r=2", "\uff1d1+1", '"', ",", ""]
    text = "".join(as_csv(rows_of(["x"], [(value,) for value in values]), spreadsheet=spreadsheet))
    read = [row[0] if row else "" for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert [value.removeprefix("'") for value in read] == values
    assert not spreadsheet or not any(value.startswith(("=", "\n", "\r", "\uff1d")) for value in read)


def test_csv_has_no_python() -> None:
    """Lists, objects, truth and bytes are as in JSON."""
    row = ([1, None, "a"], {"a": None}, True, b"\xaa")
    text = "".join(as_csv(rows_of(["l", "s", "b", "x"], [row]), spreadsheet=False))
    assert list(csv.reader([text.splitlines()[1]])) == [['[1, null, "a"]', '{"a": null}', "true", "aa"]]


def test_no_column_hides_the_mark() -> None:
    """A column of the same name does not take the place of what is said of all rows."""
    (line,) = as_json(rows_of(["unverified"], [(1,)]), lambda: {"unverified": True})
    assert json.loads(line) == {"unverified": True}


def test_csv_is_exact() -> None:
    """Values are as they are, with their newlines; for a spreadsheet a formula is text."""
    rows = [("a\nb", "=1+1", None)]
    assert "".join(as_csv(rows_of(["x", "y", "z"], rows), spreadsheet=False)) == 'x,y,z\n"a\nb",=1+1,\n'
    assert "".join(as_csv(rows_of(["x", "y", "z"], rows), spreadsheet=True)) == 'x,y,z\n"a\nb",\'=1+1,\n'


def test_a_screen_with_ascii_only() -> None:
    """Where the encoding lacks our marks, others stand for them."""
    made = "".join(as_grid(rows_of(WIDE, [tuple("x" * 50 for _ in WIDE)]), 40, ascii_only=True))
    assert made.isascii()
    assert "~" in made
