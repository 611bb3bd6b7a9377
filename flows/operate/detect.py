"""`custody detect`: run the rules now, make again what they remember, and try rules.

Each command imports what it needs itself, as in `flows.operate.cli`.
"""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from custody.cli import common, operators
from custody.cli.common import App
from custody.cli.terminal import echo
from custody.cli.times import time_option
from custody.errors import CustodyError, escape

app = App("detect", no_args_is_help=True, help="Run the rules that find attacks in archived events, and try rules.")

_Json = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
_JsonLines = Annotated[bool, typer.Option("--json", help="As JSON lines: one for each file.")]


def _import(name: str) -> Any:
    """Import a module of the checkout for a command."""
    return operators.load(name, "this command")


def _show(result: Any, *, as_json: bool) -> None:
    """Print what a run did, and fail if something went wrong."""
    if as_json:
        common.print_json(asdict(result))
    else:
        echo(escape(result.summary))
    if result.problems:
        raise CustodyError(*result.problems)


def _announcer(settings: Any) -> Any:
    """Return a function that tells those of `alert.urls` of notices, as the automations of the flow do."""
    alerts, publishing = _import("tasks.alert"), _import("tasks.detect.publish")

    def announce(notices: Any) -> None:
        for notice in notices:
            title, summary = publishing.title_of(notice), publishing.summary_of(notice)
            common.note(escape(f"alert: {title}: {summary}"))
            if notice.kind == "over" or not settings.alert.urls:
                continue
            details = f"{summary}. To do: {publishing.details_of(notice)['advice']}"
            message = alerts.Alert(f"custody: {title}", details, read_on="custody explain custody-attack-suspected")
            delivery = alerts.send(settings, message, attempts=1)
            if delivery.failed:
                echo(f"custody: the alert did not reach everybody: {escape(delivery.summary())}", err=True)

    return announce


@app.command(epilog="custody detect run")
def run(*, as_json: _Json = False) -> None:
    """Run the rules over what was archived since the last run, and send alerts. The flow does so each minute."""
    from custody.cli import render

    settings = _import("tasks.settings").Settings()
    with render.working("running the rules"):
        result = _import("tasks.detect.run").detect(settings, announce=_announcer(settings))
    _show(result, as_json=as_json)


@app.command(epilog="custody detect rebuild")
def rebuild(*, as_json: _Json = False) -> None:
    """Make again what rules remember, from the archive, if it is lost, damaged or wrong. Nobody is told twice."""
    from custody.cli import render

    settings = _import("tasks.settings").Settings()
    with render.working("reading the archive"):
        result = _import("tasks.detect.run").rebuild(settings, announce=_announcer(settings))
    _show(result, as_json=as_json)


@app.command(epilog="custody detect lint rules/")
def lint(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Rule files, or folders of them. Default: those of `detect.rules`."),
    ] = None,
    *,
    as_json: _JsonLines = False,
) -> None:
    """Check rules before they are used: whether each file is a rule, and whether its own tests pass."""
    if not _import("flows.operate.rules").lint(paths, as_json=as_json):
        raise typer.Exit(1)


@app.command(epilog="custody detect backtest --since 7d --until now --rules rules/")
def backtest(
    since: Annotated[datetime, time_option("What was archived at this time or later.")],
    until: Annotated[datetime, time_option("What was archived before this time.")],
    rules: Annotated[
        list[Path] | None,
        typer.Option(
            "--rules",
            metavar="PATH",
            help="A rule file, or a folder of them. Can be repeated. Default: those of `detect.rules`.",
        ),
    ] = None,
    *,
    as_json: _Json = False,
) -> None:
    """Run rules over the past: which alerts there would have been, and which were sent. Sends and writes nothing."""
    _import("flows.operate.rules").backtest(since, until, rules, as_json=as_json)


@app.command(epilog="custody detect explain failed-logins-by-key")
def explain(
    name: Annotated[
        str, typer.Argument(metavar="RULE|ALERT_ID", help="A rule's name or id, or the id of an alert: 32 hex digits.")
    ],
    since: Annotated[
        datetime, time_option("Of an alert that detection has forgotten: look for it in what was archived since.")
    ] = "30d",  # type: ignore[assignment]
    *,
    as_json: _Json = False,
) -> None:
    """Explain a rule: what it finds, when, and what to do. Or an alert: what happened, and how to prove it."""
    _import("flows.operate.rules").explain(name, since, as_json=as_json)
