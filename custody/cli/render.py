"""Tables and styled lines for a terminal. Foreign text in them is escaped, and never read as markup."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from custody.cli import terminal
from custody.cli.common import quiet
from custody.errors import counted, escape
from custody.findings import VERIFIED, Finding, Severity
from custody.settings import S3_MEANINGS, Settings
from custody.store.protocol import S3Options

if TYPE_CHECKING:
    from custody.archive import copy
    from custody.verify.report import Progress, Report

HIDDEN = "(hidden)"
_FILE_WIDTH = 160
PROGRESS_AFTER = 1.0
"""Seconds of work after which progress is shown."""
_FOLDED = 18
"""Characters of a folded column that are left to it before other columns are left out."""
_NAME_WIDTH = 12
"""A name is not shortened below this."""
_BESIDE_WIDTH = 100
"""From this width on, an entry has its name beside it. On a narrower screen the name stands above."""
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
    """Return a console for the present stdout or stderr, without markup. A file or a pipe gets no trailing blanks."""
    made = Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.file = terminal.unpadded(sys.stderr if stderr else sys.stdout)
        if "COLUMNS" not in os.environ:
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


class Fitted:
    """A table without as many columns as needed to fit the screen on which it is printed. Numbers are never cut.

    Attributes:
        whole: the table. Its columns that wrap get at least `_FOLDED` characters.
        left_out: headings of columns that may be left out, the first ones first. The caption names those that are.
        names: heading of the column whose names are shortened in their middle, so that their ends stay.
    """

    def __init__(self, whole: Table, left_out: Sequence[str], names: str = "") -> None:
        self.whole, self.left_out, self.names = whole, left_out, names

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        columns, lacking = list(self.whole.columns), list[str]()
        for heading in self.left_out:
            if sum(map(self._least_width, columns)) <= options.max_width:
                break
            columns = [column for column in columns if column.header != heading]
            lacking.append(heading)
        free = max(0, options.max_width - sum(map(self._least_width, columns)))
        made = table()
        for column in columns:
            made.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow)
        for row, *cells in zip(self.whole.rows, *(self._cells(column, free) for column in columns), strict=True):
            made.add_row(*cells, style=row.style)
        captions = [str(self.whole.caption)] if self.whole.caption else []
        if lacking:
            captions.append(f"Left out, to fit the screen: {', '.join(lacking)}; --json has all.")
        made.caption = "\n".join(captions) or None
        yield made

    def _cells(self, column: Column, free: int) -> Iterator[RenderableType]:
        """Yield a column's cells. Names get so many characters more than the least."""
        for cell in column.cells:
            if column.header == self.names and isinstance(cell, Text):
                yield Text(shorten(cell.plain, _NAME_WIDTH + free), style=cell.style)
            else:
                yield cell

    def _least_width(self, column: Column) -> int:
        """Return the width that a column needs, with the gap after it."""
        cells = (column.header, *column.cells)
        widest = max((cell_len(line) for cell in cells for line in str(cell).splitlines()), default=0)
        least = _NAME_WIDTH if column.header == self.names else widest if column.no_wrap else _FOLDED
        return min(widest, least) + 3


def shorten(name: str, width: int) -> str:
    """Return a name of at most this width; what is left out in its middle is `…`."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"


def safe(text: object, style: str = "") -> Text:
    """Return foreign text for one line of a terminal, with unprintable characters escaped."""
    return Text(escape(str(text)), style=style)


def unbroken(text: Text, width: int, lead: Text) -> Iterator[Text]:
    """Yield a text in lines of a width, broken between its words alone, the first one after a lead.

    So an object's key, which may be wider than the screen, can be copied. Print it with `crop=False`.
    """
    starts, column = list[int](), 0
    for word in re.finditer(r"\S+\s*", text.plain):
        if column and column + cell_len(word[0].rstrip()) > width - cell_len(lead.plain):
            starts.append(word.start())
            column = 0
        column += cell_len(word[0])
    blank = Text(" " * cell_len(lead.plain))
    for number, line in enumerate(text.divide(starts)):
        line.rstrip()
        yield Text.assemble(blank if number else lead, line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry is called, in words of one style, and what is said about it, in paragraphs."""

    names: tuple[str, ...]
    style: str
    text: tuple[Text, ...]


class Entries:
    """Findings or the like. Their texts are beside their names, or below them where a word would be broken else.

    No word is broken in any case. Print it with `crop=False`.
    """

    def __init__(self, headings: tuple[str, str], entries: Sequence[Entry], caption: str = "") -> None:
        self._headings, self._entries, self._caption = headings, entries, caption

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        names = max((cell_len(name) for entry in self._entries for name in entry.names), default=0)
        words = (word for entry in self._entries for line in entry.text for word in line.plain.split())
        if options.max_width >= max(_BESIDE_WIDTH, names + 3 + max(map(cell_len, words), default=0)):
            made = table(*self._headings)
            made.caption = self._caption or None
            for entry in self._entries:
                name = Text("\n".join(entry.names), style=entry.style)
                made.add_row(name, Text("\n").join(entry.text), end_section=True)
            yield made
            return
        for entry in self._entries:
            yield Text(", ".join(entry.names), style=entry.style)
            for line in entry.text:
                yield from unbroken(line, options.max_width, Text("  "))
            yield Text("")
        if self._caption:
            yield Text(self._caption)


class FindingsTable(Entries):
    """The worst findings, as many as a person reads. `--json` prints all of them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        shown, caption = findings[:FINDINGS_SHOWN], ""
        if len(findings) > FINDINGS_SHOWN:
            caption = f"The worst {FINDINGS_SHOWN} of {len(findings):,}; --json lists them all."
        super().__init__(("!finding", "where, what, and what to do"), [*map(_finding_entry, shown)], caption)


def _finding_entry(finding: Finding) -> Entry:
    """Return where a finding is, what it is, and what to do."""
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
    names = (finding.finding, finding.severity.name.lower())
    return Entry(names, STYLES[finding.severity], tuple(lines))


def report(result: "Report") -> Iterator[RenderableType]:
    """Yield the parts of a verification's report: findings, logs, the verdict."""
    if result.findings:
        yield FindingsTable(result.findings)
        for finding in [finding for finding in result.findings if finding.evidence][:EVIDENCE_SHOWN]:
            yield safe(f"Signed texts that contradict each other ({finding.finding}, {finding.where}):", style="bold")
            for number, text in enumerate(finding.evidence, 1):
                yield safe(f"--- {number} of {len(finding.evidence)}", style="dim")
                for line in text.splitlines():
                    yield safe(line)
    if result.logs:
        made = table("!log", "#events", "#expired", "#quarantined", "#skipped", "#lost", "#head")
        for log in result.logs[:LOGS_SHOWN]:
            figures = (log.events, log.expired_events, log.quarantined, log.skipped, log.lost)
            head = f"{log.size:,} {log.root[:12]}" if log.root else f"{log.size:,}"
            made.add_row(safe(log.log), *(f"{figure:,}" for figure in figures), head)
        if len(result.logs) > LOGS_SHOWN:
            made.caption = f"The first {LOGS_SHOWN} of {counted(len(result.logs), 'log')}; --json lists them all."
        yield Fitted(made, ("head", "expired", "skipped", "quarantined"), names="log")
    good = result.exit_code in {VERIFIED, Severity.NOTICE}
    yield safe(f"{result.url}: {result.verdict}", style="bold green" if good else STYLES[Severity(result.exit_code)])


@contextlib.contextmanager
def _progress(*columns: ProgressColumn) -> Iterator[Bar | None]:
    """Show a progress bar on stderr once the work has lasted a second: on a terminal only, and not with `--quiet`."""
    err = console(stderr=True)
    if not err.is_terminal or quiet():
        yield None
        return
    bar = Bar(*columns, console=err, transient=True)
    late = threading.Timer(PROGRESS_AFTER, bar.start)
    late.daemon = True
    late.start()
    try:
        yield bar
    finally:
        late.cancel()
        late.join()
        bar.stop()


@contextlib.contextmanager
def working(step: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done, and for how long already. Yield a function that shows another step.

    Args:
        step: what is done, such as `indexing`.
    """
    with _progress(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()) as bar:
        if bar is None:
            yield lambda _: None
            return
        task = bar.add_task(escape(step))
        yield lambda now: bar.update(task, description=escape(now))


@contextlib.contextmanager
def verification_progress() -> Iterator[Callable[["Progress"], None] | None]:
    """Show a progress bar while a verification runs."""
    with _progress(
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[events]:,} events"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("", total=None, events=0)
        yield lambda now: bar.update(task, completed=now.stored, total=now.total, events=now.events)


@contextlib.contextmanager
def copy_progress() -> Iterator[Callable[["copy.Progress"], None] | None]:
    """Show a progress bar while an archive is copied."""
    with _progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[objects]:,} objects"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task("listing", total=None, objects=0)

        def show(now: "copy.Progress") -> None:
            doing, count = ("listing", now.listed) if now.total is None else ("copying", now.objects)
            bar.update(task, description=doing, completed=now.stored, total=now.total, objects=count)

        yield show


def refusals_table(done: "copy.Copied") -> Entries:
    """Return what was not copied, the worst first, as many as a person reads."""
    worst = sorted(done.refused, key=lambda refusal: -refusal.severity)
    entries = [
        Entry(
            (refusal.reason, refusal.severity.name.lower()),
            STYLES[refusal.severity],
            (safe(refusal.key, style="bold"), safe(refusal.message)),
        )
        for refusal in worst[:FINDINGS_SHOWN]
    ]
    count = sum(done.counts.values())
    caption = f"The worst {FINDINGS_SHOWN} of {count:,}; --json lists up to 1,000 of each kind."
    return Entries(("!not copied", "what, and what to do"), entries, caption if count > FINDINGS_SHOWN else "")


def settings_table(settings: Settings, *, sources: bool = False) -> Table:
    """Return a table of all settings, with their meaning or where each value comes from. Secrets are hidden."""
    made = table("!setting", "value", "source" if sources else "meaning")
    rows = list(_walk(settings))
    origins = settings.origins(name for name, _, _ in rows) if sources else {}
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
    origins = settings.origins(values)
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
