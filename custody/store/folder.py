"""An archive in a folder, and in its tiers (`.tiers/warm/`, `.tiers/cold/`); the rules are those of `store.py`.

It is one module because each method of the store first asks which tier holds a key, or whether a tier is mounted.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from custody.errors import (
    ConfigurationError,
    FormatError,
    ObjectExists,
    ObjectMissing,
    StoreError,
    TerminalStoreError,
    TierUnmounted,
    TransientStoreError,
)
from custody.format.layout import ARCHIVE, RECORDS
from custody.store.protocol import (
    MARK,
    NO_KEYS,
    STAGING,
    TIER_NAMES,
    TIERS,
    ObjectInfo,
    ObjectStatus,
    Store,
    Tier,
    Version,
    check_key,
    check_prefix,
    is_unicode,
    legible,
    no_object,
    occupied,
    too_large,
)

_ABANDONED_SECONDS = 24 * 3600
_FOLDERS_KNOWN = 100_000
_CHUNK = 1 << 20
_MARK_BYTES = 1 << 12


class FolderStore:
    """An archive in a folder, and in its tiers. No symbolic link beneath the root is followed, in reading or writing.

    Tiers are looked for once, when the store is opened. They are looked at from warm to cold, the way that objects go,
    so that one which is moved meanwhile is met. The first move to a tier marks it. Where the mark is gone the tier is
    not mounted: nothing is read there or moved, and of no object is it said that it is missing.
    """

    def __init__(self, folder: str) -> None:
        self._root = os.path.realpath(folder)
        self.url = Path(self._root).as_uri()
        with _os_errors("open", self._root):
            wrong = _is_there(self._root) and not Path(self._root).is_dir()
        if wrong:
            raise ConfigurationError(
                f"the archive's root {self._root} is not a folder; name one, or a path that is free"
            )
        # Folders whose entry in their parent is known to be on disk, so that each is synced once a process.
        self._synced: set[str] = set()
        # Folders that no symbolic link leads to, so that each is looked at once and not for every object in it.
        self._plain: set[str] = set()
        base = self._root.rstrip("/")
        # The class and the folder of each place that objects lie in.
        self._places: tuple[tuple[str | None, str], ...] = ((None, base),)
        # What was put on record of the tiers in use: the bytes of their marks.
        self._marks: dict[str, bytes] = {}
        for name in TIER_NAMES:
            with contextlib.suppress(ObjectMissing):
                self._marks[name] = self._read(self._record(name), _MARK_BYTES, 0, None)
        # Left alone for as long as the store is open, so that a mount that fails keeps nobody from writing.
        self._unmounted = {name: why for name in self._marks if (why := self._why_unmounted(name))}
        if self._marks or _is_folder(f"{base}/{TIERS}"):
            there = (name for name in TIER_NAMES if name not in self._unmounted)
            self._places += tuple((name, self._tier(name)) for name in there)

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderStore, (self._root,)

    def __repr__(self) -> str:
        return f"<Store {self.url}>"

    def create(self, key: str, data: bytes) -> None:
        path, *tiers = self._paths(key)
        with _os_errors("write", path):
            # What lies in the hot part is what is read, whatever a tier has.
            if tiers and not os.path.lexists(path) and self._lies_in(tiers, data):
                return
            try:
                self._create(path, data, tiers)
            except FileNotFoundError:
                # Somebody removed a folder, or our staged file, under our hands: make them again, once.
                self._synced.clear()
                self._create(path, data, tiers)

    def _create(self, path: str, data: bytes, tiers: Sequence[str]) -> None:
        folder = os.path.dirname(path)  # noqa: PTH120 - a hot path
        self._make_folder(folder)
        staged = self._stage(self._root, data)
        try:
            try:
                os.link(staged, path, follow_symlinks=False)
            except FileExistsError:
                self._accept_existing(path, data)
            else:
                # The name was free. If that is because a roll had moved the object since we looked, it is in a tier.
                try:
                    self._lies_in(tiers, data)
                except ObjectExists:
                    os.unlink(path)  # noqa: PTH108
                    raise
            _sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108

    def _lies_in(self, tiers: Sequence[str], data: bytes) -> bool:
        """Say whether one of these paths holds the bytes, durably; refuse other bytes there, and what is no object."""
        for path in tiers:
            if not self._in_plain_folder(path):
                raise TerminalStoreError(
                    f"cannot write beside {path}: a symbolic link (not followed) leads there; move it away"
                )
            if _is_there(path):
                self._accept_existing(path, data)
                _sync_folder(os.path.dirname(path))  # noqa: PTH120
                return True
        return False

    def _new_staged(self, place: str) -> tuple[int, str]:
        """Make a file beside the objects of a place, under a name that nobody else has, and open it for writing."""
        folder = f"{place}/{STAGING}"
        if folder not in self._synced:
            self._make_folder(folder)
            _remove_abandoned(folder)
        path = f"{folder}/{os.getpid()}-{uuid.uuid4().hex}"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path

    def _stage(self, place: str, data: bytes) -> str:
        """Write and sync the bytes beside the objects of a place."""
        descriptor, path = self._new_staged(place)
        try:
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            raise
        return path

    def _accept_existing(self, path: str, data: bytes) -> None:
        """Take an object that is already there for ours if its bytes are; sync it, for who wrote it may have died."""
        try:
            descriptor, found = self._open(path)
        except ObjectMissing as error:
            raise TerminalStoreError(
                f"cannot write {path}: what is in its place is no plain file; move it away"
            ) from error
        try:
            if found.st_size != len(data) or _read_descriptor(descriptor, 0, len(data) + 1, len(data)) != data:
                raise occupied(path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it, and sync the entry of each in its parent.

        One that is already there is synced too: who made it may have died before its entry was on disk.
        """
        if folder in self._synced:
            return
        parent = os.path.dirname(folder)  # noqa: PTH120
        if folder == self._root:
            if not os.path.isdir(folder):  # noqa: PTH112
                make_folders(folder)
        else:
            self._make_folder(parent)
            try:
                os.mkdir(folder)  # noqa: PTH102
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise TerminalStoreError(
                        f"cannot write beneath {folder}: a file or a symbolic link (not followed) is there; move it"
                    ) from None
            _sync_folder(parent)
        if len(self._synced) > _FOLDERS_KNOWN:
            self._synced.clear()
        self._synced.add(folder)

    def read(
        self,
        key: str,
        *,
        limit: int,
        start: int = 0,
        size: int | None = None,
        restored: bool = False,  # noqa: ARG002 - nothing in a folder is archived
    ) -> bytes:
        missing: ObjectMissing | None = None
        for path in self._paths(key):
            try:
                return self._read(path, limit, start, size)
            except ObjectMissing as error:
                missing = missing or error
        self._check_mounted(key)
        raise missing or no_object(key)

    def _read(self, path: str, limit: int, start: int, size: int | None) -> bytes:
        try:
            descriptor, found = self._open(path)
            try:
                if size is None and found.st_size - start > limit:
                    raise too_large(path, limit)
                most = limit + 1 if size is None else min(size, limit + 1)
                data = _read_descriptor(descriptor, start, most, found.st_size - start)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Not `_os_errors`: a tenth of what reading a manifest takes.
            raise _from_os(error, "read", path) from error
        if len(data) > limit:
            raise too_large(path, limit)
        return data

    def _open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a plain file that no symbolic link leads to, and return what is known of it too.

        Raises:
            ObjectMissing: there is none.
        """
        try:
            if not self._in_plain_folder(path):
                raise ObjectMissing(f"there is no object {path}: a symbolic link stands there, which is not followed")
            # Not blocking: somebody may have put a pipe there.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
            raise ObjectMissing(f"there is no object {path}") from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise ObjectMissing(f"there is no object {path}: what stands there is no plain file")
        return descriptor, found

    def exists(self, key: str) -> bool:
        for path in self._paths(key):
            with _os_errors("look for", path):
                if self._look(path):
                    return True
        self._check_mounted(key)
        return False

    def _look(self, path: str) -> os.stat_result | None:
        """Return what is known of a plain file that no symbolic link leads to; None if there is none."""
        try:
            if not self._in_plain_folder(path):
                return None
            found = os.lstat(path)
        except OSError as error:
            if error.errno not in _MISSING_ERRNO:
                raise
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _in_plain_folder(self, path: str) -> bool:
        """Tell whether no symbolic link leads to the object's folder. The object itself may still be one."""
        folder = path[: path.rindex("/")]
        if folder in self._plain:
            return True
        if os.path.realpath(folder) != folder:
            return False
        if len(self._plain) > _FOLDERS_KNOWN:
            self._plain.clear()
        self._plain.add(folder)
        return True

    def names(self, prefix: str) -> list[str]:
        check_prefix(prefix)
        if prefix and not prefix.endswith("/"):
            raise FormatError(f"{legible(prefix)!r} is no folder: its prefix ends in '/'")
        self._check_mounted(prefix)
        found = []
        for _, place in self._places:
            for entry in self._scan(prefix, place):
                # What a file system does not say with the name is asked for here.
                with _os_errors("list", entry.path):
                    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                        found.append(_text(entry.name))
        return sorted(set(found) if len(self._places) > 1 else found)

    def level(self, prefix: str) -> tuple[Sequence[str], Sequence[ObjectInfo]]:
        check_prefix(prefix)
        self._check_mounted(prefix)
        if len(self._places) > 1:
            inside, plain = self._merge(prefix)
            return [_text(name) for name in sorted(inside)], [plain[name] for name in sorted(plain)]
        folders, objects = [], []
        for entry in self._scan(prefix):
            with _os_errors("list", entry.path):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_text(entry.name))
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    objects.append(ObjectInfo(prefix + _text(entry.name), size))
        return folders, objects

    def list(self, prefix: str = "", *, after: str = "", without: Collection[str] = ()) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        top, slash, _ = prefix.rpartition("/")
        if self._is_tiered(top + slash):
            yield from self._list_tiered(top + slash, prefix, after, without)
        else:
            yield from self._list_plain(top + slash, prefix, after, without)
        # All of an archive, or of a part that the roll moves. At the end: what is there can be listed all the same.
        self._check_mounted(prefix or RECORDS[0])

    def _is_tiered(self, folder: str) -> bool:
        """Tell whether objects under a folder may lie in tiers.

        It is so of what the roll moves, whether or not it has yet: it may while we list. Others list as they would
        without tiers, since they may have more objects in one folder than memory should hold in order to merge them.
        """
        if len(self._places) == 1:
            return False
        part = folder.partition("/")[0]
        if not part or folder.startswith(RECORDS):
            return True
        for _, place in self._places[1:]:
            with _os_errors("list", place):
                if _is_there(f"{place}/{part}"):
                    return True
        return False

    def _list_tiered(self, top: str, prefix: str, after: str, without: Collection[str]) -> Iterator[ObjectInfo]:
        """List what lies in several places, each key once, in byte order of keys but for parts that are not tiered."""
        waiting: list[ObjectInfo | str] = [top]
        while waiting:
            one = waiting.pop()
            if isinstance(one, ObjectInfo):
                yield one
                continue
            if one != top and one.count("/") == 1 and not self._is_tiered(one):
                yield from self._list_plain(one, prefix, after, ())
                continue
            folders, objects = self._merge(one)
            # Names compare as bytes, a folder's with its slash, as they do in keys.
            found: list[tuple[bytes, ObjectInfo | str]] = [
                (os.fsencode(f"{name}/"), f"{one}{name}/") for name in folders
            ]
            found += [(os.fsencode(name), info) for name, info in objects.items() if info.key > after]
            for _, item in sorted(found, key=lambda pair: pair[0], reverse=True):
                if isinstance(item, ObjectInfo):
                    wanted = item.key.startswith(prefix)
                else:
                    wanted = (
                        item.startswith(prefix) and (item > after or after.startswith(item)) and item not in without
                    )
                if wanted:
                    waiting.append(item)

    def _merge(self, folder: str) -> tuple[set[str], dict[str, ObjectInfo]]:
        """Return by file name the folders and the objects right under a folder, wherever they lie."""
        folders: set[str] = set()
        objects: dict[str, ObjectInfo] = {}
        shown = _text(folder)
        for class_, place in self._places:
            for entry in self._scan(folder, place):
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.add(entry.name)
                    elif entry.name not in objects and entry.is_file(follow_symlinks=False):
                        size = entry.stat(follow_symlinks=False).st_size
                        objects[entry.name] = ObjectInfo(shown + _text(entry.name), size, class_)
                except FileNotFoundError:
                    # Gone, or moved to a tier, which is looked at next.
                    continue
                except OSError as error:
                    raise _from_os(error, "list", entry.path) from error
        return folders, objects

    def _list_plain(self, top: str, prefix: str, after: str, without: Collection[str]) -> Iterator[ObjectInfo]:
        folders = [top]
        while folders:
            folder = folders.pop()
            shown = _text(folder)
            for entry in self._scan(folder):
                key = shown + _text(entry.name)
                if not key.startswith(prefix):
                    continue
                try:
                    if entry.is_file(follow_symlinks=False):
                        if key > after:
                            yield ObjectInfo(key, entry.stat(follow_symlinks=False).st_size)
                    elif entry.is_dir(follow_symlinks=False):
                        # A folder's keys all begin with its own name and a slash: if that is below `after` and not the
                        # beginning of it, all of them are.
                        inside = key + "/"
                        if (inside > after or after.startswith(inside)) and inside not in without:
                            folders.append(folder + entry.name + "/")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise _from_os(error, "list", entry.path) from error

    def _scan(self, folder: str, place: str | None = None) -> Iterator[os.DirEntry[str]]:
        """Yield a folder's entries but for those that are no keys; none if it is missing or behind a symbolic link."""
        path = f"{self._root if place is None else place}/{folder}".rstrip("/") or "/"
        with _os_errors("list", path):
            if os.path.realpath(path) != path:
                return
            try:
                entries = os.scandir(path)
            except OSError as error:
                if error.errno not in _MISSING_ERRNO:
                    raise
                return
        with entries:
            try:
                for entry in entries:
                    if folder or entry.name not in NO_KEYS:
                        yield entry
            except OSError as error:
                raise _from_os(error, "list", path) from error

    def status(self, key: str) -> ObjectStatus:
        paths = self._paths(key)
        for (class_, _), path in zip(self._places, paths, strict=True):
            with _os_errors("look at", path):
                found = self._look(path)
            if found:
                return ObjectStatus(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), class_)
        self._check_mounted(key)
        raise no_object(paths[0])

    def lock(self, key: str) -> None:
        """A folder locks nothing."""
        check_key(key)

    def restore(self, key: str, *, days: int, tier: Tier) -> None:
        """Nothing in a folder is archived."""

    def history(self, prefix: str = "") -> Iterator[Version]:
        """A folder keeps no versions."""
        check_prefix(prefix)
        return iter(())

    def at_versions(self, chosen: Mapping[str, Version]) -> Store:
        """There are none to choose."""
        if chosen:
            raise TerminalStoreError(f"{self.url} is a folder, and keeps no versions")
        return self

    def lifecycle(self) -> None:
        """A folder has no rules."""
        return

    def has_history(self, key: str) -> bool:
        """A folder keeps no versions."""
        check_key(key)
        return False

    def remove(self, key: str) -> None:
        # A copy in a tier that is not there would come back with it.
        self._check_mounted(key)
        for path in self._paths(key):
            with _os_errors("delete", path):
                try:
                    if self._in_plain_folder(path):
                        os.unlink(path)  # noqa: PTH108 - as its neighbours
                except OSError as error:
                    if error.errno not in _MISSING_ERRNO:
                        raise

    def tiers(self) -> Sequence[str]:
        self._check_mounted(RECORDS[0])
        above = f"{self._root.rstrip('/')}/{TIERS}"

        def is_there(path: str) -> bool:
            with _os_errors("look at", path):
                there = _is_there(path)
                if there and not _is_folder(path):
                    raise TerminalStoreError(
                        f"{path} is a file or a symbolic link (not followed): make a folder there, or mount one"
                    )
                return there

        if not is_there(above):
            return ()
        names = [name for name in TIER_NAMES if is_there(self._tier(name))]
        if not names:
            raise TerminalStoreError(f"{above} holds no tier: make `warm` or `cold` in it, or remove it")
        return names

    def move(self, key: str, tier: str) -> None:
        paths = self._paths(key)
        if tier not in self.tiers() or len(paths) == 1:
            raise TerminalStoreError(
                f"cannot move {key} to {tier!r}: there was no folder {TIERS}/{tier} in {self._root} when it was opened"
            )
        colder = paths[1 + TIER_NAMES.index(tier) :]
        with _os_errors("move", paths[0]):
            copies = [path for path in paths if self._look(path)]
            if not copies:
                raise no_object(paths[0])
            if len(copies) > 1 and len({self._digest(path) for path in copies}) > 1:
                raise ObjectExists(
                    f"{' and '.join(copies)} hold different bytes, and the first is read: find out by its digest in"
                    " the key or the manifest which one is the object, and move the other away"
                )
            if copies[-1] not in colder:
                place = dict(self._places)[tier]
                self._mark(tier, place)
                self._copy(copies[0], colder[0], place)
                copies.append(colder[0])
            self._make_durable(copies[-1])
            for path in copies[:-1]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108

    def _tier(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{TIERS}/{name}"

    def _record(self, tier: str) -> str:
        return f"{self._root.rstrip('/')}/{MARK}-{tier}"

    def _mark(self, tier: str, place: str) -> None:
        """Mark a tier at its first use, then put that on record; killed in between, the next move goes on.

        The bytes are the same whoever marks it, so that two at once do no harm.
        """
        if tier in self._marks:
            return
        try:
            archive = hashlib.sha256(self.read(ARCHIVE, limit=_CHUNK)).hexdigest()
        except ObjectMissing:
            # There is nothing yet that it could be the tier of.
            return
        path = f"{place}/{MARK}"
        data = f'{{"format":"custody/tier/1","tier":"{tier}","archive":"{archive}"}}\n'.encode()
        try:
            found = self._read(path, _MARK_BYTES, 0, None)
        except ObjectMissing:
            found = self._put_mark(place, path, data)
        if found != data:
            raise TerminalStoreError(
                f"{path} is the mark of another tier, or of another archive's: mount this one's there"
            )
        record = self._record(tier)
        self._create(record, data, ())
        if self._read(record, _MARK_BYTES, 0, None) != data:
            os.unlink(record)  # noqa: PTH108
            raise TransientStoreError(f"{record} does not read as it was written: check its disk; nothing was moved")
        self._marks[tier] = data

    def _put_mark(self, place: str, path: str, data: bytes) -> bytes:
        staged = self._stage(place, data)
        try:
            self._check_copy(staged, hashlib.sha256(data).digest(), "the tier's mark")
            os.replace(staged, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108
            raise
        _sync_folder(place)
        return data

    def _check_mounted(self, key: str) -> None:
        """Look, before something that may lie in a tier is called missing, whether each tier in use is there.

        Raises:
            TierUnmounted: one is not.
        """
        if not self._marks or not key.startswith(RECORDS):
            return
        for tier in self._marks:
            if why := self._unmounted.get(tier) or self._why_unmounted(tier):
                raise TierUnmounted(why)

    def _why_unmounted(self, tier: str) -> str | None:
        place, record = self._tier(tier), self._record(tier)
        path = f"{place}/{MARK}"
        try:
            if self._read(path, _MARK_BYTES, 0, None) == self._marks[tier]:
                return None
            why = "is not the one of"
        except ObjectMissing:
            why = "is not there, and should be as"
        except (FormatError, StoreError) as error:
            why = f"cannot be read ({error}) and held against"
        return (
            f"the tier {tier!r} is not mounted at {place}: its mark {path} {why} {record}; mount it, and try again"
            f" (if it was copied to another disk without its mark, copy {record} to {path}; if nothing is kept in it"
            f" any more, remove {record})"
        )

    def _copy(self, source: str, path: str, place: str) -> None:
        """Copy an object to a free path of another place; the copy gets its name when it was read and found equal."""
        if _is_there(path):
            raise TerminalStoreError(f"cannot move to {path}: what is in its place is no plain file; move it away")
        self._make_folder(os.path.dirname(path))  # noqa: PTH120
        descriptor, staged = self._new_staged(place)
        try:
            try:
                digest = hashlib.sha256()
                origin, found = self._open(source)
                try:
                    for chunk in _chunks(origin):
                        digest.update(chunk)
                        _write_all(descriptor, chunk)
                finally:
                    os.close(origin)
                os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
                os.fsync(descriptor)
                if hasattr(os, "posix_fadvise"):
                    # So that it is read from the disk below, and not from what we have just written.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
            self._check_copy(staged, digest.digest(), source)
            os.replace(staged, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)  # noqa: PTH108
            raise

    def _check_copy(self, path: str, digest: bytes, source: str) -> None:
        if self._digest(path) != digest:
            raise TransientStoreError(
                f"the copy {path} of {source} does not read as it was written: check its disk; the object stays"
            )

    def _digest(self, path: str) -> bytes:
        digest = hashlib.sha256()
        descriptor, _ = self._open(path)
        try:
            for chunk in _chunks(descriptor):
                digest.update(chunk)
        finally:
            os.close(descriptor)
        return digest.digest()

    def _make_durable(self, path: str) -> None:
        """Sync an object and all that leads to it: who copied it may have died."""
        folder = os.path.dirname(path)  # noqa: PTH120
        self._make_folder(folder)
        descriptor, _ = self._open(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(folder)

    def close(self) -> None:
        """There is nothing to give up."""

    def _paths(self, key: str) -> Sequence[str]:
        """Return where an object may lie, the hot part first."""
        check_key(key)
        if len(self._places) == 1:
            return (f"{self._places[0][1]}/{key}",)
        return tuple(f"{place}/{key}" for _, place in self._places)


def _is_there(path: str) -> bool:
    """Say whether anything has that name; unlike `os.path.lexists` it does not take an error for a no."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in _MISSING_ERRNO:
            raise
        return False
    return True


def _is_folder(path: str) -> bool:
    """Say whether that is a folder, and no symbolic link to one."""
    return os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Yield a file's bytes from its beginning."""
    start = 0
    while chunk := os.pread(descriptor, _CHUNK, start):
        yield chunk
        start += len(chunk)


def _text(name: str) -> str:
    """Return a file's name as text, with bytes that are no UTF-8 spelled out: nobody's key, but one to show."""
    return name if is_unicode(name) else os.fsencode(name).decode("utf-8", "backslashreplace")


def _read_descriptor(descriptor: int, start: int, size: int, there: int) -> bytes:
    """Return up to `size` bytes from `start`, where `there` bytes are by what the file system said."""
    chunks = []
    while size > 0:
        # One byte more than there is, so that a small object costs one call, and memory of its size alone.
        wanted = min(size, there + 1 if there >= 0 else _CHUNK, 16 * _CHUNK)
        chunk = os.pread(descriptor, wanted, start)
        if chunk:
            chunks.append(chunk)
        start += len(chunk)
        size -= len(chunk)
        there -= len(chunk)
        if not chunk or (len(chunk) < wanted and there <= 0):
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def make_folders(folder: str) -> None:
    """Make a folder and what is missing above it, down from what is there, each entry synced."""
    parent = os.path.dirname(folder)  # noqa: PTH120
    if not os.path.isdir(parent):  # noqa: PTH112
        make_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
    _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: str) -> None:
    """Remove what writers that died a day ago left in the staging area. No object is ever there."""
    oldest = time.time() - _ABANDONED_SECONDS
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)  # noqa: PTH108


# Nothing there, a file where a folder is asked for, or a symbolic link, which is not followed.
_MISSING_ERRNO = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


_TRANSIENT_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_ERRNO_ADVICE = {
    errno.ENOSPC: "the disk is full: make room, nothing was lost and the next run goes on",
    errno.EDQUOT: "the quota is used up: make room, nothing was lost and the next run goes on",
    errno.EACCES: "this user may not: give it the folder, or run as the folder's owner",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENAMETOOLONG: "the file system has no names this long: use a shorter root or another file system",
    errno.EPERM: "the file system refuses it (an archive's needs hard links)",
    errno.EOPNOTSUPP: "the file system cannot do it (an archive's needs hard links)",
    errno.EXDEV: f"{STAGING} must be on the same file system as the rest of the archive",
    errno.EIO: "the disk fails: check it before anything else is written",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away",
}


@contextlib.contextmanager
def _os_errors(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _from_os(error, doing, path) from error


def _from_os(error: OSError, doing: str, path: str) -> StoreError:
    """Return the store's error for one of the operating system's."""
    transient = error.errno in _TRANSIENT_ERRNO
    reason = error.strerror or type(error).__name__
    advice = _ERRNO_ADVICE.get(error.errno or 0, "it may pass; try again" if transient else "see to the file system")
    message = f"cannot {doing} {legible(path)}: {reason} ({advice})"
    return TransientStoreError(message) if transient else TerminalStoreError(message)
