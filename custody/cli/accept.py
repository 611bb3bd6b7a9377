"""`custody accept`: accept a finding in `trust.json`, so that one loss does not hide the next."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from custody.cli import common, names
from custody.cli.common import App, open_settings
from custody.cli.keys import trust_path
from custody.errors import ConfigurationError
from custody.format.layout import ARCHIVE

if TYPE_CHECKING:
    from custody.findings import Accepted, Finding
    from custody.format.archive_file import Pin
    from custody.verify.acceptance import Reported

app = App()

_SHOWN = 20


@app.command(
    rich_help_panel=common.VERIFY,
    epilog="custody verify --json > report.json\n"
    "custody accept --from report.json --finding offset-lost \\\n  --reason 'outage of 3 May' --by alice",
)
def accept(  # noqa: PLR0913 - each is an option of the command
    finding: Annotated[str, typer.Option(help="The finding's name, such as offset-lost.", metavar="NAME")],
    reason: Annotated[str, typer.Option(help="Why it is accepted.")],
    by: Annotated[str, typer.Option(help="Who accepts it.")],
    report: Annotated[
        typer.FileBinaryRead | None,
        typer.Option("--from", help="The output of `custody verify --json`; - is stdin.", metavar="FILE"),
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(help="The finding's log, or its statement as it is printed.", metavar="TOPIC/PARTITION"),
    ] = None,
    sequence: Annotated[int | None, typer.Option(min=0, help="The finding's sequence.")] = None,
    key: Annotated[str | None, typer.Option(help="The key of the finding's object.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The finding's sha256.", metavar="HEX")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="The trust.json to add it to. Default: the `trust` setting, else trust.json beside the keyring.",
            metavar="FILE",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be accepted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Accept one finding in trust.json. From then on this finding is a notice; the next one like it is not.

    Give the report of a verification with --from, and --log, --sequence or --key if it has several findings of this
    name. Or give the finding's fields as in the report. Tampering can only be accepted by its sha256.
    """
    import msgspec

    from custody.cli import render
    from custody.format.times import format_time
    from custody.keys import trust_file
    from custody.keys.trust import load_trust
    from custody.verify import acceptance

    settings = open_settings(trust=trust)
    file = trust_path(settings)
    if settings.trust is None and not file.exists():
        raise ConfigurationError(
            f"there is no trust.json at {file}: name yours with --trust FILE or in the setting `trust`; `custody init`"
            " and `custody keys export` make one"
        )
    if log is not None:
        log, sequence = names.statement(log, sequence)
    wanted = acceptance.Wanted(finding, log, sequence, key, sha256)
    if report is None:
        chosen = acceptance.named(wanted)
    else:
        reported = acceptance.read_report(report)
        chosen = acceptance.choose(reported, wanted)
        _check_archive(reported, chosen, load_trust(file).archive)
    entries = acceptance.entries(chosen, reason, by, format_time(datetime.now(UTC)))
    if as_json:
        added = 0 if dry_run else trust_file.accept(file, entries)
        accepted = [msgspec.to_builtins(entry) for entry in entries]
        common.print_json({"trust": str(file), "dry_run": dry_run, "added": added, "accepted": accepted})
        return
    out = render.console()
    out.print(render.FindingsTable([chosen]), crop=False)
    for entry in entries[:_SHOWN]:
        out.print(render.safe(f"  {_described(entry)}"), soft_wrap=True)
    if len(entries) > _SHOWN:
        out.print(f"  … and {len(entries) - _SHOWN:,} more", soft_wrap=True)
    if dry_run:
        out.print("Nothing was written (--dry-run).", soft_wrap=True)
        return
    added = trust_file.accept(file, entries)
    before = f", {len(entries) - added} were there already" if added < len(entries) else ""
    summary = f"Accepted in {file}: {added} entr{'y' if added == 1 else 'ies'} added{before}."
    out.print(render.safe(summary), soft_wrap=True)
    if settings.trust is None:
        hint = f"Verify with --trust {file}, or set CUSTODY_TRUST to it. Otherwise the acceptance has no effect."
        out.print(render.safe(hint), soft_wrap=True)


def _check_archive(reported: "Reported", chosen: "Finding", pinned: "Pin | None") -> None:
    if chosen.key == ARCHIVE:
        # The finding is about the archive's identity, and is accepted by its digest.
        return
    if pinned and reported.archive and reported.archive != pinned.id:
        raise ConfigurationError(
            f"the report is about the archive {reported.archive}, but trust.json is for {pinned.id}: nothing was"
            " accepted"
        )


def _described(entry: "Accepted") -> str:
    subject = entry.key if entry.key is not None else f"{entry.log}, sequence {entry.sequence}"
    return f"{entry.finding}: {subject}" + (f", SHA-256 {entry.sha256}" if entry.sha256 else "")
