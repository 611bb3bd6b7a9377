"""`custody export`: events as files for other tools.

What the archive's tables lack is a warning on stderr, as of `custody query`. Events are written as verified or not at
all, unless `--unverified` is given: then each one has the label `unverified`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from custody.cli import common
from custody.cli.common import INVESTIGATE, App
from custody.cli.terminal import echo
from custody.cli.times import time_option
from custody.errors import ConfigurationError, CustodyError, counted, escape
from custody.query import ocsf

if TYPE_CHECKING:
    from custody.query.export import Lake
    from custody.query.reading import Reading

app = App()

REFUSED = 12
"""Exit code: some events are unverified."""
_NAMES = ", ".join(f"{each.name} ({each.uid})" for each in ocsf.CLASSES)


@app.command(
    rich_help_panel=INVESTIGATE,
    epilog="custody export --ocsf --since yesterday --until today -o export",
)
def export(  # noqa: PLR0913 - its options
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the files.", metavar="FOLDER")],
    as_ocsf: Annotated[
        bool, typer.Option("--ocsf", help=f"As OCSF {ocsf.SCHEMA_VERSION}: needed, the only form.")
    ] = False,
    since: Annotated[datetime | None, time_option("Only statements sealed at this time or later.")] = None,
    until: Annotated[datetime | None, time_option("Only statements sealed before this time. Default: now.")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help=f"Only this class: {_NAMES}. Can be repeated.", metavar="CLASS"),
    ] = None,
    form: Annotated[
        Literal["jsonl", "parquet"] | None,
        typer.Option(
            "--format", help="jsonl: JSON lines, gzipped. Default: jsonl; with --layout security-lake parquet."
        ),
    ] = None,
    layout: Annotated[
        Literal["files", "security-lake"],
        typer.Option(
            help="files: one for each class. security-lake: Amazon's folders, one file for each class and day."
        ),
    ] = "files",
    source: Annotated[
        str, typer.Option(help="With security-lake: how the names of the sources begin, such as custody-6003.")
    ] = "custody",
    region: Annotated[str | None, typer.Option(help="With security-lake: AWS's region.")] = None,
    account: Annotated[str | None, typer.Option(help="With security-lake: the AWS account, 12 digits.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    unverified: Annotated[
        bool,
        typer.Option("--unverified", help="Export unverified events too. Then each event has the label `unverified`."),
    ] = False,
    trust: common.TrustFile = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, as JSON lines.")] = False,
) -> None:
    """Export events to files of OCSF, for SIEMs and data lakes. Verifies no contents."""
    if not as_ocsf:
        raise ConfigurationError("give --ocsf: it is the only form of an export")
    if since and until and since >= until:
        raise ConfigurationError(f"--until ({until}) must be later than --since ({since})")
    chosen = _classes(classes or [])
    end = until or datetime.now(UTC)
    form = form or ("parquet" if layout == "security-lake" else "jsonl")
    if layout == "security-lake" and form != "parquet":
        raise ConfigurationError("Security Lake takes Parquet only: give --format parquet, or no --format")
    try:
        from custody.query import export as exporting
        from custody.query.connect import open_archive
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`custody export` needs {error.name}, which is not installed: install custody with its extra `query`"
        ) from None
    from custody.cli import render

    _check_keys(trust)
    lake = _lake(region, account, source, exporting.exported_name(since, end)) if layout == "security-lake" else None
    connection, reading = open_archive(since=since, until=end, trust=trust)
    with _translated(reading), connection:
        with render.working("reading the archive"):
            left = exporting.stage(connection, chosen)
        marked = reading.warnings.are_unverified
        if marked and not unverified:
            echo(
                "custody: nothing was exported: some events are unverified; give the keys with --trust FILE or --keys"
                f" URI, or export them with --unverified: each event gets the label {exporting.UNVERIFIED!r}",
                err=True,
            )
            raise typer.Exit(REFUSED)
        label = exporting.UNVERIFIED if marked else None
        with render.working("writing"):
            written = exporting.write(connection, output, chosen, form, lake=lake, label=label, overwrite=overwrite)
    total = sum(each.events for each in written)
    if as_json:
        summary = {"files": len(written), "events": total, "left_out": left, "unverified": marked}
        common.print_json(*({"kind": "file", **asdict(each)} for each in written), {"kind": "exported", **summary})
        return
    for each in written:
        echo(f"{escape(str(output / each.file))}: {counted(each.events, 'event')}, {each.bytes:,} bytes")
    mark = ", each with the label unverified" if marked and written else ""
    echo(f"Exported {counted(total, 'event')} to {counted(len(written), 'file')}{mark}.")
    if left:
        echo(f"{counted(left, 'event was', 'events were')} left out: OCSF has no class for own types.")


def _check_keys(trust: Path | None) -> None:
    """Check that the keys at hand are those of the archive, if there are any.

    Raises:
        ConfigurationError: they are not, or there is no archive.
    """
    from custody.archive.trusted import read_trusted_archive
    from custody.store.open import open_store

    settings = common.open_settings(trust=trust)
    trusted = settings.trust_at_hand()
    if trusted.keys:
        read_trusted_archive(open_store(settings.archive, settings.s3), trusted)


def _classes(names: list[str]) -> list[ocsf.Class]:
    """Return the classes of names or numbers, all without any.

    Raises:
        ConfigurationError: there is no such class.
    """
    for name in names:
        if ocsf.class_of(name) is None:
            raise ConfigurationError(f"--class {name!r} is no class that events map to: give one of {_NAMES}")
    chosen = {each.uid for name in names if (each := ocsf.class_of(name))}
    return [each for each in ocsf.CLASSES if not names or each.uid in chosen]


def _lake(region: str | None, account: str | None, source: str, exported: str) -> "Lake":
    from custody.query.export import Lake

    if region is None or account is None:
        raise ConfigurationError("--layout security-lake needs --region and --account: they are parts of the paths")
    return Lake(region, account, source, exported)


@contextmanager
def _translated(reading: "Reading") -> Iterator[None]:
    """Raise what ended a scan, and else an error of ours, in place of DuckDB's."""
    import duckdb

    from custody.cli.query import cause

    try:
        yield
    except duckdb.Error as error:
        raise cause(reading.failure) or CustodyError(f"the export failed: {str(error)[:300]}") from None
    except RuntimeError as error:
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from None
        raise
