"""Runs the steps of the daily roll: indices, the bucket, the expiry of evidence, and the signed record.

Steps are independent: evidence expires even if Elasticsearch is down. Each action is added to a list as soon as it is
done, so it is recorded and signed even if its step, or the roll, fails later.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from functools import cache

from custody.archive.reader import read_archive
from custody.archive.trusted import check_keys
from custody.errors import ConfigurationError, CustodyError
from custody.store.open import open_store
from custody.store.s3_errors import KeyRefused, NoAnswer
from tasks.roll.clock import AHEAD
from tasks.roll.expire import check_confirmed, expire, read_clocks
from tasks.roll.indices import roll_indices
from tasks.roll.record import Action, record
from tasks.roll.tiers import roll_bucket
from tasks.settings import Settings

logger = logging.getLogger("custody.roll")


def _roll_indices(
    settings: Settings, now: datetime, clocks: Callable[[], list[datetime]], *, dry_run: bool, confirm_clock: bool
) -> Iterator[Action]:
    others = clocks() if settings.search.url else []
    if others and now - max(others) <= AHEAD:
        return roll_indices(settings, now, dry_run=dry_run, earliest=min(now, *others))
    # If the clock is not confirmed, nothing that it calls old is deleted: the roll fails.
    return roll_indices(settings, now, dry_run=dry_run, keep=not confirm_clock)


STEPS: Mapping[str, Callable[..., Iterator[Action]]] = {
    "indices": _roll_indices,
    "bucket": lambda settings, *_, dry_run, **__: roll_bucket(settings, dry_run=dry_run),
    "end of life": lambda settings, now, clocks, **options: expire(settings, now, clocks=clocks(), **options),
}


def _check_settings(settings: Settings) -> None:
    """Check that there is an archive, and that the keys are for it. Each step reports any other problem itself.

    Raises:
        ConfigurationError: there is no archive, or the keys cannot be used, or are those of another archive.
        KeyRefused: the archive's storage accepts no call of ours, so each step would report the same.
        NoAnswer: it cannot be reached.
    """
    try:
        with closing(open_store(settings.archive, settings.s3)) as store:
            # Before the keys: who has neither needs `custody init`, which makes both.
            check_keys(store, read_archive(store), settings.own_trust())
    except (ConfigurationError, KeyRefused, NoAnswer):
        raise
    except CustodyError as error:
        logger.debug("the steps report it: %s", error)


def roll_all(settings: Settings, now: datetime, *, dry_run: bool = False, confirm_clock: bool = False) -> list[Action]:
    """Run all steps, and sign a record of deletions and expiries.

    Args:
        settings: the settings.
        now: the time, timezone-aware.
        dry_run: show what would be done; change nothing.
        confirm_clock: the operator confirms the host's clock, as in `expire`.

    Returns:
        All actions, also those that failed. If a step failed, its last action says why.

    Raises:
        ConfigurationError: there is no archive, or the keys cannot be used, or are those of another archive.
        CustodyError: the archive's storage cannot be asked; or the clock cannot be confirmed, see `check_confirmed`.
    """
    _check_settings(settings)
    if confirm_clock:
        check_confirmed(settings)
    actions: list[Action] = []
    # The time is the same for all steps, also after a step that signs something.
    clocks = cache(lambda: read_clocks(settings, keep=not dry_run))
    try:
        for name, step in STEPS.items():
            try:
                for action in step(settings, now, clocks, dry_run=dry_run, confirm_clock=confirm_clock):
                    actions.append(action)  # noqa: PERF402 - kept at once, in case the step fails later
            except CustodyError as error:
                actions.append(Action("step", name, "failed", str(error)))
            except Exception as error:
                # Deletions must be recorded, whatever the error.
                logger.exception("unexpected error in the roll's step %r", name)
                why = f"unexpected error ({type(error).__name__}): see the log"
                actions.append(Action("step", name, "failed", why))
    finally:
        if not dry_run:
            try:
                record(settings, actions, now)
            except CustodyError as error:
                why = f"{error}; the roll's actions are in no signed audit, only in this output"
                actions.append(Action("record", "the roll's audit", "failed", why))
    return actions
