"""Tables and styled lines for a terminal. Foreign text in them is escaped, and never read as markup."""

import contextlib
import os
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

from custody.errors import escape
from custody.findings import VERIFIED, Finding, Severity
from custody.settings import S3_MEANINGS, Settings
from custody.store.protocol import S3Options

if TYPE_CHECKING:
    from custody.archive import copy
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


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Return a console for the present stdout or stderr, without markup."""
    made = Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        # A file or a pipe has no width: nothing should be cut off there.
        made.width = _FILE_WIDTH
    return made


def table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table in our style. Before a column's name, `#` means numbers and `!` never wrapped."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left", pad_edge=False)
    for name in map(escape, columns):
        if name.startswith(("#", "!")):
            made.add_column(name[1:], justify="right" if name[0] == "#" else "left", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def safe(text: object, style: str = "") -> Text:
    """Return foreign text for one line of a terminal, with unprintable characters escaped."""
    return Text(escape(str(text)), style=style)


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return a table of the worst findings, as many as a person reads. `--json` prints all of them."""
    made = table("!finding", "where, what, and what to do")
    for finding in findings[:FINDINGS_SHOWN]:
        lines = [safe(finding.where, style="bold")] if finding.where else []
        if finding.key and finding.key not in finding.where:
            lines.append(safe(finding.key))
        lines.append(safe(f"{finding.message} ({finding.count:,} times)" if finding.count > 1 else finding.message))
        lines += [
            safe(f"{name} {value}", style="dim")
            for name, value in (("expected", finding.expected), ("found   ", finding.found))
            if value
        ]
        advice = f"Accepted {finding.accepted}" if finding.accepted else f"→ {finding.action}"
        lines.append(safe(advice, style="italic"))
        name = Text(f"{finding.finding}\n{finding.severity.name.lower()}", style=STYLES[finding.severity])
        made.add_row(name, Text("\n").join(lines), end_section=True)
    if len(findings) > FINDINGS_SHOWN:
        made.caption = f"The worst {FINDINGS_SHOWN} of {len(findings):,}; --json lists them all."
    return made


def report(result: "Report") -> Iterator[RenderableType]:
    """Yield the parts of a verification's report: findings, logs, the verdict."""
    if result.findings:
        yield findings_table(result.findings)
        for finding in [finding for finding in result.findings if finding.evidence][:EVIDENCE_SHOWN]:
            yield safe(f"Signed texts that contradict each other ({finding.finding}, {finding.where}):", style="bold")
            for number, text in enumerate(finding.evidence, 1):
                yield safe(f"--- {number} of {len(finding.evidence)}", style="dim")
                for line in text.splitlines():
                    yield safe(line)
    if result.logs:
        made = table("log", "#events", "#expired", "#quarantined", "#skipped", "#lost", "#head")
        for log in result.logs[:LOGS_SHOWN]:
            figures = (log.events, log.expired_events, log.quarantined, log.skipped, log.lost)
            head = f"{log.size:,} {log.root[:12]}" if log.root else f"{log.size:,}"
            made.add_row(safe(log.log), *(f"{figure:,}" for figure in figures), head)
        if len(result.logs) > LOGS_SHOWN:
            made.caption = f"The first {LOGS_SHOWN} of {len(result.logs):,} logs; --json lists them all."
        yield made
    good = result.exit_code in {VERIFIED, Severity.NOTICE}
    yield safe(f"{result.url}: {result.verdict}", style="bold green" if good else STYLES[Severity(result.exit_code)])


@contextlib.contextmanager
def verification_progress() -> Iterator[Callable[["Progress"], None] | None]:
    """Show a progress bar while a verification runs, on a terminal only."""
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


@contextlib.contextmanager
def copy_progress() -> Iterator[Callable[["copy.Progress"], None] | None]:
    """Show a progress bar while an archive is copied, on a terminal only."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[objects]:,} objects"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("listing", total=None, objects=0)

        def show(now: "copy.Progress") -> None:
            doing, count = ("listing", now.listed) if now.total is None else ("copying", now.objects)
            bar.update(task, description=doing, completed=now.stored, total=now.total, objects=count)

        yield show


def refusals_table(done: "copy.Copied") -> Table:
    """Return a table of what was not copied, the worst first, as many as a person reads."""
    made = table("!not copied", "what, and what to do")
    worst = sorted(done.refused, key=lambda refusal: -refusal.severity)
    for refusal in worst[:FINDINGS_SHOWN]:
        name = Text(f"{refusal.reason}\n{refusal.severity.name.lower()}", style=STYLES[refusal.severity])
        made.add_row(name, Text("\n").join([safe(refusal.key, style="bold"), safe(refusal.message)]), end_section=True)
    if (count := sum(done.counts.values())) > FINDINGS_SHOWN:
        made.caption = f"The worst {FINDINGS_SHOWN} of {count:,}; --json lists up to 1,000 of each kind."
    return made


def settings_table(settings: Settings, *, sources: bool = False) -> Table:
    """Return a table of all settings, with their meaning or where each value comes from. Secrets are hidden."""
    made = table("!setting", "value", "source" if sources else "meaning")
    rows = list(_walk(settings))
    origins = settings.sources(name for name, _, _ in rows) if sources else {}
    for name, value, meaning in rows:
        made.add_row(name, safe(_shown(value)), safe(origins[name]) if sources else meaning)
    made.caption = "A setting is a key of custody.toml, or a variable: CUSTODY_S3__REGION for s3.region."
    return made


def settings_json(settings: Settings) -> dict[str, Any]:
    """Return all settings as JSON types. Secrets are hidden."""
    plain: dict[str, Any] = _plain(settings.model_dump())
    return plain


def sources_json(settings: Settings) -> dict[str, Any]:
    """Return each setting's value and source as JSON types, by its name. Secrets are hidden."""
    values = {name: value for name, value, _ in _walk(settings)}
    origins = settings.sources(values)
    return {name: {"value": _plain(value), "source": origins[name]} for name, value in values.items()}


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
