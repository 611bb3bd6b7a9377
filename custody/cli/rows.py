"""The rows of a query as text: a grid or lines for people, Markdown, CSV, and lines of JSON.

The grid is like DuckDB's own, which is never narrower than 80 columns, and breaks numbers. Here:

- Columns that do not fit are left out: an extra column `…` marks where, and the foot names them.
- Text is cut at `…`. Numbers and times are never cut.
- The foot says how many rows and columns there are, and how many are shown.
- NULL is shown as `NULL`, and text as it is. Its control characters are escaped, so it cannot add a line or a colour.
"""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, islice
from typing import Any

from rich.cells import cell_len, set_cell_size

from custody.errors import counted, escape

Row = tuple[Any, ...]

BLOCK = 10_000
"""Rows that are fetched together, and are in memory at once."""
_LEAST = 12
"""Characters that a cut text has at least."""
_GAP = "  "
_WHOLE = (int, float, Decimal, date, time, timedelta)
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BACKSLASHED = r"\\\g<0>"


class Rows:
    """The rows of a result, as they are fetched: the first ones, and how many there are.

    Attributes:
        names: the columns. A name that comes again gets a number.
        shown: how many rows were given so far.
        total: how many rows there are, as far as they were fetched.
    """

    def __init__(self, names: Sequence[str], fetch: Callable[[int], list[Row]], limit: int | None = None) -> None:
        """Set up.

        Args:
            names: the columns.
            fetch: returns the next rows, at most as many as it is told; none at the end.
            limit: how many rows to give; None for all.
        """
        self.names = list(_distinct(names))
        self._fetch, self._limit = fetch, limit
        self.shown = self.total = 0

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows up to the limit. Count the others."""
        while rows := self._fetch(BLOCK):
            self.total += len(rows)
            given = rows if self._limit is None else rows[: max(0, self._limit - self.shown)]
            self.shown += len(given)
            yield from given

    @property
    def summary(self) -> str:
        """How many rows there are, and how many are shown."""
        return _count(self.total, self.shown, "row")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How text begins that a spreadsheet may run as a formula; the last four are the full-width forms of the first."""


def _distinct(names: Sequence[str]) -> Iterator[str]:
    used: set[str] = set()
    for name in names:
        number, made = 0, name
        while made in used:
            number += 1
            made = f"{name}_{number}"
        used.add(made)
        yield made


def _count(total: int, shown: int, noun: str) -> str:
    return f"{counted(total, noun)}{f' ({shown:,} shown)' if shown < total else ''}"


def plain(value: Any) -> Any:
    """Return a value as JSON has it: bytes in hex, times in RFC 3339."""
    if isinstance(value, datetime):
        # Times without a zone are UTC.
        return (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no such numbers.
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _shown(value: Any) -> str:
    """Return a value for people, on one line."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    made = plain(value)
    return escape(json.dumps(made, ensure_ascii=False) if isinstance(made, list | dict) else str(made))


def as_json(rows: Rows, mark: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """Yield each row as a line of JSON, with marked members before the columns. No column takes their place.

    What is marked is asked for after each row was fetched: rows are read while they are written.
    """
    for row in rows:
        marked = mark()
        yield json.dumps(marked | dict(zip(rows.names, map(plain, row), strict=True)) | marked) + "\n"


def as_csv(rows: Rows, *, spreadsheet: bool) -> Iterator[str]:
    """Yield the names and the rows as CSV.

    Args:
        rows: the rows.
        spreadsheet: whether to put a ' before text that a spreadsheet would run as a formula.
    """
    text = io.StringIO()
    # A cell is quoted if it has a character of the line's end. A bare CR ends a line for many readers, too.
    writer = csv.writer(text, lineterminator="\r\n")

    def line(cells: Sequence[Any]) -> str:
        text.seek(0)
        text.truncate()
        writer.writerow(map(_no_formula, cells) if spreadsheet else cells)
        return text.getvalue().removesuffix("\r\n") + "\n"

    yield line(rows.names)
    for row in rows:
        yield line([_cell(value) for value in row])


def _cell(value: Any) -> Any:
    """Return a value as CSV has it: what is no number and no text is as in JSON."""
    made = plain(value)
    return json.dumps(made, ensure_ascii=False) if isinstance(made, bool | list | dict) else made


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def as_markdown(rows: Rows) -> Iterator[str]:
    """Yield a table in GitHub's Markdown, then how many rows are shown if not all are."""
    iterator = iter(rows)
    first = list(islice(iterator, 1))
    numeric = [_is_number(value) for value in first[0]] if first else [False] * len(rows.names)
    yield _markdown_line(map(escape, rows.names))
    yield f"|{'|'.join('---:' if number else '---' for number in numeric)}|\n"
    for row in chain(first, iterator):
        yield _markdown_line(map(_shown, row))
    if rows.shown < rows.total:
        yield f"\n{rows.summary}\n"


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_MARKDOWN.sub(_BACKSLASHED, cell) for cell in cells)} |\n"


def as_lines(rows: Rows) -> Iterator[str]:
    """Yield one value a line, as DuckDB's `.mode line`, with a blank line between rows."""
    names = [escape(name) for name in rows.names]
    widest = max(map(cell_len, names), default=0)
    labels = [" " * (widest - cell_len(name)) + name for name in names]
    for number, row in enumerate(rows):
        lines = [f"{label} = {_shown(value)}\n" for label, value in zip(labels, row, strict=True)]
        yield "".join(["\n" if number else "", *lines])
    if rows.shown < rows.total or not rows.total:
        yield ("\n" if rows.shown else "") + rows.summary + "\n"


# --- the grid


def as_grid(rows: Rows, width: int | None, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield a grid of the rows, then how many rows and columns there are.

    The first `BLOCK` rows decide which columns fit and how wide they are. Later rows are fetched and printed in blocks:
    where they have wider numbers, or nothing is cut, their columns are wider from that block on.

    Args:
        rows: the rows. A block of those that are shown is kept in memory.
        width: of the screen; None for a file or a pipe, where nothing is left out or cut.
        ascii_only: whether the screen has only ASCII.
    """
    mark, rule = ("~", "-") if ascii_only else ("…", "─")
    iterator = iter(rows)
    block = list(islice(iterator, BLOCK))
    columns = [_Column(escape(name), mark, index) for index, name in enumerate(rows.names)]
    for column in columns:
        column.take(block)
    shown = _fit(columns, width)
    if len(shown) < len(columns):
        # It stands where columns are left out.
        gap = next(index for index, column in enumerate(columns) if column not in shown)
        shown.insert(gap, _Column(mark, mark))
    yield _line(column.heading for column in shown)
    yield _line(rule * column.width for column in shown)
    while block:
        for number in range(len(block)):
            yield _line(column.cell(number) for column in shown)
        block = list(islice(iterator, BLOCK))
        for column in shown:
            column.take(block)
            column.widen(all_cells=width is None)
    yield from _foot(rows, columns, shown, width, mark)


def _line(cells: Iterable[str]) -> str:
    return f" {_GAP.join(cells)}".rstrip() + "\n"


class _Column:
    """A column of the grid.

    Attributes:
        name: its name.
        natural: the width at which nothing is cut.
        least: the width that it needs.
        width: the width that it gets.
    """

    def __init__(self, name: str, mark: str, index: int | None = None) -> None:
        """Set up.

        Args:
            name: its name.
            mark: what stands where text is cut.
            index: where its values are in a row; None if each of its cells is the mark.
        """
        self.name, self._mark, self._index = name, mark, index
        self.natural = self.width = cell_len(name)
        self.least = min(self.natural, _LEAST)
        self._cells: list[str] = []
        self._right = self._whole = False

    def take(self, rows: Sequence[Row]) -> None:
        """Take the next rows in place of those before."""
        if self._index is None or not rows:
            return
        values = [row[self._index] for row in rows]
        self._cells = [_shown(value) for value in values]
        if given := [value for value in values if value is not None]:
            self._right = all(map(_is_number, given))
            self._whole = all(isinstance(value, _WHOLE) for value in given)
        widest = max(map(cell_len, self._cells))
        self.natural = max(self.natural, widest)
        self.least = max(widest if self._whole else 0, min(self.natural, _LEAST))

    def widen(self, *, all_cells: bool) -> None:
        """Make the column as wide as its rows need: for numbers and times, or for all cells."""
        self.width = max(self.width, self.natural if all_cells else self.least if self._whole else 0)

    @property
    def heading(self) -> str:
        """Its name, as wide as the column."""
        return self._fill(self.name)

    def cell(self, number: int) -> str:
        """Return a cell, as wide as the column."""
        return self._fill(self._mark if self._index is None else self._cells[number])

    @property
    def is_cut(self) -> bool:
        """Whether a cell or the heading is cut."""
        return self.width < self.natural

    def _fill(self, text: str) -> str:
        if (size := cell_len(text)) > self.width:
            return set_cell_size(text, self.width - 1) + self._mark
        blanks = " " * (self.width - size)
        return blanks + text if self._right else text + blanks


def _fit(columns: Sequence[_Column], width: int | None) -> list[_Column]:
    """Return the columns that fit a screen, and set their widths: the first ones, and some of the last ones."""
    for column in columns:
        column.width = column.natural
    if width is None:
        return list(columns)
    room = width - 1 + len(_GAP)
    if sum(column.least + len(_GAP) for column in columns) <= room:
        shown = list(columns)
    else:
        # One column is for the mark.
        shown = _outer(columns, room - 1 - len(_GAP))
        room -= 1 + len(_GAP)
    for column in shown:
        column.width = column.least
    left = room - sum(column.least + len(_GAP) for column in shown)
    while left > 0 and (growing := [column for column in shown if column.is_cut]):
        for column in growing:
            more = min(max(1, left // len(growing)), column.natural - column.width, left)
            column.width += more
            left -= more
    return shown


def _outer(columns: Sequence[_Column], room: int) -> list[_Column]:
    """Return the first columns and the last ones that fit, two of the first for each of the last; at least one."""
    first, last = 0, len(columns)
    while first < last:
        from_start = (first + len(columns) - last) % 3 != 2
        column = columns[first if from_start else last - 1]
        room -= column.least + len(_GAP)
        if room < 0 and first:
            break
        first, last = (first + 1, last) if from_start else (first, last - 1)
    return [*columns[:first], *columns[last:]]


def _foot(
    rows: Rows, columns: Sequence[_Column], shown: Sequence[_Column], width: int | None, mark: str
) -> Iterator[str]:
    left_out = [column.name for column in columns if column not in shown]
    parts = [rows.summary]
    if left_out:
        parts[0] += f", {_count(len(columns), len(columns) - len(left_out), 'column')}"
        parts.append(f"Not shown: {', '.join(left_out)}.")
    if rows.shown < rows.total:
        parts.append("--limit 0 shows all rows.")
    if left_out or any(column.is_cut for column in shown):
        parts.append(f"--line shows all columns, and text that is cut at {mark}.")
    text = ". ".join(parts[:1] if len(parts) == 1 else [parts[0], " ".join(parts[1:])])
    for line in textwrap.wrap(text, width=(width or 10**6) - 1, break_on_hyphens=False):
        yield f" {line}\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
