"""The command line, `custody`: set up an archive, verify it, look into it, manage its keys.

Rules:
- The operator's commands (`demo`, `up`, `drain`, …) live beside the wheel. They are looked for by entry point,
  and only when one of them or the help is asked for: an auditor's `verify` imports neither Prefect nor Kafka.
- An error of ours is one clear line on stderr and an exit code: 2 for a wrong setting or argument, 1 for anything else,
  and those of FORMAT.md for `verify`. An error that is not ours is a bug, and keeps its traceback.
- What comes from an archive reaches a terminal only through `custody.render`, which makes it harmless.
"""

import importlib.metadata
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from custody.audit import HEARTBEAT_LIMIT
from custody.cli_accept import app as accept_app
from custody.cli_evidence import app as evidence_app
from custody.cli_query import app as query_app
from custody.errors import ConfigurationError, CustodyError
from custody.settings import Settings

if TYPE_CHECKING:
    from custody.findings import Finding
    from custody.keys import Key
    from custody.store import Store

ENTRY_POINTS = "custody.commands"
CHECKS = "custody.checks"
OPERATORS_COMMANDS = ("demo", "up", "drain", "audit", "status", "automations", "new-life")

_PASSPHRASE_HINT = "It is not encrypted: set CUSTODY_KEYRING_PASSPHRASE before making it, to have it encrypted."  # noqa: S105


class _Commands(TyperGroup):
    """The auditor's commands, and the operator's where they are installed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_operators_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        commands = _operators_commands()
        if cmd_name in OPERATORS_COMMANDS and cmd_name not in commands:
            raise ConfigurationError(
                f"`custody {cmd_name}` is an operator's command, and only the auditor's are installed here; run it from"
                f" a checkout of the project (`uv run custody {cmd_name}`) or in the image"
            )
        return commands.get(cmd_name)


def _operators_commands() -> dict[str, Any]:
    """Load the commands that live beside the wheel, nothing where it was installed without them."""
    commands: dict[str, Any] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            loaded = point.load()
        except ModuleNotFoundError as error:
            if error.name in {point.module, point.module.partition(".")[0]}:
                continue
            raise
        commands |= getattr(get_command(loaded), "commands", {})
    return commands


app = typer.Typer(
    name="custody",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Archive audit events from Kafka, and prove that nobody changed, dropped or invented one.",
    epilog=f"Operators' commands ({', '.join(OPERATORS_COMMANDS)}) come with a checkout of the project or the image.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and rotate the keys that sign.")
app.add_typer(keys_app, name="keys")
app.add_typer(accept_app)
app.add_typer(query_app)
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
            min=1, max=HEARTBEAT_LIMIT, help="Seconds after which an idle log writes a statement. [default: 3600]"
        ),
    ] = None,
) -> None:
    """Make the archive that the settings name, and a keyring if there is none."""
    from custody import archive, keys
    from custody.render import escape
    from custody.store import open_store

    settings = Settings()
    path = keys.keyring_path(settings.keys)
    store = open_store(settings.archive, settings.s3)
    made = path is not None and not path.exists()
    if path is not None and made:
        keys.new_keyring(path, datetime.now(UTC), settings.passphrase(), ed25519=True)
    info = archive.create_archive(store, heartbeat or archive.DEFAULT_HEARTBEAT)
    stays = " (it was there already)" if heartbeat not in {None, info.heartbeat} else ""
    lines = [
        f"Archive {escape(store.url)}",
        f"  id {info.archive}, created {info.created}, heartbeat {info.heartbeat} s{stays}",
        f"Keys {escape(settings.keys)}{' (new)' if made else ''}",
    ]
    if made:
        lines.append("  Keep a copy away from the archive: who loses it can verify no more, who gets it can forge.")
    if made and not settings.keyring_passphrase:
        lines.append(f"  {_PASSPHRASE_HINT}")
    lines += [
        "Next",
        "  custody config         look at the settings, topics and brokers among them",
        "  custody drain --once   archive what the topics hold now",
        "  custody verify         prove it",
    ]
    typer.echo("\n".join(lines))


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
        Path | None, typer.Option(help="Remembers the heads seen, and notices one that went back.", metavar="FILE")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="The archive is being written: ask for its heartbeats.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: findings, logs, the verdict.")] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Read again what the broker still has, and hold it against the archive.")
    ] = False,
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

    from custody import render
    from custody import verify as verifying
    from custody.checkpoints import trust_own
    from custody.store import open_store
    from custody.trust import open_trust

    settings = Settings(**_given(archive=archive, trust=trust, state=state))
    store = open_store(settings.archive, settings.s3)
    # Each worker process would import them again for itself.
    clients = [] if store.url.startswith("file:") else ["boto3"]
    multiprocessing.set_forkserver_preload([verifying.__name__, *clients])
    trusted = open_trust(_trusted_keys(settings, keys, store.url), settings.trust, settings.passphrase())
    trusted = trusted if keys else trust_own(trusted, settings)
    with render.verification_progress() as progress:
        report = verifying.verify(
            store,
            trusted,
            now=datetime.now(UTC),
            state=settings.state,
            live=live,
            workers=workers,
            progress=progress,
            scope=verifying.Scope(contents=not chain_only),
            protection=settings.protection(),
            others=_ask_kafka(settings, store) if kafka else (),
        )
    if as_json:
        for line in report.to_dicts():
            typer.echo(json.dumps(line))
    else:
        out = render.console()
        for part in render.report(report):
            out.print(part, soft_wrap=isinstance(part, Text))
    raise typer.Exit(report.exit_code)


def _ask_kafka(settings: Settings, store: "Store") -> "Iterable[Finding]":
    """Return what the broker tells: its client lives beside the wheel, as the operator's commands do."""
    for point in importlib.metadata.entry_points(group=CHECKS, name="kafka"):
        try:
            found: Iterable[Finding] = point.load()(settings, store)
        except ModuleNotFoundError:
            break
        return found
    raise ConfigurationError(
        "--kafka needs a Kafka client, which comes with the operator's commands; run it from a checkout of the project"
        " (`uv run custody verify --kafka`) or in the image"
    )


def _trusted_keys(settings: Settings, given: Sequence[str] | None, archive: str) -> list[str]:
    """Return the keys to verify with: those given, else the settings', if they were set or nothing else is trusted.

    Raises:
        ConfigurationError: there are none, or they lie in the archive, where whoever tampers with it could put them.
    """
    from custody.keys import keyring_path

    if given:
        uris = list(given)
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
    for path in [*map(keyring_path, uris), settings.trust]:
        if path and f"{path.resolve().as_uri()}/".startswith(f"{archive}/"):
            raise ConfigurationError(
                f"{path} lies in the archive, and nothing in it is trusted: whoever can change the archive could have"
                " put it there. Take keys and trust from where you keep them"
            )
    return uris


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
    from custody import render
    from custody import show as showing
    from custody.store import open_store

    settings = Settings(**_given(archive=archive))
    store = open_store(settings.archive, settings.s3)
    shown = showing.show(store, what)
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
    """Show all settings, secrets hidden."""
    from custody import render

    settings = Settings()
    if as_json:
        typer.echo(json.dumps(render.settings_json(settings), indent=2))
    else:
        render.console().print(render.settings_table(settings))


@keys_app.command("new")
def keys_new(
    ed25519: Annotated[
        bool, typer.Option(help="An Ed25519 key beside it, so that others can check and not forge.")
    ] = True,
) -> None:
    """Make a keyring with new keys. Never replaces one."""
    from custody.keys import new_keyring

    settings = Settings()
    path = _keyring(settings, "made")
    ring = new_keyring(path, datetime.now(UTC), settings.passphrase(), ed25519=ed25519)
    typer.echo(f"Made {path} with {', '.join(key.key_id for key in ring.keys)}.")
    if not settings.keyring_passphrase:
        typer.echo(_PASSPHRASE_HINT)


@keys_app.command("list")
def keys_list(as_json: Annotated[bool, typer.Option("--json", help="As JSON lines.")] = False) -> None:
    """List the keys, with the public half where there is one. Prints no secret."""
    from custody import keys, render

    settings = Settings()
    now = datetime.now(UTC)
    path = keys.keyring_path(settings.keys)
    if path is None:
        rows = [
            {
                "id": key.key_id,
                "algorithm": key.algorithm,
                "from": None,
                "to": None,
                "public": None,
                "vkey": None,
                "signs": True,
            }
            for key in keys.open_signers(settings.keys, now)
        ]
    else:
        rows = [_key_row(key, now) for key in keys.Keyring.load(path, settings.passphrase()).keys]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = render.table("key", "algorithm", "from", "to", "public, as a vkey")
    for row in rows:
        shown = [row["id"], row["algorithm"], row["from"] or "-", row["to"] or "-", row["vkey"] or "-"]
        table.add_row(*map(render.safe, shown), style="" if row["signs"] else "dim")
    render.console().print(table)


@keys_app.command("rotate")
def keys_rotate() -> None:
    """Begin new keys now, and end the old ones a little later. Old statements still verify."""
    from custody.keys import rotate_keyring

    settings = Settings()
    path = _keyring(settings, "rotated")
    ring, new = rotate_keyring(path, passphrase=settings.passphrase())
    typer.echo(f"New in {path}: {', '.join(key.key_id for key in new)} ({len(ring.keys)} keys in all).")
    typer.echo("Verifiers need the new keys: give them the keyring, or the public half in their trust.json.")


def _given(**arguments: object) -> dict[str, Any]:
    """Return the arguments that were given: the others are the settings' to say. Given but empty is an error there."""
    return {name: value for name, value in arguments.items() if value is not None}


def _keyring(settings: Settings, done: str) -> Path:
    from custody.keys import keyring_path

    path = keyring_path(settings.keys)
    if path is None:
        raise ConfigurationError(f"{settings.keys} is a key in AWS KMS: it is {done} there, not here")
    return path


def _key_row(key: "Key", now: datetime) -> dict[str, Any]:
    import base64

    from custody.checkpoint import NoteKey
    from custody.keys import Ed25519Key
    from custody.manifest import format_time

    return {
        "id": key.key_id,
        "algorithm": key.algorithm,
        "from": format_time(key.from_) if key.from_ else None,
        "to": format_time(key.to) if key.to else None,
        "public": base64.b64encode(key.public).decode() if isinstance(key, Ed25519Key) else None,
        "vkey": NoteKey(key.key_id, key.public).vkey if isinstance(key, Ed25519Key) else None,
        "signs": (key.from_ is None or key.from_ <= now) and (key.to is None or now < key.to),
    }


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        app(args=args, prog_name="custody")
    except CustodyError as error:
        from custody.render import escape

        for line in str(error).split("\n"):
            print(f"custody: {escape(line)}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        # Whoever read us has enough. The interpreter's last flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
