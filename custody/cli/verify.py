"""`custody verify`: verify an archive, or a part of it, and print the verdict."""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from custody.cli import common, names, operators
from custody.cli.common import App
from custody.cli.terminal import echo
from custody.cli.times import time_option
from custody.errors import ConfigurationError, CustodyError, FormatError

if TYPE_CHECKING:
    from custody.keys.trust import Trust
    from custody.settings import Settings

app = App()


@app.command(
    rich_help_panel=common.VERIFY, epilog="custody verify s3://bucket/audit --trust trust.json --state heads.json"
)
def verify(  # noqa: PLR0913 - each is an option of the command
    archive: Annotated[
        str | None,
        typer.Argument(help="s3://BUCKET/PREFIX, file:///DIR or a folder. Default: the `archive` setting."),
    ] = None,
    keys: common.TrustedKeys = None,
    trust: Annotated[
        Path | None, typer.Option(help="A trust.json: keys, known heads, accepted findings.", metavar="FILE")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="A file that keeps the known heads. A head that was rolled back or forked is reported at every run,"
            " until the missing statements are restored or the finding is accepted in trust.json.",
            metavar="FILE",
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="The archive is being written: report missing heartbeats.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: findings, logs, the verdict.")] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Read the records that Kafka still has, and compare them with the archive.")
    ] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoints that a witness cosigned, or that you kept. The archive must be consistent with them. Can"
            " be repeated.",
            metavar="FILE",
        ),
    ] = None,
    logs: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            help="Verify only this LOG/PARTITION, or LOG. Can be repeated.",
            metavar="LOG",
            show_default="all",
            callback=names.logs,
        ),
    ] = None,
    since: Annotated[
        datetime | None, time_option("Read only the events of statements sealed from this time on.")
    ] = None,
    until: Annotated[
        datetime | None, time_option("Read only the events of statements sealed before this time.")
    ] = None,
    chain_only: Annotated[
        bool, typer.Option("--chain-only", help="Check only statements, signatures and trees; read no segment.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read segments, or with --chain-only follow logs; 0: only this process.",
            show_default="one per core",
        ),
    ] = None,
) -> None:
    """Verify that an archive is complete and unchanged.

    With --log, --since or --until only a part is verified, and the verdict says so. Statements, signatures and heads of
    the chosen logs are always checked from the first to the last one, so a wrong clock hides no gap. The times choose
    whose events are read. What is left out is counted.
    """
    import multiprocessing

    from custody.cli import render, verdict
    from custody.findings import finding
    from custody.settings import Settings
    from custody.store.open import open_store
    from custody.store.protocol import is_local
    from custody.verify import run as verifying
    from custody.verify.scope import Part, Scope

    if since and until and since >= until:
        raise ConfigurationError("--until must be later than --since")
    given = common.given_archive(archive) | {
        name: path for name, path in (("trust", trust), ("state", state)) if path is not None
    }
    asked = "`custody verify --kafka`"
    settings = operators.load("tasks.settings", asked).Settings(**given) if kafka else Settings(**given)
    store = open_store(settings.archive, settings.s3)
    # Each worker process would import them again for itself.
    clients = [] if is_local(store) else ["boto3"]
    multiprocessing.set_forkserver_preload([verifying.__name__, *clients])
    refused: list[CustodyError] = []
    trusted = _open_trust(settings, keys, store.url, refused)
    compared = operators.load("tasks.audit.recheck", asked).recheck(settings, store, trusted) if kafka else ()
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
            scope=Scope(contents=not chain_only, part=Part(tuple(logs or ()), since, until)),
            protection=settings.protection(),
            others=chain((finding("unreadable", f"a key cannot be used: {error}") for error in refused), compared),
            notes=notes,
        )
    if as_json:
        for line in report.to_dicts():
            echo(json.dumps(line))
    else:
        verdict.print_report(report, store)
    raise typer.Exit(report.exit_code)


def _open_trust(
    settings: "Settings", given: Sequence[str] | None, archive: str, refused: list[CustodyError]
) -> "Trust":
    """Return what to verify with: the keys given, else those of the settings if set, or if there is no trust.json.

    Args:
        settings: the settings.
        given: URIs of the keys that were given.
        archive: URL of the archive, which must not contain any trusted file.
        refused: gets an error for each key that KMS refuses. The other keys are still used.

    Raises:
        ConfigurationError: there are no keys, or a file is in the archive, where an attacker could have put it.
    """
    from custody.keys.open import keyring_path
    from custody.keys.trust import open_trust
    from custody.settings import refuse_inside

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
                "there is no key to check signatures with: give the keys that you trust with --keys URI, or a"
                " trust.json with --trust FILE. `custody init` makes an archive of your own, with its keys"
            )
    named = [*map(keyring_path, [*uris, *([own] if own else [])]), settings.trust, settings.state]
    refuse_inside(archive, [path for path in named if path])
    return open_trust(uris, settings.trust, settings.passphrase(), own, refused)


def _read_notes(path: Path) -> list[bytes]:
    """Return the checkpoints of a file.

    Raises:
        ConfigurationError: it cannot be read, or has no checkpoint. Verification decides whether each one counts.
    """
    from custody.archive.known_heads import LIMIT, split_notes
    from custody.tlog.checkpoint import parse_note

    data, _ = common.read_file(path, "checkpoint", LIMIT)
    notes = split_notes(data[:LIMIT])
    for note in notes:
        with suppress(FormatError):
            parse_note(note)
            return notes
    raise ConfigurationError(
        f"{path} has no checkpoint; give a file with the output of `custody checkpoint`, or from a witness"
    )
