"""`custody report`: the integrity report of the newest signed audit, as a page."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from custody.cli import common
from custody.cli.common import VERIFY, App
from custody.cli.output import replacing
from custody.cli.terminal import echo
from custody.cli.times import time_option
from custody.errors import ConfigurationError, escape

if TYPE_CHECKING:
    from custody.keys.trust import Trust
    from custody.report.statements import Rows
    from custody.store.protocol import Store

app = App()

_DAYS = 31
"""Days of figures, as a nightly report has by default: all statements of years would be read otherwise."""
NOT_STATED = 12
"""Exit code: no signed audit names the file."""


@app.command(rich_help_panel=VERIFY, epilog="custody report --output report.html --since 40d")
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("integrity.html"),
    since: Annotated[
        datetime | None,
        time_option(
            f"Figures of statements sealed at this time or later; by default {_DAYS} days before the audit, or --until."
        ),
    ] = None,
    until: Annotated[datetime | None, time_option("Figures of statements sealed before this time.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Write nothing: find the signed audit that states this report's digest.", metavar="FILE"),
    ] = None,
    trust: common.TrustFile = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="What was written, or found, as one JSON document.")] = False,
) -> None:
    """Write the integrity report of the newest signed audit, as one HTML file. Verifies no contents."""
    from custody.store.open import open_store

    settings = common.open_settings(trust=trust)
    store = open_store(settings.archive, settings.s3)
    trusted = settings.trust_at_hand()
    if check is not None:
        _check(store, trusted, check, as_json=as_json)
        return
    if since and until and since >= until:
        raise ConfigurationError("--until must be later than --since")
    try:
        from custody.report.facts import gather
        from custody.report.page import render as render_page
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`custody report` needs {error.name}, which is not installed: install custody with its extra `report`"
        ) from None
    from custody.cli import render

    with render.working("reading the archive"):
        last = timedelta(days=_DAYS)
        facts = gather(store, trusted, datetime.now(UTC), since=since, until=until, last=last, rows=_rows())
        page = render_page(facts)
    with replacing(output) as staged:
        staged.write(page)
    digest, statement = sha256(page).hexdigest(), facts.statement
    worst = facts.severity.name.lower() if facts.severity is not None else "verified"
    if as_json:
        common.print_json(
            {
                "file": str(output),
                "bytes": len(page),
                "sha256": digest,
                "audit": statement.sequence,
                "sealed_at": statement.sealed_at,
                "verdict": statement.verdict,
                "worst": worst,
                "verified": bool(trusted.keys),
            }
        )
        return
    unverified = "" if trusted.keys else ", unverified: no key is at hand"
    echo(
        f"{escape(str(output))}: audit {statement.sequence}, sealed {statement.sealed_at}, {statement.verdict}"
        f"{unverified}\nSHA-256 {digest}"
    )
    if worst not in {statement.verdict, "notice"}:
        echo(f"The page says {worst}: it has findings of earlier audits that are open, or of now.")


def _rows() -> "Rows | None":
    """Return what reads rows of the index by time; None without Arrow: then statements are read one by one."""
    try:
        from custody.query.statements import span_rows
    except ModuleNotFoundError:
        return None
    return span_rows


def _check(store: "Store", trust: "Trust", path: Path, *, as_json: bool) -> None:
    """Print which signed audit states a file's digest, and end with an exit code."""
    from custody.archive.trusted import read_trusted_archive
    from custody.cli import render
    from custody.report.audits import stating_audit

    if not trust.keys:
        raise ConfigurationError(
            "no key is at hand to check an audit with: give the keys with --keys URI, or a trust.json with --trust FILE"
        )
    digest = common.file_digest(path, "report")
    with render.working("reading the audits"):
        archive = read_trusted_archive(store, trust).id
        stored = stating_audit(store, archive, trust, digest)
    if as_json:
        stated = {"audit": stored.statement.sequence, "sealed_at": stored.statement.sealed_at} if stored else {}
        common.print_json({"file": str(path), "sha256": digest, "stated": stored is not None, **stated})
    elif stored is not None:
        by = ", ".join(key for key, _ in stored.signed_by)
        echo(
            f"Stated: audit {stored.statement.sequence}, sealed {stored.statement.sealed_at}, signed by {escape(by)},"
            f" names SHA-256 {digest}"
        )
    else:
        echo(
            f"Not stated: no signed audit names SHA-256 {digest}. A nightly report is named by the next audit; a report"
            " that `custody report` wrote is named by none"
        )
    raise typer.Exit(0 if stored is not None else NOT_STATED)
