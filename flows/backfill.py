"""The flow that copies archived events to a target, on demand.

The work is in `tasks.backfill`. This module has the parameters, which Prefect's UI shows as a form, publishes progress,
and handles restores. A restore takes hours, so no run waits for it: the run requests it, schedules the next run of its
own deployment with the same parameters, and ends. The target itself shows what was copied, so runs may be stopped,
killed and started again.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed
from pydantic import Field, WithJsonSchema

from custody.errors import ConfigurationError, CustodyError, counted
from custody.format.times import as_utc
from custody.store.protocol import Tier
from flows.parameters import Days, Logs, Text
from flows.publish import HEARD, add_to_name, fail, finish, publish_table
from flows.runners import run_parallel
from flows.summaries import copy_summary, plan_summary
from tasks.backfill.copy import Progress, join, shares
from tasks.backfill.plan import Kind, Plan, Request, check_request
from tasks.backfill.task import ask_for_restores, choose, copy_events, copy_part
from tasks.drain.signals import stop_on_signals
from tasks.metrics.run import Run
from tasks.settings import Settings

Types = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=255)]] | None,
    WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 255}}),
]
LOOK_AGAIN = timedelta(hours=1)
"""How long after this run the next one checks whether restores are done."""

_REPORT_SECONDS = 5.0


@flow(
    name="backfill",
    flow_run_name="backfill {since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}, {target}",
    persist_result=False,
    retries=0,
    **HEARD,
)
def backfill(
    since: datetime,
    until: datetime,
    dry_run: bool = False,
    target: Kind = "elasticsearch",
    topic: Text = None,
    folder: Text = None,
    logs: Logs = None,
    types: Types = None,
    tier: Tier = "standard",
    late_days: Days = None,
) -> State[Any]:
    """Copy archived events to a target.

    Args:
        since: Events at this time or later, by their own time. A time without a zone is UTC.
        until: Events before this time.
        dry_run: Only show what would be read, and how long it would take. Change nothing.
        target: Where events are copied to. `tables` are the archive's own Parquet tables, made of whole statements.
        topic: The Kafka topic, for the target `topic`. It gets each event at least once. Headers identify the event.
        folder: The folder, for the target `folder`.
        logs: Logs to copy from, such as `audit.logins/0`, or a topic for all its logs. Empty: all.
        types: Event types to copy, such as `auth_attempt` or an own one. Empty: all.
        tier: How segments in an archive storage class are restored: `standard` (up to 12 h), or `bulk` (up to 48 h,
            cheaper).
        late_days: Only statements sealed at most this many days after the range. Empty: all.
    """
    request = Request(
        since=as_utc(since),
        until=as_utc(until),
        logs=tuple(logs or ()),
        types=tuple(types or ()),
        target=target,
        topic=topic,
        folder=folder,
        tier=tier,
        late_days=late_days,
    )
    run = Run("backfill")
    try:
        return finish(run, _run(run, request, dry_run=dry_run))
    except CustodyError as error:
        return finish(run, fail(str(error)))


def _run(run: Run, request: Request, *, dry_run: bool) -> State[Any]:
    # Checked here too: Prefect logs an error inside a task with its traceback.
    check_request(Settings(), request)
    with run.step("plan"):
        plan = choose(request)
    summary = plan_summary(plan)
    publish_table("backfill", _rows(plan), summary)
    get_run_logger().info(summary)
    if dry_run:
        return Completed(message=f"{summary} Nothing was changed.")
    with run.step("restore"):
        waiting = ask_for_restores(plan)
    if waiting:
        restoring = f"{counted(waiting, 'segment is', 'segments are')} being restored"
        return Completed(name="Restoring", message=f"{restoring}; {_schedule_next_run()}")
    # Outside of the step, which notes whether it was stopped.
    with stop_on_signals(), run.step("copy"):
        done = _copy(plan)
    get_run_logger().info(copy_summary(done))
    add_to_name(f"{done.created:,} copied" + (f", {counted(len(done.problems), 'problem')}" if done.problems else ""))
    if done.problems:
        return fail("\n".join([copy_summary(done), *done.problems[:10]]))
    if done.stopped:
        return Cancelled(
            message=f"{copy_summary(done)} The run was stopped. Start it again with the same parameters to continue."
        )
    return Completed(message=copy_summary(done))


def _copy(plan: Plan) -> Progress:
    """Copy the events, and update a progress artifact; of shares in parallel, at the end alone."""
    # In a synchronous flow Prefect runs these calls synchronously too.
    artifact: Any = create_progress_artifact(0.0, key="backfill-progress", description="started")
    begin = reported_at = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= _REPORT_SECONDS:
            reported_at = time.monotonic()
            update_progress_artifact(artifact, 100 * progress.share, copy_summary(progress))

    settings = Settings().backfill
    parts = shares(plan, settings.workers)
    if len(parts) > 1:
        results = run_parallel(copy_part, [(part,) for part in parts], settings.task_runner, settings.workers)
        done = join(plan, parts, results, time.monotonic() - begin)
    else:
        done = copy_events(plan, report)
    update_progress_artifact(artifact, 100 * done.share, copy_summary(done))
    return done


def _schedule_next_run() -> str:
    """Schedule the next run, and return what happens next, in words."""
    deployment = runtime.deployment.id
    if not deployment:
        return "start again with the same parameters once they are restored"
    when = datetime.now(UTC) + LOOK_AGAIN
    # To the schema, a parameter that is not given is absent.
    given = {name: value for name, value in runtime.flow_run.parameters.items() if value is not None}
    try:
        # A run of the deployment, not a subflow: nothing waits for it, and it takes no slot.
        following: Any = run_deployment(
            deployment,
            parameters=given,
            scheduled_time=when,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"after-{runtime.flow_run.id}",
        )
    # If the server cannot be reached, Prefect raises httpx's errors, and at the first call a RuntimeError.
    except (PrefectException, httpx.HTTPError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigurationError(
            f"restores were requested, but the next run could not be scheduled ({reason}): start the backfill again in"
            " some hours, with the same parameters"
        ) from None
    return f"the run {following.name!r} checks again at {when:%Y-%m-%d %H:%M} UTC"


def _rows(plan: Plan) -> list[dict[str, Any]]:
    logs: dict[str, dict[str, Any]] = {}
    for part in plan.parts:
        row = logs.setdefault(str(part.log), {"log": str(part.log), "statements": 0, "events": 0, "bytes": 0})
        row["statements"] += len(part.pieces)
        row["events"] += part.events
        row["bytes"] += part.size
    return list(logs.values())
