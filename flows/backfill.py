"""The flow that copies archived events to where they are asked for, when somebody asks.

What it does is in `tasks.backfill`; here are the parameters, which Prefect's UI shows as a form, what people see, and
the waiting for restores. That takes hours, so no run waits: it asks for the restore, schedules the next run of its own
deployment with the same parameters, and ends. What the target has is the only memory, so that runs may be stopped,
killed and started again.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed, Failed

from custody.errors import ConfigurationError, CustodyError
from custody.store.protocol import Tier
from flows.summaries import copy_summary, plan_summary
from tasks.backfill.copy import Progress
from tasks.backfill.plan import Kind, Plan, Request, check_request
from tasks.backfill.task import ask_for_restores, choose, copy_events
from tasks.drain.signals import stop_on_signals
from tasks.settings import Settings

EventType = Literal[
    "query_executed", "auth_attempt", "authz_check", "api_key_operation", "security_event", "config_change"
]
"""The types as Prefect's form shows them; a test holds them against `custody.format.events`."""
LOOK_AGAIN = timedelta(hours=1)
"""How often a run looks whether restores are done."""

_ROWS = 100
_TELL_SECONDS = 5.0


@flow(name="backfill", persist_result=False, retries=0)
def backfill(
    since: datetime,
    until: datetime,
    logs: list[str] | None = None,
    types: list[EventType] | None = None,
    target: Kind = "elasticsearch",
    topic: str | None = None,
    folder: str | None = None,
    tier: Tier = "standard",
    late_days: int | None = None,
    dry_run: bool = False,
) -> State[Any]:
    """Copy archived events to where they are asked for.

    Args:
        since: events from then on, by their own time; UTC where no zone is given.
        until: events before then.
        logs: `<log>/<partition>`, or `<log>` for all its partitions; all if not given.
        types: of events; all if not given.
        target: what they are copied to; `tables` are the archive's own, of whole statements.
        topic: the Kafka topic, where that is the target. It gets each event at least once; headers say which it is.
        folder: the folder, where that is the target.
        tier: how archived segments are restored: `standard` (12 h at most) or `bulk` (48 h, cheaper).
        late_days: look only at statements sealed within so many days after the range; all if not given.
        dry_run: say what it would read, and how long it would take, and change nothing.
    """
    request = Request(
        since=_aware(since),
        until=_aware(until),
        logs=tuple(logs or ()),
        types=tuple(types or ()),
        target=target,
        topic=topic,
        folder=folder,
        tier=tier,
        late_days=late_days,
    )
    try:
        return _run(request, dry_run=dry_run)
    except CustodyError as error:
        # Said in one line: a traceback of ours would tell an operator nothing more.
        return Failed(message=str(error))


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _run(request: Request, *, dry_run: bool) -> State[Any]:
    # Here, too, since what a task raises is logged with a traceback.
    check_request(Settings(), request)
    plan = choose(request)
    summary = plan_summary(plan)
    create_table_artifact(key="backfill", table=_rows(plan), description=summary)
    get_run_logger().info(summary)
    if dry_run:
        return Completed(message=f"{summary} Nothing was changed.")
    waiting = ask_for_restores(plan)
    if waiting:
        return Completed(name="Restoring", message=f"{waiting:,} segments are being restored; {_come_back()}")
    done = _copy(plan)
    get_run_logger().info(copy_summary(done))
    if done.problems:
        return Failed(message="\n".join([copy_summary(done), *done.problems[:10]]))
    if done.stopped:
        return Cancelled(
            message=f"{copy_summary(done)} It was stopped; started again with the same parameters it goes on."
        )
    return Completed(message=copy_summary(done))


def _copy(plan: Plan) -> Progress:
    """Copy, and show how far that is."""
    # Called in a flow that is no coroutine, these are none either.
    shown: Any = create_progress_artifact(0.0, key="backfill-progress", description="begun")
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            update_progress_artifact(shown, 100 * progress.share, copy_summary(progress))

    with stop_on_signals():
        done = copy_events(plan, tell)
    update_progress_artifact(shown, 100 * done.share, copy_summary(done))
    return done


def _come_back() -> str:
    """Schedule the next run, and say what happens next."""
    deployment = runtime.deployment.id
    if not deployment:
        return "start again with the same parameters when they are there"
    when = datetime.now(UTC) + LOOK_AGAIN
    try:
        # Of the deployment, and no part of this run: so nothing waits for it, and no slot is held.
        following: Any = run_deployment(
            deployment,
            parameters=dict(runtime.flow_run.parameters),
            scheduled_time=when,
            timeout=0,
            as_subflow=False,
            idempotency_key=f"after-{runtime.flow_run.id}",
        )
    # The client says of a server that it does not reach what httpx does, and of one at first use a RuntimeError.
    except (PrefectException, httpx.HTTPError, RuntimeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigurationError(
            f"restores were asked for, and the next run could not be scheduled ({said}): start it again, with the same"
            " parameters, in some hours"
        ) from None
    return f"the run {following.name!r} looks again at {when:%Y-%m-%d %H:%M} UTC"


def _rows(plan: Plan) -> list[dict[str, Any]]:
    logs: dict[str, dict[str, Any]] = {}
    for pieces in plan.pieces:
        for piece in pieces:
            row = logs.setdefault(str(piece.log), {"log": str(piece.log), "statements": 0, "events": 0, "bytes": 0})
            row["statements"] += 1
            row["events"] += piece.events
            row["bytes"] += piece.size
    return list(logs.values())[:_ROWS] or [{"log": "none", "statements": 0, "events": 0, "bytes": 0}]
