"""The flow that runs every day: roll indices and tiers, end the life of what is old enough, and say what was done.

What was deleted, and what was to be and was not, is signed as an audit too: Prefect's database is no evidence.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from custody.errors import CustodyError
from tasks.roll.record import Action
from tasks.roll.run import roll_all
from tasks.roll.task import run_step, usage
from tasks.roll.tiers import Usage
from tasks.settings import Settings

ROWS = 100
"""Rows in an artifact; it lives in Prefect's database."""

_WORST_FIRST = {"failed": 0, "refused": 1, "planned": 2, "done": 3}


@flow(name="roll", persist_result=False, retries=0)
def roll(dry_run: bool = False) -> State[Any]:
    """Roll indices and tiers, and end the life of what is old enough.

    Args:
        dry_run: say what would be done, and change nothing.
    """
    now = datetime.now(UTC)
    problems: list[str] = []
    actions: list[Action] = []
    try:
        actions = roll_all(
            Settings(), now, lambda name, done: run_step(name, now, done, dry_run=dry_run), dry_run=dry_run
        )
    except CustodyError as error:
        problems.append(str(error))
    try:
        _show_usage(usage())
    except CustodyError as error:
        problems.append(f"usage: {error}")
    return _conclude(actions, problems)


def _conclude(actions: Sequence[Action], problems: Sequence[str]) -> State[Any]:
    failed = [f"{one.what} {one.target}: {one.why}" for one in actions if one.outcome == "failed"]
    counts = {name: sum(one.outcome == name for one in actions) for name in ("done", "planned", "refused", "failed")}
    summary = (
        "Roll: " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "done") + "."
    )
    shown = sorted(actions, key=lambda one: (_WORST_FIRST[one.outcome], one.what, one.target))
    more = f" The first {ROWS} of {len(actions):,}." if len(actions) > ROWS else ""
    create_table_artifact(
        key="roll",
        table=[_row(one) for one in shown[:ROWS]] or [{"what": "nothing was to be done"}],
        description=summary + more,
    )
    get_run_logger().info(summary)
    resource = {"prefect.resource.id": "custody.roll", "prefect.resource.name": "roll"}
    if problems or failed:
        worst = [*problems, *failed][:10]
        emit_event("custody.roll.failed", resource=resource, payload={"problems": worst})
        return Failed(message="\n".join([summary, *worst]))
    emit_event("custody.roll.completed", resource=resource, payload=counts)
    return Completed(message=summary, data=list(actions))


def _show_usage(found: Sequence[Usage]) -> None:
    """Show bytes and objects by class, and costs where `tiers.prices` is set."""
    known = [one.cost for one in found if one.cost is not None]
    description = f"{sum(one.size for one in found):,} bytes in {sum(one.objects for one in found):,} objects"
    description += f", {sum(known):,.2f} a month by `tiers.prices`." if known else "."
    if small := sum(one.small for one in found):
        description += (
            f" {small:,} segments are too small for cheaper classes to pay off: `drain.segment_bytes` and"
            " `drain.flush_seconds` make larger ones."
        )
    table = [
        {
            "part": one.part,
            "class": one.storage_class,
            "objects": one.objects,
            "bytes": one.size,
            "too small": one.small,
            **({"cost a month": "" if one.cost is None else round(one.cost, 4)} if known else {}),
        }
        for one in found
    ]
    create_table_artifact(key="tiers", table=table or [{"part": "nothing is archived"}], description=description)


def _row(one: Action) -> dict[str, Any]:
    return {"what": one.what, "target": one.target, "outcome": one.outcome, "why": one.why}
