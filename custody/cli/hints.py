"""Explain an error of DuckDB: its message, and for a wrong name the tables and columns that we have."""

import difflib
import re
from collections.abc import Iterable

from custody.query.views import NAMES, VIEWS

_TABLE = re.compile(r'Table with name "?([^"\n]+?)"? does not exist')
_COLUMN = re.compile(r'(?:Referenced column|does not have a column named) "([^"\n]+)"')
_SYNTAX = "syntax error"
_OFFSET = re.compile(r"(?<![\w\"'])offset(?![\w\"'])", re.IGNORECASE)
_CANDIDATES = re.compile(r"^(?:Did you mean|Candidate bindings).*\n?", re.MULTILINE)


def explain(error: Exception, sql: str) -> list[str]:
    """Return the lines of the message about an error.

    Args:
        error: of DuckDB.
        sql: the SQL that failed.
    """
    # Where our own code failed to read a file for it, DuckDB adds how.
    text = str(error).partition(" Detail: Python exception: ")[0].strip()
    hint = ""
    if table := _TABLE.search(text):
        near = difflib.get_close_matches(table[1].lower(), NAMES, 2)
        hint = f"{_question(near)}the tables are {', '.join(NAMES)}"
    elif column := _COLUMN.search(text):
        hint = _column_hint(column[1].lower(), sql)
    elif _SYNTAX in text and _OFFSET.search(sql):
        hint = 'offset is a word of SQL: write the column as "offset", in double quotes'
    if hint:
        # DuckDB's own guesses are among its internal tables, too.
        text = _CANDIDATES.sub("", text)
    first, *lines = (line for line in f"the query failed: {text}".splitlines() if line.strip())
    # The last lines are DuckDB's, which point at the place in the SQL.
    return [first, hint, *lines] if hint else [first, *lines]


def _column_hint(name: str, sql: str) -> str:
    """Return the columns with such a name, of the tables in the SQL; else all of these tables' columns."""
    words = set(re.findall(r"\w+", sql.lower()))
    named = [view for view in VIEWS if view.name in words]
    columns = {column.name: view.name for view in reversed(named) for column in view.columns}
    near = _near(name, columns)
    if near:
        return _question([f"{column} of {columns[column]}" for column in near]).strip()
    return "; ".join(f"{view.name} has {', '.join(column.name for column in view.columns)}" for view in named)


def _near(name: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that may be meant: those that have the name in them first, then the most alike."""

    def distance(column: str) -> tuple[bool, float]:
        return name not in column, -difflib.SequenceMatcher(None, column, name).ratio()

    close = difflib.get_close_matches(name, columns := list(columns), 3)
    return sorted((column for column in columns if name in column or column in close), key=distance)[:3]


def _question(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}? " if near else ""
