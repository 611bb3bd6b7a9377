"""Shows the health of an installation on one screen: the verdict, what is wrong and what to do, then each log.

Rules:
- The first line is the verdict. Problems follow, the worst first, each with its remedy.
- Numbers are never cut. A log's name is shortened in the middle, so that its partition stays.
- Where the screen is too narrow, columns are left out in the order of `_LEFT_OUT`; `--json` has everything.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from custody.cli import common, render, terminal
from custody.errors import counted
from custody.format.times import duration_text
from tasks.health.deadline import SECONDS, Deadline
from tasks.health.model import Health, Level, LogHealth, Problem
from tasks.health.read import read_health
from tasks.settings import Settings

EXIT_CODES: dict[Level, int] = {"ok": 0, "warning": 3, "failed": 1}
"""By the level of the whole. Warnings alone are a success, as notices of `custody verify` are."""
STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_PROBLEMS_SHOWN = 20
_LOGS_SHOWN = 1000
_NOT_LOOKED = {"archive-unreachable", "archive-untrusted", "audit-unreadable", "heads-unchecked"}
"""Problems for which the audits were not looked at."""
_UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table of logs: its heading as for `render.table`, and what stands there for a log."""

    heading: str
    cell: Callable[[LogHealth], str]


def _ago(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else duration_text(seconds)


def _number(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _share(log: LogHealth) -> str:
    share = log.recent.quarantined_share
    return _UNKNOWN if share is None else f"{share:.1%}"


def _state(log: LogHealth) -> str:
    return "ended" if log.ended and not log.problems else "?" if not log.size and not log.problems else log.level


_COLUMNS = (
    _Column("!state", _state),
    _Column("#head", lambda log: _ago(log.head_age_seconds)),
    _Column("#lag", lambda log: _number(log.lag_records)),
    _Column("#waits", lambda log: _ago(log.lag_seconds)),
    _Column("#headroom", lambda log: _ago(log.headroom_seconds)),
    _Column("#quarant.", _share),
    _Column("#index", lambda log: _ago(log.index_delay_seconds)),
    _Column("#next offset", lambda log: _number(log.next_offset)),
    _Column("#size and root", lambda log: f"{log.size:,} {log.root[:12]}" if log.root else _UNKNOWN),
)
_LEFT_OUT = ("size and root", "next offset", "index", "quarant.", "headroom")
"""Columns that a narrow screen lacks, the first ones first. The caption names them."""


def show(settings: Settings, *, as_json: bool = False, every: float | None = None) -> Level:
    """Print the health of an installation, and return its level.

    Args:
        settings: the settings.
        as_json: print one JSON document.
        every: print it again after so many seconds, until Ctrl-C; once if None.

    Raises:
        CustodyError: as `read_health`; or the output could not be written.
    """
    if every is None:
        with render.working("asking the archive, Kafka and Elasticsearch"):
            health = _read(settings)
        if as_json:
            common.print_json(health.to_dict())
        else:
            console = render.console()
            console.print(Group(*report(health, whole=True)), crop=False)
        terminal.check_written()
        return health.level
    _watch(settings, every, as_json=as_json)
    raise AssertionError("a watch ends by an exception")


def _watch(settings: Settings, every: float, *, as_json: bool) -> None:
    """Print the health again and again. A terminal is redrawn; a pipe gets a block, or a line of JSON, each time."""
    console = render.console()
    if as_json or not console.is_terminal:
        while True:
            health = _read(settings)
            if as_json:
                common.print_json(health.to_dict())
            else:
                console.print(Group(*report(health, whole=True)), crop=False)
            terminal.check_written()
            time.sleep(every)
    # Later the screen before stays.
    with render.working("asking the archive, Kafka and Elasticsearch"):
        health = _read(settings)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(*report(health)), refresh=True)
            time.sleep(every)
            health = _read(settings)


def _read(settings: Settings) -> Health:
    return read_health(settings, datetime.now(UTC), Deadline(SECONDS))


class _Problems:
    """Problems below each other: the level, then the text. A word that is wider than the screen is never cut in two.

    So an object's key can be copied. Print it with `crop=False`.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problems = problems

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        indent = max(len(problem.level) for problem in self._problems) + 2
        for problem in self._problems:
            lead = Text(problem.level.ljust(indent), style=STYLES[problem.level])
            yield from render.unbroken(_problem_text(problem), options.max_width, lead)


def report(health: Health, *, whole: bool = False) -> Iterator[RenderableType]:
    """Yield the parts of the screen.

    Args:
        health: what is shown.
        whole: let long words, such as keys, reach over the screen's edge. Only for what is printed without cropping.
    """
    yield render.safe(_verdict(health.problems), style=STYLES[health.level])
    yield render.safe(f"{health.archive}, {health.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", style="dim")
    if health.problems:
        yield ""
        shown = health.problems[:_PROBLEMS_SHOWN]
        yield _Problems(shown) if whole else _problems_table(shown)
        if len(health.problems) > _PROBLEMS_SHOWN:
            yield f"and {counted(len(health.problems) - _PROBLEMS_SHOWN, 'more problem')}; --json lists all"
    if health.logs:
        yield _logs_table(health.logs)
    else:
        yield ""
        unlisted = any(problem.kind in {"log-unknown", "archive-unreachable"} for problem in health.general)
        yield render.safe("The archive's logs cannot be listed." if unlisted else "The archive has no logs yet.")
    yield from map(render.safe, _lines(health))


def _verdict(problems: Sequence[Problem]) -> str:
    failed = sum(problem.level == "failed" for problem in problems)
    warnings = len(problems) - failed
    counts = [(failed, "problem"), (warnings, "warning")]
    return ", ".join(counted(count, noun) for count, noun in counts if count) or "healthy"


def _problems_table(problems: Sequence[Problem]) -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for problem in problems:
        made.add_row(Text(problem.level, style=STYLES[problem.level]), _problem_text(problem))
    return made


def _problem_text(problem: Problem) -> Text:
    message = problem.message.removeprefix(f"{problem.subject}: ").rstrip(".")
    text = Text.assemble(render.safe(problem.subject, style="bold"), ": ", render.safe(message), ".")
    return text.append_text(render.safe(f" → {problem.remedy}", style="italic"))


def _logs_table(logs: Sequence[LogHealth]) -> render.Fitted:
    """Return the table, which leaves out columns on a narrow screen, and shortens names of logs."""
    made = render.table("!log", *(column.heading for column in _COLUMNS))
    for log in logs[:_LOGS_SHOWN]:
        cells = [render.safe(column.cell(log)) for column in _COLUMNS]
        cells[0].stylize("dim" if log.ended else STYLES[log.level])
        made.add_row(render.safe(log.log), *cells)
    if len(logs) > _LOGS_SHOWN:
        made.caption = f"The first {_LOGS_SHOWN:,} of {len(logs):,} logs; --json lists them all."
    return render.Fitted(made, _LEFT_OUT, names="log")


def _lines(health: Health) -> Iterator[str]:
    """Yield a line about each part that is not a log."""
    yield f"kafka: {health.kafka.address}{'' if health.kafka.reachable else ', does not answer'}"
    if health.topics_without_log:
        topics = ", ".join(topic.topic for topic in health.topics_without_log[:10])
        more = len(health.topics_without_log) - 10
        yield f"topics without a log: {topics}{f', and {more:,} more' if more > 0 else ''}"
    audit = health.audit
    if audit is None:
        looked = not any(problem.kind in _NOT_LOOKED for problem in health.problems)
        yield f"audit: {'none yet' if looked else 'not known'}"
    else:
        age = "of the future" if audit.age_seconds is None else f"{duration_text(audit.age_seconds)} ago"
        yield f"audit: {audit.sequence}, {audit.verdict}, {counted(audit.findings, 'finding')}, {age}"
    if health.search is None:
        yield "index: none; search.url is not set"
    elif health.search.reachable:
        delays = [log.index_delay_seconds for log in health.logs if log.index_delay_seconds is not None]
        behind = f"{duration_text(max(delays))} behind" if delays else "how far it is behind is not known"
        yield f"index: {health.search.address}, {behind}"
    else:
        yield f"index: {health.search.address}, does not answer"
    if health.alerts:
        # Without any, a problem says it.
        yield f"alerts: {', '.join(health.alerts)}"
