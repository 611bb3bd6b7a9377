"""The store's part in the seven years: where evidence lies as it grows old. A folder has no storage classes.

Lifecycle rules that have drifted are set again, unless `tiers.manage` is off; those of others stay. Versions, Object
Lock and the policy are compared and reported alone: `custody bucket` prints what is wanted. Where the server has no
storage classes, that is said, and nothing else is tried. Manifests, checkpoints and audits are never moved.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from custody.errors import CustodyError
from custody.format import layout
from custody.query import tables
from custody.store.bucket import LIFECYCLE, NOT_LOCKED, OBJECT_LOCK, Configuration, is_bucket, open_configuration
from custody.store.open import open_store
from custody.store.s3_errors import CallUnknown
from tasks.roll.record import Action
from tasks.settings import Settings

SMALL_BYTES = 128 * 1024
"""What a smaller object costs in Standard-IA; S3 moves none that is smaller."""
_GB = 1_000_000_000
_ADVICE = "`custody bucket` prints what is wanted"


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies in one class of one part of the archive.

    Attributes:
        part: the folder.
        storage_class: the class.
        objects: how many.
        size: their bytes.
        small: objects too small to be moved to a cheaper class, or to be cheaper there.
        cost: a month's, by `tiers.prices`; None where it has none for the class.
    """

    part: str
    storage_class: str
    objects: int
    size: int
    small: int
    cost: float | None


def roll_bucket(settings: Settings, *, dry_run: bool = False) -> Iterator[Action]:
    """Compare the bucket with the settings, and set the lifecycle rules that have drifted.

    Args:
        settings: the settings.
        dry_run: say what would be set, and change nothing.

    Yields:
        One action for each thing that is not as it should be; none for a folder, which has no configuration.
    """
    if not is_bucket(settings.archive):
        return
    with closing(open_configuration(settings.archive, settings.s3)) as configuration:
        if settings.s3.retention_mode is None:
            yield Action("rules", _target(configuration, OBJECT_LOCK), "refused", NOT_LOCKED)
        wanted = configuration.wanted(settings.tiers.moves, locked=settings.s3.retention_mode is not None)
        for name in wanted:
            target = _target(configuration, name)
            try:
                differences = list(configuration.compare(name, wanted, settings.tiers.moves))
            except CustodyError as error:
                yield Action("rules", target, "failed", str(error))
                continue
            if name == LIFECYCLE and (drift := [one.why for one in differences if one.settable]):
                yield _set_rules(settings, configuration, wanted, "; ".join(drift)[:500], dry_run=dry_run)
            for one in differences:
                # A rule of somebody else may go on to delete or move what it should not; that is not ours to remove.
                if name != LIFECYCLE or not one.settable:
                    yield Action("rules", target, "refused", f"{one.why} ({_ADVICE})")


def _set_rules(
    settings: Settings, configuration: Configuration, wanted: Mapping[str, Any], why: str, *, dry_run: bool
) -> Action:
    target = _target(configuration, LIFECYCLE)
    if not settings.tiers.manage:
        return Action("rules", target, "refused", f"{why}; tiers.manage is off, so that they are not set")
    if dry_run:
        return Action("rules", target, "planned", why)
    try:
        configuration.set_rules(wanted)
    except CallUnknown as error:
        return Action("rules", target, "refused", f"{error}; everything stays in the class that it was put in")
    except CustodyError as error:
        return Action("rules", target, "failed", str(error))
    return Action("rules", target, "done", why)


def _target(configuration: Configuration, name: str) -> str:
    return f"s3://{configuration.name}: {name}"


def measure_usage(settings: Settings) -> list[Usage]:
    """Return what lies where, and what that costs a month where `tiers.prices` says so.

    Raises:
        StoreError: the archive cannot be listed.
    """
    prices = settings.tiers.prices
    totals: dict[tuple[str, str], list[int]] = {}
    with closing(open_store(settings.archive, settings.s3)) as store:
        for part in (*layout.EVIDENCE, tables.TABLES, "reports/"):
            for info in store.list(part):
                found = totals.setdefault((part, info.storage_class or "folder"), [0, 0, 0])
                found[0] += 1
                found[1] += info.size
                found[2] += info.size < SMALL_BYTES and part in layout.RECORDS
    return [
        Usage(part, class_, objects, size, small, size / _GB * prices[class_] if class_ in prices else None)
        for (part, class_), (objects, size, small) in sorted(totals.items())
    ]
