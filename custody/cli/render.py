"""What people see on a terminal: tables, and foreign text made harmless.

Keys, findings and events come from an archive that somebody may have tampered with: no control character of theirs
reaches a terminal, and none of their text is taken for markup.
"""

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from custody.findings import VERIFIED, Finding, Severity
from custody.settings import S3_MEANINGS, Settings
from custody.store.protocol import S3Options

if TYPE_CHECKING:
    from custody.verify.report import Progress, Report

HIDDEN = "(hidden)"
_FILE_WIDTH = 160
FINDINGS_SHOWN = 100
EVIDENCE_SHOWN = 10
LOGS_SHOWN = 1000
STYLES = {
    Severity.NOTICE: "cyan",
    Severity.POLICY: "yellow",
    Severity.INCOMPLETE: "bold yellow",
    Severity.UNVERIFIABLE: "bold magenta",
    Severity.TAMPERED: "bold red",
}


def console(*, stderr: bool = False) -> Console:
    """Return a console for now's output, which marks up nothing of its own."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        # A file or a pipe has no width: nothing should be cut off there.
        made.width = _FILE_WIDTH
    return made


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in the one style; `#` before a column's name: numbers, `!`: never wrapped."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for name in columns:
        if name.startswith(("#", "!")):
            made.add_column(name[1:], justify="right" if name[0] == "#" else "left", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def safe(text: object, style: str = "") -> Text:
    """Return foreign text for one line of a terminal: what is not printable is shown as an escape."""
    return Text(escape(str(text)), style=style)


def escape(text: str) -> str:
    """Write characters that a terminal might obey, newlines among them, as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def write(pieces: Iterator[bytes]) -> None:
    """Write bytes as they are, or harmless ones where a person looks at them."""
    out = sys.stdout.buffer
    if not sys.stdout.isatty():
        for piece in pieces:
            out.write(piece)
        out.flush()
        return
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for piece in pieces:
        text = decoder.decode(piece)
        if not text.replace("\n", "").isprintable():
            # In JSON this is the same text: a control character may only stand in a string, where \u says it as well.
            text = "".join(
                one if one.isprintable() or one in "\n\t" else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else "?"
                for one in text
            )
        out.write(text.encode("utf-8", "backslashreplace"))
    out.flush()


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return findings, the worst first, as many as a person reads; `--json` has them all."""
    made = table("!finding", "where, what, and what to do")
    for one in findings[:FINDINGS_SHOWN]:
        lines = [safe(one.where, style="bold")] if one.where else []
        if one.key and one.key not in one.where:
            lines.append(safe(one.key))
        lines.append(safe(f"{one.message} ({one.count:,} times)" if one.count > 1 else one.message))
        lines += [
            safe(f"{name} {value}", style="dim")
            for name, value in (("expected", one.expected), ("found   ", one.found))
            if value
        ]
        lines.append(safe(f"Accepted {one.accepted}" if one.accepted else f"→ {one.action}", style="italic"))
        name = Text(f"{one.finding}\n{one.severity.name.lower()}", style=STYLES[one.severity])
        made.add_row(name, Text("\n").join(lines), end_section=True)
    if len(findings) > FINDINGS_SHOWN:
        made.caption = f"The worst {FINDINGS_SHOWN} of {len(findings):,}; --json lists them all."
        made.caption_justify = "left"
    return made


def report(found: "Report") -> Iterator[RenderableType]:
    """Yield what a person reads of a verification: findings, logs, the verdict."""
    if found.findings:
        yield findings_table(found.findings)
        for one in [one for one in found.findings if one.evidence][:EVIDENCE_SHOWN]:
            yield safe(f"Signed, and contradicting each other ({one.finding}, {one.where}):", style="bold")
            for number, text in enumerate(one.evidence, 1):
                yield safe(f"--- {number} of {len(one.evidence)}", style="dim")
                for line in text.splitlines():
                    yield safe(line)
    if found.logs:
        made = table("log", "#events", "#quarantined", "#skipped", "#lost", "#head")
        for log in found.logs[:LOGS_SHOWN]:
            figures = (log.events, log.quarantined, log.skipped, log.lost)
            head = f"{log.size:,} {log.root[:12]}" if log.root else f"{log.size:,}"
            made.add_row(safe(log.log), *(f"{figure:,}" for figure in figures), head)
        if len(found.logs) > LOGS_SHOWN:
            made.caption = f"The first {LOGS_SHOWN} of {len(found.logs):,} logs; --json lists them all."
            made.caption_justify = "left"
        yield made
    good = found.exit_code in {VERIFIED, Severity.NOTICE}
    yield safe(f"{found.url}: {found.verdict}", style="bold green" if good else STYLES[Severity(found.exit_code)])


@contextlib.contextmanager
def verification_progress() -> Iterator[Callable[["Progress"], None] | None]:
    """Show how far a verification is, on a terminal only."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield None
        return
    columns = (
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[events]:,} events"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None, events=0)
        yield lambda now: bar.update(task, completed=now.stored, total=now.total, events=now.events)


def settings_table(settings: Settings) -> Table:
    """Return all settings, secrets hidden."""
    made = table("!setting", "value", "meaning")
    for name, value, meaning in _walk(settings):
        made.add_row(name, safe(_shown(value)), meaning)
    made.caption = "A setting is a key of custody.toml, or a variable: CUSTODY_S3__REGION for s3.region."
    made.caption_justify = "left"
    return made


def settings_json(settings: Settings) -> dict[str, Any]:
    """Return all settings as JSON types, secrets hidden."""
    plain: dict[str, Any] = _plain(settings.model_dump())
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _walk(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, S3Options):
            for inner, meaning in S3_MEANINGS.items():
                yield f"{prefix}{name}.{inner}", getattr(value, inner), meaning
        else:
            yield f"{prefix}{name}", value, field.description or ""


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Mapping):
        return "\n".join(f"{name} = {_shown(inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
