"""What flows publish in Prefect: tables and names, which people read, and events, which automations wait for.

Prefect's server only shows these. A run that did its work does not fail because the server did not take a name.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
from prefect import Flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import CancelledRun, FailedRun, PrefectException
from prefect.states import Failed
from prefect.utilities.urls import url_for

from custody.cli.log_lines import use_format
from custody.errors import CustodyError, escape
from tasks.metrics.export import export
from tasks.metrics.run import Run
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.detect.alerts import Notice

ROWS = 100
"""Rows in a table; it lives in Prefect's database."""


def publish_table(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """Publish the first rows as an artifact, and say so if there are more."""
    more = f" The table shows the first {ROWS} of {len(rows):,} rows." if len(rows) > ROWS else ""
    create_table_artifact(key=key, table=list(rows[:ROWS]) or [{key: "none"}], description=description + more)


def publish_text(key: str, markdown: str, description: str) -> None:
    """Publish text as an artifact. On Prefect's page text wraps; a table's wide cells hide what is right of them."""
    create_markdown_artifact(key=key, markdown=markdown, description=description)


def publish_report(address: str, summary: str) -> None:
    """Publish where an integrity report lies. A browser opens no `file:` or `s3:` link on Prefect's page.

    AWS's console opens an object in a bucket for those who may read it. A signed link would be for everybody.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    console = f"https://s3.console.aws.amazon.com/s3/object/{bucket}?{urlencode({'prefix': key})}"
    on_aws = address.startswith("s3://") and Settings().s3.endpoint_url is None
    where = (
        f"[Open it in AWS's console]({console})."
        if on_aws
        else "Open this file in a browser, on a machine that has it:"
    )
    # Inline code wraps on the page, a block of code is cut on the right.
    publish_text("integrity-report", f"{summary}\n\n{where}\n\n`{address}`\n", "")


def run_name(subject: str) -> Callable[[], str]:
    """Return a function that names a run when it starts, such as `drain 2026-11-28 01:20`."""
    return lambda: f"{subject} {runtime.flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


def add_to_name(result: str) -> None:
    """Add the result to the name of the current run, so that a list of runs tells what they did."""
    name = f"{runtime.flow_run.name}, {result}"
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(runtime.flow_run.id, name=name)
    except (PrefectException, httpx.HTTPError) as error:
        get_run_logger().warning("Prefect's server did not take the run's name: %s", type(error).__name__)


def emit(event: str, resource: str, **payload: object) -> None:
    """Emit an event about a resource. The triggers in `deployments/prefect.yaml` wait for it."""
    names = {"prefect.resource.id": f"custody.{resource}", "prefect.resource.name": resource}
    run = runtime.flow_run.id
    emit_event(event, resource=names, payload={"run": _page(run), **payload})


def emit_notices(notices: Sequence["Notice"]) -> None:
    """Emit an event `custody.detect.<kind>` for each notice of the rules. Its resource is the alert.

    Its texts have values that clients chose, so control characters are escaped.
    """
    # A run of another flow needs no rules, nor what they load.
    from tasks.detect.publish import details_of, summary_of, title_of

    for notice in notices:
        details = details_of(notice)
        emit(
            f"custody.detect.{notice.kind}",
            f"alert.{notice.alert.id}",
            title=escape(title_of(notice)),
            summary=escape(summary_of(notice)),
            advice=escape(details["advice"]),
            evidence=escape(next(iter(details["evidence"]), "")),
            rule=notice.alert.rule,
            level=notice.alert.level,
        )


def _page(run: Any) -> str:
    """Return the address of a run's page; empty if there is none."""
    return (run and url_for("flow-run", run)) or ""


def fail(message: str) -> State[Any]:
    """Log each line of a message as an error, and return the failed state.

    It is returned and not raised, since a traceback would tell an operator nothing more.
    """
    for line in message.splitlines():
        get_run_logger().error(line)
    return Failed(message=message)


def finish(run: Run, state: State[Any]) -> State[Any]:
    """Export metrics once the work of a run is done, and return its state as it was."""
    if state.is_completed():
        run.succeed()
    try:
        settings = Settings()
    except CustodyError:
        # The run failed by it already.
        return state
    export(settings, run)
    return state


def emit_failure(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Emit the event for a failed run of any flow, whether it returned a failed state or raised an error."""
    emit(f"custody.{flow.name}.failed", flow.name, problem=state.message, run=_page(run.id))


HEARD: Any = {"on_failure": [emit_failure], "on_crashed": [emit_failure]}
"""Hooks that each flow has, so that no failure depends on the flow's own code to be reported."""


def _tells_more(record: logging.LogRecord) -> bool:
    """Return False for what Prefect logs of a flow that returned a failed state: 40 lines about its engine."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun | CancelledRun))


logging.getLogger("prefect.flow_runs").addFilter(_tells_more)
logging.getLogger("prefect.engine").addFilter(_tells_more)


def _origin() -> tuple[str | None, str | None]:
    """Return the id of the current run, and its flow's name, for lines of the log. It makes no request.

    A thread of our own has no context: of it only the id is known, by the variable that a worker sets.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return os.environ.get("PREFECT__FLOW_RUN_ID"), None
    return str(context.flow_run.id), context.flow.name if context.flow else None


# After Prefect's own configuration, which importing it makes.
use_format(_origin)
