"""The commands whose results others can check: `checkpoint`, `evidence`, `check-evidence`, `witness`."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from custody.errors import ConfigurationError, FormatError, KeyUnavailable, SignatureInvalid
from custody.findings import Severity
from custody.settings import Settings

app = typer.Typer()

_Archive = Annotated[str | None, typer.Option(help="Another archive than the setting's.", metavar="URL")]
_Trust = Annotated[Path | None, typer.Option(help="A trust.json, with the keys that you trust.", metavar="FILE")]
_Keys = Annotated[
    list[str] | None, typer.Option(help="Keys to trust: file:KEYRING. May be given again.", metavar="URI")
]


def _settings(archive: str | None = None, trust: Path | None = None) -> Settings:
    given = {"archive": archive, "trust": trust}
    return Settings(**{name: value for name, value in given.items() if value is not None})


@app.command()
def checkpoint(
    logs: Annotated[list[str] | None, typer.Argument(help="LOG/PARTITION; all logs if not given.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Sign each log's head now, and write it.")] = False,
    archive: _Archive = None,
) -> None:
    """Print the newest checkpoint of each log: its signed head, which anybody can keep, and check with a public key."""
    from custody import checkpoints
    from custody.render import escape
    from custody.store import open_store
    from custody.trust import open_trust

    settings = _settings(archive)
    store = open_store(settings.archive, settings.s3)
    chosen = checkpoints.choose_logs(store, logs or ())
    if write:
        trust = open_trust([settings.keys], settings.trust, settings.passphrase())
        signer = checkpoints.open_signer(settings, datetime.now(UTC))
        notes = [checkpoints.write_checkpoint(store, log, trust, signer) for log in chosen]
    else:
        notes = [note for log in chosen if (note := checkpoints.newest_checkpoint(store, log)) is not None]
    # A pipe gets a note's bytes as they are signed, and a terminal nothing that it would obey.
    for number, note in enumerate(notes):
        data = note.encode()
        shown = "\n".join(map(escape, data.decode().split("\n"))) if sys.stdout.isatty() else data
        typer.echo("\n" if number else "", nl=False)
        typer.echo(shown, nl=False)
    if not notes:
        typer.echo("No log has a checkpoint yet: an audit writes them, or `custody checkpoint --write`.")


@app.command()
def evidence(
    log: Annotated[str, typer.Argument(help="LOG/PARTITION")],
    offset: Annotated[int, typer.Argument(min=0, help="The event's offset in Kafka.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", dir_okay=False)],
    archive: _Archive = None,
) -> None:
    """Write one file that proves one event: its batch, its statement, the proof, a checkpoint."""
    from custody.checkpoints import choose_logs
    from custody.evidence import make_evidence
    from custody.render import escape
    from custody.store import open_store

    settings = _settings(archive)
    store = open_store(settings.archive, settings.s3)
    (chosen,) = choose_logs(store, [log])
    data = make_evidence(store, chosen, offset)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from None
    typer.echo(f"Wrote {escape(str(output))} ({len(data):,} bytes).")
    typer.echo(f"Check it anywhere: custody check-evidence {escape(str(output))} --trust trust.json")


@app.command("check-evidence")
def check_evidence(
    file: Annotated[Path, typer.Argument(help="What `custody evidence` wrote.", dir_okay=False)],
    trust: _Trust = None,
    keys: _Keys = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Check evidence, offline, with public keys alone, and print the event and what this proves.

    Exit codes: 0 it holds, 12 no trusted key signed it, 13 it does not hold.
    """
    from custody import evidence as checking
    from custody.render import escape
    from custody.trust import open_trust

    if not trust and not keys:
        raise ConfigurationError("say whom you trust: --trust trust.json, or --keys file:KEYRING")
    settings = _settings(trust=trust)
    trusted = open_trust(keys or (), settings.trust, settings.passphrase())
    try:
        with file.open("rb") as opened:
            data = opened.read(checking.FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    try:
        proven = checking.check_evidence(data, trusted)
    except KeyUnavailable as error:
        typer.echo(f"UNVERIFIABLE: {escape(str(error))}", err=True)
        raise typer.Exit(Severity.UNVERIFIABLE) from None
    except (FormatError, SignatureInvalid) as error:
        typer.echo(f"DOES NOT HOLD: {escape(str(error))}", err=True)
        raise typer.Exit(Severity.TAMPERED) from None
    if as_json:
        typer.echo(json.dumps(checking.to_dict(proven)))
        return
    typer.echo(escape(proven.event.decode()))
    lines = [
        "",
        f"This event is the record at offset {proven.offset} of {proven.log}, byte for byte as it was archived.",
        f"It was sealed at {proven.sealed_at} by {proven.writer}: that is the writer's clock and word.",
        f"Proved: it is in the log whose first {proven.size:,} statements {', '.join(proven.signers)} signed.",
        *(
            f"  {name} saw that head at {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}."
            for name, at in proven.witnessed
        ),
        "Not proved: that what it says is true, nor when it happened, nor that no other event is missing.",
    ]
    typer.echo("\n".join(map(escape, lines)))


@app.command()
def witness(
    archive: Annotated[str | None, typer.Argument(help="The archive to watch; else the setting's.")] = None,
    state: Annotated[
        Path,
        typer.Option(help="A folder of your own: your key, and the checkpoints that you co-signed.", file_okay=False),
    ] = Path("custody-witness"),
    trust: _Trust = None,
    keys: _Keys = None,
) -> None:
    """Watch an archive: check that its checkpoints grow out of those seen before, and co-sign them.

    Exit codes: 0 all hold, 13 one does not: both signed heads are printed, and kept.
    """
    from custody.archive import read_archive
    from custody.checkpoints import trust_own
    from custody.render import escape
    from custody.store import open_store
    from custody.trust import open_trust
    from custody.witness import Witness

    settings = _settings(archive, trust)
    uris = list(keys) if keys else [] if settings.trust else [settings.keys]
    trusted = open_trust(uris, settings.trust, settings.passphrase())
    trusted = trusted if keys else trust_own(trusted, settings)
    store = open_store(settings.archive, settings.s3)
    watching = Witness(state)
    typer.echo(f"witness {escape(watching.key.vkey)}")
    refused = False
    for seen in watching.watch(store, trusted, trusted.archive or read_archive(store).archive, datetime.now(UTC)):
        why = f": {escape(seen.problem)}" if seen.problem else ""
        typer.echo(f"{escape(seen.log)}: {seen.outcome}, size {seen.size:,}{why}")
        for note in seen.notes:
            typer.echo("\n".join(map(escape, note.split("\n"))))
        refused = refused or seen.outcome == "refused"
    if refused:
        raise typer.Exit(Severity.TAMPERED)
