"""Runs the steps of the daily roll: indices, the bucket, the expiry of evidence, and the signed record.

Steps are independent: evidence expires even if Elasticsearch is down. Each action is added to a list as soon as it is
done, so it is recorded and signed even if its step, or the roll, fails later.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from custody.errors import CustodyError
from tasks.roll.expire import expire
from tasks.roll.indices import roll_indices
from tasks.roll.record import Action, record
from tasks.roll.tiers import roll_bucket
from tasks.settings import Settings

logger = logging.getLogger("custody.roll")


STEPS: Mapping[str, Callable[..., Iterator[Action]]] = {
    "indices": roll_indices,
    "bucket": lambda settings, _, dry_run: roll_bucket(settings, dry_run=dry_run),
    "end of life": expire,
}


def take_step(name: str, settings: Settings, now: datetime, done: list[Action], *, dry_run: bool = False) -> bool:
    """Run a step of the roll.

    Args:
        name: the step's name in `STEPS`.
        settings: the settings.
        now: the time, timezone-aware.
        done: gets each action after it was done. If the step failed, the last action says why.
        dry_run: show what would be done; change nothing.

    Returns:
        Whether the step was completed.
    """
    try:
        for action in STEPS[name](settings, now, dry_run=dry_run):
            done.append(action)  # noqa: PERF402 - each action is recorded at once, in case the step fails later
    except CustodyError as error:
        why = str(error)
    except Exception as error:
        # Deletions must be recorded, whatever the error.
        logger.exception("unexpected error in the roll's step %r", name)
        why = f"unexpected error ({type(error).__name__}): see the log"
    else:
        return True
    done.append(Action("step", name, "failed", why))
    return False


def roll_all(
    settings: Settings, now: datetime, take: Callable[[str, list[Action]], object], *, dry_run: bool = False
) -> list[Action]:
    """Run all steps, and sign a record of deletions and expiries.

    Args:
        settings: the settings.
        now: the time, timezone-aware.
        take: takes the step with a name, as `take_step` does, and adds its actions to the list.
        dry_run: show what would be done; change nothing.

    Returns:
        All actions, also those that failed.
    """
    actions: list[Action] = []
    try:
        for name in STEPS:
            take(name, actions)
    finally:
        if not dry_run:
            try:
                record(settings, actions, now)
            except CustodyError as error:
                why = f"{error}; the roll's actions are in no signed audit, only in this output"
                actions.append(Action("record", "the roll's audit", "failed", why))
    return actions
