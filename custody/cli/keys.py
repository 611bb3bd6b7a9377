"""`custody keys`: make, list, rotate, export and end the signing keys."""

import contextlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from custody.cli import common, terminal
from custody.cli.common import App, open_settings
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, KeyUnavailable, counted, escape

if TYPE_CHECKING:
    from custody.format.archive_file import ArchiveFile
    from custody.keys.key import KeyAlgorithm, PublicKey
    from custody.keys.trust import Trust
    from custody.settings import Settings
    from custody.store.protocol import Store
    from custody.tlog.head import Head

app = App(no_args_is_help=True, help="Make, list and rotate the signing keys, and export the public ones.")

PASSPHRASE_HINT = "It is not encrypted. To encrypt a keyring, set CUSTODY_KEYRING_PASSPHRASE before making it."  # noqa: S105
TRUST_FILE = "trust.json"


_Json = Annotated[bool, typer.Option("--json", help="As one JSON document.")]


@app.command(epilog="custody keys new --keys keyring.json")
def new(*, as_json: _Json = False) -> None:
    """Make the keyrings named in the settings, with new keys. Never replaces a keyring."""
    from custody.keys.keyring import new_keyring

    settings = open_settings()
    keyrings = _want_keyrings(settings, "made")
    for path in keyrings:
        if path.is_dir():
            raise ConfigurationError(f"keyring {path} is a folder; name a file in it, such as {path / 'keyring.json'}")
        if path.exists():
            raise ConfigurationError(
                f"keyring {path} already exists, and replacing it would lose its keys; for new keys in it, run"
                " `custody keys rotate`"
            )
    if _has_archive(settings):
        common.note(
            f"WARNING: there is already an archive at {escape(settings.archive)}. The new keys can neither continue it"
            " nor verify it. Restore the keyring from your backup, or set `archive` to another location"
        )
    made = {
        path: new_keyring(path, datetime.now(UTC), settings.passphrase(), algorithms)
        for path, algorithms in keyrings.items()
    }
    if as_json:
        common.print_json({"keyrings": {str(path): [key.key_id for key in ring.keys] for path, ring in made.items()}})
        return
    for path, ring in made.items():
        echo(f"Made {path} with {', '.join(key.key_id for key in ring.keys)}.")
        if not settings.keyring_passphrase:
            echo(PASSPHRASE_HINT)


@app.command("list", epilog="custody keys list --keys keyring.json")
def list_(*, as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the keys.")] = False) -> None:
    """List the keys, with their public keys where there are any. Prints no secret."""
    from custody.cli import render

    settings = open_settings()
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in public_keys(settings)]
    if as_json:
        terminal.write(f"{json.dumps(row)}\n".encode() for row in rows)
        return
    table = render.table("!key", "!algorithm", "!from", "!to", "!public, as a vkey")
    for row in rows:
        shown = [row["id"], row["algorithm"], row["from"] or "-", row["to"] or "-", row["vkey"] or "-"]
        table.add_row(*map(render.safe, shown), style="" if row["valid"] else "dim")
    render.console().print(render.Fitted(table, ("public, as a vkey", "algorithm"), names="key"))
    terminal.check_written()


@app.command(epilog="custody keys rotate && custody keys export -o trust.json")
def rotate(*, as_json: _Json = False) -> None:
    """Start new keys now, and end the old ones a little later. Old signatures still verify."""
    from custody.keys.keyring import rotate_keyring

    settings = open_settings()
    rotated = [
        (path, *rotate_keyring(path, passphrase=settings.passphrase())) for path in _want_keyrings(settings, "rotated")
    ]
    if as_json:
        common.print_json({"keyrings": {str(path): [key.key_id for key in added] for path, _, added in rotated}})
        return
    for path, ring, added in rotated:
        echo(f"New in {path}: {', '.join(key.key_id for key in added)} ({counted(len(ring.keys), 'key')} in all).")
    file = trust_path(settings)
    echo(f"Verifiers need the new public key: run `custody keys export -o {file}`, and give them this file.")


@app.command(epilog="custody keys export -o trust.json")
def export(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write or to extend.", show_default="stdout", dir_okay=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With -o: what was written, as one JSON document. Stdout is always JSON.")
    ] = False,
) -> None:
    """Write trust.json for auditors: public keys, key ids and the archive's pin. It has no secret.

    An existing file is extended: missing keys are added, and all else stays.
    """
    from custody.archive.reader import read_archive
    from custody.keys import trust_file
    from custody.settings import refuse_inside
    from custody.store.open import open_store

    settings = open_settings()
    store = open_store(settings.archive, settings.s3)
    if output is not None:
        refuse_inside(store.url, [output])
    # Before the keys: who has neither needs `custody init`, which makes both.
    read_archive(store)
    pin = read_own_archive(store, settings.own_trust()).pin
    keys = public_keys(settings)
    if output is None:
        terminal.write(iter([trust_file.encode(pin, keys)]))
        return
    published = trust_file.publish(output, pin, keys)
    if as_json:
        common.print_json({"trust": str(output), "change": published, "keys": [key.key_id for key in keys]})
        return
    echo(f"{escape(str(output))}: {escape(published)}")


@app.command(epilog="custody verify --chain-only --json | custody keys end ID --at -")
def end(
    key: Annotated[str, typer.Argument(help="The key's id, as in `custody keys list`.", metavar="ID")],
    at: Annotated[
        Path,
        typer.Option(
            "--at",
            help="The last heads for which it counts; - is stdin. One of: the output of `custody verify --json` or"
            " `custody checkpoint`, a state file, a trust.json, or"
            ' {"TOPIC/PARTITION":{"size":…,"root":"…"},…}.',
            metavar="HEADS",
        ),
    ],
    audits: Annotated[
        str | None,
        typer.Option(
            help="The head of the log of audits, if HEADS does not have it; 0 if there is no audit yet.",
            metavar="SIZE:ROOT",
        ),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="The trust.json to write to. Default: the `trust` setting.", metavar="FILE")
    ] = None,
    as_json: _Json = False,
) -> None:
    """End a key that leaked: from now on its signatures count only for statements within HEADS.

    First run `custody keys rotate`, and wait until running drains have ended. Then run the example, if you believe the
    verdict.

    Give the file to everyone who verifies. If a key is ended twice, the smaller head of each log counts.
    """
    from custody.archive.known_heads import LIMIT, read_heads
    from custody.format.layout import AUDIT_LOG
    from custody.keys import trust_file
    from custody.keys.trust import load_trust
    from custody.store.open import open_store

    settings = open_settings(trust=trust)
    path = trust_path(settings)
    opened = load_trust(path)
    url = open_store(settings.archive, settings.s3).url
    data, source = common.read_file(at, "heads file", LIMIT)
    heads = dict(read_heads(data, source, opened.archive, url))
    if audits is not None:
        heads[str(AUDIT_LOG)] = _parse_head(audits)
    elif str(AUDIT_LOG) not in heads:
        raise ConfigurationError(
            f"{source} does not have the head of the log of audits, so the key would count for no audit: add --audits"
            f" SIZE:ROOT (from {AUDIT_LOG} in a report or among checkpoints), or --audits 0 if there is no audit yet"
        )
    until = trust_file.end_key(path, key, heads)
    if as_json:
        ended = {log: {"size": head.size, "root": head.root.hex()} for log, head in sorted(until.items())}
        common.print_json({"trust": str(path), "key": key, "until": ended})
        return
    echo(f"{escape(str(path))}: {escape(key)} counts only up to")
    for log, head in sorted(until.items()):
        echo(f"  {escape(log)} {head.size} {head.root.hex()}")
    echo("  and not at all in other logs." if until else "  nothing: it has ended in all logs.")
    if open_settings().trust is None:
        echo(f"Set CUSTODY_TRUST={escape(str(path.absolute()))} for the drain, audits and the roll too.")
    # A key can be ended by someone else than the writer, without the writer's keys.
    with contextlib.suppress(ConfigurationError, KeyUnavailable):
        if any(public.key_id == key and _valid(public, datetime.now(UTC)) for public in public_keys(settings)):
            echo("This key still signs here: run `custody keys rotate`.")


def _has_archive(settings: "Settings") -> bool:
    """Return whether there is an archive at the setting's location. No, if it cannot be read."""
    from custody.errors import StoreError
    from custody.format.layout import ARCHIVE
    from custody.store.open import open_store

    try:
        return open_store(settings.archive, settings.s3).exists(ARCHIVE)
    except (StoreError, ConfigurationError):
        return False


def wanted_keyrings(settings: "Settings") -> "dict[Path, tuple[KeyAlgorithm, ...]]":
    """Return the keyrings in the settings, each with the algorithms of its keys."""
    from custody.keys.key import ALGORITHMS
    from custody.keys.open import keyring_path

    path = keyring_path(settings.keys)
    other = keyring_path(settings.checkpoint_keys) if settings.checkpoint_keys else path
    if path == other:
        return {path: ALGORITHMS} if path else {}
    keyrings: dict[Path, tuple[KeyAlgorithm, ...]] = {path: ("HMAC-SHA256",)} if path else {}
    return {**keyrings, other: ("Ed25519", "SHAKE-256")} if other else keyrings


def trust_path(settings: "Settings") -> Path:
    """Return the path of this archive's trust.json: the setting's, else beside the keyring."""
    keyrings = wanted_keyrings(settings)
    return settings.trust or (next(iter(keyrings)).parent / TRUST_FILE if keyrings else Path(TRUST_FILE))


def read_own_archive(store: "Store", trust: "Trust") -> "ArchiveFile":
    """Read `archive.json`, and check that the writer's own keys signed it.

    Raises:
        NoArchive: there is none.
        ConfigurationError: the writer's keys did not sign it.
        HeadRollback: it is not the trusted one.
    """
    from custody.archive.trusted import check_archive_signatures, read_trusted_archive

    file = read_trusted_archive(store, trust)
    verdict = check_archive_signatures(file, trust, pinned=trust.archive == file.pin)
    if not verdict.counts:
        raise ConfigurationError(
            f"the archive.json at {store.url} is pinned in trust.json, but not signed by the keys in the settings:"
            f" {verdict.reason}. Set `keys` to the keys that this archive was created with"
        )
    return file


def _want_keyrings(settings: "Settings", done: str) -> "dict[Path, tuple[KeyAlgorithm, ...]]":
    """Return the keyrings in the settings, and raise an error if there is none."""
    keyrings = wanted_keyrings(settings)
    if not keyrings:
        raise ConfigurationError(f"{settings.keys} is a key in AWS KMS: it is {done} there, not here")
    return keyrings


def public_keys(settings: "Settings") -> "list[PublicKey]":
    """Return the public facts of the writer's keys."""
    from custody.keys.open import open_public

    return open_public(settings.keys, settings.passphrase(), settings.checkpoint_keys)


def _valid(key: "PublicKey", now: datetime) -> bool:
    from custody.keys.key import holds

    return holds(key.from_, key.to, now)


def _row(key: "PublicKey", now: datetime) -> dict[str, Any]:
    from custody.keys.key import encode_key
    from custody.tlog.checkpoint import NoteKey, is_name

    entry = encode_key(key)
    vkey = NoteKey(key.key_id, key.public).vkey if key.public and is_name(key.key_id) else None
    return {**entry, "public": entry.get("public"), "vkey": vkey, "valid": _valid(key, now)}


def _parse_head(text: str) -> "Head":
    from custody.tlog.head import Head
    from custody.tlog.signatures import NOWHERE

    match = re.fullmatch(r"([0-9]{1,18}):([0-9a-fA-F]{64})", text, re.ASCII)
    if match is None and text != "0":
        raise ConfigurationError(f"--audits is {text[:100]!r}; want SIZE:ROOT, the root in hex, or 0")
    return Head(int(match[1]), bytes.fromhex(match[2])) if match else NOWHERE
