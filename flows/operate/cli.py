"""The operator's commands of `custody`, which `custody.cli.operators` loads.

Each command imports what it needs itself: importing Prefect takes two seconds, and the help needs none of it.
"""

import json
import signal
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from custody.cli import common, names, operators
from custody.cli.common import OPERATE, START, App
from custody.cli.terminal import echo, write
from custody.cli.times import time_option
from custody.errors import ConfigurationError, CustodyError, counted, escape
from flows.operate.detect import app as detect_app

app = App(name="operate")
app.add_typer(detect_app, name="detect", rich_help_panel=OPERATE)


Target = Literal["elasticsearch", "tables", "topic", "folder"]
RestoreTier = Literal["standard", "bulk"]

_Json = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
_JsonLines = Annotated[bool, typer.Option("--json", help="JSON lines: each result.")]
_Logs = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="LOG",
        help="A log, or a topic for all its logs. Can be repeated.",
        show_default="all",
        callback=names.logs,
    ),
]


def _import(name: str) -> Any:
    """Import a module of the checkout for a command."""
    return operators.load(name, "this command")


def _settings() -> Any:
    """Return the operator's settings."""
    return _import("tasks.settings").Settings()


def _print_table(table: Any) -> None:
    from custody.cli import render, terminal

    render.console().print(table)
    terminal.check_written()


def _working(step: str) -> Any:
    """Show on a terminal what is being done, and for how long."""
    from custody.cli import render

    return render.working(step)


def _fail(problems: list[str]) -> None:
    """Raise an error that has all problems, unless there are none."""
    if problems:
        raise CustodyError(*problems)


@app.command(rich_help_panel=START, epilog="custody demo --events 1000")
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the archive and the keyring.", file_okay=False)
    ] = Path("custody-demo"),
    events: Annotated[int, typer.Option(min=1, help="Number of events to produce.")] = 60_000,
) -> None:
    """Show how custody works: drain an embedded Kafka into a folder, verify the archive, then tamper with a copy."""
    _import("flows.operate.demo").demo(folder, events)


@app.command(rich_help_panel=OPERATE, epilog="custody up --port 4201")
def up(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the files of Prefect's server; they can be lost.", file_okay=False)
    ] = Path("custody-data/prefect"),
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the server on 127.0.0.1; 0 for any free port.")
    ] = 4200,
) -> None:
    """Run a small installation: Prefect's server, a worker and the scheduled deployments."""
    _import("flows.operate.up").up(folder, port)


@app.command(rich_help_panel=OPERATE, epilog="custody deploy")
def deploy(*, as_json: _Json = False) -> None:
    """Deploy what changed in `deployments/prefect.yaml`, on the Prefect server that PREFECT_API_URL names."""
    _settings()
    with _working("deploying"):
        _import("flows.operate.deploy").deploy(as_json=as_json)


@app.command(rich_help_panel=OPERATE, epilog="custody drain --once")
def drain(
    once: Annotated[
        bool, typer.Option("--once", help="End when all events that are in Kafka now are archived.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1, help="Longest time for this run.", show_default="the setting `drain.seconds`; none with --once"
        ),
    ] = None,
    as_json: _JsonLines = False,
) -> None:
    """Drain Kafka into the archive now, without Prefect. A scheduled run at the same time does no harm.

    A large backlog is drained by a process a core, as far as memory allows: see the setting `drain.workers`.
    """
    settings = _settings()
    signals, run = _import("tasks.drain.signals"), _import("tasks.metrics.run").Run("drain")
    stopping = signals.stop_on_signals(signal.SIGTERM, signal.SIGINT, grace=signals.GRACE_SECONDS)
    with _working("draining"), stopping, run.step("drain"):
        results, indexed = _import("tasks.drain.run").drain_and_index(settings, once=once, seconds=seconds)
    if results and all(result.outcome != "failed" for result in results):
        run.succeed()
    if settings.metrics.is_on:
        # Loaded only then: it is a sixth of what a command has to load.
        _import("tasks.metrics.export").export(settings, run)
    # A topic that does not exist has no log, and so no row: a setting is wrong.
    missing = [result.problem for result in results if result.missing]
    results = [result for result in results if not result.missing]
    if missing and not results:
        raise ConfigurationError(*missing)
    if results and as_json:
        drained = [{"kind": "drained", **asdict(result)} for result in results]
        common.print_json(*drained, *({"kind": "indexed", **msgspec.to_builtins(result)} for result in indexed))
    elif results:
        _print_table(_import("flows.summaries").drain_table(results))
    else:
        _fail([f"no topic on {settings.kafka.bootstrap_servers} matches kafka.topics {settings.kafka.topics}"])
    _note_what_stays(settings, results, indexed)
    failed = [result.log for result in results if result.outcome == "failed"]
    if failed:
        # Each log's error is in the log on stderr already, with the time at which the log stopped.
        missing.append(f"{len(failed)} of {counted(len(results), 'log')} failed, as said above: {', '.join(failed)}")
    _fail(missing)


def _note_what_stays(settings: Any, results: Any, indexed: Any) -> None:
    """Print what is not as it should be although the drain did its work."""
    for result in results:
        if result.headroom_unknown:
            common.note(escape(f"Headroom of {result.log} is unknown: {result.headroom_unknown}"))
    excess = _import("tasks.drain.quarantine")
    for result in results:
        if problem := excess.excess(result, settings.events.quarantined_share):
            common.note(escape(f"Warning: {result.log}: {problem}. {excess.LOOK}"))
    for result in indexed:
        if result.problem:
            common.note(escape(f"Cannot be searched yet: {result.log}: {result.problem}"))
        if result.rejected:
            common.note(escape(f"Cannot be searched: {result.log}: {result.rejections}"))


@app.command(rich_help_panel=OPERATE, epilog="custody index audit.events/0")
def index(
    logs: Annotated[
        list[str] | None,
        typer.Argument(help="LOG/PARTITION, or a topic for all its logs.", show_default="all", callback=names.logs),
    ] = None,
    *,
    as_json: _JsonLines = False,
) -> None:
    """Index archived events that Elasticsearch lacks, now. The drain does this too, after each manifest."""
    settings, indexing = _settings(), _import("tasks.search.index")
    with _working("indexing"):
        results = indexing.index_logs(settings, logs or ())
    if as_json:
        common.print_json(*map(msgspec.to_builtins, results))
    else:
        _print_table(_import("flows.summaries").index_table(results))
    rejections = [f"{result.log}: {result.rejections}" for result in results if result.rejected]
    problems = [f"{result.log}: {result.problem}" for result in results if result.problem]
    if rejections and not any(result.created or result.there for result in results):
        problems += ["nothing was indexed", *rejections]
    else:
        for rejection in rejections:
            common.note(escape(rejection))
    _fail(problems)


@app.command(rich_help_panel=OPERATE, epilog="custody roll --dry-run")
def roll(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")] = False,
    confirm_clock: Annotated[
        bool,
        typer.Option(
            "--confirm-clock",
            help="Say that this machine's clock is right, after the archive was silent for more than a day. Without it"
            " nothing expires then. The retention stays as it is.",
        ),
    ] = False,
    as_json: _JsonLines = False,
) -> None:
    """Roll indices and storage tiers, and delete evidence whose retention has ended, now, without Prefect."""
    settings, rolling = _settings(), _import("tasks.roll.run")
    with _working("rolling"):
        actions = rolling.roll_all(settings, datetime.now(UTC), dry_run=dry_run, confirm_clock=confirm_clock)
    if as_json:
        common.print_json(*map(asdict, actions))
    elif actions:
        _print_table(_import("flows.summaries").roll_table(actions))
    else:
        echo("Nothing to do.")
    _fail([f"{action.what} {action.target}: {action.why}" for action in actions if action.outcome == "failed"])


@app.command(rich_help_panel=OPERATE, epilog="custody audit --log audit.events --since 2d")
def audit(
    log: _Logs = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read all statements again, not only a share of the old ones.")
    ] = False,
    since: Annotated[datetime | None, time_option("Only statements sealed at this time or later.")] = None,
    until: Annotated[datetime | None, time_option("Only statements sealed before this time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: findings, then the audit.")] = False,
) -> None:
    """Audit the archive now, without Prefect, and write a signed audit. What is wrong alerts those of alert.urls."""
    settings, summaries = _settings(), _import("flows.summaries")
    planning, verifying = _import("tasks.audit.plan"), _import("tasks.audit.pieces")
    concluding, keeping = _import("tasks.audit.conclude"), _import("tasks.audit.kept")
    with _working("planning the audit") as step, keeping.Kept() as kept:
        request = planning.Request(tuple(log or ()), full, since, until)
        plan = planning.plan_audit(settings, request, datetime.now(UTC), kept)
        results = []
        for result in verifying.verify_pieces(settings, plan, plan.pieces, kept=kept):
            results.append(result)
            step(f"auditing, {len(results):,} of {counted(len(plan.pieces), 'piece')}")
        step("signing the audit")
        outcome = concluding.conclude(settings, plan, results, kept)
    # The exit code is the verdict, whether or not it could be printed.
    if as_json:
        for finding in outcome.findings:
            echo(json.dumps({"kind": "finding", **finding}))
        # `asdict` cannot copy a Counter.
        document = asdict(replace(outcome, counts=dict(outcome.counts), findings=()))
        echo(json.dumps({"kind": "audit", **document, "findings": len(outcome.findings)}))
    else:
        from custody.cli import render

        if outcome.findings:
            render.console().print(render.FindingsTable(summaries.audit_findings(outcome)), crop=False)
            echo("'custody explain NAME' says more about a finding.")
        echo(escape(summaries.audit_summary(outcome)))
    _alert_of(settings, outcome)
    raise typer.Exit(outcome.exit_code)


def _alert_of(settings: Any, outcome: Any) -> None:
    """Alert people of an audit that found a problem, as the nightly one does. The exit code stays the verdict's."""
    from custody.findings import Severity

    if outcome.exit_code < Severity.POLICY:
        return
    alerts = _import("tasks.alert")
    details = _import("flows.summaries").audit_details(outcome)
    message = alerts.Alert("custody: the audit failed", details, read_on="custody explain custody-audit-failed")
    with _working("alerting"):
        # Once: somebody waits for the verdict, and sees the line.
        delivery = alerts.send(settings, message, attempts=1)
    if delivery.failed:
        echo(f"custody: the alert did not reach everybody: {escape(delivery.summary())}", err=True)
    else:
        common.note(escape(f"alert: {delivery.summary()}"))


@app.command(rich_help_panel=OPERATE, epilog="custody backfill --since 2026-05-01 --until 2026-05-04 --to tables")
def backfill(  # noqa: PLR0913 - each is an option of the command
    since: Annotated[datetime, time_option("Events at this time or later, by their own time.")],
    until: Annotated[datetime, time_option("Events before this time.")],
    to: Annotated[Target, typer.Option("--to", help="Where the events are copied to.")] = "elasticsearch",
    log: _Logs = None,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="An event type, such as auth_attempt or one of your own. Can be repeated.",
            show_default="all",
        ),
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="The Kafka topic, for --to topic. It gets each event at least once.")
    ] = None,
    folder: Annotated[str | None, typer.Option(help="The folder, for --to folder.")] = None,
    tier: Annotated[
        RestoreTier, typer.Option(help="How segments in an archive storage class are restored.")
    ] = "standard",
    late_days: Annotated[
        int | None,
        typer.Option(min=0, help="Only statements sealed at most this many days after the range.", show_default="all"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be read and how long it would take; change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: the plan, then what was done.")] = False,
) -> None:
    """Copy archived events of a time range to a target, and restore them first if needed."""
    settings, planning, summaries = _settings(), _import("tasks.backfill.plan"), _import("flows.summaries")

    def show(text: str, kind: str, **facts: object) -> None:
        if as_json:
            common.print_json({"kind": kind, **facts})
        else:
            echo(escape(text))

    chosen = {"logs": tuple(log or ()), "types": tuple(type_ or ()), "target": to, "topic": topic, "folder": folder}
    request = planning.Request(since=since, until=until, **chosen, tier=tier, late_days=late_days)
    with _working("planning the backfill"):
        plan = planning.plan_backfill(settings, request)
    show(summaries.plan_summary(plan), "plan", **summaries.plan_facts(plan))
    if dry_run:
        return
    copying = _import("tasks.backfill.copy")
    if waiting := copying.restore(settings, plan):
        text = f"{counted(waiting, 'segment')} to be restored: run the same command again once that is done."
        show(text, "restoring", segments=waiting)
        raise typer.Exit(3)
    signals = _import("tasks.drain.signals")
    with _working("copying") as step, signals.stop_on_signals(signal.SIGTERM, signal.SIGINT):
        done = copying.copy(
            settings,
            plan,
            progress=lambda now: step(f"copying, {now.looked_at:,} of {counted(now.events, 'event')} checked"),
            go_on=lambda: not signals.stop_requested.is_set(),
        )
    show(summaries.copy_summary(done), "copied", **summaries.copy_facts(done))
    _fail(done.problems)
    if done.stopped:
        raise CustodyError("the backfill was stopped: run the same command again to continue")


@app.command("new-epoch", rich_help_panel=OPERATE, epilog="custody new-epoch audit.events")
def new_epoch(
    topic: Annotated[str, typer.Argument(help="A topic that was recreated, moved to another cluster, or truncated.")],
    *,
    as_json: _JsonLines = False,
) -> None:
    """Begin a new epoch of a topic's logs, after the topic was recreated, moved or truncated."""
    begun = _import("tasks.drain.resume").begin_epoch(_settings(), topic)
    if as_json:
        common.print_json(*map(asdict, begun))
        return
    for epoch in begun:
        echo(f"{epoch.log}: new epoch begun; {epoch.earlier} stays as it is")
    if any(epoch.same_topic for epoch in begun):
        echo(
            "The topic id is the same as in the earlier epoch, so verification will report `head-fork`: two histories"
            " of one topic are signed. Compare both, then accept the finding with `custody accept`."
        )


@app.command(rich_help_panel=OPERATE, epilog="custody alert --test")
def alert(
    test: Annotated[bool, typer.Option("--test", help="Send a test alert to each URL of alert.urls.")] = False,
    *,
    as_json: _Json = False,
) -> None:
    """Try the way to the people who are alerted. It fails if somebody was not told, or there is nobody to tell."""
    alerts = _import("tasks.alert")
    if not test:
        raise ConfigurationError("an alert is sent by the flow alert/alert-now; this command only tries it: add --test")
    message = alerts.Alert(
        "custody: a test alert", "Nothing is wrong: somebody ran 'custody alert --test'.", kind="info"
    )
    delivery = alerts.send(_settings(), message, attempts=1)
    if as_json:
        common.print_json(asdict(delivery))
    if delivery.failed or not delivery.told:
        raise CustodyError(delivery.summary())
    if not as_json:
        echo(delivery.summary())


@app.command(rich_help_panel=START, epilog="custody check")
def check(*, as_json: _Json = False) -> None:
    """Try all that a run needs: settings, keys, archive, Kafka, Elasticsearch, Prefect, alerts. Exit code 3: warnings.

    Nothing is changed: only probe objects are written to the archive, and removed again.
    """
    checking = _import("flows.operate.check")
    level = checking.show(_settings(), _import("flows.operate.deploy").DEPLOYMENTS, as_json=as_json)
    raise typer.Exit(_import("flows.operate.status").EXIT_CODES[level])


@app.command(rich_help_panel=OPERATE, epilog="custody metrics --export")
def metrics(
    to_all: Annotated[
        bool, typer.Option("--export", help="Export them to what [metrics] names, as each run does. Print nothing.")
    ] = False,
) -> None:
    """Print the metrics of this installation now, as Prometheus' text. All statements that are new are counted.

    There is no --json: this text is a format for programs. `custody status --json` has the health as JSON.
    """
    exporting, settings = _import("tasks.metrics.export"), _settings()
    if not to_all:
        write(iter([exporting.show(settings)]))
    elif not settings.metrics.is_on:
        raise ConfigurationError("nothing is exported: set metrics.file, metrics.otlp_endpoint or metrics.emf")
    else:
        _fail(exporting.try_export(settings))


@app.command(rich_help_panel=OPERATE, epilog="custody status --watch --every 10")
def status(
    *,
    as_json: _Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between, with --watch.")] = 5,
) -> None:
    """Show what is wrong, how far each log is, and who is alerted."""
    showing = _import("flows.operate.status")
    level = showing.show(_settings(), as_json=as_json, every=every if watch else None)
    raise typer.Exit(showing.EXIT_CODES[level])
