"""A backfill's phases as Prefect tasks. None is tried again: the next run goes on from what the target has."""

from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.backfill.copy import Progress, copy
from tasks.backfill.plan import Plan, Request, plan_backfill
from tasks.backfill.restore import restore
from tasks.drain.signals import stop_requested
from tasks.settings import Settings


@task(name="choose", cache_policy=NO_CACHE, persist_result=False, retries=0)
def choose(request: Request) -> Plan:
    """Look at the manifests."""
    return plan_backfill(Settings(), request)


@task(name="restore", cache_policy=NO_CACHE, persist_result=False, retries=0)
def ask_for_restores(plan: Plan) -> int:
    """Ask for copies of archived segments, and return how many are still being made."""
    return restore(Settings(), plan)


@task(name="copy", cache_policy=NO_CACHE, persist_result=False, retries=0)
def copy_events(plan: Plan, tell: Callable[[Progress], None]) -> Progress:
    """Copy until it is done or the process is to stop, and tell how far that is."""
    return copy(Settings(), plan, tell, lambda: not stop_requested.is_set())
