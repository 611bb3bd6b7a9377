"""Tables of what the operator's commands did."""

from collections.abc import Sequence

from rich.table import Table

from custody import render
from tasks.drain import LogResult
from tasks.index import IndexResult
from tasks.roll import Action


def drain_table(results: Sequence[LogResult]) -> Table:
    """Return one row a log: what a run of the drain did to it."""
    table = render.table("!log", "#events", "#quarantined", "#segments", "#lost", "#lag", "!head")
    for result in results:
        table.add_row(
            render.safe(result.log, style="" if result.outcome == "drained" else "bold red"),
            f"{result.events:,}",
            f"{result.quarantined:,}",
            f"{result.segments:,}",
            f"{result.lost:,}",
            "-" if result.lag is None else f"{result.lag:,}",
            f"{result.size} {result.root[:12]}" if result.outcome == "drained" else result.outcome,
        )
    return table


def index_table(results: Sequence[IndexResult]) -> Table:
    """Return one row a log: what was indexed of it."""
    table = render.table("!log", "#created", "#there already", "#rejected", "#next statement", "#behind")
    for result in results:
        table.add_row(
            render.safe(result.log, style="bold red" if result.problem else ""),
            f"{result.created:,}",
            f"{result.there:,}",
            f"{result.rejected:,}",
            f"{result.sequence:,}",
            f"{result.behind:,.0f} s",
        )
    return table


def roll_table(actions: Sequence[Action]) -> Table:
    """Return one row for each thing that a roll did, or did not do."""
    table = render.table("!what", "!target", "!outcome", "why")
    for one in actions:
        style = "bold red" if one.outcome in {"failed", "refused"} else ""
        table.add_row(one.what, render.safe(one.target), render.safe(one.outcome, style=style), render.safe(one.why))
    return table


def size(number: float) -> str:
    """Return a number of bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
