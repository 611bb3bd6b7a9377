"""The roll, and the count of stored objects, as Prefect tasks. A step that failed is taken again tomorrow."""

from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.roll.record import Action
from tasks.roll.run import roll_all
from tasks.roll.tiers import Usage, measure_usage
from tasks.settings import Settings


@task(name="roll", cache_policy=NO_CACHE, persist_result=False, retries=0)
def take_steps(now: datetime, *, dry_run: bool) -> list[Action]:
    """Take all steps of the roll, and sign the record."""
    return roll_all(Settings(), now, dry_run=dry_run)


@task(name="usage", cache_policy=NO_CACHE, persist_result=False, retries=0)
def usage() -> list[Usage]:
    """Count objects and bytes by storage class."""
    return measure_usage(Settings())
