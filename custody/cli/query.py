"""`custody query`: SQL over an archive.

What the archive's tables lack is a warning on stderr, a line for each log, in every form. It does not change the exit
code: a query verifies nothing.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from custody.cli import common, terminal
from custody.cli.common import INVESTIGATE, App
from custody.cli.hints import explain
from custody.cli.output import check_output, replacing
from custody.cli.times import time_option
from custody.errors import ConfigurationError, CustodyError, escape
from custody.query import views

if TYPE_CHECKING:
    from custody.cli.rows import Rows
    from custody.query.warned import Warnings

app = App()

Form = Literal["table", "line", "markdown", "csv", "json"]
ENDINGS: dict[str, Form] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".md": "markdown",
    ".ndjson": "json",
    ".txt": "table",
}
"""The form of a file, by the ending of its name."""
ROWS_SHOWN = 40
"""Rows for a person at a terminal, without --limit."""
_SQL_LIMIT = 1_048_576


class _Command(common.Command):
    """The command, whose help has the tables."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Tables, and all their columns"):
            formatter.write_dl(views.help_rows())
        super().format_epilog(ctx, formatter)


@app.command(
    cls=_Command,
    rich_help_panel=INVESTIGATE,
    epilog='custody query "SELECT log, count(*) FROM events GROUP BY ALL" --since 2d',
)
def query(  # noqa: PLR0913 - its options
    sql: Annotated[str | None, typer.Argument(help="DuckDB SQL over the tables below; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the SQL from a file.", metavar="FILE")] = None,
    since: Annotated[datetime | None, time_option("Only statements sealed at this time or later.")] = None,
    until: Annotated[datetime | None, time_option("Only statements sealed before this time.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="Rows to print; 0: all.", show_default=f"{ROWS_SHOWN} on a terminal, else all"),
    ] = None,
    as_lines: Annotated[bool, typer.Option("--line", help="One value a line. Nothing is cut.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A table in Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the rows.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="As CSV in UTF-8.")] = False,
    spreadsheet: Annotated[
        bool,
        typer.Option("--spreadsheet", help="As CSV in which text that a spreadsheet runs as a formula has a ' before."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"Write a file. Without a format, its ending decides: {', '.join(ENDINGS)}.",
            metavar="FILE",
        ),
    ] = None,
    trust: common.TrustFile = None,
) -> None:
    """Query an archive in SQL. Reads its tables, and the segments that have no table yet. Verifies no contents."""
    text = _read_sql(sql, file)
    if since and until and since >= until:
        raise ConfigurationError(f"--until ({until}) must be later than --since ({since})")
    chosen = {"line": as_lines, "markdown": as_markdown, "csv": as_csv or spreadsheet, "json": as_json}
    form = _form([name for name, given in chosen.items() if given], output)
    if output is not None:
        check_output(output)
    try:
        import duckdb

        from custody.query.connect import open_archive
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`custody query` needs {error.name}, which is not installed: install custody with its extra `query`"
        ) from None
    from custody.cli import render
    from custody.cli.rows import Rows

    connection, reading = open_archive(since=since, until=until, trust=trust)
    try:
        # The archive is read now, as far as the SQL needs it.
        with render.working("reading the archive"):
            if (result := connection.execute(text)) is None:
                raise ConfigurationError("the SQL has no statement: write one, such as 'SELECT count(*) FROM events'")
        if limit is None and output is None and form not in {"csv", "json"} and render.console().is_terminal:
            limit = ROWS_SHOWN
        names = [column[0] for column in result.description or ()]
        rows = Rows(names, result.fetchmany, limit or None)
        pieces = _pieces(form, rows, reading.warnings, spreadsheet=spreadsheet, to_file=output is not None)
        encoded = (piece.encode("utf-8", "backslashreplace") for piece in pieces)
        if output is None:
            terminal.write(encoded)
            if form in {"csv", "json"} and rows.shown < rows.total:
                common.note(f"custody: {rows.summary}; --limit 0 prints all")
        else:
            with replacing(output) as staged:
                staged.writelines(encoded)
            terminal.echo(f"Wrote {escape(str(output))}: {rows.summary}.")
    except duckdb.Error as error:
        raise cause(reading.failure) or CustodyError(*explain(error, text)) from None
    except RuntimeError as error:
        # DuckDB's own form of Ctrl-C, where no scan was asked for rows at that moment.
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from None
        raise
    finally:
        connection.close()


def cause(failure: BaseException | None) -> BaseException | None:
    """Return what ended a scan, if that is no error of the SQL: ours, too little memory, or Ctrl-C."""
    is_other = isinstance(failure, Exception) and not isinstance(failure, CustodyError | MemoryError)
    return None if is_other else failure


# --- the SQL and the form


def _read_sql(sql: str | None, file: Path | None) -> str:
    """Return the SQL of the argument, of a file or of stdin.

    Raises:
        ConfigurationError: it is given twice or not at all, cannot be read, or is no text.
    """
    if (sql is None) == (file is None):
        raise ConfigurationError("give the SQL as an argument, as - for stdin, or by --file FILE: one of these")
    if sql is not None and sql != "-":
        if not sql.isascii() and any("\ud800" <= char <= "\udfff" for char in sql):
            raise ConfigurationError("the SQL is not text in the encoding of this terminal: set LC_ALL=C.UTF-8")
        if len(sql.split()) == 1 and os.path.isfile(sql):  # noqa: PTH113 - it raises nothing for what is no path
            raise ConfigurationError(f"{sql} is a file, and not SQL: read the SQL from it with --file {sql}")
        return sql
    data, source = common.read_file(file or Path("-"), "SQL file", _SQL_LIMIT)
    if len(data) > _SQL_LIMIT:
        raise ConfigurationError(f"{source} is larger than 1 MiB, and so no query")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{source} is not text in UTF-8: convert it") from None


def _form(given: list[str], output: Path | None) -> str:
    """Return the form of the result.

    Raises:
        ConfigurationError: several forms are given, or no form and no known ending.
    """
    if len(given) > 1:
        raise ConfigurationError(f"--{' and --'.join(given)} exclude each other: give only one format")
    if given:
        return given[0]
    if output is None:
        return "table"
    if (form := ENDINGS.get(output.suffix.lower())) is None:
        raise ConfigurationError(
            f"the ending of {str(output)!r} names no format: use {', '.join(ENDINGS)}, or add --csv or the like"
        )
    return form


def _pieces(form: str, rows: "Rows", warnings: "Warnings", *, spreadsheet: bool, to_file: bool) -> Iterator[str]:
    """Return the result in a form, in pieces of text."""
    from custody.cli import render
    from custody.cli import rows as forms

    match form:
        case "json":
            return forms.as_json(rows, lambda: {"unverified": True} if warnings.are_unverified else {})
        case "csv":
            return forms.as_csv(rows, spreadsheet=spreadsheet)
        case "markdown":
            return forms.as_markdown(rows)
        case "line":
            return forms.as_lines(rows)
    screen = render.console()
    has_width = not to_file and (screen.is_terminal or "COLUMNS" in os.environ)
    ascii_only = not to_file and not screen.encoding.startswith("utf")
    return forms.as_grid(rows, screen.width if has_width else None, ascii_only=ascii_only)
