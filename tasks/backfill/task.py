"""A backfill's phases as Prefect tasks. None is retried: the next run continues from what the target has."""

from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.backfill.copy import Progress, copy, copy_share, restore
from tasks.backfill.plan import Plan, Request, plan_backfill
from tasks.drain.signals import may_go_on
from tasks.settings import Settings


@task(name="choose", cache_policy=NO_CACHE, persist_result=False, retries=0)
def choose(request: Request) -> Plan:
    """Choose what to read, from the manifests."""
    return plan_backfill(Settings(), request)


@task(name="restore", cache_policy=NO_CACHE, persist_result=False, retries=0)
def ask_for_restores(plan: Plan) -> int:
    """Request restores, and return how many segments are not restored yet."""
    return restore(Settings(), plan)


@task(name="copy", cache_policy=NO_CACHE, persist_result=False, retries=0)
def copy_events(plan: Plan, report: Callable[[Progress], None]) -> Progress:
    """Copy until everything is copied or a stop is requested, and report progress."""
    return copy(Settings(), plan, report, may_go_on)


@task(name="copy-share", cache_policy=NO_CACHE, persist_result=False, retries=0)
def copy_part(plan: Plan) -> Progress:
    """Copy a share of the parts, until a stop is requested in this process."""
    return copy_share(Settings(), plan, go_on=may_go_on)
