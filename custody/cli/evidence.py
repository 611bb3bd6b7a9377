"""The commands whose results others can check: `checkpoint`, `evidence`, `check-evidence`, `witness`."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from custody.cli import common, names, terminal
from custody.cli.common import App, open_settings, read_file
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, FormatError, NoArchive, NotEvidence, SignatureInvalid, counted, escape
from custody.findings import Severity
from custody.format import limits
from custody.format.times import moment_of

if TYPE_CHECKING:
    from custody.archive.evidence import Result
    from custody.archive.witness import Seen
    from custody.format.layout import Log
    from custody.keys.secret import Secret
    from custody.keys.trust import Trust
    from custody.settings import Settings
    from custody.store.protocol import Store
    from custody.tlog.checkpoint import Note

app = App()

_SEVERITIES = {"refused": Severity.TAMPERED, "unsigned": Severity.UNVERIFIABLE}
"""By the outcome for a log's newest checkpoint."""


def chosen_trust(
    settings: "Settings", keys: Sequence[str] | None, *, given: bool, archive: str, more: Sequence[Path] = ()
) -> "Trust":
    """Return the trust from the arguments, else what a writer of this archive trusts.

    Args:
        settings: the settings.
        keys: URIs of the keys that were given.
        given: whether a `trust.json` was given.
        archive: URL of the archive, which must not contain any trusted file.
        more: other trusted files.

    Raises:
        ConfigurationError: a file cannot be used, or is in the archive.
    """
    from custody.keys.open import keyring_path
    from custody.keys.trust import open_trust
    from custody.settings import refuse_inside

    alone = bool(keys or given)
    uris = (keys or ()) if alone else filter(None, (settings.keys, settings.checkpoint_keys))
    named = [*map(keyring_path, uris), settings.trust, *more]
    refuse_inside(archive, [path for path in named if path])
    if alone:
        return open_trust(keys or (), settings.trust, settings.passphrase())
    keyring = keyring_path(settings.keys)
    if keyring and not keyring.exists():
        # A new key would be of no use: others signed this archive.
        raise ConfigurationError(
            f"there is no keyring {keyring} here: give the archive's trust.json with --trust, or name its keyring with"
            " --keys file:KEYRING"
        )
    return settings.own_trust()


def _log_of(store: "Store", name: str) -> "Log":
    """Return the log of a name. If it is there, no other one is listed.

    Raises:
        ConfigurationError: no log has this name, or several have.
    """
    from custody.archive.reader import choose_logs, list_logs
    from custody.format.layout import AUDIT_LOG, log_prefix, parse_log_text

    log = parse_log_text(name)
    if log is not None and next(iter(store.list(log_prefix(log))), None) is not None:
        return log
    chosen, *others = choose_logs(list_logs(store), [name], [AUDIT_LOG])
    if others:
        raise ConfigurationError(f"{name!r} names {len(others) + 1} logs: name one of them, as LOG/PARTITION")
    return chosen


def _with_leaf_secrets(trust: "Trust", settings: "Settings", archive: str) -> "Trust":
    """Return this trust, with the leaf secrets of the settings' keyrings where these can be opened.

    Leaf secrets say nothing about trust: they only serve to prove one event without its neighbours. KMS is not called.

    Raises:
        ConfigurationError: a keyring is in the archive.
    """
    from custody.keys.open import keyring_path
    from custody.keys.trust import open_trust
    from custody.settings import refuse_inside

    secrets: dict[str, Secret] = {}
    for uri in filter(None, (settings.keys, settings.checkpoint_keys)):
        path = keyring_path(uri)
        if path is None or not path.exists():
            continue
        refuse_inside(archive, [path])
        try:
            secrets |= open_trust((), None, settings.passphrase(), uri).leaves
        except ConfigurationError as error:
            common.note(escape(f"The keyring {path} was not used: {error}"))
    return replace(trust, leaves={**secrets, **trust.leaves})


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        echo(escape(line))


def _say(sentences: Iterable[str], *, err: bool = False) -> None:
    """Print sentences in lines that fit the screen."""
    width = terminal.screen_width(err=err)
    for sentence in sentences:
        indent = len(sentence) - len(sentence.lstrip())
        for line in terminal.wrap(escape(sentence), width, indent):
            if err:
                common.note(line)
            else:
                echo(line)


@app.command(rich_help_panel=common.VERIFY, epilog="custody checkpoint audit.events > checkpoints.txt")
def checkpoint(
    logs: Annotated[
        list[str] | None,
        typer.Argument(
            help="LOG/PARTITION, LOG, or audits/0. Default: all logs except the audits.", callback=names.logs
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Sign each log's head now, and write it to the archive.")
    ] = False,
    trust: common.TrustFile = None,
    keys: common.TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the checkpoint of each log.")] = False,
) -> None:
    """Print the newest checkpoint of each log: its signed head, which anybody can keep and check with a public key.

    Where there are trusted keys (--keys, --trust, or the settings), print the newest that a trusted key signed.
    """
    from custody.archive.checkpoints import write_checkpoint
    from custody.archive.guesses import claimed_sizes, nightly_audits
    from custody.archive.reader import checkpoint_sizes, choose_logs, list_logs, read_archive
    from custody.archive.trusted import check_keys, newest_checkpoint, require_trusted
    from custody.format.layout import AUDIT_LOG
    from custody.keys.open import keyring_path
    from custody.store.ahead import call_ahead
    from custody.store.open import open_store

    settings = open_settings(trust=trust)
    if write and keys:
        raise ConfigurationError("--write signs with the keys of the settings: set CUSTODY_KEYS instead of --keys")
    store = open_store(settings.archive, settings.s3)
    file = read_archive(store)
    chosen = choose_logs(list_logs(store), logs or (), [AUDIT_LOG])
    near = claimed_sizes(store, nightly_audits(file.statement.created, datetime.now(UTC)))
    own = None
    if write:
        signs = own = settings.own_trust()
        require_trusted(store, file, signs)
        signer = settings.signers(datetime.now(UTC)).ed25519()

        def written(log: "Log") -> "tuple[Note | None, int]":
            return write_checkpoint(store, log, file.id, signs, signer, near.get(str(log), 0)), 0

        found = list(call_ahead(store, written, chosen))
    else:
        path = keyring_path(settings.keys)
        known = not trust and (path is None or path.exists())
        if keys or known or settings.trust:
            own = chosen_trust(settings, keys, given=not known, archive=store.url)
            check_keys(store, file, own)

        def newest(log: "Log") -> "tuple[Note | None, int]":
            return newest_checkpoint(store, log, file.id, own, near.get(str(log), 0))

        found = list(call_ahead(store, newest, chosen))
    _print_checkpoints(chosen, [note for note, _ in found], as_json=as_json)
    if not chosen:
        common.note(escape(f"{store.url} has no log yet, and so no checkpoint."))
    for log, (checkpoint, larger) in zip(chosen, found, strict=True):
        if checkpoint is not None:
            _note_larger(log, larger)
            continue
        count = len(checkpoint_sizes(store, log))
        if write:
            reason = "its key in the archive is taken by an invalid object; the next size gets a checkpoint"
        elif not count:
            reason = "it has none yet"
        elif own is None:
            reason = f"none of the objects among its checkpoints is a checkpoint ({count:,})"
        else:
            reason = f"it has {count:,}, but no trusted key signed any of them; give trusted keys by --keys or --trust"
        common.note(escape(f"No checkpoint of {log}: {reason}."))


def _note_larger(log: "Log", larger: int) -> None:
    if larger:
        objects = counted(larger, "object of a larger size does", "objects of larger sizes do")
        common.note(escape(f"Among the checkpoints of {log}, {objects} not count; run `custody verify`."))


def _print_checkpoints(logs: "Sequence[Log]", notes: "Sequence[Note | None]", *, as_json: bool) -> None:
    if as_json:
        texts = [note.encode().decode() if note else None for note in notes]
        common.print_json(*({"log": str(log), "checkpoint": text} for log, text in zip(logs, texts, strict=True)))
    else:
        terminal.write(iter([b"\n".join(note.encode() for note in notes if note is not None)]))


@app.command(rich_help_panel=common.INVESTIGATE, epilog="custody evidence audit.events/0 1234 -o evidence.zip")
def evidence(
    record: Annotated[
        list[str],
        typer.Argument(help="The event: LOG/PARTITION and its offset in Kafka, or as custody prints it."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", dir_okay=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint that witnesses have cosigned, instead of the archive's own.", metavar="NOTE"),
    ] = None,
    for_: Annotated[
        Path | None,
        typer.Option("--for", help="The trust.json of its reader: adds proofs to the heads in it.", metavar="FILE"),
    ] = None,
    whole_batch: Annotated[
        bool,
        typer.Option("--whole-batch", help="Disclose the whole batch if the leaf secret is not available."),
    ] = False,
    trust: common.TrustFile = None,
    keys: common.TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Write one file that proves one event: the event, its statement, the proofs, a checkpoint.

    If the setting `drain.event_leaves` was off at the drain (the default), the file discloses the whole batch: up to
    `drain.batch_events` other events. The command says how many.

    If it was on, the file discloses this event alone. Of other events it shows only what the signed statement says:
    how many there are, their types, and the first and last time of each batch. This needs the leaf secret, from the
    keyring in the setting `keys` or `checkpoint_keys`, or from --keys.
    """
    from custody.archive.prove import make_evidence
    from custody.archive.reader import read_archive
    from custody.archive.trusted import check_keys
    from custody.keys.trust import open_trust
    from custody.store.open import open_store

    log, offset = names.record(record)
    settings = open_settings(trust=trust)
    store = open_store(settings.archive, settings.s3)
    file = read_archive(store)
    trusted = chosen_trust(settings, keys, given=trust is not None, archive=store.url, more=[for_] if for_ else ())
    check_keys(store, file, trusted)
    if trust is not None or keys:
        trusted = _with_leaf_secrets(trusted, settings, store.url)
    chosen = _log_of(store, log)
    made = make_evidence(
        store,
        chosen,
        offset,
        trusted,
        datetime.now(UTC),
        note=read_file(checkpoint, "checkpoint", limits.NOTE_BYTES)[0] if checkpoint else None,
        auditor=open_trust((), for_) if for_ else None,
        whole_batch=whole_batch,
    )
    try:
        output.write_bytes(made.data)
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from None
    if as_json:
        document = {"file": str(output), "bytes": len(made.data), "log": str(chosen), "offset": offset}
        common.print_json({**document, "other_events": made.others, "summary": made.summary})
        return
    _echo([f"Wrote {output} ({len(made.data):,} bytes)."])
    _say([f"Warning: {made.summary}" if made.others else made.summary], err=made.others > 0)
    check = shlex.join(["custody", "check-evidence", str(output), "--trust", str(for_ or "trust.json")])
    _say([f"Check it anywhere: `{check}`"])


@app.command(
    "check-evidence",
    rich_help_panel=common.INVESTIGATE,
    epilog="custody check-evidence evidence.zip --trust trust.json",
)
def check_evidence(
    file: Annotated[Path, typer.Argument(help="The file that `custody evidence` wrote.", dir_okay=False)],
    trust: common.TrustFile = None,
    keys: common.TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Check an evidence file, offline, with public keys only. Print the event, and what is proved.

    README.txt in the file is for people: it is not checked.
    """
    from custody.archive import evidence as checking
    from custody.keys.trust import open_trust

    if not trust and not keys:
        raise ConfigurationError("give the keys that you trust: --trust trust.json, or --keys file:KEYRING")
    settings = open_settings(trust=trust)
    trusted = open_trust(keys or (), settings.trust, settings.passphrase())
    try:
        result = checking.check_evidence(
            read_file(file, "evidence", checking.FILE_LIMIT)[0], trusted, datetime.now(UTC)
        )
    except NotEvidence as error:
        raise ConfigurationError(f"{file}: {error}") from None
    except (FormatError, SignatureInvalid) as error:
        if as_json:
            echo(json.dumps({"proved": False, "verdict": "tampered", "problems": [str(error)]}))
        else:
            _say([f"NOT PROVED: {error}"])
        raise typer.Exit(Severity.TAMPERED) from None
    if as_json:
        echo(json.dumps(result.to_dict()))
    elif result.proved:
        _echo([result.event.decode(), ""])
        _say(_proved(result))
    else:
        _say(_not_proved(result))
        _echo(["", "The checkpoint in the file:", *result.note.encode().decode().splitlines()])
    if result.severity is not None:
        raise typer.Exit(result.severity)


def _proved(result: "Result") -> Iterable[str]:
    proof, statement, verdict = result.proof, result.statement, result.checkpoint_verdict
    yield f"This event is the record at offset {proof.offset} of {proof.log}, byte for byte as it was archived."
    yield f"It was sealed at {statement.sealed_at} by {statement.writer}: the writer's own claims, by its own clock."
    yield f"Archive: {statement.archive}, {'as pinned in trust.json' if result.pinned else 'as the file claims'}."
    signers, first = ", ".join(verdict.signers), counted(result.checkpoint.size, "statement")
    yield f"Proved: the event is in {proof.log}. {signers} signed a checkpoint over its first {first}."
    for name, at in verdict.witnessed:
        yield f"  {name} saw that head at {moment_of(at):%Y-%m-%dT%H:%M:%SZ}."
    for known in result.compared:
        if known.relation == "same":
            yield f"  It is the head known from {known.origin}."
        elif known.relation == "consistent":
            yield f"  It is consistent with the head of size {known.head.size:,} known from {known.origin}."
    if result.statement_verdict.counts:
        signers = ", ".join(result.statement_verdict.held)
        yield f"  The statement's own signature by {signers} was checked too."
    for remark in result.remarks:
        yield f"Note: {remark}."
    for line in result.unproved:
        yield f"Not proved: {line}."


def _not_proved(result: "Result") -> Iterable[str]:
    for problem in result.problems:
        yield f"NOT PROVED: {problem}"
    proof, archive = result.proof, result.statement.archive
    yield f"The file claims offset {proof.offset} of {proof.log}, in the archive {archive}."


@app.command(
    rich_help_panel=common.VERIFY, epilog="custody witness s3://bucket/audit --state witness --trust trust.json"
)
def witness(
    archive: Annotated[str | None, typer.Argument(help="The archive to watch. Default: the `archive` setting.")] = None,
    state: Annotated[
        Path,
        typer.Option(help="Your own folder, for your key and the checkpoints that you cosigned.", file_okay=False),
    ] = Path("custody-witness"),
    trust: common.TrustFile = None,
    keys: common.TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the witness, then each log.")] = False,
) -> None:
    """Watch an archive: check that its checkpoints are consistent with those seen before, and cosign them.

    The first line printed is your vkey, for `witnesses` in others' trust.json. The cosigned checkpoints are for
    `custody evidence --checkpoint`.

    If a log was rolled back or forked, both signed heads are printed.

    An alarm is repeated at every run, until the missing statements are restored or exactly this loss is accepted in
    trust.json: each refusal prints the `custody accept` command for it. The witness then continues from the present
    head, and says so.
    """
    from custody.archive.witness import Witness
    from custody.format.layout import ARCHIVE
    from custody.store.open import open_store

    settings = open_settings(**common.given_archive(archive), trust=trust)
    store = open_store(settings.archive, settings.s3)
    try:
        trusted = chosen_trust(settings, keys, given=settings.trust is not None, archive=store.url, more=[state])
    except ConfigurationError:
        # With keys, that the archive is gone is for the witness to say: it may have seen it before.
        if not store.exists(ARCHIVE):
            raise NoArchive(store.url) from None
        raise
    now = datetime.now(UTC)
    watching = Witness(state, now, settings.passphrase())
    first = json.dumps({"kind": "witness", "vkey": watching.key.vkey}) if as_json else f"witness {watching.key.vkey}"
    echo(escape(first))
    worst = 0
    for seen in watching.watch(store, trusted, now):
        if as_json:
            echo(json.dumps({"kind": "log", **asdict(seen)}, default=str))
        else:
            _echo(_seen(seen))
        worst = max(worst, _SEVERITIES.get(seen.outcome, Severity.POLICY if seen.alarms else 0))
    if worst:
        raise typer.Exit(worst)


def _seen(seen: "Seen") -> Iterable[str]:
    size = f", size {seen.size:,}" if seen.size else ""
    problem = "".join(f": {text}" for text in (seen.problem, seen.remark) if text)
    kept = f", kept as {seen.path}" if seen.path else ""
    yield f"{seen.log}: {seen.outcome}{size}{kept}{problem}"
    for alarm in seen.alarms:
        yield f"{seen.log}: ALARM: {alarm}"
    for note in seen.notes:
        yield from note.split("\n")
