"""What the operator's commands and flows did, as tables, in words and as a chart."""

import io
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from custody.cli import render

if TYPE_CHECKING:
    from tasks.backfill.copy import Progress
    from tasks.backfill.plan import Plan
    from tasks.drain.log_run import LogResult
    from tasks.roll.record import Action
    from tasks.roll.tiers import Usage
    from tasks.search.index import IndexResult


def drain_table(results: "Sequence[LogResult]") -> Table:
    """Return one row a log: what a run of the drain did to it."""
    table = render.table("log", "#events", "#quarantined", "#segments", "#lost", "#lag", "!head")
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


def index_table(results: "Sequence[IndexResult]") -> Table:
    """Return one row a log: what was indexed of it."""
    table = render.table("log", "#created", "#there already", "#rejected", "#next statement", "#behind")
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


def roll_table(actions: "Sequence[Action]") -> Table:
    """Return one row for each thing that a roll did, or did not do."""
    table = render.table("!what", "!outcome", "target", "why")
    for one in actions:
        style = "bold red" if one.outcome in {"failed", "refused"} else ""
        table.add_row(one.what, render.safe(one.outcome, style=style), render.safe(one.target), render.safe(one.why))
    return table


def plan_summary(plan: "Plan") -> str:
    """Return what a plan reads, costs and takes, in one paragraph."""
    # Elasticsearch's client comes with it, and no other table needs that.
    from tasks.backfill.costs import estimate

    archived = plan.archived
    restores = f" {len(archived):,} of them must be restored first ({size(sum(one.size for one in archived))})."
    problems = f" {len(plan.problems):,} cannot be read: {plan.problems[0]}." if plan.problems else ""
    return (
        f"{plan.events:,} events at most, in {plan.reads:,} reads of {len(plan.objects):,} segments"
        f" ({size(plan.size)}); {plan.statements:,} statements were looked at.{restores if archived else ''}{problems}"
        f" Estimate: {estimate(plan)}."
    )


def copy_summary(progress: "Progress") -> str:
    """Return how far a copy is, how fast, and how long the rest takes."""
    from tasks.backfill.costs import duration

    remaining = progress.remaining
    rest = f", {duration(remaining)} left" if remaining else ""
    return (
        f"{progress.looked_at:,} of {progress.events:,} events looked at: {progress.created:,} copied,"
        f" {progress.there:,} there already, {progress.rejected:,} rejected; {progress.rate:,.0f} events/s, "
        f"{size(progress.read)} read{rest}."
    )


def usage_chart(found: "Sequence[Usage]") -> str:
    """Return bytes by storage class and part, and dollars a month if known, as an SVG in a Markdown image.

    Both of Prefect's user interfaces show such an image in a Markdown artifact, and fetch nothing for it.

    Args:
        found: what lies where; something.
    """
    # Half a second, and nothing else needs it here.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    classes = sorted({one.storage_class for one in found}, reverse=True)
    parts = sorted({one.part for one in found})
    priced = {one.storage_class: 0.0 for one in found if one.cost is not None}
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(classes)), layout="constrained")
    charts = figure.subplots(
        1, 2 if priced else 1, width_ratios=(2, 1) if priced else None, sharey=True, squeeze=False
    )[0]
    ends = dict.fromkeys(classes, 0)
    for part in parts:
        sizes = {name: sum(one.size for one in found if (one.part, one.storage_class) == (part, name)) for name in ends}
        bars = charts[0].barh(classes, list(sizes.values()), left=list(ends.values()), label=part)
        ends = {name: ends[name] + sizes[name] for name in ends}
    charts[0].bar_label(bars, labels=[size(ends[name]) for name in classes], padding=4)
    charts[0].set_title("Stored, by storage class")
    if priced:
        for one in found:
            if one.cost is not None:
                priced[one.storage_class] += one.cost
        bars = charts[1].barh(classes, [priced.get(name, 0.0) for name in classes], color="tab:gray")
        told = [f"{priced[name]:,.2f}" if name in priced else "no price" for name in classes]
        charts[1].bar_label(bars, labels=told, padding=4)
        charts[1].set_title("US dollars a month")
    for chart in charts:
        # Each bar has its number.
        chart.xaxis.set_visible(False)
        chart.margins(x=0.25)
        chart.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
    drawn = io.BytesIO()
    # Text stays text, so that the picture is small and can be read by a machine; no date, so that it is the same again.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "custody"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    picture = b64encode(drawn.getvalue()).decode()
    return f"![Bytes and dollars a month, by storage class](data:image/svg+xml;base64,{picture})"


def size(number: float) -> str:
    """Return a number of bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
