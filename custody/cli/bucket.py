"""`custody bucket`: how an archive's bucket should be configured, and what differs."""

import json
from contextlib import closing
from typing import Annotated

import typer

from custody.cli import common, terminal
from custody.cli.common import App, open_settings
from custody.errors import CustodyError, NoBucket
from custody.findings import Severity

app = App()

_LIMIT_NOTE = "Each configuration replaces the bucket's present one: keep other people's entries when you apply it."


@app.command(rich_help_panel=common.VERIFY, epilog="custody bucket s3://bucket/audit --wanted")
def bucket(
    archive: Annotated[
        str | None, typer.Argument(help="s3://BUCKET/PREFIX. Default: the setting `archive`.", metavar="[ARCHIVE]")
    ] = None,
    wanted: Annotated[
        bool, typer.Option("--wanted", help="Print the wanted configuration only; do not read the bucket's.")
    ] = False,
) -> None:
    """Print the wanted bucket configuration, as JSON for Terraform or the AWS CLI. Differences go to stderr.

    Changes nothing.
    """
    from custody.cli import render
    from custody.store.bucket import NOT_LOCKED, OBJECT_LOCK, open_configuration

    settings = open_settings(**common.given_archive(archive))
    moves, locked = settings.tiers.moves, settings.s3.retention_mode is not None
    problems: list[str] = []
    with closing(open_configuration(settings.archive, settings.s3)) as configuration:
        document = configuration.wanted(moves, locked=locked)
        terminal.write(iter([json.dumps(document, indent=2).encode() + b"\n"]))
        if wanted:
            return
        console = render.console(stderr=True)
        table = render.table("!configuration", "what differs")
        for name in document:
            try:
                for difference in configuration.compare(name, document, moves):
                    table.add_row(name, render.safe(difference.why))
            except NoBucket:
                raise
            except CustodyError as error:
                problems.append(str(error))
    if not locked:
        console.print(f"{OBJECT_LOCK}: {NOT_LOCKED}")
    if table.row_count:
        console.print(table)
        console.print(_LIMIT_NOTE)
    if problems:
        raise CustodyError(*problems)
    if table.row_count:
        raise typer.Exit(Severity.POLICY)
