"""Results of the operator's commands and flows, as tables and sentences."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rich.filesize import decimal

from custody.cli import render
from custody.errors import counted, escape
from custody.findings import Finding, Severity, joined
from custody.format.times import duration_text

if TYPE_CHECKING:
    from tasks.audit.conclude import Outcome
    from tasks.backfill.copy import Progress
    from tasks.backfill.plan import Plan
    from tasks.drain.log_run import LogResult
    from tasks.roll.record import Action
    from tasks.search.index import IndexResult

_FINDINGS_TOLD = 10
"""Findings of which an alert has a line."""
_FINDINGS_SHOWN = 100
"""Findings on Prefect's page; it lives in Prefect's database."""
_LOGS_SHOWN = 50
"""Of more logs than these, those without news have one row together."""
_Result = TypeVar("_Result")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~&])")
"""What Markdown would not show as it is."""


def drain_table(results: "Sequence[LogResult]") -> render.Fitted:
    """Return a table with one row a log: what a run of the drain did to it. Of many logs, those with news have one."""
    table = render.table("log", "#events", "#quarantined", "#segments", "#lost", "#lag", "#headroom", "!head")
    shown, quiet = _of_many(results, _was_drained)
    for result in shown:
        table.add_row(
            render.safe(result.log, style="" if result.outcome == "drained" else "bold red"),
            f"{result.events:,}",
            f"{result.quarantined:,}",
            f"{result.segments:,}",
            f"{result.lost:,}",
            "-" if result.lag is None else f"{result.lag:,}",
            "unknown"
            if result.headroom_unknown
            else "-"
            if result.headroom is None
            else duration_text(result.headroom),
            f"{result.size} {result.root[:12]}" if result.outcome == "drained" else result.outcome,
        )
    if quiet:
        table.add_row(f"{counted(quiet, 'log')}: no new events", "0", "0", "0", "0", "0", "-", "-")
    return render.Fitted(table, ("head", "segments", "headroom"))


def _of_many(results: Sequence[_Result], has_news: Callable[[_Result], bool]) -> tuple[Sequence[_Result], int]:
    """Return the results that have a row of their own: of many logs, those with news. And how many others there are."""
    shown = results if len(results) <= _LOGS_SHOWN else list(filter(has_news, results))
    return shown, len(results) - len(shown)


def _was_drained(result: "LogResult") -> bool:
    """Return whether a run archived events of a log, or noted losses, or did not reach its end."""
    archived = result.events or result.quarantined or result.lost or result.unreadable
    return bool(archived or result.lag != 0 or result.headroom_unknown or result.outcome != "drained")


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration_text(seconds)


def index_table(results: "Sequence[IndexResult]") -> render.Fitted:
    """Return a table with one row a log: what was indexed of it. Of many logs, those with news have one."""
    table = render.table("log", "#created", "#already there", "#rejected", "#next statement", "#behind")
    shown, quiet = _of_many(results, _was_indexed)
    for result in shown:
        table.add_row(
            render.safe(result.log, style="bold red" if result.problem else ""),
            f"{result.created:,}",
            f"{result.there:,}",
            f"{result.rejected:,}",
            f"{result.sequence:,}",
            f"{result.behind:,.0f} s",
        )
    if quiet:
        table.add_row(f"{counted(quiet, 'log')}: nothing to index", "0", "0", "0", "-", "0 s")
    return render.Fitted(table, ("next statement",))


def _was_indexed(result: "IndexResult") -> bool:
    """Return whether events of a log were looked at, or some are still to be indexed."""
    return bool(result.created or result.there or result.rejected or result.behind or result.problem)


def roll_table(actions: "Sequence[Action]") -> render.Fitted:
    """Return a table with one row for each action of a roll."""
    table = render.table("!what", "!outcome", "!target", "why")
    for action in actions:
        style = "bold red" if action.outcome in {"failed", "refused"} else ""
        outcome = render.safe(action.outcome, style=style)
        table.add_row(action.what, outcome, render.safe(action.target), render.safe(action.why))
    return render.Fitted(table, (), names="target")


def audit_findings(outcome: "Outcome") -> list[Finding]:
    """Return the findings of an audit for people, as `verify` shows them."""
    return joined(map(_finding, outcome.findings))


def _finding(document: Mapping[str, Any]) -> Finding:
    """Return a finding as it was before `to_dict`, which adds what its name says."""
    fields = {each.name for each in dataclasses.fields(Finding)}
    values = {name: value for name, value in document.items() if name in fields}
    severity = Severity[document["severity"].upper()]
    return Finding(**{**values, "severity": severity, "evidence": tuple(document.get("evidence", ()))})


def audit_details(outcome: "Outcome") -> str:
    """Return what an audit found, for whoever is alerted: the summary, and a line for each of the worst findings."""
    return "\n".join([audit_summary(outcome), *map(_finding_line, outcome.findings[:_FINDINGS_TOLD])])


def findings_markdown(outcome: "Outcome") -> str:
    """Return findings for Prefect's page, the worst first: what is wrong, with what, and what to do."""
    findings = outcome.findings
    shown = [_finding_paragraph(finding) for finding in findings[:_FINDINGS_SHOWN]] or ["Nothing was found."]
    if len(findings) > _FINDINGS_SHOWN:
        shown.append(f"These are the first {_FINDINGS_SHOWN} of {len(findings):,}; all are in {_plain(outcome.whole)}.")
    return "\n\n".join(shown) + "\n"


def _finding_paragraph(finding: Mapping[str, Any]) -> str:
    statement, key = _statement_of(finding), finding.get("key")
    lines = [
        f"**{finding['severity']}: {finding['finding']}**{f' in {_plain(statement)}' if statement else ''}",
        f"{_plain(str(finding['message']))}.",
        *([f"Object: {_plain(key)}"] if key else []),
        f"To do: {_plain(str(finding['action']))}. Read on: `custody explain {finding['finding']}`",
    ]
    return "  \n".join(lines)


def _statement_of(finding: Mapping[str, Any]) -> str:
    """Return the log and the statement that a finding is about, as far as it names them."""
    sequence = f" #{finding['sequence']}" if "sequence" in finding else ""
    return f"{finding.get('log', '')}{sequence}".strip()


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", escape(text))


def _finding_line(finding: Mapping[str, Any]) -> str:
    """Return a finding in one line: what it is, where, what is wrong, what to do, and the command that says more."""
    where = _statement_of(finding), finding.get("key", "")
    return (
        f"{finding['severity']} {finding['finding']}: {' '.join(filter(None, where))}: {finding['message']}."
        f" To do: {finding['action']}. Read on: custody explain {finding['finding']}"
    )


def audit_summary(outcome: "Outcome") -> str:
    """Return what an audit read and found, in one paragraph."""
    counts = outcome.counts
    rejected = counts.get("rejected", 0)
    unsearchable = f" Elasticsearch rejected {rejected:,} of these events: they cannot be searched." if rejected else ""
    first, last = (moment[:10] for moment in outcome.expired or ("", ""))
    records = counts.get("expired_quarantined", 0)
    quarantined = f" and {counted(records, 'quarantined record')}" if records else ""
    events = f"{counts.get('expired_events', 0):,} more"
    gone = f" {events}{quarantined} have expired (sealed from {first} to {last})." if first else ""
    return (
        f"Audit {outcome.sequence}: {outcome.verdict}. {counted(counts.get('events', 0), 'event')} in"
        f" {counted(counts.get('statements', 0), 'statement was', 'statements were')} read.{gone}{unsearchable}"
        f" Findings: {len(outcome.findings):,}, in {outcome.whole}"
    )


def plan_summary(plan: "Plan") -> str:
    """Return what a plan reads and how long it takes, in one paragraph."""
    archived = plan.archived
    total = decimal(sum(status.size for status in archived.values()))
    hours = f"up to {plan.restore_hours:.0f} h for restores, then "
    restores = f" {counted(len(archived), 'segment')} of these to be restored first ({total})."
    problems = f" {len(plan.problems):,} cannot be read: {plan.problems[0]}." if plan.problems else ""
    return (
        f"Up to {counted(plan.events, 'event')} in {counted(len(plan.segments), 'segment')} ({decimal(plan.size)});"
        f" {counted(plan.statements, 'statement')} searched.{restores if archived else ''}{problems}"
        f" Estimate: {hours if archived else ''}{duration_text(plan.copy_seconds)} to copy."
    )


def plan_facts(plan: "Plan") -> dict[str, object]:
    """Return what a plan reads and how long it takes, as JSON types."""
    archived = plan.archived
    return {
        "events": plan.events,
        "segments": len(plan.segments),
        "bytes": plan.size,
        "statements": plan.statements,
        "segments_to_restore": len(archived),
        "bytes_to_restore": sum(status.size for status in archived.values()),
        "restore_hours": plan.restore_hours,
        "copy_seconds": plan.copy_seconds,
        "problems": list(plan.problems),
    }


def copy_facts(progress: "Progress") -> dict[str, object]:
    """Return what a copy did, as JSON types."""
    names = ("parts", "done", "events", "looked_at", "created", "there", "rejected", "read", "seconds", "stopped")
    return {**{name: getattr(progress, name) for name in names}, "problems": progress.problems}


def copy_summary(progress: "Progress") -> str:
    """Return how far a copy is, how fast, and how long the rest takes."""
    remaining = progress.remaining
    rest = f", {duration_text(remaining)} left" if remaining else ""
    return (
        f"{progress.looked_at:,} of {counted(progress.events, 'event')} checked: {progress.created:,} copied,"
        f" {progress.there:,} already there, {progress.rejected:,} rejected; {progress.rate:,.0f} events/s, "
        f"{decimal(progress.read)} read{rest}."
    )
