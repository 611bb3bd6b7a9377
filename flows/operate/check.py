"""Shows what a check tried: a heading for each part, and one line for each thing, with its remedy below.

`custody up` runs it first. What cannot become right by itself in the settings, keys or archive stops it, because no
run could do anything. Whatever may pass, such as a broker that is down, is only printed.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from custody.cli import render, terminal
from custody.cli.common import note, print_json
from custody.cli.terminal import echo
from custody.errors import CustodyError, counted, escape
from custody.format.times import format_time
from flows.operate.status import STYLES
from tasks.check.model import Line, Part, worst_level
from tasks.check.run import Asked, run_checks
from tasks.health.model import Level
from tasks.settings import Settings

NEEDED: frozenset[Part] = frozenset({"settings", "keys", "archive"})
"""Parts without which no run can do anything."""


def show(settings: Settings, deployments: Path, *, as_json: bool = False) -> Level:
    """Print what a check tried, and return the worst level.

    Args:
        settings: the settings.
        deployments: the file with the deployments that Prefect should have.
        as_json: print one JSON document.

    Raises:
        CustodyError: the output could not be written.
    """
    now = datetime.now(UTC)
    with render.working("checking"):
        lines = run_checks(Asked(settings, now, deployments))
    level = worst_level(lines)
    if as_json:
        print_json({"level": level, "at": format_time(now), "lines": [line.to_dict() for line in lines]})
    else:
        render.console().print(Group(*report(lines)))
        terminal.check_written()
    return level


def report(lines: Sequence[Line]) -> Iterator[RenderableType]:
    """Yield the parts of the screen, and the counts at the end."""
    for part, of_part in groupby(lines, key=lambda line: line.part):
        yield Text(part, style="bold")
        yield Padding(_table(list(of_part)), (0, 0, 1, 2), expand=False)
    yield Text(summary(lines), style=STYLES[worst_level(lines)])


def _table(lines: Sequence[Line]) -> Table:
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for line in lines:
        text = Text.assemble(render.safe(line.subject, style="bold"), ": ", render.safe(line.message))
        made.add_row(Text(line.level, style=STYLES[line.level]), text)
        if line.remedy:
            made.add_row("", render.safe(f"→ {line.remedy}", style="italic"))
    return made


def summary(lines: Sequence[Line]) -> str:
    """Return how many lines there are of each level."""
    failed, warnings, right = (sum(line.level == level for line in lines) for level in ("failed", "warning", "ok"))
    return f"{failed:,} failed, {counted(warnings, 'warning')}, {right:,} ok"


def check_before_up(settings: Settings, deployments: Path) -> None:
    """Print what is wrong, before `custody up` starts anything.

    Raises:
        CustodyError: something is wrong that stays wrong, and without which no run can do anything.
    """
    # Prefect's server is what `up` starts, and it says itself who is alerted.
    with render.working("checking"):
        lines = run_checks(Asked(settings, datetime.now(UTC), deployments), left_out={"prefect", "alerts"})
    for line in lines:
        if line.level != "ok":
            echo(escape(f"{line.level}: {line.part}: {line.subject}: {line.message}. {line.remedy}"), err=True)
    note(f"check: {summary(lines)} (custody check)")
    if any(line.level == "failed" and line.part in NEEDED and not line.passing for line in lines):
        raise CustodyError("nothing is started, because no run could do anything: correct what failed above")
