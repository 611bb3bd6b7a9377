"""The command line, `custody`: set up an archive, verify it, look into it, manage its keys.

Rules:
- The operator's commands (`demo`, `up`, `drain`, …) are in a checkout, beside the package. `operators` loads them only
  for one of these commands or the help: an auditor's `verify` imports neither Prefect nor Kafka.
- A `CustodyError` becomes one clear line on stderr and an exit code: 2 for a wrong setting or argument, else 1.
  `verify` has the exit codes of FORMAT.md. Any other exception is a bug, and keeps its traceback.
- An exit code says what the command found, whether or not that could be printed. Where the output is the result itself
  (`terminal.write`, `terminal.check_written`), not to have written it is an error. `main` says so.
- Text reaches a terminal only through `custody.cli.terminal` and `custody.cli.render`, which escape control characters.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from custody.cli import common, log_lines, operators, terminal
from custody.cli.accept import app as accept_app
from custody.cli.bucket import app as bucket_app
from custody.cli.check_events import app as check_events_app
from custody.cli.common import INVESTIGATE, START, App, Group, open_settings
from custody.cli.copy import app as copy_app
from custody.cli.evidence import app as evidence_app
from custody.cli.explain import app as explain_app
from custody.cli.export import app as export_app
from custody.cli.keys import PASSPHRASE_HINT, public_keys, read_own_archive, trust_path, wanted_keyrings
from custody.cli.keys import app as keys_app
from custody.cli.query import app as query_app
from custody.cli.report import app as report_app
from custody.cli.terminal import echo
from custody.cli.verify import app as verify_app
from custody.errors import ConfigurationError, CustodyError, NoArchive, counted, escape
from custody.format import limits

if TYPE_CHECKING:
    from custody.keys.trust import Trust
    from custody.settings import Settings
    from custody.store.protocol import Store


class _Commands(Group):
    """The auditor's commands, and the operator's in a checkout."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(operators.COMMANDS if operators.checkout() else ())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        return operators.command(cmd_name) if own is None and cmd_name in operators.COMMANDS else own


app = App(
    name="custody",
    cls=_Commands,
    no_args_is_help=True,
    help="Archive audit events from Kafka, and prove that nobody changed, dropped or invented one.",
    epilog=None
    if operators.checkout()
    else f"{operators.PANEL} ({', '.join(operators.COMMANDS)}) come with {operators.WHERE}.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys_app, name="keys", rich_help_panel=common.KEYS)
app.add_typer(verify_app)
app.add_typer(accept_app)
app.add_typer(query_app)
app.add_typer(export_app)
app.add_typer(check_events_app)
app.add_typer(report_app)
app.add_typer(bucket_app)
app.add_typer(evidence_app)
app.add_typer(explain_app)
app.add_typer(copy_app)


def _version(wanted: bool) -> None:
    if wanted:
        import platform

        from custody.format import archive_file, audit, manifest
        from custody.version import DISTRIBUTION, commit, version

        echo(f"custody {version()}")
        echo(f"distribution {DISTRIBUTION}")
        echo(f"commit {commit() or 'unknown'}")
        echo(f"formats {archive_file.FORMAT}, {manifest.FORMAT}, {audit.FORMAT}")
        echo(f"Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Accept the options that come before a command."""


@app.command(rich_help_panel=START, epilog="custody init --archive s3://bucket/audit --keys keyring.json")
def init(
    heartbeat: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.PROMISE_SECONDS,
            help="Seconds after which an idle log writes a statement.",
            show_default="3600",
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.PROMISE_SECONDS,
            help="Seconds after which a log that grew gets a checkpoint.",
            show_default="3600",
        ),
    ] = None,
    retention_days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.RETENTION_DAYS,
            help="Days during which no evidence may be deleted.",
            show_default="2555, seven years",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Create the archive named in the settings, missing keys, and the trust.json for auditors."""
    from custody.archive import writer
    from custody.keys import trust_file
    from custody.keys.keyring import new_keyring
    from custody.keys.open import keyring_path
    from custody.settings import refuse_inside
    from custody.store.open import open_store

    settings = open_settings()
    store = open_store(settings.archive, settings.s3)
    keyrings, trust = wanted_keyrings(settings), trust_path(settings)
    if settings.checkpoint_keys is None and keyring_path(settings.keys) is None:
        raise ConfigurationError(
            "the setting `keys` names a KMS key, which signs only statements: set `checkpoint_keys` to a keyring, such"
            " as file:checkpoint-keys.json (created here if it is missing), or to a KMS key with key spec"
            " ECC_NIST_EDWARDS25519"
        )
    refuse_inside(store.url, [*keyrings, trust])
    made = [path for path in keyrings if not path.exists()]
    exists = _archive_exists(store)
    if exists and made:
        raise ConfigurationError(
            f"there is already an archive at {store.url}, but the keyring {made[0]} is missing: new keys cannot sign"
            " for this archive. Restore the keyring from your backup, or set `archive` to another location"
        )
    if not exists:
        trust_file.check_pin(trust, None)
    wanted = _given(heartbeat=heartbeat, checkpoint=checkpoint, retention_days=retention_days)
    with _removed_on_failure(made, store):
        for path in made:
            new_keyring(path, datetime.now(UTC), settings.passphrase(), keyrings[path])
        if not exists:
            writer.create_archive(store, lambda: settings.signers(datetime.now(UTC)).both(), **wanted)
    # Another process may have created it meanwhile.
    file = read_own_archive(store, _own_trust(settings))
    published = trust_file.publish(trust, file.pin, public_keys(settings))
    promises = file.statement
    times = f"heartbeat {promises.heartbeat} s, checkpoint {promises.checkpoint} s"
    numbers = {name: getattr(promises, name) for name in ("heartbeat", "checkpoint", "retention_days")}
    if as_json:
        common.print_json(
            {
                "archive": store.url,
                "id": file.id,
                "created": promises.created,
                **numbers,
                "existed": exists,
                "keys": settings.keys,
                "checkpoint_keys": settings.checkpoint_keys,
                "new_keyrings": [str(path) for path in made],
                "trust": str(trust),
            }
        )
        return
    stays = " (the archive existed already; it is unchanged)" if wanted.items() - numbers.items() else ""
    uris = " and ".join(filter(None, (settings.keys, settings.checkpoint_keys)))
    lines = [
        f"Archive {escape(store.url)}",
        f"  id {file.id}, created {promises.created}",
        f"  {times}, retention {promises.retention_days} days{stays}",
        f"Keys {escape(uris)}{' (new)' if made else ''}",
    ]
    if made:
        lines += [
            "  Back them up outside the archive: without them nothing more can be archived.",
            "  Anyone who has them can forge records.",
        ]
    if made and not settings.keyring_passphrase:
        lines += wrap(PASSPHRASE_HINT, 80, initial_indent="  ", subsequent_indent="  ")
    lines += [
        f"Trust {escape(str(trust))} ({escape(published)})",
        "  Give this file to auditors, but not through the archive. It has public keys",
        "  and the archive's digest, and no secret. They can verify, and cannot forge:",
        "  custody verify ARCHIVE --trust trust.json",
        "Next",
        "  custody config         show all settings, such as brokers and topics",
        "  custody check          try all that a run needs",
        "  custody drain --once   archive what is in the topics now",
        "  custody verify         verify the archive",
    ]
    echo("\n".join(lines))


@contextmanager
def _removed_on_failure(keyrings: Sequence[Path], store: "Store") -> Iterator[None]:
    """Remove new keyrings if the archive was not created: their keys have signed nothing that is stored.

    After a time-out of S3 they stay, because the put may still be carried out.
    """
    from custody.errors import TransientStoreError
    from custody.store.protocol import is_local

    try:
        yield
    except CustodyError as error:
        if is_local(store) or not isinstance(error, TransientStoreError):
            for path in keyrings:
                path.unlink(missing_ok=True)
        raise


def _archive_exists(store: "Store") -> bool:
    from custody.archive.reader import read_archive

    try:
        read_archive(store)
    except NoArchive:
        return False
    return True


def _own_trust(settings: "Settings") -> "Trust":
    """Return what the writer trusts. The file in the setting `trust` may not exist yet."""
    if settings.trust is not None and not settings.trust.exists():
        settings = settings.model_copy(update={"trust": None})
    return settings.own_trust()


@app.command(rich_help_panel=INVESTIGATE, epilog="custody show audit.events/0@1234")
def show(
    what: Annotated[
        list[str],
        typer.Argument(
            help="An object's key, LOG/PARTITION (its head), LOG/PARTITION/SEQUENCE (a manifest),"
            " LOG/PARTITION@OFFSET or LOG/PARTITION OFFSET (a record); any of these as custody prints it; or"
            " an object's path in a folder."
        ),
    ],
    events: Annotated[bool, typer.Option("--events", help="Print a manifest's events, as JSON lines.")] = False,
    position: Annotated[bool, typer.Option("--place", help="Print only the position in the chain, as JSON.")] = False,
    trust: common.TrustFile = None,
) -> None:
    """Print an object, a manifest, its events, or its position in the chain. Verifies nothing."""
    from custody.archive import show as showing
    from custody.cli import names
    from custody.errors import ObjectMissing
    from custody.format.layout import ARCHIVE
    from custody.store.open import open_store

    settings = open_settings(trust=trust)
    store = open_store(settings.archive, settings.s3)
    name = names.below(store.url, names.canonical(what))
    try:
        shown = showing.show(store, name, settings.trust_at_hand())
    except (ObjectMissing, ConfigurationError):
        if not store.exists(ARCHIVE):
            raise NoArchive(store.url) from None
        raise
    if shown.behind:
        objects = counted(shown.behind, "object lies", "objects lie")
        common.note(escape(f"{name} ends here, but {objects} behind its end; run `custody verify`."))
    if position:
        terminal.write(iter([json.dumps(shown.position, indent=2).encode() + b"\n"]))
    elif events:
        if shown.manifest is None:
            raise ConfigurationError(f"--events prints the events of a manifest, and {name!r} belongs to no manifest")
        terminal.write(showing.events(store, shown.manifest.statement))
    else:
        terminal.write(shown.content)


@app.command(rich_help_panel=START, epilog="custody config --config /etc/custody/custody.toml")
def config(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Show where each value comes from, instead of what it means.")
    ] = False,
) -> None:
    """Show all settings of this installation. Secrets are hidden."""
    from custody.cli import render

    settings = operators.known_settings()()
    if as_json:
        document = render.sources_json(settings) if sources else render.settings_json(settings)
        echo(json.dumps(document, indent=2))
    else:
        render.console().print(render.settings_table(settings, sources=sources))
    terminal.check_written()


def _given(**arguments: object) -> dict[str, Any]:
    """Return the arguments that were given. The settings supply the others, and reject empty values."""
    return {name: value for name, value in arguments.items() if value is not None}


def _print_usage_error(error: Any) -> None:
    """Print in one line what is wrong with the arguments, and where help is; the help if there are none."""
    message = error.format_message()
    if "\n" in message:
        echo(message, err=True)
        return
    command = error.ctx.command_path if error.ctx else "custody"
    said = message.replace("Value error, ", "").removesuffix(".")
    joined = " See" if said.endswith("?") else "; see"
    echo(f"custody: {escape(said[:1].lower() + said[1:])}{joined} '{escape(command)} --help'", err=True)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit. The exit code never depends on whether the output could be printed."""
    terminal.prepare()
    terminal.escape_logs()
    try:
        log_lines.use_format(lambda: (None, None))
        with common.one_command():
            code = app(args=args, prog_name="custody", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.exceptions.TyperException as error:
        _print_usage_error(error)
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except CustodyError as error:
        for problem in error.args:
            # A newline within a problem is foreign, and would look like a line of ours.
            echo(f"custody: {escape(str(problem))}", err=True)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        sys.exit(1)
    except Exception:  # noqa: BLE001 - it is reported
        import traceback

        echo(traceback.format_exc(), err=True)
        sys.exit(1)
    finally:
        terminal.report_lost()
