"""What a bucket says about the evidence: versions and delete markers (rule 10), Object Lock, lifecycle rules.

If a key has several versions, the first one is the evidence: our puts only create, and never replace. The findings name
later versions and delete markers. Verification continues with the first version, to find other problems too.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Self

from custody.errors import CustodyError, ObjectMissing
from custody.findings import Finding, Findings, finding, loss_digest
from custody.format import layout
from custody.format.times import shift
from custody.store.bucket import check_rules
from custody.store.protocol import ObjectStatus, Store, Version
from custody.verify.scope import KeyRange

_TOUCHED_LIMIT = 100_000
_LOOK_AHEAD = 64
_LISTERS = 8
_LOCK_SLACK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Protection:
    """How a bucket should protect the evidence.

    Attributes:
        lock_mode: the wanted Object Lock mode of each object; None if locks are not checked.
        lock_days: for how many days from the put.
        moves: days since the put, and the storage class that lifecycle rules move evidence to; None: not checked.
    """

    lock_mode: str | None = None
    lock_days: int | None = None
    moves: Sequence[tuple[int, str]] | None = None


UNPROTECTED = Protection()


@dataclass(frozen=True, slots=True)
class Beneath:
    """The first versions of the evidence.

    Attributes:
        store: the archive as it was first written.
        touched: keys that were overwritten or deleted.
        history: keys, each with the finding about what was done to it.
        complete: whether all versions could be listed.
    """

    store: Store
    touched: frozenset[str] = frozenset()
    history: Sequence[tuple[str, Finding]] = ()
    complete: bool = True


def look_beneath(
    store: Store, protection: Protection, findings: Findings, ranges: Iterable[KeyRange] = (KeyRange(""),)
) -> Beneath:
    """Find overwritten and deleted objects among some keys, by default all, and their first versions.

    With all keys, or the archive's root among them, report problems with the bucket's rules too.
    """
    first: dict[str, Version] = {}
    history: list[tuple[str, Finding]] = []
    complete, ranges = True, list(ranges)
    for listed in _histories(store, ranges):
        try:
            _find_originals(listed(), first, history)
        except CustodyError as error:
            # What was listed before the error counts.
            complete = False
            message = f"the bucket's versions cannot be read: {error}"
            findings.add(finding("unreadable", message, key=""), group="versions")
    if any(layout.ARCHIVE.startswith(keys.prefix) for keys in ranges):
        _check_lifecycle(store, protection, findings)
    versions = store.capabilities.versions
    beneath = versions.at_versions(first) if first and versions else store
    return Beneath(beneath, frozenset(first), history, complete)


def _histories(store: Store, ranges: Sequence[KeyRange]) -> Iterator[Callable[[], Iterable[Version]]]:
    """Yield a function for each range that returns its versions. Several ranges are small, and listed in parallel."""
    kept = store.capabilities.versions
    if kept is None:
        return

    def history(keys: KeyRange) -> Iterator[Version]:
        return kept.history(keys.prefix, after=keys.after, through=keys.through)

    if len(ranges) == 1:
        yield partial(history, ranges[0])
        return
    with ThreadPoolExecutor(_LISTERS) as threads:
        for future in [threads.submit(lambda keys: list(history(keys)), keys) for keys in ranges]:
            yield future.result


def _check_lifecycle(store: Store, protection: Protection, findings: Findings) -> None:
    try:
        rules = lifecycle.rules() if (lifecycle := store.capabilities.lifecycle) else None
    except CustodyError as error:
        findings.add(finding("unreadable", f"the bucket's lifecycle rules cannot be read: {error}", key=""))
        return
    # The prefix of the archive's keys in its bucket, empty or ending in a slash.
    root = "/".join([*store.url.removeprefix("s3://").split("/")[1:], ""])
    for problem in check_rules(rules, root, protection.moves) if rules is not None else ():
        findings.report("lifecycle", problem.message, key=problem.key, expected=problem.expected, found=problem.found)


def _find_originals(listed: Iterable[Version], first: dict[str, Version], findings: list[tuple[str, Finding]]) -> None:
    """Add the first version of each key that has a history, and findings with their keys.

    Raises:
        StoreError: the versions cannot be listed further. What was listed is added.
    """
    for key, history in groupby(listed, attrgetter("key")):
        if not key.startswith(layout.EVIDENCE):
            continue
        versions = list(history)
        objects = [version for version in versions if not version.marker]
        digest = loss_digest(
            key, *(f"{version.id} {version.marker} {version.size} {version.etag}" for version in versions)
        )
        hidden = any(version.marker and version.latest for version in versions)
        if objects and len(first) < _TOUCHED_LIMIT:
            # A listing names the newest first.
            first[key] = objects[-1]
        if len(objects) != len(versions):
            message = "a delete marker hides the object" if hidden else "a delete marker hid the object for a time"
            findings.append(
                (key, finding("delete-marker", message, key=key, found=_described(versions), sha256=digest))
            )
        if len(objects) > 1:
            message = "the object was overwritten"
            described = _described(versions)
            overwritten = finding("version", message, key=key, expected="one version", found=described, sha256=digest)
            findings.append((key, overwritten))


def _described(versions: Sequence[Version]) -> str:
    shown = [f"{'delete marker' if each.marker else f'{each.size} bytes'} {each.id[:64]}" for each in versions[:5]]
    return f"{len(versions)}, newest first: {', '.join(shown)}{', …' if len(versions) > len(shown) else ''}"


class Locks:
    """Checks the Object Lock of each given object, several at a time. Does nothing if locks are not checked.

    To a caller without permission, `head_object` shows no lock, as if there was none. So a missing lock is checked
    again, by the call with its own permission: if that is refused, the finding is `unreadable` and not `lock`.

    Attributes:
        active: whether locks are checked.
    """

    def __init__(self, store: Store, wanted: Protection, findings: Findings) -> None:
        """Begin.

        Args:
            store: the archive.
            wanted: the wanted protection.
            findings: gets each finding.
        """
        self._store = store
        self._wanted = wanted
        self._findings = findings
        self._pending: deque[tuple[str, dict[str, Any], Future[ObjectStatus]]] = deque()
        self._locks = store.capabilities.locks
        self.active = bool(wanted.lock_mode and wanted.lock_days and self._locks)
        self._threads = ThreadPoolExecutor(32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        while self._pending and kind is None:
            self._check()
        self._threads.shutdown(cancel_futures=True)

    def put(self, key: str, **where: Any) -> None:
        """Queue an object for the check of its lock."""
        if not self.active:
            return
        self._pending.append((key, where, self._threads.submit(self._look, key)))
        while len(self._pending) > _LOOK_AHEAD:
            self._check()

    def _look(self, key: str) -> ObjectStatus:
        status = self._store.status(key)
        unsaid = status.lock_mode is None or status.lock_until is None
        lock = self._locks.lock(key) if self._locks and unsaid else None
        return replace(status, lock_mode=lock[0], lock_until=lock[1]) if lock else status

    def _check(self) -> None:
        key, where, future = self._pending.popleft()
        try:
            status = future.result()
        except ObjectMissing:
            # A missing object is reported elsewhere.
            return
        except CustodyError as error:
            self._findings.report("unreadable", f"the lock cannot be read: {error}", group="lock", key=key, **where)
            return
        until = shift(status.created, timedelta(days=self._wanted.lock_days or 0))
        expected = f"{self._wanted.lock_mode} until {until:%Y-%m-%d}"
        if status.lock_mode is None or status.lock_until is None:
            problem, actual = "has no lock", "none"
        else:
            actual = f"{status.lock_mode} until {status.lock_until:%Y-%m-%d}"
            if status.lock_mode != self._wanted.lock_mode:
                problem = "has a lock of another mode"
            elif status.lock_until < until - _LOCK_SLACK:
                problem = "has a lock that ends too early"
            else:
                return
        where |= {"key": key, "expected": expected, "found": actual}
        self._findings.report("lock", f"the object {problem}", group=problem, **where)
