"""The operator's commands of `custody`, which `custody.cli.operators` loads.

Each command imports what it needs itself, because importing Prefect takes two seconds.
"""

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from custody.cli import operators, render
from custody.cli.terminal import echo, write
from custody.errors import ConfigurationError, CustodyError, escape
from custody.format.times import as_utc
from tasks.settings import Settings

app = typer.Typer(name="operate", pretty_exceptions_enable=False)


_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]


def _import(name: str) -> Any:
    """Import a module of the checkout for a command."""
    return operators.load(name, "this command")


def _fail(problems: list[str]) -> None:
    """Raise an error that has all problems, unless there are none."""
    if problems:
        raise CustodyError(*problems)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the archive and the keyring.", file_okay=False)
    ] = Path("custody-demo"),
    events: Annotated[int, typer.Option(min=1, help="Number of events to produce.")] = 60_000,
) -> None:
    """Show how custody works: drain an embedded Kafka into a folder, verify the archive, then tamper with a copy."""
    _import("flows.operate.demo").demo(folder, events)


@app.command()
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


@app.command()
def deploy() -> None:
    """Deploy what changed in `deployments/prefect.yaml`, on the Prefect server that PREFECT_API_URL names."""
    _import("flows.operate.deploy").deploy()


@app.command()
def drain(
    once: Annotated[
        bool, typer.Option("--once", help="End when all events that are in Kafka now are archived.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Longest time for this run. Default: the setting `drain.seconds`.")
    ] = None,
) -> None:
    """Drain Kafka into the archive now, without Prefect. A scheduled run at the same time does no harm."""
    settings = Settings()
    signals, run = _import("tasks.drain.signals"), _import("tasks.metrics.run").Run("drain")
    with signals.stop_on_signals(signal.SIGTERM, signal.SIGINT, grace=signals.GRACE_SECONDS), run.step("drain"):
        results, indexed = _import("tasks.drain.run").drain_and_index(settings, once=once, seconds=seconds)
    if results and all(result.outcome != "failed" for result in results):
        run.succeed()
    _import("tasks.metrics.export").export(settings, run)
    if results:
        render.console().print(_import("flows.summaries").drain_table(results))
    else:
        _fail([f"no topic on {settings.kafka.bootstrap_servers} matches kafka.topics {settings.kafka.topics}"])
    for result in results:
        if result.headroom_unknown:
            echo(escape(f"Headroom of {result.log} is unknown: {result.headroom_unknown}"), err=True)
    for result in indexed:
        if result.problem:
            echo(escape(f"Cannot be searched yet: {result.log}: {result.problem}"), err=True)
        if result.rejected:
            echo(escape(f"Cannot be searched: {result.log}: {result.rejections}"), err=True)
    _fail([result.problem for result in results if result.outcome == "failed"])


@app.command()
def index(
    logs: Annotated[list[str] | None, typer.Argument(help="LOG/PARTITION; all logs if not given.")] = None,
) -> None:
    """Index archived events that Elasticsearch lacks, now. The drain does this too, after each manifest."""
    results = _import("tasks.search.index").index_logs(Settings(), logs or ())
    render.console().print(_import("flows.summaries").index_table(results))
    rejections = [f"{result.log}: {result.rejections}" for result in results if result.rejected]
    problems = [f"{result.log}: {result.problem}" for result in results if result.problem]
    if rejections and not any(result.created or result.there for result in results):
        problems += ["nothing was indexed", *rejections]
    else:
        for rejection in rejections:
            echo(escape(rejection), err=True)
    _fail(problems)


@app.command()
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
) -> None:
    """Roll indices and storage tiers, and delete evidence whose retention has ended, now, without Prefect."""
    rolling = _import("tasks.roll.run")
    actions = rolling.roll_all(Settings(), datetime.now(UTC), dry_run=dry_run, confirm_clock=confirm_clock)
    if actions:
        render.console().print(_import("flows.summaries").roll_table(actions))
    else:
        echo("Nothing to do.")
    _fail([f"{action.what} {action.target}: {action.why}" for action in actions if action.outcome == "failed"])


@app.command()
def audit(
    log: Annotated[
        list[str] | None, typer.Option(help="A log, or a topic for all its logs. Can be repeated. Default: all.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read all statements again, not only a share of the old ones.")
    ] = False,
    since: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Only statements sealed at this time or later, in UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Only statements sealed before this time, in UTC.")
    ] = None,
) -> None:
    """Audit the archive now, without Prefect, and write a signed audit. Exit codes are those of `verify`."""
    planning = _import("tasks.audit.plan")
    aware = [moment and as_utc(moment) for moment in (since, until)]
    plan = planning.plan_audit(Settings(), planning.Request(tuple(log or ()), full, *aware), datetime.now(UTC))
    results = list(_import("tasks.audit.pieces").verify_pieces(Settings(), plan, plan.pieces))
    outcome = _import("tasks.audit.conclude").conclude(Settings(), plan, results)
    table = render.table("severity", "!finding", "log", "#sequence", "message")
    for finding in outcome.findings[: render.FINDINGS_SHOWN]:
        where = (finding.get("log", ""), str(finding.get("sequence", "")))
        table.add_row(*map(render.safe, (finding["severity"], finding["finding"], *where, finding["message"])))
    if table.row_count:
        render.console().print(table)
    echo(escape(_import("flows.summaries").audit_summary(outcome)))
    raise typer.Exit(outcome.exit_code)


@app.command()
def backfill(
    since: Annotated[
        datetime, typer.Option(formats=_TIMES, help="Events at this time or later, by their own time, in UTC.")
    ],
    until: Annotated[datetime, typer.Option(formats=_TIMES, help="Events before this time, in UTC.")],
    to: Annotated[str, typer.Option("--to", help="elasticsearch, tables, topic or folder.")] = "elasticsearch",
    log: Annotated[
        list[str] | None, typer.Option(help="A log, or a topic for all its logs. Can be repeated. Default: all.")
    ] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="An event type. Can be repeated. Default: all.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="The Kafka topic, for --to topic. It gets each event at least once.")
    ] = None,
    folder: Annotated[str | None, typer.Option(help="The folder, for --to folder.")] = None,
    tier: Annotated[
        str, typer.Option(help="How segments in an archive storage class are restored: standard or bulk.")
    ] = "standard",
    late_days: Annotated[
        int | None,
        typer.Option(min=0, help="Only statements sealed at most this many days after the range. Default: all."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be read and how long it would take; change nothing.")
    ] = False,
) -> None:
    """Copy archived events of a time range to a target, and restore them first if needed. Exit code 3: restoring."""
    planning, summaries = _import("tasks.backfill.plan"), _import("flows.summaries")
    for name, value, known in (("--to", to, planning.KINDS), ("--tier", tier, planning.TIERS)):
        if value not in known:
            raise ConfigurationError(f"{name} is {value[:100]!r}; it must be one of {', '.join(known)}")
    aware = {"since": as_utc(since), "until": as_utc(until)}
    chosen = {"logs": tuple(log or ()), "types": tuple(type_ or ()), "target": to, "topic": topic, "folder": folder}
    request = planning.Request(**aware, **chosen, tier=tier, late_days=late_days)
    plan = planning.plan_backfill(Settings(), request)
    echo(escape(summaries.plan_summary(plan)))
    if dry_run:
        return
    copying = _import("tasks.backfill.copy")
    if waiting := copying.restore(Settings(), plan):
        echo(f"{waiting:,} segments are being restored: run the same command again once they are restored.")
        raise typer.Exit(3)
    signals = _import("tasks.drain.signals")
    with signals.stop_on_signals(signal.SIGTERM, signal.SIGINT):
        done = copying.copy(Settings(), plan, go_on=lambda: not signals.stop_requested.is_set())
    echo(summaries.copy_summary(done))
    _fail(done.problems)
    if done.stopped:
        raise CustodyError("the backfill was stopped: run the same command again to continue")


@app.command("new-epoch")
def new_epoch(
    topic: Annotated[str, typer.Argument(help="A topic that was recreated, moved to another cluster, or truncated.")],
) -> None:
    """Begin a new epoch of a topic's logs, after the topic was recreated, moved or truncated."""
    begun = _import("tasks.drain.resume").begin_epoch(Settings(), topic)
    for epoch in begun:
        echo(f"{epoch.log}: new epoch begun; {epoch.earlier} stays as it is")
    if any(epoch.same_topic for epoch in begun):
        echo(
            "The topic id is the same as in the earlier epoch, so verification will report `head-fork`: two histories"
            " of one topic are signed. Compare both, then accept the finding with `custody accept`."
        )


@app.command()
def alert(
    test: Annotated[bool, typer.Option("--test", help="Send a test alert to each URL of alert.urls.")] = False,
) -> None:
    """Try the way to the people who are alerted. Exit code 1: somebody was not told, or there is nobody to tell."""
    alerts = _import("tasks.alert")
    if not test:
        raise ConfigurationError("an alert is sent by the flow alert/alert-now; this command only tries it: add --test")
    message = alerts.Alert("custody: a test alert", "Nothing is wrong: somebody ran 'custody alert --test'.")
    delivery = alerts.send(Settings(), message, attempts=1)
    if delivery.failed or not delivery.told:
        raise CustodyError(delivery.summary())
    echo(delivery.summary())


@app.command()
def check(as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False) -> None:
    """Try all that a run needs: settings, keys, archive, Kafka, Elasticsearch, Prefect, alerts. Exit code 3: warnings.

    Nothing is changed: only probe objects are written to the archive, and removed again.
    """
    checking = _import("flows.operate.check")
    level = checking.show(Settings(), _import("flows.operate.deploy").DEPLOYMENTS, as_json=as_json)
    raise typer.Exit(_import("flows.operate.status").EXIT_CODES[level])


@app.command()
def metrics(
    to_all: Annotated[
        bool, typer.Option("--export", help="Export them to what [metrics] names, as each run does. Print nothing.")
    ] = False,
) -> None:
    """Print the metrics of this installation now, as Prometheus' text. All statements that are new are counted."""
    exporting, settings = _import("tasks.metrics.export"), Settings()
    if not to_all:
        write(iter([exporting.show(settings)]))
    elif not settings.metrics.is_on:
        raise ConfigurationError("nothing is exported: set metrics.file, metrics.otlp_endpoint or metrics.emf")
    elif not exporting.export(settings):
        raise CustodyError("the metrics were not exported: the lines above say why")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between, with --watch.")] = 5,
) -> None:
    """Show what is wrong, how far each log is, and who is alerted. Exit code 0: healthy, 3: only warnings."""
    showing = _import("flows.operate.status")
    level = showing.show(Settings(), as_json=as_json, every=every if watch else None)
    raise typer.Exit(showing.EXIT_CODES[level])
