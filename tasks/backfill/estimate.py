"""How long a backfill will take, before it is begun: by what AWS says of restores, and by rough speeds of ours.

What is read, in objects and bytes, is in the plan. What that costs depends on the region and the contract, and is not
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
"""At most, as AWS documents it."""
_EVENTS_SECOND: Mapping[Kind, float] = {
    "elasticsearch": 10_000,
    "tables": 50_000,
    "topic": 60_000,
    "folder": 200_000,
}
"""Of one process on a busy machine with two cores: folder and tables measured, the other two guessed with care."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a plan will take.

    Attributes:
        restore_hours: until the last copy can be read, at most; 0 if nothing has to be restored.
        seconds: the copying itself.
    """

    restore_hours: float
    seconds: float

    def __str__(self) -> str:
        restores = f"up to {self.restore_hours:.0f} h for restores, then " if self.restore_hours else ""
        return f"{restores}{duration(self.seconds)} to copy"


def estimate(plan: Plan) -> Estimate:
    """Return how long a plan will take."""
    tier = plan.request.tier
    hours = (_RESTORE_HOURS[one.storage_class or "DEEP_ARCHIVE", tier] for one in plan.archived)
    return Estimate(max(hours, default=0), plan.events / _EVENTS_SECOND[plan.request.target])


def duration(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
