"""What a backfill will cost and take, before it is begun: by AWS's list prices (us-east-1, 2025), and by rough speeds.

An estimate, for deciding: prices differ between regions and change, and reading from outside of AWS costs more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from custody.store.protocol import Tier
from tasks.backfill.plan import Kind, Plan
from tasks.backfill.restore import RESTORE_DAYS

_GB = 1e9
_GET_DOLLARS = 0.0004 / 1000
_COPY_DOLLARS_DAY = 0.023 / 30
"""Of a restored copy, a GB and day."""
_RESTORE: Mapping[tuple[str, Tier], tuple[float, float, float]] = {
    ("GLACIER", "standard"): (0.01, 0.05 / 1000, 5),
    ("GLACIER", "bulk"): (0.0, 0.0, 12),
    ("DEEP_ARCHIVE", "standard"): (0.02, 0.10 / 1000, 12),
    ("DEEP_ARCHIVE", "bulk"): (0.0025, 0.025 / 1000, 48),
}
"""Dollars a GB, dollars a request, and hours at most."""
_READ: Mapping[str, float] = {"STANDARD_IA": 0.01, "ONEZONE_IA": 0.01, "GLACIER_IR": 0.03}
"""Dollars a GB that is read."""
_EVENTS_SECOND: Mapping[Kind, float] = {
    "elasticsearch": 10_000,
    "tables": 50_000,
    "topic": 60_000,
    "folder": 200_000,
}
"""Of one process on a busy machine with two cores: folder and tables measured, the other two guessed with care."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan will cost and take.

    Attributes:
        dollars: all of it.
        restore_dollars: of that, restores, and their copies for as long as they stay.
        restore_hours: until the last copy can be read, at most; 0 if nothing has to be restored.
        seconds: the copying itself.
    """

    dollars: float
    restore_dollars: float
    restore_hours: float
    seconds: float

    def __str__(self) -> str:
        restores = (
            f" and up to {self.restore_hours:.0f} h for restores (${self.restore_dollars:,.2f} of it)"
            if self.restore_hours
            else ""
        )
        return f"about ${self.dollars:,.2f} by AWS's list prices, {duration(self.seconds)} to copy{restores}"


def estimate(plan: Plan) -> Estimate:
    """Return what a plan will cost and take; of an archive in a folder nothing is paid."""
    restores, hours = 0.0, 0.0
    for one in plan.archived:
        gb, request, most = _RESTORE[one.storage_class or "DEEP_ARCHIVE", plan.request.tier]
        restores += request + one.size / _GB * (gb + RESTORE_DAYS * _COPY_DOLLARS_DAY)
        hours = max(hours, most)
    classes = {one.key: one.storage_class for one in plan.objects}
    reads = 0.0
    for part in plan.pieces:
        for piece in part:
            storage_class = classes.get(piece.key)
            if storage_class is not None:
                reads += piece.reads * _GET_DOLLARS + piece.size / _GB * _READ.get(storage_class, 0.0)
    if any(classes.values()):
        # Manifests: each that was looked at once, each that is copied from again. And a look at each segment.
        reads += (plan.statements + 2 * len(plan.objects)) * _GET_DOLLARS
    seconds = plan.events / _EVENTS_SECOND[plan.request.target]
    return Estimate(restores + reads, restores, hours, seconds)


def duration(seconds: float) -> str:
    """Return a length of time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
