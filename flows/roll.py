"""The flow that runs every day: roll indices and storage tiers, delete expired evidence, and publish what was done.

Each deletion, and each deletion that failed, is also signed in an audit: Prefect's database is no evidence.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError, counted
from flows.publish import HEARD, add_to_name, emit, fail, finish, publish_table, run_name
from tasks.metrics.run import Run
from tasks.roll.record import Action
from tasks.roll.task import take_steps, usage
from tasks.roll.tiers import Usage

_WORST_FIRST = {"failed": 0, "refused": 1, "planned": 2, "done": 3}


@flow(name="roll", flow_run_name=run_name("roll"), persist_result=False, retries=0, **HEARD)
def roll(dry_run: bool = False) -> State[Any]:
    """Roll indices and storage tiers, and delete evidence whose retention has ended.

    Args:
        dry_run: Show what would be done. Change nothing.
    """
    run = Run("roll")
    problems: list[str] = []
    actions: list[Action] = []
    try:
        with run.step("roll"):
            actions = take_steps(datetime.now(UTC), dry_run=dry_run)
    except CustodyError as error:
        problems.append(str(error))
    try:
        with run.step("usage"):
            _show_usage(usage())
    except CustodyError as error:
        problems.append(f"usage: {error}")
    return finish(run, _conclude(actions, problems))


def _conclude(actions: Sequence[Action], problems: Sequence[str]) -> State[Any]:
    failed = [f"{action.what} {action.target}: {action.why}" for action in actions if action.outcome == "failed"]
    outcomes = ("done", "planned", "refused", "failed")
    counts = {name: sum(action.outcome == name for action in actions) for name in outcomes}
    summary = (
        "Roll: " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "done") + "."
    )
    shown = sorted(actions, key=lambda action: (_WORST_FIRST[action.outcome], action.what, action.target))
    publish_table("roll", [asdict(action) for action in shown], summary)
    get_run_logger().info(summary)
    add_to_name(", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do")
    if problems or failed:
        worst = [*problems, *failed][:10]
        return fail("\n".join([summary, *worst]))
    emit("custody.roll.completed", "roll", **counts)
    return Completed(message=summary, data=list(actions))


def _show_usage(usages: Sequence[Usage]) -> None:
    """Show bytes and objects by class, and costs if `tiers.prices` is set."""
    costs = [part.cost_a_month for part in usages if part.cost_a_month is not None]
    description = (
        f"{sum(part.bytes for part in usages):,} bytes in {counted(sum(part.objects for part in usages), 'object')}"
    )
    description += f", {sum(costs):,.2f} a month by `tiers.prices`." if costs else "."
    if small := sum(part.too_small for part in usages):
        description += (
            f" {counted(small, 'segment is', 'segments are')} too small to be cheaper in a colder class: raise"
            " `drain.linger_seconds` to get larger segments (docs/sizing.md)."
        )
    shown = [field.name for field in fields(Usage) if costs or field.name != "cost_a_month"]
    publish_table("tiers", [{name: getattr(part, name) for name in shown} for part in usages], description)
