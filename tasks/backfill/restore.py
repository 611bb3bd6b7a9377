"""Restores: copies that can be read of the segments that lie in an archive storage class."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from custody.store.open import open_store
from tasks.backfill.plan import PARALLEL, Object, Plan, map_in_order
from tasks.settings import Settings

RESTORE_DAYS = 7
"""How long the copy of an archived object can be read."""


def restore(settings: Settings, plan: Plan) -> int:
    """Ask for copies of the segments that cannot be read where they lie, and return how many are still being made.

    Raises:
        StoreError: the archive refuses, or does not answer; asking again is safe.
    """
    if not plan.archived:
        return 0
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(PARALLEL) as threads:
        restores = store.capabilities.restores

        def ask(one: Object) -> bool:
            status = store.status(one.key)
            if restores and status.archived and not status.restored and not status.restoring:
                restores.restore(one.key, days=RESTORE_DAYS, tier=plan.request.tier)
                status = store.status(one.key)
            return status.archived and not status.restored

        return sum(map_in_order(threads, ask, plan.archived))
