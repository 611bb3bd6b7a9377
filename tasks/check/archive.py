"""Checks the archive: its identity, and whether its storage does what the writer relies on. All of it is really tried.

Rules:
- Only probe objects are written, under `PROBES`, which is rebuildable: no verification reports them.
- They are removed at the end. What a check that was killed left behind, the next one removes.
- A lock is tried with one that ends within seconds. A legal hold is not tried: nothing would end it.
- A folder that does not exist is not created.
"""

import errno
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.filesize import decimal

from custody.archive.reader import read_archive
from custody.archive.trusted import check_archive
from custody.errors import (
    ConfigurationError,
    CustodyError,
    NoArchive,
    NoBucket,
    ObjectExists,
    StoreError,
    TerminalStoreError,
    TransientStoreError,
)
from custody.format import layout, limits
from custody.format.archive_file import ArchiveFile
from custody.store.bucket import LIFECYCLE, NOT_LOCKED, VERSIONING, open_configuration
from custody.store.open import open_store
from custody.store.probe import create_locked
from custody.store.protocol import Store, is_local
from custody.store.s3_errors import NoAnswer
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

PROBES = "reports/checks/"
"""Where probe objects lie."""
LOCK_SECONDS = 4
"""How long the lock of a probe object lasts."""
LEFT_BEHIND = timedelta(minutes=10)
"""A probe object that is older than this is of a check that was killed."""
LEAST_FREE = 1024 * limits.MIB
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Codes of a file system that has no room, also by a quota."""
_LISTED = 50_000
"""Objects of a day that are counted to know how fast a folder grows."""

_report = Reporter("archive")
_CONFIGURE = "compare with 'custody bucket', and set what differs"
_READABLE = "correct the settings archive and s3, the credentials and their permissions"


def check(settings: Settings, now: datetime) -> Iterator[Line]:
    """Yield what the archive is, and what its storage can do."""
    with closing(open_store(settings.archive, settings.s3)) as store:
        try:
            file = read_archive(store)
        except NoArchive:
            yield _report.failed("archive.json", f"there is no archive at {store.url}", "run 'custody init'")
            if is_local(store) and not _root(store).is_dir():
                return
        except StoreError as error:
            message, remedy = _told(error)
            yield _report.failed("archive.json", message, remedy, passing=isinstance(error, TransientStoreError))
            return
        except CustodyError as error:
            yield _report.failed("archive.json", f"it cannot be used: {error}", "run 'custody verify'")
        else:
            yield _identity(settings, store, file)
            yield from _life(settings, file.statement.retention_days)
        yield from _try_storage(settings, store, now)
        if is_local(store):
            yield from _space(store, now)
        else:
            yield from _configured(settings)


def _told(error: StoreError) -> tuple[str, str]:
    """Return what an error says, and the remedy: its own, if it ends with one."""
    if isinstance(error, NoAnswer | NoBucket):
        message, _, remedy = str(error).rpartition(": " if isinstance(error, NoAnswer) else "; ")
        return message, remedy
    return str(error), _READABLE


def _root(store: Store) -> Path:
    return Path(unquote(urlsplit(store.url).path))


def _identity(settings: Settings, store: Store, file: ArchiveFile) -> Line:
    """Return whether `archive.json` is the trusted one."""
    try:
        trust = settings.own_trust()
    except CustodyError as error:
        # What is wrong with the keys is said in their part.
        message = f"{store.url} is archive {file.id}; whether it is the trusted one is not known: {error}"
        return _report.warning("archive.json", message, "correct the keys")
    problem = check_archive(file, trust)
    if problem is not None:
        remedy = "correct the settings archive, keys and trust, or run 'custody verify'"
        return _report.failed("archive.json", problem, remedy)
    how = "pinned in trust.json" if trust.archive else "signed by our keys"
    return _report.ok("archive.json", f"{store.url} is archive {file.id}, {how}")


def _life(settings: Settings, days: int) -> Iterator[Line]:
    """Yield a warning if the settings end the evidence's life earlier than the archive promises."""
    try:
        settings.life_days(days, None)
    except ConfigurationError as error:
        yield _report.warning("tiers.life_days", str(error), f"set tiers.life_days to {days} or more, or remove it")


def _try_storage(settings: Settings, store: Store, now: datetime) -> Iterator[Line]:
    """Yield what became of a put, of a second put of the same key, of versions, and of a lock."""
    _remove_leftovers(store, now)
    key, content = f"{PROBES}{uuid.uuid4().hex}", b"custody check\n"
    try:
        store.create(key, content)
        if store.read(key, limit=len(content)) != content:
            raise TerminalStoreError(f"{store.url}/{key} has other bytes than those that were put")
    except StoreError as error:
        remedy = "give this user the right to write to the folder" if is_local(store) else _READABLE
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            remedy = "free space, or move the archive to a larger file system"
        yield _report.failed("put", str(error), remedy, passing=isinstance(error, TransientStoreError))
        return
    try:
        how = "by a hard link, and synced" if is_local(store) else "and read back"
        yield _report.ok("put", f"a probe object was put, {how}")
        yield _second_put(store, key, content)
        yield from _versions(store, key)
        yield from _lock(settings, store)
    finally:
        removal = _remove(store, key)
    if removal is not None:
        message = f"a probe object could not be removed: {removal}"
        yield _report.warning("delete", message, f"allow deletes, or remove what lies under {PROBES} by hand")


def _second_put(store: Store, key: str, content: bytes) -> Line:
    """Return whether the store refuses to create an object that exists."""
    remedy = "use a server that knows 'If-None-Match: *': without it, two writers overwrite each other's evidence"
    try:
        store.create(key, content + b"again\n")
    except ObjectExists:
        return _report.ok("conditional put", "a second put of the same key was refused")
    except StoreError as error:
        passing = isinstance(error, TransientStoreError)
        return _report.failed("conditional put", str(error), remedy, passing=passing)
    return _report.failed("conditional put", "a second put of the same key wrote over the first", remedy)


def _versions(store: Store, key: str) -> Iterator[Line]:
    versions = store.capabilities.versions
    if versions is None:
        return
    try:
        kept = versions.has_history(key)
    except StoreError as error:
        yield _report.warning("versions", f"whether the bucket keeps versions is not known: {error}", _CONFIGURE)
        return
    if kept:
        yield _report.ok("versions", "the bucket keeps versions")
    else:
        message = "the bucket keeps no versions: what is written over or deleted is lost"
        yield _report.warning("versions", message, _CONFIGURE)


def _lock(settings: Settings, store: Store) -> Iterator[Line]:
    """Yield whether a locked object can be deleted. The lock ends within seconds, and then the object is deleted."""
    locks, mode = store.capabilities.locks, settings.s3.retention_mode
    if locks is None:
        return
    if settings.s3.legal_hold:
        yield _report.ok("legal hold", "s3.legal_hold is on; it was not tried, because nothing would end it")
    if mode is None:
        yield _report.warning("lock", NOT_LOCKED, "set s3.retention_mode to COMPLIANCE, on a bucket with Object Lock")
        return
    key = f"{PROBES}{uuid.uuid4().hex}"
    ahead = store.capabilities.clock.ahead() if store.capabilities.clock else None
    # S3 keeps whole seconds.
    until = (datetime.now(UTC) - (ahead or timedelta(0))).replace(microsecond=0) + timedelta(seconds=LOCK_SECONDS)
    ends = time.monotonic() + LOCK_SECONDS + 1
    try:
        create_locked(settings.archive, settings.s3, key, b"custody check\n", until)
    except StoreError as error:
        passing = isinstance(error, TransientStoreError)
        remedy = (
            "use a bucket with Object Lock (it is enabled when the bucket is made), and allow s3:PutObjectRetention"
        )
        yield _report.failed("lock", f"a locked object could not be put: {error}", remedy, passing=passing)
        return
    refusal, late = _remove(store, key), time.monotonic() > ends - 2
    time.sleep(max(0.0, ends - time.monotonic()))
    yield _held(mode, refusal, _remove(store, key), late=late)


def _held(mode: str, refusal: StoreError | None, afterwards: StoreError | None, *, late: bool) -> Line:
    """Return whether a lock held.

    Args:
        mode: of the lock.
        refusal: of the deletion while the object was locked; None if it was deleted.
        afterwards: the same, after the lock had ended.
        late: whether the lock may have ended before the first deletion.
    """
    if isinstance(refusal, TransientStoreError):
        return _report.failed("lock", f"whether a lock holds is not known: {refusal}", "try again", passing=True)
    if refusal is not None and afterwards is not None:
        message = f"whether a lock holds was not tried, because a probe object cannot be deleted at all: {afterwards}"
        return _report.warning("lock", message, "try it with credentials that may delete")
    if refusal is not None:
        return _report.ok("lock", f"a locked object ({mode}) could not be deleted until its lock ended")
    if late:
        message = "the lock of the probe object may have ended before its deletion was tried: the store is slow"
        return _report.warning("lock", message, "try again")
    remedy = "use a bucket with Object Lock, and credentials without s3:BypassGovernanceRetention"
    return _report.failed("lock", f"a locked object ({mode}) could be deleted", remedy)


def _remove(store: Store, key: str) -> StoreError | None:
    """Remove a probe object, and return why it could not be."""
    try:
        store.remove(key)
    except StoreError as error:
        return error
    return None


def _remove_leftovers(store: Store, now: datetime) -> None:
    """Remove the probe objects of checks that were killed, but not those of a check that runs now."""
    with suppress(StoreError):
        for left in list(islice(store.list(PROBES), 100)):
            if now - store.status(left.key).created > LEFT_BEHIND:
                _remove(store, left.key)


def _space(store: Store, now: datetime) -> Iterator[Line]:
    """Yield whether a folder has room for a day."""
    root = _root(store)
    try:
        free = shutil.disk_usage(root).free
    except OSError as error:
        yield _report.warning("free space", f"it is not known: {error.strerror}", "check the file system")
        return
    day = f"{now.astimezone(UTC) - timedelta(days=1):%Y/%m/%d}/"
    grown = sum(info.size for part in layout.RECORDS for info in islice(store.list(f"{part}{day}"), _LISTED))
    shown = f"{decimal(free)} are free"
    if free < max(LEAST_FREE, grown):
        message = f"{shown}; yesterday's records take {decimal(grown)}"
        yield _report.warning("free space", message, "free space, or move the archive to a larger file system")
    else:
        yield _report.ok("free space", shown)


def _configured(settings: Settings) -> Iterator[Line]:
    """Yield how the bucket's configuration differs from the wanted one. Versions were tried already."""
    moves, locked = settings.tiers.moves, settings.s3.retention_mode is not None
    with closing(open_configuration(settings.archive, settings.s3)) as configuration:
        wanted = configuration.wanted(moves, locked=locked)
        differing: list[tuple[str, str]] = []
        for name in (name for name in wanted if name != VERSIONING):
            try:
                for each in configuration.compare(name, wanted, moves):
                    rolled = each.configuration == LIFECYCLE and each.settable and settings.tiers.manage
                    remedy = "'custody roll' sets them" if rolled else _CONFIGURE
                    differing.append((f"{each.configuration}: {each.why}", remedy))
            except StoreError as error:
                differing.append((f"{name}: {error}", _CONFIGURE))
    for difference, remedy in differing:
        yield _report.warning("configuration", difference, remedy)
    if not differing:
        yield _report.ok("configuration", "the bucket is configured as wanted")
