"""`custody keys`: make, list and rotate the keys that sign, hand out their public halves, end one that leaked."""

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from custody.errors import ConfigurationError, KeyUnavailable, ObjectMissing
from custody.settings import Settings

if TYPE_CHECKING:
    from custody.format.archive_file import ArchiveFile
    from custody.keys.key import KeyAlgorithm, PublicKey
    from custody.keys.trust import Trust
    from custody.store.protocol import Store
    from custody.tlog.head import Head

app = typer.Typer(no_args_is_help=True, help="Make, list and rotate the keys that sign, and say whom others may trust.")

PASSPHRASE_HINT = "It is not encrypted: set CUSTODY_KEYRING_PASSPHRASE before making it, to have it encrypted."  # noqa: S105
TRUST_FILE = "trust.json"


@app.command()
def new() -> None:
    """Make the keyrings that the settings name, with new keys. Never replaces one."""
    from custody.cli.render import escape
    from custody.keys.keyring import new_keyring

    settings = Settings()
    keyrings = wanted_keyrings(settings)
    _want_keyrings(settings, keyrings, "made")
    for path in keyrings:
        if path.is_dir():
            raise ConfigurationError(f"keyring {path}: is a folder; name a file in it, such as {path / 'keyring.json'}")
        if path.exists():
            raise ConfigurationError(
                f"keyring {path}: is there already, and replacing it would lose its keys; run `custody keys rotate`"
            )
    url = _made_archive(settings)
    if url is not None:
        typer.echo(
            f"WARNING: there is an archive at {escape(url)} already: these new keys are not those that signed it, and"
            " can neither go on with it nor verify it. Put the keyring back from your copy, or name another place in"
            " the setting `archive`",
            err=True,
        )
    for path, algorithms in keyrings.items():
        ring = new_keyring(path, datetime.now(UTC), settings.passphrase(), algorithms)
        typer.echo(f"Made {path} with {', '.join(key.key_id for key in ring.keys)}.")
        if not settings.keyring_passphrase:
            typer.echo(PASSPHRASE_HINT)


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="As JSON lines.")] = False) -> None:
    """List the keys, with the public half where there is one. Prints no secret."""
    from custody.cli import render

    settings = Settings()
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in _public(settings)]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = render.table("key", "algorithm", "from", "to", "public, as a vkey")
    for row in rows:
        shown = [row["id"], row["algorithm"], row["from"] or "-", row["to"] or "-", row["vkey"] or "-"]
        table.add_row(*map(render.safe, shown), style="" if row["valid"] else "dim")
    render.console().print(table)


@app.command()
def rotate() -> None:
    """Begin new keys now, and end the old ones a little later. What the old ones signed still verifies."""
    from custody.keys.keyring import rotate_keyring

    settings = Settings()
    keyrings = wanted_keyrings(settings)
    _want_keyrings(settings, keyrings, "rotated")
    for path in keyrings:
        ring, added = rotate_keyring(path, passphrase=settings.passphrase())
        typer.echo(f"New in {path}: {', '.join(key.key_id for key in added)} ({len(ring.keys)} keys in all).")
    file = trust_path(settings)
    typer.echo(f"Verifiers need the new public key: run `custody keys export -o {file}`, and give them the file.")


@app.command()
def export(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write, or to extend; else stdout.", dir_okay=False),
    ] = None,
) -> None:
    """Write trust.json: public keys, key ids and the archive's pin, and no secret. This is what auditors are given.

    A file that is there is extended: keys that it lacks are added, and all else in it stays.
    """
    from custody.cli.render import escape
    from custody.keys import trust_file
    from custody.store.open import open_store

    settings = Settings()
    pin = read_own_archive(open_store(settings.archive, settings.s3), settings.own_trust()).pin
    keys = _public(settings)
    if output is None:
        typer.echo(trust_file.encode(pin, keys), nl=False)
        return
    refuse_inside(open_store(settings.archive, settings.s3).url, [output])
    typer.echo(f"{escape(str(output))}: {escape(str(trust_file.publish(output, pin, keys)))}")


@app.command()
def end(
    key: Annotated[str, typer.Argument(help="The key's id, as `custody keys list` has it.", metavar="ID")],
    at: Annotated[
        Path,
        typer.Option(
            "--at",
            help="The heads up to which it counts, - for stdin: what `custody verify --json` or `custody checkpoint`"
            " printed, a state file, a trust.json, or"
            ' {"TOPIC/PARTITION":{"size":…,"root":"…"},…}.',
            metavar="HEADS",
        ),
    ],
    audits: Annotated[
        str | None,
        typer.Option(
            help="The head of the log of audits, where HEADS does not have it: 0 if there is no audit yet.",
            metavar="SIZE:ROOT",
        ),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="The trust.json to write it into; else the setting's.", metavar="FILE")
    ] = None,
) -> None:
    """End a key that leaked: from now on it counts only for what lies within HEADS, whoever asks.

    First `custody keys rotate`, and let runs that are under way end. Then, with a verdict that you believe:

      custody verify --chain-only --json | custody keys end ID --at -

    Give the file to everybody who verifies. Ended twice, a key ends at the smaller head of each log.
    """
    from custody.archive.head_files import read_heads
    from custody.cli.render import escape
    from custody.format.layout import AUDIT_LOG
    from custody.keys import trust_file
    from custody.keys.trust import load_trust
    from custody.store.open import open_store

    settings = Settings(**({"trust": trust} if trust else {}))
    path = trust_path(settings)
    opened = load_trust(path)
    url = open_store(settings.archive, settings.s3).url
    data, what = _read(at)
    heads = dict(read_heads(data, what, opened.archive, url))
    if audits is not None:
        heads[str(AUDIT_LOG)] = _parse_head(audits)
    elif str(AUDIT_LOG) not in heads:
        raise ConfigurationError(
            f"{what} does not say where the log of audits ends, and the key would count for no audit at all: add"
            f" --audits SIZE:ROOT ({AUDIT_LOG} in a report or among checkpoints has it), or --audits 0 if there is none"
        )
    until = trust_file.end_key(path, key, heads)
    typer.echo(f"{escape(str(path))}: {escape(key)} counts only up to")
    for log, head in sorted(until.items()):
        typer.echo(f"  {escape(log)} {head.size} {head.root.hex()}")
    typer.echo("  and in any other log for nothing." if until else "  nothing: it has ended everywhere.")
    if Settings().trust is None:
        typer.echo(
            f"Set CUSTODY_TRUST={escape(str(path.absolute()))}, so that the drain, audits and the roll know it too."
        )
    if any(one.id == key and _valid(one, datetime.now(UTC)) for one in _public_at_hand(settings)):
        typer.echo("It is still among the keys that sign here: run `custody keys rotate`.")


def _made_archive(settings: Settings) -> str | None:
    """Return the URL of the archive that the settings name, None where there is none or nobody can look."""
    from custody.archive.reader import read_archive
    from custody.errors import FormatError, StoreError
    from custody.store.open import open_store

    try:
        store = open_store(settings.archive, settings.s3)
        read_archive(store)
    except FormatError:
        return store.url
    except (StoreError, ConfigurationError):
        return None
    return store.url


def wanted_keyrings(settings: Settings) -> "dict[Path, tuple[KeyAlgorithm, ...]]":
    """Return the keyrings that the settings name, and what keys each is there for."""
    from custody.keys.key import ALGORITHMS
    from custody.keys.open import keyring_path

    path = keyring_path(settings.keys)
    if settings.checkpoint_keys is None:
        return {path: ALGORITHMS} if path else {}
    other = keyring_path(settings.checkpoint_keys)
    if path and path == other:
        return {path: ALGORITHMS}
    keyrings: dict[Path, tuple[KeyAlgorithm, ...]] = {path: ("HMAC-SHA256",)} if path else {}
    return {**keyrings, other: ("Ed25519", "SHAKE-256")} if other else keyrings


def trust_path(settings: Settings) -> Path:
    """Return where this archive's trust.json lies: the setting's, else beside the keyring."""
    keyrings = wanted_keyrings(settings)
    return settings.trust or (next(iter(keyrings)).parent / TRUST_FILE if keyrings else Path(TRUST_FILE))


def read_own_archive(store: "Store", trust: "Trust") -> "ArchiveFile":
    """Read `archive.json`, and refuse one that the writer's own keys did not sign.

    Raises:
        ConfigurationError: there is none, or others signed it.
    """
    from custody.archive.reader import read_archive
    from custody.archive.trusted import check_archive_signatures

    try:
        file = read_archive(store)
    except ObjectMissing:
        raise ConfigurationError(f"there is no archive at {store.url}; `custody init` makes one") from None
    verdict = check_archive_signatures(file, trust, pinned=trust.archive == file.pin)
    if not verdict.counts:
        raise ConfigurationError(
            f"the archive.json at {store.url} is not signed by the keys that the settings name: {verdict.reason}. Name"
            " the keys that this archive was made with, or another place in the setting `archive`"
        )
    if trust.archive is not None and trust.archive != file.pin:
        raise ConfigurationError(
            f"the archive.json at {store.url} is of the archive {file.id} (SHA-256 {file.pin.sha256}), and trust.json"
            f" is for {trust.archive.id} ({trust.archive.sha256}): find out which is right"
        )
    return file


def refuse_inside(archive: str, paths: "list[Path]") -> None:
    """Refuse files that lie in the archive: whoever tampers with it could have put them there.

    Raises:
        ConfigurationError: one does, by its own name or by that of a link's target.
    """
    for path in paths:
        try:
            places = (path.parent.resolve() / path.name, path.resolve())
        except (OSError, RuntimeError, ValueError):
            raise ConfigurationError(f"{path}: no file can have that name, or its links lead nowhere") from None
        for real in places:
            if f"{real.as_uri()}/".startswith(f"{archive}/"):
                raise ConfigurationError(
                    f"{path} lies in the archive, and nothing in it is trusted: whoever can change the archive could"
                    " have put it there. Keep keys, trust.json and the state file elsewhere, and take them from there"
                )


def _want_keyrings(settings: Settings, keyrings: "dict[Path, tuple[KeyAlgorithm, ...]]", done: str) -> None:
    if not keyrings:
        raise ConfigurationError(f"{settings.keys} is a key in AWS KMS: it is {done} there, not here")


def _public(settings: Settings) -> "list[PublicKey]":
    from custody.keys.open import open_public

    return open_public(settings.keys, settings.passphrase(), settings.checkpoint_keys)


def _public_at_hand(settings: Settings) -> "list[PublicKey]":
    """Return the writer's keys where there are any: whoever ends a key may not be the writer."""
    try:
        return _public(settings)
    except (ConfigurationError, KeyUnavailable):
        return []


def _valid(key: "PublicKey", now: datetime) -> bool:
    from custody.keys.key import holds

    return holds(key.from_, key.to, now)


def _row(key: "PublicKey", now: datetime) -> dict[str, Any]:
    from custody.format.times import format_time
    from custody.tlog.checkpoint import NoteKey, is_name

    return {
        "id": key.id,
        "algorithm": key.algorithm,
        "from": format_time(key.from_) if key.from_ else None,
        "to": format_time(key.to) if key.to else None,
        "public": base64.b64encode(key.public).decode() if key.public else None,
        "vkey": NoteKey(key.id, key.public).vkey if key.public and is_name(key.id) else None,
        "valid": _valid(key, now),
    }


def _read(at: Path) -> tuple[bytes, str]:
    from custody.archive.head_files import LIMIT

    if str(at) == "-":
        return sys.stdin.buffer.read(LIMIT + 1), "what came by stdin"
    try:
        with at.open("rb") as file:
            return file.read(LIMIT + 1), str(at)
    except OSError as error:
        raise ConfigurationError(f"the heads {at} cannot be read: {error.strerror}") from None


def _parse_head(text: str) -> "Head":
    from custody.tlog.head import Head
    from custody.tlog.signatures import NOWHERE

    size, _, root = text.partition(":")
    if text == "0":
        return NOWHERE
    if not (size.isascii() and size.isdigit() and len(size) <= 18 and len(root) == 64):
        raise ConfigurationError(f"--audits is {text[:100]!r}; want SIZE:ROOT, the root in hex, or 0")
    try:
        return Head(int(size), bytes.fromhex(root))
    except ValueError:
        raise ConfigurationError(f"--audits is {text[:100]!r}; want SIZE:ROOT, the root in hex, or 0") from None
