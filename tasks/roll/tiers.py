"""Manages the storage classes of a bucket: old segments move to colder classes. A folder has no storage classes.

Lifecycle rules that differ from the settings are set again, unless `tiers.manage` is off; other people's rules stay.
Versioning, Object Lock and the bucket policy are only compared and reported; `custody bucket` prints the wanted
configuration. If the server has no storage classes, that is reported and nothing else is tried. Manifests, checkpoints
and audits are never moved.
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
"""The least size that Standard-IA charges for an object. S3 does not move smaller ones."""
_GB = 1_000_000_000
_ADVICE = "`custody bucket` prints the wanted configuration"


@dataclass(frozen=True, slots=True)
class Usage:
    """Objects of one storage class in one part of the archive.

    Attributes:
        part: the folder.
        storage_class: the class.
        objects: number of objects.
        bytes: their size.
        too_small: number of objects that are too small to be moved to a colder class, or to be cheaper there.
        cost_a_month: by `tiers.prices`; None if that has no price for the class.
    """

    part: str
    storage_class: str
    objects: int
    bytes: int
    too_small: int
    cost_a_month: float | None


def roll_bucket(settings: Settings, *, dry_run: bool = False) -> Iterator[Action]:
    """Compare the bucket with the settings, and set the lifecycle rules that differ.

    Args:
        settings: the settings.
        dry_run: show what would be set; change nothing.

    Yields:
        One action for each difference; none for a folder, which has no configuration.
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
            drift = [difference.why for difference in differences if difference.settable]
            if name == LIFECYCLE and drift:
                yield _set_rules(settings, configuration, wanted, "; ".join(drift)[:500], dry_run=dry_run)
            for difference in differences:
                # Other people's lifecycle rules are reported, but never removed, even if they do harm.
                if name != LIFECYCLE or not difference.settable:
                    yield Action("rules", target, "refused", f"{difference.why} ({_ADVICE})")


def _set_rules(
    settings: Settings, configuration: Configuration, wanted: Mapping[str, Any], why: str, *, dry_run: bool
) -> Action:
    target = _target(configuration, LIFECYCLE)
    if not settings.tiers.manage:
        return Action("rules", target, "refused", f"{why}; the rules are not set, because tiers.manage is off")
    if dry_run:
        return Action("rules", target, "planned", why)
    try:
        configuration.set_rules(wanted)
    except CallUnknown as error:
        return Action(
            "rules",
            target,
            "refused",
            f"{error}; objects stay in the class in which they were put. With `tiers.manage` off, this is not tried",
        )
    except CustodyError as error:
        return Action("rules", target, "failed", str(error))
    return Action("rules", target, "done", why)


def _target(configuration: Configuration, name: str) -> str:
    return f"s3://{configuration.name}: {name}"


def measure_usage(settings: Settings) -> list[Usage]:
    """Return objects and bytes by part and class, with the cost of a month if `tiers.prices` has a price.

    Raises:
        StoreError: the archive cannot be listed.
    """
    prices = settings.tiers.prices
    totals: dict[tuple[str, str], list[int]] = {}
    with closing(open_store(settings.archive, settings.s3)) as store:
        for part in (*layout.EVIDENCE, tables.TABLES, "reports/"):
            for info in store.list(part):
                total = totals.setdefault((part, info.storage_class or "folder"), [0, 0, 0])
                total[0] += 1
                total[1] += info.size
                total[2] += info.size < SMALL_BYTES and part in layout.RECORDS
    return [
        Usage(part, class_, objects, size, small, size / _GB * prices[class_] if class_ in prices else None)
        for (part, class_), (objects, size, small) in sorted(totals.items())
    ]
