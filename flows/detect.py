"""The flow that runs every minute: run the rules over what was archived since the last run, and tell of alerts.

A run goes on where the state in the archive says. So late, skipped and killed runs do no harm, and need no retry. A run
after 01:00 UTC also looks again at yesterday.
"""

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError, counted, escape
from flows.publish import HEARD, add_to_name, emit_notices, fail, finish, publish_table, run_name
from tasks.detect import run as detection
from tasks.metrics.run import Run
from tasks.settings import Settings


@flow(name="detect", flow_run_name=run_name("detect"), persist_result=False, retries=0, **HEARD)
def detect() -> State[Any]:
    """Run the rules over what was archived since the last run."""
    run = Run("detect")
    try:
        settings = Settings()
        if not settings.detect.enabled:
            return finish(run, Completed(message="detect.enabled is false: no rule was run"))
        with run.step("detect"):
            result = detection.detect(settings, announce=emit_notices)
    except CustodyError as error:
        return finish(run, fail(str(error)))
    return finish(run, _conclude(result))


def _conclude(result: detection.Result) -> State[Any]:
    """Publish new alerts, and end the run as failed if something was not looked at, or could not be told."""
    get_run_logger().info(result.summary)
    if result.opened:
        publish_table("detect", [_row(alert) for alert in result.opened], result.summary)
    problems = f", {counted(len(result.problems), 'problem')}" if result.problems else ""
    add_to_name(f"{counted(result.events, 'event')}, {counted(len(result.opened), 'alert')}{problems}")
    if result.problems:
        return fail("\n".join([result.summary, *result.problems]))
    return Completed(message=result.summary, data=result)


def _row(alert: dict[str, Any]) -> dict[str, Any]:
    # What matters comes first: the page cuts a wide table on the right. A cell of the page is text. Clients chose the
    # values of a group: Prefect's database refuses a NUL, and a terminal takes control characters as commands.
    group = escape(", ".join(f"{name} {value}" for name, value in alert["group"]))
    names = ("level", "title", "first", "last", "matches", "metric", "recorded_only", "rule", "id")
    return {"group": group or "all events", **{name: alert[name] for name in names}}
