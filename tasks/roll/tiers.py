"""The store's part in the seven years: a bucket's rules, versions, locks and policy; a folder's tiers.

The rules only move: ending the life of evidence is the roll's, which signs first. What others have set in the bucket
stays; what of ours has drifted is said, and set again unless `tiers.manage` is off. Manifests, checkpoints and audits
stay in the class that they were put in.

A folder has no rules, so that the roll itself moves what is old enough to `.tiers/warm/` and `.tiers/cold/`, where
somebody has made or mounted these.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from custody.archive.reader import (
    Holds,
    at_or_behind,
    find_tip,
    list_logs,
    read_archive,
    read_manifest,
    sealed_from,
)
from custody.archive.trusted import standing
from custody.errors import CustodyError, ObjectMissing, StoreError
from custody.format import layout
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.query import tables
from custody.store.open import open_store
from custody.store.protocol import TIER_NAMES, ObjectInfo, Store
from custody.verify.protection import Protection, check_lifecycle
from tasks.roll.indices import Action
from tasks.settings import Settings

SMALL_BYTES = 128 * 1024
"""What a smaller object costs in Standard-IA; S3 moves none that is smaller."""
OVERHEAD_BYTES = 40 * 1024
"""What each object in an archived class costs besides its bytes: 32 KiB there, 8 KiB in Standard."""

_FAILURES = 10
"""So many failures one after the other are the file system's, and not an object's."""

_SID = "CustodyConditionalWrites"
_GB = 1_000_000_000
_TAKEN = "PreconditionFailed"
_ABSENT = frozenset(
    {
        "NoSuchLifecycleConfiguration",
        "NoSuchBucketPolicy",
        "ObjectLockConfigurationNotFoundError",
        "NotImplemented",
        "MethodNotAllowed",
    }
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies in one class of one part of the archive.

    Attributes:
        part: the folder.
        storage_class: the class.
        objects: how many.
        size: their bytes.
        small: objects too small to be moved to a cheaper class, or to be cheaper there.
        cost: US dollars a month, by the prices of the settings; None where they have none for the class.
    """

    part: str
    storage_class: str
    objects: int
    size: int
    small: int
    cost: float | None


def roll_bucket(settings: Settings, *, dry_run: bool = False) -> Iterator[Action]:
    """Hold the bucket against the settings, and set what has drifted.

    Args:
        settings: the settings.
        dry_run: say what would be set, and change nothing.

    Yields:
        One action for each thing that is not as it should be; none for a folder, which has no rules.
    """
    bucket, _, prefix = settings.archive.removeprefix("s3://").partition("/")
    if not settings.archive.startswith("s3://"):
        return
    client = boto3.session.Session().client("s3", endpoint_url=settings.s3.endpoint_url, region_name=settings.s3.region)
    try:
        yield from _Bucket(settings, client, bucket, f"{prefix.rstrip('/')}/" if prefix else "", dry_run).run()
    finally:
        client.close()


def roll_folder(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """Move segments and quarantine objects that are old enough to a folder's tiers.

    A statement is as old as its seal. Tiers are opted into by making the folders `.tiers/warm/` and `.tiers/cold/`, or
    one of them, in the archive; without `.tiers/`, nothing is done.

    Args:
        settings: the settings.
        now: the time, aware.
        dry_run: say what would be moved, and change nothing.

    Yields:
        One action for each object that is to be moved; one for each log, and for what stands in a tier's place, where
        that keeps objects from moving; none for a bucket, whose rules move.

    Raises:
        CustodyError: the archive cannot be opened or listed.
    """
    if settings.archive.startswith("s3://"):
        return
    with closing(open_store(settings.archive, settings.s3)) as store:
        try:
            tiers = store.tiers()
        except StoreError as error:
            # Not mounted, stale, no folder: what it is the message says, and the nightly audit, too.
            yield Action("move", f"{store.url}/.tiers", "refused", f"{error}; nothing is moved until then")
            return
        if not tiers:
            return
        days = {"warm": settings.tiers.warm_days, "cold": settings.tiers.cold_days}
        moments = {tier: now - timedelta(days=days[tier]) for tier in tiers}
        ends: dict[str, dict[Log, int]] = {tier: {} for tier in tiers}
        standing_in = standing(store, read_archive(store).id, settings.trust_at_hand())
        for log in list_logs(store):
            holds = standing_in(log)
            try:
                size = find_tip(store, log, holds).head.size
                for tier, moment in moments.items():
                    if until := sealed_from(store, log, size, moment, holds):
                        ends[tier][log] = _next_offset(store, log, until, size, holds)
            except CustodyError as error:
                yield Action("move", str(log), "failed", f"it cannot be said which of its objects are old: {error}")
        failures = 0
        for info, tier in _old_objects(store, ends, max(moments.values())):
            action = _move(store, info.key, tier, f"sealed more than {days[tier]} days ago", dry_run=dry_run)
            failures = failures + 1 if action.outcome == "failed" else 0
            yield action
            if failures == _FAILURES:
                yield Action("move", store.url, "refused", f"{failures} objects in a row failed; the rest is left")
                return


def _next_offset(store: Store, log: Log, until: int, size: int, holds: Holds[Manifest]) -> int:
    """Return behind which offset the first `until` of a log's statements end."""
    if until == size:
        return read_manifest(store, log, until - 1, holds).statement.next_offset
    return at_or_behind(store, log, until, size, holds)[1].statement.first_offset


def _old_objects(
    store: Store, ends: Mapping[str, Mapping[Log, int]], youngest: datetime
) -> Iterator[tuple[ObjectInfo, str]]:
    """Yield what lies in a warmer place than it should, and the coldest tier that it is old enough for."""
    coldest_first = list(ends)[::-1]
    places = (None, *TIER_NAMES)
    for info in list_records(store, youngest):
        parsed = layout.parse_records_key(info.key)
        if parsed is None:
            continue
        tier = next((tier for tier in coldest_first if parsed.last < ends[tier].get(parsed.log, 0)), None)
        if tier and places.index(info.storage_class) < places.index(tier):
            yield info, tier


def _move(store: Store, key: str, tier: str, why: str, *, dry_run: bool) -> Action:
    target = f"{key} to {tier}"
    if dry_run:
        return Action("move", target, "planned", why)
    try:
        store.move(key, tier)
    except ObjectMissing:
        return Action("move", target, "refused", "it was deleted meanwhile")
    except CustodyError as error:
        return Action("move", target, "failed", f"{error}; the next roll tries again")
    return Action("move", target, "done", why)


def list_records(store: Store, until: datetime) -> Iterator[ObjectInfo]:
    """Yield segments and quarantine objects whose keys' day is not after a moment's, and the one after it.

    The day in a key is Kafka's; records may lie there for a while before they are sealed. Younger days are not listed.

    Raises:
        StoreError: the archive cannot be listed.
    """
    last = f"{until.astimezone(UTC) + timedelta(days=1):%Y/%m/%d}"
    for part in layout.RECORDS:
        folders = [""]
        # Years, months, days. A store lists in any order, so that no listing can be left at the first day too young.
        for _ in range(3):
            inner = (f"{folder}{name}" for folder in folders for name in store.names(part + folder))
            folders = [f"{folder}/" for folder in inner if re.fullmatch("[0-9/]+", folder) and folder <= last]
        for folder in folders:
            yield from store.list(part + folder)


class _Bucket:
    def __init__(self, settings: Settings, client: Any, bucket: str, root: str, dry_run: bool) -> None:
        self._settings, self._client, self._bucket, self._root, self._dry = settings, client, bucket, root, dry_run
        self._whose = {"Bucket": bucket}
        if settings.s3.expected_bucket_owner:
            self._whose["ExpectedBucketOwner"] = settings.s3.expected_bucket_owner

    def run(self) -> Iterator[Action]:
        for check in (self._check_versions, self._check_lock, self._check_rules, self._check_policy):
            try:
                yield from check()
            except (ClientError, BotoCoreError) as error:
                yield Action("rules", f"s3://{self._bucket}", "failed", f"{_named(check)}: {_reason(error)}")
            except CustodyError as error:
                yield Action("rules", f"s3://{self._bucket}", "failed", f"{_named(check)}: {error}")

    def _set(self, what: str, why: str, do: Callable[[], Any]) -> Action:
        target = f"s3://{self._bucket}: {what}"
        if not self._settings.tiers.manage:
            return Action("rules", target, "refused", f"{why}; tiers.manage is off, so that it is not set")
        if self._dry:
            return Action("rules", target, "planned", why)
        do()
        return Action("rules", target, "done", why)

    def _get(self, name: str, **more: Any) -> dict[str, Any] | None:
        """Return a configuration of the bucket; None where there is none, or the server knows no such thing."""
        try:
            found: dict[str, Any] = getattr(self._client, name)(**self._whose, **more)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _ABSENT:
                return None
            raise
        return found

    def _check_versions(self) -> Iterator[Action]:
        found = self._get("get_bucket_versioning")
        if found is not None and found.get("Status") != "Enabled":
            enabled = {"Status": "Enabled"}
            yield self._set(
                "versions",
                "without versions what is written over is lost",
                lambda: self._client.put_bucket_versioning(**self._whose, VersioningConfiguration=enabled),
            )

    def _check_lock(self) -> Iterator[Action]:
        wanted = self._settings.s3.retention_mode
        found = self._get("get_object_lock_configuration")
        enabled = (found or {}).get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"
        target = f"s3://{self._bucket}: Object Lock"
        life = self._settings.tiers.life_days
        if wanted is None:
            why = "s3.retention_mode is not set: whoever may write may also delete; want COMPLIANCE for tiers.life_days"
            yield Action("rules", target, "refused", why)
        elif not enabled:
            yield Action("rules", target, "refused", "the bucket was made without it, and each put asks for a lock")
        elif (self._settings.s3.retention_days or 0) < life:
            why = f"s3.retention_days is {self._settings.s3.retention_days}, and life lasts {life} days"
            yield Action("rules", target, "refused", why)

    def _check_rules(self) -> Iterator[Action]:
        with closing(open_store(self._settings.archive, self._settings.s3)) as store:
            in_force = store.lifecycle()
        if in_force is None:
            yield Action("rules", f"s3://{self._bucket}: lifecycle", "refused", "this server knows no lifecycle rules")
            return
        moves = self._settings.tiers.moves
        drift = list(check_lifecycle(in_force, Protection(moves=moves), self._root))
        if not drift:
            return
        ours = [_rule(self._root + folder, moves) for folder in layout.RECORDS]
        ids = {rule["ID"] for rule in ours}
        found = self._get("get_bucket_lifecycle_configuration") or {}
        others = [rule for rule in found.get("Rules", ()) if rule.get("ID") not in ids]
        yield self._set(
            "lifecycle",
            "; ".join(str(one.message) for one in drift)[:500],
            lambda: self._client.put_bucket_lifecycle_configuration(
                **self._whose, LifecycleConfiguration={"Rules": [*others, *ours]}
            ),
        )
        # A rule of somebody else may go on to delete or move what it should not; that is not ours to remove.
        yield from (
            Action("rules", f"s3://{self._bucket}: lifecycle", "refused", f"{one.message}: remove that rule")
            for one in drift
            if "wanted" not in one.message
        )

    def _check_policy(self) -> Iterator[Action]:
        found = self._get("get_bucket_policy")
        policy: dict[str, Any] = json.loads(found["Policy"]) if found else {"Version": "2012-10-17", "Statement": []}
        given = policy["Statement"]
        statements: list[dict[str, Any]] = given if isinstance(given, list) else [given]
        wanted = _conditional_writes(self._bucket, self._root)
        if wanted in statements:
            return
        policy["Statement"] = [*(one for one in statements if one.get("Sid") != _SID), wanted]
        why = "a put without If-None-Match could write over evidence"
        target = f"s3://{self._bucket}: policy"
        if self._settings.s3.endpoint_url is not None and not self._settings.tiers.policy:
            hint = "a server that does not know s3:if-none-match would refuse every put; tiers.policy tries it"
            yield Action("rules", target, "refused", f"{why}, and this is not AWS: {hint}")
            return
        if not self._dry and self._settings.tiers.manage and self._probe() != _TAKEN:
            yield Action("rules", target, "refused", f"{why}; it is set once archive.json is there, to try it by")
            return
        action = self._set(
            "policy", why, lambda: self._client.put_bucket_policy(**self._whose, Policy=json.dumps(policy))
        )
        if action.outcome == "done" and self._probe() != _TAKEN:
            # Else nothing would be archived any more.
            if found is None:
                self._client.delete_bucket_policy(**self._whose)
            else:
                self._client.put_bucket_policy(**self._whose, Policy=found["Policy"])
            action = Action(
                "rules", target, "refused", f"{why}, but this server refuses conditional ones too: taken back"
            )
        yield action

    def _probe(self) -> str:
        """Return what the server answers to a conditional put of a key that is taken: nothing is written by it.

        The bytes are those that are there. A server that writes whatever the condition says then does no harm.
        """
        key = f"{self._root}{layout.ARCHIVE}"
        try:
            there = self._client.get_object(**self._whose, Key=key)["Body"].read()
            self._client.put_object(**self._whose, Key=key, Body=there, IfNoneMatch="*")
        except ClientError as error:
            return str(error.response.get("Error", {}).get("Code", ""))
        return ""


def _rule(prefix: str, moves: Sequence[tuple[int, str]]) -> dict[str, Any]:
    return {
        "ID": f"custody-{prefix.rstrip('/').replace('/', '-')}"[:255],
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "Transitions": [{"Days": days, "StorageClass": class_} for days, class_ in moves],
    }


def _conditional_writes(bucket: str, root: str) -> dict[str, Any]:
    """Return the statement that refuses every put of evidence which could replace an object."""
    return {
        "Sid": _SID,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": [f"arn:aws:s3:::{bucket}/{root}{part}*" for part in layout.EVIDENCE],
        "Condition": {"Null": {"s3:if-none-match": "true"}},
    }


def measure_usage(settings: Settings) -> list[Usage]:
    """Return what lies where, and what that costs a month.

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


def small_objects(usage: Sequence[Usage], settings: Settings) -> tuple[int, float]:
    """Return how many segments are too small for cheaper classes, and what larger ones would save, in dollars a month.

    Ten times as large they would be a tenth as many, each with its overhead in the archived class once.
    """
    prices: Mapping[str, float] = settings.tiers.prices
    small = sum(one.small for one in usage)
    price = prices.get(settings.tiers.cold_class, 0.0)
    return small, small * 0.9 * OVERHEAD_BYTES / _GB * price


def _named(check: Callable[..., Any]) -> str:
    return check.__name__.removeprefix("_check_")


def _reason(error: ClientError | BotoCoreError) -> str:
    if isinstance(error, ClientError):
        found = error.response.get("Error", {})
        return f"{found.get('Code', '?')}: {found.get('Message', '')}"[:300]
    return type(error).__name__
