"""Estimates how long a backfill will take, from AWS's documented restore times and rough speeds of our own.

The plan has the objects and bytes that are read. Their price depends on the region and the contract, and is not
estimated here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from custody.store.protocol import Tier
from tasks.backfill.plan import Kind, Plan

_RESTORE_HOURS: Mapping[tuple[str, Tier], float] = {
    ("GLACIER", "standard"): 5,
    ("GLACIER", "bulk"): 12,
    ("DEEP_ARCHIVE", "standard"): 12,
    ("DEEP_ARCHIVE", "bulk"): 48,
}
"""Longest times, as AWS documents them."""
_EVENTS_SECOND: Mapping[Kind, float] = {
    "elasticsearch": 10_000,
    "tables": 50_000,
    "topic": 60_000,
    "folder": 200_000,
}
"""Events per second of one process on a busy machine with two cores. `folder` and `tables` were measured; the other
two are careful guesses."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a plan will take.

    Attributes:
        restore_hours: longest time until the last segment is restored; 0 if nothing must be restored.
        seconds: time of the copy itself.
    """

    restore_hours: float
    seconds: float

    def __str__(self) -> str:
        restores = f"up to {self.restore_hours:.0f} h for restores, then " if self.restore_hours else ""
        return f"{restores}{duration(self.seconds)} to copy"


def estimate(plan: Plan) -> Estimate:
    """Return an estimate of how long a plan will take."""
    tier = plan.request.tier
    hours = (_RESTORE_HOURS[segment.storage_class or "DEEP_ARCHIVE", tier] for segment in plan.archived)
    return Estimate(max(hours, default=0), plan.events / _EVENTS_SECOND[plan.request.target])


def duration(seconds: float) -> str:
    """Return a duration as text, such as `5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
