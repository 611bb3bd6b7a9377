"""The roll's steps, and the count of stored objects, as Prefect tasks. A step that failed is taken again tomorrow."""

from datetime import datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.roll.record import Action
from tasks.roll.run import take_step
from tasks.roll.tiers import Usage, measure_usage
from tasks.settings import Settings


@task(name="usage", cache_policy=NO_CACHE, persist_result=False, retries=0)
def usage() -> list[Usage]:
    """Count objects and bytes by storage class."""
    return measure_usage(Settings())


def run_step(name: str, now: datetime, done: list[Action], *, dry_run: bool) -> None:
    """Run a step as a task of its own, in this process.

    Args:
        name: the name of the step, and of the task.
        now: this run's time.
        done: gets each action at once, without Prefect, so that actions are kept if the task fails.
        dry_run: as in `take_step`.
    """

    # Defined here, so that the task has no parameters: Prefect inspects those, and may copy the list.
    @task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)
    def step() -> State[Any]:
        ended = take_step(name, Settings(), now, done, dry_run=dry_run)
        return Completed() if ended else Failed(message=done[-1].why)

    state = step(return_state=True)
    if not state.is_completed() and not any((action.what, action.target) == ("step", name) for action in done):
        done.append(Action("step", name, "failed", f"Prefect says {state.name}: {state.message}"))
