"""Restores segments in an archive storage class: requests temporary copies that can be read."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from custody.store.open import open_store
from tasks.backfill.plan import PARALLEL, Object, Plan, map_in_order
from tasks.settings import Settings

RESTORE_DAYS = 7
"""How long a restored copy can be read."""


def restore(settings: Settings, plan: Plan) -> int:
    """Request the restore of segments that cannot be read, and return how many are not restored yet.

    Raises:
        StoreError: the archive refuses, or does not answer. It is safe to try again.
    """
    if not plan.archived:
        return 0
    with closing(open_store(settings.archive, settings.s3)) as store, ThreadPoolExecutor(PARALLEL) as threads:
        restores = store.capabilities.restores

        def ask(segment: Object) -> bool:
            status = store.status(segment.key)
            if restores and status.archived and not status.restored and not status.restoring:
                restores.restore(segment.key, days=RESTORE_DAYS, tier=plan.request.tier)
                status = store.status(segment.key)
            return status.archived and not status.restored

        return sum(map_in_order(threads, ask, plan.archived))
