"""Rolls of indices as tests run them, and the times at which."""

from datetime import UTC, datetime, timedelta

from tasks.roll.indices import roll_indices
from tasks.roll.record import Action
from tasks.search.client import Search
from tasks.settings import Settings

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=100)
"""By then all that is of today is old enough to be deleted."""


def roll(given: Settings, now: datetime = NOW, *, dry_run: bool = False) -> list[Action]:
    """Roll the indices at a time, once all that was indexed can be searched."""
    search = Search(given.search)
    search.client.indices.refresh(index=f"{search.prefix}*")
    search.close()
    return list(roll_indices(given, now, dry_run=dry_run))
