"""All that the roll does on a day, step by step: indices, the bucket, the end of life, the record.

Each step is on its own: an Elasticsearch that is down keeps nothing from expiring. What a step has done is in a list
as soon as it is done, so that nothing of it is lost with what ends the step, or the roll; and it is signed in any case.
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


def _indices(settings: Settings, now: datetime, dry_run: bool) -> Iterator[Action]:
    return roll_indices(settings, now, dry_run=dry_run) if settings.search.url else iter(())


STEPS: Mapping[str, Callable[[Settings, datetime, bool], Iterator[Action]]] = {
    "indices": _indices,
    "bucket": lambda settings, _, dry_run: roll_bucket(settings, dry_run=dry_run),
    "end of life": lambda settings, now, dry_run: expire(settings, now, dry_run=dry_run),
}


def take_step(name: str, settings: Settings, now: datetime, done: list[Action], *, dry_run: bool = False) -> bool:
    """Take a step of the roll.

    Args:
        name: which, of `STEPS`.
        settings: the settings.
        now: the time, aware.
        done: gets each action once it is done; the last one says what ended the step, if anything did.
        dry_run: say what would be done, and change nothing.

    Returns:
        Whether it came to its end.
    """
    try:
        for action in STEPS[name](settings, now, dry_run):
            done.append(action)  # noqa: PERF402 - what is done stands there at once, whatever ends the step
    except CustodyError as error:
        why = str(error)
    except Exception as error:
        # What was deleted must be recorded, whatever the fault.
        logger.exception("the roll's step %r ended by a fault", name)
        why = f"a fault of the program, {type(error).__name__}: see the log"
    else:
        return True
    done.append(Action("step", name, "failed", why))
    return False


def roll_all(
    settings: Settings, now: datetime, take: Callable[[str, list[Action]], object], *, dry_run: bool = False
) -> list[Action]:
    """Take all steps, and sign what was deleted, what was to be and was not, and what expired.

    Args:
        settings: the settings.
        now: the time, aware.
        take: takes the step of a name, as `take_step` does, and adds to the list what was done.
        dry_run: say what would be done, and change nothing.

    Returns:
        What was done and was not; what could not be, `failed`.
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
                why = f"{error}; what was done is in no signed audit, and is told here alone"
                actions.append(Action("record", "the roll's audit", "failed", why))
    return actions
