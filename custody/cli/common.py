"""What all commands share: the common options, the help, exit codes, JSON output, and the mistakes of users.

It is long because the exit codes of all commands are one list.

Rules:
- Each command has the common options, unless it has an option of that name itself, or `WITHOUT` lists it.
- A common option sets the variable of a setting until the command ends, so that worker processes see it too.
- The help is plain text, and imports neither the settings nor rich. So do the modules of the commands: they import what
  they need when a command runs.
- `EXIT_CODES` is the only list of exit codes. The help prints it, and the table in docs/commands.md is made of it.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command as build

from custody.cli import terminal
from custody.errors import ConfigurationError, escape

if TYPE_CHECKING:
    from custody.settings import Settings

START, OPERATE, VERIFY, INVESTIGATE, KEYS = "Start", "Operate", "Verify", "Investigate", "Keys"
PANELS = (START, OPERATE, VERIFY, INVESTIGATE, KEYS)
"""The groups of the help, in their order. A command's group is its `rich_help_panel`."""

COMMON_PANEL = "Common options"

_STDIN = "the input on stdin"
_PIECE = 1_048_576
"""Bytes of a file that are read at a time."""

WITHOUT: Mapping[str, frozenset[str]] = {
    "demo": frozenset({"archive", "keys", "config"}),
    "explain": frozenset({"archive", "keys", "config"}),
    "copy": frozenset({"archive"}),
    "check-evidence": frozenset({"archive"}),
    "detect lint": frozenset({"archive", "keys"}),
    "check-events": frozenset({"archive", "keys"}),
    "alert": frozenset({"archive", "keys"}),
}
"""The common options that make no sense for a command: `demo` makes its own archive, `copy` names two, and so on."""

_VERDICTS = {
    0: "verified",
    3: "verified, with notices only: read them once",
    10: "against policy, such as a lock, a lifecycle rule or a retention: correct it",
    11: "something is missing: restore it, or accept the loss",
    12: "something could not be checked, such as a key or an object: provide it, and verify again",
    13: "tampered: keep everything as it is, and find out who did it",
}
EXIT_CODES: Mapping[str, Mapping[int, str]] = {
    "verify": _VERDICTS,
    "audit": _VERDICTS,
    "copy": _VERDICTS,
    "check-evidence": {
        0: "proved",
        2: "the file is not evidence",
        12: "not signed by a trusted key or by enough witnesses, or signed after the key's end",
        13: "a signature is wrong, parts do not match, or the history contradicts a known head",
    },
    "check-events": {
        0: "all lines are events",
        1: "some lines would be quarantined: correct the application that wrote them",
    },
    "report": {
        0: "written; with --check: a signed audit states the file's digest",
        12: "with --check: no signed audit states the file's digest",
    },
    "export": {
        0: "written, or there is nothing to write",
        12: "nothing was written: some events are unverified, and --unverified was not given",
    },
    "witness": {
        0: "all heads were confirmed",
        10: "an object among the checkpoints does not count",
        12: "no checkpoint of a log is signed by a trusted key",
        13: "a log was rolled back, is gone or forked, or the archive is another one",
    },
    "bucket": {
        0: "nothing differs",
        1: "the bucket's configuration cannot be read",
        2: "wrong usage: no such bucket, or an archive in a folder",
        10: "something differs",
    },
    "drain": {
        0: "all logs are drained",
        1: "at least one log failed, or a topic does not exist and others were drained: stderr says why",
        2: "a wrong argument or setting, such as topics of which none exists",
    },
    "index": {0: "all logs are indexed", 1: "a log could not be indexed, or all events were rejected"},
    "roll": {0: "done, or nothing to do", 1: "an action failed"},
    "backfill": {
        0: "done",
        1: "it failed, or nothing of what was asked was copied",
        3: "restores are under way: run it again later",
    },
    "detect lint": {0: "all rules can be used, and their tests pass", 1: "something is wrong with a rule"},
    "metrics": {0: "printed, or exported", 1: "the archive cannot be read, or an export failed"},
    "alert": {0: "all were told", 1: "somebody was not told, or there is nobody to tell"},
    "up": {0: "ended by Ctrl-C or SIGTERM", 1: "nothing was started, or Prefect's server ended"},
    "deploy": {0: "deployed, or unchanged", 1: "the server does not answer, or did not take the deployments"},
    "config": {0: "shown", 1: "the output could not be written"},
    "check": {0: "all is ok", 1: "at least one line is failed", 3: "warnings only: a success too"},
    "status": {
        0: "healthy",
        1: "at least one problem is failed: act now",
        3: "warnings only: a success too. Read them in the morning",
        130: "Ctrl-C ended --watch",
    },
}
"""Exit codes of the commands that say more of them than `EVERY_EXIT_CODE`."""
EVERY_EXIT_CODE: Mapping[int, str] = {0: "done", 1: "it failed", 2: "a wrong argument or setting"}
"""Exit codes of all commands."""


# --- the common options


@dataclass(slots=True)
class _Given:
    """The common options of the running command."""

    archive: str | None = None
    quiet: bool = False
    disabled: int = logging.NOTSET
    before: dict[str, str | None] = field(default_factory=dict)


_given = _Given()


def quiet() -> bool:
    """Return whether the running command shows only results and errors."""
    return _given.quiet


def note(text: str) -> None:
    """Print a note or a warning on stderr, unless `--quiet` was given."""
    if not _given.quiet:
        terminal.echo(text, err=True)


@contextmanager
def one_command() -> Iterator[None]:
    """Undo what the common options changed when the command has ended."""
    global _given
    outer, _given = _given, _Given(disabled=logging.root.manager.disable)
    try:
        yield
    finally:
        if _given.before:
            from custody.settings import OPTIONS

            for name in _given.before:
                OPTIONS.pop(name, None)
        for name, value in _given.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        logging.disable(_given.disabled)
        _given = outer


def _set(name: str, value: str) -> None:
    from custody.settings import OPTIONS

    if "\0" in value:
        raise ConfigurationError(f"--{name.removeprefix('CUSTODY_').lower()} has a NUL character: remove it")
    _given.before.setdefault(name, os.environ.get(name))
    os.environ[name] = value
    OPTIONS[name] = f"--{name.removeprefix('CUSTODY_').lower()}"


def key_uri(text: str) -> str:
    """Return the URI of keys. What is plainly the path of a file is one, as for archives.

    Anything else stays as it is, and is refused without being shown: it may be a secret.
    """
    scheme, colon, _ = text.partition(":")
    is_uri = bool(colon) and scheme.replace("-", "").isalnum()
    is_path = "/" in text or text.endswith(".json") or (text != "" and "\0" not in text and Path(text).is_file())
    return f"file:{text}" if is_path and not is_uri else text


def _key_uris(value: list[str] | None) -> list[str] | None:
    return [key_uri(text) for text in value] if value else value


TrustedKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--keys",
        help="Keys to trust: a keyring's path, or aws-kms:///alias/NAME. Can be repeated. Default: the setting `keys`.",
        metavar="URI",
        callback=_key_uris,
    ),
]
TrustFile = Annotated[
    Path | None,
    typer.Option(
        "--trust", help="A trust.json with the keys that you trust. Default: the setting `trust`.", metavar="FILE"
    ),
]


def _archive(value: str | None) -> str | None:
    if value is not None:
        _given.archive = value
        _set("CUSTODY_ARCHIVE", value)
    return value


def _keys(value: str | None) -> str | None:
    if value is not None:
        _set("CUSTODY_KEYS", key_uri(value))
    return value


def _config(value: str | None) -> str | None:
    if value is not None:
        _set("CUSTODY_CONFIG", value)
    return value


def _quiet(value: bool) -> bool:
    if value:
        _given.quiet = True
        logging.disable(logging.WARNING)
    return value


def _common(
    archive: Annotated[
        str | None,
        typer.Option(
            help="The archive: s3://BUCKET/PREFIX, file:///DIR or a folder. Default: the setting `archive`.",
            metavar="URL",
            callback=_archive,
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            help="The keys: a keyring's path, or aws-kms:///alias/NAME. Default: the setting `keys`.",
            metavar="URI",
            callback=_keys,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="The file with the settings. Default: CUSTODY_CONFIG, else custody.toml here.",
            metavar="FILE",
            callback=_config,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings on stderr.", callback=_quiet)
    ] = False,
) -> None:
    """Declare the common options."""


def _common_options(command: str, own: Sequence[Any]) -> list[TyperOption]:
    """Return the common options that a command lacks."""
    # An argument ARCHIVE has no dashes, so --archive stands beside it.
    taken = {text for param in own for text in param.opts}
    without = WITHOUT.get(command, ())
    declared = _declared_options().items()
    return [option for name, option in declared if name not in without and taken.isdisjoint(option.opts)]


@cache
def _declared_options() -> dict[str, TyperOption]:
    """Return the common options by their names; the same objects for all commands, because building them is slow."""
    declared = typer.Typer(add_completion=False, rich_markup_mode=None)
    declared.command()(_common)
    options: dict[str, TyperOption] = {}
    for option in build(declared).params:
        if isinstance(option, TyperOption) and option.name is not None:
            options[option.name] = option
            option.name, option.expose_value = f"common_{option.name}", False
            option.rich_help_panel = COMMON_PANEL
    return options


def given_archive(positional: str | None) -> dict[str, str]:
    """Return the setting `archive` from a command's own argument, if it was given.

    Raises:
        ConfigurationError: the argument and --archive name different archives.
    """
    if positional is None:
        return {}
    if _given.archive not in {None, positional}:
        raise ConfigurationError(
            f"ARCHIVE is {positional!r}, and --archive is {_given.archive!r}: give only one of them"
        )
    return {"archive": positional}


def open_settings(**arguments: object) -> "Settings":
    """Return the settings with the arguments that were given. Empty values are rejected there."""
    from custody.settings import Settings

    return Settings(**{name: value for name, value in arguments.items() if value is not None})


# --- output


def print_json(*documents: object) -> None:
    """Print each document as one line of JSON, and end as `terminal.check_written`."""
    terminal.write(f"{json.dumps(document)}\n".encode() for document in documents)


# --- help


class Command(TyperCommand):
    """A command with the common options, and a plain help."""

    group = ""
    """The group by whose name, too, the lists here know it. `explain` and `detect explain` are two commands."""

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **{**options, "rich_markup_mode": None})
        self.listed = f"{self.group} {name or ''}".strip()
        self.params = [*self.params, *_common_options(self.listed, self.params)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and say before whose settings it reads."""
        _note_config_file(self.listed)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [
            "[OPTIONS]",
            *(_argument(param) if param.required else f"[{_argument(param)}]" for param in arguments),
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options and the common options."""
        _write_parameters(self.get_params(ctx), ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature is typer's
        """Write the exit codes, and the example."""
        codes = {**EVERY_EXIT_CODE, **EXIT_CODES.get(self.listed, {})}
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in sorted(codes.items())])
        if self.epilog:
            with formatter.section("Example"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")


class Group(TyperGroup):
    """A group of commands, with a plain help in which they are grouped by panel."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "rich_markup_mode": None})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _write_parameters(self.get_params(ctx), ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(200)))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel in sorted(panels, key=lambda panel: PANELS.index(panel) if panel in PANELS else -1):
            with formatter.section(panel):
                # All panels have one width.
                formatter.write_dl([(name.ljust(width), text) for name, text in panels[panel]])


class App(typer.Typer):
    """A part of the command line. Its commands have the common options."""

    def __init__(self, group: str = "", **options: Any) -> None:
        self._command = type("GroupedCommand", (Command,), {"group": group}) if group else Command
        super().__init__(**{"cls": Group, "rich_markup_mode": None, "pretty_exceptions_enable": False, **options})

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:
        """Return a decorator that makes a function a command. `epilog` is its example."""
        return super().command(name, **{"cls": self._command, **options})


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name).upper().strip("[]")
    return name if param.nargs == 1 else f"{name}..."


_METAVARS = {int: "N", float: "N", Path: "FILE"}


def _plain(help_: str) -> str:
    """Return the help of a parameter with a default without parentheses, and bounds in words."""
    text, bracket, facts = help_.rpartition("  [")
    facts = re.sub(r"default: \((.*?)\)(?=[;\]])", r"default: \1", facts)
    facts = re.sub(r"([0-9.]+)<=x<=([0-9.]+)", r"\1 to \2", facts)
    return text + bracket + re.sub(r"x>=([0-9.]+)", r"at least \1", facts)


def parameter_row(param: Any, ctx: Any) -> tuple[str, str] | None:
    """Return the names and the meaning of a parameter, as the help and docs/options.md show them; None if hidden."""
    record = param.get_help_record(ctx)
    if record is None:
        return None
    text = _plain(record[1])
    if param.param_type_name == "argument":
        return _argument(param), text
    names = ", ".join(sorted(param.opts, key=len))
    if param.is_flag:
        return names, text
    kind = param.type_descriptor
    metavar = param.metavar or ("|".join(map(str, kind.choices)) if kind.is_choice else _METAVARS.get(kind.annotation))
    return f"{names} {metavar or 'TEXT'}", text


def _write_parameters(params: Sequence[Any], ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], COMMON_PANEL: []}
    for param in params:
        row = parameter_row(param, ctx)
        panel = getattr(param, "rich_help_panel", None)
        if row is not None:
            sections[panel or ("Arguments" if param.param_type_name == "argument" else "Options")].append(row)
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=28)


def _note_config_file(command: str) -> None:
    """Print which settings are read from the current folder: whoever stands in a folder of others must see it."""
    from custody.settings import CONFIG_FILE, CONFIG_VARIABLE

    if "config" in WITHOUT.get(command, ()):
        return
    if CONFIG_VARIABLE not in os.environ and Path(CONFIG_FILE).exists():
        note(f"custody: settings are read from {escape(str(Path(CONFIG_FILE).absolute()))}")


# --- users' mistakes


def read_file(path: Path, noun: str, limit: int) -> tuple[bytes, str]:
    """Return a file's bytes, at most one more than the limit, and how to name it in an error. `-` is stdin.

    Raises:
        ConfigurationError: it cannot be read; the message says what it should be.
    """
    with _opened(path, noun) as file:
        return file.read(limit + 1), _STDIN if str(path) == "-" else str(path)


def stdin() -> BinaryIO:
    """Return standard input, for bytes.

    Raises:
        ConfigurationError: it is closed.
    """
    # Python has none where the file descriptor is closed, as after `<&-`.
    if sys.stdin is None:
        raise ConfigurationError(f"{_STDIN} cannot be read: it is closed")
    return sys.stdin.buffer


def file_digest(path: Path, noun: str) -> str:
    """Return the SHA-256 of a file of any size, read in pieces, in hex. `-` is stdin.

    Raises:
        ConfigurationError: it cannot be read; the message says what it should be.
    """
    digest = sha256()
    with _opened(path, noun) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, noun: str) -> Iterator[BinaryIO]:
    """Open a file for reading; `-` is stdin. What is wrong while it is read is an error that names it, too."""
    name = _STDIN if str(path) == "-" else f"the {noun} {path}"
    try:
        with nullcontext(stdin()) if name == _STDIN else path.open("rb") as file:
            yield file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not a possible file name"
        raise ConfigurationError(f"{name} cannot be read: {reason}") from None
