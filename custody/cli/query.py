"""`custody query`: SQL over an archive."""

import csv
import io
import json
from datetime import UTC, date, datetime
from typing import Annotated, Any

import typer

from custody.cli import terminal
from custody.cli.common import INVESTIGATE, App
from custody.cli.times import time_option
from custody.errors import ConfigurationError, CustodyError

app = App()


@app.command(
    rich_help_panel=INVESTIGATE,
    epilog='custody query "SELECT log, count(*) FROM events GROUP BY ALL" --since 2d',
)
def query(
    sql: Annotated[
        str,
        typer.Argument(help="DuckDB SQL over events, batches, manifests, quarantined, audits, findings and warnings."),
    ],
    since: Annotated[datetime | None, time_option("Only statements sealed at this time or later.")] = None,
    until: Annotated[datetime | None, time_option("Only statements sealed before this time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the rows.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV in UTF-8.")] = False,
    spreadsheet: Annotated[
        bool,
        typer.Option("--spreadsheet", help="As CSV in which text that a spreadsheet runs as a formula has a ' before."),
    ] = False,
) -> None:
    """Query an archive in SQL. Reads its tables, and the segments that have no table yet. Verifies no contents."""
    if not sql.isascii() and any("\ud800" <= char <= "\udfff" for char in sql):
        raise ConfigurationError("the SQL is not text in the encoding of this terminal: set LC_ALL=C.UTF-8")
    try:
        import duckdb

        from custody.query.connect import connect
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`custody query` needs {error.name}, which is not installed: install custody with its extra `query`"
        ) from None
    from custody.cli import render

    with render.working("reading the archive"):
        connection = connect(since=since, until=until)
    try:
        with render.working("querying"):
            if (result := connection.execute(sql)) is None:
                raise ConfigurationError("the SQL has no statement: write one, such as 'SELECT count(*) FROM events'")
            names, rows = [column[0] for column in result.description or ()], result.fetchall()
            unverified = bool(connection.execute("FROM warnings WHERE kind = 'unverified'").fetchone())
    except duckdb.Error as error:
        raise CustodyError(*f"the query failed: {_reason(error)}".splitlines()) from None
    finally:
        connection.close()
    if as_json:
        marked = {"unverified": True} if unverified else {}
        lines = (json.dumps(marked | dict(zip(names, map(_plain, row), strict=True))) for row in rows)
        terminal.write(f"{line}\n".encode() for line in lines)
    elif as_csv or spreadsheet:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in (names, *rows):
            cells = [_plain(value) for value in row]
            writer.writerow(map(_no_formula, cells) if spreadsheet else cells)
        terminal.write(iter([text.getvalue().encode("utf-8", "backslashreplace")]))
    else:
        _print(names, rows)


def _reason(error: Exception) -> str:
    """Return DuckDB's message. If our own code failed to read a file for it, only the last line of its traceback."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Traceback ") else text


def _plain(value: Any) -> Any:
    """Return a value as JSON and CSV write it."""
    if isinstance(value, datetime):
        # Times without a zone are UTC.
        return (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)).isoformat().replace("+00:00", "Z")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value.isoformat() if isinstance(value, date) else str(value)


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _print(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    from custody.cli import render

    numeric = [all(isinstance(row[column], int | float | None) for row in rows) for column in range(len(names))]
    table = render.table(*(f"#{name}" if number else name for name, number in zip(names, numeric, strict=True)))
    for row in rows:
        table.add_row(*(render.safe(_shown(value)) for value in row))
    render.console().print(table)
    terminal.check_written()


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(_plain(value))
