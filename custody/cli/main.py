"""The command line, `custody`: set up an archive, verify it, look into it, manage its keys.

Rules:
- The operator's commands (`demo`, `up`, `drain`, …) lie beside the package in a checkout, and `operators` loads them
  only when one of them or the help is asked for: an auditor's `verify` imports neither Prefect nor Kafka.
- An error of ours is one clear line on stderr and an exit code: 2 for a wrong setting or argument, 1 for anything else,
  and those of FORMAT.md for `verify`. An error that is not ours is a bug, and keeps its traceback.
- What comes from an archive reaches a terminal only through `custody.cli.render`, which makes it harmless.
"""

import importlib.metadata
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from custody.cli import operators
from custody.cli.accept import app as accept_app
from custody.cli.bucket import app as bucket_app
from custody.cli.evidence import app as evidence_app
from custody.cli.keys import PASSPHRASE_HINT, read_own_archive, refuse_inside, trust_path, wanted_keyrings
from custody.cli.keys import app as keys_app
from custody.cli.query import app as query_app
from custody.errors import ConfigurationError, CustodyError, FormatError
from custody.format.archive_file import DAYS_LIMIT, SECONDS_LIMIT
from custody.settings import Settings

if TYPE_CHECKING:
    from custody.keys.trust import Trust
    from custody.store.protocol import Store


class _Commands(TyperGroup):
    """The auditor's commands, and the operator's where they are found."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(operators.COMMANDS if operators.checkout() else ())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        return operators.command(cmd_name) if own is None and cmd_name in operators.COMMANDS else own


app = typer.Typer(
    name="custody",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Archive audit events from Kafka, and prove that nobody changed, dropped or invented one.",
    epilog=None
    if operators.checkout()
    else f"{operators.PANEL} ({', '.join(operators.COMMANDS)}) come with {operators.WHERE}.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys")
app.add_typer(accept_app)
app.add_typer(query_app)
app.add_typer(bucket_app)
app.add_typer(evidence_app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"custody {importlib.metadata.version('custody')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def init(
    heartbeat: Annotated[
        int | None,
        typer.Option(
            min=1, max=SECONDS_LIMIT, help="Seconds after which an idle log writes a statement. [default: 3600]"
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            min=1, max=SECONDS_LIMIT, help="Seconds after which a log that grew gets a checkpoint. [default: 3600]"
        ),
    ] = None,
    retention_days: Annotated[
        int | None,
        typer.Option(
            min=1, max=DAYS_LIMIT, help="Days for which no evidence may be deleted. [default: 2555, seven years]"
        ),
    ] = None,
) -> None:
    """Make the archive that the settings name, the keys that it lacks, and trust.json, which auditors are given."""
    from custody.archive import writer
    from custody.cli.render import escape
    from custody.keys import trust_file
    from custody.keys.keyring import new_keyring
    from custody.keys.open import keyring_path, open_public
    from custody.store.open import open_store

    settings = Settings()
    store = open_store(settings.archive, settings.s3)
    keyrings, trust = wanted_keyrings(settings), trust_path(settings)
    if settings.checkpoint_keys is None and keyring_path(settings.keys) is None:
        raise ConfigurationError(
            "the setting `keys` names a KMS key, which signs statements alone: set `checkpoint_keys` to a keyring, such"
            " as file:checkpoint-keys.json (made here if it is not there), or to a KMS key with key spec"
            " ECC_NIST_EDWARDS25519"
        )
    refuse_inside(store.url, [*keyrings, trust])
    made = [path for path in keyrings if not path.exists()]
    there = _is_made(store)
    if there and made:
        raise ConfigurationError(
            f"there is an archive at {store.url} already, and the keyring {made[0]} is not there: new keys would not be"
            " those that signed it. Put the keyring back from your copy, or name another place in the setting `archive`"
        )
    if not there:
        trust_file.check_pin(trust, None)
    for path in made:
        new_keyring(path, datetime.now(UTC), settings.passphrase(), keyrings[path])
    if not there:
        given = _given(heartbeat=heartbeat, checkpoint=checkpoint, retention_days=retention_days)
        writer.create_archive(store, lambda: settings.signers(datetime.now(UTC)).both(), **given)
    # Somebody else may have made it meanwhile.
    file = read_own_archive(store, _own_trust(settings))
    published = trust_file.publish(
        trust, file.pin, open_public(settings.keys, settings.passphrase(), settings.checkpoint_keys)
    )
    said = file.statement
    numbers = {"heartbeat": said.heartbeat, "checkpoint": said.checkpoint, "retention_days": said.retention_days}
    wanted = _given(heartbeat=heartbeat, checkpoint=checkpoint, retention_days=retention_days)
    stays = " (it was there already, and stays as it is)" if wanted.items() - numbers.items() else ""
    lines = [
        f"Archive {escape(store.url)}",
        f"  id {file.id}, created {said.created}",
        f"  heartbeat {said.heartbeat} s, checkpoint {said.checkpoint} s, retention {said.retention_days} days{stays}",
        f"Keys {escape(' and '.join(_given_uris(settings)))}{' (new)' if made else ''}",
    ]
    if made:
        lines.append("  Keep a copy away from the archive: who loses it can verify no more, who gets it can forge.")
    if made and not settings.keyring_passphrase:
        lines.append(f"  {PASSPHRASE_HINT}")
    lines += [
        f"Trust {escape(str(trust))} ({escape(str(published))})",
        "  Give this file to auditors, by another way than the archive. It holds public keys and the archive's digest,",
        "  and no secret: with it, `custody verify ARCHIVE --trust trust.json` verifies, and nobody can forge.",
        "Next",
        "  custody config         look at the settings, topics and brokers among them",
        "  custody drain --once   archive what the topics hold now",
        "  custody verify         prove it",
    ]
    typer.echo("\n".join(lines))


def _is_made(store: "Store") -> bool:
    from custody.archive.reader import read_archive
    from custody.errors import ObjectMissing

    try:
        read_archive(store)
    except ObjectMissing:
        return False
    return True


def _own_trust(settings: Settings) -> "Trust":
    """Return what the writer trusts, where the setting `trust` may name a file that is yet to be made."""
    if settings.trust is not None and not settings.trust.exists():
        settings = settings.model_copy(update={"trust": None})
    return settings.own_trust()


def _given_uris(settings: Settings) -> list[str]:
    return [settings.keys, *([settings.checkpoint_keys] if settings.checkpoint_keys else [])]


@app.command()
def verify(
    archive: Annotated[
        str | None, typer.Argument(help="s3://BUCKET/PREFIX, file:///DIR or a folder; else the setting's.")
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(help="Keys to trust: file:KEYRING or aws-kms:///alias/NAME. May be given again.", metavar="URI"),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="A trust.json: keys, heads, judged findings.", metavar="FILE")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Remembers the heads seen. One that went back or forked is an alarm at every run, until what is"
            " missing is back, or somebody accepts it in trust.json.",
            metavar="FILE",
        ),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="The archive is being written: ask for its heartbeats.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: findings, logs, the verdict.")] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Read again what the broker still has, and compare it with the archive.")
    ] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoints that a witness cosigned, or that you kept; the archive must grow out of them. May be"
            " given again.",
            metavar="FILE",
        ),
    ] = None,
    chain_only: Annotated[
        bool, typer.Option("--chain-only", help="Statements, signatures and trees alone: no segment is read.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read segments, 0 for this one. [default: one a core]")
    ] = None,
) -> None:
    """Prove that an archive is whole and unchanged.

    Exit codes: 0 all verified, 3 notices only (both are success), 10 policy, 11 incomplete, 12 unverifiable,
    13 tampered; 2 is a wrong argument or setting, 1 a failure to check.
    """
    from rich.text import Text

    from custody.cli import render
    from custody.store.open import open_store
    from custody.verify import run as verifying
    from custody.verify.scope import Scope

    given = _given(archive=archive, trust=trust, state=state)
    asked = "`custody verify --kafka`"
    settings = operators.load("tasks.settings", asked).Settings(**given) if kafka else Settings(**given)
    store = open_store(settings.archive, settings.s3)
    # Each worker process would import them again for itself.
    clients = [] if store.url.startswith("file:") else ["boto3"]
    multiprocessing.set_forkserver_preload([verifying.__name__, *clients])
    trusted = _open_trust(settings, keys, store.url)
    notes = [note for path in checkpoint or () for note in _read_notes(path)]
    with render.verification_progress() as progress:
        report = verifying.verify(
            store,
            trusted,
            now=datetime.now(UTC),
            state=settings.state,
            live=live,
            workers=workers,
            progress=progress,
            scope=Scope(contents=not chain_only),
            protection=settings.protection(),
            others=operators.load("tasks.audit.recheck", asked).recheck(settings, store, trusted) if kafka else (),
            notes=notes,
        )
    if as_json:
        for line in report.to_dicts():
            typer.echo(json.dumps(line))
    else:
        out = render.console()
        for part in render.report(report):
            out.print(part, soft_wrap=isinstance(part, Text))
    raise typer.Exit(report.exit_code)


def _open_trust(settings: Settings, given: Sequence[str] | None, archive: str) -> "Trust":
    """Return what to verify by: the keys given, else the settings' where they were set or nothing else is trusted.

    Raises:
        ConfigurationError: there is nothing, or a file of it lies in the archive, where whoever tampers with that could
            have put it.
    """
    from custody.keys.open import keyring_path
    from custody.keys.trust import open_trust

    own = settings.checkpoint_keys
    if given:
        uris, own = list(given), None
    elif settings.trust and "keys" not in settings.model_fields_set:
        uris = []
    else:
        uris = [settings.keys]
        path = keyring_path(settings.keys)
        if path and not path.exists() and "keys" not in settings.model_fields_set:
            raise ConfigurationError(
                "there is nothing to check signatures by: give the keys that you trust with --keys URI, or a trust.json"
                " with --trust FILE"
            )
    named = [*map(keyring_path, [*uris, *([own] if own else [])]), settings.trust, settings.state]
    refuse_inside(archive, [path for path in named if path])
    return open_trust(uris, settings.trust, settings.passphrase(), own)


def _read_notes(path: Path) -> list[bytes]:
    """Return the checkpoints of a file.

    Raises:
        ConfigurationError: it cannot be read, or is no file of checkpoints at all. Whether each one counts is judged
            by verification.
    """
    from custody.archive.head_files import LIMIT, split_notes

    try:
        with path.open("rb") as file:
            notes = split_notes(file.read(LIMIT))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise ConfigurationError(f"the checkpoint {path} cannot be read: {reason}") from None
    if not any(map(_is_note, notes)):
        raise ConfigurationError(
            f"{path} holds no checkpoint; give what `custody checkpoint` printed, or what a witness cosigned"
        )
    return notes


def _is_note(data: bytes) -> bool:
    from custody.tlog.checkpoint import parse_note

    try:
        parse_note(data)
    except FormatError:
        return False
    return True


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            help="An object's key, LOG/PARTITION (its head), LOG/PARTITION/SEQUENCE (a manifest),"
            " or LOG/PARTITION@OFFSET (a record)."
        ),
    ],
    archive: Annotated[str | None, typer.Option(help="Another archive than the setting's.", metavar="URL")] = None,
    events: Annotated[bool, typer.Option("--events", help="Of a manifest, its events as JSON lines.")] = False,
    place: Annotated[bool, typer.Option("--place", help="Only where in the chain it stands, as JSON.")] = False,
) -> None:
    """Print a manifest, events, or where in the chain an object stands. Verifies nothing."""
    from custody.archive import show as showing
    from custody.cli import render
    from custody.store.open import open_store

    settings = Settings(**_given(archive=archive))
    store = open_store(settings.archive, settings.s3)
    shown = showing.show(store, what, settings.trust_at_hand())
    if place:
        render.write(iter([json.dumps(shown.place, indent=2).encode() + b"\n"]))
    elif events:
        if shown.manifest is None:
            raise ConfigurationError(f"--events shows those of a manifest, and {what!r} belongs to none")
        render.write(showing.events(store, shown.manifest.statement))
    else:
        render.write(shown.content)


@app.command()
def config(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Show all settings that this installation knows, secrets hidden."""
    from custody.cli import render

    settings = operators.known_settings()()
    if as_json:
        typer.echo(json.dumps(render.settings_json(settings), indent=2))
    else:
        render.console().print(render.settings_table(settings))


def _given(**arguments: object) -> dict[str, Any]:
    """Return the arguments that were given: the others are the settings' to say. Given but empty is an error there."""
    return {name: value for name, value in arguments.items() if value is not None}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        app(args=args, prog_name="custody")
    except CustodyError as error:
        from custody.cli.render import escape

        for line in str(error).split("\n"):
            print(f"custody: {escape(line)}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        # Whoever read us has enough. The interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
