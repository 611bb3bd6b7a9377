"""Rolls of indices as tests run them, the times at which, and events of that day.

All go by one time, so that a session that passes midnight has one day.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.roll.indices import roll_indices
from tasks.roll.record import Action
from tasks.search.client import Search
from tasks.settings import Settings
from tests.helpers.search import now_event

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=100)
"""By then all that is of today is old enough to be deleted."""


def event_to_roll(offset: int, **fields: Any) -> bytes:
    """Return an event of the day of `NOW`."""
    return now_event(offset, **{"timestamp": NOW.isoformat().replace("+00:00", "Z"), **fields})


def roll(given: Settings, now: datetime = NOW, *, dry_run: bool = False) -> list[Action]:
    """Roll the indices at a time, once all that was indexed can be searched."""
    search = Search(given.search)
    search.client.indices.refresh(index=f"{search.prefix}*")
    search.close()
    return list(roll_indices(given, now, dry_run=dry_run))
