"""What flows publish in Prefect: tables, which people read, and events, which automations wait for."""

from collections.abc import Sequence
from typing import Any

from prefect import Flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event

ROWS = 100
"""Rows in a table; it lives in Prefect's database."""


def publish_table(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """Publish the first rows as an artifact, and say so if there are more."""
    more = f" The table shows the first {ROWS} of {len(rows):,} rows." if len(rows) > ROWS else ""
    create_table_artifact(key=key, table=list(rows[:ROWS]) or [{"rows": "none"}], description=description + more)


def emit(event: str, resource: str, **payload: object) -> None:
    """Emit an event about a resource. The triggers in `deployments/prefect.yaml` wait for it."""
    names = {"prefect.resource.id": f"custody.{resource}", "prefect.resource.name": resource}
    emit_event(event, resource=names, payload=payload)


def emit_failure(flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Emit the event for a failed run of any flow, whether it returned a failed state or raised an error."""
    emit(f"custody.{flow.name}.failed", flow.name, problem=state.message, run=run.name)


HEARD: Any = {"on_failure": [emit_failure], "on_crashed": [emit_failure]}
"""Hooks that each flow has, so that no failure depends on the flow's own code to be reported."""
