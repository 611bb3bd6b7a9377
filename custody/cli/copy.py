"""`custody copy`: copies an archive, and verifies the copy by the signed heads of the first."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from custody.cli import common
from custody.cli.common import App, open_settings
from custody.cli.evidence import chosen_trust
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, FormatError, StoreError, counted, escape

if TYPE_CHECKING:
    from custody.archive.copy import Copied, Progress
    from custody.keys.trust import Trust
    from custody.settings import Settings
    from custody.store.protocol import Store
    from custody.tlog.head import KnownHead
    from custody.verify.report import Report

app = App()


class _Ended(BaseException):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class _Known:
    """What is known of the first archive before it is copied."""

    heads: list[tuple[str, "KnownHead"]] = field(default_factory=list)
    unsigned: list[str] = field(default_factory=list)
    """Logs without a head that a trusted key signed."""


@app.command(rich_help_panel=common.VERIFY, epilog="custody copy s3://bucket/audit /mnt/replica --trust trust.json")
def copy(  # noqa: PLR0913 - each is an option of the command
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="The archive: s3://BUCKET/PREFIX, file:///DIR or a folder.")
    ],
    target: Annotated[str, typer.Argument(metavar="TO", help="An empty location, or an earlier copy.")],
    keys: common.TrustedKeys = None,
    trust: common.TrustFile = None,
    state: Annotated[
        Path | None,
        typer.Option(help="A file that keeps the known heads of both archives, as for `verify`.", metavar="FILE"),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Only copy, with keys what they signed. Verify TO later.")
    ] = False,
    chain_only: Annotated[
        bool, typer.Option("--chain-only", help="Verify only statements, signatures and trees; read no segment.")
    ] = False,
    from_endpoint: Annotated[
        str | None, typer.Option(help="Server of FROM, if not that of `s3.endpoint_url`.", metavar="URL")
    ] = None,
    from_region: Annotated[
        str | None, typer.Option(help="Region of FROM, if not that of `s3.region`.", metavar="NAME")
    ] = None,
    from_owner: Annotated[
        str | None, typer.Option(help="Account of FROM, if not `s3.expected_bucket_owner`.", metavar="ID")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines: what was not copied, the counts, and the lines of `verify`.")
    ] = False,
) -> None:
    """Copy an archive, and verify the copy by the signed heads of the first.

    Nothing in TO is overwritten or deleted. FROM may be written meanwhile, and the copy is a valid archive at any
    moment. Run it again to go on after an interruption, or to copy what is new.

    TO takes the settings `s3`, Object Lock too; so does FROM, unless --from-… says otherwise. The exit code is for the
    worst of what was not copied and what verification found.
    """
    from custody.archive.copy import copy_archive
    from custody.archive.copy_heads import signed_heads
    from custody.archive.reader import read_archive
    from custody.archive.trusted import check_keys
    from custody.cli import render
    from custody.store.open import open_store

    settings = open_settings(archive=target, trust=trust, state=state)
    options: dict[str, Any] = {
        "endpoint_url": from_endpoint,
        "region": from_region,
        "expected_bucket_owner": from_owner,
    }
    theirs = replace(settings.s3, **{name: value for name, value in options.items() if value is not None})
    first, second = open_store(source, theirs), open_store(settings.archive, settings.s3)
    given_keys = bool(keys or settings.trust or "keys" in settings.model_fields_set)
    trusted, known = None, _Known()
    if given_keys or not no_verify:
        try:
            # Before the keys: without an archive, none are needed.
            file = read_archive(first)
        except FormatError as error:
            raise ConfigurationError(f"nothing was copied: {error}") from None
        trusted = _trust(settings, keys, [first, second])
        check_keys(first, file, trusted)
        for log, head in signed_heads(first, file.id, trusted):
            if head is None:
                known.unsigned.append(log)
            else:
                known.heads.append((log, head))
        known.heads += _remembered(settings.state, first.url, file.pin)
    elsewhere = theirs.endpoint_url != settings.s3.endpoint_url
    reached = _Reached()
    try:
        with _ended_by_signals(), render.copy_progress() as bar:
            done = copy_archive(
                first,
                second,
                trust=trusted,
                known=known.heads,
                elsewhere=elsewhere,
                progress=lambda now: reached.show(now, bar),
            )
    except _Ended as ended:
        echo(f"custody: ended by a signal. {reached.advice}", err=True)
        _end(ended.number)
    except StoreError:
        echo(f"custody: {reached.advice}", err=True)
        raise
    _print_copied(done, first, second, as_json=as_json)
    report = None
    if trusted is not None and not no_verify:
        report = _verify(second, settings, trusted, known, chain_only=chain_only)
    _print_report(report, known, second, as_json=as_json)
    raise typer.Exit(max(done.exit_code, report.exit_code if report else 0))


def _trust(settings: "Settings", keys: list[str] | None, stores: "list[Store]") -> "Trust":
    """Return what to verify the copy with.

    Raises:
        ConfigurationError: there are no keys, or a file is in one of the two archives.
    """
    from custody.keys.open import keyring_path

    own = "keys" in settings.model_fields_set
    path = keyring_path(settings.keys)
    if not keys and not settings.trust and not own and path and not path.exists():
        raise ConfigurationError(
            "there is no key to verify the copy with: give the keys that you trust with --keys URI, or a trust.json"
            " with --trust FILE, or copy with --no-verify"
        )
    given, more = settings.trust is not None and not own, [settings.state] if settings.state else []
    trusts = [chosen_trust(settings, keys, given=given, archive=store.url, more=more) for store in stores]
    return trusts[-1]


def _remembered(state: Path | None, url: str, pin: Any) -> Iterator[tuple[str, "KnownHead"]]:
    """Yield the heads of the first archive that the state file has."""
    from custody.archive.known_heads import State
    from custody.tlog.head import KnownHead

    if state is not None and (file := State(state)).pin(url) == pin:
        for log, head in file.heads(url).items():
            yield log, KnownHead(head.size, head.root, f"the state file, for {url}")


@dataclass(slots=True)
class _Reached:
    """How far the copy is."""

    objects: int = 0

    def show(self, now: "Progress", bar: Any) -> None:
        """Take the progress, and show it."""
        self.objects = now.objects
        if bar:
            bar(now)

    @property
    def advice(self) -> str:
        """What was done, and how to go on."""
        copied = counted(self.objects, "object was copied and stays", "objects were copied and stay")
        return f"{copied}. Run the same command again to go on."


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` at SIGINT or SIGTERM."""

    def end(number: int, _: Any) -> NoReturn:
        raise _Ended(number)

    before = {kind: signal.signal(kind, end) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _end(number: int) -> NoReturn:
    """End this process by a signal, without waiting for puts: each is done or did not happen."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(1)


def _verify(store: "Store", settings: "Settings", trust: "Trust", known: _Known, *, chain_only: bool) -> "Report":
    import multiprocessing

    from custody.cli import render
    from custody.store.protocol import is_local
    from custody.verify import run as verifying
    from custody.verify.scope import Scope

    multiprocessing.set_forkserver_preload([verifying.__name__, *([] if is_local(store) else ["boto3"])])
    with render.verification_progress() as progress:
        return verifying.verify(
            store,
            trust,
            now=datetime.now(UTC),
            state=settings.state,
            progress=progress,
            scope=Scope(contents=not chain_only),
            protection=settings.protection(),
            more_heads=known.heads,
        )


def _print_copied(done: "Copied", first: "Store", second: "Store", *, as_json: bool) -> None:
    from custody.cli import render

    if as_json:
        for refusal in done.refused:
            echo(json.dumps({"kind": "refused", **refusal.to_dict()}))
        counts = {name: getattr(done, name) for name in ("objects", "stored", "present", "only_in_target")}
        refused = dict(sorted(done.counts.items()))
        echo(json.dumps({"kind": "copied", "from": first.url, "to": second.url, **counts, "refused": refused}))
        return
    out = render.console()
    if done.refused:
        out.print(render.refusals_table(done), crop=False)
    objects, present = counted(done.objects, "object"), counted(done.present, "was", "were")
    out.print(
        render.safe(
            f"Copied {objects} ({done.stored:,} bytes) from {first.url} to {second.url}. {present} there already."
        ),
        soft_wrap=True,
    )
    if done.only_in_target:
        objects = counted(done.only_in_target, "object is", "objects are")
        echo(f"{objects} in TO alone, such as expired ones: nothing is deleted there.")


def _print_report(report: "Report | None", known: _Known, second: "Store", *, as_json: bool) -> None:
    from custody.cli import render, verdict

    if report is None:
        if not as_json:
            echo(f"Not verified: run `custody verify {escape(second.url)}`.")
        return
    if as_json:
        logs = sorted({log for log, _ in known.heads})
        echo(json.dumps({"kind": "heads", "logs": logs, "unsigned": known.unsigned}))
        for line in report.to_dicts():
            echo(json.dumps(line))
        return
    verdict.print_report(report, second)
    heads = len({log for log, _ in known.heads})
    echo(f"Compared with the signed heads of {counted(heads, 'log')} of the first.")
    for log in known.unsigned[: render.LOGS_SHOWN]:
        echo(f"{escape(log)} has no head there that a trusted key signed: nobody can tell whether its end is missing.")
